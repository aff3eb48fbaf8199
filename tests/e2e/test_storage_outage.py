"""The database is locked, frozen or down while calls are made: nothing is lost, nothing stands twice.

An outage lasts OUTAGE_SECONDS (environment; a few by default, 60 in `make chaos`), and at least until it was seen.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from callcenter.database import Database
from callcenter.domain.calls import Phase
from callcenter.tickets.store import TicketStore
from tests.e2e.house import House, Person, dial, prepared, until

if TYPE_CHECKING:
    from database_fixture import PostgresServer

pytest_plugins = ["tests.database_fixture"]

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "3"))
pytestmark = pytest.mark.timeout(240 + 4 * OUTAGE_SECONDS)

Outage = Callable[[], AbstractContextManager[None]]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Another program holds SQLite's write lock."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def _frozen(server: "PostgresServer") -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def _down(server: "PostgresServer") -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@pytest.fixture(params=["sqlite locked", "postgresql frozen", "postgresql down"])
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: Callable[[], Awaitable[str]]
) -> AsyncIterator[tuple[House, Outage]]:
    """A running house, and the way to take its database from it."""
    url = "" if request.param == "sqlite locked" else await new_database()
    house = House(tmp_path / "h", database_url=url, settings={"CALLCENTER_JOURNAL__CAPACITY": "100"})
    if not url:
        outage: Outage = lambda: _locked(house.data / "callcenter.db")  # noqa: E731 - one of three
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        how = _frozen if request.param == "postgresql frozen" else _down
        outage = lambda: how(server)  # noqa: E731
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=10, wrap_up_seconds=0)
        await asyncio.to_thread(house.start)
        yield house, outage
    finally:
        await asyncio.to_thread(house.close)


async def one_call(house: House, agent: Person, number: int) -> None:
    """By telephone alone: without its database the house knows no logins."""
    async with house.caller(f"1710001{number:04d}") as citizen:
        call = await dial(citizen, seconds=20)
        desk = await agent.phone.next_call(30)
        await desk.answer()
        await desk.wait_answered(10)
        await asyncio.sleep(0.3)  # a word
        await call.hang_up()
        await desk.ended.wait(15)


async def database_health(house: House) -> str:
    async with house.rest() as nobody:
        _, _, seen = await nobody.raw("/healthz")  # 503 when a part is down
    return str(json.loads(seen)["components"]["database"]["standing"])


def spilled(house: House) -> int:
    return (house.data / "journal.spill").read_bytes().count(b"\n")


async def written(house: House, calls: int) -> None:
    """Every call once, ended, with its ticket; the numbers without a gap; nothing left in the spill file."""
    url = house.environment["CALLCENTER_DATABASE__URL"] or f"sqlite:///{house.data / 'callcenter.db'}"
    async with Database.connect(url) as database:
        store = TicketStore(database)

        async def ended() -> list[Phase]:
            return [call.phase for call in await store.calls(limit=1000)]

        await until(ended, lambda phases: phases == [Phase.ENDED] * calls, seconds=60)
        numbers = sorted(ticket.number[-6:] for ticket in await store.tickets(limit=1000))
    assert numbers == [f"{number:06d}" for number in range(1, calls + 1)]
    await until(lambda: asyncio.to_thread(spilled, house), lambda lines: lines == 0, seconds=30)
    verified = await asyncio.to_thread(house.command, "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


async def test_calls_go_on_without_the_database_and_are_written_when_it_is_back(
    site: tuple[House, Outage],
) -> None:
    house, outage = site
    async with house.person("agent1", "1001") as agent:
        await one_call(house, agent, 0)
        calls = 1
        with outage():
            over = time.monotonic() + OUTAGE_SECONDS
            while time.monotonic() < over or not spilled(house) or calls < 3:
                await one_call(house, agent, calls)
                calls += 1
            assert await database_health(house) in {"degraded", "down"}
            # The people on duty are told, which is looked at every two seconds.
            await until(lambda: asyncio.to_thread(house.said), lambda said: "database_health" in said)
        await until(lambda: database_health(house), lambda standing: standing == "ok", seconds=60)
        await one_call(house, agent, calls)
        await written(house, calls + 1)
    assert "journal.database_back" in house.said()


async def test_an_engine_killed_before_it_could_write_leaves_it_to_the_next(
    site: tuple[House, Outage],
) -> None:
    house, outage = site
    async with house.person("agent1", "1001") as agent:
        with outage():
            for number in range(2):
                await one_call(house, agent, number)
            await until(lambda: asyncio.to_thread(_ends_spilled, house), lambda ends: ends == 2, seconds=60)
            await asyncio.to_thread(house.kill)
        await asyncio.to_thread(house.start, seconds=120)
        await written(house, 2)


def _ends_spilled(house: House) -> int:
    """How many calls have their end in the spill file."""
    text = (house.data / "journal.spill").read_text()
    return len(
        {
            line.split('"call_id":"')[1].split('"')[0]
            for line in text.splitlines()
            if '"phase":"ended"' in line
        }
    )
