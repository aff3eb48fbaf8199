"""The telephony against a scripted manager interface: what a resync puts right, and what a cut in its middle leaves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from callcenter.asterisk.telephony import Telephony
from callcenter.domain.agents import Agent, AgentState
from callcenter.domain.calls import Call, CallId, LegId, Outcome, Phase, Role
from callcenter.domain.messages import (
    CallArrived,
    Event,
    LegEnded,
    Record,
    Ring,
    TakeMessage,
    TelephonyLost,
    TelephonyResynced,
)
from callcenter.domain.recordings import RecordingKind
from tests.contract.scripted_ami import Answer, Received, ScriptedAmi, message, nothing, success
from tests.domain.house import LI, ZHANG

CALL = CallId("ast1-1763763843.1")


def listed(*rows: dict[str, str], complete: str = "ListComplete") -> Answer:
    """An answer: the rows of a list and its end."""

    def answer(action: Received) -> bytes:
        own = {"ActionID": action.get("ActionID")}
        told = [*rows, {"Event": complete, "EventList": "Complete"}]
        return success(action, EventList="start") + b"".join(message(**own, **row) for row in told)

    return answer


def no_disk(_call: Call, _leg: LegId, _kind: RecordingKind) -> Path:
    raise OSError(28, "No space left on device")


async def none_of(_: Collection[CallId]) -> set[CallId]:
    return set()


@asynccontextmanager
async def telephony(peer: ScriptedAmi, post: Callable[[Event], None]) -> AsyncIterator[Telephony]:
    for action in ("CoreShowChannels", "PJSIPShowContacts", "DBGetTree"):
        peer.answers.setdefault(action, listed())
    peer.answers.setdefault("QueueStatus", listed(complete="QueueStatusComplete"))
    made = Telephony(
        host="127.0.0.1",
        port=peer.port,
        username="engine",
        secret="right",
        prompts=Path("/prompts"),
        raw_path=no_disk,
        instance=Path("/nowhere"),
        post=post,
        attempted=lambda _: None,
        calls=dict,
        alarm=lambda _: None,
        recorded=none_of,
    )
    running = asyncio.create_task(made.run(), name="telephony")
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def is_(agent: Agent, state: AgentState) -> Agent:
    return replace(agent, state=state)


async def test_the_fallback_queue_is_made_what_the_ready_agents_are_after_every_connection() -> None:
    """Given one who was ready before there was a connection, and an old Asterisk that knows another."""
    zhang, li = Agent(ZHANG), Agent(LI)
    posted: list[Event] = []
    async with ScriptedAmi() as peer:
        old = {"Event": "QueueMember", "Queue": "fallback", "Location": "PJSIP/1002"}
        peer.answers["QueueStatus"] = listed(old, complete="QueueStatusComplete")
        async with telephony(peer, posted.append) as phones:
            phones.mirror(is_(zhang, AgentState.READY))
            phones.mirror(is_(li, AgentState.NOT_READY))
            assert (await peer.expect("QueueAdd")).get("Interface") == "PJSIP/1001"
            assert (await peer.expect("QueueRemove")).get("Interface") == "PJSIP/1002"
            # A new Asterisk, whose queue is empty.
            peer.answers["QueueStatus"] = listed(complete="QueueStatusComplete")
            await peer.drop()
            again = await peer.expect("QueueAdd", count=2)
            assert (again.get("Interface"), again.connection) == ("PJSIP/1001", 2)
            assert len(peer.named("QueueRemove")) == 1


async def test_a_cut_in_the_middle_of_a_resync_leads_to_a_whole_one() -> None:
    """Nothing of the half that was gathered is told."""
    posted: list[Event] = []
    async with ScriptedAmi() as peer:
        whole = listed()
        peer.answers["PJSIPShowContacts"] = nothing
        async with telephony(peer, posted.append) as phones:
            await peer.expect("PJSIPShowContacts")
            assert not phones.connected
            peer.answers["PJSIPShowContacts"] = whole
            await peer.drop()
            await peer.expect("QueueStatus")
            async with asyncio.timeout(5):
                while not phones.connected:
                    await asyncio.sleep(0.01)
    assert [type(each) for each in posted[:2]] == [TelephonyLost, TelephonyResynced]


async def test_a_full_disk_costs_the_recording_and_not_the_call() -> None:
    posted: list[Event] = []
    call = Call(CALL, "12345", "1", "12345", "1", datetime.now(UTC), Phase.TALKING, ())
    async with ScriptedAmi() as peer, telephony(peer, posted.append) as phones:
        phones.perform(Record(call, LegId(CALL)))
        with pytest.raises(OSError, match="No space"):
            phones.perform(TakeMessage(call, LegId(CALL), 60))


async def test_a_ring_of_which_asterisk_says_nothing_is_taken_back() -> None:
    """It counts as unreachable after five seconds, and a phone that rings nevertheless stops."""
    told: asyncio.Queue[Event] = asyncio.Queue()
    leg_id = LegId(f"{CALL}-2")
    async with ScriptedAmi() as peer:
        peer.answers["Originate"] = nothing
        async with telephony(peer, told.put_nowait) as phones:
            assert isinstance(await told.get(), TelephonyResynced)
            phones.perform(Ring(CALL, leg_id, Role.AGENT, "1001", 20, "13800138000", "12345"))
            async with asyncio.timeout(10):
                assert await told.get() == LegEnded(leg_id, Outcome.UNREACHABLE)
            assert (await peer.expect("Hangup")).get("Channel") == leg_id


async def test_a_caller_who_is_gone_before_he_has_arrived_still_called() -> None:
    """He hung up in the instant of the answer: the dialplan never came to CallArrived."""
    posted: list[Event] = []
    here = {"Uniqueid": str(CALL), "CallerIDNum": "13800138000", "Dialled": "12345"}
    async with ScriptedAmi() as peer, telephony(peer, posted.append) as phones:
        await peer.until(lambda: phones.connected)
        await peer.send(message(Event="UserEvent", UserEvent="CallComing", **here))
        await peer.send(message(Event="Hangup", Uniqueid=str(CALL), Cause="16"))
        await peer.until(lambda: len(posted) == 3)
    ended = LegEnded(LegId(CALL), Outcome.UNREACHABLE)
    assert posted[1:3] == [CallArrived(CALL, "13800138000", "12345"), ended]


async def test_a_caller_who_has_arrived_arrives_once() -> None:
    posted: list[Event] = []
    here = {"Uniqueid": str(CALL), "CallerIDNum": "13800138000", "Dialled": "12345"}
    async with ScriptedAmi() as peer, telephony(peer, posted.append) as phones:
        await peer.until(lambda: phones.connected)
        for told in ("CallComing", "CallArrived"):
            await peer.send(message(Event="UserEvent", UserEvent=told, **here))
        await peer.send(message(Event="Hangup", Uniqueid=str(CALL), Cause="16"))
        await peer.until(lambda: len(posted) == 3)
    assert [type(each) for each in posted[1:3]] == [CallArrived, LegEnded]
