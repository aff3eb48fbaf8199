"""SIP transactions over UDP: send again until answered, answer again until acknowledged (RFC 3261 17, RFC 6026)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from callcenter.phone import sip
from callcenter.phone.sip import Headers, Request, Response

T1_SECONDS = 0.5  # RFC 3261 17.1.1.1: a guess of the round trip
T2_SECONDS = 4.0
TIMEOUT_T1 = 64  # timers B, F and H are this many T1
USER_AGENT = "callcenter-phone"

Destination = tuple[str, int]


class Wire(Protocol):
    """What transactions need of their wire."""

    loop: asyncio.AbstractEventLoop
    t1: float

    def send(self, data: bytes, destination: Destination) -> None: ...
    def forget_client(self, request: Request) -> None: ...
    def forget_server(self, request: Request) -> None: ...


class ClientTransaction:
    """One request and its answers (RFC 3261 17.1, RFC 6026); tells `heard` each provisional and the final answers."""

    def __init__(
        self, wire: Wire, request: Request, destination: Destination, heard: Callable[[Response], None]
    ) -> None:
        self.request = request
        self._wire, self._destination, self._heard = wire, destination, heard
        self._invite = request.method == "INVITE"
        self._data = request.encode()
        self._interval = wire.t1
        self._final: int | None = None
        wire.send(self._data, destination)
        self._again = wire.loop.call_later(self._interval, self._retransmit)
        self._end = wire.loop.call_later(TIMEOUT_T1 * wire.t1, self._timed_out)

    def _retransmit(self) -> None:
        self._interval *= 2
        if not self._invite:
            self._interval = min(self._interval, T2_SECONDS)
        self._wire.send(self._data, self._destination)
        self._again = self._wire.loop.call_later(self._interval, self._retransmit)

    def receive(self, response: Response) -> None:
        if response.status < 200:
            if self._final is None:
                if self._invite:  # proceeding: the peer has it, and whoever waits has his own deadline
                    self.stop()
                self._heard(response)
            return
        if self._invite and response.status >= 300:
            self._wire.send(self._ack(response).encode(), self._destination)
        first, self._final = self._final is None, self._final or response.status
        if first:
            self.stop()
            self._end = self._wire.loop.call_later(
                TIMEOUT_T1 * self._wire.t1, self._wire.forget_client, self.request
            )
        if first or (self._invite and response.status < 300):
            self._heard(response)

    def _ack(self, response: Response) -> Request:
        request = self.request
        headers = Headers.of(
            ("Via", request.headers.get("Via")),
            ("Max-Forwards", "70"),
            *(("Route", route) for route in request.headers.all("Route")),
            ("From", request.headers.get("From")),
            ("To", response.headers.get("To")),
            ("Call-ID", request.call_id),
            ("CSeq", f"{request.cseq} ACK"),
        )
        return Request(method="ACK", uri=request.uri, headers=headers)

    @property
    def pending(self) -> bool:
        """Whether no final answer has come yet."""
        return self._final is None

    def _timed_out(self) -> None:
        self.stop()
        self._final = 408
        self._wire.forget_client(self.request)
        host, port = self._destination
        headers = Headers(self.request.headers.items)
        self._heard(Response(headers=headers, status=408, reason=f"no answer from {host} port {port}"))

    def stop(self) -> None:
        self._again.cancel()
        self._end.cancel()


class ServerTransaction:
    """One received request and our last answer to it, repeated as needed (RFC 3261 17.2 and 13.3.1.4)."""

    def __init__(self, wire: Wire, request: Request, source: Destination) -> None:
        self.request = request
        self.cancelled: Callable[[Request], None] | None = None  # told of a CANCEL
        self.tag = ""  # ours, once answered
        self.final: int | None = None
        self._wire = wire
        self._destination = reply_address(request, source)
        self.source = source
        self._data = b""
        self._interval = wire.t1
        self._again: asyncio.TimerHandle | None = None
        self._unacknowledged: Callable[[], None] | None = None
        self._end: asyncio.TimerHandle | None = None

    def respond(
        self,
        status: int,
        reason: str = "",
        *,
        tag: str,
        extra: Headers | None = None,
        body: bytes = b"",
        unacknowledged: Callable[[], None] | None = None,
    ) -> None:
        """Answer; a final answer to INVITE is repeated until ACK, and `unacknowledged` called when none comes."""
        if self.final is not None:
            return
        self.tag = tag
        response = response_to(self.request, self.source, status, reason, tag=tag, extra=extra, body=body)
        self._data = response.encode()
        self.resend()
        if status < 200:
            return
        self.final = status
        loop, lifetime = self._wire.loop, TIMEOUT_T1 * self._wire.t1
        self._end = loop.call_later(lifetime, self._finish)
        if self.request.method == "INVITE":
            self._unacknowledged = unacknowledged
            self._again = loop.call_later(self._interval, self._retransmit)

    def resend(self) -> None:
        if self._data:
            self._wire.send(self._data, self._destination)

    def _retransmit(self) -> None:
        self.resend()
        self._interval = min(2 * self._interval, T2_SECONDS)
        self._again = self._wire.loop.call_later(self._interval, self._retransmit)

    def acknowledged(self) -> None:
        if self._again:
            self._again.cancel()
        self._unacknowledged = None

    def _finish(self) -> None:
        unacknowledged = self._unacknowledged
        self.stop()
        self._wire.forget_server(self.request)
        if unacknowledged:
            unacknowledged()

    def stop(self) -> None:
        for timer in (self._again, self._end):
            if timer:
                timer.cancel()
        self._unacknowledged = None


def server_key(request: Request, method: str) -> tuple[object, ...]:
    """What names a server transaction (17.2.3), safe for branches that are not unique."""
    via = request.via
    return via.branch, via.host, via.port, request.call_id, request.cseq, method


def reply_address(request: Request, source: Destination) -> Destination:
    """Where answers go: back to the source, at its own port when it asked for that (RFC 3581), else at Via's."""
    via = request.via
    return source if "rport" in via.params else (source[0], via.port or 5060)


def response_to(
    request: Request,
    source: Destination,
    status: int,
    reason: str,
    *,
    tag: str,
    extra: Headers | None = None,
    body: bytes = b"",
) -> Response:
    """The answer to a request: what is copied (8.2.6.2), and where it came from (18.2.1, RFC 3581)."""
    first, *rest = request.headers.listed("Via")
    if "rport" in request.via.params:
        parts = [part for part in first.split(";") if part.partition("=")[0].strip().lower() != "rport"]
        first = ";".join([*parts, f"received={source[0]}", f"rport={source[1]}"])
    to = request.headers.get("To")
    with contextlib.suppress(ValueError):
        if status > 100 and not request.to.tag:
            to = f"{to};tag={tag}"
    headers = Headers.of(
        *(("Via", via) for via in (first, *rest)),
        *(("Record-Route", route) for route in request.headers.all("Record-Route")),
        ("From", request.headers.get("From")),
        ("To", to),
        ("Call-ID", request.call_id),
        ("CSeq", request.headers.get("CSeq")),
        ("User-Agent", USER_AGENT),
        *(extra or ()),
        ("Content-Type", "application/sdp" if body else None),
    )
    return Response(
        headers=headers, body=body, status=status, reason=reason or sip.REASONS.get(status, "Unknown")
    )
