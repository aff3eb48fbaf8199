"""Calls, tickets and what stands round them, on SQLite and on PostgreSQL."""

import asyncio
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select, text

import callcenter.directory.schema  # noqa: F401 - the whole metadata
from callcenter.database import (
    Database,
    DatabaseAway,
    Unstorable,
    UnusableDatabase,
    metadata,
    migrate,
    newest_schema_version,
    schema_version,
)
from callcenter.domain.agents import Agent, AgentState, Profile, UserRole
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
from callcenter.tickets.store import AgentRecord, Batch, TicketStatus, TicketStore, call_from_json, call_json

if TYPE_CHECKING:
    from database_fixture import PostgresServer

pytest_plugins = ["database_fixture"]

NOON = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)
"""12:00 in Shanghai."""
AGENT1 = UserId("agent1")


def a_call(number: int = 1, *, at: datetime = NOON, **changes: object) -> Call:
    call_id = CallId(f"ast1-1763763843.{number}")
    caller = Leg(call_id, Role.CALLER, "13800001111", None, LegState.UP, Place.ALONE, at, answered_at=at)
    call = Call(
        call_id,
        line="12345",
        flow_version="1",
        dialled="12345",
        caller="13800001111",
        arrived_at=at,
        phase=Phase.IN_FLOW,
        legs=(caller,),
        steps=(Step(at, StepKind.ARRIVED, call_id),),
        version=1,
    )
    return replace(call, **changes)


def answered(call: Call, *, at: datetime | None = None) -> Call:
    at = at or call.arrived_at + timedelta(seconds=5)
    leg = Leg(
        LegId(f"{call.call_id}-2"),
        Role.AGENT,
        "1001",
        AGENT1,
        LegState.UP,
        Place.TOGETHER,
        at,
        answered_at=at,
        joined_at=at,
        outcome=Outcome.JOINED,
    )
    return replace(
        call.with_leg(leg),
        phase=Phase.TALKING,
        answered_at=at,
        answered_by=AGENT1,
        handled_by=(AGENT1,),
        steps=(*call.steps, Step(at, StepKind.ANSWERED, leg.leg_id, AGENT1)),
        version=call.version + 1,
    )


def ended(call: Call, *, at: datetime | None = None, reason: EndReason = EndReason.COMPLETED) -> Call:
    at = at or call.arrived_at + timedelta(seconds=60)
    return replace(
        call,
        phase=Phase.ENDED,
        legs=tuple(replace(leg, state=LegState.ENDED, ended_at=at) for leg in call.legs),
        steps=(*call.steps, Step(at, StepKind.ENDED)),
        ended_at=at,
        end_reason=reason,
        version=call.version + 1,
    )


@pytest.fixture
def store(database: Database) -> TicketStore:
    return TicketStore(database)


async def rows_of(database: Database, table: str) -> int:
    async with database.read() as connection:
        return (
            await connection.execute(select(func.count()).select_from(metadata.tables[table]))
        ).scalar_one()


# --- schema -------------------------------------------------------------------------------------------------


MIGRATED = [f"Database migrated to version {version}." for version in ("0001", "0002", "0003")]


async def test_an_empty_database_is_migrated_and_agrees_with_the_models(empty_database_url: str) -> None:
    assert await schema_version(empty_database_url) is None
    told: list[str] = []
    await migrate(empty_database_url, progress=told.append)
    assert told == MIGRATED
    assert await schema_version(empty_database_url) == newest_schema_version() == "0003"

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, metadata)

    async with Database.connect(empty_database_url) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_new_sqlite_file_and_what_lies_beside_it_are_their_owners_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    await migrate(url, progress=lambda _: None)
    async with Database.connect(url) as database, database.read() as connection:
        await connection.execute(text("SELECT 1"))
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o600}


async def test_what_prepares_the_statements_leaves_nothing(database_url: str) -> None:
    async with Database.connect(database_url) as database:
        await TicketStore(database).prepare()
        async with database.read() as connection:
            for table in metadata.sorted_tables:
                assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == 0


async def test_migrating_again_does_nothing(database_url: str) -> None:
    told: list[str] = []
    await migrate(database_url, progress=told.append)
    assert told == []


