"""More calls than there is room for, real ones and half-open ones: refused cleanly, and those who talk notice nothing."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcenter.phone.phone import Call, SipRefused
from tests.e2e.house import House, prepared, standing, talking, until, until_hears
from tests.e2e.sip_rubbish import SDP, message

PLACES = 12


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("full"), settings={"CALLCENTER_SIP__MAX_CALLS": str(PLACES)})
    prepared(house, offer_seconds=20, wrap_up_seconds=2)
    yield from standing(house)


async def statuses(calls: list[Call], *, seconds: float = 40) -> list[int]:
    """What each was told: 200, or why not."""

    async def one(call: Call) -> int:
        try:
            await call.wait_answered(seconds)
        except SipRefused as refused:
            return refused.status
        return 200

    return await asyncio.gather(*map(one, calls))


async def test_callers_beyond_the_places_are_told_503_and_the_others_talk_on(house: House) -> None:
    async with talking(house) as talk, house.caller() as citizens:
        calls = [await citizens.dial("96500") for _ in range(PLACES + 8)]
        told = await statuses(calls)
        assert sorted(told) == [200] * (PLACES - 1) + [503] * 9
        await until_hears(talk.call, "agent")
        await until_hears(talk.desk, "caller")
        assert "calls_refused" in house.said()
        for call in calls:
            await call.hang_up()
        # A place that became free is given away again.
        again = await citizens.dial("96500")
        assert await statuses([again]) == [200]
        await again.hang_up()
    await until(house.channels, lambda channels: not channels)


async def test_half_open_calls_take_no_more_than_the_places(house: House) -> None:
    """They are never confirmed: Asterisk drops each by itself, and an agent's call goes on all the time."""
    async with talking(house) as talk:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.bind(("127.0.0.1", 0))
            here = f"127.0.0.1:{out.getsockname()[1]}"
            body = SDP.format(port=40000, formats="8", rest="")
            most = 0
            for number in range(150):
                call = message(
                    "INVITE", house=f"127.0.0.1:{house.sip}", here=here, user=f"139{number:08}", body=body
                )
                out.sendto(call, ("127.0.0.1", house.sip))
                await asyncio.sleep(0.01)
                if number % 30 == 29:
                    most = max(most, len(await house.channels()))
        assert PLACES <= most <= PLACES + 3, "callers, and the agent's own leg"
        await until_hears(talk.call, "agent")
        await until_hears(talk.desk, "caller")
        # RFC 3261 13.3.1.4: without an ACK the call is ended after 64 T1, 32 s.
        await until(house.channels, lambda channels: len(channels) == 2, seconds=80)
        await until_hears(talk.call, "agent")


async def test_a_call_is_refused_before_the_ports_for_voice_run_out(tmp_path: Path) -> None:
    """Left to itself the bound follows from the ports: Asterisk would answer 488, which a carrier takes for good."""
    house = House(tmp_path / "narrow")
    start = int(house.environment["CALLCENTER_SIP__RTP_START"])
    house.environment["CALLCENTER_SIP__RTP_END"] = str(start + 15)
    try:
        house.start()
        async with house.caller() as citizens:
            # One after the other: even a refused call has its two ports until it is refused, and here are few.
            calls, told = [], []
            for _ in range(10):
                calls.append(await citizens.dial("96500"))
                told += await statuses(calls[-1:])
            assert told == [200] * 4 + [503] * 6
            for call in calls:
                await call.hang_up()
            await until(house.channels, lambda channels: not channels)
            again = await citizens.dial("96500")
            assert await statuses([again]) == [200]
            await again.hang_up()
    finally:
        house.close()
