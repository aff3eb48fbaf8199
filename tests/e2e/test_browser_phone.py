"""A telephone in a browser: its account is made at the login, is rung instead of the desk phone, and ends with it.

The browser itself is played by a SIP phone here: it registers and is rung, which is all that is asked; sound over
DTLS is for tests with a real browser.
"""

from pathlib import Path

import pytest

from callcenter.phone.phone import SipRefused
from tests.e2e.house import House, prepared, until


async def test_who_telephones_in_the_browser_is_rung_there(clean_house: House) -> None:
    """The desk phone beside it stays silent, until it is chosen again.

    The phone that plays the browser does not speak DTLS and so refuses what a browser would take.
    """
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        account = await agent.rest.post("/api/v1/me/softphone")
        assert account["number"] == "1001"
        assert account["user"] == "web-1001"
        assert account["websocket"].startswith("ws://127.0.0.1:")
        # Nothing has registered yet: the desk phone does not count any more.
        assert (await agent.until_state("not_ready"))["agent"]["reason"] == "no_phone"
        async with clean_house.phone("web-1001", password=account["password"]):
            await agent.until(lambda me: me["agent"]["phone_reachable"])
            await agent.set("ready")
            call = await citizen.dial("12345")
            assert (await agent.until_state("not_ready"))["agent"]["reason"] != "login"
            assert not agent.phone.calls
        await agent.rest._ask("DELETE", "/api/v1/me/softphone")
        await agent.until(lambda me: me["agent"]["phone_reachable"])
        await agent.set("ready")
        at_desk = await agent.answers()
        await call.hang_up()
        await at_desk.ended.wait(5)
        with pytest.raises(SipRefused):
            async with clean_house.phone("web-1001", password=account["password"]):
                pass


async def test_the_seat_is_taken_over_elsewhere(clean_house: House) -> None:
    """The newest login has the account: the password before it is good no more."""
    async with clean_house.rest("agent1") as here, clean_house.rest("agent1") as there:
        before = await here.post("/api/v1/me/softphone")
        now = await there.post("/api/v1/me/softphone")
        assert before["user"] == now["user"]
        async with clean_house.phone(now["user"], password=now["password"]):
            with pytest.raises(SipRefused):
                async with clean_house.phone(before["user"], password=before["password"]):
                    pass
        await there._ask("DELETE", "/api/v1/me/softphone")


async def test_the_browser_stays_the_telephone_when_the_engine_restarts(tmp_path: Path) -> None:
    """And ends with the last login: a browser that was closed without a word leaves no account behind."""
    house = House(tmp_path)
    try:
        prepared(house, offer_seconds=3, wrap_up_seconds=2)
        house.start()
        async with house.rest("agent1") as rest:
            account = await rest.post("/api/v1/me/softphone")
            async with house.phone(account["user"], password=account["password"]):

                async def reachable() -> bool:
                    return bool((await rest.get("/api/v1/me"))["agent"]["phone_reachable"])

                await until(reachable, bool)
                house.kill()
                house.start()
                await until(reachable, bool)
                async with house.caller() as citizen:
                    call = await citizen.dial("12345")
                    await call.wait_answered(10)
                    await call.hang_up()
            await rest._ask("DELETE", "/api/v1/session")

            async def registers() -> bool:
                try:
                    async with house.phone(account["user"], password=account["password"]):
                        return True
                except SipRefused:
                    return False

            await until(registers, lambda yes: not yes, seconds=30)
    finally:
        house.close()
