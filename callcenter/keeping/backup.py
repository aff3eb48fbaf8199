"""Backup while the house works, and bringing it back.

A backup is one manifest and the files it names. In a directory the files stand under their own sha256, so that the next
backup adds only what is new and one that was cut short has spoilt nothing: the manifest comes last, under a temporary
name first. In a single file (``*.tar``) everything stands once and the manifest is its last member.
"""

import asyncio
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import sqlite3
import ssl
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from sqlalchemy import Connection, func, inspect, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

import callcenter.directory.schema  # noqa: F401 - every table is in the metadata
from callcenter.database import Database, metadata, migrate, schema_of
from callcenter.keeping.verify import Check, Folder, verify
from callcenter.tickets import schema
from callcenter.tickets.journal import Journal
from callcenter.tickets.store import TicketStore

Progress = Callable[[str], None]

FORMAT = 1
RECORDINGS, FLOWS, SETTINGS = "recordings", "flows", "settings"
SPILL = "journal.spill"
DATABASE = "database"
_SPILL_SECONDS = 600.0
_JOURNAL_SECONDS = 10.0
_BLOCK = 1 << 20
_EVERY = 500
_PAGES = 2_000
"""Of 4 KiB, copied between two looks at Ctrl-C."""
_MANIFEST = "manifest.json"


class BackupFailed(Exception):  # noqa: N818 - read as a sentence by the operator
    """No backup was made; earlier ones are as they were."""


class RestoreRefused(Exception):  # noqa: N818 - read as a sentence by the operator
    """Nothing was changed; the text says what to do."""


