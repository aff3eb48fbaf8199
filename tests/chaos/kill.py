"""The engine is killed with SIGKILL: at every stage of a call, at random moments, again while it starts."""

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from callcenter.asterisk.ami import AmiLink, AmiMessage
from callcenter.phone.phone import Call, Side
from tests.bench.rows import Row, judged, spread
from tests.chaos.audit import Audit, audit
from tests.chaos.city import AGENT_VOICE, SPECIALIST_VOICE, Citizen, City, Person, answered, living, standing
from tests.e2e.house import ROOT, House, ProblemError, until, until_hears

LONG_PROMPT, MESSAGE = "99002", "99001"
_LONG = ("welcome_96500", "queue/position_1", "queue/position_2", "queue/position_beyond")
ADOPT_SECONDS = 20.0
"""Longer than this is no adoption."""
OFFER_SECONDS = 25.0
WRAP_UP_SECONDS = 12.0


def flows_for_stages(house: House) -> None:
    """A line that speaks long, one that takes a message at once, and announcements every five seconds."""
    nodes: dict[str, dict[str, Any]] = {
        LONG_PROMPT: {
            "问候": {"play": {"prompts": ["welcome_96500"]}, "next": "人工"},
            "人工": {"queue": {"queue": "hotline", "on_give_up": "挂机"}},
        },
        MESSAGE: {
            "留言": {
                "message": {
                    "prompts": ["leave_message"],
                    "saved": ["message_saved"],
                    "too_short": ["message_too_short"],
                },
                "next": "挂机",
            }
        },
    }
    for line, of in nodes.items():
        flow = {
            "line": line,
            "name": {"zh": "测试", "en": "Test"},
            "numbers": [line],
            "start": next(iter(of)),
        }
        flow["nodes"] = {**of, "挂机": {"hangup": {}}}
        if line == MESSAGE:
            flow["without_person"] = "test"
        (house.flows / f"{line}.yaml").write_text(yaml.safe_dump(flow, allow_unicode=True), "utf-8")
    menu = house.flows / "12346.yaml"
    menu.write_text(menu.read_text("utf-8").replace("every_seconds: 30", "every_seconds: 10"), "utf-8")
    for prompt in _LONG:
        shutil.copy(
            ROOT / "ivr_flows/prompts/audio" / f"{prompt}.wav",
            house.flows / "prompts/audio" / f"{prompt}.wav",
        )


# --- every stage of a call ----------------------------------------------------------------------------------