async def test_two_programs_migrating_at_once_both_succeed(empty_database_url: str) -> None:
    told: list[str] = []
    await asyncio.gather(*(migrate(empty_database_url, progress=told.append) for _ in range(2)))
    assert told == MIGRATED


async def test_a_database_of_a_newer_program_is_left_alone(database_url: str) -> None:
    async with Database.connect(database_url) as database, database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UnusableDatabase, match=r"version 9999.*newer"):
        await migrate(database_url, progress=lambda _: None)
    assert await schema_version(database_url) == "9999"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://x/y", "mysql databases are not supported"),
        ("nonsense", "cannot be read"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_other_databases_are_refused_with_a_sentence(url: str, said: str) -> None:
    with pytest.raises(UnusableDatabase, match=said):
        Database.connect(url)


def test_the_address_is_shown_without_its_password() -> None:
    assert "geheim" not in Database.connect("postgresql://u:geheim@localhost/x").url


async def test_an_absent_server_and_an_absent_table_are_a_database_that_is_away(
    empty_database_url: str,
) -> None:
    async with Database.connect("postgresql://tester@127.0.0.1:23999/nowhere") as absent:
        with pytest.raises(DatabaseAway):
            await TicketStore(absent).open_calls()
    async with Database.connect(empty_database_url) as empty:
        with pytest.raises(DatabaseAway):
            await TicketStore(empty).open_calls()


async def test_sqlite_is_set_up_to_lose_no_committed_transaction(sqlite_url: str) -> None:
    async with Database.connect(sqlite_url) as database, database.read() as connection:
        found = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 2, 1, 5000]


# --- calls --------------------------------------------------------------------------------------------------


async def test_a_call_is_read_back_as_it_was_written(store: TicketStore) -> None:
    call = a_call()
    assert await store.apply(Batch(calls=(call,))) == []
    assert await store.call(call.call_id) == call
    assert await store.call(CallId("nobody-1.1")) is None


async def test_an_older_version_never_overwrites_a_newer(store: TicketStore, database: Database) -> None:
    first = a_call()
    last = ended(answered(first))
    await store.apply(Batch(calls=(last,)))
    await store.apply(Batch(calls=(first,)))
    await store.apply(Batch(calls=(answered(first),)))
    found = await store.call(first.call_id)
    assert found == replace(last, ticket_number="20261120-000001")
    [ticket] = await store.tickets()
    assert ticket.status is TicketStatus.ACCEPTED
    assert await rows_of(database, "call_steps") == 3


async def test_the_same_batch_twice_changes_nothing_and_tells_the_number_again(
    store: TicketStore, database: Database
) -> None:
    batch = Batch(
        calls=tuple(answered(a_call(number)) for number in range(3)),
        agents=(AgentRecord(AGENT1, 4, AgentState.TALKING, "", NOON, CallId("x-1.1")),),
        recordings=(a_recording(a_call(1)),),
    )
    told = await store.apply(batch)
    counts = [await rows_of(database, table.name) for table in metadata.sorted_tables]
    assert (
        await store.apply(batch)
        == told
        == [TicketOpened(a_call(number).call_id, f"20261120-00000{number + 1}") for number in range(3)]
    )
    assert [await rows_of(database, table.name) for table in metadata.sorted_tables] == counts


async def test_a_call_that_knows_its_ticket_is_not_told_again(store: TicketStore) -> None:
    call = answered(a_call())
    [told] = await store.apply(Batch(calls=(call,)))
    known = replace(call, ticket_number=told.number, version=call.version + 1)
    assert await store.apply(Batch(calls=(known,))) == []


async def test_two_versions_in_one_batch_leave_the_newer(store: TicketStore) -> None:
    call = a_call()
    await store.apply(Batch(calls=(answered(call), call)))
    found = await store.call(call.call_id)
    assert found is not None
    assert found.version == 2


