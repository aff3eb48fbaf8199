"""The database: one engine, one metadata, the same code on SQLite and PostgreSQL.

Whoever reads or writes does it inside ``read()`` or ``write()``; a database that cannot be used just now leaves
these two as ``DatabaseAway``, whatever driver is below.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    URL,
    Connection,
    DateTime,
    Dialect,
    MetaData,
    String,
    Table,
    TypeDecorator,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

BUSY_SECONDS = 5.0
"""How long a statement waits for SQLite's write lock, and how long connecting may take."""
STATEMENT_SECONDS = 10.0

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 1234512345
_UNDEFINED_TABLE = "42P01"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class DatabaseAway(Exception):  # noqa: N818 - a state of the world, not a fault of the program
    """The database cannot be used just now; the same thing may work later."""


class Unstorable(Exception):  # noqa: N818 - an answer about the data, not a fault of the program
    """The database refuses these values: a name that exists already, or one that cannot be written at all."""


class UnusableDatabase(Exception):  # noqa: N818 - read as a sentence by whoever starts the centre
    """The database is not one this program can work with; waiting does not help."""


def clean_text(value: str) -> str:
    """The text with every NUL and lone surrogate made U+FFFD.

    PostgreSQL stores neither, SQLite stores NUL but stops reading there; both would otherwise lose the whole row
    because of one hostile character.
    """
    if "\0" in value:
        value = value.replace("\0", "\ufffd")
    return value if value.isascii() else _whole(value)


def _whole(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in value)
    return value


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC instant, also where the database keeps no zone. ValueError for a naive one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("Only instants with a time zone can be stored.")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """Text from outside: cleaned, and cut at its length if it has one, so that nobody can make a row unwritable."""

    impl = String
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value)[: self.length]


class Database:
    """A pool of connections to one database."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self.engine: AsyncEngine = _make_engine(url)
        self._upserts: dict[Table, sqlite.Insert | postgresql.Insert] = {}

    @classmethod
    def connect(cls, url: str) -> Self:
        """Prepare for the database at `url` (``sqlite:///path`` or ``postgresql://…``); connects when first used.

        UnusableDatabase when the address is of another kind.
        """
        return cls(_parse(url))

    @property
    def url(self) -> str:
        """The address without its password."""
        return self._url.render_as_string(hide_password=True)

    @property
    def dialect(self) -> str:
        return self.engine.dialect.name

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        with _translated():
            async with self.engine.connect() as connection, connection.begin():
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; on SQLite it holds the write lock from the start.

        A SQLite transaction that reads first and writes later fails at once, without waiting, when another
        writer came between.
        """
        with _translated():
            async with self.engine.connect() as connection:
                await connection.execution_options(callcenter_writes=True)
                async with connection.begin():
                    yield connection

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """An insert that knows what to do on a conflict."""
        return sqlite.insert(table) if self.dialect == "sqlite" else postgresql.insert(table)

    def upsert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """An insert that updates the row with the same primary key; made once a table, for it costs more than its use."""
        if table in self._upserts:
            return self._upserts[table]
        key = [column.name for column in table.primary_key]
        insert = self.insert(table)
        changed = {column.name: insert.excluded[column.name] for column in table.c if column.name not in key}
        self._upserts[table] = insert.on_conflict_do_update(index_elements=key, set_=changed)
        return self._upserts[table]

    async def close(self) -> None:
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def migrate(url: str, *, progress: Callable[[str], None]) -> None:
    """Bring the database at `url` to this program's schema; `progress` hears one sentence for each step taken.

    Two processes may try at once: the second waits and finds nothing to do. DatabaseAway when it cannot be reached,
    UnusableDatabase when it was made by a newer program.
    """
    _make_private(_parse(url))
    async with Database.connect(url) as database, database.write() as connection:
        if database.dialect == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        await connection.run_sync(_upgrade, progress)


async def schema_version(url: str) -> str | None:
    """The migration the database at `url` stands at; None for an empty one. DatabaseAway."""
    async with Database.connect(url) as database, database.read() as connection:
        return await schema_of(connection)


async def schema_of(connection: AsyncConnection) -> str | None:
    return await connection.run_sync(_current)


def newest_schema_version() -> str:
    """The migration this program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise UnusableDatabase("The program was installed without its migrations; install it again.")
    return head


def _make_private(url: URL) -> None:
    """A new SQLite file is its owner's alone, and with it what SQLite puts beside it: it holds callers' numbers."""
    if url.get_backend_name() == "sqlite" and url.database is not None:
        with suppress(OSError):  # there already, or not possible: then connecting says so
            os.close(os.open(url.database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _upgrade(connection: Connection, progress: Callable[[str], None]) -> None:
    config = _config()
    script = ScriptDirectory.from_config(config)
    current = _current(connection)
    if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
        raise UnusableDatabase(
            f"The database is at version {current}, which this program does not know: it was written by a newer one. "
            "Install that or a newer version."
        )
    config.attributes["connection"] = connection
    config.attributes["progress"] = progress
    command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    # A `%` in the path of the installation would be read as an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UnusableDatabase(
            "The database address cannot be read; write sqlite:///path/to/file.db or postgresql://user@host/name."
        ) from error
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or ":memory:" in parsed.database or "mode=memory" in parsed.database:
                raise UnusableDatabase("SQLite needs a file: write sqlite:///path/to/file.db.")
            return parsed.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise UnusableDatabase(f"{other} databases are not supported; use sqlite:///… or postgresql://….")


def _make_engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() == "postgresql":
        return create_async_engine(
            url,
            connect_args={"timeout": BUSY_SECONDS, "command_timeout": STATEMENT_SECONDS},
            pool_pre_ping=True,
            pool_timeout=STATEMENT_SECONDS,
        )
    engine = create_async_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS},
        pool_timeout=STATEMENT_SECONDS,
        pool_size=4,
        max_overflow=4,
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # None: the driver begins no transaction by itself; `_begin_sqlite` does, for reads and definitions too.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: a power cut takes no committed transaction back. A ticket number already told to a citizen must not be
    # given out again; the journal writes in batches, so the price is one fsync a batch.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("callcenter_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if _refuses_data(error):
            raise Unstorable(str(error.orig)) from error
        if isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None) != _UNDEFINED_TABLE:
            raise  # our own SQL is wrong
        raise DatabaseAway(f"The database cannot be used just now: {error.orig}") from error
    except StatementError as error:
        raise Unstorable(str(error.orig)) from error
    except (OSError, TimeoutError, PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # While connecting asyncpg's own errors come through as they are.
        raise DatabaseAway(
            f"The database cannot be reached just now: {error or type(error).__name__}"
        ) from error


def _refuses_data(error: DBAPIError) -> bool:
    """Whether these very values can never be stored (SQLSTATE class 22 data exception, 23 integrity violation)."""
    if isinstance(error, IntegrityError | DataError):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in {"22", "23"} or isinstance(error.orig and error.orig.__cause__, asyncpg.DataError)
