"""A database of every earlier schema, with what stood in it, becomes today's and is read."""

import asyncio
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, func, select, text

import callcenter.directory.schema
import callcenter.tickets.schema  # noqa: F401 - every table is in the metadata
from callcenter import database as module
from callcenter.database import Database, migrate, newest_schema_version, schema_version
from callcenter.domain.agents import AgentState
from callcenter.domain.calls import CallId, Phase, UserId
from callcenter.tickets.store import TicketStatus, TicketStore

pytest_plugins = ["database_fixture"]

REVISIONS = [
    revision.revision
    for revision in reversed([*ScriptDirectory.from_config(module._config()).walk_revisions()])
]
CALLS = 200

# What the first schema's program wrote: only ever added to when a later one writes something new, never changed.
STATE = """{"call_id": "%(id)s", "line": "12345", "flow_version": "1", "dialled": "12345", "caller": "13800001111",
 "arrived_at": "2026-11-20T04:00:00Z", "phase": "%(phase)s",
 "legs": [{"leg_id": "%(id)s", "role": "caller", "address": "13800001111", "user_id": null, "state": "%(leg)s",
  "place": "alone", "asked_at": "2026-11-20T04:00:00Z", "answered_at": "2026-11-20T04:00:01Z", "outcome": "joined"}],
 "steps": [{"at": "2026-11-20T04:00:00Z", "kind": "arrived"}, {"at": "2026-11-20T04:00:05Z", "kind": "answered"}],
 "answered_at": "2026-11-20T04:00:05Z", "answered_by": "agent1", "handled_by": ["agent1"], "ended_at": %(ended)s,
 "end_reason": %(reason)s, "disposition": "answered", "note": "供热咨询 'quoted' 𠮷", "rating": 1, "version": 9}"""


def filled(connection: Connection) -> None:
    """Rows for every table of the first schema that later ones may change; written in its own columns' names."""
    noon = datetime(2026, 11, 20, 4, tzinfo=UTC)
    tables = MetaData()
    tables.reflect(connection)

    def put(name: str, *rows: dict[str, object]) -> None:
        table: Table = tables.tables[name]
        naive = connection.dialect.name == "sqlite"
        fitted = [
            {
                key: value.replace(tzinfo=None) if naive and isinstance(value, datetime) else value
                for key, value in row.items()
            }
            for row in rows
        ]
        connection.execute(table.insert(), fitted)

    def call(number: int) -> dict[str, object]:
        over = number > 0
        call_id = f"ast1-1763611200.{number}"
        said = {"id": call_id, "phase": "ended" if over else "talking", "leg": "ended" if over else "up"}
        said |= {
            "ended": '"2026-11-20T04:02:00Z"' if over else "null",
            "reason": '"completed"' if over else "null",
        }
        row = {"call_id": call_id, "version": 9, "line": "12345", "dialled": "12345", "caller": "13800001111"}
        row |= {
            "queue": "hotline",
            "phase": said["phase"],
            "arrived_at": noon,
            "queued_at": noon,
            "answered_at": noon,
        }
        row |= {
            "answered_by": "agent1",
            "ended_at": noon if over else None,
            "disposition": "answered",
            "rating": 1,
        }
        return row | {"end_reason": "completed" if over else None, "state": STATE % said}

    ids = [f"ast1-1763611200.{number}" for number in range(CALLS)]
    put("calls", *map(call, range(CALLS)))
    put(
        "call_steps",
        *({"call_id": i, "seq": 1, "at": noon, "kind": "arrived", "detail": "", "leg_id": None} for i in ids),
    )
    put(
        "call_parties",
        *(
            {"call_id": i, "leg_id": i, "role": "caller", "address": "13800001111", "asked_at": noon}
            for i in ids
        ),
    )
    ticket = {
        "line": "12345",
        "dialled": "12345",
        "caller": "13800001111",
        "agent": "agent1",
        "opened_at": noon,
    }
    ticket |= {"accepted_at": noon, "note": "供热咨询 'quoted' 𠮷"}
    put(
        "tickets",
        *(
            ticket | {"number": f"20261120-{n:06d}", "call_id": i, "status": "accepted" if n > 1 else "draft"}
            for n, i in enumerate(ids, start=1)
        ),
    )
    put("ticket_numbers", {"day": noon.date(), "last": CALLS})
    file = {"kind": "call", "leg_id": "", "seconds": 1.5, "bytes": 5, "sha256": "0" * 64, "codec": "flac"}
    put("recordings", *(file | {"call_id": i, "path": f"2026/11/20/{i}/call.flac"} for i in ids))
    put("agent_states", {"user_id": "agent1", "at": noon, "state": "ready", "reason": ""})
    now = {"user_id": "agent1", "version": 3, "state": "ready", "reason": "", "since": noon}
    put("agents_now", now | {"after_call": "ready", "after_reason": "", "phone_reachable": True})
    put("audit", {"at": noon, "user_id": "admin", "action": "logged_in", "subject": "admin", "detail": ""})


