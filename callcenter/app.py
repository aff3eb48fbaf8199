"""The composition root: builds every part, starts them in order, and takes them down in the opposite one."""

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import secrets
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from time import monotonic
from typing import TypeVar, assert_never

import structlog
from aiohttp import web
from sqlalchemy import text

from callcenter.api.bounded import Places, bounded
from callcenter.api.ports import Component, Standing
from callcenter.api.server import build_app
from callcenter.asterisk.ami import AmiError
from callcenter.asterisk.config import Instance, InstanceSettings, Phone, PhoneKind, render
from callcenter.asterisk.install import ensure_asterisk
from callcenter.asterisk.process import AsteriskProcess, AsteriskStartFailed
from callcenter.asterisk.telephony import Telephony
from callcenter.database import Database, DatabaseAway, migrate
from callcenter.directory.store import Accounts, Directory, DirectoryContent
from callcenter.domain.agents import Agent, UserRole
from callcenter.domain.calls import Call, CallId, EndReason, Phase
from callcenter.domain.centre import ContactCentre
from callcenter.domain.guard import GuardLimits
from callcenter.domain.messages import (
    Alarm,
    DirectoryChanged,
    Draining,
    Effect,
    FlowsChanged,
    Record,
    SaveAgent,
    SaveCall,
    ShuttingDown,
    TakeMessage,
)
from callcenter.domain.recordings import is_complete
from callcenter.engine import Engine, clock
from callcenter.flows import FlowSet, Reloaded, working_days
from callcenter.gate import Gate
from callcenter.logs import masked
from callcenter.quality.recordings import Finished, Recordings
from callcenter.settings import Profile, Settings, ShutdownMode
from callcenter.tickets.forms import FormStore
from callcenter.tickets.journal import Journal
from callcenter.tickets.store import AgentRecord, TicketStore

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]
_Answer = TypeVar("_Answer")

CONSOLE = Path(__file__).parents[1] / "agent_console" / "dist"
DEMO_CONTENT = Path(__file__).parent / "profiles" / "demo.yaml"
_FLOW_POLL_SECONDS = 1.0
_DIRECTORY_POLL_SECONDS = 2.0
_GOODBYE_SECONDS = 3.0
_HANDSHAKE_SECONDS = 10.0
_MOST_CONNECTIONS = 5_000
_BROWSERS_SECONDS = 10.0
_RESTART_SECONDS = 2.0
_HUNG_LOOK_SECONDS = 1.0
_DATABASE_RETRY_SECONDS = 5.0
_HEALTH_SECONDS = 2.0
_FULL_BYTES = 100_000
"""Less is no room for anything."""
_SPILL_SECONDS = 10.0
_LONGEST_CALL = timedelta(hours=12)
"""Nobody who was left to the fallback longer ago is still on the line."""
_BYTES_PER_SECOND = 16_000  # prompts are 8 kHz, 16 bit, mono (docs/prompts.md)
_RECORDING_WORKERS = 2
_FILES = 16_384  # two thousand recorded calls


class CannotStart(Exception):  # noqa: N818  # a sentence for the person who starts it
    """Something outside the program keeps it from starting; the text says what to do."""


