"""How evenly many recorded calls are heard: real Asterisk, our engine, and the phones' audio from a small C program.

The phones' signalling is Python; their UDP sockets are handed to the program (tests/bench/sound.c), for Python could
not send twenty thousand packets a second beside Asterisk on two cores.
"""

import array
import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from callcenter.domain.calls import Place
from callcenter.phone.g711 import Codec
from callcenter.phone.phone import Call, Phone
from tests.bench.process import Footprint, asterisk_pid
from tests.bench.rows import Row, Verdict, judged
from tests.bench.site import LINE, Staff, all_ready, phones, site, trunk
from tests.e2e.house import House, Person, ProblemError, until

SOURCE = Path(__file__).with_name("sound.c")
CALLS_A_SECOND = 5.0
SETTLE_SECONDS = 3.0
RINGS_WITHIN_SECONDS = 30.0
TWO, THREE = "c", "r"
"""The kinds of streams: of two-party calls, and of rooms."""


def media(*, pairs: int = 150, rooms: int = 40, seconds: float = 30.0) -> list[Row]:
    """Gaps in what every party hears, first with recorded calls alone, then with recorded rooms beside them."""
    staff = Staff(agents=pairs + rooms, specialists=rooms)
    with sound_program() as sound, site(staff) as house:
        house.start()
        return asyncio.run(_measure(house, staff, sound, pairs=pairs, rooms=rooms, seconds=seconds))


async def _measure(
    house: House, staff: Staff, sound: "Sound", *, pairs: int, rooms: int, seconds: float
) -> list[Row]:
    async with AsyncExitStack() as stack:
        hall = await stack.enter_async_context(_hall(house, staff, sound))
        for _ in range(pairs):
            await hall.calls(TWO)
        await hall.until_talking(pairs)
        rows = [await _window(f"{pairs} recorded two-party calls", house, hall, seconds)]
        what = f"{pairs} recorded two-party calls and {rooms} recorded rooms of three"
        try:
            for _ in range(rooms):
                await hall.calls(THREE)
            await hall.until_talking(pairs + rooms)
            for expert, at in zip(hall.experts, range(rooms), strict=True):
                await hall.brings_in(expert, staff.specialist_users[at][0], hall.talks[pairs + at])
        except (TimeoutError, AssertionError, ProblemError) as error:
            # What was measured before it is not lost.
            rows.append(Row(what, f"the rooms were not made: {error}", verdict=Verdict.FAILED))
            hall.sound.close()
            return rows
        rows.append(await _window(what, house, hall, seconds))
        expected = pairs + 3 * rooms
        recorded = len(house.raw_recordings())
        if recorded < expected:
            rows.append(Row("recordings of these calls", f"{recorded} of {expected}", verdict=Verdict.FAILED))
        hall.sound.close()
    return rows


async def _window(what: str, house: House, hall: "Hall", seconds: float) -> Row:
    await asyncio.sleep(SETTLE_SECONDS)
    pids = {"Asterisk": asterisk_pid(house.data), "engine": house.pid, "generator": hall.sound.pid}
    before = {name: Footprint.of(pid) for name, pid in pids.items()}
    hall.sound.begin()
    await asyncio.sleep(seconds)
    heard = hall.sound.report()
    cpu = ", ".join(
        f"{name} {(Footprint.of(pid).cpu_seconds - before[name].cpu_seconds) / seconds:.0%}"
        for name, pid in pids.items()
    )
    kinds = [heard[kind] for kind in (TWO, THREE) if kind in heard]
    total = {
        key: sum(kind[key] for kind in kinds) for key in ("streams", "received", "lost", "gaps", "our_gaps")
    }
    due = total["streams"] * seconds * 50
    return judged(
        f"{what}: gaps over 60 ms in what each party hears, {seconds:g} s",
        ours=f"{total['gaps']} of {total['received']:,} packets, largest "
        f"{max(kind['largest_not_ours_ms'] for kind in kinds):.0f} ms; lost {total['lost']}; CPU: {cpu} of a core",
        beside=f"of the generator's own making: {total['our_gaps']}; it sent late by {heard['late_p99_ms']:.1f} ms (p99), "
        f"{heard['late_worst_ms']:.0f} ms (worst)",
        target="no gap over 60 ms",
        met=total["gaps"] == 0 and total["received"] >= 0.98 * due,
    )


# --- people -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Desk:
    """An agent with a caller."""

    user: str
    phone: Phone


