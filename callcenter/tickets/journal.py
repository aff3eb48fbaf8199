"""The way of every change into the database: nothing is lost, nothing is written twice, no call ever waits for it.

While the database can be written, changes wait in memory for some milliseconds: those that come while a transaction is
under way, or right behind it, share the next one. While it cannot, everything that waits
goes to the spill file with each try, so that a killed process loses no more than the last seconds; when it is back, the
file is written first and then emptied. Writing something twice is harmless (``TicketStore.apply``), so every doubt is
settled by writing again.
"""

import asyncio
import fcntl
import io
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import TypeAdapter
from sqlalchemy.exc import DBAPIError

from callcenter.database import DatabaseAway, Unstorable
from callcenter.domain.agents import Agent
from callcenter.domain.calls import Call, CallId
from callcenter.domain.messages import TicketOpened
from callcenter.domain.recordings import RecordingFile
from callcenter.tickets.store import AgentRecord, Batch, TicketStore, call_from_json, call_json

WRITE_SECONDS = 20.0
"""A batch that takes longer counts as failed and is tried again."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
BATCH_SIZE = 200
GATHER_SECONDS = 0.05
"""Between two transactions: a call changes a dozen times, and a transaction costs as much as what is in it."""
_AGENT = TypeAdapter(AgentRecord)
_RECORDING = TypeAdapter(RecordingFile)

_log = structlog.get_logger()


class SpillInUse(Exception):  # noqa: N818 - read as a sentence by whoever starts the centre
    """Another process has this spill file open: a data directory belongs to one engine."""


class Journal:
    """Takes changes at once and writes them, many in one transaction.

    The newest version of a call takes the place of the one that waits, so that what waits is bounded by the living
    calls and the seconds one try may take; beyond `capacity` things it goes to the spill file while the try is still
    under way. `on_opened` may be told the same ticket more than once. `spill_path` belongs to one journal alone; what
    the database refuses for good stands beside it in ``<spill_path>.refused``.
    """

    def __init__(
        self,
        store: TicketStore,
        *,
        spill_path: Path,
        on_opened: Callable[[TicketOpened], None],
        capacity: int = 10_000,
    ) -> None:
        self._store = store
        self._spill = _Spill(spill_path)
        self._on_opened = on_opened
        self._capacity = capacity
        self._calls: dict[CallId, Call] = {}
        self._agents: list[AgentRecord] = []
        self._recordings: list[RecordingFile] = []
        self._in_hand = 0
        self._degraded = False
        self._spill_fails = False
        self._pause = FIRST_PAUSE_SECONDS
        self._wanted = asyncio.Event()
        self._enough = asyncio.Event()
        """No more gathering: a whole batch waits, or somebody waits for everything to be written."""
        self._overfull = asyncio.Event()
        self._all_written = asyncio.Event()

    # --- taking ---------------------------------------------------------------------------------------------

    def put_call(self, call: Call) -> None:
        waiting = self._calls.get(call.call_id)
        if waiting is None or waiting.version <= call.version:
            self._calls[call.call_id] = call
        self._has_come()

    def put_agent(self, agent: Agent) -> None:
        record = AgentRecord.of(agent)
        if record is not None:
            self._agents.append(record)
            self._has_come()

    def put_recordings(self, call_id: CallId, files: Sequence[RecordingFile]) -> None:
        if any(file.call_id != call_id for file in files):
            raise ValueError(f"These recordings are not all of call {call_id}.")
        if files:
            self._recordings.extend(files)
            self._has_come()

    @property
    def pending(self) -> int:
        """How many things are not in the database yet, those in the spill file included."""
        return self._waiting + self._in_hand + self._spill.lines

    @property
    def degraded(self) -> bool:
        """The database could not be written when last tried."""
        return self._degraded

    @property
    def in_memory_alone(self) -> bool:
        """The spill file cannot be written either: a process that ends now loses what waits."""
        return self._degraded and self._spill_fails

    async def flush(self, timeout: float) -> bool:  # noqa: ASYNC109 - not an error: what is left gets spilled
        """Wait up to `timeout` seconds until everything is in the database; False when something is left."""
        self._enough.set()
        try:
            async with asyncio.timeout(timeout):
                await self._all_written.wait()
        except TimeoutError:
            return False
        return True

    # --- writing --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until cancelled; what is left then goes to the spill file. SpillInUse when that is another's."""
        with self._spill.opened():
            self._wanted.set()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._write_forever(), name="journal-writer")
                    tasks.create_task(self._watch_capacity(), name="journal-capacity")
            finally:
                self._spill_the_rest()

    def _spill_the_rest(self) -> None:
        """Not in a thread: a cancelled task would not wait for it. OSError when it is lost."""
        rest = self._take(None)
        try:
            self._spill.append(rest)
        except OSError:
            _log.error("journal.lost", records=len(rest))
            raise

    async def _write_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._write_everything()
                await self._gather()
            except (DatabaseAway, DBAPIError, TimeoutError) as error:
                if not self._degraded:
                    _log.error("journal.database_away", reason=str(error)[:300])
                self._degraded = True
                self._wanted.set()
                await self._put_aside()
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def _gather(self) -> None:
        if self._waiting < BATCH_SIZE:
            self._enough.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._enough.wait()

    async def _write_everything(self) -> None:
        while self._spill.lines:
            read = await asyncio.to_thread(self._spill.read, BATCH_SIZE)
            for line in read.unreadable:
                await self._refuse(line, reason="unreadable")
            await self._write(read.batch)
            await asyncio.to_thread(self._spill.written, read)
        while batch := self._take(BATCH_SIZE):
            self._in_hand += len(batch)
            try:
                await self._write(batch)
            except BaseException:
                self._put_back(batch)
                raise
            finally:
                self._in_hand -= len(batch)
        if not self.pending:
            self._all_written.set()

    async def _write(self, batch: Batch) -> None:
        try:
            opened = await self._try(batch)
        except Unstorable:
            # One bad thing must not keep the others out.
            opened = []
            for single in batch.singles():
                try:
                    opened += await self._try(single)
                except Unstorable as error:
                    await self._refuse("".join(_lines(single)), reason=str(error))
        for ticket in opened:
            self._on_opened(ticket)

    async def _try(self, batch: Batch) -> list[TicketOpened]:
        if not batch:
            return []
        async with asyncio.timeout(WRITE_SECONDS):
            opened = await self._store.apply(batch)
        if self._degraded:
            _log.info("journal.database_back")
        self._degraded = self._spill_fails = False
        self._pause = FIRST_PAUSE_SECONDS
        return opened

    async def _refuse(self, line: str, *, reason: str) -> None:
        _log.error("journal.refused", reason=reason[:300], file=str(self._spill.refused_path))
        await asyncio.to_thread(self._spill.refuse, line)

    async def _watch_capacity(self) -> None:
        while True:
            await self._overfull.wait()
            self._overfull.clear()
            if not await self._put_aside():
                # The disk is full too: memory is all there is until something gives way.
                await asyncio.sleep(LONGEST_PAUSE_SECONDS)

    async def _put_aside(self) -> bool:
        """Move what waits to the spill file; False when that cannot be written either."""
        batch = self._take(None)
        self._in_hand += len(batch)
        try:
            await asyncio.to_thread(self._spill.append, batch)
        except OSError as error:
            self._put_back(batch)
            if not self._spill_fails:
                _log.error("journal.spill_failed", reason=str(error), pending=self.pending)
            self._spill_fails = True
            return False
        except BaseException:
            self._put_back(batch)
            raise
        finally:
            self._in_hand -= len(batch)
        self._spill_fails = False
        self._wanted.set()
        return True

    # --- what waits -----------------------------------------------------------------------------------------

    @property
    def _waiting(self) -> int:
        return len(self._calls) + len(self._agents) + len(self._recordings)

    def _has_come(self) -> None:
        self._all_written.clear()
        self._wanted.set()
        if self._waiting >= BATCH_SIZE:
            self._enough.set()
        if self._waiting > self._capacity:
            self._overfull.set()

    def _take(self, limit: int | None) -> Batch:
        """Take the oldest `limit` things of each kind out of memory, all of them for None."""
        calls = tuple(itertools.islice(self._calls.values(), limit))
        for call in calls:
            del self._calls[call.call_id]
        batch = Batch(calls, tuple(self._agents[:limit]), tuple(self._recordings[:limit]))
        del self._agents[:limit], self._recordings[:limit]
        return batch

    def _put_back(self, batch: Batch) -> None:
        for call in batch.calls:
            newer = self._calls.get(call.call_id)
            if newer is None or newer.version < call.version:
                self._calls[call.call_id] = call
        self._agents[:0] = batch.agents
        self._recordings[:0] = batch.recordings


