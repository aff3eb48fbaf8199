"""Calls given to somebody else: to an agent, a queue, an outside number; and what happens when that fails."""

import pytest

from callcenter.phone.measure import tone
from tests.e2e.house import TONES, House, ProblemError, talking, until, until_hears


async def test_blind_to_an_agent(clean_house: House) -> None:
    async with talking(clean_house) as talk, clean_house.person("agent2", "1002") as colleague:
        await talk.does("transfer", agent="agent2")
        await talk.desk.ended.wait(5)
        new_desk = await colleague.answers("other")
        await until_hears(talk.call, "other")
        seen = await colleague.call(talk.call_id)
        assert [person["user_id"] for person in seen["handled_by"]] == ["agent1", "agent2"]
        await talk.agent.until_state("wrap_up")
        await talk.call.hang_up()
        await new_desk.ended.wait(5)
        await colleague.until_state("wrap_up")


async def test_a_transfer_that_nobody_answers_returns_to_the_queue(clean_house: House) -> None:
    """The agent aimed at declines: the caller goes back to the front of his queue, never lost."""
    async with (
        talking(clean_house) as talk,
        clean_house.person("agent2", "1002") as unwilling,
        clean_house.person("agent3", "1003", ready=False) as third,
    ):
        await talk.does("transfer", agent="agent2")
        await talk.desk.ended.wait(5)
        await (await unwilling.phone.next_call(10)).reject(603)
        await third.set("ready")
        new_desk = await third.answers("other")
        await until_hears(talk.call, "other")
        await talk.call.hang_up()
        await new_desk.ended.wait(5)


async def test_to_a_queue(clean_house: House) -> None:
    async with talking(clean_house) as talk, clean_house.person("agent3", "1003", ready=False) as colleague:
        await talk.does("transfer", queue="company")
        await talk.desk.ended.wait(5)
        await until(
            lambda: colleague.rest.get("/api/v1/queues"),
            lambda seen: next(q for q in seen["queues"] if q["queue_id"] == "company")["waiting"] == 1,
        )
        await colleague.set("ready")
        new_desk = await colleague.answers("other")
        await until_hears(talk.call, "other")
        assert (await colleague.call(talk.call_id))["queue"] == "company"
        await talk.call.hang_up()
        await new_desk.ended.wait(5)


async def test_to_an_outside_number_of_the_allowed_list(clean_house: House) -> None:
    """110 answers through the trunk; the agent goes, caller and police talk."""
    async with talking(clean_house) as talk, clean_house.carrier_side() as carrier:
        await talk.does("transfer", number="110")
        await talk.desk.ended.wait(5)
        police = await carrier.next_call(10)
        await police.answer()
        police.play(tone(TONES["other"], 1), loop=True)
        await until_hears(talk.call, "other")
        await until_hears(police, "caller")
        await police.hang_up()


async def test_a_number_that_is_not_on_the_list_is_refused(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        for number in ("008613812345678", "110@evil.example", "110,1", "PJSIP/1002"):
            with pytest.raises(ProblemError) as refused:
                await talk.does("transfer", number=number)
            assert refused.value.status in {400, 409}
        await until_hears(talk.call, "agent")


async def test_attended_the_agent_leaves_after_talking_to_the_specialist(clean_house: House) -> None:
    async with talking(clean_house, specialist=True) as talk:
        await talk.does("invite", user="spec1")
        third = await talk.specialist.answers("specialist")
        await until_hears(talk.desk, "specialist")
        await talk.does("leave")
        await talk.desk.ended.wait(5)
        await until_hears(talk.call, "specialist")
        await until_hears(third, "caller")
        await talk.call.hang_up()
        await third.ended.wait(5)


async def test_nobody_to_leave_the_caller_with(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        with pytest.raises(ProblemError) as refused:
            await talk.does("leave")
        assert refused.value.reason == "nobody_left"
        await until_hears(talk.call, "agent")
