"""What is known of a recording once its file is closed."""

from dataclasses import dataclass
from enum import StrEnum

from callcenter.domain.calls import CallId, LegId


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
    """``flac``; ``slin`` or ``wav`` while the original waits to be encoded because the disk was full."""
