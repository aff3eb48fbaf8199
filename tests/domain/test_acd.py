"""Who gets whom: both lines of a queue against a plain list that is sorted each time."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from callcenter.domain.acd import Routing
from callcenter.domain.agents import Agent, AgentState, Profile, Queue
from callcenter.domain.calls import CallId, QueueId
from tests.domain.house import ENGLISH, HOTLINE, LI, QUEUES, WANG, ZHANG


def ready(profile: Profile, since: float) -> Agent:
    return Agent(profile, AgentState.READY, since_seconds=since)


def test_the_highest_level_first_then_the_longest_idle() -> None:
    routing = Routing(QUEUES)
    for profile, since in ((ZHANG, 2.0), (LI, 1.0), (WANG, 3.0)):
        routing.agent_is(ready(profile, since))
    order = []
    while (user_id := routing.agent_for(HOTLINE)) is not None:
        order.append(user_id)
        profile = next(p for p in (ZHANG, LI, WANG) if p.user_id == user_id)
        routing.agent_is(Agent(profile, AgentState.OFFERED))
    assert order == ["wang", "li", "zhang"]
    assert routing.staffed_at(HOTLINE) == 3


def test_an_agent_of_two_queues_is_taken_from_both_at_once() -> None:
    routing = Routing(QUEUES)
    routing.agent_is(ready(WANG, 0))
    assert (routing.agent_for(HOTLINE), routing.agent_for(ENGLISH)) == ("wang", "wang")
    routing.agent_is(Agent(WANG, AgentState.TALKING))
    assert (routing.agent_for(HOTLINE), routing.agent_for(ENGLISH)) == (None, None)
    assert (routing.staffed_at(HOTLINE), routing.staffed_at(ENGLISH)) == (1, 1)
    routing.agent_is(Agent(WANG, AgentState.NOT_READY))
    assert (routing.staffed_at(HOTLINE), routing.staffed_at(ENGLISH)) == (0, 0)


def test_a_head_start_is_worth_its_seconds_and_no_more() -> None:
    routing = Routing(QUEUES)
    routing.call_waits(CallId("urgent"), HOTLINE, rank=100.0 - 60)
    routing.call_waits(CallId("just before"), HOTLINE, rank=39.0)
    routing.call_waits(CallId("just after"), HOTLINE, rank=41.0)
    assert routing.in_order() == ["just before", "urgent", "just after"]
    assert [routing.position(CallId(c)) for c in ("just before", "urgent", "just after", "nobody")] == [
        1,
        2,
        3,
        None,
    ]
    assert routing.first_waiting(HOTLINE) == "just before"


def test_a_free_agent_gets_who_waits_longest_in_any_of_his_queues() -> None:
    routing = Routing(QUEUES)
    routing.call_waits(CallId("b"), HOTLINE, rank=2)
    routing.call_waits(CallId("a"), ENGLISH, rank=1)
    assert routing.call_for(ready(WANG, 0)) == "a"
    assert routing.call_for(ready(ZHANG, 0)) == "b"


def test_a_queue_that_is_taken_away_stays_until_its_callers_have_gone() -> None:
    routing = Routing(QUEUES)
    routing.agent_is(ready(WANG, 0))
    routing.call_waits(CallId("a"), ENGLISH, rank=1)
    routing.set_queues(QUEUES[:1])
    assert set(routing.queues) == {HOTLINE, ENGLISH}
    routing.call_gone(CallId("a"))
    routing.set_queues(QUEUES[:1])
    assert set(routing.queues) == {HOTLINE}
    routing.agent_is(Agent(WANG, AgentState.NOT_READY))
    assert routing.agent_for(HOTLINE) is None


def test_a_queue_that_wants_another_skill_has_other_agents() -> None:
    routing = Routing(QUEUES)
    routing.agent_is(ready(ZHANG, 0))
    routing.set_queues((replace(QUEUES[0], skill="english"),))
    for agent in (ready(ZHANG, 0), ready(WANG, 0)):
        routing.agent_is(agent)
    assert routing.agent_for(HOTLINE) == "wang"
    assert (routing.free_at(HOTLINE), routing.staffed_at(HOTLINE)) == (1, 1)


PEOPLE = [
    Profile(u, u, frozenset(), u, s) for u, s in (("x", {"p": 1}), ("y", {"p": 2, "q": 1}), ("z", {"q": 3}))
]  # type: ignore[arg-type]
TWO = [Queue(QueueId(q), {}, skill=q) for q in ("p", "q")]
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("agent"), st.integers(0, 2), st.sampled_from(list(AgentState)), st.integers(0, 3)),
        st.tuples(st.just("call"), st.integers(0, 4), st.sampled_from(["p", "q", ""]), st.integers(0, 3)),
    ),
    max_size=50,
)


@given(MOVES)
@settings(deadline=None)
def test_it_is_what_sorting_each_time_would_give(moves: list[tuple[str, int, str, int]]) -> None:
    routing, agents, calls = Routing(TWO), dict[int, Agent](), dict[str, tuple[str, int]]()
    for what, which, where, at in moves:
        if what == "agent":
            agents[which] = Agent(PEOPLE[which], AgentState(where), since_seconds=at)
            routing.agent_is(agents[which])
        elif where:
            calls[str(which)] = (where, at)
            routing.call_waits(CallId(str(which)), QueueId(where), rank=at)
        else:
            calls.pop(str(which), None)
            routing.call_gone(CallId(str(which)))
        for name in ("p", "q"):
            queue_id = QueueId(name)
            able = [a for a in agents.values() if name in a.profile.skills]
            free = sorted(
                (-a.profile.skills[name], a.since_seconds, a.user_id)
                for a in able
                if a.state is AgentState.READY
            )
            line = sorted((rank, call_id) for call_id, (q, rank) in calls.items() if q == name)
            away = (AgentState.LOGGED_OUT, AgentState.NOT_READY)
            assert routing.agent_for(queue_id) == (free[0][2] if free else None)
            assert routing.free_at(queue_id) == len(free)
            assert routing.staffed_at(queue_id) == sum(a.state not in away for a in able)
            assert routing.waiting_at(queue_id) == len(line)
            assert routing.first_waiting(queue_id) == (line[0][1] if line else None)
            assert [routing.position(CallId(c)) for _, c in line] == list(range(1, len(line) + 1))