@dataclass
class Stages:
    """Twenty callers, one or more at each stage, and who serves them."""

    city: City
    prompt: list[Citizen] = field(default_factory=list)
    collecting: list[Citizen] = field(default_factory=list)
    waiting: list[Citizen] = field(default_factory=list)
    announced: list[Citizen] = field(default_factory=list)
    message: list[Citizen] = field(default_factory=list)
    served: dict[str, tuple[Person, Citizen, Call]] = field(default_factory=dict)
    """What for -> the agent, his caller, the call at his desk."""
    call_ids: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Call] = field(default_factory=dict)
    """The specialist's call of the consultation, the room and the transfer."""

    async def reached(self, *, waiting: int = 5) -> None:
        """Bring everybody to his stage, the fleeting ones last."""
        city = self.city
        agents, specialists = iter(city.agents), iter(city.specialists)
        stages = ("talking", "talking too", "held", "consult", "room", "transfer", "wrap-up", "rating")
        for stage in stages:
            await self._served(stage, next(agents))
        ringing_for = await city.calls()
        agent = next(agents)
        await agent.be("ready")
        self.served["ringing"] = agent, ringing_for, await asyncio.wait_for(agent.rings.get(), 10)
        for _ in range(waiting):
            self.waiting.append(citizen := await city.calls())
            await citizen.call.wait_answered(10)
            await asyncio.sleep(0.15)  # one after the other also for Asterisk's threads
        await until(self._in_line, lambda count: count >= waiting)
        await self._does("held", "hold")
        for stage in ("consult", "room"):
            await self._does(stage, "invite", user=(specialist := next(specialists)).user)
            call = self.beside[stage] = await asyncio.wait_for(specialist.rings.get(), 10)
            assert await answered(call)
            call.play(SPECIALIST_VOICE, loop=True)
        await self._until("room", lambda call: sum(leg["state"] == "up" for leg in call["legs"]) == 3)
        await self._does("room", "merge")
        self.announced = [await city.calls(dialled="12346")]
        await self.announced[0].call.wait_answered(10)
        self.announced[0].call.send_digits("0")
        self.message = [await city.calls(dialled=MESSAGE)]
        await self._does("wrap-up", "hangup", to_rating=False)
        await self._does("transfer", "transfer", agent=(specialist := next(specialists)).user)
        self.beside["transfer"] = await asyncio.wait_for(specialist.rings.get(), 10)
        self.prompt = [await city.calls(dialled=LONG_PROMPT) for _ in range(2)]
        self.collecting = [await city.calls(dialled="12346")]
        await self._does("rating", "hangup")
        await asyncio.sleep(1.2)  # the short prompts of the menu and the rating; then keys are awaited

    async def _in_line(self) -> int:
        queues = (await self.city.leader.get("/api/v1/queues"))["queues"]
        return next(int(queue["waiting"]) for queue in queues if queue["queue_id"] == "hotline")

    async def _served(self, stage: str, agent: Person) -> None:
        citizen = await self.city.calls()
        await agent.be("ready")
        desk = await asyncio.wait_for(agent.rings.get(), 10)
        assert await answered(desk)
        desk.play(AGENT_VOICE, loop=True)
        me = await until(agent.agent, lambda me: me.get("state") == "talking")
        await agent.be("not_ready", "rest")
        self.served[stage], self.call_ids[stage] = (agent, citizen, desk), me["call_id"]

    async def _does(self, stage: str, command: str, **body: object) -> None:
        done = await self.served[stage][0].does(self.call_ids[stage], command, **body)
        assert done is not None, f"{command} was refused at {stage}"

    async def _until(self, stage: str, wish: Any, *, seconds: float = 10) -> dict[str, Any]:
        call_id = self.call_ids[stage]
        seen: dict[str, Any] = await until(
            lambda: self.city.leader.get(f"/api/v1/calls/{call_id}"), wish, seconds=seconds
        )
        return seen

    def cut_off(self) -> list[str]:
        """Who was on the line before, and is not any more."""
        lines = [
            (f"caller {c.number}", c.call) for c in self.city.citizens if c is not self.served["wrap-up"][1]
        ]
        lines += [
            (f"{agent.user} ({stage})", desk)
            for stage, (agent, _, desk) in self.served.items()
            if stage not in ("wrap-up", "rating", "transfer")
        ]
        lines += [(f"specialist ({stage})", call) for stage, call in self.beside.items()]
        return [f"{who} was cut off" for who, call in lines if call.ended.is_set()]

    async def go_on(self) -> list[str]:
        """After the engine's return each stage goes on as if nothing had been; what does not is told."""
        wrong: list[str] = []

        async def must(what: str, doing: Any, *, seconds: float = 15) -> None:
            try:
                async with asyncio.timeout(seconds):
                    await doing
            except (AssertionError, TimeoutError) as error:
                wrong.append(f"{what}: {type(error).__name__} {str(error)[:300]}")

        await asyncio.sleep(1)  # they are asked once more
        self.served["rating"][1].call.send_digits("2")
        self.collecting[0].call.send_digits("0")
        await must("rating: taken", self._until("rating", lambda call: call["rating"] == 2))
        for stage in ("talking", "talking too"):
            await must(f"{stage}: the caller hears", until_hears(self.served[stage][1].call, "agent"))
        await must("held: resume", self._does("held", "resume"))
        await must("held: the caller hears", until_hears(self.served["held"][1].call, "agent"))
        await must("consult: merge", self._does("consult", "merge"))
        for stage in ("consult", "room"):
            caller = self.served[stage][1].call
            await must(f"{stage}: three hear each other", until_hears(caller, "agent", "specialist"))
        await must("room: leave", self._does("room", "leave"))
        await must("room: the caller hears", until_hears(self.served["room"][1].call, "specialist"))
        for stage, ring, voice in (
            ("ringing", self.served["ringing"][2], AGENT_VOICE),
            ("transfer", self.beside["transfer"], SPECIALIST_VOICE),
        ):
            if not await answered(ring):
                wrong.append(f"{stage}: the phone rang no more")
                continue
            ring.play(voice, loop=True)
            who = "agent" if voice is AGENT_VOICE else "specialist"
            await must(f"{stage}: the caller hears", until_hears(self.served[stage][1].call, who))
        self.message[0].call.send_digits("#")
        await must("message: saved and ended", self.message[0].call.ended.wait(15), seconds=20)
        return wrong

    async def wrap_up_goes_on(self, killed: float) -> list[str]:
        """The agent who was wrapping up still is, for what is left of it, and his disposition is taken."""
        agent = self.served["wrap-up"][0]
        me = await agent.agent()
        if me.get("state") != "wrap_up":
            over = time.monotonic() - killed > WRAP_UP_SECONDS - 4
            return [] if over else [f"the agent who was wrapping up is {me.get('state')}"]
        await self._does("wrap-up", "wrap-up", disposition="answered", more_time=False)
        seen = await self.city.leader.get(f"/api/v1/calls/{self.call_ids['wrap-up']}")
        disposed = any(step["kind"] == "disposed" for step in seen["steps"])
        return [] if disposed else ["the disposition given after the restart is not in the record"]

    async def order(self) -> list[str]:
        """One agent takes who waits, one after the other: in which order were they offered?"""
        agent = self.served["wrap-up"][0]
        offered = []
        await until(agent.agent, lambda me: me.get("state") != "wrap_up", seconds=WRAP_UP_SECONDS + 5)
        await agent.be("ready")
        for _ in self.waiting:
            desk = await asyncio.wait_for(agent.rings.get(), 10)
            offered.append(desk.caller.user)
            await next(c for c in self.city.citizens if c.number == offered[-1]).call.hang_up()
            await desk.ended.wait(10)
        await agent.be("not_ready", "rest")
        wanted = [citizen.number for citizen in self.waiting]
        return (
            [] if offered == wanted else [f"offered in the order {offered}, they came in the order {wanted}"]
        )


