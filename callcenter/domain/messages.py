"""Everything that is said to the centre and everything it says.

Event: has happened. Request: a user asks. Effect: must be done. All frozen; who asks comes from the login, never
from the message's sender.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from callcenter.domain.agents import Agent, Profile, Queue
from callcenter.domain.calls import Call, CallId, LegId, Outcome, Role, UserId
from callcenter.domain.ivr import Flow

# --- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallArrived:
    call_id: CallId
    caller: str
    """The number as the network gave it; may be empty (withheld). Hostile until stored."""
    dialled: str


@dataclass(frozen=True, slots=True)
class LegAnswered:
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegEnded:
    leg_id: LegId
    outcome: Outcome
    """What the cause means had the leg still been ringing; ignored for a leg that was up."""


@dataclass(frozen=True, slots=True)
class LegHungUp:
    """The far end hung up: known before anybody else in the call is let go, and so the only witness of who was first.

    ``LegEnded`` of the same leg follows.
    """

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class PromptsEnded:
    leg_id: LegId
    play_id: int


@dataclass(frozen=True, slots=True)
class DigitPressed:
    leg_id: LegId
    digit: str


@dataclass(frozen=True, slots=True)
class MessageEnded:
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class ConversationOver:
    """Asterisk let go of a leg that was bridged (its peer left): it waits alone for what comes next."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class ArrangeFailed:
    """The legs could not be brought together; the living ones are where they were."""

    call_id: CallId
    detail: str


@dataclass(frozen=True, slots=True)
class LegDead:
    """Nothing has been heard of whoever is at this leg for too long: no sound, no answer."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class CallAstray:
    """Asterisk has the caller, or whoever talks with him, in another place than where the centre wants them."""

    call_id: CallId


@dataclass(frozen=True, slots=True)
class FellBack:
    """The dialplan gave a caller to its fallback queue because it heard no heartbeat."""

    call_id: CallId
    caller: str
    dialled: str


@dataclass(frozen=True, slots=True)
class PhoneSeen:
    phone: str
    reachable: bool


@dataclass(frozen=True, slots=True)
class LegSeen:
    """A living channel as a resync found it: one of ours, or a caller's that waits for somebody to take it over."""

    leg_id: LegId
    up: bool
    caller: str = ""
    dialled: str = ""
    speaking_since: datetime | None = None
    """This caller is speaking his message."""


@dataclass(frozen=True, slots=True)
class LegWas:
    """The end of a channel, as Asterisk wrote it down."""

    ended_at: datetime
    outcome: Outcome
    """What the cause means had the leg still been ringing."""


@dataclass(frozen=True, slots=True)
class Unattended:
    """A caller who was with the fallback queue while nobody listened, or who came and went meanwhile."""

    call_id: CallId
    caller: str
    dialled: str
    arrived_at: datetime
    phone: str = ""
    """Who answered him; the leg is ``Call.fallback_leg_id``."""
    answered_at: datetime | None = None
    parted_at: datetime | None = None
    """When that party left."""
    ended_at: datetime | None = None
    """None: he is still there."""


@dataclass(frozen=True, slots=True)
class TelephonyResynced:
    """AMI is (back) up and everything before this message is void: these legs and phones exist and no others.

    ``ended`` and ``unattended`` tell what Asterisk wrote down while nobody listened, as far as it is not in the records.
    """

    legs: tuple[LegSeen, ...]
    phones: frozenset[str]
    ended: Mapping[LegId, LegWas] = field(default_factory=dict)
    unattended: tuple[Unattended, ...] = ()


@dataclass(frozen=True, slots=True)
class TelephonyLost:
    reason: str


@dataclass(frozen=True, slots=True)
class TicketOpened:
    call_id: CallId
    number: str


@dataclass(frozen=True, slots=True)
class DirectoryChanged:
    """The people, the queues and the words to choose from, as they now stand."""

    profiles: tuple[Profile, ...]
    queues: tuple[Queue, ...]
    not_ready_reasons: frozenset[str] = frozenset()
    dispositions: frozenset[str] = frozenset()
    allowed_numbers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FlowsChanged:
    """The flows as they now stand; a call in progress goes on with the one it began with."""

    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class ShuttingDown:
    """The centre is being switched off: every call is ended, and none is begun any more."""


@dataclass(frozen=True, slots=True)
class Draining:
    """The centre is going to be switched off: the callers there are served, whoever comes now is asked to ring later."""


@dataclass(frozen=True, slots=True)
class ConsoleLost:
    """The last screen of a user went away and did not come back in time."""

    user_id: UserId


Event = (
    CallArrived
    | LegAnswered
    | LegEnded
    | LegHungUp
    | PromptsEnded
    | DigitPressed
    | MessageEnded
    | ConversationOver
    | ArrangeFailed
    | LegDead
    | CallAstray
    | FellBack
    | PhoneSeen
    | TelephonyResynced
    | TelephonyLost
    | TicketOpened
    | DirectoryChanged
    | FlowsChanged
    | ConsoleLost
    | Draining
    | ShuttingDown
)

# --- requests -----------------------------------------------------------------------------------------------


class TargetKind(StrEnum):
    USER = "user"
    """A specialist or an agent by user id."""
    SKILL = "skill"
    """Whoever has this skill and is free; the next one is tried by itself."""
    QUEUE = "queue"
    NUMBER = "number"
    """A number of the allowed list."""


@dataclass(frozen=True, slots=True)
class Target:
    kind: TargetKind
    value: str


@dataclass(frozen=True, slots=True)
class SetReady:
    by: UserId


@dataclass(frozen=True, slots=True)
class SetNotReady:
    """Not ready now, or after the call in hand."""

    by: UserId
    reason: str


