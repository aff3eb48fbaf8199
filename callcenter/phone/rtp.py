"""The audio of calls: one UDP socket a stream, one pacer task for many streams (RFC 3550, 3551, 4733)."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple, Self

import numpy as np

from callcenter.phone.g711 import SAMPLE_RATE, Codec, Pcm
from callcenter.phone.sip import Audio

FRAME_SAMPLES = 160
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
DIGITS = "0123456789*#ABCD"  # RFC 4733 3.2, by event number
DIGIT_FRAMES, DIGIT_ENDS, DIGIT_PAUSE = 5, 3, 3  # packets: 100 ms of digit, its end three times, 60 ms apart
MAX_QUEUED_DIGITS = 64
READS_A_TURN = 16  # datagrams of one stream, so that no stream starves the others
MAX_DRIFT_SAMPLES = SAMPLE_RATE  # an RTP clock further than this from the arrivals is a new clock
_HEADER = struct.Struct("!BBHII")
_EVENT = struct.Struct("!BBH")


class Packet(NamedTuple):
    """One received audio packet: monotonic arrival, RTP timestamp, payload in the call's law."""

    arrival: float
    timestamp: int
    payload: bytes


@dataclass(slots=True)
class Counters:
    """What a stream has seen; kept even when the audio is not."""

    sent: int = 0
    send_errors: int = 0
    received: int = 0
    strange: int = 0  # packets that are not RTP or carry no law of ours
    first_arrival: float | None = None
    last_arrival: float | None = None
    largest_gap: float = 0.0  # seconds between two arrivals