async def database_of(url: str, revision: str) -> None:
    """A database as the program of that revision left it."""

    def make(connection: Connection) -> None:
        config = module._config()
        config.attributes["connection"] = connection
        config.attributes["progress"] = lambda _: None
        command.upgrade(config, REVISIONS[0])
        filled(connection)
        command.upgrade(config, revision)

    async with Database.connect(url) as database, database.write() as connection:
        await connection.run_sync(make)


async def is_read(url: str) -> None:
    """Everything that stood in it is found through the store."""
    async with Database.connect(url) as database:
        store = TicketStore(database)
        tickets = await store.tickets(limit=CALLS + 1)
        assert [ticket.number for ticket in tickets] == [f"20261120-{n:06d}" for n in range(CALLS, 0, -1)]
        assert {ticket.status for ticket in tickets[:-1]} == {TicketStatus.ACCEPTED}
        assert {ticket.note for ticket in tickets} == {"供热咨询 'quoted' 𠮷"}
        assert all(len(ticket.recordings) == 1 and ticket.call.rating == 1 for ticket in tickets)
        [living] = await store.open_calls()
        assert (living.call_id, living.phase) == (CallId("ast1-1763611200.0"), Phase.TALKING)
        assert (await store.agent_states())[UserId("agent1")].state is AgentState.READY


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_database_of_every_earlier_schema_is_migrated_and_read(
    empty_database_url: str, revision: str
) -> None:
    await database_of(empty_database_url, revision)
    said: list[str] = []
    await migrate(empty_database_url, progress=said.append)
    assert await schema_version(empty_database_url) == newest_schema_version()
    assert len(said) == len(REVISIONS) - 1 - REVISIONS.index(revision)
    await is_read(empty_database_url)


_KILLED = """
import asyncio, sys
from alembic import op
from callcenter import database
before = op.create_table
def slow(name, *columns, **options):
    print(name, flush=True)
    if name == "tickets":
        sys.stdin.read()  # killed here, in the middle of the transaction
    return before(name, *columns, **options)
op.create_table = slow
asyncio.run(database.migrate(sys.argv[1], progress=print))
"""


async def test_a_migration_that_is_killed_leaves_the_database_as_it_was(empty_database_url: str) -> None:
    """One transaction for all steps, definitions included: the next start begins again."""
    url = empty_database_url
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _KILLED, url, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while (line := await process.stdout.readline()).strip() != b"tickets":
            assert line, "it ended before it came to the tickets"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert await schema_version(url) is None
    async with asyncio.timeout(60):  # PostgreSQL notices in a while that its client is gone
        await migrate(url, progress=lambda _: None)
    async with Database.connect(url) as database, database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(text("tickets")))).scalar_one() == 0
    assert await schema_version(url) == newest_schema_version()
