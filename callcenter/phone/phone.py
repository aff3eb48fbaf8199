"""A telephone: SIP user agent over UDP with real audio, many calls at once (RFC 3261, 3264, 3581, 4028, 4733).

Nothing here polls: transactions run on the loop's timers, all audio on one pacer, and each thing worth waiting for is a
`Moment` that keeps the monotonic second it happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Generator, Mapping
from enum import Enum
from functools import partial
from ipaddress import ip_address
from time import monotonic
from typing import Literal, Self

from callcenter.phone import sip
from callcenter.phone.g711 import Codec, Pcm
from callcenter.phone.rtp import Counters, Pacer, Packet, Stream, lay_out
from callcenter.phone.sip import Audio, Direction, Headers, Request, Response
from callcenter.phone.transactions import (
    T1_SECONDS,
    TIMEOUT_T1,
    USER_AGENT,
    ClientTransaction,
    Destination,
    ServerTransaction,
    reply_address,
    response_to,
    server_key,
)

CLOSE_SECONDS = 2.0  # for goodbyes when the phone closes
MAX_CALLS = 2_000  # more are answered 486
MAX_RING_SECONDS = 180.0  # a call that nobody answers or cancels is answered 480 (as RFC 3261 timer C)
MAX_TRANSACTIONS = 20_000  # more are dropped; the peer sends again
MAX_WAITING_CALLS = 256  # calls nobody took with next_call; the oldest leave the list, not the phone
MIN_SESSION_SECONDS = 90  # RFC 4028 4
ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, NOTIFY, UPDATE"

Make = Callable[[tuple[str, str] | None, int], Request]  # (authorization header, CSeq) -> request
_log = logging.getLogger(__name__)


class SipRefused(Exception):  # noqa: N818 - named by the fact, as all refusals here
    """The other side said no: `status` and `reason` are its words, 408 is nobody's answer in time."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the SIP request was refused: {status} {reason}")
        self.status = status
        self.reason = reason


class CallState(Enum):
    """Where a call is."""

    DIALLING = "dialling"
    RINGING = "ringing"
    ANSWERED = "answered"
    ENDED = "ended"


class Side(Enum):
    """Who did it."""

    HERE = "here"
    THERE = "there"


class Moment(asyncio.Event):
    """Something that happens once; `await moment` waits for it with a deadline, `at` is when, in monotonic seconds."""

    DEADLINE_SECONDS = 30.0

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.at: float | None = None

    def set(self) -> None:
        """Let it have happened now; a second time changes nothing."""
        if self.at is None:
            self.at = monotonic()
        super().set()

    async def wait(self, timeout: float = DEADLINE_SECONDS) -> Literal[True]:  # noqa: ASYNC109 - the public contract
        """Wait at most `timeout` seconds; raises TimeoutError."""
        try:
            async with asyncio.timeout(timeout):
                return await super().wait()
        except TimeoutError:
            raise TimeoutError(f"not {self._name} within {timeout:g} s") from None

    def __await__(self) -> Generator[object, None, Literal[True]]:
        return self.wait().__await__()


