"""The console's WebSocket on the real engine: snapshot, changes in order, commands, and screens that misbehave."""

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from api_house import CALLER, MASKED, House, MemoryAccounts, TestScreen, house

from callcenter.api.console import Limits
from callcenter.domain.calls import UserId
from callcenter.domain.messages import Alarm, ConsoleLost, Hold, SaveCall, SetNotReady


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as running:
        yield running


async def appears(condition: object, what: str) -> None:
    """Wait until the condition holds."""
    try:
        async with asyncio.timeout(5):
            while not condition():  # type: ignore[operator]
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"never came: {what}")


# --- what a screen is shown -------------------------------------------------------------------------------------


async def test_a_snapshot_comes_first_and_has_everything(home: House) -> None:
    call = await home.talking("ast1-1.1")
    waiting = await home.arrive("ast1-1.2", caller="13900001111")
    async with home.screen("agent1") as screen:
        said = await screen.next()
    assert said["type"] == "snapshot"
    assert said["me"]["name"] == "张敏"
    assert said["me"]["agent"]["state"] == "talking"
    assert said["my_call"]["call_id"] == call
    assert [each["call_id"] for each in said["calls"]] == [call]
    assert {each["user_id"] for each in said["agents"]} >= {"agent1", "agent2", "spec1"}
    assert [(each["queue_id"], each["waiting"]) for each in said["queues"]] == [("hotline", 1)]
    assert [each["code"] for each in said["directory"]["dispositions"]] == ["answered"]
    async with home.screen("leader1") as screen:
        said = await screen.next()
    assert {each["call_id"] for each in said["calls"]} == {call, waiting}
    assert said["my_call"] is None


async def test_a_department_is_shown_nothing_of_the_telephones(home: House) -> None:
    await home.talking("ast1-1.1")
    async with home.screen("dept1") as screen:
        said = await screen.next()
        assert (said["agents"], said["queues"], said["calls"]) == ([], [], [])
        assert (said["directory"]["specialists"], said["directory"]["queues"]) == ([], [])
        answer = await screen.command("set_state", state="ready")
        assert (answer["type"], answer["reason"]) == ("refused", "forbidden")


async def test_changes_come_in_order_without_a_gap(home: House) -> None:
    async with home.screen("agent1") as mine, home.screen("leader1") as leader, home.screen("spec1") as spec:
        for screen in (mine, leader, spec):
            await screen.until("snapshot")
        call = await home.talking("ast1-1.1")
        offered = await mine.until("call")
        assert (offered["call"]["phase"], offered["call"]["caller"]) == ("waiting", CALLER)
        await mine.until("agent", lambda said: said["agent"]["state"] == "talking")
        await leader.until("call", lambda said: said["call"]["phase"] == "talking")
        await leader.until("queue")
        await spec.until("agent", lambda said: said["agent"]["state"] == "talking")
        await home.hang_up(call)
        ended = await mine.until("call_ended")
        assert (ended["call_id"], ended["call"]["end_reason"]) == (call, "completed")
        await leader.until("call_ended")


async def test_a_missed_offer_leaves_the_screen_while_the_call_goes_on(home: House) -> None:
    await home.ready("agent1")
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        call = await home.arrive("ast1-1.1")
        await screen.until("call")
        await home.hang_up(home.ringing("1001"))
        gone = await screen.until("call_ended")
        assert (gone["call_id"], gone["call"]) == (call, None)
        await screen.until("agent", lambda said: said["agent"]["state"] == "not_ready")
    assert call in home.engine.calls


