"""The phone against itself: real UDP on loopback, real audio, and a relay that loses what it is told to."""

import asyncio
import importlib
import random
import socket
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callcenter.phone import Call, CallState, Codec, Pacer, Packet, Phone, Side, SipRefused, measure, sip
from callcenter.phone import phone as phone_module
from callcenter.phone.rtp import FRAME_SAMPLES, lay_out

QUICK_T1 = 0.05  # seconds; the timers scale with it


@asynccontextmanager
async def talking(caller: Phone, callee: Phone, **options: object) -> AsyncIterator[tuple[Call, Call]]:
    """A call from one phone to the other, answered."""
    out = await caller.dial(callee.contact, **options)
    incoming = await callee.next_call(5)
    await out.ringing.wait(5)
    await incoming.answer()
    await out.wait_answered(5)
    yield out, incoming
    await out.hang_up()


@pytest.fixture
async def phones() -> AsyncIterator[tuple[Phone, Phone]]:
    async with Phone(user="1001") as first, Phone(user="1002") as second:
        yield first, second
    assert not first.calls
    assert not second.calls


async def arrived(call: Call, packets: int, deadline: float = 10) -> None:
    """Wait until a call has received this many packets."""
    async with asyncio.timeout(deadline):
        while call.counters.received < packets:
            await asyncio.sleep(0.02)


class Relay(asyncio.DatagramProtocol):
    """Carries datagrams between a phone and a peer, and loses those that `lose` picks."""

    def __init__(self, peer: tuple[str, int], *, lose: Callable[[bytes], bool], route: bool = False) -> None:
        self.peer, self.lose, self.route = peer, lose, route
        self.phone: tuple[str, int] | None = None
        self.carried: list[bytes] = []
        self.lost: list[bytes] = []

    async def __aenter__(self) -> "Relay":
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.address = self.transport.get_extra_info("sockname")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr != self.peer:
            self.phone = addr
        if self.lose(data):
            self.lost.append(data)
            return
        self.carried.append(data)
        if self.route and data.startswith(b"INVITE"):
            line = f"\r\nRecord-Route: <sip:127.0.0.1:{self.address[1]};lr>\r\nFrom:"
            data = data.replace(b"\r\nFrom:", line.encode(), 1)
        self.transport.sendto(data, self.phone if addr == self.peer else self.peer)

    def count(self, start: bytes) -> int:
        return sum(data.startswith(start) for data in self.carried)


def first(start: bytes, times: int = 1) -> Callable[[bytes], bool]:
    """Lose the first datagrams that begin like this."""
    left = times

    def lose(data: bytes) -> bool:
        nonlocal left
        if data.startswith(start) and left > 0:
            left -= 1
            return True
        return False

    return lose


class Answering(asyncio.DatagramProtocol):
    """A peer of a few lines that answers each request as `answer` says: a registrar, or a wall."""

    def __init__(self, answer: Callable[[sip.Request], list[bytes]]) -> None:
        self.answer = answer
        self.requests: list[sip.Request] = []

    async def __aenter__(self) -> "Answering":
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.address = self.transport.get_extra_info("sockname")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = sip.parse(data)
        assert isinstance(request, sip.Request)
        self.requests.append(request)
        for answer in self.answer(request):
            self.transport.sendto(answer, addr)


def reply(request: sip.Request, status: int, *extra: tuple[str, str], body: bytes = b"") -> bytes:
    to = request.headers.get("To")
    headers = sip.Headers.of(
        ("Via", request.headers.get("Via")),
        ("From", request.headers.get("From")),
        ("To", to if "tag=" in to or status == 100 else to + ";tag=peer"),
        ("Call-ID", request.call_id),
        ("CSeq", request.headers.get("CSeq")),
        *extra,
    )
    return sip.Response(headers=headers, status=status, reason="So", body=body).encode()


# ------------------------------------------------------------------------------------------------- G.711 and SIP text


