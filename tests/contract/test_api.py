"""REST, on the real engine and the real ticket store."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from api_house import CALLER, MASKED, House, house
from multidict import CIMultiDict
from openapi_spec_validator import OpenAPIV31SpecValidator
from yarl import URL

from callcenter.api import describe
from callcenter.api.ports import Standing
from callcenter.domain.agents import AgentState
from callcenter.domain.calls import UserId

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as running:
        yield running


# --- what is described ------------------------------------------------------------------------------------------


def test_openapi_is_valid_3_1() -> None:
    document = json.loads(describe.documents()["openapi.json"])
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


@pytest.mark.parametrize("name", ["openapi.json", "wire.json", "wire.md"])
def test_the_documents_in_docs_are_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == describe.documents()[name], (
        "run python -m callcenter.api.describe docs"
    )


async def test_the_server_gives_the_same_description(home: House) -> None:
    status, document = await home.ask("GET", "/api/v1/openapi.json")
    assert (status, document) == (200, home.openapi)


async def test_every_served_route_is_described(home: House) -> None:
    described = {(method, path) for path, methods in home.openapi["paths"].items() for method in methods}
    assert len(described) > 30
    for method, path in described:
        status, said = await home.ask(method.upper(), path.replace("{", "").replace("}", ""))
        assert status in {200, 400, 401, 404}, (method, path, said)


# --- session ----------------------------------------------------------------------------------------------------


async def test_a_session_from_login_to_logout(home: House) -> None:
    status, said = await home.ask("POST", "/api/v1/session", json={"user": "agent1", "password": "demo"})
    assert status == 200
    assert said["user"] == {"user_id": "agent1", "name": "张敏"}
    assert said["roles"] == ["agent"]
    token = said["token"]
    status, me = await home.ask("GET", "/api/v1/me", token=token)
    assert status == 200
    assert me["agent"]["state"] == "logged_out"
    assert (await home.ask("DELETE", "/api/v1/session", token=token))[0] == 200
    status, said = await home.ask("GET", "/api/v1/me", token=token)
    assert (status, said["error"]["reason"]) == (401, "not_logged_in")


async def test_a_wrong_password_and_an_unknown_user_sound_the_same(home: House) -> None:
    wrong = await home.ask("POST", "/api/v1/session", json={"user": "agent1", "password": "x"})
    unknown = await home.ask("POST", "/api/v1/session", json={"user": "nobody", "password": "x"})
    assert wrong == unknown
    assert wrong[0] == 401
    assert wrong[1]["error"]["message_zh"].startswith("用户名或密码不对")


async def test_a_locked_account_says_how_long_to_wait(home: House) -> None:
    for _ in range(3):
        await home.ask("POST", "/api/v1/session", json={"user": "agent1", "password": "x"})
    body = {"user": "agent1", "password": "demo"}
    async with home.client.post(home.url + "/api/v1/session", json=body) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "30"
        assert (await response.json())["error"]["reason"] == "login_locked"
    _, metrics = await home.ask("GET", "/metrics")
    assert b'callcenter_login_failures_total{reason="locked"} 1.0' in metrics


# --- calls ------------------------------------------------------------------------------------------------------


async def test_a_call_with_a_third_party_over_rest(home: House) -> None:
    status, me = await home.ask("PUT", "/api/v1/me/state", user="agent1", json={"state": "ready"})
    assert (status, me["agent"]["state"]) == (200, "ready")
    await home.ask("PUT", "/api/v1/me/state", user="spec1", json={"state": "ready"})
    call = await home.arrive("ast1-1.1")
    _, said = await home.ask("GET", "/api/v1/calls", user="agent1")
    [offered] = said["calls"]
    assert (offered["phase"], offered["caller"], offered["caller_masked"]) == ("waiting", CALLER, False)
    await home.answer(home.ringing("1001"))

    async def do(word: str, **body: object) -> dict[str, object]:
        status, said = await home.ask("POST", f"/api/v1/calls/{call}/{word}", user="agent1", json=body)
        assert status == 200, said
        return said["call"]

    await do("hold")
    assert home.engine.agents[UserId("agent1")].state is AgentState.HELD
    await do("resume")
    await do("mute", on=True)
    await do("mute", on=False)
    invited = await do("invite", user="spec1")
    assert invited["legs"][2]["asked_by"] == {"user_id": "agent1", "name": "张敏"}  # type: ignore[index]
    await home.answer(home.ringing("8001"))
    merged = await do("merge")
    assert [leg["place"] for leg in merged["legs"]] == ["together"] * 3  # type: ignore[attr-defined]
    _, seen = await home.ask("GET", "/api/v1/calls", user="spec1")
    assert seen["calls"][0]["caller"] == MASKED
    assert CALLER not in json.dumps(seen)
    await do("drop", leg_id=f"{call}-3")
    await do("hangup", to_rating=False)
    status, said = await home.ask(
        "POST", f"/api/v1/calls/{call}/wrap-up", user="agent1", json={"disposition": "answered", "note": "好"}
    )
    assert status == 200
    status, ended = await home.ask("GET", f"/api/v1/calls/{call}", user="agent1")
    assert (ended["phase"], ended["disposition"]) == ("ended", "answered")


@pytest.mark.parametrize(
    ("word", "body", "reason"),
    [
        ("resume", {}, "not_held"),
        ("merge", {}, "nobody_to_merge"),
        ("drop", {"leg_id": "ast1-1.1-9"}, "no_such_party"),
        ("leave", {}, "nobody_left"),
        ("invite", {"number": "13900000000"}, "number_not_allowed"),
        ("invite", {"user": "ghost"}, "no_such_user"),
        ("transfer", {"queue": "ghost"}, "no_such_queue"),
        ("wrap-up", {"disposition": "ghost"}, "unknown_disposition"),
    ],
)
async def test_a_refusal_is_409_with_its_reason_and_what_to_do(
    home: House, word: str, body: dict[str, object], reason: str
) -> None:
    call = await home.talking("ast1-1.1")
    before = home.engine.calls[call]
    status, said = await home.ask("POST", f"/api/v1/calls/{call}/{word}", user="agent1", json=body)
    assert (status, said["error"]["reason"]) == (409, reason)
    assert said["error"]["message_zh"]
    assert home.engine.calls[call] == before


async def test_a_command_of_somebody_else_is_refused_whatever_the_body_says(home: House) -> None:
    call = await home.talking("ast1-1.1")
    status, said = await home.ask("POST", f"/api/v1/calls/{call}/hold", user="agent2", json={})
    assert (status, said["error"]["reason"]) == (409, "not_your_call")
    status, said = await home.ask("POST", f"/api/v1/calls/{call}/hold", user="agent2", json={"by": "agent1"})
    assert (status, said["error"]["reason"]) == (400, "bad_request")
    assert "by" in said["error"]["detail"]


async def test_a_body_that_is_not_right_names_the_field(home: House) -> None:
    call = await home.talking("ast1-1.1")
    for word, body, named in [
        ("mute", {}, "on"),
        ("mute", {"on": "yes"}, "on"),
        ("invite", {}, "exactly one of user, skill, number"),
        ("invite", {"user": "a", "skill": "b"}, "exactly one of user, skill, number"),
        ("drop", {"leg_id": "a b"}, "leg_id"),
        ("wrap-up", {"disposition": "answered", "note": "\0"}, "note"),
    ]:
        status, said = await home.ask("POST", f"/api/v1/calls/{call}/{word}", user="agent1", json=body)
        assert (status, said["error"]["reason"]) == (400, "bad_request")
        assert named in said["error"]["detail"]
    status, said = await home.ask("PUT", "/api/v1/me/state", user="agent1", json={"state": "not_ready"})
    assert status == 400
    assert "reason" in said["error"]["detail"]


# --- tickets and recordings -------------------------------------------------------------------------------------


async def test_tickets_page_by_page_and_by_filter(home: House) -> None:
    call = await home.talking("ast1-1.1")
    living = home.engine.calls[call]
    numbers = [await home.stored(replace(living, call_id=f"ast1-9.{n}"), minutes=n / 100) for n in range(5)]
    _, first = await home.ask("GET", "/api/v1/tickets?limit=3", user="leader1")
    assert [ticket["number"] for ticket in first["tickets"]] == numbers[:1:-1]
    _, second = await home.ask("GET", f"/api/v1/tickets?limit=3&after={first['next']}", user="leader1")
    assert [ticket["number"] for ticket in second["tickets"]] == numbers[1::-1]
    assert second["next"] is None
    _, one = await home.ask("GET", f"/api/v1/tickets?number={numbers[2]}", user="qa1")
    assert [ticket["caller"] for ticket in one["tickets"]] == [MASKED]
    for query, found in [
        ("line=12345", 5),
        ("line=96500", 0),
        ("agent=agent1", 5),
        ("agent=agent2", 0),
        (f"caller={CALLER}", 5),
        ("status=accepted", 5),
        ("status=draft", 0),
        ("from=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z", 0),
        ("from=2020-01-01T00:00:00%2B08:00", 5),
    ]:
        status, said = await home.ask("GET", f"/api/v1/tickets?{query}", user="leader1")
        assert (status, len(said["tickets"])) == (200, found), query


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("from=yesterday", "from"),
        ("from=2026-01-01T00:00:00", "from"),
        ("from=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "from must be before until"),
        ("status=lost", "status"),
        ("caller=138;DROP", "caller"),
        ("colour=red", "colour"),
        ("line=1&line=2", "line"),
        ("number=20261121-000001&line=1", "number names one ticket"),
        ("after=1", "after"),
    ],
)
async def test_a_wrong_filter_is_named(home: House, query: str, named: str) -> None:
    status, said = await home.ask("GET", f"/api/v1/tickets?{query}", user="leader1")
    assert (status, said["error"]["reason"]) == (400, "bad_request")
    assert named in said["error"]["detail"]


async def test_a_ticket_tells_its_call_and_its_recordings_to_who_may_hear_them(home: House) -> None:
    call = await home.talking("ast1-1.1")
    number = await home.stored(home.engine.calls[call])
    _, mine = await home.ask("GET", f"/api/v1/tickets/{number}", user="agent1")
    assert mine["caller"] == CALLER
    assert mine["call"]["steps"][0]["kind"] == "arrived"
    assert [sound["name"] for sound in mine["recordings"]] == ["call.flac"]
    _, colleague = await home.ask("GET", f"/api/v1/tickets/{number}", user="agent2")
    assert (colleague["caller"], colleague["recordings"]) == (MASKED, [])
    assert CALLER not in json.dumps(colleague)
    status, said = await home.ask("GET", "/api/v1/tickets/20261121-999999", user="agent1")
    assert (status, said["error"]["reason"]) == (404, "no_such_ticket")


async def test_call_records_are_ones_own_unless_one_may_see_all(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.stored(home.engine.calls[call])
    for user, found in [("agent1", 1), ("agent2", 0), ("spec1", 0), ("qa1", 1)]:
        _, said = await home.ask("GET", "/api/v1/call-records", user=user)
        assert len(said["calls"]) == found, user
    status, _ = await home.ask("GET", "/api/v1/call-records?agent=agent1", user="agent2")
    assert status == 403


async def test_a_recording_is_played_by_ranges_and_leaves_a_trace(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.stored(home.engine.calls[call])
    _, said = await home.ask("GET", f"/api/v1/calls/{call}/recordings", user="qa1")
    [sound] = said["recordings"]
    url, whole = home.url + sound["href"], bytes(range(256)) * 8
    login = {"Authorization": f"Bearer {await home.login('qa1')}"}

    async def get(**headers: str) -> tuple[int, bytes, CIMultiDict[str]]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with home.client.get(url, headers={**login, **sent}) as r:
            return r.status, await r.read(), r.headers.copy()

    status, body, headers = await get()
    assert (status, body, headers["Content-Type"]) == (200, whole, "audio/flac")
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Cache-Control"] == "no-store"
    status, body, headers = await get(Range="bytes=10-19")
    assert (status, body, headers["Content-Range"]) == (206, whole[10:20], "bytes 10-19/2048")
    status, body, _ = await get(Range="bytes=-8")
    assert (status, body) == (206, whole[-8:])
    status, _, headers = await get(Range="bytes=5000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */2048")
    status, body, _ = await get(Range="bytes=10-19", If_Range=headers.get("ETag", '"other"'))
    assert (status, body) == (200, whole)
    tag = (await get())[2]["ETag"]
    assert (await get(Range="bytes=10-19", If_Range=tag))[:2] == (206, whole[10:20])
    assert (await get(Range="bytes=10-19", If_Range="Mon, 01 Jan 2001 00:00:00 GMT"))[0] == 200
    assert await home.audited() == [("qa1", "recording_played", call, "call.flac")]


async def test_beginning_in_the_middle_leaves_a_trace_too(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.stored(home.engine.calls[call])
    path = f"/api/v1/recordings/{call}/call.flac"
    assert (await home.ask("GET", path, user="leader1", headers={"Range": "bytes=1-"}))[0] == 206
    assert await home.audited() == [("leader1", "recording_played", call, "call.flac")]


@pytest.mark.parametrize("name", ["leg-9.flac", "..%2f..%2fcallcenter.db", ".hidden", "call.flac%00"])
async def test_only_recordings_that_are_listed_can_be_played(home: House, name: str) -> None:
    call = await home.talking("ast1-1.1")
    await home.stored(home.engine.calls[call])
    url = f"{home.url}/api/v1/recordings/{call}/{name}"
    headers = {"Authorization": f"Bearer {await home.login('qa1')}"}
    async with home.client.get(URL(url, encoded=True), headers=headers) as response:
        assert response.status == 404
    assert await home.audited() == []


async def test_a_recording_whose_file_is_gone_says_so(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.stored(home.engine.calls[call])
    next(home.sounds.rglob("call.flac")).unlink()
    status, said = await home.ask("GET", f"/api/v1/recordings/{call}/call.flac", user="qa1")
    assert (status, said["error"]["reason"]) == (404, "no_such_recording")


async def test_invitations_are_counted_by_outcome(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.ready("spec1")
    await home.ask("POST", f"/api/v1/calls/{call}/invite", user="agent1", json={"user": "spec1"})
    await home.answer(home.ringing("8001"))
    await home.ask("POST", f"/api/v1/calls/{call}/merge", user="agent1")
    await home.stored(home.engine.calls[call])
    _, said = await home.ask("GET", "/api/v1/reports/invitations", user="leader1")
    counted = {each["outcome"]: each["count"] for each in said["outcomes"]}
    assert (said["total"], counted["joined"]) == (1, 1)
    assert sum(counted.values()) == said["total"]


# --- people, health, page ---------------------------------------------------------------------------------------


async def test_the_directory_has_what_there_is_to_choose_from(home: House) -> None:
    _, said = await home.ask("GET", "/api/v1/directory", user="agent1")
    assert [each["code"] for each in said["not_ready_reasons"]] == ["lunch"]
    assert [(each["user_id"], each["state"]) for each in said["specialists"]] == [("spec1", "logged_out")]
    assert [each["number"] for each in said["allowed_numbers"]] == ["110"]
    _, said = await home.ask("GET", "/api/v1/queues", user="agent1")
    assert [(each["queue_id"], each["waiting"]) for each in said["queues"]] == [("hotline", 0)]


@pytest.mark.parametrize(
    ("part", "standing", "expected"),
    [("disk", Standing.OK, 200), ("database", Standing.DEGRADED, 200), ("ami", Standing.DOWN, 503)],
)
async def test_health_is_the_worst_of_its_parts(
    home: House, part: str, standing: Standing, expected: int
) -> None:
    home.health.standing[part] = standing
    status, said = await home.ask("GET", "/healthz")
    assert (status, said["standing"], said["components"][part]["standing"]) == (expected, standing, standing)


async def test_health_that_does_not_answer_is_down_and_asked_once_for_many(home: House) -> None:
    home.health.hangs = True
    answers = await asyncio.gather(*(home.ask("GET", "/healthz") for _ in range(20)))
    assert {status for status, _ in answers} == {503}
    assert answers[0][1]["components"]["database"]["standing"] == "down"
    assert home.health.asked == 1


async def test_figures_for_prometheus(home: House) -> None:
    call = await home.talking("ast1-1.1")
    home.health.journal_pending = 7
    waiting = await home.arrive("ast1-1.2")
    _, text = await home.ask("GET", "/metrics")
    for line in [
        b'callcenter_calls{phase="talking"} 1.0',
        b'callcenter_calls{phase="waiting"} 1.0',
        b'callcenter_agents{state="talking"} 1.0',
        b'callcenter_queue_waiting{queue="hotline"} 1.0',
        b"callcenter_ami_up 1.0",
        b"callcenter_journal_pending 7.0",
    ]:
        assert line in text, line
    assert CALLER.encode() not in text
    await home.hang_up(waiting)
    await home.hang_up(call)
    await home.ask("POST", f"/api/v1/calls/{call}/wrap-up", user="agent1", json={"disposition": "answered"})
    _, text = await home.ask("GET", "/metrics")
    assert b'callcenter_calls_ended_total{reason="abandoned_waiting"} 1.0' in text
    assert b'callcenter_calls_ended_total{reason="completed"} 1.0' in text


async def test_the_page_explains_itself_in_both_languages(home: House) -> None:
    async with home.client.get(home.url + "/") as response:
        text = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "unsafe" not in policy
    assert "政务服务便民热线" in text
    assert "Your first call" in text
    assert "<script" not in text
    assert "style=" not in text
    assert "//" not in text.replace("http://$HOST", "")
    async with home.client.get(home.url + "/home.css") as response:
        assert (response.status, response.content_type) == (200, "text/css")


async def test_every_answer_has_its_safety_headers(home: House) -> None:
    for path in ["/", "/api/v1/me", "/nowhere", "/api/v1/console", "/healthz"]:
        async with home.client.get(home.url + path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff", path
            assert response.headers["X-Frame-Options"] == "DENY"
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert "aiohttp" not in response.headers["Server"]
            assert ("no-store" in response.headers.get("Cache-Control", "")) == path.startswith("/api/")


async def test_an_engine_that_does_not_answer_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    async with house(tmp_path, ask_seconds=0.1) as home:
        asked = asyncio.Event()

        async def never(_request: object) -> None:
            asked.set()
            await asyncio.Event().wait()

        home.engine.ask = never  # type: ignore[method-assign]
        status, said = await home.ask("PUT", "/api/v1/me/state", user="agent1", json={"state": "ready"})
        assert asked.is_set()
        assert (status, said["error"]["reason"]) == (503, "engine_busy")
