"""A peer that speaks AMI as Asterisk does, for more people than this machine could give telephones to.

`python -m tests.bench.peer ASTERISK_CONF PORT SECRET PLAN` takes Asterisk's place: it puts its own number into the pid
file, so that `callcenter run` finds "its Asterisk" alive, connects to it, and stops it at its own end. The events, their
order and their headers are those that Asterisk 22 sends for the same call without any event filter: three times
what our own manager.conf lets through. Sound is not played.

It plays callers and agents by the plan, notes for every agent how long after he became free his phone was rung, and
prints one line of JSON when the time is over. How late its own timers were stands beside it.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

BRIDGES = "f8d25be6-915a-461f-92e9-{:012d}"
NOBODY = "<unknown>"
QOS = ("RTPAUDIOQOS", "RTPAUDIOQOSJITTER", "RTPAUDIOQOSLOSS", "RTPAUDIOQOSRTT", "RTPAUDIOQOSMES")
RTCP_SECONDS = 5.0
DISSOLVES_SECONDS = 0.002
"""A bridge, after one of the two has hung up."""
PROMPT_SECONDS = 3.0
LOOK_SECONDS = 0.02
ALL_BUSY = 0.98
"""Somebody has always just hung up."""
SPARE = 1.1
"""So many more wait than have to, for between two looks some are served."""


@dataclass(frozen=True)
class Plan:
    agents: int
    first_phone: int
    line: str
    waiting: int
    """So many callers at least wait while it is measured."""
    calls_a_second: float
    ring_seconds: tuple[float, float] = (1.0, 3.0)
    measured_seconds: float = 60.0
    seed: int = 1

    @property
    def talk_seconds(self) -> tuple[float, float]:
        """Around what keeps all agents busy at this rate; at most 1.6 of it, at least 0.4."""
        return 0.4 * self._mean_talk_seconds, 1.6 * self._mean_talk_seconds

    @property
    def first_talk_seconds(self) -> tuple[float, float]:
        """Of talks that would already have been going on: else all would end together."""
        return 0.05 * self._mean_talk_seconds, 1.1 * self._mean_talk_seconds

    @property
    def _mean_talk_seconds(self) -> float:
        return self.agents / self.calls_a_second - sum(self.ring_seconds) / 2


@dataclass
class Result:
    """What the peer has seen while it measured; seconds."""

    free_to_ring: list[float] = field(default_factory=list)
    lag_p99: float = 0.0
    lag_max: float = 0.0
    fewest_waiting: int = 0
    calls_a_second: float = 0.0
    events_a_call: float = 0.0
    own_cpu: float = 0.0
    """Of one core."""


@dataclass
class Channel:
    """A leg as Asterisk has it."""

    name: str
    unique: str
    linked: str
    number: str
    title: str
    context: str
    exten: str
    up: bool = False
    ringing: bool = False
    bridge: str = ""
    peer: "Channel | None" = None
    caller: bool = False
    gone: bool = False

    def headers(self, prefix: str = "") -> str:
        state, word = (
            (6, "Up")
            if self.up
            else (5, "Ringing")
            if self.ringing
            else (4, "Ring")
            if self.caller
            else (0, "Down")
        )
        lines = (
            ("Channel", self.name),
            ("ChannelState", state),
            ("ChannelStateDesc", word),
            ("CallerIDNum", self.number),
            ("CallerIDName", self.title),
            ("ConnectedLineNum", self.peer.number if self.peer else NOBODY),
            ("ConnectedLineName", self.peer.title if self.peer else NOBODY),
            ("Language", "zh"),
            ("AccountCode", ""),
            ("Context", self.context),
            ("Exten", self.exten),
            ("Priority", 1),
            ("Uniqueid", self.unique),
            ("Linkedid", self.linked),
        )
        return "".join(f"{prefix}{name}: {value}\r\n" for name, value in lines)


Action = dict[str, str]


class Peer(asyncio.Protocol):
    """The manager interface and everything behind it; one connection at a time."""

    def __init__(self, plan: Plan, secret: str, tell: Callable[[Result], None]) -> None:
        self.plan, self.secret, self._tell_result = plan, secret, tell
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(plan.seed)
        self.transport: asyncio.WriteTransport | None = None
        self._unread = b""
        self._read_at = 0.0
        self._channels: dict[str, Channel] = {}
        self._members: set[str] = set()
        self._variables: dict[tuple[str, str], str] = {}
        self._numbers = 0
        self._bridges = 0
        self._free_since: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._desks = 0
        """Agents who are rung or talk."""
        self._events = 0
        self._rings = 0
        self._lags: deque[float] = deque(maxlen=1_000_000)
        self._result: Result | None = None
        """While it is measured."""
        self._started = False

    # --- the wire -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        transport.write(b"Asterisk Call Manager/11.0.0\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self._read_at = time.monotonic()
        *whole, self._unread = (self._unread + data).split(b"\r\n\r\n")
        for block in whole:
            self._act(dict(line.split(": ", 1) for line in block.decode().split("\r\n") if ": " in line))

    def _write(self, text: str) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(text.encode())

    def _event(self, name: str, body: str = "", *, kind: str = "call") -> None:
        self._events += 1
        self._write(f"Event: {name}\r\nPrivilege: {kind},all\r\nSystemName: ast1\r\n{body}\r\n")

    def _of(self, name: str, channel: Channel, body: str = "", *, kind: str = "call") -> None:
        self._event(name, channel.headers() + body, kind=kind)

    def _user_event(self, channel: Channel, name: str, **headers: str) -> None:
        body = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        self._of("UserEvent", channel, f"UserEvent: {name}\r\n{body}", kind="user")

    def _steps(self, channel: Channel, *applications: str) -> None:
        """What the dialplan does tells of itself too."""
        for application in applications:
            body = f"Extension: {channel.exten}\r\nApplication: {application}\r\nAppData: \r\n"
            self._of("Newexten", channel, body, kind="dialplan")

    def _set(self, channel: Channel, *names: str, value: str = "") -> None:
        for name in names:
            self._of("VarSet", channel, f"Variable: {name}\r\nValue: {value}\r\n", kind="dialplan")

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        """As a timer, and note how late it came: what this process itself adds to a measurement."""
        due = self.loop.time() + seconds

        def now() -> None:
            self._lags.append(self.loop.time() - due)
            act()

        self.loop.call_at(due, now)

    # --- actions --------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        name = action.get("Action", "")
        handler: Callable[[Action], str | None] | None = getattr(self, f"_do_{name.lower()}", None)
        if handler is None:
            self._answer(action, "Error", "Invalid/unknown command")
            return
        refusal = handler(action)
        if refusal is not None:
            self._answer(action, "Error", refusal)

    def _answer(self, action: Action, response: str, message: str, body: str = "") -> None:
        self._write(
            f"Response: {response}\r\nActionID: {action.get('ActionID', '')}\r\nMessage: {message}\r\n{body}\r\n"
        )

    def _list(self, action: Action, complete: str, rows: list[tuple[str, str]]) -> None:
        tag = f"ActionID: {action.get('ActionID', '')}\r\n"
        self._answer(action, "Success", "A list follows", "EventList: start\r\n")
        for name, body in rows:
            self._write(f"Event: {name}\r\n{tag}{body}\r\n")
        self._write(f"Event: {complete}\r\n{tag}EventList: Complete\r\nListItems: {len(rows)}\r\n\r\n")

    def _do_login(self, action: Action) -> str | None:
        if action.get("Secret") != self.secret:
            return "Authentication failed"
        self._answer(action, "Success", "Authentication accepted")
        self._event("FullyBooted", "Uptime: 1\r\nLastReload: 1\r\nStatus: Fully Booted\r\n", kind="system")
        return None

    def _do_ping(self, action: Action) -> None:
        self._answer(action, "Success", "", f"Ping: Pong\r\nTimestamp: {time.time():.6f}\r\n")

    def _do_setvar(self, action: Action) -> str | None:
        names = action["Variable"].removeprefix("ARRAY(").removesuffix(")").split(",")
        values = action["Value"].split(",") if len(names) > 1 else [action["Value"]]
        channel = self._channels.get(action.get("Channel", ""))
        if "Channel" in action and channel is None:
            return "No such channel"
        for name, value in zip(names, values, strict=True):
            if channel is None:
                body = f"Channel: none\r\nUniqueid: none\r\nVariable: {name}\r\nValue: {value}\r\n"
                self._event("VarSet", body, kind="dialplan")
            else:
                self._variables[channel.unique, name] = value
                self._set(channel, name, value=value)
        self._answer(action, "Success", "Variable Set")
        return None

    def _do_getvar(self, action: Action) -> str | None:
        channel = self._channels.get(action["Channel"])
        if channel is None:
            return "No such channel"
        known = {"PARTY": "caller" if channel.caller else "agent", "DIALLED": self.plan.line}
        value = known.get(action["Variable"], "")
        self._answer(action, "Success", "", f"Variable: {action['Variable']}\r\nValue: {value}\r\n")
        return None

    def _do_coreshowchannels(self, action: Action) -> None:
        rows = [
            (
                "CoreShowChannel",
                f"{channel.headers()}Application: WaitForCondition\r\nDuration: 00:00:01\r\nBridgeId: {channel.bridge}\r\n",
            )
            for channel in self._channels.values()
        ]
        self._list(action, "CoreShowChannelsComplete", rows)

    def _do_pjsipshowcontacts(self, action: Action) -> None:
        phones = range(self.plan.first_phone, self.plan.first_phone + self.plan.agents)
        rows = [
            (
                "ContactList",
                (
                    f"ObjectType: contact\r\nObjectName: {phone};@{phone:032x}\r\nViaAddr: 127.0.0.1\r\n"
                    f"Endpoint: {phone}\r\nUri: sip:{phone}@127.0.0.1:{phone}\r\nQualifyFrequency: 30\r\n"
                    "Status: Reachable\r\nRoundtripUsec: 1000\r\n"
                ),
            )
            for phone in phones
        ]
        self._list(action, "ContactListComplete", rows)

    def _do_queuestatus(self, action: Action) -> None:
        rows = [("QueueParams", "Queue: fallback\r\nMax: 0\r\nStrategy: leastrecent\r\nCalls: 0\r\n")]
        rows += [("QueueMember", _member(interface)) for interface in sorted(self._members)]
        self._list(action, "QueueStatusComplete", rows)
        if not self._started:
            self._started = True
            self._later(2.0, self._open)

    def _do_queueadd(self, action: Action) -> str | None:
        interface = action["Interface"]
        if interface in self._members:
            return "Unable to add interface: Already there"
        self._members.add(interface)
        self._answer(action, "Success", "Added interface to queue")
        self._event("QueueMemberAdded", _member(interface), kind="agent")
        return None

    def _do_queueremove(self, action: Action) -> str | None:
        interface = action["Interface"]
        if interface not in self._members:
            return "Unable to remove interface: Not there"
        self._members.discard(interface)
        self._answer(action, "Success", "Removed interface from queue")
        self._event("QueueMemberRemoved", _member(interface), kind="agent")
        return None

    def _do_originate(self, action: Action) -> None:
        phone = action["Channel"].removeprefix("PJSIP/")
        self._rung(phone)
        unique = action["ChannelId"]
        number, title = action["CallerID"].rpartition(" ")[2].strip("<>"), action["CallerID"].split('"')[1]
        channel = self._appear(phone, unique, number, title, "from-phone", "s")
        self._desks += 1
        self._answer(action, "Success", "Originate successfully queued")
        self._of("Newchannel", channel)
        self._set(channel, "PARTY", "SIPDOMAIN")
        self._of("NewCallerid", channel, "CID-CallingPres: 0 (Presentation Allowed, Not Screened)\r\n")
        self._of("NewConnectedLine", channel)
        self._event("DialBegin", f"{channel.headers('Dest')}DialString: {phone}\r\n")
        self._later(0.003, partial(self._ring, channel))
        self._later(self.random.uniform(*self.plan.ring_seconds), partial(self._picked_up, channel))

    def _do_mixmonitor(self, action: Action) -> str | None:
        channel = self._channels.get(action["Channel"])
        if channel is None:
            return "No such channel"
        self._answer(action, "Success", "", "MixMonitorID: 0x7f0000000000\r\n")
        self._of("MixMonitorStart", channel)
        return None

    def _do_bridge(self, action: Action) -> str | None:
        by_name = {channel.name: channel for channel in self._channels.values()}
        one, other = by_name.get(action["Channel1"]), by_name.get(action["Channel2"])
        if one is None or other is None:
            return "Channel1 does not exist" if one is None else "Channel2 does not exist"
        self._bridges += 1
        bridge = BRIDGES.format(self._bridges)
        self._answer(action, "Success", "Channels have been bridged")
        self._event("BridgeCreate", _bridge(bridge, 0))
        for count, (channel, peer) in enumerate(((one, other), (other, one)), start=1):
            channel.bridge, channel.peer = bridge, peer
            self._event("BridgeEnter", _bridge(bridge, count) + channel.headers())
        for channel in (one, other):
            self._set(channel, "BRIDGEPEER", "BRIDGEPVTCALLID", value=bridge)
            self._of("NewConnectedLine", channel)
        caller, desk = (one, other) if one.caller else (other, one)
        self._waiting.discard(caller.unique)
        measured = self._result is not None
        talk = self.plan.talk_seconds if measured else self.plan.first_talk_seconds
        self._later(self.random.uniform(*talk), partial(self._said_enough, caller, desk, bridge))
        self._later(RTCP_SECONDS, partial(self._report, caller, desk, bridge))
        return None

    def _do_redirect(self, action: Action) -> str | None:
        channel = self._channels.get(action["Channel"])
        if channel is None:
            return "Channel does not exist: " + action["Channel"]
        self._answer(action, "Success", "Redirect successful")
        channel.context, channel.exten = action["Context"], action["Exten"]
        self._steps(channel, "StopMusicOnHold", "Set", "UserEvent")
        self._user_event(channel, "Settled")
        if channel.exten == "play":
            play_id = self._variables.get((channel.unique, "PLAY_ID"), "")
            self._steps(channel, "Playback")
            self._later(PROMPT_SECONDS, partial(self._played, channel, play_id))
        return None

    def _do_hangup(self, action: Action) -> str | None:
        channel = self._channels.get(action["Channel"])
        if channel is None:
            return "No such channel"
        self._answer(action, "Success", "Channel Hungup")
        self._of("SoftHangupRequest", channel, "Cause: 16\r\n")
        self._end(channel)
        return None

    # --- what happens ---------------------------------------------------------------------------------------

    def _appear(
        self,
        peer: str,
        unique: str,
        number: str,
        title: str,
        context: str,
        exten: str,
        *,
        caller: bool = False,
    ) -> Channel:
        self._numbers += 1
        linked = unique if caller else unique.rpartition("-")[0]
        name = f"PJSIP/{peer}-{self._numbers:08x}"
        channel = Channel(name, unique, linked, number, title, context, exten, caller=caller)
        self._channels[unique] = channel
        return channel

    def _somebody_calls(self) -> None:
        unique = f"ast1-{int(time.time())}.{self._numbers}"
        number = f"138{self._numbers % 10**8:08}"
        caller = self._appear("trunk", unique, number, NOBODY, "from-trunk", self.plan.line, caller=True)
        self._waiting.add(unique)
        self._of("Newchannel", caller)
        self._set(caller, "SIPDOMAIN", value="127.0.0.1")
        self._steps(caller, "ExecIf", "Set")
        self._set(caller, "PARTY", value="caller")
        self._steps(caller, "Set")
        self._set(caller, "DIALLED", value=self.plan.line)
        self._steps(caller, "GotoIf", "Goto")
        caller.context, caller.exten = "engine", "arrived"
        self._steps(caller, "UserEvent")
        self._user_event(caller, "CallComing", Dialled=self.plan.line)
        caller.up = True
        self._steps(caller, "Answer")
        self._of("Newstate", caller)
        self._steps(caller, "StartMusicOnHold")
        self._of("MusicOnHoldStart", caller, "Class: default\r\n")
        self._steps(caller, "Set", "UserEvent")
        self._user_event(caller, "CallArrived", Dialled=self.plan.line)
        self._steps(caller, "WaitForCondition")

    def _ring(self, desk: Channel) -> None:
        if desk.gone:
            return
        desk.ringing = True
        self._of("Newstate", desk)
        self._event("DialState", f"{desk.headers('Dest')}DialStatus: RINGING\r\n")

    def _picked_up(self, desk: Channel) -> None:
        if desk.gone:
            return
        desk.up = True
        self._of("Newstate", desk)
        self._event("DialEnd", f"{desk.headers('Dest')}DialStatus: ANSWER\r\n")
        self._event(
            "OriginateResponse",
            f"ActionID: {desk.unique}\r\nResponse: Success\r\nChannel: {desk.name}\r\nContext: engine\r\nExten: answered\r\n"
            f"Reason: 4\r\nUniqueid: {desk.unique}\r\nCallerIDNum: {desk.number}\r\nCallerIDName: {desk.title}\r\n",
        )
        desk.context, desk.exten = "engine", "answered"
        self._steps(desk, "GotoIf", "Answer", "StopMusicOnHold", "UserEvent")
        self._user_event(desk, "LegAnswered")
        self._steps(desk, "Wait")

    def _played(self, channel: Channel, play_id: str) -> None:
        if not channel.gone and channel.exten == "play":
            self._user_event(channel, "PromptEnded", PlayId=play_id, Status="SUCCESS")
            self._steps(channel, "ExecIf", "WaitForCondition")

    def _report(self, caller: Channel, desk: Channel, bridge: str) -> None:
        """RTCP, as long as they talk."""
        if caller.bridge == desk.bridge == bridge:
            for channel in (caller, desk):
                self._of(
                    "RTCPSent",
                    channel,
                    "PT: 200(SR)\r\nReportCount: 1\r\nSentPackets: 250\r\n",
                    kind="reporting",
                )
            self._later(RTCP_SECONDS, partial(self._report, caller, desk, bridge))

    def _said_enough(self, caller: Channel, desk: Channel, bridge: str) -> None:
        """One of them hangs up, mostly the agent; the bridge dissolves a moment later."""
        if caller.bridge != bridge or desk.bridge != bridge:
            return
        first, other = (desk, caller) if self.random.random() < 0.6 else (caller, desk)
        for name in QOS:
            self._set(first, name)
            self._set(other, f"{name}BRIDGED")
        self._of("HangupRequest", first)
        if first is desk:
            self._is_free(desk)
        self._later(DISSOLVES_SECONDS, partial(self._dissolve, first, other, bridge))

    def _dissolve(self, first: Channel, other: Channel, bridge: str) -> None:
        if first.gone or other.gone:
            return
        for count, channel in ((1, first), (0, other)):
            self._set(channel, "BRIDGEPEER", "BRIDGEPVTCALLID")
            channel.bridge, channel.peer = "", None
            self._event("BridgeLeave", _bridge(bridge, count) + channel.headers())
        self._steps(other, "StopMusicOnHold", "GotoIf", "UserEvent")
        self._user_event(other, "AfterTalk")
        self._steps(other, "Wait")
        self._end(first)
        self._event("BridgeDestroy", _bridge(bridge, 0))

    def _end(self, channel: Channel) -> None:
        if channel.gone:
            return
        channel.gone = True
        del self._channels[channel.unique]
        self._waiting.discard(channel.unique)
        for name in ("PROMPTS", "PLAY_ID", "AFTER_PROMPT"):
            self._variables.pop((channel.unique, name), None)
        self._set(channel, *QOS)
        self._of("Hangup", channel, "Cause: 16\r\nCause-txt: Normal Clearing\r\n")
        if not channel.caller:
            self._desks -= 1
            self._is_free(channel)

    # --- the measurement ------------------------------------------------------------------------------------

    def _is_free(self, desk: Channel) -> None:
        phone = desk.name.split("/")[1].split("-")[0]
        self._free_since.setdefault(phone, time.monotonic())

    def _rung(self, phone: str) -> None:
        free_since = self._free_since.pop(phone, None)
        self._rings += 1
        if self._result is not None and free_since is not None:
            self._result.free_to_ring.append(self._read_at - free_since)

    def _open(self) -> None:
        """Fill the house three times as fast as it will be worked off, then measure."""
        if self._desks < self.plan.agents * ALL_BUSY or len(self._waiting) < self.plan.waiting * SPARE:
            if len(self._waiting) < self.plan.waiting * 1.5:
                self._somebody_calls()
            self._later(1 / (3 * self.plan.calls_a_second), self._open)
            return
        print("measuring", flush=True)
        self._result = Result(fewest_waiting=len(self._waiting))
        self._lags.clear()
        began, events, rings, cpu = time.monotonic(), self._events, self._rings, time.process_time()
        self._later(0, self._arrivals)
        self._later(0, self._watch)

        def close() -> None:
            result, self._result = self._result, None
            assert result is not None
            seconds, rung = time.monotonic() - began, self._rings - rings
            lag = np.array(self._lags)
            result.lag_p99, result.lag_max = float(np.percentile(lag, 99)), float(lag.max())
            result.calls_a_second = rung / seconds
            result.events_a_call = (self._events - events) / max(1, rung)
            result.own_cpu = (time.process_time() - cpu) / seconds
            self._tell_result(result)

        self._later(self.plan.measured_seconds, close)

    def _arrivals(self) -> None:
        if self._result is not None:
            self._somebody_calls()
            self._later(self.random.expovariate(self.plan.calls_a_second), self._arrivals)

    def _watch(self) -> None:
        """Whoever would be one too few to wait calls at once."""
        if self._result is not None:
            self._result.fewest_waiting = min(self._result.fewest_waiting, len(self._waiting))
            for _ in range(round(self.plan.waiting * SPARE) - len(self._waiting)):
                self._somebody_calls()
            self._later(LOOK_SECONDS, self._watch)


def _member(interface: str) -> str:
    return (
        f"Queue: fallback\r\nMemberName: {interface}\r\nInterface: {interface}\r\nLocation: {interface}\r\n"
        "Membership: dynamic\r\nPenalty: 0\r\nCallsTaken: 0\r\nLastCall: 0\r\nInCall: 0\r\nStatus: 1\r\nPaused: 0\r\n"
    )


def _bridge(unique: str, channels: int) -> str:
    return (
        f"BridgeUniqueid: {unique}\r\nBridgeType: basic\r\nBridgeTechnology: simple_bridge\r\nBridgeCreator: {NOBODY}\r\n"
        f"BridgeName: {NOBODY}\r\nBridgeNumChannels: {channels}\r\nBridgeVideoSourceMode: none\r\n"
    )


async def serve(configuration: Path, port: int, secret: str, plan: Plan) -> None:
    """Until SIGTERM, as Asterisk."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def tell(result: Result) -> None:
        print(json.dumps(asdict(result)), flush=True)

    async with await loop.create_server(lambda: Peer(plan, secret, tell), "127.0.0.1", port):
        pid_file = configuration.parent.parent / "run" / "asterisk.pid"
        pid_file.write_text(f"{os.getpid()}", encoding="ascii")
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    configuration, port, secret, plan = sys.argv[1:]
    asyncio.run(serve(Path(configuration), int(port), secret, Plan(**json.loads(plan))))
