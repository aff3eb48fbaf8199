"""Recordings: where Asterisk writes them, and how they become small, checked, final files.

Asterisk writes headerless 16-bit linear audio, which a crash cannot spoil. When the call is over each file is encoded
without loss, decoded again and compared, and only then is the original removed: a recording is evidence. What a party
said while only the caller heard it stands in the file of the call alone, and is cut from it (docs/adr/0004).
"""

import asyncio
import fcntl
import hashlib
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from weakref import WeakValueDictionary
from zoneinfo import ZoneInfo

import numpy as np
import soundfile

from callcenter.domain.calls import Call, CallId, LegId, StepKind
from callcenter.domain.recordings import (
    MISSING,
    RecordingFile,
    RecordingKind,
    heard_in_call,
    recorded_since,
)

__all__ = ["Finished", "Kept", "NoSuchRecording", "RecordingFile", "RecordingKind", "Recordings"]

SAMPLE_RATE = 8000
CLOSE_SECONDS = 5.0
"""How long after the call's end Asterisk may take to close its files."""
_SETTLED_SECONDS = 1.0
_COMPRESSION = 0.0
"""FLAC's quickest: half the CPU of its default, for speech seven per cent larger."""
_BLOCK_FRAMES = 10 * SAMPLE_RATE
_SHANGHAI = ZoneInfo("Asia/Shanghai")
_SAFE_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_ORIGINAL = re.compile(r"(?:(call)|leg-([1-9][0-9]{0,3}))\.raw|(message)\.wav")
_CALL = "call.raw"
_LEFT, _RIGHT = 0, 1

Frames = np.ndarray[tuple[int, ...], np.dtype[np.int16]]


class NoSuchRecording(Exception):  # noqa: N818 - an answer to who asked
    """There is no recording under this path."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An original that could not be encoded now; ``sweep`` tries again."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    call_id: CallId
    files: tuple[RecordingFile, ...] = ()
    """What exists now; a kept original is here too, with its own codec."""
    missing: tuple[RecordingFile, ...] = ()
    """Those the call should have left and did not, or left empty; ``codec`` says so, there is no file."""
    kept: tuple[Kept, ...] = ()
    """Not empty: somebody must look (disk full, a file still open)."""


class _Open(Enum):
    YES = auto()
    NO = auto()
    UNKNOWN = auto()
    """This file system or user cannot tell."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What an original gives to a final file."""

    original: Path
    channel: int | None = None
    """None: all it has."""
    begin: int = 0
    end: int = sys.maxsize
    """Frames of the original."""


@dataclass(frozen=True, slots=True)
class _Output:
    """A final file and what it is made of, in order."""

    final: Path
    pieces: tuple[_Piece, ...]

    @property
    def originals(self) -> set[Path]:
        return {piece.original for piece in self.pieces}


@dataclass(slots=True)
class _Work:
    """What has become of a call's files so far."""

    files: list[RecordingFile] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    """Names of the files that come to be once what was kept can be encoded."""


