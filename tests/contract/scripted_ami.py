"""A scripted AMI peer: a real TCP server that reads actions as Asterisk's manager.c does and answers as told.

Its parser is its own and strict on purpose: what a test sees in `received` is what stood on the wire.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

DEADLINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Received:
    """One action as it came: its lines, and which connection brought it (1 is the first)."""

    raw: bytes
    lines: tuple[tuple[str, str], ...]
    connection: int

    @property
    def name(self) -> str:
        return self.get("Action")

    def get(self, name: str) -> str:
        return next(iter(self.all(name)), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.lines if key.lower() == name.lower()]


Answer = Callable[[Received], bytes | None]


def message(*headers: tuple[str, str], **named: str) -> bytes:
    """One message on the wire."""
    lines = [*headers, *named.items()]
    return "".join(f"{key}: {value}\r\n" for key, value in lines).encode() + b"\r\n"


def event(name: str, **headers: str) -> bytes:
    return message(Event=name, **headers)


def success(action: Received, **headers: str) -> bytes:
    return message(Response="Success", ActionID=action.get("ActionID"), **headers)


def error(action: Received, text: str) -> bytes:
    return message(Response="Error", ActionID=action.get("ActionID"), Message=text)


def nothing(_: Received) -> None:
    """The answer of a peer that read the action and stays silent."""


class ScriptedAmi:
    """Listens on an ephemeral port of the loopback; `answers` maps an action's name to what is written back."""

    def __init__(self, *, secret: str = "right", booted: bool = True, mute: bool = False) -> None:
        self.secret = secret
        self.booted = booted
        self.mute = mute  # accepts the connection and then says nothing at all
        self.port = 0
        self.connections = 0
        self.received: list[Received] = []
        self.answers: dict[str, Answer] = {"Login": self._login, "Ping": self._pong}
        self._server: asyncio.Server | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> "ScriptedAmi":
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def connected(self) -> int:
        return len(self._writers)

    async def listen(self) -> None:
        """Listen; on the same port as before after a `stop`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop whoever is connected."""
        if self._server is not None:
            self._server.close()
            await self.drop()
            await self._server.wait_closed()
            self._server = None

    async def drop(self) -> None:
        """Close every connection at once and wait until it is closed."""
        for writer in list(self._writers.values()):
            writer.transport.abort()
        await self.until(lambda: not self._writers)

    async def send(self, data: bytes) -> None:
        """Write to every connection, in one piece."""
        for writer in list(self._writers.values()):
            writer.write(data)
            with suppress(
                ConnectionError
            ):  # the other side has dropped it: what it missed is the test's matter
                await asyncio.wait_for(writer.drain(), DEADLINE_SECONDS)

    async def stop_reading(self) -> None:
        """Leave what the other side writes in the socket, as a hung process does."""
        for writer in list(self._writers.values()):
            transport = writer.transport
            assert isinstance(transport, asyncio.ReadTransport)
            transport.pause_reading()

    async def boot(self) -> None:
        self.booted = True
        await self.send(event("FullyBooted", Status="Fully Booted"))

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS), self._changed:
            await self._changed.wait_for(happened)

    async def expect(self, name: str, *, count: int = 1) -> Received:
        """The `count`-th action of that name since the start, once it has come."""
        await self.until(lambda: len(self.named(name)) >= count)
        return self.named(name)[count - 1]

    def named(self, name: str) -> list[Received]:
        return [action for action in self.received if action.name == name]

    def _login(self, action: Received) -> bytes:
        if action.get("Secret") != self.secret:
            return error(action, "Authentication failed")
        answer = success(action, Message="Authentication accepted")
        return answer + event("FullyBooted", Status="Fully Booted") if self.booted else answer

    def _pong(self, action: Received) -> bytes:
        return success(action, Ping="Pong", Timestamp="1700000000.000000")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        self._writers[connection] = writer
        await self._tell()
        try:
            if not self.mute:
                writer.write(b"Asterisk Call Manager/11.0.0\r\n")
            while True:
                raw = await reader.readuntil(b"\r\n\r\n")
                pairs = (line.partition(":") for line in raw.decode().split("\r\n") if line)
                lines = tuple((key, value.strip(" ")) for key, _, value in pairs)
                action = Received(raw=raw, lines=lines, connection=connection)
                self.received.append(action)
                await self._tell()
                answer = None if self.mute else self.answers.get(action.name, success)(action)
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
                if action.name == "Login" and action.get("Secret") != self.secret and not self.mute:
                    return  # as Asterisk does
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._writers[connection]
            writer.close()
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
