"""The real web server under abuse while citizens talk: connections that say nothing, screens that read nothing."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import aiohttp

from tests.e2e.house import House, talking, until_hears

STRANGER = "127.0.0.9"
CROWD = 400


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def test_a_crowd_that_says_nothing_is_shown_out(clean_house: House) -> None:
    """Slowloris: no head, half a head, a body that does not come, a WebSocket without a hello."""
    halves = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /api/v1/session HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{",
        (
            b"GET /api/v1/console HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        ),
    ]
    async with talking(clean_house) as talk:
        before = resident_mb(clean_house.pid)
        crowd = [
            await asyncio.open_connection("127.0.0.1", clean_house.http, local_addr=(STRANGER, 0))
            for _ in range(CROWD)
        ]
        for number, (_, writer) in enumerate(crowd):
            writer.write(halves[number % len(halves)])
        await until_hears(talk.call, "agent")
        async with clean_house.rest("leader1") as leader:
            assert await leader.get("/api/v1/calls")
        async with asyncio.timeout(60):
            for reader, writer in crowd:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
        await until_hears(talk.desk, "caller")
        assert resident_mb(clean_house.pid) - before < 60


async def test_frames_no_screen_sends(clean_house: House) -> None:
    """Each costs its sender the connection and nobody else anything."""
    big = b"x" * 200_000
    frames = [
        b"\x81\xfe\xff\xff" + bytes(4) + big,  # a text of 65,535
        b"\x81\xff" + (2**62).to_bytes(8, "big") + bytes(4),  # one of 4 EB
        b"\x01\x85"
        + bytes(4)
        + b"abcde"
        + (b"\x00\xfe\xff\xff" + bytes(4) + big[:65_535]) * 3,  # never finished
        b"\x82\x81" + bytes(4) + b"x",  # binary
        b"\xc1\x85" + bytes(4) + b"\xaa\x00\x00\x00\x00",  # compressed, which nobody agreed to
        b"\x81\x05hello",  # not masked
        b"\x83\x80" + bytes(4),  # an opcode that is none
        b"\x89\xfe\x00\xff" + bytes(4) + big[:255],  # a ping too long
    ]
    head = (
        b"GET /api/v1/console HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    async with talking(clean_house) as talk:
        for frame in frames:
            reader, writer = await asyncio.open_connection("127.0.0.1", clean_house.http)
            writer.write(head)
            async with asyncio.timeout(10):
                answer = await reader.readuntil(b"\r\n\r\n")
                assert b" 101 " in answer
                assert b"permessage-deflate" not in answer
                with contextlib.suppress(ConnectionError):
                    writer.write(frame)
                    await writer.drain()
                    await reader.read()
            writer.close()
        await until_hears(talk.call, "agent")


async def test_only_what_browsers_telephones_need_is_open_at_asterisk(clean_house: House) -> None:
    """Its web server has the WebSocket and nothing else; its manager listens on the loopback alone."""
    port = clean_house.environment["CALLCENTER_ASTERISK__HTTP_PORT"]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for path in ("/httpstatus", "/ari/asterisk/info", "/static/x", "/rawman", "/manager", "/mxml", "/"):
            async with session.get(path) as answer:
                assert answer.status == 404, path
    listening = Path("/proc/net/tcp").read_text().splitlines()
    manager = [line.split()[1] for line in listening if f":{clean_house.ami:04X} " in line.split()[1] + " "]
    assert manager
    assert {socket.inet_ntoa(bytes.fromhex(place.partition(":")[0])[::-1]) for place in manager} == {
        "127.0.0.1"
    }