async def test_steps_and_parties_have_their_rows(store: TicketStore, database: Database) -> None:
    call = a_call()
    for version in (call, answered(call), ended(answered(call))):
        await store.apply(Batch(calls=(version,)))
    async with database.read() as connection:
        steps = (await connection.execute(select(schema.call_steps).order_by(schema.call_steps.c.seq))).all()
        parties = (await connection.execute(select(schema.call_parties).order_by("leg_id"))).all()
    assert [(row.seq, row.kind) for row in steps] == [(1, "arrived"), (2, "answered"), (3, "ended")]
    assert steps[0].at == NOON
    assert [(row.role, row.user_id, row.outcome) for row in parties] == [
        ("caller", None, None),
        ("agent", "agent1", "joined"),
    ]
    assert parties[1].ended_at == NOON + timedelta(seconds=60)


async def test_open_calls_are_those_to_adopt(store: TicketStore) -> None:
    living, over = answered(a_call(2)), ended(a_call(1))
    await store.apply(Batch(calls=(living, over)))
    assert await store.open_calls() == [replace(living, ticket_number="20261120-000001")]


async def test_a_wrap_up_and_its_ended_call_are_there_for_the_next_engine(store: TicketStore) -> None:
    """Given an agent wrapping up when the engine dies, then the next one learns how long he has and of which call."""
    over = ended(answered(a_call(1)))
    profile = Profile(AGENT1, "agent1", frozenset({UserRole.AGENT}), "1001")
    agent = Agent(
        profile,
        AgentState.WRAP_UP,
        since=NOON,
        since_seconds=500.0,
        call_id=over.call_id,
        wrap_up_until=530.0,
        version=3,
    )
    record = AgentRecord.of(agent)
    assert record is not None
    await store.apply(Batch(calls=(over, ended(a_call(2))), agents=(record,)))
    assert [call.call_id for call in await store.open_calls()] == [over.call_id]
    assert await store.agent_states() == {AGENT1: record}
    assert record.wrap_up_until == NOON + timedelta(seconds=30)
    rested = replace(record, state=AgentState.READY, since=NOON + timedelta(seconds=30), wrap_up_until=None)
    await store.apply(Batch(agents=(rested,)))
    assert await store.open_calls() == []


async def test_callers_left_to_the_fallback_may_still_be_there(store: TicketStore) -> None:
    left = [ended(a_call(1), reason=EndReason.FAULT)]
    await store.apply(Batch(calls=(*left, ended(a_call(3)))))
    assert await store.open_calls() == []
    assert await store.open_calls(given_up_since=NOON) == left
    assert await store.open_calls(given_up_since=NOON + timedelta(seconds=1)) == []


async def test_calls_are_found_by_what_is_asked(store: TicketStore) -> None:
    later = NOON + timedelta(minutes=5)
    lost = ended(a_call(1), reason=EndReason.ABANDONED_WAITING)
    taken = ended(answered(a_call(2, at=later, caller="02012345678", line="96500")))
    await store.apply(Batch(calls=(lost, taken)))

    async def found(**asked: object) -> list[str]:
        return [call.call_id for call in await store.calls(**asked)]

    assert await found() == [taken.call_id, lost.call_id]
    assert await found(limit=1) == [taken.call_id]
    assert await found(limit=1, after=taken.call_id) == [lost.call_id]
    assert await found(after=lost.call_id) == []
    assert await found(line="96500") == [taken.call_id]
    assert await found(caller="13800001111") == [lost.call_id]
    assert await found(agent=AGENT1) == [taken.call_id]
    assert await found(answered=False) == [lost.call_id]
    assert await found(answered=True) == [taken.call_id]
    assert await found(end_reason=EndReason.ABANDONED_WAITING) == [lost.call_id]
    assert await found(since=later) == [taken.call_id]
    assert await found(until=later) == [lost.call_id]


async def test_pages_hold_every_call_once_also_when_many_came_in_one_instant(store: TicketStore) -> None:
    await store.apply(Batch(calls=tuple(a_call(number) for number in range(25))))
    seen: list[CallId] = []
    while page := await store.calls(limit=7, after=seen[-1] if seen else None):
        seen += [call.call_id for call in page]
    assert len(seen) == len(set(seen)) == 25


# --- tickets ------------------------------------------------------------------------------------------------


