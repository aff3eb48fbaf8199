"""A city that telephones: callers, agents and specialists who do anything at any time, all of it from one seed.

Everything is seen from outside: every INVITE at every phone, every packet at every caller's ear, REST answers. Each
actor draws from a generator of his own, so that a seed gives the same decisions; the moments are the machine's.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

from callcenter.database import Database
from callcenter.directory.store import Directory
from callcenter.phone.measure import tone
from callcenter.phone.phone import Call, Phone, SipRefused
from callcenter.phone.rtp import Pacer
from tests.e2e.house import TONES, House, ProblemError, Rest, prepared

DEAD_AIR_SECONDS = 8.0
EAR_SECONDS = 0.25
SOUND_LEVEL = 60.0
"""RMS of a packet with music, speech or a tone; silence and comfort noise stay far below."""
RETRY_SECONDS = 0.1


@contextlib.contextmanager
def standing(
    directory: Path,
    *,
    agents: int = 6,
    specialists: int = 3,
    offer_seconds: float = 3,
    wrap_up_seconds: float = 1,
    short_prompts: bool = True,
    settings: dict[str, str] | None = None,
    change: Callable[[House], None] = lambda _: None,
) -> Iterator[House]:
    """A running house with so many people beside the demo's; ``change`` may touch its flows before the start."""
    # Where compiled modules may not be written every start would compile them all again.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{directory}/pyc"}
    house = House(directory / "h", short_prompts=short_prompts, settings=compiled | (settings or {}))
    try:
        change(house)
        content = directory / "content.yaml"
        content.write_text(yaml.safe_dump(_people(agents, specialists), allow_unicode=True), "utf-8")
        prepared(house, offer_seconds=offer_seconds, wrap_up_seconds=wrap_up_seconds)
        asyncio.run(_seed(house, content))
        house.start()
        yield house
    finally:
        house.close()


def _people(agents: int, specialists: int) -> dict[str, object]:
    def person(kind: str, number: int, phone: int, skills: dict[str, int]) -> dict[str, object]:
        user = f"{kind}{number}"
        return {"user": user, "name": user, "roles": [kind], "phone": f"{phone}", "skills": skills}

    return {
        "password": "demo",
        "phone_secret": "demo",
        "skills": [{"skill": skill, "zh": skill, "en": skill} for skill in ("hotline", "market")],
        "users": [
            *(person("agent", 100 + n, 20_000 + n, {"hotline": 3}) for n in range(agents)),
            *(person("specialist", 100 + n, 30_000 + n, {"market": 3}) for n in range(specialists)),
        ],
    }


async def _seed(house: House, content: Path) -> None:
    async with Database.connect(f"sqlite:///{house.data / 'callcenter.db'}") as database:
        await Directory(database).seed(content)


@dataclass(slots=True)
class Offer:
    """A call that rang at a phone of the house; monotonic seconds."""

    phone: str
    caller: str
    at: float
    call: Call

    @property
    def until(self) -> float:
        return self.call.ended.at or float("inf")


@dataclass(slots=True)
class Citizen:
    """One caller as he fared."""

    number: str
    dialled: str
    call: Call
    placed_at: float
    last_sound: float | None = None
    silences: list[tuple[float, float]] = field(default_factory=list)
    """When no sound came, and for how many seconds: those longer than ``DEAD_AIR_SECONDS``."""
    longest_silence: float = 0.0

    def listen(self, now: float) -> None:
        """Take what has come since the last look."""
        call = self.call
        if call.answered.at is None or (call.ended.at is not None and self.last_sound is None):
            return
        before = self.last_sound or call.answered.at
        newest = before
        for packet in reversed(call.packets):
            if packet.arrival <= before:
                break
            samples = call.codec.decode(packet.payload).astype(np.float64)
            if np.sqrt(np.mean(samples * samples)) > SOUND_LEVEL:
                newest = packet.arrival
                break
        silent = (newest if newest > before else min(now, call.ended.at or now)) - before
        if (silent > DEAD_AIR_SECONDS and newest > before) or (
            silent > DEAD_AIR_SECONDS and call.ended.is_set()
        ):
            self.silences.append((before, silent))
        self.longest_silence = max(self.longest_silence, silent)
        self.last_sound = newest


