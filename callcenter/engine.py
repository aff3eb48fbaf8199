"""The single writer: everything that happens goes through one inbox into the centre, and its effects come out.

The engine holds the clock. It calls ``advance`` before each event so that a deadline is never behind a burst, and
lets the loop breathe every few hundred events. While it runs, an event is dealt with where it is posted: from the
manager's socket to the action written on it there is no other task to wait for.
"""

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from callcenter.domain.agents import Agent, Queue
from callcenter.domain.calls import Call, CallId, EndReason, Now, Phase, QueueId, UserId
from callcenter.domain.centre import ContactCentre, QueueStatus
from callcenter.domain.messages import (
    Alarm,
    Effect,
    Event,
    Refused,
    Request,
    SaveAgent,
    SaveCall,
    TelephonyResynced,
)

log = structlog.get_logger(__name__)

Change = SaveCall | SaveAgent | Alarm
Listener = Callable[[Change], None]

_BREATH = 200
_SLOWED = timedelta(seconds=0.9)
"""Recorded time that passes in a second after the wall clock was put back."""


def clock() -> Now:
    """Both clocks, read together."""
    return Now(time.monotonic(), datetime.now(UTC))


class SteadyClock:
    """Both clocks, but the recorded one never goes back: the times of a record stay in order, whatever is done to it.

    A step of the wall clock forward is followed at once. After a step back, recorded time goes on nine tenths as fast
    until the wall clock has caught up. Monotonic seconds, by which everything is decided, know nothing of either.
    """

    def __init__(self, clock: Callable[[], Now]) -> None:
        self._clock = clock
        self._last = clock()

    def __call__(self) -> Now:
        now = self._clock()
        earliest = self._last.utc + (now.seconds - self._last.seconds) * _SLOWED
        self._last = now if now.utc >= earliest else Now(now.seconds, earliest)
        return self._last

    def not_before(self, utc: datetime) -> None:
        """What was recorded so far is past, even if the wall clock was put back since."""
        if utc > self._last.utc:
            self._last = Now(self._last.seconds, utc)


@dataclass(frozen=True, slots=True)
class _Asked:
    request: Request | None
    """None: only to hear when everything before it has been done."""
    done: asyncio.Future[None]


