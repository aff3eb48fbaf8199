"""On a real Asterisk: how soon an agent's phone is rung and two people hear each other, beside the native `Queue()`.

One house runs engine and Asterisk; into the rendered copy of its dialplan comes a second line, served by app_queue
with static members. Both lines are called by the same phones, one after the other, on the same Asterisk.
"""

import asyncio
import contextlib
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from callcenter.database import Database
from callcenter.directory.store import Directory
from callcenter.phone.g711 import Codec
from callcenter.phone.measure import first_heard, tone
from callcenter.phone.phone import Call, Phone, SipRefused
from callcenter.phone.rtp import Pacer
from tests.asterisk_fixture import shared_install
from tests.bench.rows import Row, Spread, judged, spread
from tests.e2e import house as houses
from tests.e2e.house import TONES, House, Person, Rest, Talk, until, until_hears

houses.FIRST_PORT, houses.LAST_PORT = 27_000, 29_999
"""Beside a test run that goes on at the same time."""

OURS, NATIVE = "99000", "99001"
RTP_START, RTP_END = 14_000, 17_999
"""A thousand callers at once: the product refuses more than its ports for voice carry."""
HEARTBEAT_SECONDS = 2.0
"""Loading the dialplan again empties the globals; by then the engine has set its beat anew."""
NODES: Mapping[str, object] = {
    "人工": {"queue": {"queue": "bench", "on_give_up": "挂机"}},
    "挂机": {"hangup": {}},
}
LOGINS_AT_ONCE = 4
CODECS = (Codec.PCMU, Codec.PCMA)
SAMPLE_SECONDS = 0.02
"""What tone analysis can tell apart: one packet."""


# --- the rows -----------------------------------------------------------------------------------------------


def enter(
    *, agents: int = 10, at_phones: int | None = None, calls: int = 120, a_second: float = 5.0
) -> list[Row]:
    """Caller's INVITE -> agent's INVITE, agents free; the others, if not all are at their phones, are not registered."""

    async def measure(hall: "Hall", number: str) -> Spread:
        return spread(await hall.enters(number, calls=calls, a_second=a_second))

    ours, native = _on_both_lines(agents, measure, at_phones=at_phones)
    return [
        judged(
            f"caller enters the queue → INVITE, {agents} agents, {a_second:g} calls/s",
            ours=f"{ours}",
            beside=f"native: {native}",
            target="p95 no slower",
            met=ours.p95 <= native.p95,
        )
    ]


def enter_hundred() -> list[Row]:
    return enter(agents=100)


def enter_thousand() -> list[Row]:
    return enter(agents=1_000, at_phones=10)


def free(*, agents: int = 5, waiting: int = 200, calls: int = 120) -> list[Row]:
    """Agent's BYE -> the next INVITE to him, many waiting, random talk times."""

    async def measure(hall: "Hall", number: str) -> Spread:
        return spread(await hall.becomes_free(number, waiting=waiting, calls=calls))

    ours, native = _on_both_lines(agents, measure)
    return [
        judged(
            f"agent becomes free → INVITE, {waiting} callers waiting, {agents} agents",
            ours=f"{ours}",
            beside=f"native: {native}",
            target="p99 ≤ 50 ms",
            met=ours.p99 <= 50,
        )
    ]


def answer(*, calls: int = 20) -> list[Row]:
    """Agent's 200 OK -> each hears the other's tone."""

    async def measure(hall: "Hall", number: str) -> Spread:
        return spread([await hall.until_both_hear(number, trial) for trial in range(calls)])

    ours, native = _on_both_lines(1, measure)
    return [
        judged(
            "agent answers → both hear each other",
            ours=f"{ours}",
            beside=f"native: {native}",
            target="p95 ≤ 60 ms",
            met=ours.p95 <= 60,
        )
    ]


def steps(*, calls: int = 8) -> list[Row]:
    """The request over REST -> the change is heard."""
    took: dict[str, list[float]] = {}
    with standing(1) as house:

        async def all_of_it() -> None:
            for _ in range(calls):
                async with houses.talking(house, specialist=True) as talk:
                    await _steps(talk, took)

        asyncio.run(all_of_it())
    rows = []
    for what, seconds in took.items():
        result = spread(seconds)
        rows.append(
            judged(
                f"{what} (request → heard)",
                ours=f"{result}",
                target="p95 ≤ 60 ms",
                met=result.p95 <= 60,
            )
        )
    return rows


