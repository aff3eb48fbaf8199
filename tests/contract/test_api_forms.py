"""The ticket form: kept at every stroke, never overwritten unseen, and written by nobody but who talked."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_house import House, house

from callcenter.tickets.forms import Form, spec

WRITTEN: dict[str, Any] = {
    "version": 0,
    "kind": "complaint",
    "title": "暖气不热",
    "content": "晋源区某小区 3 号楼，室温 14 度。\n已持续三天。",
    "category": "010101",
    "region": "太原市晋源区",
    "address": "绿地小区 3 号楼",
    "occurred_on": "2026-11-20",
    "contact_name": "王先生",
    "contact_phone": "13812345678",
    "confidential": True,
    "reply": "",
}


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as running:
        yield running


async def ticket_of_a_call(home: House) -> str:
    call = await home.talking("ast1-1.1")
    return await home.stored(home.engine.calls[call])


async def test_what_is_written_is_there_again(home: House) -> None:
    """Also after a second writing, and for whoever may see tickets; the number masked where it need not be seen."""
    number = await ticket_of_a_call(home)
    path = f"/api/v1/tickets/{number}/form"
    status, empty = await home.ask("GET", path, user="agent1")
    assert (status, empty["version"], empty["missing"]) == (200, 0, ["kind"])
    status, kept = await home.ask("PUT", path, user="agent1", json=WRITTEN)
    assert (status, kept["version"], kept["missing"]) == (200, 1, [])
    assert {name: kept[name] for name in WRITTEN if name != "version"} == {
        name: value for name, value in WRITTEN.items() if name != "version"
    }
    assert kept["saved_by"]["user_id"] == "agent1"
    _, again = await home.ask("PUT", path, user="agent1", json=WRITTEN | {"version": 1, "title": ""})
    assert (again["version"], again["missing"]) == (2, ["title"])
    _, seen = await home.ask("GET", path, user="qa1")
    assert seen["contact_phone"] == "138****5678"
    assert seen["content"] == WRITTEN["content"]


async def test_two_screens_never_undo_each_other(home: House) -> None:
    number = await ticket_of_a_call(home)
    path = f"/api/v1/tickets/{number}/form"
    await home.ask("PUT", path, user="agent1", json=WRITTEN)
    # The answer was lost and the same is sent again: no conflict, no new version.
    status, kept = await home.ask("PUT", path, user="agent1", json=WRITTEN)
    assert (status, kept["version"]) == (200, 1)
    status, said = await home.ask("PUT", path, user="agent1", json=WRITTEN | {"title": "另一个标题"})
    assert (status, said["error"]["reason"]) == (409, "form_changed")
    _, there = await home.ask("GET", path, user="agent1")
    assert there["title"] == WRITTEN["title"]
    status, said = await home.ask("PUT", path, user="agent1", json=WRITTEN | {"version": 7, "title": "x"})
    assert status == 409


async def test_who_did_not_talk_does_not_write(home: House) -> None:
    number = await ticket_of_a_call(home)
    path = f"/api/v1/tickets/{number}/form"
    for user, expected in (("agent2", 403), ("leader1", 403), ("spec1", 403), ("dept1", 403), (None, 401)):
        status, _ = await home.ask("PUT", path, user=user, json=WRITTEN)
        assert status == expected, user
    status, _ = await home.ask("PUT", "/api/v1/tickets/20200101-000001/form", user="agent1", json=WRITTEN)
    assert status == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "nonsense"},
        {"category": "0199"},
        {"category": "01x"},
        {"spec_version": "99"},
        {"title": "长" * 201},
        {"occurred_on": "yesterday"},
        {"version": -1},
        {"unknown": 1},
        {"confidential": "yes"},
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_lost(home: House, wrong: dict[str, object]) -> None:
    number = await ticket_of_a_call(home)
    path = f"/api/v1/tickets/{number}/form"
    await home.ask("PUT", path, user="agent1", json=WRITTEN)
    status, said = await home.ask("PUT", path, user="agent1", json=WRITTEN | {"version": 1} | wrong)
    assert status == 400
    assert next(iter(wrong)) in said["error"]["detail"]
    _, there = await home.ask("GET", path, user="agent1")
    assert there["version"] == 1


async def test_earlier_tickets_of_the_caller(home: House) -> None:
    """For the one who has the call; the present ticket and other people's are not among them."""
    first = await home.talking("ast1-1.1")
    number = await home.stored(home.engine.calls[first])
    await home.ask("PUT", f"/api/v1/tickets/{number}/form", user="agent1", json=WRITTEN)
    await home.hang_up(first)
    await home.ask("POST", f"/api/v1/calls/{first}/wrap-up", user="agent1", json={"disposition": "answered"})
    second = await home.talking("ast1-1.2")
    await home.stored(home.engine.calls[second])
    status, said = await home.ask("GET", f"/api/v1/calls/{second}/history", user="agent1")
    assert status == 200
    assert [(each["number"], each["title"], each["category"]) for each in said["tickets"]] == [
        (number, "暖气不热", "010101")
    ]
    status, _ = await home.ask("GET", f"/api/v1/calls/{second}/history", user="agent2")
    assert status == 404


async def test_the_words_of_the_form(home: House) -> None:
    status, words = await home.ask("GET", "/api/v1/ticket-form", user="agent1")
    assert status == 200
    assert [kind["zh"] for kind in words["kinds"]] == ["咨询", "求助", "投诉", "建议", "举报", "表扬"]
    status, _ = await home.ask("GET", "/api/v1/ticket-form?version=99", user="agent1")
    assert status == 404


def test_the_words_are_consistent() -> None:
    """Every code is its parent's and two digits more, none is there twice, and what is required is a field."""
    codes: list[str] = []

    def walk(parts: Any, head: str) -> None:
        for part in parts:
            assert part.code.startswith(head)
            assert len(part.code) == len(head) + 2
            assert part.zh
            assert part.en
            assert [step.code for step in spec().path(part.code)][-1] == part.code
            codes.append(part.code)
            walk(part.parts, part.code)

    walk(spec().categories, "")
    assert len(codes) == len(set(codes))
    for kind in spec().kinds:
        assert set(kind.required) <= set(Form.__dataclass_fields__)
