"""The journal with real databases that go away, real files and processes that are killed."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callcenter.database import Database, migrate
from callcenter.domain.agents import Agent, AgentState, Profile
from callcenter.domain.calls import (
    Call,
    CallId,
    EndReason,
    Leg,
    LegState,
    Phase,
    Place,
    Role,
    Step,
    StepKind,
    UserId,
)
from callcenter.domain.messages import TicketOpened
from callcenter.domain.recordings import RecordingFile, RecordingKind
from callcenter.tickets.journal import Journal, SpillInUse
from callcenter.tickets.store import TicketStore

if TYPE_CHECKING:
    from database_fixture import PostgresServer

pytest_plugins = ["database_fixture"]

NOON = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)


def a_call(number: int, version: int = 1, *, over: bool = False) -> Call:
    """Version `version` of call `number`; answered from version 2 on, with one step for each version."""
    call_id = CallId(f"ast1-1763763843.{number}")
    leg = Leg(call_id, Role.CALLER, "13800001111", None, LegState.UP, Place.ALONE, NOON)
    return Call(
        call_id,
        line="12345",
        flow_version="1",
        dialled="12345",
        caller="13800001111",
        arrived_at=NOON,
        phase=Phase.ENDED if over else Phase.TALKING if version > 1 else Phase.IN_FLOW,
        legs=(leg,),
        steps=tuple(Step(NOON + timedelta(seconds=at), StepKind.HELD) for at in range(version)),
        answered_at=NOON if version > 1 else None,
        ended_at=NOON + timedelta(seconds=version) if over else None,
        end_reason=EndReason.COMPLETED if over else None,
        version=version,
    )


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    url: str, spill: Path, *, told: list[TicketOpened] | None = None, capacity: int = 10_000
) -> AsyncIterator[tuple[Journal, TicketStore]]:
    """A journal at work; leaving cancels it as a stop does, without a flush."""
    async with Database.connect(url) as database:
        store = TicketStore(database)
        journal = Journal(
            store,
            spill_path=spill,
            on_opened=(told if told is not None else []).append,
            capacity=capacity,
        )
        task = asyncio.create_task(journal.run(), name="journal")
        await asyncio.sleep(0)  # a task cancelled before its first step never runs at all
        try:
            yield journal, store
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold SQLite's write lock, as a backup tool that forgot to let go would."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    return tmp_path / "spill.jsonl"


# --- in good times ------------------------------------------------------------------------------------------


async def test_what_is_put_is_written_and_the_ticket_is_told(database_url: str, spill: Path) -> None:
    told: list[TicketOpened] = []
    async with running(database_url, spill, told=told) as (journal, store):
        journal.put_call(a_call(1))
        journal.put_call(a_call(1, 2))
        agent = Agent(Profile(UserId("agent1"), "张伟", frozenset()), AgentState.READY, since=NOON, version=3)
        journal.put_agent(agent)
        file = RecordingFile(CallId("x-1.1"), None, RecordingKind.CALL, "a.flac", 1.0, 2, "0" * 64, "flac")
        journal.put_recordings(file.call_id, [file])
        assert await journal.flush(30)
        assert journal.pending == 0
        assert not journal.degraded
        assert await store.call(a_call(1).call_id) == replace(a_call(1, 2), ticket_number="20261120-000001")
        assert (await store.agent_states())[UserId("agent1")].state is AgentState.READY
        assert await store.recordings(file.call_id) == [file]
    assert told == [TicketOpened(a_call(1).call_id, "20261120-000001")]
    assert spill.read_bytes() == b""


async def test_what_waits_is_bounded_by_the_calls_not_by_their_changes(sqlite_url: str, spill: Path) -> None:
    async with Database.connect(sqlite_url) as database:
        journal = Journal(TicketStore(database), spill_path=spill, on_opened=lambda _: None)
        for version in range(1, 1000):
            journal.put_call(a_call(1, version))
            journal.put_call(a_call(2, version))
        journal.put_call(a_call(1, 5))
        assert journal.pending == 2


async def test_recordings_of_another_call_are_refused(sqlite_url: str, spill: Path) -> None:
    file = RecordingFile(CallId("x-1.1"), None, RecordingKind.CALL, "a.flac", 1.0, 2, "0" * 64, "flac")
    async with Database.connect(sqlite_url) as database:
        journal = Journal(TicketStore(database), spill_path=spill, on_opened=lambda _: None)
        with pytest.raises(ValueError, match="not all of call"):
            journal.put_recordings(CallId("y-1.1"), [file])


async def test_a_flush_that_takes_too_long_says_so(sqlite_url: str, spill: Path) -> None:
    async with running(sqlite_url, spill) as (journal, _):
        assert await journal.flush(30)
        with locked(sqlite_url):
            journal.put_call(a_call(1))
            assert not await journal.flush(0.1)
        assert await journal.flush(30)


# --- the database is away -----------------------------------------------------------------------------------


async def test_a_locked_sqlite_delays_the_writing_and_nothing_else(sqlite_url: str, spill: Path) -> None:
    async with running(sqlite_url, spill) as (journal, store):
        with locked(sqlite_url):
            slowest = 0.0
            number = 0
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(60):
                while not journal.degraded or not spill.stat().st_size:
                    number += 1
                    before = loop.time()
                    journal.put_call(a_call(number, 2, over=True))
                    slowest = max(slowest, loop.time() - before)
                    await asyncio.sleep(0.02)
            assert slowest < 0.1
            assert journal.pending >= number
        assert await journal.flush(30)
        assert not journal.degraded
        assert len(await store.tickets(limit=10_000)) == number
    assert spill.read_bytes() == b""


async def test_calls_go_on_while_postgresql_is_stopped_and_started(
    postgres: "PostgresServer", postgres_url: str, spill: Path
) -> None:
    async with running(postgres_url, spill) as (journal, store):
        journal.put_call(a_call(0, 2))
        assert await journal.flush(30)
        await asyncio.to_thread(postgres.stop)
        try:
            for number in range(50):
                journal.put_call(a_call(number, 2))
                await asyncio.sleep(0)
            journal.put_call(a_call(0, 3, over=True))
            await until(lambda: journal.degraded and spill.stat().st_size > 0)
        finally:
            await asyncio.to_thread(postgres.start)
        journal.put_call(a_call(1, 3, over=True))
        assert await journal.flush(60)
        tickets = await store.tickets(limit=100)
        assert [ticket.number for ticket in tickets] == [f"20261120-{n:06d}" for n in range(50, 0, -1)]
        versions = {ticket.call.call_id: ticket.call.version for ticket in tickets}
        assert versions == {a_call(number).call_id: 3 if number < 2 else 2 for number in range(50)}


async def test_postgresql_restarted_again_and_again_under_load_loses_and_doubles_nothing(
    postgres: "PostgresServer", postgres_url: str, spill: Path
) -> None:
    done = asyncio.Event()
    put: dict[int, int] = {}

    async with running(postgres_url, spill) as (journal, store):

        async def load() -> None:
            round_ = 0
            while not done.is_set():
                round_ += 1
                for number in range(20):
                    put[number] = round_
                    journal.put_call(a_call(number, round_))
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load(), name="load")
            for _ in range(3):
                await asyncio.to_thread(postgres.stop)
                await until(lambda: journal.degraded)
                await asyncio.to_thread(postgres.start)
                await until(lambda: not journal.degraded)
            done.set()
        assert await journal.flush(60)
        calls = await store.calls(limit=100)
        assert {call.call_id: call.version for call in calls} == {
            a_call(number).call_id: version for number, version in put.items()
        }
        numbers = sorted(ticket.number for ticket in await store.tickets(limit=100))
        assert numbers == [f"20261120-{number:06d}" for number in range(1, 21)]


async def test_beyond_its_capacity_the_journal_spills_while_a_try_is_under_way(
    sqlite_url: str, spill: Path
) -> None:
    async with running(sqlite_url, spill, capacity=10) as (journal, store):
        with locked(sqlite_url):
            journal.put_call(a_call(0, 2, over=True))
            await until(lambda: journal._in_hand == 1)
            for number in range(1, 100):
                journal.put_call(a_call(number, 2, over=True))
            await until(lambda: spill.stat().st_size > 0)
            assert not journal.degraded
        assert await journal.flush(60)
        assert len(await store.tickets(limit=1000)) == 100


async def test_what_the_database_refuses_stands_beside_the_spill_and_keeps_nothing_else_out(
    postgres_url: str, spill: Path
) -> None:
    bad = replace(a_call(2, 2), call_id=CallId("x" * 81))
    async with running(postgres_url, spill) as (journal, store):
        for call in (a_call(1, 2), bad, a_call(3, 2)):
            journal.put_call(call)
        assert await journal.flush(30)
        assert len(await store.tickets()) == 2
    [line] = spill.with_name("spill.jsonl.refused").read_text().splitlines()
    assert json.loads(line)["call"]["call_id"] == bad.call_id


async def test_two_journals_on_one_database_number_without_gap_or_double(
    postgres_url: str, tmp_path: Path
) -> None:
    async with (
        running(postgres_url, tmp_path / "a") as (one, store),
        running(postgres_url, tmp_path / "b") as (two, _),
    ):
        for number in range(300):
            (one if number % 2 else two).put_call(a_call(number, 2))
            if number % 10 == 0:
                one.put_call(a_call(number, 3))
                await asyncio.sleep(0)
        assert await one.flush(60)
        assert await two.flush(60)
        tickets = await store.tickets(limit=1000)
        assert [ticket.number for ticket in tickets] == [f"20261120-{n:06d}" for n in range(300, 0, -1)]
        assert all(ticket.call.version == 3 for ticket in tickets if int(ticket.call.call_id[16:]) % 10 == 0)


# --- stopping, crashing, starting ---------------------------------------------------------------------------


async def test_what_is_left_at_the_stop_is_spilled_and_written_at_the_next_start(
    sqlite_url: str, spill: Path
) -> None:
    with locked(sqlite_url):
        async with running(sqlite_url, spill) as (journal, _):
            journal.put_call(a_call(1, 2, over=True))
            journal.put_call(a_call(2, 3))
            await asyncio.sleep(0)
    assert len(spill.read_text().splitlines()) == 2
    async with running(sqlite_url, spill) as (journal, store):
        # An older version that comes after the newer one in the spill changes nothing.
        journal.put_call(a_call(2, 2))
        assert await journal.flush(30)
        assert {call.call_id: call.version for call in await store.calls()} == {
            a_call(1).call_id: 2,
            a_call(2).call_id: 3,
        }
    assert spill.read_bytes() == b""


async def test_a_torn_last_line_and_a_spoilt_one_keep_nothing_else_out(sqlite_url: str, spill: Path) -> None:
    with locked(sqlite_url):
        async with running(sqlite_url, spill) as (journal, _):
            journal.put_call(a_call(1, 2))
    spill.write_bytes(b"garbage\n" + spill.read_bytes() + b'{"call":{"call_id":"torn')
    async with running(sqlite_url, spill) as (journal, store):
        assert await journal.flush(30)
        assert [call.call_id for call in await store.calls()] == [a_call(1).call_id]
    refused = spill.with_name("spill.jsonl.refused")
    assert refused.read_text() == "garbage\n"
    assert stat.S_IMODE(refused.stat().st_mode) == 0o600


async def test_one_spill_file_belongs_to_one_process(sqlite_url: str, spill: Path) -> None:
    async with running(sqlite_url, spill) as (journal, store):
        assert await journal.flush(30)
        other = Journal(store, spill_path=spill, on_opened=lambda _: None)
        with pytest.raises(SpillInUse, match="its own data directory"):
            await other.run()


WRITER = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [str(Path(sys.argv[3]) / "contract"), sys.argv[3]]
from test_journal import a_call
from callcenter.database import Database
from callcenter.tickets.journal import Journal
from callcenter.tickets.store import TicketStore

async def main():
    async with Database.connect(sys.argv[1]) as database:
        journal = Journal(TicketStore(database), spill_path=Path(sys.argv[2]), on_opened=lambda _: None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(journal.run())
            for version in range(1, 1_000_000):
                for number in range(10):
                    journal.put_call(a_call(number, version % 50 + 1) if version < 50 else
                                     a_call(10 * version + number, 2, over=True))
                if await journal.flush(0.05 if journal.degraded else 5):
                    print("written", version, flush=True)
                elif journal.degraded and not journal._waiting:
                    print("spilled", version, flush=True)

asyncio.run(main())
"""