class Person:
    """Somebody of the house: his phone, where every ring is noted, and his session at the screen."""

    def __init__(self, city: "City", user: str, rest: Rest, phone: Phone) -> None:
        self.city, self.user, self.rest, self.phone = city, user, rest, phone
        self.rings: asyncio.Queue[Call] = asyncio.Queue()

    async def note_rings(self) -> None:
        """Every INVITE in its moment, whatever the person is doing."""
        while True:
            with contextlib.suppress(TimeoutError):
                call = await self.phone.next_call(3600)
                self.city.offers.append(Offer(self.phone.user, call.caller.user, time.monotonic(), call))
                self.city.note(self.phone.user, f"rings for {call.caller.user}")
                self.rings.put_nowait(call)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """REST as a screen does it; None when refused or while no engine is there."""
        try:
            async with asyncio.timeout(5):
                return await self.rest._ask(method, path, body)
        except ProblemError as problem:
            self.city.note(
                self.user, f"{path.rpartition('/')[2]}: refused, {problem.reason or problem.status}"
            )
            if problem.status >= 500 and not self.city.rough:
                self.city.troubles.append(f"{self.user}: {method} {path}: {problem}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.city.note(self.user, f"{path.rpartition('/')[2]}: {type(error).__name__}")
            if not self.city.rough:
                self.city.troubles.append(f"{self.user}: {method} {path}: {error!r}")
        return None

    async def does(self, call_id: str, command: str, **body: object) -> Any:
        self.city.note(self.user, f"{command} {call_id} {body or ''}")
        return await self.ask("POST", f"/api/v1/calls/{call_id}/{command}", body)

    async def be(self, state: str, reason: str | None = None) -> None:
        self.city.note(self.user, f"wishes to be {state}")
        await self.ask("PUT", "/api/v1/me/state", {"state": state} | ({"reason": reason} if reason else {}))

    async def agent(self) -> dict[str, Any]:
        """His agent as the screen shows it; empty while no engine is there."""
        me = await self.ask("GET", "/api/v1/me")
        return dict(me["agent"]) if me else {}


@dataclass
class City:
    house: House
    seed: int
    pacer: Pacer
    trunk: list[Phone]
    leader: Rest
    tasks: asyncio.TaskGroup
    agents: list[Person] = field(default_factory=list)
    specialists: list[Person] = field(default_factory=list)
    citizens: list[Citizen] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    rough: bool = False
    """The engine is being killed: that REST does not answer is no trouble."""
    log: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=lambda: time.time() - time.monotonic())

    def note(self, who: str, what: str) -> None:
        """For the reader of a failure."""
        self.log.append(f"{time.monotonic() - self.began:8.3f} {who:14} {what}")

    async def calls(
        self, *, dialled: str = "12345", caller: str | None = None, hears: bool = True
    ) -> Citizen:
        """Somebody dials; his number is his alone. Who does not ``hear`` costs the machine less."""
        number = caller or f"1{self.seed % 1000:03}{len(self.citizens):07}"
        phone = self.trunk[len(self.citizens) % len(self.trunk)]
        call = await phone.dial(dialled, caller=number)
        call.play(_VOICE, loop=True)
        citizen = Citizen(number, dialled, call, time.monotonic())
        self.citizens.append(citizen)
        self.note(number, f"dials {dialled}")
        if not hears:
            call.mute()
            asyncio.get_running_loop().remove_reader(call.stream._socket)
        return citizen

    async def listen(self) -> None:
        """Be the callers' ears."""
        living: list[Citizen] = []
        taken = 0
        while True:
            living += self.citizens[taken:]
            taken = len(self.citizens)
            now = time.monotonic()
            for citizen in living:
                citizen.listen(now)
            living = [citizen for citizen in living if not citizen.call.ended.is_set()]
            await asyncio.sleep(EAR_SECONDS)

    async def everybody_goes(self) -> None:
        """Who is still on the line hangs up."""
        phones = [*self.trunk, *(person.phone for person in (*self.agents, *self.specialists))]
        async with asyncio.TaskGroup() as goodbyes:
            for phone in phones:
                for call in list(phone.calls.values()):
                    goodbyes.create_task(hang_up(call), name="goodbye")

    def forget_silences(self) -> None:
        """What was not heard up to now had a cause that no engine can help."""
        now = time.monotonic()
        for citizen in self.citizens:
            citizen.silences.clear()
            citizen.longest_silence = 0.0
            citizen.last_sound = now if citizen.last_sound is not None else None

    def utc(self, monotonic: float) -> float:
        return monotonic + self.wall

    def write_log(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "\n".join([f"seed {self.seed}", *self.log, "", *self.house.said().splitlines()]), "utf-8"
        )

    def rings_at_once(self, *, patience: float = 0.0) -> list[str]:
        """Phones that had two calls at the same time."""
        found = []
        by_phone: dict[str, list[Offer]] = {}
        for offer in sorted(self.offers, key=lambda offer: offer.at):
            earlier = by_phone.setdefault(offer.phone, [])
            found += [
                f"{offer.phone} rang for {offer.caller} at {offer.at - self.began:.3f}, "
                f"{min(old.until, time.monotonic()) - offer.at:.3f} s before its call of {old.caller} was over"
                for old in earlier
                if old.until > offer.at + patience
            ]
            earlier.append(offer)
        return found


