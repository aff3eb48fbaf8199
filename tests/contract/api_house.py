"""A small house for tests of the API: the real engine, ticket store, recordings and trail behind a real web server.

Only the telephony is played here: ``House.answer`` and ``House.hang_up`` are what phones do.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from jsonschema import Draft202012Validator

import callcenter
from callcenter.api.console import Limits
from callcenter.api.describe import documents
from callcenter.api.ports import Component, Standing
from callcenter.api.server import build_app
from callcenter.api.wire import SERVER
from callcenter.database import Database, migrate
from callcenter.directory.store import Accounts, Directory, LoginReason, LoginRefused
from callcenter.domain import ivr
from callcenter.domain.agents import AgentState, Profile, Queue, UserRole
from callcenter.domain.calls import Call, CallId, LegId, Outcome, Phase, QueueId, UserId
from callcenter.domain.centre import ContactCentre
from callcenter.domain.guard import GuardLimits
from callcenter.domain.messages import (
    CallArrived,
    DirectoryChanged,
    Effect,
    Event,
    FlowsChanged,
    HangUp,
    LegAnswered,
    LegEnded,
    Ring,
    SetReady,
    TelephonyResynced,
)
from callcenter.domain.recordings import RecordingFile, RecordingKind
from callcenter.engine import Engine, clock
from callcenter.gate import Gate
from callcenter.logs import masked
from callcenter.quality.recordings import Recordings
from callcenter.tickets.forms import FormStore
from callcenter.tickets.store import Batch, TicketStore

CALLER = "13812345678"
MASKED = "138****5678"
PASSWORD = "demo"
SECONDS = 10.0
DEMO = Path(callcenter.__file__).parent / "profiles" / "demo.yaml"

PROFILES = (
    Profile(UserId("agent1"), "张敏", frozenset({UserRole.AGENT}), phone="1001", skills={"hotline": 3}),
    Profile(UserId("agent2"), "王芳", frozenset({UserRole.AGENT}), phone="1002", skills={"hotline": 3}),
    Profile(UserId("spec1"), "李强", frozenset({UserRole.SPECIALIST}), phone="8001", skills={"market": 4}),
    Profile(UserId("leader1"), "刘洋", frozenset({UserRole.LEADER}), phone="1009"),
    Profile(UserId("qa1"), "陈静", frozenset({UserRole.QUALITY})),
    Profile(UserId("dispatch1"), "赵磊", frozenset({UserRole.DISPATCHER})),
    Profile(UserId("dept1"), "孙丽", frozenset({UserRole.DEPARTMENT})),
    Profile(UserId("admin"), "系统管理员", frozenset({UserRole.ADMIN})),
)
USERS = tuple(profile.user_id for profile in PROFILES)
QUEUES = (Queue(QueueId("hotline"), {"zh": "热线", "en": "Hotline"}, "hotline", wrap_up_seconds=60),)
FLOW = ivr.Flow(
    line="12345",
    name={"zh": "热线", "en": "Hotline"},
    numbers=("12345",),
    start="wait",
    after_call=None,
    nodes={
        "wait": ivr.EnterQueue("hotline", on_give_up="bye", announce_position=False, announce_wait=False),
        "bye": ivr.HangUp(),
    },
    version="0123456789ab",
)


@dataclass(frozen=True)
class Choice:
    code: str
    zh: str
    en: str


@dataclass(frozen=True)
class Number:
    number: str
    zh: str
    en: str


@dataclass(frozen=True)
class Content:
    profiles: tuple[Profile, ...] = PROFILES
    queues: tuple[Queue, ...] = QUEUES
    not_ready_reasons: tuple[Choice, ...] = (Choice("lunch", "就餐", "Lunch"),)
    dispositions: tuple[Choice, ...] = (Choice("answered", "直接答复", "Answered"),)
    allowed_numbers: tuple[Number, ...] = (Number("110", "公安报警", "Police"),)


class MemoryPhones:
    """Accounts of browsers without a telephone system behind them."""

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}

    async def use_browser(self, number: str, password: str) -> str:
        self.passwords[number] = password
        return f"web-{number}"

    async def use_desk_phone(self, number: str) -> None:
        self.passwords.pop(number, None)


class MemoryDirectory:
    async def load(self) -> Content:
        return Content()


@dataclass(frozen=True)
class MemorySession:
    token: str
    user_id: UserId
    roles: frozenset[UserRole]
    expires_at: datetime


class MemoryAccounts:
    """Sessions in memory, for tests that need to end one at will."""

    def __init__(self) -> None:
        self.sessions: dict[str, MemorySession] = {}
        self.failures: dict[str, int] = {}
        self._numbers = count(1)

    async def log_in(self, user: str, password: str, *, client: str) -> MemorySession:
        if self.failures.get(user, 0) >= 3:
            raise LoginRefused(LoginReason.LOCKED, retry_after=30.0)
        profile = next((profile for profile in PROFILES if profile.user_id == user), None)
        if profile is None or password != PASSWORD:
            self.failures[user] = self.failures.get(user, 0) + 1
            raise LoginRefused(LoginReason.WRONG)
        token = hashlib.sha256(f"{user} {next(self._numbers)}".encode()).hexdigest()
        session = MemorySession(
            token, profile.user_id, profile.roles, datetime.now(UTC) + timedelta(hours=12)
        )
        self.sessions[token] = session
        return session

    async def session(self, token: str) -> MemorySession | None:
        session = self.sessions.get(token)
        return session if session and session.expires_at > datetime.now(UTC) else None

    async def log_out(self, token: str) -> None:
        self.sessions.pop(token, None)


class SettableHealth:
    def __init__(self) -> None:
        self.standing = dict.fromkeys(("asterisk", "ami", "database", "disk"), Standing.OK)
        self.hangs = False
        self.journal_pending = 0
        self.asked = 0

    async def components(self) -> Mapping[str, Component]:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        return {name: Component(standing) for name, standing in self.standing.items()}


@dataclass
class House:
    url: str
    engine: Engine
    accounts: Any
    store: TicketStore
    health: SettableHealth
    sounds: Path
    client: aiohttp.ClientSession
    trail: Directory
    posted: list[Event]
    effects: list[Effect]
    openapi: dict[str, Any]
    stop: Callable[[], Awaitable[None]]
    tokens: dict[str, str] = field(default_factory=dict)

    # --- telephony ------------------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Everything posted so far has been taken."""
        while self.engine.waiting_events:
            await asyncio.sleep(0)

    async def arrive(self, call_id: str, caller: str = CALLER) -> CallId:
        self.engine.post(CallArrived(CallId(call_id), caller, "12345"))
        await self.settled()
        return CallId(call_id)

    def ringing(self, address: str) -> LegId:
        return next(
            effect.leg_id
            for effect in reversed(self.effects)
            if isinstance(effect, Ring) and effect.address == address
        )

    async def answer(self, leg_id: LegId) -> None:
        self.engine.post(LegAnswered(leg_id))
        await self.settled()

    async def hang_up(self, leg_id: str) -> None:
        self.engine.post(LegEnded(LegId(leg_id), Outcome.REFUSED))
        await self.settled()

    async def ready(self, user: str) -> None:
        await self.engine.ask(SetReady(UserId(user)))

    async def talking(self, call_id: str, user: str = "agent1", caller: str = CALLER) -> CallId:
        """A caller talking to the agent."""
        if self.engine.agents[UserId(user)].state is not AgentState.READY:
            await self.ready(user)
        call = await self.arrive(call_id, caller)
        phone = self.engine.agents[UserId(user)].profile.phone
        assert phone
        await self.answer(self.ringing(phone))
        assert self.engine.calls[call].phase is Phase.TALKING
        return call

    async def stored(self, call: Call, *, minutes: float = 0) -> str:
        """Write the call as ended, with a recording; gives its ticket's number."""
        moved = timedelta(minutes=minutes)
        ended = replace(
            call,
            phase=Phase.ENDED,
            ended_at=datetime.now(UTC) + moved,
            answered_at=call.answered_at and call.answered_at + moved,
            version=call.version + 1,
        )
        path = f"2026/11/21/{call.call_id}/call.flac"
        sound = self.sounds / path
        sound.parent.mkdir(parents=True, exist_ok=True)
        sound.write_bytes(bytes(range(256)) * 8)
        file = RecordingFile(call.call_id, None, RecordingKind.CALL, path, 2.0, 2048, "0" * 64, "flac")
        [opened] = await self.store.apply(Batch(calls=(ended,), recordings=(file,)))
        return opened.number

    async def audited(self) -> list[tuple[str | None, str, str, str]]:
        """What the audit trail has, the first first."""
        entries = await self.trail.audit_trail()
        return [(each.user_id, each.action, each.subject, each.detail) for each in reversed(entries)]

    # --- asking ---------------------------------------------------------------------------------------------

    async def login(self, user: str) -> str:
        if user not in self.tokens:
            status, said = await self.ask(
                "POST", "/api/v1/session", json={"user": user, "password": PASSWORD}
            )
            assert status == 200, said
            self.tokens[user] = said["token"]
        return self.tokens[user]

    async def ask(
        self, method: str, path: str, *, user: str | None = None, token: str | None = None, **options: Any
    ) -> tuple[int, Any]:
        """Status and JSON of one request; whatever comes must be as the OpenAPI document says."""
        headers = dict(options.pop("headers", {}))
        if user is not None:
            token = await self.login(user)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self.client.request(method, self.url + path, headers=headers, **options) as response:
            raw = await response.read()
            self.check(method, path.partition("?")[0], response, raw)
            is_json = response.content_type == "application/json"
            return response.status, json.loads(raw) if is_json else raw

    def check(self, method: str, path: str, response: aiohttp.ClientResponse, raw: bytes) -> None:
        operation = self._operation(method, path)
        if operation is None:
            schema: Any = {"$ref": "#/components/schemas/ProblemView"}
        else:
            described = operation["responses"].get(str(response.status))
            assert described, (
                f"{method} {path} answered {response.status}, which its description does not know"
            )
            media = described["content"].get(response.content_type)
            assert media is not None, f"{method} {path} {response.status}: {response.content_type}"
            schema = media["schema"]
        if response.content_type == "application/json":
            document = {**schema, "components": self.openapi["components"]}
            Draft202012Validator(document).validate(json.loads(raw))

    def _operation(self, method: str, path: str) -> Any:
        parts = path.split("/")
        # The literal path first: /calls/past is not a call id.
        for template in sorted(self.openapi["paths"], key=lambda each: each.count("{")):
            pattern = template.split("/")
            if len(pattern) == len(parts) and all(
                want == part or want.startswith("{") for want, part in zip(pattern, parts, strict=True)
            ):
                return self.openapi["paths"][template].get(method.lower())
        return None

    @asynccontextmanager
    async def screen(
        self,
        user: str,
        *,
        client: str = "test-client-1",
        softphone: bool = False,
        token: str | None = None,
        **options: Any,
    ) -> AsyncIterator["TestScreen"]:
        token = token or await self.login(user)
        async with self.client.ws_connect(self.url + "/api/v1/console", **options) as socket:
            screen = TestScreen(socket)
            await screen.send(
                {"type": "hello", "version": 1, "token": token, "client": client, "softphone": softphone}
            )
            yield screen