async def killed_at_every_stage(
    house: House, *, seed: int, away_seconds: float = 0.0
) -> tuple[list[str], Audit, float]:
    """What went wrong, what the records say, and how long the engine was away."""
    async with living(house, seed=seed, agents=9, specialists=3) as city:
        try:
            stages = Stages(city)
            await stages.reached()
            city.note("engine", "is killed")
            killed = time.monotonic()
            await asyncio.to_thread(house.kill)
            await asyncio.sleep(away_seconds)
            await asyncio.to_thread(house.start)
            await until(lambda: _healthy(house), bool, seconds=ADOPT_SECONDS)
            away = time.monotonic() - killed
            city.note("engine", "is back")
            wrong = stages.cut_off()
            wrong += await stages.wrap_up_goes_on(killed)
            wrong += await stages.go_on()
            wrong += await stages.order()
            await city.everybody_goes()
            found = await audit(city)
        finally:
            city.write_log(ROOT / "var" / "chaos" / f"stages-{seed}.log")
    return wrong + found.wrong, found, away


async def _healthy(house: House) -> bool:
    with contextlib.suppress(OSError, ProblemError):
        async with house.rest() as nobody:
            return bool((await nobody.get("/healthz"))["standing"] == "ok")
    return False


# --- nobody is there for a while ----------------------------------------------------------------------------


async def served_without_engine(house: House, *, seed: int, callers: int) -> tuple[list[str], Audit]:
    """Callers come while no engine is there: two agents serve them from the fallback queue, one caller gives up.

    The last of them still talks when the engine returns.
    """
    async with living(house, seed=seed, agents=2) as city:
        wrong: list[str] = []
        for agent in city.agents:
            await agent.be("ready")
        await asyncio.to_thread(house.kill)
        killed = time.monotonic()
        early = await city.calls()  # the heart still seems to beat
        served: list[tuple[Citizen, Call]] = []

        async def serves(agent: Person) -> None:
            while True:
                desk = await agent.rings.get()
                if await answered(desk):
                    desk.play(AGENT_VOICE, loop=True)
                    citizen = next(c for c in city.citizens if c.number == desk.caller.user)
                    await until_hears(citizen.call, "agent")
                    served.append((citizen, desk))
                    if len(served) < callers:
                        await asyncio.sleep(1.5)
                        await desk.hang_up()
                    else:
                        await desk.ended.wait(120)

        async with asyncio.TaskGroup() as work:
            working = [work.create_task(serves(agent), name=agent.user) for agent in city.agents]
            await asyncio.sleep(6.5)
            for _ in range(callers - 1):
                await city.calls()
            impatient = await city.calls()
            await impatient.call.wait_answered(10)
            await impatient.call.hang_up()
            await until(lambda: _done(served), lambda count: count >= callers, seconds=90)
            city.note("engine", f"returns after {time.monotonic() - killed:.1f} s")
            await asyncio.to_thread(house.start)
            await until(lambda: _healthy(house), bool, seconds=ADOPT_SECONDS)
            citizen, desk = served[-1]
            talker = next(agent for agent in city.agents if agent.phone is desk.phone)
            me = await talker.agent()
            if me.get("state") != "talking":
                wrong.append(f"the agent who talks for the fallback queue is {me.get('state')}")
            elif await talker.does(me["call_id"], "hold") is None:
                wrong.append("the call from the fallback queue cannot be steered")
            else:
                await talker.does(me["call_id"], "resume")
                await until_hears(citizen.call, "agent")
            for task in working:
                task.cancel()
        if early.call.ended_by is Side.HERE:
            wrong.append("who rang in the first seconds was not served")
        await city.everybody_goes()
        found = await audit(city)
        reasons = Counter(record["end_reason"] for records in found.records.values() for record in records)
        if reasons != {"fell_back": callers, "abandoned_waiting": 1}:
            wrong.append(f"the records end with {dict(reasons)}")
        city.write_log(ROOT / "var" / "chaos" / f"away-{seed}.log")
    return wrong + found.wrong, found


