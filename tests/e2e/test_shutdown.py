"""SIGTERM in the middle of a busy hour: drain, hand over, or end every call; and a second signal."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from callcenter.phone.phone import Call
from tests.e2e.house import House, Person, Rest, dial, prepared, until, until_hears

QUEUED = 7

pytestmark = pytest.mark.timeout(400)  # ten calls on a busy machine


@dataclass
class Hour:
    """Ten callers: one talks, one is on hold, one is with agent and specialist, seven wait."""

    house: House
    leader: Rest
    agents: list[Person]
    desks: list[Call]
    specialist: Call
    talking: list[Call]
    waiting: list[Call] = field(default_factory=list)

    @property
    def callers(self) -> list[Call]:
        return [*self.talking, *self.waiting]

    async def calls(self) -> dict[str, str]:
        """The living calls and their phases; nothing while no engine is there."""
        calls = (await self.leader.get("/api/v1/calls"))["calls"]
        return {call["call_id"]: call["phase"] for call in calls if call["phase"] != "ended"}


@asynccontextmanager
async def busy_hour(directory: Path, **settings: str) -> AsyncIterator[Hour]:
    house = House(directory / "h", settings=settings)
    async with AsyncExitStack() as stack:
        stack.callback(house.close)
        await asyncio.to_thread(prepared, house, offer_seconds=20, wrap_up_seconds=1)
        await asyncio.to_thread(house.start)
        leader = await stack.enter_async_context(house.rest("leader1"))
        specialist = await stack.enter_async_context(house.person("spec1", "8001", ready=False))
        agents, desks, talking = [], [], []
        for n in (1, 2, 3):
            agent = await stack.enter_async_context(house.person(f"agent{n}", f"100{n}"))
            phone = await stack.enter_async_context(house.caller(f"171000002{n:02}"))
            talking.append(await dial(phone, seconds=30))
            desks.append(await agent.answers())
            agents.append(agent)
        await agents[1].does("hold", await agents[1].call_id())
        third = await agents[2].call_id()
        await agents[2].does("invite", third, user="spec1")
        at_department = await specialist.answers("specialist")
        await agents[2].does("merge", third)
        await until_hears(talking[2], "agent", "specialist", seconds=15)
        hour = Hour(house, leader, agents, desks, at_department, talking)
        for n in range(QUEUED):
            phone = await stack.enter_async_context(house.caller(f"171000003{n:02}"))
            hour.waiting.append(await dial(phone, seconds=30))
        await until(
            hour.calls, lambda calls: phases(calls) == ["talking"] * 3 + ["waiting"] * QUEUED, seconds=30
        )
        yield hour


def phases(calls: dict[str, str]) -> list[str]:
    return sorted(calls.values())


def asterisk_lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def soon(wish: Callable[[], Any], *, seconds: float = 20) -> None:
    """Until it is so."""

    async def look() -> Any:
        return wish()

    await until(look, bool, seconds=seconds)


async def test_drain_serves_everybody_who_is_there_and_nobody_who_comes(tmp_path: Path) -> None:
    async with busy_hour(tmp_path, CALLCENTER_SHUTDOWN__DRAIN_SECONDS="300") as hour:
        house, asterisk = hour.house, hour.house.asterisk_pid
        known = await hour.calls()
        house.terminate()
        await soon(lambda: "second signal" in house.said())
        async with house.caller("17100000299") as late:
            refused = await dial(late, sound=None, seconds=30)
            await refused.ended.wait(30)

            async def refusals() -> list[str]:
                records = (await hour.leader.get("/api/v1/call-records?limit=50"))["calls"]
                return [call["end_reason"] for call in records if call["call_id"] not in known]

            await until(refusals, lambda reasons: reasons == ["shut_down"], seconds=30)
        for call in [*hour.callers, *hour.desks, hour.specialist]:
            assert not call.ended.is_set()
        await until_hears(hour.talking[0], "agent", seconds=15)

        async def serve(agent: Person, desk: Call) -> None:
            """Until nobody waits any more and the house closes."""
            while True:
                await desk.hang_up()
                desk = await agent.phone.next_call(60)
                await desk.answer()

        await hour.specialist.hang_up()
        desks = [asyncio.create_task(serve(*pair)) for pair in zip(hour.agents, hour.desks, strict=True)]
        try:
            status = await asyncio.to_thread(house.wait, seconds=200)
        finally:
            for desk in desks:
                desk.cancel()
            await asyncio.gather(*desks, return_exceptions=True)
        assert status == 0
        assert not asterisk_lives(asterisk)
        await asyncio.to_thread(house.start)
        async with house.rest("leader1") as leader:
            records = (await leader.get("/api/v1/call-records?limit=50"))["calls"]
            ended = {call["call_id"]: call["end_reason"] for call in records if call["call_id"] in known}
        assert ended == dict.fromkeys(known, "completed")


async def test_hand_over_leaves_every_call_to_the_next_engine(tmp_path: Path) -> None:
    async with busy_hour(tmp_path, CALLCENTER_SHUTDOWN__MODE="hand_over") as hour:
        house, asterisk, known = hour.house, hour.house.asterisk_pid, await hour.calls()
        house.terminate()
        assert await asyncio.to_thread(house.wait) == 0
        assert asterisk_lives(asterisk)
        await until_hears(hour.talking[0], "agent", seconds=15)
        await until_hears(hour.talking[2], "agent", "specialist", seconds=15)
        await asyncio.to_thread(house.start)
        assert house.asterisk_pid == asterisk
        began = time.monotonic()
        await until(hour.calls, lambda calls: calls == known, seconds=30)
        assert time.monotonic() - began < 5
        for call in [*hour.callers, *hour.desks, hour.specialist]:
            assert not call.ended.is_set()
        await until_hears(hour.talking[0], "agent", seconds=15)
        await hour.agents[1].does("resume", await hour.agents[1].call_id())
        await until_hears(hour.talking[1], "agent", seconds=15)
        await hour.desks[0].hang_up()
        next_desk = await hour.agents[0].answers(seconds=30)
        await next_desk.hang_up()


@pytest.mark.parametrize("second", ["deadline", "SIGTERM", "SIGINT"])
async def test_a_drain_ends_at_its_deadline_or_at_a_second_signal(tmp_path: Path, second: str) -> None:
    house = House(
        tmp_path / "h",
        settings={"CALLCENTER_SHUTDOWN__DRAIN_SECONDS": "1" if second == "deadline" else "300"},
    )
    try:
        await asyncio.to_thread(house.start)
        asterisk = house.asterisk_pid
        async with house.person("agent1", "1001") as agent, house.caller("17100000251") as citizen:
            call = await dial(citizen, seconds=30)
            await agent.answers()
            house.terminate()
            await soon(lambda: "second signal" in house.said())
            match second:
                case "SIGTERM":
                    house.terminate()
                case "SIGINT":
                    await asyncio.to_thread(house.stop)
            assert await asyncio.to_thread(house.wait) == 0
            await call.ended.wait(10)
            assert not asterisk_lives(asterisk)
        await asyncio.to_thread(house.start)
        async with house.rest("leader1") as leader:
            [record] = (await leader.get("/api/v1/call-records?limit=10"))["calls"]
        assert (record["phase"], record["end_reason"]) == ("ended", "completed")
    finally:
        house.close()