class Call:
    """One call of a phone; made by `Phone.dial` or received from `Phone.next_call`."""

    def __init__(self, phone: Phone, *, side: Side, call_id: str, local_tag: str) -> None:
        self.phone = phone
        self.dialled_by = side
        self.call_id = call_id
        self.local_tag = local_tag
        self.state = CallState.DIALLING
        self.status: int | None = None  # the final answer to the INVITE
        self.reason = ""
        self.ended_by: Side | None = None
        self.cause: int | None = None  # Q.850, from the Reason header of the peer's BYE or CANCEL (RFC 3326)
        self.remote_headers = Headers()  # of the INVITE received, or of the latest answer to ours
        self.caller = sip.Address("", "", {})
        self.dialled = Moment("dialled")
        self.ringing = Moment("ringing")
        self.answered = Moment("answered")
        self.confirmed = Moment("confirmed by ACK")
        self._agreed = Moment("confirmed by ACK or ended")
        self.cancelled = Moment("cancelled")
        self.ended = Moment("ended")
        self.settled = Moment("answered or ended")
        self.reinvites = 0  # received: holds, resumes and session refreshes
        self.stream = Stream(phone.local[0], keep_audio=phone.keep_audio, packet_limit=phone.packet_limit)
        self.remote_tag = ""
        self._local = self._remote = ""  # From and To of our requests, without tags
        self._target = ""  # where in-dialog requests go: the peer's Contact
        self._routes: list[str] = []
        self._destination: Destination = phone.server or phone.local
        self._cseq = secrets.randbelow(10_000) + 1
        self._remote_cseq = -1
        self._invite: ClientTransaction | None = None  # ours that runs
        self._cancel_wished = False
        self._provisional = False
        self._received: ServerTransaction | None = None  # the peer's INVITE
        self._extra: Mapping[str, str] = {}
        self._held_here = False
        self._direction = Direction.SENDRECV
        self._peer_audio: Audio | None = None
        self._session_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._sdp_id, self._sdp_version = secrets.randbelow(1 << 31), 0

    # -- what a person does

    async def wait_answered(self, timeout: float) -> None:  # noqa: ASYNC109 - the public contract
        """Wait for the answer; raises SipRefused when the call ends instead, TimeoutError after `timeout` seconds."""
        await self.settled.wait(timeout)
        if not self.answered.is_set():
            raise SipRefused(self.status or 487, self.reason)

    async def wait_digits(self, count: int, timeout: float) -> str:  # noqa: ASYNC109 - the public contract
        """Wait until `count` digits were received in all; raises TimeoutError after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while len(self.digits) < count:
                    self.stream.digit_heard.clear()
                    await self.stream.digit_heard.wait()
        except TimeoutError:
            raise TimeoutError(f"{len(self.digits)} of {count} digits within {timeout:g} s") from None
        return self.digits

    async def wait_played(self, timeout: float) -> None:  # noqa: ASYNC109 - the public contract
        """Wait until what `play` was given has been sent; raises TimeoutError after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.stream.finished.wait()
        except TimeoutError:
            raise TimeoutError(f"the audio was not played out within {timeout:g} s") from None

    async def answer(self) -> None:
        """Answer an incoming call and wait for its ACK; raises SipRefused when it is over before that."""
        self._accept()
        await self._agreed.wait(TIMEOUT_T1 * self.phone.t1 + 1)  # then the missing ACK has ended the call
        if not self.confirmed.is_set():
            raise SipRefused(self.status or 487, "the call ended before its ACK")

    async def reject(self, status: int = 486, reason: str = "") -> None:
        """Refuse an incoming call, e.g. 486 busy, 603 declined, 480 unavailable."""
        self._refuse(status, reason)

    def _refuse(self, status: int, reason: str = "") -> None:
        if self._received is None or self.settled.is_set():
            return
        self._received.respond(status, reason, tag=self.local_tag)
        self._end(Side.HERE, status, reason or sip.REASONS.get(status, ""))

    def early_media(self) -> None:
        """Send 183 with our audio address, so that the caller hears us before we answer."""
        if self._received is None or self.settled.is_set():
            return
        self._received.respond(
            183, tag=self.local_tag, extra=self._contact(), body=self._sdp(self._direction)
        )
        self._start_audio()

    async def cancel(self) -> None:
        """Take an unanswered outgoing call back and wait for its end; a call answered meanwhile is hung up."""
        if self.dialled_by is Side.HERE and not self.settled.is_set():
            self._cancel_wished = True
            if self._provisional:
                self._send_cancel()
            try:
                await self.settled.wait(2 * TIMEOUT_T1 * self.phone.t1 + 1)
            except TimeoutError:
                self._end(Side.HERE, 408, "the peer never finished the call")
        if self.answered.is_set():
            await self.hang_up()

    async def hang_up(self) -> None:
        """End the call whatever its state; returns when the peer has confirmed or 64 T1 are over; never raises."""
        if self.ended.is_set():
            return
        if self.answered.is_set():
            with contextlib.suppress(SipRefused):  # a peer that does not confirm is gone all the same
                await self.phone.final(self._bye_now)
        elif self.dialled_by is Side.HERE:
            await self.cancel()
        else:
            await self.reject(480)

    async def hold(self) -> int:
        """Put the peer on hold by re-INVITE (sendonly); returns the final status."""
        self._held_here = True
        return await self.reinvite()

    async def resume(self) -> int:
        """Take the peer back from hold; returns the final status."""
        self._held_here = False
        return await self.reinvite()

    async def reinvite(self) -> int:
        """Send the present media description again, as a session refresh does; returns the final status."""
        return (await self.phone.final(self._reinvite)).status

    def drop_silently(self) -> None:
        """Vanish from this call: no BYE, no more audio, no answer to anything."""
        self.phone.silence_call(self.call_id)
        if self._invite:
            self._invite.stop()
        if self._received:
            self._received.stop()
        self._end(Side.HERE, self.status or 487, "dropped silently")

    # -- audio

    def play(self, pcm: Pcm, *, loop: bool = False) -> None:
        """Send int16 samples at 8 kHz, in place of what was playing; before the answer they wait for it."""
        self.stream.play(pcm, loop=loop)

    def silence(self) -> None:
        """Play nothing; silence is still sent."""
        self.stream.silence()

    def mute(self, muted: bool = True) -> None:
        """Stop (or start again) sending audio packets while the call stands."""
        self.stream.muted = muted

    def send_digits(self, digits: str) -> None:
        """Send keypad digits after those already queued (RFC 4733); raises ValueError when they cannot be sent."""
        if self._peer_audio is not None and self._peer_audio.digit_type is None:
            raise ValueError("the peer takes no telephone-event digits; allow RFC 4733 on its side")
        self.stream.send_digits(digits)

    @property
    def digits(self) -> str:
        """The digits received so far."""
        return self.stream.digits

    @property
    def codec(self) -> Codec:
        """The law of `packets`."""
        return self.stream.codec

    @property
    def packets(self) -> list[Packet]:
        """The audio packets received and kept."""
        return self.stream.packets

    @property
    def counters(self) -> Counters:
        """How many packets, when, and the largest gap; kept for every call."""
        return self.stream.counters

    @property
    def held(self) -> bool:
        """Whether the peer has put us on hold."""
        return not self._direction.sends

    def received(self, since: float | None = None, until: float | None = None) -> Pcm:
        """What was heard, on one line of time, from packets that arrived between two monotonic moments."""
        chosen = [
            packet
            for packet in self.stream.packets
            if (since is None or packet.arrival >= since) and (until is None or packet.arrival < until)
        ]
        return lay_out(chosen, self.stream.codec)

    # -- SIP, outgoing

    def dial(self, uri: str, *, destination: Destination, local: str, extra: Mapping[str, str]) -> None:
        """Send the INVITE; used by the phone."""
        self._target, self._destination, self._extra = uri, destination, extra
        self._local, self._remote = local, f"<{uri}>"
        self.caller = sip.parse_address(local)
        self.dialled.set()
        self._send_invite(self._heard_first)

    def _send_invite(self, heard: Callable[[Response], None]) -> None:
        body = self._sdp(Direction.SENDONLY if self._held_here else Direction.SENDRECV)

        def make(authorization: tuple[str, str] | None, cseq: int) -> Request:
            return self._request("INVITE", authorization, cseq, body)

        def started(transaction: ClientTransaction) -> None:
            self._invite, self._provisional = transaction, False

        self.phone.ask(make, self._next_cseq, lambda: self._destination, heard, started)

    def _next_cseq(self) -> int:
        self._cseq += 1
        return self._cseq

    def _request(
        self, method: str, authorization: tuple[str, str] | None, cseq: int, body: bytes = b""
    ) -> Request:
        first = method == "INVITE" and not self.remote_tag
        headers = Headers.of(
            ("Via", self.phone.new_via()),
            ("Max-Forwards", "70"),
            *(("Route", route) for route in self._routes),
            ("From", f"{self._local};tag={self.local_tag}"),
            ("To", self._remote + (f";tag={self.remote_tag}" if self.remote_tag else "")),
            ("Call-ID", self.call_id),
            ("CSeq", f"{cseq} {method}"),
            ("Contact", f"<{self.phone.contact}>" if method != "BYE" else None),
            ("Supported", "timer" if method == "INVITE" else None),
            ("Allow", ALLOW if method == "INVITE" else None),
            ("User-Agent", USER_AGENT),
            authorization or ("", None),
            ("Content-Type", "application/sdp" if body else None),
            extra=self._extra if first else None,
        )
        return Request(method=method, uri=self._target, headers=headers, body=body)

    def _heard_first(self, response: Response) -> None:
        """Take an answer to the INVITE that opened the call."""
        if response.status < 200:
            self._provisional = True
            self.remote_headers = response.headers
            if self._cancel_wished:
                self._send_cancel()
            elif self.state is not CallState.ENDED and response.status > 100:
                self.state = CallState.RINGING
                self.ringing.set()
                self._take_answer(response.body)
            return
        if response.status >= 300:
            if response.status == 487 and self._cancel_wished:
                self.cancelled.set()
            if not self.ended.is_set():
                self.remote_headers = response.headers
                side = Side.HERE if self._cancel_wished else Side.THERE
                self._end(side, response.status, response.reason)
            return
        if (self.answered.is_set() and response.to.tag != self.remote_tag) or (
            self.ended.is_set() and not self.answered.is_set()
        ):
            self._leave_fork(response)
            return
        first = not self.answered.is_set()
        if first:
            self.remote_tag = response.to.tag
            self.remote_headers = response.headers
            self._routes = response.headers.listed("Record-Route")[::-1]
            self._take_target(response.headers)
        self._acknowledge(response)
        if not first:
            return
        self._answer_now(response.status, response.reason)
        if not self._take_answer(response.body):
            self.reason = "the answer has no audio that this phone speaks; allow ulaw or alaw"
            self._bye_now()
        elif self._cancel_wished:
            self._bye_now()
        else:
            self._arm_session(response.headers, we_asked=True)

    def _answer_now(self, status: int, reason: str) -> None:
        self.state = CallState.ANSWERED
        self.status, self.reason = status, reason
        self.answered.set()
        self.settled.set()

    def _acknowledge(self, response: Response) -> None:
        """Send ACK, for each copy of a 2xx (13.2.2.4)."""
        self.phone.send(self._request("ACK", None, response.cseq).encode(), self._destination)
        self.confirmed.set()

    def _leave_fork(self, response: Response) -> None:
        """Acknowledge and leave an answer that nobody wants: of a second phone, or too late."""
        kept = self.remote_tag, self._target, self._destination, self._routes
        self.remote_tag = response.to.tag
        self._routes = response.headers.listed("Record-Route")[::-1]
        self._take_target(response.headers)
        self._acknowledge(response)
        bye = self._request("BYE", None, self._next_cseq())
        self.phone.send(bye.encode(), self._destination)
        self.remote_tag, self._target, self._destination, self._routes = kept

    def _send_cancel(self) -> None:
        invite = self._invite
        if invite is None or self.settled.is_set():
            return
        self._provisional, self._invite = False, None
        request = invite.request
        headers = Headers.of(
            ("Via", request.headers.get("Via")),
            ("Max-Forwards", "70"),
            *(("Route", route) for route in request.headers.all("Route")),
            ("From", request.headers.get("From")),
            ("To", request.headers.get("To")),
            ("Call-ID", self.call_id),
            ("CSeq", f"{request.cseq} CANCEL"),
        )
        cancel = Request(method="CANCEL", uri=request.uri, headers=headers)

        def heard(response: Response) -> None:
            # 9.1: a peer that never finishes the INVITE must not keep the call for ever.
            if response.status >= 200:
                self.phone.loop.call_later(TIMEOUT_T1 * self.phone.t1, self._end, Side.HERE, 487, "cancelled")

        self.phone.start(cancel, self._destination, heard)

    def _reinvite(self, heard: Callable[[Response], None]) -> None:
        if self.state is not CallState.ANSWERED:
            raise SipRefused(481, "only an answered call can be changed; wait for its answer")

        def taken(response: Response) -> None:
            if response.status < 200:
                return
            if response.status < 300:
                self._take_target(response.headers)
                self._acknowledge(response)
                self._take_answer(response.body)
                self._arm_session(response.headers, we_asked=True)
            elif response.status in (408, 481):  # 12.2.1.2: the peer no longer knows this call
                self._bye_now()
            heard(response)

        self._send_invite(taken)

    def _bye_now(self, heard: Callable[[Response], None] = lambda _: None) -> None:
        """Say goodbye: over for us at once, `heard` is told when the peer has confirmed or timer F fired."""
        if self.ended.is_set():
            return
        self.phone.ask(
            lambda authorization, cseq: self._request("BYE", authorization, cseq),
            self._next_cseq,
            lambda: self._destination,
            heard,
        )
        self._end(Side.HERE, self.status or 200, self.reason)

    # -- SIP, incoming

    def ring(self, transaction: ServerTransaction, offer: Audio | None) -> None:
        """Take a received INVITE and answer 180; used by the phone."""
        request = transaction.request
        self._received, transaction.cancelled = transaction, self.receive_cancel
        self.remote_headers = request.headers
        self.caller = request.from_
        self.remote_tag = request.from_.tag
        self._remote, self._local = (
            _untagged(request.headers.get("From")),
            _untagged(request.headers.get("To")),
        )
        self._remote_cseq = request.cseq
        self._routes = request.headers.listed("Record-Route")
        self._destination, self._target = reply_address(request, transaction.source), request.from_.uri
        self._take_target(request.headers)
        if offer:
            self._take_offer(offer)
        self.state = CallState.RINGING
        self.dialled.set()
        self.ringing.set()
        transaction.respond(180, tag=self.local_tag, extra=self._contact())
        loop, after = self.phone.loop, self.phone.auto_answer_after
        if after is None:
            self._answer_timer = loop.call_later(MAX_RING_SECONDS, self._refuse, 480)
        else:
            self._answer_timer = loop.call_later(after, self._accept_if_waiting)

    def _accept_if_waiting(self) -> None:
        if not self.settled.is_set():
            self._accept()

    def _accept(self) -> None:
        if self._received is None or self.ended.is_set():
            raise SipRefused(self.status or 487, self.reason or "the call is over")
        if self.answered.is_set():
            return
        session = _session_agreed(self._received.request)
        self._answer_now(200, sip.REASONS[200])
        self._received.respond(
            200,
            tag=self.local_tag,
            extra=Headers((*self._contact(), *session)),
            body=self._sdp(self._direction),
            unacknowledged=self._bye_now,
        )
        self._start_audio()
        self._arm_session(session, we_asked=False)

    def receive(self, transaction: ServerTransaction, source: Destination) -> None:
        """Take a request within this call; used by the phone."""
        request = transaction.request
        if request.cseq <= self._remote_cseq:  # 12.2.2: out of order
            transaction.respond(500, "CSeq too low", tag=self.local_tag)
            return
        self._remote_cseq = request.cseq
        match request.method:
            case "BYE":
                transaction.respond(200, tag=self.local_tag)
                if self._received and not self.answered.is_set():
                    self._received.respond(487, tag=self.local_tag)
                self.cause = _cause(request)
                self._end(Side.THERE, self.status or 487, self.reason)
            case "INVITE" | "UPDATE":
                self._receive_offer(transaction)
            case _:
                transaction.respond(200, tag=self.local_tag)

    def _receive_offer(self, transaction: ServerTransaction) -> None:
        request = transaction.request
        invite = request.method == "INVITE"
        if self.state is not CallState.ANSWERED or (invite and self._invite and self._invite.pending):
            transaction.respond(491, tag=self.local_tag)  # 14.2: glare
            return
        offer = sip.parse_sdp(request.body) if request.body else None
        if request.body and not (offer and set(offer.codecs) & set(self.phone.codecs)):
            transaction.respond(488, tag=self.local_tag)
            return
        if invite:
            self.reinvites += 1
            self._received = transaction
        self._take_target(request.headers)
        if offer:
            self._take_offer(offer)
        body = self._sdp(self._direction) if offer or invite else b""
        session = _session_agreed(request)
        transaction.respond(
            200,
            tag=self.local_tag,
            extra=Headers((*self._contact(), *session)),
            body=body,
            unacknowledged=self._bye_now,
        )
        self._start_audio()
        self._arm_session(session, we_asked=False)

    def acknowledged(self, request: Request) -> None:
        """Take the ACK of our 2xx; with a delayed offer it carries the answer (13.2.1)."""
        if self._received is None or request.cseq != self._received.request.cseq:
            return
        self._received.acknowledged()
        if request.body and not self._received.request.body:
            self._take_answer(request.body)
        self.confirmed.set()
        self._agreed.set()

    def receive_cancel(self, request: Request) -> None:
        """Take the caller's CANCEL of a call that we have not answered."""
        if self._received is None or self.settled.is_set():
            return
        self._received.respond(487, tag=self.local_tag)
        self.cause = _cause(request)
        self.cancelled.set()
        self._end(Side.THERE, 487, sip.REASONS[487])

    # -- what both directions share

    def _contact(self) -> Headers:
        return Headers((("Contact", f"<{self.phone.contact}>"), ("Allow", ALLOW), ("Supported", "timer")))

    def _take_target(self, headers: Headers) -> None:
        """Refresh where requests within the call go: the first route, else the peer's Contact (12.2.1.1)."""
        with contextlib.suppress(ValueError, IndexError):
            contact = sip.parse_address(headers.listed("Contact")[0]).uri
            sip.parse_uri(contact)
            self._target = contact
            hop = sip.parse_address(self._routes[0]).uri if self._routes else self._target
            uri = sip.parse_uri(hop)
            ip_address(uri.host)  # a name is not looked up here: then the answers' own address serves
            self._destination = (uri.host, uri.port or 5060)

    def _sdp(self, direction: Direction) -> bytes:
        """Our side of the media: an offer before the peer's is known, else the answer in the agreed law."""
        self._sdp_version += 1
        peer = self._peer_audio
        codecs = tuple(codec for codec in self.phone.codecs if peer is None or codec is self.stream.codec)
        answer = Audio(
            host=self.phone.local[0],
            port=self.stream.port,
            codecs=codecs,
            digit_type=peer.digit_type if peer else 101,
            direction=direction,
        )
        return sip.build_sdp(answer, session=self._sdp_id, version=self._sdp_version)

    def _take_offer(self, offer: Audio) -> None:
        wished = Direction.SENDONLY if self._held_here else Direction.SENDRECV
        self._direction = offer.direction.answered(wished)
        self._agree(offer)

    def _take_answer(self, body: bytes) -> bool:
        """Take the peer's answer; False when there is none that we can speak."""
        audio = sip.parse_sdp(body) if body else None
        if audio is None:
            return self._peer_audio is not None
        wished = Direction.SENDONLY if self._held_here else Direction.SENDRECV
        self._direction = audio.direction.answered(wished)
        self._agree(audio)
        self._start_audio()
        return True

    def _agree(self, audio: Audio) -> None:
        codec = next((codec for codec in audio.codecs if codec in self.phone.codecs), self.stream.codec)
        self._peer_audio = audio
        self.stream.agree(audio, codec, send=self._direction.sends)

    def _start_audio(self) -> None:
        if self._peer_audio is not None and self.state is not CallState.ENDED:
            self.phone.pacer.add(self.stream)

    def _arm_session(self, headers: Headers, *, we_asked: bool) -> None:
        """Refresh at half the interval when that is our part, else hang up shortly before its end (RFC 4028 10)."""
        if self._session_timer:
            self._session_timer.cancel()
            self._session_timer = None
        seconds, refresher = _session(headers)
        if seconds is None or self.ended.is_set():
            return
        ours = (refresher or "uac") == ("uac" if we_asked else "uas")
        delay = seconds / 2 if ours else seconds - min(32, seconds / 3)
        action = partial(self._reinvite, lambda _: None) if ours else self._bye_now
        self._session_timer = self.phone.loop.call_later(delay, action)

    def _end(self, side: Side, status: int, reason: str) -> None:
        if self.ended.is_set():
            return
        self.state, self.ended_by = CallState.ENDED, side
        self.status = self.status if self.answered.is_set() else status
        self.reason = reason
        for timer in (self._session_timer, self._answer_timer):
            if timer:
                timer.cancel()
        self.phone.pacer.remove(self.stream)
        self.stream.close()
        self.ended.set()
        self.settled.set()
        self._agreed.set()
        self.phone.forget_call(self)


