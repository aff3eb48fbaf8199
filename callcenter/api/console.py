"""The screens: one WebSocket each, a snapshot first, then every change in order; commands come back the same way.

The server owns the truth. A screen that reads too slowly is not sent what it missed but a fresh snapshot; one that
does not read at all is closed and comes back by itself.
"""

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, assert_never
from urllib.parse import urlsplit

from aiohttp import WSMessage, WSMsgType, hdrs, web
from pydantic import ValidationError

from callcenter.api.desk import Desk
from callcenter.api.figures import Figures
from callcenter.api.rights import Login, Right, Viewer
from callcenter.api.typed import Problem
from callcenter.api.views import QueueView, agent_view, call_view
from callcenter.api.wire import (
    CLIENT,
    Done,
    Hello,
    OnCall,
    Ping,
    Pong,
    RefusedMessage,
    SetStateCommand,
    Snapshot,
    Sync,
    id_of,
    what_is_wrong,
)
from callcenter.api.words import SENTENCES, Fault
from callcenter.database import DatabaseAway, clean_text
from callcenter.domain.agents import Agent
from callcenter.domain.calls import Call, CallId, Phase, QueueId, UserId
from callcenter.domain.messages import Alarm, ConsoleLost, Reason, SaveAgent, SaveCall

BAD_HELLO = 4400
NOT_LOGGED_IN = 4401
HELLO_LATE = 4408
STUCK = 1013
"""Try again later (RFC 6455 registry): the screen did not read."""
GOING_AWAY = 1001
NO_BINARY = 1003
TOO_MANY_SCREENS = 4429
_GONE = 1006