class App:
    """Everything that runs; made by ``running``."""

    def __init__(self, settings: Settings, database: Database, instance: Instance, flows: FlowSet) -> None:
        self.settings = settings
        self.database = database
        self.flows = flows
        self.asterisk = AsteriskProcess.attach(instance) or AsteriskProcess(instance)
        self.directory = Directory(database)
        self.accounts = Accounts(
            database,
            session_hours=settings.session.hours,
            max_failures=settings.session.max_failures,
            lock_seconds=settings.session.lock_seconds,
        )
        self.tickets = TicketStore(database)
        self.recordings = Recordings(settings.recordings.dir)
        self._prompt_seconds = _prompt_seconds(_prompts(settings))
        year = datetime.now(UTC).year
        self.engine = Engine(
            ContactCentre(
                working_days={**working_days(year), **working_days(year + 1)},
                prompt_seconds=self._prompt_seconds,
            ),
            perform=self._perform,
        )
        self.journal = Journal(
            self.tickets,
            spill_path=settings.data_dir / "journal.spill",
            on_opened=self.engine.post,
            capacity=settings.journal.capacity,
        )
        self.telephony = Telephony(
            host="127.0.0.1",
            port=settings.asterisk.ami_port,
            username="engine",
            secret=instance.settings.ami_secret,
            prompts=instance.settings.prompts_dir,
            raw_path=self.recordings.raw_path,
            instance=instance.directory,
            post=self.engine.post,
            attempted=lambda attempt: self.gate.attempt(attempt),
            calls=lambda: self.engine.calls,
            alarm=self.engine.announce,
            recorded=self._recorded_of,
        )
        self.gate = Gate(
            settings.data_dir,
            limits=GuardLimits(
                failures=settings.security.max_failures,
                within_seconds=settings.security.within_seconds,
                ban_seconds=settings.security.ban_seconds,
            ),
            spared=[
                ip_network(each) for each in (*settings.security.never_ban, *settings.sip.trunk_addresses)
            ],
            clock=clock,
            at_work=self.telephony.addresses_in_use,
            enforce=self.telephony.shut_out,
            alarm=self.engine.announce,
            mask=masked,
        )
        self.hands_over = False
        """On the way out Asterisk and its calls are left to the next engine."""
        self._content: DirectoryContent | None = None
        self._directory_entry = 0
        """The last entry of the audit when the directory was last asked about."""
        self._recorded: set[CallId] = set()
        self._ended: asyncio.Queue[Call] = asyncio.Queue()  # one entry a recorded call that has ended
        self.engine.subscribe(self._changed)

    # --- what the centre wants done -------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SaveCall() | SaveAgent() | Alarm():
                return
            case Record(call) | TakeMessage(call):
                self._recorded.add(call.call_id)
        self.telephony.perform(effect)

    def _changed(self, change: SaveCall | SaveAgent | Alarm) -> None:
        match change:
            case SaveCall(call):
                self.journal.put_call(call)
                fell_back = call.end_reason is EndReason.FELL_BACK  # recorded by the dialplan
                if call.phase is Phase.ENDED and (fell_back or call.call_id in self._recorded):
                    self._recorded.discard(call.call_id)
                    self._ended.put_nowait(call)
            case SaveAgent(agent):
                self.journal.put_agent(agent)
                self.telephony.mirror(agent)
            case Alarm(key, facts):
                log.warning("alarm", key=key, **facts)

    # --- the life of the parts ------------------------------------------------------------------------------

    async def take_up(self) -> None:
        """Learn the people and flows, and what was going on when the engine last ran."""
        self._directory_entry = await self.directory.last_entry()
        self._content = await self.directory.load()
        self.engine.post(_directory_changed(self._content))
        self.engine.post(FlowsChanged(tuple(self.flows.flows.values())))
        self.engine.drain()
        since = datetime.now(UTC) - _LONGEST_CALL
        calls = {call.call_id: call for call in await self.tickets.open_calls(given_up_since=since)}
        records = await self.tickets.agent_states()
        agents = self.engine.agents
        known = [
            _agent(agents[record.user_id], record, calls)
            for record in records.values()
            if record.user_id in agents
        ]
        self.engine.restore(calls.values(), known)
        for agent in self.engine.agents.values():
            self.telephony.mirror(agent)
        self._recorded.update(self.engine.calls)

    async def _recorded_of(self, call_ids: Collection[CallId]) -> set[CallId]:
        """Which of these have a record that has ended, or is about to be written; all of them while nobody can tell."""
        try:
            return await self.tickets.ended(call_ids)
        except DatabaseAway:
            return set(call_ids)

    async def watch_directory(self) -> None:
        """Let the centre know of people and queues as they are now: who was disabled is rung no more.

        Reading them all would stop the loop for tens of milliseconds with a thousand people, so the audit is asked
        whether anybody has edited anything; each time from the entry that was the last a round ago.
        """
        known, older = frozenset[int](), self._directory_entry
        while True:
            await asyncio.sleep(_DIRECTORY_POLL_SECONDS)
            try:
                edits, newest = await self.directory.edits_since(older)
                if edits <= known:
                    content = self._content
                else:
                    content = await self.directory.load()
            except DatabaseAway:
                continue  # the health page says so
            known, older, self._directory_entry = edits, self._directory_entry, newest
            if content is not None and content != self._content:
                self._content = content
                self.engine.post(_directory_changed(content))

    async def end_browsers_phones(self) -> None:
        """A telephone in a browser ends with its user's last login; the desk phone rings again."""
        while True:
            await asyncio.sleep(_BROWSERS_SECONDS)
            with contextlib.suppress(DatabaseAway, AmiError):  # the next round does it
                logged_in = await self.accounts.logged_in()
                numbers = {
                    agent.profile.phone for agent in self.engine.agents.values() if agent.user_id in logged_in
                }
                for number in self.telephony.numbers_in_browsers - numbers:
                    await self.telephony.use_desk_phone(number)

    async def mend_recordings(self) -> None:
        """Finish what a crash left: files without an end, and files whose rows were lost."""
        for finished in await self.recordings.sweep(
            lambda: self.engine.calls, lambda call_id: _patiently(partial(self.tickets.call, call_id))
        ):
            self._note_recordings(finished)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        for call in await _patiently(partial(self.tickets.calls_without_recordings, since=yesterday)):
            if call.answered_at is not None:
                await self._finish(call)

    async def finish_recordings(self) -> None:
        """Close, encode and note the recordings of every call that ends."""
        while True:
            call = await self._ended.get()
            try:
                await self._finish(call)
            finally:
                self._ended.task_done()

    async def _finish(self, call: Call) -> None:
        try:
            finished = await self.recordings.finish(call)
        except OSError as error:
            # The store itself cannot be read. Its files stay as they are; the sweep of the next start finds them.
            log.error("recordings not finished", call_id=call.call_id, reason=error.strerror)  # noqa: TRY400  # says it all
            return
        self._note_recordings(finished, call)

    def _note_recordings(self, finished: Finished, call: Call | None = None) -> None:
        self.journal.put_recordings(finished.call_id, (*finished.files, *finished.missing))
        short = [file.path for file in finished.files if call is not None and not is_complete(file, call)]
        if short or finished.missing:
            absent = [file.path for file in finished.missing]
            facts = {"call": finished.call_id, "missing": " ".join(absent), "short": " ".join(short)}
            self.engine.tell(
                Alarm("recording_incomplete", {key: fact for key, fact in facts.items() if fact})
            )
        for kept in finished.kept:
            log.error("recording kept as it was written", call_id=finished.call_id, reason=kept.reason)

    async def watch_flows(self) -> None:
        """Take a changed flow for the next call; a broken one is refused and the old one stays."""
        while True:
            await asyncio.sleep(_FLOW_POLL_SECONDS)
            outcomes = await asyncio.to_thread(self.flows.reload_changed)
            self._prompt_seconds.update(await asyncio.to_thread(_prompt_seconds, _prompts(self.settings)))
            for outcome in outcomes:
                if isinstance(outcome, Reloaded):
                    log.info("flow reloaded", line=outcome.line)
                else:
                    log.warning("flow refused", problem=str(outcome))
            if any(isinstance(outcome, Reloaded) for outcome in outcomes):
                self.engine.post(FlowsChanged(tuple(self.flows.flows.values())))

    async def keep_asterisk(self) -> None:
        """Start Asterisk again when it has died, and end one that hangs."""
        while True:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._end_hung_asterisk(), name="whether asterisk hangs")
                status = await self.asterisk.wait()
                watch.cancel()
            log.error("asterisk ended", status=status)
            self.asterisk = AsteriskProcess(self.asterisk.instance)
            try:
                await self.asterisk.start()
            except (AsteriskStartFailed, OSError) as error:
                log.error("asterisk does not start", reason=str(error))  # noqa: TRY400  # the sentence says it all
                await asyncio.sleep(_RESTART_SECONDS)
            else:
                log.info("asterisk started again", pid=self.asterisk.pid)

    async def _end_hung_asterisk(self) -> None:
        """Kill Asterisk when it has answered nothing for long: a hung one serves nobody and holds every port.

        One that only its manager interface cannot be reached of goes on: who talks there talks, and its fallback
        queue answers.
        """
        silent_since: float | None = None
        while True:
            await asyncio.sleep(_HUNG_LOOK_SECONDS)
            now = monotonic()
            if self.telephony.connected or await self.asterisk.answers(timeout=_HUNG_LOOK_SECONDS):
                silent_since = None
            elif silent_since is None:
                silent_since = now
            elif now - silent_since >= self.settings.asterisk.hung_seconds:
                seconds = str(round(now - silent_since))
                self.engine.tell(Alarm("asterisk_hung", {"seconds": seconds}))
                self.asterisk.kill()
                return

    async def drain(self) -> None:
        """Take no new call, and return when the last one that was there has ended."""
        self.engine.post(Draining())
        ended = asyncio.Event()
        forget = self.engine.subscribe(lambda _: ended.set())
        try:
            await self.engine.settle()
            while self.engine.calls:
                ended.clear()
                await ended.wait()
        finally:
            forget()

    async def say_goodbye(self) -> None:
        """End every call and see its record written before the telephony goes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                ended = asyncio.Event()
                forget = self.engine.subscribe(lambda _: ended.set())
                try:
                    self.engine.post(ShuttingDown())
                    await self.engine.settle()
                    while self.engine.calls:
                        ended.clear()
                        await ended.wait()
                    await self._ended.join()
                finally:
                    forget()

    # --- health ---------------------------------------------------------------------------------------------

    async def components(self) -> Mapping[str, Component]:
        return {
            "asterisk": _component(self.asterisk.pid is not None, "Asterisk is not running."),
            "ami": _component(
                self.telephony.connected, "There is no connection to Asterisk's manager interface."
            ),
            "database": await self._database_health(),
            "disk": self._disk_health(),
        }

    @property
    def journal_pending(self) -> int:
        return self.journal.pending

    async def watch_health(self) -> None:
        """Tell the people on duty when the database or a disk is in trouble, and when it is well again."""
        before = dict.fromkeys(("database", "disk"), Component(Standing.OK))
        while True:
            now = {"database": await self._database_health(), "disk": self._disk_health()}
            for name, component in now.items():
                if component != before[name]:
                    facts = {"standing": component.standing.value, "detail": component.detail}
                    self.engine.tell(Alarm(f"{name}_health", facts))
            before = now
            await asyncio.sleep(_HEALTH_SECONDS)

    async def _database_health(self) -> Component:
        if self.journal.in_memory_alone:
            return Component(
                Standing.DOWN,
                "数据库写不进，磁盘也写不进：电话照常，记录只在内存里，勿停程序，请先腾出磁盘 / neither the database nor the "
                "disk takes records: calls go on, records are in memory alone; do not stop the program, make room first.",
            )
        try:
            async with asyncio.timeout(2), self.database.read() as connection:
                await connection.execute(text("SELECT 1"))
        except (DatabaseAway, TimeoutError):
            return Component(
                Standing.DOWN,
                "数据库没有回应：电话照常，记录暂存 / The database does not answer; calls go on and records wait.",
            )
        if self.journal.degraded:
            return Component(Standing.DEGRADED, "记录等待写入 / Records are waiting to be written.")
        return Component(Standing.OK)

    def _disk_health(self) -> Component:
        troubles = [
            trouble
            for name, path in (
                ("数据 data", self.settings.data_dir),
                ("录音 recordings", self.settings.recordings.dir),
            )
            if (trouble := _disk_trouble(name, path, min_free=self.settings.disk.min_free_mb * 1_000_000))
        ]
        return Component(Standing.DEGRADED, " ".join(troubles)) if troubles else Component(Standing.OK)


async def _patiently(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """What the database answers, be it tomorrow."""
    while True:
        try:
            return await ask()
        except DatabaseAway as error:
            log.warning("recordings of before wait for the database", reason=str(error))
            await asyncio.sleep(_DATABASE_RETRY_SECONDS)


def _disk_trouble(name: str, path: Path, *, min_free: int) -> str:
    try:
        free = shutil.disk_usage(path).free
    except OSError:
        return f"{name}：目录不见了 / the directory (disk) is gone."
    if not os.access(path, os.W_OK):
        return f"{name}：目录不可写 / the disk cannot be written."
    if free < _FULL_BYTES:
        return f"{name}：磁盘已满 / the disk is full."
    return f"{name}：磁盘快满 / the disk is nearly full." if free < min_free else ""


@contextlib.asynccontextmanager
async def running(settings: Settings, *, progress: Progress) -> AsyncIterator[App]:
    """Everything started and taking calls; on the way out all of it is stopped again.

    Raises CannotStart and the parts' own errors, each a sentence that says what to do.
    """
    if settings.open_demo:
        raise CannotStart(
            '演示环境（人人皆知的密码）不得对外开放：http.bind、sip.bind 有非本机地址。请设 profile = "production"，或确知无妨时设 '
            "demo_beyond_this_machine = true / the demo profile, whose passwords everybody knows, would be open to other "
            'machines (http.bind, sip.bind): set profile = "production", or demo_beyond_this_machine = true if you are sure.'
        )
    for directory in (settings.data_dir, settings.recordings.dir):
        directory.mkdir(parents=True, exist_ok=True)
    with _only_one(settings.data_dir), _listen(settings.http.bind, settings.http.port) as listening:
        progress("数据库 / database")
        await migrate(settings.database_url, progress=progress)
        async with Database.connect(settings.database_url) as database:
            content = await _content(settings, database)
            flows = FlowSet.load(
                settings.flows.dir,
                queues={queue.queue_id for queue in content.queues},
                prompts=_prompt_names(_prompts(settings)),
                numbers={number.number for number in content.allowed_numbers},
            )
            progress("Asterisk")
            instance = await _instance(settings, database, content, flows)
            app = App(settings, database, instance, flows)
            with contextlib.closing(app.gate):
                async with _asterisk(app), _tasks(app, listening, progress):
                    yield app


@contextlib.asynccontextmanager
async def _asterisk(app: App) -> AsyncIterator[None]:
    """Asterisk, started if it is not there; stopped at the end, but not when the engine fails or hands over.

    Then its fallback queue goes on answering, and the next engine takes the calls up. What was started here and never
    came to work is taken away again.
    """
    started_here = app.asterisk.pid is None
    if started_here:
        await app.asterisk.start()
    try:
        yield
    except BaseException:
        if started_here and not app.telephony.has_been_up:
            await app.asterisk.stop()
        raise
    if not app.hands_over:
        await app.asterisk.stop()


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Two engines on one data directory would take Asterisk and its calls from each other."""
    with (data_dir / "callcenter.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStart(
                f"已有一个 callcenter 在使用数据目录 {data_dir}，请先停掉它或另设 data_dir / another callcenter is already "
                "running on this data directory: stop it first, or set another data_dir (CALLCENTER_DATA_DIR)."
            ) from error
        yield


