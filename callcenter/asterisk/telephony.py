"""The telephony as the engine sees it: effects in, events out, a heartbeat, and a resync after every connection."""

import asyncio
import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import assert_never

import structlog

from callcenter.asterisk.ami import AmiError, AmiLink, AmiMessage, AmiRefused, AmiTimeout, AmiUnavailable
from callcenter.asterisk.audit import Difference, Stray, Untold, differences, of_callers
from callcenter.asterisk.config import browser_account, write_ban_list
from callcenter.asterisk.devices import Devices, browser_of, number_of
from callcenter.asterisk.translate import (
    Action,
    CallEffect,
    RawPath,
    Switchboard,
    arrival_of,
    attempt_of,
    caller_of,
    event_of,
    is_ours,
    leg_of,
)
from callcenter.asterisk.written import Written, keep_small, read_written
from callcenter.domain.agents import Agent, AgentState, UserRole
from callcenter.domain.calls import Call, CallId, Leg, LegId, Outcome, call_id_of
from callcenter.domain.guard import Attempt, Network
from callcenter.domain.messages import (
    Alarm,
    ArrangeFailed,
    CallArrived,
    CallAstray,
    ConversationOver,
    Event,
    FellBack,
    LegAnswered,
    LegDead,
    LegEnded,
    LegHungUp,
    LegSeen,
    PromptsEnded,
    Record,
    TelephonyLost,
    TelephonyResynced,
)

log = structlog.get_logger(__name__)

_CHANNEL_GONE = re.compile(r"does not exist|not up|No such channel")
"""What Asterisk says of a channel that has been or is being hung up; "Redirect failed" of one it could not move."""

_BEAT_SECONDS = 1.0
_REFUSED_EVERY_SECONDS = 60.0
_LET_GO_SECONDS = 0.5  # a hang-up reaches the dialplan's AfterTalk in 2 ms (docs/adr/0002)
_MAX_HELD_BACK = 100_000  # events during one resync; more than a minute of the busiest hour
_AUDIT_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 0.5  # an event takes milliseconds from Asterisk to the centre
_LISTEN_SECONDS = 1.0
_LINE_LISTEN_SECONDS = 20.0  # so often a leg on the trunk is listened to
_LINE_SILENT_SECONDS = 120.0  # a carrier sends packets also for a caller who says nothing
_PHONE_SILENT_SECONDS = (
    4.0  # of a phone that does not answer SIP either; its cable may have been out for five seconds
)
_LOG_LOOK_SECONDS = 5.0
_LOG_BYTES = 10_000_000
_LOG_FILES = 9  # beside the one being written: 100 MB in all, whatever anybody sends
_CLOCK_SECONDS = 1.0  # Asterisk tells whole seconds


@dataclass(slots=True)
class _Heard:
    """The packets that have come from a leg, in monotonic seconds."""

    packets: str
    changed: float
    looked: float


