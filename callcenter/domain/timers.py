"""Deadlines by subject and kind: set, cancel, and those that are due; no clock inside."""

import heapq
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class TimerKind(StrEnum):
    """What is due. Of a leg:"""

    RING = "ring"
    """Nobody has answered."""
    GONE = "gone"
    """It was told to hang up; of a call:"""
    COLLECT = "collect"
    """No key was pressed."""
    PLAYED = "played"
    """The prompt or the message must be over."""
    ANNOUNCE = "announce"
    MAX_WAIT = "max_wait"
    ALONE = "alone"
    """The caller was let go; his partner's end must have been seen."""
    ARRANGED = "arranged"
    """Bringing the parties together failed; of an agent:"""
    WRAP_UP = "wrap_up"


class Timer(NamedTuple):
    kind: TimerKind
    subject: str


@dataclass(slots=True)
class Timers:
    """At most one deadline a subject and kind; setting it again moves it."""

    _due: dict[str, dict[TimerKind, float]] = field(default_factory=dict)
    _heap: list[tuple[float, TimerKind, str]] = field(default_factory=list)

    def set(self, subject: str, kind: TimerKind, due_seconds: float) -> None:
        self._due.setdefault(subject, {})[kind] = due_seconds
        heapq.heappush(self._heap, (due_seconds, kind, subject))

    def cancel(self, subject: str, *kinds: TimerKind) -> None:
        due = self._due.get(subject)
        if due is None:
            return
        for kind in kinds:
            due.pop(kind, None)
        if not due:
            del self._due[subject]

    def is_set(self, subject: str, kind: TimerKind) -> bool:
        return kind in self._due.get(subject, ())

    def next_due(self) -> float | None:
        self._forget_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_seconds: float) -> Timer | None:
        """The earliest deadline that has passed, taken out; None when none has."""
        while self._heap and self._heap[0][0] <= now_seconds:
            due_seconds, kind, subject = heapq.heappop(self._heap)
            if self._is_due(subject, kind, due_seconds):
                self.cancel(subject, kind)
                return Timer(kind, subject)
        return None

    def _is_due(self, subject: str, kind: TimerKind, due_seconds: float) -> bool:
        """Whether a place in the heap still counts.

        A cancelled or moved deadline stays there until it surfaces: cheaper than searching for it.
        """
        return self._due.get(subject, {}).get(kind) == due_seconds

    def _forget_stale(self) -> None:
        while self._heap:
            due_seconds, kind, subject = self._heap[0]
            if self._is_due(subject, kind, due_seconds):
                return
            heapq.heappop(self._heap)
