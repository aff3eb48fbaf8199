"""The engine's net: what one fault in carrying out an effect, or in a listener, costs the others."""

from collections.abc import Callable

import pytest

from callcenter.domain.calls import CallId, EndReason, LegId, StepKind
from callcenter.domain.centre import ContactCentre
from callcenter.domain.messages import (
    Alarm,
    CallArrived,
    Effect,
    FallBack,
    FlowsChanged,
    LegSeen,
    Play,
    SaveAgent,
    SaveCall,
    TelephonyLost,
    TelephonyResynced,
    Wait,
)
from callcenter.engine import Engine
from tests.domain.house import FLOWS, MONDAY, Now, directory

FIRST, SECOND = CallId("ast1-1763763843.1"), CallId("ast1-1763763843.2")


def engine_with(perform: Callable[[Effect], None]) -> Engine:
    engine = Engine(ContactCentre(), perform=perform, clock=lambda: Now(1000.0, MONDAY))
    engine.post(directory())
    engine.post(FlowsChanged(FLOWS))
    engine.post(TelephonyResynced((), frozenset()))
    engine.drain()
    return engine


def test_an_effect_that_cannot_be_carried_out_costs_its_call_and_no_other() -> None:
    """Given a telephony that fails at the greeting, when two callers come, then one falls back and one is served."""
    done: list[Effect] = []

    def perform(effect: Effect) -> None:
        if isinstance(effect, Play):
            raise OSError("No space left on device")
        done.append(effect)

    engine = engine_with(perform)
    saved: list[SaveCall | SaveAgent | Alarm] = []
    engine.subscribe(saved.append)
    engine.post(CallArrived(FIRST, "13800138000", "12345"))
    engine.post(CallArrived(SECOND, "13800138001", "96500"))
    engine.drain()
    assert FallBack(LegId(FIRST)) in done
    assert any(isinstance(effect, Wait) and effect.leg_id == LegId(SECOND) for effect in done)
    last = [change.call for change in saved if isinstance(change, SaveCall) and change.call.call_id == FIRST][
        -1
    ]
    assert last.end_reason is EndReason.FAULT
    assert set(engine.calls) == {SECOND}


def test_a_fallback_that_fails_too_ends_there() -> None:
    def perform(effect: Effect) -> None:
        raise ValueError(f"{type(effect).__name__} is not possible")

    engine = engine_with(perform)
    engine.post(CallArrived(FIRST, "13800138000", "12345"))
    engine.drain()
    assert not engine.calls


def test_a_call_that_cannot_be_taken_over_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a bug at one of three living callers, when the connection comes back, then the other two are served."""
    done: list[Effect] = []
    engine = engine_with(done.append)
    engine.post(TelephonyLost("reset"))
    third = CallId("ast1-1763763843.3")
    adopt = ContactCentre._adopt

    def fault(centre: ContactCentre, leg: LegSeen, how: StepKind) -> None:
        adopt(centre, leg, how)
        if leg.leg_id == SECOND:
            raise RuntimeError("a bug")

    monkeypatch.setattr(ContactCentre, "_adopt", fault)
    seen = [LegSeen(LegId(call_id), up=True, dialled="96500") for call_id in (FIRST, SECOND, third)]
    engine.post(TelephonyResynced(tuple(seen), frozenset()))
    engine.drain()
    assert FallBack(LegId(SECOND)) in done
    assert set(engine.calls) == {FIRST, third}
    assert engine.telephony_up


def test_a_fault_of_the_resync_itself_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(lambda _: None)

    def fault(_: ContactCentre) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ContactCentre, "_pair_up", fault)
    engine.post(TelephonyResynced((LegSeen(LegId(FIRST), up=True, dialled="96500"),), frozenset()))
    engine.drain()
    assert set(engine.calls) == {FIRST}


def test_a_call_that_cannot_even_be_given_up_does_not_end_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(effect: Effect) -> None:
        if isinstance(effect, Play):
            raise OSError("No space left on device")
        done.append(effect)

    def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    done: list[Effect] = []
    engine = engine_with(perform)
    monkeypatch.setattr(ContactCentre, "_close", fault)
    engine.post(CallArrived(FIRST, "13800138000", "12345"))
    engine.post(CallArrived(SECOND, "13800138001", "96500"))
    engine.drain()
    assert any(isinstance(effect, Wait) and effect.leg_id == LegId(SECOND) for effect in done)


def test_a_listener_that_raises_keeps_nothing_from_the_others() -> None:
    engine = engine_with(lambda _: None)
    heard: list[SaveCall | SaveAgent | Alarm] = []

    def broken(_: SaveCall | SaveAgent | Alarm) -> None:
        raise KeyError("a name")

    engine.subscribe(broken)
    engine.subscribe(heard.append)
    engine.post(CallArrived(FIRST, "13800138000", "96500"))
    engine.drain()
    assert [type(change) for change in heard] == [SaveCall]