@dataclass(frozen=True, slots=True)
class _Read:
    batch: Batch
    unreadable: tuple[str, ...]
    lines: int
    until: int
    """The byte after the last line."""


class _Spill:
    """JSON lines in a file that one process holds; every append is on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused_path = path.with_name(f"{path.name}.refused")
        self.lines = 0
        """Lines not yet in the database."""
        self._offset = 0
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        with io.FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SpillInUse(
                    f"{self.path} is held by another process; give every engine its own data directory."
                ) from error
            whole = file.readall().rfind(b"\n") + 1
            # What follows the last line end was being written when its process was killed.
            file.truncate(whole)
            file.seek(0)
            self.lines = file.read(whole).count(b"\n") if whole else 0
            self._offset = 0
            self._file = file
            try:
                yield
            finally:
                with self._lock:
                    self._file = None

    def append(self, batch: Batch) -> None:
        """OSError when the disk does not take it; then the file is as it was."""
        lines = _lines(batch)
        if not lines:
            return
        with self._lock:
            file = self._held()
            end = file.seek(0, os.SEEK_END)
            try:
                _write_fully(file, "".join(lines).encode())
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
            self.lines += len(lines)

    def read(self, limit: int) -> _Read:
        with self._lock:
            file = self._held()
            file.seek(self._offset)
            with open(file.fileno(), "rb", closefd=False) as buffered:
                raw = list(itertools.islice(buffered, limit))
        calls, agents, recordings, unreadable = [], [], [], []
        for line in raw:
            try:
                match json.loads(line):
                    case {"call": dict() as call}:
                        calls.append(call_from_json(json.dumps(call)))
                    case {"agent": dict() as agent}:
                        agents.append(_AGENT.validate_json(json.dumps(agent)))
                    case {"recording": dict() as recording}:
                        recordings.append(_RECORDING.validate_json(json.dumps(recording)))
                    case _:
                        unreadable.append(line.decode(errors="replace"))
            except ValueError:  # JSON's and pydantic's errors alike
                unreadable.append(line.decode(errors="replace"))
        batch = Batch(tuple(calls), tuple(agents), tuple(recordings))
        return _Read(batch, tuple(unreadable), len(raw), self._offset + sum(map(len, raw)))

    def written(self, read: _Read) -> None:
        """These lines are in the database; an emptied file starts anew."""
        with self._lock:
            file = self._held()
            self._offset = read.until
            self.lines -= read.lines
            if file.seek(0, os.SEEK_END) == self._offset:
                file.truncate(0)
                self._offset = 0

    def refuse(self, line: str) -> None:
        descriptor = os.open(self.refused_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
            file.write(line if line.endswith("\n") else f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def _held(self) -> io.FileIO:
        if self._file is None:
            raise OSError(f"{self.path} is not open: the journal is not running.")
        return self._file


def _lines(batch: Batch) -> list[str]:
    return [
        *(f'{{"call":{call_json(call)}}}\n' for call in batch.calls),
        *(f'{{"agent":{_AGENT.dump_json(agent).decode()}}}\n' for agent in batch.agents),
        *(f'{{"recording":{_RECORDING.dump_json(file).decode()}}}\n' for file in batch.recordings),
    ]


def _write_fully(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