async def _steps(talk: Talk, took: dict[str, list[float]]) -> None:
    async def step(what: str, command: str, ear: Call, voice: str, *, present: bool) -> None:
        began = time.monotonic()
        await talk.does(command)

        async def look() -> float | None:
            return first_heard(ear, TONES[voice], since=began + SAMPLE_SECONDS, present=present)

        heard = await until(look, lambda at: at is not None, seconds=5)
        took.setdefault(what, []).append(heard - began)

    await until_hears(talk.call, "agent")
    await until_hears(talk.desk, "caller")
    await step("hold: the caller hears the agent no more", "hold", talk.call, "agent", present=False)
    await until_hears(talk.call)
    await step("resume: the caller hears the agent", "resume", talk.call, "agent", present=True)
    await until_hears(talk.call, "agent")
    await talk.does("invite", user="spec1")
    third = await talk.specialist.answers("specialist")
    await until_hears(talk.desk, "specialist")
    await until_hears(talk.call)
    await step("merge: the caller hears the specialist", "merge", talk.call, "specialist", present=True)
    await until_hears(third, "caller", "agent")
    await until_hears(talk.call, "agent", "specialist")
    await step("leave: the caller hears the agent no more", "leave", talk.call, "agent", present=False)
    await until_hears(talk.call, "specialist")
    await third.hang_up()
    await talk.call.hang_up()
    await until(talk.agent.state, lambda state: state == "ready")


# --- people -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """An INVITE at an agent's phone."""

    agent: str
    caller: str
    at: float
    after: float | None
    """Seconds since this agent's last BYE."""


@dataclass
class Hall:
    """Agents' phones that take what comes, and one trunk on which everybody calls."""

    house: House
    agents: list[Phone]
    trunk: Phone
    offers: list[Offer] = field(default_factory=list)
    offered: asyncio.Condition = field(default_factory=asyncio.Condition)
    _dialled: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    async def enters(self, number: str, *, calls: int, a_second: float) -> list[float]:
        """Seconds from each caller's INVITE to the agent's; talks are short, so that agents are free."""
        sent: dict[str, float] = {}
        async with self._serving(lambda: 0.4):
            for _ in range(calls):
                caller = self._next_caller()
                sent[caller] = time.monotonic()
                await self._dial(number, caller)
                await asyncio.sleep(1 / a_second)
            await self._until_offers(calls)
        first = {offer.caller: offer.at for offer in reversed(self.offers)}
        return [first[caller] - at for caller, at in sent.items()]

    async def becomes_free(self, number: str, *, waiting: int, calls: int) -> list[float]:
        """Seconds from an agent's BYE to the next INVITE to him, while so many wait; who is served is replaced."""
        for _ in range(waiting):
            call = await self._dial(number, self._next_caller())
            await call.wait_answered(10)
            await asyncio.sleep(0.03)
        async with self._serving(lambda: self._random.uniform(0.3, 1.7)):
            while len(self.offers) < calls + len(self.agents):
                seen = len(self.offers)
                await self._until_offers(seen + 1)
                for _ in range(len(self.offers) - seen):
                    await self._dial(number, self._next_caller())
        return [offer.after for offer in self.offers if offer.after is not None]

    async def until_both_hear(self, number: str, trial: int) -> float:
        """Seconds from the agent's answer to the later of the two first tones."""
        (agent,) = self.agents
        async with self.house.caller(f"1390000{trial:04}") as citizen:
            call = await citizen.dial(number)
            call.play(tone(TONES["caller"], 1), loop=True)
            desk = await agent.next_call(10)
            await call.wait_answered(10)
            desk.play(tone(TONES["agent"], 1), loop=True)
            answered = time.monotonic()
            await desk.answer()

            async def look() -> list[float | None]:
                return [
                    first_heard(call, TONES["agent"], since=answered),
                    first_heard(desk, TONES["caller"], since=answered),
                ]

            heard = await until(look, lambda seen: None not in seen, seconds=5)
            await desk.hang_up()
            await call.ended.wait(5)
        return float(max(heard)) - answered

    def _next_caller(self) -> str:
        self._dialled += 1
        return f"138{self._dialled:08}"

    async def _dial(self, number: str, caller: str) -> Call:
        """A caller who neither speaks nor listens: his audio shall not cost the machine what is measured."""
        call = await self.trunk.dial(number, caller=caller)
        call.mute()
        asyncio.get_running_loop().remove_reader(call.stream._socket)  # nothing public is deaf
        return call

    async def _until_offers(self, count: int) -> None:
        async with asyncio.timeout(30), self.offered:
            await self.offered.wait_for(lambda: len(self.offers) >= count)

    @contextlib.asynccontextmanager
    async def _serving(self, talk_seconds: Callable[[], float]) -> AsyncIterator[None]:
        self.offers.clear()
        async with asyncio.TaskGroup() as tasks:
            serving = [
                tasks.create_task(self._serve(phone, talk_seconds), name=f"agent {phone.user}")
                for phone in self.agents
            ]
            yield
            for task in serving:
                task.cancel()

    async def _serve(self, phone: Phone, talk_seconds: Callable[[], float]) -> None:
        hung_up: float | None = None
        async with asyncio.TaskGroup() as goodbyes:
            while True:
                call = await phone.next_call(120)
                now = time.monotonic()
                after = None if hung_up is None else now - hung_up
                self.offers.append(Offer(phone.user, call.caller.user, now, after))
                async with self.offered:
                    self.offered.notify_all()
                await call.answer()
                await asyncio.sleep(talk_seconds())
                hung_up = time.monotonic()
                goodbyes.create_task(_hang_up(call), name=f"goodbye of {phone.user}")


