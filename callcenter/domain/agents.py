"""People who are rung: agents at the queues and specialists in the departments."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from callcenter.domain.calls import CallId, LegId, QueueId, UserId


class UserRole(StrEnum):
    AGENT = "agent"
    SPECIALIST = "specialist"
    LEADER = "leader"
    QUALITY = "quality"
    DISPATCHER = "dispatcher"
    DEPARTMENT = "department"
    ADMIN = "admin"


class AgentState(StrEnum):
    LOGGED_OUT = "logged_out"
    NOT_READY = "not_ready"
    READY = "ready"
    OFFERED = "offered"
    TALKING = "talking"
    HELD = "held"
    """In a call whose caller hears music."""
    WRAP_UP = "wrap_up"


class NotReady(StrEnum):
    """Reasons the centre itself gives; people's own reasons are data (小休, 就餐, …)."""

    LOGIN = "login"
    MISSED = "missed"
    REJECTED = "rejected"
    NO_PHONE = "no_phone"
    CONNECTION_LOST = "connection_lost"


@dataclass(frozen=True, slots=True)
class Profile:
    """Who a user is, as the directory says; changes come as a new profile."""

    user_id: UserId
    name: str
    roles: frozenset[UserRole]
    phone: str | None = None
    """The SIP phone's number; None for people who never telephone."""
    skills: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Skill -> level 1 (beginner) … 5 (expert)."""
    department: str = ""


@dataclass(frozen=True, slots=True)
class Queue:
    queue_id: QueueId
    name: Mapping[str, str]
    skill: str
    offer_seconds: float = 15.0
    wrap_up_seconds: float = 30.0
    max_waiting: int = 500
    """Callers beyond this hear ``queue_full`` and go where the flow says."""


@dataclass(frozen=True)
class Agent:
    """The live side of a profile that can be rung."""

    profile: Profile
    state: AgentState = AgentState.LOGGED_OUT
    reason: str = ""
    since: datetime | None = None
    since_seconds: float = 0.0
    """Monotonic second of the last change of state; of READY: since when idle."""
    call_id: CallId | None = None
    leg_id: LegId | None = None
    after_call: AgentState = AgentState.READY
    """READY, NOT_READY or LOGGED_OUT once the call and its wrap-up are over."""
    after_reason: str = ""
    wrap_up_until: float | None = None
    phone_reachable: bool = False
    version: int = 0

    @property
    def user_id(self) -> UserId:
        return self.profile.user_id
