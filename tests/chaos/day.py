"""Whole days of calls in seconds: the pure core in virtual time, with the hours of a real call centre or of a large one.

``CALL_TRACE`` names a file of real calls in the format of the "anonymous bank" (Technion, Mandelbaum et al.): CSV with the columns
``date_1999``, ``vru_entry``, ``vru_time``, ``q_time``, ``outcome``, ``ser_time`` and ``server``. Without it that day cannot be
replayed; the synthetic day needs no file.
"""

import csv
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from callcenter.domain.agents import AgentState
from callcenter.domain.calls import Call, CallId, LegId, Phase
from callcenter.domain.messages import CallArrived, Effect, SaveCall
from tests.bench.traffic import Traffic
from tests.domain.test_random_scripts import check_change, check_record

LOOK_EVERY = 50
"""Calls between two looks at everything."""
PROMPT_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody's intentions; seconds."""

    at: float
    patience: float | None
    """He leaves when nobody has answered for so long; None: he stays."""
    talk: float


@dataclass
class Found:
    """What came of a day."""

    wrong: list[str] = field(default_factory=list)
    calls: int = 0
    ended: int = 0
    answered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    hours: float = 0.0

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        return (
            f"{self.calls:,} offered, {self.answered:,} answered, {self.ended:,} have an end state: {reasons}"
        )


class Day(Traffic):
    """The traffic of the benchmark with callers who come, wait and talk as they are told to."""

    def __init__(self, callers: Sequence[Caller], *, agents: int, specialists: int, seed: int = 1) -> None:
        self.found = Found()
        self._callers = iter(callers)
        self._next = next(self._callers, None)
        self._intentions: dict[CallId, Caller] = {}
        self._known: dict[CallId, Call] = {}
        self._finished: set[CallId] = set()
        self._began: float | None = None
        super().__init__(agents=agents, specialists=specialists, seed=seed, watch=self._seen)

    def play(self) -> Found:
        """Until everybody has come and gone."""
        while self._next is not None or self._open:
            if not self._due:
                # Only the centre's own deadlines are left, if any.
                deadline = self.centre.next_deadline()
                if deadline is None:
                    break
                self._later(max(0.0, deadline - self._now.seconds), lambda: None)
            self.run_one()
        if self._began is not None:
            self.found.hours = (self._now.seconds - self._began) / 3600
        if self._living:
            self._wrong(f"{len(self._living)} legs live after the last call")
        if self.centre.calls:
            talks = [call for call in self.centre.calls.values() if call.phase is not Phase.ENDED]
            self._look() if not talks else self._wrong(f"{len(talks)} calls have no end")
        return self.found

    def _somebody_calls(self) -> None:
        """Put in the place of the even stream of the benchmark: the next one of the list."""
        if self._began is None:
            self._began = self._now.seconds
        caller = self._next
        if caller is None:
            return
        if self._now.seconds < self._began + caller.at:
            self._later(self._began + caller.at - self._now.seconds, self._somebody_calls)
            return
        self._next = next(self._callers, None)
        self.arrived += 1
        self.found.calls += 1
        call_id = CallId(f"ast1-1763763843.{self.arrived}")
        leg = LegId(call_id)
        self._living.add(leg)
        self._open.add(call_id)
        self._intentions[call_id] = caller
        if caller.patience is not None:
            self._later(caller.patience, lambda: self._loses_patience(leg))
        self._tell(CallArrived(call_id, f"138{self.arrived % 10**8:08}", "12345"))
        if self.found.calls % LOOK_EVERY == 0:
            self._look()
        if self._next is not None:
            self._later(max(0.0, self._began + self._next.at - self._now.seconds), self._somebody_calls)

    def _loses_patience(self, leg: LegId) -> None:
        call = self.centre.calls.get(CallId(leg))
        if call is not None and call.answered_at is None:
            self._end_later(0.0, leg)

    def _talk_seconds(self, call_id: CallId) -> float:
        return self._intentions[call_id].talk

    def _seen(self, effect: Effect) -> None:
        if not isinstance(effect, SaveCall):
            return
        call, known = effect.call, self._known.get(effect.call.call_id)
        try:
            if known is not None:
                check_change(known, call)
            if call.phase is Phase.ENDED:
                check_record(call)
        except AssertionError as error:
            self._wrong(f"{call.call_id}: {error}")
        self._known[call.call_id] = call
        if call.phase is Phase.TALKING and not call.caller_leg.alive:
            for leg in call.parties:  # an agent and a specialist who were left alone say goodbye
                self._end_later(2.0, leg.leg_id)
        elif call.answered_at is not None and (known is None or known.answered_at is None):
            # Whoever he is passed on to, in the end he hangs up himself.
            self._end_later(2 * self._talk_seconds(call.call_id) + 120, call.caller_leg.leg_id)
        if call.phase is Phase.ENDED and call.call_id not in self._finished:
            self._finished.add(call.call_id)
            self.found.ended += 1
            self.found.answered += call.answered_at is not None
            self.found.reasons[str(call.end_reason)] += 1
            self._intentions.pop(call.call_id, None)

    def _look(self) -> None:
        """Nobody is in two calls, nobody waits beside one who is free, every agent's call is his."""
        in_calls = Counter(
            leg.user_id
            for call in self.centre.calls.values()
            for leg in call.others
            if leg.user_id is not None
        )
        for user_id, count in in_calls.items():
            if count > 1:
                self._wrong(f"{user_id} is in {count} calls")
        for agent in self.centre.agents.values():
            in_call = agent.state in (AgentState.OFFERED, AgentState.TALKING, AgentState.HELD)
            if in_call is not (agent.user_id in in_calls):
                self._wrong(f"{agent.user_id} is {agent.state}, in {in_calls[agent.user_id]} calls")
        for status in self.centre.queue_status(self._now):
            if status.waiting and status.ready:
                self._wrong(f"{status.waiting} wait while {status.ready} are ready")

    def _wrong(self, what: str) -> None:
        self.found.wrong.append(f"{timedelta(seconds=self._now.seconds)}: {what}")


