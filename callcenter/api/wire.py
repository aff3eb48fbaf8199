"""Messages between a screen and the centre: what may be sent, what is answered, and how each becomes a request.

One model a command, used by the WebSocket as a message and by REST as a body, so that the two can never differ.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NewType

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from callcenter.api.views import AgentView, CallView, DirectoryView, MeView, QueueView
from callcenter.domain import messages as centre
from callcenter.domain.calls import CallId, LegId, UserId
from callcenter.domain.messages import Request, Target, TargetKind

CommandId = NewType("CommandId", int)


def printable(text: str) -> str:
    # PostgreSQL stores no NUL; the other control characters have no business in what a person types.
    if any(ord(sign) < 0x20 and sign not in "\t\n\r" for sign in text) or "\x7f" in text:
        raise ValueError("must not hold control characters")
    return text


Word = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(printable)]
"""A code, a user name, a queue: whatever the directory knows; the centre says whether it exists."""
CallIdText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,80}$")]
LegIdText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,90}$")]
NumberText = Annotated[str, StringConstraints(pattern=r"^\+?[0-9*#]{1,24}$")]
NoteText = Annotated[str, StringConstraints(max_length=4000), AfterValidator(printable)]


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


# --- what is asked, whichever way it comes ----------------------------------------------------------------------


class StateBody(Message):
    """Be ready, not ready (with a reason of the directory) or logged out; during a call: after it."""

    state: Literal["ready", "not_ready", "logged_out"]
    reason: Word | None = None

    @model_validator(mode="after")
    def _reason_fits(self) -> "StateBody":
        if (self.state == "not_ready") != (self.reason is not None):
            raise ValueError("reason is needed with not_ready and only with it")
        return self

    def request(self, by: UserId) -> Request:
        match self.state:
            case "ready":
                return centre.SetReady(by)
            case "not_ready":
                return centre.SetNotReady(by, self.reason or "")
            case "logged_out":
                return centre.LogOut(by)


class CallBody(Message):
    """Something asked of one call."""

    def request(self, by: UserId, call_id: CallId) -> Request:
        raise NotImplementedError


class HoldBody(CallBody):
    """The caller hears music."""

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Hold(by, call_id)


class ResumeBody(CallBody):
    """Talk to the held caller again."""

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Resume(by, call_id)


class MuteBody(CallBody):
    """Mute a party, or with no leg_id one's own microphone."""

    on: bool
    leg_id: LegIdText | None = None

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.SetMute(by, call_id, LegId(self.leg_id) if self.leg_id else None, self.on)


def _one_of(given: Mapping[TargetKind, str | None], names: str) -> Target:
    chosen = [Target(kind, value) for kind, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"exactly one of {names} is needed")
    return chosen[0]


class InviteBody(CallBody):
    """Ring a third party: a user, whoever is free with a skill, or an allowed number; privately first unless told."""

    user: Word | None = None
    skill: Word | None = None
    number: NumberText | None = None
    privately: bool = True

    @model_validator(mode="after")
    def _one_target(self) -> "InviteBody":
        self.target()
        return self

    def target(self) -> Target:
        given = {TargetKind.USER: self.user, TargetKind.SKILL: self.skill, TargetKind.NUMBER: self.number}
        return _one_of(given, "user, skill, number")

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Invite(by, call_id, self.target(), self.privately)


class MergeBody(CallBody):
    """Bring the held caller and every party that has answered together."""

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Merge(by, call_id)


class DropBody(CallBody):
    """Take a party out of the call, or stop ringing it."""

    leg_id: LegIdText

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Drop(by, call_id, LegId(self.leg_id))


class LeaveBody(CallBody):
    """Leave the other two talking; with the caller still on hold this completes an attended transfer."""

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Leave(by, call_id)


