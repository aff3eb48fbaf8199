"""Recordings: where Asterisk writes them, and how they become small, checked, final files.

Asterisk writes headerless 16-bit linear audio, which a crash cannot spoil. When the call is over each file is encoded
without loss, decoded again and compared, and only then is the original removed: a recording is evidence.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from weakref import WeakValueDictionary
from zoneinfo import ZoneInfo

import numpy as np
import soundfile

from callcenter.domain.calls import Call, CallId, LegId, StepKind
from callcenter.domain.recordings import MISSING, RecordingFile, RecordingKind

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
        done = await self._finish(call.call_id, self._directory(call))
        there = {Path(file.path).stem for file in done.files} | {Path(kept.path).stem for kept in done.kept}
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
        return replace(
            done,
            missing=tuple(
                self._missing(call, name, kind, leg_id)
                for name, kind, leg_id in expected
                if name not in there
            ),
        )

    def _missing(self, call: Call, name: str, kind: RecordingKind, leg_id: LegId | None) -> RecordingFile:
        path = self._relative(self._directory(call) / f"{name}.flac")
        return RecordingFile(call.call_id, leg_id, kind, path, 0.0, 0, "", MISSING)

    async def sweep(self, open_call_ids: Collection[CallId]) -> list[Finished]:
        """Finish what an earlier crash or a full disk left behind, but for the calls that still live."""
        left = await asyncio.to_thread(lambda: sorted({path.parent for path in self._originals()}))
        return [
            await self._finish(CallId(directory.name), directory)
            for directory in left
            if directory.name not in open_call_ids
        ]

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

    async def _finish(self, call_id: CallId, directory: Path) -> Finished:
        files: list[RecordingFile] = []
        kept: list[Kept] = []
        lock = self._locks.setdefault(call_id, asyncio.Lock())
        async with lock:
            deadline = asyncio.get_running_loop().time() + CLOSE_SECONDS
            for name in await asyncio.to_thread(_names, directory):
                original = directory / name
                try:
                    if original.suffix != ".flac" and not await _closed(original, deadline=deadline):
                        kept.append(Kept(self._relative(original), "It is still being written."))
                        continue
                    async with self._encoding:
                        described = await asyncio.to_thread(self._finish_file, call_id, original)
                except (OSError, soundfile.SoundFileError) as error:
                    kept.append(Kept(self._relative(original), f"It cannot be read: {error}"))
                    continue
                match described:
                    case RecordingFile():
                        files.append(described)
                    case (raw, reason):
                        files.append(raw)
                        kept.append(Kept(raw.path, reason))
                    case None:
                        pass
        return Finished(call_id, tuple(files), kept=tuple(kept))

    def _finish_file(
        self, call_id: CallId, original: Path
    ) -> RecordingFile | tuple[RecordingFile, str] | None:
        """The final file, or the original and why it stays one, or None when nothing was recorded."""
        if original.suffix == ".flac":
            return self._describe(call_id, original, seconds=soundfile.info(original).duration)
        channels = 2 if original.stem == "call" else 1
        part = original.with_suffix(".flac.part")
        final = original.with_suffix(".flac")
        frames = 0
        try:
            frames = sum(len(block) for block in _blocks(original, channels))
            if not frames:
                original.unlink()
                return None
            with soundfile.SoundFile(
                part,
                "w",
                SAMPLE_RATE,
                channels,
                "PCM_16",
                format="FLAC",
                compression_level=_COMPRESSION,
            ) as encoded:
                for block in _blocks(original, channels):
                    encoded.write(block)
            _check_same_audio(part, original, channels)
            _sync(part)
            part.rename(final)
            _sync(final.parent)
            described = self._describe(call_id, final, seconds=frames / SAMPLE_RATE)
        except (OSError, soundfile.SoundFileError) as error:
            part.unlink(missing_ok=True)
            raw = self._describe(call_id, original, seconds=frames / SAMPLE_RATE)
            return raw, f"It could not be encoded (is the disk full?): {error}"
        original.unlink()
        return described

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


def _names(directory: Path) -> list[str]:
    """Originals, and final files whose original is gone."""
    if not directory.is_dir():
        return []
    names = {path.name for path in directory.iterdir()}
    originals = {name for name in names if _ORIGINAL.fullmatch(name)}
    stems = {Path(name).stem for name in originals}
    final = re.compile(r"(call|leg-[1-9][0-9]{0,3}|message)\.flac")
    return sorted(
        originals | {name for name in names if final.fullmatch(name) and Path(name).stem not in stems}
    )


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


def _blocks(path: Path, channels: int) -> Iterator["np.ndarray[tuple[int, int], np.dtype[np.int16]]"]:
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


def _check_same_audio(encoded: Path, original: Path, channels: int) -> None:
    """Look at every sample: a full disk can leave a file whose header promises more than there is. OSError."""
    with soundfile.SoundFile(encoded) as file:
        for block in _blocks(original, channels):
            if not np.array_equal(file.read(len(block), dtype="int16", always_2d=True), block):
                raise OSError("what was written does not read back as it was")


def _size(path: Path) -> int:
    return path.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
