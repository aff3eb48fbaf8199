"""Plays a scenario against a running system: our own phones on one side of it, REST on the other.

What people heard is measured at their ears: until two parties have heard each other each speaks with a tone of his
own, and a silence where a tone should be is a failure of the house.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any, assert_never

import aiohttp

from callcenter.demo.scenario import Offer, Plan, Scenario, Turn, people
from callcenter.phone import Call, Pacer, Pcm, Phone, Side, SipRefused
from callcenter.phone.measure import shares, tone, tones

CALLER, AGENT, SPECIALIST = 450.0, 1050.0, 2050.0
"""What each speaks with, in Hz; multiples of 50 do not leak into each other within a packet."""
_TONES = {frequency: tone(frequency, 1) for frequency in (CALLER, AGENT, SPECIALIST)}
_KEPT_PACKETS = 200  # four seconds of a call are kept to listen to
_SOUND_LEVEL = (
    200.0  # RMS of a packet that holds speech or a tone; comfort noise and codec noise stay far below
)
_LOOK_SECONDS = 0.04
_ANSWER_SECONDS, _GREETING_SECONDS, _HEARING_SECONDS = 10.0, 10.0, 3.0
_ENGINE_SECONDS = 5.0  # for the engine to have learnt what a phone did
_OFFER_SECONDS = 150.0  # longer than any queue's offer
_AFTER_SECONDS = 40.0  # for the rating and the good-bye
_CITIZENS_PHONES = 16  # asyncio reads one datagram of a socket a turn: one for all calls would fall behind
_LOGINS_AT_ONCE = 2  # the server checks as many at once
_LOGIN_TRIES = 20


class Stage(StrEnum):
    DIALLING = "dialling"
    GREETING = "greeting"
    WAITING = "waiting"
    RINGING = "ringing"
    TALKING = "talking"
    AFTER = "after"


class Outcome(StrEnum):
    COMPLETED = "completed"
    ABANDONED = "abandoned"
    """The caller gave up before anybody answered, as planned."""
    STOPPED = "stopped"
    """The play was over."""
    FAILED = "failed"
    """What should not have happened."""


@dataclass(slots=True)
class Track:
    """One caller as he fares; monotonic seconds for times."""

    plan: Plan
    placed_at: float
    stage: Stage = Stage.DIALLING
    call: Call | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    agent: str = ""
    specialist: Call | None = None
    offers: int = 0
    turned: bool = False
    enough: bool = False
    """It is the caller's turn to hang up."""
    released: bool = False
    """The house may end the call now: the agent has hung up."""
    gives_up_at: float = 0.0
    greeted_at: float | None = None
    rang_at: float | None = None
    answered_at: float | None = None
    """An agent's answer, of the first."""
    both_heard: list[float] = field(default_factory=list)
    """Seconds from each answer until both heard each other."""
    gap: float = 0.0
    outcome: Outcome | None = None
    reason: str = ""

    def fail(self, reason: str) -> None:
        """Note the first thing that went wrong."""
        if self.outcome is not Outcome.FAILED:
            self.outcome, self.reason = Outcome.FAILED, reason

    def now(self, stage: Stage) -> None:
        self.stage = stage
        self.changed.set()

    @property
    def living(self) -> Call | None:
        return self.call if self.call is not None and not self.call.ended.is_set() else None