async def test_a_ticket_is_a_draft_from_the_answer_and_accepted_when_the_call_has_ended(
    store: TicketStore,
) -> None:
    call = answered(a_call())
    [told] = await store.apply(Batch(calls=(call,)))
    draft = await store.ticket(told.number)
    assert draft is not None
    assert (draft.status, draft.accepted_at, draft.agent) == (TicketStatus.DRAFT, None, AGENT1)
    over = replace(ended(call), disposition="answered", note="咨询公积金", rating=1)
    await store.apply(Batch(calls=(over,), recordings=(a_recording(call),)))
    ticket = await store.ticket_of(call.call_id)
    assert ticket is not None
    assert ticket.number == told.number == "20261120-000001"
    assert (ticket.line, ticket.dialled, ticket.caller) == ("12345", "12345", "13800001111")
    assert (ticket.disposition, ticket.note, ticket.rating) == ("answered", "咨询公积金", 1)
    assert (ticket.opened_at, ticket.accepted_at) == (call.answered_at, over.ended_at)
    assert [step.kind for step in ticket.call.steps] == [StepKind.ARRIVED, StepKind.ANSWERED, StepKind.ENDED]
    assert ticket.recordings == (a_recording(call),)


async def test_a_caller_who_hangs_up_before_the_answer_leaves_a_call_and_no_ticket(
    store: TicketStore,
) -> None:
    call = ended(a_call(), reason=EndReason.ABANDONED_RINGING)
    assert await store.apply(Batch(calls=(call,))) == []
    assert await store.tickets() == []
    assert (await store.calls())[0].end_reason is EndReason.ABANDONED_RINGING


async def test_numbers_count_by_the_day_in_shanghai(store: TicketStore) -> None:
    midnight = datetime(2026, 11, 20, 16, 0, tzinfo=UTC)
    last = answered(a_call(1, at=midnight), at=midnight - timedelta(microseconds=1))
    first = answered(a_call(2, at=midnight), at=midnight)
    told = await store.apply(Batch(calls=(first, last)))
    assert {ticket.call_id: ticket.number for ticket in told} == {
        last.call_id: "20261120-000001",
        first.call_id: "20261121-000001",
    }


async def test_numbers_have_no_gap_when_a_transaction_fails(store: TicketStore) -> None:
    await store.apply(Batch(calls=(answered(a_call(1)),)))
    bad = replace(answered(a_call(3)), arrived_at=datetime(2026, 11, 20))  # noqa: DTZ001 - naive is the point
    with pytest.raises(Unstorable):
        await store.apply(Batch(calls=(answered(a_call(2)), bad)))
    [told] = await store.apply(Batch(calls=(answered(a_call(2)),)))
    assert told.number == "20261120-000002"


async def test_two_writers_on_one_database_number_without_gap_or_double(database_url: str) -> None:
    async with Database.connect(database_url) as one, Database.connect(database_url) as two:
        stores = [TicketStore(one), TicketStore(two)]

        async def write(store: TicketStore, numbers: range) -> None:
            for number in numbers:
                await store.apply(Batch(calls=(answered(a_call(number)), answered(a_call(number + 1)))))

        # Overlapping: both writers bring the calls 20…40.
        await asyncio.gather(write(stores[0], range(40)), write(stores[1], range(60, 19, -1)))
        tickets = await stores[0].tickets(limit=1000)
    assert len(tickets) == 62
    assert [ticket.number for ticket in tickets] == [f"20261120-{number:06d}" for number in range(62, 0, -1)]


async def test_tickets_are_found_by_what_is_asked(store: TicketStore) -> None:
    first, second = answered(a_call(1)), ended(answered(a_call(2, caller="110", line="96500")))
    await store.apply(Batch(calls=(first,)))
    await store.apply(Batch(calls=(second,)))

    async def found(**asked: object) -> list[str]:
        return [ticket.call.call_id for ticket in await store.tickets(**asked)]

    assert await found() == [second.call_id, first.call_id]
    assert await found(limit=1, after="20261120-000002") == [first.call_id]
    assert await found(line="96500") == [second.call_id]
    assert await found(caller="110") == [second.call_id]
    assert await found(agent=AGENT1, status=TicketStatus.DRAFT) == [first.call_id]
    assert await found(agent=UserId("agent2")) == []
    assert await found(since=NOON + timedelta(hours=1)) == []
    assert await found(until=NOON + timedelta(hours=1)) == [second.call_id, first.call_id]