async def _hang_up(call: Call) -> None:
    with contextlib.suppress(SipRefused):
        await call.hang_up()


# --- the house ----------------------------------------------------------------------------------------------


def _on_both_lines(
    agents: int,
    measure: Callable[[Hall, str], Coroutine[Any, Any, Spread]],
    *,
    at_phones: int | None = None,
) -> tuple[Spread, Spread]:
    """Measure our line, then the native one, each with its own agents at the same phones."""

    async def both(house: House) -> tuple[Spread, Spread]:
        async with at_work(house, at_phones or agents, hears=agents == 1) as (hall, people):
            ours = await measure(hall, OURS)
            for person in people:
                await person.set("not_ready", "rest")
            await _quiet(house, hall)
            native = await measure(hall, NATIVE)
            await _quiet(house, hall)
        return ours, native

    with standing(agents) as house:
        return asyncio.run(both(house))


async def _quiet(house: House, hall: Hall) -> None:
    """Everybody who still waits gives up; no channel is left."""
    async with asyncio.TaskGroup() as goodbyes:
        for call in [*hall.trunk.calls.values()]:
            goodbyes.create_task(_hang_up(call), name="a caller gives up")
    await until(house.channels, lambda left: not left, seconds=20)


@contextlib.asynccontextmanager
async def at_work(
    house: House, agents: int, *, hears: bool = False, codecs: tuple[Codec, ...] = CODECS
) -> AsyncIterator[tuple[Hall, list[Person]]]:
    """Everybody logged in, at his phone and ready; ``hears``: the phones keep what they are sent."""
    async with AsyncExitStack() as stack:
        pacer = await stack.enter_async_context(Pacer())
        turns = asyncio.Semaphore(LOGINS_AT_ONCE)

        async def comes(number: int) -> Person:
            async with turns:
                rest: Rest = await stack.enter_async_context(house.rest(f"bench{number}"))
            phone = await stack.enter_async_context(
                _phone(house, f"{_phone_number(number)}", "demo", pacer, hears=hears, codecs=codecs)
            )
            await phone.register()
            person = Person(house, f"bench{number}", rest, phone)
            await person.until(lambda me: me["agent"]["phone_reachable"])
            await person.set("ready")
            return person

        people = await asyncio.gather(*(comes(number) for number in range(agents)))
        trunk = await stack.enter_async_context(
            _phone(house, "13800000000", None, pacer, hears=hears, codecs=codecs)
        )
        yield Hall(house, [person.phone for person in people], trunk), people


