"""Scenarios: what is drawn is what was asked for, the same again with the same seed, and mistakes are named."""

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest

from callcenter.demo.scenario import (
    SHIPPED,
    Arrivals,
    BadScenario,
    Offer,
    Plan,
    Scenario,
    Span,
    TraceColumns,
    Turn,
    arrival_times,
    load,
    people,
    plans,
    trace_times,
)
from callcenter.demo.table import percentile


def _plans(scenario: Scenario, *, seed: int = 7, count: int = 2000) -> list[Plan]:
    return list(islice(plans(scenario, arrival_times(scenario, seed=seed), seed=seed), count))


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_every_shipped_scenario_can_be_played(name: str) -> None:
    scenario = load(name)
    assert scenario.title
    assert people(scenario.agents.users)
    assert len(_plans(scenario, count=20)) == 20


def test_the_same_seed_gives_the_same_evening_and_another_seed_another() -> None:
    scenario = load("rush")
    assert _plans(scenario, seed=1, count=50) == _plans(scenario, seed=1, count=50)
    assert _plans(scenario, seed=1, count=50) != _plans(scenario, seed=2, count=50)


def test_a_caller_s_plan_does_not_depend_on_when_he_comes() -> None:
    """So that a trace, or another rate, plays the same people."""
    scenario = load("rush")
    early = list(plans(scenario, [0.0, 1.0], seed=3))
    late = list(plans(scenario, [100.0, 300.0], seed=3))
    assert [plan.talk for plan in early] == [plan.talk for plan in late]


def test_callers_come_at_the_rate_and_in_order() -> None:
    times = list(islice(arrival_times(Scenario(rate=5), seed=4), 5000))
    assert times == sorted(times)
    assert 5000 / times[-1] == pytest.approx(5, rel=0.05)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1)  # a Poisson process
    steady = list(islice(arrival_times(Scenario(rate=5, arrivals=Arrivals.STEADY), seed=4), 5))
    assert steady == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_callers_stop_coming_when_the_time_is_over() -> None:
    times = list(arrival_times(Scenario(rate=10, seconds=3), seed=1))
    assert times[-1] < 3
    assert len(times) == pytest.approx(30, abs=20)


def test_lines_behaviours_and_times_have_the_shares_asked_for() -> None:
    scenario = Scenario.model_validate(
        {
            "callers": {
                "lines": {"12345": 3, "12346": 1},
                "keys": {"12346": {"1": 1, "": 1}},
                "hurried": 0.1,
                "hang_up": 0.25,
                "talk": {"median": 60, "spread": 1, "at_least": 5, "at_most": 600},
            },
            "agents": {"rejects": 0.2, "misses": 0.1, "holds": 0.3, "invites": 1.0},
        }
    )
    drawn = _plans(scenario)
    lines = Counter(plan.line for plan in drawn)
    assert lines["12345"] / len(drawn) == pytest.approx(0.75, abs=0.04)
    assert {plan.keys for plan in drawn if plan.line == "12346"} == {"1", ""}
    assert {plan.keys for plan in drawn if plan.line == "12345"} == {""}
    assert sum(plan.hurried for plan in drawn) / len(drawn) == pytest.approx(0.1, abs=0.03)
    assert sum(plan.hangs_up for plan in drawn) / len(drawn) == pytest.approx(0.25, abs=0.04)
    first = Counter(plan.offer(0) for plan in drawn)
    assert first[Offer.REJECT] / len(drawn) == pytest.approx(0.2, abs=0.04)
    assert first[Offer.MISS] / len(drawn) == pytest.approx(0.1, abs=0.03)
    assert sum(Turn.HOLD in plan.turns for plan in drawn) / len(drawn) == pytest.approx(0.3, abs=0.04)
    assert all(Turn.INVITE in plan.turns for plan in drawn)
    assert all(5 <= plan.talk <= 600 for plan in drawn)
    assert sorted(plan.talk for plan in drawn)[len(drawn) // 2] == pytest.approx(60, rel=0.1)
    assert len({plan.number for plan in drawn}) == len(drawn)


def test_somebody_answers_in_the_end_however_unwilling_the_agents_are() -> None:
    scenario = Scenario.model_validate({"agents": {"rejects": 1.0}})
    assert all(plan.offer(3) is Offer.ANSWER for plan in _plans(scenario, count=50))


def test_a_span_without_spread_is_always_its_median_within_its_bounds() -> None:
    import random

    chance = random.Random(1)
    assert Span(median=3).draw(chance) == 3
    assert Span(median=3, at_least=5).draw(chance) == 5


def test_ranges_of_people_are_spelt_out() -> None:
    assert people(["agent1", "load008..load011", "spec1..spec2"]) == [
        "agent1",
        "load008",
        "load009",
        "load010",
        "load011",
        "spec1",
        "spec2",
    ]
    with pytest.raises(BadScenario, match=r"agent1\.\.agent4"):
        people(["agent1..load4"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate: 0", "rate"),
        ("callers: {lines: {}}", "lines"),
        ('callers: {lines: {"12345": 0}}', "weights"),
        ("agents: {rejects: 0.7, misses: 0.7}", "rejects"),
        ("rats: 1", "rats"),
        ("[", "YAML"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadScenario, match=told) as refused:
        load(str(path))
    assert "mine.yaml" in str(refused.value)


def test_a_scenario_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(BadScenario, match="load, quiet, rush"):
        load("nowhere")


TRACE = """call_id,entry,day
1,0:10:10,1999-08-01
2,23:59:59,1999-08-01
3,9:00:00,1999-08-02
4,8:30:00,1999-08-02
""".splitlines()
COLUMNS = TraceColumns(time="entry", day="day")


def test_a_trace_plays_its_days_one_after_the_other() -> None:
    assert trace_times(TRACE, COLUMNS) == [610, 86_399, 86_400 + 30_600, 86_400 + 32_400]


def test_a_trace_can_be_one_day_from_an_hour_on_and_faster() -> None:
    columns = TraceColumns(time="entry", day="day", only_day="1999-08-02")
    assert trace_times(TRACE, columns, start=8.5 * 3600, speed=10) == [0, 180]


def test_a_trace_s_mistakes_are_named() -> None:
    with pytest.raises(BadScenario, match="there are: call_id, entry, day"):
        trace_times(TRACE, TraceColumns(time="when", day="day"))
    with pytest.raises(BadScenario, match="line 3"):
        trace_times([*TRACE[:2], "2,noon,1999-08-01"], COLUMNS)
    with pytest.raises(BadScenario, match="no calls"):
        trace_times(TRACE, TraceColumns(time="entry", day="day", only_day="2020-01-01"))


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0
