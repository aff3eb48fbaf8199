"""What is played: a scenario file, and every decision drawn from it beforehand.

Nothing here waits or telephones. A caller's plan, with what the agents and the specialist he meets will do, is drawn
when he is placed and from the seed and his place in the line alone, so that a run can be repeated.
"""

import csv
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SHIPPED = Path(__file__).parent / "scenarios"
_SEVERAL = re.compile(r"([a-z_.-]+)(\d+)\.\.([a-z_.-]+)(\d+)")
_CLOCK = re.compile(r"(\d{1,3}):(\d\d)(?::(\d\d(?:\.\d+)?))?")

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class BadScenario(Exception):  # noqa: N818 - read as a sentence by whoever wrote the file
    """The scenario or the trace cannot be played; the text says where and why."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(_Model):
    """A length of time in seconds: log-normal, as talk times at hotlines are; ``spread`` 0 is always the median."""

    median: Annotated[float, Field(ge=0, le=86_400)]
    spread: Annotated[float, Field(ge=0, le=3)] = 0
    """Standard deviation of the logarithm: 0.5 moderate, 1 as wide as real talk times."""
    at_least: Annotated[float, Field(ge=0)] = 0
    at_most: Annotated[float, Field(gt=0)] = 86_400

    def draw(self, chance: random.Random) -> float:
        drawn = self.median * math.exp(chance.gauss(0, self.spread)) if self.spread else self.median
        return min(max(drawn, self.at_least), self.at_most)


class Arrivals(StrEnum):
    POISSON = "poisson"
    """As citizens call: independently of each other."""
    STEADY = "steady"
    """One after the other at equal distances."""


class Callers(_Model):
    lines: Annotated[dict[str, Weight], Field(min_length=1)] = {"12345": 1.0}
    """Number dialled -> how often."""
    patience: Span = Span(median=120, spread=0.5)
    """How long a caller waits, from his dialling, before he hangs up."""
    hurried: Share = 0.0
    """Who hangs up within the greeting, whatever it says."""
    talk: Span = Span(median=60, spread=0.6)
    """From the moment both hear each other."""
    hang_up: Share = 0.5
    """Who ends his conversation himself; for the others the agent does."""
    keys: dict[str, dict[str, Weight]] = {}
    """Number dialled -> what is pressed in its menu ("" nothing) -> how often."""
    key_after: Span = Span(median=2)
    ratings: dict[str, Weight] = {"1": 6.0, "2": 2.0, "3": 1.0, "": 3.0}
    """What is pressed when asked for a rating ("" nothing: he hangs up)."""


class Agents(_Model):
    users: Annotated[tuple[str, ...], Field(min_length=1)] = ("agent1..agent4",)
    """Who works: logins, or ``agent1..agent4`` for all from the first to the last."""
    pick_up: Span = Span(median=1.5, spread=0.4)
    rejects: Share = 0.0
    """Of the offers; the caller goes on to the next agent."""
    misses: Share = 0.0
    """Of the offers: lets it ring until it is taken away."""
    holds: Share = 0.0
    hold: Span = Span(median=5)
    invites: Share = 0.0
    """Of the conversations: a specialist is asked, then brought in."""
    consult: Span = Span(median=5)
    leaves: Share = 0.5
    """Of the invitations: leaves the caller with the specialist once all three have talked."""
    transfers: Share = 0.0
    """Of the conversations: the caller goes back to a queue and meets another agent."""
    transfer_queue: str = "hotline"
    wrap_up: Span = Span(median=3, spread=0.5)
    pause: Span = Span(median=1)
    """Before an agent who rejected or missed a call is ready again."""
    disposition: str = "answered"


class Specialists(_Model):
    users: tuple[str, ...] = ("spec1..spec2",)
    pick_up: Span = Span(median=2, spread=0.4)
    rejects: Share = 0.1


class Scenario(_Model):
    """A scenario file."""

    title: str = ""
    rate: Annotated[float, Field(gt=0, le=1000)] = 0.2
    """Calls a second."""
    arrivals: Arrivals = Arrivals.POISSON
    seconds: Annotated[float, Field(gt=0)] | None = None
    """How long callers are placed; without it until Ctrl-C."""
    seed: int | None = None
    sound: Literal["speech", "tone"] = "tone"
    """What people say once they hear each other: Mandarin of the product's own prompts, or a tone (cheap)."""
    drain: Annotated[float, Field(ge=0)] = 60
    """Seconds which the calls on the line get when no more are placed; then everybody hangs up."""
    callers: Callers = Callers()
    agents: Agents = Agents()
    specialists: Specialists = Specialists()

    @model_validator(mode="after")
    def _weights_are_not_all_nothing(self) -> Self:
        mixes = {
            "lines": self.callers.lines,
            "ratings": self.callers.ratings,
            **{f"keys of {n}": m for n, m in self.callers.keys.items()},
        }
        for name, mix in mixes.items():
            if not any(mix.values()):
                raise ValueError(f"the weights of {name} are all 0")
        if self.agents.rejects + self.agents.misses > 1:
            raise ValueError("rejects and misses are more than all offers together")
        return self


