"""The rendered Asterisk on the wire: it boots clean, serves the engine's contract, and gives nobody a way out."""

# ruff: noqa: F811  # a fixture taken by importing it has the name of the parameter that asks for it

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import struct
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from callcenter.asterisk.config import (
    ConfigRefused,
    InstanceSettings,
    Phone,
    PhoneKind,
    browser_account,
    render,
)
from callcenter.asterisk.process import AsteriskProcess, AsteriskStartFailed, PortInUse, running_pid
from tests.asterisk_fixture import (
    PHONE_SECRET,
    RealAsterisk,
    real_asterisk,  # noqa: F401  # a fixture is taken by importing it
    shared_install,
    with_settings,
)

Message = dict[str, str]


class Ami:
    """The manager interface as it is on the wire, without the adapter under test elsewhere."""

    def __init__(self, asterisk: RealAsterisk) -> None:
        self.asterisk = asterisk
        self.events: list[Message] = []
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._waiting: list[tuple[Callable[[Message], bool], asyncio.Future[Message]]] = []

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.asterisk.settings.ami_port)
        await self.reader.readline()
        self._reading = asyncio.create_task(self._read(), name="ami")
        answer = await self.do("Login", Username="engine", Secret=self.asterisk.settings.ami_secret)
        assert answer["Response"] == "Success"
        # Beyond what the engine reads, what these tests look at.
        for name in ("BridgeEnter", "ConfbridgeJoin", "MixMonitorStart"):
            await self.done("Filter", Operation="Add", Filter=f"Event: {name}")

    async def close(self) -> None:
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self.writer.close()
        await self.writer.wait_closed()

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
                message = dict(line.split(": ", 1) for line in raw.split("\r\n") if ": " in line)
                if (answer := self._answers.pop(message.get("ActionID", ""), None)) is not None:
                    if not answer.done():
                        answer.set_result(message)
                    continue
                self.events.append(message)
                for waiter in list(self._waiting):
                    if waiter[0](message) and not waiter[1].done():
                        waiter[1].set_result(message)
                        self._waiting.remove(waiter)

    async def do(self, action: str, **headers: object) -> Message:
        action_id = secrets.token_hex(4)
        answer = self._answers[action_id] = asyncio.get_running_loop().create_future()
        lines = [
            f"{name}: {value}" for name, value in {"Action": action, "ActionID": action_id, **headers}.items()
        ]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return await asyncio.wait_for(answer, 5)

    async def done(self, action: str, **headers: object) -> None:
        answer = await self.do(action, **headers)
        assert answer["Response"] == "Success", answer

    def next(self, event: str, *, seconds: float = 10, **fields: str) -> asyncio.Future[Message]:
        """The next event of that name with those fields; ask before causing it."""
        wanted = {"Event": event, **fields}
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.append((lambda message: wanted.items() <= message.items(), future))
        return asyncio.ensure_future(asyncio.wait_for(future, seconds))

    def next_user(self, name: str, **fields: str) -> asyncio.Future[Message]:
        return self.next("UserEvent", UserEvent=name, **fields)

    async def beat(self) -> None:
        await self.done("Setvar", Variable="ENGINE_BEAT", Value=int(time.time()))

    async def send_to(self, channel: str, exten: str) -> None:
        await self.done("Redirect", Channel=channel, Context="engine", Exten=exten, Priority=1)


