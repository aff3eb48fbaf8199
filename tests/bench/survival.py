"""How soon a new engine has every call of one that was killed."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from callcenter.asterisk.ami import AmiLink, AmiMessage
from callcenter.phone.phone import Phone
from tests.bench.rows import Row, judged, spread
from tests.bench.site import LINE, Staff, all_ready, phones, site, trunk
from tests.e2e.house import House, ProblemError, Rest, until

CALLS, TALKING = 200, 20
ADOPTED_SECONDS = 5.0
GIVEN_UP_SECONDS = 30.0


def adopt(*, calls: int = CALLS, talking: int = TALKING) -> list[Row]:
    """SIGKILL, an engine started at once -> every call is its own."""
    staff = Staff(talking)
    with site(staff) as house:
        house.start()
        took, start_seconds = asyncio.run(_kill_and_adopt(house, staff, calls))
    result = spread(took)
    return [
        judged(
            f"engine killed and started → adopted, {talking} calls talking and {calls - talking} waiting",
            ours=f"{result.p50 / 1000:.2f} / {result.p95 / 1000:.2f} / {result.p99 / 1000:.2f} s (n={result.count})",
            beside=f"until the new one says that it is ready: {start_seconds:.2f} s",
            target=f"p95 ≤ {ADOPTED_SECONDS:g} s",
            met=result.p95 <= ADOPTED_SECONDS * 1000,
        )
    ]


async def _kill_and_adopt(house: House, staff: Staff, calls: int) -> tuple[list[float], float]:
    """Seconds from the kill until each call was adopted, and those of the start.

    Who waits is when Asterisk has carried out where the new engine sends him; who talks is when the engine, connected
    to Asterisk again, shows him talking.
    """
    async with (
        phones(house, [phone for _, phone in staff.agent_users]) as desks,
        trunk(house) as line,
        asyncio.TaskGroup() as tasks,
        house.rest("leader1") as leader,
    ):
        await all_ready(house, staff)
        for desk in desks:
            tasks.create_task(_takes_one(desk), name=desk.user)
        placed = []
        for number in range(calls):
            call = await line.dial(LINE, caller=f"138{number:08}")
            await call.wait_answered(10)
            placed.append(call)

        async def phases() -> dict[str, str]:
            return await _phases(leader)

        before = await until(phases, lambda seen: _all_there(seen, calls, staff.agents), seconds=60)

        async def written() -> int:
            with contextlib.closing(sqlite3.connect(house.data / "callcenter.db")) as database:
                return int(database.execute("SELECT count(*) FROM calls").fetchone()[0])

        await until(written, lambda count: count >= calls, seconds=60)
        async with _overheard(house) as settled:
            began = time.monotonic()
            await asyncio.to_thread(house.kill)
            start_seconds = await asyncio.to_thread(house.start)
            talking: dict[str, float] = {}

            async def adopted() -> set[str]:
                with contextlib.suppress(aiohttp.ClientError, ProblemError):
                    if (await leader.get("/healthz"))["components"]["ami"]["standing"] == "ok":
                        for call_id, phase in (await _phases(leader)).items():
                            if phase == "talking":
                                talking.setdefault(call_id, time.monotonic())
                return talking.keys() | settled.keys()

            await until(adopted, lambda seen: seen >= before.keys(), seconds=GIVEN_UP_SECONDS)
        if gone := sum(call.ended.is_set() for call in placed):
            raise AssertionError(f"{gone} of {calls} callers were cut off")
    return [(talking | settled)[call_id] - began for call_id in before], start_seconds


def _all_there(phases: dict[str, str], calls: int, agents: int) -> bool:
    return len(phases) == calls and list(phases.values()).count("talking") == agents


async def _phases(leader: Rest) -> dict[str, str]:
    calls: list[dict[str, Any]] = (await leader.get("/api/v1/calls"))["calls"]
    return {call["call_id"]: call["phase"] for call in calls}


async def _takes_one(desk: Phone) -> None:
    call = await desk.next_call(120)
    await call.answer()


@contextlib.asynccontextmanager
async def _overheard(house: House) -> AsyncIterator[dict[str, float]]:
    """When each party has last arrived where he was sent, beside the engine's own link."""
    settled: dict[str, float] = {}
    up = asyncio.Event()

    def heard(message: AmiMessage) -> None:
        if message.get("UserEvent") == "Settled":
            settled.setdefault(message.get("Uniqueid"), message.received)

    link = AmiLink(
        host="127.0.0.1",
        port=house.ami,
        username="engine",
        secret=(house.data / "ami.secret").read_text().strip(),
        on_event=heard,
        on_up=up.set,
        on_down=lambda _: None,
    )
    running = asyncio.create_task(link.run(), name="overhearing")
    try:
        async with asyncio.timeout(10):
            await up.wait()
        settled.clear()
        yield settled
    finally:
        await link.close()
        await running
