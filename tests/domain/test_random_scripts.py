"""Anybody does anything at any time: what must hold after every event, and that nothing is left in the end.

The telephony here obeys effects as Asterisk and the dialplan do (asterisk_conf/extensions.conf.j2): latencies, phones
that answer, refuse or are not there, plain bridges that let go of the one who is left, rooms that do not. A second
kind of it loses one event in forty.

``LONG_EVENTS=1000000 pytest tests/domain/test_random_scripts.py -k long`` runs as many events.
"""

import heapq
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from callcenter.domain.agents import Agent, AgentState
from callcenter.domain.calls import (
    Call,
    CallId,
    EndReason,
    LegId,
    LegState,
    Now,
    Outcome,
    Phase,
    Place,
    Role,
    StepKind,
    call_id_of,
)
from callcenter.domain.centre import ContactCentre
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
    LegSeen,
    LogOut,
    Merge,
    MessageEnded,
    Mute,
    PhoneSeen,
    Play,
    PromptsEnded,
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
    TelephonyLost,
    TelephonyResynced,
    TicketOpened,
    Transfer,
    Wait,
    WrapUp,
)
from callcenter.engine import SteadyClock
from tests.domain.house import (
    EVERYBODY,
    FLOWS,
    LEADER,
    MONDAY,
    QUEUES,
    directory,
    outside,
    queue,
    skill,
    specialist,
    with_phone,
)

PEOPLE = [p for p in EVERYBODY if p.phone is not None]
IN_CALL = (AgentState.OFFERED, AgentState.TALKING, AgentState.HELD)
RESTING = (AgentState.READY, AgentState.NOT_READY, AgentState.LOGGED_OUT)
ACTS = 38
TARGETS = [
    *(specialist(p.user_id) for p in EVERYBODY),
    skill("tax"),
    skill("hotline"),
    skill("none"),
    queue("hotline"),
    queue("english"),
    outside(),
    outside("13800138000"),
]


@dataclass
class Channel:
    """A leg as the telephony has it."""

    leg_id: LegId
    up: bool
    hears: str
    """prompt, message, music, quiet, bridge, room, hold, let_go, ringing, answered"""
    silent_since: float | None = None
    peer: LegId | None = None
    moves: int = 0
    """Grows whenever the leg is put elsewhere: what was planned for the earlier place is void."""