class Wire(asyncio.DatagramProtocol):
    """Raw SIP over UDP: says exactly what a test wants said, also what no honest phone would."""

    def __init__(
        self, asterisk: RealAsterisk, user: str, *, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.server, self.user = asterisk.sip_address, user
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((address, port))
        self.audio = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.audio.bind((address, 0))
        self.host, self.port = self.socket.getsockname()
        self.call_id, self.tag, self.cseq = secrets.token_hex(8), secrets.token_hex(4), 0
        self.remote = ""
        self.rtp: tuple[str, int] | None = None
        self.sequence = self.timestamp = 0

    def close(self) -> None:
        self.socket.close()
        self.audio.close()

    def say(
        self, method: str, uri: str, *, headers: str = "", body: str = "", branch: str | None = None
    ) -> None:
        to = self.remote or f"<{uri}>"
        if method == "REGISTER":
            to = f"<sip:{self.user}@{self.host}>"
        self.send(
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {self.host}:{self.port};branch={branch or 'z9hG4bK' + secrets.token_hex(8)};rport\r\n"
            f"From: <sip:{self.user}@{self.host}>;tag={self.tag}\r\nTo: {to}\r\nCall-ID: {self.call_id}\r\n"
            f"CSeq: {self.cseq} {method}\r\nContact: <sip:{self.user}@{self.host}:{self.port}>\r\nMax-Forwards: 70\r\n"
            f"{headers}Content-Length: {len(body)}\r\n\r\n{body}"
        )

    def send(self, text: str) -> None:
        self.socket.sendto(text.encode(), self.server)

    async def hear(self, wanted: Callable[[str], bool]) -> str:
        """The next message a test asks for; the phone's questions whether we live are answered on the way."""
        async with asyncio.timeout(8):
            while True:
                text = (await asyncio.get_running_loop().sock_recv(self.socket, 65536)).decode()
                if text.startswith("OPTIONS"):
                    self.reply(text, "200 OK")
                elif wanted(text):
                    return text

    def reply(self, request: str, status: str, *, headers: str = "", body: str = "") -> None:
        kept = [
            line for line in request.split("\r\n") if line.startswith(("Via:", "From:", "Call-ID:", "CSeq:"))
        ]
        to = next(line for line in request.split("\r\n") if line.startswith("To:"))
        to += "" if ";tag=" in to else f";tag={self.tag}"
        head = "\r\n".join([f"SIP/2.0 {status}", *kept, to])
        self.send(f"{head}\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}")

    async def ask(self, method: str, uri: str, *, headers: str = "", body: str = "") -> tuple[int, str]:
        """One request and its final answer, logged in with PHONE_SECRET where that is asked for by a phone."""
        for attempt in range(2):
            self.cseq += 1
            branch = "z9hG4bK" + secrets.token_hex(8)
            self.say(method, uri, headers=headers, body=body, branch=branch)
            text = await self.hear(
                lambda heard, ours=branch: ours in heard and not heard.startswith("SIP/2.0 1")
            )
            status = int(text.split()[1])
            if method == "INVITE" and status >= 300:
                self.remote, before = header(text, "To"), self.remote
                self.say("ACK", uri, branch=branch)
                self.remote = before
            if status != 401 or attempt or not self.user.isdigit() or len(self.user) > 4:
                return status, text
            challenge = dict(re.findall(r'(\w+)="?([^",]+)"?', header(text, "WWW-Authenticate")))
            headers += "Authorization: " + self.login(challenge, method, uri) + "\r\n"
        raise AssertionError

    secret = PHONE_SECRET

    def login(self, challenge: Message, method: str, uri: str) -> str:
        def md5(value: str) -> str:
            return hashlib.md5(value.encode()).hexdigest()

        realm, nonce = challenge["realm"], challenge["nonce"]
        first, second = md5(f"{self.user}:{realm}:{self.secret}"), md5(f"{method}:{uri}")
        response = md5(f"{first}:{nonce}:00000001:abcd:auth:{second}")
        opaque = f', opaque="{challenge["opaque"]}"' if "opaque" in challenge else ""
        return (
            f'Digest username="{self.user}", realm="{realm}", nonce="{nonce}", uri="{uri}", response="{response}", '
            f'algorithm=MD5, qop=auth, nc=00000001, cnonce="abcd"{opaque}'
        )

    def uri(self, number: str = "") -> str:
        return f"sip:{number}{'@' if number else ''}{self.server[0]}:{self.server[1]}"

    async def register(self) -> int:
        status, _ = await self.ask("REGISTER", self.uri(), headers="Expires: 300\r\n")
        self.call_id = secrets.token_hex(8)
        return status

    def sdp(self) -> str:
        port = self.audio.getsockname()[1]
        return (
            f"v=0\r\no=- 1 1 IN IP4 {self.host}\r\ns=-\r\nc=IN IP4 {self.host}\r\nt=0 0\r\nm=audio {port} RTP/AVP 8 101\r\n"
            "a=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n"
        )

    async def call(self, number: str) -> int:
        status, text = await self.ask(
            "INVITE", self.uri(number), headers="Content-Type: application/sdp\r\n", body=self.sdp()
        )
        if status == 200:
            self.remote = header(text, "To")
            self.say("ACK", self.uri(number))
            self._audio_from(text)
        return status

    async def hang_up(self, number: str) -> None:
        await self.ask("BYE", self.uri(number))

    async def answer(self, status: str = "200 OK", *, contact: str | None = None) -> str:
        """Answer the next call, or give another status."""
        invite = await self.hear(lambda text: text.startswith("INVITE"))
        headers = f"Contact: <{contact or f'sip:{self.user}@{self.host}:{self.port}'}>\r\n"
        if status.startswith("200"):
            self._audio_from(invite)
            self.reply(invite, status, headers=headers + "Content-Type: application/sdp\r\n", body=self.sdp())
        else:
            self.reply(invite, status, headers=headers)
        return invite

    def _audio_from(self, text: str) -> None:
        port = re.search(r"m=audio (\d+)", text)
        assert port is not None
        self.rtp = (self.server[0], int(port[1]))

    @contextlib.asynccontextmanager
    async def speaking(self) -> AsyncIterator[None]:
        """A packet of sound every 20 ms, as every real phone sends, also the keys of `press` among them."""

        async def speak() -> None:
            while True:
                self._send_audio(8, b"\x55\xd5" * 80)
                await asyncio.sleep(0.02)

        task = asyncio.create_task(speak(), name="speaking")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _send_audio(self, kind: int, payload: bytes, *, timestamp: int | None = None) -> None:
        assert self.rtp is not None
        self.sequence += 1
        self.timestamp += 160
        stamp = self.timestamp if timestamp is None else timestamp
        self.audio.sendto(struct.pack("!BBHII", 0x80, kind, self.sequence, stamp, 7) + payload, self.rtp)

    async def press(self, digit: str) -> None:
        """One key, as RFC 4733 clause 2.5.1 has it: the same event grows, and its end is said three times."""
        began = self.timestamp + 160
        for step in range(8):
            end = 0x80 if step >= 5 else 0
            event = struct.pack("!BBH", int(digit), end | 10, 160 * (min(step, 5) + 1))
            self._send_audio(101 | (0x80 if step == 0 else 0), event, timestamp=began)
            await asyncio.sleep(0.02)


def header(text: str, name: str) -> str:
    return next(line.partition(": ")[2] for line in text.split("\r\n") if line.startswith(name + ":"))


@pytest.fixture
async def ami(real_asterisk: RealAsterisk) -> AsyncIterator[Ami]:
    """The engine's own login, with the heart beating; nothing of a test outlives it."""
    connection = Ami(real_asterisk)
    await connection.open()

    async def beat() -> None:
        while True:
            await connection.beat()
            await asyncio.sleep(1)

    await connection.beat()
    beating = asyncio.create_task(beat(), name="beat")
    connection.heart = beating  # type: ignore[attr-defined]  # a test stops it to see what callers hear then
    try:
        yield connection
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        before = len(connection.events)
        await connection.do("CoreShowChannels")
        async with asyncio.timeout(5):
            while not any(
                event["Event"] == "CoreShowChannelsComplete" for event in connection.events[before:]
            ):
                await asyncio.sleep(0.01)
        for event in connection.events[before:]:
            if event["Event"] == "CoreShowChannel":
                await connection.do("Hangup", Channel=event["Uniqueid"])
        await connection.close()


@pytest.fixture
def wire(real_asterisk: RealAsterisk) -> Iterator[Callable[..., Wire]]:
    """Makes raw SIP sockets and closes them."""
    made: list[Wire] = []

    def make(user: str, **options: Any) -> Wire:
        made.append(Wire(real_asterisk, user, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def caller(wire: Callable[..., Wire]) -> Wire:
    return wire("13800138000")


def tone(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (int(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(int(8000 * seconds)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


async def arrive(ami: Ami, caller: Wire) -> str:
    """A caller in the engine's hands; his channel's unique id."""
    arrived = ami.next_user("CallArrived", CallerIDNum="13800138000")
    assert await caller.call("12345") == 200
    return (await arrived)["Uniqueid"]


async def answered_leg(ami: Ami, phone: Wire, number: str) -> str:
    leg = "leg-" + secrets.token_hex(4)
    response = ami.next("OriginateResponse", Uniqueid=leg)
    await ami.done(
        "Originate",
        Channel=f"PJSIP/{number}",
        Context="engine",
        Exten="answered",
        Priority=1,
        Async="true",
        ChannelId=leg,
    )
    await phone.answer()
    assert (await response)["Response"] == "Success"
    return leg


# ---- the instance


async def test_it_boots_without_a_complaint(real_asterisk: RealAsterisk) -> None:
    """No warning, no error, and every module that was named is there."""
    assert real_asterisk.complaints() == []
    wanted = re.findall(
        r"^load = (\w+)\.so", (real_asterisk.instance.directory / "etc/modules.conf").read_text(), re.M
    )
    listing = await asyncio.create_subprocess_exec(
        *real_asterisk.instance.install.command,
        *("-C", str(real_asterisk.instance.configuration), "-rx", "module show"),
        stdout=asyncio.subprocess.PIPE,
    )
    shown, _ = await listing.communicate()
    running = set(re.findall(r"^(\w+)\.so .* Running ", shown.decode(), re.M))
    assert set(wanted) - running == set()


def test_secrets_are_for_this_user_alone(real_asterisk: RealAsterisk) -> None:
    """Every file is 0600, and no phone's password stands in any."""
    secret = "geheim-" + secrets.token_hex(8)
    phone = Phone(number="1999", secret=secret, kind=PhoneKind.AGENT)
    directory = real_asterisk.directory / "secrets"
    instance = render(
        with_settings(real_asterisk, phones=(phone,)), real_asterisk.instance.install, directory
    )
    files = [*(instance.directory / "etc").iterdir(), *(instance.directory / "keys").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(instance.directory.stat().st_mode) == 0o700
    assert [file.name for file in files if secret.encode() in file.read_bytes()] == []


def test_rendering_again_keeps_the_certificate(real_asterisk: RealAsterisk) -> None:
    """A browser that accepted it once is not asked again; another address makes a new one."""
    directory = real_asterisk.directory / "again"
    install = real_asterisk.instance.install
    certificate = directory / "keys" / "callcenter.crt"
    render(real_asterisk.settings, install, directory)
    first = certificate.read_bytes()
    render(real_asterisk.settings, install, directory)
    assert certificate.read_bytes() == first
    render(with_settings(real_asterisk, bind_address="127.0.0.3"), install, directory)
    assert certificate.read_bytes() != first


def test_a_file_of_an_older_version_does_not_stay(real_asterisk: RealAsterisk) -> None:
    """What is not rendered is not read."""
    directory = real_asterisk.directory / "older"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc" / "users.conf").write_text("[general]\n", encoding="utf-8")
    render(real_asterisk.settings, real_asterisk.instance.install, directory)
    assert not (directory / "etc" / "users.conf").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ami_secret", "short"),
        ("ami_secret", "x" * 20 + "\nwrite = all"),
        ("system_name", "a;b"),
        ("system_name", ""),
        ("hotline_numbers", ("12345,1,Dial(PJSIP/1)",)),
        ("hotline_numbers", ("_X.",)),
        ("hotline_numbers", ("12345\n",)),
        ("trunk_addresses", ("carrier.example",)),
        ("trunk_addresses", ("0.0.0.0/0",)),
        ("trunk_addresses", ("10.0.0.0/8\nendpoint=1001",)),
        ("trunk_contact", "host:5060;transport=tls"),
        ("trunk_contact", "host"),
        ("bind_address", "localhost"),
        ("bind_address", "127.0.0.1\n[x]"),
        ("sip_port", 80),
        ("sip_port", 70000),
        ("fallback_prompt", "../../etc/passwd"),
        ("fallback_prompt", "a,s"),
        ("prompts_dir", Path("/srv/a;b")),
        ("recordings_dir", Path("/srv/[x]")),
        ("recordings_dir", Path("/srv/a => b")),
        ("recordings_dir", Path("/srv/a\nb")),
        ("qualify_seconds", -1),
        ("tls_certificate", Path("/nowhere.pem")),
    ],
)
def test_a_value_that_could_mean_something_else_is_refused(
    real_asterisk: RealAsterisk,
    name: str,
    value: object,
) -> None:
    """And the message names the setting."""
    with pytest.raises(ConfigRefused, match=name):
        render(
            with_settings(real_asterisk, **{name: value}),
            real_asterisk.instance.install,
            real_asterisk.directory / "bad",
        )


@pytest.mark.parametrize(
    "fields",
    [{"number": "1001]"}, {"number": "*43"}, {"number": ""}, {"secret": ""}, {"secret": "a\nb"}],
)
def test_a_phone_that_could_mean_something_else_is_refused(fields: dict[str, str]) -> None:
    """A password is never repeated in the message."""
    good = {"number": "1001", "secret": "demo"}
    with pytest.raises(ConfigRefused) as refused:
        Phone(**{**good, **fields}, kind=PhoneKind.AGENT)
    assert "a\nb" not in str(refused.value)


def test_ports_that_collide_are_refused(real_asterisk: RealAsterisk) -> None:
    """As are a number twice and half a certificate."""
    with pytest.raises(ConfigRefused, match="different ports"):
        with_settings(real_asterisk, http_port=real_asterisk.settings.ami_port)
    with pytest.raises(ConfigRefused, match="twice"):
        with_settings(real_asterisk, phones=real_asterisk.settings.phones * 2)
    with pytest.raises(ConfigRefused, match="together"):
        with_settings(real_asterisk, tls_certificate=Path("/x.pem"))
    with pytest.raises(ConfigRefused, match="two calls"):
        with_settings(real_asterisk, rtp_end=real_asterisk.settings.rtp_start)


def test_a_path_too_long_for_the_control_socket(real_asterisk: RealAsterisk) -> None:
    """Asterisk would start and then not answer its own console."""
    with pytest.raises(ConfigRefused, match="too long"):
        render(real_asterisk.settings, real_asterisk.instance.install, real_asterisk.directory / ("d" * 100))


# ---- the process


async def test_start_stop_and_what_is_left(tmp_path: Path) -> None:
    """A second start is refused while it runs; another program finds and adopts it; nothing stays after the end."""
    asterisk = RealAsterisk()
    process, directory = asterisk.process, asterisk.instance.directory
    try:
        assert running_pid(directory) is None
        await process.start()
        pid = process.pid
        assert pid is not None
        assert running_pid(directory) == pid
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C would reach it"
        with pytest.raises(AsteriskStartFailed, match=f"{pid}.*already runs"):
            await AsteriskProcess(asterisk.instance).start()
        adopted = AsteriskProcess.attach(asterisk.instance)
        assert adopted is not None
        ended = asyncio.create_task(adopted.wait(), name="adopted")
        await process.stop()
        await asyncio.wait_for(ended, 5)
        assert running_pid(directory) is None
        assert AsteriskProcess.attach(asterisk.instance) is None
        assert not Path(f"/proc/{pid}").exists()
        await process.start()
        await AsteriskProcess.attach(asterisk.instance).stop()  # type: ignore[union-attr]  # it runs
        assert running_pid(directory) is None
    finally:
        await process.stop()
        await asyncio.to_thread(asterisk.close)


@pytest.mark.parametrize(
    ("field", "setting"),
    [("sip_port", "sip.port"), ("ami_port", "asterisk.ami_port"), ("https_port", "asterisk.https_port")],
)
async def test_a_port_in_use(real_asterisk: RealAsterisk, field: str, setting: str) -> None:
    """One line: which port, and which setting to change."""
    spare = {"sip_port": 21997, "ami_port": 21996, "http_port": 21995, "https_port": 21994}
    taken = {**spare, field: getattr(real_asterisk.settings, field)}
    instance = render(
        with_settings(real_asterisk, **taken),
        real_asterisk.instance.install,
        real_asterisk.directory / "taken",
    )
    with pytest.raises(PortInUse, match=f"端口 {taken[field]}.*{re.escape(setting)}") as refused:
        await AsteriskProcess(instance).start()
    assert refused.value.setting == setting
    assert running_pid(instance.directory) is None


async def test_an_asterisk_that_dies_at_once(real_asterisk: RealAsterisk) -> None:
    """The message says so and where the log is, long before the deadline."""
    spare = {"sip_port": 21997, "ami_port": 21996, "http_port": 21995, "https_port": 21994}
    instance = render(
        with_settings(real_asterisk, **spare),
        real_asterisk.instance.install,
        real_asterisk.directory / "dies",
    )
    (instance.directory / "data" / "documentation").unlink()
    broken = AsteriskProcess(instance)
    with pytest.raises(AsteriskStartFailed, match=r"log is in"):
        await broken.start(timeout=10)
    assert running_pid(instance.directory) is None


# ---- the engine's contract


async def test_a_call_arrives_plays_and_is_heard(ami: Ami, caller: Wire) -> None:
    """Music, then prompts with their id, then silence; keys are heard in each. Actions take the unique id."""
    tone(ami.asterisk.settings.prompts_dir / "test" / "one.wav", 0.5)
    channel = await arrive(ami, caller)
    for variable, value in {"PROMPTS": "test/one&test/one", "PLAY_ID": "p1", "AFTER_PROMPT": "quiet"}.items():
        await ami.done("Setvar", Channel=channel, Variable=variable, Value=value)
    key, ended = (
        ami.next("DTMFEnd", Uniqueid=channel, Digit="5"),
        ami.next_user("PromptEnded", Uniqueid=channel),
    )
    began = time.monotonic()
    await ami.send_to(channel, "play")
    await caller.press("5")
    await key
    event = await ended
    assert (event["PlayId"], event["Status"]) == ("p1", "SUCCESS")
    assert time.monotonic() - began > 0.9  # both were played
    key = ami.next("DTMFEnd", Uniqueid=channel, Digit="6")
    await caller.press("6")
    await key
    gone = ami.next("Hangup", Uniqueid=channel)
    await ami.done("Hangup", Channel=channel)
    await gone


async def test_a_new_prompt_replaces_the_one_that_plays(ami: Ami, caller: Wire) -> None:
    """Only the last one reports, and with its own id."""
    tone(ami.asterisk.settings.prompts_dir / "test" / "long.wav", 5)
    tone(ami.asterisk.settings.prompts_dir / "test" / "one.wav", 0.5)
    channel = await arrive(ami, caller)
    for name, play_id in (("test/long", "first"), ("test/one", "second")):
        ended = ami.next_user("PromptEnded", Uniqueid=channel)
        await ami.done("Setvar", Channel=channel, Variable="PROMPTS", Value=name)
        await ami.done("Setvar", Channel=channel, Variable="PLAY_ID", Value=play_id)
        await ami.send_to(channel, "play")
    assert (await ended)["PlayId"] == "second"
    assert [
        e["PlayId"] for e in ami.events if e.get("UserEvent") == "PromptEnded" and e["Uniqueid"] == channel
    ] == ["second"]


async def test_a_prompt_that_is_not_there(ami: Ami, caller: Wire) -> None:
    """It reports FAILED and the caller stays."""
    channel = await arrive(ami, caller)
    ended = ami.next_user("PromptEnded", Uniqueid=channel)
    await ami.done("Setvar", Channel=channel, Variable="PROMPTS", Value="test/nowhere")
    await ami.send_to(channel, "play")
    assert (await ended)["Status"] == "FAILED"
    assert (await ami.do("Getvar", Channel=channel, Variable="PARTY"))["Value"] == "caller"


async def test_many_redirects_on_the_heels_of_events(ami: Ami, caller: Wire) -> None:
    """A Redirect sent the moment an event is read is never lost: no Goto runs between the event and the next wait."""
    tone(ami.asterisk.settings.prompts_dir / "test" / "blip.wav", 0.02)
    channel = await arrive(ami, caller)
    await ami.done("Setvar", Channel=channel, Variable="PROMPTS", Value="test/blip")
    for number in range(100):
        ended = ami.next_user(
            "PromptEnded",
            Uniqueid=channel,
            PlayId=str(number),
        )
        await ami.done("Setvar", Channel=channel, Variable="PLAY_ID", Value=number)
        await ami.send_to(channel, "play")
        await ended


async def test_two_parties_then_a_room(ami: Ami, caller: Wire, wire: Callable[..., Wire]) -> None:
    """Bridge by unique id; the party left behind reaches AfterTalk at once; one dual Redirect moves both to a room."""
    agent = wire("1001")
    assert await agent.register() == 200
    channel = await arrive(ami, caller)
    leg = await answered_leg(ami, agent, "1001")
    await ami.done("Bridge", Channel1=channel, Channel2=leg)
    async with caller.speaking():
        key = ami.next("DTMFEnd", Uniqueid=channel, Digit="7")
        await caller.press("7")
        await key
        for state in ("on", "off"):
            await ami.done("MuteAudio", Channel=channel, Direction="in", State=state)
        entered = ami.next("BridgeEnter", Uniqueid=channel, BridgeTechnology="softmix")
        joined = [ami.next("ConfbridgeJoin", Uniqueid=unique) for unique in (channel, leg)]
        room = {"Context": "engine", "Exten": "room-c1", "Priority": 1}
        await ami.done(
            "Redirect", Channel=channel, ExtraChannel=leg, **room, **{f"Extra{k}": v for k, v in room.items()}
        )
        names = [(await one)["Channel"] for one in joined]
        await entered
        key = ami.next("DTMFEnd", Uniqueid=channel, Digit="8")
        await caller.press("8")
        await key
        by_id = await ami.do("ConfbridgeKick", Conference="c1", Channel=leg)
        assert by_id["Response"] == "Error", "a room's actions know channel names only"
        left, after = (
            ami.next_user("RoomLeft", Uniqueid=channel),
            ami.next_user("AfterTalk", Uniqueid=channel),
        )
        await ami.done("ConfbridgeKick", Conference="c1", Channel=names[0])
        assert (await left)["Room"] == "c1"
        await after
        # from there back on a plain bridge, once both have arrived (a Bridge that overtakes a Redirect is undone by
        # it), and the agent goes
        settled = [ami.next_user("Settled", Uniqueid=unique) for unique in (leg, channel)]
        await ami.send_to(leg, "quiet")
        await ami.send_to(channel, "wait")
        for one in settled:
            await one
        await ami.done("Bridge", Channel1=channel, Channel2=leg)
        after = ami.next_user("AfterTalk", Uniqueid=channel)
        await ami.done("Hangup", Channel=leg)
        await after


async def test_a_message_is_recorded(ami: Ami, caller: Wire) -> None:
    """Into the file the engine named, ended by its length."""
    channel = await arrive(ami, caller)
    target = ami.asterisk.settings.recordings_dir / "message.wav"
    await ami.done("Setvar", Channel=channel, Variable="MESSAGE_FILE", Value=target)
    await ami.done("Setvar", Channel=channel, Variable="MESSAGE_SECONDS", Value=1)
    ended = ami.next_user("MessageEnded", Uniqueid=channel)
    await ami.send_to(channel, "message")
    async with caller.speaking():
        await ended
    assert (await ended)["Status"] == "TIMEOUT"
    assert target.stat().st_size > 8000


async def test_a_relative_recording_lands_in_the_recordings(ami: Ami, caller: Wire) -> None:
    """So a recording's name needs no directory of this machine."""
    channel = await arrive(ami, caller)
    started = ami.next("MixMonitorStart", Uniqueid=channel)
    await ami.done("MixMonitor", Channel=channel, File="2026/call.raw", Options="D")
    await started
    target = ami.asterisk.settings.recordings_dir / "2026" / "call.raw"
    async with caller.speaking(), asyncio.timeout(10):
        while not target.exists():  # it is opened with the first sound  # a file tells nobody
            await asyncio.sleep(0.02)


async def test_without_an_engine_the_caller_is_still_answered(
    ami: Ami, caller: Wire, wire: Callable[..., Wire]
) -> None:
    """The heart stops: a waiting caller reaches the queue in seven seconds, a new one in three, an agent rings."""
    channel = await arrive(ami, caller)
    fallen = ami.next_user("EngineFallback", Uniqueid=channel)
    ami.heart.cancel()  # type: ignore[attr-defined]  # set by the fixture
    began = time.monotonic()
    await fallen
    assert time.monotonic() - began > 4  # not before the heart had time to beat again
    agent = wire("1002")
    assert await agent.register() == 200
    await ami.done("QueueAdd", Queue="fallback", Interface="PJSIP/1002")
    try:
        await agent.answer("302 Moved", contact="sip:PJSIP%2F13900000000%40trunk@elsewhere.example")
        again = await agent.answer()
        assert "13800138000" in header(again, "From")
        assert not [
            e for e in ami.events if e["Event"] == "Newchannel" and e["Channel"].startswith("PJSIP/trunk")
        ][1:]
    finally:
        await ami.done("QueueRemove", Queue="fallback", Interface="PJSIP/1002")
    second = wire("13800138001")
    fallen = ami.next_user("EngineFallback", CallerIDNum="13800138001")
    assert await second.call("96500") == 200
    await fallen


async def test_events_nobody_reads_are_not_sent(ami: Ami, caller: Wire) -> None:
    """A call with its music and its variables costs a dozen events, not a hundred."""
    channel = await arrive(ami, caller)
    gone = ami.next("Hangup", Uniqueid=channel)
    await ami.done("Hangup", Channel=channel)
    await gone
    names = {event["Event"] for event in ami.events}
    assert names.isdisjoint(
        {"VarSet", "Newexten", "RTCPSent", "MusicOnHoldStart", "DTMFBegin", "DeviceStateChange", "Newstate"}
    )
    assert {"Newchannel", "Hangup", "UserEvent"} <= names


async def test_the_engine_may_not_do_everything(ami: Ami) -> None:
    """Neither the console nor a change of the files is open to whoever has the manager's secret."""
    for action, headers in {
        "Command": {"Command": "core show version"},
        "CreateConfig": {"Filename": "new.conf"},
        "UpdateConfig": {"SrcFilename": "manager.conf", "DstFilename": "manager.conf"},
    }.items():
        assert (await ami.do(action, **headers))["Response"] == "Error", action


# ---- nobody gets out, nobody gets in


async def test_an_unknown_number_is_404(ami: Ami, wire: Callable[..., Wire]) -> None:
    """With an event that carries digits only."""
    told = ami.next_user("UnknownNumber")
    assert await wire("13800138000").call("99999") == 404
    assert (await told)["Dialled"] == "99999"
    assert await wire("13800138000").call("0086-13900000000") == 404
    assert await wire("13800138000").call("s") == 404
    assert await wire("13800138000").call("wait") == 404


async def test_a_phone_can_call_nobody(wire: Callable[..., Wire]) -> None:
    """Not a line, not a colleague, not the world; the echo test is all there is."""
    phone = wire("1003")
    assert await phone.register() == 200
    for number in ("12345", "1001", "13900000000", "013900000000", "room-c1", "wait", "s"):
        assert await wire("1003").call(number) == 404, number
    echo = wire("1003")
    assert await echo.call("*43") == 200
    await echo.hang_up("*43")


async def test_the_trunk_is_an_address_not_a_name(wire: Callable[..., Wire]) -> None:
    """From anywhere else a call is asked for a password, even by one who calls himself trunk."""
    for name in ("trunk", "13800138000", "anonymous"):
        stranger = wire(name, address="127.0.0.2")
        assert await stranger.call("12345") == 401, name


async def test_a_wrong_password_is_refused_and_told(ami: Ami, wire: Callable[..., Wire]) -> None:
    """Over AMI, with the address, for the gate; an unknown name sounds the same to who tries it."""
    guesser = wire("1004", address="127.0.0.4")
    guesser.secret = "wrong"
    assert await guesser.register() == 401
    unknown = wire("7777", address="127.0.0.4")
    assert await unknown.register() == 401
    told = {("ChallengeResponseFailed", "1004"), ("InvalidAccountID", "7777")}
    async with asyncio.timeout(5):
        while not told <= {
            (e["Event"], e["AccountID"]) for e in ami.events if "127.0.0.4" in e.get("RemoteAddress", "")
        }:
            await asyncio.sleep(0.02)


async def test_refer_and_subscribe_are_not_understood(
    ami: Ami, caller: Wire, wire: Callable[..., Wire]
) -> None:
    """A caller cannot have himself connected to anywhere, nor step into somebody's call."""
    channel = await arrive(ami, caller)
    caller.cseq += 1
    caller.say("REFER", caller.uri("12345"), headers="Refer-To: <sip:13900000000@127.0.0.1>\r\n")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):  # Asterisk does not even answer; a later one may say no
            assert int((await caller.hear(lambda text: "REFER" in text)).split()[1]) >= 400
    assert not [e for e in ami.events if e["Event"] == "Newchannel" and e["Uniqueid"] != channel]
    watcher = wire("13800138000")
    status, _ = await watcher.ask(
        "SUBSCRIBE", watcher.uri("12345"), headers="Event: presence\r\nExpires: 60\r\n"
    )
    assert status >= 400


@pytest.mark.parametrize(
    "target",
    [
        "sip:13900000000@127.0.0.1:{carrier}",
        "sip:PJSIP%2F13900000000%40trunk@x.example",
        "sip:PJSIP%2F1001%2Fsip%3A13900000000%40127.0.0.1%3A{carrier}@x.example",
        "sip:Local%2F12345%40from-trunk@x.example",
    ],
)
async def test_a_phone_that_forwards_gets_no_conversation(
    ami: Ami, wire: Callable[..., Wire], target: str
) -> None:
    """Asterisk may try a 302's target; whoever answers there is hung up at once and the engine is told."""
    carrier = wire("carrier", port=ami.asterisk.carrier_port)
    phone = wire("1001")
    assert await phone.register() == 200
    leg = "leg-" + secrets.token_hex(4)
    response = ami.next("OriginateResponse")
    began = len(ami.events)
    await ami.done(
        "Originate", Channel="PJSIP/1001", Context="engine", Exten="answered", Priority=1, Async="true", ChannelId=leg,
        Timeout=3000,
    )  # fmt: skip
    await phone.answer("302 Moved Temporarily", contact=target.format(carrier=ami.asterisk.carrier_port))
    there = asyncio.create_task(carrier.answer(), name="carrier")
    outcome = await response
    if outcome["Response"] == "Success":  # somebody answered in the phone's place
        async with asyncio.timeout(3):
            while not [e for e in ami.events[began:] if e.get("UserEvent") == "ForwardRefused"]:
                await asyncio.sleep(0.01)
    if there.done():
        await carrier.hear(lambda text: text.startswith("BYE"))
    there.cancel()
    await asyncio.wait([there])
    bridged = [e for e in ami.events[began:] if e["Event"] == "BridgeEnter"]
    assert bridged == []


def test_nothing_in_the_dialplan_dials(real_asterisk: RealAsterisk) -> None:
    """Read from the file itself: only these applications, no include, no switch, and only these contexts."""
    text = (real_asterisk.instance.directory / "etc" / "extensions.conf").read_text(encoding="utf-8")
    lines = [line.split(";")[0].strip() for line in text.splitlines()]
    assert not [
        line
        for line in lines
        if re.match(r"#?(include|switch|lswitch|eswitch|ignorepat|exec|tryinclude)", line)
    ]
    steps = [line for line in lines if line.startswith(("exten", "same"))]
    assert len(steps) > 60
    applications = set()
    for step in steps:
        applications.add(re.sub(r"^(exten => [^,]+,\d+,|same => n(?:\(\w+\))?,)", "", step).split("(")[0])
        applications.update(re.findall(r"\?(\w+)\(", step))
    assert applications == {
        *(
            "Answer",
            "ConfBridge",
            "Echo",
            "ExecIf",
            "Goto",
            "GotoIf",
            "Hangup",
            "Playback",
            "Queue",
            "Record",
        ),
        *("Set", "StartMusicOnHold", "StopMusicOnHold", "UserEvent", "Wait", "WaitForCondition"),
    }
    assert [step for step in steps if "Queue(" in step] == ["same => n,Queue(fallback,i,,,120)"]
    contexts = {line for line in lines if line.startswith("[")}
    assert contexts == {"[general]", "[globals]", "[from-trunk]", "[from-phone]", "[engine]", "[fallback]"}
    for evaluated in ("${CALLERID", "${EVAL", "${SHELL", "${CURL", "${FILE("):
        assert evaluated not in text


def test_modules_that_would_open_a_way_are_not_loaded() -> None:
    """A transfer, a shell, a script: none of them can be asked for, because none is there."""
    from callcenter.asterisk.install import MODULES

    assert not {
        *("res_pjsip_refer", "res_pjsip_messaging", "res_pjsip_endpoint_identifier_anonymous", "app_dial"),
        *(
            "app_system",
            "func_shell",
            "func_curl",
            "res_agi",
            "app_transfer",
            "bridge_builtin_features",
            "app_disa",
        ),
    } & set(MODULES)


async def test_a_browsers_account_made_at_run_time(ami: Ami, wire: Callable[..., Wire]) -> None:
    """Three rows, no file, no reload; gone when the rows are gone."""
    rows = browser_account("8888", "one-time")
    for row in rows:
        value = json.dumps(row.value)
        assert len(value) < 1000
        await ami.done("DBPut", Family=row.family, Key=row.key, Val=value)
    phone = wire("8888", address="127.0.0.5")
    phone.secret = "one-time"
    assert await phone.register() == 200
    for row in rows:
        await ami.done("DBDel", Family=row.family, Key=row.key)
    phone = wire("8888", address="127.0.0.5")
    phone.secret = "one-time"
    assert await phone.register() == 401


async def test_a_browser_reaches_sip_over_ws_and_wss(real_asterisk: RealAsterisk) -> None:
    """The handshake of RFC 7118, clause 4: the subprotocol `sip` is agreed on; then SIP is spoken."""
    settings = real_asterisk.settings
    addresses = (f"ws://127.0.0.1:{settings.http_port}/ws", f"wss://127.0.0.1:{settings.https_port}/ws")
    ask = (
        "OPTIONS sip:12345@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/WSS browser.invalid;branch=z9hG4bK1\r\n"
        "Max-Forwards: 70\r\nFrom: <sip:browser@127.0.0.1>;tag=1\r\nTo: <sip:12345@127.0.0.1>\r\n"
        "Call-ID: browser-1\r\nCSeq: 1 OPTIONS\r\nContact: <sip:browser@browser.invalid;transport=ws>\r\n"
        "Content-Length: 0\r\n\r\n"
    )
    async with aiohttp.ClientSession() as session:
        for address in addresses:
            async with session.ws_connect(address, protocols=["sip"], ssl=False) as browser:
                assert browser.protocol == "sip"
                await browser.send_str(ask)
                async with asyncio.timeout(5):
                    answer = await browser.receive()
                assert answer.data.startswith("SIP/2.0 ")
                assert "browser-1" in answer.data


def test_settings_are_frozen(real_asterisk: RealAsterisk) -> None:
    """What was checked stays what it was."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        real_asterisk.settings.sip_port = 1  # type: ignore[misc]  # that is the test
    assert isinstance(real_asterisk.settings, InstanceSettings)
    assert shared_install() == real_asterisk.instance.install


async def test_the_form_for_older_asterisks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for 20 and 21 (other names for the digest and the filter) is understood, and filters alike."""
    older = dataclasses.replace(shared_install(), version="20.9.0")
    monkeypatch.setattr("tests.asterisk_fixture.shared_install", lambda: older)
    asterisk = RealAsterisk()
    connection, phone = Ami(asterisk), Wire(asterisk, "1001")
    try:
        await asterisk.process.start()
        await connection.open()
        assert await phone.register() == 200
        await connection.done("Setvar", Variable="X", Value="1")
        assert "VarSet" not in {event["Event"] for event in connection.events}
        await connection.close()
    finally:
        phone.close()
        await asterisk.process.stop()
        await asyncio.to_thread(asterisk.close)