def _listen(address: str, port: int) -> socket.socket:
    """The web server's socket, taken before anything is started; asyncio closes it with the server."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=128)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise CannotStart(
            f"端口 {port} 已被占用，请停掉占用它的程序或更改 http.port / port {port} is in use: stop the program "
            "that has it, or set http.port (CALLCENTER_HTTP__PORT)."
        ) from error


async def _content(settings: Settings, database: Database) -> DirectoryContent:
    directory = Directory(database)
    if settings.profile is Profile.DEMO:
        await directory.seed(DEMO_CONTENT)
    elif await Accounts(database, session_hours=1, max_failures=1, lock_seconds=1).has_demo_passwords():
        raise CannotStart(
            "正式环境中仍有演示密码或演示话机密码，请用 callcenter users password 与 callcenter users new-secret 逐一更改 / "
            "Demo passwords or demo phone secrets are still in use: change each with `callcenter users password` and "
            "`callcenter users new-secret`."
        )
    return await directory.load()


async def _instance(
    settings: Settings, database: Database, content: DirectoryContent, flows: FlowSet
) -> Instance:
    secrets_of = await Directory(database).phone_secrets()
    kinds = {
        profile.phone: PhoneKind.AGENT if UserRole.AGENT in profile.roles else PhoneKind.SPECIALIST
        for profile in content.profiles
        if profile.phone
    }
    phones = tuple(
        Phone(number=number, secret=secret, kind=kinds.get(number, PhoneKind.AGENT))
        for number, secret in sorted(secrets_of.items())
    )
    wanted = InstanceSettings(
        bind_address=settings.sip.bind,
        sip_port=settings.sip.port,
        ami_port=settings.asterisk.ami_port,
        http_port=settings.asterisk.http_port,
        https_port=settings.asterisk.https_port,
        rtp_start=settings.sip.rtp_start,
        rtp_end=settings.sip.rtp_end,
        ami_secret=_kept_secret(settings.data_dir / "ami.secret"),
        prompts_dir=_prompts(settings),
        recordings_dir=settings.recordings.dir,
        hotline_numbers=tuple(sorted(number for flow in flows.flows.values() for number in flow.numbers)),
        phones=phones,
        system_name=settings.asterisk.system_name,
        trunk_addresses=settings.sip.trunk_addresses,
        trunk_contact=settings.sip.trunk_contact,
        max_calls=settings.sip.callers_at_once,
        tls_certificate=_file(settings.http.certificate),
        tls_private_key=_file(settings.http.private_key),
        fallback_prompt="system_trouble",
    )
    install = await asyncio.to_thread(
        ensure_asterisk, settings.data_dir, mirror=settings.asterisk.mirror or None
    )
    return await asyncio.to_thread(render, wanted, install, settings.data_dir / "asterisk")


@contextlib.asynccontextmanager
async def _tasks(app: App, listening: socket.socket, progress: Progress) -> AsyncIterator[None]:
    """The engine, its adapters and the web server, in one group with one owner."""
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(app.journal.run(), name="journal")
        # What an earlier engine could not write comes first: a call that ended then must not be taken up as living.
        if not await app.journal.flush(timeout=_SPILL_SECONDS):
            log.warning("records of before are still being written", pending=app.journal.pending)
        with contextlib.suppress(DatabaseAway):
            await app.tickets.prepare()
        await app.take_up()
        live = [
            group.create_task(app.engine.run(), name="engine"),
            group.create_task(app.telephony.run(), name="telephony"),
            group.create_task(app.watch_flows(), name="flows"),
            group.create_task(app.watch_directory(), name="directory"),
            group.create_task(app.watch_health(), name="health"),
            group.create_task(app.end_browsers_phones(), name="telephones in browsers"),
            group.create_task(app.mend_recordings(), name="recordings of before"),
            group.create_task(app.keep_asterisk(), name="asterisk"),
            group.create_task(app.gate.watch(), name="gate"),
            *(
                group.create_task(app.finish_recordings(), name=f"recordings {n}")
                for n in range(_RECORDING_WORKERS)
            ),
        ]
        progress("网页与接口 / web and API")
        try:
            async with _web(app, listening):
                yield
        finally:
            if not app.hands_over:
                await app.say_goodbye()
            for task in reversed(live):
                task.cancel()
            await app.journal.flush(timeout=5)
            writing.cancel()


@contextlib.asynccontextmanager
async def _web(app: App, listening: socket.socket) -> AsyncIterator[None]:
    settings = app.settings
    runner = web.AppRunner(
        build_app(
            engine=app.engine,
            accounts=app.accounts,
            directory=app.directory,
            tickets=app.tickets,
            recordings=app.recordings,
            health=app,
            audit=app.directory.audit,
            phones=app.telephony,
            forms=FormStore(app.database),
            softphone_ports=(settings.asterisk.http_port, settings.asterisk.https_port),
            console=CONSOLE,
            gate=app.gate,
            clock=clock,
            sip_address=f"{settings.sip.bind}:{settings.sip.port}",
            demo=settings.profile is Profile.DEMO,
        ),
        access_log=None,
        shutdown_timeout=3,
    )
    await runner.setup()
    try:
        tls = _tls(app)
        server = await asyncio.get_running_loop().create_server(
            bounded(_protocols(runner), Places(most=_connections())),
            sock=listening,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if tls else None,
        )
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _protocols(runner: web.AppRunner) -> web.Server:
    if runner.server is None:
        raise RuntimeError("The runner is set up before it serves.")
    return runner.server


def _connections() -> int:
    """How many the web server takes: half of what may be open, the rest is for calls and their records."""
    return min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def _tls(app: App) -> ssl.SSLContext | None:
    """The certificate that Asterisk shows browsers too, so that they are asked to trust one only."""
    if not app.settings.http.speaks_tls:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    instance = app.asterisk.instance
    try:
        context.load_cert_chain(instance.certificate, instance.private_key)
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(
            f"证书或私钥不能使用（http.certificate、http.private_key）/ the certificate or its key cannot be used: {error}"
        ) from error
    return context


def _allow_many_files() -> None:
    """As many as the system lets us open, up to what we can use; Asterisk inherits it.

    A recorded call has four sockets and up to three files: the usual 1,024 would be 140 calls.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, _FILES):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _FILES), hard))