class Recordings:
    """All recordings under one directory: ``YYYY/MM/DD/<call id>/``, the day in Shanghai on which the call arrived."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        # One at a time: the other cores are for the living calls.
        self._encoding = asyncio.Semaphore(1)
        # A sweep and the end of a call may meet at one directory; a lock lives as long as somebody holds it.
        self._locks: WeakValueDictionary[CallId, asyncio.Lock] = WeakValueDictionary()

    def raw_path(self, call: Call, leg_id: LegId, kind: RecordingKind) -> Path:
        """Where Asterisk shall write; the directory exists afterwards. ValueError for ids that are no safe name."""
        directory = self._directory(call)
        if not directory.is_dir():
            self._make(directory)
        match RecordingKind(kind):
            case RecordingKind.CALL:
                return directory / "call.raw"
            case RecordingKind.LEG:
                return directory / f"{_leg_name(call.call_id, leg_id)}.raw"
            case RecordingKind.MESSAGE:
                return directory / "message.wav"

    def _make(self, directory: Path) -> None:
        """With the same rights all the way up, which ``parents=True`` alone would not give."""
        for path in [*reversed(directory.relative_to(self._root).parents), directory.relative_to(self._root)]:
            (self._root / path).mkdir(mode=0o750, parents=True, exist_ok=True)

    async def finish(self, call: Call) -> Finished:
        """Make an ended call's files final; doing it again only describes them. Never raises for a bad file."""
        done = await self._finish(call.call_id, self._directory(call), call)
        there = {Path(file.path).stem for file in done.files} | done.waiting
        expected: list[tuple[str, RecordingKind, LegId | None]] = []
        if any(step.kind is StepKind.MESSAGE_LEFT for step in call.steps):
            expected.append(("message", RecordingKind.MESSAGE, None))
        if call.answered_at is not None:
            expected.append(("call", RecordingKind.CALL, None))
            expected += [
                (_leg_name(call.call_id, leg.leg_id), RecordingKind.LEG, leg.leg_id)
                for leg in call.legs
                if leg.answered_at is not None
            ]
        missing = [
            self._missing(call, name, kind, leg_id) for name, kind, leg_id in expected if name not in there
        ]
        return Finished(call.call_id, tuple(done.files), tuple(missing), tuple(done.kept))

    def _missing(self, call: Call, name: str, kind: RecordingKind, leg_id: LegId | None) -> RecordingFile:
        path = self._relative(self._directory(call) / f"{name}.flac")
        return RecordingFile(call.call_id, leg_id, kind, path, 0.0, 0, "", MISSING)

    async def sweep(
        self, living: Callable[[], Collection[CallId]], record_of: Callable[[CallId], Awaitable[Call | None]]
    ) -> list[Finished]:
        """Finish what an earlier crash or a full disk left behind, but for the calls that still live.

        A call of which there is no record has the files that can be made without one.
        """
        done = []
        for directory in await asyncio.to_thread(lambda: sorted({path.parent for path in self._originals()})):
            call_id = CallId(directory.name)
            if call_id in living():
                continue
            call = await record_of(call_id)
            if call is not None and self._directory(call) == directory:
                done.append(await self.finish(call))
            else:
                work = await self._finish(call_id, directory, None)
                done.append(Finished(call_id, tuple(work.files), kept=tuple(work.kept)))
        return done

    def open(self, path: str) -> Path:
        """The file at a path that ``RecordingFile`` told; NoSuchRecording for anything else, outside or absent."""
        try:
            found = (self._root / path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise NoSuchRecording("There is no such recording.") from error
        if not found.is_relative_to(self._root) or not found.is_file():
            raise NoSuchRecording("There is no such recording.")
        return found

    def _directory(self, call: Call) -> Path:
        if not _SAFE_ID.fullmatch(call.call_id) or len(call.call_id) > 80:
            raise ValueError("This call id cannot be the name of a directory.")
        return self._root / f"{call.arrived_at.astimezone(_SHANGHAI):%Y/%m/%d}" / call.call_id

    def _originals(self) -> Iterator[Path]:
        for path in self._root.glob("[0-9][0-9][0-9][0-9]/[0-9][0-9]/[0-9][0-9]/*/*"):
            if _ORIGINAL.fullmatch(path.name) and _SAFE_ID.fullmatch(path.parent.name):
                yield path

    async def _finish(self, call_id: CallId, directory: Path, call: Call | None) -> _Work:
        lock = self._locks.setdefault(call_id, asyncio.Lock())
        async with lock:
            deadline = asyncio.get_running_loop().time() + CLOSE_SECONDS
            work, originals = _Work(), []
            for path in await asyncio.to_thread(_originals_in, directory):
                try:
                    if not await _closed(path, deadline=deadline):
                        work.kept.append(Kept(self._relative(path), "It is still being written."))
                        continue
                except OSError as error:
                    work.kept.append(Kept(self._relative(path), f"It cannot be read: {error}"))
                    continue
                originals.append(path)
            async with self._encoding:
                await asyncio.to_thread(self._finish_files, call_id, directory, call, originals, work)
        return work

    def _finish_files(
        self, call_id: CallId, directory: Path, call: Call | None, originals: Sequence[Path], work: _Work
    ) -> None:
        still_open = {self._root / kept.path for kept in work.kept}
        for group in _grouped(_outputs(call, [*originals, *still_open])):
            used = set[Path]().union(*(output.originals for output in group))
            if not used.isdisjoint(still_open):
                work.waiting |= {output.final.stem for output in group}
                work.kept += [
                    Kept(self._relative(path), "It waits for another file of its call.")
                    for path in sorted(used - still_open)
                ]
                continue
            try:
                made = _encode(group)
            except (OSError, soundfile.SoundFileError) as error:
                work.waiting |= {output.final.stem for output in group}
                for path in sorted(used):
                    with suppress(OSError):
                        work.files.append(self._describe(call_id, path, seconds=_seconds(path)))
                    reason = f"It could not be encoded (is the disk full?): {error}"
                    work.kept.append(Kept(self._relative(path), reason))
                continue
            for output in group:
                if output.final in made:
                    described = self._describe(call_id, output.final, seconds=made[output.final])
                    work.files.append(described)
            # The file of the call last: as long as it is there, nothing that was cut from it is made anew without it.
            for path in sorted(used, reverse=True):
                path.unlink()
        known = {Path(file.path).stem for file in work.files} | work.waiting
        for path in _finals_in(directory):
            if path.stem not in known:
                try:
                    seconds = soundfile.info(path).duration
                    work.files.append(self._describe(call_id, path, seconds=seconds))
                except (OSError, soundfile.SoundFileError) as error:
                    work.kept.append(Kept(self._relative(path), f"It cannot be read: {error}"))
        work.files.sort(key=lambda file: file.path)

    def _describe(self, call_id: CallId, path: Path, *, seconds: float) -> RecordingFile:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        number = path.stem.removeprefix("leg-")
        leg_id = None
        if number.isdigit():
            leg_id = LegId(call_id if number == "1" else f"{call_id}-{number}")
        return RecordingFile(
            call_id,
            leg_id,
            RecordingKind.LEG if leg_id else RecordingKind(path.stem),
            self._relative(path),
            round(seconds, 3),
            path.stat().st_size,
            digest,
            {".flac": "flac", ".raw": "slin", ".wav": "wav"}[path.suffix],
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _leg_name(call_id: CallId, leg_id: LegId) -> str:
    if str(leg_id) == call_id:
        return "leg-1"
    head, _, number = leg_id.rpartition("-")
    if head != call_id or not re.fullmatch("[1-9][0-9]{0,3}", number):
        raise ValueError("This leg is not one of the call.")
    return f"leg-{number}"


def _originals_in(directory: Path) -> list[Path]:
    return sorted(path for path in _paths(directory) if _ORIGINAL.fullmatch(path.name))


def _finals_in(directory: Path) -> list[Path]:
    final = re.compile(r"(call|leg-[1-9][0-9]{0,3}|message)\.flac")
    return sorted(path for path in _paths(directory) if final.fullmatch(path.name))


def _paths(directory: Path) -> Iterator[Path]:
    return directory.iterdir() if directory.is_dir() else iter(())


def _outputs(call: Call | None, originals: Sequence[Path]) -> list[_Output]:
    """The final files to make of these: each by itself, and of the call's file what was recorded nowhere else."""
    pieces = {path.stem: [_Piece(path)] for path in originals}
    whole = next((path for path in originals if path.name == _CALL), None)
    if whole is not None:
        # What stands there without its original was made before, when there was more to make it of.
        made = {path.stem for path in _finals_in(whole.parent)} - pieces.keys()
        if "leg-1" not in made:
            pieces.setdefault("leg-1", [_Piece(whole, _LEFT)])
        for name, heard in _heard_in(call, apart=set(pieces)) if call is not None else ():
            if name not in made:
                begin, end = (round(seconds * SAMPLE_RATE) for seconds in heard)
                pieces[name] = [_Piece(whole, _RIGHT, begin, end), *pieces.get(name, ())]
    directory = originals[0].parent if originals else Path()
    return [_Output(directory / f"{name}.flac", tuple(made_of)) for name, made_of in sorted(pieces.items())]


def _heard_in(call: Call, *, apart: Collection[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Which parties are heard in the file of the call, and nowhere else, and when."""
    for leg in call.legs[1:]:
        name, heard = _leg_name(call.call_id, leg.leg_id), heard_in_call(call, leg)
        from_the_start = recorded_since(call, leg) is None or leg.leg_id == call.fallback_leg_id
        recorded_all_along = name in apart and from_the_start
        if heard is not None and not recorded_all_along:
            yield name, heard


def _grouped(outputs: Sequence[_Output]) -> list[list[_Output]]:
    """What needs the file of the call together, all others alone: an original goes when all is made of it."""
    shared = [output for output in outputs if any(path.name == _CALL for path in output.originals)]
    return [*([shared] if shared else []), *([output] for output in outputs if output not in shared)]


class _Writer:
    """A final file as it comes to be."""

    def __init__(self, output: _Output, stack: ExitStack) -> None:
        self.output = output
        self.part = output.final.with_suffix(".flac.part")
        self.frames = 0
        self.written = hashlib.sha256()
        """Of the samples, to be compared with what is read back."""
        self._file = stack.enter_context(
            soundfile.SoundFile(
                self.part,
                "w",
                SAMPLE_RATE,
                _channels(output.final),
                "PCM_16",
                format="FLAC",
                compression_level=_COMPRESSION,
            )
        )

    def take(self, original: Path, block: Frames, *, at: int) -> None:
        """What this file is to hold of a block that begins at this frame."""
        for piece in self.output.pieces:
            if piece.original == original:
                part = block[max(0, piece.begin - at) : max(0, piece.end - at)]
                if piece.channel is not None:
                    part = part[:, piece.channel]
                if len(part):
                    part = np.ascontiguousarray(part)
                    self._file.write(part)
                    self.written.update(part.data)
                    self.frames += len(part)

    def check(self) -> None:
        """Look at every sample: a full disk can leave a file whose header promises more than there is. OSError."""
        read = hashlib.sha256()
        with soundfile.SoundFile(self.part) as file:
            while len(block := file.read(_BLOCK_FRAMES, dtype="int16")):
                read.update(np.ascontiguousarray(block).data)
        if read.digest() != self.written.digest():
            raise OSError("what was written does not read back as it was")
        _sync(self.part)


def _encode(group: Sequence[_Output]) -> dict[Path, float]:
    """Make these files, reading each original once; their seconds. Files of which nothing was recorded are not made.

    OSError, SoundFileError: none is made, or all that were are whole.
    """
    parts = [output.final.with_suffix(".flac.part") for output in group]
    try:
        with ExitStack() as stack:
            writers = [_Writer(output, stack) for output in group]
            # The file of the call comes before the parties' own by its name: they go on where it ends.
            for original in sorted(set[Path]().union(*(output.originals for output in group))):
                at = 0
                for block in _blocks(original, _channels(original)):
                    for writer in writers:
                        writer.take(original, block, at=at)
                    at += len(block)
        made = [writer for writer in writers if writer.frames]
        for writer in made:
            writer.check()
        for writer in made:
            writer.part.rename(writer.output.final)
        if made:
            _sync(group[0].final.parent)
        return {writer.output.final: writer.frames / SAMPLE_RATE for writer in made}
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _seconds(original: Path) -> float:
    """As far as it can be read."""
    frames = 0
    with suppress(OSError, soundfile.SoundFileError):
        for block in _blocks(original, _channels(original)):
            frames += len(block)
    return frames / SAMPLE_RATE


def _channels(path: Path) -> int:
    return 2 if path.stem == "call" else 1


async def _closed(path: Path, *, deadline: float) -> bool:
    """Wait until nobody has the file open for writing; False when that is not so at the deadline."""
    loop = asyncio.get_running_loop()
    pause, size, since = 0.01, -1, loop.time()
    while True:
        match _open_for_writing(path):
            case _Open.NO:
                return True
            case _Open.UNKNOWN:
                # The next best sign: it has not grown for a while.
                if (grown := _size(path)) != size:
                    size, since = grown, loop.time()
                elif loop.time() - since >= _SETTLED_SECONDS:
                    return True
            case _Open.YES:
                pass
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.2)


def _open_for_writing(path: Path) -> _Open:
    """Ask the kernel: a read lease is given only on a file that no process has open for writing (fcntl(2))."""
    with path.open("rb") as file:
        try:
            # Should somebody open the file in this instant the kernel sends a signal; the usual one would end us.
            fcntl.fcntl(file, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return _Open.YES
        except OSError:
            return _Open.UNKNOWN
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return _Open.NO


# Linux' number; Python's fcntl has no name for it.
_F_SETSIG = 10


def _blocks(path: Path, channels: int) -> Iterator[Frames]:
    """The frames of an original; a last frame that was cut in half is left out."""
    if path.suffix == ".wav":
        with soundfile.SoundFile(path) as file:
            while len(block := file.read(_BLOCK_FRAMES, dtype="int16", always_2d=True)):
                yield block
        return
    width = 2 * channels
    with path.open("rb") as raw:
        while data := raw.read(_BLOCK_FRAMES * width):
            whole = len(data) // width
            yield np.frombuffer(data, "<i2", count=whole * channels).reshape(whole, channels)


def _size(path: Path) -> int:
    return path.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
