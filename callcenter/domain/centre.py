"""The contact centre: every decision about a live call, in one synchronous object with one writer.

``handle(event, now)``, ``ask(request, now)`` and ``advance(now)`` return the effects to carry out, in order. Nothing
here waits, reads a clock or talks to anybody. A change to a call or an agent ends in one ``SaveCall`` or ``SaveAgent``
a turn, after the effects of that turn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal, assert_never
from zoneinfo import ZoneInfo

from callcenter.domain import ivr
from callcenter.domain.acd import Routing
from callcenter.domain.agents import Agent, AgentState, NotReady, Profile, Queue, UserRole
from callcenter.domain.calendar import working_day
from callcenter.domain.calls import (
    Call,
    CallId,
    EndReason,
    Leg,
    LegId,
    LegState,
    Now,
    Outcome,
    Phase,
    Place,
    QueueId,
    Role,
    StepKind,
    UserId,
    call_id_of,
)
from callcenter.domain.messages import (
    Alarm,
    Arrange,
    ArrangeFailed,
    CallArrived,
    CallAstray,
    ConsoleLost,
    ConversationOver,
    DigitPressed,
    DirectoryChanged,
    Draining,
    Drop,
    Effect,
    Event,
    FallBack,
    FellBack,
    FlowsChanged,
    HangUp,
    HangUpCall,
    Hold,
    Invite,
    Leave,
    LegAnswered,
    LegDead,
    LegEnded,
    LegHungUp,
    LegSeen,
    LegWas,
    LogOut,
    Meanwhile,
    Merge,
    MessageEnded,
    Mute,
    PhoneSeen,
    Play,
    PromptsEnded,
    Reason,
    Record,
    Refused,
    Request,
    Resume,
    Ring,
    SaveAgent,
    SaveCall,
    SetMute,
    SetNotReady,
    SetReady,
    ShuttingDown,
    TakeMessage,
    Target,
    TargetKind,
    TelephonyLost,
    TelephonyResynced,
    TicketOpened,
    Transfer,
    Unattended,
    Wait,
    WrapUp,
)
from callcenter.domain.recordings import recorded_since
from callcenter.domain.records import replace
from callcenter.domain.spoken import queue_announcement
from callcenter.domain.timers import Timer, TimerKind, Timers

SHANGHAI = ZoneInfo("Asia/Shanghai")

_OWN_REASONS = frozenset(reason.value for reason in NotReady)
_KEYS_COUNT = (ivr.PlayStep, ivr.CollectStep)
_IN_CALL = (AgentState.OFFERED, AgentState.TALKING, AgentState.HELD)


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of the live call; the lines' own limits are in their flows and queues."""

    invite_seconds: float = 25.0
    """How long an invited party's phone rings."""
    ring_margin_seconds: float = 5.0
    """The telephony gives up this much later than the centre, should the centre be away."""
    gone_seconds: float = 4.0
    """A leg told to hang up and not seen to end is taken as ended: one lost event must not hold an agent."""
    requeue_head_start_seconds: float = 3600.0
    """A caller who has to be given to somebody else goes before all who just came."""
    max_parties: int = 6
    wrap_up_seconds: float = 30.0
    """For a call that came from no queue."""
    first_handling_seconds: float = 180.0
    """Handling time assumed until the queue has its own average."""
    prompt_seconds: float = 90.0
    """A prompt whose length is not known and whose end has not been told is taken as ended: no silent caller."""
    phone_back_seconds: float = 120.0
    """An agent whose phone was away for less, and who was ready, is ready again. As long as a registration lasts."""
    alone_seconds: float = 0.5
    """So long after Asterisk let go of a caller his partner's end may come; the dialplan holds him for 3 s."""

    just_left_seconds: float = 2.0
    """Parties could not be brought together because one of them hung up, if one has left within this."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    queue_id: QueueId
    waiting: int
    longest_wait_seconds: float
    ready: int
    staffed: int


@dataclass(slots=True)
class _InFlow:
    """What a caller who talks with nobody is hearing."""

    step: ivr.Step | None
    """None: the last words to a caller whom no flow leads."""
    play_id: int | None = None
    """The prompts whose end is awaited."""
    message_since: float | None = None


@dataclass(slots=True)
class _Moments:
    """When things happened in a living call, on the clock that decides; its record tells them on the wall clock."""

    queued: float | None = None
    answered: dict[LegId, float] = field(default_factory=dict)
    party_ended: float | None = None
    """When a party last left or could not be reached."""


@dataclass(slots=True)
class _Search:
    """Ringing specialists one after the other until somebody with the skill answers."""

    skill: str
    by: UserId
    tried: set[UserId]


class ContactCentre:
    def __init__(
        self,
        policy: Policy | None = None,
        *,
        working_days: Mapping[date, bool] | None = None,
        prompt_seconds: Mapping[str, float] | None = None,
    ) -> None:
        """``prompt_seconds``: the prompts' lengths by name, as far as they are known."""
        self._policy = policy or Policy()
        self._working_days = working_days or {}
        self._prompt_seconds = prompt_seconds or {}
        self._calls: dict[CallId, Call] = {}
        self._agents: dict[UserId, Agent] = {}
        self._by_phone: dict[str, UserId] = {}
        self._phones: set[str] = set()
        self._routing = Routing()
        self._timers = Timers()
        self._flows: dict[tuple[str, str], ivr.Flow] = {}
        self._line_flow: dict[str, ivr.Flow] = {}
        self._by_number: dict[str, ivr.Flow] = {}
        self._in_flow: dict[CallId, _InFlow] = {}
        self._play_id = 0
        self._searches: dict[CallId, _Search] = {}
        self._moments: dict[CallId, _Moments] = {}
        self._not_arranged: set[CallId] = set()
        self._given_up: set[CallId] = set()
        self._members: frozenset[UserId] = frozenset()
        self._handling: dict[QueueId, float] = {}
        self._reasons: frozenset[str] = frozenset()
        self._dispositions: frozenset[str] = frozenset()
        self._numbers: frozenset[str] = frozenset()
        self._telephony_up = False
        self._draining = False
        self._closing = False
        self._reconciling: CallId | None = None
        self._serving: Timer | None = None
        self._now: Now
        self._out: list[Effect] = []
        self._changed_calls: dict[CallId, Call] = {}
        self._changed_agents: dict[UserId, Agent] = {}

    # --- what others may see --------------------------------------------------------------------------------

    @property
    def calls(self) -> Mapping[CallId, Call]:
        """Calls that live, and ended ones whose agent is still wrapping up."""
        return self._calls

    @property
    def agents(self) -> Mapping[UserId, Agent]:
        return self._agents

    @property
    def queues(self) -> Mapping[QueueId, Queue]:
        return self._routing.queues

    @property
    def telephony_up(self) -> bool:
        return self._telephony_up

    def queue_status(self, now: Now) -> list[QueueStatus]:
        status = []
        for queue_id in self._routing.queues:
            first = self._routing.first_waiting(queue_id)
            queued = self._moments[first].queued if first else None
            status.append(
                QueueStatus(
                    queue_id,
                    self._routing.waiting_at(queue_id),
                    0.0 if queued is None else now.seconds - queued,
                    self._routing.free_at(queue_id),
                    self._routing.staffed_at(queue_id),
                )
            )
        return status

    # --- turns ----------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: Now) -> list[Effect]:
        """What follows from something that has happened; unknown legs and repeated events change nothing."""
        self._now = now
        self._happened(event)
        return self._turn_over()

    def ask(self, request: Request, now: Now) -> list[Effect]:
        """Do what a user asks. Refused: nothing has changed."""
        self._now = now
        try:
            self._asked(request)
        except Refused:
            # Every check stands before the first change; this only makes a forgotten one visible in tests.
            changed = [*self._out, *self._changed_calls, *self._changed_agents]
            assert not changed, "a request was refused half-way"
            raise
        return self._turn_over()

    def advance(self, now: Now) -> list[Effect]:
        """Carry out every deadline that has passed."""
        timer = self._timers.pop_due(now.seconds)
        if timer is None:
            return []
        self._now = now
        while timer is not None:
            self._serving = timer
            self._due(timer)
            timer = self._timers.pop_due(now.seconds)
        self._serving = None
        return self._turn_over()

    def next_deadline(self) -> float | None:
        """Monotonic second at which ``advance`` has something to do."""
        return self._timers.next_due()

    def restore(self, calls: Iterable[Call], agents: Iterable[Agent], now: Now) -> None:
        """Take up what the records say was going on; the next ``TelephonyResynced`` tells what is left of it.

        The directory must be known: of others' agents nothing is taken. Ended calls are those whose agents are
        wrapping up and those whose callers may still be on the line, left to the fallback. No time in the records may
        be later than ``now``.
        """
        self._now = now
        for stored in agents:
            known = self._agents.get(stored.user_id)
            if known is not None:
                self._keep_agent(self._awakened(stored, known))
        for call in calls:
            self._calls[call.call_id] = call
            if call.phase is not Phase.ENDED and call.queued_at is not None:
                waited = (now.utc - call.queued_at).total_seconds()
                self._moments_of(call).queued = now.seconds - waited
            for leg in call.others:
                if not leg.up:
                    self._timers.set(leg.leg_id, TimerKind.RING, now.seconds + self._policy.invite_seconds)
                agent = self._agents.get(leg.user_id) if leg.user_id else None
                if agent is not None and agent.leg_id != leg.leg_id:
                    # The call is the truth: its agent's own record may have been written a moment earlier.
                    after = agent.after_call if agent.state in _IN_CALL else agent.state
                    self._keep_agent(
                        replace(
                            agent,
                            state=_state_in(call, leg),
                            call_id=call.call_id,
                            leg_id=leg.leg_id,
                            after_call=AgentState.READY if after is AgentState.WRAP_UP else after,
                            after_reason=agent.after_reason if agent.state in _IN_CALL else agent.reason,
                            wrap_up_until=None,
                        )
                    )

    def _awakened(self, stored: Agent, known: Agent) -> Agent:
        """An agent of the records on this process' monotonic clock."""
        ago = (self._now.utc - stored.since).total_seconds() if stored.since else 0.0
        since = self._now.seconds - ago
        until = None
        if stored.state is AgentState.WRAP_UP and stored.wrap_up_until is not None:
            until = since + stored.wrap_up_until - stored.since_seconds
            self._timers.set(stored.user_id, TimerKind.WRAP_UP, until)
        return replace(
            stored,
            profile=known.profile,
            since_seconds=since,
            wrap_up_until=until,
            phone_reachable=known.phone_reachable,
        )

    def _shut_down(self) -> None:
        self._closing = True
        for call in list(self._calls.values()):
            if call.phase is Phase.ENDED:
                continue
            if call.answered_at is None and call.end_reason is None:
                self._put(replace(call, end_reason=EndReason.SHUT_DOWN))
            for leg in call.legs:
                if leg.alive:
                    self._hang_up(leg.leg_id)

    def give_up(self, failed: Event | Request | Effect | None, now: Now) -> list[Effect]:
        """This could not be dealt with (None: a deadline): that call alone goes to the dialplan's fallback.

        What was decided for others before the fault is carried out.
        """
        self._now = now
        call = self._faulty(failed)
        if call is None or call.phase is Phase.ENDED:
            return self._turn_over()
        self._out = [effect for effect in self._out if _call_of(effect) != call.call_id]
        for leg in call.others:
            self._out.append(HangUp(leg.leg_id))
        if call.caller_leg.alive:
            self._out.append(FallBack(call.caller_leg.leg_id))
            self._given_up.add(call.call_id)
        self._close(call, EndReason.FAULT)
        return self._turn_over()

    def _faulty(self, failed: Event | Request | Effect | None) -> Call | None:
        """The call in which it failed."""
        if isinstance(failed, TelephonyResynced):
            return self._calls.get(self._reconciling) if self._reconciling else None
        subject: str | None = self._serving.subject if failed is None and self._serving else None
        if failed is not None:
            subject = _call_of(failed)
        call = self._calls.get(call_id_of(LegId(subject))) if subject else None
        if call is None and self._changed_calls:
            # It began with an agent or with the directory, and failed with the caller he was to be given.
            call = self._calls.get(next(reversed(self._changed_calls)))
        return call

    def _moments_of(self, call: Call) -> _Moments:
        return self._moments.setdefault(call.call_id, _Moments())

    def _turn_over(self) -> list[Effect]:
        out = [*self._out, *map(SaveCall, self._changed_calls.values())]
        out.extend(map(SaveAgent, self._changed_agents.values()))
        self._out.clear()
        self._changed_calls.clear()
        self._changed_agents.clear()
        return out

    def _put(self, call: Call) -> Call:
        """Keep the call as it now stands; however often it changes in a turn, that is one version."""
        if call.call_id not in self._changed_calls:
            call = replace(call, version=call.version + 1)
        self._calls[call.call_id] = call
        self._changed_calls[call.call_id] = call
        return call

    # --- events ---------------------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        match event:
            case CallArrived():
                self._call_arrived(event)
            case LegAnswered(leg_id):
                self._leg_answered(leg_id)
            case LegEnded(leg_id, outcome):
                self._leg_ended(leg_id, outcome)
            case LegHungUp(leg_id):
                self._leg_hung_up(leg_id)
            case PromptsEnded(leg_id, play_id):
                self._prompts_ended(leg_id, play_id)
            case DigitPressed(leg_id, digit):
                call, heard = self._calls.get(CallId(leg_id)), self._in_flow.get(CallId(leg_id))
                if call is not None and heard is not None and isinstance(heard.step, _KEYS_COUNT):
                    self._flow_on(call, ivr.DigitPressed(digit))
            case MessageEnded(leg_id):
                call = self._calls.get(CallId(leg_id))
                if call is not None:
                    self._message_over(call)
            case ConversationOver(leg_id):
                self._conversation_over(leg_id)
            case ArrangeFailed(call_id):
                self._arrange_failed(call_id)
            case LegDead(leg_id):
                self._leg_dead(leg_id)
            case CallAstray(call_id):
                call = self._calls.get(call_id)
                if call is not None:
                    self._take_up(call)
            case FellBack():
                self._fell_back(event)
            case PhoneSeen(phone, reachable):
                self._phone_seen(phone, reachable=reachable)
            case TelephonyResynced():
                self._resynced(event)
            case TelephonyLost(reason):
                self._telephony_up = False
                self._out.append(Alarm("telephony_lost", {"reason": reason}))
            case TicketOpened(call_id, number):
                call = self._calls.get(call_id)
                if call is not None and call.ticket_number != number:
                    self._put(replace(call, ticket_number=number))
            case DirectoryChanged():
                self._directory_changed(event)
            case FlowsChanged(flows):
                self._flows_changed(flows)
            case Draining():
                self._draining = True
            case ShuttingDown():
                self._shut_down()
            case ConsoleLost(user_id):
                self._console_lost(user_id)
            case _:
                assert_never(event)

    def _call_arrived(self, event: CallArrived) -> None:
        if event.call_id in self._calls or event.call_id in self._given_up:
            return
        flow = self._by_number.get(event.dialled)
        call = self._new_call(event.call_id, event.caller, event.dialled, flow)
        call = self._put(call.with_step(self._now, StepKind.ARRIVED, detail=event.dialled))
        if self._closing:
            self._put(replace(call, end_reason=EndReason.SHUT_DOWN))
            self._hang_up(call.caller_leg.leg_id)
        elif self._draining:
            call = self._put(replace(call, end_reason=EndReason.SHUT_DOWN))
            self._say_then_hang_up(call, "system_trouble")
        elif flow is None:
            self._out.append(Alarm("no_flow", {"dialled": event.dialled}))
            self._say_then_hang_up(call, "no_such_number")
        else:
            self._enter_flow(call, flow)

    def _new_call(
        self,
        call_id: CallId,
        caller: str,
        dialled: str,
        flow: ivr.Flow | None,
        *,
        arrived_at: datetime | None = None,
    ) -> Call:
        arrived_at = arrived_at or self._now.utc
        leg = Leg(
            leg_id=LegId(call_id),
            role=Role.CALLER,
            address=caller,
            user_id=None,
            state=LegState.UP,
            place=Place.ALONE,
            asked_at=arrived_at,
            answered_at=arrived_at,
        )
        return Call(
            call_id=call_id,
            line=flow.line if flow else "",
            flow_version=flow.version if flow else "",
            dialled=dialled,
            caller=caller,
            arrived_at=arrived_at,
            phase=Phase.IN_FLOW,
            legs=(leg,),
        )

    # --- the flow -------------------------------------------------------------------------------------------

    def _facts(self, call: Call) -> ivr.Facts:
        local = self._now.utc.astimezone(SHANGHAI)
        position = self._routing.position(call.call_id)
        wait = None if position is None or call.queue is None else self._expected_wait(call.queue, position)
        return ivr.Facts(local, working_day(local.date(), self._working_days), position, wait)

    def _enter_flow(self, call: Call, flow: ivr.Flow, *, at: ivr.NodeId | None = None) -> None:
        self._follow(call, *ivr.begin(flow, self._facts(call), at=at))

    def _flow_on(self, call: Call, event: ivr.Input) -> None:
        """Let the flow go on with what happened to its caller."""
        cursor, flow = call.cursor, self._flow_of(call)
        if cursor is None or flow is None:
            self._out.append(Alarm("no_flow", {"dialled": call.dialled}))
            self._say_then_hang_up(call, "system_trouble")
            return
        if flow.version != cursor.version:
            # The version he began with went with an earlier engine: the node he is at, in the present one.
            event = ivr.Started()
        self._follow(call, *ivr.advance(flow, cursor, event, self._facts(call)))

    def _flow_of(self, call: Call) -> ivr.Flow | None:
        """The version the call is in, or the line's present one if that is gone (after a restart)."""
        version = call.cursor.version if call.cursor else call.flow_version
        return self._flows.get((call.line, version)) or self._line_flow.get(call.line)

    def _follow(
        self, call: Call, cursor: ivr.Cursor, step: ivr.Step | None, noted: tuple[ivr.Noted, ...]
    ) -> None:
        if cursor is not call.cursor or noted:
            call = replace(call, cursor=cursor)
            for note in noted:
                call = self._with_note(call, note)
            call = self._put(call)
        if step is None:
            return
        self._leave_flow(call)
        self._in_flow[call.call_id] = _InFlow(step)
        match step:
            case ivr.PlayStep(prompts) | ivr.CollectStep(prompts) | ivr.MessageStep(prompts):
                if prompts:
                    # After a greeting he mostly waits for somebody: he need not be moved for the music to begin.
                    music = isinstance(step, ivr.PlayStep)
                    self._play(call, prompts, Meanwhile.MUSIC if music else Meanwhile.QUIET)
                else:
                    self._prompts_over(call, step)
            case ivr.QueueStep():
                self._enter_queue(call, step)
            case ivr.TransferStep(kind, to):
                self._flow_transfer(call, kind, to)
            case ivr.HangUpStep():
                self._end_for_caller(call)
            case _:
                assert_never(step)

    def _with_note(self, call: Call, note: ivr.Noted) -> Call:
        match note:
            case ivr.ChoiceMade(node, digit):
                return call.with_step(self._now, StepKind.CHOSE, detail=f"{node}={digit}")
            case ivr.Rating(_, score):
                return replace(call, rating=score).with_step(self._now, StepKind.RATED, detail=str(score))
            case ivr.MessageLeft(_, seconds):
                call = replace(call, end_reason=EndReason.MESSAGE_LEFT)
                return call.with_step(self._now, StepKind.MESSAGE_LEFT, detail=f"{seconds:.1f}")
            case ivr.NodeEntered() | ivr.ChoiceMissed():
                return call
            case _:
                assert_never(note)

    def _play(self, call: Call, prompts: tuple[str, ...], then: Meanwhile) -> None:
        self._play_id += 1
        self._in_flow[call.call_id].play_id = self._play_id
        length = sum(self._prompt_seconds.get(name, self._policy.prompt_seconds) for name in prompts)
        self._expect_end(call, length)
        self._out.append(Play(call.caller_leg.leg_id, self._play_id, prompts, then))

    def _expect_end(self, call: Call, seconds: float) -> None:
        """Prompts and messages whose end is not told have ended nevertheless."""
        due = self._now.seconds + seconds + self._policy.gone_seconds
        self._timers.set(call.call_id, TimerKind.PLAYED, due)

    def _prompts_ended(self, leg_id: LegId, play_id: int) -> None:
        call, heard = self._calls.get(CallId(leg_id)), self._in_flow.get(CallId(leg_id))
        if call is None or heard is None or heard.play_id != play_id:
            return
        heard.play_id = None
        self._timers.cancel(call.call_id, TimerKind.PLAYED)
        if heard.step is None:
            self._end_for_caller(call)
            return
        if isinstance(heard.step, ivr.PlayStep) and not _greeted(call):
            call = self._put(call.with_step(self._now, StepKind.GREETED))
        self._prompts_over(call, heard.step)

    def _prompts_over(self, call: Call, step: ivr.Step) -> None:
        match step:
            case ivr.PlayStep():
                self._flow_on(call, ivr.PromptsEnded())
            case ivr.CollectStep(timeout_seconds=seconds):
                self._timers.set(call.call_id, TimerKind.COLLECT, self._now.seconds + seconds)
                self._flow_on(call, ivr.PromptsEnded())
            case ivr.MessageStep(max_seconds=seconds):
                self._in_flow[call.call_id].message_since = self._now.seconds
                self._expect_end(call, seconds)
                self._out.append(TakeMessage(call, call.caller_leg.leg_id, seconds))
            case ivr.QueueStep() | ivr.TransferStep() | ivr.HangUpStep():
                pass
            case _:
                assert_never(step)

    def _message_over(self, call: Call) -> None:
        """The caller has stopped speaking, by key or by silence."""
        heard = self._in_flow.get(call.call_id)
        if heard is not None and heard.message_since is not None:
            self._flow_on(call, ivr.MessageEnded(self._now.seconds - heard.message_since))

    def _with_message(self, call: Call) -> Call:
        """The call of a caller who has just hung up, with the message he may have been speaking."""
        heard, flow = self._in_flow.get(call.call_id), self._flow_of(call)
        if heard is None or heard.message_since is None or flow is None or call.cursor is None:
            return call
        spoken = ivr.MessageEnded(self._now.seconds - heard.message_since)
        for note in ivr.advance(flow, call.cursor, spoken, self._facts(call))[2]:
            if isinstance(note, ivr.MessageLeft):
                call = self._with_note(call, note)
        return call

    def _say_then_hang_up(self, call: Call, prompt: str) -> None:
        self._leave_flow(call)
        self._in_flow[call.call_id] = _InFlow(None)
        self._play(call, (prompt,), Meanwhile.QUIET)

    def _leave_flow(self, call: Call) -> None:
        """Nothing more is awaited from prompts, keys or messages."""
        if self._in_flow.pop(call.call_id, None) is not None:
            self._timers.cancel(call.call_id, TimerKind.PLAYED, TimerKind.COLLECT)

    def _flow_transfer(self, call: Call, kind: ivr.TransferTo, to: str) -> None:
        if kind is ivr.TransferTo.QUEUE:
            self._enter_queue(call, _plain_queue(QueueId(to)))
            return
        if not self._may_ring:
            return  # the resync carries this step out again
        self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
        target = Target(TargetKind.USER if kind is ivr.TransferTo.AGENT else TargetKind.NUMBER, to)
        if self._ring_target(call, target, by=None) is None:
            self._flow_on(self._calls[call.call_id], ivr.TransferFailed())

    # --- queues ---------------------------------------------------------------------------------------------

    def _enter_queue(self, call: Call, step: ivr.QueueStep) -> None:
        queue = self._routing.queues.get(QueueId(step.queue))
        if queue is None:
            self._out.append(Alarm("no_queue", {"queue": step.queue, "line": call.line}))
            self._flow_on(call, ivr.QueueGaveUp(ivr.GaveUp.CLOSED))
            return
        if self._routing.waiting_at(queue.queue_id) >= queue.max_waiting:
            self._flow_on(call, ivr.QueueGaveUp(ivr.GaveUp.FULL))
            return
        call = replace(
            call,
            phase=Phase.WAITING,
            queue=queue.queue_id,
            queued_at=call.queued_at or self._now.utc,
            head_start_seconds=max(call.head_start_seconds, step.head_start_seconds),
            steps=call.steps_with(self._now, StepKind.QUEUED, detail=queue.queue_id),
        )
        moments = self._moments_of(call)
        if moments.queued is None:
            moments.queued = self._now.seconds
        self._wait(self._put(call), step)

    def _wait(self, call: Call, step: ivr.QueueStep) -> None:
        """Music, announcements and a longest wait, as the flow says, until an agent is found."""
        self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
        if step.max_wait_seconds is not None:
            due = self._now.seconds + step.max_wait_seconds
            self._timers.set(call.call_id, TimerKind.MAX_WAIT, due)
        self._announce_later(call, step)
        self._seek_agent(call)

    def _wait_again(self, call: Call) -> None:
        """Go on waiting as the flow's queue node says, which an earlier conversation or engine has ended."""
        assert call.queue is not None, "a waiting call has its queue"
        step: ivr.Step | None = None
        flow, cursor = self._flow_of(call), call.cursor
        if flow is not None and cursor is not None:
            step = ivr.advance(flow, cursor, ivr.Started(), self._facts(call))[1]
        if not isinstance(step, ivr.QueueStep):
            step = _plain_queue(call.queue)
        self._leave_flow(call)
        self._in_flow[call.call_id] = _InFlow(step)
        self._wait(call, step)

    def _seek_agent(self, call: Call) -> None:
        """Offer a waiting call to the best free agent, or let it wait in its place."""
        assert call.queue is not None, "a waiting call has its queue"
        if call.queue not in self._routing.queues:
            self._queue_closed(call)
            return
        user_id = self._routing.agent_for(call.queue) if self._telephony_up else None
        if user_id is None:
            began = self._moments[call.call_id].queued
            assert began is not None, "a waiting call has been queued"
            self._routing.call_waits(call.call_id, call.queue, rank=began - call.head_start_seconds)
        else:
            self._offer(call, self._agents[user_id])

    def _seek_call(self, agent: Agent) -> None:
        """Offer the longest waiting caller to an agent who has become free."""
        if self._telephony_up:
            call_id = self._routing.call_for(agent)
            if call_id is not None:
                self._offer(self._calls[call_id], agent)

    def _offer(self, call: Call, agent: Agent) -> None:
        self._routing.call_gone(call.call_id)
        assert call.queue is not None, "only a queued call is offered"
        seconds = self._routing.queues[call.queue].offer_seconds
        call = call.with_step(
            self._now,
            StepKind.OFFERED,
            leg_id=call.next_leg_id(),
            user_id=agent.user_id,
            detail=agent.profile.phone or "",
        )
        self._ring_user(call, agent, by=None, seconds=seconds)

    def _announce_later(self, call: Call, step: ivr.QueueStep) -> None:
        if step.announce_every_seconds is not None:
            due = self._now.seconds + step.announce_every_seconds
            self._timers.set(call.call_id, TimerKind.ANNOUNCE, due)

    def _announce(self, call: Call) -> None:
        heard = self._in_flow.get(call.call_id)
        if heard is None or not isinstance(heard.step, ivr.QueueStep) or call.phase is not Phase.WAITING:
            return
        facts = self._facts(call)
        # While a phone rings for him he is no longer in the line: saying a place would be untrue.
        if facts.position is not None:
            prompts = queue_announcement(
                facts.position if heard.step.announce_position else None,
                facts.expected_wait_seconds if heard.step.announce_wait else None,
            )
            if prompts:
                self._play(call, prompts, Meanwhile.MUSIC)
        self._announce_later(call, heard.step)

    def _expected_wait(self, queue_id: QueueId, position: int) -> float | None:
        """Seconds until the caller at this position is served: position x mean handling time / staffed agents.

        None when nobody is there to answer: no figure is better than a wrong one.
        """
        staffed = self._routing.staffed_at(queue_id)
        if staffed == 0:
            return None
        return position * self._handling.get(queue_id, self._policy.first_handling_seconds) / staffed

    def _requeue(self, call: Call) -> None:
        """Give a caller who was put through back to his queue, ahead of those who just came."""
        caller = replace(call.caller_leg, place=Place.ALONE)
        call = replace(call, legs=call.legs_with(caller), phase=Phase.WAITING)
        if call.queue is None or call.queue not in self._routing.queues:
            self._queue_closed(call)
            return
        moments, now = self._moments_of(call), self._now.seconds
        served = 0.0 if moments.queued is None else now - moments.queued
        moments.queued = now
        head_start = call.head_start_seconds + served + self._policy.requeue_head_start_seconds
        call = replace(
            call,
            queued_at=self._now.utc,
            head_start_seconds=head_start,
            steps=call.steps_with(self._now, StepKind.QUEUED, detail=call.queue),
        )
        self._wait_again(self._put(call))

    def _queue_closed(self, call: Call) -> None:
        """His queue is no more, or he never had one: his flow knows what to do when nobody can be reached."""
        self._forget_waiting(call)
        call = self._put(replace(call, phase=Phase.IN_FLOW))
        self._flow_on(call, ivr.QueueGaveUp(ivr.GaveUp.CLOSED))

    def _pair_up(self) -> None:
        """Offer the waiting callers, in their order, to whoever is free."""
        for call_id in self._routing.in_order():
            self._seek_agent(self._calls[call_id])

    def _forget_waiting(self, call: Call) -> None:
        self._routing.call_gone(call.call_id)
        self._timers.cancel(call.call_id, TimerKind.ANNOUNCE, TimerKind.MAX_WAIT)

    @property
    def _may_ring(self) -> bool:
        """Not between a cut and the resync's list, which would not know of the leg and so call it dead."""
        return self._telephony_up or self._reconciling is not None

    # --- ringing people -------------------------------------------------------------------------------------

    def _ring_target(self, call: Call, target: Target, *, by: UserId | None) -> LegId | None:
        """Ring an agent, a specialist or an outside number; None when that failed at once (the attempt is recorded)."""
        if target.kind is TargetKind.NUMBER:
            call = call.with_step(
                self._now, StepKind.INVITED, leg_id=call.next_leg_id(), user_id=by, detail=target.value
            )
            return self._ring(
                call, Role.OUTSIDE, target.value, user_id=None, by=by, seconds=self._policy.invite_seconds
            )
        agent = self._agents.get(UserId(target.value))
        if agent is None:
            return None
        kind = StepKind.INVITED if by else StepKind.OFFERED
        call = call.with_step(
            self._now, kind, leg_id=call.next_leg_id(), user_id=agent.user_id, detail=target.value
        )
        obstacle = _obstacle(agent)
        if obstacle is not None:
            self._note_failed(call, agent, obstacle, by=by)
            return None
        return self._ring_user(call, agent, by=by, seconds=self._policy.invite_seconds)

    def _ring_user(self, call: Call, agent: Agent, *, by: UserId | None, seconds: float) -> LegId:
        role = _role_of(agent.profile)
        leg_id = self._ring(
            call, role, agent.profile.phone or "", user_id=agent.user_id, by=by, seconds=seconds
        )
        after, reason = agent.after_call, agent.after_reason
        if agent.state not in _IN_CALL:
            after, reason = agent.state, agent.reason
        self._become(
            agent,
            AgentState.OFFERED,
            call_id=call.call_id,
            leg_id=leg_id,
            after_call=after,
            after_reason=reason,
        )
        return leg_id

    def _ring(
        self,
        call: Call,
        role: Role,
        address: str,
        *,
        user_id: UserId | None,
        by: UserId | None,
        seconds: float,
    ) -> LegId:
        leg_id = call.next_leg_id()
        leg = Leg(
            leg_id=leg_id,
            role=role,
            address=address,
            user_id=user_id,
            state=LegState.RINGING,
            place=Place.ALONE,
            asked_at=self._now.utc,
            asked_by=by,
        )
        self._put(call.with_leg(leg))
        self._timers.set(leg_id, TimerKind.RING, self._now.seconds + seconds)
        shown = call.caller if role is Role.AGENT else call.line
        margin = self._policy.ring_margin_seconds
        self._out.append(Ring(call.call_id, leg_id, role, address, seconds + margin, shown, call.line))
        return leg_id

    def _note_failed(self, call: Call, agent: Agent, outcome: Outcome, *, by: UserId | None) -> Call:
        """Write down an attempt that ended before anything rang."""
        leg_id = call.next_leg_id()
        leg = Leg(
            leg_id=leg_id,
            role=_role_of(agent.profile),
            address=agent.profile.phone or "",
            user_id=agent.user_id,
            state=LegState.ENDED,
            place=Place.ALONE,
            asked_at=self._now.utc,
            asked_by=by,
            ended_at=self._now.utc,
            outcome=outcome,
        )
        steps = call.steps_with(
            self._now, StepKind.NOT_JOINED, leg_id=leg_id, user_id=agent.user_id, detail=outcome.value
        )
        return self._put(replace(call, legs=call.legs_with(leg), steps=steps))

    def _cancel(self, call: Call, leg: Leg, outcome: Outcome) -> Call:
        """Stop ringing a leg; it ends with this outcome whatever the phone says meanwhile."""
        if leg.cancelled is not None:
            return call
        call = self._put(call.with_leg(replace(leg, cancelled=outcome)))
        self._hang_up(leg.leg_id)
        return call

    def _hang_up(self, leg_id: LegId) -> None:
        self._out.append(HangUp(leg_id))
        self._timers.cancel(leg_id, TimerKind.RING)
        if not self._timers.is_set(leg_id, TimerKind.GONE):
            self._timers.set(leg_id, TimerKind.GONE, self._now.seconds + self._policy.gone_seconds)

    # --- a leg answers --------------------------------------------------------------------------------------

    def _leg_answered(self, leg_id: LegId) -> None:
        call = self._calls.get(call_id_of(leg_id))
        leg = call.leg(leg_id) if call else None
        if call is None or leg is None or leg.state is not LegState.RINGING:
            return
        if leg.cancelled is not None:
            # The phone answered while our cancel was under way: the cancel stands.
            self._out.append(HangUp(leg_id))
            return
        self._timers.cancel(leg_id, TimerKind.RING)
        self._moments_of(call).answered[leg_id] = self._now.seconds
        self._searches.pop(call.call_id, None)
        self._forget_waiting(call)
        self._leave_flow(call)
        leg = replace(
            leg, state=LegState.UP, place=Place.TOGETHER, answered_at=self._now.utc, outcome=Outcome.JOINED
        )
        self._record_apart(call, call.with_leg(leg))
        inviter = call.leg_of(leg.asked_by) if leg.asked_by else None
        if inviter is not None and inviter.up and not self._is_leaving(inviter):
            self._party_answered(call, leg)
        else:
            self._conversation_begins(call, leg)

    def _conversation_begins(self, call: Call, leg: Leg) -> None:
        """Caller and the party that answered hear each other."""
        self._timers.cancel(call.call_id, TimerKind.ALONE)
        first = call.answered_at is None
        call = replace(
            call,
            legs=call.legs_with(leg),
            phase=Phase.TALKING,
            answered_at=call.answered_at or self._now.utc,
            answered_by=call.answered_by or leg.user_id,
            end_reason=None,
        )
        call = self._put(self._together(call, call.caller_leg, leg))
        if first:
            self._out.append(Record(call, call.caller_leg.leg_id))
        self._arrange(call)
        self._show(call)

    def _party_answered(self, call: Call, leg: Leg) -> None:
        """An invited party answered: privately with whoever invited him while the caller is held, else with all."""
        call = call.with_leg(leg)
        if call.caller_leg.place is Place.HELD:
            call = call.with_step(
                self._now, StepKind.CONSULTED, leg_id=leg.leg_id, user_id=leg.user_id, detail=leg.address
            )
        else:
            call = self._together(call, leg)
        call = self._put(call)
        self._arrange(call)
        self._show(call)

    def _record_apart(self, before: Call, call: Call) -> None:
        """Record by itself whom the file of the call holds no longer: it is what the caller hears."""
        for leg in call.parties:
            if leg.leg_id == call.fallback_leg_id:
                continue  # the fallback queue records him from his answer on
            known = before.leg(leg.leg_id)
            if recorded_since(call, leg) and not (known and recorded_since(before, known)):
                self._out.append(Record(call, leg.leg_id))

    def _together(self, call: Call, *legs: Leg) -> Call:
        """The call with these legs in the conversation; whoever now hears the caller for the first time has joined."""
        for leg in legs:
            if leg.place is not Place.TOGETHER:
                call = call.with_leg(replace(leg, place=Place.TOGETHER))
        if not call.caller_leg.up or call.caller_leg.place is not Place.TOGETHER:
            return call
        for leg in call.parties:
            if leg.place is Place.TOGETHER and leg.joined_at is None:
                kind = StepKind.ANSWERED if leg.asked_by is None else StepKind.JOINED
                call = replace(
                    call,
                    legs=call.legs_with(replace(leg, joined_at=self._now.utc)),
                    handled_by=_with(call.handled_by, leg),
                    steps=call.steps_with(self._now, kind, leg_id=leg.leg_id, user_id=leg.user_id),
                )
        return call

    def _brought_back(self, call: Call, by: Leg | None) -> Call:
        """The held caller and everybody who is up, together again."""
        if call.caller_leg.place is Place.HELD:
            call = call.with_step(
                self._now,
                StepKind.RESUMED,
                leg_id=by.leg_id if by else None,
                user_id=by.user_id if by else None,
            )
        call = self._put(self._together(call, call.caller_leg, *call.parties))
        self._arrange(call)
        self._show(call)
        return call

    def _arrange(self, call: Call) -> None:
        up = [leg for leg in call.legs if leg.up and not self._is_leaving(leg)]
        together = tuple(leg.leg_id for leg in up if leg.place is Place.TOGETHER)
        held = tuple(leg.leg_id for leg in up if leg.place is Place.HELD)
        self._out.append(Arrange(call.call_id, together, held))

    def _show(self, call: Call) -> None:
        """Everybody who is up in the call talks, or talks while the caller hears music."""
        for leg in call.parties:
            agent = self._agents.get(leg.user_id) if leg.user_id else None
            if agent is not None and agent.leg_id == leg.leg_id and agent.state is not _state_in(call, leg):
                self._become(agent, _state_in(call, leg), call_id=call.call_id, leg_id=leg.leg_id)

    # --- a leg ends -----------------------------------------------------------------------------------------

    def _leg_hung_up(self, leg_id: LegId) -> None:
        """A party who was talking has hung up; how ringing ended is told by ``LegEnded`` alone."""
        call = self._calls.get(call_id_of(leg_id))
        leg = call.leg(leg_id) if call else None
        if leg is not None and leg.up:
            self._leg_ended(leg_id, Outcome.UNREACHABLE)

    def _leg_ended(self, leg_id: LegId, outcome: Outcome) -> None:
        self._given_up.discard(CallId(leg_id))
        call = self._calls.get(call_id_of(leg_id))
        leg = call.leg(leg_id) if call else None
        if call is None or leg is None or not leg.alive:
            return
        self._timers.cancel(leg_id, TimerKind.RING, TimerKind.GONE)
        self._timers.cancel(call.call_id, TimerKind.ALONE)
        if leg.role is Role.CALLER:
            self._caller_gone(call)
        elif leg.up:
            self._party_left(call, leg)
        else:
            self._ring_failed(call, leg, leg.cancelled or outcome)

    def _caller_gone(self, call: Call) -> None:
        call = self._with_message(call)
        self._forget_waiting(call)
        self._leave_flow(call)
        reason = call.end_reason
        if reason is None and call.answered_at is None:
            if call.ringing:
                reason = EndReason.ABANDONED_RINGING
            elif call.phase is Phase.WAITING:
                reason = EndReason.ABANDONED_WAITING
            else:
                reason = EndReason.ABANDONED_IN_FLOW
        caller = replace(call.caller_leg, state=LegState.ENDED, ended_at=self._now.utc)
        call = self._put(
            replace(
                call,
                legs=call.legs_with(caller),
                end_reason=reason,
                steps=call.steps_with(self._now, StepKind.LEFT, leg_id=caller.leg_id),
            )
        )
        for leg in call.ringing:
            call = self._cancel(call, leg, Outcome.CALLER_GONE)
        self._show(call)
        self._settle(call)

    def _party_left(self, call: Call, leg: Leg) -> None:
        ended = replace(leg, state=LegState.ENDED, ended_at=self._now.utc)
        steps = call.steps_with(self._now, StepKind.LEFT, leg_id=leg.leg_id, user_id=leg.user_id)
        call = self._put(replace(call, legs=call.legs_with(ended), steps=steps))
        self._moments_of(call).party_ended = self._now.seconds
        self._release(call, ended)
        self._settle(self._calls[call.call_id])

    def _ring_failed(self, call: Call, leg: Leg, outcome: Outcome) -> None:
        ended = replace(leg, state=LegState.ENDED, ended_at=self._now.utc, outcome=outcome)
        kind = StepKind.MISSED if leg.asked_by is None else StepKind.NOT_JOINED
        steps = call.steps_with(self._now, kind, leg_id=leg.leg_id, user_id=leg.user_id, detail=outcome.value)
        call = self._put(replace(call, legs=call.legs_with(ended), steps=steps))
        self._moments_of(call).party_ended = self._now.seconds
        # The caller first: his next agent must not be the one who has just missed him.
        self._missed(ended, outcome)
        call = self._calls[call.call_id]
        if not call.caller_leg.alive or call.phase in (Phase.AFTER, Phase.ENDED):
            self._settle(call)
        elif call.phase is Phase.WAITING:
            if not call.ringing:
                self._seek_agent(call)
        elif call.phase is Phase.IN_FLOW:
            self._flow_on(call, ivr.TransferFailed())
        elif not self._search_on(call):
            self._settle(call)

    def _missed(self, leg: Leg, outcome: Outcome) -> None:
        """What a ring without an answer does to the one who was rung."""
        agent = self._agents.get(leg.user_id) if leg.user_id else None
        if agent is None or agent.leg_id != leg.leg_id:
            return
        blameless = outcome in (Outcome.CALLER_GONE, Outcome.WITHDRAWN)
        invited = leg.role is not Role.AGENT and leg.asked_by is not None
        if invited or agent.after_call is AgentState.LOGGED_OUT or blameless:
            self._back(agent)
            return
        reason = {
            Outcome.NO_ANSWER: NotReady.MISSED,
            Outcome.UNREACHABLE: NotReady.NO_PHONE,
        }.get(outcome, NotReady.REJECTED)
        kept = agent.after_call is AgentState.NOT_READY
        self._become(
            agent,
            AgentState.NOT_READY,
            reason=agent.after_reason if kept else reason.value,
            after_call=AgentState.READY,
            after_reason="",
        )

    def _search_on(self, call: Call) -> bool:
        """Try the next specialist with the skill; False when nobody is left or nothing was being searched."""
        search = self._searches.get(call.call_id)
        if search is None:
            return False
        if not self._may_ring:
            del self._searches[call.call_id]
            return False
        candidate = self._candidate(search)
        if candidate is None:
            del self._searches[call.call_id]
            return False
        search.tried.add(candidate.user_id)
        target = Target(TargetKind.USER, candidate.user_id)
        return self._ring_target(call, target, by=search.by) is not None

    def _candidate(self, search: _Search) -> Agent | None:
        free = [
            agent
            for agent in self._agents.values()
            if search.skill in agent.profile.skills
            and agent.user_id not in search.tried
            and agent.user_id != search.by
            and _obstacle(agent) is None
            # A specialist's desk telephone may ring without a login; an agent who has logged out has gone home.
            and (agent.state is not AgentState.LOGGED_OUT or _role_of(agent.profile) is Role.SPECIALIST)
        ]
        return min(free, key=lambda a: (-a.profile.skills[search.skill], a.since_seconds), default=None)

    def _release(self, call: Call, leg: Leg) -> None:
        """The conversation is over for one of its parties: wrap-up for an agent, back to before for the others."""
        agent = self._agents.get(leg.user_id) if leg.user_id else None
        if agent is None or agent.leg_id != leg.leg_id:
            return
        if leg.role is not Role.AGENT:
            self._back(agent)
            return
        queue_id = _queue_of(call, leg)
        queue = self._routing.queues.get(queue_id) if queue_id else None
        seconds = queue.wrap_up_seconds if queue else self._policy.wrap_up_seconds
        answered = self._moments_of(call).answered.get(leg.leg_id)
        if queue is not None and answered is not None:
            took = self._now.seconds - answered + seconds
            before = self._handling.get(queue.queue_id, self._policy.first_handling_seconds)
            self._handling[queue.queue_id] = before + (took - before) / 20
        until = self._now.seconds + seconds
        self._timers.set(agent.user_id, TimerKind.WRAP_UP, until)
        self._become(agent, AgentState.WRAP_UP, call_id=call.call_id, wrap_up_until=until)

    def _settle(self, call: Call) -> None:
        """Bring the call to rest after somebody left: who is still there decides what happens to them."""
        if call.phase is Phase.ENDED:
            return
        caller, parties = call.caller_leg, call.parties
        if not caller.alive:
            if len(parties) == 1 and not self._is_leaving(parties[0]):
                self._hang_up(parties[0].leg_id)
            if not call.others:
                self._close(call, call.end_reason or EndReason.COMPLETED)
            return
        if call.phase is not Phase.TALKING or self._is_leaving(caller):
            return
        if parties:
            if caller.place is Place.HELD and not any(leg.role is Role.AGENT for leg in parties):
                # Whoever could have fetched him back is gone: the caller must not hear music for ever.
                self._brought_back(call, None)
        elif call.ringing and caller.place is not Place.HELD:
            call = self._put(call.with_leg(replace(caller, place=Place.HELD)))
            self._arrange(call)
        elif call.ringing:
            pass
        elif caller.place is Place.HELD:
            self._requeue(call)
        else:
            self._talk_over(call)

    def _talk_over(self, call: Call) -> None:
        """The conversation has ended and the caller is still there: rate it, or good-bye."""
        self._forget_waiting(call)
        caller = replace(call.caller_leg, place=Place.ALONE)
        call = self._put(replace(call, legs=call.legs_with(caller), phase=Phase.AFTER))
        flow = self._flow_of(call)
        if flow is None or flow.after_call is None or call.answered_at is None:
            self._end_for_caller(call)
        else:
            self._enter_flow(call, flow, at=flow.after_call)

    def _end_for_caller(self, call: Call) -> None:
        self._leave_flow(call)
        self._forget_waiting(call)
        if call.end_reason is None:
            reason = EndReason.COMPLETED if call.answered_at else EndReason.ENDED_BY_FLOW
            call = self._put(replace(call, end_reason=reason))
        self._hang_up(call.caller_leg.leg_id)

    def _close(self, call: Call, reason: EndReason) -> None:
        """Nobody is left: the record is complete but for the wrap-up."""
        self._forget_waiting(call)
        self._leave_flow(call)
        self._searches.pop(call.call_id, None)
        self._not_arranged.discard(call.call_id)
        self._timers.cancel(call.call_id, TimerKind.ALONE, TimerKind.ARRANGED)
        for leg in call.legs:
            if leg.alive:
                outcome = leg.outcome or leg.cancelled or Outcome.UNREACHABLE
                outcome_of_ringing = None if leg.role is Role.CALLER else outcome
                call = call.with_leg(
                    replace(leg, state=LegState.ENDED, ended_at=self._now.utc, outcome=outcome_of_ringing)
                )
                self._release_or_miss(call, leg)
        self._moments.pop(call.call_id, None)
        self._put(
            replace(
                call,
                phase=Phase.ENDED,
                ended_at=self._now.utc,
                end_reason=reason,
                steps=call.steps_with(self._now, StepKind.ENDED, detail=reason.value),
            )
        )
        self._forget_if_done(call.call_id)

    def _release_or_miss(self, call: Call, leg: Leg) -> None:
        self._timers.cancel(leg.leg_id, TimerKind.RING, TimerKind.GONE)
        if leg.up:
            self._release(call, leg)
        else:
            self._missed(leg, Outcome.CALLER_GONE)

    def _forget_if_done(self, call_id: CallId) -> None:
        call = self._calls.get(call_id)
        if call is None or call.phase is not Phase.ENDED:
            return
        if not any(agent.call_id == call_id for agent in self._agents_of(call)):
            del self._calls[call_id]

    def _agents_of(self, call: Call) -> list[Agent]:
        return [self._agents[leg.user_id] for leg in call.legs if leg.user_id in self._agents]

    # --- things that go wrong -------------------------------------------------------------------------------

    def _conversation_over(self, leg_id: LegId) -> None:
        """Asterisk let go of a leg. Its peer's end follows or has been seen; for a caller nobody talks to, act now."""
        call = self._calls.get(call_id_of(leg_id))
        leg = call.leg(leg_id) if call else None
        if call is None or leg is None or not leg.up:
            return
        if leg.role is Role.CALLER:
            if _partner(call) is not None:
                # His partner's leg is said to be up, yet he is alone: that leg's end is on its way, or was lost.
                due = self._now.seconds + self._policy.alone_seconds
                self._timers.set(call.call_id, TimerKind.ALONE, due)
        elif leg.place is Place.TOGETHER and not self._is_leaving(leg):
            self._hang_up(leg_id)

    def _left_alone(self, call: Call) -> None:
        """Nobody told of the partner's end, and the caller was let go: the partner is gone."""
        partner = _partner(call)
        if partner is not None:
            self._end_unseen(partner)

    def _end_unseen(self, leg: Leg) -> None:
        """Take a leg as ended whose end was not told."""
        self._out.append(Alarm("leg_end_unseen", {"leg": leg.leg_id}))
        self._out.append(HangUp(leg.leg_id))
        self._leg_ended(leg.leg_id, leg.cancelled or Outcome.UNREACHABLE)

    def _leg_dead(self, leg_id: LegId) -> None:
        """End a leg nobody is at; a caller who talked with nobody else is given to somebody else, first of all."""
        call = self._calls.get(call_id_of(leg_id))
        leg = call.leg(leg_id) if call else None
        if call is None or leg is None or not leg.up or self._is_leaving(leg):
            return
        self._out.append(Alarm("leg_dead", {"leg": leg_id}))
        caller = call.caller_leg
        alone = not call.ringing and all(o is leg or self._is_leaving(o) for o in call.parties)
        if leg is not caller and alone and call.phase is Phase.TALKING and caller.up:
            # He first: the bridge would dissolve under his Redirect, and Asterisk would refuse it.
            self._requeue(call)
            if call.call_id in self._in_flow:
                self._play(call, ("transferring",), Meanwhile.MUSIC)
        self._hang_up(leg_id)

    def _arrange_failed(self, call_id: CallId) -> None:
        """A party that hung up as it was moved is the rule: its end, seen by then, settles it."""
        call = self._calls.get(call_id)
        if call is not None and call.phase is Phase.TALKING:
            due = self._now.seconds + self._policy.alone_seconds
            self._timers.set(call_id, TimerKind.ARRANGED, due)

    def _not_together(self, call: Call) -> None:
        """Parties could not be brought together: again if one of them has left, else the caller to somebody else."""
        if call.phase is not Phase.TALKING or not call.caller_leg.alive:
            return
        ended = self._moments_of(call).party_ended
        if ended is not None and self._now.seconds - ended <= self._policy.just_left_seconds:
            self._arrange(call)
            return
        self._out.append(Alarm("arrange_failed", {"call": call.call_id}))
        for leg in call.parties:
            self._hang_up(leg.leg_id)
        if call.call_id in self._not_arranged:
            # Nobody can be connected with him: his channel is dead, and its end was not told.
            self._end_for_caller(call)
            return
        self._not_arranged.add(call.call_id)
        # Held tells _settle to give him to somebody else once the others are gone.
        self._put(call.with_leg(replace(call.caller_leg, place=Place.HELD)))

    def _fell_back(self, event: FellBack) -> None:
        """Take a caller back from the fallback queue: we hear of him, so we are there."""
        if event.call_id in self._given_up:
            return
        call = self._calls.get(event.call_id)
        if call is None or call.phase is Phase.ENDED:
            leg = LegSeen(LegId(event.call_id), up=True, caller=event.caller, dialled=event.dialled)
            self._adopt(leg, StepKind.FELL_BACK)
        else:
            self._take_up(self._put(call.with_step(self._now, StepKind.FELL_BACK)))

    def _take_up(self, call: Call, *, speaking_since: datetime | None = None) -> None:
        """Say once more what the caller is to hear, whatever has become of what was said before."""
        if not call.caller_leg.alive:
            return
        if call.phase is not Phase.TALKING:
            # Told to hang up by an engine that is no more, or on his way out: not in a room of his own for ever.
            for leg in call.parties:
                self._hang_up(leg.leg_id)
        if self._is_leaving(call.caller_leg):
            self._hang_up(call.caller_leg.leg_id)
            return
        match call.phase:
            case Phase.IN_FLOW | Phase.AFTER:
                if call.ringing:
                    self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
                elif not (speaking_since and self._speaks_on(call, speaking_since)):
                    self._flow_on(call, ivr.Started())
            case Phase.WAITING:
                if call.ringing or call.call_id in self._in_flow:
                    self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
                else:
                    # An engine that has just started has no place in the line for him yet.
                    self._wait_again(call)
            case Phase.TALKING:
                self._arrange(call)
            case Phase.ENDED:
                pass
            case _:
                assert_never(call.phase)

    def _speaks_on(self, call: Call, since: datetime) -> bool:
        """Let a caller finish the message he has been speaking since then; False when his flow knows of none."""
        flow, cursor = self._flow_of(call), call.cursor
        if flow is None or cursor is None:
            return False
        step = ivr.advance(flow, cursor, ivr.Started(), self._facts(call))[1]
        if not isinstance(step, ivr.MessageStep):
            return False
        ago = (self._now.utc - since).total_seconds()
        self._in_flow[call.call_id] = _InFlow(step, message_since=self._now.seconds - ago)
        self._expect_end(call, step.max_seconds - ago)
        return True

    def _phone_seen(self, phone: str, *, reachable: bool) -> None:
        (self._phones.add if reachable else self._phones.discard)(phone)
        user_id = self._by_phone.get(phone)
        if user_id is None:
            return
        agent = self._agents[user_id]
        if agent.phone_reachable == reachable:
            return
        agent = self._put_agent(replace(agent, phone_reachable=reachable))
        if agent.state is AgentState.READY and not reachable:
            self._become(agent, AgentState.NOT_READY, reason=NotReady.NO_PHONE.value)
        elif agent.state is AgentState.OFFERED and not reachable:
            self._withdraw_offer(agent, Outcome.UNREACHABLE)
        elif (
            reachable
            and agent.state is AgentState.NOT_READY
            and agent.reason == NotReady.NO_PHONE
            and self._now.seconds - agent.since_seconds < self._policy.phone_back_seconds
        ):
            self._become(agent, AgentState.READY)

    def _console_lost(self, user_id: UserId) -> None:
        agent = self._agents.get(user_id)
        if agent is None:
            return
        waits_for_phone = agent.state is AgentState.NOT_READY and agent.reason == NotReady.NO_PHONE
        if agent.state is AgentState.READY or waits_for_phone:
            self._become(agent, AgentState.NOT_READY, reason=NotReady.CONNECTION_LOST.value)
        elif agent.call_id is not None and agent.after_call is AgentState.READY:
            lost = NotReady.CONNECTION_LOST.value
            agent = self._put_agent(replace(agent, after_call=AgentState.NOT_READY, after_reason=lost))
            self._withdraw_offer(agent, Outcome.UNREACHABLE)

    def _withdraw_offer(self, agent: Agent, outcome: Outcome) -> None:
        call = self._calls.get(agent.call_id) if agent.call_id else None
        leg = call.leg(agent.leg_id) if call and agent.leg_id else None
        if call is not None and leg is not None and leg.state is LegState.RINGING:
            self._cancel(call, leg, outcome)

    # --- resync ---------------------------------------------------------------------------------------------

    def _resynced(self, event: TelephonyResynced) -> None:
        """Take over what lives, close what died: Asterisk holds the truth about who is on the line."""
        for phone in self._phones - event.phones:
            self._phone_seen(phone, reachable=False)
        for phone in event.phones - self._phones:
            self._phone_seen(phone, reachable=True)
        seen = {leg.leg_id: leg for leg in event.legs}
        past = {caller.call_id: caller for caller in event.unattended}
        self._given_up.intersection_update({CallId(leg_id) for leg_id in seen})
        # Nobody is offered anything before all is known: the caller might be dead.
        self._telephony_up = False
        recorded = frozenset(self._calls)
        for call in list(self._calls.values()):
            if call.phase is Phase.ENDED and call.caller_leg.leg_id in seen:
                caller = past.get(call.call_id)
                if caller is not None and caller.answered_at is not None:
                    # Left to the fallback, and now talking with whom that gave him.
                    call = self._put(_reopened(call).with_step(self._now, StepKind.ADOPTED))
            if call.phase is not Phase.ENDED:
                self._reconciling = call.call_id
                self._reconcile(call, seen, event.ended, past.get(call.call_id))
        for caller in event.unattended:
            # Not those either that were just closed and forgotten: their records stand.
            if caller.call_id not in recorded and (caller.phone or caller.ended_at is not None):
                self._reconciling = caller.call_id
                self._learn_of(caller, seen, event.ended)
        for leg in sorted(event.legs, key=lambda leg: _arrival(leg, past) or self._now.utc):
            self._reconciling = call_id = call_id_of(leg.leg_id)
            known = self._calls.get(call_id)
            living = known is not None and known.phase is not Phase.ENDED
            if call_id in self._given_up or (known and living and known.leg(leg.leg_id) is not None):
                continue
            if leg.leg_id == LegId(call_id):
                self._adopt(leg, StepKind.ADOPTED, arrived_at=_arrival(leg, past))
            else:
                self._out.append(HangUp(leg.leg_id))
        self._reconciling = None
        self._release_stale_agents()
        for call_id in list(self._calls):
            self._forget_if_done(call_id)
        self._telephony_up = True
        self._pair_up()

    def _reconcile(
        self,
        call: Call,
        seen: Mapping[LegId, LegSeen],
        ended: Mapping[LegId, LegWas],
        past: Unattended | None,
    ) -> None:
        self._catch_up(call, seen, ended, past)
        call = self._calls.get(call.call_id, call)
        answered = False
        for leg in call.legs:
            present = seen.get(leg.leg_id)
            if present is None:
                continue
            if leg.alive and (leg.cancelled is not None or self._is_leaving(leg)):
                self._hang_up(leg.leg_id)
            elif leg.state is LegState.RINGING and present.up:
                self._leg_answered(leg.leg_id)
                answered = True
        known = self._calls.get(call.call_id)
        if known is not None and not answered:
            self._take_up(known, speaking_since=_speaking(known, seen))

    def _catch_up(
        self,
        call: Call,
        seen: Mapping[LegId, LegSeen],
        ended: Mapping[LegId, LegWas],
        past: Unattended | None,
    ) -> None:
        """Let happen, each thing at its time, what happened to the call while nobody listened."""
        present = self._now
        if past is not None and past.answered_at is not None and call.leg(call.fallback_leg_id) is None:
            self._then(past.answered_at, call, present)
            call = self._served_by_fallback(call, past)
        known = dict(ended)
        if past is not None and past.parted_at is not None:
            known[call.fallback_leg_id] = LegWas(past.parted_at, Outcome.JOINED)
        gone = [leg.leg_id for leg in call.legs if leg.alive and leg.leg_id not in seen]
        for leg_id in sorted(
            gone, key=lambda leg_id: known[leg_id].ended_at if leg_id in known else present.utc
        ):
            call = self._calls.get(call.call_id, call)
            was = known.get(leg_id)
            if was is not None:
                self._then(was.ended_at, call, present)
            elif leg_id == call.caller_leg.leg_id and call.end_reason is None:
                self._put(replace(call, end_reason=EndReason.TELEPHONY_LOST))
            # A ring that never came to be, or ended unseen, while there was no link is nobody's fault.
            leg = call.leg(leg_id)
            unseen = Outcome.UNREACHABLE if leg is not None and leg.up else Outcome.WITHDRAWN
            self._leg_ended(leg_id, was.outcome if was else unseen)
            self._now = present
        self._now = present

    def _then(self, at: datetime, call: Call, present: Now) -> None:
        """Go back to this moment, but not to before the last thing that is known of the call."""
        at = min(max(at, call.steps[-1].at if call.steps else at), present.utc)
        self._now = Now(present.seconds - (present.utc - at).total_seconds(), at)

    def _learn_of(
        self, past: Unattended, seen: Mapping[LegId, LegSeen], ended: Mapping[LegId, LegWas]
    ) -> None:
        """Write down a caller of whom no engine knew: he has left, or talks with whom the fallback queue gave him."""
        flow = self._by_number.get(past.dialled)
        if flow is None:
            return  # a number that is not ours was answered 404
        present = self._now
        call = self._new_call(past.call_id, past.caller, past.dialled, flow, arrived_at=past.arrived_at)
        self._then(past.arrived_at, call, present)
        call = replace(call, phase=Phase.WAITING).with_step(self._now, StepKind.ARRIVED, detail=past.dialled)
        call = self._put(call.with_step(self._now, StepKind.FELL_BACK))
        self._now = present
        self._catch_up(call, seen, ended, past)

    def _served_by_fallback(self, call: Call, past: Unattended) -> Call:
        """The fallback queue gave the caller to this phone: a conversation like any other from now on."""
        for leg in call.ringing:
            call = self._cancel(call, leg, Outcome.WITHDRAWN)
        self._forget_waiting(call)
        self._leave_flow(call)
        user_id = self._by_phone.get(past.phone)
        leg = Leg(
            leg_id=call.fallback_leg_id,
            role=Role.AGENT,
            address=past.phone,
            user_id=user_id,
            state=LegState.UP,
            place=Place.TOGETHER,
            asked_at=self._now.utc,
            answered_at=self._now.utc,
            outcome=Outcome.JOINED,
        )
        call = replace(
            call.with_leg(leg),
            phase=Phase.TALKING,
            answered_at=call.answered_at or self._now.utc,
            answered_by=call.answered_by or user_id,
            end_reason=EndReason.FELL_BACK,
        )
        if not any(step.kind is StepKind.FELL_BACK for step in call.steps):
            call = call.with_step(self._now, StepKind.FELL_BACK)
        self._moments_of(call).answered[leg.leg_id] = self._now.seconds
        call = self._put(self._together(call, call.caller_leg, leg))
        agent = self._agents.get(user_id) if user_id else None
        if agent is not None and agent.state not in _IN_CALL:
            wraps_up = agent.state is AgentState.WRAP_UP
            self._become(
                agent,
                AgentState.TALKING,
                call_id=call.call_id,
                leg_id=leg.leg_id,
                after_call=agent.after_call if wraps_up else agent.state,
                after_reason=agent.after_reason if wraps_up else agent.reason,
            )
        return call

    def _adopt(self, leg: LegSeen, how: StepKind, *, arrived_at: datetime | None = None) -> None:
        """A caller who came while no engine was there, or whom an earlier engine had left to the fallback."""
        flow = self._by_number.get(leg.dialled)
        known = self._calls.get(CallId(leg.leg_id))
        if known is None:
            call = self._new_call(CallId(leg.leg_id), leg.caller, leg.dialled, flow, arrived_at=arrived_at)
        else:
            call = _reopened(known)
        call = self._put(call.with_step(self._now, how, detail=leg.dialled))
        if flow is None:
            self._say_then_hang_up(call, "system_trouble")
        else:
            self._enter_flow(call, flow)

    def _release_stale_agents(self) -> None:
        """Free whom the records have in a call that is no more, or ready at a phone that is not there."""
        for agent in list(self._agents.values()):
            call = self._calls.get(agent.call_id) if agent.call_id else None
            leg = call.leg(agent.leg_id) if call and agent.leg_id else None
            lost = agent.state in _IN_CALL and (leg is None or not leg.alive)
            if lost or (agent.state is AgentState.WRAP_UP and agent.wrap_up_until is None):
                self._back(agent)
            elif agent.state is AgentState.READY and not agent.phone_reachable:
                self._become(agent, AgentState.NOT_READY, reason=NotReady.NO_PHONE.value)

    # --- agents ---------------------------------------------------------------------------------------------

    def _put_agent(self, agent: Agent) -> Agent:
        if agent.user_id not in self._changed_agents:
            agent = replace(agent, version=agent.version + 1)
        self._changed_agents[agent.user_id] = agent
        return self._keep_agent(agent)

    def _keep_agent(self, agent: Agent) -> Agent:
        self._agents[agent.user_id] = agent
        self._routing.agent_is(agent)
        return agent

    def _become(
        self,
        agent: Agent,
        state: AgentState,
        *,
        reason: str = "",
        call_id: CallId | None = None,
        leg_id: LegId | None = None,
        after_call: AgentState | None = None,
        after_reason: str | None = None,
        wrap_up_until: float | None = None,
        since_seconds: float | None = None,
    ) -> None:
        """Put the agent into a state; whoever becomes ready is offered the longest waiting caller at once."""
        before, old_call = agent.state, agent.call_id
        agent = self._put_agent(
            replace(
                agent,
                state=state,
                reason=reason,
                since=self._now.utc,
                since_seconds=self._now.seconds if since_seconds is None else since_seconds,
                call_id=call_id,
                leg_id=leg_id,
                after_call=agent.after_call if after_call is None else after_call,
                after_reason=agent.after_reason if after_reason is None else after_reason,
                wrap_up_until=wrap_up_until,
            )
        )
        if before is AgentState.WRAP_UP:
            self._timers.cancel(agent.user_id, TimerKind.WRAP_UP)
        if old_call is not None and old_call != call_id:
            self._forget_if_done(old_call)
        if call_id is None and agent.user_id not in self._members:
            self._dismiss(agent)
        elif state is AgentState.READY:
            self._seek_call(agent)

    def _dismiss(self, agent: Agent) -> None:
        """The directory knows him no more and his last call is over."""
        self._put_agent(replace(agent, state=AgentState.LOGGED_OUT, reason=""))
        del self._agents[agent.user_id]
        phone = agent.profile.phone
        if phone is not None and self._by_phone.get(phone) == agent.user_id:
            del self._by_phone[phone]

    def _back(self, agent: Agent) -> None:
        """To what the agent was, or wished to be, after the call; READY needs a phone."""
        state, reason = agent.after_call, agent.after_reason
        if state is AgentState.READY and not agent.phone_reachable:
            state, reason = AgentState.NOT_READY, NotReady.NO_PHONE.value
        # An offer that came to nothing does not cost the agent his place among the idle.
        idle_since = agent.since_seconds if agent.state is AgentState.OFFERED else None
        self._become(
            agent,
            state,
            reason=reason,
            since_seconds=idle_since,
            after_call=AgentState.READY,
            after_reason="",
        )

    def _directory_changed(self, event: DirectoryChanged) -> None:
        self._routing.set_queues(event.queues)
        self._reasons, self._dispositions = event.not_ready_reasons, event.dispositions
        self._numbers = event.allowed_numbers
        self._members = frozenset(profile.user_id for profile in event.profiles)
        for profile in event.profiles:
            known = self._agents.get(profile.user_id)
            reachable = profile.phone in self._phones
            if known is None:
                self._keep_agent(Agent(profile, phone_reachable=reachable))
            elif known.profile != profile:
                self._profile_changed(known, replace(known, profile=profile, phone_reachable=reachable))
        for agent in [a for a in self._agents.values() if a.user_id not in self._members]:
            if agent.call_id is None:
                self._dismiss(agent)
        self._by_phone = {a.profile.phone: u for u, a in self._agents.items() if a.profile.phone}
        for agent in self._agents.values():
            self._routing.agent_is(agent)
        self._pair_up()

    def _profile_changed(self, known: Agent, agent: Agent) -> None:
        if known.profile.phone != agent.profile.phone:
            # Whoever mirrors the agents by phone must see the old one go.
            self._out.append(SaveAgent(replace(known, state=AgentState.LOGGED_OUT)))
        agent = self._put_agent(agent)
        if agent.state is AgentState.READY and not agent.phone_reachable:
            self._become(agent, AgentState.NOT_READY, reason=NotReady.NO_PHONE.value)

    def _flows_changed(self, flows: Iterable[ivr.Flow]) -> None:
        in_use = {(c.line, c.cursor.version) for c in self._calls.values() if c.cursor is not None}
        self._line_flow = {flow.line: flow for flow in flows}
        self._by_number = {number: flow for flow in self._line_flow.values() for number in flow.numbers}
        current = {(flow.line, flow.version): flow for flow in self._line_flow.values()}
        self._flows = current | {key: flow for key, flow in self._flows.items() if key in in_use}

    # --- deadlines ------------------------------------------------------------------------------------------

    def _due(self, timer: Timer) -> None:
        match timer.kind:
            case TimerKind.WRAP_UP:
                self._back(self._agents[UserId(timer.subject)])
            case TimerKind.RING | TimerKind.GONE:
                self._leg_due(timer)
            case _:
                self._call_due(timer.kind, self._calls[CallId(timer.subject)])

    def _leg_due(self, timer: Timer) -> None:
        if not self._telephony_up:
            # What is said now is not heard; the resync tells what lives.
            self._timers.set(timer.subject, timer.kind, self._now.seconds + 1.0)
            return
        leg_id = LegId(timer.subject)
        call = self._calls[call_id_of(leg_id)]
        leg = call.leg(leg_id)
        assert leg is not None, "a leg's deadline ends with the leg"
        if timer.kind is TimerKind.RING:
            self._cancel(call, leg, Outcome.NO_ANSWER)
        else:
            self._end_unseen(leg)

    def _call_due(
        self,
        kind: Literal[
            TimerKind.COLLECT,
            TimerKind.PLAYED,
            TimerKind.ANNOUNCE,
            TimerKind.MAX_WAIT,
            TimerKind.ALONE,
            TimerKind.ARRANGED,
        ],
        call: Call,
    ) -> None:
        match kind:
            case TimerKind.COLLECT:
                self._flow_on(call, ivr.TimedOut())
            case TimerKind.PLAYED:
                play_id = self._in_flow[call.call_id].play_id
                if play_id is not None:
                    self._prompts_ended(call.caller_leg.leg_id, play_id)
                else:
                    self._message_over(call)
            case TimerKind.ANNOUNCE:
                self._announce(call)
            case TimerKind.MAX_WAIT:
                self._waited_too_long(call)
            case TimerKind.ALONE:
                self._left_alone(call)
            case TimerKind.ARRANGED:
                self._not_together(call)
            case _:
                assert_never(kind)

    def _waited_too_long(self, call: Call) -> None:
        if call.ringing:
            # A phone is ringing for him: let it, and see again.
            self._timers.set(call.call_id, TimerKind.MAX_WAIT, self._now.seconds + 1.0)
            return
        self._forget_waiting(call)
        call = self._put(replace(call, phase=Phase.IN_FLOW))
        self._flow_on(call, ivr.QueueGaveUp(ivr.GaveUp.MAX_WAIT))

    # --- requests -------------------------------------------------------------------------------------------

    def _asked(self, request: Request) -> None:
        match request:
            case SetReady(by):
                self._set_ready(self._agent(by))
            case SetNotReady(by, reason):
                if reason not in self._reasons and reason not in _OWN_REASONS:
                    raise Refused(Reason.UNKNOWN_REASON, reason)
                self._set_away(self._agent(by), AgentState.NOT_READY, reason)
            case LogOut(by):
                self._set_away(self._agent(by), AgentState.LOGGED_OUT, "")
            case HangUpCall(by, call_id, to_rating):
                call, _ = self._mine(by, call_id)
                self._hang_up_call(call, to_rating=to_rating)
            case Hold(by, call_id):
                self._hold(*self._mine(by, call_id))
            case Resume(by, call_id):
                self._resume(*self._mine(by, call_id))
            case SetMute(by, call_id, leg_id, on):
                self._mute(by, call_id, leg_id, on=on)
            case Invite(by, call_id, target, privately):
                self._invite(by, call_id, target, privately=privately)
            case Merge(by, call_id):
                self._merge(*self._mine(by, call_id))
            case Drop(by, call_id, leg_id):
                self._drop(*self._mine(by, call_id), leg_id)
            case Leave(by, call_id):
                self._leave(by, call_id)
            case Transfer(by, call_id, target):
                self._transfer(by, call_id, target)
            case WrapUp():
                self._wrap_up(request)
            case _:
                assert_never(request)

    def _agent(self, user_id: UserId) -> Agent:
        agent = self._agents.get(user_id)
        if agent is None:
            raise Refused(Reason.NOT_AN_AGENT)
        return agent

    def _set_ready(self, agent: Agent) -> None:
        roles = agent.profile.roles
        if UserRole.AGENT not in roles and UserRole.SPECIALIST not in roles:
            raise Refused(Reason.NOT_AN_AGENT)
        if agent.profile.phone is None:
            raise Refused(Reason.NO_PHONE)
        if agent.state in _IN_CALL:
            self._put_agent(replace(agent, after_call=AgentState.READY, after_reason=""))
            return
        if not agent.phone_reachable:
            raise Refused(Reason.PHONE_UNREACHABLE, agent.profile.phone)
        if agent.state is not AgentState.READY:
            self._become(agent, AgentState.READY, after_call=AgentState.READY, after_reason="")

    def _set_away(self, agent: Agent, state: AgentState, reason: str) -> None:
        """Not ready or logged out: now, or after the call and its wrap-up."""
        if agent.state is AgentState.OFFERED:
            agent = self._put_agent(replace(agent, after_call=state, after_reason=reason))
            self._withdraw_offer(agent, Outcome.REFUSED)
        elif agent.state in _IN_CALL or (agent.state is AgentState.WRAP_UP and state is AgentState.NOT_READY):
            self._put_agent(replace(agent, after_call=state, after_reason=reason))
        elif agent.state is not state or agent.reason != reason:
            self._become(agent, state, reason=reason, after_call=AgentState.READY, after_reason="")

    def _mine(self, by: UserId, call_id: CallId) -> tuple[Call, Leg]:
        """The living call the asker is talking in as its agent, and his leg."""
        call, leg = self._in_call(by, call_id)
        if leg.role is not Role.AGENT:
            raise Refused(Reason.NOT_YOUR_CALL)
        return call, leg

    def _in_call(self, by: UserId, call_id: CallId) -> tuple[Call, Leg]:
        if not self._telephony_up:
            raise Refused(Reason.TELEPHONY_DOWN)
        call = self._calls.get(call_id)
        if call is None:
            raise Refused(Reason.NO_SUCH_CALL)
        leg = call.leg_of(by)
        if call.phase is Phase.ENDED:
            raise Refused(Reason.CALL_ENDED)
        if leg is None:
            raise Refused(Reason.NOT_YOUR_CALL)
        if not leg.up or self._is_leaving(leg):
            raise Refused(Reason.NOT_TALKING)
        return call, leg

    def _is_leaving(self, leg: Leg) -> bool:
        """A hang-up has been sent to this leg and its end is on its way."""
        return self._timers.is_set(leg.leg_id, TimerKind.GONE)

    def _hang_up_call(self, call: Call, *, to_rating: bool) -> None:
        up = [leg.leg_id for leg in call.others if leg.up]
        for leg in call.others:
            if not leg.up:
                call = self._cancel(call, leg, Outcome.WITHDRAWN)
        self._searches.pop(call.call_id, None)
        # The caller first: a bridge that dissolves under him would race with where he is sent.
        if call.caller_leg.alive:
            if to_rating:
                self._talk_over(call)
            else:
                self._end_for_caller(call)
        for leg_id in up:
            self._hang_up(leg_id)

    def _hold(self, call: Call, leg: Leg) -> None:
        caller = call.caller_leg
        if not caller.alive:
            raise Refused(Reason.CALLER_GONE)
        if caller.place is Place.HELD:
            raise Refused(Reason.ALREADY_HELD)
        held = replace(caller, place=Place.HELD)
        steps = call.steps_with(self._now, StepKind.HELD, leg_id=leg.leg_id, user_id=leg.user_id)
        before, call = call, self._put(replace(call, legs=call.legs_with(held), steps=steps))
        self._record_apart(before, call)
        self._arrange(call)
        self._show(call)

    def _resume(self, call: Call, leg: Leg) -> None:
        if not call.caller_leg.alive:
            raise Refused(Reason.CALLER_GONE)
        if call.caller_leg.place is not Place.HELD:
            raise Refused(Reason.NOT_HELD)
        self._brought_back(call, leg)

    def _mute(self, by: UserId, call_id: CallId, leg_id: LegId | None, *, on: bool) -> None:
        call, own = self._in_call(by, call_id)
        leg = own if leg_id is None else call.leg(leg_id)
        if leg is None or not leg.up:
            raise Refused(Reason.NO_SUCH_PARTY)
        if leg.leg_id != own.leg_id and own.role is not Role.AGENT:
            raise Refused(Reason.NOT_YOUR_CALL)
        if leg.muted == on:
            return
        kind = StepKind.MUTED if on else StepKind.UNMUTED
        call = call.with_leg(replace(leg, muted=on))
        self._put(call.with_step(self._now, kind, leg_id=leg.leg_id, user_id=by))
        self._out.append(Mute(leg.leg_id, on))

    def _checked(self, by: UserId, call: Call, target: Target) -> Target:
        """The target, if it exists and is allowed."""
        if len(call.others) + 1 >= self._policy.max_parties:
            raise Refused(Reason.TOO_MANY_PARTIES)
        match target.kind:
            case TargetKind.USER:
                agent = self._agents.get(UserId(target.value))
                if agent is None or agent.user_id == by:
                    raise Refused(Reason.NO_SUCH_USER, target.value)
                if agent.profile.phone is None:
                    raise Refused(Reason.NO_PHONE, target.value)
            case TargetKind.SKILL:
                holders = [u for u, a in self._agents.items() if target.value in a.profile.skills]
                if not holders:
                    raise Refused(Reason.NO_SUCH_SKILL, target.value)
                if holders == [by]:
                    raise Refused(Reason.NOBODY_FREE, target.value)
            case TargetKind.QUEUE:
                if QueueId(target.value) not in self._routing.queues:
                    raise Refused(Reason.NO_SUCH_QUEUE, target.value)
            case TargetKind.NUMBER:
                if target.value not in self._numbers:
                    raise Refused(Reason.NUMBER_NOT_ALLOWED, target.value)
            case _:
                assert_never(target.kind)
        return target

    def _invite(self, by: UserId, call_id: CallId, target: Target, *, privately: bool) -> None:
        call, leg = self._mine(by, call_id)
        target = self._checked(by, call, target)
        if target.kind is TargetKind.QUEUE:
            raise Refused(Reason.NO_SUCH_USER, target.value)
        if not call.caller_leg.alive:
            raise Refused(Reason.CALLER_GONE)
        if call.ringing:
            raise Refused(Reason.ALREADY_INVITING)
        rung = self._summon(call, target, by=by)
        call = self._calls[call_id]
        if rung is not None and privately and call.caller_leg.place is Place.TOGETHER:
            self._hold(call, leg)

    def _summon(self, call: Call, target: Target, *, by: UserId) -> LegId | None:
        """Ring the target, or the best with the skill; None when that failed at once."""
        if target.kind is not TargetKind.SKILL:
            return self._ring_target(call, target, by=by)
        search = _Search(target.value, by, set())
        self._searches[call.call_id] = search
        if self._candidate(search) is not None:
            self._search_on(call)
            return self._calls[call.call_id].ringing[-1].leg_id
        # Nobody to ring is an outcome too: of those who have the skill, the one who comes nearest to being there.
        del self._searches[call.call_id]
        holders = [a for a in self._agents.values() if target.value in a.profile.skills and a.user_id != by]
        nearest = min(holders, key=lambda a: (not a.phone_reachable, a.user_id))
        self._note_failed(call, nearest, _obstacle(nearest) or Outcome.UNREACHABLE, by=by)
        return None

    def _merge(self, call: Call, leg: Leg) -> None:
        if not call.caller_leg.alive:
            raise Refused(Reason.CALLER_GONE)
        if sum(not self._is_leaving(party) for party in call.parties) < 2:
            raise Refused(Reason.NOBODY_TO_MERGE)
        if call.caller_leg.place is Place.HELD:
            self._brought_back(call, leg)

    def _drop(self, call: Call, leg: Leg, dropped: LegId) -> None:
        other = call.leg(dropped)
        if other is None or not other.alive or other.role is Role.CALLER or other.leg_id == leg.leg_id:
            raise Refused(Reason.NO_SUCH_PARTY, dropped)
        self._searches.pop(call.call_id, None)
        if other.up:
            self._hang_up(other.leg_id)
        else:
            self._cancel(call, other, Outcome.WITHDRAWN)

    def _leave(self, by: UserId, call_id: CallId) -> None:
        """Whoever is up goes on with the caller; else he hears music until who is ringing answers."""
        call, leg = self._in_call(by, call_id)
        staying = [o for o in call.others if o is not leg and o.cancelled is None and not self._is_leaving(o)]
        if not staying or not call.caller_leg.alive:
            raise Refused(Reason.NOBODY_LEFT)
        if call.caller_leg.place is Place.HELD and any(other.up for other in staying):
            # The leaving leg stays where it is until its hang-up arrives, a few milliseconds later.
            self._brought_back(call, leg)
        self._hang_up(leg.leg_id)

    def _transfer(self, by: UserId, call_id: CallId, target: Target) -> None:
        call, leg = self._mine(by, call_id)
        target = self._checked(by, call, target)
        caller = call.caller_leg
        if not caller.alive:
            raise Refused(Reason.CALLER_GONE)
        if len(call.others) > 1:
            raise Refused(Reason.ALREADY_INVITING)
        moved = call.with_step(
            self._now,
            StepKind.TRANSFERRED,
            leg_id=leg.leg_id,
            user_id=by,
            detail=f"{target.kind}:{target.value}",
        )
        if target.kind is TargetKind.QUEUE:
            moved = self._put(replace(moved, queue=QueueId(target.value)))
            # The caller first: the bridge would dissolve under his Redirect, and Asterisk would refuse it.
            self._requeue(moved)
            self._hang_up(leg.leg_id)
            return
        if self._summon(moved, target, by=by) is None:
            return  # recorded as failed; the agent still has his caller
        call = self._calls[call_id]
        call = self._put(call.with_leg(replace(call.caller_leg, place=Place.HELD)))
        self._arrange(call)
        self._hang_up(leg.leg_id)

    def _wrap_up(self, request: WrapUp) -> None:
        agent = self._agent(request.by)
        call = self._calls.get(request.call_id)
        if call is None or agent.call_id != request.call_id:
            raise Refused(Reason.NO_SUCH_CALL)
        if agent.state is AgentState.OFFERED:
            raise Refused(Reason.NOT_TALKING)
        if request.disposition not in self._dispositions:
            raise Refused(Reason.UNKNOWN_DISPOSITION, request.disposition)
        self._put(
            replace(
                call,
                disposition=request.disposition,
                note=request.note,
                steps=call.steps_with(
                    self._now, StepKind.DISPOSED, user_id=request.by, detail=request.disposition
                ),
            )
        )
        if agent.state is AgentState.WRAP_UP and not request.more_time:
            self._back(agent)