def load(name: str) -> Scenario:
    """A shipped scenario by its name, or one from a file; raises BadScenario."""
    path = SHIPPED / f"{name}.yaml" if (SHIPPED / f"{name}.yaml").is_file() else Path(name)
    try:
        return Scenario.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        raise BadScenario(
            f"{name}: 没有这个场景 / there is no such scenario ({error.strerror}); shipped: {names}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadScenario(f"{path}: 不是 YAML / is not YAML: {error}") from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadScenario(f"{path}: {found}") from error


def people(names: Iterable[str]) -> list[str]:
    """Logins as written in a scenario, with ``load001..load100`` spelt out; raises BadScenario."""
    found: list[str] = []
    for name in names:
        if ".." not in name:
            found.append(name)
            continue
        match = _SEVERAL.fullmatch(name)
        if match is None or match[1] != match[3]:
            raise BadScenario(f"{name}: 范围应写成 agent1..agent4 / a range is written agent1..agent4")
        width = len(match[2]) if match[2].startswith("0") else 0
        found += [f"{match[1]}{n:0{width}}" for n in range(int(match[2]), int(match[4]) + 1)]
    return found


# --- what everybody will do ---------------------------------------------------------------------------------


class Offer(StrEnum):
    """What an agent does when his phone rings."""

    ANSWER = "answer"
    REJECT = "reject"
    MISS = "miss"


class Turn(StrEnum):
    """What an agent does in the middle of a conversation."""

    HOLD = "hold"
    INVITE = "invite"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True)
class Plan:
    """One caller's whole fate, as far as people decide it; seconds for times."""

    index: int
    at: float
    """When he dials, from the beginning."""
    number: str
    """His own, different for every caller of a run: by it an agent's phone knows who calls."""
    line: str
    keys: str
    key_after: float
    hurried: bool
    patience: float
    talk: float
    hangs_up: bool
    rating: str
    offers: tuple[Offer, ...]
    """What the first agents do who are rung; whoever comes after them answers."""
    pick_up: float
    turns: tuple[Turn, ...]
    hold: float
    consult: float
    leaves: bool
    specialist_rejects: bool
    specialist_pick_up: float
    wrap_up: float
    pause: float

    def offer(self, count: int) -> Offer:
        """What the agent does who is the ``count``-th (from 0) to be rung."""
        return self.offers[count] if count < len(self.offers) else Offer.ANSWER


_MOST_REFUSALS = 3


def arrival_times(scenario: Scenario, *, seed: int) -> Iterator[float]:
    """When callers dial, in seconds from the beginning; without end unless the scenario has one."""
    chance = random.Random(f"{seed}/arrivals")  # noqa: S311 - a play, not a secret
    at = 0.0
    while True:
        gap = 1 / scenario.rate
        at += chance.expovariate(1 / gap) if scenario.arrivals is Arrivals.POISSON else gap
        if scenario.seconds is not None and at >= scenario.seconds:
            return
        yield at


