"""The contact centre: every decision about a live call, in one synchronous object with one writer.

``handle(event, now)``, ``ask(request, now)`` and ``advance(now)`` return the effects to carry out, in order. Nothing
here waits, reads a clock or talks to anybody. A change to a call or an agent ends in one ``SaveCall`` or ``SaveAgent``
a turn, after the effects of that turn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import assert_never
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
    ConsoleLost,
    ConversationOver,
    DigitPressed,
    DirectoryChanged,
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
    LegEnded,
    LegSeen,
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
    TakeMessage,
    Target,
    TargetKind,
    TelephonyLost,
    TelephonyResynced,
    TicketOpened,
    Transfer,
    Wait,
    WrapUp,
)
from callcenter.domain.spoken import queue_announcement
from callcenter.domain.timers import Timer, Timers

SHANGHAI = ZoneInfo("Asia/Shanghai")

_OWN_REASONS = frozenset(reason.value for reason in NotReady)
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


@dataclass(frozen=True, slots=True)
class QueueStatus:
    queue_id: QueueId
    waiting: int
    longest_wait_seconds: float
    ready: int
    staffed: int


@dataclass(slots=True)
class _Search:
    """Ringing specialists one after the other until somebody with the skill answers."""

    skill: str
    by: UserId
    privately: bool
    tried: set[UserId]


class ContactCentre:
    def __init__(
        self, policy: Policy | None = None, *, working_days: Mapping[date, bool] | None = None
    ) -> None:
        self._policy = policy or Policy()
        self._working_days = working_days or {}
        self._calls: dict[CallId, Call] = {}
        self._agents: dict[UserId, Agent] = {}
        self._by_phone: dict[str, UserId] = {}
        self._phones: set[str] = set()
        self._routing = Routing()
        self._timers = Timers()
        self._flows: dict[tuple[str, str], ivr.Flow] = {}
        self._line_flow: dict[str, ivr.Flow] = {}
        self._by_number: dict[str, ivr.Flow] = {}
        self._steps: dict[CallId, ivr.Step] = {}
        self._plays: dict[LegId, int] = {}
        self._play_id = 0
        self._searches: dict[CallId, _Search] = {}
        self._messages: dict[CallId, float] = {}
        self._handling: dict[QueueId, float] = {}
        self._reasons: frozenset[str] = frozenset()
        self._dispositions: frozenset[str] = frozenset()
        self._numbers: frozenset[str] = frozenset()
        self._telephony_up = False
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
        staffed = self._staffed()
        status = []
        for queue_id in self._routing.queues:
            first = self._routing.first_waiting(queue_id)
            queued_at = self._calls[first].queued_at if first else None
            status.append(
                QueueStatus(
                    queue_id,
                    self._routing.waiting_at(queue_id),
                    (now.utc - queued_at).total_seconds() if queued_at else 0.0,
                    self._routing.free_at(queue_id),
                    staffed.get(queue_id, 0),
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
            assert not self._out, "a request was refused half-way"
            raise
        return self._turn_over()

    def advance(self, now: Now) -> list[Effect]:
        """Carry out every deadline that has passed."""
        self._now = now
        while (timer := self._timers.pop_due(now.seconds)) is not None:
            self._due(timer)
        return self._turn_over()

    def next_deadline(self) -> float | None:
        """Monotonic second at which ``advance`` has something to do."""
        return self._timers.next_due()

    def restore(self, calls: Iterable[Call], agents: Iterable[Agent], now: Now) -> None:
        """Take up what the records say was going on; the next ``TelephonyResynced`` tells what is left of it."""
        self._now = now
        for call in calls:
            self._calls[call.call_id] = call
            for leg in call.others:
                if not leg.up:
                    self._timers.set(Timer("ring", leg.leg_id), now.seconds + self._policy.invite_seconds)
        for stored in agents:
            known = self._agents.get(stored.user_id)
            if known is not None:
                since = (
                    now.seconds - (now.utc - stored.since).total_seconds() if stored.since else now.seconds
                )
                self._agents[stored.user_id] = replace(
                    stored,
                    profile=known.profile,
                    since_seconds=since,
                    wrap_up_until=None,
                    phone_reachable=False,
                )

    def give_up(self, event: Event, now: Now) -> list[Effect]:
        """The centre failed at this event: that call alone goes to the dialplan's fallback."""
        self._now = now
        self._out.clear()
        leg_id = getattr(event, "leg_id", None) or getattr(event, "call_id", None)
        call = self._calls.get(call_id_of(leg_id)) if leg_id else None
        if call is None or call.phase is Phase.ENDED:
            return self._turn_over()
        for leg in call.others:
            self._out.append(HangUp(leg.leg_id))
        self._out.append(FallBack(call.caller_leg.leg_id))
        self._forget_waiting(call)
        self._close(call, EndReason.FAULT)
        return self._turn_over()

    def _turn_over(self) -> list[Effect]:
        out = self._out
        out.extend(SaveCall(call) for call in self._changed_calls.values())
        out.extend(SaveAgent(agent) for agent in self._changed_agents.values())
        self._out, self._changed_calls, self._changed_agents = [], {}, {}
        return out

    def _put(self, call: Call) -> Call:
        """Keep the call as it now stands."""
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
            case PromptsEnded(leg_id, play_id):
                self._prompts_ended(leg_id, play_id)
            case DigitPressed(leg_id, digit):
                call = self._calls.get(CallId(leg_id))
                if call is not None and call.call_id in self._steps:
                    self._flow_on(call, ivr.DigitPressed(digit))
            case MessageEnded(leg_id):
                call = self._calls.get(CallId(leg_id))
                if call is not None:
                    self._message_over(call)
            case ConversationOver(leg_id):
                self._conversation_over(leg_id)
            case ArrangeFailed(call_id, detail):
                self._arrange_failed(call_id, detail)
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
            case ConsoleLost(user_id):
                self._console_lost(user_id)
            case _:
                assert_never(event)

    def _call_arrived(self, event: CallArrived) -> None:
        if event.call_id in self._calls:
            return
        flow = self._by_number.get(event.dialled)
        call = self._new_call(event.call_id, event.caller, event.dialled, flow)
        call = self._put(call.with_step(self._now, StepKind.ARRIVED, detail=event.dialled))
        if flow is None:
            self._out.append(Alarm("no_flow", {"dialled": event.dialled}))
            self._say_then_hang_up(call, "no_such_number")
        else:
            self._enter_flow(call, flow)

    def _new_call(self, call_id: CallId, caller: str, dialled: str, flow: ivr.Flow | None) -> Call:
        leg = Leg(
            leg_id=LegId(call_id),
            role=Role.CALLER,
            address=caller,
            user_id=None,
            state=LegState.UP,
            place=Place.ALONE,
            asked_at=self._now.utc,
            answered_at=self._now.utc,
        )
        return Call(
            call_id=call_id,
            line=flow.line if flow else "",
            flow_version=flow.version if flow else "",
            dialled=dialled,
            caller=caller,
            arrived_at=self._now.utc,
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
        if cursor is not None and flow is not None:
            self._follow(call, *ivr.advance(flow, cursor, event, self._facts(call)))

    def _flow_of(self, call: Call) -> ivr.Flow | None:
        """The version the call began with, or the line's present one if that is gone (after a restart)."""
        return self._flows.get((call.line, call.flow_version)) or self._line_flow.get(call.line)

    def _follow(
        self, call: Call, cursor: ivr.Cursor, step: ivr.Step | None, noted: tuple[ivr.Noted, ...]
    ) -> None:
        changed = replace(call, cursor=cursor)
        for note in noted:
            changed = self._with_note(changed, note)
        if changed != call:
            call = self._put(changed)
        if step is None:
            return
        self._timers.cancel(Timer("collect", call.call_id))
        self._steps[call.call_id] = step
        leg_id = call.caller_leg.leg_id
        match step:
            case ivr.PlayStep(prompts) | ivr.CollectStep(prompts) | ivr.MessageStep(prompts):
                if prompts:
                    self._play(leg_id, prompts, Meanwhile.QUIET)
                else:
                    self._prompts_over(call)
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

    def _play(self, leg_id: LegId, prompts: tuple[str, ...], then: Meanwhile) -> None:
        self._play_id += 1
        self._plays[leg_id] = self._play_id
        self._out.append(Play(leg_id, self._play_id, prompts, then))

    def _prompts_ended(self, leg_id: LegId, play_id: int) -> None:
        call = self._calls.get(CallId(leg_id))
        if call is None or self._plays.get(leg_id) != play_id:
            return
        del self._plays[leg_id]
        if not any(step.kind is StepKind.GREETED for step in call.steps):
            call = self._put(call.with_step(self._now, StepKind.GREETED))
        if call.call_id not in self._steps:
            # The last words to a caller without a flow.
            if call.phase in (Phase.IN_FLOW, Phase.AFTER):
                self._end_for_caller(call)
            return
        self._prompts_over(call)

    def _prompts_over(self, call: Call) -> None:
        match self._steps.get(call.call_id):
            case ivr.PlayStep():
                self._flow_on(call, ivr.PromptsEnded())
            case ivr.CollectStep(timeout_seconds=seconds):
                self._timers.set(Timer("collect", call.call_id), self._now.seconds + seconds)
                self._flow_on(call, ivr.PromptsEnded())
            case ivr.MessageStep(max_seconds=seconds):
                self._messages[call.call_id] = self._now.seconds
                self._out.append(TakeMessage(call, call.caller_leg.leg_id, seconds))
            case ivr.QueueStep() | ivr.TransferStep() | ivr.HangUpStep() | None:
                pass

    def _message_over(self, call: Call) -> None:
        """The caller has stopped speaking, by key, by silence or by hanging up."""
        began = self._messages.pop(call.call_id, None)
        if began is not None and isinstance(self._steps.get(call.call_id), ivr.MessageStep):
            self._flow_on(call, ivr.MessageEnded(self._now.seconds - began))

    def _say_then_hang_up(self, call: Call, prompt: str) -> None:
        self._leave_flow(call)
        self._play(call.caller_leg.leg_id, (prompt,), Meanwhile.QUIET)

    def _leave_flow(self, call: Call) -> None:
        self._steps.pop(call.call_id, None)
        self._plays.pop(call.caller_leg.leg_id, None)
        self._timers.cancel(Timer("collect", call.call_id))

    def _flow_transfer(self, call: Call, kind: ivr.TransferTo, to: str) -> None:
        if kind is ivr.TransferTo.QUEUE:
            self._enter_queue(call, ivr.QueueStep(to, 0.0, None, False, False, None, None))
            return
        self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
        target = Target(TargetKind.USER if kind is ivr.TransferTo.AGENT else TargetKind.NUMBER, to)
        if self._ring_target(call, target, by=None) is None:
            self._flow_on(self._calls[call.call_id], ivr.TransferFailed())

    # --- queues ---------------------------------------------------------------------------------------------

    def _enter_queue(self, call: Call, step: ivr.QueueStep) -> None:
        queue = self._routing.queues.get(QueueId(step.queue))
        if queue is None:
            self._out.append(Alarm("no_queue", {"queue": step.queue, "line": call.line}))
            self._not_queued(call, ivr.GaveUp.CLOSED)
            return
        if self._routing.waiting_at(queue.queue_id) >= queue.max_waiting:
            self._not_queued(call, ivr.GaveUp.FULL)
            return
        call = replace(
            call,
            phase=Phase.WAITING,
            queue=queue.queue_id,
            queued_at=call.queued_at or self._now.utc,
            head_start_seconds=max(call.head_start_seconds, step.head_start_seconds),
        )
        call = self._put(call.with_step(self._now, StepKind.QUEUED, detail=queue.queue_id))
        self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
        if step.max_wait_seconds is not None:
            self._timers.set(Timer("max_wait", call.call_id), self._now.seconds + step.max_wait_seconds)
        self._announce_later(call)
        self._seek_agent(call)

    def _not_queued(self, call: Call, reason: ivr.GaveUp) -> None:
        by_transfer = isinstance(self._steps.get(call.call_id), ivr.TransferStep)
        self._flow_on(call, ivr.TransferFailed() if by_transfer else ivr.QueueGaveUp(reason))

    def _seek_agent(self, call: Call) -> None:
        """Offer a waiting call to the best free agent, or let it wait in its place."""
        assert call.queue is not None, "a waiting call has its queue"
        user_id = self._routing.agent_for(call.queue) if self._telephony_up else None
        if user_id is None:
            queued_at = call.queued_at or self._now.utc
            began = self._now.seconds - (self._now.utc - queued_at).total_seconds()
            self._routing.call_waits(call.call_id, call.queue, rank=began - call.head_start_seconds)
        else:
            self._offer(call, self._agents[user_id])

    def _seek_call(self, agent: Agent) -> None:
        """Offer the longest waiting caller to an agent who has become free."""
        if self._telephony_up and self._routing.is_free(agent.user_id):
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

    def _announce_later(self, call: Call) -> None:
        step = self._steps.get(call.call_id)
        if isinstance(step, ivr.QueueStep) and step.announce_every_seconds is not None:
            self._timers.set(Timer("announce", call.call_id), self._now.seconds + step.announce_every_seconds)

    def _announce(self, call: Call) -> None:
        step = self._steps.get(call.call_id)
        if not isinstance(step, ivr.QueueStep) or call.phase is not Phase.WAITING:
            return
        facts = self._facts(call)
        # While a phone rings for him he is no longer in the line: saying a place would be untrue.
        if facts.position is not None:
            prompts = queue_announcement(
                facts.position if step.announce_position else None,
                facts.expected_wait_seconds if step.announce_wait else None,
            )
            if prompts:
                self._play(call.caller_leg.leg_id, prompts, Meanwhile.MUSIC)
        self._announce_later(call)

    def _expected_wait(self, queue_id: QueueId, position: int) -> float | None:
        """Seconds until the caller at this position is served: position x mean handling time / staffed agents.

        None when nobody is there to answer: no figure is better than a wrong one.
        """
        staffed = self._staffed().get(queue_id, 0)
        if staffed == 0:
            return None
        return position * self._handling.get(queue_id, self._policy.first_handling_seconds) / staffed

    def _staffed(self) -> dict[QueueId, int]:
        counts: dict[QueueId, int] = {}
        for agent in self._agents.values():
            if agent.state not in (AgentState.LOGGED_OUT, AgentState.NOT_READY):
                for queue_id in self._routing.serves(agent):
                    counts[queue_id] = counts.get(queue_id, 0) + 1
        return counts

    def _requeue(self, call: Call) -> None:
        """Give a caller back to his queue, ahead of those who just came; without a queue the call is over."""
        if call.queue is None or call.queue not in self._routing.queues:
            self._talk_over(call)
            return
        head_start = call.head_start_seconds + self._policy.requeue_head_start_seconds
        caller = replace(call.caller_leg, place=Place.ALONE)
        call = replace(call.with_leg(caller), phase=Phase.WAITING, head_start_seconds=head_start)
        call = self._put(call.with_step(self._now, StepKind.QUEUED, detail=call.queue or ""))
        self._out.append(Wait(caller.leg_id, Meanwhile.MUSIC))
        self._announce_later(call)
        self._seek_agent(call)

    def _forget_waiting(self, call: Call) -> None:
        self._routing.call_gone(call.call_id)
        for kind in ("announce", "max_wait", "collect"):
            self._timers.cancel(Timer(kind, call.call_id))

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
        if not agent.phone_reachable or agent.profile.phone is None:
            self._note_failed(call, agent, Outcome.UNREACHABLE, by=by)
            return None
        if agent.call_id is not None or agent.state is AgentState.NOT_READY:
            self._note_failed(call, agent, Outcome.BUSY, by=by)
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
        self._timers.set(Timer("ring", leg_id), self._now.seconds + seconds)
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
        call = call.with_leg(leg)
        return self._put(
            call.with_step(
                self._now, StepKind.NOT_JOINED, leg_id=leg_id, user_id=agent.user_id, detail=outcome.value
            )
        )

    def _cancel(self, call: Call, leg: Leg, outcome: Outcome) -> Call:
        """Stop ringing a leg; it ends with this outcome whatever the phone says meanwhile."""
        if leg.cancelled is not None:
            return call
        call = self._put(call.with_leg(replace(leg, cancelled=outcome)))
        self._hang_up(leg.leg_id)
        return call

    def _hang_up(self, leg_id: LegId) -> None:
        self._out.append(HangUp(leg_id))
        self._timers.cancel(Timer("ring", leg_id))
        self._timers.set(Timer("gone", leg_id), self._now.seconds + self._policy.gone_seconds)

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
        self._timers.cancel(Timer("ring", leg_id))
        self._searches.pop(call.call_id, None)
        self._forget_waiting(call)
        self._leave_flow(call)
        leg = replace(
            leg, state=LegState.UP, place=Place.TOGETHER, answered_at=self._now.utc, outcome=Outcome.JOINED
        )
        inviter = call.leg_of(leg.asked_by) if leg.asked_by else None
        if inviter is not None and inviter.up and not self._is_leaving(inviter):
            self._party_answered(call, leg)
        else:
            self._conversation_begins(call, leg)

    def _conversation_begins(self, call: Call, leg: Leg) -> None:
        """Caller and the party that answered hear each other."""
        first = call.answered_at is None
        call = self._together(call.with_leg(leg), call.caller_leg.leg_id, leg.leg_id)
        kind = StepKind.ANSWERED if leg.asked_by is None else StepKind.JOINED
        call = replace(
            call,
            phase=Phase.TALKING,
            answered_at=call.answered_at or self._now.utc,
            answered_by=call.answered_by or leg.user_id,
            handled_by=_with(call.handled_by, leg),
        ).with_step(self._now, kind, leg_id=leg.leg_id, user_id=leg.user_id)
        call = self._put(call)
        if first:
            self._out.append(Record(call, call.caller_leg.leg_id))
        self._out.append(Record(call, leg.leg_id))
        self._arrange(call)
        self._talks(call, leg, AgentState.TALKING)

    def _party_answered(self, call: Call, leg: Leg) -> None:
        """An invited party answered: privately with whoever invited him while the caller is held, else with all."""
        call = replace(call.with_leg(leg), handled_by=_with(call.handled_by, leg))
        private = call.caller_leg.place is Place.HELD
        if not private:
            call = self._together(call, leg.leg_id)
        kind = StepKind.CONSULTED if private else StepKind.JOINED
        call = self._put(call.with_step(self._now, kind, leg_id=leg.leg_id, user_id=leg.user_id))
        self._out.append(Record(call, leg.leg_id))
        self._arrange(call)
        self._talks(call, leg, AgentState.HELD if private else AgentState.TALKING)

    def _together(self, call: Call, *leg_ids: LegId) -> Call:
        """The call with these legs in the conversation; whoever is now with the caller has joined."""
        for leg_id in leg_ids:
            leg = call.leg(leg_id)
            assert leg is not None, "a leg that is brought together is in the call"
            call = call.with_leg(replace(leg, place=Place.TOGETHER))
        if call.caller_leg.up and call.caller_leg.place is Place.TOGETHER:
            for leg in call.others:
                if leg.up and leg.place is Place.TOGETHER and leg.joined_at is None:
                    call = call.with_leg(replace(leg, joined_at=self._now.utc))
        return call

    def _arrange(self, call: Call) -> None:
        up = [leg for leg in call.legs if leg.up]
        together = tuple(leg.leg_id for leg in up if leg.place is Place.TOGETHER)
        held = tuple(leg.leg_id for leg in up if leg.place is Place.HELD)
        self._out.append(Arrange(call.call_id, together, held))

    def _talks(self, call: Call, leg: Leg, state: AgentState) -> None:
        if leg.user_id is not None:
            self._become(self._agents[leg.user_id], state, call_id=call.call_id, leg_id=leg.leg_id)

    # --- a leg ends -----------------------------------------------------------------------------------------

    def _leg_ended(self, leg_id: LegId, outcome: Outcome) -> None:
        call = self._calls.get(call_id_of(leg_id))
        leg = call.leg(leg_id) if call else None
        if call is None or leg is None or not leg.alive:
            return
        for kind in ("ring", "gone"):
            self._timers.cancel(Timer(kind, leg_id))
        if leg.role is Role.CALLER:
            self._caller_gone(call)
        elif leg.up:
            self._party_left(call, leg)
        else:
            self._ring_failed(call, leg, leg.cancelled or outcome)

    def _caller_gone(self, call: Call) -> None:
        self._message_over(call)
        call = self._calls[call.call_id]
        self._forget_waiting(call)
        self._leave_flow(call)
        ringing = [leg for leg in call.others if not leg.up]
        reason = call.end_reason
        if reason is None and call.answered_at is None:
            waiting = EndReason.ABANDONED_RINGING if ringing else EndReason.ABANDONED_WAITING
            reason = waiting if call.phase is Phase.WAITING else EndReason.ABANDONED_IN_FLOW
        caller = replace(call.caller_leg, state=LegState.ENDED, ended_at=self._now.utc)
        call = replace(call.with_leg(caller), end_reason=reason)
        call = self._put(call.with_step(self._now, StepKind.LEFT, leg_id=caller.leg_id))
        for leg in ringing:
            call = self._cancel(call, leg, Outcome.CALLER_GONE)
        self._settle(call)

    def _party_left(self, call: Call, leg: Leg) -> None:
        ended = replace(leg, state=LegState.ENDED, ended_at=self._now.utc)
        call = call.with_leg(ended).with_step(
            self._now, StepKind.LEFT, leg_id=leg.leg_id, user_id=leg.user_id
        )
        call = self._put(call)
        self._release(call, ended)
        self._settle(self._calls[call.call_id])

    def _ring_failed(self, call: Call, leg: Leg, outcome: Outcome) -> None:
        ended = replace(leg, state=LegState.ENDED, ended_at=self._now.utc, outcome=outcome)
        kind = StepKind.MISSED if leg.asked_by is None else StepKind.NOT_JOINED
        call = call.with_leg(ended).with_step(
            self._now, kind, leg_id=leg.leg_id, user_id=leg.user_id, detail=outcome.value
        )
        call = self._put(call)
        # The caller first: his next agent must not be the one who has just missed him.
        self._missed(ended, outcome)
        call = self._calls[call.call_id]
        if not call.caller_leg.alive or call.phase in (Phase.AFTER, Phase.ENDED):
            self._settle(call)
        elif call.phase is Phase.WAITING:
            if not call.others:
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
        if leg.role is not Role.AGENT or agent.after_call is AgentState.LOGGED_OUT or blameless:
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
            and agent.phone_reachable
            and agent.call_id is None
            and agent.state is not AgentState.NOT_READY
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
        queue = self._routing.queues.get(call.queue) if call.queue else None
        seconds = queue.wrap_up_seconds if queue else self._policy.wrap_up_seconds
        if queue is not None and leg.answered_at is not None:
            took = (self._now.utc - leg.answered_at).total_seconds() + seconds
            before = self._handling.get(queue.queue_id, self._policy.first_handling_seconds)
            self._handling[queue.queue_id] = before + (took - before) / 20
        until = self._now.seconds + seconds
        self._timers.set(Timer("wrap_up", agent.user_id), until)
        self._become(agent, AgentState.WRAP_UP, call_id=call.call_id, wrap_up_until=until)

    def _settle(self, call: Call) -> None:
        """Bring the call to rest after somebody left: who is still there decides what happens to them."""
        if call.phase is Phase.ENDED:
            return
        caller, others = call.caller_leg, call.others
        up = [leg for leg in others if leg.up]
        if not caller.alive:
            if len(up) < 2:
                for leg in up:
                    self._hang_up(leg.leg_id)
            if not others:
                self._close(call, call.end_reason or EndReason.COMPLETED)
            return
        if call.phase is not Phase.TALKING:
            return
        if up:
            if caller.place is Place.HELD and not any(leg.role is Role.AGENT for leg in up):
                # Whoever could have fetched him back is gone: the caller must not hear music for ever.
                call = self._put(self._together(call, caller.leg_id, *(leg.leg_id for leg in up)))
                self._arrange(call)
        elif not others and caller.place is Place.HELD:
            self._requeue(call)
        elif not others:
            self._talk_over(call)
        elif caller.place is not Place.HELD:
            call = self._put(call.with_leg(replace(caller, place=Place.HELD)))
            self._arrange(call)

    def _talk_over(self, call: Call) -> None:
        """The conversation has ended and the caller is still there: rate it, or good-bye."""
        self._forget_waiting(call)
        call = replace(call.with_leg(replace(call.caller_leg, place=Place.ALONE)), phase=Phase.AFTER)
        call = self._put(call)
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
        for leg in call.legs:
            if leg.alive:
                outcome = leg.outcome or (
                    None if leg.role is Role.CALLER else leg.cancelled or Outcome.UNREACHABLE
                )
                call = call.with_leg(
                    replace(leg, state=LegState.ENDED, ended_at=self._now.utc, outcome=outcome)
                )
                self._release_or_miss(call, leg)
        call = replace(call, phase=Phase.ENDED, ended_at=self._now.utc, end_reason=reason)
        self._put(call.with_step(self._now, StepKind.ENDED, detail=reason.value))
        self._forget_if_done(call.call_id)

    def _release_or_miss(self, call: Call, leg: Leg) -> None:
        for kind in ("ring", "gone"):
            self._timers.cancel(Timer(kind, leg.leg_id))
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
            if call.phase is Phase.TALKING and leg.place is Place.TOGETHER and len(_up_together(call)) > 1:
                # Alone, yet his partner's leg is said to be up: the partner's end is on its way. Should it be lost, the
                # dialplan lets the caller go and his own end closes the call.
                self._timers.set(Timer("alone", call.call_id), self._now.seconds + 1.0)
        elif leg.place is Place.TOGETHER:
            self._hang_up(leg_id)

    def _arrange_failed(self, call_id: CallId, detail: str) -> None:
        call = self._calls.get(call_id)
        self._out.append(Alarm("arrange_failed", {"call": call_id, "detail": detail}))
        if call is None or call.phase is not Phase.TALKING:
            return
        for leg in call.others:
            self._hang_up(leg.leg_id)
        if call.caller_leg.alive:
            # Held tells _settle to give him to somebody else once the others are gone.
            self._put(call.with_leg(replace(call.caller_leg, place=Place.HELD)))

    def _fell_back(self, event: FellBack) -> None:
        """Take a caller back from the fallback queue: we hear of him, so we are there."""
        call = self._calls.get(event.call_id)
        if call is None:
            self._adopt(LegSeen(LegId(event.call_id), up=True, caller=event.caller, dialled=event.dialled))
            call = self._calls[event.call_id]
        elif call.phase is Phase.ENDED:
            return
        call = self._put(call.with_step(self._now, StepKind.FELL_BACK))
        if call.phase is Phase.WAITING:
            self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
        elif call.phase in (Phase.IN_FLOW, Phase.AFTER) and call.call_id in self._steps:
            self._flow_on(call, ivr.Started())

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

    def _console_lost(self, user_id: UserId) -> None:
        agent = self._agents.get(user_id)
        if agent is None:
            return
        if agent.state is AgentState.READY:
            self._become(agent, AgentState.NOT_READY, reason=NotReady.CONNECTION_LOST.value)
        elif agent.state is AgentState.OFFERED:
            self._withdraw_offer(agent, Outcome.UNREACHABLE)
        elif agent.after_call is AgentState.READY:
            self._put_agent(
                replace(agent, after_call=AgentState.NOT_READY, after_reason=NotReady.CONNECTION_LOST.value)
            )

    def _withdraw_offer(self, agent: Agent, outcome: Outcome) -> None:
        call = self._calls.get(agent.call_id) if agent.call_id else None
        leg = call.leg(agent.leg_id) if call and agent.leg_id else None
        if call is not None and leg is not None and leg.state is LegState.RINGING:
            self._cancel(call, leg, outcome)

    # --- resync ---------------------------------------------------------------------------------------------

    def _resynced(self, event: TelephonyResynced) -> None:
        """Take over what lives, close what died: Asterisk holds the truth about who is on the line."""
        self._telephony_up = True
        for phone in self._phones - event.phones:
            self._phone_seen(phone, reachable=False)
        for phone in event.phones - self._phones:
            self._phone_seen(phone, reachable=True)
        seen = {leg.leg_id: leg for leg in event.legs}
        for call in list(self._calls.values()):
            if call.phase is not Phase.ENDED:
                self._reconcile(call, seen)
        for leg in event.legs:
            call_id = call_id_of(leg.leg_id)
            known = self._calls.get(call_id)
            if known is not None and known.leg(leg.leg_id) is not None:
                continue
            if leg.leg_id == LegId(call_id):
                self._adopt(leg)
            else:
                self._out.append(HangUp(leg.leg_id))
        self._release_stale_agents()
        for agent in list(self._agents.values()):
            self._seek_call(agent)

    def _reconcile(self, call: Call, seen: Mapping[LegId, LegSeen]) -> None:
        for leg in call.legs:
            present = seen.get(leg.leg_id)
            if leg.alive and present is None:
                if leg.role is Role.CALLER and call.end_reason is None:
                    call = self._put(replace(self._calls[call.call_id], end_reason=EndReason.TELEPHONY_LOST))
                self._leg_ended(leg.leg_id, Outcome.UNREACHABLE)
            elif leg.state is LegState.RINGING and present is not None and present.up:
                self._leg_answered(leg.leg_id)
        call = self._calls.get(call.call_id, call)
        if call.phase is Phase.ENDED or not call.caller_leg.alive:
            return
        if call.phase is Phase.WAITING and not call.others:
            # An engine that has just started has no place in the line for him yet.
            if self._routing.position(call.call_id) is None:
                self._out.append(Wait(call.caller_leg.leg_id, Meanwhile.MUSIC))
                self._seek_agent(call)
        elif call.phase in (Phase.IN_FLOW, Phase.AFTER) and call.call_id not in self._steps:
            if call.end_reason in (EndReason.COMPLETED, EndReason.ENDED_BY_FLOW):
                self._hang_up(call.caller_leg.leg_id)
            elif call.cursor is None:
                self._end_for_caller(call)
            else:
                self._flow_on(call, ivr.Started())

    def _adopt(self, leg: LegSeen) -> None:
        """A caller who came while no engine was there; he has waited long enough for a greeting."""
        flow = self._by_number.get(leg.dialled)
        call = self._new_call(CallId(leg.leg_id), leg.caller, leg.dialled, flow)
        call = self._put(call.with_step(self._now, StepKind.ADOPTED, detail=leg.dialled))
        if flow is None:
            self._say_then_hang_up(call, "system_trouble")
        else:
            self._enter_flow(call, flow)

    def _release_stale_agents(self) -> None:
        for agent in list(self._agents.values()):
            call = self._calls.get(agent.call_id) if agent.call_id else None
            leg = call.leg(agent.leg_id) if call and agent.leg_id else None
            if (agent.state in _IN_CALL and (leg is None or not leg.alive)) or (
                agent.state is AgentState.WRAP_UP and agent.wrap_up_until is None
            ):
                self._back(agent)

    # --- agents ---------------------------------------------------------------------------------------------

    def _put_agent(self, agent: Agent) -> Agent:
        agent = replace(agent, version=agent.version + 1)
        self._agents[agent.user_id] = agent
        self._changed_agents[agent.user_id] = agent
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
            self._timers.cancel(Timer("wrap_up", agent.user_id))
        if state is AgentState.READY:
            self._routing.agent_free(agent)
            self._seek_call(agent)
        else:
            self._routing.agent_taken(agent.user_id)
        if old_call is not None and old_call != call_id:
            self._forget_if_done(old_call)

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
        kept = {profile.user_id for profile in event.profiles}
        for profile in event.profiles:
            known = self._agents.get(profile.user_id) or Agent(profile)
            reachable = profile.phone in self._phones
            self._agents[profile.user_id] = replace(known, profile=profile, phone_reachable=reachable)
        for user_id in [u for u, agent in self._agents.items() if u not in kept and agent.call_id is None]:
            self._routing.agent_taken(user_id)
            del self._agents[user_id]
        self._by_phone = {a.profile.phone: u for u, a in self._agents.items() if a.profile.phone}
        for agent in list(self._agents.values()):
            if agent.state is AgentState.READY:
                self._routing.agent_free(agent)
                self._seek_call(agent)

    def _flows_changed(self, flows: Iterable[ivr.Flow]) -> None:
        in_use = {(call.line, call.flow_version) for call in self._calls.values()}
        self._line_flow = {flow.line: flow for flow in flows}
        self._by_number = {number: flow for flow in self._line_flow.values() for number in flow.numbers}
        current = {(flow.line, flow.version): flow for flow in self._line_flow.values()}
        self._flows = current | {key: flow for key, flow in self._flows.items() if key in in_use}

    # --- deadlines ------------------------------------------------------------------------------------------

    def _due(self, timer: Timer) -> None:
        subject = timer.subject
        if timer.kind == "wrap_up":
            self._back(self._agents[UserId(subject)])
            return
        if timer.kind in ("ring", "gone"):
            call = self._calls.get(call_id_of(LegId(subject)))
            leg = call.leg(LegId(subject)) if call else None
            if call is None or leg is None or not leg.alive:
                return
            if timer.kind == "ring":
                self._cancel(call, leg, Outcome.NO_ANSWER)
            else:
                self._out.append(Alarm("leg_end_unseen", {"leg": leg.leg_id}))
                self._out.append(HangUp(leg.leg_id))
                self._leg_ended(leg.leg_id, leg.cancelled or Outcome.UNREACHABLE)
            return
        call = self._calls.get(CallId(subject))
        if call is None or call.phase is Phase.ENDED:
            return
        match timer.kind:
            case "collect":
                self._flow_on(call, ivr.TimedOut())
            case "announce":
                self._announce(call)
            case "max_wait":
                self._waited_too_long(call)
            case "alone":
                if call.phase is Phase.TALKING and call.caller_leg.alive and len(_up_together(call)) > 1:
                    for leg in call.others:
                        self._hang_up(leg.leg_id)

    def _waited_too_long(self, call: Call) -> None:
        if call.phase is not Phase.WAITING or call.others:
            return  # a phone is ringing for him: let it
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
            self._put_agent(replace(agent, after_call=state, after_reason=reason))
            self._withdraw_offer(self._agents[agent.user_id], Outcome.REFUSED)
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
        return self._timers.is_set(Timer("gone", leg.leg_id))

    def _hang_up_call(self, call: Call, *, to_rating: bool) -> None:
        for leg in call.others:
            if leg.up:
                self._hang_up(leg.leg_id)
            else:
                call = self._cancel(call, leg, Outcome.WITHDRAWN)
        self._searches.pop(call.call_id, None)
        if not call.caller_leg.alive:
            return
        if to_rating:
            self._talk_over(call)
        else:
            self._end_for_caller(call)

    def _hold(self, call: Call, leg: Leg) -> None:
        caller = call.caller_leg
        if not caller.alive:
            raise Refused(Reason.CALLER_GONE)
        if caller.place is Place.HELD:
            raise Refused(Reason.ALREADY_HELD)
        call = call.with_leg(replace(caller, place=Place.HELD))
        call = self._put(call.with_step(self._now, StepKind.HELD, leg_id=leg.leg_id, user_id=leg.user_id))
        self._arrange(call)
        self._show_held(call)

    def _resume(self, call: Call, leg: Leg) -> None:
        caller = call.caller_leg
        if not caller.alive:
            raise Refused(Reason.CALLER_GONE)
        if caller.place is not Place.HELD:
            raise Refused(Reason.NOT_HELD)
        call = self._together(call, caller.leg_id)
        call = self._put(call.with_step(self._now, StepKind.RESUMED, leg_id=leg.leg_id, user_id=leg.user_id))
        self._arrange(call)
        self._show_held(call)

    def _show_held(self, call: Call) -> None:
        """Agents in the call show whether their caller hears music."""
        held = call.caller_leg.alive and call.caller_leg.place is Place.HELD
        for leg in call.others:
            if leg.up and leg.user_id is not None:
                agent = self._agents[leg.user_id]
                state = AgentState.HELD if held else AgentState.TALKING
                if agent.leg_id == leg.leg_id and agent.state is not state:
                    self._become(agent, state, call_id=agent.call_id, leg_id=agent.leg_id)

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
                if not any(target.value in a.profile.skills for a in self._agents.values()):
                    raise Refused(Reason.NO_SUCH_SKILL, target.value)
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
        if any(not other.up for other in call.others):
            raise Refused(Reason.ALREADY_INVITING)
        rung = self._summon(call, target, by=by, privately=privately)
        call = self._calls[call_id]
        if rung is not None and privately and call.caller_leg.place is Place.TOGETHER:
            self._hold(call, leg)

    def _summon(self, call: Call, target: Target, *, by: UserId, privately: bool) -> LegId | None:
        """Ring the target, or the best with the skill; None when that failed at once."""
        if target.kind is not TargetKind.SKILL:
            return self._ring_target(call, target, by=by)
        search = _Search(target.value, by, privately, set())
        if self._candidate(search) is None:
            # Nobody to ring is an outcome too: the busy ones are tried once so that the report tells why.
            holder = min(
                (a for a in self._agents.values() if target.value in a.profile.skills and a.user_id != by),
                key=lambda a: (not a.phone_reachable, a.user_id),
                default=None,
            )
            if holder is None:
                raise Refused(Reason.NOBODY_FREE, target.value)
            return self._ring_target(call, Target(TargetKind.USER, holder.user_id), by=by)
        self._searches[call.call_id] = search
        self._search_on(call)
        return next((leg.leg_id for leg in self._calls[call.call_id].others if not leg.up), None)

    def _merge(self, call: Call, leg: Leg) -> None:
        if not call.caller_leg.alive:
            raise Refused(Reason.CALLER_GONE)
        if sum(other.up for other in call.others) < 2:
            raise Refused(Reason.NOBODY_TO_MERGE)
        up = [other.leg_id for other in call.legs if other.up]
        call = self._together(call, *up)
        call = self._put(call.with_step(self._now, StepKind.JOINED, leg_id=leg.leg_id, user_id=leg.user_id))
        self._arrange(call)
        self._show_held(call)

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
        call, leg = self._in_call(by, call_id)
        staying = [o for o in call.others if o.leg_id != leg.leg_id and o.cancelled is None]
        if not staying or not call.caller_leg.alive:
            raise Refused(Reason.NOBODY_LEFT)
        self._go(call, leg)

    def _go(self, call: Call, leg: Leg) -> None:
        """Take the agent out; caller and whoever is up go on together, or the caller waits for who is ringing."""
        remaining = [o for o in call.others if o.leg_id != leg.leg_id and o.up]
        if remaining and call.caller_leg.place is Place.HELD:
            call = self._together(call, call.caller_leg.leg_id, *(o.leg_id for o in remaining))
            # The leaving leg stays where it is until its hang-up arrives, a few milliseconds later.
            call = self._put(call)
            self._arrange(call)
            self._show_held(call)
        self._hang_up(leg.leg_id)

    def _transfer(self, by: UserId, call_id: CallId, target: Target) -> None:
        call, leg = self._mine(by, call_id)
        target = self._checked(by, call, target)
        caller = call.caller_leg
        if not caller.alive:
            raise Refused(Reason.CALLER_GONE)
        if any(other.leg_id != leg.leg_id for other in call.others):
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
            self._hang_up(leg.leg_id)
            self._requeue(moved)
            return
        if self._summon(moved, target, by=by, privately=True) is None:
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
        if request.disposition not in self._dispositions:
            raise Refused(Reason.UNKNOWN_DISPOSITION, request.disposition)
        call = replace(call, disposition=request.disposition, note=request.note)
        self._put(
            call.with_step(self._now, StepKind.DISPOSED, user_id=request.by, detail=request.disposition)
        )
        if agent.state is AgentState.WRAP_UP and not request.more_time:
            self._back(agent)


def _role_of(profile: Profile) -> Role:
    return Role.AGENT if UserRole.AGENT in profile.roles else Role.SPECIALIST


def _with(handled_by: tuple[UserId, ...], leg: Leg) -> tuple[UserId, ...]:
    if leg.role is not Role.AGENT or leg.user_id is None or leg.user_id in handled_by:
        return handled_by
    return (*handled_by, leg.user_id)


def _up_together(call: Call) -> list[Leg]:
    return [leg for leg in call.legs if leg.up and leg.place is Place.TOGETHER]