async def test_the_specialist_sees_the_call_with_the_number_masked(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.ready("spec1")
    async with home.screen("agent1") as agent, home.screen("spec1") as spec:
        await agent.until("snapshot")
        await spec.until("snapshot")
        assert (await agent.command("invite", call_id=call, skill="market"))["type"] == "done"
        seen = await spec.until("call")
        assert seen["call"]["caller"] == MASKED
        assert CALLER not in json.dumps(seen)


async def test_a_reloaded_screen_still_has_the_call_that_is_being_wrapped_up(home: House) -> None:
    call = await home.talking("ast1-1.1")
    await home.hang_up(call)
    async with home.screen("agent1") as screen:
        said = await screen.until("snapshot")
        assert said["me"]["agent"]["state"] == "wrap_up"
        assert said["me"]["agent"]["wrap_up_ends_at"] > said["server_time"]
        assert (said["my_call"]["call_id"], said["my_call"]["phase"]) == (call, "ended")
        assert said["calls"] == []
        answer = await screen.command("wrap_up", call_id=call, disposition="answered", note="已答复")
        assert answer["type"] == "done"


async def test_alarms_reach_who_is_on_duty(home: House) -> None:
    async with home.screen("leader1") as leader, home.screen("agent1") as agent:
        await leader.until("snapshot")
        await agent.until("snapshot")
        for listener in tuple(home.engine._listeners):
            listener(Alarm("disk_low", {"free": "1 GB"}))
        raised = await leader.until("alarm")
        assert (raised["key"], raised["facts"]) == ("disk_low", {"free": "1 GB"})
        await agent.send({"type": "sync"})
        assert (await agent.next())["type"] == "snapshot"


async def test_sync_gives_a_new_snapshot_and_the_counting_goes_on(home: House) -> None:
    async with home.screen("agent1") as screen:
        first = await screen.until("snapshot")
        await screen.send({"type": "sync"})
        second = await screen.next()
        assert (second["type"], second["seq"]) == ("snapshot", first["seq"] + 1)


async def test_a_ping_is_answered_at_once_and_counts_for_nothing(home: House) -> None:
    async with home.screen("agent1") as screen:
        first = await screen.until("snapshot")
        await screen.send({"type": "ping"})
        assert await screen.next() == {"type": "pong"}
        await screen.send({"type": "sync"})
        assert (await screen.next())["seq"] == first["seq"] + 1


# --- commands ---------------------------------------------------------------------------------------------------


async def test_a_whole_call_by_commands(home: House) -> None:
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        assert (await screen.command("set_state", state="ready"))["type"] == "done"
        call = await home.arrive("ast1-1.1")
        await home.answer(home.ringing("1001"))
        await home.ready("spec1")
        for kind, fields in [
            ("hold", {}),
            ("resume", {}),
            ("mute", {"on": True}),
            ("mute", {"on": False}),
            ("invite", {"user": "spec1"}),
        ]:
            assert (await screen.command(kind, call_id=call, **fields))["type"] == "done", kind
        await home.answer(home.ringing("8001"))
        assert (await screen.command("merge", call_id=call))["type"] == "done"
        assert (await screen.command("leave", call_id=call))["type"] == "done"
        assert [leg.role for leg in home.engine.calls[call].others] == ["specialist"]


async def test_a_refusal_has_its_reason_in_both_languages(home: House) -> None:
    call = await home.talking("ast1-1.1")
    async with home.screen("agent2") as screen:
        await screen.until("snapshot")
        answer = await screen.command("hold", call_id=call)
        assert (answer["type"], answer["reason"]) == ("refused", "not_your_call")
        assert answer["message_zh"].startswith("您不在这通电话里")


async def test_the_change_is_shown_before_done(home: House) -> None:
    call = await home.talking("ast1-1.1")
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        await screen.send({"type": "hold", "id": 1, "call_id": call})
        kinds = []
        while "done" not in kinds:
            kinds.append((await screen.next())["type"])
        assert "call" in kinds


async def test_a_command_sent_twice_is_done_once_and_answered_the_same(home: House) -> None:
    call = await home.talking("ast1-1.1")
    asked = []
    ask = home.engine.ask

    async def counted(request: object) -> None:
        asked.append(request)
        await ask(request)  # type: ignore[arg-type]

    home.engine.ask = counted  # type: ignore[method-assign]
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        first = await screen.command("hold", call_id=call, id=17)
        assert await screen.command("hold", call_id=call, id=17) == first
    # The connection broke before the answer came: the same over a new one.
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        assert await screen.command("hold", call_id=call, id=17) == first
        other = await screen.command("resume", call_id=call, id=17)
        assert (other["type"], other["reason"]) == ("refused", "id_reused")
    assert asked == [Hold(UserId("agent1"), call)]
    async with home.screen("agent1", client="another-screen") as screen:
        await screen.until("snapshot")
        assert (await screen.command("hold", call_id=call, id=17))["reason"] == "already_held"


async def test_after_a_minute_an_id_may_be_used_again(tmp_path: Path) -> None:
    async with house(tmp_path, limits=Limits(repeat_seconds=0.0)) as home:
        call = await home.talking("ast1-1.1")
        async with home.screen("agent1") as screen:
            await screen.until("snapshot")
            assert (await screen.command("hold", call_id=call, id=1))["type"] == "done"
            assert (await screen.command("resume", call_id=call, id=1))["type"] == "done"


async def test_a_command_whose_screen_vanishes_half_way_is_finished(home: House) -> None:
    call = await home.talking("ast1-1.1")
    let_go, asked, ask = asyncio.Event(), asyncio.Event(), home.engine.ask

    async def slow(request: object) -> None:
        asked.set()
        await let_go.wait()
        await ask(request)  # type: ignore[arg-type]

    home.engine.ask = slow  # type: ignore[method-assign]
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        await screen.send({"type": "hold", "id": 5, "call_id": call})
        await asked.wait()
        screen.socket._response.close()
    let_go.set()
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        assert (await screen.command("hold", call_id=call, id=5))["type"] == "done"


async def test_a_thousand_commands_at_once_are_all_answered_in_order(home: House) -> None:
    call = await home.talking("ast1-1.1")
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")

        async def send() -> None:
            for number in range(1000):
                await screen.send({"type": "resume" if number % 2 else "hold", "id": number, "call_id": call})

        sending = asyncio.create_task(send())
        answered = []
        while len(answered) < 1000:
            said = await screen.next()
            if said["type"] in {"done", "refused"}:
                answered.append((said["id"], said["type"]))
        await sending
        assert answered == [(number, "done") for number in range(1000)]
        for number in range(1000, 1300):
            answer = await screen.command("hold", call_id=call, id=number)
        assert (answer["type"], answer["reason"]) == ("refused", "too_many")


async def test_commands_that_contradict_each_other_each_get_an_answer(home: House) -> None:
    call = await home.talking("ast1-1.1")
    async with home.screen("agent1") as one, home.screen("agent1", client="second-tab") as two:
        await one.until("snapshot")
        await two.until("snapshot")
        answers = await asyncio.gather(
            one.command("hold", call_id=call),
            two.command("hold", call_id=call),
            return_exceptions=False,
        )
        assert sorted(answer["type"] for answer in answers) == ["done", "refused"]
        answers = await asyncio.gather(
            one.command("hangup", call_id=call, to_rating=False),
            two.command("resume", call_id=call),
        )
        assert answers[0]["type"] == "done"
        assert answers[1]["type"] in {"done", "refused"}


# --- sessions and screens that go away --------------------------------------------------------------------------


async def test_the_softphone_gone_for_long_is_told_to_the_engine_once(home: House) -> None:
    async with home.screen("agent1", softphone=True) as screen:
        await screen.until("snapshot")
    await appears(lambda: ConsoleLost(UserId("agent1")) in home.posted, "ConsoleLost")
    assert home.posted.count(ConsoleLost(UserId("agent1"))) == 1


async def test_a_softphone_that_comes_back_in_time_was_never_lost(tmp_path: Path) -> None:
    async with house(tmp_path, limits=Limits(console_lost_seconds=0.3)) as home:
        async with home.screen("agent1", softphone=True) as screen:
            await screen.until("snapshot")
        async with home.screen("agent1", softphone=True) as screen:
            await screen.until("snapshot")
            # Another one, gone for as long as it takes: once it is told, the first would have been too.
            async with home.screen("agent2", softphone=True) as other:
                await other.until("snapshot")
            await appears(lambda: ConsoleLost(UserId("agent2")) in home.posted, "ConsoleLost of agent2")
            assert ConsoleLost(UserId("agent1")) not in home.posted


async def test_a_screen_without_softphone_may_go(home: House) -> None:
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
    async with home.screen("agent2", softphone=True) as screen:
        await screen.until("snapshot")
    await appears(lambda: ConsoleLost(UserId("agent2")) in home.posted, "ConsoleLost of agent2")
    assert ConsoleLost(UserId("agent1")) not in home.posted


async def test_logging_out_closes_the_screens_of_that_session_at_once(home: House) -> None:
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        await home.ask("DELETE", "/api/v1/session", user="agent1")
        assert await screen.closed() == 4401


async def test_a_session_ended_elsewhere_or_expired_closes_its_screens(home: House) -> None:
    token = await home.login("agent1")
    accounts = home.accounts
    assert isinstance(accounts, MemoryAccounts)
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        accounts.sessions[token] = replace(accounts.sessions[token], expires_at=datetime.now(UTC))
        assert await screen.closed() == 4401


async def test_changed_roles_show_at_the_next_check(home: House) -> None:
    token = await home.login("agent1")
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        home.accounts.sessions[token] = replace(home.accounts.sessions[token], roles=frozenset())
        said = await screen.until("snapshot")
        assert (said["me"]["rights"], said["agents"]) == ([], [])


async def test_the_server_going_down_says_so_and_loses_nobody(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        async with home.client.ws_connect(home.url + "/api/v1/console") as socket:
            screen = TestScreen(socket)
            await screen.send(
                {
                    "type": "hello",
                    "version": 1,
                    "token": await home.login("agent1"),
                    "client": "test-client-1",
                    "softphone": True,
                }
            )
            await screen.until("snapshot")
            stopping = asyncio.create_task(home.stop())
            assert await screen.closed() == 1001
            await stopping
        assert not any(isinstance(event, ConsoleLost) for event in home.posted)


# --- the first message ------------------------------------------------------------------------------------------

HELLO = {"type": "hello", "version": 1, "token": "x", "client": "test-client-1"}


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (json.dumps(HELLO), 4401),
        (json.dumps({**HELLO, "version": 2}), 4400),
        (json.dumps({**HELLO, "user": "agent1"}), 4400),
        (json.dumps({**HELLO, "client": "a b"}), 4400),
        (json.dumps({"type": "sync"}), 4400),
        ("{", 4400),
        ("", 4400),
        ("[" * 10_000, 4400),
        (b"\x00\xff", 4400),
        ("x" * 70_000, 1009),
    ],
)
async def test_a_wrong_first_message_closes_with_its_code(home: House, first: str | bytes, code: int) -> None:
    async with home.client.ws_connect(home.url + "/api/v1/console") as socket:
        if isinstance(first, bytes):
            await socket.send_bytes(first)
        else:
            await socket.send_str(first)
        assert await TestScreen(socket).closed() == code


