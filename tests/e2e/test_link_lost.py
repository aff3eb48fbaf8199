"""The control link goes, stalls, loses an event, or breaks at any one action: nobody is lost, nothing is done twice."""

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from callcenter.phone.g711 import Pcm
from callcenter.phone.measure import tone
from callcenter.phone.phone import Call
from tests.e2e.house import TONES, House, Rest, dial, until, until_hears
from tests.e2e.wire_tap import Cable, on_a_cable

pytestmark = pytest.mark.timeout(300)  # houses are started twice


def _tone(name: str) -> Pcm:
    return tone(TONES[name], 1)


async def phases(leader: Rest) -> list[str]:
    calls = (await leader.get("/api/v1/calls"))["calls"]
    return sorted(call["phase"] for call in calls if call["phase"] != "ended")


async def ami_is(house: House, standing: str, *, seconds: float = 20) -> None:
    async with house.rest() as nobody:

        async def look() -> str:
            _, _, body = await nobody.raw("/healthz")  # 503 while something is down
            return str(json.loads(body)["components"]["ami"]["standing"])

        await until(look, lambda seen: seen == standing, seconds=seconds)


async def test_ten_seconds_without_a_link(tmp_path: Path) -> None:
    """Calls everywhere: who talks goes on talking, who waits is in the fallback queue, and all come back."""
    async with AsyncExitStack() as stack:
        house, cable = await stack.enter_async_context(on_a_cable(tmp_path))
        leader = await stack.enter_async_context(house.rest("leader1"))
        specialist = await stack.enter_async_context(house.person("spec1", "8001", ready=False))
        agents, desks, calls = [], [], []
        for n in (1, 2, 3, 4):
            agents.append(await stack.enter_async_context(house.person(f"agent{n}", f"100{n}")))
            phone = await stack.enter_async_context(house.caller(f"171000004{n:02}"))
            calls.append(await dial(phone, seconds=30))
            desks.append(await agents[-1].answers())
        ids = [await agent.call_id() for agent in agents]
        await agents[1].does("hold", ids[1])
        await agents[2].does("invite", ids[2], user="spec1")
        third = await specialist.answers("specialist")
        await agents[2].does("merge", ids[2])
        await until_hears(calls[2], "agent", "specialist", seconds=20)
        for number in ("12345", "12345", "12346"):
            phone = await stack.enter_async_context(house.caller(f"171000004{10 + len(calls):02}"))
            calls.append(await dial(phone, number, seconds=30))
        # agent4's wrap-up is long over when the seventh caller has been offered to him: his phone rings.
        await desks[3].hang_up()
        ringing = await agents[3].phone.next_call(30)
        wanted = await phases(leader)

        cable.cut()
        await ami_is(house, "down")
        await asyncio.sleep(10)
        assert not any(call.ended.is_set() for call in (*calls[:3], *calls[4:], *desks[:3], third))
        await until_hears(calls[0], "agent", seconds=15)
        await until_hears(calls[2], "agent", "specialist", seconds=15)
        cable.mend()
        await ami_is(house, "ok")
        await until(lambda: phases(leader), lambda now: Counter(now) >= Counter(wanted), seconds=30)
        assert not any(call.ended.is_set() for call in (*calls[:3], *calls[4:], *desks[:3], third))
        await agents[1].does("resume", ids[1])
        await until_hears(calls[1], "agent", seconds=15)
        if not ringing.ended.is_set():
            await ringing.answer()
        for call in (*calls, third):
            if not call.ended.is_set():
                await call.hang_up()
        await until(lambda: phases(leader), lambda now: now == [], seconds=30)

        async def records() -> list[tuple[str, bool]]:
            kept = (await leader.get("/api/v1/call-records?limit=50"))["calls"]
            return [(call["phase"], call["ticket_number"] is not None) for call in kept]

        # Everybody has his record; who was answered has his ticket too.
        await until(
            records,
            lambda seen: (
                [phase for phase, _ in seen] == ["ended"] * len(calls)
                and sum(ticket for _, ticket in seen) >= 4
            ),
            seconds=30,
        )


@pytest.mark.parametrize("directions", [(), ("actions",), ("events",)], ids=["both", "actions", "events"])
async def test_a_stall_of_seventeen_seconds(tmp_path: Path, directions: tuple[str, ...]) -> None:
    """Seen in two seconds, told, connected anew; what comes late over the old connection does nothing twice."""
    async with on_a_cable(tmp_path) as (house, cable), AsyncExitStack() as stack:
        agent = await stack.enter_async_context(house.person("agent1", "1001"))
        other = await stack.enter_async_context(house.person("agent2", "1002", ready=False))
        talking = await dial(await stack.enter_async_context(house.caller("17100000501")), seconds=30)
        desk = await agent.answers()
        call_id = await agent.call_id()
        waiting = await dial(await stack.enter_async_context(house.caller("17100000502")), seconds=30)
        await asyncio.sleep(2)
        connections = cable.connections
        began = time.monotonic()
        cable.stall(*directions)
        held = asyncio.create_task(agent.does("hold", call_id))
        offered = asyncio.create_task(other.set("ready"))
        await asyncio.gather(held, offered)

        async def told() -> list[str]:
            return [
                str(line.get("reason")) for line in house.log_lines() if line.get("key") == "telephony_lost"
            ]

        await until(told, lambda reasons: "stalled" in reasons, seconds=15)
        print(f"seen after {time.monotonic() - began:.2f} s")
        await until(_connections(cable), lambda n: n > connections, seconds=15)
        await ami_is(house, "ok")
        second = await other.answers("other", seconds=40)
        await until_hears(waiting, "other", seconds=15)
        await agent.until_state("held")
        await until_hears(desk, seconds=15)
        await asyncio.sleep(max(0.0, began + 17 - time.monotonic()))
        cable.deliver()
        await asyncio.sleep(5)  # the audit looks every three seconds
        await until_hears(waiting, "other", seconds=15)
        await agent.does("resume", call_id)
        await until_hears(talking, "agent", seconds=15)
        await until_hears(desk, "caller", seconds=15)
        assert not any(call.ended.is_set() for call in (talking, waiting, desk, second))
        with pytest.raises(TimeoutError):
            await agent.phone.next_call(0.5)
        # The offer that was kept in the cable may ring for the moment until Asterisk tells of it.
        with suppress(TimeoutError):
            late = await other.phone.next_call(0.5)
            await late.ended.wait(1)
        for call in (talking, waiting):
            await call.hang_up()


