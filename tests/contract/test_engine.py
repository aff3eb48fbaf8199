"""The engine's net: what one fault costs the others; and its clock, which never goes back."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from callcenter.domain.agents import AgentState
from callcenter.domain.calls import Call, CallId, EndReason, Leg, LegId, Now, Outcome, StepKind
from callcenter.domain.centre import ContactCentre
from callcenter.domain.messages import (
    Alarm,
    Arrange,
    CallArrived,
    Effect,
    FallBack,
    FlowsChanged,
    HangUp,
    Hold,
    LegAnswered,
    LegEnded,
    LegSeen,
    Play,
    Request,
    Ring,
    SaveAgent,
    SaveCall,
    SetReady,
    TelephonyLost,
    TelephonyResynced,
    Wait,
)
from callcenter.engine import Engine, SteadyClock
from tests.domain.house import FLOWS, HOTLINE, MONDAY, ZHANG, directory

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

    def fault(centre: ContactCentre, leg: LegSeen, how: StepKind, **options: Any) -> None:
        adopt(centre, leg, how, **options)
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


async def test_a_request_that_fails_costs_its_call_and_is_alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a bug in holding, when an agent holds, then he is told, his caller falls back, and the other call goes on."""
    done: list[Effect] = []
    engine = engine_with(done.append)
    alarms: list[Alarm] = []
    engine.subscribe(lambda change: alarms.append(change) if isinstance(change, Alarm) else None)
    engine.post(TelephonyResynced((), frozenset({"1001"})))
    engine.post(CallArrived(FIRST, "13800138000", "96500"))
    await asked(engine, SetReady(ZHANG.user_id))
    engine.post(LegAnswered(LegId(f"{FIRST}-2")))
    engine.post(CallArrived(SECOND, "13800138001", "96500"))
    engine.drain()
    hold = ContactCentre._hold

    def fault(centre: ContactCentre, call: Call, leg: Leg) -> None:
        hold(centre, call, leg)
        raise RuntimeError("a bug")

    monkeypatch.setattr(ContactCentre, "_hold", fault)
    with pytest.raises(RuntimeError):
        await asked(engine, Hold(ZHANG.user_id, FIRST))
    assert done[-2:] == [HangUp(LegId(f"{FIRST}-2")), FallBack(LegId(FIRST))]
    assert not any(isinstance(effect, Arrange) and effect.held for effect in done), (
        "nothing half-done is said"
    )
    assert set(engine.calls) == {SECOND}
    assert [alarm.key for alarm in alarms] == ["fault"]


async def test_a_request_that_fails_with_the_caller_it_was_to_lead_to_costs_that_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a bug in offering, when an agent becomes ready, then whoever waited goes to the fallback and not into limbo."""
    done: list[Effect] = []
    engine = engine_with(done.append)
    engine.post(TelephonyResynced((), frozenset({"1001"})))
    engine.post(CallArrived(FIRST, "13800138000", "96500"))
    ring = ContactCentre._ring

    def fault(centre: ContactCentre, *args: Any, **options: Any) -> LegId:
        ring(centre, *args, **options)
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(ContactCentre, "_ring", fault)
        with pytest.raises(RuntimeError):
            await asked(engine, SetReady(ZHANG.user_id))
    assert FallBack(LegId(FIRST)) in done
    assert not any(isinstance(effect, Ring) for effect in done)
    assert not engine.calls
    assert engine.agents[ZHANG.user_id].state is AgentState.READY


async def asked(engine: Engine, request: Request) -> None:
    """Ask, and let the engine answer."""
    answer = asyncio.ensure_future(engine.ask(request))
    await asyncio.sleep(0)
    engine.drain()
    await answer


class Wall:
    """Two clocks of which one is put forward and back."""

    def __init__(self) -> None:
        self.seconds, self.stepped = 1000.0, timedelta()

    def __call__(self) -> Now:
        return Now(self.seconds, MONDAY + timedelta(seconds=self.seconds - 1000) + self.stepped)


def test_recorded_time_follows_forward_and_never_goes_back() -> None:
    wall = Wall()
    clock = SteadyClock(wall)
    wall.seconds += 10
    assert clock() == wall()
    wall.stepped = timedelta(hours=1)
    wall.seconds += 10
    assert clock() == wall()
    wall.stepped = timedelta()
    wall.seconds += 10
    assert clock() == Now(1030.0, MONDAY + timedelta(hours=1, seconds=29))
    wall.seconds += 10 * 3600 - 20
    assert clock().utc > wall().utc
    wall.seconds += 20
    assert clock() == wall(), "caught up after ten hours"


def test_a_new_engine_begins_no_earlier_than_its_records() -> None:
    """Given a clock put back an hour while the engine was away, when a restored call goes on, then its times are in order."""
    wall = Wall()
    saved: list[Call] = []

    def engine() -> Engine:
        made = Engine(ContactCentre(), perform=lambda _: None, clock=wall)
        made.subscribe(lambda change: saved.append(change.call) if isinstance(change, SaveCall) else None)
        for event in (directory(), FlowsChanged(FLOWS)):
            made.post(event)
        made.drain()
        return made

    first = engine()
    first.post(TelephonyResynced((), frozenset()))
    first.post(CallArrived(FIRST, "13800138000", "96500"))
    first.drain()
    wall.seconds, wall.stepped = wall.seconds + 5, timedelta(hours=-1)
    second = engine()
    second.restore([saved[-1]], [])
    second.post(TelephonyResynced((LegSeen(LegId(FIRST), up=True),), frozenset({"1001"})))
    second.post(CallArrived(SECOND, "13800138001", "7220000"))
    second.drain()
    [hotline] = [status for status in second.queue_status() if status.queue_id == HOTLINE]
    assert 0 <= hotline.longest_wait_seconds < 10
    wall.seconds += 5
    second.post(LegEnded(LegId(FIRST), Outcome.UNREACHABLE))
    second.drain()
    [ended] = [call for call in saved if call.ended_at is not None]
    times = [ended.arrived_at, *(step.at for step in ended.steps), ended.ended_at]
    assert times == sorted(times)
