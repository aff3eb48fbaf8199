"""Writes docs/openapi.json, docs/wire.json and docs/wire.md from the declarations: ``python -m callcenter.api.describe docs``."""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel

from callcenter.api import wire
from callcenter.api.rest import VERSION, contracts
from callcenter.api.rights import RIGHTS, Right, Viewer
from callcenter.api.typed import openapi_document
from callcenter.api.views import (
    ChoiceView,
    DirectoryView,
    MeView,
    NumberView,
    QueueNameView,
    QueueView,
    agent_view,
    call_view,
    specialist_view,
)
from callcenter.api.words import SENTENCES, Fault
from callcenter.domain.agents import Agent, AgentState, Profile, UserRole
from callcenter.domain.calls import (
    Call,
    CallId,
    EndReason,
    Leg,
    LegId,
    LegState,
    Now,
    Outcome,
    Phase,
    Place,
    QueueId,
    Role,
    Step,
    StepKind,
    UserId,
)
from callcenter.domain.messages import Reason

_TOKEN = "the-token-of-POST-session"  # noqa: S105  # an example, no secret
_NOON = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
_ID = CallId("ast1-1763763843.12")
_AGENT = Agent(
    Profile(
        UserId("agent1"),
        "张敏",
        frozenset({UserRole.AGENT}),
        phone="1001",
        skills=MappingProxyType({"hotline": 3}),
        department="热线中心",
    ),
    AgentState.TALKING,
    since=_NOON + timedelta(seconds=9),
    call_id=_ID,
    leg_id=LegId(f"{_ID}-2"),
    phone_reachable=True,
    version=7,
)
_SPECIALIST = Agent(
    Profile(
        UserId("spec1"),
        "李强",
        frozenset({UserRole.SPECIALIST}),
        phone="8001",
        skills=MappingProxyType({"market": 4}),
        department="市场监管局",
    ),
    AgentState.READY,
    since=_NOON,
    phone_reachable=True,
    version=2,
)
_NAMES = {_AGENT.user_id: _AGENT.profile.name, _SPECIALIST.user_id: _SPECIALIST.profile.name}
_CALL = Call(
    call_id=_ID,
    line="12345",
    flow_version="1",
    dialled="12345",
    caller="13812345678",
    arrived_at=_NOON,
    phase=Phase.TALKING,
    legs=(
        Leg(
            LegId(_ID),
            Role.CALLER,
            "13812345678",
            None,
            LegState.UP,
            Place.TOGETHER,
            _NOON,
            answered_at=_NOON,
        ),
        Leg(
            LegId(f"{_ID}-2"),
            Role.AGENT,
            "1001",
            UserId("agent1"),
            LegState.UP,
            Place.TOGETHER,
            _NOON + timedelta(seconds=3),
            answered_at=_NOON + timedelta(seconds=9),
            joined_at=_NOON + timedelta(seconds=9),
            outcome=Outcome.JOINED,
        ),
    ),
    steps=(
        Step(_NOON, StepKind.ARRIVED, detail="12345"),
        Step(_NOON + timedelta(seconds=9), StepKind.ANSWERED, LegId(f"{_ID}-2"), UserId("agent1")),
    ),
    queue=QueueId("hotline"),
    queued_at=_NOON + timedelta(seconds=2),
    answered_at=_NOON + timedelta(seconds=9),
    answered_by=UserId("agent1"),
    handled_by=(UserId("agent1"),),
    ticket_number="20261121-000001",
    version=9,
)
_ENDED = Call(
    call_id=_ID,
    line="12345",
    flow_version="1",
    dialled="12345",
    caller="13812345678",
    arrived_at=_NOON,
    phase=Phase.ENDED,
    legs=_CALL.legs[:1],
    ended_at=_NOON + timedelta(seconds=31),
    end_reason=EndReason.ABANDONED_WAITING,
    version=12,
)


def _name_of(user_id: UserId) -> str:
    return _NAMES.get(user_id, user_id)


