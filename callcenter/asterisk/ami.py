"""The link to Asterisk's manager interface (AMI): ordered events in, actions with deadlines out.

The only module that knows panoramisk; docs/adr/0003-ami-link.md says which of its parts are used and why the
others are not. One synchronous callback takes every event in the order Asterisk wrote it. An action is written
when it is asked for, in the order of asking, and ends in exactly one of: its reply, `AmiRefused`, `AmiTimeout`
or `AmiUnavailable`. Nothing is ever sent a second time: after a drop the caller looks at what lives
(`list_action`) and decides anew.

    AmiError
    ├── AmiUnavailable      not connected, or the connection went while waiting: the outcome is unknown
    ├── AmiTimeout          no reply within the deadline: the outcome is unknown
    ├── AmiRefused          Asterisk said no: nothing was done
    │   └── AmiInjection    a header that would break the protocol; refused here, never written
    └── AmiLoginFailed      wrong user or secret
"""

# ruff: noqa: N818  # "unavailable" and "refused" are answers to expect, named as the rest of the engine names them

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType

import structlog
from panoramisk.actions import Action
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.message import Message

log = structlog.get_logger(__name__)

Headers = Mapping[str, str | Sequence[str]]
_Checked = Mapping[str, str | list[str]]

_NO_HEADERS: Headers = MappingProxyType({})
_PING: _Checked = MappingProxyType({"Action": "Ping"})
_END = b"\r\n\r\n"
_NEEDS_PANORAMISK = ("Response: Follows", "Response: Fail", "Event: AsyncAGI")
"""What has a body, or a quoted result."""
_MAX_MESSAGE_BYTES = 1 << 20  # the longest message seen is 3 kB; a peer that never ends one is not Asterisk
_MAX_UNSENT_BYTES = 1 << 20  # some 4,000 actions that Asterisk has not read yet: more would only be late
_MAX_LINE_BYTES = 1_022  # 22.10.1 loses a longer line, and at times the ActionID to answer to with it
_MAX_LINES = 128  # manager.h: AST_MAX_MANHEADERS
_MAX_BACKOFF_SECONDS = 2.0
_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.()-]{0,79}")
_FORBIDDEN = re.compile(r"[\r\n\0]")
_SPLITS_VARIABLES = re.compile(r'([\\",])')

# panoramisk logs an action it could not write in full: the secret or a caller's number.
_silent = logging.Logger("panoramisk, silenced", level=logging.CRITICAL + 1)


class AmiError(Exception):
    """Something between the engine and Asterisk's manager interface went wrong."""


class AmiUnavailable(AmiError):
    """There is no connection, or it went while the reply was awaited: whether the action was done is unknown."""


class AmiTimeout(AmiError):
    """Asterisk did not answer in time: whether the action was done is unknown."""

    def __init__(self, action: str, seconds: float) -> None:
        super().__init__(f"Asterisk did not answer {action} within {seconds:g} s.")
        self.action = action
        self.seconds = seconds


class AmiRefused(AmiError):
    """Asterisk answered that it did not do the action; `message` is its reason, in its own words."""

    def __init__(self, action: str, message: str) -> None:
        super().__init__(f"Asterisk refused {action}: {message}")
        self.action = action
        self.message = message


class AmiInjection(AmiRefused, ValueError):
    """A header that would end its line early or overrun Asterisk's buffer; nothing was written."""

    def __str__(self) -> str:
        return f"{self.action} was not sent: {self.message}"


class AmiLoginFailed(AmiError):
    """Asterisk does not accept the user name or the secret."""


class Down(StrEnum):
    """Why the link is down; the texts given to `on_down`."""

    UNREACHABLE = "unreachable"  # nobody accepts the connection
    DROPPED = "dropped"  # the peer closed it
    STALLED = "stalled"  # the peer accepts it and says nothing, or leaves pings unanswered
    FLOODED = "flooded"  # a message without an end
    LOGIN_FAILED = "login failed"
    CLOSED = "closed"  # we did; never given to `on_down`


