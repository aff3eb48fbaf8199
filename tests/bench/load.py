"""What a call costs: engine and Asterisk under so many calls a second, beside a plain dialplan on the same Asterisk.

Both lines greet, queue, ring an agent, let them talk and record it: ours writes tickets, tells every console what
changes and records each party; the other is `Playback`, `MixMonitor` and `Queue()`. The engine is gone while the
other line is measured, so nothing that Asterisk does for it is counted there. The audio of nearly all phones comes from
a small C program (tests/bench/sound.c): theirs, in Python, would take the CPU that is measured.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from callcenter.phone.g711 import Codec
from callcenter.phone.measure import shares, tone
from callcenter.phone.phone import Call, Phone, SipRefused
from tests.bench.media import Sound, sound_program
from tests.bench.process import asterisk_pid
from tests.bench.rows import Row, judged, spread
from tests.bench.telephony import NATIVE, NODES, OURS, Hall, at_work, standing
from tests.e2e.house import TONES, House, Person, until

GREETING = "welcome_12345"
TALK_SECONDS = 10.0
OFFER_SECONDS = 10.0
"""An agent's phone that rings later than this after the caller's INVITE is a failure."""
AGENTS, CONSOLES = 120, 90
"""A hundred talk at any time: nobody waits for an agent, on neither line."""
HEARD_EVERY = 20
"""Of so many calls one is listened to at both ends."""
HEARD_SHARE, HEARD_SECONDS = 0.8, 0.6
"""Of the packets of its last moments so many hold the other's tone."""
SETTLE_SECONDS = 3.0
RATES = (10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)
STEP_SECONDS = 6.0
SHORT_TALK_SECONDS = 1.5
"""So that there are agents enough for any of the rates."""
LATE_SECONDS = 0.5
"""Our phones, later than this, are what is measured."""
ALAW = (Codec.PCMA,)
"""What the program speaks."""
_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Run:
    """What became of one line's calls, and what they cost."""

    talk_seconds: float = TALK_SECONDS
    placed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    heard: int = 0
    to_ring: list[float] = field(default_factory=list)
    late: float = 0.0
    """The worst lag of our own phones, in seconds: not the system's."""
    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds by process, with all its threads and children."""

    @property
    def a_call(self) -> float:
        """Milliseconds of CPU."""
        return sum(self.cpu.values()) / self.placed * 1000

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {spent / self.placed * 1000:.0f} ms = {spent / self.seconds:.0%} of a core"
            for name, spent in self.cpu.items()
        )
        failed = f"{self.failures.total()} of {self.placed} failed"
        reasons = f" ({', '.join(f'{why}: {count}' for why, count in self.failures.items())})"
        return (
            f"{self.a_call:.0f} ms of CPU a call ({parts}); {failed}{reasons if self.failures else ''}, "
            f"{self.heard} heard at both ends"
        )


def load(*, a_second: float = 10.0, seconds: float = 30.0) -> list[Row]:
    """CPU of engine and Asterisk a call."""
    with sound_program() as sound, _both_lines() as house:
        ours, shown, native = asyncio.run(_measured(house, sound, a_second=a_second, seconds=seconds))
    well = not ours.failures and not native.failures
    what = f"{a_second:g} calls/s, {TALK_SECONDS:g} s of talk, {AGENTS} agents"
    beside = f"Playback, MixMonitor, Queue(): {native}; phones late by {native.late * 1000:.0f} ms"
    return [
        judged(
            what,
            ours=f"{ours}; phones late by {ours.late * 1000:.0f} ms",
            beside=beside,
            target="CPU ≤ 1.25 ×",
            met=well and ours.a_call <= 1.25 * native.a_call,
        ),
        Row(
            f"{what}, {CONSOLES} of them with consoles",
            f"{shown}; phones late by {shown.late * 1000:.0f} ms",
            f"{native.a_call:.0f} ms",
        ),
        Row(
            f"caller's INVITE, greeting, agent's INVITE at {a_second:g} calls/s",
            f"{spread(ours.to_ring)}",
            f"native: {spread(native.to_ring)}",
        ),
    ]


def rate() -> list[Row]:
    """The first of some rates at which a call fails, on our line and on the plain one."""
    with sound_program() as sound, _both_lines() as house:
        ours, native = asyncio.run(_climbed(house, sound))
    return [
        Row(
            f"first rate with a failed call, {SHORT_TALK_SECONDS:g} s of talk, {AGENTS} agents, {CONSOLES} consoles",
            f"{_climb(ours)}",
            f"Playback, MixMonitor, Queue(): {_climb(native)}",
        )
    ]


def _climb(runs: dict[float, Run]) -> str:
    *_, (a_second, last) = runs.items()
    if last.late > LATE_SECONDS:
        return f"up to {a_second:g} calls/s; there the phones were {last.late * 1000:.0f} ms late and are the limit"
    if not last.failures:
        return f"none up to {a_second:g} calls/s"
    return f"{a_second:g} calls/s: {last}"


async def _climbed(house: House, sound: Sound) -> tuple[dict[float, Run], dict[float, Run]]:
    async with at_work(house, AGENTS, hears=True, codecs=ALAW) as (hall, people):
        asterisk = asterisk_pid(house.data)
        async with _consoles(house, people[:CONSOLES]):
            ours = await _steps_up(hall, sound, OURS, {"engine": house.pid, "Asterisk": asterisk})
        house.kill()
        native = await _steps_up(hall, sound, NATIVE, {"Asterisk": asterisk})
    return ours, native


async def _steps_up(hall: Hall, sound: Sound, number: str, processes: dict[str, int]) -> dict[float, Run]:
    """Faster and faster, until a call fails or the phones fall behind."""
    runs: dict[float, Run] = {}
    for a_second in RATES:
        run = runs[a_second] = await _load(
            hall,
            sound,
            number,
            processes,
            a_second=a_second,
            seconds=STEP_SECONDS,
            talk_seconds=SHORT_TALK_SECONDS,
        )
        if run.failures or run.late > LATE_SECONDS:
            break
    return runs


@contextlib.contextmanager
def _both_lines() -> Iterator[House]:
    nodes = {"欢迎": {"play": {"prompts": [GREETING]}, "next": "人工"}, **NODES}
    with standing(AGENTS, start="欢迎", nodes=nodes, before_queue=_plain_steps) as house:
        yield house


def _plain_steps(house: House) -> Sequence[str]:
    prompt = house.flows / "prompts" / "audio" / GREETING
    return f"Playback({prompt})", f"MixMonitor({house.directory}/${{UNIQUEID}}.wav,b)"


async def _measured(house: House, sound: Sound, *, a_second: float, seconds: float) -> tuple[Run, Run, Run]:
    """Our line without consoles and with them, and the plain one."""
    async with at_work(house, AGENTS, hears=True, codecs=ALAW) as (hall, people):
        asterisk = asterisk_pid(house.data)
        both = {"engine": house.pid, "Asterisk": asterisk}
        ours = await _load(hall, sound, OURS, both, a_second=a_second, seconds=seconds)
        async with _consoles(house, people[:CONSOLES]):
            shown = await _load(hall, sound, OURS, both, a_second=a_second, seconds=seconds)
        house.kill()
        native = await _load(hall, sound, NATIVE, {"Asterisk": asterisk}, a_second=a_second, seconds=seconds)
    return ours, shown, native


async def _load(
    hall: Hall,
    sound: Sound,
    number: str,
    processes: dict[str, int],
    *,
    a_second: float,
    seconds: float,
    talk_seconds: float = TALK_SECONDS,
) -> Run:
    """So many calls a second for a while, until the last is over and all that is written of it is written."""
    run = Run(talk_seconds)
    before = {name: _cpu_seconds(pid) for name, pid in processes.items()}
    hall.trunk.pacer.largest_delay = 0.0
    began = time.monotonic()
    async with asyncio.TaskGroup() as desks:
        serving = [
            desks.create_task(_serve(phone, sound, talk_seconds), name=f"agent {phone.user}")
            for phone in hall.agents
        ]
        async with asyncio.TaskGroup() as callers:
            for turn in range(round(a_second * seconds)):
                due = began + turn / a_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                run.late = max(run.late, time.monotonic() - due)
                callers.create_task(_call(hall, sound, number, turn, run), name=f"caller {turn}")
        await asyncio.sleep(SETTLE_SECONDS)
        for task in serving:
            task.cancel()

    async def to_encode() -> int:
        return len(hall.house.raw_recordings())

    await until(to_encode, lambda left: not left, seconds=60)
    run.late = max(run.late, hall.trunk.pacer.largest_delay)
    run.seconds = time.monotonic() - began
    run.cpu = {name: _cpu_seconds(pid) - before[name] for name, pid in processes.items()}
    return run


# --- people -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Talk:
    rang: asyncio.Future[float]
    heard_at_desk: bool = False


_talks: dict[str, _Talk] = {}
"""By the caller's number, which is all that the agent's phone is told."""


async def _call(hall: Hall, sound: Sound, number: str, turn: int, run: Run) -> None:
    run.placed += 1
    listens = turn % HEARD_EVERY == 0
    caller = f"138{turn:08}"
    talk = _talks[caller] = _Talk(asyncio.get_running_loop().create_future())
    try:
        began = time.monotonic()
        call = await hall.trunk.dial(number, caller=caller)
        await call.wait_answered(OFFER_SECONDS)
        _speaks(call, sound, "caller", listens=listens)
        async with asyncio.timeout(OFFER_SECONDS):
            rang = await talk.rang
        run.to_ring.append(rang - began)
        await asyncio.sleep(run.talk_seconds - 0.5)
        heard = _hears(call, "agent") if listens else True
        async with asyncio.timeout(OFFER_SECONDS):
            await call.ended
        if listens:
            run.heard += heard and talk.heard_at_desk
            if not (heard and talk.heard_at_desk):
                run.failures["one did not hear the other"] += 1
    except TimeoutError:
        run.failures["no agent" if not talk.rang.done() else "did not end"] += 1
        with contextlib.suppress(SipRefused):
            await call.hang_up()
    finally:
        sound.leaves(call)
        del _talks[caller]


async def _serve(phone: Phone, sound: Sound, talk_seconds: float) -> None:
    """An agent takes what comes, talks and hangs up."""
    while True:
        call = await phone.next_call(600)
        talk = _talks.get(call.caller.user)
        if talk is None or talk.rang.done():
            continue
        talk.rang.set_result(time.monotonic())
        listens = int(call.caller.user.removeprefix("138")) % HEARD_EVERY == 0
        try:
            await call.answer()
            await call.wait_answered(OFFER_SECONDS)
            _speaks(call, sound, "agent", listens=listens)
            await asyncio.sleep(talk_seconds)
            talk.heard_at_desk = listens and _hears(call, "caller")
            await call.hang_up()
        except SipRefused:
            continue  # the caller tells what went wrong
        finally:
            sound.leaves(call)


def _speaks(call: Call, sound: Sound, who: str, *, listens: bool) -> None:
    """Everybody speaks; who is listened to does so himself, for all others it is the program."""
    if listens:
        call.play(tone(TONES[who], 1), loop=True)
    else:
        sound.takes(call, "l")


def _hears(call: Call, who: str) -> bool:
    return shares(call, {who: TONES[who]}, since=time.monotonic() - HEARD_SECONDS)[who] > HEARD_SHARE


@contextlib.asynccontextmanager
async def _consoles(house: House, people: Sequence[Person]) -> AsyncIterator[None]:
    """A console for everybody, which reads all it is told."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        session = await stack.enter_async_context(aiohttp.ClientSession(house.url))
        screens = []
        for number, person in enumerate(people):
            socket = await stack.enter_async_context(session.ws_connect("/api/v1/console"))
            hello = {
                "type": "hello",
                "version": 1,
                "token": person.rest.token,
                "client": f"bench-{number:04}",
            }
            await socket.send_json(hello)
            await socket.receive()
            screens.append(tasks.create_task(_reads(socket), name=f"console {number}"))
        yield
        for screen in screens:
            screen.cancel()


async def _reads(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


# --- the machine --------------------------------------------------------------------------------------------


def _cpu_seconds(pid: int) -> float:
    """proc(5): utime, stime, cutime and cstime are the 14th to the 17th field of stat."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(map(int, after_name[11:15])) / _HERTZ
