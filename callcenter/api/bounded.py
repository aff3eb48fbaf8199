"""Connections of the web server, bounded: in all, from one address, and in how long a first request may take to come.

aiohttp waits for a request's head without end and takes every connection. A few thousand idle ones would use up the
process's file descriptors, and with them the records of calls.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Places:
    """``most`` connections in all, half of them from one address; a head within ``head_seconds``, else it is closed."""

    most: int
    head_seconds: float = 10.0
    taken: Counter[str] = field(default_factory=Counter)

    def take(self, source: str) -> bool:
        if self.taken.total() >= self.most or self.taken[source] >= max(1, self.most // 2):
            return False
        self.taken[source] += 1
        return True

    def give_back(self, source: str) -> None:
        self.taken[source] -= 1
        if not self.taken[source]:
            del self.taken[source]


def bounded(make: Callable[[], asyncio.Protocol], places: Places) -> Callable[[], asyncio.Protocol]:
    """The server's protocols, each given a place first; who finds none is closed without a word."""
    return lambda: _Bounded(make, places)


class _Bounded(asyncio.Protocol):
    def __init__(self, make: Callable[[], asyncio.Protocol], places: Places) -> None:
        self._make = make
        self._places = places
        self._inner: asyncio.Protocol | None = None
        self._source = ""
        self._late: asyncio.TimerHandle | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._source = str(peer[0]) if peer else ""
        if not self._places.take(self._source):
            if isinstance(transport, asyncio.Transport):
                transport.abort()
            return
        self._inner = self._make()
        self._inner.connection_made(transport)
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(self._places.head_seconds, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            return
        if self._late is not None:
            if b"\r\n\r\n" in self._tail + data:
                self._late.cancel()
                self._late = None
            self._tail = (self._tail + data)[-3:]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inner is None:
            return
        if self._late is not None:
            self._late.cancel()
        self._places.give_back(self._source)
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()