_VOICE = tone(TONES["caller"], 1)
AGENT_VOICE = tone(TONES["agent"], 1)
SPECIALIST_VOICE = tone(TONES["specialist"], 1)


@contextlib.asynccontextmanager
async def living(
    house: House, *, seed: int, agents: int, specialists: int = 0, wire: Callable[..., Phone] = Phone
) -> AsyncIterator[City]:
    """Everybody logged in at a registered phone; nobody ready yet. ``wire`` makes the phones."""

    def phone(user: str, password: str | None, *, ear: int) -> Phone:
        return wire(
            user=user,
            password=password,
            server=("127.0.0.1", house.sip),
            bind="127.0.0.1",
            keep_audio=ear > 0,
            packet_limit=max(1, ear),
            pacer=pacer,
        )

    async with AsyncExitStack() as stack:
        pacer = await stack.enter_async_context(Pacer())
        trunk = [await stack.enter_async_context(phone("13800000000", None, ear=60)) for _ in range(4)]
        leader = await stack.enter_async_context(house.rest("leader1"))
        async with asyncio.TaskGroup() as tasks:
            city = City(house, seed, pacer, trunk, leader, tasks)

            async def comes(kind: str, number: int, first_phone: int) -> Person:
                rest = await stack.enter_async_context(house.rest(f"{kind}{100 + number}"))
                handset = await stack.enter_async_context(phone(f"{first_phone + number}", "demo", ear=0))
                await handset.register()
                return Person(city, f"{kind}{100 + number}", rest, handset)

            city.agents = [await comes("agent", n, 20_000) for n in range(agents)]
            city.specialists = [await comes("specialist", n, 30_000) for n in range(specialists)]
            background = [
                tasks.create_task(person.note_rings(), name=f"rings at {person.user}")
                for person in (*city.agents, *city.specialists)
            ]
            background.append(tasks.create_task(city.listen(), name="ears"))
            for person in (*city.agents, *city.specialists):
                await _until_reachable(person)
            try:
                yield city
                await city.everybody_goes()
            finally:
                for task in background:
                    task.cancel()


async def _until_reachable(person: Person) -> None:
    async with asyncio.timeout(20):
        while not (await person.agent()).get("phone_reachable"):
            await asyncio.sleep(RETRY_SECONDS)


async def hang_up(call: Call) -> None:
    with contextlib.suppress(SipRefused, TimeoutError):
        await call.hang_up()


async def answered(call: Call) -> bool:
    """Pick up; False when the caller was quicker."""
    with contextlib.suppress(SipRefused, TimeoutError):
        await call.answer()
    return call.confirmed.is_set() and not call.ended.is_set()


# --- anybody does anything at any time ----------------------------------------------------------------------


async def caller_lives(city: City, rng: random.Random) -> None:
    """Dial, press keys, hang up at any moment of what follows, or stay to the end."""
    citizen = await city.calls(dialled=rng.choice(("12345", "12345", "12345", "96500", "7220000", "12346")))
    call = citizen.call
    leaves_at = time.monotonic() + rng.choice(
        (rng.uniform(0, 0.3), rng.uniform(0, 2), rng.uniform(1, 8), 12.0)
    )
    while not call.ended.is_set() and time.monotonic() < leaves_at:
        with contextlib.suppress(TimeoutError):
            await call.ended.wait(min(rng.uniform(0.2, 1.5), max(0.01, leaves_at - time.monotonic())))
        if call.answered.is_set() and not call.ended.is_set() and rng.random() < 0.5:
            digit = rng.choice("01239#")
            city.note(citizen.number, f"presses {digit}")
            call.send_digits(digit)
    if not call.ended.is_set():
        city.note(citizen.number, "hangs up")
        await hang_up(call)