def examples() -> list[BaseModel]:
    """One of every message, in the order in which they are explained."""
    now = Now(0.0, _NOON + timedelta(seconds=20))
    viewer = Viewer.of(_AGENT.user_id, _AGENT.profile.roles)
    call = call_view(_CALL, sees_number=True, name_of=_name_of)
    queue = QueueView(
        queue_id="hotline",
        name={"zh": "热线", "en": "Hotline"},
        skill="hotline",
        waiting=3,
        longest_wait_since=_NOON + timedelta(seconds=11),
        ready=0,
        staffed=4,
    )
    refused = SENTENCES[Reason.NOBODY_FREE]
    return [
        wire.Hello(type="hello", version=1, token=_TOKEN, client="7f1c2a9e-desk", softphone=True),
        wire.Sync(type="sync"),
        wire.Ping(type="ping"),
        wire.SetStateCommand(type="set_state", id=16, state="not_ready", reason="meal"),
        wire.HoldCommand(type="hold", id=17, call_id=_ID),
        wire.ResumeCommand(type="resume", id=18, call_id=_ID),
        wire.MuteCommand(type="mute", id=19, call_id=_ID, leg_id=f"{_ID}-3", on=True),
        wire.InviteCommand(type="invite", id=20, call_id=_ID, skill="market", privately=True),
        wire.MergeCommand(type="merge", id=21, call_id=_ID),
        wire.DropCommand(type="drop", id=22, call_id=_ID, leg_id=f"{_ID}-3"),
        wire.LeaveCommand(type="leave", id=23, call_id=_ID),
        wire.TransferCommand(type="transfer", id=24, call_id=_ID, queue="business"),
        wire.HangUpCommand(type="hangup", id=25, call_id=_ID, to_rating=True),
        wire.WrapUpCommand(type="wrap_up", id=26, call_id=_ID, disposition="answered", note="已答复"),
        wire.Snapshot(
            seq=1,
            server_time=now.utc,
            me=MeView(
                user_id=_AGENT.user_id,
                name=_AGENT.profile.name,
                roles=sorted(viewer.roles),
                rights=sorted(viewer.rights),
                expires_at=_NOON + timedelta(hours=12),
                agent=agent_view(_AGENT, now=now),
            ),
            my_call=call,
            agents=[agent_view(_AGENT, now=now)],
            queues=[queue],
            calls=[call],
            directory=DirectoryView(
                not_ready_reasons=[ChoiceView(code="meal", zh="就餐", en="Meal")],
                dispositions=[ChoiceView(code="answered", zh="直接答复", en="Answered on the spot")],
                allowed_numbers=[NumberView(number="110", zh="公安报警", en="Police")],
                specialists=[specialist_view(_SPECIALIST)],
                queues=[QueueNameView(queue_id=queue.queue_id, name=queue.name, skill=queue.skill)],
            ),
        ),
        wire.CallChanged(seq=2, call=call),
        wire.CallEnded(seq=3, call_id=_ID, call=call_view(_ENDED, sees_number=False, name_of=_name_of)),
        wire.AgentChanged(seq=4, agent=agent_view(_SPECIALIST, now=now)),
        wire.QueueChanged(seq=5, queue=queue),
        wire.AlarmRaised(seq=6, at=now.utc, key="arrange_failed", facts={"call": _ID}),
        wire.Pong(),
        wire.Done(id=17),
        wire.RefusedMessage(
            id=20,
            reason=Reason.NOBODY_FREE.value,
            message_zh=refused.zh,
            message_en=refused.en,
            detail="market",
        ),
    ]


