"""The web server's places: idle connections, heads that never end, floods from one address."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from callcenter.api.bounded import Places, bounded

ASK = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Connect = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@pytest.fixture
def places() -> Places:
    return Places(most=6, head_seconds=0.5)


@pytest.fixture
async def connect(places: Places) -> AsyncIterator[Connect]:
    async def well(_: web.BaseRequest) -> web.Response:
        return web.Response(text="well")

    inner = web.Server(well)
    server = await asyncio.get_running_loop().create_server(bounded(inner, places), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    writers = []

    async def one(source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        writers.append(writer)
        return reader, writer

    yield one
    for writer in writers:
        writer.close()
    server.close()
    await inner.shutdown(1)


async def ask(pair: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    """The first line of the answer; nothing when there is none and the connection is closed."""
    reader, writer = pair
    async with asyncio.timeout(10):
        try:
            writer.write(ASK)
            return (await reader.readline()).strip()
        except ConnectionError:
            return b""


async def test_one_address_takes_half_of_the_places_and_no_more(connect: Connect) -> None:
    mine = [await connect() for _ in range(5)]
    assert [await ask(pair) for pair in mine] == [b"HTTP/1.1 200 OK"] * 3 + [b""] * 2
    assert await ask(await connect("127.0.0.2")) == b"HTTP/1.1 200 OK"


async def test_a_place_left_is_given_away_again(connect: Connect, places: Places) -> None:
    for _ in range(10):
        reader, writer = await connect()
        assert await ask((reader, writer)) == b"HTTP/1.1 200 OK"
        writer.close()
        async with asyncio.timeout(10):
            while places.taken:
                await asyncio.sleep(0)


@pytest.mark.parametrize("drip", [b"", b"GET / HTTP/1.1\r\nX: ", b"\r\n"])
async def test_a_head_that_does_not_end_is_not_waited_for(connect: Connect, drip: bytes) -> None:
    reader, writer = await connect()
    writer.write(drip)
    async with asyncio.timeout(10):
        assert b"200" not in await reader.read()


async def test_a_slow_head_in_time_and_a_connection_kept_alive_are_served(connect: Connect) -> None:
    """The end of a head may come in pieces; afterwards the connection lives as long as aiohttp keeps it."""
    reader, writer = await connect()
    for byte in ASK:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        await reader.readuntil(b"well")
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(0.8, over.set_result, None)
    await over
    assert await ask((reader, writer)) == b"HTTP/1.1 200 OK"