async def serve(settings: Settings, *, progress: Progress) -> None:
    """Run until SIGINT, which ends every call, or SIGTERM, which does what `shutdown.mode` says.

    A second signal of either kind ends the waiting for calls.
    """
    _allow_many_files()
    told, hurried = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(*, now: bool) -> None:
        if now or told.is_set():
            hurried.set()
        told.set()

    loop.add_signal_handler(signal.SIGINT, partial(stop, now=True))
    loop.add_signal_handler(signal.SIGTERM, partial(stop, now=False))
    async with running(settings, progress=progress) as app:
        progress(_ready_line(settings))
        await told.wait()
        if not hurried.is_set():
            match settings.shutdown.mode:
                case ShutdownMode.DRAIN:
                    await _drain(app, hurried, settings.shutdown.drain_seconds, progress)
                case ShutdownMode.HAND_OVER:
                    progress(
                        "引擎停下，通话留给下一个引擎 / the engine stops; its calls are left to the next one"
                    )
                    app.hands_over = True
                case ShutdownMode.NOW:
                    pass
                case _:
                    assert_never(settings.shutdown.mode)
        progress("正在停止 / stopping")


async def _drain(app: App, hurried: asyncio.Event, seconds: float, progress: Progress) -> None:
    calls = len(app.engine.calls)
    if calls:
        progress(
            f"还有 {calls} 通来电，最多等 {seconds:g} 秒；再发一次信号立即停止 / {calls} calls left, waiting for at most "
            f"{seconds:g} s; a second signal stops at once"
        )
    draining = asyncio.create_task(app.drain(), name="drain")
    interruption = asyncio.create_task(hurried.wait(), name="second signal")
    await asyncio.wait({draining, interruption}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, interruption):
        task.cancel()
    await asyncio.gather(draining, interruption, return_exceptions=True)
    if app.engine.calls:
        log.warning("calls are ended by the shutdown", calls=len(app.engine.calls))


