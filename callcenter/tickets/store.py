"""Calls and tickets in the database: written in batches that may be repeated, read by whoever asks."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar, cast
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError
from sqlalchemy import ColumnElement, Select, and_, func, or_, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from callcenter.database import Database, clean_text
from callcenter.domain.agents import Agent, AgentState
from callcenter.domain.calls import (
    Call,
    CallId,
    EndReason,
    Leg,
    LegId,
    LegState,
    Outcome,
    Phase,
    Place,
    Role,
    Step,
    StepKind,
    UserId,
)
from callcenter.domain.messages import TicketOpened
from callcenter.domain.recordings import RecordingFile, RecordingKind
from callcenter.tickets import schema

_Item = TypeVar("_Item")
_SHANGHAI = ZoneInfo("Asia/Shanghai")
_CALL = TypeAdapter(Call)


class TicketStatus(StrEnum):
    DRAFT = "draft"
    """Opened when the call was answered."""
    ACCEPTED = "accepted"
    """受理: the call is over and the ticket stands."""


@dataclass(frozen=True, slots=True)
class Ticket:
    number: str
    """``YYYYMMDD-NNNNNN``: the day in Shanghai and the day's running number, without gaps."""
    status: TicketStatus
    line: str
    dialled: str
    caller: str
    agent: UserId | None
    """Who answered first."""
    opened_at: datetime
    accepted_at: datetime | None
    disposition: str | None
    note: str
    rating: int | None
    call: Call
    """With its steps and parties."""
    recordings: tuple[RecordingFile, ...]


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """The part of an agent that outlives the process; who he is stands in the directory."""

    user_id: UserId
    version: int
    state: AgentState
    reason: str
    since: datetime
    call_id: CallId | None = None
    after_call: AgentState = AgentState.READY
    after_reason: str = ""
    phone_reachable: bool = False
    wrap_up_until: datetime | None = None

    @classmethod
    def of(cls, agent: Agent) -> "AgentRecord | None":
        """The record of an agent; None for one to whom nothing has happened yet."""
        if agent.since is None:
            return None
        wrap_up_until = None
        if agent.wrap_up_until is not None:
            # The process' own seconds mean nothing to the next one.
            wrap_up_until = agent.since + timedelta(seconds=agent.wrap_up_until - agent.since_seconds)
        return cls(
            agent.user_id,
            agent.version,
            agent.state,
            agent.reason,
            agent.since,
            agent.call_id,
            agent.after_call,
            agent.after_reason,
            agent.phone_reachable,
            wrap_up_until,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written in one transaction."""

    calls: tuple[Call, ...] = ()
    agents: tuple[AgentRecord, ...] = ()
    recordings: tuple[RecordingFile, ...] = ()

    def __len__(self) -> int:
        return len(self.calls) + len(self.agents) + len(self.recordings)

    def singles(self) -> "Iterable[Batch]":
        """Every thing of the batch in one of its own, in the order in which they are written."""
        yield from (Batch(calls=(call,)) for call in self.calls)
        yield from (Batch(agents=(agent,)) for agent in self.agents)
        yield from (Batch(recordings=(file,)) for file in self.recordings)


def call_json(call: Call) -> str:
    """The whole call as JSON that ``call_from_json`` reads back; lone surrogates become U+FFFD."""
    try:
        return _CALL.dump_json(call).decode()
    except PydanticSerializationError:
        return _CALL.dump_json(_without_surrogates(call)).decode()


def call_from_json(text: str) -> Call:
    return _CALL.validate_json(text)


def _without_surrogates(value: _Item) -> _Item:
    """A copy of the value, a dataclass or what one is made of, with all text inside it cleaned."""
    cleaned: object = value
    if isinstance(value, StrEnum):
        pass
    elif isinstance(value, str):
        cleaned = clean_text(value)
    elif isinstance(value, tuple):
        cleaned = tuple(_without_surrogates(item) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        cleaned = replace(
            value, **{field.name: _without_surrogates(getattr(value, field.name)) for field in fields(value)}
        )
    return cast("_Item", cleaned)


class _TakenBack(Exception):  # noqa: N818 - ends a transaction that shall leave nothing
    pass


def _never_was() -> Batch:
    now, call_id, nobody = datetime.now(UTC), CallId("never-was"), UserId("nobody")
    caller = Leg(LegId(call_id), Role.CALLER, "", None, LegState.UP, Place.ALONE, now, answered_at=now)
    call = Call(
        call_id,
        line="",
        flow_version="",
        dialled="",
        caller="",
        arrived_at=now,
        phase=Phase.ENDED,
        legs=(caller,),
        steps=(Step(now, StepKind.ARRIVED, LegId(call_id)),),
        answered_at=now,
        ended_at=now,
    )
    agent = AgentRecord(nobody, 0, AgentState.READY, "", now)
    file = RecordingFile(call_id, LegId(call_id), RecordingKind.LEG, "never-was", 0.0, 0, "", "flac")
    return Batch((call,), (agent,), (file,))


class TicketStore:
    """Everything about calls that outlives the process. Every method may raise DatabaseAway."""

    def __init__(self, database: Database) -> None:
        self._database = database
        table = schema.calls
        insert = database.insert(table)
        changing = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
        # Made once: it costs more than its use.
        self._newer_calls = insert.on_conflict_do_update(
            index_elements=["call_id"], set_=changing, where=table.c.version < insert.excluded.version
        ).returning(table.c.call_id)

    # --- writing --------------------------------------------------------------------------------------------

    async def apply(self, batch: Batch) -> list[TicketOpened]:
        """Write the batch in one transaction; doing it again, or with an older version, changes nothing.

        Says of every call in the batch that does not know its ticket's number yet which one it is, also when the
        ticket was opened before. Unstorable when the database refuses a value; then nothing of the batch is written.
        """
        async with self._database.write() as connection:
            return await self._write(connection, batch)

    async def prepare(self) -> None:
        """Write a call that never was, and take it back: each statement is compiled now and not while a phone rings.

        Compiling all of them takes as long as a hundred calls.
        """
        with suppress(_TakenBack):
            async with self._database.write() as connection:
                await self._write(connection, _never_was())
                raise _TakenBack

    async def _write(self, connection: AsyncConnection, batch: Batch) -> list[TicketOpened]:
        opened = await self._write_calls(connection, batch.calls)
        await self._write_agents(connection, batch.agents)
        await self._write_recordings(connection, batch.recordings)
        return opened

    async def _write_calls(self, connection: AsyncConnection, batch: Sequence[Call]) -> list[TicketOpened]:
        newest: dict[CallId, Call] = {}
        for call in batch:
            if call.call_id not in newest or newest[call.call_id].version <= call.version:
                newest[call.call_id] = call
        if not newest:
            return []
        # One order for every writer: two of them never wait for each other.
        ordered = [newest[call_id] for call_id in sorted(newest)]
        result = await connection.execute(self._newer_calls, [_call_row(call) for call in ordered])
        written = set(result.scalars())
        changed = [call for call in ordered if call.call_id in written]
        await self._write_steps(connection, changed)
        await self._write_parties(connection, changed)
        return await self._write_tickets(connection, ordered, changed)

    async def _write_steps(self, connection: AsyncConnection, changed: Sequence[Call]) -> None:
        table = schema.call_steps
        counts = select(table.c.call_id, func.count()).group_by(table.c.call_id)
        known = {
            row[0]: row[1]
            for some in _chunks([call.call_id for call in changed])
            for row in await connection.execute(counts.where(table.c.call_id.in_(some)))
        }
        # Steps are only ever added, so those past the number already there are the new ones.
        rows = [
            {
                "call_id": call.call_id,
                "seq": seq,
                "at": step.at,
                "kind": step.kind.value,
                "leg_id": step.leg_id,
                "user_id": step.user_id,
                "detail": step.detail,
            }
            for call in changed
            for seq, step in enumerate(call.steps, start=1)
            if seq > known.get(call.call_id, 0)
        ]
        if rows:
            await connection.execute(self._database.insert(table), rows)

    async def _write_parties(self, connection: AsyncConnection, changed: Sequence[Call]) -> None:
        rows = [
            {
                "call_id": call.call_id,
                "leg_id": leg.leg_id,
                "role": leg.role.value,
                "user_id": leg.user_id,
                "address": leg.address,
                "asked_at": leg.asked_at,
                "asked_by": leg.asked_by,
                "answered_at": leg.answered_at,
                "joined_at": leg.joined_at,
                "ended_at": leg.ended_at,
                "outcome": leg.outcome and leg.outcome.value,
            }
            for call in changed
            for leg in call.legs
        ]
        if rows:
            await connection.execute(self._database.upsert(schema.call_parties), rows)

    async def _write_tickets(
        self, connection: AsyncConnection, batch: Sequence[Call], changed: Sequence[Call]
    ) -> list[TicketOpened]:
        answered = [call for call in batch if call.answered_at is not None]
        numbers = await _numbers_of(connection, [call.call_id for call in answered])
        # Only what was written now: an older version of a call neither opens nor changes its ticket.
        due = [(call.answered_at, call) for call in changed if call.answered_at is not None]
        days: dict[date, list[CallId]] = {}
        for answered_at, call in sorted(due, key=lambda pair: (pair[0], pair[1].call_id)):
            if call.call_id not in numbers:
                days.setdefault(answered_at.astimezone(_SHANGHAI).date(), []).append(call.call_id)
        for day, call_ids in sorted(days.items()):
            last = await self._count_up(connection, day, by=len(call_ids))
            for number, call_id in enumerate(call_ids, start=last - len(call_ids) + 1):
                numbers[call_id] = f"{day:%Y%m%d}-{number:06d}"
        rows = [_ticket_row(call, numbers[call.call_id], answered_at) for answered_at, call in due]
        if rows:
            await connection.execute(self._database.upsert(schema.tickets), rows)
        return [
            TicketOpened(call.call_id, numbers[call.call_id])
            for call in answered
            if call.call_id in numbers and call.ticket_number != numbers[call.call_id]
        ]

    async def _count_up(self, connection: AsyncConnection, day: date, *, by: int) -> int:
        """The day's last number after taking `by` of them.

        The row stays locked until the transaction ends, and one that fails gives its numbers back: so there are no
        gaps, with several writers too (a PostgreSQL sequence would leave some).
        """
        table = schema.ticket_numbers
        count = (
            self._database.insert(table)
            .values(day=day, last=by)
            .on_conflict_do_update(index_elements=["day"], set_={"last": table.c.last + by})
            .returning(table.c.last)
        )
        last: int = (await connection.execute(count)).scalar_one()
        return last

    async def _write_agents(self, connection: AsyncConnection, batch: Sequence[AgentRecord]) -> None:
        if not batch:
            return
        # The log has every change, also those that came within one batch.
        log = schema.agent_states
        await connection.execute(
            self._database.insert(log).on_conflict_do_nothing(),
            [
                {
                    "user_id": agent.user_id,
                    "at": agent.since,
                    "state": agent.state.value,
                    "reason": agent.reason,
                    "call_id": agent.call_id,
                }
                for agent in batch
            ],
        )
        newest = {
            agent.user_id: agent for agent in sorted(batch, key=lambda agent: (agent.since, agent.version))
        }
        table = schema.agents_now
        insert = self._database.insert(table)
        changing = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
        # By the time first: a restarted engine counts its versions from the start again.
        newer = or_(
            table.c.since < insert.excluded.since,
            and_(table.c.since == insert.excluded.since, table.c.version < insert.excluded.version),
        )
        await connection.execute(
            insert.on_conflict_do_update(index_elements=["user_id"], set_=changing, where=newer),
            [
                {
                    "user_id": agent.user_id,
                    "version": agent.version,
                    "state": agent.state.value,
                    "reason": agent.reason,
                    "since": agent.since,
                    "call_id": agent.call_id,
                    "after_call": agent.after_call.value,
                    "after_reason": agent.after_reason,
                    "phone_reachable": agent.phone_reachable,
                    "wrap_up_until": agent.wrap_up_until,
                }
                for _, agent in sorted(newest.items())
            ],
        )

    async def _write_recordings(self, connection: AsyncConnection, batch: Sequence[RecordingFile]) -> None:
        if batch:
            await connection.execute(
                self._database.upsert(schema.recordings),
                [
                    {
                        "call_id": file.call_id,
                        "kind": file.kind.value,
                        "leg_id": file.leg_id or "",
                        "path": file.path,
                        "seconds": file.seconds,
                        "bytes": file.bytes,
                        "sha256": file.sha256,
                        "codec": file.codec,
                    }
                    for file in batch
                ],
            )

    # --- reading --------------------------------------------------------------------------------------------

    async def ticket(self, number: str) -> Ticket | None:
        async with self._database.read() as connection:
            found = await _tickets(connection, _TICKETS.where(schema.tickets.c.number == number))
        return found[0] if found else None

    async def ticket_of(self, call_id: CallId) -> Ticket | None:
        async with self._database.read() as connection:
            found = await _tickets(connection, _TICKETS.where(schema.tickets.c.call_id == call_id))
        return found[0] if found else None

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
    ) -> list[Ticket]:
        """Tickets opened in [since, until), the highest number first; `after` is the last number of the page before."""
        table = schema.tickets.c
        asked = _where(
            (line, lambda: table.line == line),
            (caller, lambda: table.caller == caller),
            (agent, lambda: table.agent == agent),
            (status, lambda: table.status == status),
            (since, lambda: table.opened_at >= since),
            (until, lambda: table.opened_at < until),
            (after, lambda: table.number < after),
        )
        query = _TICKETS.where(*asked).order_by(table.number.desc()).limit(limit)
        async with self._database.read() as connection:
            return await _tickets(connection, query)

    async def call(self, call_id: CallId) -> Call | None:
        async with self._database.read() as connection:
            found = await connection.execute(_CALLS.where(schema.calls.c.call_id == call_id))
            row = found.one_or_none()
        return None if row is None else _call_from(row.state, row.number)

    async def calls(
        self,
        *,
        line: str | None = None,
        caller: str | None = None,
        agent: UserId | None = None,
        answered: bool | None = None,
        end_reason: EndReason | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        after: CallId | None = None,
    ) -> list[Call]:
        """Calls that arrived in [since, until), the latest first; `agent` took part or was rung.

        `after` is the last call of the page before.
        """
        table, party = schema.calls.c, schema.call_parties.c
        took_part = select(party.call_id).where(party.user_id == agent)
        last = select(table.arrived_at).where(table.call_id == after).scalar_subquery()
        asked = _where(
            (line, lambda: table.line == line),
            (caller, lambda: table.caller == caller),
            (agent, lambda: table.call_id.in_(took_part)),
            (answered, lambda: table.answered_at.is_not(None) if answered else table.answered_at.is_(None)),
            (end_reason, lambda: table.end_reason == end_reason),
            (since, lambda: table.arrived_at >= since),
            (until, lambda: table.arrived_at < until),
            (
                after,
                lambda: or_(table.arrived_at < last, and_(table.arrived_at == last, table.call_id < after)),
            ),
        )
        query = _CALLS.where(*asked).order_by(table.arrived_at.desc(), table.call_id.desc()).limit(limit)
        async with self._database.read() as connection:
            return [_call_from(row.state, row.number) for row in await connection.execute(query)]

    async def open_calls(self, *, given_up_since: datetime | None = None) -> list[Call]:
        """The calls a new engine has to do with, the oldest first.

        Those that had not ended when they were last written, ended ones whose agent is wrapping up, and those that
        arrived since `given_up_since` and were left to the fallback: their callers may still be on the line.
        """
        calls, now = schema.calls.c, schema.agents_now.c
        # One look-up in an index for each, which no million of old calls makes slower.
        wanted = [
            select(calls.call_id).where(calls.phase != Phase.ENDED.value),
            select(now.call_id).where(now.state == AgentState.WRAP_UP.value, now.call_id.is_not(None)),
        ]
        if given_up_since is not None:
            given_up = calls.end_reason == EndReason.FAULT.value
            wanted.append(select(calls.call_id).where(calls.arrived_at >= given_up_since, given_up))
        query = _CALLS.where(calls.call_id.in_(union(*wanted))).order_by(calls.arrived_at, calls.call_id)
        async with self._database.read() as connection:
            return [_call_from(row.state, row.number) for row in await connection.execute(query)]

    async def ended(self, call_ids: Collection[CallId]) -> set[CallId]:
        """Those of these calls whose record is closed."""
        table = schema.calls.c
        query = select(table.call_id).where(table.phase == Phase.ENDED.value)
        found: set[CallId] = set()
        async with self._database.read() as connection:
            for some in _chunks([*call_ids]):
                found.update(
                    CallId(row) for row in await connection.scalars(query.where(table.call_id.in_(some)))
                )
        return found

    async def agent_states(self) -> dict[UserId, AgentRecord]:
        """What each agent was last known to do."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(schema.agents_now))
            return {
                UserId(row.user_id): AgentRecord(
                    UserId(row.user_id),
                    row.version,
                    AgentState(row.state),
                    row.reason,
                    row.since,
                    row.call_id and CallId(row.call_id),
                    AgentState(row.after_call),
                    row.after_reason,
                    row.phone_reachable,
                    row.wrap_up_until,
                )
                for row in rows
            }

    async def agent_log(
        self, user_id: UserId, *, since: datetime, until: datetime
    ) -> list[tuple[datetime, AgentState, str]]:
        """When the agent changed to which state and why, in [since, until)."""
        table = schema.agent_states.c
        query = (
            select(table.at, table.state, table.reason)
            .where(table.user_id == user_id, table.at >= since, table.at < until)
            .order_by(table.at)
        )
        async with self._database.read() as connection:
            return [(row.at, AgentState(row.state), row.reason) for row in await connection.execute(query)]

    async def recordings(self, call_id: CallId) -> list[RecordingFile]:
        async with self._database.read() as connection:
            return (await _recordings(connection, [call_id])).get(call_id, [])

    async def calls_without_recordings(self, *, since: datetime, limit: int = 1000) -> list[Call]:
        """Ended calls that arrived at or after `since` and have no recording's row.

        For the start after a crash: ``Recordings.finish`` describes again the files whose rows were lost.
        """
        table = schema.calls.c
        has_one = select(schema.recordings.c.call_id).where(schema.recordings.c.call_id == table.call_id)
        # By the time of the end, not by the phase, whose index would lead through all ended calls.
        query = _CALLS.where(
            table.ended_at.is_not(None), table.arrived_at >= since, ~has_one.exists()
        ).order_by(table.arrived_at)
        async with self._database.read() as connection:
            return [_call_from(row.state, row.number) for row in await connection.execute(query.limit(limit))]

    async def invitation_outcomes(self, *, since: datetime, until: datetime) -> dict[Outcome, int]:
        """How the invitations made by agents in [since, until) ended; those still ringing are not counted."""
        party = schema.call_parties.c
        query = (
            select(party.outcome, func.count())
            .where(
                party.asked_by.is_not(None),
                party.outcome.is_not(None),
                party.asked_at >= since,
                party.asked_at < until,
            )
            .group_by(party.outcome)
        )
        async with self._database.read() as connection:
            counted = {Outcome(row[0]): int(row[1]) for row in await connection.execute(query)}
        return {outcome: counted.get(outcome, 0) for outcome in Outcome}


_LIVING = [phase.value for phase in Phase if phase is not Phase.ENDED]
_CALLS = select(schema.calls.c.state, schema.tickets.c.number).join_from(
    schema.calls, schema.tickets, isouter=True
)
_TICKETS = select(schema.tickets, schema.calls.c.state).join_from(schema.tickets, schema.calls)


def _call_row(call: Call) -> dict[str, object]:
    return {
        "call_id": call.call_id,
        "version": call.version,
        "line": call.line,
        "dialled": call.dialled,
        "caller": call.caller,
        "queue": call.queue,
        "phase": call.phase.value,
        "arrived_at": call.arrived_at,
        "queued_at": call.queued_at,
        "answered_at": call.answered_at,
        "answered_by": call.answered_by,
        "ended_at": call.ended_at,
        "end_reason": call.end_reason and call.end_reason.value,
        "disposition": call.disposition,
        "rating": call.rating,
        "state": call_json(call),
    }


def _ticket_row(call: Call, number: str, answered_at: datetime) -> dict[str, object]:
    over = call.phase is Phase.ENDED
    return {
        "number": number,
        "call_id": call.call_id,
        "status": (TicketStatus.ACCEPTED if over else TicketStatus.DRAFT).value,
        "line": call.line,
        "dialled": call.dialled,
        "caller": call.caller,
        "agent": call.answered_by,
        "opened_at": answered_at,
        "accepted_at": call.ended_at if over else None,
        "disposition": call.disposition,
        "note": call.note,
        "rating": call.rating,
    }


def _call_from(state: str, number: str | None) -> Call:
    call = call_from_json(state)
    # The state was written before the number was known to the engine; the ticket's row knows better.
    return call if number is None else replace(call, ticket_number=number)


async def _numbers_of(connection: AsyncConnection, call_ids: Sequence[CallId]) -> dict[CallId, str]:
    table = schema.tickets.c
    return {
        CallId(row.call_id): row.number
        for some in _chunks(call_ids)
        for row in await connection.execute(
            select(table.call_id, table.number).where(table.call_id.in_(some))
        )
    }


async def _tickets(connection: AsyncConnection, query: Select[Any]) -> list[Ticket]:
    rows = (await connection.execute(query)).all()
    recordings = await _recordings(connection, [row.call_id for row in rows])
    return [
        Ticket(
            row.number,
            TicketStatus(row.status),
            row.line,
            row.dialled,
            row.caller,
            row.agent,
            row.opened_at,
            row.accepted_at,
            row.disposition,
            row.note,
            row.rating,
            _call_from(row.state, row.number),
            tuple(recordings.get(row.call_id, ())),
        )
        for row in rows
    ]


async def _recordings(
    connection: AsyncConnection, call_ids: Sequence[CallId]
) -> dict[CallId, list[RecordingFile]]:
    table = schema.recordings.c
    query = select(schema.recordings).order_by(table.call_id, table.kind, table.leg_id)
    found: dict[CallId, list[RecordingFile]] = {}
    for some in _chunks(call_ids):
        for row in await connection.execute(query.where(table.call_id.in_(some))):
            file = RecordingFile(
                row.call_id,
                LegId(row.leg_id) if row.leg_id else None,
                RecordingKind(row.kind),
                row.path,
                row.seconds,
                row.bytes,
                row.sha256,
                row.codec,
            )
            found.setdefault(row.call_id, []).append(file)
    return found


def _where(*asked: tuple[object, Callable[[], ColumnElement[bool]]]) -> list[ColumnElement[bool]]:
    return [condition() for value, condition in asked if value is not None]


def _chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    # Both databases take some 32,000 parameters a statement.
    for start in range(0, len(items), 1000):
        yield items[start : start + 1000]