async def test_silence_is_closed(tmp_path: Path) -> None:
    async with (
        house(tmp_path, limits=Limits(hello_seconds=0.1)) as home,
        home.client.ws_connect(home.url + "/api/v1/console") as socket,
    ):
        assert await TestScreen(socket).closed() == 4408


async def test_another_sites_page_is_refused(home: House) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await home.client.ws_connect(home.url + "/api/v1/console", origin="https://evil.example")
    assert caught.value.status == 403
    async with home.screen("agent1", origin=home.url) as screen:
        await screen.until("snapshot")


async def test_too_many_screens_of_one_user(tmp_path: Path) -> None:
    async with house(tmp_path, limits=Limits(screens_a_user=1)) as home, home.screen("agent1") as first:
        await first.until("snapshot")
        async with home.screen("agent1") as second:
            assert await second.closed() == 4429


# --- hostile screens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("{", None),
        ("null", None),
        ('"hold"', None),
        ("[" * 30_000, None),
        ('{"type":"hold","id":3}', 3),
        ('{"type":"nonsense","id":4}', 4),
        ('{"type":"hold","id":5,"call_id":"ast1-1.1","by":"agent2"}', 5),
        ('{"type":"hello","version":1,"token":"x","client":"test-client-1"}', None),
        ('{"type":"snapshot","id":6}', 6),
    ],
)
async def test_a_message_not_understood_is_refused_and_the_screen_goes_on(
    home: House, text: str, number: int | None
) -> None:
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        await screen.send(text)
        answer = await screen.until("refused")
        assert (answer["id"], answer["reason"]) == (number, "bad_message")
        assert (await screen.command("set_state", state="ready", id=99))["type"] == "done"