@dataclass(frozen=True, slots=True)
class AmiMessage:
    """One event or response.

    `name` is the event's name, "" for a response; the keys of `headers` are as Asterisk wrote them; `received` is
    in monotonic seconds. A header that came more than once (ChanVariable, Output) is one text with a line for
    each: no value can hold a line end itself.
    """

    name: str
    headers: Mapping[str, str]
    received: float

    def get(self, name: str, default: str = "") -> str:
        """The header's value, its name in any case."""
        value = self.headers.get(name)
        if value is not None:
            return value
        folded = name.lower()
        return next((value for key, value in self.headers.items() if key.lower() == folded), default)

    def all(self, name: str) -> list[str]:
        """Every value of a header that may come more than once; [] without the header."""
        return self.get(name).split("\n") if self.get(name) else []


class _Stage(Enum):
    LOGIN = auto()
    BOOTING = auto()  # logged in; Asterisk still loads modules and would answer half of the actions wrongly
    UP = auto()
    LOST = auto()


class _Request(Action):  # type: ignore[misc]  # panoramisk has no types
    """An action on its way. A gathering one is answered by the list of events between reply and completion."""

    def __init__(self, headers: _Checked, *, gathers: bool, complete_event: str | None) -> None:
        super().__init__(headers)
        self.gathers = gathers
        self.complete_event = (complete_event or "").lower()
        self.rows: list[AmiMessage] = []
        self.timer: asyncio.TimerHandle | None = None

    def completed_by(self, event: AmiMessage) -> bool:
        return event.get("EventList").lower() == "complete" or event.name.lower() == self.complete_event


class _Session(AMIProtocol):  # type: ignore[misc]  # panoramisk has no types
    """One TCP connection; never used again after its loss.

    Keeps panoramisk's actions and correlation table, and replaces what is unsafe or slow in it: reading, writing, the
    hand-over of events, and what happens to waiting actions at a drop.
    """

    encoding = "utf-8"

    def __init__(self, link: AmiLink) -> None:
        self.link = link
        self.stage = _Stage.LOGIN
        self.login: _Request | None = None
        self.was_up = False
        self.heard = time.monotonic()
        self.lost: asyncio.Future[Down] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()  # the socket is closed
        self.unfinished = bytearray()
        self.unsent: list[bytes] | None = None
        """Actions that answer the event in hand: written together when it has been dealt with."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.log = _silent

    def ask(
        self, headers: _Checked, *, seconds: float, gathers: bool = False, complete_event: str | None = None
    ) -> _Request:
        """Write the action now and start its deadline."""
        request = _Request(headers, gathers=gathers, complete_event=complete_event)
        action = str(request["Action"])
        if self.lost.done():
            raise AmiUnavailable(f"{action} was not sent: the connection to Asterisk is lost.")
        if self.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            raise AmiUnavailable(f"{action} was not sent: Asterisk does not read what was sent before.")
        if request.id in self.responses:
            raise AmiInjection(action, "its ActionID is in use by an action that still waits.")
        if action.lower() == "originate":
            # A synchronous one holds up every other action until the callee answers.
            request["Async"] = "true"
        self.responses[request.id] = request
        text = str(request).encode(self.encoding)
        if self.unsent is None or (action == "Originate" and not any(map(_hangs_up, self.unsent))):
            # A caller waits for the ring. It may go before the rest, but for the end of another call at that phone.
            self.write(text)
        else:
            self.unsent.append(text)
        request.timer = asyncio.get_running_loop().call_later(
            seconds, self.settle, request, AmiTimeout(action, seconds)
        )
        return request

    def settle(self, request: _Request, outcome: AmiMessage | list[AmiMessage] | AmiError) -> None:
        """The one place where a request ends; whatever comes for it later finds nobody."""
        self.responses.pop(request.id, None)
        if request.timer is not None:
            request.timer.cancel()
        if request.future.done():  # the caller stopped waiting
            return
        if isinstance(outcome, AmiError):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)

    def data_received(self, data: bytes) -> None:
        """Cut the stream at message ends before decoding, so that no character is ever cut in two."""
        self.heard = time.monotonic()
        seam = max(0, len(self.unfinished) - len(_END) + 1)  # what lies before was searched when it came
        self.unfinished += data
        if self.unfinished.find(_END, seam) >= 0:
            *whole, self.unfinished = self.unfinished.split(_END)
            for raw in whole:
                if self.lost.done():
                    return
                # panoramisk strips as well: Asterisk sometimes writes one line end too many
                message = _message(raw.decode("utf-8", "replace").strip("\r\n"), self.heard)
                if message is not None:
                    self.unsent = []
                    try:
                        self.handle_message(message)
                    finally:
                        self.flush()
                        self.unsent = None
        if len(self.unfinished) > _MAX_MESSAGE_BYTES:
            self.unfinished.clear()
            self.drop(Down.FLOODED)

    def flush(self) -> None:
        """Write what waits: one segment, for which Asterisk wakes once."""
        if self.unsent and not self.lost.done():
            self.write(b"".join(self.unsent))
            self.unsent.clear()

    def write(self, data: bytes) -> None:
        with suppress(RuntimeError):  # our side is shut already: the deadlines of what is in it tell
            self.transport.write(data)

    def handle_message(self, received: AmiMessage) -> None:
        """A reply goes to its action; an event goes to a list that gathers it, and always to `on_event`."""
        request = self.responses.get(received.headers.get("ActionID"))
        if received.name:
            if request is not None and request.gathers:
                if request.completed_by(received):
                    self.settle(request, request.rows)
                else:
                    request.rows.append(received)
            if received.name == "FullyBooted" and self.stage is _Stage.BOOTING:
                self.stage = _Stage.UP
                self.was_up = True
                self.link.came_up()
            self.link.tell(self.link.on_event, received)
        elif request is None:
            log.debug("ami reply came after its action had ended")
        elif received.headers.get("Response") not in Message.success_responses:
            reason = received.get("Message") or f"it answered {received.get('Response')!r} without a reason."
            self.settle(request, AmiRefused(request["Action"], reason))
        elif not request.gathers:
            if request is self.login:
                self.stage = _Stage.BOOTING
            self.settle(request, received)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self.drop(Down.DROPPED)

    def drop(self, reason: Down) -> None:
        """End the connection; every waiting action fails now, and none is kept for the next connection."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self.stage = _Stage.LOST
        self.transport.abort()
        self.link.went_down(reason)
        for request in list(self.responses.values()):
            self.settle(
                request,
                AmiUnavailable(
                    f"The connection to Asterisk ended ({reason}) before {request['Action']} was answered."
                ),
            )

    def close(self) -> None:
        self.drop(Down.CLOSED)

    def pong_came(self, ping: asyncio.Future[AmiMessage]) -> None:
        """Or did not: a peer that sends events and answers nothing is stalled too."""
        if isinstance(ping.exception(), AmiTimeout):
            self.drop(Down.STALLED)


