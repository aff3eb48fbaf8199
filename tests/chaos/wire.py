"""A bad network between the phones and Asterisk: packets are lost, come twice or out of order, both ways, SIP and RTP."""

import asyncio
import random
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from callcenter.phone.phone import Call, Phone
from callcenter.phone.transactions import Destination
from tests.chaos.audit import Audit, audit
from tests.chaos.city import living, random_traffic
from tests.e2e.house import ROOT, House

LOST, TWICE, LATE = 0.05, 0.01, 0.02
LATE_SECONDS = 0.03
"""One packet and a half: the next one overtakes."""
PATIENCE_SECONDS = 8.0
"""A message may need four tries: 0.5, 1.5 and 3.5 s after the first (RFC 3261)."""


@dataclass
class Weather:
    """What the network does to the next packet, from one seed; what it did is counted."""

    rng: random.Random
    did: Counter[str] = field(default_factory=Counter)

    def passes(self, data: bytes, on: Callable[[bytes], object]) -> None:
        """Hand the packet on, or not, or twice, or later."""
        fate = self.rng.random()
        self.did["packets"] += 1
        if fate < LOST:
            self.did["lost"] += 1
        elif fate < LOST + TWICE:
            self.did["twice"] += 1
            on(data)
            on(data)
        elif fate < LOST + TWICE + LATE:
            self.did["late"] += 1
            asyncio.get_running_loop().call_later(LATE_SECONDS, on, data)
        else:
            on(data)


class BadSocket:
    """The socket of a stream of audio, in that weather."""

    def __init__(self, behind: socket.socket, weather: Weather) -> None:
        self._behind, self._weather = behind, weather
        self._come: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._behind.fileno()

    def close(self) -> None:
        self._behind.close()

    def sendto(self, data: bytes, to: Destination) -> None:
        self._weather.passes(data, lambda data: self._put(data, to))

    def _put(self, data: bytes, to: Destination) -> None:
        if self._behind.fileno() >= 0:
            self._behind.sendto(data, to)

    def recv(self, size: int) -> bytes:
        """OSError when nothing is there, as a socket that does not block says it."""
        while not self._come:
            self._weather.passes(self._behind.recv(size), self._come.append)
        return self._come.popleft()


class BadlyWired(Phone):
    """A phone in that weather."""

    weather: Weather

    def send(self, data: bytes, destination: Destination) -> None:
        self.weather.passes(data, lambda data: Phone.send(self, data, destination))

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.weather.passes(data, lambda data: Phone.datagram_received(self, data, addr))

    async def dial(
        self,
        target: str,
        *,
        caller_name: str | None = None,
        caller: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Call:
        return self._wired(
            await super().dial(target, caller_name=caller_name, caller=caller, headers=headers)
        )

    async def next_call(self, timeout: float) -> Call:  # as the phone has it
        return self._wired(await super().next_call(timeout))

    def _wired(self, call: Call) -> Call:
        call.stream._socket = BadSocket(call.stream._socket, self.weather)  # type: ignore[assignment]  # the part of it that is used
        return call


async def telephoned_in_bad_weather(
    house: House, *, seed: int, calls: int, at_once: int
) -> tuple[Audit, Weather]:
    weather = Weather(random.Random(f"{seed} weather"))
    wire = type("Wired", (BadlyWired,), {"weather": weather})
    async with living(house, seed=seed, agents=4, specialists=2, wire=wire) as city:
        await random_traffic(city, calls=calls, at_once=at_once)
        found = await audit(city, patience=PATIENCE_SECONDS)
        city.write_log(ROOT / "var" / "chaos" / f"wire-{seed}.log")
    return found, weather
