"""A caller may hang up at every single step; each has its end reason, and nothing is left behind (`clean_house`)."""

import asyncio

import pytest

from tests.e2e.house import House, dial, talking, until, until_hears


async def _last_record(house: House, caller: str) -> dict:
    async with house.rest("leader1") as admin:

        async def look() -> list[dict]:
            found = await admin.get("/api/v1/call-records?limit=50")
            return [call for call in found["calls"] if call["caller"] == caller]

        return (await until(look, lambda calls: len(calls) == 1 and calls[0]["phase"] == "ended"))[0]


async def test_in_the_greeting(clean_house: House) -> None:
    async with clean_house.caller("17100000001") as citizen:
        call = await dial(citizen)
        await call.hang_up()
    record = await _last_record(clean_house, "17100000001")
    assert record["end_reason"] == "abandoned_in_flow"
    assert record["ticket_number"] is None


async def test_before_the_answer(clean_house: House) -> None:
    """A CANCEL in the instant of the INVITE: either there is no call, or it has its reason."""
    async with clean_house.caller("17100000002") as citizen:
        call = await citizen.dial("12345")
        await call.cancel()
        await call.ended.wait(5)
        if call.answered.is_set():
            await call.hang_up()


async def test_while_waiting(clean_house: House) -> None:
    async with clean_house.rest("leader1") as leader, clean_house.caller("17100000003") as citizen:
        call = await dial(citizen)
        await until(
            lambda: leader.get("/api/v1/queues"),
            lambda q: next(e for e in q["queues"] if e["queue_id"] == "hotline")["waiting"] == 1,
        )
        await call.hang_up()
    record = await _last_record(clean_house, "17100000003")
    assert record["end_reason"] == "abandoned_waiting"


async def test_while_the_agents_phone_rings(clean_house: House) -> None:
    """The phone stops ringing, and the agent is ready as before: he has missed nothing."""
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller("17100000004") as citizen:
        call = await dial(citizen)
        ringing = await agent.phone.next_call(10)
        await call.hang_up()
        await ringing.cancelled.wait(5)
        await agent.until_state("ready")
    record = await _last_record(clean_house, "17100000004")
    assert record["end_reason"] == "abandoned_ringing"
    assert record["legs"][1]["outcome"] == "caller_gone"


async def test_in_the_same_moment_as_the_agent_answers(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller("17100000005") as citizen:
        call = await dial(citizen)
        ringing = await agent.phone.next_call(10)
        await asyncio.gather(ringing.answer(), call.hang_up(), return_exceptions=True)
        await ringing.ended.wait(10)
        await agent.until(lambda me: me["agent"]["state"] in {"ready", "wrap_up"})
    record = await _last_record(clean_house, "17100000005")
    assert record["end_reason"] in {"abandoned_ringing", "completed"}


@pytest.mark.parametrize("who", ["caller", "agent"])
async def test_in_the_conversation_the_record_says_who_was_first(clean_house: House, who: str) -> None:
    """And a caller whose agent hung up is asked for his rating."""
    async with talking(clean_house, caller="17100000011") as talk:
        await until_hears(talk.call, "agent")
        await (talk.call if who == "caller" else talk.desk).hang_up()
        await talk.agent.until_state("wrap_up")
        if who == "agent":
            talk.call.send_digits("2")
            await talk.until(lambda call: call["rating"] == 2)
        seen = await talk.until(lambda call: any(step["kind"] == "left" for step in call["steps"]))
        first = next(step for step in seen["steps"] if step["kind"] == "left")
        assert first["leg_id"] == (talk.call_id if who == "caller" else f"{talk.call_id}-2")
        if who == "agent":
            await talk.call.ended.wait(10)


async def test_while_on_hold(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller("17100000006") as citizen:
        call = await dial(citizen)
        at_desk = await agent.answers()
        await agent.does("hold", await agent.call_id())
        await call.hang_up()
        await at_desk.ended.wait(5)
        await agent.until_state("wrap_up")
    assert (await _last_record(clean_house, "17100000006"))["end_reason"] == "completed"


async def test_in_the_private_consultation(clean_house: House) -> None:
    """Agent and specialist may finish their sentence; the call ends when one of them goes."""
    async with (
        clean_house.person("agent1", "1001") as agent,
        clean_house.person("spec1", "8001", ready=False) as specialist,
        clean_house.caller("17100000007") as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        await agent.does("invite", await agent.call_id(), user="spec1")
        at_department = await specialist.answers("specialist")
        await call.hang_up()
        await at_department.hang_up()
        await at_desk.ended.wait(5)
    assert (await _last_record(clean_house, "17100000007"))["end_reason"] == "completed"


async def test_with_three_in_the_call(clean_house: House) -> None:
    async with (
        clean_house.person("agent1", "1001") as agent,
        clean_house.person("spec1", "8001", ready=False) as specialist,
        clean_house.caller("17100000008") as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec1")
        at_department = await specialist.answers("specialist")
        await agent.does("merge", call_id)
        await call.hang_up()
        await agent.does("hangup", call_id)
        await at_desk.ended.wait(5)
        await at_department.ended.wait(5)
    assert (await _last_record(clean_house, "17100000008"))["end_reason"] == "completed"


async def test_in_the_rating(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller("17100000009") as citizen:
        call = await dial(citizen)
        at_desk = await agent.answers()
        await agent.does("hangup", await agent.call_id())
        await at_desk.ended.wait(5)
        await call.hang_up()
    record = await _last_record(clean_house, "17100000009")
    assert (record["end_reason"], record["rating"]) == ("completed", None)


async def test_a_caller_who_vanishes_without_a_word(clean_house: House) -> None:
    """No BYE at all: the agent hangs up, and the record is closed."""
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller("17100000010") as citizen:
        await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        citizen.vanish()
        await agent.does("hangup", call_id, to_rating=False)
        await at_desk.ended.wait(5)
    assert (await _last_record(clean_house, "17100000010"))["end_reason"] == "completed"