class Engine:
    """``perform`` carries out the effects on live calls; listeners get every change of a call or an agent."""

    def __init__(
        self, centre: ContactCentre, *, perform: Callable[[Effect], None], clock: Callable[[], Now] = clock
    ) -> None:
        self._centre = centre
        self._perform = perform
        self._clock = SteadyClock(clock)
        # Not bounded: dropping an event would lose a call. What fills it is bounded by Asterisk's own pace.
        self._inbox: deque[Event | _Asked] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Set while it runs."""
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        """Not after the next deadline; where that has moved away, the alarm finds nothing due and is set anew."""
        self._busy = False
        self._listeners: list[Listener] = []
        self.lag_seconds = 0.0
        """How late the last deadline was served: the health of the event loop."""

    # --- for the adapters -----------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Say that something has happened; order is kept.

        A running engine has dealt with it on return, but for one that is posted while it deals with another.
        """
        self._inbox.append(event)
        self._work()

    async def ask(self, request: Request) -> None:
        """Do what a user asks; raises Refused, and then nothing has changed.

        Raises whatever else a bug raises; then the call it was about has been given to the fallback.
        """
        await self._queue(request)

    async def settle(self) -> None:
        """Wait until everything posted so far has been dealt with."""
        await self._queue(None)

    def _queue(self, request: Request | None) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Asked(request, done))
        self._work()
        return done

    def tell(self, alarm: Alarm) -> None:
        """Let whoever listens know of trouble that is outside the centre."""
        for listener in tuple(self._listeners):
            self._netted(partial(listener, alarm), alarm)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after each change, synchronously; it must not block. Returns the way out."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def announce(self, alarm: Alarm) -> None:
        """Tell the listeners of something outside the calls that a person on duty must know."""
        self._done(alarm)

    def restore(self, calls: Iterable[Call], agents: Iterable[Agent]) -> None:
        """Take up what the records say was going on, before the first event of the telephony."""
        calls, agents = list(calls), list(agents)
        for call in calls:
            self._clock.not_before(call.steps[-1].at)
        for agent in agents:
            if agent.since is not None:
                self._clock.not_before(agent.since)
        self._centre.restore(calls, agents, self._clock())

    # --- what is ---------------------------------------------------------------------------------------------

    @property
    def calls(self) -> Mapping[CallId, Call]:
        """The living calls."""
        return {c: call for c, call in self._centre.calls.items() if call.phase is not Phase.ENDED}

    @property
    def agents(self) -> Mapping[UserId, Agent]:
        return self._centre.agents

    @property
    def queues(self) -> Mapping[QueueId, Queue]:
        return self._centre.queues

    @property
    def telephony_up(self) -> bool:
        return self._centre.telephony_up

    def queue_status(self) -> list[QueueStatus]:
        return self._centre.queue_status(self._clock())

    @property
    def waiting_events(self) -> int:
        return len(self._inbox)

    # --- the loop -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn events into effects until cancelled; everything in the inbox at that moment is still done."""
        self._loop = asyncio.get_running_loop()
        try:
            self._work()
            await self._loop.create_future()
        finally:
            self._loop = None
            if self._alarm is not None:
                self._alarm.cancel()
            self.drain()

    def _work(self) -> None:
        """Deal with what is in the inbox, and have the next deadline kept."""
        if self._loop is None or self._busy:
            return
        self.drain(at_most=_BREATH)
        if self._inbox:
            self._loop.call_soon(self._work)
        due = self._centre.next_deadline()
        if due is None or (self._alarm is not None and self._alarm_at <= due):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = self._loop.call_later(due - self._clock().seconds, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.lag_seconds = max(0.0, self._clock().seconds - self._alarm_at)
        self._work()

    def drain(self, *, at_most: int | None = None) -> None:
        """Take what is in the inbox, deadlines first, one turn each."""
        self._busy = True
        try:
            self._turn(self._centre.advance, None)
            taken = 0
            while self._inbox and (at_most is None or taken < at_most):
                taken += 1
                item = self._inbox.popleft()
                if isinstance(item, _Asked):
                    self._answer(item)
                else:
                    self._turn(partial(self._centre.handle, item), item)
                self._turn(self._centre.advance, None)
        finally:
            self._busy = False

    def _answer(self, asked: _Asked) -> None:
        if asked.done.done():
            return  # the asker has gone away
        if asked.request is None:
            asked.done.set_result(None)
            return
        try:
            effects = self._centre.ask(asked.request, self._clock())
        except Refused as refused:
            asked.done.set_exception(refused)
            return
        # The same net as under events; the asker is told that it failed.
        except Exception as error:  # noqa: BLE001  # see above
            _note_fault("request failed", asked.request, error)
            self._carry_out(self._give_up(asked.request))
            asked.done.set_exception(error)
            return
        self._carry_out(effects)
        asked.done.set_result(None)

    def _turn(self, decide: Callable[[Now], list[Effect]], event: Event | None) -> None:
        try:
            effects = decide(self._clock())
        # The net under decisions: a bug costs the call it happened in, which the dialplan's fallback takes, and no other.
        except Exception as error:  # noqa: BLE001  # see above
            _note_fault("decision failed", event, error)
            effects = self._give_up(event)
            if isinstance(event, TelephonyResynced) and any(map(_gives_up, effects)):
                # The others are still to be taken over; each time it is one call less.
                self._inbox.appendleft(event)
        self._carry_out(effects)

    def _carry_out(self, effects: list[Effect]) -> None:
        # What people on the line wait for is done before it is shown to anybody or written down.
        not_done = [effect for effect in sorted(effects, key=_is_change) if not self._done(effect)]
        for effect in not_done:
            # Once: what cannot be carried out now is not tried again with other words.
            for last in self._give_up(effect):
                self._done(last)

    def _give_up(self, failed: Event | Request | Effect | None) -> list[Effect]:
        alarm = Alarm("fault", {"at": "deadline" if failed is None else type(failed).__name__})
        try:
            return [alarm, *self._centre.give_up(failed, self._clock())]
        # A bug may have left the call in a state that cannot even be ended; the others go on all the same.
        except Exception as error:  # noqa: BLE001  # see above
            _note_fault("giving up failed", failed, error)
            return [alarm]

    def _done(self, effect: Effect) -> bool:
        """Carry it out; False when its call cannot go on without it."""
        match effect:
            case SaveCall() | SaveAgent() | Alarm():
                for listener in tuple(self._listeners):
                    self._netted(partial(listener, effect), effect)
                return True
            case _:
                return self._netted(partial(self._perform, effect), effect)

    def _netted(self, act: Callable[[], None], effect: Effect) -> bool:
        try:
            act()
        # The net under what adapters do: a full disk at one call, a bug in one screen, must not end the engine.
        except Exception as error:  # noqa: BLE001  # see above
            _note_fault("effect failed", effect, error)
            return False
        return True


def _is_change(effect: Effect) -> bool:
    return isinstance(effect, SaveCall | SaveAgent | Alarm)


def _gives_up(effect: Effect) -> bool:
    return isinstance(effect, SaveCall) and effect.call.end_reason is EndReason.FAULT


def _note_fault(what: str, subject: Event | Request | Effect | None, error: Exception) -> None:
    log.error(
        what,
        message=type(subject).__name__,
        error=type(error).__name__,
        # Not the exception's own text: it may hold a caller's number.
        where="".join(traceback.format_tb(error.__traceback__)),
    )
