"""The time of day is set while calls go on: nobody is cut off, nobody falls back, and the dead-man still works."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.house import House, dial, prepared, until, until_hears

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("libfaketime is not installed"))
HOUR = 3600
DEAD_SECONDS = 6
"""Longer than the dialplan waits for a dead engine."""
BEATS_SECONDS = 3
"""In which a living engine notices that Asterisk's clock was set."""

pytestmark = pytest.mark.timeout(400)  # houses are started twice


class Clock:
    """The time of day that a process with ``environment`` sees; its monotonic clock stays true."""

    def __init__(self, file: Path) -> None:
        self._file, self._ahead = file, 0
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.step(0)

    def step(self, seconds: int) -> None:
        self._ahead += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._ahead:+d}\n")
        new.replace(self._file)


async def test_the_clock_is_set_by_an_hour(tmp_path: Path) -> None:
    """The engine's, Asterisk's, both; forwards and back; and an engine that dies after it is noticed."""
    engine, asterisk = Clock(tmp_path / "engine"), Clock(tmp_path / "asterisk")
    # A new engine finds the Asterisk of the first one, which keeps the clock it was started with.
    house = House(tmp_path / "h", settings=asterisk.environment)
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=20, wrap_up_seconds=2)
        await asyncio.to_thread(house.start)
        await asyncio.to_thread(house.kill)
        house.environment |= engine.environment
        await asyncio.to_thread(house.start)
        async with (
            house.rest("leader1") as leader,
            house.person("agent1", "1001") as agent,
            house.caller("17100000041") as first,
            house.caller("17100000042") as second,
            house.caller("17100000043") as third,
        ):
            talking = await dial(first, seconds=30)
            desk = await agent.answers(seconds=30)
            talk = await agent.call_id()
            held = await dial(second, seconds=30)

            async def waiting(wanted: int) -> None:
                await until(
                    lambda: leader.get("/api/v1/queues"),
                    lambda q: next(e for e in q["queues"] if e["queue_id"] == "hotline")["waiting"] == wanted,
                    seconds=30,
                )

            async def fallen() -> int:
                await asyncio.sleep(0.5)
                return sum(row.get("Context") == "fallback" for row in await house.channel_rows())

            await waiting(1)
            # Ends as it began: each clock goes forwards and back, alone and with the other.
            for clocks, seconds in (
                ((engine,), HOUR),
                ((asterisk,), HOUR),
                ((engine, asterisk), -HOUR),
                ((engine, asterisk), HOUR),
                ((engine,), -HOUR),
                ((asterisk,), -HOUR),
            ):
                for clock in clocks:
                    clock.step(seconds)
                newcomer = await dial(third, seconds=30)
                await waiting(2)
                await asyncio.sleep(DEAD_SECONDS)
                for call in (talking, held, newcomer, desk):
                    assert not call.ended.is_set()
                await until_hears(talking, "agent")
                assert {row.get("Context") for row in await house.channel_rows()} == {"engine"}
                await newcomer.hang_up()
                await waiting(1)
            calls = (await leader.get("/api/v1/calls"))["calls"]
            assert {step["kind"] for call in calls for step in call["steps"]}.isdisjoint({"fell_back"})

            for seconds in (HOUR, -HOUR):
                asterisk.step(seconds)
                await asyncio.sleep(BEATS_SECONDS)
                await asyncio.to_thread(house.kill)
                await until(fallen, lambda n: n == 1, seconds=30)
                await until_hears(talking, "agent")
                await asyncio.to_thread(house.start)
                await until(lambda: agent.call(talk), lambda c: c["phase"] == "talking", seconds=30)
                await waiting(1)
            for call in (talking, held):
                await call.hang_up()
    finally:
        house.close()