class Stream:
    """One call's audio both ways: plays, listens, sends and hears digits."""

    def __init__(self, host: str, *, keep_audio: bool, packet_limit: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind((host, 0))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self.counters = Counters()
        self.codec = Codec.PCMU
        self.digits = ""
        self.digit_heard = asyncio.Event()
        self.finished = asyncio.Event()  # what was played is out, or nothing is playing
        self.finished.set()
        self.muted = False
        self.phase = 0
        self._packets: deque[Packet] = deque(maxlen=packet_limit if keep_audio else 0)
        self._keep = keep_audio
        self._remote: tuple[str, int] | None = None
        self._allowed = False  # by the direction that was agreed
        self._digit_type: int | None = None
        self._sequence, self._ssrc = random.getrandbits(16), random.getrandbits(32)
        self._timestamp = random.getrandbits(32)
        self._pcm: Pcm | None = None
        self._loop_audio = False
        self._coded: bytes | None = None
        self._position = 0
        self._silence = b""
        self._queued: deque[int] = deque(maxlen=MAX_QUEUED_DIGITS)
        self._digit: tuple[int, int, int] | None = None  # event, packet index, timestamp
        self._last_events: deque[int] = deque(maxlen=8)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    def agree(self, remote: Audio, codec: Codec, *, send: bool) -> None:
        """Take what offer and answer agreed on."""
        self._remote = (remote.host, remote.port)
        self._digit_type = remote.digit_type
        self._allowed = send
        if codec is not self.codec:
            self._packets = deque(
                (p._replace(payload=self.codec.transcode(p.payload, codec)) for p in self._packets),
                maxlen=self._packets.maxlen,
            )
            self.codec, self._coded = codec, None
        self._silence = codec.silence * FRAME_SAMPLES

    def close(self) -> None:
        """Stop for good."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self._remote = None
        self.finished.set()

    # -- sending

    def play(self, pcm: Pcm, *, loop: bool) -> None:
        """Play int16 samples at 8 kHz in place of what is playing."""
        self._pcm, self._loop_audio, self._coded, self._position = pcm, loop, None, 0
        self.finished.clear()

    def silence(self) -> None:
        """Stop playing; silence is sent."""
        self._pcm = self._coded = None
        self.finished.set()

    def send_digits(self, digits: str) -> None:
        """Queue RFC 4733 digits; raises ValueError for what is no digit or when the queue is full."""
        events = [DIGITS.find(digit) for digit in digits.upper()]
        if -1 in events:
            raise ValueError(f"{digits!r} has characters that no keypad has; use {DIGITS}")
        if len(self._queued) + len(events) > MAX_QUEUED_DIGITS:
            raise ValueError(f"more than {MAX_QUEUED_DIGITS} digits are waiting; send fewer at once")
        self._queued.extend(events)

    def tick(self) -> None:
        """Send this frame's packet; called every 20 ms by the pacer."""
        self._timestamp = (self._timestamp + FRAME_SAMPLES) & 0xFFFFFFFF  # the clock runs while we are quiet
        if self._remote is None or not self._allowed or self.muted:
            return
        kind, timestamp = self.codec.value, self._timestamp
        if (self._digit or self._queued) and self._digit_type is not None:
            event, index, began = self._digit or (self._queued.popleft(), 0, timestamp)
            last = DIGIT_FRAMES + DIGIT_ENDS
            self._digit = (event, index + 1, began) if index + 1 < last + DIGIT_PAUSE else None
            if index < last:
                ended = 0x80 if index >= DIGIT_FRAMES else 0
                spoken = FRAME_SAMPLES * min(index + 1, DIGIT_FRAMES)
                payload, timestamp = _EVENT.pack(event, ended | 10, spoken), began
                kind = self._digit_type | (0x80 if index == 0 else 0)
            else:
                payload = self._silence
        else:
            payload = self._audio()
        self._sequence = (self._sequence + 1) & 0xFFFF
        try:
            self._socket.sendto(
                _HEADER.pack(0x80, kind, self._sequence, timestamp, self._ssrc) + payload, self._remote
            )
            self.counters.sent += 1
        except OSError:  # a full buffer or a vanished peer loses one packet, as a network does
            self.counters.send_errors += 1

    def _audio(self) -> bytes:
        if self._pcm is None:
            return self._silence
        if self._coded is None:  # encoded once, so that a tick only cuts a frame and adds a header
            self._coded = self.codec.encode(self._pcm)
        if self._position >= len(self._coded):
            if not self._loop_audio or not self._coded:
                self.silence()
                return self._silence
            self._position %= len(self._coded)
        frame = self._coded[self._position : self._position + FRAME_SAMPLES]
        self._position += FRAME_SAMPLES
        while (
            len(frame) < FRAME_SAMPLES
        ):  # a loop goes on within the frame, so that it meets itself without a click
            frame += (
                self._coded[: FRAME_SAMPLES - len(frame)] if self._loop_audio else self._silence[len(frame) :]
            )
        return frame

    # -- receiving

    @property
    def packets(self) -> list[Packet]:
        """The kept audio packets, in order of arrival; the oldest are dropped past the limit."""
        return list(self._packets)

    def _readable(self) -> None:
        # More than one: on a busy machine a turn of the loop takes longer than a packet, and who reads one a turn
        # hears what was said seconds ago.
        for _ in range(READS_A_TURN):
            try:
                data = self._socket.recv(2048)
            except OSError:  # no more there, or an ICMP report of a peer that went away
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        counters, now = self.counters, monotonic()
        if len(data) < 12 or data[0] >> 6 != 2:
            counters.strange += 1
            return
        kind, start, end = data[1] & 0x7F, 12 + 4 * (data[0] & 0x0F), len(data)
        timestamp = int.from_bytes(data[4:8], "big")
        if data[0] & 0x10 and end >= start + 4:
            start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
        if data[0] & 0x20:
            end -= data[-1]
        if start >= end:
            counters.strange += 1
        elif kind == self.codec.value:
            self._hear(now, timestamp, data[start:end])
        elif kind == self._digit_type:
            self._hear_digit(timestamp, data[start])
        elif kind in (Codec.PCMU.value, Codec.PCMA.value):
            self._hear(now, timestamp, Codec(kind).transcode(data[start:end], self.codec))
        else:
            counters.strange += 1

    def _hear(self, now: float, timestamp: int, payload: bytes) -> None:
        counters = self.counters
        counters.received += 1
        if counters.last_arrival is None:
            counters.first_arrival = now
        elif now - counters.last_arrival > counters.largest_gap:
            counters.largest_gap = now - counters.last_arrival
        counters.last_arrival = now
        if self._keep:
            self._packets.append(Packet(now, timestamp, payload))

    def _hear_digit(self, timestamp: int, event: int) -> None:
        # Every packet of one digit has the timestamp of its beginning, so each counts once however many are lost.
        if timestamp in self._last_events or event >= len(DIGITS):
            return
        self._last_events.append(timestamp)
        self.digits = (self.digits + DIGITS[event])[-1000:]
        self.digit_heard.set()


def lay_out(packets: Iterable[Packet], codec: Codec) -> Pcm:
    """Decode packets onto one line of time: late ones in their place, silence where the sender or the network was silent.

    Within one RTP clock the timestamp places a packet; where the clock jumps (a new source) its arrival does, so that no packet can stretch the line beyond the time it took.
    """
    placed: list[tuple[int, Pcm]] = []
    previous: Packet | None = None
    position = 0
    for packet in packets:
        if previous is not None:
            step = (packet.timestamp - previous.timestamp + 0x80000000) % 0x100000000 - 0x80000000
            elapsed = round((packet.arrival - previous.arrival) / FRAME_SECONDS) * FRAME_SAMPLES
            if abs(step - elapsed) > MAX_DRIFT_SAMPLES:
                step = max(FRAME_SAMPLES, elapsed)
            position += step
        placed.append((position, codec.decode(packet.payload)))
        previous = packet
    if not placed:
        return np.zeros(0, dtype=np.int16)
    first = min(start for start, _ in placed)
    line = np.zeros(max(start + len(part) for start, part in placed) - first, dtype=np.int16)
    for start, part in placed:
        line[start - first : start - first + len(part)] = part
    return line


class Pacer:
    """Sends every stream's packet each 20 ms from one task; streams are spread over four moments 5 ms apart.

    One pacer may serve many phones.  It never drops a frame: after a stall up to `MAX_BEHIND` it catches up.
    """

    PHASES = 4
    MAX_BEHIND = 0.5  # seconds; beyond, the clock starts anew

    def __init__(self) -> None:
        self._phases: tuple[dict[Stream, None], ...] = tuple({} for _ in range(self.PHASES))
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.largest_delay = 0.0  # seconds a tick was late: our own jitter, to be taken off what is measured

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="phone pacer")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def add(self, stream: Stream) -> None:
        """Serve this stream from now on."""
        if stream in self._phases[stream.phase]:
            return
        stream.phase = min(range(self.PHASES), key=lambda index: len(self._phases[index]))
        self._phases[stream.phase][stream] = None
        self._some.set()

    def remove(self, stream: Stream) -> None:
        """Serve this stream no more."""
        self._phases[stream.phase].pop(stream, None)
        if not any(self._phases):
            self._some.clear()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            due, phase = monotonic(), 0
            while self._some.is_set():
                late = monotonic() - due
                if late > self.MAX_BEHIND:
                    due = monotonic()
                await asyncio.sleep(max(0.0, -late))
                self.largest_delay = max(self.largest_delay, monotonic() - due)
                for stream in self._phases[phase]:
                    stream.tick()
                phase = (phase + 1) % self.PHASES
                due += FRAME_SECONDS / self.PHASES