def plans(scenario: Scenario, times: Iterable[float], *, seed: int) -> Iterator[Plan]:
    """A plan for every arrival."""
    for index, at in enumerate(times):
        yield _plan(scenario, index, at, random.Random(f"{seed}/{index}"))  # noqa: S311 - a play, not a secret


def _plan(scenario: Scenario, index: int, at: float, chance: random.Random) -> Plan:
    callers, agents, specialists = scenario.callers, scenario.agents, scenario.specialists
    line = _pick(callers.lines, chance)
    offers: list[Offer] = []
    while len(offers) < _MOST_REFUSALS and (drawn := _offer(agents, chance)) is not Offer.ANSWER:
        offers.append(drawn)
    turns = [
        turn
        for turn, share in (
            (Turn.HOLD, agents.holds),
            (Turn.INVITE, agents.invites),
            (Turn.TRANSFER, agents.transfers),
        )
        if chance.random() < share
    ]
    return Plan(
        index=index,
        at=at,
        number=f"139{index % 100_000_000:08d}",
        line=line,
        keys=_pick(callers.keys[line], chance) if line in callers.keys else "",
        key_after=callers.key_after.draw(chance),
        hurried=chance.random() < callers.hurried,
        patience=callers.patience.draw(chance),
        talk=callers.talk.draw(chance),
        hangs_up=chance.random() < callers.hang_up,
        rating=_pick(callers.ratings, chance),
        offers=tuple(offers),
        pick_up=agents.pick_up.draw(chance),
        turns=tuple(turns),
        hold=agents.hold.draw(chance),
        consult=agents.consult.draw(chance),
        leaves=chance.random() < agents.leaves,
        specialist_rejects=chance.random() < specialists.rejects,
        specialist_pick_up=specialists.pick_up.draw(chance),
        wrap_up=agents.wrap_up.draw(chance),
        pause=agents.pause.draw(chance),
    )


def _offer(agents: Agents, chance: random.Random) -> Offer:
    drawn = chance.random()
    if drawn < agents.rejects:
        return Offer.REJECT
    return Offer.MISS if drawn < agents.rejects + agents.misses else Offer.ANSWER


def _pick(mix: dict[str, float], chance: random.Random) -> str:
    return chance.choices([*mix], weights=[*mix.values()])[0]


# --- a trace of real calls ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """Which columns of a CSV tell when a call arrived: a time of day, and the day it is of."""

    time: str = "vru_entry"
    day: str = "date_1999"
    only_day: str = ""
    """Play this day alone; empty: all, one after the other."""


def trace_times(
    lines: Iterable[str], columns: TraceColumns, *, start: float = 0.0, speed: float = 1.0
) -> list[float]:
    """When the calls of a CSV arrived, in order, in seconds from ``start`` (seconds of the first day) on.

    ``speed`` 10 plays ten hours in one. Raises BadScenario with the line of a mistake.
    """
    rows = csv.DictReader(lines)
    known: Sequence[str] = rows.fieldnames or ()
    for column in (columns.time, columns.day):
        if column and column not in known:
            raise BadScenario(
                f"没有 {column} 列 / there is no column {column}; there are: {', '.join(known)}"
            )
    days: dict[str, int] = {}
    found = []
    for row in rows:
        day = row[columns.day] if columns.day else ""
        if columns.only_day and day != columns.only_day:
            continue
        match = _CLOCK.fullmatch((row[columns.time] or "").strip())
        if match is None:
            raise BadScenario(
                f"第 {rows.line_num} 行 line {rows.line_num}: {columns.time}: {row[columns.time]!r} 不是时间 / is no time"
            )
        hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3] or 0)
        clock = timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()
        found.append(days.setdefault(day, len(days)) * 86_400 + clock)
    if not found:
        raise BadScenario("记录里没有这一天的来电 / the trace has no calls of that day")
    return [(at - start) / speed for at in sorted(found) if at >= start]