def test_g711_is_the_standard_one() -> None:
    """Every sample encodes, and every byte decodes, as the C implementation of the standard does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = importlib.import_module("audioop")
    samples = np.arange(-32768, 32768, dtype=np.int16)
    every_byte = bytes(range(256))
    assert Codec.PCMU.encode(samples) == audioop.lin2ulaw(samples.tobytes(), 2)
    assert Codec.PCMA.encode(samples) == audioop.lin2alaw(samples.tobytes(), 2)
    assert Codec.PCMU.decode(every_byte).tobytes() == audioop.ulaw2lin(every_byte, 2)
    assert Codec.PCMA.decode(every_byte).tobytes() == audioop.alaw2lin(every_byte, 2)


@pytest.mark.parametrize("codec", list(Codec))
def test_g711_silence_and_transcoding(codec: Codec) -> None:
    other = next(each for each in Codec if each is not codec)
    sound = measure.tone(450, 0.1)
    assert codec.encode(np.zeros(1, dtype=np.int16)) == codec.silence
    assert measure.correlation(sound, other.decode(codec.transcode(codec.encode(sound), other)))[0] > 0.999


def test_digest_as_in_rfc_2617_3_5_and_rfc_7616_3_9_1() -> None:
    old = sip.Challenge(
        realm="testrealm@host.com",
        nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093",
        algorithm="MD5",
        qop="auth",
        opaque=None,
        stale=False,
        proxy=False,
    )
    assert (
        sip.digest(
            old,
            username="Mufasa",
            password="Circle Of Life",
            method="GET",
            uri="/dir/index.html",
            cnonce="0a4f113b",
        )
        == "6629fae49393a05397450978507c4ef1"
    )
    for algorithm, expected in (
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ):
        challenge = sip.Challenge(
            realm="http-auth@example.org",
            nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            algorithm=algorithm,
            qop="auth",
            opaque=None,
            stale=False,
            proxy=False,
        )
        answer = sip.digest(
            challenge,
            username="Mufasa",
            password="Circle of Life",
            method="GET",
            uri="/dir/index.html",
            cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        )
        assert answer == expected


def test_the_strongest_challenge_is_answered() -> None:
    headers = sip.Headers.of(
        ("WWW-Authenticate", 'Digest realm="a", nonce="n1", algorithm=MD5, qop="auth,auth-int"'),
        (
            "WWW-Authenticate",
            'Digest realm="a \\"b\\"", nonce="n2", algorithm=SHA-256, qop="auth", opaque="o"',
        ),
        ("WWW-Authenticate", 'Digest realm="a", nonce="n3", algorithm=SHA-999'),
        ("WWW-Authenticate", "Basic realm=a"),
    )
    best = sip.best_challenge(sip.Response(headers=headers, status=401))
    assert best is not None
    assert (best.nonce, best.realm, best.qop, best.opaque) == ("n2", 'a "b"', "auth", "o")


VALID = (
    b"INVITE sip:1002@127.0.0.1:22001 SIP/2.0\r\n"
    b"v: SIP/2.0/UDP 127.0.0.1:22000;branch=z9hG4bKabc;rport, SIP/2.0/TCP h.example;branch=z9hG4bKxyz\r\n"
    b'f: "J \\"R\\" \xe5\xbc\xa0, \\\\" <sip:vivekg@chair.example.com>;tag=a48s\r\n'
    b"TO :\r\n sip:1002@127.0.0.1 ; x=y\r\n"
    b"i: 0ha0isndaksdj\r\n"
    b"CSeq: 0009\r\n  INVITE\r\n"
    b"m: <sip:a@127.0.0.1:22000>\r\n"
    b"l: 3\r\n"
    b"\r\n"
    b"abctrailing"
)


def test_a_tortuous_message_is_read() -> None:
    """In the manner of RFC 4475 3.1.1.1: compact names, folding, odd spaces, escapes, more bytes than announced."""
    request = sip.parse(VALID)
    assert isinstance(request, sip.Request)
    assert request.from_ == sip.Address('J "R" 张, \\', "sip:vivekg@chair.example.com", {"tag": "a48s"})
    assert (request.to.uri, request.to.params) == ("sip:1002@127.0.0.1", {"x": "y"})
    assert (request.cseq, request.body, request.via.branch) == (9, b"abc", "z9hG4bKabc")
    assert len(request.headers.listed("Via")) == 2


def test_a_name_in_gbk_is_shown_and_echoed_exactly() -> None:
    raw = VALID.replace(b"\xe5\xbc\xa0", "张伟".encode("gb18030"))
    request = sip.parse(raw)
    assert isinstance(request, sip.Request)
    assert "张伟" in request.from_.display
    assert "张伟".encode("gb18030") in request.encode()


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"i: 0ha0isndaksdj\r\n", b"", None),
        (b"l: 3", b"l: 9999", 400),
        (b"l: 3", b"l: -3", 400),
        (b"l: 3", "l: ３".encode(), 400),
        (b"CSeq: 0009\r\n  INVITE", b"CSeq: 9 BYE", 400),
        (b"CSeq: 0009", b"CSeq: 36893488147419103232", 400),
        (b"<sip:vivekg@chair.example.com>", b"<sip:vivekg@chair.example.com", 400),
        (b"sip:1002@127.0.0.1:22001 SIP/2.0", b"<sip:1002@127.0.0.1> SIP/2.0", 400),
        (b"sip:1002@127.0.0.1:22001 SIP/2.0", b"sip:1002@127.0.0.1 lr SIP/2.0", 400),
        (b"sip:1002@127.0.0.1:22001 SIP/2.0", b"nobody:1002 SIP/2.0", 416),
        (b"sip:1002@127.0.0.1:22001 SIP/2.0", b"sip:1002@127.0.0.1 SIP/7.0", 505),
        (b"v: SIP/2.0/UDP 127.0.0.1:22000", b"v: SIP/2.0/UDP 127.0.0.1:99999", None),
        (b"m: <sip", b"m <sip", None),
    ],
)
def test_bad_messages_are_refused_with_the_right_status(old: bytes, new: bytes, status: int | None) -> None:
    assert old in VALID
    with pytest.raises(sip.Malformed) as refused:
        sip.parse(VALID.replace(old, new))
    assert (refused.value.status if refused.value.request else None) == status


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_make_the_parser_raise_anything_else(data: st.DataObject) -> None:
    base = data.draw(
        st.sampled_from([VALID, VALID.replace(b"INVITE sip:1002@127.0.0.1:22001 SIP/2.0", b"SIP/2.0 200 OK")])
    )
    cut = data.draw(st.integers(0, len(base)))
    junk = data.draw(
        st.one_of(
            st.binary(max_size=40), st.sampled_from([b"\r\n", b"\r\n\r\n", b'"', b"<", b";", b":", b","])
        )
    )
    skip = data.draw(st.integers(0, 30))
    try:
        message = sip.parse(base[:cut] + junk + base[cut + skip :])
    except sip.Malformed:
        return
    assert message.via
    assert message.from_
    assert message.to
    assert message.cseq >= 0
    message.encode()
    sip.parse_sdp(message.body)
    sip.best_challenge(sip.Response(headers=message.headers))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_make_the_sdp_reader_raise(junk: bytes, at: int) -> None:
    body = sip.build_sdp(sip.Audio("127.0.0.1", 22002, tuple(Codec)), session=1, version=1)
    sip.parse_sdp(body[:at] + junk + body[at:])


def test_sdp_round_trip_and_refusals() -> None:
    audio = sip.Audio("127.0.0.1", 22002, (Codec.PCMA, Codec.PCMU), 96, sip.Direction.SENDONLY)
    assert sip.parse_sdp(sip.build_sdp(audio, session=1, version=2)) == audio
    assert sip.parse_sdp(b"v=0\r\nc=IN IP4 1.2.3.4\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\n") is None
    assert sip.parse_sdp(b"v=0\r\nc=IN IP4 1.2.3.4\r\nm=audio 0 RTP/AVP 0\r\n") is None
    assert sip.parse_sdp(b"v=0\r\nc=IN IP4 1.2.3.4\r\nm=audio 4000 RTP/AVP 9\r\n") is None
    held = sip.parse_sdp(b"v=0\r\nc=IN IP4 0.0.0.0\r\nm=audio 4000 RTP/AVP 0\r\n")
    assert held is not None
    assert held.direction is sip.Direction.INACTIVE


def test_a_header_cannot_smuggle_a_line() -> None:
    with pytest.raises(ValueError, match="line break"):
        sip.Request(method="OPTIONS", uri="sip:a", headers=sip.Headers.of(("X-Name", "a\r\nVia: b"))).encode()


# ----------------------------------------------------------------------------------------------------------- measures


def test_correlation_finds_the_lag_whichever_is_longer() -> None:
    sound = measure.speech_like(2, seed=1)
    quiet = np.zeros(800, dtype=np.int16)
    late = np.concatenate((quiet, sound, quiet))
    assert measure.correlation(sound, late) == (pytest.approx(1, abs=1e-6), 0.1)
    assert measure.correlation(late, sound) == (pytest.approx(1, abs=1e-6), -0.1)
    assert measure.correlation(sound, sound[4000:12000]) == (pytest.approx(1, abs=1e-6), -0.5)
    assert measure.correlation(sound, measure.speech_like(2, seed=2))[0] < 0.2
    assert measure.correlation(sound, np.zeros(16000, dtype=np.int16)) == (0, 0)


def packets_of(pcm: np.ndarray, codec: Codec = Codec.PCMU, start: float = 0.0) -> list[Packet]:
    coded = codec.encode(pcm)
    return [
        Packet(start + i / 8000, i, coded[i : i + FRAME_SAMPLES]) for i in range(0, len(coded), FRAME_SAMPLES)
    ]


def test_tones_are_seen_packet_by_packet() -> None:
    mixed = measure.tone(450, 0.2) + np.concatenate((np.zeros(800, dtype=np.int16), measure.tone(1050, 0.1)))
    packets = packets_of(mixed)
    seen = measure.tones(packets, {"caller": 450, "agent": 1050})
    assert [each.tones for each in seen] == [frozenset({"caller"})] * 5 + [frozenset({"caller", "agent"})] * 5
    assert measure.first_heard(packets, 1050) == pytest.approx(0.1)
    assert measure.first_heard(packets, 450, present=False) is None
    assert measure.shares(packets, {"agent": 1050, "nobody": 2050}) == {"agent": 0.5, "nobody": 0}
    assert measure.largest_gap([*packets[:3], *packets[6:]]) == pytest.approx(0.08)
    assert measure.rms(measure.tone(450, 1, amplitude=1000)) == pytest.approx(707, abs=2)


def test_wav_files_keep_their_samples(tmp_path: object) -> None:
    stereo = np.stack((measure.tone(450, 0.1), measure.tone(1050, 0.1)), axis=1)
    measure.write_wav(f"{tmp_path}/a.wav", stereo)
    back, rate = measure.read_wav(f"{tmp_path}/a.wav")
    assert rate == 8000
    assert np.array_equal(back, stereo)


def test_received_audio_is_laid_out_in_time() -> None:
    """Late packets go to their place, lost ones are silence, and a new clock follows the arrivals."""
    sound = measure.speech_like(0.2, seed=3)
    packets = packets_of(sound)
    heard = Codec.PCMU.decode(Codec.PCMU.encode(sound))
    late = [*packets[:2], packets[3], packets[2], *packets[4:]]
    assert np.array_equal(lay_out(late, Codec.PCMU), heard)
    hole = lay_out([*packets[:4], *packets[5:]], Codec.PCMU)
    assert not hole[640:800].any()
    assert np.array_equal(hole[800:], heard[800:])
    jumped = [*packets[:5], *(p._replace(timestamp=p.timestamp + 1_000_000) for p in packets[5:])]
    assert np.array_equal(lay_out(jumped, Codec.PCMU), heard)


# -------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("codec", list(Codec))
async def test_a_call_carries_audio_both_ways(codec: Codec) -> None:
    there, back = measure.speech_like(1, seed=1), measure.speech_like(1, seed=2)
    async with Phone(user="1001") as caller, Phone(user="1002", codecs=(codec,)) as callee:
        async with talking(caller, callee, caller_name='李 "四"', headers={"X-Line": "12345"}) as (
            out,
            incoming,
        ):
            assert (incoming.caller.display, incoming.caller.user) == ('李 "四"', "1001")
            assert incoming.remote_headers.get("x-line") == "12345"
            assert out.codec is incoming.codec is codec
            assert out.status == 200
            out.play(there)
            incoming.play(back)
            await out.wait_played(5)
            await incoming.wait_played(5)
            played = out.counters.sent
            await arrived(incoming, played)
            assert measure.correlation(there, incoming.received())[0] > 0.99
            assert measure.correlation(back, out.received())[0] > 0.99
            assert measure.correlation(there, out.received())[0] < 0.3
        await incoming.ended.wait(5)
        assert (out.ended_by, incoming.ended_by) == (Side.HERE, Side.THERE)
        assert not caller.calls
        assert not callee.calls


async def test_a_short_loop_has_no_click(phones: tuple[Phone, Phone]) -> None:
    sound = measure.tone(400, 0.03)  # 240 samples: neither a frame nor a multiple
    async with talking(*phones) as (out, incoming):
        out.play(sound, loop=True)
        await arrived(incoming, 30)
        heard = incoming.received()[-2400:]
        assert measure.correlation(measure.tone(400, 0.2), heard)[0] > 0.999
        out.silence()
        quiet = monotonic()
        await arrived(incoming, incoming.counters.received + 5)
        assert measure.first_heard(incoming, 400, since=quiet, present=False) is not None


async def test_digits_are_heard_once_each(phones: tuple[Phone, Phone]) -> None:
    async with talking(*phones) as (out, incoming):
        out.play(measure.tone(450, 0.1), loop=True)
        out.send_digits("1123*#")
        incoming.send_digits("d0")
        assert await incoming.wait_digits(6, 5) == "1123*#"
        assert await out.wait_digits(2, 5) == "D0"
        with pytest.raises(ValueError, match="keypad"):
            out.send_digits("1x")


async def test_lost_digit_packets_do_not_lose_the_digit(phones: tuple[Phone, Phone]) -> None:
    """Only the last end packet of an event arrives, and it comes three times."""
    async with talking(*phones) as (out, incoming):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for _ in range(3):
                packet = bytes([0x80, 101, 0, 7, 0, 0, 9, 9, 1, 1, 1, 1, 5, 0x8A, 3, 32])
                sender.sendto(packet, ("127.0.0.1", incoming.stream.port))
            for junk in (
                b"",
                b"x",
                bytes(12),
                bytes([0x9F, 0]) + bytes(12),
                bytes([0xB0, 101]) + bytes(12) + b"\xff\xff",
            ):
                sender.sendto(junk, ("127.0.0.1", incoming.stream.port))
        assert await incoming.wait_digits(1, 5) == "5"
        await arrived(incoming, incoming.counters.received + 3)
        assert incoming.digits == "5"
        assert out.state is CallState.ANSWERED


async def test_the_callee_hangs_up(phones: tuple[Phone, Phone]) -> None:
    async with talking(*phones) as (out, incoming):
        await incoming.hang_up()
        await out.ended.wait(5)
        assert (out.ended_by, out.status, out.state) == (Side.THERE, 200, CallState.ENDED)


async def test_cancel_before_the_answer(phones: tuple[Phone, Phone]) -> None:
    caller, callee = phones
    out = await caller.dial(callee.contact)
    incoming = await callee.next_call(5)
    await out.ringing.wait(5)
    await out.cancel()
    await incoming.cancelled.wait(5)
    assert (out.status, incoming.status) == (487, 487)
    with pytest.raises(SipRefused, match="487"):
        await incoming.answer()


async def test_cancel_at_once_waits_for_the_first_sign_of_life(phones: tuple[Phone, Phone]) -> None:
    """RFC 3261 9.1: no CANCEL before a provisional answer."""
    caller, callee = phones
    out = await caller.dial(callee.contact)
    await out.cancel()
    assert out.status == 487
    assert (await callee.next_call(5)).cancelled.is_set()


async def test_cancel_that_meets_the_answer_hangs_up(phones: tuple[Phone, Phone]) -> None:
    caller, callee = phones
    callee.auto_answer_after = 0
    out = await caller.dial(callee.contact)
    incoming = await callee.next_call(5)
    await incoming.answered.wait(5)
    await out.cancel()
    await incoming.ended.wait(5)
    assert out.ended.is_set()


@pytest.mark.parametrize("status", [480, 486, 603])
async def test_a_rejected_call_ends_with_its_status(phones: tuple[Phone, Phone], status: int) -> None:
    caller, callee = phones
    out = await caller.dial(callee.contact)
    await (await callee.next_call(5)).reject(status)
    with pytest.raises(SipRefused) as refused:
        await out.wait_answered(5)
    assert refused.value.status == out.status == status


async def test_a_busy_phone_says_so(phones: tuple[Phone, Phone]) -> None:
    caller, callee = phones
    callee.busy_when_talking = True
    async with talking(caller, callee):
        second = await caller.dial(callee.contact)
        await second.ended.wait(5)
        assert second.status == 486


async def test_early_media_is_heard_before_the_answer(phones: tuple[Phone, Phone]) -> None:
    caller, callee = phones
    out = await caller.dial(callee.contact)
    incoming = await callee.next_call(5)
    incoming.play(measure.tone(450, 1), loop=True)
    incoming.early_media()
    await arrived(out, 5)
    assert not out.answered.is_set()
    assert measure.first_heard(out, 450) is not None
    await incoming.reject(603)
    await out.ended.wait(5)


async def test_hold_and_resume(phones: tuple[Phone, Phone]) -> None:
    async with talking(*phones) as (out, incoming):
        assert await out.hold() == 200
        assert incoming.held
        assert not out.held
        before, received = incoming.counters.sent, incoming.counters.received
        await arrived(incoming, received + 10)
        assert incoming.counters.sent == before
        assert await out.resume() == 200
        assert not incoming.held
        await arrived(out, out.counters.received + 5)
        assert await incoming.reinvite() == 200
        assert (incoming.reinvites, out.reinvites) == (2, 1)


async def test_several_calls_at_once_stay_apart(phones: tuple[Phone, Phone]) -> None:
    caller, callee = phones
    callee.auto_answer_after = 0
    calls = [await caller.dial(callee.contact, caller=f"138{number}") for number in range(8)]
    for number, call in enumerate(calls):
        await call.wait_answered(5)
        call.play(measure.tone(400 + 100 * number, 0.1), loop=True)
    taken = {incoming.caller.user: incoming for incoming in [await callee.next_call(5) for _ in calls]}
    for number in range(8):
        incoming = taken[f"138{number}"]
        await arrived(incoming, 10)
        tones = {str(n): 400 + 100 * n for n in range(8)}
        heard = {name for name, share in measure.shares(incoming, tones).items() if share > 0.1}
        assert heard == {str(number)}


async def test_without_kept_audio_only_counters_remain() -> None:
    async with (
        Pacer() as pacer,
        Phone(user="1001", keep_audio=False, pacer=pacer) as caller,
        Phone(user="1002", pacer=pacer) as callee,
        talking(caller, callee) as (out, _),
    ):
        await arrived(out, 10)
        assert out.packets == []
        assert out.counters.last_arrival is not None
        assert 0 < out.counters.largest_gap < 1


async def test_closing_a_phone_ends_what_lives() -> None:
    async with Phone(user="1002") as callee:
        async with Phone(user="1001") as caller:
            talked = await caller.dial(callee.contact)
            incoming = await callee.next_call(5)
            await incoming.answer()
            await talked.wait_answered(5)
            ringing = await caller.dial(callee.contact)
            second = await callee.next_call(5)
            await ringing.ringing.wait(5)
        await incoming.ended.wait(5)
        await second.cancelled.wait(5)
        assert not callee.calls


async def test_a_call_dropped_silently_answers_nothing(phones: tuple[Phone, Phone]) -> None:
    async with talking(*phones) as (out, incoming):
        incoming.drop_silently()
        heard = out.counters.received
        asking = asyncio.create_task(out.reinvite(), name="re-INVITE to nobody")
        assert not (await asyncio.wait([asking], timeout=0.5))[0]
        assert out.counters.received - heard <= 2
        assert out.state is CallState.ANSWERED
        asking.cancel()
        await asyncio.wait([asking])
        out.drop_silently()


async def test_a_vanished_phone_says_nothing() -> None:
    async with Phone(user="1002") as callee, Relay(callee.local, lose=lambda _: False, route=True) as relay:
        async with Phone(user="1001", server=relay.address) as caller:
            out = await caller.dial("1002")
            incoming = await callee.next_call(5)
            await incoming.answer()
            await arrived(incoming, 3)
            carried = len(relay.carried)
            caller.vanish()
            assert out.ended.is_set()
        assert len(relay.carried) == carried
        assert incoming.state is CallState.ANSWERED
        callee.vanish()


async def test_mute_stops_the_packets_but_not_the_call(phones: tuple[Phone, Phone]) -> None:
    async with talking(*phones) as (out, incoming):
        await arrived(incoming, 3)
        out.mute()
        sent = out.counters.sent
        await arrived(out, out.counters.received + 5)
        assert out.counters.sent == sent
        out.mute(False)
        await arrived(incoming, sent + 3)


# ----------------------------------------------------------------------------------------------------- a lossy network


@pytest.mark.parametrize(
    ("lost", "times"),
    [(b"INVITE", 2), (b"SIP/2.0 180", 1), (b"SIP/2.0 200", 2), (b"ACK", 2), (b"BYE", 1)],
    ids=["INVITE", "180", "200", "ACK", "BYE"],
)
async def test_a_lost_message_is_sent_again(lost: bytes, times: int) -> None:
    """RFC 3261 17.1 and 13.3.1.4, through a relay that is in the call's route."""
    async with (
        Phone(user="1002", t1=QUICK_T1) as callee,
        Relay(callee.local, lose=first(lost, times), route=True) as relay,
        Phone(user="1001", server=relay.address, t1=QUICK_T1) as caller,
    ):
        out = await caller.dial("1002")
        incoming = await callee.next_call(5)
        if lost != b"SIP/2.0 180":
            await out.ringing.wait(5)
        await incoming.answer()
        await out.wait_answered(5)
        await arrived(out, 3)
        await out.hang_up()
        await incoming.ended.wait(5)
        assert len(relay.lost) == times
        assert out.status == incoming.status == 200
        assert relay.count(b"ACK") >= 1