class TransferBody(CallBody):
    """Hand the caller over at once to an agent, a queue or an allowed number (attended: invite, then leave)."""

    agent: Word | None = None
    queue: Word | None = None
    number: NumberText | None = None

    @model_validator(mode="after")
    def _one_target(self) -> "TransferBody":
        self.target()
        return self

    def target(self) -> Target:
        given = {TargetKind.USER: self.agent, TargetKind.QUEUE: self.queue, TargetKind.NUMBER: self.number}
        return _one_of(given, "agent, queue, number")

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.Transfer(by, call_id, self.target())


class HangUpBody(CallBody):
    """End the call for everybody; the caller first rates it unless told otherwise."""

    to_rating: bool = True

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.HangUpCall(by, call_id, self.to_rating)


class WrapUpBody(CallBody):
    """What the call was about; ends the wrap-up unless more time is asked for."""

    disposition: Word
    note: NoteText = ""
    more_time: bool = False

    def request(self, by: UserId, call_id: CallId) -> Request:
        return centre.WrapUp(by, call_id, self.disposition, self.note, self.more_time)


CALL_BODIES: Mapping[str, type[CallBody]] = {
    "hold": HoldBody,
    "resume": ResumeBody,
    "mute": MuteBody,
    "invite": InviteBody,
    "merge": MergeBody,
    "drop": DropBody,
    "leave": LeaveBody,
    "transfer": TransferBody,
    "hangup": HangUpBody,
    "wrap-up": WrapUpBody,
}
"""The last part of the REST path -> its body."""


# --- from the screen --------------------------------------------------------------------------------------------


class Hello(Message):
    """The first message, within five seconds of connecting; the token never travels in the address."""

    type: Literal["hello"]
    version: Literal[1]
    token: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    client: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{8,64}$")]
    """Made up by the screen once and kept over reconnects: command ids are counted per client."""
    softphone: bool = False
    """The agent talks through this very screen: when it is gone for long, he cannot be rung."""


class Command(Message):
    id: Annotated[int, Field(ge=0, le=2**53 - 1)]
    """Chosen by the screen, new for each command; sent again within a minute it is answered the same, done once."""


class CallCommand(Command):
    call_id: CallIdText


class SetStateCommand(StateBody, Command):
    __doc__ = StateBody.__doc__
    type: Literal["set_state"]


class HoldCommand(HoldBody, CallCommand):
    __doc__ = HoldBody.__doc__
    type: Literal["hold"]


class ResumeCommand(ResumeBody, CallCommand):
    __doc__ = ResumeBody.__doc__
    type: Literal["resume"]


class MuteCommand(MuteBody, CallCommand):
    __doc__ = MuteBody.__doc__
    type: Literal["mute"]


class InviteCommand(InviteBody, CallCommand):
    __doc__ = InviteBody.__doc__
    type: Literal["invite"]


class MergeCommand(MergeBody, CallCommand):
    __doc__ = MergeBody.__doc__
    type: Literal["merge"]


class DropCommand(DropBody, CallCommand):
    __doc__ = DropBody.__doc__
    type: Literal["drop"]


class LeaveCommand(LeaveBody, CallCommand):
    __doc__ = LeaveBody.__doc__
    type: Literal["leave"]


class TransferCommand(TransferBody, CallCommand):
    __doc__ = TransferBody.__doc__
    type: Literal["transfer"]


class HangUpCommand(HangUpBody, CallCommand):
    __doc__ = HangUpBody.__doc__
    type: Literal["hangup"]


class WrapUpCommand(WrapUpBody, CallCommand):
    __doc__ = WrapUpBody.__doc__
    type: Literal["wrap_up"]


class Sync(Message):
    """Asks for a new snapshot, after a gap in ``seq`` or whenever in doubt."""

    type: Literal["sync"]


class Ping(Message):
    """Asks whether the other side is there; `pong` comes at once. A browser's script sees no ping of the protocol's own."""

    type: Literal["ping"]


