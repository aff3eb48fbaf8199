"""Calls given to somebody else: to an agent, a queue, an outside number; and what happens when that fails."""

import pytest

from tests.e2e.house import House, ProblemError, dial, until, until_hears


async def test_blind_to_an_agent(clean_house: House) -> None:
    async with (
        clean_house.person("agent1", "1001") as first,
        clean_house.person("agent2", "1002") as second,
        clean_house.caller() as citizen,
    ):
        await second.set("not_ready", "meeting")
        call = await dial(citizen)
        desk = await first.answers()
        await second.set("ready")
        call_id = await first.call_id()
        await first.does("transfer", call_id, agent="agent2")
        await desk.ended.wait(5)
        new_desk = await second.answers("other")
        await until_hears(call, "other")
        seen = await second.call(call_id)
        assert [person["user_id"] for person in seen["handled_by"]] == ["agent1", "agent2"]
        await first.until_state("wrap_up")
        await call.hang_up()
        await new_desk.ended.wait(5)
        await second.until_state("wrap_up")


async def test_a_transfer_that_nobody_answers_returns_to_the_queue(clean_house: House) -> None:
    """The agent aimed at declines: the caller goes back to the front of his queue, never lost."""
    async with (
        clean_house.person("agent1", "1001") as first,
        clean_house.person("agent2", "1002", ready=False) as second,
        clean_house.person("agent3", "1003", ready=False) as third,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        desk = await first.answers()
        await second.set("ready")
        await first.does("transfer", await first.call_id(), agent="agent2")
        await desk.ended.wait(5)
        await (await second.phone.next_call(10)).reject(603)
        await third.set("ready")
        new_desk = await third.answers("other")
        await until_hears(call, "other")
        await call.hang_up()
        await new_desk.ended.wait(5)


async def test_to_a_queue(clean_house: House) -> None:
    async with (
        clean_house.person("agent1", "1001") as first,
        clean_house.person("agent3", "1003", ready=False) as second,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        desk = await first.answers()
        call_id = await first.call_id()
        await first.does("transfer", call_id, queue="company")
        await desk.ended.wait(5)
        seen = await until(lambda: second.rest.get("/api/v1/queues"), _waits_at("company"))
        assert seen
        await second.set("ready")
        new_desk = await second.answers("other")
        await until_hears(call, "other")
        assert (await second.call(call_id))["queue"] == "company"
        await call.hang_up()
        await new_desk.ended.wait(5)


def _waits_at(queue_id: str):
    return lambda seen: next(q for q in seen["queues"] if q["queue_id"] == queue_id)["waiting"] == 1


async def test_to_an_outside_number_of_the_allowed_list(clean_house: House) -> None:
    """110 answers through the trunk; the agent goes, caller and police talk."""
    async with (
        clean_house.person("agent1", "1001") as agent,
        clean_house.carrier_side() as carrier,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("transfer", call_id, number="110")
        await desk.ended.wait(5)
        police = await carrier.next_call(10)
        await police.answer()
        police.play(_tone(), loop=True)
        await until_hears(call, "other")
        await until_hears(police, "caller")
        await police.hang_up()
        await call.hang_up()


def _tone():
    from callcenter.phone.measure import tone
    from tests.e2e.house import TONES

    return tone(TONES["other"], 1)


async def test_a_number_that_is_not_on_the_list_is_refused(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen)
        desk = await agent.answers()
        call_id = await agent.call_id()
        for number in ("008613812345678", "110@evil.example", "110,1", "PJSIP/1002"):
            with pytest.raises(ProblemError) as refused:
                await agent.does("transfer", call_id, number=number)
            assert refused.value.reason in {"number_not_allowed", "bad_request"}
        await until_hears(call, "agent")
        await call.hang_up()
        await desk.ended.wait(5)


async def test_attended_the_agent_leaves_after_talking_to_the_specialist(clean_house: House) -> None:
    async with (
        clean_house.person("agent1", "1001") as agent,
        clean_house.person("spec1", "8001", ready=False) as specialist,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec1")
        at_department = await specialist.answers("specialist")
        await until_hears(desk, "specialist")
        await agent.does("leave", call_id)
        await desk.ended.wait(5)
        await until_hears(call, "specialist")
        await until_hears(at_department, "caller")
        await call.hang_up()
        await at_department.ended.wait(5)


async def test_nobody_to_leave_the_caller_with(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen)
        desk = await agent.answers()
        with pytest.raises(ProblemError) as refused:
            await agent.does("leave", await agent.call_id())
        assert refused.value.reason == "nobody_left"
        await call.hang_up()
        await desk.ended.wait(5)