async def test_a_lost_ack_of_a_rejection_is_sent_again() -> None:
    async with (
        Phone(user="1002", t1=QUICK_T1) as callee,
        Relay(callee.local, lose=first(b"ACK", 2)) as relay,
        Phone(user="1001", server=relay.address, t1=QUICK_T1) as caller,
    ):
        out = await caller.dial("1002")
        await (await callee.next_call(5)).reject(486)
        await out.ended.wait(5)
        async with asyncio.timeout(5):
            while not relay.count(b"ACK"):
                await asyncio.sleep(0.01)
        assert relay.count(b"SIP/2.0 486") == 3
        assert out.status == 486


async def test_a_dead_server_is_408_after_64_t1() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with Phone(user="1001", server=nobody.getsockname(), t1=0.01) as phone:
            began = monotonic()
            out = await phone.dial("1002")
            with pytest.raises(SipRefused, match="408"):
                await out.wait_answered(5)
            assert 0.6 < monotonic() - began < 2
            with pytest.raises(SipRefused, match="408"):
                await phone.register()


async def test_an_answer_that_nobody_acknowledges_ends_the_call() -> None:
    async with (
        Phone(user="1002", t1=0.01) as callee,
        Relay(callee.local, lose=lambda data: data.startswith(b"ACK"), route=True) as relay,
        Phone(user="1001", server=relay.address) as caller,
    ):
        out = await caller.dial("1002")
        incoming = await callee.next_call(5)
        with pytest.raises(SipRefused, match="before its ACK"):
            await incoming.answer()
        await out.ended.wait(5)
        assert (incoming.ended_by, out.ended_by) == (Side.HERE, Side.THERE)


