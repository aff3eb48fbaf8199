"""Packets of SIP and RTP are lost, doubled and late between the phones and Asterisk; each record is true all the same."""

import asyncio
from pathlib import Path

from tests.chaos.audit import shown
from tests.chaos.city import standing
from tests.chaos.wire import telephoned_in_bad_weather


def test_a_bad_network_costs_no_call_and_no_record(tmp_path: Path) -> None:
    with standing(tmp_path, agents=4, specialists=2) as house:
        found, weather = asyncio.run(telephoned_in_bad_weather(house, seed=41, calls=10, at_once=4))
    print(found, dict(weather.did))
    assert not found.wrong, shown(found.wrong)
    assert weather.did["lost"] > 100