class AmiLink:
    """One connection to Asterisk's manager interface, made again whenever it is lost.

    `on_event` gets every event in arrival order, those of lists and of our own actions included, and from the
    login on, so before `on_up` too. `on_up` is called when Asterisk is logged in to and fully booted; `on_down`
    with the text of a `Down` when that ends, and again only when the reason that keeps the link down changes.
    The three are plain functions, called one at a time; what they raise is logged and costs nothing else.
    An event can be handed over before the awaiter of an earlier reply runs: replies wait for the event loop.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        username: str,
        secret: str,
        on_event: Callable[[AmiMessage], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        action_seconds: float = 5.0,
        ping_seconds: float = 1.0,
        stall_seconds: float = 2.0,
        reconnect_seconds: float = 0.2,
    ) -> None:
        if not 0 < ping_seconds < stall_seconds:
            raise ValueError(
                "stall_seconds must be longer than ping_seconds: a ping needs time to be answered."
            )
        self._host = host
        self._port = port
        self._login = _checked("Login", {"Username": username, "Secret": secret, "Events": "on"})
        self.on_event = on_event
        self._on_up = on_up
        self._on_down = on_down
        self._action_seconds = action_seconds
        self._ping_seconds = ping_seconds
        self._stall_seconds = stall_seconds
        self._reconnect_seconds = reconnect_seconds
        self._session: _Session | None = None
        self._login_worked = False
        self._told: Down | None = None
        self._closing = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def connected(self) -> bool:
        """Logged in, fully booted, and not known to be lost."""
        return self._session is not None and self._session.stage is _Stage.UP

    async def run(self) -> None:
        """Connect and stay connected until `close` or cancellation.

        Raises `AmiLoginFailed` when Asterisk refuses the very first login: nobody starts a centre with a wrong
        secret. Once a login has worked, a refused one is told through `on_down` and tried again.
        """
        delay = self._reconnect_seconds
        self._ended.clear()
        try:
            while not self._closing.is_set():
                if await self._one_connection():
                    delay = self._reconnect_seconds
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._closing.wait()
                delay = min(delay * 2, _MAX_BACKOFF_SECONDS)
        finally:
            self._ended.set()

    async def close(self) -> None:
        """End the connection for good and wait for `run` to return; whoever still waits gets `AmiUnavailable`."""
        self._closing.set()
        if self._session is not None:
            self._session.drop(Down.CLOSED)
        await self._ended.wait()

    def submit(
        self, action: str, headers: Headers = _NO_HEADERS, *, timeout: float | None = None
    ) -> asyncio.Future[AmiMessage]:
        """Write an action now, before returning; the future ends in its reply or an `AmiError`, by its deadline.

        Every failure comes through the future, so there is one path to handle. A value may be a sequence: one
        header line each. The items of a `Variable` sequence are one variable each, whatever they contain: a
        comma, quote or backslash, which Asterisk reads as syntax, is escaped. An `ActionID` of your own is kept.
        """
        try:
            request = self._ask(action, headers, timeout=timeout, gathers=False)
        except AmiError as error:
            failed: asyncio.Future[AmiMessage] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        reply: asyncio.Future[AmiMessage] = request.future
        return reply

    async def action(
        self,
        action: str,
        headers: Headers = _NO_HEADERS,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # the deadline belongs to the action, submit() has it too
    ) -> AmiMessage:
        """Send an action and wait for its reply, at most `timeout` (by default `action_seconds`) seconds."""
        return await self.submit(action, headers, timeout=timeout)

    async def list_action(
        self,
        action: str,
        headers: Headers = _NO_HEADERS,
        *,
        complete_event: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # as above
    ) -> list[AmiMessage]:
        """Send an action that is answered by a list of events; return these without the one that ends them.

        The end is the event with `EventList: Complete`, or the one named `complete_event`. Several actions answer
        an empty list with an error: that is an `AmiRefused`, for the caller to read.
        """
        request = self._ask(action, headers, timeout=timeout, gathers=True, complete_event=complete_event)
        rows: list[AmiMessage] = await request.future
        return rows

    def _ask(
        self,
        action: str,
        headers: Headers,
        *,
        timeout: float | None,
        gathers: bool,
        complete_event: str | None = None,
    ) -> _Request:
        checked = _checked(action, headers)  # a broken header is a bug, also while the link is down
        if self._session is None or self._session.stage is not _Stage.UP:
            raise AmiUnavailable(f"{action} was not sent: there is no connection to Asterisk now.")
        seconds = self._action_seconds if timeout is None else timeout
        return self._session.ask(checked, seconds=seconds, gathers=gathers, complete_event=complete_event)

    async def _one_connection(self) -> bool:
        """Connect, log in, and watch until the connection is lost; whether it had come up."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._action_seconds):
                _, session = await loop.create_connection(lambda: _Session(self), self._host, self._port)
        except OSError:  # TimeoutError is one
            self.went_down(Down.UNREACHABLE)
            return False
        self._session = session
        try:
            if not self._closing.is_set():
                await self._log_in(session)
                await self._watch(session)
        finally:
            session.drop(Down.CLOSED)
            self._session = None
            await session.gone.wait()  # one turn of the loop after the drop
        return session.was_up

    async def _log_in(self, session: _Session) -> None:
        session.login = session.ask(self._login, seconds=self._stall_seconds)
        try:
            await session.login.future
        except AmiRefused as refusal:
            if not self._login_worked:
                raise AmiLoginFailed(
                    f"Asterisk at {self._host}:{self._port} refused the AMI login of user "
                    f"{self._login['Username']!r} ({refusal.message}). Check the user and its secret in the "
                    "settings and in Asterisk's manager.conf."
                ) from refusal
            session.drop(Down.LOGIN_FAILED)
        except AmiTimeout:
            session.drop(Down.STALLED)
        except AmiUnavailable:
            pass  # the drop that raised it has told its reason
        else:
            self._login_worked = True

    async def _watch(self, session: _Session) -> None:
        """Ping until the connection is lost; a peer that has fallen silent is dropped after `stall_seconds`.

        Silence counts from the ping on, not from the last word: after a pause of our own process the peer gets
        its time to answer. What already lies in the socket is read first: the event loop runs readers before
        timers. Any word is a sign of life, since pongs queue behind events; a ping may take `action_seconds`.
        """
        asked = session.heard
        overdue: float | None = asked + self._action_seconds  # for FullyBooted; None once said
        patience = self._stall_seconds - self._ping_seconds
        while not session.lost.done():
            silent = session.heard < asked
            due = asked + (patience if silent else self._ping_seconds)
            await asyncio.wait({session.lost}, timeout=max(0.0, due - time.monotonic()))
            now = time.monotonic()
            if session.lost.done() or now < due:
                continue
            if session.heard >= asked:
                asked = now
                ping = session.ask(_PING, seconds=self._action_seconds)
                ping.future.add_done_callback(session.pong_came)
            else:
                session.drop(Down.STALLED)
            if session.stage is _Stage.BOOTING and overdue is not None and now > overdue:
                overdue = None
                log.warning(
                    "asterisk accepted the login but is not fully booted", waited=self._action_seconds
                )

    def came_up(self) -> None:
        """For the session alone: Asterisk is fully booted."""
        self._told = None
        log.info("ami link up", host=self._host, port=self._port)
        self.tell(self._on_up)

    def went_down(self, reason: Down) -> None:
        """For the session alone: the connection ended or could not be made."""
        if reason is Down.CLOSED or reason is self._told:
            return
        self._told = reason
        log.warning("ami link down", host=self._host, port=self._port, reason=str(reason))
        self.tell(self._on_down, str(reason))

    def tell(self, callback: Callable[..., None], *args: object) -> None:
        """Call back, and let nothing it raises come through."""
        try:
            callback(*args)
        # The one net here: raised into asyncio, a bug in the engine's intake would close the connection and
        # lose the events behind this one, for every call at once.
        except Exception as error:  # noqa: BLE001  # see above
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error(  # noqa: TRY400  # the exception's own text may hold a caller's number
                "ami callback failed", error=type(error).__name__, where=where
            )


