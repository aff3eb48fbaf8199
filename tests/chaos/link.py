"""The control link is cut at every single action of what an agent does; what became of it is done again, as he would.

Two calls, one after the other: offered, held, taken back, a specialist asked, merged, left; then transferred at once.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callcenter.phone.measure import tone
from callcenter.phone.phone import Call, SipRefused
from tests.e2e.house import TONES, House, Person, ProblemError, Rest, dial, hears, until
from tests.e2e.wire_tap import Cable, header, on_a_cable

_ABOUT_LEGS = frozenset({"Originate", "Redirect", "Bridge", "Hangup", "MixMonitor", "Setvar", "MuteAudio"})
_PATIENCE_SECONDS = 4.0
"""Then somebody tries again what did not come about."""
_REFUSED_SECONDS = 0.3
_STEP_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Cut:
    """At which action of each step, counted from one, and whether Asterisk still got it."""

    nth: int
    carried_out: bool

    def __str__(self) -> str:
        return f"action {self.nth}, {'its answer lost' if self.carried_out else 'itself lost'}"


@dataclass
class Knife:
    """Cuts the cable once in each step."""

    cable: Cable
    cut: Cut
    made: dict[str, int] = field(default_factory=dict)
    """The actions that were cut, and how often."""
    _left: int = 0
    _awaited: str = ""

    def __post_init__(self) -> None:
        self.cable.on_action, self.cable.on_answer = self._action, self._answer

    def lay_on(self) -> None:
        self._left = self.cut.nth

    def lay_down(self) -> None:
        self._left, self._awaited = 0, ""

    def _action(self, name: str, text: str) -> bool:
        if (
            self._left == 0
            or name not in _ABOUT_LEGS
            or not header(text, "Channel") + header(text, "Channel1")
        ):
            return True
        self._left -= 1
        if self._left:
            return True
        self.made[name] = self.made.get(name, 0) + 1
        if self.cut.carried_out:
            self._awaited = header(text, "ActionID")
        return self.cut.carried_out

    def _answer(self, action_id: str) -> bool:
        if not self._awaited or action_id != self._awaited:
            return True
        self._awaited = ""
        return False


class Handset:
    """Somebody's phone: answers whatever rings, and notes every INVITE."""

    def __init__(self, person: Person, sound: str) -> None:
        self.person, self._sound = person, sound
        self.calls: list[Call] = []
        self.twice: list[str] = []

    @property
    def call(self) -> Call | None:
        """The call it is in."""
        return next((c for c in reversed(self.calls) if c.answered.is_set() and not c.ended.is_set()), None)

    async def serve(self) -> None:
        while True:
            call = await self.person.phone.next_call(3600)
            if any(not other.ended.is_set() for other in self.calls):
                self.twice.append(f"{self.person.user}'s phone rang while it was in a call")
            self.calls.append(call)
            with contextlib.suppress(SipRefused):
                await call.answer()
                call.play(tone(TONES[self._sound], 1), loop=True)


