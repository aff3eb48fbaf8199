"""Broken SIP over UDP, TCP and WebSocket while citizens talk: nothing falls over, nobody's call is disturbed."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.house import House, Talk, dial, talking, until, until_hears
from tests.e2e.sip_rubbish import broken_streams, broken_syntax, odd_offers

STRANGER, CARRIER = "127.0.0.9", "127.0.0.1"
FOLDER = "SIP_TORTURE_MESSAGES"
"""Names a folder with further messages, one a file, to be sent as they are."""


class Watch:
    """What must be as it was after every storm."""

    def __init__(self, house: House, talk: Talk) -> None:
        self.house, self.talk = house, talk
        self.asterisk = asterisk_pid(house)

    async def nothing_happened(self) -> None:
        await until_hears(self.talk.call, "agent")
        await until_hears(self.talk.desk, "caller")
        assert asterisk_pid(self.house) == self.asterisk, "Asterisk was started anew"
        assert running(self.asterisk)
        assert "asterisk ended" not in self.house.said()


def asterisk_pid(house: House) -> int:
    return int(next(house.data.glob("asterisk/**/asterisk.pid")).read_text())


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists()


async def send(house: House, source: str, datagrams: Iterable[bytes], *, after: int = 100) -> None:
    """From one socket, a breath between each, so that none is lost on the way in; whoever is answered hangs up.

    ``after``: so many breaths more, for those who are answered late.
    """
    to = ("127.0.0.1", house.sip)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.bind((source, 0))
        out.setblocking(False)
        for datagram in (*datagrams, *[b"\r\n\r\n"] * after):
            with contextlib.suppress(BlockingIOError):
                out.sendto(datagram[:65_000], to)
            await asyncio.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                while said := out.recv(65_536):
                    for farewell in farewells(said):
                        out.sendto(farewell, to)


def farewells(said: bytes) -> list[bytes]:
    """ACK and BYE, if this answers a call (RFC 3261 12.2.1.1)."""
    lines = said.split(b"\r\n")
    if lines[0] != b"SIP/2.0 200 OK":
        return []
    headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
    number, _, method = headers.get(b"CSeq", b"").partition(b" ")
    if method != b"INVITE":
        return []
    uri = headers[b"Contact"].strip(b"<>")
    kept = b"".join(name + b": " + headers[name] + b"\r\n" for name in (b"From", b"To", b"Call-ID"))
    return [
        method + b" " + uri + b" SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bK"
        + secrets.token_hex(8).encode() + b"\r\nMax-Forwards: 70\r\n" + kept
        + b"CSeq: " + str(int(number) + later).encode() + b" " + method + b"\r\nContent-Length: 0\r\n\r\n"
        for method, later in ((b"ACK", 0), (b"BYE", 1))
    ]  # fmt: skip


async def answers(house: House) -> None:
    """The stack answers a right question: what was sent before it has been dealt with."""
    async with house.caller() as citizen:
        call = await dial(citizen, "96500", None, seconds=20)
        await call.hang_up()


def where(house: House, source: str) -> tuple[str, str]:
    return f"127.0.0.1:{house.sip}", f"{source}:5999"


async def quiet_again(house: House) -> None:
    """Every call that rubbish opened is over but the one we watch: an odd offer that was taken ends by itself."""
    async with house.rest("admin") as admin:

        async def living() -> int:
            return len((await admin.get("/api/v1/calls"))["calls"])

        await until(living, lambda count: count <= 1, seconds=45)


@pytest.mark.parametrize("source", [STRANGER, CARRIER])
async def test_broken_datagrams(clean_house: House, source: str) -> None:
    async with talking(clean_house) as talk:
        watch = Watch(clean_house, talk)
        found = broken_syntax(*where(clean_house, source))
        await send(clean_house, source, found.values())
        await answers(clean_house)
        await watch.nothing_happened()
        await quiet_again(clean_house)


async def test_calls_with_odd_media(clean_house: House) -> None:
    """From the trunk, so that each is really looked at; whoever is answered never confirms and is dropped."""
    async with talking(clean_house) as talk:
        watch = Watch(clean_house, talk)
        await send(clean_house, CARRIER, odd_offers(*where(clean_house, CARRIER)).values())
        await answers(clean_house)
        await watch.nothing_happened()
        await quiet_again(clean_house)


async def over_tcp(house: House, parts: Iterable[bytes]) -> None:
    """Say this on a connection of its own; to be shown the door is as it should be."""
    with contextlib.suppress(ConnectionError):
        _, writer = await asyncio.open_connection("127.0.0.1", house.sip, local_addr=(STRANGER, 0))
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
        finally:
            writer.close()


async def test_broken_tcp(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        watch = Watch(clean_house, talk)
        for name, parts in broken_streams(*where(clean_house, STRANGER)).items():
            try:
                async with asyncio.timeout(10):
                    await over_tcp(clean_house, parts)
            except TimeoutError:
                raise AssertionError(f"{name}: the house does not take it and does not close") from None
        for datagram in broken_syntax(*where(clean_house, STRANGER)).values():
            await over_tcp(clean_house, [datagram])
        await answers(clean_house)
        await watch.nothing_happened()
        await quiet_again(clean_house)


async def test_a_hundred_idle_connections_are_no_burden(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        watch = Watch(clean_house, talk)
        idle = [
            await asyncio.open_connection("127.0.0.1", clean_house.sip, local_addr=(STRANGER, 0))
            for _ in range(100)
        ]
        await answers(clean_house)
        await watch.nothing_happened()
        for _, writer in idle:
            writer.close()


async def test_broken_sip_over_websocket(clean_house: House) -> None:
    port = int(clean_house.environment["CALLCENTER_ASTERISK__HTTP_PORT"])
    async with (
        talking(clean_house) as talk,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(STRANGER, 0))) as session,
    ):
        watch = Watch(clean_house, talk)
        for message in broken_syntax(*where(clean_house, STRANGER)).values():
            socket_of = session.ws_connect(f"http://127.0.0.1:{port}/ws", protocols=["sip"])
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10), socket_of as browser:
                    await browser.send_bytes(message)
                    await browser.send_str(message.decode("utf-8", "replace"))
        await answers(clean_house)
        await watch.nothing_happened()
        await quiet_again(clean_house)


async def test_messages_of_a_folder(clean_house: House) -> None:
    """Those that are in the folder named by hand; without one, our own once more in one file each."""
    folder = os.environ.get(FOLDER)
    given = [path.read_bytes() for path in sorted(Path(folder).iterdir())] if folder else []
    found = given or [*broken_syntax(*where(clean_house, CARRIER)).values()][:20]
    async with talking(clean_house) as talk:
        watch = Watch(clean_house, talk)
        for source in (STRANGER, CARRIER):
            await send(clean_house, source, found)
        for raw in found:
            await over_tcp(clean_house, [raw])
        await answers(clean_house)
        await watch.nothing_happened()
        await quiet_again(clean_house)


def test_the_log_stayed_structured(house: House) -> None:
    """After all of it every line of the log is one object, and none holds what could move a terminal's cursor."""
    for line in house.said().splitlines():
        if line.startswith("{"):
            json.loads(line)
        assert "\x1b" not in line