# --- days ---------------------------------------------------------------------------------------------------


def traced(path: Path) -> list[Caller]:
    """The calls of the file, in the order of their arrival. OSError; ValueError for a file of another kind."""
    found = []
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            with suppress(KeyError):
                found.append(_traced(row))
    if not found:
        raise ValueError(f"{path.name} has none of the calls that CALL_TRACE should name")
    first = min(at for at, _, _ in found)
    return [
        Caller((at - first).total_seconds(), patience, talk) for at, patience, talk in sorted(found, key=_at)
    ]


def _at(row: tuple[datetime, float | None, float]) -> datetime:
    return row[0]


def _traced(row: dict[str, str]) -> tuple[datetime, float | None, float]:
    at = datetime.fromisoformat(row["date_1999"]) + _span(row["vru_entry"])
    answered = row["outcome"] == "AGENT"
    waited = max(0.0, float(row["vru_time"])) + max(0.0, float(row["q_time"]))
    return at, None if answered else waited, max(1.0, float(row["ser_time"]))


def _span(text: str) -> timedelta:
    hours, minutes, seconds = map(int, text.split(":"))
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def synthetic(calls: int, *, seed: int = 1) -> Iterator[Caller]:
    """About so many calls of a day: Poisson, with a peak at ten and one at half past three; log-normal talks of 110 s in the middle."""
    rng = random.Random(f"{seed} day")
    weights = [_rate(minute / 60) for minute in range(1440)]
    for minute, weight in enumerate(weights):
        mean = calls * weight / sum(weights)
        at = rng.expovariate(mean / 60) if mean else 60.0
        while at < 60:
            impatient = rng.random() < 0.15
            yield Caller(
                minute * 60 + at,
                rng.expovariate(1 / 60) if impatient else None,
                min(1800.0, rng.lognormvariate(math.log(110), 0.9)),
            )
            at += rng.expovariate(mean / 60)


def _rate(hour: float) -> float:
    """How busy it is at this hour of the day; only the proportions count."""
    return 0.05 + math.exp(-(((hour - 10) / 2.0) ** 2)) + 0.8 * math.exp(-(((hour - 15.5) / 2.0) ** 2))
