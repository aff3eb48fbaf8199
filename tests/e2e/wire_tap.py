"""A cable between the engine and Asterisk's manager port that a test can cut, stall and watch."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.e2e.house import House, prepared

_END = b"\r\n\r\n"

Judge = Callable[[str, str], bool]
"""Given the name and the whole text of an action or event."""


class Cable:
    """``port`` is where the engine connects; what it says comes out at ``target``, message by message."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.connections = 0
        self.actions: list[str] = []
        """The names of the actions that have come through."""
        self.on_action: Judge = lambda _name, _text: True
        """False: the cable is cut before this action comes through."""
        self.on_event: Judge = lambda _name, _text: True
        """False: the event is lost and everything else passes."""
        self.on_answer: Callable[[str], bool] = lambda _action_id: True
        """False: the cable is cut before the answer to this action comes through."""
        self._refuses = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._gates = {"actions": _opened(), "events": _opened()}
        self._closed: list[asyncio.Event] = []

    def count(self, name: str) -> int:
        return Counter(self.actions)[name]

    def cut(self) -> None:
        """Both ends see the connection go, and nobody gets through until ``mend``."""
        self._refuses = True
        self.drop()

    def mend(self) -> None:
        self._refuses = False

    def drop(self) -> None:
        """Both ends see the connection go; the next one passes."""
        for writer in list(self._ends):
            writer.transport.abort()

    def stall(self, *directions: str) -> None:
        """In these directions ("actions", "events") the present connections keep what comes; new ones pass."""
        for direction in directions or tuple(self._gates):
            self._gates[direction].clear()
            self._closed.append(self._gates[direction])
            self._gates[direction] = _opened()

    def deliver(self) -> None:
        """What was kept comes now, whoever sent it may be gone."""
        for gate in self._closed:
            gate.set()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="cable")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Let go of everything."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self.connections += 1
        ends = {writer, far_writer}
        self._ends |= ends
        try:
            await asyncio.gather(
                self._pass(reader, far_writer, self._gates["actions"], "Action"),
                self._pass(far_reader, writer, self._gates["events"], "Event"),
            )
        finally:
            self._ends -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event, kind: str
    ) -> None:
        kept: asyncio.Queue[bytes] = asyncio.Queue()

        async def read() -> None:
            with suppress(OSError, asyncio.IncompleteReadError):
                if kind == "Event":
                    kept.put_nowait(await reader.readline())  # Asterisk's banner
                while True:
                    kept.put_nowait(await reader.readuntil(_END))
            kept.put_nowait(b"")

        reading = asyncio.create_task(read(), name=f"cable, {kind}")
        try:
            while raw := await kept.get():
                await gate.wait()
                if self._judged(kind, raw):
                    writer.write(raw)
            with suppress(OSError):
                await writer.drain()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._ends.discard(writer)
            writer.close()

    def _judged(self, kind: str, raw: bytes) -> bool:
        text = raw.decode("utf-8", "replace")
        name = header(text, kind)
        if not name:  # the banner, or an answer
            if kind == "Event" and not self.on_answer(header(text, "ActionID")):
                self.drop()
                return False
            return True
        if kind == "Event":
            return self.on_event(name, text)
        if not self.on_action(name, text):
            self.drop()
            return False
        self.actions.append(name)
        return True


def _opened() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def header(text: str, name: str) -> str:
    """The value of a message's header; empty when it has none."""
    return next((line.partition(": ")[2] for line in text.split("\r\n") if line.startswith(f"{name}: ")), "")


@asynccontextmanager
async def tapped(house: House) -> AsyncIterator[Cable]:
    """The house started, and its engine once more with a cable between it and the Asterisk that is there."""
    await asyncio.to_thread(house.start)
    await asyncio.to_thread(house.kill)
    cable = Cable(house.ami)
    server = await asyncio.start_server(cable.take, "127.0.0.1", 0)
    cable.port = server.sockets[0].getsockname()[1]
    house.environment["CALLCENTER_ASTERISK__AMI_PORT"] = str(cable.port)
    try:
        await asyncio.to_thread(house.start)
        yield cable
        await asyncio.to_thread(house.stop)
    finally:
        server.close()
        await cable.end()


@asynccontextmanager
async def on_a_cable(directory: Path) -> AsyncIterator[tuple[House, Cable]]:
    """A house of its own with a cable, closed afterwards."""
    house = House(directory / "h")
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=20, wrap_up_seconds=1)
        async with tapped(house) as cable:
            yield house, cable
    finally:
        house.close()
