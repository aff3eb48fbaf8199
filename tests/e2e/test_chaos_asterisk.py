"""Asterisk dies, with the engine, and hangs: its calls are closed, and the phones can be rung again at once."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos import asterisk, kill
from tests.chaos.asterisk import Fault
from tests.chaos.audit import shown
from tests.chaos.city import standing

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("fault", [Fault.KILLED_TOGETHER, Fault.HUNG], ids=lambda fault: fault.name.lower())
def test_asterisk_fails_with_a_caller_at_every_stage(tmp_path: Path, fault: Fault) -> None:
    with standing(
        tmp_path,
        agents=asterisk.AGENTS + asterisk.IDLE,
        specialists=asterisk.SPECIALISTS,
        offer_seconds=kill.OFFER_SECONDS,
        wrap_up_seconds=kill.WRAP_UP_SECONDS,
        settings={"CALLCENTER_ASTERISK__HUNG_SECONDS": "5"},
        change=kill.flows_for_stages,
    ) as house:
        came = asyncio.run(asterisk.asterisk_fails(house, fault, seed=31))
    print(f"away {came.away:.1f} s, true {came.true_after:.1f} s after the return; {came.found}")
    assert not came.wrong, shown(came.wrong)