@dataclass
class City:
    """The centre, a telephony that obeys it, and the people who use both."""

    rng: random.Random
    loss: float = 0.0
    now: float = 0.0
    centre: ContactCentre = field(default_factory=ContactCentre)
    channels: dict[LegId, Channel] = field(default_factory=dict)
    agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    records: dict[CallId, Call] = field(default_factory=dict)
    agent_records: dict[str, Agent] = field(default_factory=dict)
    reachable: set[str] = field(default_factory=lambda: {p.phone or "" for p in PEOPLE})
    connected: bool = True
    list_awaited: bool = False
    """A new engine has its records, but no list yet of what lives."""
    numbers: int = 0
    planned: int = 0
    events: int = 0
    last_order: float = 0.0
    log: list[str] = field(default_factory=list)
    dead_since: dict[LegId, float] = field(default_factory=dict)
    over: dict[CallId, Call] = field(default_factory=dict)
    """The records of ended calls that a new engine is told of."""
    wall_ahead: float = 0.0
    """What has been done to the wall clock."""
    lonely_since: dict[CallId, float] = field(default_factory=dict)
    alarms: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = SteadyClock(self.clocks)
        self.tell_all()
        self.tell(TelephonyResynced((), frozenset(self.reachable)))

    # --- the clock

    def clocks(self) -> Now:
        return Now(5000.0 + self.now, MONDAY + timedelta(seconds=self.now + self.wall_ahead))

    def plan(self, delay: float, what: Callable[[], None]) -> None:
        self.planned += 1
        heapq.heappush(self.agenda, (self.now + delay, self.planned, what))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due = self.centre.next_deadline()
            due = None if due is None else max(self.now, due - 5000.0)
            planned = self.agenda[0][0] if self.agenda else None
            first = min((t for t in (due, planned) if t is not None), default=None)
            if first is None or first > until:
                break
            self.now = max(self.now, first)
            if planned is not None and planned <= first:
                heapq.heappop(self.agenda)[2]()
            else:
                self.carry_out(self.centre.advance(self.clock()))
                self.check()
        self.now = until

    def note(self, message: object) -> None:
        """For the reader of a failure."""
        match message:
            case DirectoryChanged() | FlowsChanged():
                text = type(message).__name__
            case SaveCall(call):
                legs = " ".join(f"{g.leg_id[-4:]}:{g.state}/{g.place}" for g in call.legs if g.alive)
                text = f"   = {call.call_id} {call.phase} {legs}"
            case SaveAgent(agent):
                text = f"   = {agent.user_id} {agent.state} {agent.leg_id} then {agent.after_call}"
            case Record(_, leg_id):
                text = f"   -> Record {leg_id}"
            case _:
                text = str(message)
        self.log.append(f"{self.now:.3f} {text}")

    # --- between centre and telephony

    def tell(self, event: Event) -> None:
        self.events += 1
        self.note(event)
        self.carry_out(self.centre.advance(self.clock()))
        self.carry_out(self.centre.handle(event, self.clock()))
        self.check()

    def say(self, event: Event) -> None:
        """The telephony tells, unless the line to it is cut or the event gets lost."""
        if self.connected and self.rng.random() >= self.loss:
            self.tell(event)

    def ask(self, request: Request) -> None:
        self.events += 1
        self.note(request)
        before = (dict(self.centre.calls), dict(self.centre.agents))
        self.carry_out(self.centre.advance(self.clock()))
        before = (dict(self.centre.calls), dict(self.centre.agents))
        try:
            effects = self.centre.ask(request, self.clock())
        except Refused:
            assert before == (dict(self.centre.calls), dict(self.centre.agents)), "refused, yet changed"
            return
        self.carry_out(effects)
        self.check()

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.note(effect)
            match effect:
                case SaveCall(call):
                    known = self.records.get(call.call_id) or self.over.get(call.call_id)
                    if known is not None:
                        check_change(known, call)
                    if call.answered_at is not None and (known is None or known.answered_at is None):
                        self.plan(
                            self.latency(), partial(self.tell, TicketOpened(call.call_id, "20261012-000001"))
                        )
                    self.records[call.call_id] = call
                    if call.phase is Phase.ENDED:
                        check_record(call)
                        self.over[call.call_id] = self.records.pop(call.call_id)
                case SaveAgent(agent):
                    self.agent_records[agent.user_id] = agent
                case Alarm(key):
                    self.alarms[key] = self.alarms.get(key, 0) + 1
                case FallBack():
                    raise AssertionError("no call is given up")
                case _:
                    self.order(effect)
        del self.log[:-400]

    # --- the telephony

    def latency(self) -> float:
        return self.rng.choice((0.0, 0.001, 0.02, 0.2))

    def order(self, effect: Effect) -> None:
        """Actions arrive a little later, in their order."""
        self.last_order = max(self.last_order, self.now + self.latency() / 10)
        engine = self.centre
        heard = lambda: self.connected and self.centre is engine  # noqa: E731  # what a dead engine said is lost with its line
        self.plan(self.last_order - self.now, lambda: self.obey(effect) if heard() else None)

    def put(self, leg_id: LegId, hears: str, peer: LegId | None = None) -> Channel:
        channel = self.channels[leg_id]
        old = self.channels.get(channel.peer) if channel.peer else None
        channel.moves += 1
        channel.hears, channel.peer, channel.silent_since = hears, peer, None
        if old is not None and old.peer == leg_id:
            old.peer = None
            self.let_go(old)
        return channel

    def let_go(self, channel: Channel, *, at_once: bool = False) -> None:
        """Its peer left a plain bridge: a caller says so and waits three seconds, a party of ours is hung up."""
        channel.moves += 1
        moves = channel.moves
        channel.hears = "let_go"
        caller = LegId(call_id_of(channel.leg_id)) == channel.leg_id
        if caller and at_once:
            self.say(ConversationOver(channel.leg_id))
        elif caller:
            self.plan(0.01, lambda: self.say(ConversationOver(channel.leg_id)))
        self.plan(
            3.0 if caller else 0.0, lambda: self.if_there(channel, moves, lambda: self.end(channel.leg_id))
        )

    def if_there(self, channel: Channel, moves: int, what: Callable[[], None]) -> None:
        if self.channels.get(channel.leg_id) is channel and channel.moves == moves:
            what()

    def end(self, leg_id: LegId, outcome: Outcome = Outcome.UNREACHABLE) -> None:
        channel = self.channels.pop(leg_id, None)
        if channel is None:
            return
        self.dead_since[leg_id] = self.now
        peer = self.channels.get(channel.peer) if channel.peer else None
        if peer is not None and peer.peer == leg_id:
            peer.peer = None
            # The dialplan of the one who is left and the end of the other are told in either order.
            self.let_go(peer, at_once=self.rng.random() < 0.5)
        self.say(LegEnded(leg_id, outcome))

    def obey(self, effect: Effect) -> None:
        rng = self.rng
        match effect:
            case Play(leg_id, play_id, prompts, then):
                assert prompts
                if leg_id in self.channels:
                    channel = self.put(leg_id, "prompt")
                    moves = channel.moves

                    def over() -> None:
                        channel.hears = str(then)
                        self.say(PromptsEnded(leg_id, play_id))

                    self.plan(rng.uniform(0.02, 6), lambda: self.if_there(channel, moves, over))
            case Wait(leg_id, hearing):
                if leg_id in self.channels:
                    self.put(leg_id, str(hearing))
            case TakeMessage(_, leg_id, seconds):
                if leg_id in self.channels:
                    channel = self.put(leg_id, "message")
                    moves = channel.moves

                    def spoken() -> None:
                        channel.hears = "quiet"
                        self.say(MessageEnded(leg_id))

                    self.plan(rng.uniform(0.1, seconds), lambda: self.if_there(channel, moves, spoken))
            case Ring():
                self.ring(effect)
            case Arrange(call_id, together, held):
                self.arrange(call_id, together, held)
            case HangUp(leg_id):
                outcome = rng.choice((Outcome.NO_ANSWER, Outcome.UNREACHABLE))
                self.end(leg_id, outcome)
            case Mute() | Record():
                pass

    def ring(self, effect: Ring) -> None:
        leg_id = effect.leg_id
        assert leg_id not in self.channels
        if effect.role is not Role.OUTSIDE and effect.address not in self.reachable:
            self.plan(self.latency(), lambda: self.say(LegEnded(leg_id, Outcome.UNREACHABLE)))
            self.dead_since[leg_id] = self.now
            return
        channel = Channel(leg_id, False, "ringing")
        self.channels[leg_id] = channel
        self.plan(effect.seconds, lambda: None if channel.up else self.end(leg_id, Outcome.NO_ANSWER))

    def answer(self, leg_id: LegId) -> None:
        channel = self.channels.get(leg_id)
        if channel is None or channel.up:
            return
        channel.up, channel.hears = True, "answered"
        moves = channel.moves
        self.plan(20.0, lambda: self.if_there(channel, moves, lambda: self.end(leg_id)))
        self.say(LegAnswered(leg_id))

    def arrange(self, call_id: CallId, together: tuple[LegId, ...], held: tuple[LegId, ...]) -> None:
        for leg_id in (*together, *held):
            channel = self.channels.get(leg_id)
            if channel is None or not channel.up:
                self.plan(self.latency(), lambda: self.say(ArrangeFailed(call_id, "no such channel")))
                return
        in_room = any(self.channels[leg_id].hears == "room" for leg_id in (*together, *held))
        if len(together) == 2 and not held and not in_room:
            one, two = together
            if self.channels[one].peer != two:
                self.put(one, "bridge", two)
                self.put(two, "bridge", one)
            return
        # Everybody at once, so that nobody is let go.
        for leg_id in (*together, *held):
            self.channels[leg_id].peer = None
        for leg_id in together:
            self.put(leg_id, "room")
        for leg_id in held:
            self.put(leg_id, "hold")

    # --- what people do

    def arrives(self, dialled: str) -> None:
        if len(self.centre.calls) >= 9:
            return
        self.numbers += 1
        call_id = CallId(f"ast1-17.{self.numbers}")
        channel = Channel(LegId(call_id), True, "music")
        self.channels[LegId(call_id)] = channel
        self.say(CallArrived(call_id, "13800138000", dialled))

    def some(self, pick: int, *, up: bool | None = None, caller: bool | None = None) -> LegId | None:
        found = [
            leg_id
            for leg_id, channel in self.channels.items()
            if (up is None or channel.up is up)
            and (caller is None or (LegId(call_id_of(leg_id)) == leg_id) is caller)
        ]
        return found[pick % len(found)] if found else None

    def act(self, what: int, pick: int) -> None:
        """One of everything that can happen."""
        person = PEOPLE[pick % len(PEOPLE)]
        match what % ACTS:
            case 0 | 1 | 2:
                self.arrives(("12345", "96500", "7220000", "12346", "12346", "000")[pick % 6])
            case 3 | 4 | 5 | 6 | 7 | 8:
                if (leg := self.some(pick, up=False)) is not None:
                    self.answer(leg)
            case 9:
                if (leg := self.some(pick, up=False)) is not None:
                    self.end(leg, (Outcome.BUSY, Outcome.REFUSED, Outcome.UNREACHABLE)[pick % 3])
            case 10:
                if (leg := self.some(pick, caller=pick % 2 == 0, up=True)) is not None:
                    self.end(leg)
            case 11:
                if (leg := self.some(pick, caller=True)) is not None:
                    self.say(DigitPressed(leg, "12345*"[pick % 6]))
            case 12 | 13 | 14 | 15 | 16:
                self.ask(SetReady(person.user_id))
            case 17:
                self.now_and_then(pick)
            case 18:
                if pick % 4 == 0 and (leg := self.some(pick, caller=True)) is not None:
                    self.fall_back(leg)
                else:
                    self.say(late_event(self.rng, self.numbers))
            case 19:
                if (leg := self.some(pick, up=True)) is not None:
                    self.die(leg)
            case 20:
                if (leg := self.some(pick, caller=True)) is not None:
                    self.stray(leg)
            case _:
                self.steer(pick)

    def die(self, leg_id: LegId) -> None:
        """Whoever is at this leg is there no more and says nothing; what listens to his packets does."""
        channel = self.channels[leg_id]
        self.plan(4.0, lambda: self.say(LegDead(leg_id)) if self.channels.get(leg_id) is channel else None)

    def stray(self, leg_id: LegId) -> None:
        """A caller is elsewhere than he was sent; the audit sees it, as it sees those who only seem to be."""
        if self.channels[leg_id].hears in ("music", "quiet", "room") and self.rng.random() < 0.5:
            self.put(leg_id, self.rng.choice(("music", "quiet")))
        self.say(CallAstray(CallId(leg_id)))

    def fall_back(self, leg_id: LegId) -> None:
        """The dialplan missed a few heartbeats: a caller who talks with nobody is in the fallback queue."""
        if self.channels[leg_id].hears in ("music", "quiet"):
            self.put(leg_id, "music")
            self.say(FellBack(CallId(leg_id), "13800138000", "12345"))

    def now_and_then(self, pick: int) -> None:
        """What happens less often."""
        person, rest = PEOPLE[pick % len(PEOPLE)], pick // len(PEOPLE)
        match rest % 14:
            case 0 | 1 | 2 | 3:
                self.reachable ^= {person.phone or ""}
                self.say(PhoneSeen(person.phone or "", person.phone in self.reachable))
            case 4:
                self.ask(SetNotReady(person.user_id, "lunch"))
            case 5:
                self.ask(LogOut(person.user_id))
            case 6:
                self.ask(SetNotReady(person.user_id, "nonsense"))
                self.ask(SetReady(LEADER.user_id))
            case 7:
                self.tell(ConsoleLost(person.user_id))
            case 8 | 9:
                self.reorganise(pick)
            case 10:
                self.cut(pick)
            case 11:
                self.tell(Draining())
                self.plan(pick % 20, lambda: self.restart(pick))
            case 12:
                self.wall_ahead += (3600.0, -3600.0, 7.0, -7.0)[pick % 4]
            case _:
                self.restart(pick)

    def steer(self, pick: int) -> None:
        """Somebody asks something of a call: mostly of his own."""
        rng = random.Random(pick)
        agents = [a for a in self.centre.agents.values() if a.call_id is not None]
        if not agents:
            return
        talking = [a for a in agents if a.state in (AgentState.TALKING, AgentState.HELD)]
        agent = rng.choice(talking if talking and rng.random() < 0.9 else agents)
        by, call_id = agent.user_id, agent.call_id
        if rng.random() < 0.05:
            call_id = rng.choice([*self.centre.calls, CallId("ast1-1.0")])
        assert call_id is not None
        call = self.centre.calls.get(call_id)
        legs = [leg.leg_id for leg in call.legs] if call else [LegId("ast1-1.0-2")]
        requests: list[Request] = [
            HangUpCall(by, call_id, to_rating=rng.random() < 0.7),
            Hold(by, call_id),
            Resume(by, call_id),
            SetMute(by, call_id, rng.choice([None, *legs]), on=rng.random() < 0.5),
            Merge(by, call_id),
            *(Drop(by, call_id, leg) for leg in legs),
            *(Leave(by, call_id) for _ in range(3)),
            Transfer(by, call_id, rng.choice(TARGETS)),
            WrapUp(by, call_id, rng.choice(("enquiry", "nonsense")), more_time=rng.random() < 0.3),
            *(Invite(by, call_id, rng.choice(TARGETS), privately=rng.random() < 0.7) for _ in range(6)),
        ]
        self.ask(rng.choice(requests))

    def tell_all(self, change: int = 0) -> None:
        """The directory and the flows: as they are, or somebody or a queue is gone, a phone moved, a flow renewed."""
        profiles, queues, flows = EVERYBODY, QUEUES, FLOWS
        match change % 5:
            case 1:
                profiles = tuple(p for i, p in enumerate(EVERYBODY) if i != change % len(EVERYBODY))
            case 2:
                queues = QUEUES[change % 2 :]
            case 3:
                profiles = (with_phone(EVERYBODY[0], (None, "1009")[change % 2]), *EVERYBODY[1:])
            case 4:
                flows = tuple(replace(flow, version=str(change)) for flow in FLOWS)
        self.tell(directory(profiles, queues))
        self.tell(FlowsChanged(flows))

    def reorganise(self, pick: int) -> None:
        self.tell_all(pick)
        self.plan(60.0, self.tell_all)

    def cut(self, pick: int) -> None:
        """The line to the telephony is lost for a while."""
        if self.connected:
            self.tell(TelephonyLost("reset"))
            self.connected = False
            self.plan(0.1 + pick % 70 / 10, self.resync)

    def restart(self, pick: int) -> None:
        """The engine dies; a new one takes up what was saved, and some time later learns what is left of it."""
        self.connected, self.list_awaited = False, True
        self.centre = ContactCentre()
        wrapping_up = {a.call_id for a in self.agent_records.values() if a.state is AgentState.WRAP_UP}
        self.over = {
            call_id: call
            for call_id, call in self.over.items()
            if call_id in wrapping_up or call.end_reason is EndReason.FAULT
        }
        calls, agents = [*self.records.values(), *self.over.values()], list(self.agent_records.values())
        self.clock = SteadyClock(self.clocks)
        for at in [c.steps[-1].at for c in calls] + [a.since for a in agents if a.since is not None]:
            self.clock.not_before(at)
        self.carry_out([])
        self.centre.handle(directory(), self.clock())
        self.centre.handle(FlowsChanged(FLOWS), self.clock())
        self.centre.restore(calls, agents, self.clock())
        self.plan(pick % 70 / 10, self.resync)

    def resync(self) -> None:
        self.connected, self.list_awaited = True, False
        for channel in self.channels.values():
            channel.silent_since = None
        legs = tuple(LegSeen(c.leg_id, c.up, "13800138000", "12345") for c in self.channels.values())
        self.tell(TelephonyResynced(legs, frozenset(self.reachable)))

    # --- what must hold

    def check(self) -> None:
        try:
            self.check_centre()
            self.check_people()
        except AssertionError as error:
            error.add_note("\n".join(self.log[-60:]))
            raise

    def check_centre(self) -> None:
        centre = self.centre
        in_line = sum(status.waiting for status in centre.queue_status(self.clock()))
        waiting = 0
        claimed: dict[str, LegId] = {}
        for call in centre.calls.values():
            if call.phase is Phase.ENDED:
                wrapped_up = any(a.call_id == call.call_id for a in centre.agents.values())
                assert wrapped_up, f"kept for nobody: {call}"
                continue
            assert call.legs[0].role is Role.CALLER
            if call.phase is Phase.WAITING and not call.ringing and call.caller_leg.alive:
                waiting += 1
            assert len(call.ringing) <= 1 + sum(leg.cancelled is not None for leg in call.ringing), (
                "two at once"
            )
            for leg in call.others:
                if leg.user_id is not None:
                    assert leg.user_id not in claimed, f"{leg.user_id} is in two calls"
                    claimed[leg.user_id] = leg.leg_id
                    agent = centre.agents.get(leg.user_id)
                    assert agent is not None, f"{leg.user_id} left in a call"
                    assert (agent.call_id, agent.leg_id) == (call.call_id, leg.leg_id), f"{agent} and {leg}"
                if leg.up:
                    assert leg.answered_at is not None
                    assert leg.outcome is Outcome.JOINED
            assert (call.phase is Phase.TALKING) <= (call.answered_at is not None)
            assert not any(leg.up and leg.cancelled for leg in call.legs), "a cancel stands"
            times = [step.at for step in call.steps]
            assert times == sorted(times), "steps in order"
            self.check_company(call)
        for agent in centre.agents.values():
            if agent.state in IN_CALL:
                assert claimed.get(agent.user_id) == agent.leg_id, f"{agent} is in no call"
                leg = centre.calls[agent.call_id].leg(agent.leg_id)  # type: ignore[index,arg-type]
                assert leg is not None
                assert (leg.state is LegState.RINGING) == (agent.state is AgentState.OFFERED)
            elif agent.state is AgentState.WRAP_UP:
                assert agent.wrap_up_until is not None
                assert agent.wrap_up_until >= self.clock().seconds - 0.01, "wrap-up over"
            else:
                assert agent.call_id is None
                assert agent.leg_id is None
            if agent.state is AgentState.READY:
                assert agent.phone_reachable or self.list_awaited
        assert in_line == waiting or self.list_awaited, f"{waiting} wait, {in_line} in line"
        if centre.telephony_up:
            for status in centre.queue_status(self.clock()):
                assert not (status.waiting and status.ready), f"{status}: one waits, one is free"

    def check_company(self, call: Call) -> None:
        """A caller whom nobody can help, or a party left with nobody, is a matter of a moment."""
        caller, parties = call.caller_leg, call.parties
        if not caller.alive:
            lonely = len(parties) == 1
        else:
            fetches = any(leg.role is Role.AGENT for leg in parties)
            helped = fetches or (parties and caller.place is not Place.HELD)
            lonely = call.phase is Phase.TALKING and not call.ringing and not helped
        if not lonely or not self.connected:
            self.lonely_since.pop(call.call_id, None)
            return
        since = self.lonely_since.setdefault(call.call_id, self.now)
        assert self.now - since <= 5.3, f"nobody cares for {call}"

    def check_people(self) -> None:
        """Nobody in silence, nobody held by a dead leg, for more than five seconds."""
        if not self.connected:
            return
        slack = 0.3
        for channel in self.channels.values():
            call = self.centre.calls.get(call_id_of(channel.leg_id))
            if LegId(call_id_of(channel.leg_id)) != channel.leg_id or self.loss:
                continue
            company = any(
                c.hears == channel.hears and call_id_of(c.leg_id) == call_id_of(channel.leg_id)
                for c in self.channels.values()
                if c is not channel
            )
            alone = channel.hears == "let_go" or (channel.hears in ("bridge", "room") and not company)
            # A question waits up to eight seconds for a key.
            limit = 5.0 + slack if alone else 13.0 + slack if channel.hears == "quiet" else None
            if limit is None:
                channel.silent_since = None
            elif channel.silent_since is None:
                channel.silent_since = self.now
            else:
                assert self.now - channel.silent_since <= limit, f"{channel} hears nothing; {call}"
        for agent in self.centre.agents.values():
            leg_id = agent.leg_id
            if agent.state in IN_CALL and leg_id is not None and leg_id not in self.channels:
                dead = self.dead_since.get(leg_id)
                # What is lost of a ringing leg shows when the ringing is over; in a room, when the talk is over.
                patience = 5.0 + slack if not self.loss else 5.0 + slack + 25.0
                if dead is not None and (not self.loss or agent.state is AgentState.OFFERED):
                    assert self.now - dead <= patience, f"{agent} is held by a dead leg"

    def everybody_goes(self) -> None:
        """All hang up, time passes: nothing is left of any call."""
        if not self.connected:
            self.resync()
        self.run(70)
        for leg_id in list(self.channels):
            self.end(leg_id)
        self.run(1200)
        if self.loss:
            # What was lost for good is put right by the next resync.
            self.resync()
            self.run(1200)
        assert not self.channels, self.channels
        assert not self.centre.calls, "\n".join([str(self.centre.calls), *self.log])
        assert all(agent.state in RESTING for agent in self.centre.agents.values())
        assert all(s.waiting == 0 for s in self.centre.queue_status(self.clock()))
        assert self.centre.next_deadline() is None
        assert b"ast1-" not in pickle.dumps(self.centre), "a call is remembered"
        self.dead_since.clear()
        self.over.clear()


