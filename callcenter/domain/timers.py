"""Deadlines by name: set, cancel, and those that are due; no clock inside."""

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple


class Timer(NamedTuple):
    kind: str
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