async def test_binary_and_giant_frames_end_the_screen(home: House) -> None:
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        await screen.socket.send_bytes(b"\x00" * 100)
        assert await screen.closed() == 1003
    async with home.screen("agent1") as screen:
        await screen.until("snapshot")
        await screen.send(json.dumps({"type": "sync", "x": "y" * 70_000}))
        assert await screen.closed() == 1009
    assert (await home.ask("GET", "/api/v1/me", user="agent1"))[0] == 200


async def _deaf_screen(
    home: House, *, softphone: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A screen that has said hello over a socket with a tiny window and then reads nothing."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.setblocking(False)
    host, port = home.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    writer.write(
        b"GET /api/v1/console HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    hello = json.dumps(
        {
            "type": "hello",
            "version": 1,
            "token": await home.login("leader1"),
            "client": "deaf-screen",
            "softphone": softphone,
        }
    ).encode()
    writer.write(b"\x81" + bytes([0x80 | 126]) + len(hello).to_bytes(2, "big") + bytes(4) + hello)
    await writer.drain()
    return reader, writer


async def test_a_screen_that_never_reads_is_cut_and_hurts_nobody(tmp_path: Path) -> None:
    limits = Limits(stuck_seconds=0.3, heartbeat_seconds=60, changes=50)
    async with house(tmp_path, limits=limits) as home:
        call = await home.talking("ast1-1.1")
        _, writer = await _deaf_screen(home)
        async with home.screen("agent1") as screen:
            await screen.until("snapshot")
            await appears(lambda: _screens(home) == 2, "the deaf screen")
            loop = asyncio.get_running_loop()
            number = 0
            slowest = 0.0
            async with asyncio.timeout(20):
                while _screens(home) == 2:
                    asked = loop.time()
                    kind = "resume" if number % 2 else "hold"
                    await screen.command(kind, call_id=call, id=number)
                    slowest = max(slowest, loop.time() - asked)
                    number += 1
                    if number == 1000:
                        # More does not come out any faster: wait for the cut.
                        await appears(lambda: _screens(home) == 1, "the cut")
            assert slowest < 1.0
        writer.close()


async def test_a_softphone_that_vanishes_without_a_word_is_missed_by_the_heartbeat(tmp_path: Path) -> None:
    limits = Limits(heartbeat_seconds=0.2, console_lost_seconds=0.1)
    async with house(tmp_path, limits=limits) as home:
        _, writer = await _deaf_screen(home, softphone=True)
        await appears(lambda: ConsoleLost(UserId("leader1")) in home.posted, "ConsoleLost")
        assert _screens(home) == 0
        writer.close()


def _screens(home: House) -> int:
    console = next(listener.__self__ for listener in home.engine._listeners if hasattr(listener, "__self__"))
    return console.count()  # type: ignore[no-any-return]


async def test_a_slow_screen_gets_a_fresh_snapshot_instead_of_what_it_missed(tmp_path: Path) -> None:
    limits = Limits(changes=5, heartbeat_seconds=60)
    async with house(tmp_path, limits=limits) as home:
        call = await home.talking("ast1-1.1")
        async with home.screen("leader1") as screen:
            await screen.until("snapshot")
            # One turn of the loop with more changes than may wait: the writer has no chance in between.
            saved = home.engine.calls[call]
            for version in range(100, 110):
                for listener in tuple(home.engine._listeners):
                    listener(SaveCall(replace(saved, version=version)))
            said = await screen.next()
            assert said["type"] == "snapshot"
            await home.engine.ask(SetNotReady(UserId("agent2"), "lunch"))
            await screen.until("agent")


async def test_two_hundred_screens_are_told_of_a_change_within_a_fifth_of_a_second(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        tokens = [await home.login("agent2")]
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
            ready, told = asyncio.Barrier(201), []

            async def watch(number: int) -> None:
                token = tokens[0] if number < 20 else await _new_session(home, number)
                async with home.screen("", token=token, client=f"screen-{number:04d}") as screen:
                    await screen.until("snapshot")
                    await ready.wait()
                    await screen.until("agent", lambda said: said["agent"]["state"] == "not_ready")
                    told.append(asyncio.get_running_loop().time())

            for number in range(200):
                tasks.create_task(watch(number))
            await ready.wait()
            asked = asyncio.get_running_loop().time()
            await home.engine.ask(SetNotReady(UserId("agent1"), "lunch"))
        assert len(told) == 200
        # A generous bound for a busy machine: this guards against an accidental quadratic, the bench measures.
        assert sorted(told)[189] - asked < 1.0


async def _new_session(home: House, number: int) -> str:
    """A session of one of many users: screens are limited for each."""
    session = await home.accounts.log_in("agent2", "demo", client="")
    user_id = UserId(f"crowd{number // 20}")
    home.accounts.sessions[session.token] = replace(session, user_id=user_id)
    return session.token
