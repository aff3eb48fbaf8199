"""What thousands of real calls leave behind in the engine and in Asterisk: memory, files, threads, unwritten records."""

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from callcenter.phone.phone import Call, Phone, SipRefused
from tests.bench.process import Footprint, asterisk_pid
from tests.bench.rows import Row, judged
from tests.bench.site import LINE, Staff, all_ready, phones, site, trunk
from tests.e2e.house import House, until

FEW, MANY = 500, 5_000
CALLS_A_SECOND = 10.0
AGENTS = 60
GROWTH_MB = 10.0
TALK_SECONDS = (0.2, 0.8)
MEGABYTES_A_CALL = 0.5
SOAK_SECONDS = float(os.environ.get("BENCH_SOAK_SECONDS", "1800"))
SOAK_CALLS_A_SECOND = 3.0
SOAK_LOOK_SECONDS = 5.0
SOAK_WARM_UP = 0.2
"""Of the time; the slopes are of the rest."""


def growth(*, few: int = FEW, many: int = MANY, a_second: float = CALLS_A_SECOND) -> list[Row]:
    """Memory after many calls against that after few; greeted, queued, answered, recorded, written as tickets."""
    staff = Staff(AGENTS)
    with site(staff, greeted=True) as house:
        _require_room(house, many)
        house.start()
        return asyncio.run(_grow(house, staff, few=few, many=many, a_second=a_second))


def _require_room(house: House, calls: int) -> None:
    free = shutil.disk_usage(house.directory).free / 1e6
    if free < calls * MEGABYTES_A_CALL:
        raise RuntimeError(f"{house.directory}: too little room for the recordings of {calls:,} calls")


async def _grow(house: House, staff: Staff, *, few: int, many: int, a_second: float) -> list[Row]:
    async with _hall(house, staff) as hall:
        began = time.monotonic()
        await hall.calls(few, a_second=a_second)
        early = await hall.quiet()
        await hall.calls(many - few, a_second=a_second)
        seconds = time.monotonic() - began
        late = await hall.quiet()
    grown = late.engine.memory_mb - early.engine.memory_mb
    return [
        judged(
            f"engine's memory after {many:,} real calls, recorded ({many / seconds:.1f} calls/s, {hall.served:,} served, {hall.failed} failed)",
            ours=f"{late}",
            beside=f"after {few:,}: {early}",
            target=f"within {GROWTH_MB:g} MB of it",
            met=grown <= GROWTH_MB and hall.served == many and hall.failed == 0,
        )
    ]


def soak() -> list[Row]:
    """A steady trickle for half an hour: is there anything that grows with time or with calls?"""
    staff = Staff(AGENTS)
    calls = int(SOAK_SECONDS * SOAK_CALLS_A_SECOND)
    with site(staff, greeted=True) as house:
        _require_room(house, calls)
        house.start()
        return asyncio.run(_soak(house, staff, calls))


async def _soak(house: House, staff: Staff, calls: int) -> list[Row]:
    looks: list[tuple[float, Look]] = []
    async with _hall(house, staff) as hall:
        began = time.monotonic()

        async def watch() -> None:
            while True:
                looks.append((time.monotonic() - began, Look.at(house)))
                await asyncio.sleep(SOAK_LOOK_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch(), name="watch")
            await hall.calls(calls, a_second=SOAK_CALLS_A_SECOND)
            watching.cancel()
        end = await hall.quiet()
    steady = [(at, look) for at, look in looks if at >= SOAK_SECONDS * SOAK_WARM_UP]
    hours = np.array([at for at, _ in steady]) / 3600

    def slope(values: list[float]) -> float:
        return float(np.polyfit(hours, np.array(values), 1)[0])

    engine = slope([look.engine.memory_mb for _, look in steady])
    asterisk = slope([look.asterisk.memory_mb for _, look in steady])
    files = slope([float(look.engine.files + look.asterisk.files) for _, look in steady])
    return [
        Row(
            f"{SOAK_SECONDS / 60:g} minutes at {SOAK_CALLS_A_SECOND:g} calls/s ({calls:,} calls, {hall.served:,} served, {hall.failed} failed)",
            f"engine {engine:+.1f} MB an hour, Asterisk {asterisk:+.1f}, files {files:+.1f}; at the end {end}",
            f"at the beginning {looks[0][1]}",
        )
    ]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at what is held."""

    engine: Footprint
    asterisk: Footprint
    unwritten: int
    """Bytes of records that wait for the database, beside it."""

    @classmethod
    def at(cls, house: House) -> "Look":
        spill = house.data / "journal.spill"
        return cls(
            Footprint.of(house.pid),
            Footprint.of(asterisk_pid(house.data)),
            spill.stat().st_size if spill.exists() else 0,
        )

    def __str__(self) -> str:
        return f"engine {self.engine}; Asterisk {self.asterisk}; spilled {self.unwritten / 1e6:.1f} MB"


@dataclass
class Hall:
    """Agents who take what comes, and a trunk of citizens in a hurry; nobody listens to what he hears."""

    house: House
    line: Phone
    failed: int = 0
    served: int = 0
    _placed: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    async def calls(self, count: int, *, a_second: float) -> None:
        """So many citizens, evenly; each waits until he is hung up on."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as citizens:
            for number in range(count):
                await asyncio.sleep(began + number / a_second - loop.time())
                self._placed += 1
                citizens.create_task(self._citizen(f"138{self._placed:08}"), name="citizen")

    async def quiet(self) -> Look:
        """Every call has ended, its record is written and its recordings are encoded."""

        async def left() -> int:
            return len(self.house.raw_recordings()) or len(await self.house.channels())

        await until(left, lambda count: count == 0, seconds=120)
        return Look.at(self.house)

    async def serves(self, phone: Phone) -> None:
        """Answer, talk for a moment, hang up."""
        while True:
            call = await phone.next_call(3_600)
            _deaf(call)
            try:
                await call.answer()
                await asyncio.sleep(self._random.uniform(*TALK_SECONDS))
                await call.hang_up()
                self.served += 1
            except SipRefused:
                self.failed += 1

    async def _citizen(self, number: str) -> None:
        try:
            call = await self.line.dial(LINE, caller=number)
            _deaf(call)
            await call.wait_answered(20)
            await call.ended.wait(120)
        except (SipRefused, TimeoutError):
            self.failed += 1


def _deaf(call: Call) -> None:
    """He speaks, for Asterisk writes no file for a party who sent nothing; what he hears is not looked at."""
    with contextlib.suppress(ValueError):  # it has ended already
        asyncio.get_running_loop().remove_reader(call.stream._socket)  # nothing public is deaf


@contextlib.asynccontextmanager
async def _hall(house: House, staff: Staff) -> AsyncIterator[Hall]:
    async with (
        phones(house, [phone for _, phone in staff.agent_users]) as desks,
        trunk(house) as line,
        asyncio.TaskGroup() as tasks,
    ):
        await all_ready(house, staff)
        hall = Hall(house, line)
        serving = [tasks.create_task(hall.serves(phone), name=phone.user) for phone in desks]
        yield hall
        for task in serving:
            task.cancel()