@dataclass(frozen=True, slots=True)
class House:
    """Where a house keeps what must survive."""

    database_url: str
    data_dir: Path
    recordings: Path
    flows: Path
    settings_file: Path | None = None
    metrics: str = ""
    """Where a running engine tells how much it has not written yet."""

    @property
    def dialect(self) -> str:
        return make_url(self.database_url).get_backend_name()

    @property
    def sqlite_file(self) -> Path:
        return Path(make_url(self.database_url).database or "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one backup holds; ``database`` and every recording are of one moment."""

    name: str
    taken_at: datetime
    program: str
    dialect: str
    schema: str
    counts: Mapping[str, int]
    """Rows of each table."""
    problems: tuple[str, ...]
    """What was already wrong with the house: a recording that is gone, or not what it was."""
    files: tuple[Entry, ...]

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.files if entry.name == name)

    def below(self, directory: str) -> dict[str, Entry]:
        """The files of one directory by their name in it."""
        return {
            entry.name.removeprefix(f"{directory}/"): entry
            for entry in self.files
            if entry.name.startswith(f"{directory}/")
        }

    def dump(self) -> bytes:
        files = [[entry.name, entry.sha256, entry.bytes] for entry in self.files]
        told = {"format": FORMAT, "name": self.name, "taken_at": self.taken_at.isoformat()}
        told |= {"program": self.program, "dialect": self.dialect, "schema": self.schema}
        rest = {"counts": dict(self.counts), "problems": list(self.problems), "files": files}
        return json.dumps(told | rest, ensure_ascii=False, indent=1).encode()

    @classmethod
    def load(cls, data: bytes) -> "Manifest":
        """BackupFailed for anything else."""
        try:
            told = json.loads(data)
            if told["format"] != FORMAT:
                raise BackupFailed(
                    "备份由更新的版本生成 / this backup was made by a newer program: use that one."
                )
            return cls(
                told["name"],
                datetime.fromisoformat(told["taken_at"]),
                told["program"],
                told["dialect"],
                told["schema"],
                told["counts"],
                tuple(told["problems"]),
                tuple(Entry(*file) for file in told["files"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BackupFailed(f"备份清单无法读出 / the manifest cannot be read: {error}") from error


# --- where backups stand --------------------------------------------------------------------------------------


class Vault(Protocol):
    def manifest(self, name: str | None) -> Manifest:
        """The backup of this name, the newest without one. BackupFailed when there is none."""
        ...

    def open(self, entry: Entry) -> IO[bytes]: ...


class Shelf:
    """A directory of backups: ``objects/<xx>/<sha256>`` and one ``<time>.json`` for each of them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.root.glob("*.json"))

    def manifest(self, name: str | None) -> Manifest:
        names = self.names()
        if name is None and names:
            name = names[-1]
        if name not in names:
            has = f"，有 / there are: {', '.join(names)}" if names else ""
            raise BackupFailed(f"{self.root} 中没有这个备份 / holds no such backup{has}")
        return Manifest.load((self.root / f"{name}.json").read_bytes())

    def object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256

    def open(self, entry: Entry) -> IO[bytes]:
        return self.object(entry.sha256).open("rb")

    def prune(self, keep: int) -> int:
        """Forget all but the newest backups, and every file that none of the others names; how many were forgotten."""
        old = self.names()[:-keep]
        for name in old:
            (self.root / f"{name}.json").unlink()
        used = {entry.sha256 for name in self.names() for entry in self.manifest(name).files}
        for path in (self.root / "objects").glob("*/*"):
            if path.name not in used:
                path.unlink()
        return len(old)


class Archive:
    """A backup in one file."""

    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self._path = path
        self._archive = archive

    def manifest(self, name: str | None) -> Manifest:
        try:
            member = self._archive.extractfile(_MANIFEST)
        except (tarfile.TarError, KeyError) as error:
            raise BackupFailed(f"{self._path} 不是完整的备份 / is no whole backup") from error
        found = Manifest.load(member.read() if member else b"")
        if name not in (None, found.name):
            raise BackupFailed(f"{self._path} 中只有 / holds {found.name} only")
        return found

    def open(self, entry: Entry) -> IO[bytes]:
        member = self._archive.extractfile(entry.name)
        if member is None:
            raise FileNotFoundError(entry.name)
        return member


@contextmanager
def vault(path: Path) -> Iterator[Vault]:
    """What stands at this path: a directory of backups, or one in a file."""
    if path.is_dir():
        yield Shelf(path)
    elif path.is_file():
        try:
            archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below
        except tarfile.TarError as error:
            raise BackupFailed(f"{path} 不是备份 / is no backup") from error
        with archive:
            yield Archive(path, archive)
    else:
        raise BackupFailed(f"{path} 不存在 / does not exist")


class _Writer(Protocol):
    files: dict[str, Entry]

    def add(self, name: str, source: IO[bytes], *, size: int) -> Entry: ...
    def has(self, name: str, sha256: str, *, size: int) -> bool: ...
    @property
    def workshop(self) -> Path: ...
    def seal(self, manifest: Manifest) -> None: ...


class _ShelfWriter:
    def __init__(self, root: Path, workshop: Path) -> None:
        self._shelf = Shelf(root)
        self.workshop = workshop
        """For files in the making; emptied by whoever works here next."""
        self.files: dict[str, Entry] = {}
        self.added = 0

    def has(self, name: str, sha256: str, *, size: int) -> bool:
        """Whether such a file is there already; then it is this backup's too."""
        path = self._shelf.object(sha256)
        if not path.is_file() or path.stat().st_size != size:
            return False
        self.files[name] = Entry(name, sha256, size)
        return True

    def add(self, name: str, source: IO[bytes], *, size: int) -> Entry:
        part = self.workshop / "part"
        with part.open("wb") as file:
            sha256, copied = _copy(source, file, size)
            file.flush()
            os.fsync(file.fileno())
        path = self._shelf.object(sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.replace(path)
        entry = self.files[name] = Entry(name, sha256, copied)
        self.added += copied
        return entry

    def seal(self, manifest: Manifest) -> None:
        for directory in {self._shelf.object(entry.sha256).parent for entry in manifest.files}:
            _sync(directory)
        _write_whole(self._shelf.root / f"{manifest.name}.json", manifest.dump(), by=self.workshop)


class _ArchiveWriter:
    def __init__(self, archive: tarfile.TarFile, workshop: Path) -> None:
        self._archive = archive
        self.workshop = workshop
        self.files: dict[str, Entry] = {}

    def has(self, name: str, sha256: str, *, size: int) -> bool:
        return False

    def add(self, name: str, source: IO[bytes], *, size: int) -> Entry:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        counted = _Hashed(source)
        self._archive.addfile(member, counted)
        entry = self.files[name] = Entry(name, counted.hash.hexdigest(), size)
        return entry

    def seal(self, manifest: Manifest) -> None:
        data = manifest.dump()
        member = tarfile.TarInfo(_MANIFEST)
        member.size, member.mode = len(data), 0o600
        self._archive.addfile(member, io.BytesIO(data))


class _Hashed(io.RawIOBase):
    """What is read through it is hashed."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.hash.update(data)
        return data


@contextmanager
def _writing(target: Path) -> Iterator[_Writer]:
    """A place to write a backup to; one at a time. What is not sealed leaves nothing behind."""
    if target.suffix == ".tar":
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as name:
            part = Path(name) / "part"
            part.touch(mode=0o600)
            with tarfile.open(part, "w:", format=tarfile.PAX_FORMAT) as archive:
                yield _ArchiveWriter(archive, Path(name))
            _sync(part)
            part.replace(target)
            _sync(target.parent)
        return
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (target / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackupFailed(f"{target} 正有另一个备份在写 / is being written by another backup") from error
        workshop = target / ".making"
        if workshop.exists():
            shutil.rmtree(workshop)
        workshop.mkdir(mode=0o700)
        try:
            yield _ShelfWriter(target, workshop)
        finally:
            shutil.rmtree(workshop)


# --- backup ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Records:
    """The database at one moment, and what it says of itself."""

    schema: str
    counts: Mapping[str, int]
    recordings: Mapping[str, tuple[int, str]]
    """Bytes and sha256 by path."""


def backup(house: House, target: Path, *, progress: Progress, keep: int | None = None) -> Manifest:
    """Keep the whole house as it is now, while it works; the newest `keep` backups stay, all of them for None.

    BackupFailed, DatabaseAway, OSError; then no backup was made and the earlier ones are untouched.
    """
    began = datetime.now(UTC)
    with _writing(target) as writer:
        _let_the_journal_write(house, progress)
        # Before and after: what goes from the spill file into the database meanwhile is in one of the two.
        spill = _spill(house)
        progress("数据库 / database")
        records = _keep_database(house, writer, progress)
        missing = _keep_recordings(house, writer, records, progress)
        if missing and any(not path.endswith(".flac") for path in missing):
            # An original was encoded between the two: its row tells of the encoded file by now.
            progress(
                "录音刚刚编码，再取一次数据库 / recordings were encoded meanwhile: the database once more"
            )
            records = _keep_database(house, writer, progress)
            missing = _keep_recordings(house, writer, records, progress)
        spill += _spill(house)
        if spill:
            writer.add(SPILL, io.BytesIO(spill), size=len(spill))
        _keep_tree(house.flows, FLOWS, writer)
        if house.settings_file is not None:
            _keep_file(house.settings_file, f"{SETTINGS}/{house.settings_file.name}", writer)
        problems = [f"{path}: 文件不在 there is no file" for path in sorted(missing)]
        for path, (size, sha256) in records.recordings.items():
            entry = writer.files.get(f"{RECORDINGS}/{path}")
            if entry is not None and (entry.bytes, entry.sha256) != (size, sha256):
                problems.append(f"{path}: 内容已变 its content is not what the database says")
        manifest = Manifest(
            _name(target, began),
            began,
            importlib.metadata.version("callcenter"),
            house.dialect,
            records.schema,
            records.counts,
            tuple(problems),
            tuple(writer.files.values()),
        )
        progress(f"清单 / manifest {manifest.name}")
        writer.seal(manifest)
        if keep is not None and isinstance(writer, _ShelfWriter) and (forgotten := Shelf(target).prune(keep)):
            progress(f"删去 {forgotten} 个旧备份 / old backups removed")
    return manifest


def _let_the_journal_write(house: House, progress: Progress) -> None:
    """See the engine once with nothing waiting: then all that had ended before is in the database."""
    deadline = time.monotonic() + _JOURNAL_SECONDS
    while house.metrics:
        try:
            with urllib.request.urlopen(house.metrics, timeout=2, context=_our_own()) as answer:  # noqa: S310 - our own address
                told = re.search(rb"^callcenter_journal_pending (\S+)", answer.read(), re.MULTILINE)
        except OSError:
            return  # no engine is running
        if told is None or float(told[1]) == 0:
            return
        if time.monotonic() > deadline:
            progress(
                "部分记录尚未入库，连同待写文件一起备份 / some records are not in the database yet; their file is kept too"
            )
            return
        time.sleep(0.05)


def _our_own() -> ssl.SSLContext:
    """We ask this very machine and tell it nothing; its certificate may be of its own making."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _name(target: Path, began: datetime) -> str:
    name, number = f"{began:%Y%m%dT%H%M%SZ}", 1
    while (target / f"{name}.json").exists():
        number += 1
        name = f"{began:%Y%m%dT%H%M%SZ}-{number}"
    return name


def _keep_database(house: House, writer: _Writer, progress: Progress) -> _Records:
    copy = writer.workshop / DATABASE
    with suppress(FileNotFoundError):
        copy.unlink()
    if house.dialect == "sqlite":
        _copy_sqlite(house.sqlite_file, copy, progress)
        records = asyncio.run(_look_into(f"sqlite:///{copy}"))
    else:
        records = asyncio.run(_dump_postgres(house.database_url, copy))
    with copy.open("rb") as file:
        writer.add(DATABASE, file, size=copy.stat().st_size)
    copy.unlink()
    return records


def _copy_sqlite(source: Path, copy: Path, progress: Progress) -> None:
    if not source.is_file():
        raise BackupFailed(f"{source} 不存在，没有可备份的 / does not exist: there is nothing to back up")

    def tell(_status: int, left: int, pages: int) -> None:
        if pages > _PAGES:
            progress(f"数据库 / database {100 * (pages - left) // pages} %")

    copy.touch(mode=0o600)
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, isolation_level=None)) as living,
        closing(sqlite3.connect(copy)) as kept,
    ):
        # Held by a transaction that reads, the source stays as it is for us: else every write of the engine
        # would start the copy anew (sqlite.org/c3ref/backup_finish.html).
        living.execute("BEGIN")
        living.execute("SELECT count(*) FROM sqlite_master").fetchone()
        living.backup(kept, pages=_PAGES, progress=tell)


async def _look_into(url: str) -> _Records:
    async with Database.connect(url) as database, database.read() as connection:
        return await _records(connection)


async def _records(connection: AsyncConnection) -> _Records:
    version = await schema_of(connection)
    if version is None:
        raise BackupFailed("数据库还没有建立 / the database is not set up yet: there is nothing to back up")
    tables = set(await connection.run_sync(lambda sync: metadata.tables.keys() & _tables_of(sync)))
    counts = {
        name: (await connection.execute(select(func.count()).select_from(metadata.tables[name]))).scalar_one()
        for name in sorted(tables)
    }
    table = schema.recordings.c
    rows = await connection.execute(select(table.path, table.bytes, table.sha256))
    return _Records(version, counts, {row.path: (row.bytes, row.sha256) for row in rows})


def _tables_of(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def _dump_postgres(url: str, copy: Path) -> _Records:
    """The dump sees exactly what was counted: it works in our transaction's snapshot."""
    async with Database.connect(url) as database, database.read() as connection:
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        snapshot = (await connection.execute(text("SELECT pg_export_snapshot()"))).scalar_one()
        await _postgres("pg_dump", url, "--format=custom", f"--snapshot={snapshot}", f"--file={copy}")
        return await _records(connection)


async def _postgres(program: str, url: str, *options: str) -> None:
    """Run one of PostgreSQL's own programs; the password goes through the environment, never the command line."""
    if shutil.which(program) is None:
        raise BackupFailed(
            f"缺少 {program}，请安装 PostgreSQL 客户端 / {program} is missing: install PostgreSQL's client programs "
            "(Debian: apt-get install postgresql-client), of the server's version or newer."
        )
    address = make_url(url)
    environment = dict(os.environ) | ({"PGPASSWORD": str(address.password)} if address.password else {})
    where = [f"--dbname={address.database}"] if address.database else []
    where += [f"--host={address.host}"] if address.host else []
    where += [f"--port={address.port}"] if address.port else []
    where += [f"--username={address.username}"] if address.username else []
    process = await asyncio.create_subprocess_exec(
        program, *where, "--no-password", *options, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise BackupFailed(f"{program} 失败 / failed: {' '.join(last)}")


def _keep_recordings(house: House, writer: _Writer, records: _Records, progress: Progress) -> set[str]:
    """Every file below the recordings; says which of those in the database are not there."""
    seen: set[str] = set()
    for number, path in enumerate(_files(house.recordings), start=1):
        name = path.relative_to(house.recordings).as_posix()
        size, sha256 = records.recordings.get(name, (0, ""))
        with suppress(FileNotFoundError):  # encoded in this moment: the encoded one is, or will be, met too
            if (
                not sha256
                or path.stat().st_size != size
                or not writer.has(f"{RECORDINGS}/{name}", sha256, size=size)
            ):
                _keep_file(path, f"{RECORDINGS}/{name}", writer)
            seen.add(name)
        if not number % _EVERY:
            progress(f"{number} 个录音文件 / recordings")
    # Encoded after its directory was read: the file is there under its new name.
    for name in records.recordings.keys() - seen:
        with suppress(FileNotFoundError):
            _keep_file(house.recordings / name, f"{RECORDINGS}/{name}", writer)
            seen.add(name)
    return {name for name in records.recordings.keys() - seen if records.recordings[name][1]}


def _keep_tree(root: Path, directory: str, writer: _Writer) -> None:
    for path in _files(root):
        _keep_file(path, f"{directory}/{path.relative_to(root).as_posix()}", writer)


def _keep_file(path: Path, name: str, writer: _Writer) -> None:
    with path.open("rb") as file:
        writer.add(name, file, size=os.fstat(file.fileno()).st_size)


def _spill(house: House) -> bytes:
    """The whole lines of what the journal could not write yet."""
    try:
        data = (house.data_dir / SPILL).read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


# --- restore --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Laid:
    """What a restore has put down, to be taken away again if it does not come to its end."""

    files: list[Path] = field(default_factory=list)

    def file(self, path: Path, source: IO[bytes], entry: Entry) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                copied = _copy(source, file, entry.bytes)
                file.flush()
                os.fsync(file.fileno())
            _expect_whole(entry, *copied)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self.files.append(path)

    def take_away(self) -> None:
        for path in self.files:
            path.unlink(missing_ok=True)


def _expect_whole(entry: Entry, sha256: str, size: int) -> None:
    if (sha256, size) != (entry.sha256, entry.bytes):
        raise BackupFailed(f"{entry.name}: 备份中的内容已损坏 / is damaged in the backup; use an earlier one")


def restore(
    source: Path, house: House, *, progress: Progress, name: str | None = None, flows: bool = True
) -> tuple[Manifest, list[Check]]:
    """Bring a backup back into an empty house, to today's schema, and look whether it is whole.

    RestoreRefused when the house is in use or not empty; BackupFailed when the backup is not what it was.
    """
    with vault(source) as kept:
        manifest = kept.manifest(name)
        house.data_dir.mkdir(parents=True, exist_ok=True)
        with _nobody_works_in(house):
            _bring_back(kept, manifest, house, flows=flows, progress=progress)
            progress("核对 / verifying")
            return manifest, asyncio.run(look(house, at=manifest.taken_at, progress=progress))


def _bring_back(kept: Vault, manifest: Manifest, house: House, *, flows: bool, progress: Progress) -> None:
    _is_empty(house, kept, manifest, flows=flows)
    laid = _Laid()
    try:
        _lay_files(house, kept, manifest, laid, flows=flows, progress=progress)
        progress("数据库 / database")
        _lay_database(house, kept, manifest, laid, progress)
    except BaseException:
        laid.take_away()
        raise


async def look(house: House, *, at: datetime, progress: Progress) -> list[Check]:
    async with Database.connect(house.database_url) as database:
        return await verify(database, Folder(house.recordings), at=at, progress=progress)


@contextmanager
def _nobody_works_in(house: House) -> Iterator[None]:
    with (house.data_dir / "callcenter.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RestoreRefused(
                f"{house.data_dir} 正在使用，请先停掉 callcenter / is in use: stop callcenter first."
            ) from error
        yield


def _is_empty(house: House, kept: Vault, manifest: Manifest, *, flows: bool) -> None:
    if house.dialect != manifest.dialect:
        raise RestoreRefused(
            f"备份来自 {manifest.dialect}，而设置的数据库是 {house.dialect} / the backup is of a {manifest.dialect} database: "
            "set database.url to one of that kind."
        )
    if house.dialect == "sqlite":
        if house.sqlite_file.exists() and house.sqlite_file.stat().st_size:
            raise RestoreRefused(
                f"{house.sqlite_file} 已存在，请先移走，或另设 data_dir / exists already: move it away, or set another data_dir."
            )
    elif asyncio.run(_has_tables(house.database_url)):
        raise RestoreRefused(
            "数据库不是空的，请新建一个并改 database.url / the database is not empty: make a new one and set database.url to it."
        )
    _no_other_files(house.recordings, manifest.below(RECORDINGS), "recordings.dir")
    spill = house.data_dir / SPILL
    if spill.exists() and spill.stat().st_size:
        raise RestoreRefused(
            f"{spill} 中还有未入库的记录，请先移走 / holds records of another house: move it away."
        )
    if flows:
        _no_other_files(house.flows, manifest.below(FLOWS), "flows.dir (--without-flows)")


async def _has_tables(url: str) -> bool:
    async with Database.connect(url) as database, database.read() as connection:
        return bool(await connection.run_sync(_tables_of))


def _no_other_files(root: Path, wanted: Mapping[str, Entry], setting: str) -> None:
    """What a restore that was cut short has left is no obstacle: it is the same."""
    for path in _files(root):
        entry = wanted.get(path.relative_to(root).as_posix())
        if entry is None or path.stat().st_size != entry.bytes or _digest(path) != entry.sha256:
            raise RestoreRefused(
                f"{root} 不是空的（如 {path.name}），请移走，或另设 {setting} / is not empty: move it away, or set another {setting}."
            )


def _lay_files(
    house: House, kept: Vault, manifest: Manifest, laid: _Laid, *, flows: bool, progress: Progress
) -> None:
    wanted = {house.recordings / name: entry for name, entry in manifest.below(RECORDINGS).items()}
    if flows:
        wanted |= {house.flows / name: entry for name, entry in manifest.below(FLOWS).items()}
    wanted |= {
        # The settings that brought us here stay in force.
        house.data_dir / f"{name}.restored": entry
        for name, entry in manifest.below(SETTINGS).items()
    }
    for number, (path, entry) in enumerate(wanted.items(), start=1):
        if not path.exists():
            with kept.open(entry) as source:
                laid.file(path, source, entry)
        if not number % _EVERY:
            progress(f"{number}/{len(wanted)} 个文件 / files")


def _lay_database(house: House, kept: Vault, manifest: Manifest, laid: _Laid, progress: Progress) -> None:
    """The database last and at once: until then there is nothing that could be started."""
    entry = manifest.entry(DATABASE)
    making = house.data_dir / f".{DATABASE}.restoring"
    url = house.database_url
    try:
        with kept.open(entry) as source:
            _Laid().file(making, source, entry)
        if house.dialect == "sqlite":
            url = f"sqlite:///{making}"
        else:
            options = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
            asyncio.run(_postgres("pg_restore", url, *options, str(making)))
        asyncio.run(migrate(url, progress=progress))
        if any(entry.name == SPILL for entry in manifest.files):
            progress("未入库的记录 / records that were still waiting")
            spill = making.with_name(f".{SPILL}.restoring")
            try:
                with kept.open(manifest.entry(SPILL)) as source:
                    _Laid().file(spill, source, manifest.entry(SPILL))
                asyncio.run(_drain(url, spill))
            finally:
                spill.unlink(missing_ok=True)
        if house.dialect == "sqlite":
            _sync(making)
            house.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            making.replace(house.sqlite_file)
            _sync(house.sqlite_file.parent)
            laid.files.append(house.sqlite_file)
    finally:
        for left in making.parent.glob(f"{making.name}*"):
            left.unlink()


async def _drain(url: str, spill: Path) -> None:
    """Write what the journal of the kept house could not."""
    async with Database.connect(url) as database:
        journal = Journal(TicketStore(database), spill_path=spill, on_opened=lambda _: None)
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(journal.run(), name="journal")
            await asyncio.sleep(0)  # it opens its file in its first step
            written = await journal.flush(_SPILL_SECONDS)
            writing.cancel()
    if not written:
        raise BackupFailed("未入库的记录写不进去 / the records that were waiting could not be written")


# --- looking at a backup ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kept:
    """The recordings of a backup, whose bytes were looked at before."""

    entries: Mapping[str, Entry]

    def names(self) -> Iterable[str]:
        return self.entries.keys()

    def digest(self, name: str) -> tuple[int, str] | None:
        entry = self.entries.get(name)
        return None if entry is None else (entry.bytes, entry.sha256)


def verify_backup(
    source: Path, *, progress: Progress, name: str | None = None
) -> tuple[Manifest, list[Check]]:
    """Read every byte of a backup; of a SQLite one also every record, as in a living house."""
    with vault(source) as kept:
        manifest = kept.manifest(name)
        found = [_all_there(kept, manifest, progress), _well_when_taken(manifest)]
        if found[0].faults:
            return manifest, found
        with tempfile.TemporaryDirectory(prefix="callcenter-") as directory:
            copy = Path(directory) / DATABASE
            entry = manifest.entry(DATABASE)
            with kept.open(entry) as file:
                _Laid().file(copy, file, entry)
            if manifest.dialect == "sqlite":
                found.append(_integrity(copy))
                asyncio.run(migrate(f"sqlite:///{copy}", progress=progress))
                found += asyncio.run(_look_at_copy(copy, manifest, progress))
            else:
                found.append(_dump_reads(copy))
        return manifest, found


def _all_there(kept: Vault, manifest: Manifest, progress: Progress) -> Check:
    check = Check("备份的每个文件都在且未变", "every file of the backup is there and unchanged")
    for number, entry in enumerate(manifest.files, start=1):
        try:
            with kept.open(entry) as file:
                _, digest = _read(file)
        except (OSError, KeyError, tarfile.TarError):
            check.expect(False, f"{entry.name}: 缺失 missing")
        else:
            check.expect(digest == entry.sha256, f"{entry.name}: 已变 changed")
        if not number % _EVERY:
            progress(f"{number}/{len(manifest.files)} 个文件 / files")
    return check


def _well_when_taken(manifest: Manifest) -> Check:
    check = Check("备份时录音齐全", "no recording was missing or changed when it was taken")
    check.looked_at = manifest.counts.get("recordings", 0)
    for problem in manifest.problems:
        check.fails(problem)
    return check


async def _look_at_copy(copy: Path, manifest: Manifest, progress: Progress) -> list[Check]:
    async with Database.connect(f"sqlite:///{copy}") as database:
        return await verify(
            database, _Kept(manifest.below(RECORDINGS)), at=manifest.taken_at, progress=progress
        )


def _integrity(copy: Path) -> Check:
    check = Check("SQLite 文件完好", "SQLite's own integrity check")
    with closing(sqlite3.connect(copy)) as connection:
        for (said,) in connection.execute("PRAGMA integrity_check"):
            check.expect(said == "ok", said)
    return check


def _dump_reads(copy: Path) -> Check:
    check = Check("PostgreSQL 的备份可读", "PostgreSQL can read its dump (only a restore shows its records)")
    try:
        asyncio.run(_list_dump(copy))
    except BackupFailed as error:
        check.expect(False, str(error))
    else:
        check.expect(True, "")
    return check


async def _list_dump(copy: Path) -> None:
    # Into nothing, but every byte is unpacked for it: `--list` would read the table of contents alone.
    await _postgres("pg_restore", "postgresql:///", f"--file={os.devnull}", str(copy))


# --- files ----------------------------------------------------------------------------------------------------


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".part"))


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> tuple[str, int]:
    """At most `size` bytes: a recording under way grows while it is read. Their sha256 and number."""
    digest, left = hashlib.sha256(), size
    while left and (data := source.read(min(_BLOCK, left))):
        digest.update(data)
        target.write(data)
        left -= len(data)
    return digest.hexdigest(), size - left


def _read(file: IO[bytes]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while data := file.read(_BLOCK):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _read(file)[1]


def _write_whole(path: Path, data: bytes, *, by: Path) -> None:
    part = by / path.name
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
