"""What screens and other tools are shown of calls, people, queues and tickets: pydantic models made from the domain."""

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from callcenter.api.ports import QueueLoad, Standing
from callcenter.api.rights import Right, masked
from callcenter.database import clean_text
from callcenter.domain.agents import Agent, AgentState, Queue, UserRole
from callcenter.domain.calls import (
    Call,
    EndReason,
    Leg,
    LegState,
    Now,
    Outcome,
    Phase,
    Place,
    Role,
    Step,
    StepKind,
    UserId,
)
from callcenter.domain.recordings import RecordingFile, RecordingKind, is_complete
from callcenter.tickets.store import Ticket, TicketStatus

NameOf = Callable[[UserId], str]
"""A user's name as people know it; the user id where nobody knows one."""


class View(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


class PersonView(View):
    user_id: str
    name: str


class LegView(View):
    leg_id: str
    role: Role
    address: str
    """A phone's or an outside number; the caller's is masked where the viewer need not see it."""
    user_id: str | None
    name: str
    """Empty for the caller and for numbers outside."""
    state: LegState
    place: Place
    muted: bool
    asked_at: datetime
    asked_by: PersonView | None
    answered_at: datetime | None
    joined_at: datetime | None
    ended_at: datetime | None
    outcome: Outcome | None


class StepView(View):
    at: datetime
    kind: StepKind
    leg_id: str | None
    user_id: str | None
    name: str
    detail: str


class CallView(View):
    call_id: str
    version: int
    """Grows with each change: a screen keeps the highest it has seen."""
    phase: Phase
    line: str
    dialled: str
    caller: str
    caller_masked: bool
    queue: str | None
    arrived_at: datetime
    queued_at: datetime | None
    answered_at: datetime | None
    answered_by: PersonView | None
    handled_by: list[PersonView]
    ended_at: datetime | None
    end_reason: EndReason | None
    disposition: str | None
    note: str
    rating: int | None
    """1 (very satisfied) to 5 (very dissatisfied), as pressed."""
    ticket_number: str | None
    legs: list[LegView]
    """The caller's first, then the others in the order they were rung."""
    steps: list[StepView]


class AgentView(View):
    user_id: str
    name: str
    department: str
    phone: str | None
    phone_reachable: bool
    skills: dict[str, int]
    roles: list[UserRole]
    state: AgentState
    reason: str
    since: datetime | None
    """When this state began."""
    call_id: str | None
    after_call: AgentState
    after_reason: str
    wrap_up_ends_at: datetime | None
    version: int


class QueueView(View):
    queue_id: str
    name: dict[str, str]
    """By language: ``zh``, ``en``."""
    skill: str
    waiting: int
    longest_wait_since: datetime | None
    """When the one waiting longest began to wait: screens count on by themselves."""
    ready: int
    staffed: int


class ChoiceView(View):
    code: str
    zh: str
    en: str


class NumberView(View):
    number: str
    zh: str
    en: str


class SpecialistView(View):
    user_id: str
    name: str
    department: str
    skills: dict[str, int]
    state: AgentState
    phone_reachable: bool


class QueueNameView(View):
    queue_id: str
    name: dict[str, str]
    skill: str


class DirectoryView(View):
    not_ready_reasons: list[ChoiceView]
    dispositions: list[ChoiceView]
    allowed_numbers: list[NumberView]
    specialists: list[SpecialistView]
    """With presence as of now; later changes come as ``agent`` messages."""
    queues: list[QueueNameView]


class MeView(View):
    user_id: str
    name: str
    roles: list[UserRole]
    rights: list[Right]
    """What this user may do and see; screens show only what is in here."""
    expires_at: datetime
    """When the session ends if nothing more is asked with it."""
    agent: AgentView | None
    """One's own seat at the telephone; null for people who never telephone."""


class SessionView(View):
    token: str
    """Sent with every request as ``Authorization: Bearer <token>`` and in ``hello``; shown this once."""
    user: PersonView
    roles: list[UserRole]
    rights: list[Right]
    expires_at: datetime


class FormView(View):
    """The ticket form as it is kept; a caller's number is masked for whoever need not see it."""

    number: str
    version: int
    """Send it with the next writing; 0: nothing has been written yet."""
    spec_version: str
    kind: str
    title: str
    content: str
    category: str
    region: str
    address: str
    occurred_on: date | None
    contact_name: str
    contact_phone: str
    confidential: bool
    reply: str
    missing: list[str]
    """What this kind of request needs and nobody has written yet."""
    saved_at: datetime | None
    saved_by: PersonView | None


class FormKindView(View):
    code: str
    zh: str
    en: str
    required: list[str]


class CategoryView(View):
    code: str
    zh: str
    en: str
    parts: "list[CategoryView]"


class FormSpecView(View):
    """The words a ticket form is made of, one version of them."""

    version: str
    kinds: list[FormKindView]
    categories: list[CategoryView]


class EarlierView(View):
    """An earlier ticket of the same number."""

    number: str
    status: TicketStatus
    line: str
    opened_at: datetime
    agent: PersonView | None
    kind: str
    title: str
    category: str
    disposition: str | None
    note: str
    rating: int | None


class HistoryView(View):
    tickets: list[EarlierView]
    """The latest first; at most ten."""


class SoftphoneView(View):
    """What a browser needs to register as the user's telephone."""

    number: str
    """The user's own number, the one that is rung."""
    user: str
    """The SIP account's name."""
    password: str
    """Good until the account is taken over elsewhere or the session is over; shown this once."""
    uri: str
    """``sip:<user>@<host>``"""
    websocket: str
    """Where SIP is spoken (RFC 7118): wss when this request came over TLS."""
    expires_at: datetime


class CallsView(View):
    calls: list[CallView]


class AgentsView(View):
    agents: list[AgentView]


class QueuesView(View):
    queues: list[QueueView]


class DoneView(View):
    call: CallView | None
    """The call as it now stands; null when it is over or no longer yours to see."""


class NothingView(View):
    """Done; there is nothing to tell."""


class RecordingView(View):
    name: str
    kind: RecordingKind
    """``call``: stereo, left what the caller said, right what he heard; ``leg``: one party; ``message``."""
    leg_id: str | None
    seconds: float
    bytes: int
    sha256: str
    codec: str
    """``flac``; ``slin`` or ``wav`` while it waits to be encoded; ``missing``: there is no file."""
    complete: bool
    """False: missing, or clearly shorter than what it is of."""
    href: str


class RecordingsView(View):
    recordings: list[RecordingView]


class OutcomeCountView(View):
    outcome: Outcome
    count: int


class InvitationsView(View):
    since: datetime
    until: datetime
    total: int
    outcomes: list[OutcomeCountView]
    """Every outcome, those that never happened with 0; they add up to ``total``."""


class ComponentView(View):
    standing: Standing
    detail: str


class HealthView(View):
    standing: Standing
    """The worst of the components."""
    components: dict[str, ComponentView]


class FaultView(View):
    reason: str
    """A stable word: one of the centre's reasons or of the API's own; see docs/wire.md."""
    message_zh: str
    message_en: str
    detail: str
    """Names the field or the fact; may be empty."""


class ProblemView(View):
    error: FaultView


def person_view(user_id: UserId, *, name_of: NameOf) -> PersonView:
    return PersonView(user_id=user_id, name=name_of(user_id))


def call_view(call: Call, *, sees_number: bool, name_of: NameOf) -> CallView:
    """The call as a viewer may see it; a masked number is masked in every leg and text of it."""

    def hide(text: str) -> str:
        # What the network sent is hostile: a lone surrogate would make the whole message unwritable.
        if not sees_number and call.caller:
            text = text.replace(call.caller, masked(call.caller))
        return clean_text(text)

    return CallView(
        call_id=call.call_id,
        version=call.version,
        phase=call.phase,
        line=call.line,
        dialled=clean_text(call.dialled),
        caller=hide(call.caller),
        caller_masked=not sees_number,
        queue=call.queue,
        arrived_at=call.arrived_at,
        queued_at=call.queued_at,
        answered_at=call.answered_at,
        answered_by=call.answered_by and person_view(call.answered_by, name_of=name_of),
        handled_by=[person_view(user, name_of=name_of) for user in call.handled_by],
        ended_at=call.ended_at,
        end_reason=call.end_reason,
        disposition=call.disposition,
        note=hide(call.note),
        rating=call.rating,
        ticket_number=call.ticket_number,
        legs=[_leg_view(leg, hide=hide, name_of=name_of) for leg in call.legs],
        steps=[_step_view(step, hide=hide, name_of=name_of) for step in call.steps],
    )


def _leg_view(leg: Leg, *, hide: Callable[[str], str], name_of: NameOf) -> LegView:
    return LegView(
        leg_id=leg.leg_id,
        role=leg.role,
        address=hide(leg.address),
        user_id=leg.user_id,
        name=name_of(leg.user_id) if leg.user_id else "",
        state=leg.state,
        place=leg.place,
        muted=leg.muted,
        asked_at=leg.asked_at,
        asked_by=leg.asked_by and person_view(leg.asked_by, name_of=name_of),
        answered_at=leg.answered_at,
        joined_at=leg.joined_at,
        ended_at=leg.ended_at,
        outcome=leg.outcome,
    )


def _step_view(step: Step, *, hide: Callable[[str], str], name_of: NameOf) -> StepView:
    return StepView(
        at=step.at,
        kind=step.kind,
        leg_id=step.leg_id,
        user_id=step.user_id,
        name=name_of(step.user_id) if step.user_id else "",
        detail=hide(step.detail),
    )


def agent_view(agent: Agent, *, now: Now) -> AgentView:
    ends_at = None
    if agent.wrap_up_until is not None:
        ends_at = now.utc + timedelta(seconds=agent.wrap_up_until - now.seconds)
    return AgentView(
        user_id=agent.user_id,
        name=agent.profile.name,
        department=agent.profile.department,
        phone=agent.profile.phone,
        phone_reachable=agent.phone_reachable,
        skills=dict(agent.profile.skills),
        roles=sorted(agent.profile.roles),
        state=agent.state,
        reason=agent.reason,
        since=agent.since,
        call_id=agent.call_id,
        after_call=agent.after_call,
        after_reason=agent.after_reason,
        wrap_up_ends_at=ends_at,
        version=agent.version,
    )


def specialist_view(agent: Agent) -> SpecialistView:
    return SpecialistView(
        user_id=agent.user_id,
        name=agent.profile.name,
        department=agent.profile.department,
        skills=dict(agent.profile.skills),
        state=agent.state,
        phone_reachable=agent.phone_reachable,
    )


def queue_view(queue: Queue, load: QueueLoad | None, *, now: Now) -> QueueView:
    waiting = load.waiting if load else 0
    since = now.utc - timedelta(seconds=load.longest_wait_seconds) if load and waiting else None
    return QueueView(
        queue_id=queue.queue_id,
        name=dict(queue.name),
        skill=queue.skill,
        waiting=waiting,
        longest_wait_since=since,
        ready=load.ready if load else 0,
        staffed=load.staffed if load else 0,
    )


def queue_name_view(queue: Queue) -> QueueNameView:
    return QueueNameView(queue_id=queue.queue_id, name=dict(queue.name), skill=queue.skill)


def health_view(components: Mapping[str, tuple[Standing, str]]) -> HealthView:
    worst = max(
        (standing for standing, _ in components.values()), key=list(Standing).index, default=Standing.OK
    )
    return HealthView(
        standing=worst,
        components={
            name: ComponentView(standing=standing, detail=detail)
            for name, (standing, detail) in components.items()
        },
    )


class TicketLineView(View):
    """A ticket as lists show it."""

    number: str
    status: TicketStatus
    line: str
    dialled: str
    caller: str
    caller_masked: bool
    agent: PersonView | None
    call_id: str
    opened_at: datetime
    accepted_at: datetime | None
    ended_at: datetime | None
    disposition: str | None
    rating: int | None
    """1 (very satisfied) to 5 (very dissatisfied), as pressed."""


class TicketView(TicketLineView):
    note: str
    call: CallView
    """With the time of every step and every party."""
    recordings: list[RecordingView]
    """Those this user may hear."""


class TicketsView(View):
    tickets: list[TicketLineView]
    """The newest first."""
    next: str | None
    """Give it as ``after`` for the next page; null on the last one."""


class CallRecordsView(View):
    calls: list[CallView]
    """The latest first."""
    next: str | None
    """Give it as ``after`` for the next page; null on the last one."""


def ticket_line_view(ticket: Ticket, *, sees_number: bool, name_of: NameOf) -> TicketLineView:
    return TicketLineView(**_ticket_facts(ticket, sees_number=sees_number, name_of=name_of))


def ticket_view(ticket: Ticket, *, sees_number: bool, hears: bool, name_of: NameOf) -> TicketView:
    call = call_view(ticket.call, sees_number=sees_number, name_of=name_of)
    return TicketView(
        **_ticket_facts(ticket, sees_number=sees_number, name_of=name_of),
        note=call.note,
        call=call,
        recordings=[recording_view(file, ticket.call) for file in ticket.recordings] if hears else [],
    )


def _ticket_facts(ticket: Ticket, *, sees_number: bool, name_of: NameOf) -> dict[str, Any]:
    return {
        "number": ticket.number,
        "status": ticket.status,
        "line": ticket.line,
        "dialled": ticket.dialled,
        "caller": ticket.caller if sees_number else masked(ticket.caller),
        "caller_masked": not sees_number,
        "agent": ticket.agent and person_view(ticket.agent, name_of=name_of),
        "call_id": ticket.call.call_id,
        "opened_at": ticket.opened_at,
        "accepted_at": ticket.accepted_at,
        "ended_at": ticket.call.ended_at,
        "disposition": ticket.disposition,
        "rating": ticket.rating,
    }


def recording_name(file: RecordingFile) -> str:
    return PurePosixPath(file.path).name


def recording_view(file: RecordingFile, call: Call) -> RecordingView:
    name = recording_name(file)
    return RecordingView(
        name=name,
        kind=file.kind,
        leg_id=file.leg_id,
        seconds=file.seconds,
        bytes=file.bytes,
        sha256=file.sha256,
        codec=file.codec,
        complete=is_complete(file, call),
        href=f"/api/v1/recordings/{file.call_id}/{name}",
    )
