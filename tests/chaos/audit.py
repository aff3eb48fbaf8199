"""What must hold when everybody has hung up: the phones' side and the records' side tell the same story."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos.city import DEAD_AIR_SECONDS, Citizen, City
from tests.e2e.house import until

QUIET_SECONDS = 40.0
RECORDING_SLACK = 1.5
"""By how much a recording may differ from its talk: starting it, the last packets, whole frames."""
LATE_SECONDS = 2.0
"""A phone may have answered in the moment its offer was taken back; such an answer ends at once."""
RESTING = {"ready", "not_ready", "logged_out"}


@dataclass
class Audit:
    """What was found; ``wrong`` is what must not be."""

    wrong: list[str] = field(default_factory=list)
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By the caller's number."""
    ends: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    recordings: int = 0
    longest_silence: float = 0.0

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        return f"{sum(self.ends.values())} records ({ends}), {self.answered} tickets, {self.recordings} recordings"


async def audit(city: City, *, lost_audio: bool = False, patience: float = 0.0) -> Audit:
    """Wait until all is quiet, then compare.

    ``lost_audio``: the telephony died, recordings may be short. ``patience``: so many seconds later a phone may learn
    of something than the house, since the network loses packets.
    """
    found = Audit()
    left = await _until_quiet(city)
    found.wrong += [f"left behind: {what} {seen}" for what, seen in left.items() if seen]
    await _records(city, found)
    for citizen in city.citizens:
        _one_record(city, citizen, found)
    for records in found.records.values():
        for record in records:
            found.wrong += _checked(record)
            found.ends[str(record["end_reason"])] += 1
            found.answered += record["answered_at"] is not None
            await _recordings(city, record, found, lost_audio=lost_audio, slack=RECORDING_SLACK + patience)
    await _tickets(city, found)
    found.wrong += city.troubles + city.rings_at_once(patience=patience)
    found.wrong += _silences(city, found) + _answers(city, found, late=LATE_SECONDS + patience)
    return found


async def _until_quiet(city: City) -> dict[str, object]:
    async def left() -> dict[str, object]:
        calls = await city.leader.get("/api/v1/calls")
        agents = await city.leader.get("/api/v1/agents")
        queues = await city.leader.get("/api/v1/queues")
        return {
            "calls": [call["call_id"] for call in calls["calls"]],
            "channels": await city.house.channels(),
            "unfinished recordings": [path.name for path in city.house.raw_recordings()],
            "waiting": [queue["queue_id"] for queue in queues["queues"] if queue["waiting"]],
            "people in a call": [
                f"{agent['user_id']} {agent['state']}"
                for agent in agents["agents"]
                if agent["state"] not in RESTING or agent["call_id"] is not None
            ],
        }

    seen: dict[str, object] = {}

    async def look() -> dict[str, object]:
        nonlocal seen
        seen = await left()
        return seen

    try:
        await until(look, lambda seen: not any(seen.values()), seconds=QUIET_SECONDS)
    except AssertionError:
        return seen
    return {}


async def _records(city: City, found: Audit) -> None:
    after = ""
    while True:
        page = await city.leader.get(f"/api/v1/call-records?limit=100{after}")
        for record in page["calls"]:
            found.records.setdefault(record["caller"], []).append(record)
        if page["next"] is None:
            return
        after = f"&after={page['next']}"


def _one_record(city: City, citizen: Citizen, found: Audit) -> None:
    records = found.records.get(citizen.number, [])
    # Who took his call back before the house answered may have come to nobody's knowledge.
    least = 1 if citizen.call.answered.is_set() else 0
    if not least <= len(records) <= 1:
        placed = citizen.placed_at - city.began
        found.wrong.append(
            f"{citizen.number}, who dialled at {placed:.1f}, has {len(records)} records: "
            f"{[record['call_id'] for record in records]}"
        )


def _checked(record: dict[str, Any]) -> list[str]:
    """Of one record: ended, complete, its times in order."""
    name, wrong = f"call {record['call_id']}", []
    if record["phase"] != "ended" or record["end_reason"] is None or record["ended_at"] is None:
        wrong.append(f"{name} is {record['phase']}, end reason {record['end_reason']}")
    for leg in record["legs"]:
        if leg["state"] != "ended" or leg["ended_at"] is None:
            wrong.append(f"{name}: leg {leg['leg_id']} has no end")
        if (leg["outcome"] is None) != (leg["role"] == "caller"):
            wrong.append(f"{name}: leg {leg['leg_id']} has the outcome {leg['outcome']}")
        wrong += _ordered(
            f"{name}, leg {leg['leg_id']}", leg, "asked_at", "answered_at", "joined_at", "ended_at"
        )
    wrong += _ordered(name, record, "arrived_at", "answered_at", "ended_at")
    times = [step["at"] for step in record["steps"]]
    if times != sorted(times):
        wrong.append(f"{name}: its steps are not in order")
    if not record["steps"] or (
        record["steps"][-1]["at"] > (record["ended_at"] or "9") and not _disposed(record)
    ):
        wrong.append(f"{name}: steps after its end")
    kinds = Counter(step["kind"] for step in record["steps"])
    if kinds["ended"] != 1 or kinds["arrived"] + kinds["adopted"] + kinds["fell_back"] < 1:
        wrong.append(f"{name} has the steps {dict(kinds)}")
    if (record["answered_at"] is None) != (record["ticket_number"] is None):
        wrong.append(f"{name}: answered {record['answered_at']}, ticket {record['ticket_number']}")
    return wrong