def _connections(cable: Cable) -> Any:
    async def count() -> int:
        return cable.connections

    return count


# --- one event is lost --------------------------------------------------------------------------------------


class Loser:
    """Loses the first event that has all these words, and whatever repeats it."""

    def __init__(self, cable: Cable, *words: str) -> None:
        self.lost = 0
        self._words = words
        cable.on_event = self.judge

    def judge(self, _name: str, text: str) -> bool:
        if all(word in text for word in self._words):
            self.lost += 1
            return False
        return True


async def test_no_single_lost_event_leaves_anybody_behind(tmp_path: Path) -> None:
    async with on_a_cable(tmp_path) as (house, cable), AsyncExitStack() as stack:
        leader = await stack.enter_async_context(house.rest("leader1"))
        agent = await stack.enter_async_context(house.person("agent1", "1001"))
        specialist = await stack.enter_async_context(house.person("spec1", "8001", ready=False))

        async def caller(number: str) -> Call:
            phone = await stack.enter_async_context(house.caller(number))
            return await dial(phone, seconds=30)

        async def leg(call_id: str, role: str) -> str:
            legs = (await agent.call(call_id))["legs"]
            return next(str(leg["leg_id"]) for leg in legs if leg["role"] == role and leg["state"] == "up")

        async def nobody_left() -> None:
            await until(lambda: phases(leader), lambda now: now == [], seconds=30)
            await until(house.channels, lambda left: left == [], seconds=30)
            await agent.until_state("ready", seconds=30)

        took: dict[str, float] = {}
        # The arrival: the caller would hear music for ever.
        loser = Loser(cable, "UserEvent: CallArrived")
        call = await caller("17100000601")
        began = time.monotonic()
        desk = await agent.phone.next_call(30)
        took["CallArrived"] = time.monotonic() - began
        assert loser.lost == 1

        # The answer: the agent would hear nothing and lose the call after twenty seconds.
        loser = Loser(cable, "UserEvent: LegAnswered")
        began = time.monotonic()
        await desk.answer()
        desk.play(_tone("agent"), loop=True)
        await until_hears(call, "agent", seconds=30)
        took["LegAnswered"] = time.monotonic() - began
        assert loser.lost == 1

        # The end of a third party in a room.
        call_id = await agent.call_id()
        Loser(cable, "no such words")
        await agent.does("invite", call_id, user="spec1")
        third = await specialist.answers("specialist")
        await agent.does("merge", call_id)
        await until_hears(call, "agent", "specialist", seconds=15)
        loser = Loser(cable, "Hangup", f"Uniqueid: {await leg(call_id, 'specialist')}\r")
        began = time.monotonic()
        await third.hang_up()
        await specialist.until(lambda me: me["agent"]["call_id"] is None, seconds=30)
        took["Hangup of the third"] = time.monotonic() - began
        assert loser.lost

        # The caller's end.
        loser = Loser(cable, "Hangup", f"Uniqueid: {call_id}\r")
        began = time.monotonic()
        await call.hang_up()
        await agent.until(lambda me: me["agent"]["state"] not in {"talking", "held"}, seconds=30)
        took["Hangup of the caller"] = time.monotonic() - began
        assert loser.lost
        await nobody_left()

        # The agent's end, in a conversation of two.
        call = await caller("17100000602")
        desk = await agent.answers(seconds=30)
        call_id = await agent.call_id()
        loser = Loser(cable, "Hangup", f"Uniqueid: {await leg(call_id, 'agent')}\r")
        began = time.monotonic()
        await desk.hang_up()
        await agent.until(lambda me: me["agent"]["state"] not in {"talking", "held"}, seconds=30)
        took["Hangup of the agent"] = time.monotonic() - began
        assert loser.lost
        await call.ended.wait(30)
        await nobody_left()

        # A phone that went.
        loser = Loser(cable, "ContactStatus", "AOR: 1001")
        began = time.monotonic()
        await agent.phone.unregister()
        await agent.until_state("not_ready", seconds=30)
        took["ContactStatus"] = time.monotonic() - began
        assert loser.lost
        print({what: round(seconds, 1) for what, seconds in took.items()})