@dataclass(slots=True)
class Tally:
    """What became of everybody."""

    placed: int = 0
    greeted: int = 0
    answered: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    """What went wrong with somebody at work rather than with a caller."""
    turns: Counter[str] = field(default_factory=Counter)
    to_greeting: list[float] = field(default_factory=list)
    to_ring: list[float] = field(default_factory=list)
    to_hearing: list[float] = field(default_factory=list)
    largest_gap: float = 0.0
    latest_arrival: float = 0.0
    """By how much a caller was placed too late: this program's own fault, not the system's."""
    largest_delay: float = 0.0
    """By how much our own audio was late; gaps up to it are our own."""
    placing_seconds: float = 0.0

    def take(self, track: Track) -> None:
        self.greeted += track.greeted_at is not None
        self.answered += track.answered_at is not None
        self.outcomes[track.outcome or Outcome.COMPLETED] += 1
        if track.outcome is Outcome.FAILED:
            self.failures[track.reason] += 1
        if track.greeted_at is not None:
            self.to_greeting.append(track.greeted_at - track.placed_at)
        if track.rang_at is not None:
            self.to_ring.append(track.rang_at - track.placed_at)
        self.to_hearing += track.both_heard
        self.largest_gap = max(self.largest_gap, track.gap)

    @property
    def well(self) -> bool:
        return not self.failures and not self.troubles


class CannotPlay(Exception):  # noqa: N818 - a sentence for who starts the play
    """The system is not there or does not let these people in; the text says what to do."""


