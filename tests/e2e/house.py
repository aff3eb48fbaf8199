"""A whole house for end-to-end tests: the real `callcenter run` as its own process, real phones, real audio.

Tests touch it only where people do: SIP and RTP, REST and WebSocket, the files it leaves. The one exception is a look
over AMI whether Asterisk has a channel left.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import update

from callcenter.asterisk.ami import AmiLink, AmiMessage, AmiRefused
from callcenter.database import Database
from callcenter.directory.schema import queues
from callcenter.phone.measure import read_wav, shares, tone, write_wav
from callcenter.phone.phone import Call, Phone

ROOT = Path(__file__).resolve().parents[2]
FIRST_PORT, LAST_PORT, BLOCK = 24000, 31799, 600
READY = "就绪"
TONES = {"caller": 450.0, "agent": 1050.0, "specialist": 2050.0, "other": 1650.0}
SHORT_SECONDS = 0.6


class House:
    """One engine with its Asterisk, database and recordings in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str = "",
        short_prompts: bool = True,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.data = directory / "var"
        self.recordings = directory / "recordings"
        self.flows = directory / "ivr_flows"
        self._reservation, base = _reserve_ports()
        self.http, self.sip, self.ami, self.carrier = base + 1, base + 2, base + 3, base + 6
        self.data.mkdir(parents=True)
        (self.data / "asterisk-root").symlink_to(ROOT / "var" / "asterisk-root")
        _copy_flows(self.flows, short=short_prompts)
        self.environment = {
            **os.environ,
            "CALLCENTER_DATA_DIR": str(self.data),
            "CALLCENTER_RECORDINGS__DIR": str(self.recordings),
            "CALLCENTER_FLOWS__DIR": str(self.flows),
            "CALLCENTER_HTTP__PORT": str(self.http),
            "CALLCENTER_SIP__PORT": str(self.sip),
            "CALLCENTER_SIP__RTP_START": str(base + 20),
            "CALLCENTER_SIP__RTP_END": str(base + BLOCK - 1),
            "CALLCENTER_SIP__TRUNK_CONTACT": f"127.0.0.1:{self.carrier}",
            "CALLCENTER_ASTERISK__AMI_PORT": str(self.ami),
            "CALLCENTER_ASTERISK__HTTP_PORT": str(base + 4),
            "CALLCENTER_ASTERISK__HTTPS_PORT": str(base + 5),
            "CALLCENTER_DATABASE__URL": database_url,
            "CALLCENTER_LOG__FORMAT": "json",
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._launched, self._said_before = 0.0, 0
        self.log = directory / "run.log"
        self.wrapper: list[str] = []
        """What `callcenter run` is started through: a command that executes the one that follows it."""

    # --- the process ----------------------------------------------------------------------------------------

    def command(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run another `callcenter` command with this house's settings."""
        return subprocess.run(
            [sys.executable, "-m", "callcenter", *words],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self, *, seconds: float = 60) -> float:
        """Start and wait until it says it is ready; returns the seconds that took."""
        self.launch()
        return self.ready(seconds=seconds)

    def launch(self) -> None:
        """Start the process; ``ready`` waits for it."""
        self._launched = time.monotonic()
        with self.log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", "callcenter", "run"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self, *, seconds: float = 60) -> float:
        """Wait until the launched process says it is ready; returns the seconds since its launch."""
        assert self._process is not None, "launch it first"
        while READY not in self.said(self._said_before):
            if self._process.poll() is not None:
                raise AssertionError(
                    f"callcenter run ended with {self._process.returncode}:\n{self.said(self._said_before)}"
                )
            if time.monotonic() > self._launched + seconds:
                self.kill()
                raise AssertionError(
                    f"callcenter run was not ready within {seconds} s:\n{self.said(self._said_before)}"
                )
            time.sleep(0.02)
        return time.monotonic() - self._launched

    def said(self, offset: int = 0) -> str:
        return self.log.read_bytes()[offset:].decode("utf-8", "replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def asterisk_pid(self) -> int:
        return int(next(self.data.glob("asterisk/**/asterisk.pid")).read_text())

    def stop(self, *, seconds: float = 30) -> int:
        """Ctrl-C, and wait for the end; returns the exit status."""
        if self._process is None or self._process.poll() is not None:
            return self._process.returncode if self._process else 0
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(seconds)

    def terminate(self) -> None:
        """What a service manager does to stop it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, *, seconds: float = 60) -> int:
        """Wait for the end; returns the exit status."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """The engine dies at once; Asterisk stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def close(self) -> None:
        """Leave nothing running, whatever the test did."""
        with contextlib.closing(self._reservation):
            try:
                self.stop()
            finally:
                self.kill()
                for pid in self._asterisks():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _asterisks(self) -> Iterator[int]:
        """The Asterisk of this house, wherever its pid file lies: a disk of its own is seen by it alone."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{self.data}/asterisk/".encode() in (process / "cmdline").read_bytes():
                    yield int(process.name)

    # --- people ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @contextlib.asynccontextmanager
    async def rest(self, user: str | None = None, password: str = "demo") -> AsyncIterator["Rest"]:
        async with aiohttp.ClientSession(self.url) as session:
            rest = Rest(session)
            if user is not None:
                login = await rest.post("/api/v1/session", {"user": user, "password": password})
                rest.token = login["token"]
            yield rest

    @contextlib.asynccontextmanager
    async def caller(self, number: str = "13800001234") -> AsyncIterator[Phone]:
        """A citizen's phone behind the trunk: no registration."""
        async with Phone(
            user=number, password=None, server=("127.0.0.1", self.sip), bind="127.0.0.1"
        ) as phone:
            yield phone

    @contextlib.asynccontextmanager
    async def phone(self, number: str, *, password: str = "demo") -> AsyncIterator[Phone]:
        """A registered phone of the house."""
        async with Phone(
            user=number, password=password, server=("127.0.0.1", self.sip), bind="127.0.0.1"
        ) as phone:
            await phone.register()
            yield phone

    @contextlib.asynccontextmanager
    async def person(self, user: str, phone: str, *, ready: bool = True) -> AsyncIterator["Person"]:
        """Somebody at work: logged in, phone registered, ready unless told otherwise."""
        async with AsyncExitStack() as stack:
            rest = await stack.enter_async_context(self.rest(user))
            handset = await stack.enter_async_context(self.phone(phone))
            person = Person(self, user, rest, handset)
            await person.until(lambda me: me["agent"]["phone_reachable"])
            if ready:
                await rest.put("/api/v1/me/state", {"state": "ready"})
            try:
                yield person
            finally:
                with contextlib.suppress(ProblemError, aiohttp.ClientConnectionError):
                    await rest.put("/api/v1/me/state", {"state": "logged_out"})

    @contextlib.asynccontextmanager
    async def carrier_side(self) -> AsyncIterator[Phone]:
        """The outside world: what answers when the house calls an outside number through its trunk."""
        async with Phone(
            user="carrier", password=None, server=("127.0.0.1", self.sip), bind="127.0.0.1", port=self.carrier
        ) as phone:
            yield phone

    async def channels(self) -> list[str]:
        """What Asterisk has on the line."""
        return [row.get("Channel") for row in await self.channel_rows()]

    async def channel_rows(self) -> list[AmiMessage]:
        """What Asterisk has on the line, and where."""
        up = asyncio.Event()
        link = AmiLink(
            host="127.0.0.1",
            port=self.ami,
            username="engine",
            secret=(self.data / "ami.secret").read_text().strip(),
            on_event=lambda _: None,
            on_up=up.set,
            on_down=lambda _: None,
        )
        running = asyncio.create_task(link.run(), name="a look at Asterisk")
        try:
            async with asyncio.timeout(5):
                await up.wait()
                try:
                    rows = await link.list_action("CoreShowChannels")
                except AmiRefused:
                    rows = []
            return rows
        finally:
            await link.close()
            await running

    def log_lines(self) -> list[dict[str, Any]]:
        """What the engine has logged, for houses that log JSON."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def raw_recordings(self) -> list[Path]:
        return [*self.recordings.rglob("*.raw")]


class ProblemError(Exception):
    """The API said no."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.reason = body.get("error", {}).get("reason", "")
        self.body = body


class Rest:
    """One client of the REST API."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.token = ""

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        async with self.session.request(method, path, json=body, headers=self._headers()) as answer:
            content = await answer.json()
            if answer.status >= 400:
                raise ProblemError(answer.status, content)
            return content

    async def get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def post(self, path: str, body: object = None) -> Any:
        return await self._ask("POST", path, body if body is not None else {})

    async def put(self, path: str, body: object) -> Any:
        return await self._ask("PUT", path, body)

    async def raw(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        sent = {**self._headers(), **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with self.session.get(path, headers=sent) as answer:
            return answer.status, dict(answer.headers), await answer.read()


class Person:
    """An agent or specialist: what he does at the screen and at the phone."""

    def __init__(self, house: House, user: str, rest: Rest, phone: Phone) -> None:
        self.house, self.user, self.rest, self.phone = house, user, rest, phone

    async def me(self) -> dict[str, Any]:
        me: dict[str, Any] = await self.rest.get("/api/v1/me")
        return me

    async def state(self) -> str:
        return str((await self.me())["agent"]["state"])

    async def set(self, state: str, reason: str | None = None) -> None:
        await self.rest.put("/api/v1/me/state", {"state": state} | ({"reason": reason} if reason else {}))

    async def until(self, wish: Callable[[dict[str, Any]], bool], *, seconds: float = 10) -> dict[str, Any]:
        return await until(self.me, wish, seconds=seconds)

    async def until_state(self, state: str, *, seconds: float = 10) -> dict[str, Any]:
        return await self.until(lambda me: me["agent"]["state"] == state, seconds=seconds)

    async def answers(self, sound: str = "agent", *, seconds: float = 15) -> Call:
        """Pick up the next call and speak with a tone of one's own."""
        call = await self.phone.next_call(seconds)
        await call.answer()
        await call.wait_answered(5)
        call.play(tone(TONES[sound], 1), loop=True)
        await self.until(lambda me: me["agent"]["state"] in {"talking", "held"})
        return call

    async def call_id(self) -> str:
        me = await self.until(lambda me: me["agent"]["call_id"] is not None)
        return str(me["agent"]["call_id"])

    async def does(self, command: str, call_id: str, **body: object) -> Any:
        return await self.rest.post(f"/api/v1/calls/{call_id}/{command}", body)

    async def call(self, call_id: str) -> dict[str, Any]:
        call: dict[str, Any] = await self.rest.get(f"/api/v1/calls/{call_id}")
        return call


async def dial(
    phone: Phone, number: str = "12345", sound: str | None = "caller", *, seconds: float = 10
) -> Call:
    """Dial and speak with a tone from the answer on."""
    call = await phone.dial(number)
    await call.wait_answered(seconds)
    if sound is not None:
        call.play(tone(TONES[sound], 1), loop=True)
    return call


@dataclass
class Talk:
    """A citizen and an agent in conversation, and a specialist at his phone if one was asked for."""

    agent: Person
    call: Call
    desk: Call
    call_id: str
    at_department: Person | None = None

    @property
    def specialist(self) -> Person:
        assert self.at_department is not None
        return self.at_department

    async def does(self, command: str, **body: object) -> Any:
        """The agent asks for something on this call."""
        return await self.agent.does(command, self.call_id, **body)

    async def seen(self) -> dict[str, Any]:
        return await self.agent.call(self.call_id)

    async def until(self, wish: Callable[[dict[str, Any]], bool], *, seconds: float = 10) -> dict[str, Any]:
        seen: dict[str, Any] = await until(self.seen, wish, seconds=seconds)
        return seen


@contextlib.asynccontextmanager
async def talking(
    house: House, *, specialist: bool = False, number: str = "12345", caller: str = "13800001234"
) -> AsyncIterator[Talk]:
    """agent1 has answered; afterwards whoever is still on the line hangs up."""
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(house.person("agent1", "1001"))
        department = None
        if specialist:
            department = await stack.enter_async_context(house.person("spec1", "8001", ready=False))
        citizen = await stack.enter_async_context(house.caller(caller))
        call = await dial(citizen, number)
        desk = await agent.answers()
        yield Talk(agent, call, desk, await agent.call_id(), department)
        for party in (call, desk):
            if not party.ended.is_set():
                await party.hang_up()


async def until(look: Callable[[], Any], wish: Callable[[Any], bool], *, seconds: float = 10) -> Any:
    """Look again and again until it is as wished; fails with what was seen last."""
    deadline = time.monotonic() + seconds
    seen: Any = None
    while time.monotonic() < deadline:
        seen = await look()
        if wish(seen):
            return seen
        await asyncio.sleep(0.03)
    raise AssertionError(f"not as wished within {seconds} s, last seen: {seen}")


def hears(call: Call, *, window: float = 0.4) -> set[str]:
    """Whose tones this party has heard in the last moments."""
    now = time.monotonic()
    return {name for name, share in shares(call, TONES, since=now - window).items() if share > 0.8}


async def until_hears(call: Call, *who: str, seconds: float = 5, window: float = 0.4) -> None:
    """Wait until this party hears exactly these; the music of the house has none of the tones."""
    deadline = time.monotonic() + seconds
    while hears(call, window=window) != set(who):
        if time.monotonic() > deadline:
            raise AssertionError(f"hears {hears(call, window=window)} instead of {set(who)}")
        await asyncio.sleep(0.05)


def _copy_flows(target: Path, *, short: bool) -> None:
    """The shipped flows; with ``short`` every prompt is cut to a moment, so that tests spend their time elsewhere."""
    shutil.copytree(ROOT / "ivr_flows", target)
    if short:
        for path in (target / "prompts" / "audio").rglob("*.wav"):
            pcm, rate = read_wav(path)
            write_wav(path, pcm[: int(rate * SHORT_SECONDS)], rate=rate)


def _reserve_ports() -> tuple[socket.socket, int]:
    """A block of ports nobody else uses; its first one stays bound as long as the house stands."""
    for base in range(FIRST_PORT, LAST_PORT, BLOCK):
        with contextlib.ExitStack() as stack:
            reservation = stack.enter_context(socket.socket())
            try:
                reservation.bind(("127.0.0.1", base))
                for port in range(base + 1, base + 7):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        with socket.socket(socket.AF_INET, kind) as probe:
                            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                            probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            stack.pop_all()
            return reservation, base
    raise RuntimeError(f"Every block of ports from {FIRST_PORT} to {LAST_PORT} is taken.")


def standing(house: House) -> Iterator[House]:
    """For fixtures: the house, started, and closed afterwards."""
    try:
        house.start()
        yield house
    finally:
        house.close()


def prepared(house: House, *, offer_seconds: float, wrap_up_seconds: float) -> None:
    """Set the house up without starting it, with queues that are quick enough for tests."""
    made = house.command("setup", seconds=180)
    assert made.returncode == 0, made.stdout + made.stderr

    async def hurry() -> None:
        url = house.environment["CALLCENTER_DATABASE__URL"] or f"sqlite:///{house.data / 'callcenter.db'}"
        async with Database.connect(url) as database, database.write() as connection:
            await connection.execute(
                update(queues).values(offer_seconds=offer_seconds, wrap_up_seconds=wrap_up_seconds)
            )

    with ThreadPoolExecutor(max_workers=1) as thread:  # off the runner's own event loop
        thread.submit(asyncio.run, hurry()).result()
