"""The gate: hears of every attempt to get in, keeps the ban list and the security log, and has bans enforced.

The ban list is one file, read again when somebody else (`callcenter bans lift`) has written it; the security log has
one JSON object a line, for a SIEM or fail2ban, and never holds a password.
"""

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog

from callcenter.domain.calls import Now
from callcenter.domain.guard import Attempt, Ban, Fault, Guard, GuardLimits, Network, Verdict, network_of
from callcenter.domain.messages import Alarm

log = structlog.get_logger(__name__)

_LOG_BYTES = 10_000_000
_LOG_FILES = 9  # beside the one being written: 100 MB in all, whatever anybody sends
_LOOK_SECONDS = 0.5
_LONGEST_ACCOUNT = 80


def ban_file(data_dir: Path) -> Path:
    return data_dir / "bans.json"


def read_bans(file: Path) -> list[Ban]:
    """The ban list; empty when there is none. A file that is no ban list is as none, and said so."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [
            Ban(
                ip_network(row["network"]),
                datetime.fromisoformat(row["since"]).astimezone(UTC),
                datetime.fromisoformat(row["until"]).astimezone(UTC),
                Fault(row["fault"]),
            )
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, OSError) as error:
        log.error("the ban list cannot be read and is begun anew", file=file.name, reason=str(error)[:200])  # noqa: TRY400  # says it all
        return []


def lift_ban(file: Path, address: str) -> bool:
    """Take the address off the list; a running engine follows within a second. ValueError for what is none."""
    network = ip_network(address, strict=False) if "/" in address else network_of(address)
    with _alone(file):
        bans = read_bans(file)
        left = [ban for ban in bans if ban.network != network]
        if len(left) == len(bans):
            return False
        _write_bans(file, left)
    return True


def _write_bans(file: Path, bans: Iterable[Ban]) -> None:
    rows = [
        {
            "network": str(ban.network),
            "since": ban.since.isoformat(),
            "until": ban.until.isoformat(),
            "fault": ban.fault,
        }
        for ban in bans
    ]
    new = file.with_name(f".{file.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        json.dump(rows, out, indent=1)
    new.replace(file)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """The engine and the command line do not overwrite each other's list."""
    with file.with_name(f".{file.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Gate:
    """``enforce`` gets the networks to shut out, ``at_work`` says from which addresses our phones are registered.

    ``attempt`` and ``wait_seconds`` are synchronous and quick; files are written by ``watch``.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        limits: GuardLimits,
        spared: Iterable[Network],
        clock: Callable[[], Now],
        at_work: Callable[[], Collection[str]],
        enforce: Callable[[Collection[Network]], None],
        alarm: Callable[[Alarm], None],
        mask: Callable[[str], str],
    ) -> None:
        self._file = ban_file(data_dir)
        self._guard = Guard(limits, spared=spared, bans=read_bans(self._file))
        self._stamp = self._written()
        self._clock = clock
        self._at_work = at_work
        self._enforce = enforce
        self._alarm = alarm
        self._mask = mask
        self._changed = False
        self._unwritten = 0
        self._log = SecurityLog(data_dir / "security.log")
        self._guard.ended(clock())
        self._enforce([ban.network for ban in self._guard.bans])

    def attempt(self, attempt: Attempt) -> None:
        """Count an attempt, write it down, and shut its address out when it was one too many."""
        now = self._clock()
        try:
            verdict = self._guard.attempt(attempt, now, at_work=attempt.source in self._at_work())
        except ValueError:
            return  # Asterisk names no address, as for its own command line
        match verdict:
            case Verdict.NOTED:
                if attempt.fault is not Fault.ASKED:
                    self._note(now, "attempt", attempt)
            case Verdict.MORE:
                self._unwritten += 1
            case Verdict.BANNED | Verdict.SPARED:
                self._note(now, verdict, attempt)
                self._changed = self._changed or verdict is Verdict.BANNED
                facts = {"source": attempt.source, "door": attempt.door, "fault": attempt.fault}
                self._alarm(Alarm(f"intruder_{verdict}", facts))

    def close(self) -> None:
        self._log.close()

    def wait_seconds(self, source: str) -> float | None:
        """How long the address is still shut out; None when it is not."""
        try:
            ban = self._guard.ban_of(source)
        except ValueError:
            return None
        return None if ban is None else max(1.0, (ban.until - self._clock().utc).total_seconds())

    async def watch(self) -> None:
        """End bans in time, keep the file, and follow what the command line lifts."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        now = self._clock()
        if self._unwritten:
            self._log.write(now, "more", attempts=self._unwritten)
            self._unwritten = 0
        changed, self._changed = self._changed, False
        try:
            with _alone(self._file):
                if self._written() != self._stamp:
                    left = {ban.network for ban in read_bans(self._file)}
                    # What was banned since the file was last written is not in it yet, and stays.
                    for ban in self._guard.bans:
                        if ban.network not in left and not self._is_new(ban):
                            self._guard.lift(ban.network)
                            self._log.write(now, "lifted", network=str(ban.network))
                            changed = True
                for ban in self._guard.ended(now):
                    self._log.write(now, "ended", network=str(ban.network))
                    changed = True
                if changed or self._written() != self._stamp:
                    _write_bans(self._file, self._guard.bans)
                    self._stamp = self._written()
        except OSError as error:
            log.error("the ban list cannot be written", reason=error.strerror)  # noqa: TRY400  # bans count all the same
        if changed:
            self._enforce([ban.network for ban in self._guard.bans])

    def _is_new(self, ban: Ban) -> bool:
        return self._stamp is None or ban.since.timestamp() > self._stamp[0] / 1e9

    def _written(self) -> tuple[int, int] | None:
        try:
            facts = self._file.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_ino

    def _note(self, now: Now, what: str, attempt: Attempt) -> None:
        self._log.write(
            now,
            what,
            door=attempt.door,
            source=attempt.source,
            account=self._mask(attempt.account[:_LONGEST_ACCOUNT]),
            fault=attempt.fault,
        )


class SecurityLog:
    """JSON lines, pure ASCII: whatever an account name holds, a line stays one line and moves no cursor."""

    def __init__(self, file: Path) -> None:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
        self._handler = _File(file, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="ascii")

    def write(self, now: Now, what: str, **facts: object) -> None:
        line = json.dumps({"at": now.utc.isoformat(), "event": what, **facts})
        self._handler.handle(logging.LogRecord("security", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        self._handler.close()


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        # A full disk: the attempt was counted all the same, and the health page tells of the disk.
        log.error("the security log cannot be written")
