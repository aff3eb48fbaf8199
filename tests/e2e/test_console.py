"""One WebSocket for a screen: it shows what the phones do, and its commands reach the line."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.e2e.house import House, dial, until_hears


class Screen:
    """What a browser keeps of the stream: the sequence without a gap, and the messages by type."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._seq: int | None = None

    async def until(self, **wish: Any) -> dict[str, Any]:
        """Read until a message has these values, nested names with double underscores."""
        async with asyncio.timeout(15):
            while True:
                message = json.loads(await self._socket.recv())
                self._keep_count(message)
                if all(_at(message, name.split("__")) == value for name, value in wish.items()):
                    return dict(message)

    def _keep_count(self, message: dict[str, Any]) -> None:
        seq = message.get("seq")
        if seq is None:
            return
        if message["type"] != "snapshot" and self._seq is not None:
            assert seq == self._seq + 1
        self._seq = seq

    async def send(self, **message: Any) -> None:
        await self._socket.send(json.dumps(message))


def _at(value: Any, names: list[str]) -> Any:
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


@contextlib.asynccontextmanager
async def screen_of(house: House, token: str) -> AsyncIterator[Screen]:
    async with connect(f"ws://127.0.0.1:{house.http}/api/v1/console") as socket:
        screen = Screen(socket)
        await screen.send(type="hello", version=1, token=token, client="desk-of-a-test", softphone=False)
        await screen.until(type="snapshot")
        yield screen


async def test_a_call_on_the_screen(clean_house: House) -> None:
    """Offered, talking, held by a command of the screen, resumed, ended; a repeated command is done once."""
    async with clean_house.person("agent1", "1001", ready=False) as agent, clean_house.caller() as citizen:
        async with screen_of(clean_house, agent.rest.token) as screen:
            await screen.send(type="set_state", id=1, state="ready")
            await screen.until(type="done", id=1)
            call = await dial(citizen)
            offered = await screen.until(type="agent", agent__user_id="agent1", agent__state="offered")
            call_id = offered["agent"]["call_id"]
            desk = await agent.answers()
            await screen.send(type="hold", id=2, call_id=call_id)
            await screen.until(type="done", id=2)
            await until_hears(call)
            await screen.send(type="hold", id=2, call_id=call_id)
            await screen.until(type="done", id=2)
            await screen.send(type="hold", id=3, call_id=call_id)
            refused = await screen.until(type="refused", id=3)
            assert refused["reason"] == "already_held"
            assert refused["message_zh"]
        # the screen was closed in the middle; another one takes over with a fresh snapshot
        async with screen_of(clean_house, agent.rest.token) as screen:
            await screen.send(type="resume", id=4, call_id=call_id)
            await screen.until(type="done", id=4)
            await until_hears(call, "agent")
            await call.hang_up()
            await desk.ended.wait(5)
            await screen.until(type="call_ended", call_id=call_id)
