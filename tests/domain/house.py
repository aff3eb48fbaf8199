"""A contact centre with a clock, a directory and a hotline, for tests that read given, when, then."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from callcenter.domain import ivr
from callcenter.domain.agents import Agent, AgentState, Profile, Queue, UserRole
from callcenter.domain.calls import Call, CallId, EndReason, LegId, Now, Outcome, QueueId, UserId
from callcenter.domain.centre import ContactCentre, Policy
from callcenter.domain.messages import (
    CallArrived,
    DirectoryChanged,
    Effect,
    Event,
    FlowsChanged,
    LegAnswered,
    LegEnded,
    LegSeen,
    LegWas,
    PhoneSeen,
    Play,
    PromptsEnded,
    Request,
    SaveAgent,
    SaveCall,
    SetReady,
    Target,
    TargetKind,
    TelephonyResynced,
    Unattended,
)
from callcenter.domain.messages import Ring as RingEffect

E = TypeVar("E")

MONDAY = datetime(2026, 10, 12, 2, 0, tzinfo=UTC)
"""Ten in the morning in Shanghai."""

HOTLINE, ENGLISH = QueueId("hotline"), QueueId("english")
QUEUES = (
    Queue(HOTLINE, {"zh": "热线"}, skill="hotline", offer_seconds=15, wrap_up_seconds=30, max_waiting=3),
    Queue(ENGLISH, {"en": "English"}, skill="english", offer_seconds=10, wrap_up_seconds=60),
)


def person(user_id: str, phone: str | None, role: UserRole = UserRole.AGENT, **skills: int) -> Profile:
    return Profile(UserId(user_id), user_id, frozenset({role}), phone, skills)


ZHANG = person("zhang", "1001", hotline=3)
LI = person("li", "1002", hotline=3)
WANG = person("wang", "1003", hotline=5, english=2)
TAX1 = person("tax1", "8001", UserRole.SPECIALIST, tax=5)
TAX2 = person("tax2", "8002", UserRole.SPECIALIST, tax=3)
LEADER = person("leader", None, UserRole.LEADER)
EVERYBODY = (ZHANG, LI, WANG, TAX1, TAX2, LEADER)
NUMBER = "110"


def node(name: str) -> ivr.NodeId:
    return ivr.NodeId(name)


def flow(
    line: str, start: str, nodes: dict[str, ivr.Node], *, after: str | None = None, version: str = "1"
) -> ivr.Flow:
    return ivr.Flow(
        line,
        {"zh": line},
        (line,),
        node(start),
        node(after) if after else None,
        {node(name): what for name, what in nodes.items()},
        version,
    )


CLOSING: dict[str, ivr.Node] = {
    "message": ivr.TakeMessage(("leave_message",), node("bye"), saved=("saved",), min_seconds=2),
    "rating": ivr.AskRating(("rating_ask",), node("bye"), thanks=("rating_thanks",)),
    "bye": ivr.Play(("goodbye",), node("end")),
    "end": ivr.HangUp(),
}
HOTLINE_FLOW = flow(
    "12345",
    "hello",
    {
        "hello": ivr.Play(("welcome",), node("person")),
        "person": ivr.EnterQueue(
            "hotline", node("message"), on_full=node("bye"), announce_every_seconds=30, max_wait_seconds=600
        ),
        **CLOSING,
    },
    after="rating",
)
SILENT_FLOW = flow("96500", "person", {"person": ivr.EnterQueue("hotline", node("end")), "end": ivr.HangUp()})
URGENT_FLOW = flow(
    "7220000",
    "person",
    {
        "person": ivr.EnterQueue(
            "hotline", node("end"), head_start_seconds=60, announce_every_seconds=10, max_wait_seconds=45
        ),
        "end": ivr.HangUp(),
    },
)
MENU_FLOW = flow(
    "12346",
    "menu",
    {
        "menu": ivr.Menu(
            ("menu",),
            {
                "1": node("person"),
                "2": node("english"),
                "3": node("direct"),
                "4": node("police"),
                "5": node("message"),
            },
            ("again",),
            ("invalid",),
            node("person"),
        ),
        "person": ivr.EnterQueue("hotline", node("message")),
        "english": ivr.Transfer(ivr.TransferTo.QUEUE, "english", node("message")),
        "direct": ivr.Transfer(ivr.TransferTo.AGENT, "wang", node("message")),
        "police": ivr.Transfer(ivr.TransferTo.NUMBER, NUMBER, node("message")),
        **CLOSING,
    },
    after="rating",
)
FLOWS = (HOTLINE_FLOW, SILENT_FLOW, URGENT_FLOW, MENU_FLOW)


def directory(profiles: Iterable[Profile] = EVERYBODY, queues: Iterable[Queue] = QUEUES) -> DirectoryChanged:
    return DirectoryChanged(
        tuple(profiles), tuple(queues), frozenset({"lunch"}), frozenset({"enquiry"}), frozenset({NUMBER})
    )


def specialist(user_id: str) -> Target:
    return Target(TargetKind.USER, user_id)


def skill(name: str) -> Target:
    return Target(TargetKind.SKILL, name)


def queue(name: str) -> Target:
    return Target(TargetKind.QUEUE, name)


def outside(number: str = NUMBER) -> Target:
    return Target(TargetKind.NUMBER, number)


class House:
    """Holds the centre and the clock; every verb returns the effects it had, without what is only for the journal."""

    def __init__(self, *, profiles: Sequence[Profile] = EVERYBODY, policy: Policy | None = None) -> None:
        self.policy = policy
        self.now = Now(1000.0, MONDAY)
        self.saved_calls: dict[CallId, Call] = {}
        self.saved_agents: dict[UserId, Agent] = {}
        self._calls = 0
        self._profiles = profiles
        self.centre = ContactCentre(policy)
        self.handle(directory(profiles))
        self.handle(FlowsChanged(FLOWS))
        self.handle(TelephonyResynced((), frozenset(p.phone for p in profiles if p.phone)))

    # --- turns

    def handle(self, event: Event) -> list[Effect]:
        return self._kept(self.centre.handle(event, self.now))

    def asks(self, request: Request) -> list[Effect]:
        return self._kept(self.centre.ask(request, self.now))

    def gives_up(self, failed: Event) -> list[Effect]:
        return self._kept(self.centre.give_up(failed, self.now))

    def later(self, seconds: float) -> list[Effect]:
        """Let time pass, each deadline served at its time."""
        until = self.now.seconds + seconds
        effects = []
        while (due := self.centre.next_deadline()) is not None and due <= until:
            self._tick(max(due, self.now.seconds))
            effects += self._kept(self.centre.advance(self.now))
        self._tick(until)
        return effects

    def _tick(self, seconds: float) -> None:
        self.now = Now(seconds, self.now.utc + timedelta(seconds=seconds - self.now.seconds))

    def _kept(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, SaveCall):
                self.saved_calls[effect.call.call_id] = effect.call
            elif isinstance(effect, SaveAgent):
                self.saved_agents[effect.agent.user_id] = effect.agent
        return [effect for effect in effects if not isinstance(effect, SaveCall | SaveAgent)]

    def restarts(
        self,
        legs: Sequence[LegSeen],
        *,
        phones: Iterable[str] | None = None,
        ended: Mapping[LegId, LegWas] | None = None,
        unattended: tuple[Unattended, ...] = (),
    ) -> list[Effect]:
        """A new engine takes up the records, then the telephony says what lives."""
        self.centre = ContactCentre(self.policy)
        self.handle(directory(self._profiles))
        self.handle(FlowsChanged(FLOWS))
        wrapping_up = {a.call_id for a in self.saved_agents.values() if a.state is AgentState.WRAP_UP}
        calls = [
            call
            for call in self.saved_calls.values()
            if call.ended_at is None or call.call_id in wrapping_up or call.end_reason is EndReason.FAULT
        ]
        self.centre.restore(calls, self.saved_agents.values(), self.now)
        return self.resyncs(legs, phones=phones, ended=ended, unattended=unattended)

    def resyncs(
        self,
        legs: Sequence[LegSeen],
        *,
        phones: Iterable[str] | None = None,
        ended: Mapping[LegId, LegWas] | None = None,
        unattended: tuple[Unattended, ...] = (),
    ) -> list[Effect]:
        known = frozenset(p.phone for p in self._profiles if p.phone) if phones is None else frozenset(phones)
        return self.handle(TelephonyResynced(tuple(legs), known, ended or {}, unattended))

    # --- what happens

    def ready(self, *users: Profile) -> None:
        for user in users:
            self.asks(SetReady(user.user_id))
            self.later(1)

    def new_call_id(self) -> CallId:
        self._calls += 1
        return CallId(f"ast1-1763763843.{self._calls}")

    def arrives(self, dialled: str = "96500", caller: str = "13800138000") -> CallId:
        call_id = self.new_call_id()
        self.handle(CallArrived(call_id, caller, dialled))
        return call_id

    def answers(self, leg_id: LegId) -> list[Effect]:
        return self.handle(LegAnswered(leg_id))

    def ends(self, leg_id: str, outcome: Outcome = Outcome.UNREACHABLE) -> list[Effect]:
        return self.handle(LegEnded(LegId(leg_id), outcome))

    def prompts_end(self, effects: Iterable[Effect]) -> list[Effect]:
        play = only(Play, effects)
        return self.handle(PromptsEnded(play.leg_id, play.play_id))

    def phone(self, user: Profile, *, reachable: bool) -> list[Effect]:
        return self.handle(PhoneSeen(user.phone or "", reachable))

    def talking(self, user: Profile = ZHANG, dialled: str = "96500") -> tuple[CallId, LegId]:
        """A caller who talks with this agent."""
        self.ready(user)
        call_id = self.arrives(dialled)
        leg = leg_id(call_id, 2)
        self.answers(leg)
        return call_id, leg

    # --- what is

    def call(self, call_id: CallId) -> Call:
        """The call as last saved: also an ended one."""
        return self.saved_calls[call_id]

    def agent(self, user: Profile) -> Agent:
        return self.centre.agents[user.user_id]

    def waiting(self, queue_id: QueueId = HOTLINE) -> int:
        return next(s.waiting for s in self.centre.queue_status(self.now) if s.queue_id == queue_id)


def leg_id(call_id: CallId, number: int) -> LegId:
    return LegId(f"{call_id}-{number}")


def only(kind: type[E], effects: Iterable[object]) -> E:
    """The one effect of this kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, f"{len(found)} of {kind.__name__} in {effects}"
    return found[0]


def rung(effects: Iterable[object]) -> list[tuple[LegId, str]]:
    """Which legs were rung where."""
    return [(e.leg_id, e.address) for e in effects if isinstance(e, RingEffect)]


def with_phone(profile: Profile, phone: str | None) -> Profile:
    return replace(profile, phone=phone)
