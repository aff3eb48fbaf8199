"""A telephone dies without a word, whatever its owner was doing: its caller is not left in silence."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from callcenter.phone.phone import Phone
from tests.e2e.house import House, Person, ProblemError, dial, prepared, until, until_hears

pytestmark = pytest.mark.timeout(300)  # each step waits until a phone is believed dead


async def test_an_agents_phone_vanishes_in_every_state(tmp_path: Path) -> None:
    """Ready, rung, talking, holding, in a room: the caller is with the other agent soon; nobody has to hang up."""
    house = House(tmp_path / "h")
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=30, wrap_up_seconds=1)
        await asyncio.to_thread(house.start)
        took = {}
        for n, state in enumerate(("talking", "holding", "rung", "in a room", "ready")):
            async with AsyncExitStack() as stack:
                first = await stack.enter_async_context(house.person("agent1", "1001"))
                second = await stack.enter_async_context(house.person("agent2", "1002", ready=False))
                specialist = await stack.enter_async_context(house.person("spec1", "8001", ready=False))
                citizen = await stack.enter_async_context(house.caller(f"171000007{n:02}"))
                if state != "ready":
                    call = await dial(citizen, seconds=30)
                if state in {"talking", "holding", "in a room"}:
                    await first.answers(seconds=30)
                    call_id = await first.call_id()
                    await until_hears(call, "agent", seconds=15)
                if state == "holding":
                    await first.does("hold", call_id)
                if state == "in a room":
                    await first.does("invite", call_id, user="spec1")
                    third = await specialist.answers("specialist", seconds=30)
                    await first.does("merge", call_id)
                    await until_hears(call, "agent", "specialist", seconds=15)
                if state == "rung":
                    await first.phone.next_call(30)
                await second.set("ready")
                began = time.monotonic()
                first.phone.vanish()
                if state == "in a room":
                    await first.until(lambda me: me["agent"]["call_id"] is None, seconds=60)
                    await until_hears(call, "specialist", seconds=15)
                    await third.hang_up()
                elif state == "ready":
                    await first.until_state("not_ready", seconds=60)
                else:
                    desk = await second.answers("other", seconds=60)
                    await until_hears(call, "other", seconds=15)
                    await desk.hang_up()
                took[state] = round(time.monotonic() - began, 1)
                if state != "ready":
                    await call.ended.wait(30)
                    await until(house.channels, lambda left: left == [], seconds=30)
        print(took)
    finally:
        house.close()


async def test_a_specialists_phone_vanishes(tmp_path: Path) -> None:
    """In private talk with the agent: the agent is alone again and fetches his caller back."""
    house = House(tmp_path / "h")
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=30, wrap_up_seconds=1)
        await asyncio.to_thread(house.start)
        async with (
            house.person("agent1", "1001") as agent,
            house.person("spec1", "8001", ready=False) as specialist,
            house.caller("17100000750") as citizen,
        ):
            call = await dial(citizen, seconds=30)
            desk = await agent.answers(seconds=30)
            call_id = await agent.call_id()
            await agent.does("invite", call_id, user="spec1")
            await specialist.answers("specialist", seconds=30)
            await until_hears(desk, "specialist", seconds=15)
            specialist.phone.vanish()
            await specialist.until(lambda me: me["agent"]["call_id"] is None, seconds=60)
            await agent.does("resume", call_id)
            await until_hears(call, "agent", seconds=15)
            await until_hears(desk, "caller", seconds=15)
            await call.hang_up()
            await desk.ended.wait(15)
    finally:
        house.close()


class LoosePhone(Phone):
    """A phone whose cable can be pulled out and put in again: its socket stays, so that no ICMP tells anybody."""

    plugged_in = True

    def send(self, data: bytes, destination: tuple[str, int]) -> None:
        if self.plugged_in:
            super().send(data, destination)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.plugged_in:
            super().datagram_received(data, addr)


async def test_phones_vanish_in_a_private_talk_and_in_wrap_up_and_one_comes_back(tmp_path: Path) -> None:
    """All at once: the held caller is with somebody, who wrapped up is not ready, five seconds end no call."""
    house = House(tmp_path / "h")
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=30, wrap_up_seconds=120)
        await asyncio.to_thread(house.start)
        async with AsyncExitStack() as stack:
            citizens = [await stack.enter_async_context(house.caller(f"1710000076{n}")) for n in range(3)]
            specialist = await stack.enter_async_context(house.person("spec1", "8001", ready=False))

            loose = LoosePhone(user="1004", password="demo", server=("127.0.0.1", house.sip))
            await stack.enter_async_context(loose)
            await loose.register()
            rest = await stack.enter_async_context(house.rest("agent4"))
            blinking = Person(house, "agent4", rest, loose)
            await blinking.until(lambda me: me["agent"]["phone_reachable"])
            await blinking.set("ready")
            talk = await dial(citizens[0], seconds=30)
            desk = await blinking.answers(seconds=30)

            writing = await stack.enter_async_context(house.person("agent3", "1003"))
            brief = await dial(citizens[1], seconds=30)
            await writing.answers("other", seconds=30)
            await brief.hang_up()
            await writing.until_state("wrap_up")

            asking = await stack.enter_async_context(house.person("agent1", "1001"))
            held = await dial(citizens[2], seconds=30)
            asks = await asking.answers(seconds=30)
            await asking.does("invite", await asking.call_id(), user="spec1")
            await specialist.answers("specialist", seconds=30)
            await until_hears(asks, "specialist", seconds=15)

            loose.plugged_in = False
            desk.mute()
            asking.phone.vanish()
            writing.phone.vanish()
            await asyncio.sleep(5)
            loose.plugged_in = True
            desk.mute(False)
            await until_hears(held, "specialist", seconds=60)
            me = await writing.until(lambda me: not me["agent"]["phone_reachable"], seconds=60)
            assert me["agent"]["state"] == "wrap_up"
            with pytest.raises(ProblemError) as refused:
                await writing.set("ready")
            assert refused.value.reason == "phone_unreachable"
            await blinking.until(lambda me: me["agent"]["phone_reachable"], seconds=30)
            await asyncio.sleep(6)  # longer than silence is borne
            await until_hears(talk, "agent", seconds=15)
            await until_hears(desk, "caller", seconds=15)
            for call in (talk, held):
                await call.hang_up()
    finally:
        house.close()