_INTRODUCTION = """\
# The console's messages

<!-- Written by `python -m callcenter.api.describe docs`; change callcenter/api instead. -->

One WebSocket for each screen at `/api/v1/console`; JSON text frames of at most 64 kB; version 1. The same commands
are routes of REST, described with everything else in [openapi.json](openapi.json) and at `/api/v1/openapi.json`. The
JSON Schema of every message below is in [wire.json](wire.json) and at `/api/v1/wire.json`. Unknown fields are refused, so that a misspelt one is
noticed.

## How a conversation goes

1. Log in with `POST /api/v1/session`, connect, and send `hello` with the token within five seconds. The token never
   travels in the address. A browser's `Origin` must be this server's own or one that is set.
2. The server sends `snapshot`, then every change in order: each has the next `seq`. After a gap, or in doubt, send
   `sync`; a new `snapshot` comes and the counting goes on from its `seq`. A screen that reads too slowly gets a
   snapshot instead of the changes it missed.
3. Commands carry an `id` the screen chooses, new for each command, and are answered once with `done` or `refused`, in
   the order in which they were sent. What a command changes is told before its `done`. The same `id` from the same
   `client` within a minute, over a new connection too, is answered the same and not done twice: after a broken
   connection simply send it again. At most 1200 commands a minute.
4. Who asks is who is logged in; no message says it. Whether the call is his is checked by the centre.
5. The server pings every four seconds; a screen that does not answer is gone. A script cannot see those pings: to
   learn soon that a connection is dead it sends `ping` and expects `pong`. When the last screen with
   `softphone: true` of a user has been gone for five seconds, he is made not ready and an offered call goes on to the
   next agent.

| closed with | meaning | do |
|---|---|---|
| 1001 | the server restarts | connect again |
| 1003 | a binary message came | send text |
| 1009 | a message was larger than 64 kB | send less |
| 1013 | the screen did not read, or the database is away | connect again after a few seconds |
| 4400 | the first message was no proper `hello`; the reason names the field | correct it |
| 4401 | the session is over | log in again |
| 4408 | `hello` did not come within five seconds | connect again |
| 4429 | more than 20 screens of one user | close some |

All times are UTC (ISO 8601); `server_time` in the snapshot corrects a wrong clock. Every text for people is there in
Chinese and English.
"""


def wire_markdown() -> str:
    """docs/wire.md."""
    incoming = set(get_args(wire.ClientMessage))
    given = examples()
    parts = [
        _INTRODUCTION,
        "## From the screen\n",
        *(_told(each) for each in given if type(each) in incoming),
    ]
    parts += ["## To the screen\n", *(_told(each) for each in given if type(each) not in incoming)]
    parts += [_rights_table(), _reasons_table()]
    return "\n".join(parts)


def _told(message: BaseModel) -> str:
    kind = message.model_dump()["type"]
    doc = "\n".join(line.strip() for line in (type(message).__doc__ or "").strip().splitlines())
    given = message.model_dump(mode="json", exclude_unset=type(message) in get_args(wire.ClientMessage))
    # The type first: it is what a reader looks for.
    text = json.dumps({"type": kind, **given}, ensure_ascii=False, indent=None if len(given) < 8 else 1)
    return f"### `{kind}`\n\n{doc}\n\n```json\n{text}\n```\n"


def _rights_table() -> str:
    roles = list(UserRole)
    lines = [
        "## Who may do and see what\n",
        "A user with several roles has the rights of all of them. Callers' numbers are masked (`138****5678`, and",
        "`caller_masked` is true) for everybody who has neither right to see them, in every leg and text of the call.\n",
        "| right | " + " | ".join(role.value for role in roles) + " |",
        "|---|" + "---|" * len(roles),
    ]
    for right in Right:
        marks = ("yes" if right in RIGHTS[role] else "" for role in roles)
        lines.append(f"| `{right.value}` | " + " | ".join(marks) + " |")
    return "\n".join([*lines, ""])


def _reasons_table() -> str:
    lines = [
        "## Reasons\n",
        'The stable words of `refused` and of every REST problem `{"error": {"reason", "message_zh", "message_en",',
        '"detail"}}`.\n',
        "| reason | 中文 | English |",
        "|---|---|---|",
    ]
    words: Iterable[Reason | Fault] = (*Reason, *Fault)
    lines += [f"| `{word.value}` | {SENTENCES[word].zh} | {SENTENCES[word].en} |" for word in words]
    return "\n".join([*lines, ""])


def documents() -> Mapping[str, str]:
    """File name -> text, as it stands in docs/."""
    openapi = openapi_document(contracts(), version=VERSION)
    return {
        "openapi.json": _as_json(openapi),
        # The console's types are made from these two, so that a change that would break it breaks its build.
        "wire.json": _as_json(wire.wire_document()),
        "wire.md": wire_markdown(),
    }


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def main(folder: Path) -> None:
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
