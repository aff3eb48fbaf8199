"""What is known of a recording once its file is closed."""

from dataclasses import dataclass
from enum import StrEnum

from callcenter.domain.calls import Call, CallId, LegId


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
