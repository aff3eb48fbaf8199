"""The AMI link against a scripted peer on a real socket: every known trap of AMI and of panoramisk is sprung here."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_ami import DEADLINE_SECONDS, Received, ScriptedAmi, error, event, message, nothing, success
from structlog.testing import capture_logs

from callcenter.asterisk.ami import (
    AmiError,
    AmiInjection,
    AmiLink,
    AmiLoginFailed,
    AmiMessage,
    AmiRefused,
    AmiTimeout,
    AmiUnavailable,
)


class Engine:
    """What stands on the other side of the link: notes everything told to it, in order."""

    def __init__(self) -> None:
        self.told: list[str | AmiMessage] = []
        self.bug: Callable[[AmiMessage], None] = lambda _: None
        self._changed = asyncio.Event()

    @property
    def events(self) -> list[AmiMessage]:
        return [told for told in self.told if isinstance(told, AmiMessage)]

    @property
    def states(self) -> list[str]:
        return [told for told in self.told if isinstance(told, str)]

    def on_event(self, received: AmiMessage) -> None:
        self._note(received)
        self.bug(received)

    def on_up(self) -> None:
        self._note("up")

    def on_down(self, reason: str) -> None:
        self._note(reason)

    def _note(self, told: str | AmiMessage) -> None:
        self.told.append(told)
        self._changed.set()

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    async def event(self, name: str, *, count: int = 1) -> AmiMessage:
        def found() -> list[AmiMessage]:
            return [received for received in self.events if received.name == name]

        await self.until(lambda: len(found()) >= count)
        return found()[count - 1]


def link_to(peer: ScriptedAmi, engine: Engine, **options: object) -> AmiLink:
    quick = {
        "action_seconds": 2.0,
        "ping_seconds": 0.1,
        "stall_seconds": 0.3,
        "reconnect_seconds": 0.02,
        "secret": "right",
    }
    return AmiLink(
        host="127.0.0.1",
        port=peer.port,
        username="engine",
        on_event=engine.on_event,
        on_up=engine.on_up,
        on_down=engine.on_down,
        **{**quick, **options},
    )


@asynccontextmanager
async def running(link: AmiLink) -> AsyncIterator[asyncio.Task[None]]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(link.run(), name="ami")
        try:
            yield task
        finally:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await link.close()


@pytest.fixture
async def peer() -> AsyncIterator[ScriptedAmi]:
    async with ScriptedAmi() as peer:
        yield peer


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def link(peer: ScriptedAmi, engine: Engine) -> AsyncIterator[AmiLink]:
    """A link that is up."""
    link = link_to(peer, engine)
    async with running(link):
        await engine.until(lambda: "up" in engine.states)
        yield link


# Messages


def test_a_header_is_found_in_any_case_and_a_missing_one_is_empty():
    received = AmiMessage(name="Hangup", headers={"Cause-txt": "Busy"}, received=0.0)

    assert received.get("cause-TXT") == "Busy"
    assert received.get("Cause-txt") == "Busy"
    assert received.get("Channel") == ""
    assert received.get("Channel", "none") == "none"
    assert received.all("Channel") == []


async def test_a_header_that_comes_twice_keeps_both_values(link, peer, engine):
    await peer.send(
        message(("Event", "Status"), ("ChanVariable", "CALL_ID=7"), ("ChanVariable", "LINE=12345"))
    )

    received = await engine.event("Status")

    assert received.all("chanvariable") == ["CALL_ID=7", "LINE=12345"]
    assert list(received.headers) == ["Event", "ChanVariable"]


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 7, 8, 10, 11, 13, 14])
async def test_chinese_text_survives_a_read_that_ends_inside_a_character(link, peer, engine, cut):
    peer.answers["Ping"] = nothing
    raw = event("Newchannel", CallerIDName="市民张先生")
    middle = raw.index("市".encode()) + cut

    await peer.send(raw[:middle])
    await peer.expect(
        "Ping", count=len(peer.named("Ping")) + 1
    )  # the link ran, so it has read the first half
    await peer.send(raw[middle:])

    assert (await engine.event("Newchannel")).get("CallerIDName") == "市民张先生"
    assert engine.states == ["up"]


@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_a_message_is_whole_when_its_end_comes_in_two_reads(link, peer, engine, cut):
    peer.answers["Ping"] = nothing
    raw = event("Newchannel", Uniqueid="1")

    await peer.send(raw[:-cut])
    await peer.expect("Ping", count=len(peer.named("Ping")) + 1)
    await peer.send(raw[-cut:])

    assert (await engine.event("Newchannel")).get("Uniqueid") == "1"


async def test_an_agi_result_is_unquoted_to_chinese(link, peer, engine):
    """panoramisk unquotes `Result`; over latin-1 text that would have raised inside the protocol."""
    await peer.send(event("AsyncAGIExec", CommandID="c1", Result="200%20result%3D1%20%28%E5%BC%A0%29%0A"))

    assert (await engine.event("AsyncAGIExec")).get("Result") == "200 result=1 (张)"


async def test_bytes_that_are_no_utf8_do_not_end_the_connection(link, peer, engine):
    await peer.send(b"Event: Newchannel\r\nCallerIDName: \xd5\xc5\xff\r\n\r\n" + event("After"))

    await engine.event("After")

    assert engine.states == ["up"]
    assert "\ufffd" in (await engine.event("Newchannel")).get("CallerIDName")


async def test_chinese_text_is_sent_as_utf8(link, peer):
    await link.action("Setvar", {"Channel": "PJSIP/1001-1", "Variable": "NAME", "Value": "王女士"})

    assert (await peer.expect("Setvar")).get("Value") == "王女士"


# Events


async def test_events_arrive_in_order_and_through_one_callback(link, peer, engine):
    await peer.send(b"".join(event("Tick", Number=str(number)) for number in range(5_000)))
    await engine.event("Tick", count=5_000)

    numbers = [received.get("Number") for received in engine.events if received.name == "Tick"]

    assert numbers == [str(number) for number in range(5_000)]


async def test_a_bug_in_the_intake_costs_neither_the_connection_nor_the_events_behind_it(link, peer, engine):
    def fail_on_the_first(received: AmiMessage) -> None:
        if received.get("Number") == "1":
            raise KeyError(received.get("CallerIDNum"))

    engine.bug = fail_on_the_first
    with capture_logs() as logs:
        await peer.send(event("Tick", Number="1", CallerIDNum="13800138000") + event("Tick", Number="2"))
        await engine.event("Tick", count=2)

    assert engine.states == ["up"]
    assert [entry["error"] for entry in logs if entry["event"] == "ami callback failed"] == ["KeyError"]
    assert "fail_on_the_first" in str(logs)
    assert "13800138000" not in str(logs)


async def test_a_bug_in_on_up_or_on_down_does_not_end_the_link(peer, engine):
    def broken(*_: object) -> None:
        raise RuntimeError("bug")

    link = link_to(peer, engine)
    link._on_up = link._on_down = broken
    async with running(link):
        await engine.event("FullyBooted")
        await peer.drop()
        await engine.event("FullyBooted", count=2)

        assert (await link.action("Setvar")).get("Response") == "Success"


@pytest.mark.parametrize(
    ("name", "headers"),
    [("OriginateResponse", {"Response": "Failure", "Reason": "5"}), ("AsyncAGIExec", {"CommandID": "c-1"})],
)
async def test_an_event_with_our_action_id_is_an_event_and_not_a_reply(link, peer, engine, name, headers):
    def event_first(action: Received) -> bytes:
        late = event(name, ActionID=action.get("ActionID"), **headers)
        return late + success(action, Message="Originate successfully queued") + late

    peer.answers["Originate"] = event_first

    reply = await link.action("Originate", {"Channel": "PJSIP/1001", "CommandID": "c-1"})

    assert reply.name == ""
    assert reply.get("Message") == "Originate successfully queued"
    assert (await engine.event(name, count=2)).get("ActionID") == reply.get("ActionID")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n\r\n\r\n\r\n",
        b"no colon here\r\n\r\n",
        b"Event\r\n\r\n",
        b"Event: Twice\r\nEvent: Thrice\r\nActionID: 1\r\nActionID: 2\r\n\r\n",
        b"Response: Success\r\nActionID: nobody-asked\r\n\r\n",
        b"Response: Follows\r\n\r\n",
        b"\x00\xff\xfe: \x00\r\nEvent: \r\n\r\n",
    ],
)
async def test_garbage_is_passed_over(link, peer, engine, garbage):
    await peer.send(garbage + event("After"))

    await engine.event("After")

    assert engine.states == ["up"]


@settings(max_examples=40, deadline=None)
@given(noise=st.binary(max_size=200), cuts=st.lists(st.integers(1, 40), max_size=8))
def test_no_bytes_in_no_pieces_break_the_reading(noise, cuts):
    """Whatever stands between two messages, in whatever pieces it comes, the second message is read."""

    async def scenario() -> None:
        engine = Engine()
        async with ScriptedAmi() as peer, running(link_to(peer, engine, stall_seconds=2.0)):
            await engine.until(lambda: "up" in engine.states)
            data = noise + b"\r\n\r\n" + event("After", Name="张")
            for cut in cuts:
                await peer.send(data[:cut])
                data = data[cut:]
                await asyncio.sleep(0)
            await peer.send(data)
            assert (await engine.event("After")).get("Name") == "张"
            assert engine.states == ["up"]

    asyncio.run(scenario())


async def test_a_message_without_an_end_drops_the_connection_instead_of_filling_the_memory(
    link, peer, engine
):
    sent = 0
    await peer.send(b"Event: ")
    while "flooded" not in engine.states:
        assert sent < 10_000_000
        await peer.send(b"x" * 65_536)
        sent += 65_536

    await engine.until(lambda: engine.states == ["up", "flooded", "up"])


# Actions


async def test_actions_are_written_in_the_order_of_asking_before_submit_returns(link, peer):
    replies = [link.submit("Setvar", {"Variable": "N", "Value": str(number)}) for number in range(200)]
    await asyncio.gather(*replies)

    assert [action.get("Value") for action in peer.named("Setvar")] == [str(number) for number in range(200)]
    assert [reply.result().get("ActionID") for reply in replies] == [
        action.get("ActionID") for action in peer.named("Setvar")
    ]


async def test_an_error_is_a_refusal_with_asterisks_own_words(link, peer):
    peer.answers["Hangup"] = lambda action: error(action, "No such channel")

    with pytest.raises(AmiRefused, match="Asterisk refused Hangup: No such channel") as refusal:
        await link.action("Hangup", {"Channel": "gone"})

    assert (refusal.value.action, refusal.value.message) == ("Hangup", "No such channel")


async def test_an_unanswered_action_times_out_and_its_late_reply_harms_nobody(link, peer):
    peer.answers["Redirect"] = nothing

    with pytest.raises(AmiTimeout, match=r"did not answer Redirect within 0\.05 s") as late:
        await link.action("Redirect", {"Channel": "a"}, timeout=0.05)
    await peer.send(success(await peer.expect("Redirect")))

    assert (late.value.action, late.value.seconds) == ("Redirect", 0.05)
    assert (await link.action("Setvar")).get("Response") == "Success"
    assert len(peer.named("Redirect")) == 1


async def test_a_cancelled_wait_leaves_the_link_in_order(link, peer):
    peer.answers["Redirect"] = nothing
    waiting = asyncio.ensure_future(link.action("Redirect", {"Channel": "a"}))
    redirect = await peer.expect("Redirect")

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await peer.send(success(redirect))

    assert (await link.action("Setvar")).get("Response") == "Success"


@pytest.mark.parametrize("headers", [{}, {"Async": "false"}, {"async": "no"}])
async def test_originate_is_always_asynchronous(link, peer, headers):
    await link.action("Originate", {"Channel": "PJSIP/1001", **headers})

    assert (await peer.expect("Originate")).all("Async") == ["true"]


async def test_an_action_id_of_ones_own_is_kept_and_refused_while_it_is_in_use(link, peer):
    peer.answers["Originate"] = nothing
    first = link.submit("Originate", {"ActionID": "call-1-2"})
    await peer.expect("Originate")

    with pytest.raises(AmiInjection, match="in use"):
        await link.action("Setvar", {"ActionID": "call-1-2"})
    await peer.send(success(peer.named("Originate")[0]))

    assert (await first).get("ActionID") == "call-1-2"


@pytest.mark.parametrize(
    "bad", ["a\r\nAction: Originate", "a\nb", "a\rb", "a\0b", "\ud800", "x" * 1_020, "张" * 340]
)
@pytest.mark.parametrize("place", ["value", "variable list", "name", "action", "secret name"])
async def test_a_header_that_would_break_the_protocol_is_never_written(link, peer, bad, place):
    action, headers = {
        "value": ("Setvar", {"Value": bad}),
        "variable list": ("Originate", {"Variable": ["CALL_ID=1", f"NAME={bad}"]}),
        "name": ("Setvar", {bad: "1"}),
        "action": (bad, {}),
        "secret name": ("Setvar", {f"X: 1\r\n{bad}": "1"}),
    }[place]
    before = len(peer.received)

    with pytest.raises(AmiInjection) as injection:
        await link.action(action, headers)
    with pytest.raises(ValueError, match="was not sent"):
        await link.list_action(action, headers)
    await link.action("Marker")

    assert bad not in str(injection.value)
    assert {received.name for received in peer.received[before:]} <= {"Marker", "Ping"}


async def test_more_lines_than_asterisk_reads_are_refused(link):
    with pytest.raises(AmiInjection, match="more than the 128 lines"):
        await link.action("Originate", {"Variable": [f"N{number}=1" for number in range(127)]})


async def test_action_cannot_be_given_twice(link):
    with pytest.raises(AmiInjection, match="or is Action"):
        await link.action("Setvar", {"action": "Originate"})


async def test_a_caller_cannot_smuggle_a_second_variable_into_an_originate(link, peer):
    """Asterisk splits a Variable line at commas and unquotes it (manager.c, man_do_variable_value)."""
    await link.action("Originate", {"Variable": ["NAME=张,CHANNEL(hangup_source)=x", r'Q="a\b"', "N=1"]})

    assert (await peer.expect("Originate")).all("Variable") == [
        r"NAME=张\,CHANNEL(hangup_source)=x",
        r"Q=\"a\\b\"",
        "N=1",
    ]


async def test_a_list_is_gathered_until_its_end_among_other_events(link, peer, engine):
    def rooms(action: Received) -> bytes:
        ident = action.get("ActionID")
        return (
            success(action, EventList="start", Message="Channels will follow")
            + event("CoreShowChannel", ActionID=ident, Channel="PJSIP/1001-1")
            + event("Newchannel", Channel="PJSIP/trunk-2")
            + event("CoreShowChannel", ActionID=ident, Channel="PJSIP/1002-3")
            + event("CoreShowChannelsComplete", ActionID=ident, EventList="Complete", ListItems="2")
        )

    peer.answers["CoreShowChannels"] = rooms

    rows = await link.list_action("CoreShowChannels")
    await engine.event("CoreShowChannelsComplete")

    assert [row.get("Channel") for row in rows] == ["PJSIP/1001-1", "PJSIP/1002-3"]
    assert [told.name for told in engine.events[-5:]] == [
        "FullyBooted",
        "CoreShowChannel",
        "Newchannel",
        "CoreShowChannel",
        "CoreShowChannelsComplete",
    ]


async def test_a_list_can_end_with_an_event_named_by_the_caller(link, peer):
    peer.answers["DBGet"] = lambda action: (
        success(action, Message="Result will follow")
        + event("DBGetResponse", ActionID=action.get("ActionID"), Val="1")
        + event("DBGetDone", ActionID=action.get("ActionID"))
    )

    rows = await link.list_action("DBGet", {"Family": "a", "Key": "b"}, complete_event="DBGetDone")

    assert [row.get("Val") for row in rows] == ["1"]


async def test_an_empty_list_told_as_an_error_is_a_refusal(link, peer):
    peer.answers["ConfbridgeListRooms"] = lambda action: error(action, "No active conferences.")

    with pytest.raises(AmiRefused, match="No active conferences"):
        await link.list_action("ConfbridgeListRooms")


async def test_a_list_that_never_ends_times_out(link, peer):
    peer.answers["Status"] = lambda action: success(action, EventList="start")

    with pytest.raises(AmiTimeout, match="Status"):
        await link.list_action("Status", timeout=0.05)


async def test_actions_fail_at_once_when_the_peer_reads_nothing(peer, engine):
    link = link_to(peer, engine, ping_seconds=4.0, stall_seconds=8.0)
    async with running(link):
        await engine.until(lambda: "up" in engine.states)
        await peer.stop_reading()
        waiting = [link.submit("Setvar", {"Value": "x" * 900}) for _ in range(20_000)]

        outcomes = [future.exception() for future in waiting if future.done()]

        assert outcomes
        assert all(isinstance(outcome, AmiUnavailable) for outcome in outcomes)
        assert "does not read" in str(outcomes[0])
    settled = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, AmiUnavailable) for outcome in settled)


# The connection


async def test_on_up_waits_for_fully_booted(engine):
    async with ScriptedAmi(booted=False) as peer, running(link_to(peer, engine)) as _:
        await peer.expect("Ping", count=2)
        await peer.send(event("Tick"))
        await engine.event("Tick")
        assert engine.states == []

        await peer.boot()
        await peer.boot()
        await engine.event("FullyBooted", count=2)
        assert engine.states == ["up"]


async def test_before_it_is_up_an_action_is_unavailable_and_not_kept(engine):
    async with ScriptedAmi(booted=False) as peer:
        link = link_to(peer, engine)
        with pytest.raises(AmiUnavailable, match="was not sent"):
            await link.action("Originate")
        async with running(link):
            await peer.expect("Ping")
            assert not link.connected
            with pytest.raises(AmiUnavailable):
                await link.action("Originate")
            with pytest.raises(AmiUnavailable):
                await link.list_action("CoreShowChannels")

            await peer.boot()
            await engine.until(lambda: engine.states == ["up"])
            assert link.connected
            await link.action("Marker")

        assert peer.named("Originate") == []


async def test_a_wrong_secret_at_the_start_is_an_error_that_says_what_to_do(peer, engine):
    link = link_to(peer, engine, secret="wrong")

    with pytest.raises(
        AmiLoginFailed, match=r"refused the AMI login of user 'engine'.*Authentication failed.*Check"
    ) as failed:
        await link.run()

    assert "wrong" not in str(failed.value)
    assert engine.told == []
    assert not link.connected


async def test_a_login_refused_later_is_told_and_tried_again(link, peer, engine):
    peer.secret = "changed"
    await peer.drop()
    await peer.expect("Login", count=4)
    peer.secret = "right"
    await engine.until(lambda: engine.states[-1] == "up" and len(engine.states) > 2)

    assert engine.states == ["up", "dropped", "login failed", "up"]


@pytest.mark.parametrize("secret", ["a\r\nEvents: off", "a\nb", "\0"])
async def test_a_secret_that_would_break_the_login_is_refused_before_connecting(peer, engine, secret):
    with pytest.raises(AmiInjection, match="Secret"):
        link_to(peer, engine, secret=secret)


async def test_a_dropped_originate_is_unavailable_and_never_sent_again(link, peer, engine):
    peer.answers["Originate"] = peer.answers["CoreShowChannels"] = nothing
    waiting = [link.submit("Originate", {"Channel": f"PJSIP/100{number}"}) for number in range(3)]
    gathering = asyncio.ensure_future(link.list_action("CoreShowChannels"))
    await peer.expect("Originate", count=3)
    await peer.expect("CoreShowChannels")

    await peer.drop()
    outcomes = await asyncio.gather(*waiting, gathering, return_exceptions=True)
    await engine.until(lambda: engine.states == ["up", "dropped", "up"])
    await link.action("Marker")

    assert all(isinstance(outcome, AmiUnavailable) for outcome in outcomes)
    assert [action.name for action in peer.received if action.connection == 2 and action.name != "Ping"] == [
        "Login",
        "Marker",
    ]


async def test_events_before_a_drop_are_handed_over_and_the_drop_after_them(link, peer, engine):
    await peer.send(event("Hangup", Uniqueid="1"))
    await peer.drop()
    await engine.until(lambda: engine.states[-1:] == ["up"] and len(engine.states) == 3)

    names = [told if isinstance(told, str) else told.name for told in engine.told]

    assert names == ["up", "FullyBooted", "Hangup", "dropped", "up", "FullyBooted"]


async def test_half_a_message_of_a_lost_connection_does_not_spoil_the_next(link, peer, engine):
    await peer.send(b"Event: Hangup\r\nUniqueid: 1")
    await peer.drop()
    await engine.until(lambda: len(engine.states) == 3)

    assert [received.name for received in engine.events] == ["FullyBooted", "FullyBooted"]


async def test_an_absent_asterisk_is_told_once_and_found_when_it_comes(peer, engine):
    await peer.stop()
    async with running(link_to(peer, engine)):
        await engine.until(lambda: engine.states == ["unreachable"])
        await peer.listen()
        await engine.until(lambda: engine.states == ["unreachable", "up"])


@pytest.mark.parametrize("before", ["greeting", "pong"])
async def test_a_peer_that_falls_silent_is_dropped_within_the_stall_time(peer, engine, before):
    peer.mute = before == "greeting"
    async with running(link_to(peer, engine)):
        if before == "pong":
            await engine.until(lambda: engine.states == ["up"])
            peer.mute = True
        start = time.monotonic()
        await engine.until(lambda: "stalled" in engine.states)

        assert 0.15 < time.monotonic() - start < 1.0
        peer.mute = False
        await engine.until(lambda: engine.states[-1] == "up")


async def test_waiting_actions_fail_when_the_peer_stalls(link, peer, engine):
    peer.mute = True

    with pytest.raises(AmiUnavailable, match="stalled"):
        await link.action("Originate", timeout=DEADLINE_SECONDS)


async def test_events_alone_do_not_hide_that_pings_go_unanswered(peer, engine):
    peer.answers["Ping"] = nothing
    async with running(link_to(peer, engine, action_seconds=0.6)):
        await engine.until(lambda: engine.states == ["up"])
        start = time.monotonic()
        while engine.states == ["up"]:
            assert time.monotonic() - start < DEADLINE_SECONDS
            await peer.send(event("Tick"))
            await asyncio.sleep(0.02)

        assert engine.states == ["up", "stalled"]
        assert time.monotonic() - start > 0.5


async def test_an_asterisk_that_does_not_finish_booting_is_logged_once_and_waited_for(engine):
    with capture_logs() as logs:
        async with ScriptedAmi(booted=False) as peer, running(link_to(peer, engine, action_seconds=0.2)):
            await peer.expect("Ping", count=5)
            await peer.boot()
            await engine.until(lambda: engine.states == ["up"])

    assert [entry["event"] for entry in logs] == [
        "asterisk accepted the login but is not fully booted",
        "ami link up",
    ]


async def test_a_peer_that_talks_is_not_stalled_while_its_pong_is_late(peer, engine):
    peer.answers["Ping"] = nothing
    async with running(link_to(peer, engine)):
        await engine.until(lambda: engine.states == ["up"])
        start = time.monotonic()
        while time.monotonic() - start < 0.8:
            await peer.send(event("Tick"))
            await asyncio.sleep(0.05)

        assert engine.states == ["up"]


async def test_a_pause_of_our_own_process_is_not_the_peers_silence(link, peer, engine):
    await peer.expect("Ping", count=2)
    await link.action("Marker")  # every pong so far has been read: nothing lies in the socket
    time.sleep(0.6)  # twice the stall time, peer and link alike
    pings = len(peer.named("Ping"))
    await peer.expect("Ping", count=pings + 2)

    assert engine.states == ["up"]


# The end


async def test_close_ends_run_and_fails_who_waits_without_an_alarm(link, peer, engine):
    peer.answers["Originate"] = nothing
    waiting = link.submit("Originate")
    await peer.expect("Originate")

    await link.close()

    assert isinstance(waiting.exception(), AmiUnavailable)
    assert not link.connected
    assert engine.states == ["up"]
    await peer.drop()
    assert peer.connections == 1


async def test_close_while_down_does_not_connect_again(peer, engine):
    link = link_to(peer, engine, reconnect_seconds=0.5)
    async with running(link) as run:
        await engine.until(lambda: engine.states == ["up"])
        await peer.drop()
        await engine.until(lambda: engine.states == ["up", "dropped"])

        await link.close()
        await asyncio.wait_for(run, 0.2)

    await asyncio.sleep(0.6)  # past the moment of the next attempt: a proof of absence needs the time to pass
    assert peer.connections == 1


async def test_close_before_run_makes_run_return(peer, engine):
    link = link_to(peer, engine)
    await link.close()
    await asyncio.wait_for(link.run(), DEADLINE_SECONDS)

    assert peer.connections == 0


async def test_close_while_connecting_does_not_log_in(peer, engine):
    link = link_to(peer, engine)
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(link.run(), name="ami")
        await asyncio.sleep(0)  # run() has begun to connect
        await link.close()

    assert peer.named("Login") == []
    assert engine.told == []


async def test_cancelling_run_closes_the_connection_and_fails_who_waits(peer, engine):
    link = link_to(peer, engine)
    peer.answers["Originate"] = nothing
    run = asyncio.ensure_future(link.run())
    await engine.until(lambda: engine.states == ["up"])
    waiting = link.submit("Originate")
    await peer.expect("Originate")

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert isinstance(waiting.exception(), AmiUnavailable)
    await peer.until(lambda: not peer.connected)
    assert engine.states == ["up"]


async def test_neither_secret_nor_caller_stands_in_a_log(peer, engine, caplog):
    caplog.set_level("DEBUG", logger="panoramisk")
    with capture_logs() as logs:
        async with running(link_to(peer, engine)) as _:
            await engine.until(lambda: "up" in engine.states)
            await peer.send(event("Newchannel", CallerIDNum="13800138000"))
            await engine.event("Newchannel")

    assert [entry["event"] for entry in logs] == ["ami link up"]
    assert "13800138000" not in caplog.text + str(logs)
    assert "right" not in caplog.text + str(logs)


async def test_an_action_that_cannot_be_written_is_not_logged(link, peer, caplog):
    link._session.transport.write_eof()

    with pytest.raises(AmiError):
        await link.action("Setvar", {"Value": "13800138000"}, timeout=0.1)

    assert "13800138000" not in caplog.text


def test_a_stall_time_shorter_than_the_ping_is_refused():
    engine = Engine()
    with pytest.raises(ValueError, match="longer than ping_seconds"):
        link_to(ScriptedAmi(), engine, ping_seconds=2.0, stall_seconds=1.0)


def test_every_failure_is_an_ami_error():
    for failure in (AmiUnavailable, AmiTimeout, AmiRefused, AmiInjection, AmiLoginFailed):
        assert issubclass(failure, AmiError)