class Phone(asyncio.DatagramProtocol):
    """A SIP phone on one UDP socket; `async with` opens it and leaves nothing behind."""

    def __init__(
        self,
        *,
        user: str,
        password: str | None = None,
        server: tuple[str, int] | None = None,
        bind: str = "127.0.0.1",
        port: int = 0,
        codecs: tuple[Codec, ...] = (Codec.PCMU, Codec.PCMA),
        auto_answer_after: float | None = None,
        busy_when_talking: bool = False,
        keep_audio: bool = True,
        packet_limit: int = 90_000,
        t1: float = T1_SECONDS,
        pacer: Pacer | None = None,
    ) -> None:
        """Describe the phone; seconds for times, `packet_limit` kept audio packets a call (50 a second).

        With `keep_audio=False` calls keep counters only.  Give many phones one `pacer` to run them on one task.
        """
        self.user, self._password, self.server = user, password, server
        self.local: Destination = (bind, port)
        self.codecs = codecs
        self.auto_answer_after, self.busy_when_talking = auto_answer_after, busy_when_talking
        self.keep_audio, self.packet_limit, self.t1 = keep_audio, packet_limit, t1
        self.calls: dict[tuple[str, str], Call] = {}  # living, by Call-ID and our tag
        self.registered = False
        self.malformed = 0  # datagrams that were not SIP
        self.pacer = pacer or Pacer()
        self._own_pacer = pacer is None
        self._transport: asyncio.DatagramTransport | None = None
        self._clients: dict[tuple[str, str], ClientTransaction] = {}
        self._servers: dict[tuple[object, ...], ServerTransaction] = {}
        self._waiting: asyncio.Queue[Call] = asyncio.Queue(MAX_WAITING_CALLS)  # full: the oldest leaves
        self._silenced: set[str] = set()  # Call-IDs to which nothing is said any more
        self._register_id, self._register_tag, self._register_cseq = _token(), _token(), 0
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        if self.server:
            self.server = await self._resolve(*self.server)
        bind, port = self.local
        transport, _ = await self.loop.create_datagram_endpoint(lambda: self, local_addr=(bind, port))
        self._transport = transport
        host, port = transport.get_extra_info("sockname")[:2]
        if ip_address(host).is_unspecified:
            host = _route_from(self.server) if self.server else "127.0.0.1"
        self.local = (host, port)
        if self._own_pacer:
            await self.pacer.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(TimeoutError, SipRefused):
                async with asyncio.timeout(CLOSE_SECONDS):
                    async with asyncio.TaskGroup() as goodbyes:
                        for call in list(self.calls.values()):
                            goodbyes.create_task(call.hang_up(), name=f"goodbye {call.call_id}")
                    if self.registered:
                        await self.unregister()
        finally:
            await self._stop_keeper()
            self._close()
            if self._own_pacer:
                await self.pacer.__aexit__()

    def vanish(self) -> None:
        """Close every socket without a word, as when the cable is pulled."""
        if self._keeper:
            self._keeper.cancel()
        self.registered = False
        self._close()

    def _close(self) -> None:
        for call in list(self.calls.values()):
            call.drop_silently()
        for client in self._clients.values():
            client.stop()
        for server in self._servers.values():
            server.stop()
        self._clients.clear()
        self._servers.clear()
        if self._transport:
            self._transport.close()
            self._transport = None

    # -- what a person does

    async def register(self, expires: int = 300) -> None:
        """Register for `expires` seconds and keep it fresh; raises SipRefused."""
        granted = await self._register(expires)
        await self._stop_keeper()
        self.registered = True
        self._keeper = asyncio.create_task(
            self._keep_registered(expires, granted), name=f"registration of {self.user}"
        )

    async def unregister(self) -> None:
        """Take the registration back; raises SipRefused."""
        await self._stop_keeper()
        self.registered = False
        await self._register(0)

    async def dial(
        self,
        target: str,
        *,
        caller_name: str | None = None,
        caller: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Call:
        """Call a number at the server, or a full sip: address; returns when the INVITE is sent.

        `caller` is the number shown instead of the phone's user (a trunk speaks for many).
        """
        if target.startswith(("sip:", "sips:")):
            uri = target
            parsed = sip.parse_uri(target)
            destination = await self._resolve(parsed.host, parsed.port or 5060)
        elif self.server:
            uri, destination = f"sip:{target}@{sip.host_text(*self.server)}", self.server
        else:
            raise ValueError("this phone has no server to dial a number at; give one, or dial a sip: address")
        domain = self.server[0] if self.server else self.local[0]
        local = f"<sip:{caller or self.user}@{sip.host_text(domain)}>"
        if caller_name is not None:
            local = f"{sip.quoted(caller_name)} {local}"
        call = Call(self, side=Side.HERE, call_id=_token(), local_tag=_token())
        self.calls[call.call_id, call.local_tag] = call
        try:
            call.dial(uri, destination=destination, local=local, extra=headers or {})
        except ValueError:
            call.drop_silently()
            raise
        return call

    async def next_call(self, timeout: float) -> Call:  # noqa: ASYNC109 - the public contract
        """The next incoming call, already ringing; raises TimeoutError after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._waiting.get()
        except TimeoutError:
            raise TimeoutError(f"no call came in within {timeout:g} s") from None

    # -- registration

    async def _register(self, expires: int) -> float:
        """Send one REGISTER; returns the seconds granted."""
        if self.server is None:
            raise ValueError("this phone has no server to register at; give one")
        domain = sip.host_text(*self.server)
        me = f"<sip:{self.user}@{sip.host_text(self.server[0])}>"

        def make(authorization: tuple[str, str] | None, cseq: int) -> Request:
            headers = Headers.of(
                ("Via", self.new_via()),
                ("Max-Forwards", "70"),
                ("From", f"{me};tag={self._register_tag}"),
                ("To", me),
                ("Call-ID", self._register_id),
                ("CSeq", f"{cseq} REGISTER"),
                ("Contact", f"<{self.contact}>;expires={expires}"),
                ("Expires", str(expires)),
                ("User-Agent", USER_AGENT),
                authorization or ("", None),
            )
            return Request(method="REGISTER", uri=f"sip:{domain}", headers=headers)

        def next_cseq() -> int:
            self._register_cseq += 1
            return self._register_cseq

        server = self.server
        response = await self.final(lambda heard: self.ask(make, next_cseq, lambda: server, heard))
        if (
            response.status == 423
            and (least := response.headers.get("Min-Expires")).isdigit()
            and int(least) > expires > 0
        ):
            return await self._register(int(least))
        if response.status >= 300:
            raise SipRefused(response.status, response.reason)
        text = response.headers.get("Expires")
        for contact in response.headers.listed("Contact"):
            with contextlib.suppress(ValueError):
                address = sip.parse_address(contact)
                if address.uri == self.contact:
                    text = address.params.get("expires", text)
        return float(text) if text.isdigit() and len(text) < 8 else float(expires)

    async def _keep_registered(self, expires: int, granted: float) -> None:
        while True:
            await asyncio.sleep(max(1.0, granted * 0.8))
            try:
                granted = await self._register(expires)
                self.registered = True
            except SipRefused as error:
                self.registered = False
                granted = 10.0
                _log.warning("the registration was lost; trying again", extra={"status": error.status})

    async def _stop_keeper(self) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None

    # -- what calls and transactions use

    @property
    def contact(self) -> str:
        """Where this phone is reached directly."""
        return f"sip:{self.user}@{sip.host_text(*self.local)}"

    def new_via(self) -> str:
        """A Via of a new transaction."""
        return f"SIP/2.0/UDP {sip.host_text(*self.local)};branch={sip.BRANCH_COOKIE}{_token()};rport"

    def send(self, data: bytes, destination: Destination) -> None:
        """Put a datagram on the wire; a closed or vanished phone sends nothing."""
        if self._transport:
            self._transport.sendto(data, destination)

    def start(
        self, request: Request, destination: Destination, heard: Callable[[Response], None]
    ) -> ClientTransaction:
        """Begin a client transaction."""
        transaction = ClientTransaction(self, request, destination, heard)
        self._clients[request.via.branch, request.method] = transaction
        return transaction

    def ask(
        self,
        make: Make,
        next_cseq: Callable[[], int],
        destination: Callable[[], Destination],
        heard: Callable[[Response], None],
        started: Callable[[ClientTransaction], None] = lambda _: None,
    ) -> None:
        """Run a request, answering a digest challenge once, and once more when its nonce was stale."""
        attempts = 0

        def run(authorization: tuple[str, str] | None) -> None:
            nonlocal attempts
            attempts += 1
            request = make(authorization, next_cseq())
            started(self.start(request, destination(), partial(received, request)))

        def received(request: Request, response: Response) -> None:
            challenge = sip.best_challenge(response) if response.status in (401, 407) else None
            again = challenge is not None and (attempts == 1 or (challenge.stale and attempts == 2))
            if challenge is None or not again or self._password is None or self._transport is None:
                heard(response)
                return
            run(
                sip.authorization(
                    challenge,
                    username=self.user,
                    password=self._password,
                    method=request.method,
                    uri=request.uri,
                    cnonce=_token(),
                )
            )

        run(None)

    async def final(self, begin: Callable[[Callable[[Response], None]], None]) -> Response:
        """Begin a request and wait for its final answer; raises SipRefused(408) when none can come any more."""
        answer: asyncio.Future[Response] = self.loop.create_future()

        def heard(response: Response) -> None:
            if response.status >= 200 and not answer.done():
                answer.set_result(response)

        begin(heard)
        try:
            async with asyncio.timeout(
                2 * TIMEOUT_T1 * self.t1 + 1
            ):  # two of timer B or F: digest asks twice
                return await answer
        except TimeoutError:
            raise SipRefused(408, "no answer came") from None

    def forget_client(self, request: Request) -> None:
        """Let go of a finished transaction."""
        self._clients.pop((request.via.branch, request.method), None)

    def forget_server(self, request: Request) -> None:
        """Let go of a finished transaction."""
        self._servers.pop(server_key(request, request.method), None)

    def silence_call(self, call_id: str) -> None:
        """Say nothing any more about a call, whatever is asked."""
        self._silenced.add(call_id)

    def forget_call(self, call: Call) -> None:
        """Let go of an ended call."""
        self.calls.pop((call.call_id, call.local_tag), None)

    async def _resolve(self, host: str, port: int) -> Destination:
        found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return str(found[0][4][0]), port

    # -- datagrams

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Take one datagram; whatever it is, nothing is raised."""
        source = (addr[0], addr[1])
        try:
            message = sip.parse(data)
        except sip.Malformed as error:
            self.malformed += 1
            if error.request is not None and error.request.method != "ACK":
                answer = response_to(error.request, source, error.status, "", tag=_token())
                self.send(answer.encode(), reply_address(error.request, source))
            return
        if message.call_id in self._silenced:
            return
        if isinstance(message, Response):
            transaction = self._clients.get((message.via.branch, message.cseq_method))
            if transaction and transaction.request.call_id == message.call_id:
                transaction.receive(message)
            return
        self._receive(message, source)

    def error_received(self, exc: Exception) -> None:
        """Take an ICMP report; the timers notice a peer that is gone."""

    def _receive(self, request: Request, source: Destination) -> None:
        key = server_key(request, "INVITE" if request.method == "ACK" else request.method)
        known = self._servers.get(key)
        call = self.calls.get((request.call_id, request.to.tag)) if request.to.tag else None
        if request.method == "ACK":
            if known:
                known.acknowledged()
            if call:
                call.acknowledged(request)
            return
        if known:
            known.resend()
            return
        if len(self._servers) >= MAX_TRANSACTIONS:
            return
        transaction = self._servers[key] = ServerTransaction(self, request, source)
        unsupported = [name for name in request.headers.listed("Require") if name.lower() != "timer"]
        match request.method:
            case "CANCEL":
                self._receive_cancel(transaction)
            case _ if unsupported:
                extra = Headers((("Unsupported", ", ".join(unsupported)),))
                transaction.respond(420, tag=_token(), extra=extra)
            case _ if request.to.tag and (call is None or call.remote_tag != request.from_.tag):
                transaction.respond(481, tag=request.to.tag)
            case _ if call is not None:
                call.receive(transaction, source)
            case "INVITE":
                self._receive_call(transaction)
            case "OPTIONS" | "INFO" | "NOTIFY" | "MESSAGE":
                extra = Headers((("Allow", ALLOW), ("Accept", "application/sdp")))
                transaction.respond(200, tag=_token(), extra=extra)
            case "BYE" | "UPDATE":
                transaction.respond(481, tag=_token())
            case "REGISTER" | "SUBSCRIBE" | "REFER" | "PUBLISH" | "PRACK":
                transaction.respond(405, tag=_token(), extra=Headers((("Allow", ALLOW),)))
            case _:
                transaction.respond(501, tag=_token(), extra=Headers((("Allow", ALLOW),)))

    def _receive_cancel(self, transaction: ServerTransaction) -> None:
        invite = self._servers.get(server_key(transaction.request, "INVITE"))
        if invite is None:
            transaction.respond(481, tag=_token())
            return
        transaction.respond(200, tag=invite.tag or _token())
        if invite.cancelled:
            invite.cancelled(transaction.request)

    def _receive_call(self, transaction: ServerTransaction) -> None:
        request, tag = transaction.request, _token()
        offer = sip.parse_sdp(request.body) if request.body else None
        seconds, _ = _session(request.headers)
        if (request.body and not (offer and set(offer.codecs) & set(self.codecs))) or not request.from_.tag:
            transaction.respond(488 if request.from_.tag else 400, tag=tag)
            return
        if seconds is not None and seconds < MIN_SESSION_SECONDS:
            transaction.respond(422, tag=tag, extra=Headers((("Min-SE", str(MIN_SESSION_SECONDS)),)))
            return
        if len(self.calls) >= MAX_CALLS or (self.busy_when_talking and self.calls):
            transaction.respond(486, tag=tag)
            return
        try:
            call = Call(self, side=Side.THERE, call_id=request.call_id, local_tag=tag)
        except OSError as error:  # no free port or file descriptor
            _log.warning("a call was refused for want of a socket", extra={"error": str(error)})
            transaction.respond(503, tag=tag)
            return
        self.calls[call.call_id, tag] = call
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(call)
        call.ring(transaction, offer)


def _token() -> str:
    return secrets.token_hex(8)


def _untagged(value: str) -> str:
    """A From or To value as written, without its tag."""
    address = sip.parse_address(value)
    shown = f"{sip.quoted(address.display)} " if address.display else ""
    return f"{shown}<{address.uri}>"


def _route_from(server: Destination) -> str:
    """The address of this machine that `server` sees."""
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(server)
        host: str = probe.getsockname()[0]
        return host


def _session(headers: Headers) -> tuple[int | None, str]:
    """Session-Expires as seconds and refresher (RFC 4028)."""
    value, _, params = headers.get("Session-Expires").partition(";")
    seconds = int(value) if value.strip().isascii() and value.strip().isdigit() and len(value) < 8 else None
    refresher = params.partition("refresher=")[2].partition(";")[0].strip().lower()
    return seconds, refresher if refresher in ("uac", "uas") else ""


def _session_agreed(request: Request) -> Headers:
    """Our agreement to the peer's session interval: he refreshes unless he asked us to or cannot (RFC 4028 9)."""
    seconds, refresher = _session(request.headers)
    if seconds is None:
        return Headers()
    able = "timer" in [name.lower() for name in request.headers.listed("Supported")]
    refresher = (refresher or "uac") if able else "uas"
    seconds = max(seconds, MIN_SESSION_SECONDS)
    return Headers.of(
        ("Require", "timer" if able else None), ("Session-Expires", f"{seconds};refresher={refresher}")
    )


def _cause(request: Request) -> int | None:
    """The Q.850 cause in a Reason header."""
    for value in request.headers.listed("Reason"):
        text = value.partition("cause=")[2].partition(";")[0].strip()
        if value.upper().startswith("Q.850") and text.isascii() and text.isdigit() and len(text) < 4:
            return int(text)
    return None
