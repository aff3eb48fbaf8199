"""A call and its legs: frozen facts that are at once the live state and the record.

A change makes a new ``Call``; what the centre holds in memory, what the journal writes and what a restarted
engine reads back are therefore the same object, and no second description of a call can disagree with it.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from callcenter.domain.ivr import Cursor
from callcenter.domain.records import replace

CallId = NewType("CallId", str)
"""The caller's channel id as Asterisk gave it, e.g. ``ast1-1763763843.12``."""
LegId = NewType("LegId", str)
"""The caller's leg is the call id itself; every leg the centre rings is ``<call id>-<n>``, n from 2."""
FALLBACK_LEG = 900
"""Far beyond the legs of any call; the dialplan names a recording by it."""
UserId = NewType("UserId", str)
QueueId = NewType("QueueId", str)


@dataclass(frozen=True, slots=True)
class Now:
    """One instant on both clocks: monotonic seconds decide, aware UTC is recorded."""

    seconds: float
    utc: datetime


class Role(StrEnum):
    CALLER = "caller"
    AGENT = "agent"
    SPECIALIST = "specialist"
    OUTSIDE = "outside"
    """A number outside the house: 110, 120, a utility, a department's desk telephone."""


class LegState(StrEnum):
    RINGING = "ringing"
    UP = "up"
    ENDED = "ended"


class Place(StrEnum):
    """Where a leg that is up is heard."""

    ALONE = "alone"
    """With prompts or waiting music."""
    TOGETHER = "together"
    """In the conversation: hears and is heard by every other leg that is together."""
    HELD = "held"
    """Hold music; hears nobody and is heard by nobody."""


class Outcome(StrEnum):
    """How ringing a party ended; every attempt has exactly one, so that a report can count it."""

    JOINED = "joined"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    CALLER_GONE = "caller_gone"
    WITHDRAWN = "withdrawn"
    """Whoever asked took it back while it rang."""


class Phase(StrEnum):
    IN_FLOW = "in_flow"
    WAITING = "waiting"
    TALKING = "talking"
    AFTER = "after"
    ENDED = "ended"


class EndReason(StrEnum):
    COMPLETED = "completed"
    """Somebody answered and the conversation was ended by one of the parties."""
    ABANDONED_IN_FLOW = "abandoned_in_flow"
    ABANDONED_WAITING = "abandoned_waiting"
    ABANDONED_RINGING = "abandoned_ringing"
    """The caller hung up while an agent's phone was ringing for him."""
    MESSAGE_LEFT = "message_left"
    ENDED_BY_FLOW = "ended_by_flow"
    """The flow hung up (closed, full, no such number) before anybody answered."""
    FELL_BACK = "fell_back"
    """The engine was away and the dialplan's fallback queue took the call."""
    SHUT_DOWN = "shut_down"
    """The centre was switched off before anybody answered."""
    TELEPHONY_LOST = "telephony_lost"
    """The channel was gone when Asterisk came back: killed, restarted, or cut while nobody listened."""
    FAULT = "fault"


class StepKind(StrEnum):
    """The times a ticket tells; one row each, in order."""

    ARRIVED = "arrived"
    GREETED = "greeted"
    CHOSE = "chose"
    QUEUED = "queued"
    OFFERED = "offered"
    MISSED = "missed"
    ANSWERED = "answered"
    HELD = "held"
    RESUMED = "resumed"
    MUTED = "muted"
    UNMUTED = "unmuted"
    INVITED = "invited"
    CONSULTED = "consulted"
    JOINED = "joined"
    NOT_JOINED = "not_joined"
    LEFT = "left"
    TRANSFERRED = "transferred"
    RATED = "rated"
    MESSAGE_LEFT = "message_left"
    DISPOSED = "disposed"
    ADOPTED = "adopted"
    FELL_BACK = "fell_back"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Step:
    at: datetime
    kind: StepKind
    leg_id: LegId | None = None
    user_id: UserId | None = None
    detail: str = ""


