"""Between AMI's words and the domain's: messages into events, effects into actions. Pure.

``event_of`` needs no memory. ``Switchboard`` remembers only where it has put each leg, because the domain says who
should hear whom and the way there depends on where they are: two parties meet on a plain bridge (half the price of
a mixing room), three or a held caller need the room ``room-<call id>``, and whoever is in a room stays in it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from callcenter.asterisk.ami import AmiMessage
from callcenter.domain.calls import FALLBACK_LEG, Call, CallId, LegId, Outcome, Role, call_id_of
from callcenter.domain.guard import Attempt, Door, Fault
from callcenter.domain.messages import (
    Arrange,
    CallArrived,
    ConversationOver,
    DigitPressed,
    Event,
    FallBack,
    FellBack,
    HangUp,
    LegAnswered,
    LegEnded,
    LegHungUp,
    Meanwhile,
    MessageEnded,
    Mute,
    Play,
    PromptsEnded,
    Record,
    Ring,
    TakeMessage,
    Wait,
)
from callcenter.domain.recordings import RecordingKind

RawPath = Callable[[Call, LegId, RecordingKind], Path]
"""Where Asterisk is to write a recording: decided by the owner of the recordings."""

CallEffect = Play | Wait | TakeMessage | Ring | Arrange | HangUp | Mute | Record | FallBack

FAULTS = {
    "InvalidPassword": Fault.WRONG_PASSWORD,
    "ChallengeResponseFailed": Fault.WRONG_PASSWORD,
    "InvalidAccountID": Fault.UNKNOWN_ACCOUNT,
    "RequestBadFormat": Fault.MALFORMED,
    "AuthMethodNotAllowed": Fault.NOT_ALLOWED,
    "FailedACL": Fault.NOT_ALLOWED,
    "InvalidTransport": Fault.NOT_ALLOWED,
    "RequestNotAllowed": Fault.NOT_ALLOWED,
    "UnexpectedAddress": Fault.NOT_ALLOWED,
    "ChallengeSent": Fault.ASKED,
}

_OURS = re.compile(r".+\.\d+(-\d+)?")
_PROMPT = re.compile(r"[a-z0-9_/-]+")
_SHOWABLE = re.compile(r"[^0-9+*#]")


def leg_of(message: AmiMessage) -> LegId:
    return LegId(message.get("Uniqueid"))


def event_of(message: AmiMessage) -> Event | None:
    """What an AMI event means for the centre; None when it means nothing."""
    leg_id = leg_of(message)
    match message.name:
        case "Hangup":
            return LegEnded(leg_id, outcome_of(message.get("Cause"), message.get("TechCause")))
        case "HangupRequest":
            return LegHungUp(leg_id)
        case "DTMFEnd" if message.get("Direction") == "Received":
            return DigitPressed(leg_id, message.get("Digit"))
        case "UserEvent":
            return _user_event(message, leg_id)
        case _:
            return None


def attempt_of(message: AmiMessage) -> Attempt | None:
    """What a security event tells of somebody who did not get in; None for all other events."""
    fault = FAULTS.get(message.name)
    account = message.get("AccountID")
    if fault is None or (message.name == "ChallengeResponseFailed" and account == "<unknown>"):
        return None  # of an unknown account InvalidAccountID has told
    door = Door.AMI if message.get("Service") == "AMI" else Door.SIP
    parts = message.get("RemoteAddress").split("/")  # IPV4/UDP/192.0.2.7/5060
    return Attempt(door, parts[2] if len(parts) > 2 else "", account, fault)


def _user_event(message: AmiMessage, leg_id: LegId) -> Event | None:
    match message.get("UserEvent"):
        case "CallArrived":
            return arrival_of(message)
        case "LegAnswered":
            return LegAnswered(leg_id)
        case "PromptEnded" if message.get("PlayId").isdigit():
            return PromptsEnded(leg_id, int(message.get("PlayId")))
        case "AfterTalk":
            return ConversationOver(leg_id)
        case "MessageEnded":
            return MessageEnded(leg_id)
        case "EngineFallback":
            return FellBack(CallId(leg_id), caller_of(message), message.get("Dialled"))
        case _:
            return None


def arrival_of(message: AmiMessage) -> CallArrived:
    """The arrival that ``CallArrived``, or before it ``CallComing``, tells of."""
    return CallArrived(CallId(leg_of(message)), caller_of(message), message.get("Dialled"))


def caller_of(message: AmiMessage) -> str:
    number = message.get("CallerIDNum")
    return "" if number == "<unknown>" else number[:64]


def outcome_of(cause: str, tech_cause: str) -> Outcome:
    """Why a ringing leg ended: the SIP status where there is one, else the Q.850 cause.

    RFC 3261 21.4-21.6: 486/600 busy, 603 decline, 408/487 nobody answered in time, 480 and every other refusal: not
    to be reached. Q.850: 17 busy, 18/19 no answer, 21 rejected.
    """
    status = tech_cause.strip().rpartition(" ")[2]
    by_status = {
        "486": Outcome.BUSY,
        "600": Outcome.BUSY,
        "603": Outcome.REFUSED,
        "408": Outcome.NO_ANSWER,
        "487": Outcome.NO_ANSWER,
        # The phone said so. (Asterisk reports its own time-out as 480 too, but the centre's deadline comes first.)
        "480": Outcome.UNREACHABLE,
    }
    by_cause = {
        "17": Outcome.BUSY,
        "18": Outcome.NO_ANSWER,
        "19": Outcome.NO_ANSWER,
        "21": Outcome.REFUSED,
    }
    return by_status.get(status) or by_cause.get(cause, Outcome.UNREACHABLE)


def is_ours(leg_id: str) -> bool:
    """Whether a channel id is of the form of a caller's leg or of one that we rang."""
    return _OURS.fullmatch(leg_id) is not None


