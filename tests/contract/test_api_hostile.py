"""Hostile input over REST: nothing crashes, every answer says what to do, nothing leaks."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from api_house import House, house
from yarl import URL

from callcenter.database import DatabaseAway

NAUGHTY = [
    "",
    " ",
    "\0",
    "\n",
    "a\r\nAction: Originate",
    "'; DROP TABLE tickets; --",
    "<script>alert(1)</script>",
    "../../../../etc/passwd",
    "%00%0a",
    "𠀀𠮷田\u202e反",
    "Ω≈ç√∫˜µ≤≥÷",
    "é" * 40,
    "x" * 60_000,
    "${jndi:ldap://x}",
    "{{7*7}}",
    "null",
    "-1",
    "1e309",
]
ODD = [None, True, 0, -1, 1.5, 10**400, [], {}, [[]], {"a": {}}, ["x"], "9" * 400]
FIELDS = [
    ("POST", "/api/v1/session", "user", {"password": "demo"}),
    ("POST", "/api/v1/session", "password", {"user": "agent1"}),
    ("PUT", "/api/v1/me/state", "state", {}),
    ("PUT", "/api/v1/me/state", "reason", {"state": "not_ready"}),
    ("POST", "/api/v1/calls/ast1-1.1/mute", "on", {}),
    ("POST", "/api/v1/calls/ast1-1.1/mute", "leg_id", {"on": True}),
    ("POST", "/api/v1/calls/ast1-1.1/invite", "user", {}),
    ("POST", "/api/v1/calls/ast1-1.1/invite", "skill", {}),
    ("POST", "/api/v1/calls/ast1-1.1/invite", "number", {}),
    ("POST", "/api/v1/calls/ast1-1.1/invite", "privately", {"user": "ghost"}),
    ("POST", "/api/v1/calls/ast1-1.1/drop", "leg_id", {}),
    ("POST", "/api/v1/calls/ast1-1.1/transfer", "agent", {}),
    ("POST", "/api/v1/calls/ast1-1.1/transfer", "queue", {}),
    ("POST", "/api/v1/calls/ast1-1.1/transfer", "number", {}),
    ("POST", "/api/v1/calls/ast1-1.1/wrap-up", "disposition", {}),
]


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as running:
        yield running


@pytest.mark.parametrize(("method", "path", "field", "rest"), FIELDS, ids=lambda each: str(each)[-20:])
async def test_naughty_strings_and_wrong_types_in_every_field(
    home: House, method: str, path: str, field: str, rest: dict[str, object]
) -> None:
    call = await home.talking("ast1-1.1")
    token = await home.login("agent1")
    before = home.engine.calls[call].legs
    for value in [*NAUGHTY, *ODD]:
        status, said = await home.ask(
            method, path, token=token, data=json.dumps({**rest, field: value}).encode()
        )
        assert status in {200, 400, 401, 409, 429}, (value, said)
        if status != 200:
            text = json.dumps(said, ensure_ascii=False)
            assert said["error"]["message_zh"]
            assert len(text) < 2500, "an answer does not carry the whole question"
    assert [leg.leg_id for leg in home.engine.calls[call].legs] == [leg.leg_id for leg in before]
    assert (await home.ask("GET", "/api/v1/me", token=token))[0] == 200


@pytest.mark.parametrize(
    "caller",
    ["", "anonymous", "\ud800\0\r\n", "<b>138</b>", "1" * 20_000, "+86 138 1234 5678", "'; DROP TABLE"],
)
async def test_a_hostile_callers_number_harms_no_screen(home: House, caller: str) -> None:
    async with home.screen("leader1") as leader, home.screen("qa1") as quality:
        await leader.until("snapshot")
        await quality.until("snapshot")
        call = await home.talking("ast1-1.1", caller=caller)
        for screen in (leader, quality):
            said = await screen.until("call", lambda said: said["call"]["phase"] == "talking")
            assert said["call"]["call_id"] == call
    for user in ("leader1", "qa1", "agent1"):
        status, said = await home.ask("GET", "/api/v1/calls", user=user)
        assert (status, len(said["calls"])) == (200, 1)
    if caller:
        assert caller not in json.dumps((await home.ask("GET", "/api/v1/calls", user="qa1"))[1])


async def test_a_note_with_everything_in_it_comes_back_as_it_was(home: House) -> None:
    call = await home.talking("ast1-1.1")
    note = "暖气不热\n<script>alert(1)</script>\t'; DROP TABLE tickets; -- 𠀀"
    body = {"disposition": "answered", "note": note}
    status, said = await home.ask("POST", f"/api/v1/calls/{call}/wrap-up", user="agent1", json=body)
    assert (status, said["call"]["note"]) == (200, note)
    number = await home.stored(home.engine.calls[call])
    _, ticket = await home.ask("GET", f"/api/v1/tickets/{number}", user="agent1")
    assert ticket["note"] == note


@pytest.mark.parametrize("path", ["/api/v1/tickets", "/api/v1/call-records", "/api/v1/reports/invitations"])
async def test_naughty_filters(home: House, path: str) -> None:
    for name in ["line", "agent", "caller", "from", "until", "status", "limit", "after", "number", "\0"]:
        for value in NAUGHTY[:-6]:
            status, said = await home.ask("GET", path, user="leader1", params={name: value})
            assert status in {200, 400}, (name, value, said)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[" * 30_000,
        b'{"user":' * 5000,
        b"\xff\xfe\x00",
        b'{"user":"\\ud800","password":"x"}',
        b'{"user":"agent1","user":"admin","password":"x"}',
        b"null",
        b"[]",
        b"3",
        b'"x"',
        b"NaN",
    ],
)
async def test_bodies_that_are_no_body(home: House, raw: bytes) -> None:
    status, said = await home.ask("POST", "/api/v1/session", data=raw)
    assert status in {400, 401}
    assert said["error"]["reason"] in {"bad_request", "wrong_login"}


async def test_a_body_too_large_is_refused(home: House) -> None:
    status, said = await home.ask("POST", "/api/v1/session", data=b'{"user":"' + b"x" * 70_000)
    assert (status, said["error"]["reason"]) == (413, "too_large")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/calls/..%2f..%2fx",
        "/api/v1/calls/a%00b",
        "/api/v1/calls/" + "x" * 200,
        "/api/v1/calls/a%20b/hold",
        "/api/v1/tickets/1",
        "/api/v1/tickets/'%20OR%201=1",
        "/api/v1/recordings/x/%2e%2e",
        "/api/v1/nothing",
        "/%ff",
        "//evil.example/",
    ],
)
async def test_addresses_that_lead_nowhere(home: House, path: str) -> None:
    headers = {"Authorization": f"Bearer {await home.login('leader1')}"}
    async with home.client.get(URL(home.url + path, encoded=True), headers=headers) as response:
        assert response.status == 404
        assert (await response.json())["error"]["reason"] in {"not_found", "no_such_call"}


async def test_a_method_that_is_not_there_says_which_are(home: House) -> None:
    async with home.client.patch(home.url + "/api/v1/me") as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]
        assert (await response.json())["error"]["reason"] == "method_not_allowed"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YWdlbnQxOmRlbW8=", "Bearer x", "Bearer " + "x" * 7000, "bearer é"],
)
async def test_tokens_that_are_none(home: House, header: str) -> None:
    for path in ["/api/v1/me", "/api/v1/calls", "/api/v1/tickets"]:
        status, said = await home.ask("GET", path, headers={"Authorization": header})
        assert (status, said["error"]["reason"]) == (401, "not_logged_in")


async def test_a_token_in_the_address_is_none(home: House) -> None:
    token = await home.login("agent1")
    assert (await home.ask("GET", f"/api/v1/me?token={token}"))[0] == 401


async def test_an_expired_token_is_none(home: House) -> None:
    token = await home.login("agent1")
    home.accounts.sessions[token] = replace(home.accounts.sessions[token], expires_at=datetime.now(UTC))
    status, said = await home.ask("GET", "/api/v1/me", token=token)
    assert (status, said["error"]["reason"]) == (401, "not_logged_in")


async def test_a_flood_of_logins_does_not_queue_without_end(home: House) -> None:
    at_once, most, log_in = 0, 0, home.accounts.log_in

    async def slow(user: str, password: str, *, client: str) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return await log_in(user, password, client=client)

    home.accounts.log_in = slow
    body = {"user": "agent1", "password": "demo"}

    async def one() -> tuple[int, str | None]:
        async with home.client.post(home.url + "/api/v1/session", json=body) as response:
            return response.status, response.headers.get("Retry-After")

    answers = await asyncio.gather(*(one() for _ in range(150)))
    assert {status for status, _ in answers} == {200, 429}
    assert all(wait for status, wait in answers if status == 429)
    assert most <= 2


async def test_a_hundred_commands_at_once_over_rest(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.login("agent1")
    words = ["hold", "resume", "merge", "leave"] * 25
    answers = await asyncio.gather(
        *(home.ask("POST", f"/api/v1/calls/{call}/{word}", user="agent1") for word in words)
    )
    assert {status for status, _ in answers} <= {200, 409}
    assert home.engine.calls[call].caller_leg.up


async def test_while_the_database_is_away_calls_go_on_and_the_rest_says_so(home: House) -> None:
    call = await home.talking("ast1-1.1")

    async def away(*_: object, **__: object) -> None:
        raise DatabaseAway("The database cannot be reached just now: [Errno 111] 10.0.0.7")

    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        token = await home.login("leader1")
        sessions, home.accounts.session = home.accounts.session, away
        for path in ["/api/v1/me", "/api/v1/tickets"]:
            status, said = await home.ask("GET", path, token=token)
            assert (status, said["error"]["reason"]) == (503, "store_away")
            assert "10.0.0.7" not in json.dumps(said)
        assert (await screen.command("hold", call_id=call))["type"] == "done"
        await screen.send({"type": "sync"})
        await screen.until("snapshot")
        home.accounts.session = sessions


async def test_requests_that_are_no_http(home: House) -> None:
    host, port = home.url.removeprefix("http://").split(":")
    for raw in [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/session HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ]:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        writer.write_eof()
        try:
            async with asyncio.timeout(5):
                answer = await reader.read()
            assert answer == b"" or b" 4" in answer.split(b"\r\n")[0]
        except ConnectionError:
            pass
        writer.close()
    async with home.client.get(home.url + "/healthz", timeout=aiohttp.ClientTimeout(total=5)) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nContent-Length: 30\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 2 2\r\n",
        b"Content-Length : 2\r\n",
        b" Content-Length: 2\r\n",
    ],
)
async def test_a_request_of_two_lengths_is_refused_and_nothing_after_it_is_read(
    home: House, head: bytes
) -> None:
    """Request smuggling (RFC 9112 6.3, 11.2): a proxy and this server must never disagree where a request ends."""
    host, port = home.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(b"POST /api/v1/session HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n{}" + smuggled)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    head_line, *others = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    assert (head_line.split()[1], others) == (b"400", [])
