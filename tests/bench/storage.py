"""The database: how many calls a second the journal writes, and what many tickets cost at the engine's start."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from callcenter.database import Database, metadata, migrate
from callcenter.domain.messages import Effect, SaveAgent, SaveCall
from callcenter.tickets.journal import Journal
from callcenter.tickets.store import TicketStore, call_json
from tests.bench.rows import Row, Verdict, judged
from tests.bench.telephony import standing
from tests.bench.traffic import Traffic
from tests.e2e.house import House

TICKETS = int(os.environ.get("BENCH_TICKETS", "1000000"))
TEMPLATES = 200
"""So many calls are made by the real journal, the others are their copies."""
BYTES_A_TICKET = 9_000
"""On the disk, while the file is being made."""
START_SECONDS = 3.0


def journal(*, calls: int = 1_000) -> list[Row]:
    """All changes of many calls, as fast as the journal takes them, against one plain INSERT a transaction."""
    changes = _changes(calls)
    saves = [change for change in changes if isinstance(change, SaveCall)]
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        cpu, wall = asyncio.run(_journal(Path(directory), changes))
        plain = _plain_inserts(Path(directory) / "plain.db", saves[:500])
    return [
        Row(
            "journal on SQLite: whole calls written, per second",
            f"{calls / wall:,.0f} ({len(saves) / calls:.0f} changes a call, {cpu / calls * 1000:.1f} ms of CPU each)",
            f"plain INSERTs, one a transaction: {plain:,.0f}",
        )
    ]


def _changes(calls: int) -> list[SaveCall | SaveAgent]:
    changes: list[SaveCall | SaveAgent] = []

    def watch(effect: Effect) -> None:
        if isinstance(effect, SaveCall | SaveAgent):
            changes.append(effect)

    Traffic(watch=watch).run(until_ended=calls)
    return changes


async def _journal(directory: Path, changes: Iterable[SaveCall | SaveAgent]) -> tuple[float, float]:
    """CPU and wall seconds until all of it is in the database."""
    url = f"sqlite:///{directory / 'callcenter.db'}"
    await migrate(url, progress=lambda _: None)
    async with Database.connect(url) as database, asyncio.TaskGroup() as tasks:
        store = TicketStore(database)
        journal = Journal(store, spill_path=directory / "spill", on_opened=lambda _: None)
        running = tasks.create_task(journal.run(), name="journal")
        cpu, wall = time.process_time(), time.monotonic()
        for change in changes:
            match change:
                case SaveCall(call):
                    journal.put_call(call)
                case SaveAgent(agent):
                    journal.put_agent(agent)
            while journal.pending > 200:  # what a second of the busiest hour might leave waiting
                await asyncio.sleep(0)
        if not await journal.flush(60):
            raise TimeoutError("the journal did not empty itself within 60 s")
        took = time.process_time() - cpu, time.monotonic() - wall
        running.cancel()
    return took


def _plain_inserts(path: Path, saves: list[SaveCall]) -> float:
    """Rows a second of a program that keeps each change by itself, as safely."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE calls (call_id TEXT, version INTEGER, state TEXT)")
        began = time.monotonic()
        for save in saves:
            row = (save.call.call_id, save.call.version, call_json(save.call))
            connection.execute("INSERT INTO calls VALUES (?, ?, ?)", row)
        return len(saves) / (time.monotonic() - began)
    finally:
        connection.close()


def start() -> list[Row]:
    """`callcenter run` until it says it is ready, its Asterisk alive already; with hardly any ticket, then with many."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < TICKETS * BYTES_A_TICKET:
        text = f"the disk of {tempfile.gettempdir()} has too little room for {TICKETS:,} tickets"
        return [Row("start of the engine", text, verdict=Verdict.FAILED)]
    with standing(1) as house:
        few = _start_again(house)
        house.kill()
        tickets = _fill(house)
        many = _start_again(house)
    return [
        judged(
            f"start of the engine with {tickets:,} tickets",
            ours=f"{many:.2f} s",
            beside=f"with none: {few:.2f} s",
            target=f"≤ {START_SECONDS:g} s",
            met=many <= START_SECONDS,
        )
    ]


def _start_again(house: House) -> float:
    """The better of two: the first after a change reads everything from the disk."""
    seconds = []
    for _ in range(2):
        house.kill()
        seconds.append(house.start())
    return min(seconds)


def _fill(house: House) -> int:
    """Some calls written by the journal itself, and copies of them until there are enough tickets."""
    path = house.data / "callcenter.db"
    changes = [change for change in _changes(TEMPLATES) if isinstance(change, SaveCall)]
    ended = {change.call.call_id for change in changes if change.call.ended_at is not None}

    async def write() -> None:
        async with Database.connect(f"sqlite:///{path}") as database:
            store = TicketStore(database)
            journal = Journal(store, spill_path=house.directory / "fill.spill", on_opened=lambda _: None)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(journal.run(), name="journal")
                for change in changes:
                    if change.call.call_id in ended:
                        journal.put_call(change.call)
                await journal.flush(60)
                running.cancel()

    asyncio.run(write())
    return _multiply(path)


def _multiply(path: Path) -> int:
    """Copies of all calls, each a minute older, straight into the file: no journal, indexes last."""
    template = path.with_name("template.db")
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with contextlib.closing(sqlite3.connect(template)) as few:
            connection.backup(few)
        for pragma in ("journal_mode=DELETE", "journal_mode=OFF", "synchronous=OFF", "cache_size=-500000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("ATTACH ? AS template", (str(template),))
        (made,) = connection.execute("SELECT count(*) FROM tickets").fetchone()
        copies = TICKETS // made
        indexes = connection.execute(
            "SELECT name, sql FROM main.sqlite_master WHERE type = 'index'"
        ).fetchall()
        indexes = [(name, sql) for name, sql in indexes if sql]
        for name, _ in indexes:
            connection.execute(f"DROP INDEX main.{name}")
        for name in ("calls", "call_steps", "call_parties", "tickets"):
            columns = [column.name for column in metadata.tables[name].columns]
            copied = ", ".join(_COPIED.get(column, column) for column in columns)
            connection.execute(
                f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {copies}) "
                f"INSERT INTO main.{name} ({', '.join(columns)}) "
                f"SELECT {copied} FROM numbers CROSS JOIN template.{name}"
            )
        for _, sql in indexes:
            connection.execute(sql)
        connection.execute("PRAGMA journal_mode=WAL")
        (tickets,) = connection.execute("SELECT count(*) FROM main.tickets").fetchone()
    finally:
        connection.close()
        template.unlink(missing_ok=True)
    return int(tickets)


_COPIED = {
    # In rising order: a table is written as fast as the disk takes it.
    "call_id": "printf('c%07d.', n) || call_id",
    "number": "printf('%07d-', n) || substr(number, -6)",
    **{
        column: f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-' || n || ' minutes') || '000'"
        for column in ("arrived_at", "opened_at")
    },
}
"""How a column of a copy differs from its template's."""
