"""Who may do and see what: every role at every route, as an explicit table."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_house import CALLER, MASKED, House, house

from callcenter.api.rest import contracts
from callcenter.api.rights import masked

# agent1 talks with the caller, agent2 does not.
TABLE = """
                                          agent1 agent2 spec1 leader1 qa1 dispatch1 dept1 admin nobody
GET    /api/v1/me                            200    200   200     200 200       200   200   200    401
PUT    /api/v1/me/state                      200    200   200     200 403       403   403   403    401
POST   /api/v1/me/softphone                  200    200   200     200 403       403   403   403    401
DELETE /api/v1/me/softphone                  200    200   200     200 403       403   403   403    401
GET    /api/v1/calls                         200    200   200     200 200       403   403   200    401
GET    /api/v1/calls/CALL                    200    404   404     200 200       403   403   200    401
GET    /api/v1/call-records                  200    200   200     200 200       403   403   200    401
POST   /api/v1/calls/CALL/hold               200    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/resume             409    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/mute               200    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/invite             409    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/merge              409    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/drop               409    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/leave              409    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/transfer           409    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/hangup             200    409   409     409 403       403   403   403    401
POST   /api/v1/calls/CALL/wrap-up            200    409   409     409 403       403   403   403    401
GET    /api/v1/calls/CALL/recordings         200    404   404     200 200       403   403   200    401
GET    /api/v1/recordings/CALL/call.flac     200    404   404     200 200       403   403   200    401
GET    /api/v1/tickets                       200    200   403     200 200       200   403   200    401
GET    /api/v1/tickets?caller=13812345678    200    200   403     200 403       200   403   403    401
GET    /api/v1/tickets/TICKET                200    200   403     200 200       200   403   200    401
GET    /api/v1/tickets/TICKET/form           200    200   403     200 200       200   403   200    401
PUT    /api/v1/tickets/TICKET/form           200    403   403     403 403       403   403   403    401
GET    /api/v1/calls/CALL/history            200    404   403     200 200       404   403   200    401
GET    /api/v1/ticket-form                   200    200   403     200 200       200   403   200    401
GET    /api/v1/agents                        200    200   200     200 200       403   403   200    401
GET    /api/v1/queues                        200    200   200     200 200       403   403   200    401
GET    /api/v1/directory                     200    200   200     200 200       200   200   200    401
GET    /api/v1/reports/invitations           403    403   403     200 200       403   403   200    401
DELETE /api/v1/session                       200    200   200     200 200       200   200   200    401
GET    /api/v1/openapi.json                  200    200   200     200 200       200   200   200    200
GET    /api/v1/wire.json                     200    200   200     200 200       200   200   200    200
GET    /healthz                              200    200   200     200 200       200   200   200    200
GET    /metrics                              200    200   200     200 200       200   200   200    200
GET    /                                     200    200   200     200 200       200   200   200    200
GET    /about                                200    200   200     200 200       200   200   200    200
GET    /home.css                             200    200   200     200 200       200   200   200    200
"""
BODIES = {
    "state": {"state": "not_ready", "reason": "lunch"},
    "form": {"version": 0, "kind": "praise"},
    "mute": {"on": True},
    "invite": {"user": "ghost"},
    "drop": {"leg_id": "ast1-1.1-9"},
    "transfer": {"queue": "ghost"},
    "hangup": {"to_rating": False},
    "wrap-up": {"disposition": "answered", "more_time": True},
}
HEADER, *ROWS = TABLE.strip().splitlines()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as running:
        yield running


@pytest.mark.parametrize("user", HEADER.split())
async def test_every_role_at_every_route(home: House, user: str) -> None:
    for number, row in enumerate(ROWS):
        method, path, *statuses = row.split()
        expected = int(statuses[HEADER.split().index(user)])
        call = await home.talking(f"ast1-1.{number}")
        ticket = await home.stored(home.engine.calls[call])
        body = BODIES.get(path.rsplit("/", 1)[1], {}) if method in {"POST", "PUT"} else None
        status, said = await home.ask(
            method,
            path.replace("CALL", call).replace("TICKET", ticket),
            user=None if user == "nobody" else user,
            json=body,
        )
        assert status == expected, (user, method, path, said)
        if status >= 400:
            assert said["error"]["message_zh"]
        if method == "DELETE":
            home.tokens.clear()
        await home.hang_up(call)
        if home.engine.agents["agent1"].call_id:  # wrapping up
            await home.ask(
                "POST", f"/api/v1/calls/{call}/wrap-up", user="agent1", json={"disposition": "answered"}
            )


def test_the_table_has_every_route() -> None:
    in_table = {
        (method, path.partition("?")[0].replace("CALL", "{call_id}").replace("TICKET", "{number}"))
        for method, path in (row.split()[:2] for row in ROWS)
    }
    declared = {(each.method, each.path.replace("{name}", "call.flac")) for each in contracts()}
    assert declared - in_table == {("POST", "/api/v1/session")}
    assert in_table <= declared


@pytest.mark.parametrize(
    ("user", "in_calls", "in_tickets"),
    [
        ("agent1", CALLER, CALLER),
        ("agent2", None, MASKED),
        ("spec1", None, None),
        ("leader1", CALLER, CALLER),
        ("qa1", MASKED, MASKED),
        ("dispatch1", None, CALLER),
        ("dept1", None, None),
        ("admin", MASKED, MASKED),
    ],
)
async def test_who_sees_the_callers_number(
    home: House, user: str, in_calls: str | None, in_tickets: str | None
) -> None:
    call = await home.talking("ast1-1.1")
    number = await home.stored(home.engine.calls[call])
    said = [
        (await home.ask("GET", path, user=user))[1]
        for path in ["/api/v1/calls", f"/api/v1/calls/{call}", "/api/v1/call-records", "/api/v1/agents"]
    ]
    calls = said[0].get("calls", [])
    assert [each["caller"] for each in calls] == ([in_calls] if in_calls else [])
    assert (CALLER in json.dumps(said)) == (in_calls == CALLER)
    tickets = [
        (await home.ask("GET", path, user=user))[1]
        for path in ["/api/v1/tickets", f"/api/v1/tickets/{number}"]
    ]
    assert tickets[1].get("caller") == in_tickets
    assert (CALLER in json.dumps(tickets)) == (in_tickets == CALLER)
    async with home.screen(user) as screen:
        snapshot = await screen.until("snapshot")
        assert (CALLER in json.dumps(snapshot)) == (in_calls == CALLER)
        assert [each["caller"] for each in snapshot["calls"]] == ([in_calls] if in_calls else [])


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("13812345678", "138****5678"),
        ("+8613812345678", "+86****5678"),
        ("03511234567", "035****4567"),
        ("1234567", "****567"),
        ("1001", "****"),
        ("", ""),
    ],
)
def test_a_masked_number(number: str, shown: str) -> None:
    assert masked(number) == shown
