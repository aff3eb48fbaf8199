"""Databases for tests: a private PostgreSQL and SQLite files, always the real things.

A test module takes the fixtures with ``pytest_plugins = ["database_fixture"]``.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

import callcenter.directory.schema
import callcenter.tickets.schema  # noqa: F401 - every table is in the metadata
from callcenter.database import Database, metadata, migrate, newest_schema_version

FIRST_PORT, LAST_PORT = 23000, 23999


@dataclass
class PostgresServer:
    """A PostgreSQL cluster of our own that a test may stop and start."""

    directory: Path
    programs: Path
    port: int
    ready_url: str = ""
    """A database with today's tables that one test after the other uses; making one for each costs a second."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, name: str) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        # fsync off: the tests kill processes, never the machine, and wait for disks long enough.
        options: dict[str, object] = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "fsync": "off",
            "max_connections": 60,
        }
        options["unix_socket_directories"] = self.directory
        command = [self.programs / "postgres", "-D", self.directory / "data"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with log:
            self._process = subprocess.Popen(
                _unprivileged(command), stdout=log, stderr=log, cwd=self.directory
            )
        deadline = time.monotonic() + 30
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester"]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop at once, as a machine that loses the server would see it (open sessions are cut)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Every process of it stands still: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _unprivileged(command: list[object]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    words = [str(word) for word in command]
    if os.geteuid() != 0:
        return words
    user = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--", *words]


def _programs() -> Path:
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    for directory in reversed(found):
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    pytest.fail(
        "PostgreSQL's server programs are missing: apt-get install postgresql (Debian).", pytrace=False
    )


def _free_port() -> int:
    for port in range(FIRST_PORT + os.getpid() % 900, LAST_PORT):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail(f"No free port between {FIRST_PORT} and {LAST_PORT}.")


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    programs = _programs()
    # Not pytest's own directory: an unprivileged server cannot enter it. Short: a socket's path holds 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="cc-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, "nobody")
        subprocess.run(
            _unprivileged(
                [
                    programs / "initdb",
                    "-D",
                    directory / "data",
                    "-U",
                    "tester",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "-N",
                ]
            ),
            check=True,
            capture_output=True,
            cwd=directory,
        )
        server = PostgresServer(directory, programs, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests; a test that stops it starts it again."""
    with postgres_server() as server:
        yield server


async def new_postgres_database(server: PostgresServer) -> str:
    """The URL of a new, empty database."""
    name = f"t{uuid4().hex}"
    connection = await asyncpg.connect(server.url("postgres"), timeout=5)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return server.url(name)


@pytest.fixture
def new_database(request: pytest.FixtureRequest) -> Callable[[], Awaitable[str]]:
    """Makes empty PostgreSQL databases and says their URLs; the server starts with the first."""

    async def make() -> str:
        return await new_postgres_database(request.getfixturevalue("postgres"))

    return make


async def _clean_postgres_database(server: PostgresServer) -> str:
    """The URL of a database with today's tables and nothing in them."""
    if not server.ready_url:
        url = await new_postgres_database(server)
        await migrate(url, progress=lambda _: None)
        server.ready_url = url
    connection = await asyncpg.connect(server.ready_url, timeout=5)
    try:
        tables = [f'"{name}"' for name in metadata.tables]
        await connection.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY")
        await connection.execute("UPDATE alembic_version SET version_num = $1", newest_schema_version())
    finally:
        await connection.close()
    return server.ready_url


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database without tables, on each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/centre.db"
    return await new_postgres_database(request.getfixturevalue("postgres"))


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with today's tables and nothing in them, on each kind of database."""
    if request.param == "sqlite":
        return await _new_sqlite_database(tmp_path)
    return await _clean_postgres_database(request.getfixturevalue("postgres"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new database with today's tables, on each kind of database."""
    async with Database.connect(database_url) as database:
        yield database


@pytest.fixture
async def sqlite_url(tmp_path: Path) -> str:
    return await _new_sqlite_database(tmp_path)


@pytest.fixture
async def postgres_url(postgres: PostgresServer) -> str:
    return await _clean_postgres_database(postgres)


async def _new_sqlite_database(directory: Path) -> str:
    url = f"sqlite:///{directory}/centre.db"
    await migrate(url, progress=lambda _: None)
    return url