def late_event(rng: random.Random, numbers: int) -> Event:
    """Something late, twice or out of nowhere."""
    call_id = CallId(f"ast1-17.{rng.randint(max(1, numbers - 9), max(1, numbers + 1))}")
    leg_id = LegId(f"{call_id}-{rng.randint(2, 5)}")
    gone = LegId(f"ast1-1.{rng.randint(1, 9)}-2")
    return rng.choice(
        (
            LegAnswered(gone),
            LegEnded(gone, Outcome.BUSY),
            PromptsEnded(LegId(call_id), rng.randint(1, 5)),
            MessageEnded(LegId(call_id)),
            ArrangeFailed(call_id, "late"),
            ConversationOver(gone),
            DigitPressed(leg_id, "1"),
        )
    )


def check_record(call: Call) -> None:
    """An ended call's record is complete."""
    assert call.end_reason is not None
    assert call.ended_at is not None
    for leg in call.legs:
        assert leg.state is LegState.ENDED, f"{leg} of an ended call"
        assert leg.ended_at is not None
        if leg.role is Role.CALLER:
            assert leg.outcome is None
        else:
            assert leg.outcome is not None, f"{leg}: no outcome"
            assert (leg.outcome is Outcome.JOINED) == (leg.answered_at is not None), f"{leg}"
        times = [leg.asked_at, leg.answered_at, leg.joined_at, leg.ended_at]
        told = [at for at in times if at is not None]
        assert told == sorted(told), f"{leg}: times out of order"
    times = [call.arrived_at, *(step.at for step in call.steps)]
    assert times == sorted(times), f"{call}: times out of order"
    # Only the disposition comes later.
    assert call.ended_at == [step.at for step in call.steps if step.kind is StepKind.ENDED][-1]
    for at in (call.queued_at, call.answered_at):
        assert at is None or call.arrived_at <= at <= call.ended_at
    assert (call.answered_at is None) <= (call.end_reason is not EndReason.COMPLETED), "completed: with whom?"


