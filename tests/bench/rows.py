"""What a measurement says: one row of the table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Verdict(StrEnum):
    MET = "met"
    MISSED = "MISSED"
    SHOWN = "shown"
    """There is no target: the figure is there to be known."""
    FAILED = "FAILED"
    """It could not be measured."""


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    ours: str
    beside: str = "–"
    """What it is compared with, measured in the same run."""
    target: str = "–"
    verdict: Verdict = Verdict.SHOWN


def judged(what: str, *, ours: str, target: str, met: bool, beside: str = "–") -> Row:
    return Row(what, ours, beside, target, Verdict.MET if met else Verdict.MISSED)


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds of many trials."""

    p50: float
    p95: float
    p99: float
    count: int

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.p95:.1f} / {self.p99:.1f} ms (n={self.count})"


def spread(seconds: Iterable[float]) -> Spread:
    values: Sequence[float] = list(seconds)
    if not values:
        raise ValueError("nothing was measured: not one trial came to its end")
    p50, p95, p99 = (float(p) for p in np.percentile(np.array(values) * 1000, (50, 95, 99)))
    return Spread(p50, p95, p99, len(values))