def _phone(
    house: House, user: str, password: str | None, pacer: Pacer, *, hears: bool, codecs: tuple[Codec, ...]
) -> Phone:
    return Phone(
        user=user,
        password=password,
        server=("127.0.0.1", house.sip),
        bind="127.0.0.1",
        keep_audio=hears,
        pacer=pacer,
        codecs=codecs,
    )


@contextlib.contextmanager
def standing(
    agents: int,
    *,
    start: str = "人工",
    nodes: Mapping[str, object] = NODES,
    before_queue: Callable[[House], Sequence[str]] = lambda _: (),
) -> Iterator[House]:
    """A running house with so many agents at a queue of their own, and the native line beside it.

    ``start`` and ``nodes`` are our line's flow, ``before_queue`` what the native line's dialplan does first.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        # Wherever compiled modules may not be written, every start compiles them all again: 2 s that are not the engine's.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{directory}/pyc"}
        ports = {"CALLCENTER_SIP__RTP_START": f"{RTP_START}", "CALLCENTER_SIP__RTP_END": f"{RTP_END}"}
        house = House(Path(directory) / "h", settings=compiled | ports)
        try:
            flow = {
                "line": OURS,
                "name": {"zh": "测量", "en": "Measuring"},
                "numbers": [OURS],
                "start": start,
                "nodes": dict(nodes),
            }
            (house.flows / f"{OURS}.yaml").write_text(yaml.safe_dump(flow, allow_unicode=True), "utf-8")
            content = Path(directory) / "content.yaml"
            content.write_text(yaml.safe_dump(_content(agents), allow_unicode=True), "utf-8")
            houses.prepared(house, offer_seconds=10, wrap_up_seconds=0)
            asyncio.run(_seed(house, content))
            house.start()
            _add_native(house, agents, before_queue(house))
            yield house
        finally:
            house.close()


def _content(agents: int) -> dict[str, object]:
    return {
        "password": "demo",
        "phone_secret": "demo",
        "skills": [{"skill": "bench", "zh": "测量", "en": "Measuring"}],
        "queues": [
            {
                "queue": "bench",
                "zh": "测量队列",
                "en": "Measuring",
                "skill": "bench",
                "offer_seconds": 10,
                "wrap_up_seconds": 0,
            }
        ],
        "users": [
            {
                "user": f"bench{number}",
                "name": f"测量{number}",
                "roles": ["agent"],
                "phone": _phone_number(number),
                "skills": {"bench": 3},
            }
            for number in range(agents)
        ],
    }


def _phone_number(number: int) -> str:
    return f"{20_000 + number}"


async def _seed(house: House, content: Path) -> None:
    async with Database.connect(f"sqlite:///{house.data / 'callcenter.db'}") as database:
        await Directory(database).seed(content)


def _add_native(house: House, agents: int, before_queue: Sequence[str]) -> None:
    configuration = next(house.data.glob("asterisk/**/etc/asterisk.conf"))
    # As our own line does: the trunk's endpoint says nothing of who calls.
    number = "Set(FROM=${CHANNEL(pjsip,remote_uri)})", "Set(CALLERID(num)=${PJSIP_PARSE_URI_FROM(FROM,user)})"
    steps = [*number, "Answer(,i)", *before_queue, "Queue(bench)", "Hangup()"]
    with (configuration.parent / "extensions.conf").open("a", encoding="utf-8") as file:
        file.write(f"\n[from-trunk](+)\nexten => {NATIVE},1,NoOp()\n")
        file.writelines(f" same => n,{step}\n" for step in steps)
    members = "".join(f"member = PJSIP/{_phone_number(number)}\n" for number in range(agents))
    with (configuration.parent / "queues.conf").open("a", encoding="utf-8") as file:
        file.write(f"\n[bench]\nstrategy = leastrecent\ntimeout = 10\nretry = 1\nringinuse = no\n{members}")
    for command in ("dialplan reload", "queue reload all"):
        subprocess.run(
            [*shared_install().command, "-C", str(configuration), "-rx", command],
            check=True,
            capture_output=True,
            timeout=20,
        )
    time.sleep(HEARTBEAT_SECONDS)
