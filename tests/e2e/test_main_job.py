"""A call becomes a ticket: the main job from the first ring to the rating."""

import hashlib
import io
from datetime import datetime

import numpy as np
import soundfile

from callcenter.phone.measure import correlation, first_heard, read_wav, shares
from tests.e2e.house import TONES, House, dial, until, until_hears

STEPS = ["arrived", "greeted", "queued", "offered", "answered"]


async def test_a_call_is_greeted_answered_talked_rated_and_stands_as_a_ticket(clean_house: House) -> None:
    """The whole of it, each fact looked up where a person would look."""
    house = clean_house
    greeting, _ = read_wav(house.flows / "prompts" / "audio" / "welcome_12345.wav")
    async with house.person("agent1", "1001") as agent, house.caller("13800001234") as citizen:
        call = await citizen.dial("12345")
        await call.wait_answered(5)

        at_desk = await agent.answers("agent")
        call.play(_tone("caller"), loop=True)
        call_id = await agent.call_id()

        # the greeting was heard, as it was recorded
        peak, _ = correlation(greeting, call.received(until=at_desk.answered.at))
        assert peak > 0.95

        # both hear each other, soon
        await until_hears(call, "agent")
        await until_hears(at_desk, "caller")

        # the ticket is there as soon as somebody has answered
        seen = await until(lambda: agent.call(call_id), lambda c: c["ticket_number"] is not None, seconds=2)
        number = seen["ticket_number"]
        draft = await agent.rest.get(f"/api/v1/tickets/{number}")
        assert draft["status"] == "draft"
        assert [step["kind"] for step in seen["steps"]] == STEPS
        assert (seen["line"], seen["dialled"], seen["caller"]) == ("12345", "12345", "13800001234")

        # the agent hangs up, the caller rates with 1
        await agent.does("wrap-up", call_id, disposition="answered", note="供热咨询", more_time=True)
        await agent.does("hangup", call_id)
        await agent.until_state("wrap_up")
        call.silence()
        call.send_digits("1")
        await call.ended.wait(15)

        ended = await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended")
        assert ended["end_reason"] == "completed"
        assert ended["rating"] == 1
        assert ended["disposition"] == "answered"
        await agent.until_state("ready", seconds=5)

    async with house.rest("qa1") as quality:
        ticket = await until(
            lambda: quality.get(f"/api/v1/tickets/{number}"), lambda t: len(t["recordings"]) == 3
        )
        assert ticket["status"] == "accepted"
        at = [datetime.fromisoformat(step["at"]) for step in ended["steps"]]
        assert at == sorted(at)
        files = {file["kind"]: file for file in ticket["recordings"] if file["kind"] == "call"}
        status, headers, sound = await quality.raw(files["call"]["href"])
        assert status == 200
        assert headers["Content-Type"] == "audio/flac"
        assert hashlib.sha256(sound).hexdigest() == files["call"]["sha256"]
        pcm, rate = soundfile.read(io.BytesIO(sound), dtype="int16")
        assert rate == 8000
        assert pcm.shape[1] == 2
        assert abs(len(pcm) / rate - files["call"]["seconds"]) < 0.01
        assert _holds(pcm[:, 0], "caller")
        assert _holds(pcm[:, 1], "agent")
        assert not _holds(pcm[:, 0], "agent")

        # each party's own file holds its voice, and the other's not
        for leg, (voice, other) in zip(
            ended["legs"], (("caller", "agent"), ("agent", "caller")), strict=True
        ):
            (own,) = (file for file in ticket["recordings"] if file["leg_id"] == leg["leg_id"])
            assert own["complete"]
            _, _, sound = await quality.raw(own["href"])
            said, _ = soundfile.read(io.BytesIO(sound), dtype="int16")
            assert said.ndim == 1
            assert _holds(said, voice)
            assert not _holds(said, other)


async def test_both_hear_each_other_at_once(clean_house: House) -> None:
    """From the agent's answer on, not only after a while: no syllable of the greeting of either is lost."""
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen)
        at_desk = await agent.answers()
        answered = at_desk.answered.at
        await until_hears(call, "agent")
        await until_hears(at_desk, "caller")
        for party, tone in ((call, TONES["agent"]), (at_desk, TONES["caller"])):
            heard = first_heard(party, tone, since=answered)
            assert heard is not None
            assert heard - answered < 1.0
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_a_caller_who_waits_hears_music_and_then_the_agent_who_becomes_ready(
    clean_house: House,
) -> None:
    async with (
        clean_house.person("agent1", "1001", ready=False) as agent,
        clean_house.caller() as citizen,
        clean_house.rest("leader1") as leader,
    ):
        call = await dial(citizen)
        status = await until(
            lambda: leader.get("/api/v1/queues"),
            lambda q: next(e for e in q["queues"] if e["queue_id"] == "hotline")["waiting"] == 1,
        )
        assert status["queues"]
        await until(lambda: _level(call), lambda level: level > 50)  # music
        await agent.set("ready")
        at_desk = await agent.answers()
        await until_hears(call, "agent")
        await at_desk.hang_up()
        await call.hang_up()


async def _level(call: object) -> float:
    received = call.received()[-4000:]  # type: ignore[attr-defined]
    return float(np.sqrt(np.mean(received.astype(float) ** 2))) if len(received) else 0.0


def _tone(name: str) -> np.ndarray:
    from callcenter.phone.measure import tone

    return tone(TONES[name], 1)


def _holds(pcm: np.ndarray, name: str) -> bool:
    """Whether a fifth of the recording's moments hold this tone."""
    frames = pcm[: len(pcm) // 160 * 160].reshape(-1, 160).astype(float)
    turns = np.exp(-2j * np.pi * TONES[name] / 8000 * np.arange(160))
    return bool(np.mean(2 * np.abs((frames * turns).mean(axis=1)) > 1000) > 0.2)


def test_shares_of_nothing_are_zero() -> None:
    """The measure itself must not see what is not there."""
    assert shares([], TONES) == dict.fromkeys(TONES, 0.0)