class Hall:
    """Agents and experts at their phones, and one trunk; all their audio is the program's."""

    def __init__(
        self, house: House, sound: "Sound", desks: list[Desk], experts: list[Phone], line: Phone
    ) -> None:
        self.house, self.sound, self.desks, self.experts, self.line = house, sound, desks, experts, line
        self.talks: list[Desk] = []
        """In the order of the calls."""
        self._kind = TWO
        self._placed = 0

    async def calls(self, kind: str) -> None:
        """One more citizen; an agent takes him."""
        self._kind = kind
        self._placed += 1
        call = await self.line.dial(LINE, caller=f"138{self._placed:08}")
        await call.wait_answered(10)
        self.sound.takes(call, kind)
        await self.until_talking(self._placed)
        await asyncio.sleep(1 / CALLS_A_SECOND)

    async def serves(self, desk: Desk) -> None:
        """Take one call and keep it."""
        call = await desk.phone.next_call(600)
        await _answered(call)
        self.sound.takes(call, self._kind)
        self.talks.append(desk)

    async def until_talking(self, count: int) -> None:
        async def look() -> int:
            return len(self.talks)

        await until(look, lambda talks: talks >= count, seconds=30)

    async def brings_in(self, expert: Phone, user: str, desk: Desk) -> None:
        """The agent asks an expert, and then all three talk."""
        async with self.house.rest(desk.user) as rest:
            agent = Person(self.house, desk.user, rest, desk.phone)
            call_id = await agent.call_id()
            await agent.does("invite", call_id, user=user)
            call = await expert.next_call(RINGS_WITHIN_SECONDS)
            await _answered(call)
            self.sound.takes(call, THREE)

            async def look() -> Any:
                return await agent.call(call_id)

            await until(look, lambda seen: all(leg["answered_at"] for leg in seen["legs"][1:]))
            await agent.does("merge", call_id)
            await until(look, lambda seen: all(leg["place"] == Place.TOGETHER for leg in seen["legs"]))


async def _answered(call: Call) -> None:
    await call.answer()
    await call.wait_answered(5)


@contextlib.asynccontextmanager
async def _hall(house: House, staff: Staff, sound: "Sound") -> AsyncIterator[Hall]:
    numbers = [phone for _, phone in (*staff.agent_users, *staff.specialist_users)]
    async with (
        phones(house, numbers, codecs=(Codec.PCMA,)) as everybody,
        trunk(house, codecs=(Codec.PCMA,)) as line,
        asyncio.TaskGroup() as tasks,
    ):
        await all_ready(house, staff)
        desks = [Desk(user, phone) for (user, _), phone in zip(staff.agent_users, everybody, strict=False)]
        hall = Hall(house, sound, desks, everybody[staff.agents :], line)
        serving = [tasks.create_task(hall.serves(desk), name=desk.user) for desk in desks]
        yield hall
        for task in serving:
            task.cancel()


# --- the program --------------------------------------------------------------------------------------------


class Sound:
    """The C program: it speaks and listens for every call it is given."""

    def __init__(self, process: subprocess.Popen[str], control: socket.socket, said: IO[str]) -> None:
        self._process, self._control, self._said = process, control, said
        self._ports: dict[Call, int] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def takes(self, call: Call, kind: str) -> None:
        """Have the program speak and listen in the place of the phone's own audio."""
        stream = call.stream
        call.phone.pacer.remove(stream)
        call.phone.loop.remove_reader(stream._socket)  # nothing public is deaf
        assert stream._remote is not None
        self._ports[call] = stream._remote[1]
        descriptor = array.array("i", [stream._socket.fileno()])
        self._control.sendmsg(
            [f"A{kind}{stream._remote[1]}".encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)]
        )

    def leaves(self, call: Call) -> None:
        """The call is over, if it ever began to sound; its port may be another's next."""
        if call in self._ports:
            self._control.send(f"E{self._ports.pop(call)}".encode())

    def begin(self) -> None:
        self._control.send(b"M")

    def report(self) -> dict[str, Any]:
        self._control.send(b"R")
        counted: dict[str, Any] = json.loads(self._said.readline())
        return counted

    def close(self) -> None:
        """Nobody speaks any more."""
        self._control.close()


@contextlib.contextmanager
def sound_program() -> Iterator[Sound]:
    """The program, compiled and running. FileNotFoundError without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("a C compiler is needed (cc): apt-get install gcc libc6-dev")
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, ours, its:
        program = Path(directory) / "sound"
        subprocess.run([compiler, "-O2", "-std=gnu11", "-o", str(program), str(SOURCE)], check=True)
        with subprocess.Popen([program], stdin=its, stdout=subprocess.PIPE, text=True) as process:
            its.close()
            assert process.stdout is not None
            try:
                yield Sound(process, ours, process.stdout)
            finally:
                process.kill()