@dataclass(frozen=True)
class Leg:
    leg_id: LegId
    role: Role
    address: str
    """A phone's number (``1001``), a number outside (``110``), or the caller's number."""
    user_id: UserId | None
    state: LegState
    place: Place
    asked_at: datetime
    asked_by: UserId | None = None
    """The agent who invited this party; None for the caller and for an offer from a queue."""
    answered_at: datetime | None = None
    joined_at: datetime | None = None
    """First time the caller and this party heard each other."""
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    """Set when the ringing ended; None for the caller's own leg."""
    muted: bool = False
    cancelled: Outcome | None = None
    """A hang-up was sent while it rang; the leg ends with this outcome whatever the phone answers."""

    @property
    def alive(self) -> bool:
        return self.state is not LegState.ENDED

    @property
    def up(self) -> bool:
        return self.state is LegState.UP


@dataclass(frozen=True)
class Call:
    call_id: CallId
    line: str
    """The service line (``12345``), not the number dialled: merged numbers are counted apart by it."""
    flow_version: str
    dialled: str
    caller: str
    arrived_at: datetime
    phase: Phase
    legs: tuple[Leg, ...]
    """The caller's first, the others in the order they were rung."""
    steps: tuple[Step, ...] = ()
    cursor: Cursor | None = None
    """Where the flow stands."""
    queue: QueueId | None = None
    """The queue the call waits in or was answered from."""
    queued_at: datetime | None = None
    head_start_seconds: float = 0.0
    answered_at: datetime | None = None
    answered_by: UserId | None = None
    handled_by: tuple[UserId, ...] = ()
    """Every agent who talked with the caller, in order."""
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    disposition: str | None = None
    note: str = ""
    rating: int | None = None
    """1 (非常满意) … 5 (非常不满意), as pressed."""
    ticket_number: str | None = None
    version: int = 0
    """Grows by one with each change; the journal keeps the highest."""

    def leg(self, leg_id: LegId) -> Leg | None:
        for leg in self.legs:
            if leg.leg_id == leg_id:
                return leg
        return None

    @property
    def caller_leg(self) -> Leg:
        return self.legs[0]

    @property
    def others(self) -> tuple[Leg, ...]:
        """Every living leg but the caller's."""
        return tuple([leg for leg in self.legs[1:] if leg.state is not LegState.ENDED])

    @property
    def parties(self) -> tuple[Leg, ...]:
        """Every leg that is up but the caller's."""
        return tuple([leg for leg in self.legs[1:] if leg.state is LegState.UP])

    @property
    def ringing(self) -> tuple[Leg, ...]:
        return tuple([leg for leg in self.legs[1:] if leg.state is LegState.RINGING])

    def leg_of(self, user_id: UserId) -> Leg | None:
        """The user's living leg."""
        return next((leg for leg in self.legs if leg.user_id == user_id and leg.alive), None)

    def with_leg(self, leg: Leg) -> "Call":
        return replace(self, legs=self.legs_with(leg))

    def legs_with(self, leg: Leg) -> tuple[Leg, ...]:
        """The legs with this one put in the place of the one with its id, or added."""
        for at, old in enumerate(self.legs):
            if old.leg_id == leg.leg_id:
                return (*self.legs[:at], leg, *self.legs[at + 1 :])
        return (*self.legs, leg)

    def with_step(
        self,
        now: Now,
        kind: StepKind,
        *,
        leg_id: LegId | None = None,
        user_id: UserId | None = None,
        detail: str = "",
    ) -> "Call":
        return replace(self, steps=self.steps_with(now, kind, leg_id=leg_id, user_id=user_id, detail=detail))

    def steps_with(
        self,
        now: Now,
        kind: StepKind,
        *,
        leg_id: LegId | None = None,
        user_id: UserId | None = None,
        detail: str = "",
    ) -> tuple[Step, ...]:
        """The steps and one more; for a change of several fields, which then costs one copy."""
        return (*self.steps, Step(now.utc, kind, leg_id, user_id, detail))

    def next_leg_id(self) -> LegId:
        return LegId(f"{self.call_id}-{len(self.legs) + 1}")

    @property
    def fallback_leg_id(self) -> LegId:
        """The leg of whoever the fallback queue gave the caller to: a channel that the centre did not name."""
        return LegId(f"{self.call_id}-{FALLBACK_LEG}")


def call_id_of(leg_id: LegId) -> CallId:
    """The call a leg belongs to; the inverse of ``Call.next_leg_id``."""
    head, dash, tail = leg_id.rpartition("-")
    # `ast1-1763763843.12` is a caller's leg: its tail holds a dot; `….12-3` is a leg of ours.
    return CallId(head) if dash and tail.isdigit() and "." in head else CallId(leg_id)
