"""The pure core: how many events a second, what one routing decision costs, what thousands of calls leave behind."""

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from callcenter.domain.acd import Routing
from callcenter.domain.agents import Agent, AgentState, Profile, Queue, UserRole
from callcenter.domain.calls import CallId, QueueId, UserId
from callcenter.domain.records import replace
from tests.bench.rows import Row, judged
from tests.bench.traffic import Traffic, replay

EVENTS_A_SECOND = 50_000
ROUNDS = 5


@dataclass(frozen=True)
class _Yardstick:
    number: int
    text: str
    items: tuple[int, ...]


def core() -> list[Row]:
    """Events a second of CPU, in median of some rounds; the speed of this Python beside it."""
    traffic = Traffic(record=True)
    traffic.run(until_ended=2_000)
    script = traffic.record or []
    messages = sum(said.message is not None for said in script)
    deadlines = len(script) - messages
    rates = []
    for _ in range(ROUNDS):
        gc.collect()
        began = time.process_time()
        centre = replay(script)
        rates.append(messages / (time.process_time() - began))
        assert len(centre.calls) == len(traffic.centre.calls), "a replay must end as the recording did"
    rate = statistics.median(rates)
    return [
        judged(
            "core: events of a realistic mix, per second of CPU",
            ours=f"{rate:,.0f} (worst {min(rates):,.0f}, best {max(rates):,.0f}; {messages:,} events and "
            f"{deadlines:,} deadlines of {traffic.ended:,} calls)",
            beside=f"copies of a small frozen record: {_copies_a_second():,.0f}",
            target=f"≥ {EVENTS_A_SECOND:,}",
            met=rate >= EVENTS_A_SECOND,
        )
    ]


def _copies_a_second() -> float:
    """How fast this Python on this machine makes a changed copy of a record: what the core does most."""
    record, count = _Yardstick(1, "x", (1, 2)), 100_000
    began = time.process_time()
    for number in range(count):
        record = replace(record, number=number)
    return count / (time.process_time() - began)


def routing() -> list[Row]:
    """One decision: the best agent is found and taken, another one comes back; and the way round."""
    rows = []
    for what, decide in (("caller → agent", _agents_taken), ("agent → caller", _callers_taken)):
        few, many = (min(decide(agents) for _ in range(ROUNDS)) for agents in (100, 10_000))
        rows.append(
            judged(
                f"routing decision, {what}, 10,000 agents",
                ours=f"{many * 1e6:.1f} µs",
                beside=f"100 agents: {few * 1e6:.1f} µs",
                target="≤ 2 × of it",
                met=many <= 2 * few,
            )
        )
    return rows


_QUEUE = Queue(QueueId("hotline"), {"zh": "热线"}, skill="hotline")


def _staff(count: int) -> tuple[Routing, list[Agent]]:
    routing, agents = Routing([_QUEUE]), []
    for number in range(count):
        user = UserId(f"agent{number}")
        profile = Profile(user, user, frozenset({UserRole.AGENT}), f"{number}", {"hotline": number % 5 + 1})
        agents.append(Agent(profile, AgentState.READY, since_seconds=float(number * 7919 % count)))
        routing.agent_is(agents[-1])
    return routing, agents


def _agents_taken(count: int) -> float:
    """Seconds a decision with so many free agents."""
    routing, agents = _staff(count)
    by_id = {agent.user_id: agent for agent in agents}
    decisions = 2_000

    def decide() -> None:
        for number in range(decisions):
            chosen = routing.agent_for(_QUEUE.queue_id)
            assert chosen is not None, "there are free agents"
            offered = replace(by_id[chosen], state=AgentState.OFFERED)
            routing.agent_is(offered)
            routing.agent_is(replace(offered, state=AgentState.READY, since_seconds=float(count + number)))

    return _cpu(decide) / decisions


def _callers_taken(count: int) -> float:
    """Seconds a decision with so many busy agents and 200 callers waiting."""
    routing, agents = _staff(count)
    for agent in agents:
        routing.agent_is(replace(agent, state=AgentState.TALKING))
    for number in range(200):
        routing.call_waits(CallId(f"c.{number}"), _QUEUE.queue_id, rank=float(number))
    decisions = 2_000

    def decide() -> None:
        for number in range(decisions):
            chosen = routing.call_for(agents[number % count])
            assert chosen is not None, "there are callers"
            routing.call_gone(chosen)
            routing.call_waits(chosen, _QUEUE.queue_id, rank=float(count + number))

    return _cpu(decide) / decisions


def _cpu(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def memory() -> list[Row]:
    """What is held after 5,000 calls and was not after 500; the traffic round the centre counts too."""
    tracemalloc.start()
    try:
        traffic = Traffic()
        held = []
        for calls in (500, 5_000):
            traffic.run(until_ended=calls)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0] / 1e6)
    finally:
        tracemalloc.stop()
    return [
        judged(
            "core: memory after 5,000 calls",
            ours=f"{held[1]:.2f} MB",
            beside=f"after 500: {held[0]:.2f} MB",
            target="within 10 MB of it",
            met=held[1] - held[0] <= 10,
        )
    ]
