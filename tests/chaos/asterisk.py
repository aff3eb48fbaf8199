"""Asterisk is killed, hangs, or dies with the engine, with a caller at every stage.

Its calls are lost, and their records say so. What is promised is what comes after: the phones, which do not know that
anything happened and register again in their own time, are rung as soon as it is back.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.chaos.audit import RESTING, Audit, audit
from tests.chaos.city import AGENT_VOICE, City, Person, answered, living
from tests.chaos.kill import Stages
from tests.e2e.house import ROOT, House, ProblemError, hears, until, until_hears

AGENTS, IDLE, SPECIALISTS = 9, 2, 3
TRUE_SECONDS = 5.0
"""So soon after its return the phones can be rung and every state is true."""
STOPPED_SECONDS = 20.0
BACK_SECONDS = 60.0


class Fault(Enum):
    KILLED = "Asterisk killed"
    KILLED_TOGETHER = "Asterisk and the engine killed together"
    STOPPED = f"Asterisk stands still for {STOPPED_SECONDS:.0f} s"
    HUNG = "Asterisk hangs for good"


@dataclass(slots=True)
class Return:
    """What followed; seconds."""

    wrong: list[str]
    found: Audit
    away: float
    """From the fault until calls can be steered again."""
    true_after: float
    """From then until every phone can be rung and every state is true."""


async def asterisk_fails(house: House, fault: Fault, *, seed: int) -> Return:
    async with living(house, seed=seed, agents=AGENTS + IDLE, specialists=SPECIALISTS) as city:
        try:
            stages = Stages(city)
            await stages.reached()
            city.rough = True
            began = time.monotonic()
            before = await _on_the_line(city)
            pid = house.asterisk_pid
            city.note("Asterisk", fault.value)
            wrong = await _FAULTS[fault](city, stages, pid)
            await until(lambda: _standing(house), lambda seen: seen == "ok", seconds=BACK_SECONDS)
            away, back = time.monotonic() - began, time.monotonic()
            city.note("Asterisk", "is back")
            if fault is Fault.STOPPED:
                wrong += await _goes_on(stages)
                await city.everybody_goes()
            elif house.asterisk_pid == pid:
                wrong.append("Asterisk was not started again")
            true_after = await _until_true(city, back)
            city.rough = False
            city.forget_silences()
            wrong += await _new_calls(city, [stages.served["talking"][0], *city.agents[-IDLE:]])
            found = await audit(city, lost_audio=True)
            if fault is not Fault.STOPPED:
                wrong += _lost(found, before)
        finally:
            city.write_log(ROOT / "var" / "chaos" / f"asterisk-{fault.name.lower()}.log")
    return Return(wrong + found.wrong, found, away, true_after)


# --- the faults ---------------------------------------------------------------------------------------------


async def _killed(city: City, _: Stages, pid: int) -> list[str]:
    os.kill(pid, signal.SIGKILL)
    await _hang_up_on_silence(city)
    return []


async def _killed_together(city: City, _: Stages, pid: int) -> list[str]:
    """As a service manager or the kernel ends all processes of a service; then it is started again."""
    os.killpg(pid, signal.SIGKILL)
    os.killpg(city.house.pid, signal.SIGKILL)
    await asyncio.to_thread(city.house.wait)
    await asyncio.gather(asyncio.to_thread(city.house.start), _hang_up_on_silence(city))
    return []


async def _stopped(city: City, stages: Stages, pid: int) -> list[str]:
    os.kill(pid, signal.SIGSTOP)
    try:
        await until(lambda: _standing(city.house), lambda seen: seen != "ok", seconds=15)
        await asyncio.sleep(STOPPED_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    return stages.cut_off() + ([] if city.house.asterisk_pid == pid else ["Asterisk was killed too early"])


async def _hung(city: City, _: Stages, pid: int) -> list[str]:
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: _standing(city.house), lambda seen: seen != "ok", seconds=15)
    await _hang_up_on_silence(city)
    told = [line for line in city.house.log_lines() if line.get("key") == "asterisk_hung"]
    return [] if told else ["nobody was told that Asterisk hung"]


_FAULTS: dict[Fault, Callable[[City, Stages, int], Awaitable[list[str]]]] = {
    Fault.KILLED: _killed,
    Fault.KILLED_TOGETHER: _killed_together,
    Fault.STOPPED: _stopped,
    Fault.HUNG: _hung,
}


async def _hang_up_on_silence(city: City) -> None:
    """Nobody hears anything any more: everybody hangs up, which nobody confirms before Asterisk is back."""
    await asyncio.sleep(1)
    await city.everybody_goes()


# --- afterwards ---------------------------------------------------------------------------------------------


async def _standing(house: House) -> str:
    with suppress(OSError, ProblemError):
        async with house.rest() as nobody:
            return str((await nobody.get("/healthz"))["standing"])
    return "away"


async def _on_the_line(city: City) -> list[str]:
    calls = (await city.leader.get("/api/v1/calls"))["calls"]
    return [call["call_id"] for call in calls if call["phase"] != "ended"]


async def _until_true(city: City, back: float) -> float:
    """Seconds from ``back`` until nobody is in a call and everybody's phone can be rung."""

    async def odd() -> list[str]:
        agents = (await city.leader.get("/api/v1/agents"))["agents"]
        ours = {person.user for person in (*city.agents, *city.specialists)}
        return await _on_the_line(city) + [
            f"{agent['user_id']} {agent['state']} reachable {agent['phone_reachable']}"
            for agent in agents
            if agent["user_id"] in ours
            and (agent["state"] not in {*RESTING, "wrap_up"} or not agent["phone_reachable"])
        ]

    await until(odd, lambda seen: not seen, seconds=30)
    return time.monotonic() - back


async def _goes_on(stages: Stages) -> list[str]:
    """Who talked hears the other one again."""
    wrong = []
    for stage in ("talking", "talking too"):
        call = stages.served[stage][1].call
        try:
            await until_hears(call, "agent", seconds=15)
        except AssertionError:
            wrong.append(f"{stage}: the caller hears {hears(call)}")
    return wrong


async def _new_calls(city: City, people: list[Person]) -> list[str]:
    """One caller for each of some agents whose phones have not registered again."""
    wrong = []
    for agent in city.agents:
        await agent.be("not_ready", "rest")
    for agent in people:
        while not agent.rings.empty():
            agent.rings.get_nowait()
        await until(agent.agent, lambda me: me.get("state") != "wrap_up", seconds=30)
        await agent.be("ready")
        citizen = await city.calls()
        try:
            desk = await asyncio.wait_for(agent.rings.get(), 15)
            assert await answered(desk), "the call was taken back"
            desk.play(AGENT_VOICE, loop=True)
            await until_hears(citizen.call, "agent", seconds=10)
        except (TimeoutError, AssertionError) as error:
            wrong.append(f"a new call to {agent.user}: {type(error).__name__} {error}")
        await city.everybody_goes()
        await agent.be("not_ready", "rest")
    return wrong


def _lost(found: Audit, before: list[str]) -> list[str]:
    """Each call that was on the line ended with that reason; who was speaking a message has left it as far as it came."""
    records: dict[str, dict[str, Any]] = {
        record["call_id"]: record for records in found.records.values() for record in records
    }
    reasons = {call_id: records.get(call_id, {}).get("end_reason") for call_id in before}
    return [
        f"call {call_id} ended with {reason}"
        for call_id, reason in reasons.items()
        if reason not in ("telephony_lost", "message_left")
    ]
