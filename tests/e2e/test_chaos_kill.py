"""The engine is killed: nobody is cut off, and what happened without it is in the records (long: `make chaos`)."""

import asyncio
from pathlib import Path

from tests.chaos import kill
from tests.chaos.audit import shown
from tests.chaos.city import standing


def test_killed_with_a_caller_at_every_stage(tmp_path: Path) -> None:
    """Prompt, key, queue, announcement, ringing, talk, hold, consult, three, transfer, message, rating, wrap-up."""
    with standing(
        tmp_path,
        agents=9,
        specialists=3,
        offer_seconds=kill.OFFER_SECONDS,
        wrap_up_seconds=kill.WRAP_UP_SECONDS,
        change=kill.flows_for_stages,
    ) as house:
        wrong, found, _ = asyncio.run(kill.killed_at_every_stage(house, seed=11))
    assert not wrong, shown(wrong)
    assert sum(found.ends.values()) == 19


def test_callers_without_an_engine_are_served_and_recorded(tmp_path: Path) -> None:
    with standing(tmp_path, agents=2, specialists=0) as house:
        wrong, found = asyncio.run(kill.served_without_engine(house, seed=12, callers=4))
    assert not wrong, shown(wrong)
    assert found.recordings == 12