# -------------------------------------------------------------------------------------------- registration, other peers


async def test_registering_answers_the_challenge_and_closing_takes_it_back() -> None:
    def registrar(request: sip.Request) -> list[bytes]:
        authorization = request.headers.get("Authorization")
        challenge = sip.Challenge("hotline", "n0", "SHA-256", "auth", "op", stale=False, proxy=False)
        if authorization:
            fields = dict(
                part.strip().split("=", 1) for part in authorization.removeprefix("Digest ").split(",")
            )
            expected = sip.digest(
                challenge,
                username="1001",
                password="secret",
                method="REGISTER",
                uri=request.uri,
                cnonce=fields["cnonce"].strip('"'),
            )
            if fields["response"].strip('"') == expected:
                contact = request.headers.get("Contact").partition(";")[0]
                return [reply(request, 200, ("Contact", f"{contact};expires=60"))]
        return [
            reply(
                request,
                401,
                (
                    "WWW-Authenticate",
                    'Digest realm="hotline", nonce="n0", algorithm=SHA-256, qop="auth", opaque="op"',
                ),
            )
        ]

    async with Answering(registrar) as server:
        async with Phone(user="1001", password="secret", server=server.address) as phone:
            await phone.register()
            assert phone.registered
        assert [request.headers.get("Expires") for request in server.requests] == ["300", "300", "0", "0"]
        assert [request.cseq for request in server.requests] == [1, 2, 3, 4]
        async with Phone(user="1001", password="wrong", server=server.address) as phone:
            with pytest.raises(SipRefused) as refused:
                await phone.register()
            assert refused.value.status == 401
            assert not phone.registered
        async with Phone(user="1001", server=server.address) as trunk:
            call = await trunk.dial("12345")
            with pytest.raises(SipRefused, match="401"):
                await call.wait_answered(5)