async def _done(served: list[tuple[Citizen, Call]]) -> int:
    return len(served)


# --- how soon they are adopted ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def overheard(house: House) -> AsyncIterator[list[AmiMessage]]:
    """What Asterisk tells on its manager interface, to a listener of our own beside the engine."""
    heard: list[AmiMessage] = []
    up = asyncio.Event()
    link = AmiLink(
        host="127.0.0.1",
        port=house.ami,
        username="engine",
        secret=(house.data / "ami.secret").read_text().strip(),
        on_event=heard.append,
        on_up=up.set,
        on_down=lambda _: None,
    )
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(link.run(), name="overhearing Asterisk")
        async with asyncio.timeout(10):
            await up.wait()
        try:
            yield heard
        finally:
            await link.close()
            await listening


def adopt() -> list[Row]:
    """200 calls adopted."""
    took = spread(kill_and_adopt(200))
    return [
        judged(
            "engine killed and started at once → call adopted, 200 calls",
            ours=str(took),
            target="p95 ≤ 5 s",
            met=took.p95 <= 5000,
        )
    ]


def kill_and_adopt(calls: int) -> list[float]:
    """Seconds from the kill until each of so many calls was adopted by the engine that is started at once.

    A tenth talk (at most twenty), the others wait. A waiting caller is adopted when Asterisk has carried out where the new engine
    sends him; one who talks when the engine, connected again, shows him talking.
    """
    talking = min(20, max(1, calls // 10))
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as directory,
        standing(
            Path(directory),
            agents=talking,
            specialists=0,
            # Beside the block of an ordinary house, which ends at some 140 calls.
            settings={"CALLCENTER_SIP__RTP_START": "32000", "CALLCENTER_SIP__RTP_END": "33999"},
        ) as house,
    ):
        return asyncio.run(_kill_and_adopt(house, calls, talking))


async def _kill_and_adopt(house: House, calls: int, talking: int) -> list[float]:
    async with living(house, seed=1, agents=talking) as city:
        for agent in city.agents:
            await city.calls(hears=False)
            await agent.be("ready")
            assert await answered(await asyncio.wait_for(agent.rings.get(), 15))
        for _ in range(calls - talking):
            await (await city.calls(hears=False)).call.wait_answered(10)
            await asyncio.sleep(0.03)

        async def living_calls() -> dict[str, str]:
            return {
                call["call_id"]: call["phase"] for call in (await city.leader.get("/api/v1/calls"))["calls"]
            }

        phases = await until(
            living_calls, lambda seen: len(seen) == calls and "in_flow" not in seen.values(), seconds=30
        )
        await until(lambda: _recorded(city), lambda seen: seen >= calls, seconds=20)
        async with overheard(house) as heard:
            began = time.monotonic()
            await asyncio.to_thread(house.kill)
            await asyncio.to_thread(house.launch)
            adopted: dict[str, float] = {}

            async def all_adopted() -> int:
                with contextlib.suppress(OSError):
                    if await _healthy(house):
                        for call_id, phase in (await living_calls()).items():
                            if phase == "talking":
                                adopted.setdefault(call_id, time.monotonic() - began)
                for message in heard:
                    if message.get("UserEvent") == "Settled":
                        adopted.setdefault(message.get("Uniqueid"), message.received - began)
                heard.clear()
                return len(adopted)

            await until(all_adopted, lambda count: count >= calls, seconds=ADOPT_SECONDS)
        assert set(adopted) == set(phases)
        assert not [citizen for citizen in city.citizens if citizen.call.ended.is_set()], (
            "somebody was cut off"
        )
        return sorted(adopted.values())


async def _recorded(city: City) -> int:
    count, after = 0, ""
    while True:
        page = await city.leader.get(f"/api/v1/call-records?limit=100{after}")
        count += len(page["calls"])
        if page["next"] is None:
            return count
        after = f"&after={page['next']}"


# --- at random moments --------------------------------------------------------------------------------------


async def killed_now_and_then(city: City, *, times: int, rng: random.Random, longest_away: float) -> None:
    """Kill the engine so often while people telephone: in work, while it starts, twice in a row."""
    house = city.house
    city.rough = True
    for number in range(times):
        await asyncio.sleep(rng.uniform(1, 6))
        city.note("engine", "is killed")
        await asyncio.to_thread(house.kill)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, longest_away))))
        for _ in range((0, 1, 0, 2)[number % 4]):
            await asyncio.to_thread(house.launch)
            await asyncio.sleep(rng.uniform(0.2, 3))
            city.note("engine", "is killed while it starts")
            await asyncio.to_thread(house.kill)
        await asyncio.to_thread(house.start)
        city.note("engine", "is back")
    await until(lambda: _healthy(house), bool, seconds=ADOPT_SECONDS)
    city.rough = False