def _call_of(message: Event | Request | Effect) -> CallId | None:
    """The call a message is about, if it is about one."""
    if isinstance(message, TakeMessage | Record | SaveCall):
        return message.call.call_id
    subject = getattr(message, "leg_id", None) or getattr(message, "call_id", None)
    return call_id_of(LegId(subject)) if subject else None


def _reopened(call: Call) -> Call:
    """The same record once more, for a caller who is still there: what has happened to him stays in it."""
    caller = replace(call.caller_leg, state=LegState.UP, place=Place.ALONE, ended_at=None)
    return replace(
        call,
        phase=Phase.IN_FLOW,
        legs=call.legs_with(caller),
        cursor=None,
        queued_at=None,
        head_start_seconds=0.0,
        ended_at=None,
        end_reason=None,
    )


def _greeted(call: Call) -> bool:
    return StepKind.GREETED in [step.kind for step in call.steps]


def _arrival(leg: LegSeen, past: Mapping[CallId, Unattended]) -> datetime | None:
    """When this caller rang, if it was written down."""
    caller = past.get(CallId(leg.leg_id))
    return caller.arrived_at if caller else None


def _speaking(call: Call, seen: Mapping[LegId, LegSeen]) -> datetime | None:
    caller = seen.get(call.caller_leg.leg_id)
    return caller.speaking_since if caller else None