@dataclass(frozen=True, slots=True)
class LogOut:
    by: UserId


@dataclass(frozen=True, slots=True)
class HangUpCall:
    """End the call for everybody; ``to_rating`` first sends the caller to the after-call flow (满意度评价)."""

    by: UserId
    call_id: CallId
    to_rating: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    by: UserId
    call_id: CallId


@dataclass(frozen=True, slots=True)
class Resume:
    by: UserId
    call_id: CallId


@dataclass(frozen=True, slots=True)
class SetMute:
    by: UserId
    call_id: CallId
    leg_id: LegId | None
    """None: one's own microphone."""
    on: bool


@dataclass(frozen=True, slots=True)
class Invite:
    """Ring a third party; the caller hears music meanwhile (privately first) or stays in the conversation."""

    by: UserId
    call_id: CallId
    target: Target
    privately: bool = True


@dataclass(frozen=True, slots=True)
class Merge:
    """Bring the held caller and every party that is up together."""

    by: UserId
    call_id: CallId


@dataclass(frozen=True, slots=True)
class Drop:
    """Take one party out, or stop ringing it."""

    by: UserId
    call_id: CallId
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave the other two talking (also completes an attended transfer while the caller still hears music)."""

    by: UserId
    call_id: CallId


@dataclass(frozen=True, slots=True)
class Transfer:
    """Blind: the agent leaves at once and the target is rung; attended = Invite, then Leave."""

    by: UserId
    call_id: CallId
    target: Target


@dataclass(frozen=True, slots=True)
class WrapUp:
    """What the call was about; also ends the wrap-up unless ``more_time``."""

    by: UserId
    call_id: CallId
    disposition: str
    note: str = ""
    more_time: bool = False


Request = (
    SetReady
    | SetNotReady
    | LogOut
    | HangUpCall
    | Hold
    | Resume
    | SetMute
    | Invite
    | Merge
    | Drop
    | Leave
    | Transfer
    | WrapUp
)


class Reason(StrEnum):
    """Why a request was refused: stable words that screens translate."""

    NO_SUCH_CALL = "no_such_call"
    NOT_YOUR_CALL = "not_your_call"
    NOT_TALKING = "not_talking"
    CALL_ENDED = "call_ended"
    CALLER_GONE = "caller_gone"
    ALREADY_HELD = "already_held"
    NOT_HELD = "not_held"
    NO_SUCH_PARTY = "no_such_party"
    NOBODY_TO_MERGE = "nobody_to_merge"
    NOBODY_LEFT = "nobody_left"
    ALREADY_INVITING = "already_inviting"
    TOO_MANY_PARTIES = "too_many_parties"
    NO_SUCH_USER = "no_such_user"
    NO_SUCH_SKILL = "no_such_skill"
    NO_SUCH_QUEUE = "no_such_queue"
    NUMBER_NOT_ALLOWED = "number_not_allowed"
    NOBODY_FREE = "nobody_free"
    TARGET_BUSY = "target_busy"
    NO_PHONE = "no_phone"
    PHONE_UNREACHABLE = "phone_unreachable"
    NOT_AN_AGENT = "not_an_agent"
    IN_A_CALL = "in_a_call"
    UNKNOWN_REASON = "unknown_reason"
    UNKNOWN_DISPOSITION = "unknown_disposition"
    TELEPHONY_DOWN = "telephony_down"


class Refused(Exception):  # noqa: N818 - an expected "no" is not an error of the program
    """The centre will not do what was asked; nothing has changed."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail


# --- effects ------------------------------------------------------------------------------------------------


class Meanwhile(StrEnum):
    """What a leg hears when the prompts have ended."""

    MUSIC = "music"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Play:
    leg_id: LegId
    play_id: int
    prompts: tuple[str, ...]
    then: Meanwhile


@dataclass(frozen=True, slots=True)
class Wait:
    leg_id: LegId
    hearing: Meanwhile


@dataclass(frozen=True, slots=True)
class TakeMessage:
    call: Call
    leg_id: LegId
    max_seconds: int


@dataclass(frozen=True, slots=True)
class Ring:
    call_id: CallId
    leg_id: LegId
    role: Role
    address: str
    seconds: float
    """Give up after this; the centre's own deadline is a little earlier."""
    caller: str
    """The number to show on the phone."""
    line: str


@dataclass(frozen=True, slots=True)
class Arrange:
    """Who of a call's living legs hear each other and who hears hold music, from now on.

    The whole wish, not a change: the adapter compares it with what is and does what is missing, choosing a plain
    bridge or a room.
    """

    call_id: CallId
    together: tuple[LegId, ...]
    held: tuple[LegId, ...] = ()


@dataclass(frozen=True, slots=True)
class HangUp:
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class Mute:
    leg_id: LegId
    on: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Start recording: what a leg says; for the caller's leg what he says and what he hears."""

    call: Call
    leg_id: LegId


@dataclass(frozen=True, slots=True)
class FallBack:
    """Give the leg to the dialplan's fallback queue: the centre itself has failed for this call."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class SaveCall:
    """The call as it now stands, for the journal, for the screens, and (ended) for the recordings."""

    call: Call


@dataclass(frozen=True, slots=True)
class SaveAgent:
    """The agent as he now stands, for the journal, the screens and the fallback queue's members."""

    agent: Agent


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person on duty must know; ``key`` is stable, ``facts`` hold no caller's number."""

    key: str
    facts: Mapping[str, str]


Effect = (
    Play
    | Wait
    | TakeMessage
    | Ring
    | Arrange
    | HangUp
    | Mute
    | Record
    | FallBack
    | SaveCall
    | SaveAgent
    | Alarm
)