@dataclass
class Play:
    house: House
    knife: Knife
    leader: Rest
    desk: Handset
    department: Handset
    colleague: Handset
    number: str
    wrong: list[str] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)

    async def through(self, stack: AsyncExitStack) -> None:
        phone = await stack.enter_async_context(self.house.caller(self.number))
        agent = self.desk.person
        for transfer in (False, True):
            call = await dial(phone, seconds=30)
            await until(self._waiting, lambda waiting: waiting == 1, seconds=30)
            await self._step("offer", lambda: agent.set("ready"), self._hear(call, "agent", desk={"caller"}))
            call_id = await agent.call_id()

            def does(command: str, call_id: str = call_id, **body: object) -> Callable[[], Awaitable[Any]]:
                return lambda: agent.does(command, call_id, **body)

            if transfer:
                await self.colleague.person.set("ready")
                await self._step("transfer", does("transfer", agent="agent2"), self._hear(call, "other"))
                await self.colleague.person.set("not_ready", "meal")
            else:
                await self._step("hold", does("hold"), self._hear(call, desk=set()))
                await self._step("resume", does("resume"), self._hear(call, "agent", desk={"caller"}))
                await self._step(
                    "consult",
                    does("invite", user="spec1"),
                    self._hear(call, desk={"specialist"}, third={"agent"}),
                )
                await self._step(
                    "merge",
                    does("merge"),
                    self._hear(
                        call,
                        "agent",
                        "specialist",
                        desk={"caller", "specialist"},
                        third={"caller", "agent"},
                    ),
                )
                await self._step("leave", does("leave"), self._hear(call, "specialist", third={"caller"}))
            if call.ended.is_set():
                self.wrong.append(f"{self.knife.cut}: the caller was cut off")
            await agent.set("not_ready", "meal")
            await self._step("end", call.hang_up, self._all_gone)
            await self._records(call_id)

    async def _waiting(self) -> int:
        return sum(queue["waiting"] for queue in (await self.leader.get("/api/v1/queues"))["queues"])

    async def _step(
        self, name: str, act: Callable[[], Awaitable[Any]], reached: Callable[[], Awaitable[bool]]
    ) -> None:
        began = time.monotonic()
        self.knife.lay_on()
        try:
            while True:
                patience = _PATIENCE_SECONDS
                try:
                    await act()
                except ProblemError:  # done already, or no link yet after the last cut
                    patience = _REFUSED_SECONDS
                try:
                    await until(reached, bool, seconds=patience)
                    break
                except AssertionError:
                    if time.monotonic() > began + _STEP_SECONDS:
                        raise AssertionError(
                            f"{name}, {self.knife.cut}: {await self.leader.get('/api/v1/calls')}"
                        ) from None
        finally:
            self.knife.lay_down()
        self.took[name] = max(self.took.get(name, 0.0), time.monotonic() - began)

    def _hear(
        self, caller: Call, *who: str, desk: set[str] | None = None, third: set[str] | None = None
    ) -> Callable[[], Awaitable[bool]]:
        """Everybody hears exactly these; None: he is on no line."""

        def hears_now(handset: Handset, wanted: set[str] | None) -> bool:
            if wanted is None:
                return handset.call is None
            return handset.call is not None and hears(handset.call) == wanted

        async def look() -> bool:
            return (
                hears(caller) == set(who) and hears_now(self.desk, desk) and hears_now(self.department, third)
            )

        return look

    async def _all_gone(self) -> bool:
        calls = (await self.leader.get("/api/v1/calls"))["calls"]
        agents = (await self.leader.get("/api/v1/agents"))["agents"]
        return (
            all(call["phase"] == "ended" for call in calls)
            and not any(agent["call_id"] for agent in agents)
            and not await self.house.channels()
            and not any(handset.call for handset in (self.desk, self.department, self.colleague))
        )

    async def _records(self, call_id: str) -> None:
        async def look() -> dict[str, Any]:
            records = (await self.leader.get("/api/v1/call-records?limit=1"))["calls"]
            return dict(records[0])

        record = await until(
            look,
            lambda r: (r["call_id"], r["phase"]) == (call_id, "ended") and r["ticket_number"],
            seconds=15,
        )
        legs = [leg["user_id"] for leg in record["legs"]]
        for handset in (self.desk, self.department, self.colleague):
            rung, known = len(handset.calls), legs.count(handset.person.user)
            handset.calls.clear()
            if rung > known:
                self.wrong.append(
                    f"{self.knife.cut}: {handset.person.user} was rung {rung} times for {known} legs"
                )
        if record["end_reason"] != "completed":
            self.wrong.append(f"{self.knife.cut}: the call is {record['end_reason']}")

        async def files() -> list[dict[str, Any]]:
            found = await self.leader.get(f"/api/v1/calls/{call_id}/recordings")
            return list(found["recordings"])

        joined = [leg for leg in record["legs"] if leg["outcome"] == "joined"]
        try:
            await until(
                files,
                # One of the call, one of the caller, one of each who answered.
                lambda f: len(f) == 2 + len(joined) and all(one["complete"] for one in f),
                seconds=10,
            )
        except AssertionError as error:
            self.wrong.append(f"{self.knife.cut}: recordings: {error}")


@dataclass
class Cuts:
    """What came of it."""

    wrong: list[str] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    """The longest of each step, in seconds, from its request to everybody hearing whom he should."""

    def __str__(self) -> str:
        longest = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.took.items())
        return f"{sum(self.made.values())} cuts ({self.made}); longest seconds: {longest}"


async def cut_at_every_step(house: House, cable: Cable, cuts: Iterable[Cut]) -> Cuts:
    """Play the two calls once for each cut."""
    found = Cuts()
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(house.rest("leader1"))
        agent = await stack.enter_async_context(house.person("agent1", "1001", ready=False))
        specialist = await stack.enter_async_context(house.person("spec1", "8001", ready=False))
        second = await stack.enter_async_context(house.person("agent2", "1002", ready=False))
        handsets = Handset(agent, "agent"), Handset(specialist, "specialist"), Handset(second, "other")
        async with _serving(*handsets):
            for n, cut in enumerate(cuts):
                knife = Knife(cable, cut)
                play = Play(house, knife, leader, *handsets, f"1710{n:07}")
                async with AsyncExitStack() as phones:
                    await play.through(phones)
                found.wrong += play.wrong
                for name, count in knife.made.items():
                    found.made[name] = found.made.get(name, 0) + count
                for name, seconds in play.took.items():
                    found.took[name] = max(found.took.get(name, 0.0), seconds)
            for handset in handsets:
                found.wrong += handset.twice
    return found


@contextlib.asynccontextmanager
async def _serving(*handsets: Handset) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(handset.serve(), name=handset.person.user) for handset in handsets]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def long_form(directory: Path) -> Cuts:
    """Every action of every step, lost or only its answer, in a house of its own."""

    async def played() -> Cuts:
        async with on_a_cable(directory) as (house, cable):
            cuts = [Cut(nth, carried_out=done) for nth in (1, 2, 3, 4, 5) for done in (False, True)]
            return await cut_at_every_step(house, cable, cuts * 2)

    return asyncio.run(played())