async def test_a_registration_is_kept_fresh_and_asks_for_the_interval_the_registrar_wants() -> None:
    def registrar(request: sip.Request) -> list[bytes]:
        if request.headers.get("Expires") == "30":
            return [reply(request, 423, ("Min-Expires", "60"))]
        contact = request.headers.get("Contact").partition(";")[0]
        return [reply(request, 200, ("Contact", f"<sip:other@127.0.0.1>;expires=9, {contact};expires=1"))]

    async with Answering(registrar) as server, Phone(user="1001", server=server.address) as phone:
        await phone.register(expires=30)
        async with asyncio.timeout(5):
            while len(server.requests) < 4:
                await asyncio.sleep(0.02)
        assert [request.headers.get("Expires") for request in server.requests] == ["30", "60", "30", "60"]
        assert phone.registered


async def test_a_second_answer_to_one_invite_is_left() -> None:
    """RFC 3261 13.2.2.4: another fork's 200 gets its ACK and then a BYE."""
    body = sip.build_sdp(sip.Audio("127.0.0.1", 22999, (Codec.PCMU,)), session=1, version=1)

    def forking(request: sip.Request) -> list[bytes]:
        if request.method == "INVITE":
            answers = []
            for tag in ("one", "two"):
                raw = reply(
                    request, 200, ("Contact", f"<sip:{tag}@127.0.0.1:{server.address[1]}>"), body=body
                )
                answers.append(raw.replace(b";tag=peer", f";tag={tag}".encode()))
            return answers
        return [] if request.method == "ACK" else [reply(request, 200)]

    async with Answering(forking) as server, Phone(user="1001", server=server.address) as phone:
        call = await phone.dial("12345")
        await call.wait_answered(5)
        async with asyncio.timeout(5):
            while len(server.requests) < 4:
                await asyncio.sleep(0.01)
        seen = [(request.method, request.to.tag, request.uri.split("@")[0]) for request in server.requests]
        assert seen == [
            ("INVITE", "", "sip:12345"),
            ("ACK", "one", "sip:one"),
            ("ACK", "two", "sip:two"),
            ("BYE", "two", "sip:two"),
        ]
        assert call.state is CallState.ANSWERED