class TestScreen:
    """What a console does: reads every message, checks it against the models and the counting."""

    __test__ = False

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.seq: int | None = None
        self._ids = count(1)

    async def send(self, message: Any) -> None:
        await self.socket.send_str(message if isinstance(message, str) else json.dumps(message))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            message = await self.socket.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, (message, self.socket.close_code)
        SERVER.validate_json(message.data)
        said: dict[str, Any] = json.loads(message.data)
        if "seq" in said:
            assert self.seq is None or said["seq"] == self.seq + 1, "a gap nobody told"
            self.seq = said["seq"]
        return said

    async def until(
        self, kind: str, when: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        while True:
            said = await self.next()
            if said["type"] == kind and when(said):
                return said

    async def command(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The answer to a command; changes that come before it are read and checked."""
        number = fields.setdefault("id", next(self._ids))
        await self.send({"type": kind, **fields})
        while True:
            said = await self.next()
            if said["type"] in {"done", "refused"} and said["id"] == number:
                return said

    async def closed(self) -> int:
        async with asyncio.timeout(SECONDS):
            while True:
                message = await self.socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    assert self.socket.close_code is not None
                    return self.socket.close_code


@asynccontextmanager
async def house(folder: Path, *, real: bool = False, **options: Any) -> AsyncIterator[House]:
    """Everything running on a free port; ``real``: with the real accounts and directory and the demo's content."""
    url = f"sqlite:///{folder / 'callcenter.db'}"
    await migrate(url, progress=lambda _: None)
    effects: list[Effect] = []

    def perform(effect: Effect) -> None:
        effects.append(effect)
        if isinstance(effect, HangUp):
            engine.post(LegEnded(effect.leg_id, Outcome.WITHDRAWN))

    engine = Engine(ContactCentre(), perform=perform)
    posted: list[Event] = []
    post = engine.post

    def overheard(event: Event) -> None:
        posted.append(event)
        post(event)

    engine.post = overheard  # type: ignore[method-assign]
    health = SettableHealth()
    sounds = folder / "recordings"
    gate = Gate(
        folder,
        limits=GuardLimits(failures=1000, within_seconds=60, ban_seconds=60),
        spared=(),
        clock=clock,
        at_work=frozenset,
        enforce=lambda _: None,
        alarm=engine.announce,
        mask=masked,
    )
    async with Database.connect(url) as database, asyncio.TaskGroup() as tasks:
        store = TicketStore(database)
        trail = Directory(database)
        accounts: Any = MemoryAccounts()
        directory: Any = MemoryDirectory()
        if real:
            await trail.seed(DEMO)
            accounts = Accounts(database, session_hours=12, max_failures=3, lock_seconds=60)
            directory = trail
        content = await directory.load()
        engine.post(
            DirectoryChanged(
                content.profiles,
                content.queues,
                frozenset(each.code for each in content.not_ready_reasons),
                frozenset(each.code for each in content.dispositions),
                frozenset(each.number for each in content.allowed_numbers),
            )
        )
        engine.post(FlowsChanged((FLOW,)))
        phones = frozenset(profile.phone for profile in content.profiles if profile.phone)
        engine.post(TelephonyResynced((), phones))
        engine.drain()
        app = build_app(
            engine=engine,
            accounts=accounts,
            directory=directory,
            tickets=store,
            recordings=Recordings(sounds),
            health=health,
            audit=trail.audit,
            phones=MemoryPhones(),
            gate=gate,
            forms=FormStore(database),
            **{"limits": Limits(console_lost_seconds=0.2, session_check_seconds=0.2), **options},
        )
        running = tasks.create_task(engine.run(), name="engine")
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=20)
            ) as client:
                yield House(
                    url=f"http://{host}:{port}",
                    engine=engine,
                    accounts=accounts,
                    store=store,
                    health=health,
                    sounds=sounds,
                    client=client,
                    trail=trail,
                    posted=posted,
                    effects=effects,
                    openapi=json.loads(documents()["openapi.json"]),
                    stop=runner.cleanup,
                )
        finally:
            gate.close()
            await runner.cleanup()
            running.cancel()
