"""Deadlines by name: set, cancel, and those that are due; no clock inside."""

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
    """At most one deadline a name; setting it again moves it."""

    _due: dict[Timer, float] = field(default_factory=dict)
    _heap: list[tuple[float, Timer]] = field(default_factory=list)

    def set(self, timer: Timer, due_seconds: float) -> None:
        self._due[timer] = due_seconds
        heapq.heappush(self._heap, (due_seconds, timer))

    def cancel(self, timer: Timer) -> None:
        self._due.pop(timer, None)

    def is_set(self, timer: Timer) -> bool:
        return timer in self._due

    def next_due(self) -> float | None:
        self._forget_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_seconds: float) -> Timer | None:
        """The earliest deadline that has passed, taken out; None when none has."""
        self._forget_stale()
        if not self._heap or self._heap[0][0] > now_seconds:
            return None
        _, timer = heapq.heappop(self._heap)
        del self._due[timer]
        return timer

    def _forget_stale(self) -> None:
        # A cancelled or moved deadline stays in the heap until it surfaces: cheaper than searching for it.
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