# --- agents, recordings, outcomes -----------------------------------------------------------------------------


def an_agent(state: AgentState, *, at: datetime | None, version: int, reason: str = "") -> AgentRecord:
    agent = Agent(Profile(AGENT1, "张伟", frozenset()), state, reason, at, version=version)
    record = AgentRecord.of(agent)
    assert record is not None
    return record


def test_an_agent_to_whom_nothing_has_happened_has_no_record() -> None:
    assert AgentRecord.of(Agent(Profile(AGENT1, "张伟", frozenset()))) is None


async def test_every_change_of_an_agent_is_logged_and_the_last_one_stands(store: TicketStore) -> None:
    times = [NOON + timedelta(seconds=number) for number in range(3)]
    ready = an_agent(AgentState.READY, at=times[0], version=1)
    talking = an_agent(AgentState.TALKING, at=times[1], version=2)
    rest = an_agent(AgentState.NOT_READY, at=times[2], version=3, reason="小休")
    await store.apply(Batch(agents=(ready, talking, rest)))
    await store.apply(Batch(agents=(talking,)))
    assert await store.agent_states() == {AGENT1: rest}
    log = await store.agent_log(AGENT1, since=NOON, until=NOON + timedelta(hours=1))
    assert log == [
        (times[0], AgentState.READY, ""),
        (times[1], AgentState.TALKING, ""),
        (times[2], AgentState.NOT_READY, "小休"),
    ]


async def test_an_agents_newest_record_wins_also_when_a_restarted_engine_counts_from_the_start(
    store: TicketStore,
) -> None:
    before = an_agent(AgentState.READY, at=NOON, version=90)
    after = an_agent(AgentState.NOT_READY, at=NOON + timedelta(seconds=9), version=1)
    await store.apply(Batch(agents=(before,)))
    await store.apply(Batch(agents=(after,)))
    await store.apply(Batch(agents=(before,)))
    assert await store.agent_states() == {AGENT1: after}


def a_recording(call: Call, *, codec: str = "flac", path: str | None = None) -> RecordingFile:
    return RecordingFile(
        call.call_id,
        None,
        RecordingKind.CALL,
        path or f"2026/11/20/{call.call_id}/call.flac",
        12.5,
        3_000_000_000,
        "0" * 64,
        codec,
    )


async def test_a_recording_encoded_later_takes_the_place_of_its_raw_file(store: TicketStore) -> None:
    call = a_call()
    raw = a_recording(call, codec="slin", path=f"2026/11/20/{call.call_id}/call.raw")
    leg = replace(raw, kind=RecordingKind.LEG, leg_id=LegId(call.call_id), path="2026/11/20/x/leg-1.flac")
    await store.apply(Batch(recordings=(raw, leg)))
    await store.apply(Batch(recordings=(a_recording(call),)))
    assert await store.recordings(call.call_id) == [a_recording(call), leg]
    assert await store.recordings(CallId("other-1.1")) == []


async def test_calls_whose_recordings_have_no_row_are_found(store: TicketStore) -> None:
    living, bare, complete = a_call(1), ended(a_call(2)), ended(a_call(3))
    await store.apply(Batch(calls=(living, bare, complete), recordings=(a_recording(complete),)))
    assert await store.calls_without_recordings(since=NOON) == [bare]
    assert await store.calls_without_recordings(since=NOON + timedelta(seconds=1)) == []


async def test_every_ended_invitation_is_counted_by_its_outcome(store: TicketStore) -> None:
    call = answered(a_call())
    for number, outcome in enumerate([Outcome.BUSY, Outcome.BUSY, Outcome.JOINED, None], start=3):
        leg = Leg(
            LegId(f"{call.call_id}-{number}"),
            Role.SPECIALIST,
            "8001",
            UserId("spec1"),
            LegState.ENDED,
            Place.ALONE,
            NOON + timedelta(seconds=number),
            asked_by=AGENT1,
            outcome=outcome,
        )
        call = call.with_leg(leg)
    await store.apply(Batch(calls=(call,)))
    counted = await store.invitation_outcomes(since=NOON, until=NOON + timedelta(hours=1))
    assert counted == dict.fromkeys(Outcome, 0) | {Outcome.BUSY: 2, Outcome.JOINED: 1}
    assert (
        await store.invitation_outcomes(since=NOON + timedelta(seconds=4), until=NOON + timedelta(hours=1))
    )[Outcome.BUSY] == 1


