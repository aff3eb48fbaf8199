"""A busy hotline for the pure core: whatever the centre says is answered as Asterisk and people would answer it.

Everything follows from the seed; a recorded hour can be played again to another centre, which then says the same.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from callcenter.domain.agents import AgentState, Profile, Queue, UserRole
from callcenter.domain.calls import CallId, LegId, Now, Outcome, QueueId, UserId
from callcenter.domain.centre import ContactCentre
from callcenter.domain.messages import (
    Arrange,
    CallArrived,
    ConversationOver,
    DigitPressed,
    DirectoryChanged,
    Effect,
    Event,
    FlowsChanged,
    HangUp,
    Hold,
    Invite,
    Leave,
    LegAnswered,
    LegEnded,
    Merge,
    MessageEnded,
    PhoneSeen,
    Play,
    PromptsEnded,
    Refused,
    Request,
    Resume,
    Ring,
    SaveAgent,
    SaveCall,
    SetReady,
    TakeMessage,
    Target,
    TargetKind,
    TelephonyResynced,
    TicketOpened,
    WrapUp,
)
from tests.domain.house import FLOWS, MONDAY

QUEUES = (
    Queue(QueueId("hotline"), {"zh": "热线"}, skill="hotline", wrap_up_seconds=20, max_waiting=10_000),
    Queue(QueueId("english"), {"zh": "英语"}, skill="english", wrap_up_seconds=20, max_waiting=10_000),
)
TALK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Said:
    """One message to the centre and its moment; None: a deadline was due."""

    message: Event | Request | None
    asked: bool
    now: Now


class Traffic:
    """Calls at a rate that keeps ``agents`` about four fifths busy."""

    def __init__(
        self,
        *,
        agents: int = 100,
        specialists: int = 20,
        seed: int = 1,
        record: bool = False,
        watch: Callable[[Effect], None] = lambda _: None,
    ) -> None:
        self._random = random.Random(seed)  # a benchmark, not a secret
        self._profiles = tuple(
            [_agent(number, english=number % 7 == 0) for number in range(agents)]
            + [_specialist(number) for number in range(specialists)]
        )
        self._watch = watch
        self._seconds_between = (TALK_SECONDS + 30) / (agents * 0.8)
        self._now = Now(1000.0, MONDAY)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._living: set[LegId] = set()
        self._open: set[CallId] = set()
        self._met: set[CallId] = set()
        self._ticketed: set[CallId] = set()
        self.record: list[Said] | None = [] if record else None
        self.said = self.arrived = self.ended = self.refused = 0
        self.centre = ContactCentre()
        self._tell(DirectoryChanged(self._profiles, QUEUES, frozenset({"lunch"}), frozenset({"enquiry"})))
        self._tell(FlowsChanged(FLOWS))
        self._tell(TelephonyResynced((), frozenset(p.phone for p in self._profiles if p.phone)))
        for profile in self._profiles:
            if UserRole.AGENT in profile.roles:
                self._ask(SetReady(profile.user_id))
        self._later(0, self._somebody_calls)

    def run(self, *, until_ended: int) -> None:
        """Go on until so many calls in all have ended."""
        while self.ended < until_ended:
            self.run_one()

    def run_one(self) -> None:
        """Do what is due next, and before it what the centre's deadlines are for."""
        seconds, _, act = heapq.heappop(self._due)
        while (due := self.centre.next_deadline()) is not None and due <= seconds:
            self._tick(due)
            if self.record is not None:
                self.record.append(Said(None, False, self._now))
            self._live(self.centre.advance(self._now))
        self._tick(seconds)
        act()

    # --- to the centre --------------------------------------------------------------------------------------

    def _tick(self, seconds: float) -> None:
        passed = max(0.0, seconds - self._now.seconds)
        self._now = Now(self._now.seconds + passed, self._now.utc + timedelta(seconds=passed))

    def _tell(self, event: Event) -> None:
        self._note(event, asked=False)
        self._live(self.centre.handle(event, self._now))

    def _ask(self, request: Request) -> None:
        try:
            effects = self.centre.ask(request, self._now)
        except Refused:  # a party left a moment ago
            self.refused += 1
            return
        self._note(request, asked=True)
        self._live(effects)

    def _note(self, message: Event | Request, *, asked: bool) -> None:
        self.said += 1
        if self.record is not None:
            self.record.append(Said(message, asked, self._now))

    # --- what the world does --------------------------------------------------------------------------------

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._due, (self._now.seconds + seconds, self._order, act))

    def _tell_later(self, seconds: float, leg: LegId, event: Event) -> None:
        def act() -> None:
            if leg in self._living:
                self._tell(event)

        self._later(seconds, act)

    def _ask_later(self, seconds: float, request: Request) -> None:
        self._later(seconds, lambda: self._ask(request))

    def _end_later(self, seconds: float, leg: LegId, outcome: Outcome = Outcome.BUSY) -> None:
        def act() -> None:
            if leg in self._living:
                self._living.discard(leg)
                self._tell(LegEnded(leg, outcome))

        self._later(seconds, act)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _somebody_calls(self) -> None:
        self.arrived += 1
        call_id = CallId(f"ast1-1763763843.{self.arrived}")
        leg = LegId(call_id)
        self._living.add(leg)
        self._open.add(call_id)
        if self._chance(0.08):
            self._end_later(self._random.uniform(1, 40), leg)  # has no patience
        if self._chance(0.2):
            self._tell(PhoneSeen(self._random.choice(self._profiles).phone or "", reachable=True))
        line = self._random.choices(("12345", "96500", "7220000", "12346"), (60, 15, 5, 20))[0]
        self._tell(CallArrived(call_id, f"138{self.arrived % 10**8:08}", line))
        self._later(self._random.expovariate(1 / self._seconds_between), self._somebody_calls)

    def _live(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._watch(effect)
            match effect:
                case Play(leg, play_id, prompts):
                    if any("menu" in name or "rating" in name for name in prompts) and self._chance(0.8):
                        self._tell_later(2.0, leg, DigitPressed(leg, "1"))
                    self._tell_later(4.0, leg, PromptsEnded(leg, play_id))
                case TakeMessage(leg_id=leg):
                    self._tell_later(15.0, leg, MessageEnded(leg))
                case Ring(leg_id=leg):
                    self._rings(leg)
                case HangUp(leg):
                    self._end_later(0.02, leg)
                case Arrange(call_id, together) if len(together) == 2 and call_id not in self._met:
                    self._met.add(call_id)
                    self._converse(call_id, together[0], together[1])
                case SaveAgent(agent) if agent.state is AgentState.NOT_READY:
                    self._ask_later(5.0, SetReady(agent.user_id))
                case SaveCall(call):
                    if call.ended_at is not None:
                        self.ended += call.call_id in self._open
                        self._open.discard(call.call_id)
                        self._met.discard(call.call_id)
                        self._ticketed.discard(call.call_id)
                    elif call.answered_at is not None and call.call_id not in self._ticketed:
                        self._ticketed.add(call.call_id)
                        opened = TicketOpened(call.call_id, f"20261012-{self.arrived:06}")
                        self._tell_later(0.05, call.caller_leg.leg_id, opened)
                case _:
                    pass

    def _rings(self, leg: LegId) -> None:
        self._living.add(leg)
        fate = self._random.random()
        if fate < 0.94:
            self._tell_later(self._random.uniform(1, 6), leg, LegAnswered(leg))
        elif fate < 0.97:
            self._end_later(1.0, leg, Outcome.BUSY)

    def _talk_seconds(self, _: CallId) -> float:
        return self._random.uniform(0.4, 1.6) * TALK_SECONDS

    def _converse(self, call_id: CallId, caller: LegId, desk: LegId) -> None:
        call = self.centre.calls[call_id]
        agent = next(leg.user_id for leg in call.legs if leg.leg_id == desk)
        if agent is None:
            return
        seconds = self._talk_seconds(call_id)
        if self._chance(0.15):
            self._ask_later(seconds * 0.1, Hold(agent, call_id))
            self._ask_later(seconds * 0.2, Resume(agent, call_id))
        if self._chance(0.1):
            self._ask_later(
                seconds * 0.3, Invite(agent, call_id, Target(TargetKind.SKILL, "tax"), privately=True)
            )
            self._ask_later(seconds * 0.5, Merge(agent, call_id))
            if self._chance(0.5):
                self._ask_later(seconds * 0.7, Leave(agent, call_id))
        self._ask_later(seconds * 0.9, WrapUp(agent, call_id, "enquiry"))
        if self._chance(0.55):
            self._end_later(seconds, caller)
        else:
            self._end_later(seconds, desk)
            self._tell_later(seconds + 0.01, caller, ConversationOver(caller))


def replay(script: list[Said]) -> ContactCentre:
    """Say it all again to a new centre, as the engine would: deadlines first, then one message a turn."""
    centre = ContactCentre()
    handle, ask, advance = centre.handle, centre.ask, centre.advance
    for said in script:
        if said.message is not None:
            (ask if said.asked else handle)(said.message, said.now)  # type: ignore[arg-type]  # as it was recorded
        advance(said.now)
    return centre


def _agent(number: int, *, english: bool) -> Profile:
    skills = {"hotline": number % 5 + 1} | ({"english": 3} if english else {})
    user = UserId(f"agent{number}")
    return Profile(user, user, frozenset({UserRole.AGENT}), f"{1000 + number}", skills)


def _specialist(number: int) -> Profile:
    user = UserId(f"spec{number}")
    return Profile(user, user, frozenset({UserRole.SPECIALIST}), f"{80000 + number}", {"tax": number % 5 + 1})