class Problem(Exception):  # noqa: N818 - the API's own word
    """The API said no."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(f"{status} {reason} {detail}".strip())
        self.status, self.reason = status, reason


@dataclass(frozen=True, slots=True)
class House:
    """Where the system is, and how its people get in."""

    url: str
    sip: tuple[str, int]
    password: str = "demo"  # noqa: S105 - what everybody's is in the demo profile
    phone_secret: str = "demo"  # noqa: S105 - as above


class Person:
    """Somebody at work: his phone, and his session at the screen."""

    def __init__(self, user: str, session: aiohttp.ClientSession) -> None:
        self.user = user
        self.idle = asyncio.Event()
        self.idle.set()
        self.expects: Track | None = None
        """Whose call a specialist is being asked into; his phone shows the line, not the caller."""
        self.phone: Phone
        self._session = session
        self._token = ""

    async def log_in(self, password: str) -> None:
        for wait in itertools.chain(itertools.repeat(1.0, _LOGIN_TRIES), [None]):
            try:
                answer = await self.ask("POST", "/api/v1/session", {"user": self.user, "password": password})
            except Problem as problem:
                if problem.reason == "too_many" and wait is not None:
                    await asyncio.sleep(wait)
                    continue
                raise CannotPlay(
                    f"{self.user}: 登录被拒绝 / the login was refused: {problem}; "
                    "压力用户先用 callcenter demo prepare 添加 / add load users with `callcenter demo prepare`"
                ) from problem
            self._token = str(answer["token"])
            return

    async def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            content: dict[str, Any] = await answer.json()
            if answer.status >= 400:
                error = content.get("error", {})
                raise Problem(answer.status, str(error.get("reason", "")), str(error.get("detail") or ""))
            return content

    async def me(self) -> dict[str, Any]:
        agent: dict[str, Any] = (await self.ask("GET", "/api/v1/me"))["agent"]
        return agent

    async def does(self, call_id: str, command: str, **body: object) -> None:
        await self.ask("POST", f"/api/v1/calls/{call_id}/{command}", body)

    async def until_state(self, *states: str, seconds: float = _ENGINE_SECONDS) -> str:
        """Wait for one of the states; the state at the deadline when it does not come."""
        deadline = monotonic() + seconds
        while True:
            state = str((await self.me())["state"])
            if state in states or monotonic() > deadline:
                return state
            await asyncio.sleep(0.1)

    async def be(self, state: str) -> None:
        await self.ask("PUT", "/api/v1/me/state", {"state": state})


class Play:
    """One run of a scenario; ``run`` once, look at ``tracks`` and ``tally`` meanwhile."""

    def __init__(
        self,
        scenario: Scenario,
        plans: Iterator[Plan],
        house: House,
        *,
        speech: Pcm | None = None,
        hurry: asyncio.Event | None = None,
    ) -> None:
        """With ``speech`` people speak with it once they have heard each other; ``hurry`` ends the play at once."""
        self.scenario = scenario
        self.tracks: dict[str, Track] = {}
        self.tally = Tally()
        self.began: float | None = None
        """When the first caller could dial; before, people come to work."""
        self._plans = plans
        self._house = house
        self._speech = speech
        self.hurry = hurry or asyncio.Event()
        self._agents: list[Person] = []
        self._free_specialists: list[Person] = []

    # --- the whole evening ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Play until the plans or the time are over, then until the last call is; raises CannotPlay."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                pacer = await stack.enter_async_context(Pacer())
                citizens = [
                    await stack.enter_async_context(self._phone("citizen", pacer, registered=False))
                    for _ in range(_CITIZENS_PHONES)
                ]
                agents = await self._come_to_work(stack, self.scenario.agents.users, pacer)
                specialists = await self._come_to_work(stack, self.scenario.specialists.users, pacer)
                self._agents, self._free_specialists = agents, [*specialists]
                async with asyncio.TaskGroup() as work:
                    working = [
                        work.create_task(self._serve_all(who), name=f"agent {who.user}") for who in agents
                    ]
                    working += [
                        work.create_task(self._advise_all(who), name=f"specialist {who.user}")
                        for who in specialists
                    ]
                    self.began = monotonic()
                    await self._let_them_call(citizens)
                    await self._until_idle([*agents, *specialists])
                    for task in working:
                        task.cancel()
                await self._go_home([*agents, *specialists])
                self.tally.largest_delay = pacer.largest_delay
        except* (aiohttp.ClientError, OSError) as errors:
            error = errors.exceptions[0]
            raise CannotPlay(
                f"{self._house.url}: 系统不在或中断 / the system is not there, or went away: {error}; "
                "用 make run 启动 / start it with `make run`"
            ) from errors

    @contextlib.asynccontextmanager
    async def _phone(self, user: str, pacer: Pacer, *, registered: bool) -> AsyncIterator[Phone]:
        async with Phone(
            user=user,
            password=self._house.phone_secret if registered else None,
            server=self._house.sip,
            bind="127.0.0.1" if self._house.sip[0] in ("127.0.0.1", "localhost") else "0.0.0.0",  # noqa: S104 - it finds the address the server sees
            packet_limit=_KEPT_PACKETS,
            pacer=pacer,
        ) as phone:
            if registered:
                await phone.register()
            yield phone

    async def _come_to_work(
        self, stack: contextlib.AsyncExitStack, names: Iterable[str], pacer: Pacer
    ) -> list[Person]:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                self._house.url,
                timeout=aiohttp.ClientTimeout(total=10),
                connector=aiohttp.TCPConnector(limit=50),
            )
        )
        found = [Person(user, session) for user in people(names)]
        turns = asyncio.Semaphore(_LOGINS_AT_ONCE)

        async def come(person: Person) -> None:
            async with turns:
                await person.log_in(self._house.password)
            number = (await person.me())["phone"]
            if number is None:
                raise CannotPlay(f"{person.user}: 没有话机 / has no phone")
            try:
                person.phone = await stack.enter_async_context(self._phone(number, pacer, registered=True))
            except SipRefused as error:
                raise CannotPlay(
                    f"{person.user}: 话机 {number} 注册被拒绝 / the phone {number} was refused: {error.status}; "
                    "新添的话机要重启系统 / new phones need a restart of the system"
                ) from error
            deadline = monotonic() + _ENGINE_SECONDS
            while not (await person.me())["phone_reachable"]:
                if monotonic() > deadline:
                    raise CannotPlay(
                        f"{person.user}: 话机已注册，系统却说不在线 / the phone is registered, the system says it is not"
                    )
                await asyncio.sleep(0.1)
            await person.be("ready")

        try:
            async with asyncio.TaskGroup() as coming:
                for person in found:
                    coming.create_task(come(person), name=f"{person.user} comes to work")
        except* CannotPlay as refused:
            raise refused.exceptions[0] from refused
        return found

    async def _let_them_call(self, citizens: list[Phone]) -> None:
        scenario, began = self.scenario, monotonic()
        async with asyncio.TaskGroup() as line:
            callers: set[asyncio.Task[None]] = set()
            for plan in self._plans:
                if scenario.seconds is not None and plan.at >= scenario.seconds:
                    break
                if await _first(self.hurry, seconds=began + plan.at - monotonic()):
                    break
                self.tally.latest_arrival = max(self.tally.latest_arrival, monotonic() - began - plan.at)
                task = line.create_task(
                    self._call(citizens[plan.index % len(citizens)], plan), name=f"caller {plan.index}"
                )
                callers.add(task)
                task.add_done_callback(callers.discard)
            self.tally.placing_seconds = monotonic() - began
            everybody_gone = asyncio.Event()
            waiting = line.create_task(_when_done([*callers], everybody_gone), name="the last caller")
            await _first(everybody_gone, self.hurry, seconds=scenario.drain)
            waiting.cancel()
            for track in [*self.tracks.values()]:
                if track.outcome is None and track.living is not None:
                    track.outcome = Outcome.STOPPED
                    line.create_task(track.living.hang_up(), name="the play is over")

    async def _until_idle(self, everybody: list[Person]) -> None:
        """Give the wrap-ups their time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0 if self.hurry.is_set() else 20.0):
                for person in everybody:
                    await person.idle.wait()

    async def _go_home(self, everybody: list[Person]) -> None:
        for person in everybody:
            with contextlib.suppress(Problem):  # he may be in a call that is ending; his phone says goodbye
                await person.be("logged_out")

    # --- a caller -------------------------------------------------------------------------------------------

    async def _call(self, phone: Phone, plan: Plan) -> None:
        track = Track(plan, placed_at=monotonic())
        track.gives_up_at = track.placed_at + plan.patience
        self.tracks[plan.number] = track
        self.tally.placed += 1
        try:
            call = track.call = await phone.dial(plan.line, caller=plan.number)
        except (OSError, ValueError) as error:
            track.fail(f"this program could not dial: {error}")
        else:
            call.play(_TONES[CALLER], loop=True)
            await self._wait_for_somebody(track, call)
            await call.hang_up()
        finally:
            del self.tracks[plan.number]
            self.tally.take(track)

    async def _wait_for_somebody(self, track: Track, call: Call) -> None:
        plan = track.plan
        try:
            await call.wait_answered(_ANSWER_SECONDS)
        except SipRefused as refused:
            if track.outcome is None:
                track.fail(f"the hotline refused the call: {refused.status} {refused.reason}")
            return
        except TimeoutError:
            track.fail(f"the hotline did not answer within {_ANSWER_SECONDS:g} s")
            return
        track.now(Stage.GREETING)
        track.greeted_at = await first_sound(call, since=call.answered.at or 0, seconds=_GREETING_SECONDS)
        if track.greeted_at is None:
            if track.outcome is None:
                track.fail("the caller heard no greeting")
            return
        if plan.hurried:
            if not await _first(call.ended, seconds=1.0):
                track.outcome = Outcome.ABANDONED
            return
        if plan.keys and not await _first(call.ended, seconds=plan.key_after):
            call.send_digits(plan.keys)
        if track.stage is Stage.GREETING:
            track.now(Stage.WAITING)
        await self._live_through(track, call)

    async def _live_through(self, track: Track, call: Call) -> None:
        """Wait, talk, rate, until one of the parties hangs up."""
        while not call.ended.is_set():
            track.changed.clear()
            match track.stage:
                case Stage.TALKING:
                    if track.enough:
                        return
                    await _first(track.changed, call.ended)
                case Stage.AFTER:
                    if not track.plan.rating:
                        return
                    await _first(call.ended, seconds=1.0)
                    if not call.ended.is_set():
                        call.send_digits(track.plan.rating)
                    if not await _first(call.ended, seconds=_AFTER_SECONDS):
                        track.fail(f"the call was not over {_AFTER_SECONDS:g} s after the agent hung up")
                    return
                case _:
                    left = track.gives_up_at - monotonic()
                    if left <= 0:
                        track.outcome = track.outcome or Outcome.ABANDONED
                        return
                    await _first(track.changed, call.ended, seconds=left)
        if track.outcome is None and call.ended_by is Side.THERE and not track.released:
            if track.stage is Stage.TALKING:
                track.fail("the call was cut in the middle of a conversation")
            elif track.stage is not Stage.AFTER:
                track.fail(f"the hotline ended the call while it was {track.stage}")

    # --- an agent -------------------------------------------------------------------------------------------

    async def _serve_all(self, agent: Person) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                call = await agent.phone.next_call(3600)
                agent.idle.clear()
                try:
                    await self._take_offer(agent, call)
                except Problem as problem:
                    self.tally.troubles[f"an agent was refused: {problem.reason}"] += 1
                finally:
                    agent.idle.set()

    async def _take_offer(self, agent: Person, call: Call) -> None:
        track = self.tracks.get(call.caller.user)
        if track is None:
            await self._serve_a_stranger(agent, call)
            return
        offer = track.plan.offer(track.offers)
        track.offers += 1
        track.rang_at = track.rang_at or call.dialled.at
        if track.stage is not Stage.TALKING:
            track.now(Stage.RINGING)
        match offer:
            case Offer.REJECT:
                if not await _first(call.ended, seconds=track.plan.pick_up):
                    await call.reject(486)
                await self._ready_again(agent, track)
            case Offer.MISS:
                if not await _first(call.ended, seconds=_OFFER_SECONDS):
                    self.tally.troubles[f"a phone was still ringing after {_OFFER_SECONDS:g} s"] += 1
                    await call.reject(480)
                await self._ready_again(agent, track)
            case Offer.ANSWER:
                with contextlib.suppress(SipRefused):  # the caller was quicker
                    if not await _first(call.ended, seconds=track.plan.pick_up):
                        await call.answer()
                if call.answered.is_set():
                    await self._talk(agent, call, track)
                    await self._wrap_up(agent, track.plan.wrap_up)
                else:
                    await self._ready_again(agent, track)
            case _:
                assert_never(offer)

    async def _ready_again(self, agent: Person, track: Track) -> None:
        """After a call that was not taken: the house may have made him not ready, and he takes a breath."""
        self.tally.turns["not taken"] += 1
        if track.stage is Stage.RINGING:
            track.now(Stage.WAITING)
        if await agent.until_state("ready", "not_ready") == "not_ready":
            await asyncio.sleep(track.plan.pause)
            await agent.be("ready")
        await self._check_ready(agent)

    async def _check_ready(self, agent: Person) -> None:
        state = await agent.until_state("ready", "offered", "talking")
        if state not in ("ready", "offered", "talking"):
            self.tally.troubles[f"an agent was stuck in {state}"] += 1
            await agent.be("ready")

    async def _serve_a_stranger(self, agent: Person, call: Call) -> None:
        """Somebody calls who is not of the play: talk to him until he hangs up."""
        with contextlib.suppress(SipRefused):
            if not await _first(call.ended, seconds=1.0):
                await call.answer()
                call.play(self._speech if self._speech is not None else _TONES[AGENT], loop=True)
                await _first(call.ended, seconds=3600)
        if await agent.until_state("ready", "not_ready", "wrap_up") == "wrap_up":
            await self._wrap_up(agent, 1.0)
        else:
            await self._check_ready(agent)

    async def _wrap_up(self, agent: Person, seconds: float) -> None:
        me = await agent.me()
        if me["state"] in ("talking", "held", "offered"):
            me["state"] = await agent.until_state("wrap_up", "ready", "not_ready")
        if me["state"] == "wrap_up" and me["call_id"]:
            if seconds > 0:
                await asyncio.sleep(seconds)
            with contextlib.suppress(Problem):  # its time may be over by now; what matters is looked at below
                await agent.does(me["call_id"], "wrap-up", disposition=self.scenario.agents.disposition)
        await self._check_ready(agent)

    async def _talk(self, agent: Person, call: Call, track: Track) -> None:
        citizen = track.living
        if citizen is None:
            await self._must_end(track, call)
            return
        answered = call.answered.at or monotonic()
        track.agent, track.answered_at = agent.user, track.answered_at or answered
        track.now(Stage.TALKING)
        call.play(_TONES[AGENT], loop=True)
        if await self._hear_each_other(track, {CALLER: citizen, AGENT: call}, since=answered, first=True):
            if call_id := await self._call_id(agent, track):
                await self._converse(agent, call, citizen, track, call_id)
        else:
            track.enough = True
            track.changed.set()
        await self._must_end(track, call)

    async def _call_id(self, agent: Person, track: Track) -> str:
        deadline = monotonic() + _ENGINE_SECONDS
        while not (call_id := (await agent.me())["call_id"]):
            if track.living is None or monotonic() > deadline:
                if track.living is not None:
                    track.fail("the agent answered and the system did not learn it")
                return ""
            await asyncio.sleep(0.05)
        return str(call_id)

    async def _converse(self, agent: Person, call: Call, citizen: Call, track: Track, call_id: str) -> None:
        plan = track.plan
        citizen.counters.largest_gap = call.counters.largest_gap = 0.0
        turns = () if track.turned else plan.turns
        track.turned = True
        await _first(call.ended, citizen.ended, seconds=plan.talk / (1 + len(turns)))
        track.gap = max(track.gap, citizen.counters.largest_gap, call.counters.largest_gap)
        for turn in turns:
            if call.ended.is_set() or citizen.ended.is_set():
                return
            self.tally.turns[turn] += 1
            match turn:
                case Turn.HOLD:
                    await self._hold(agent, call, citizen, track, call_id)
                case Turn.INVITE:
                    if await self._invite(agent, call, citizen, track, call_id):
                        return
                case Turn.TRANSFER:
                    track.gives_up_at = monotonic() + plan.patience
                    track.now(Stage.WAITING)
                    if await self._asks(
                        agent, track, call_id, "transfer", queue=self.scenario.agents.transfer_queue
                    ):
                        return
                    track.now(Stage.TALKING)
                case _:
                    assert_never(turn)
            await _first(call.ended, citizen.ended, seconds=plan.talk / (1 + len(turns)))
        if call.ended.is_set() or citizen.ended.is_set():
            return
        if plan.hangs_up:
            track.enough = True
            track.changed.set()
        else:
            track.released = True
            if await self._asks(agent, track, call_id, "hangup"):
                track.now(Stage.AFTER)

    async def _hold(self, agent: Person, call: Call, citizen: Call, track: Track, call_id: str) -> None:
        if not await self._asks(agent, track, call_id, "hold"):
            return
        await _first(call.ended, citizen.ended, seconds=track.plan.hold)
        self._must_not_hear(track, citizen, AGENT, "a caller on hold heard the agent")
        since = monotonic()
        if await self._asks(agent, track, call_id, "resume"):
            await self._hear_each_other(track, {CALLER: citizen, AGENT: call}, since=since)

    async def _invite(self, agent: Person, call: Call, citizen: Call, track: Track, call_id: str) -> bool:
        """Ask a specialist and bring him in; whether the agent has left the two."""
        if not self._free_specialists:
            self.tally.turns["nobody to invite"] += 1
            return False
        specialist = self._free_specialists.pop(0)
        track.specialist, specialist.expects = None, track
        try:
            if not await self._asks(
                agent,
                track,
                call_id,
                "invite",
                user=specialist.user,
                privately=True,
                fine=("target_busy", "phone_unreachable"),
            ):
                return False
            return await self._consult(agent, specialist, call, citizen, track, call_id)
        finally:
            specialist.expects = None
            self._free_specialists.append(specialist)

    async def _consult(
        self, agent: Person, specialist: Person, call: Call, citizen: Call, track: Track, call_id: str
    ) -> bool:
        plan = track.plan
        deadline = monotonic() + plan.specialist_pick_up + _ENGINE_SECONDS
        while track.specialist is None:
            if (
                plan.specialist_rejects
                and specialist.idle.is_set()
                and await self._not_joined(agent, call_id)
            ):
                since = monotonic()
                await self._asks(
                    agent, track, call_id, "resume", fine=("not_held",)
                )  # the caller may be back already
                await self._hear_each_other(track, {CALLER: citizen, AGENT: call}, since=since)
                return False
            if call.ended.is_set() or citizen.ended.is_set():
                return False
            if monotonic() > deadline:
                track.fail("a specialist was invited and his phone did not ring")
                return False
            await asyncio.sleep(0.05)
        third = track.specialist
        if not await self._hear_each_other(
            track, {AGENT: call, SPECIALIST: third}, since=third.answered.at or 0, living=citizen
        ):
            return False
        await _first(call.ended, citizen.ended, third.ended, seconds=plan.consult)
        self._must_not_hear(track, citizen, SPECIALIST, "a caller on hold heard the specialist")
        since = monotonic()
        if not await self._asks(agent, track, call_id, "merge"):
            return False
        parties = {CALLER: citizen, AGENT: call, SPECIALIST: third}
        if not await self._hear_each_other(track, parties, since=since):
            return False
        self.tally.turns["three together"] += 1
        await _first(call.ended, citizen.ended, third.ended, seconds=1.0)
        since = monotonic()
        if not plan.leaves:
            await third.hang_up()
            await self._hear_each_other(track, {CALLER: citizen, AGENT: call}, since=since)
            return False
        if not await self._asks(agent, track, call_id, "leave"):
            return False
        await self._hear_each_other(track, {CALLER: citizen, SPECIALIST: third}, since=since)
        await self._must_end(track, call)
        await _first(citizen.ended, third.ended, seconds=1.0)
        track.enough = True
        track.changed.set()
        return True

    async def _not_joined(self, agent: Person, call_id: str) -> bool:
        """Whether no leg of the call is ringing any more."""
        shown = await agent.ask("GET", f"/api/v1/calls/{call_id}")
        return all(leg["state"] != "ringing" for leg in shown["legs"])

    async def _advise_all(self, specialist: Person) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                call = await specialist.phone.next_call(3600)
                specialist.idle.clear()
                try:
                    await self._advise(specialist, call)
                except Problem as problem:
                    self.tally.troubles[f"a specialist was refused: {problem.reason}"] += 1
                finally:
                    specialist.idle.set()

    async def _advise(self, specialist: Person, call: Call) -> None:
        track = specialist.expects
        rejects = track is not None and track.plan.specialist_rejects
        with contextlib.suppress(SipRefused):  # the agent or the caller was quicker
            if not await _first(call.ended, seconds=track.plan.specialist_pick_up if track else 1.0):
                if rejects:
                    await call.reject(486)
                else:
                    await call.answer()
                    call.play(_TONES[SPECIALIST], loop=True)
                    if track is not None:
                        track.specialist = call
                    await _first(call.ended, seconds=3600)
        if await specialist.until_state("ready", "not_ready", "wrap_up") == "wrap_up":
            await self._wrap_up(specialist, 0)
        elif (await specialist.me())["state"] == "not_ready":
            await specialist.be("ready")
        await self._check_ready(specialist)

    # --- what must be ---------------------------------------------------------------------------------------

    async def _asks(
        self,
        agent: Person,
        track: Track,
        call_id: str,
        command: str,
        *,
        fine: tuple[str, ...] = (),
        **body: object,
    ) -> bool:
        """Ask something of a call; a refusal fails it unless it is fine, or the caller has gone meanwhile."""
        try:
            await agent.does(call_id, command, **body)
        except Problem as problem:
            citizen = track.living
            if (
                problem.reason not in fine
                and citizen is not None
                and not await _first(citizen.ended, seconds=1)
            ):
                track.fail(f"{command} was refused: {problem.reason}")
            return False
        return True

    async def _hear_each_other(
        self,
        track: Track,
        parties: dict[float, Call],
        *,
        since: float,
        first: bool = False,
        living: Call | None = None,
    ) -> bool:
        """Each must hear the tone of every other; fails the call when not, unless somebody has hung up."""
        for frequency, call in parties.items():
            call.play(_TONES[frequency], loop=True)
        pairs = [(ear, mouth) for ear in parties for mouth in parties if ear != mouth]
        heard = await asyncio.gather(
            *(
                first_sound(parties[ear], since=since, seconds=_HEARING_SECONDS, frequency=mouth)
                for ear, mouth in pairs
            )
        )
        everybody = [*parties.values(), *([living] if living else [])]
        if any(call.ended.is_set() for call in everybody):
            return False
        times = [at for at in heard if at is not None]
        if len(times) < len(heard):
            names = {CALLER: "caller", AGENT: "agent", SPECIALIST: "specialist"}
            deaf = [
                f"the {names[ear]} did not hear the {names[mouth]}"
                for (ear, mouth), at in zip(pairs, heard, strict=True)
                if at is None
            ]
            track.fail(f"{', '.join(deaf)} within {_HEARING_SECONDS:g} s")
            return False
        if first:
            track.both_heard.append(max(times) - since)
        if self._speech is not None:
            for call in parties.values():
                call.play(self._speech, loop=True)
        return True

    def _must_not_hear(self, track: Track, ear: Call, frequency: float, trouble: str) -> None:
        """Privacy: checked in the last moments, while everybody plays his tone or speech."""
        now = monotonic()
        if not ear.ended.is_set() and shares(ear, {"t": frequency}, since=now - 0.4)["t"] > 0.5:
            track.fail(trouble)

    async def _must_end(self, track: Track, call: Call) -> None:
        if track.specialist is not None and track.living is None:
            await call.hang_up()  # the caller has gone; what the two still have to say is theirs to end
        if not await _first(call.ended, seconds=_AFTER_SECONDS if track.stage is Stage.TALKING else 5.0):
            track.fail("an agent's phone was still in a call that was over")
            await call.hang_up()


