"""What is known of a recording once its file is closed."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from callcenter.domain.calls import Call, CallId, Leg, LegId, Role, StepKind


class RecordingKind(StrEnum):
    CALL = "call"
    """Stereo: left what the caller said, right what the caller heard."""
    LEG = "leg"
    """Mono: what one party said, the private consult included."""
    MESSAGE = "message"
    """A message the caller left."""


@dataclass(frozen=True, slots=True)
class RecordingFile:
    call_id: CallId
    leg_id: LegId | None
    """Whose voice it is; None for the file of the whole call."""
    kind: RecordingKind
    path: str
    """Relative to the root of all recordings, with ``/``."""
    seconds: float
    bytes: int
    sha256: str
    codec: str
    """``flac``; ``slin`` or ``wav`` while the original waits to be encoded because the disk was full; ``missing``: the
    call was to be recorded and there is no file."""

    @property
    def missing(self) -> bool:
        return self.codec == MISSING


MISSING = "missing"
_SHORT_SECONDS = 2.0
_SHORT_SHARE = 0.1


def recorded_since(call: Call, leg: Leg) -> datetime | None:
    """Since when a party is recorded by itself; None while the file of the call holds all that it says.

    What the caller hears is what the party says as long as there are only the two of them: until the caller is held, or
    somebody else is up as well.
    """
    if leg.role is Role.CALLER or leg.answered_at is None:
        return None
    came, left = leg.answered_at, leg.ended_at
    apart = [
        max(came, other.answered_at)
        for other in call.legs[1:]
        if other.leg_id != leg.leg_id
        and other.answered_at is not None
        and (left is None or other.answered_at < left)
        and (other.ended_at is None or came < other.ended_at)
    ]
    apart += [
        step.at
        for step in call.steps
        if step.kind is StepKind.HELD and came <= step.at and (left is None or step.at < left)
    ]
    return min(apart, default=None)


def heard_in_call(call: Call, leg: Leg) -> tuple[float, float] | None:
    """From which second of the call's file to which its right channel is what this party said; None: nowhere."""
    if call.answered_at is None or leg.answered_at is None:
        return None
    until = recorded_since(call, leg) or leg.ended_at or call.ended_at
    if until is None:
        return None
    begin = max(0.0, (leg.answered_at - call.answered_at).total_seconds())
    end = (until - call.answered_at).total_seconds()
    return (begin, end) if begin < end else None


def is_complete(file: RecordingFile, call: Call) -> bool:
    """Whether the recording lasts about as long as what it is of; a full disk cuts it short.

    Two seconds or a tenth may be absent: Asterisk writes nothing while nobody sends audio.
    """
    if file.missing:
        return False
    match file.kind:
        case RecordingKind.CALL:
            began, ended = call.answered_at, call.caller_leg.ended_at or call.ended_at
        case RecordingKind.LEG:
            leg = call.leg(file.leg_id) if file.leg_id else None
            began = (
                max(leg.answered_at, call.answered_at)
                if leg and leg.answered_at and call.answered_at
                else None
            )
            ended = (leg.ended_at if leg else None) or call.ended_at
        case RecordingKind.MESSAGE:
            return True
    if began is None or ended is None:
        return True
    wanted = (ended - began).total_seconds()
    return file.seconds >= wanted - max(_SHORT_SECONDS, wanted * _SHORT_SHARE)