def _disposed(record: dict[str, Any]) -> bool:
    return bool(record["steps"][-1]["kind"] == "disposed")


def _ordered(name: str, of: dict[str, Any], *keys: str) -> list[str]:
    there = [(key, of[key]) for key in keys if of[key] is not None]
    if [value for _, value in there] == sorted(value for _, value in there):
        return []
    return [f"{name}: times out of order {there}"]


async def _recordings(
    city: City, record: dict[str, Any], found: Audit, *, lost_audio: bool, slack: float
) -> None:
    if record["answered_at"] is None or any(leg["ended_at"] is None for leg in record["legs"]):
        return  # a leg without an end has been told of
    name = f"call {record['call_id']}"

    async def look() -> dict[str, float]:
        files = await city.leader.get(f"/api/v1/calls/{record['call_id']}/recordings")
        return {
            file["leg_id"] or file["kind"]: file["seconds"]
            for file in files["recordings"]
            if file["kind"] != "message"
        }

    talked = {
        leg["leg_id"]: _seconds(leg["answered_at"], leg["ended_at"])
        for leg in record["legs"][1:]
        if leg["answered_at"] is not None and leg["joined_at"] is not None
    }
    whole = _seconds(record["answered_at"], record["legs"][0]["ended_at"])
    expected = {record["legs"][0]["leg_id"]: whole, "call": whole} | talked
    try:
        files = await until(
            look, lambda files: set(files) >= {k for k, s in expected.items() if s > 1}, seconds=5
        )
    except AssertionError:
        files = await look()
    found.recordings += len(files)
    for which, seconds in expected.items():
        there = files.get(which)
        if there is None:
            if seconds > slack and not lost_audio:
                found.wrong.append(f"{name}: no recording of {which}, which lasted {seconds:.1f} s")
        elif there > seconds + slack or (there < seconds - slack and not lost_audio):
            found.wrong.append(f"{name}: {which} lasted {seconds:.1f} s, its recording {there:.1f} s")


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


async def _tickets(city: City, found: Audit) -> None:
    numbers = [
        record["ticket_number"]
        for records in found.records.values()
        for record in records
        if record["ticket_number"] is not None
    ]
    listed, after = [], ""
    while True:
        page = await city.leader.get(f"/api/v1/tickets?limit=100{after}")
        listed += [ticket["number"] for ticket in page["tickets"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    if sorted(listed) != sorted(numbers):
        odd = {number for number, count in Counter([*listed, *set(numbers)]).items() if count != 2}
        found.wrong.append(f"tickets and answered calls do not agree: {odd or 'a call has two tickets'}")


def _silences(city: City, found: Audit) -> list[str]:
    """Callers who heard nothing for too long, but for the time in which they were speaking a message themselves."""
    wrong = []
    for citizen in city.citizens:
        speaking = [
            (until - float(step["detail"]), until)
            for record in found.records.get(citizen.number, [])
            for step in record["steps"]
            if step["kind"] == "message_left"
            for until in [datetime.fromisoformat(step["at"]).timestamp()]
        ]
        if not citizen.silences:
            found.longest_silence = max(found.longest_silence, citizen.longest_silence)
        for since, seconds in citizen.silences:
            begin, end = city.utc(since), city.utc(since + seconds)
            spoken = sum(max(0.0, min(end, until) - max(begin, start)) for start, until in speaking)
            found.longest_silence = max(found.longest_silence, seconds - spoken)
            if seconds - spoken > DEAD_AIR_SECONDS:
                wrong.append(
                    f"{citizen.number} heard nothing for {seconds:.1f} s from {since - city.began:.1f} on"
                )
    return wrong


def _answers(city: City, found: Audit, *, late: float) -> list[str]:
    """Answers the phones saw are the answers in the records."""
    wrong = []
    joined: Counter[str] = Counter()
    for records in found.records.values():
        for record in records:
            joined.update(leg["address"] for leg in record["legs"][1:] if leg["outcome"] == "joined")
    for person in (*city.agents, *city.specialists):
        mine = [offer.call for offer in city.offers if offer.phone == person.phone.user]
        confirmed = [call for call in mine if call.confirmed.is_set()]
        surely = [call for call in confirmed if (call.ended.at or 0) - (call.answered.at or 0) > late]
        if not len(surely) <= joined[person.phone.user] <= len(confirmed):
            wrong.append(
                f"phone {person.phone.user} answered {len(confirmed)} calls ({len(surely)} lasted), "
                f"the records have {joined[person.phone.user]}"
            )
    return wrong


def shown(wrong: Iterable[str], *, most: int = 12) -> str:
    """The first of them, for a row or a failed test."""
    lines = [*wrong]
    more = [f"… and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])


async def settled(city: City) -> None:
    """Let the ears take in the last packets."""
    await asyncio.sleep(2 * 0.25)
