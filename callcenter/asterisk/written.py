"""What Asterisk writes down of its channels, for an engine that was away: who came, who talked with whom, who left when.

Asterisk's own event log (cel_custom) appends a line for each channel's begin, each entry into the fallback queue or
a bridge and each end. The file is read at every resync; nothing depends on it while the engine listens.
"""

import csv
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from callcenter.asterisk.translate import outcome_of
from callcenter.domain.calls import CallId, LegId, call_id_of
from callcenter.domain.messages import LegWas, Unattended

LARGEST_BYTES = 4_000_000
"""Some 3,000 calls; then the file becomes the ``.old`` one, which is forgotten with the next."""
_COLUMNS = 9


@dataclass(slots=True)
class _Channel:
    caller: str = ""
    context: str = ""
    dialled: str = ""
    serves: str = ""
    """The channel for whose sake there is this one."""
    name: str = ""
    began_at: datetime | None = None
    bridged_at: datetime | None = None
    was: LegWas | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The channels of the last while, by their ids."""

    channels: Mapping[str, _Channel] = field(default_factory=dict)

    def ended(self) -> dict[LegId, LegWas]:
        return {LegId(name): channel.was for name, channel in self.channels.items() if channel.was}

    def callers(self) -> set[CallId]:
        """Who rang us; what became of each, ``unattended`` tells."""
        return {CallId(name) for name, channel in self.channels.items() if channel.context == "from-trunk"}

    def unattended(self, call_ids: Collection[CallId]) -> tuple[Unattended, ...]:
        """These callers as they fared without the engine, in the order in which they came."""
        answered = {
            CallId(channel.serves): channel
            for name, channel in self.channels.items()
            if channel.bridged_at and channel.serves != name and call_id_of(LegId(name)) == name
        }
        found = []
        for call_id in call_ids:
            caller = self.channels[call_id]
            if caller.began_at is None:
                continue
            desk = answered.get(call_id, _Channel())
            found.append(
                Unattended(
                    call_id,
                    caller.caller[:64],
                    caller.dialled,
                    caller.began_at,
                    phone=phone_of(desk.name),
                    answered_at=desk.bridged_at,
                    parted_at=desk.was.ended_at if desk.was else None,
                    ended_at=caller.was.ended_at if caller.was else None,
                )
            )
        return tuple(sorted(found, key=lambda caller: caller.arrived_at))


def phone_of(channel: str) -> str:
    """The phone of a channel's name: ``1001`` of ``PJSIP/1001-0000002a``."""
    return channel.removeprefix("PJSIP/").rpartition("-")[0]


def read_written(path: Path) -> Written:
    """Read the file and the one before it; a line that is not whole is passed over. OSError but for absence."""
    channels: dict[str, _Channel] = {}
    for each in (_old(path), path):
        with suppress(FileNotFoundError), each.open(encoding="utf-8", errors="replace", newline="") as lines:
            for row in csv.reader(line for line in lines if line.endswith("\n")):
                with suppress(ValueError):
                    _take(channels, row)
    return Written(channels)


def keep_small(path: Path) -> None:
    """Begin a new file when this one has grown large; Asterisk opens it anew for each line."""
    with suppress(FileNotFoundError):
        if path.stat().st_size > LARGEST_BYTES:
            path.replace(_old(path))


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _take(channels: dict[str, _Channel], row: list[str]) -> None:
    if len(row) != _COLUMNS:
        raise ValueError("not a whole line")
    kind, seconds, name, serves, technical, caller, context, dialled, extra = row
    at = datetime.fromtimestamp(float(seconds), UTC)
    channel = channels.setdefault(name, _Channel(began_at=None))
    channel.serves, channel.name = serves, technical
    match kind:
        case "CHAN_START":
            channel.began_at, channel.context, channel.dialled = at, context, dialled
            return  # a caller's channel begins without a number: the dialplan gives it one that is fit to be read
        case "APP_START":
            pass  # the fallback queue's
        case "BRIDGE_ENTER":
            channel.bridged_at = channel.bridged_at or at
        case "HANGUP":
            why = json.loads(extra) if extra else {}
            channel.was = LegWas(at, outcome_of(str(why.get("hangupcause", "")), ""))
    channel.caller = caller or channel.caller
