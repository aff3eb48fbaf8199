"""The control link is cut at single actions of all that agents do: nobody is lost, nothing is done twice (long: `make chaos`)."""

from pathlib import Path

import pytest

from tests.chaos.audit import shown
from tests.chaos.link import Cut, cut_at_every_step
from tests.e2e.wire_tap import on_a_cable

pytestmark = pytest.mark.timeout(400)  # every cut of a busy machine's time


async def test_a_cut_at_a_single_action_of_anything(tmp_path: Path) -> None:
    """Offer, hold, resume, consult, merge, leave, transfer, end; an action of each is lost, or its answer."""
    async with on_a_cable(tmp_path) as (house, cable):
        cuts = [Cut(1, carried_out=False), Cut(1, carried_out=True), Cut(2, carried_out=False)]
        found = await cut_at_every_step(house, cable, cuts)
        print(found)
    assert not found.wrong, shown(found.wrong)
    assert found.made.keys() >= {"Originate", "Redirect"}