_TEAM_EVERY_SECONDS = 0.25
_SAME_WAIT = timedelta(seconds=1.5)
_PONG = Pong().model_dump_json()


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the server is with screens; seconds unless said otherwise."""

    hello_seconds: float = 5.0
    heartbeat_seconds: float = 4.0
    """A ping this often; a screen that has not answered half of it later is gone."""
    stuck_seconds: float = 10.0
    """A screen that takes nothing for so long is closed."""
    session_check_seconds: float = 15.0
    console_lost_seconds: float = 5.0
    repeat_seconds: float = 60.0
    """A command id sent again within this time is answered the same."""
    changes: int = 500
    """Changes waiting for one screen; more: they are dropped for a fresh snapshot."""
    answers: int = 50
    """Answers waiting for one screen; more: it is not read from until it reads."""
    commands: int = 1200
    """Commands of one client remembered for repeat_seconds; more: refused."""
    screens_a_user: int = 20
    message_bytes: int = 64 * 1024


class Bye(Exception):  # noqa: N818 - ends a screen in an orderly way
    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{code} {words}")
        self.code = code
        self.words = words


class _Line(NamedTuple):
    """Something to send: a finished answer, or a change that is given its ``seq`` when it goes out."""

    text: str
    kind: str | None


@dataclass(slots=True)
class _Asked:
    command: SetStateCommand | OnCall
    answer: "asyncio.Task[str]"
    at: float


class Screen:
    """One connected console."""

    def __init__(self, *, socket: web.WebSocketResponse, hello: Hello, login: Login, limits: Limits) -> None:
        self.socket = socket
        self.login = login
        self.client = hello.client
        self.softphone = hello.softphone
        self.token = hello.token
        self.shown: set[CallId] = set()
        self.ended: asyncio.Future[Bye] = asyncio.get_running_loop().create_future()
        self._limits = limits
        self._lines: deque[_Line] = deque()
        self._answers = 0
        self._stale = True
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._wake.set()
        self._room.set()
        self._seq = 0

    def tell(self, kind: str, body: str) -> None:
        """Queue a change; never blocks."""
        if self._stale:
            return  # the snapshot to come has it
        if len(self._lines) - self._answers >= self._limits.changes:
            self.resync()
            return
        self._lines.append(_Line(body, kind))
        self._wake.set()

    def resync(self) -> None:
        """Send a snapshot instead of what is waiting; answers stay."""
        self._stale = True
        self._lines = deque(line for line in self._lines if line.kind is None)
        self._wake.set()

    async def answer(self, text: str) -> None:
        while self._answers >= self._limits.answers:
            self._room.clear()
            await self._room.wait()
        self._lines.append(_Line(text, None))
        self._answers += 1
        self._wake.set()

    def end(self, code: int, words: str) -> None:
        if not self.ended.done():
            self.ended.set_result(Bye(code, words))

    async def write(self, snapshot: Callable[["Screen", int], Awaitable[str]]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (text := await self._next(snapshot)) is not None:
                try:
                    async with asyncio.timeout(self._limits.stuck_seconds):
                        await self.socket.send_str(text)
                except TimeoutError:
                    raise Bye(STUCK, "the screen does not read; connect again") from None
                except ConnectionError:
                    raise Bye(_GONE, "gone") from None

    async def _next(self, snapshot: Callable[["Screen", int], Awaitable[str]]) -> str | None:
        if self._stale:
            self._seq += 1
            return await snapshot(self, self._seq)
        if not self._lines:
            return None
        line = self._lines.popleft()
        if line.kind is None:
            self._answers -= 1
            self._room.set()
            return line.text
        self._seq += 1
        return f'{{"type":"{line.kind}","seq":{self._seq},{line.text}}}'

    def now_fresh(self, shown: set[CallId]) -> None:
        """What follows is told relative to the snapshot just made."""
        self._stale = False
        self.shown = shown


class Console:
    """All screens: tells them what changes, does what they ask, and notices when an agent has none left."""

    def __init__(self, *, desk: Desk, figures: Figures, limits: Limits, origins: frozenset[str]) -> None:
        self._desk = desk
        self._figures = figures
        self._limits = limits
        self._origins = origins
        self._screens: dict[UserId, list[Screen]] = {}
        self._asked: dict[tuple[UserId, str], OrderedDict[int, _Asked]] = {}
        self._lost: dict[UserId, asyncio.TimerHandle] = {}
        self._queues: dict[QueueId, QueueView] = {}
        self._changed: dict[UserId, Agent] = {}
        """Whose colleagues have not been told yet."""
        self._team_due: asyncio.TimerHandle | None = None
        self._doing: set[asyncio.Task[str]] = set()
        self._closing = False

    def count(self) -> int:
        return sum(len(screens) for screens in self._screens.values())

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear the engine's changes while inside."""
        unsubscribe = self._desk.engine.subscribe(self.heard)
        try:
            yield
        finally:
            # Each is bounded by the time a command may take.
            await asyncio.gather(*self._doing, return_exceptions=True)
            unsubscribe()
            for timer in (*self._lost.values(), *([self._team_due] if self._team_due else ())):
                timer.cancel()

    def close_all(self) -> None:
        """The server is going down: every screen connects again by itself, and nobody is lost for it."""
        self._closing = True
        for screen in self._everybody():
            screen.end(GOING_AWAY, "the server restarts; connect again")

    def revoke(self, token: str) -> None:
        for screen in self._everybody():
            if screen.token == token:
                screen.end(NOT_LOGGED_IN, "logged out")

    def _everybody(self) -> list[Screen]:
        return [screen for screens in self._screens.values() for screen in screens]

    # --- what the engine says -------------------------------------------------------------------------------

    def heard(self, change: SaveCall | SaveAgent | Alarm) -> None:
        match change:
            case SaveCall(call):
                self._call_changed(call)
                self._look_at_team_soon()
            case SaveAgent(agent):
                if own := self._screens.get(agent.user_id):
                    body = self._agent_body(agent)
                    for screen in own:
                        screen.tell("agent", body)
                self._changed[agent.user_id] = agent
                self._look_at_team_soon()
            case Alarm(key, facts):
                at = self._desk.now().utc.isoformat()
                body = f'"at":"{at}","key":{json.dumps(key)},"facts":{json.dumps({name: clean_text(fact) for name, fact in facts.items()})}'
                for screen in self._everybody():
                    if screen.login.viewer.may(Right.SEE_ALARMS):
                        screen.tell("alarm", body)
            case _:
                assert_never(change)

    def _call_changed(self, call: Call) -> None:
        over = call.phase is Phase.ENDED
        if over:
            self._figures.call_ended(call)
            self._desk.call_ended(call)
        kind = "call_ended" if over else "call"
        bodies: dict[bool, str] = {}
        concerned = {leg.user_id for leg in call.legs} | set(call.handled_by)
        for screen in self._everybody():
            viewer = screen.login.viewer
            if not (
                viewer.user_id in concerned or call.call_id in screen.shown or viewer.may(Right.SEE_ALL_CALLS)
            ):
                continue  # most screens, and cheaply
            if viewer.sees(call):
                plain = viewer.sees_number_of(call)
                if plain not in bodies:
                    view = call_view(call, sees_number=plain, name_of=self._desk.name_of).model_dump_json()
                    bodies[plain] = (
                        f'"call_id":{json.dumps(call.call_id)},"call":{view}' if over else f'"call":{view}'
                    )
                screen.tell(kind, bodies[plain])
                if over:
                    screen.shown.discard(call.call_id)
                else:
                    screen.shown.add(call.call_id)
            elif call.call_id in screen.shown:
                screen.shown.discard(call.call_id)
                screen.tell("call_ended", f'"call_id":{json.dumps(call.call_id)},"call":null')

    def _look_at_team_soon(self) -> None:
        # A busy second changes people and queues dozens of times; eyes need four.
        if self._team_due is None:
            loop = asyncio.get_running_loop()
            self._team_due = loop.call_later(_TEAM_EVERY_SECONDS, self._tell_team)

    def _tell_team(self) -> None:
        """Everybody learns how his colleagues and the queues are now; of himself he has heard at once."""
        self._team_due = None
        onlookers = [screen for screen in self._everybody() if screen.login.viewer.may(Right.SEE_COLLEAGUES)]
        changed, self._changed = self._changed, {}
        if not onlookers:
            self._queues.clear()  # whoever comes next begins with a snapshot
            return
        for agent in changed.values():
            body = self._agent_body(agent)
            for screen in onlookers:
                if screen.login.viewer.user_id != agent.user_id:
                    screen.tell("agent", body)
        for view in self._desk.queue_views():
            if _looks_the_same(self._queues.get(QueueId(view.queue_id)), view):
                continue
            self._queues[QueueId(view.queue_id)] = view
            body = f'"queue":{view.model_dump_json()}'
            for screen in onlookers:
                screen.tell("queue", body)

    def _agent_body(self, agent: Agent) -> str:
        return f'"agent":{agent_view(agent, now=self._desk.now()).model_dump_json()}'

    async def _snapshot(self, screen: Screen, seq: int) -> str:
        desk, viewer = self._desk, screen.login.viewer
        await desk.refresh()
        in_hand = await self._call_in_hand(viewer.user_id)
        # From here to the end nothing waits: the snapshot is one moment, and every change after it is told.
        now, calls = desk.now(), desk.engine.calls
        views = {
            call.call_id: call_view(call, sees_number=viewer.sees_number_of(call), name_of=desk.name_of)
            for call in ({in_hand.call_id: in_hand, **calls} if in_hand else calls).values()
            if viewer.sees(call)
        }
        own = desk.engine.agents.get(viewer.user_id)
        colleagues = viewer.may(Right.SEE_COLLEAGUES)
        snapshot = Snapshot(
            seq=seq,
            server_time=now.utc,
            me=desk.me(screen.login),
            my_call=views.get(own.call_id) if own and own.call_id else None,
            agents=[agent_view(each, now=now) for each in desk.engine.agents.values()] if colleagues else [],
            queues=desk.queue_views() if colleagues else [],
            calls=[view for view in views.values() if view.phase is not Phase.ENDED],
            directory=desk.directory_view(viewer),
        )
        screen.now_fresh({CallId(call.call_id) for call in snapshot.calls})
        return snapshot.model_dump_json()

    async def _call_in_hand(self, user_id: UserId) -> Call | None:
        """The user's call, or the ended one he is wrapping up."""
        own = self._desk.engine.agents.get(user_id)
        if own is None or own.call_id is None:
            return None
        try:
            return await self._desk.call(own.call_id)
        except DatabaseAway:
            return None

    # --- one screen -----------------------------------------------------------------------------------------

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """A screen's whole life."""
        self._check_origin(request)
        socket = web.WebSocketResponse(
            heartbeat=self._limits.heartbeat_seconds,
            max_msg_size=self._limits.message_bytes,
            compress=False,
            timeout=1.0,
        )
        await socket.prepare(request)
        try:
            screen = await self._greet(socket)
        except Bye as unwelcome:
            await _close(socket, request, unwelcome)
            return socket
        self._arrived(screen)
        last = Bye(GOING_AWAY, "the server stops")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(screen.write(self._snapshot), name="screen-write")
                tasks.create_task(self._watch(screen), name="screen-session")
                tasks.create_task(self._read(screen), name="screen-read")
        except* Bye as byes:
            last = next(error for error in byes.exceptions if isinstance(error, Bye))
        finally:
            self._left(screen)
        await _close(socket, request, last)
        return socket

    def _check_origin(self, request: web.Request) -> None:
        # A browser says on whose page the script runs that connects; other programs send none and need only a token.
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or origin in self._origins:
            return
        if urlsplit(origin).netloc.lower() != request.host.lower():
            raise Problem(403, Fault.FOREIGN_ORIGIN, "Origin and Host differ")

    async def _greet(self, socket: web.WebSocketResponse) -> Screen:
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                first = await socket.receive()
        except TimeoutError:
            raise Bye(HELLO_LATE, "hello did not come in time") from None
        if first.type is not WSMsgType.TEXT:
            raise Bye(BAD_HELLO, "hello must be the first message")
        try:
            hello = CLIENT.validate_json(first.data)
        except ValidationError as error:
            raise Bye(BAD_HELLO, what_is_wrong(error)) from error
        if not isinstance(hello, Hello):
            raise Bye(BAD_HELLO, "hello must be the first message")
        try:
            login = await self._desk.login(hello.token)
        except DatabaseAway:
            raise Bye(STUCK, "the database is away; connect again in a few seconds") from None
        if login is None:
            raise Bye(NOT_LOGGED_IN, "the session is over; log in again")
        if len(self._screens.get(login.viewer.user_id, ())) >= self._limits.screens_a_user:
            raise Bye(TOO_MANY_SCREENS, "too many screens of this user; close some")
        return Screen(socket=socket, hello=hello, login=login, limits=self._limits)

    def _arrived(self, screen: Screen) -> None:
        self._screens.setdefault(screen.login.viewer.user_id, []).append(screen)
        if screen.softphone and (timer := self._lost.pop(screen.login.viewer.user_id, None)):
            timer.cancel()

    def _left(self, screen: Screen) -> None:
        user_id = screen.login.viewer.user_id
        remaining = self._screens[user_id]
        remaining.remove(screen)
        if not remaining:
            del self._screens[user_id]
        if screen.softphone and not self._closing and not any(other.softphone for other in remaining):
            if timer := self._lost.pop(user_id, None):
                timer.cancel()
            loop = asyncio.get_running_loop()
            self._lost[user_id] = loop.call_later(
                self._limits.console_lost_seconds, self._console_lost, user_id
            )

    def _console_lost(self, user_id: UserId) -> None:
        del self._lost[user_id]
        self._desk.engine.post(ConsoleLost(user_id))

    async def _watch(self, screen: Screen) -> None:
        """Close the screen when told to, or when its session is over."""
        while True:
            try:
                async with asyncio.timeout(self._limits.session_check_seconds):
                    raise await asyncio.shield(screen.ended)
            except TimeoutError:
                pass
            try:
                login = await self._desk.login(screen.token)
            except DatabaseAway:
                continue  # nobody loses his screen because the database is away
            if login is None:
                raise Bye(NOT_LOGGED_IN, "the session is over; log in again")
            changed = login.viewer != screen.login.viewer
            screen.login = login
            if changed:
                screen.resync()

    async def _read(self, screen: Screen) -> None:
        while True:
            message: WSMessage = await screen.socket.receive()
            match message.type:
                case WSMsgType.TEXT:
                    await self._take(screen, message.data)
                case WSMsgType.BINARY:
                    raise Bye(NO_BINARY, "messages are JSON text")
                case _:
                    raise Bye(screen.socket.close_code or _GONE, "closed")

    async def _take(self, screen: Screen, text: str) -> None:
        try:
            message = CLIENT.validate_json(text)
        except ValidationError as error:
            await screen.answer(_refusal(id_of(text), Fault.BAD_MESSAGE, what_is_wrong(error)))
            return
        match message:
            case Hello():
                await screen.answer(_refusal(None, Fault.BAD_MESSAGE, "hello was said already"))
            case Sync():
                screen.resync()
            case Ping():
                await screen.answer(_PONG)
            case _:
                await screen.answer(await self._once(screen, message))

    async def _once(self, screen: Screen, command: SetStateCommand | OnCall) -> str:
        """The command's answer; a command that came before, over this connection or an earlier one, is not done again."""
        now = asyncio.get_running_loop().time()
        asked = self._remembered(screen, now)
        before = asked.get(command.id)
        if before is not None:
            if before.command != command:
                return _refusal(command.id, Fault.ID_REUSED, "")
            return await asyncio.shield(before.answer)
        if len(asked) >= self._limits.commands:
            return _refusal(
                command.id, Fault.TOO_MANY, f"more than {self._limits.commands} commands a minute"
            )
        # A task of its own: the screen may vanish half-way, and whoever asks again with this id gets the true answer.
        doing = asyncio.create_task(self._do(screen.login.viewer, command), name=f"command-{command.id}")
        self._doing.add(doing)
        doing.add_done_callback(self._doing.discard)
        asked[command.id] = _Asked(command, doing, now)
        return await asyncio.shield(doing)

    def _remembered(self, screen: Screen, now: float) -> OrderedDict[int, _Asked]:
        too_old = now - self._limits.repeat_seconds
        for key, each in list(self._asked.items()):
            while each and next(iter(each.values())).at < too_old:
                each.popitem(last=False)
            if not each:
                del self._asked[key]
        return self._asked.setdefault((screen.login.viewer.user_id, screen.client), OrderedDict())

    async def _do(self, viewer: Viewer, command: SetStateCommand | OnCall) -> str:
        match command:
            case SetStateCommand():
                request = command.request(viewer.user_id)
            case _:
                request = command.request(viewer.user_id, CallId(command.call_id))
        try:
            await self._desk.ask(viewer, request)
        except Problem as problem:
            return _refusal(command.id, problem.reason, problem.detail)
        return Done(id=command.id).model_dump_json()


async def _close(socket: web.WebSocketResponse, request: web.Request, bye: Bye) -> None:
    if not socket.closed and bye.code != _GONE:
        try:
            async with asyncio.timeout(2.0):
                await socket.close(code=bye.code, message=bye.words.encode()[:120])
        except (TimeoutError, ConnectionError):
            pass
    if bye.code == STUCK and request.transport is not None:
        # What it did not read would keep the connection open.
        request.transport.abort()


def _refusal(command_id: int | None, reason: Reason | Fault, detail: str) -> str:
    sentence = SENTENCES[reason]
    return RefusedMessage(
        id=command_id, reason=reason.value, message_zh=sentence.zh, message_en=sentence.en, detail=detail
    ).model_dump_json()


def _looks_the_same(old: QueueView | None, new: QueueView) -> bool:
    if old is None or old.model_copy(update={"longest_wait_since": new.longest_wait_since}) != new:
        return False
    before, after = old.longest_wait_since, new.longest_wait_since
    # Reckoned from an age each time, the same instant wobbles.
    return before == after or (before is not None and after is not None and abs(after - before) < _SAME_WAIT)