def _plain_queue(queue_id: QueueId) -> ivr.QueueStep:
    """Waiting of which no flow says more."""
    return ivr.QueueStep(queue_id, 0.0, None, False, False, None, None)


def _obstacle(agent: Agent) -> Outcome | None:
    """Why ringing this person would be in vain."""
    if not agent.phone_reachable or agent.profile.phone is None:
        return Outcome.UNREACHABLE
    if agent.call_id is not None or agent.state is AgentState.NOT_READY:
        return Outcome.BUSY
    return None


def _state_in(call: Call, leg: Leg) -> AgentState:
    """What the person at a living leg is doing."""
    if not leg.up:
        return AgentState.OFFERED
    caller = call.caller_leg
    return AgentState.HELD if caller.alive and caller.place is Place.HELD else AgentState.TALKING


def _role_of(profile: Profile) -> Role:
    return Role.AGENT if UserRole.AGENT in profile.roles else Role.SPECIALIST


def _queue_of(call: Call, leg: Leg) -> QueueId | None:
    """The queue the call had last entered when this leg was rung: a later transfer is not this agent's."""
    entered = [s.detail for s in call.steps if s.kind is StepKind.QUEUED and s.at <= leg.asked_at]
    return QueueId(entered[-1]) if entered else None


def _with(handled_by: tuple[UserId, ...], leg: Leg) -> tuple[UserId, ...]:
    if leg.role is not Role.AGENT or leg.user_id is None or leg.user_id in handled_by:
        return handled_by
    return (*handled_by, leg.user_id)


def _partner(call: Call) -> Leg | None:
    """The other one of a conversation of two."""
    if call.phase is not Phase.TALKING or not call.caller_leg.up:
        return None
    together = [leg for leg in call.legs if leg.up and leg.place is Place.TOGETHER]
    return together[1] if len(together) == 2 and together[0] is call.caller_leg else None
