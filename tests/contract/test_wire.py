"""The wire's messages: their models, their schema, their description, and the words people read."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from callcenter.api.describe import examples, wire_markdown
from callcenter.api.wire import (
    CALL_BODIES,
    CLIENT,
    SERVER,
    ClientMessage,
    ServerMessage,
    id_of,
    what_is_wrong,
    wire_document,
)
from callcenter.api.words import SENTENCES, Fault
from callcenter.domain import messages
from callcenter.domain.calls import CallId, LegId, UserId
from callcenter.domain.messages import Reason, Request, Target, TargetKind

ME, CALL = UserId("agent1"), CallId("ast1-1.1")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("word", [*Reason, *Fault])
def test_every_reason_has_a_sentence_in_both_languages(word: Reason | Fault) -> None:
    zh, en = SENTENCES[word]
    assert any("\u4e00" <= sign <= "\u9fff" for sign in zh)
    assert en.isascii()
    assert zh.endswith("。")
    assert en.endswith(".")


def test_the_two_kinds_of_reasons_share_no_word() -> None:
    assert not {word.value for word in Reason} & {word.value for word in Fault}


def test_every_message_has_exactly_one_example_and_the_description_shows_it() -> None:
    kinds = [type(each) for each in examples()]
    assert sorted(kinds, key=str) == sorted({*get_args(ClientMessage), *get_args(ServerMessage)}, key=str)
    text = wire_markdown()
    for example in examples():
        assert f"### `{example.model_dump()['type']}`" in text


def test_examples_in_the_description_are_what_is_accepted() -> None:
    from_screen, to_screen = (DOCS / "wire.md").read_text(encoding="utf-8").split("## To the screen")
    schema = Draft202012Validator(wire_document())
    told = 0
    for text, reader in [(from_screen, CLIENT), (to_screen, SERVER)]:
        for part in text.split("```json\n")[1:]:
            block = part.split("```")[0]
            schema.validate(json.loads(block))
            reader.validate_json(block)
            told += 1
    assert told == len(examples())


def test_the_schema_is_valid_and_refuses_what_the_models_refuse() -> None:
    Draft202012Validator.check_schema(wire_document())
    schema = Draft202012Validator(wire_document())
    assert not schema.is_valid({"type": "hold", "id": 1, "call_id": "a", "by": "agent2"})
    assert not schema.is_valid({"type": "nonsense"})


@pytest.mark.parametrize(
    ("word", "body", "request_"),
    [
        ("hold", {}, messages.Hold(ME, CALL)),
        ("resume", {}, messages.Resume(ME, CALL)),
        ("mute", {"on": True}, messages.SetMute(ME, CALL, None, True)),
        ("mute", {"on": False, "leg_id": "x.1-2"}, messages.SetMute(ME, CALL, LegId("x.1-2"), False)),
        ("invite", {"user": "spec1"}, messages.Invite(ME, CALL, Target(TargetKind.USER, "spec1"), True)),
        (
            "invite",
            {"skill": "market", "privately": False},
            messages.Invite(ME, CALL, Target(TargetKind.SKILL, "market"), False),
        ),
        ("invite", {"number": "110"}, messages.Invite(ME, CALL, Target(TargetKind.NUMBER, "110"), True)),
        ("merge", {}, messages.Merge(ME, CALL)),
        ("drop", {"leg_id": "x.1-3"}, messages.Drop(ME, CALL, LegId("x.1-3"))),
        ("leave", {}, messages.Leave(ME, CALL)),
        ("transfer", {"agent": "agent2"}, messages.Transfer(ME, CALL, Target(TargetKind.USER, "agent2"))),
        ("transfer", {"queue": "b"}, messages.Transfer(ME, CALL, Target(TargetKind.QUEUE, "b"))),
        ("transfer", {"number": "110"}, messages.Transfer(ME, CALL, Target(TargetKind.NUMBER, "110"))),
        ("hangup", {}, messages.HangUpCall(ME, CALL, True)),
        ("hangup", {"to_rating": False}, messages.HangUpCall(ME, CALL, False)),
        ("wrap-up", {"disposition": "a", "note": "好"}, messages.WrapUp(ME, CALL, "a", "好", False)),
        ("wrap-up", {"disposition": "a", "more_time": True}, messages.WrapUp(ME, CALL, "a", "", True)),
    ],
)
def test_body_and_message_become_the_same_request(
    word: str, body: dict[str, object], request_: Request
) -> None:
    assert CALL_BODIES[word].model_validate(body).request(ME, CALL) == request_
    message = {"type": word.replace("-", "_"), "id": 1, "call_id": CALL, **body}
    assert CLIENT.validate_python(message).request(ME, CALL) == request_  # type: ignore[union-attr, call-arg]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "Invalid JSON"),
        ("null", "object"),
        ("[" * 5000, "Invalid JSON"),
        ('{"type":"hold","id":1}', "call_id"),
        ('{"type":"hold","id":"1","call_id":"a"}', "id"),
        ('{"type":"hold","id":true,"call_id":"a"}', "id"),
        ('{"type":"hold","id":-1,"call_id":"a"}', "id"),
        ('{"type":"hold","id":9007199254740992,"call_id":"a"}', "id"),
        ('{"type":"hold","id":1,"call_id":"../a"}', "call_id"),
        ('{"type":"hold","id":1,"call_id":"a","by":"agent2"}', "by"),
        ('{"type":"hold","id":1,"call_id":"a\\n"}', "call_id"),
        ('{"type":"set_state","id":1,"state":"talking"}', "state"),
        ('{"type":"set_state","id":1,"state":"ready","reason":"lunch"}', "reason"),
        ('{"type":"transfer","id":1,"call_id":"a"}', "exactly one of agent, queue, number"),
        ('{"type":"wrap_up","id":1,"call_id":"a","disposition":"x","note":"\\u0000"}', "note"),
        ('{"type":"invite","id":1,"call_id":"a","number":"110\\r\\nAction: Originate"}', "number"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CLIENT.validate_json(text)
    assert named in what_is_wrong(caught.value)


def test_what_is_wrong_never_repeats_what_was_sent() -> None:
    with pytest.raises(ValidationError) as caught:
        CLIENT.validate_json('{"type":"hello","version":2,"token":["s3cret"],"client":"13812345678 !"}')
    assert "s3cret" not in what_is_wrong(caught.value)
    assert "13812345678" not in what_is_wrong(caught.value)


def test_a_message_that_is_not_understood_still_finds_its_sender() -> None:
    assert id_of('{"type":"nonsense","id":7}') == 7
    assert id_of('{"id":"7"}') is None
    assert id_of("[") is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_json_breaks_the_reader(value: object) -> None:
    text = json.dumps(value)
    with pytest.raises(ValidationError) as caught:
        CLIENT.validate_json(text)
    assert len(what_is_wrong(caught.value)) < 1200
    id_of(text)
