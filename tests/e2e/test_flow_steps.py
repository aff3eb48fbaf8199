"""What callers hear and do before an agent comes: places in the queue, keys, messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import soundfile

from callcenter.phone.measure import correlation, read_wav
from callcenter.phone.phone import Call
from tests.e2e.house import House, dial, hears, until


@contextlib.asynccontextmanager
async def changed_flow(house: House, line: str, old: str, new: str) -> AsyncIterator[None]:
    """The line with one thing changed on disk, as an operator does it while the house runs."""
    path = house.flows / f"{line}.yaml"
    before = path.read_text(encoding="utf-8")
    assert old in before
    try:
        await _write_and_wait(house, path.write_text, before.replace(old, new))
        yield
    finally:
        await _write_and_wait(house, path.write_text, before)


async def _write_and_wait(house: House, write: Any, text: str) -> None:
    offset = len(house.log.read_bytes())
    write(text, encoding="utf-8")

    async def said() -> str:
        return await asyncio.to_thread(house.said, offset)

    await until(said, lambda words: "flow reloaded" in words or "flow refused" in words)
    assert "flow refused" not in house.said(offset)


async def _hears_prompt(house: House, call: Call, name: str, *, seconds: float = 10) -> None:
    prompt, _ = read_wav(house.flows / "prompts" / "audio" / f"{name}.wav")

    async def likeness() -> float:
        received = await asyncio.to_thread(call.received)
        return correlation(prompt, received)[0] if len(received) > len(prompt) else 0.0

    await until(likeness, lambda peak: peak > 0.95, seconds=seconds)


async def test_a_waiting_caller_is_told_his_place(clean_house: House) -> None:
    """Two wait: the first hears that he is first, the second that he is second; both go on waiting."""
    async with (
        changed_flow(clean_house, "12345", "every_seconds: 30", "every_seconds: 5"),
        clean_house.caller("17100000041") as first,
        clean_house.caller("17100000042") as second,
    ):
        calls = [await dial(first)]
        async with clean_house.rest("leader1") as leader:
            await until(
                lambda: leader.get("/api/v1/queues"),
                lambda q: next(e for e in q["queues"] if e["queue_id"] == "hotline")["waiting"] == 1,
            )
        calls.append(await dial(second))
        await _hears_prompt(clean_house, calls[0], "queue/position_1")
        await _hears_prompt(clean_house, calls[1], "queue/position_2")
        for call in calls:
            assert not call.ended.is_set()
            await call.hang_up()


async def _record_of(house: House, caller: str) -> dict[str, Any]:
    async with house.rest("leader1") as leader:

        async def look() -> list[dict[str, Any]]:
            found = await leader.get("/api/v1/call-records?limit=50")
            return [call for call in found["calls"] if call["caller"] == caller]

        records = await until(look, lambda calls: len(calls) == 1 and calls[0]["phase"] == "ended")
        record: dict[str, Any] = records[0]
        return record


@pytest.mark.parametrize("ends_by", ["key", "hanging up"])
async def test_a_caller_leaves_a_message(clean_house: House, ends_by: str) -> None:
    """Nobody came in time: the message is kept, as he spoke it, and his call says so."""
    caller = "17100000043" if ends_by == "key" else "17100000044"
    async with (
        changed_flow(clean_house, "12345", "max_wait_seconds: 600", "max_wait_seconds: 10"),
        clean_house.caller(caller) as citizen,
    ):
        call = await dial(citizen)
        await _hears_prompt(clean_house, call, "leave_message", seconds=15)
        await asyncio.sleep(3.5)  # the length of the message itself
        if ends_by == "key":
            call.send_digits("#")
            await call.ended.wait(15)
        else:
            await call.hang_up()
    record = await _record_of(clean_house, caller)
    assert record["end_reason"] == "message_left"
    assert any(step["kind"] == "message_left" for step in record["steps"])
    async with clean_house.rest("qa1") as quality:
        found = await until(
            lambda: quality.get(f"/api/v1/calls/{record['call_id']}/recordings"),
            lambda r: len(r["recordings"]) == 1,
        )
        assert found["recordings"][0]["kind"] == "message"
        assert found["recordings"][0]["seconds"] > 2
        path = clean_house.directory / "message.flac"
        path.write_bytes((await quality.raw(found["recordings"][0]["href"]))[2])
    pcm, rate = soundfile.read(path, dtype="int16")
    spectrum = np.abs(np.fft.rfft(pcm[: len(pcm) // rate * rate]))
    assert abs(float(np.argmax(spectrum[100:])) + 100 - 450 * len(pcm[: len(pcm) // rate * rate]) / rate) < 20


async def test_a_caller_hangs_up_in_the_menu(clean_house: House) -> None:
    async with clean_house.caller("17100000045") as citizen:
        call = await dial(citizen, "12346")
        await call.hang_up()
    assert (await _record_of(clean_house, "17100000045"))["end_reason"] == "abandoned_in_flow"


async def test_a_wrong_key_is_told_and_the_menu_comes_again(clean_house: House) -> None:
    async with clean_house.caller("17100000046") as citizen:
        call = await dial(citizen, "12346", sound=None)
        call.send_digits("9")
        await _hears_prompt(clean_house, call, "menu_invalid")
        assert not hears(call)
        await call.hang_up()
