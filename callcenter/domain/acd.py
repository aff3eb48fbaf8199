"""Who gets whom: the waiting callers and the free agents of every queue, each list always in order.

A caller's rank is the second he began to wait minus his head start, so priority ages by itself and nobody
starves: a head start of 60 s is overtaken by whoever has waited 60 s longer. An agent's rank is his level at the
queue's skill (higher first), then how long he has been free (longest first).

Finding and taking out is O(log n), so that one decision with 10,000 agents costs about what it costs with 100.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from callcenter.domain.agents import Agent, AgentState, Queue
from callcenter.domain.calls import CallId, QueueId, UserId

_AWAY = (AgentState.LOGGED_OUT, AgentState.NOT_READY)
_STALE_AT_MOST = 64
"""More than as many as are free and this: the heap is made anew."""


_Waiter = tuple[float, CallId]
_Idle = tuple[int, float, UserId]


@dataclass(slots=True)
class _Line:
    """One queue's two sides; at most one of them is long."""

    waiting: list[_Waiter]
    """In order."""
    free: list[_Idle]
    """A heap; who is not free any more stays in it until he surfaces: cheaper than searching for him."""
    free_count: int = 0


class Routing:
    """Waiting callers and free agents; the centre tells it every change and asks it for the next pair."""

    def __init__(self, queues: Iterable[Queue] = ()) -> None:
        self._queues: dict[QueueId, Queue] = {}
        self._lines: dict[QueueId, _Line] = {}
        self._by_skill: dict[str, list[QueueId]] = {}
        self._waiting: dict[CallId, tuple[QueueId, float]] = {}
        self._free: dict[UserId, dict[QueueId, _Idle]] = {}
        self._staffing: dict[UserId, list[QueueId]] = {}
        self._staffed: Counter[QueueId] = Counter()
        self.set_queues(queues)

    @property
    def queues(self) -> dict[QueueId, Queue]:
        return self._queues

    def set_queues(self, queues: Iterable[Queue]) -> None:
        """Take the queues as they now are; a queue with callers in it stays until they have gone."""
        wanted = {queue.queue_id: queue for queue in queues}
        for queue_id, line in self._lines.items():
            if queue_id not in wanted and line.waiting:
                wanted[queue_id] = self._queues[queue_id]
        self._queues = wanted
        self._lines = {q: self._lines.get(q) or _Line([], []) for q in wanted}
        self._by_skill = {}
        for queue_id, queue in wanted.items():
            self._by_skill.setdefault(queue.skill, []).append(queue_id)

    def serves(self, agent: Agent) -> list[QueueId]:
        return [q for skill in agent.profile.skills for q in self._by_skill.get(skill, ())]

    # --- agents ---------------------------------------------------------------------------------------------

    def agent_is(self, agent: Agent) -> None:
        """Take note of an agent's state and skills: READY may be offered calls, idle since ``since_seconds``."""
        user_id, serves = agent.user_id, self.serves(agent)
        present = serves if agent.state not in _AWAY else []
        if present != self._staffing.get(user_id, []):
            self._staffed.subtract(self._staffing.pop(user_id, ()))
            if present:
                self._staffing[user_id] = present
                self._staffed.update(present)
        places = {}
        if agent.state is AgentState.READY:
            for queue_id in serves:
                level = agent.profile.skills[self._queues[queue_id].skill]
                places[queue_id] = (-level, agent.since_seconds, user_id)
        if places == self._free.get(user_id, {}):
            return
        for queue_id in self._free.pop(user_id, {}):
            if queue_id in self._lines:
                self._lines[queue_id].free_count -= 1
        if places:
            self._free[user_id] = places
            for queue_id, place in places.items():
                line = self._lines[queue_id]
                line.free_count += 1
                heapq.heappush(line.free, place)
                if len(line.free) > 2 * line.free_count + _STALE_AT_MOST:
                    line.free = [p[queue_id] for p in self._free.values() if queue_id in p]
                    heapq.heapify(line.free)

    def staffed_at(self, queue_id: QueueId) -> int:
        """Agents at work who serve this queue, whatever they are doing now."""
        return self._staffed[queue_id]

    def free_at(self, queue_id: QueueId) -> int:
        return self._lines[queue_id].free_count

    def agent_for(self, queue_id: QueueId) -> UserId | None:
        """The best free agent of a queue: highest level, then longest idle."""
        free = self._lines[queue_id].free
        while free:
            user_id = free[0][2]
            if self._free.get(user_id, {}).get(queue_id) == free[0]:
                return user_id
            heapq.heappop(free)
        return None

    # --- callers --------------------------------------------------------------------------------------------

    def call_waits(self, call_id: CallId, queue_id: QueueId, *, rank: float) -> None:
        """``rank`` is the (virtual) second the caller began to wait."""
        self.call_gone(call_id)
        self._waiting[call_id] = (queue_id, rank)
        insort(self._lines[queue_id].waiting, (rank, call_id))

    def call_gone(self, call_id: CallId) -> None:
        place = self._waiting.pop(call_id, None)
        if place is not None:
            queue_id, rank = place
            _take_out(self._lines[queue_id].waiting, (rank, call_id))

    def call_for(self, agent: Agent) -> CallId | None:
        """The caller who has waited longest (by rank) in any queue this agent serves."""
        heads = [line[0] for q in self.serves(agent) if (line := self._lines[q].waiting)]
        return min(heads)[1] if heads else None

    def waiting_at(self, queue_id: QueueId) -> int:
        return len(self._lines[queue_id].waiting)

    def first_waiting(self, queue_id: QueueId) -> CallId | None:
        waiting = self._lines[queue_id].waiting
        return waiting[0][1] if waiting else None

    def in_order(self) -> list[CallId]:
        """All who wait, by rank."""
        return [
            call_id for call_id, _ in sorted(self._waiting.items(), key=lambda item: (item[1][1], item[0]))
        ]

    def position(self, call_id: CallId) -> int | None:
        """1 for the next to be served; None when the call does not wait."""
        place = self._waiting.get(call_id)
        if place is None:
            return None
        queue_id, rank = place
        return bisect_left(self._lines[queue_id].waiting, (rank, call_id)) + 1


def _take_out(ordered: list[_Waiter], item: _Waiter) -> None:
    index = bisect_left(ordered, item)
    if index < len(ordered) and ordered[index] == item:
        del ordered[index]
