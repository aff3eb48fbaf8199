"""The engine's net: what one fault in carrying out an effect, or in a listener, costs the others."""

from collections.abc import Callable

from callcenter.domain.calls import CallId, EndReason, LegId
from callcenter.domain.centre import ContactCentre
from callcenter.domain.messages import (
    Alarm,
    CallArrived,
    Effect,
    FallBack,
    FlowsChanged,
    Play,
    SaveAgent,
    SaveCall,
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