# --- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Action:
    """One AMI action, and whose failure it is when it is refused."""

    name: str
    headers: dict[str, str | list[str]]
    rings: LegId | None = None
    """The leg that does not come to be when this fails."""
    arranges: CallId | None = None
    """The call whose parties do not hear each other when this fails."""
    writes: Path | None = None
    """The recording that is not made when this fails."""


class _Where(StrEnum):
    BRIDGE = "bridge"
    ROOM = "room"
    HOLD = "hold"


@dataclass(slots=True)
class Switchboard:
    """Where the legs are, and the actions that carry out an effect from there."""

    raw_path: RawPath
    prompts: Path
    account_of: Callable[[str], str] = str
    """The SIP account to ring for a number of the house."""
    _places: dict[CallId, dict[LegId, _Where]] = field(default_factory=dict)
    _names: dict[LegId, str] = field(default_factory=dict)
    _moving: set[LegId] = field(default_factory=set)
    """Redirected, and not yet heard to have arrived."""
    _aliases: dict[str, LegId] = field(default_factory=dict)
    """Channels that the fallback queue made -> the legs they are to us."""
    _let_go: set[LegId] = field(default_factory=set)
    """In a plain bridge whose other party is leaving: on the way to the dialplan's ``AfterTalk``."""
    _resting: dict[LegId, Meanwhile] = field(default_factory=dict)
    """Waiting in the dialplan, and hearing that: who shall wait so need not be moved."""
    _playing: dict[LegId, tuple[int, Meanwhile]] = field(default_factory=dict)
    """The prompts a leg was last sent to, and what it is to hear after them."""

    def actions(self, effect: CallEffect) -> list[Action]:
        match effect:
            case Play(leg_id, play_id, prompts, then):
                self.left(leg_id)
                self._playing[leg_id] = play_id, then
                after = "wait" if then is Meanwhile.MUSIC else "quiet"
                files = "&".join(self._prompt(name) for name in prompts)
                return [
                    _set(leg_id, ("PROMPTS", files), ("PLAY_ID", str(play_id)), ("AFTER_PROMPT", after)),
                    self._sent(leg_id, "play"),
                ]
            case Wait(leg_id, hearing):
                if self._resting.get(leg_id) is hearing:
                    return []
                self.left(leg_id)
                self._resting[leg_id] = hearing
                return [self._sent(leg_id, "wait" if hearing is Meanwhile.MUSIC else "quiet")]
            case TakeMessage(call, leg_id, seconds):
                self.left(leg_id)
                path = self.raw_path(call, leg_id, RecordingKind.MESSAGE)
                return [
                    _set(leg_id, ("MESSAGE_FILE", str(path)), ("MESSAGE_SECONDS", str(seconds))),
                    _redirect(leg_id, "engine", "message"),
                ]
            case Ring():
                return [self._originate(effect)]
            case Arrange():
                return self._arrange(effect)
            case HangUp(leg_id):
                self.leaving(leg_id)
                return [Action("Hangup", {"Channel": leg_id, "Cause": "16"})]
            case Mute(leg_id, on):
                headers = {"Channel": leg_id, "Direction": "in", "State": "on" if on else "off"}
                return [Action("MuteAudio", dict(headers))]
            case Record(call, leg_id):
                return [self._record(call, leg_id)]
            case FallBack(leg_id):
                self.left(leg_id)
                return [_redirect(leg_id, "fallback", "s")]
            case _:
                assert_never(effect)

    def appeared(self, channel: AmiMessage) -> None:
        """Asterisk has a channel, ours or not."""
        self._names[leg_of(channel)] = channel.get("Channel")

    def arrived(self, leg_id: LegId) -> None:
        """The caller waits in the dialplan with music until the centre decides."""
        self._resting[leg_id] = Meanwhile.MUSIC

    def prompts_ended(self, leg_id: LegId, play_id: int) -> None:
        """The leg rests behind its prompts, unless it has been sent elsewhere since."""
        playing, then = self._playing.get(leg_id, (None, None))
        if playing == play_id and then is not None:
            self._resting[leg_id] = then

    def as_leg(self, message: AmiMessage) -> AmiMessage:
        """The message with our name for its channel."""
        leg_id = self._aliases.get(message.get("Uniqueid"))
        if leg_id is None:
            return message
        return replace(message, headers={**message.headers, "Uniqueid": leg_id})

    def addressed(self, action: Action) -> Action:
        """The action with Asterisk's names for our legs."""
        if not self._aliases:
            return action
        names = {leg_id: channel for channel, leg_id in self._aliases.items()}
        there = {
            name: names.get(LegId(value), value) if isinstance(value, str) else value
            for name, value in action.headers.items()
        }
        return replace(action, headers=there)

    def forget_leg(self, leg_id: LegId) -> None:
        """The leg has ended."""
        for channel in [channel for channel, known in self._aliases.items() if known == leg_id]:
            del self._aliases[channel]
        self.leaving(leg_id)
        self.left(leg_id)
        self._names.pop(leg_id, None)
        self._moving.discard(leg_id)

    def leaving(self, leg_id: LegId) -> None:
        """The leg is about to end; Asterisk will let go of whoever is in a plain bridge with it."""
        places = self._places.get(call_id_of(leg_id), {})
        if places.get(leg_id) is _Where.BRIDGE:
            self._let_go.update(o for o, where in places.items() if o != leg_id and where is _Where.BRIDGE)

    def being_let_go(self, effect: CallEffect) -> LegId | None:
        """A leg of the effect that must not be moved now: a Redirect is refused while its bridge dissolves."""
        match effect:
            case Play(leg_id) | Wait(leg_id) | FallBack(leg_id) | TakeMessage(_, leg_id):
                moved: tuple[LegId, ...] = (leg_id,)
            case Arrange():
                moved = (*effect.together, *effect.held)
            case _:
                moved = ()
        return next((leg_id for leg_id in moved if leg_id in self._let_go), None)

    def settled(self, leg_id: LegId) -> None:
        """The leg has arrived where it was last sent."""
        self._moving.discard(leg_id)

    def knows(self, leg_id: LegId) -> bool:
        """Whether the leg has, or had a moment ago, a channel."""
        return leg_id in self._names

    def found(self, rows: Iterable[AmiMessage]) -> None:
        """Learn from ``CoreShowChannels`` who is there and where."""
        self._places.clear()
        self._names.clear()
        self._moving.clear()
        self._let_go.clear()
        self._resting.clear()
        self._playing.clear()
        rows = [*rows]
        self._aliases = _aliases(rows)
        for row in map(self.as_leg, rows):
            self.appeared(row)
            self._found(row)

    def found_again(self, call_id: CallId, rows: Iterable[AmiMessage]) -> None:
        """Learn where the parties of one call really are."""
        self._places.pop(call_id, None)
        for row in rows:
            leg_id = leg_of(row)
            if call_id_of(leg_id) == call_id:
                self._moving.discard(leg_id)
                self._let_go.discard(leg_id)
                self._stir(leg_id)
                self.appeared(row)
                self._found(row)

    def _found(self, row: AmiMessage) -> None:
        leg_id = leg_of(row)
        if not is_ours(leg_id):
            return
        if row.get("Application") == "ConfBridge":
            self._put(leg_id, _Where.ROOM)
        elif row.get("Context") == "engine" and row.get("Exten") == "hold":
            self._put(leg_id, _Where.HOLD)
        elif row.get("BridgeId"):
            self._put(leg_id, _Where.BRIDGE)

    def _sent(self, leg_id: LegId, exten: str) -> Action:
        self._moving.add(leg_id)
        return _redirect(leg_id, "engine", exten)

    def _put(self, leg_id: LegId, where: _Where) -> None:
        self._stir(leg_id)
        self._places.setdefault(call_id_of(leg_id), {})[leg_id] = where

    def forget_places(self, call_id: CallId) -> None:
        """An arrangement failed: nobody of the call is known to be where he was sent."""
        self._places.pop(call_id, None)

    def _stir(self, leg_id: LegId) -> None:
        """The leg goes elsewhere: it rests no more, and the end of its prompts says nothing of where it is."""
        self._resting.pop(leg_id, None)
        self._playing.pop(leg_id, None)

    def left(self, leg_id: LegId) -> None:
        """The leg is neither in a bridge, nor in a room, nor on hold any more."""
        self._stir(leg_id)
        call_id = call_id_of(leg_id)
        places = self._places.get(call_id, {})
        places.pop(leg_id, None)
        self._let_go.discard(leg_id)
        if not places:
            self._places.pop(call_id, None)

    def _prompt(self, name: str) -> str:
        # The names come from checked flows; a name that could be read as syntax is a bug, not an input.
        if not _PROMPT.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a prompt: letters a-z, digits, _ - and / only.")
        return str(self.prompts / name)

    def _arrange(self, wish: Arrange) -> list[Action]:
        places = self._places.get(wish.call_id, {})
        in_room = any(where is _Where.ROOM for where in places.values())
        names = [self._names.get(leg_id) for leg_id in wish.together]
        # A Redirect still under way would take the leg out of the bridge again; one to a room simply comes last.
        still = self._moving.isdisjoint(wish.together)
        if len(wish.together) == 2 and not wish.held and not in_room and all(names) and still:
            if all(places.get(leg_id) is _Where.BRIDGE for leg_id in wish.together):
                return []
            for leg_id in wish.together:
                self._put(leg_id, _Where.BRIDGE)
            # By name: Bridge alone takes the first channel whose name or id *begins* with what it is given, and the
            # caller's id is the beginning of the ids of all his other legs.
            first, second = (name or "" for name in names)
            headers: dict[str, str | list[str]] = {"Channel1": first, "Channel2": second, "Tone": "no"}
            return [Action("Bridge", headers, arranges=wish.call_id)]
        room = f"room-{wish.call_id}"
        moves = [(leg_id, room) for leg_id in wish.together if places.get(leg_id) is not _Where.ROOM]
        moves += [(leg_id, "hold") for leg_id in wish.held if places.get(leg_id) is not _Where.HOLD]
        bridged = [move for move in moves if places.get(move[0]) is _Where.BRIDGE]
        actions = []
        if len(bridged) == 2:
            # Both at once: the one who is moved alone would leave the other to the dialplan's good-bye.
            (first, one), (second, two) = bridged
            actions.append(_redirect(first, "engine", one, also=(second, two), arranges=wish.call_id))
            moves = [move for move in moves if move not in bridged]
        actions += [_redirect(leg_id, "engine", exten, arranges=wish.call_id) for leg_id, exten in moves]
        for leg_id in wish.together:
            self._put(leg_id, _Where.ROOM)
        for leg_id in wish.held:
            self._put(leg_id, _Where.HOLD)
        return actions

    def _originate(self, ring: Ring) -> Action:
        address = f"{ring.address}@trunk" if ring.role is Role.OUTSIDE else self.account_of(ring.address)
        number = _SHOWABLE.sub("", ring.caller) or "anonymous"
        line = _SHOWABLE.sub("", ring.line)
        headers: dict[str, str | list[str]] = {
            "ActionID": ring.leg_id,
            "Channel": f"PJSIP/{address}",
            "Context": "engine",
            "Exten": "answered",
            "Priority": "1",
            "ChannelId": ring.leg_id,
            "Timeout": str(int(ring.seconds * 1000)),
            "CallerID": f'"{line}" <{number}>',
            "Variable": [f"PARTY={ring.role.value}"],
            "Async": "true",
        }
        return Action("Originate", headers, rings=ring.leg_id)

    def _record(self, call: Call, leg_id: LegId) -> Action:
        if leg_id == LegId(call.call_id):
            path = self.raw_path(call, leg_id, RecordingKind.CALL)
            file, options = str(path), "D"
        else:
            path = self.raw_path(call, leg_id, RecordingKind.LEG)
            file, options = "", f"r({path})"
        return Action("MixMonitor", {"Channel": leg_id, "File": file, "Options": options}, writes=path)


