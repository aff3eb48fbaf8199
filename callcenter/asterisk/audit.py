"""What Asterisk has on the line compared with what the centre believes: whatever one lost event would leave for ever.

Pure. A difference seen once may be an event on its way; one seen twice, half a second apart, is acted on.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from callcenter.asterisk.ami import AmiMessage
from callcenter.asterisk.translate import is_ours, leg_of
from callcenter.domain.calls import (
    Call,
    CallId,
    Leg,
    LegId,
    LegState,
    Outcome,
    Phase,
    Place,
    Role,
    call_id_of,
)
from callcenter.domain.messages import CallAstray, LegAnswered, LegEnded

_YOUNG = timedelta(seconds=2)
"""A leg that was asked for less long ago may not have its channel yet."""
_ALONE = frozenset({"arrived", "wait", "quiet", "play", "message"})
"""Where in the dialplan a caller may be who talks with nobody."""


@dataclass(frozen=True, slots=True)
class Untold:
    """A caller's channel the centre knows nothing of."""

    leg_id: LegId
    fell_back: bool
    """He is in the fallback queue, and no agent has answered there."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A leg we rang for a conversation that has done without it."""

    leg_id: LegId


Difference = LegAnswered | LegEnded | CallAstray | Untold | Stray


def differences(
    calls: Mapping[CallId, Call], rows: Iterable[AmiMessage], now: datetime
) -> frozenset[Difference]:
    """``rows``: the answer to ``CoreShowChannels``."""
    channels = {leg_of(row): row for row in rows if is_ours(leg_of(row))}
    found: set[Difference] = set()
    for call in calls.values():
        found.update(_in_call(call, channels, now))
    for leg_id, row in channels.items():
        call_id = call_id_of(leg_id)
        known = calls.get(call_id)
        leg = known.leg(leg_id) if known else None
        if leg is not None and leg.alive:
            continue
        if leg_id != LegId(call_id):
            found.add(Stray(leg_id))
        elif known is None and row.get("Context") == "engine":
            found.add(Untold(leg_id, fell_back=False))
        elif known is None and row.get("Context") == "fallback" and not row.get("BridgeId"):
            found.add(Untold(leg_id, fell_back=True))
    return frozenset(found)


def _in_call(call: Call, channels: Mapping[LegId, AmiMessage], now: datetime) -> Iterator[Difference]:
    given = call.leg(call.fallback_leg_id)
    if given is not None and given.alive:
        return  # whom the fallback queue gave him has a channel of another name
    missing = [leg for leg in call.legs if leg.alive and leg.leg_id not in channels]
    for leg in missing:
        if leg.up or now - leg.asked_at > _YOUNG:
            yield LegEnded(leg.leg_id, Outcome.UNREACHABLE)
    if missing:
        return  # first that; it may be all
    for leg in call.legs:
        if leg.state is LegState.RINGING and leg.cancelled is None and _is_up(channels[leg.leg_id]):
            yield LegAnswered(leg.leg_id)
    caller = call.caller_leg
    if caller.alive and _astray(call, caller, channels):
        yield CallAstray(call.call_id)


def _is_up(row: AmiMessage) -> bool:
    return row.get("ChannelStateDesc") == "Up"


def _astray(call: Call, caller: Leg, channels: Mapping[LegId, AmiMessage]) -> bool:
    row = channels[caller.leg_id]
    if row.get("Context") == "fallback" and not row.get("BridgeId"):
        return True
    if call.phase is not Phase.TALKING:
        return bool(row.get("BridgeId")) or row.get("Exten") not in _ALONE
    up = [leg for leg in call.legs if leg.up]
    bridges = {channels[leg.leg_id].get("BridgeId") for leg in up if leg.place is Place.TOGETHER}
    together = sum(leg.place is Place.TOGETHER for leg in up)
    on_hold = all(channels[leg.leg_id].get("Exten") == "hold" for leg in up if leg.place is Place.HELD)
    return not on_hold or (together > 1 and (len(bridges) > 1 or "" in bridges))


def of_callers(leg: Leg) -> bool:
    """Whether the leg runs over the trunk, whose far end is not asked whether it is there."""
    return leg.role in (Role.CALLER, Role.OUTSIDE)
