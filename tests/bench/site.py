"""A house of any size for the heavy measurements: many agents, specialists, and audio ports for all of them."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from callcenter.database import Database
from callcenter.directory.store import Directory
from callcenter.domain.agents import Agent, AgentState, Profile, UserRole
from callcenter.domain.calls import UserId
from callcenter.phone.g711 import Codec
from callcenter.phone.phone import Phone
from callcenter.phone.rtp import Pacer
from callcenter.tickets.journal import Journal
from callcenter.tickets.store import TicketStore
from tests.e2e import house as houses
from tests.e2e.house import House, until

houses.FIRST_PORT, houses.LAST_PORT = 27_000, 29_999
"""Beside a test run that goes on at the same time, and another measurement."""

LINE = "99000"
FIRST_PHONE, FIRST_SPECIALIST = 20_000, 28_000
RTP_START, RTP_END = 10_000, 13_999
"""Two thousand parties; Asterisk takes the next port when somebody else has one."""
CODECS = (Codec.PCMU, Codec.PCMA)
REGISTERED_AT_ONCE, LOGINS_AT_ONCE = 10, 4
WELCOME = {"欢迎": {"play": {"prompts": ["welcome_12345"]}, "next": "人工"}}


@dataclass(frozen=True, slots=True)
class Staff:
    agents: int
    specialists: int = 0

    @property
    def agent_users(self) -> list[tuple[str, str]]:
        """User and phone."""
        return [(f"bench{number}", f"{FIRST_PHONE + number}") for number in range(self.agents)]

    @property
    def specialist_users(self) -> list[tuple[str, str]]:
        return [(f"expert{number}", f"{FIRST_SPECIALIST + number}") for number in range(self.specialists)]


@contextlib.contextmanager
def site(staff: Staff, *, greeted: bool = False, ready: bool = False) -> Iterator[House]:
    """Set up and not yet started: one line whose callers wait for the agents.

    ``greeted``: they hear a prompt first. ``ready``: the records say that all agents are; whoever has no phone when the
    engine starts is made not ready again.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        settings = {
            # Wherever compiled modules may not be written, every start compiles them all again.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": f"{directory}/pyc",
            "CALLCENTER_SIP__RTP_START": f"{RTP_START}",
            "CALLCENTER_SIP__RTP_END": f"{RTP_END}",
        }
        house = House(Path(directory) / "h", settings=settings)
        try:
            flow = yaml.safe_dump(_flow(greeted=greeted), allow_unicode=True)
            (house.flows / f"{LINE}.yaml").write_text(flow, encoding="utf-8")
            content = Path(directory) / "content.yaml"
            content.write_text(yaml.safe_dump(_content(staff), allow_unicode=True), encoding="utf-8")
            houses.prepared(house, offer_seconds=10, wrap_up_seconds=0)
            asyncio.run(_fill(house, content, staff, ready=ready))
            yield house
        finally:
            house.close()


def _flow(*, greeted: bool) -> Mapping[str, object]:
    nodes: dict[str, object] = {
        "人工": {"queue": {"queue": "bench", "on_give_up": "挂机"}},
        "挂机": {"hangup": {}},
    }
    return {
        "line": LINE,
        "name": {"zh": "测量", "en": "Measuring"},
        "numbers": [LINE],
        "start": "欢迎" if greeted else "人工",
        "nodes": (WELCOME if greeted else {}) | nodes,
    }


def _content(staff: Staff) -> Mapping[str, object]:
    skill = {"skill": "bench", "zh": "测量", "en": "Measuring"}
    queue = {
        "queue": "bench",
        "zh": "测量队列",
        "en": "Measuring",
        "skill": "bench",
        "offer_seconds": 10,
        "wrap_up_seconds": 0,
    }
    people = [
        *((user, phone, "agent", {"bench": 3}) for user, phone in staff.agent_users),
        *((user, phone, "specialist", {}) for user, phone in staff.specialist_users),
    ]
    return {
        "password": "demo",
        "phone_secret": "demo",
        "skills": [skill],
        "queues": [queue],
        "users": [
            {"user": user, "name": user, "roles": [role], "phone": phone, "skills": skills}
            for user, phone, role, skills in people
        ],
    }


async def _fill(house: House, content: Path, staff: Staff, *, ready: bool) -> None:
    """The people, and the agents' states as an engine before has left them."""
    now = datetime.now(UTC)
    async with Database.connect(f"sqlite:///{house.data / 'callcenter.db'}") as database:
        await Directory(database).seed(content)
        if not ready:
            return
        spill = house.directory / "fill.spill"
        journal = Journal(TicketStore(database), spill_path=spill, on_opened=lambda _: None)
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(journal.run(), name="journal")
            for user, phone in staff.agent_users:
                profile = Profile(UserId(user), user, frozenset({UserRole.AGENT}), phone)
                journal.put_agent(
                    Agent(profile, AgentState.READY, since=now, phone_reachable=True, version=1)
                )
            if not await journal.flush(60):
                raise TimeoutError("the agents were not written within 60 s")
            writing.cancel()


@contextlib.asynccontextmanager
async def phones(
    house: House, numbers: list[str], *, codecs: tuple[Codec, ...] = CODECS
) -> AsyncIterator[list[Phone]]:
    """So many phones, registered, on one task."""
    async with AsyncExitStack() as stack:
        pacer = await stack.enter_async_context(Pacer())
        turns = asyncio.Semaphore(REGISTERED_AT_ONCE)

        async def comes(number: str) -> Phone:
            phone = await stack.enter_async_context(
                Phone(
                    user=number,
                    password="demo",
                    server=("127.0.0.1", house.sip),
                    keep_audio=False,
                    pacer=pacer,
                    codecs=codecs,
                )
            )
            async with turns:
                await phone.register()
            return phone

        yield await asyncio.gather(*(comes(number) for number in numbers))


async def all_ready(house: House, staff: Staff) -> None:
    """Every agent logs in and takes calls; his phone is registered already."""
    turns = asyncio.Semaphore(LOGINS_AT_ONCE)

    async def begins(user: str) -> None:
        async with turns, house.rest(user) as rest:

            async def me() -> Any:
                return await rest.get("/api/v1/me")

            await until(me, lambda seen: seen["agent"]["phone_reachable"])
            await rest.put("/api/v1/me/state", {"state": "ready"})

    await asyncio.gather(*(begins(user) for user, _ in staff.agent_users))


@contextlib.asynccontextmanager
async def trunk(house: House, *, codecs: tuple[Codec, ...] = CODECS) -> AsyncIterator[Phone]:
    """Where all callers call from."""
    async with Phone(
        user="13800000000", server=("127.0.0.1", house.sip), keep_audio=False, codecs=codecs
    ) as phone:
        yield phone