def _hangs_up(action: bytes) -> bool:
    return action.startswith(b"Action: Hangup")


def _message(text: str, received: float) -> AmiMessage | None:
    """None for what is neither an event nor a response: the greeting."""
    if text.startswith(_NEEDS_PANORAMISK):
        parsed = Message.from_line(text)
        if parsed is None:
            return None
        headers = {
            key: value if isinstance(value, str) else "\n".join(value) for key, value in parsed.items()
        }
        if not headers["content"]:  # panoramisk adds it to every message
            del headers["content"]
    else:
        # As panoramisk does, at a quarter of the price: most of what comes is an event.
        headers = {}
        for line in text.split("\r\n"):
            name, colon, value = line.partition(": ")
            if colon:
                headers[name] = f"{headers[name]}\n{value}" if name in headers else value
        if "Event" not in headers and "Response" not in headers:
            return None
    name, _, _ = headers.get("Event", "").partition("\n")
    return AmiMessage(name=name, headers=headers, received=received)


def _checked(action: str, headers: Headers) -> _Checked:
    """The headers of an action as Asterisk will read them, or `AmiInjection`; messages never quote a value."""
    if not _HEADER_NAME.fullmatch(action):
        raise AmiInjection("an action", "its name is not one word.")
    checked: dict[str, str | list[str]] = {"Action": action}
    lines = 2  # Action, ActionID
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() == "action":
            raise AmiInjection(action, "a header's name is not a plain word, or is Action.")
        if isinstance(value, str):
            values, checked[name] = [value], value
        elif name.lower() == "variable":
            values = [_SPLITS_VARIABLES.sub(r"\\\1", item) for item in value]
            checked[name] = values
        else:
            values = list(value)
            checked[name] = values
        lines += len(values)
        for text in values:
            if _FORBIDDEN.search(text):
                raise AmiInjection(action, f"the value of {name} holds a line end or a NUL.")
            try:
                size = len(name) + len(text.encode())
            except UnicodeEncodeError:
                raise AmiInjection(action, f"the value of {name} is not Unicode text.") from None
            if size + len(": ") > _MAX_LINE_BYTES:
                raise AmiInjection(
                    action, f"{name} is longer than the {_MAX_LINE_BYTES} bytes Asterisk reads."
                )
    if lines > _MAX_LINES:
        raise AmiInjection(action, f"it has more than the {_MAX_LINES} lines Asterisk reads.")
    return checked