# --- hostile text -------------------------------------------------------------------------------------------

NAUGHTY = [
    "",
    " ",
    "'; DROP TABLE calls; --",
    'a"b\\c\r\nAction: Originate',
    "%s %d {0} ${PATH} $(reboot) `id`",
    "null\x00inside",
    "\x00",
    "lone \ud800 surrogate \udfff",
    "\x01\x02\x1b[31m\x7f\x85",
    "\u202eright to left\u2066",
    "𠮷野家 💢 👨‍👩‍👧 ﷽ ｆｕｌｌ",
    "\ufeffBOM",
    "e\u0301",
    "NaN",
    "None",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "张" * 10_000,
]


def stored(value: str) -> str:
    return value.replace("\x00", "\ufffd").replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")


async def test_hostile_text_is_stored_and_read_back(store: TicketStore) -> None:
    for number, value in enumerate(NAUGHTY):
        call = ended(answered(a_call(number, caller=value, dialled=value, line=value, note=value)))
        call = replace(call, steps=(*call.steps, Step(NOON, StepKind.CHOSE, detail=value)), disposition=value)
        await store.apply(Batch(calls=(call,)))
        ticket = await store.ticket_of(call.call_id)
        assert ticket is not None
        assert ticket.note == stored(value)
        assert ticket.caller == stored(value)[:40]
        # The call itself keeps the NUL; a surrogate alone has no place in any encoding.
        kept = stored(value) if "\ud800" in value else value
        assert (ticket.call.caller, ticket.call.note, ticket.call.steps[-1].detail) == (kept, kept, kept)
        if len(value) <= 40:
            assert ticket.call in await store.calls(caller=value, line=value)


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_any_text_survives_as_json_or_has_its_surrogates_replaced(value: str) -> None:
    call = a_call(note=value)
    again = call_from_json(call_json(call))
    assert again == call or again.note == "".join(
        "\ufffd" if 0xD800 <= ord(letter) < 0xE000 or letter == "\0" else letter for letter in value
    )


@given(
    st.builds(
        Leg,
        leg_id=st.just(LegId("a-1.2-2")),
        role=st.sampled_from(Role),
        address=st.text(),
        user_id=st.none() | st.text().map(UserId),
        state=st.sampled_from(LegState),
        place=st.sampled_from(Place),
        asked_at=st.datetimes(timezones=st.just(UTC)),
        asked_by=st.none() | st.text().map(UserId),
        answered_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        outcome=st.none() | st.sampled_from(Outcome),
        muted=st.booleans(),
        cancelled=st.none() | st.sampled_from(Outcome),
    )
)
def test_any_call_is_the_same_after_json(leg: Leg) -> None:
    call = ended(answered(a_call())).with_leg(leg)
    assert call_from_json(call_json(call)) == call


async def test_a_call_id_that_is_too_long_is_refused_and_nothing_of_its_batch_is_written(
    postgres_url: str,
) -> None:
    async with Database.connect(postgres_url) as database:
        store = TicketStore(database)
        with pytest.raises(Unstorable):
            await store.apply(Batch(calls=(a_call(1), replace(a_call(2), call_id=CallId("x" * 81)))))
        assert await store.calls() == []


async def test_the_database_comes_back_after_a_restart_without_a_new_pool(
    postgres: "PostgresServer", postgres_url: str
) -> None:
    async with Database.connect(postgres_url) as database:
        store = TicketStore(database)
        await store.apply(Batch(calls=(a_call(),)))
        postgres.stop()
        try:
            with pytest.raises(DatabaseAway):
                await store.calls()
        finally:
            postgres.start()
        assert await store.calls() == [a_call()]