async def person_works(person: Person, rng: random.Random, *, voice: Any, steers: bool) -> None:
    """Take, refuse or ignore what rings, ask for anything while talking, be away now and then; until cancelled."""
    city = person.city
    while True:
        if steers:
            await person.be("ready")
        try:
            call = await asyncio.wait_for(person.rings.get(), rng.uniform(0.5, 3))
        except TimeoutError:
            if steers and rng.random() < 0.2:
                away = rng.random() < 0.5
                await person.be(*(("not_ready", "rest") if away else ("logged_out",)))
                await asyncio.sleep(rng.uniform(0, 0.5))
            continue
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0, 0.3), rng.uniform(0, 2))))
        fate = rng.random()
        if call.ended.is_set():
            city.note(person.user, "was too late")
        elif fate < 0.08:
            city.note(person.user, "rejects")
            await call.reject(rng.choice((486, 603, 480)))
        elif fate < 0.14:
            city.note(person.user, "lets it ring")
            with contextlib.suppress(TimeoutError):
                await call.ended.wait(40)
        elif await answered(call):
            city.note(person.user, "answers")
            call.play(voice, loop=True)
            await _converse(person, call, rng, steers=steers)


async def _converse(person: Person, call: Call, rng: random.Random, *, steers: bool) -> None:
    city = person.city
    ends_at = time.monotonic() + rng.choice((0.0, rng.uniform(0, 1), rng.uniform(1, 6)))
    call_id = None
    while not call.ended.is_set() and time.monotonic() < ends_at:
        with contextlib.suppress(TimeoutError):
            await call.ended.wait(rng.uniform(0.02, 0.8))
        if call.ended.is_set() or rng.random() < 0.3:
            continue
        call_id = call_id or (await person.agent()).get("call_id")
        if call_id is not None:
            await _steers(person, call_id, rng, agent=steers)
    if not call.ended.is_set():
        city.note(person.user, "hangs up")
        await hang_up(call)
    if steers and call_id is not None and rng.random() < 0.7:
        await person.does(call_id, "wrap-up", disposition="answered", more_time=rng.random() < 0.2)


async def _steers(person: Person, call_id: str, rng: random.Random, *, agent: bool) -> None:
    """One request; most can be refused at that moment, and then nothing happens."""
    city = person.city
    others = [p for p in (*city.agents, *city.specialists) if p is not person]
    other = rng.choice(others).user
    target: dict[str, object] = rng.choice(({"user": other}, {"user": other}, {"skill": "market"}))
    wishes: list[tuple[str, dict[str, object]]] = [
        ("hold", {}),
        ("resume", {}),
        ("resume", {}),
        ("invite", target | {"privately": rng.random() < 0.6}),
        ("invite", target | {"privately": rng.random() < 0.6}),
        ("merge", {}),
        ("merge", {}),
        ("leave", {}),
        ("transfer", rng.choice(({"agent": other}, {"queue": "hotline"}))),
        ("hangup", {"to_rating": rng.random() < 0.6}),
    ]
    command, body = rng.choice(wishes if agent else [*wishes[:2], ("leave", {})])
    await person.does(call_id, command, **body)


async def random_traffic(city: City, *, calls: int, at_once: int) -> None:
    """So many callers, so many at once; agents and specialists work meanwhile."""
    rng = random.Random(city.seed)
    turns = asyncio.Semaphore(at_once)
    async with asyncio.TaskGroup() as group:
        working = [
            group.create_task(
                person_works(person, random.Random(f"{city.seed} {person.user}"), voice=voice, steers=steers),
                name=person.user,
            )
            for people, voice, steers in (
                (city.agents, AGENT_VOICE, True),
                (city.specialists, SPECIALIST_VOICE, False),
            )
            for person in people
        ]

        async def one(number: int) -> None:
            async with turns:
                await caller_lives(city, random.Random(f"{city.seed} caller {number}"))

        async with asyncio.TaskGroup() as callers:
            for number in range(calls):
                callers.create_task(one(number), name=f"caller {number}")
                await asyncio.sleep(rng.expovariate(6.0))
        for task in working:
            task.cancel()
    await city.everybody_goes()
