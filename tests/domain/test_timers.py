"""Deadlines: at most one a name, due in time's order, nothing kept of what was cancelled."""

from hypothesis import given
from hypothesis import strategies as st

from callcenter.domain.timers import Timer, TimerKind, Timers

RING, GONE = TimerKind.RING, TimerKind.GONE


def test_the_earliest_is_due_first_and_only_once() -> None:
    timers = Timers()
    timers.set("a", RING, 5)
    timers.set("a", GONE, 3)
    assert timers.next_due() == 3
    assert timers.pop_due(2.9) is None
    assert [timers.pop_due(9), timers.pop_due(9), timers.pop_due(9)] == [
        Timer(GONE, "a"),
        Timer(RING, "a"),
        None,
    ]
    assert timers.next_due() is None


def test_setting_again_moves_and_cancelling_forgets() -> None:
    timers = Timers()
    timers.set("a", RING, 5)
    timers.set("a", RING, 2)
    timers.set("a", RING, 7)
    timers.set("a", GONE, 6)
    timers.cancel("a", GONE)
    assert not timers.is_set("a", GONE)
    assert timers.pop_due(6.9) is None
    assert timers.pop_due(7) == Timer(RING, "a")
    assert not timers.is_set("a", RING)


STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "cancel", "pop"]), st.sampled_from("abc"), st.integers(0, 9)),
    max_size=60,
)


@given(STEPS)
def test_it_is_a_table_of_deadlines(steps: list[tuple[str, str, int]]) -> None:
    timers, table = Timers(), dict[Timer, float]()
    for what, subject, seconds in steps:
        timer = Timer(RING, subject)
        match what:
            case "set":
                timers.set(subject, RING, seconds)
                table[timer] = seconds
            case "cancel":
                timers.cancel(subject, RING)
                table.pop(timer, None)
            case _:
                due = min(((at, t) for t, at in table.items() if at <= seconds), default=None)
                assert timers.pop_due(seconds) == (due[1] if due else None)
                if due:
                    del table[due[1]]
        assert timers.next_due() == min(table.values(), default=None)