@contextmanager
def writer(url: str, spill: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes; it says which version of ten calls is in the database or in the spill file."""
    arguments = [sys.executable, "-c", WRITER, url, str(spill), str(Path(__file__).parent.parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


async def said(process: subprocess.Popen[str], word: str, *, at_least: int = 0) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while line := await asyncio.to_thread(process.stdout.readline):
            found, _, version = line.partition(" ")
            if found == word and int(version) >= at_least:
                return int(version)
    pytest.fail("The writer ended by itself.")


def acknowledged(version: int) -> set[str]:
    numbers = set(range(10))
    numbers |= {10 * past + number for past in range(50, version + 1) for number in range(10)}
    return {a_call(number).call_id for number in numbers}


async def test_a_writer_killed_in_the_middle_has_lost_nothing_it_had_written(
    database_url: str, spill: Path
) -> None:
    version = 0
    with writer(database_url, spill) as process:
        version = await said(process, "written", at_least=80)
        os.kill(process.pid, signal.SIGKILL)
    async with running(database_url, spill) as (journal, store):
        assert await journal.flush(30)
        tickets = await store.tickets(limit=100_000)
        assert acknowledged(version) <= {ticket.call.call_id for ticket in tickets}
        assert sorted(ticket.number for ticket in tickets) == [
            f"20261120-{number:06d}" for number in range(1, len(tickets) + 1)
        ]
        assert all(len(ticket.call.steps) == ticket.call.version for ticket in tickets)


async def test_a_writer_killed_while_the_database_is_away_has_spilled_and_the_next_one_writes_it(
    sqlite_url: str, spill: Path
) -> None:
    with writer(sqlite_url, spill) as process:
        await said(process, "written", at_least=55)
        with locked(sqlite_url):
            version = await said(process, "spilled")
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
    assert spill.stat().st_size > 0
    async with running(sqlite_url, spill) as (journal, store):
        assert await journal.flush(30)
        tickets = await store.tickets(limit=100_000)
        assert acknowledged(version) <= {ticket.call.call_id for ticket in tickets}
        assert sorted(ticket.number for ticket in tickets) == [
            f"20261120-{number:06d}" for number in range(1, len(tickets) + 1)
        ]
    assert spill.read_bytes() == b""


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3), st.integers(1, 6)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("yield"), st.integers(1, 20), st.just(0)),
        st.tuples(st.just("stop"), st.just(0), st.just(0)),
        st.tuples(st.just("stop while locked"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@given(ACTIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_put_flushed_and_stopped_the_newest_version_of_each_call_stands(
    actions: list[tuple[str, int, int]],
) -> None:
    async def play(directory: Path) -> None:
        url, spill = f"sqlite:///{directory}/centre.db", directory / "spill.jsonl"
        await migrate(url, progress=lambda _: None)
        newest: dict[str, int] = {}
        rest = iter(actions)
        over = False
        while not over:
            async with contextlib.AsyncExitStack() as stack:
                journal, _ = await stack.enter_async_context(running(url, spill))
                over = True
                for action, number, version in rest:
                    match action:
                        case "put":
                            call = a_call(number, version)
                            newest[call.call_id] = max(version, newest.get(call.call_id, 0))
                            journal.put_call(call)
                        case "flush":
                            assert await journal.flush(30)
                        case "yield":
                            for _ in range(number):
                                await asyncio.sleep(0)
                        case _:
                            over = False
                            if action == "stop while locked" and await journal.flush(30):
                                stack.enter_context(locked(url))
                            break
        async with running(url, spill) as (journal, store):
            assert await journal.flush(30)
            assert {call.call_id: call.version for call in await store.calls()} == newest
            assert len(await store.tickets()) == len([1 for version in newest.values() if version > 1])
        assert spill.read_bytes() == b""

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory)))


async def test_a_full_disk_under_the_spill_keeps_everything_in_memory(sqlite_url: str, spill: Path) -> None:
    arguments = [sys.executable, "-c", FULL_DISK, sqlite_url, str(spill), str(Path(__file__).parent.parent)]
    result = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "kept 200" in result.stdout
    async with running(sqlite_url, spill) as (journal, store):
        assert await journal.flush(30)
        assert len(await store.tickets(limit=1000)) == 200


FULL_DISK = """
import asyncio, contextlib, resource, sys
from pathlib import Path
sys.path[:0] = [str(Path(sys.argv[3]) / "contract"), sys.argv[3]]
from test_journal import a_call, locked, running, until

async def main():
    url, spill = sys.argv[1], Path(sys.argv[2])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with running(url, spill) as (journal, _):
        assert await journal.flush(30)
        with locked(url):
            # No file of this process may grow beyond this: the operating system refuses the write.
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, unlimited[1]))
            for number in range(200):
                journal.put_call(a_call(number, 2, over=True))
            await until(lambda: journal.degraded)
            await asyncio.sleep(0.5)
            assert spill.read_bytes() == b"", "a torn spill"
            print("kept", journal.pending)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert await journal.flush(30)

asyncio.run(main())
"""
