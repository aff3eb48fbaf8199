"""Logins, tickets and the audit trail over REST on the real accounts and directory with the demo's content."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_house import CALLER, House, house

from callcenter.domain.calls import UserId


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, real=True) as running:
        yield running


async def test_every_demo_user_can_log_in_and_is_who_he_is(home: House) -> None:
    for user, role in [
        ("agent1", "agent"),
        ("spec1", "specialist"),
        ("leader1", "leader"),
        ("qa1", "quality"),
        ("dispatch1", "dispatcher"),
        ("dept1", "department"),
        ("admin", "admin"),
    ]:
        _, me = await home.ask("GET", "/api/v1/me", user=user)
        assert (me["user_id"], me["roles"]) == (user, [role])
        assert me["name"] != user


async def test_a_session_ends_with_logout_and_with_a_new_password(home: House) -> None:
    token = await home.login("agent1")
    assert (await home.ask("DELETE", "/api/v1/session", token=token))[0] == 200
    assert (await home.ask("GET", "/api/v1/me", token=token))[0] == 401
    token = await home.login("agent2")
    async with home.screen("agent2") as screen:
        await screen.until("snapshot")
        await home.trail.set_password(UserId("agent2"), "a new and better one")
        assert await screen.closed() == 4401
    assert (await home.ask("GET", "/api/v1/me", token=token))[0] == 401


async def test_wrong_passwords_lock_for_a_while(home: House) -> None:
    wrong = {"user": "agent1", "password": "no"}
    answers = [await home.ask("POST", "/api/v1/session", json=wrong) for _ in range(5)]
    statuses = [status for status, _ in answers]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    async with home.client.post(
        home.url + "/api/v1/session", json={"user": "agent1", "password": "demo"}
    ) as response:
        assert response.status == 429
        assert 1 <= int(response.headers["Retry-After"]) <= 60
    unknown = {"user": "nobody", "password": "no"}
    answers = [await home.ask("POST", "/api/v1/session", json=unknown) for _ in range(5)]
    assert [status for status, _ in answers] == statuses, "an unknown user behaves as a known one"


async def test_a_disabled_user_is_out_at_once(home: House) -> None:
    token = await home.login("agent1")
    await home.trail.set_disabled(UserId("agent1"), disabled=True)
    assert (await home.ask("GET", "/api/v1/me", token=token))[0] == 401
    status, said = await home.ask("POST", "/api/v1/session", json={"user": "agent1", "password": "demo"})
    assert (status, said["error"]["reason"]) == (403, "login_disabled")


@pytest.mark.parametrize("name", ["", " ", "'; --", "\ud7ff", "𠀀", "x" * 64, "AGENT1", "agent1 "])
async def test_names_that_are_nobodys(home: House, name: str) -> None:
    status, _ = await home.ask("POST", "/api/v1/session", json={"user": name, "password": "demo"})
    assert status == (400 if not name else 401)


async def test_the_demos_directory_is_there_to_choose_from(home: House) -> None:
    _, said = await home.ask("GET", "/api/v1/directory", user="agent1")
    assert {each["code"] for each in said["not_ready_reasons"]} >= {"meal", "rest"}
    assert {each["number"] for each in said["allowed_numbers"]} >= {"110", "119", "120", "122"}
    assert {each["user_id"] for each in said["specialists"]} == {"spec1", "spec2"}
    assert {each["queue_id"] for each in said["queues"]} == {"hotline", "company"}


async def test_from_login_to_the_ticket_and_its_recording(home: House) -> None:
    async with home.screen("agent1", softphone=True) as screen:
        await screen.until("snapshot")
        assert (await screen.command("set_state", state="ready"))["type"] == "done"
        call = await home.talking("ast1-1.1")
        await screen.until("call", lambda said: said["call"]["phase"] == "talking")
        number = await home.stored(home.engine.calls[call])
        assert (await screen.command("hangup", call_id=call, to_rating=False))["type"] == "done"
        done = await screen.command("wrap_up", call_id=call, disposition="answered", note="已答复")
        assert done["type"] == "done"
    _, page = await home.ask("GET", f"/api/v1/tickets?caller={CALLER}", user="agent1")
    assert [ticket["number"] for ticket in page["tickets"]] == [number]
    _, ticket = await home.ask("GET", f"/api/v1/tickets/{number}", user="qa1")
    [sound] = ticket["recordings"]
    status, body = await home.ask("GET", sound["href"], user="qa1")
    assert (status, len(body)) == (200, sound["bytes"])
    assert ("qa1", "recording_played", call, "call.flac") in await home.audited()


async def test_many_logins_at_once_are_let_in_or_told_to_wait(home: House) -> None:
    body = {"user": "agent1", "password": "demo"}
    answers = await asyncio.gather(*(home.ask("POST", "/api/v1/session", json=body) for _ in range(20)))
    statuses = {status for status, _ in answers}
    assert statuses <= {200, 429}
    assert 200 in statuses