async def first_sound(
    call: Call, *, since: float, seconds: float, frequency: float | None = None
) -> float | None:
    """When a call first heard a tone, or with no frequency any sound, in monotonic seconds; None when it did not.

    Looks for ``seconds`` at most, and not beyond the end of the call.
    """
    deadline = monotonic() + seconds
    sought = {"t": frequency} if frequency is not None else {}
    while True:
        over = call.ended.is_set() or monotonic() > deadline
        fresh = [packet for packet in call.packets if packet.arrival >= since]
        for heard in tones(fresh, sought, codec=call.codec):
            if heard.tones if sought else heard.level > _SOUND_LEVEL:
                return heard.at
        if over:
            return None
        if fresh:
            since = fresh[-1].arrival + 1e-6
        await asyncio.sleep(_LOOK_SECONDS)


async def _first(*events: asyncio.Event, seconds: float | None = None) -> bool:
    """Wait for the first of these, for so long at most; whether one has come."""
    if any(event.is_set() for event in events):
        return True
    if seconds is not None and seconds <= 0:
        return False
    # Event.wait itself: a Moment's own has a deadline.
    waits = [asyncio.create_task(asyncio.Event.wait(event), name="one of several") for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()


async def _when_done(tasks: list[asyncio.Task[None]], event: asyncio.Event) -> None:
    if tasks:
        await asyncio.wait(tasks)
    event.set()
