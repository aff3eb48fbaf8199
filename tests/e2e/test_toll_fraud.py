"""Nobody gets in or out who should not: registration, dialling out, redirects, transfers by SIP."""

import pytest

from callcenter.phone.phone import Phone, SipRefused
from tests.e2e.house import House, dial, until_hears


async def test_a_wrong_password_does_not_register(clean_house: House) -> None:
    async with Phone(
        user="1001", password="wrong", server=("127.0.0.1", clean_house.sip), bind="127.0.0.1"
    ) as phone:
        with pytest.raises(SipRefused) as refused:
            await phone.register()
        assert refused.value.status in {401, 403}


async def test_a_phone_cannot_dial_anything_but_the_echo_test(clean_house: House) -> None:
    """Neither a colleague, nor the hotline, nor outside: what a phone may ring the engine rings for it."""
    async with clean_house.phone("1001") as phone, clean_house.carrier_side() as carrier:
        for number in ("1002", "12345", "110", "013812345678", "room-1", "s", "answered"):
            call = await phone.dial(number)
            await call.ended.wait(5)
            assert not call.answered.is_set(), number
        with pytest.raises(TimeoutError):
            await carrier.next_call(0.5)


async def test_a_caller_from_the_trunk_reaches_no_phone_and_no_outside_number(clean_house: House) -> None:
    async with (
        clean_house.phone("1001") as phone,
        clean_house.carrier_side() as carrier,
        clean_house.caller() as stranger,
    ):
        for number in ("1001", "8001", "110", "0013812345678", "*43", "h", "fallback", "12345@evil.example"):
            call = await stranger.dial(number if "@" not in number else "12345;phone-context=evil")
            await call.ended.wait(10) if not call.answered.is_set() else None
            if call.answered.is_set():
                await call.hang_up()
        for line in (phone, carrier):
            with pytest.raises(TimeoutError):
                await line.next_call(0.5)


async def test_keys_during_a_call_open_nothing(clean_house: House) -> None:
    """No feature code: a caller who presses # and digits talks on."""
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen)
        desk = await agent.answers()
        await until_hears(call, "agent")
        call.send_digits("#1#001*2110#")
        await until_hears(desk, "caller")
        await until_hears(call, "agent")
        await call.hang_up()
        await desk.ended.wait(5)