def _aliases(rows: Iterable[AmiMessage]) -> dict[str, LegId]:
    """Of a list of channels, those that the fallback queue has bridged with a caller, and the legs they are."""
    callers = {
        row.get("BridgeId"): CallId(leg_of(row))
        for row in rows
        if row.get("Context") == "fallback" and row.get("BridgeId")
    }
    return {
        row.get("Uniqueid"): LegId(f"{callers[row.get('BridgeId')]}-{FALLBACK_LEG}")
        for row in rows
        if row.get("BridgeId") in callers and row.get("Uniqueid") != callers[row.get("BridgeId")]
    }


def _set(leg_id: LegId, *variables: tuple[str, str]) -> Action:
    """Several channel variables in one action; no value holds a comma (checked names and our own paths)."""
    names, values = zip(*variables, strict=True)
    if any("," in value for value in values):
        raise ValueError(f"A comma would split the values of {names}: {values}.")
    headers: dict[str, str | list[str]] = {
        "Channel": leg_id,
        "Variable": f"ARRAY({','.join(names)})",
        "Value": ",".join(values),
    }
    return Action("Setvar", headers)


def _redirect(
    leg_id: LegId,
    context: str,
    exten: str,
    *,
    also: tuple[LegId, str] | None = None,
    arranges: CallId | None = None,
) -> Action:
    headers: dict[str, str | list[str]] = {
        "Channel": leg_id,
        "Context": context,
        "Exten": exten,
        "Priority": "1",
    }
    if also is not None:
        other, where = also
        headers |= {"ExtraChannel": other, "ExtraContext": context, "ExtraExten": where, "ExtraPriority": "1"}
    return Action("Redirect", headers, arranges=arranges)
