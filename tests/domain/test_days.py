"""A busy day in virtual time: every caller has an end, nobody is in two calls (long: `make chaos NAMES=day`)."""

from pathlib import Path

from tests.chaos.day import Caller, Day, synthetic, traced


def test_every_caller_of_a_busy_day_has_an_end() -> None:
    callers = list(synthetic(600))
    found = Day(callers, agents=6, specialists=3).play()
    assert not found.wrong
    assert found.ended == found.calls == len(callers)
    assert 0 < found.answered < found.calls


def test_a_trace_of_calls_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_text(
        "date_1999,vru_entry,vru_time,q_time,outcome,ser_time,server\n"
        "1999-08-02,9:00:30,8,20,HANG,0,NO_SERVER\n"
        "1999-08-02,9:00:00,6,0,AGENT,143,ROTH\n",
        "utf-8",
    )
    assert traced(path) == [Caller(0.0, None, 143.0), Caller(30.0, 28.0, 1.0)]
