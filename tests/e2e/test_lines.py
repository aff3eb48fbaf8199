"""The lines: merged, company, menu; numbers that are not ours; flows changed while calls are up."""

import asyncio

import pytest

from callcenter.phone.measure import correlation, read_wav
from tests.e2e.house import House, dial, until, until_hears


@pytest.mark.parametrize(
    ("number", "queue"), [("12345", "hotline"), ("96500", "hotline"), ("7220000", "company")]
)
async def test_every_line_leads_straight_to_a_person(clean_house: House, number: str, queue: str) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen, number)
        desk = await agent.answers()
        seen = await agent.call(await agent.call_id())
        assert (seen["line"], seen["dialled"], seen["queue"]) == (number, number, queue)
        assert not [step for step in seen["steps"] if step["kind"] == "chose"]
        await until_hears(call, "agent")
        await call.hang_up()
        await desk.ended.wait(5)


async def test_the_menu_line_takes_a_key_while_the_prompt_still_plays(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen, "12346", sound=None)
        call.send_digits("1")
        desk = await agent.answers()
        seen = await agent.call(await agent.call_id())
        assert any(step["kind"] == "chose" and step["detail"].endswith("=1") for step in seen["steps"])
        await call.hang_up()
        await desk.ended.wait(5)


async def test_the_menu_line_leads_to_a_person_when_no_key_is_pressed(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen, "12346", sound=None)
        desk = await agent.answers(seconds=40)
        await call.hang_up()
        await desk.ended.wait(5)


async def test_a_number_that_is_not_ours_is_told_so(clean_house: House) -> None:
    async with clean_house.caller() as citizen:
        call = await citizen.dial("99999")
        await call.ended.wait(5)
        assert call.status == 404


async def test_a_flow_changed_on_disk_is_taken_for_the_next_call_and_a_broken_one_is_refused(
    clean_house: House,
) -> None:
    """A call in progress goes on with the flow it began with."""
    house = clean_house
    path = house.flows / "12345.yaml"
    before = path.read_text(encoding="utf-8")
    try:
        async with house.person("agent1", "1001") as agent, house.caller() as citizen:
            call = await dial(citizen)
            desk = await agent.answers()
            offset = len(house.log.read_bytes())
            path.write_text("line: [", encoding="utf-8")
            await _said(house, offset, "flow refused")
            await until_hears(call, "agent")
            path.write_text(before.replace("welcome_12345", "welcome_7220000"), encoding="utf-8")
            await _said(house, offset, "flow reloaded")
            await until_hears(call, "agent")
            await call.hang_up()
            await desk.ended.wait(5)
            await agent.until_state("ready")
            other, _ = read_wav(house.flows / "prompts" / "audio" / "welcome_7220000.wav")
            call = await dial(citizen)
            desk = await agent.answers()
            peak, _ = correlation(other, call.received(until=desk.answered.at))
            assert peak > 0.95
            await call.hang_up()
            await desk.ended.wait(5)
    finally:
        offset = len(house.log.read_bytes())
        path.write_text(before, encoding="utf-8")
        await _said(house, offset, "flow reloaded")


async def _said(house: House, offset: int, words: str) -> None:
    async def look() -> str:
        return await asyncio.to_thread(house.said, offset)

    await until(look, lambda said: words in said)


async def test_strange_caller_names_and_numbers_do_no_harm(clean_house: House) -> None:
    """What the network says of the caller is stored, never obeyed."""
    names = ['张三"; DROP TABLE calls;--', "${SHELL(id)}", "a|b,c&d", "x" * 300, "<script>alert(1)</script>"]
    for name in names:
        async with clean_house.caller("17100000099") as citizen:
            call = await citizen.dial("12345", caller_name=name)
            await call.wait_answered(5)
            await call.hang_up()