class Telephony:
    """Owns the AMI link; ``post`` receives events in Asterisk's order.

    While a resync gathers its lists, events are held back and follow it: the centre first learns what is, then what
    has happened since.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        username: str,
        secret: str,
        prompts: Path,
        raw_path: RawPath,
        instance: Path,
        post: Callable[[Event], None],
        attempted: Callable[[Attempt], None],
        calls: Callable[[], Mapping[CallId, Call]],
        alarm: Callable[[Alarm], None],
        recorded: Callable[[Collection[CallId]], Awaitable[set[CallId]]],
    ) -> None:
        """``calls``: the living calls as the centre believes them to be; ``recorded``: which of these have ended records."""
        self._post = post
        self._calls = calls
        self._devices = Devices()
        self._switchboard = Switchboard(raw_path, prompts, self._devices.of)
        self._attempted = attempted
        self._alarm = alarm
        self._refused_calls = 0
        """Callers there was no place for since the last alarm told of them."""
        self._instance = instance
        self._bans_to_tell = False
        """Whether Asterisk has not been told of the ban list as it stands in its file."""
        self._written = instance / "log" / "cel-custom" / "legs.csv"
        self._recorded = recorded
        self._link = AmiLink(
            host=host,
            port=port,
            username=username,
            secret=secret,
            on_event=self._event,
            on_up=self._came_up,
            on_down=self._went_down,
        )
        self._up = asyncio.Event()
        self.has_been_up = False
        """Whether calls could be steered at any time since the start."""
        self._held_back: deque[AmiMessage] | None = None
        self._ready: set[str] = set()
        """The phones of the ready agents: who should be in the fallback queue."""
        self._coming: dict[LegId, AmiMessage] = {}
        self._postponed: dict[LegId, tuple[list[CallEffect], asyncio.TimerHandle]] = {}
        self._unrecorded: dict[Path, Action] = {}
        """What should have begun a recording, and went with the link."""
        self._members: set[str] = set()
        """The accounts in it, as Asterisk said last and was told since."""
        self._accounts_change = asyncio.Lock()
        self._rows: list[AmiMessage] = []
        """The channels at the last look of the audit."""
        self._heard: dict[LegId, _Heard] = {}
        self._clock: tuple[float, float] | None = None
        """What Asterisk's time of day is ahead of our monotonic clock, at least and at most."""

    @property
    def connected(self) -> bool:
        """Whether calls can be steered now."""
        return self._link.connected and self._held_back is None

    async def run(self) -> None:
        """Serve until cancelled. Raises AmiLoginFailed for a secret that Asterisk refuses."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync_whenever_up(), name="telephony resync")
            tasks.create_task(self._beat(), name="telephony heartbeat")
            tasks.create_task(self._audit(), name="telephony audit")
            tasks.create_task(self._listen(), name="telephony silence watch")
            tasks.create_task(self._keep_log_small(), name="asterisk's log")
            tasks.create_task(self._link.run(), name="ami link")

    # --- effects --------------------------------------------------------------------------------------------

    def perform(self, effect: CallEffect) -> None:
        """Write the effect's actions now, or when a leg they move has been let go; what fails comes back as an event.

        OSError: no place for a message.
        """
        leg_id = self._switchboard.being_let_go(effect)
        if leg_id is not None:
            if leg_id not in self._postponed:
                loop = asyncio.get_running_loop()
                self._postponed[leg_id] = [], loop.call_later(_LET_GO_SECONDS, self._let_go, leg_id)
            self._postponed[leg_id][0].append(effect)
            return
        try:
            actions = self._switchboard.actions(effect)
        except OSError as error:
            if not isinstance(effect, Record):
                raise
            # Talking is worth more than its recording; the call's end tells that it is missing.
            log.error("recording not begun", leg=effect.leg_id, reason=error.strerror)  # noqa: TRY400  # says it all
            return
        for action in map(self._switchboard.addressed, actions):
            self._submit(action)

    def _submit(self, action: Action) -> None:
        reply = self._link.submit(action.name, action.headers)
        reply.add_done_callback(partial(self._answered, action))

    def _record_again(self) -> None:
        """Begin the recordings that were lost with the link; twice into one file would cut off what it has."""
        lost, self._unrecorded = self._unrecorded, {}
        for path, action in lost.items():
            if not path.exists():
                self._submit(action)

    def _let_go(self, leg_id: LegId) -> None:
        """Asterisk has let go of the leg (or should have by now): do what was waiting for that."""
        self._switchboard.left(leg_id)
        for effect in self._forget_postponed(leg_id):
            self.perform(effect)

    def _forget_postponed(self, leg_id: LegId) -> list[CallEffect]:
        if leg_id not in self._postponed:
            return []
        effects, timer = self._postponed.pop(leg_id)
        timer.cancel()
        return effects

    def _answered(self, action: Action, reply: asyncio.Future[AmiMessage]) -> None:
        if reply.cancelled():
            return
        error = reply.exception()
        if error is None:
            return
        if not isinstance(error, AmiError):
            raise error
        # A party who hangs up as we act on him is the rule, not a fault: his Hangup event is on its way.
        gone = isinstance(error, AmiRefused) and (
            action.name in ("Hangup", "Setvar", "MuteAudio") or _CHANNEL_GONE.search(str(error)) is not None
        )
        (log.debug if gone else log.warning)(
            "ami action failed", action=action.name, error=type(error).__name__, answer=str(error)
        )
        if isinstance(error, AmiUnavailable):
            if action.writes is not None:
                self._unrecorded[action.writes] = action
            return  # the resync that follows tells what lives
        if action.rings is not None:
            if isinstance(error, AmiTimeout):
                # It may ring all the same: nobody shall answer it and hear nothing.
                self._link.submit("Hangup", {"Channel": action.rings}).add_done_callback(_note_failure)
            self._post(LegEnded(action.rings, Outcome.UNREACHABLE))
        elif action.arranges is not None:
            self._switchboard.forget_places(action.arranges)
            self._post(ArrangeFailed(action.arranges, str(error)))

    def mirror(self, agent: Agent) -> None:
        """Keep the fallback queue's members what the ready agents are, for the time without an engine."""
        phone = agent.profile.phone
        if phone is None:
            return
        # Specialists are there to be asked, not to take calls.
        ready = agent.state is AgentState.READY and UserRole.AGENT in agent.profile.roles
        (self._ready.add if ready else self._ready.discard)(phone)
        if self.connected:
            self._mirror(phone)

    def _mirror(self, phone: str) -> None:
        account = self._devices.of(phone)
        wanted = {account} if phone in self._ready else set()
        for other in {phone, browser_of(phone)} & self._members - wanted:
            self._submit_member("QueueRemove", other)
        for missing in wanted - self._members:
            self._submit_member("QueueAdd", missing)
        self._members -= {phone, browser_of(phone)} - wanted
        self._members |= wanted

    def _submit_member(self, action: str, account: str) -> None:
        headers = {"Queue": "fallback", "Interface": f"PJSIP/{account}"}
        self._link.submit(action, headers).add_done_callback(_note_failure)

    # --- telephones in browsers -----------------------------------------------------------------------------

    async def use_browser(self, number: str, password: str) -> str:
        """Let a browser be the telephone of this number, with this password from now on; returns the account's name.

        Whoever was registered with an earlier password keeps his place only until he has to register again.
        AmiError when Asterisk cannot be told.
        """
        name = browser_of(number)
        async with self._accounts_change:
            for row in browser_account(name, password):
                put = {"Family": row.family, "Key": row.key, "Val": json.dumps(row.value)}
                await self._link.action("DBPut", put)
            self._choose(number, browser=True)
        return name

    async def use_desk_phone(self, number: str) -> None:
        """End the number's account in a browser; the desk phone rings again. AmiError."""
        async with self._accounts_change:
            for row in browser_account(browser_of(number), "-"):
                with contextlib.suppress(AmiRefused):  # there was none
                    await self._link.action("DBDel", {"Family": row.family, "Key": row.key})
            self._choose(number, browser=False)

    @property
    def numbers_in_browsers(self) -> frozenset[str]:
        return self._devices.in_browser

    def _choose(self, number: str, *, browser: bool) -> None:
        seen = self._devices.choose(number, browser=browser)
        if seen is not None:
            self._post(seen)
        self._mirror(number)

    # --- who is shut out ------------------------------------------------------------------------------------

    def shut_out(self, networks: Collection[Network]) -> None:
        """Have Asterisk refuse everything from these networks and from no others; an Asterisk that is away hears of it
        when it is back. A list that cannot be written is tried again with the next change."""
        try:
            write_ban_list(self._instance, networks)
        except OSError as error:
            log.error("asterisk's ban list cannot be written", reason=error.strerror)  # noqa: TRY400  # says it all
            return
        self._bans_to_tell = True
        if self.connected:
            self._tell_bans()

    def _tell_bans(self) -> None:
        self._bans_to_tell = False
        self._link.submit("Reload", {"Module": "res_pjsip.so"}).add_done_callback(_note_failure)

    def addresses_in_use(self) -> frozenset[str]:
        """The IP addresses from which phones of ours are registered."""
        return self._devices.addresses()

    # --- events ---------------------------------------------------------------------------------------------

    def _event(self, message: AmiMessage) -> None:
        if self._held_back is not None:
            self._held_back.append(message)
            if len(self._held_back) > _MAX_HELD_BACK:
                # None may be missing, so all that was gathered is void: the resync begins again.
                self._alarm(Alarm("resync_flooded", {"events": str(len(self._held_back))}))
                self._resync()
            return
        if not self._link.connected:
            return  # before the resync nothing is known yet that this could change
        self._take(message)

    def _take(self, message: AmiMessage) -> None:
        message = self._switchboard.as_leg(message)
        match message.name:
            case "Newchannel":
                self._switchboard.appeared(message)
                self._refuse_forwarding(message)
                self._refuse_late(leg_of(message))
                return
            case "Hangup":
                self._switchboard.forget_leg(leg_of(message))
                coming = self._coming.pop(leg_of(message), None)
                if coming is not None:
                    # Gone between the answer and CallArrived: he called, so there is a record of it.
                    self._post(arrival_of(coming))
            case "OriginateResponse":
                # A phone without a registration never becomes a channel, so no Hangup tells of it.
                leg_id = LegId(message.get("ActionID"))
                if message.get("Response") == "Failure" and not self._switchboard.knows(leg_id):
                    self._post(LegEnded(leg_id, Outcome.UNREACHABLE))
                return
            case "ContactStatus":
                seen = self._devices.contact(
                    message.get("AOR"), message.get("URI"), message.get("ContactStatus")
                )
                if seen is not None:
                    self._post(seen)
                return
            case "UserEvent" if message.get("UserEvent") == "CallComing":
                self._coming[leg_of(message)] = message
                return
            case "UserEvent" if message.get("UserEvent") == "CallArrived":
                self._coming.pop(leg_of(message), None)
            case "UserEvent" if message.get("UserEvent") == "CallsRefused":
                self._no_place()
                return
            case "UserEvent" if message.get("UserEvent") == "Settled":
                self._switchboard.settled(leg_of(message))
                return
        attempt = attempt_of(message)
        if attempt is not None:
            self._attempted(attempt)
            return
        event = event_of(message)
        if event is not None:
            self._happened(event)

    def _happened(self, event: Event) -> None:
        match event:
            case CallArrived(call_id):
                self._switchboard.arrived(LegId(call_id))
            case PromptsEnded(leg_id, play_id):
                self._switchboard.prompts_ended(leg_id, play_id)
            case FellBack(call_id):
                self._switchboard.left(LegId(call_id))
            case LegHungUp(leg_id):
                self._switchboard.leaving(leg_id)
            case ConversationOver(leg_id):
                self._let_go(leg_id)
            case LegEnded(leg_id):
                self._forget_postponed(leg_id)
        self._post(event)

    def _no_place(self) -> None:
        """Alarm at the first caller who is refused, then with their number as long as it goes on."""
        self._refused_calls += 1
        if self._refused_calls == 1:
            self._alarm(Alarm("calls_refused", {"calls": "1"}))
            asyncio.get_running_loop().call_later(_REFUSED_EVERY_SECONDS, self._tell_refused)

    def _tell_refused(self) -> None:
        more, self._refused_calls = self._refused_calls - 1, 0
        if more:
            self._alarm(Alarm("calls_refused", {"calls": str(more)}))

    def _refuse_late(self, leg_id: LegId) -> None:
        """Cut a ring that nobody waits for any more: its Originate was on its way while the link was stalled."""
        call_id = call_id_of(leg_id)
        if not is_ours(leg_id) or leg_id == LegId(call_id):
            return
        call = self._calls().get(call_id)
        leg = call.leg(leg_id) if call else None
        if leg is None or not leg.alive:
            log.warning("a ring came too late", leg=leg_id)
            self._link.submit("Hangup", {"Channel": leg_id}).add_done_callback(_note_failure)

    def _refuse_forwarding(self, message: AmiMessage) -> None:
        """Cut a call that a phone's 302 makes to the outside (docs/adr/0002): we rang the phone and nobody else.

        Every call of ours to the trunk has a leg id, and a call from the trunk begins with its ring.
        """
        outgoing = message.get("ChannelStateDesc") == "Down" and message.get("Channel").startswith(
            "PJSIP/trunk-"
        )
        if outgoing and leg_of(message) == LegId(call_id_of(leg_of(message))):
            log.warning("a phone tried to forward a call to the outside", channel=message.get("Channel"))
            self._link.submit("Hangup", {"Channel": leg_of(message)}).add_done_callback(_note_failure)

    # --- connection -----------------------------------------------------------------------------------------

    def _came_up(self) -> None:
        self.has_been_up = True
        self._clock = None
        self._say_alive()
        self._resync()

    def _resync(self) -> None:
        """From here on events are held back until the lists have been gathered, all of them anew."""
        self._held_back = deque()
        self._up.set()

    def _went_down(self, reason: str) -> None:
        self._up.clear()
        self._held_back = None
        self._heard.clear()
        self._coming.clear()
        for leg_id in tuple(self._postponed):
            self._forget_postponed(leg_id)
        self._post(TelephonyLost(reason))

    async def _resync_whenever_up(self) -> None:
        while True:
            await self._up.wait()
            self._up.clear()
            try:
                snapshot = await self._snapshot()
            except AmiError as error:
                log.warning("resync failed", error=type(error).__name__)
                if self._link.connected:
                    await asyncio.sleep(_BEAT_SECONDS)
                    self._up.set()
                continue
            if self._up.is_set():
                continue  # begun again meanwhile
            self._post(snapshot)
            self._record_again()
            held_back, self._held_back = self._held_back, None
            for message in held_back or ():
                self._link.tell(self._take, message)  # as the link itself does: a bug at one costs no other
            # A new Asterisk has an empty queue, an old one may hold who was ready before the cut.
            for phone in self._ready | {number_of(account) for account in self._members}:
                self._mirror(phone)
            if self._bans_to_tell:
                self._tell_bans()

    async def _snapshot(self) -> TelephonyResynced:
        rows = await self._link.list_action("CoreShowChannels")
        self._switchboard.found(rows)
        rows = [self._switchboard.as_leg(row) for row in rows]
        legs = [leg for row in rows if (leg := await self._leg_seen(row)) is not None]
        contacts = [_contact_of(row) for row in await self._list("PJSIPShowContacts")]
        accounts = await self._list("DBGetTree", {"Family": "ps_endpoint"})
        phones = self._devices.found(contacts, (row.get("Key").rpartition("/")[2] for row in accounts))
        rows = await self._list("QueueStatus", {"Queue": "fallback"}, complete_event="QueueStatusComplete")
        self._members = {
            row.get("Location").removeprefix("PJSIP/") for row in rows if row.name == "QueueMember"
        }
        # Lines are written some milliseconds after what they tell of; by now those of every channel not listed are.
        written = await self._what_was()
        unattended = written.unattended(written.callers() - await self._recorded(written.callers()))
        return TelephonyResynced(tuple(legs), phones, written.ended(), unattended)

    async def _what_was(self) -> Written:
        try:
            await asyncio.to_thread(keep_small, self._written)
            return await asyncio.to_thread(read_written, self._written)
        except OSError as error:
            log.error("what became of calls meanwhile cannot be read", reason=error.strerror)  # noqa: TRY400  # says it all
            return Written()

    async def _list(
        self, action: str, headers: Mapping[str, str] | None = None, *, complete_event: str | None = None
    ) -> list[AmiMessage]:
        try:
            return await self._link.list_action(action, headers or {}, complete_event=complete_event)
        except AmiRefused:
            return []  # several lists answer an empty one with an error

    async def _leg_seen(self, row: AmiMessage) -> LegSeen | None:
        leg_id = leg_of(row)
        if not is_ours(leg_id):
            return None
        if LegId(call_id_of(leg_id)) != leg_id:
            return LegSeen(leg_id, up=row.get("ChannelStateDesc") == "Up")
        if await self._variable(leg_id, "PARTY") != "caller":
            return None
        dialled = await self._variable(leg_id, "DIALLED")
        speaking_since = None
        if (
            row.get("Context") == "engine"
            and row.get("Exten") == "message"
            and row.get("Application") == "Record"
        ):
            since = await self._variable(leg_id, "MESSAGE_SINCE")
            speaking_since = datetime.fromtimestamp(int(since), UTC) if since.isdigit() else None
        return LegSeen(leg_id, True, caller_of(row), dialled, speaking_since)

    async def _variable(self, leg_id: LegId, name: str) -> str:
        try:
            return (await self._link.action("Getvar", {"Channel": leg_id, "Variable": name})).get("Value")
        except AmiRefused:
            return ""  # hung up since the list

    # --- heartbeat ------------------------------------------------------------------------------------------

    async def _keep_log_small(self) -> None:
        """A flood makes Asterisk write several lines a message, and nobody else ends its file."""
        log_file = self._instance / "log" / "messages"
        while True:
            await asyncio.sleep(_LOG_LOOK_SECONDS)
            if not self.connected:
                continue
            try:
                if not rotated(log_file, most_bytes=_LOG_BYTES, keep=_LOG_FILES):
                    continue
            except OSError as error:
                log.error("asterisk's log cannot be rotated", reason=error.strerror)  # noqa: TRY400  # says it all
                continue
            # Until Asterisk has opened a new file it writes into the renamed one: no line is lost.
            self._link.submit("LoggerRotate").add_done_callback(_note_failure)

    async def _beat(self) -> None:
        """Tell the dialplan every second that an engine is there (docs/adr/0002)."""
        while True:
            if self._link.connected:
                self._say_alive()
            await asyncio.sleep(_BEAT_SECONDS)

    def _say_alive(self) -> None:
        """The beat is Asterisk's own time of day, as far as it is known: so no other clock has to agree with it."""
        now = time.monotonic()
        ahead = self._clock[1] if self._clock else time.time() - now
        beat = {"Variable": "ENGINE_BEAT", "Value": str(int(ahead + now))}
        self._link.submit("Setvar", beat).add_done_callback(_note_failure)
        asked = self._link.submit("Getvar", {"Variable": "EPOCH"})
        asked.add_done_callback(partial(self._clock_read, now))

    def _clock_read(self, asked: float, reply: asyncio.Future[AmiMessage]) -> None:
        """Notice that Asterisk's clock was set."""
        if reply.cancelled() or reply.exception() is not None:
            return
        told = int(reply.result().get("Value") or 0)
        before, self._clock = self._clock, (told - reply.result().received, told + 1 - asked)
        if before is None:
            return
        least, most = self._clock
        forwards, backwards = least - before[1], before[0] - most
        if max(forwards, backwards) <= _CLOCK_SECONDS:
            return
        seconds = round(forwards if forwards > 0 else -backwards)
        log.warning("the clock was set", seconds=seconds)
        self._alarm(Alarm("clock_set", {"seconds": str(seconds)}))
        if seconds < 0 and self.connected:
            # Asterisk sleeps by the time of day: who waits now would not look for a beat again before it is as late
            # as it was. The resync puts every caller where he is to be, and there he looks anew.
            self._resync()

    # --- audit ----------------------------------------------------------------------------------------------

    async def _audit(self) -> None:
        """Every few seconds, see what Asterisk has and mend what a lost event would have left for ever."""
        while True:
            await asyncio.sleep(_AUDIT_SECONDS)
            if not self.connected:
                continue
            try:
                await self._audit_once()
            except AmiError as error:
                log.warning("audit failed", error=type(error).__name__)

    async def _audit_once(self) -> None:
        off, phones = await self._look()
        if not off and not phones:
            return
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        off_still, phones_still = await self._look()
        for difference in off & off_still:
            if self.connected:
                log.warning("an event was lost", difference=type(difference).__name__)
                await self._mend(difference)
        for account, uri, status in phones & phones_still:
            log.warning("an event was lost", difference="ContactStatus")
            seen = self._devices.contact(account, uri, status)
            if seen is not None:
                self._post(seen)

    async def _look(self) -> tuple[frozenset[Difference], frozenset[tuple[str, str, str]]]:
        """Everything in which Asterisk and the centre differ now."""
        self._rows = [self._switchboard.as_leg(row) for row in await self._list("CoreShowChannels")]
        contacts = [_contact_of(row) for row in await self._list("PJSIPShowContacts")]
        return differences(self._calls(), self._rows, datetime.now(UTC)), self._devices.missed(contacts)

    async def _mend(self, difference: Difference) -> None:
        match difference:
            case Stray(leg_id):
                self._link.submit("Hangup", {"Channel": leg_id}).add_done_callback(_note_failure)
            case Untold(leg_id, fell_back):
                if await self._variable(leg_id, "PARTY") != "caller":
                    return
                call_id, dialled = CallId(leg_id), await self._variable(leg_id, "DIALLED")
                caller = next((caller_of(row) for row in self._rows if leg_of(row) == leg_id), "")
                self._happened((FellBack if fell_back else CallArrived)(call_id, caller, dialled))
            case CallAstray(call_id):
                self._switchboard.found_again(call_id, self._rows)
                self._happened(difference)
            case LegEnded(leg_id):
                self._switchboard.forget_leg(leg_id)
                self._happened(difference)
            case LegAnswered():
                self._happened(difference)
            case _:
                assert_never(difference)

    # --- silence --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Notice parties who vanished without a word, by the packets that come from them no more.

        A phone is suspected when it does not answer SIP (`qualify_seconds`); a line, which is not asked, is
        given longer, since a carrier may save packets while nobody speaks.
        """
        while True:
            await asyncio.sleep(_LISTEN_SECONDS)
            legs = [leg for call in self._calls().values() for leg in call.legs if leg.up]
            self._heard = {leg.leg_id: h for leg in legs if (h := self._heard.get(leg.leg_id)) is not None}
            for leg in legs:
                if not self.connected:
                    break
                if of_callers(leg):
                    await self._listen_to(leg, every=_LINE_LISTEN_SECONDS, silent=_LINE_SILENT_SECONDS)
                elif self._devices.answers(leg.address):
                    self._heard.pop(leg.leg_id, None)
                else:
                    await self._listen_to(leg, every=0.0, silent=_PHONE_SILENT_SECONDS)

    async def _listen_to(self, leg: Leg, *, every: float, silent: float) -> None:
        now = time.monotonic()
        heard = self._heard.get(leg.leg_id)
        if heard is not None and now - heard.looked < every:
            return
        try:
            packets = await self._variable(leg.leg_id, "CHANNEL(rtcp,rxcount)")
        except AmiError:
            return
        if heard is None or heard.packets != packets or not packets:
            self._heard[leg.leg_id] = _Heard(packets, now, now)
        elif now - heard.changed < silent:
            heard.looked = now
        else:
            del self._heard[leg.leg_id]
            log.warning(
                "nothing is heard of a party any more", leg=leg.leg_id, seconds=round(now - heard.changed)
            )
            self._post(LegDead(leg.leg_id))


def _note_failure(reply: asyncio.Future[AmiMessage]) -> None:
    if not reply.cancelled() and (error := reply.exception()) is not None:
        log.info("ami action failed", error=type(error).__name__)


def _contact_of(row: AmiMessage) -> tuple[str, str, str]:
    """Account, URI and status of a ``ContactList`` row, whose object name is ``<aor>;@<hash>`` or ``<aor>@@<hash>``."""
    phone = row.get("AOR") or row.get("Aor") or row.get("ObjectName").partition(";@")[0].partition("@@")[0]
    return phone, row.get("Uri") or row.get("URI"), row.get("Status")


def rotated(file: Path, *, most_bytes: int, keep: int) -> bool:
    """Rename the file to `.1` if it has grown beyond, `.1` to `.2` and so on; the last of ``keep`` is written over."""
    try:
        if file.stat().st_size <= most_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(keep, 0, -1):
        older = file.with_name(f"{file.name}.{number - 1}") if number > 1 else file
        with contextlib.suppress(FileNotFoundError):
            older.replace(file.with_name(f"{file.name}.{number}"))
    return True