def _ready_line(settings: Settings) -> str:
    scheme = "https" if settings.http.speaks_tls else "http"
    line = f"就绪 / ready: {scheme}://{settings.http.bind}:{settings.http.port}/"
    if settings.profile is Profile.DEMO:
        line += "  agent1–agent4 spec1 spec2 leader1 qa1 dispatch1 dept1 admin, 密码 / password: demo"
    return line


def _agent(seat: Agent, record: AgentRecord, calls: Mapping[CallId, Call]) -> Agent:
    """The seat as it was last written down, with its leg in the call if that still lives."""
    call = calls.get(record.call_id) if record.call_id else None
    leg = call.leg_of(record.user_id) if call else None
    return replace(
        seat,
        state=record.state,
        reason=record.reason,
        since=record.since,
        call_id=record.call_id,
        leg_id=leg.leg_id if leg else None,
        wrap_up_until=(
            (record.wrap_up_until - record.since).total_seconds() if record.wrap_up_until else None
        ),
        after_call=record.after_call,
        after_reason=record.after_reason,
        version=record.version,
    )


def _directory_changed(content: DirectoryContent) -> DirectoryChanged:
    return DirectoryChanged(
        profiles=content.profiles,
        queues=content.queues,
        not_ready_reasons=frozenset(choice.code for choice in content.not_ready_reasons),
        dispositions=frozenset(choice.code for choice in content.dispositions),
        allowed_numbers=frozenset(number.number for number in content.allowed_numbers),
    )


def _file(name: str) -> Path | None:
    return Path(name) if name else None


def _prompts(settings: Settings) -> Path:
    return settings.flows.dir / "prompts" / "audio"


def _prompt_names(root: Path) -> set[str]:
    return {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.wav")}


def _prompt_seconds(root: Path) -> dict[str, float]:
    """The prompts' lengths: how long the centre waits before it believes that the end of one was lost."""
    seconds = {}
    for path in root.rglob("*.wav"):
        with contextlib.suppress(FileNotFoundError):  # somebody is changing the prompts just now
            name = path.relative_to(root).with_suffix("").as_posix()
            seconds[name] = path.stat().st_size / _BYTES_PER_SECOND
    return seconds


def _kept_secret(path: Path) -> str:
    """A secret made once and kept beside the data, readable by its owner alone."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    secret = secrets.token_urlsafe(32)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secret)
    return secret


def _component(well: bool, trouble: str) -> Component:
    return Component(Standing.OK) if well else Component(Standing.DOWN, trouble)
