"""What a running process costs: from /proc, so of any process."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Footprint:
    """One look at a process; proc(5)."""

    cpu_seconds: float
    memory_mb: float
    """Resident."""
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Self:
        process = Path(f"/proc/{pid}")
        stat = (process / "stat").read_text().rpartition(")")[2].split()  # the name may hold anything
        return cls(
            cpu_seconds=(int(stat[11]) + int(stat[12])) / _TICK,
            memory_mb=int(stat[21]) * _PAGE / 1e6,
            files=len(list((process / "fd").iterdir())),
            threads=int(stat[17]),
        )

    def __str__(self) -> str:
        return f"{self.memory_mb:.1f} MB, {self.files} files, {self.threads} threads"


def asterisk_pid(data: Path) -> int:
    """Of the Asterisk that runs from this data directory."""
    return int(next(data.glob("asterisk/**/asterisk.pid")).read_text(encoding="ascii"))