OnCall = (
    HoldCommand
    | ResumeCommand
    | MuteCommand
    | InviteCommand
    | MergeCommand
    | DropCommand
    | LeaveCommand
    | TransferCommand
    | HangUpCommand
    | WrapUpCommand
)
ClientMessage = Hello | SetStateCommand | OnCall | Sync | Ping


# --- to the screen ----------------------------------------------------------------------------------------------


class Snapshot(Message):
    """Everything as it stands: draw this and forget what was shown before; changes after it count on from ``seq``."""

    type: Literal["snapshot"] = "snapshot"
    seq: int
    server_time: datetime
    """For timers: a screen's own clock may be wrong."""
    me: MeView
    my_call: CallView | None
    """The call in hand, or the one being wrapped up."""
    agents: list[AgentView]
    queues: list[QueueView]
    calls: list[CallView]
    """Living calls this user may see."""
    directory: DirectoryView


class CallChanged(Message):
    """A call is new or has changed; it replaces what was shown of it."""

    type: Literal["call"] = "call"
    seq: int
    call: CallView


class CallEnded(Message):
    """A call is over, or no longer this screen's to see; take it off the list of living calls.

    Comes again when an ended call's record changes: ticket number, disposition.
    """

    type: Literal["call_ended"] = "call_ended"
    seq: int
    call_id: str
    call: CallView | None
    """The record; null when the call goes on without this user."""


class AgentChanged(Message):
    """A colleague's (or one's own) state has changed."""

    type: Literal["agent"] = "agent"
    seq: int
    agent: AgentView


class QueueChanged(Message):
    """A queue's figures have changed; at most four times a second."""

    type: Literal["queue"] = "queue"
    seq: int
    queue: QueueView


class AlarmRaised(Message):
    """Something the people on duty must know."""

    type: Literal["alarm"] = "alarm"
    seq: int
    at: datetime
    key: str
    """A stable word."""
    facts: dict[str, str]


class Pong(Message):
    """The answer to `ping`."""

    type: Literal["pong"] = "pong"


class Done(Message):
    """The command with this id has been done; what it changed was sent before."""

    type: Literal["done"] = "done"
    id: int


class RefusedMessage(Message):
    """The command was not done and nothing has changed."""

    type: Literal["refused"] = "refused"
    id: int | None
    """Null when the message could not be read so far."""
    reason: str
    message_zh: str
    message_en: str
    detail: str


ServerMessage = (
    Snapshot
    | CallChanged
    | CallEnded
    | AgentChanged
    | QueueChanged
    | AlarmRaised
    | Pong
    | Done
    | RefusedMessage
)

CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])
SERVER: TypeAdapter[ServerMessage] = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])


class _Numbered(BaseModel):
    id: Annotated[int, Field(ge=0, le=2**53 - 1, strict=True)] | None = None


def id_of(text: str) -> int | None:
    """The command id of a message that is not understood otherwise, so that its refusal finds its sender."""
    try:
        return _Numbered.model_validate_json(text).id
    except ValidationError:
        return None


def what_is_wrong(error: ValidationError, *, at_most: int = 3) -> str:
    """Each wrong field and why, without what was sent: that may be a password or a caller's number."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{_place(fault['loc'])}: {fault['msg'][:300]}" for fault in found[:at_most])


def _place(path: Sequence[int | str]) -> str:
    # A field name somebody made up is shown too, so it is cut short.
    return ".".join(str(part)[:40] for part in path) or "message"


def wire_document() -> dict[str, Any]:
    """JSON Schema of every message in both directions."""
    schemas, definitions = TypeAdapter.json_schemas(
        [("client", "validation", CLIENT), ("server", "serialization", SERVER)]
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The console's messages",
        "description": "Over the WebSocket /api/v1/console, version 1; docs/wire.md tells what they mean.",
        "oneOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {
            **definitions["$defs"],
            "ClientMessage": schemas[("client", "validation")],
            "ServerMessage": schemas[("server", "serialization")],
        },
    }
