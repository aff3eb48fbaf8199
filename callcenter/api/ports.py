"""What the API needs from the rest of the house; whoever has these attributes fits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from callcenter.domain.agents import Agent, Profile, Queue, UserRole
from callcenter.domain.calls import Call, CallId, Outcome, QueueId, UserId
from callcenter.domain.guard import Attempt
from callcenter.domain.messages import Alarm, Event, Request, SaveAgent, SaveCall
from callcenter.domain.recordings import RecordingFile
from callcenter.tickets.forms import Form, Kept
from callcenter.tickets.store import Ticket, TicketStatus


class QueueLoad(Protocol):
    """How a queue stands this moment."""

    @property
    def queue_id(self) -> QueueId: ...
    @property
    def waiting(self) -> int: ...
    @property
    def longest_wait_seconds(self) -> float: ...
    @property
    def ready(self) -> int: ...
    @property
    def staffed(self) -> int: ...


class EnginePort(Protocol):
    @property
    def calls(self) -> Mapping[CallId, Call]: ...
    @property
    def agents(self) -> Mapping[UserId, Agent]: ...
    @property
    def queues(self) -> Mapping[QueueId, Queue]: ...
    def post(self, event: Event) -> None: ...
    async def ask(self, request: Request) -> None: ...
    def queue_status(self) -> Sequence[QueueLoad]: ...
    def subscribe(self, listener: Callable[[SaveCall | SaveAgent | Alarm], None]) -> Callable[[], None]: ...


class Standing(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    """Works, but a person should look."""
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Component:
    standing: Standing
    detail: str = ""
    """A sentence for the person on duty; shown without login, so it names no secret, number or path."""


class HealthSource(Protocol):
    async def components(self) -> Mapping[str, Component]:
        """``asterisk``, ``ami``, ``database`` and ``disk`` as they stand now."""
        ...

    @property
    def journal_pending(self) -> int:
        """Changes not yet in the database."""
        ...


class SessionInfo(Protocol):
    @property
    def token(self) -> str: ...
    @property
    def user_id(self) -> UserId: ...
    @property
    def roles(self) -> frozenset[UserRole]: ...
    @property
    def expires_at(self) -> datetime: ...


class AccountsPort(Protocol):
    """Logins and sessions; every method may raise DatabaseAway."""

    async def log_in(self, user: str, password: str, *, client: str) -> SessionInfo:
        """LoginRefused."""
        ...

    async def session(self, token: str) -> SessionInfo | None: ...
    async def log_out(self, token: str) -> None: ...


class ChoiceInfo(Protocol):
    @property
    def code(self) -> str: ...
    @property
    def zh(self) -> str: ...
    @property
    def en(self) -> str: ...


class NumberInfo(Protocol):
    @property
    def number(self) -> str: ...
    @property
    def zh(self) -> str: ...
    @property
    def en(self) -> str: ...


class ContentInfo(Protocol):
    @property
    def profiles(self) -> Sequence[Profile]: ...
    @property
    def not_ready_reasons(self) -> Sequence[ChoiceInfo]: ...
    @property
    def dispositions(self) -> Sequence[ChoiceInfo]: ...
    @property
    def allowed_numbers(self) -> Sequence[NumberInfo]: ...


class DirectoryPort(Protocol):
    async def load(self) -> ContentInfo: ...


class TicketReader(Protocol):
    """What outlives the process, for reading; every method may raise DatabaseAway."""

    async def ticket(self, number: str) -> Ticket | None: ...
    async def tickets(
        self,
        *,
        line: str | None = None,
        caller: str | None = None,
        agent: UserId | None = None,
        status: TicketStatus | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> list[Ticket]: ...
    async def call(self, call_id: CallId) -> Call | None: ...
    async def calls(
        self,
        *,
        line: str | None = None,
        agent: UserId | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        after: CallId | None = None,
    ) -> list[Call]: ...
    async def recordings(self, call_id: CallId) -> list[RecordingFile]: ...
    async def invitation_outcomes(self, *, since: datetime, until: datetime) -> Mapping[Outcome, int]: ...


class FormsPort(Protocol):
    """Ticket forms; every method may raise DatabaseAway."""

    async def read(self, number: str) -> Kept: ...
    async def read_many(self, numbers: list[str]) -> Mapping[str, Kept]: ...
    async def write(self, number: str, form: Form, *, onto: int, by: UserId, at: datetime) -> Kept:
        """Changed when another version than ``onto`` is there."""
        ...


class RecordingsPort(Protocol):
    def open(self, path: str) -> Path:
        """The file's place, always inside the recordings' root. NoSuchRecording."""
        ...


class PhonesPort(Protocol):
    """The telephones in browsers; every method may raise AmiError."""

    async def use_browser(self, number: str, password: str) -> str:
        """Ring a browser for this number; returns the name of the SIP account it is to register."""
        ...

    async def use_desk_phone(self, number: str) -> None: ...


class GatePort(Protocol):
    """Who is shut out, and the ear for those who try."""

    def wait_seconds(self, source: str) -> float | None:
        """How long the address is still shut out; None when it is not."""
        ...

    def attempt(self, attempt: Attempt) -> None: ...


class Audit(Protocol):
    async def __call__(self, user_id: UserId, action: str, subject: str, detail: str) -> None:
        """Keep that this user did this; DatabaseAway when it cannot be kept."""
        ...