class Raw:
    """A bare socket that speaks to a phone and reads its answers."""

    def __init__(self, phone: Phone) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.phone = phone
        self.port = self.socket.getsockname()[1]

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, self.phone.local)

    async def datagram(self) -> bytes:
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65535)

    async def answer(self) -> sip.Response:
        message = sip.parse(await self.datagram())
        assert isinstance(message, sip.Response)
        return message

    def request(
        self, method: str, *extra: str, call: str = "c1", cseq: int = 1, to_tag: str = "", body: bytes = b""
    ) -> bytes:
        lines = [
            f"{method} sip:1002@127.0.0.1 SIP/2.0",
            f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch=z9hG4bK{method}{call}{cseq};rport",
            "From: <sip:raw@127.0.0.1>;tag=raw",
            "To: <sip:1002@127.0.0.1>" + (f";tag={to_tag}" if to_tag else ""),
            f"Call-ID: {call}",
            f"CSeq: {cseq} {method}",
            f"Contact: <sip:raw@127.0.0.1:{self.port}>",
            *extra,
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_odd_requests_get_their_answers() -> None:
    async with Phone(user="1002") as phone:
        with Raw(phone) as raw:
            for method, extra, status in (
                ("OPTIONS", (), 200),
                ("NOTIFY", (), 200),
                ("REFER", (), 405),
                ("DANCE", (), 501),
                ("BYE", (), 481),
                ("CANCEL", (), 481),
                ("INVITE", ("Require: 100rel",), 420),
                ("INVITE", ("Session-Expires: 5",), 422),
            ):
                raw.send(raw.request(method, *extra, call=f"{method}{status}"))
                answer = await raw.answer()
                assert (answer.status, answer.cseq_method) == (status, method)
                assert answer.to.tag
                if method == "INVITE":
                    raw.send(
                        raw.request("ACK", call=f"{method}{status}").replace(b"z9hG4bKACK", b"z9hG4bKINVITE")
                    )
            raw.send(raw.request("INVITE", call="video", body=b"v=0\r\nm=video 4000 RTP/AVP 96\r\n"))
            assert (await raw.answer()).status == 488


async def test_an_invite_without_offer_gets_ours_and_its_answer_comes_with_ack() -> None:
    async with Phone(user="1002") as phone:
        with Raw(phone) as raw, Raw(phone) as ear:
            raw.send(raw.request("INVITE", "Session-Expires: 1800;refresher=uas", "Supported: timer"))
            assert (await raw.answer()).status == 180
            incoming = await phone.next_call(5)
            answering = asyncio.create_task(incoming.answer(), name="answer")
            ok = await raw.answer()
            offer = sip.parse_sdp(ok.body)
            assert offer is not None
            assert offer.codecs == (Codec.PCMU, Codec.PCMA)
            assert ok.headers.get("Session-Expires") == "1800;refresher=uas"
            mine = sip.build_sdp(sip.Audio("127.0.0.1", ear.port, (Codec.PCMA,)), session=1, version=1)
            raw.send(raw.request("ACK", to_tag=ok.to.tag, body=mine))
            await answering
            async with asyncio.timeout(5):
                packet = await asyncio.get_running_loop().sock_recv(ear.socket, 2048)
            assert packet[1] & 0x7F == Codec.PCMA.value
            raw.send(raw.request("UPDATE", cseq=2, to_tag=ok.to.tag))
            assert (await raw.answer()).status == 200
            raw.send(raw.request("INFO", cseq=1, to_tag=ok.to.tag))
            assert (await raw.answer()).status == 500
            raw.send(raw.request("BYE", 'Reason: Q.850;cause=16;text="Bye"', cseq=3, to_tag=ok.to.tag))
            assert (await raw.answer()).status == 200
            await incoming.ended.wait(5)
            assert incoming.cause == 16


async def test_a_session_is_refreshed_or_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4028 10: the refresher sends re-INVITE at half the interval, the other hangs up before it is over."""
    monkeypatch.setattr(phone_module, "MIN_SESSION_SECONDS", 1)
    async with Phone(user="1002", auto_answer_after=0) as phone:
        for refresher, expected in (("uas", "INVITE"), ("uac", "BYE")):
            with Raw(phone) as raw:
                offer = sip.build_sdp(sip.Audio("127.0.0.1", raw.port, (Codec.PCMU,)), session=1, version=1)
                timer = f"Session-Expires: 1;refresher={refresher}"
                raw.send(raw.request("INVITE", timer, "Supported: timer", call=refresher, body=offer))
                incoming = await phone.next_call(5)
                seen = b""
                async with asyncio.timeout(5):
                    while not seen.startswith(expected.encode()):
                        seen = await raw.datagram()
                        if seen.startswith(b"SIP/2.0 200"):
                            raw.send(raw.request("ACK", call=refresher, to_tag=sip.parse(seen).to.tag))
                request = sip.parse(seen)
                assert isinstance(request, sip.Request)
                assert request.from_.tag == incoming.local_tag
                raw.send(reply(request, 200, ("Contact", f"<sip:raw@127.0.0.1:{raw.port}>")))
                assert incoming.ended.is_set() is (expected == "BYE")
                incoming.drop_silently()


async def test_a_call_nobody_takes_is_given_up(
    monkeypatch: pytest.MonkeyPatch, phones: tuple[Phone, Phone]
) -> None:
    monkeypatch.setattr(phone_module, "MAX_RING_SECONDS", 0.1)
    caller, callee = phones
    out = await caller.dial(callee.contact)
    with pytest.raises(SipRefused, match="480"):
        await out.wait_answered(5)


@pytest.mark.parametrize(
    "options", [{"headers": {"X-A": "1\r\nVia: b"}}, {"headers": {"X A": "1"}}, {"caller_name": "a\nb"}]
)
async def test_what_is_dialled_cannot_smuggle_lines(
    phones: tuple[Phone, Phone], options: dict[str, object]
) -> None:
    caller, callee = phones
    with pytest.raises(ValueError, match="plain text"):
        await caller.dial(callee.contact, **options)
    with pytest.raises(ValueError, match="spaces"):
        await caller.dial(f"{callee.contact};a b")
    assert not caller.calls


async def test_hostile_datagrams_do_not_disturb_a_call(phones: tuple[Phone, Phone]) -> None:
    dice = random.Random(7)
    raised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    caller, callee = phones
    async with talking(caller, callee) as (out, incoming):
        with Raw(callee) as raw:
            good = [
                raw.request(method, call=f"h{index}", body=body)
                for index, (method, body) in enumerate(
                    [
                        (
                            "INVITE",
                            sip.build_sdp(sip.Audio("127.0.0.1", 22998, (Codec.PCMU,)), session=1, version=1),
                        )
                    ]
                    + [(method, b"") for method in ("OPTIONS", "BYE", "CANCEL", "ACK", "UPDATE")]
                )
            ] + [VALID, reply(sip.parse(raw.request("INVITE")), 200)]
            hostile = [
                b"",
                b"\x00" * 60_000,
                b"\r\n\r\n",
                b"A" * 65_000,
                b"INVITE " + b"<" * 30_000 + b"\r\n\r\n",
            ]
            for _ in range(1500):
                data = bytearray(dice.choice(good))
                for _ in range(dice.randint(1, 6)):
                    at = dice.randrange(len(data))
                    data[at : at + dice.randint(0, 8)] = dice.choice(
                        [b"", b"\xff", b"\r\n", b'"', b";;", b"<", b"9" * 20]
                    )
                hostile.append(bytes(data))
            for number, data in enumerate(hostile):
                raw.send(data)
                if number % 20 == 0:
                    await asyncio.sleep(0)
            still_there = raw.request("OPTIONS", call="still-there")
            raw.send(still_there)
            async with asyncio.timeout(10):
                while b"still-there" not in (answer := await raw.datagram()):
                    raw.send(still_there)  # the flood may have filled the socket's buffer
        assert raised == []
        assert answer.startswith(b"SIP/2.0 200")
        assert callee.malformed > 100
        assert (out.state, incoming.state) == (CallState.ANSWERED, CallState.ANSWERED)
        for call in list(callee.calls.values()):
            if call is not incoming:
                call.drop_silently()