def check_change(known: Call, call: Call) -> None:
    """A record grows and forgets nothing: what the store has written of it stays true."""
    assert call.version > known.version, "versions grow"
    assert call.arrived_at == known.arrived_at
    assert call.steps[: len(known.steps)] == known.steps, "a step is taken back"
    assert [leg.leg_id for leg in call.legs[: len(known.legs)]] == [leg.leg_id for leg in known.legs]
    if known.answered_at is not None:
        assert (call.answered_at, call.answered_by) == (known.answered_at, known.answered_by), (
            "a second ticket?"
        )


class Scripts(RuleBasedStateMachine):
    """Hypothesis looks for the shortest script that breaks something."""

    loss = 0.0

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.city = City(random.Random(seed), loss=self.loss)
        for person in PEOPLE[:4]:
            self.city.ask(SetReady(person.user_id))

    @rule(what=st.integers(0, ACTS - 1), pick=st.integers(0, 9999))
    def somebody_acts(self, what: int, pick: int) -> None:
        self.city.act(what, pick)

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.3, 2.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        self.city.run(seconds)

    def teardown(self) -> None:
        if hasattr(self, "city"):
            self.city.everybody_goes()


class LossyScripts(Scripts):
    loss = 0.025


QUICK = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestScripts = Scripts.TestCase
TestScripts.settings = QUICK
TestLossyScripts = LossyScripts.TestCase
TestLossyScripts.settings = QUICK


@pytest.mark.timeout(0)  # as long as LONG_EVENTS makes it
@pytest.mark.parametrize("loss", [0.0, 0.025])
def test_a_long_run_breaks_nothing(loss: float) -> None:
    total = int(os.environ.get("LONG_EVENTS", "20000"))
    events, seed = 0, 0
    while events < total:
        seed += 1
        rng = random.Random(seed)
        city = City(rng, loss=loss)
        try:
            for _ in range(2000):
                city.act(rng.randrange(ACTS), rng.randrange(10000))
                city.run(rng.choice((0.0, 0.005, 0.1, 1.0, 1.0, 5.0)))
            city.everybody_goes()
        except Exception as error:
            error.add_note(f"seed {seed}, loss {loss}")
            raise
        events += city.events
