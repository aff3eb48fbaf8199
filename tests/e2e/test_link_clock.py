"""The time of day is set while calls go on: nobody is cut off, nobody falls back, and the dead-man still works."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.house import House, dial, prepared, until, until_hears

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("libfaketime is not installed"))
HOUR = 3600

pytestmark = pytest.mark.timeout(300)  # houses are started twice


class Clock:
    """The time of day that a process with ``environment`` sees; its monotonic clock stays true."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "offset"
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


@asynccontextmanager
async def clocked(directory: Path, clock: Clock, *, engine: bool, asterisk: bool) -> AsyncIterator[House]:
    """A house of which the named processes go by that clock."""
    house = House(directory / "h", settings=clock.environment if asterisk else None)
    plain = {name: value for name, value in house.environment.items() if name not in clock.environment}
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=5, wrap_up_seconds=2)
        await asyncio.to_thread(house.start)
        if engine != asterisk:
            house.environment = plain | (clock.environment if engine else {})
            await asyncio.to_thread(house.kill)
            await asyncio.to_thread(house.start)
        yield house
    finally:
        house.close()


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forwards", "backwards"])
@pytest.mark.parametrize(
    ("engine", "asterisk"), [(True, False), (False, True), (True, True)], ids=["engine", "asterisk", "both"]
)
async def test_the_clock_is_set_by_an_hour(
    tmp_path: Path, step: int, *, engine: bool, asterisk: bool
) -> None:
    clock = Clock(tmp_path)
    async with (
        clocked(tmp_path, clock, engine=engine, asterisk=asterisk) as house,
        house.rest("leader1") as leader,
        house.person("agent1", "1001") as agent,
        house.caller("17100000041") as first,
        house.caller("17100000042") as second,
        house.caller("17100000043") as third,
    ):
        talking = await dial(first, seconds=30)
        desk = await agent.answers()
        talk = await agent.call_id()
        held = await dial(second, seconds=30)

        async def waiting(wanted: int) -> None:
            await until(
                lambda: leader.get("/api/v1/queues"),
                lambda q: next(e for e in q["queues"] if e["queue_id"] == "hotline")["waiting"] == wanted,
                seconds=30,
            )

        await waiting(1)
        clock.set(step)
        newcomer = await dial(third, seconds=30)
        await waiting(2)
        # Longer than a dead engine is waited for.
        await asyncio.sleep(9)
        for call in (talking, held, newcomer, desk):
            assert not call.ended.is_set()
        await until_hears(talking, "agent")
        calls = (await leader.get("/api/v1/calls"))["calls"]
        assert {step["kind"] for call in calls for step in call["steps"]}.isdisjoint({"fell_back"})
        assert {row.get("Context") for row in await house.channel_rows()} == {"engine"}

        await asyncio.to_thread(house.kill)

        async def fallen() -> int:
            await asyncio.sleep(0.5)
            return sum(row.get("Context") == "fallback" for row in await house.channel_rows())

        await until(fallen, lambda n: n == 2, seconds=30)
        await until_hears(talking, "agent")
        clock.set(0)
        await asyncio.to_thread(house.start)
        await until(lambda: agent.call(talk), lambda c: c["phase"] == "talking", seconds=30)
        await waiting(2)
        for call in (talking, held, newcomer):
            await call.hang_up()
