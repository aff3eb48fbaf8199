"""Specialists in the call: privately first, together, one leaves; every attempt has its outcome."""

import pytest

from tests.e2e.house import House, Person, ProblemError, dial, until, until_hears


async def test_privately_first_then_together_then_the_other_two(clean_house: House) -> None:
    """Music for the caller meanwhile, everybody hears the other two, the agent leaves and the talk goes on."""
    house = clean_house
    async with (
        house.person("agent1", "1001") as agent,
        house.person("spec1", "8001", ready=False) as specialist,
        house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await until_hears(call, "agent")

        await agent.does("invite", call_id, user="spec1")
        at_department = await specialist.answers("specialist")
        await until_hears(at_desk, "specialist")
        await until_hears(at_department, "agent")
        await until_hears(call)  # music, and neither of the two

        await agent.does("merge", call_id)
        await until_hears(call, "agent", "specialist")
        await until_hears(at_desk, "caller", "specialist")
        await until_hears(at_department, "caller", "agent")

        await agent.does("leave", call_id)
        await at_desk.ended.wait(5)
        await until_hears(call, "specialist")
        await until_hears(at_department, "caller")
        await agent.until_state("wrap_up")

        await at_department.hang_up()
        await call.hang_up()
        ended = await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended")
        third = ended["legs"][2]
        assert (third["role"], third["outcome"], third["user_id"]) == ("specialist", "joined", "spec1")
        assert third["joined_at"] is not None
        kinds = [step["kind"] for step in ended["steps"]]
        for kind in ("invited", "held", "consulted", "joined", "left", "ended"):
            assert kind in kinds
        assert [person["user_id"] for person in ended["handled_by"]] == ["agent1"]


async def test_a_specialist_is_found_by_skill_and_the_next_one_is_tried(clean_house: House) -> None:
    """The first declines; the second, with the same skill, is rung by itself."""
    house = clean_house
    async with (
        house.person("agent1", "1001") as agent,
        house.person("spec1", "8001", ready=False) as first,
        house.person("spec2", "8002", ready=False) as second,
        house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, skill="enterprise")
        one, other = await _whoever_rings(first, second)
        await (await one.phone.next_call(10)).reject(603)
        at_department = await other.answers("specialist")
        await until_hears(at_desk, "specialist")
        await agent.does("merge", call_id)
        await until_hears(call, "agent", "specialist")
        await agent.does("hangup", call_id, to_rating=False)
        await at_department.ended.wait(5)
        outcomes = [leg["outcome"] for leg in (await agent.call(call_id))["legs"][2:]]
        assert outcomes == ["refused", "joined"]


async def _whoever_rings(first: Person, second: Person) -> tuple[Person, Person]:
    async def look() -> list[str]:
        return [await first.state(), await second.state()]

    states = await until(look, lambda seen: "offered" in seen)
    return (first, second) if states[0] == "offered" else (second, first)


@pytest.mark.parametrize(
    ("status", "outcome"), [(486, "busy"), (603, "refused"), (480, "unreachable"), (404, "unreachable")]
)
async def test_what_the_specialists_phone_says_is_the_outcome(
    clean_house: House, status: int, outcome: str
) -> None:
    house = clean_house
    async with (
        house.person("agent1", "1001") as agent,
        house.person("spec1", "8001", ready=False) as specialist,
        house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec1")
        await (await specialist.phone.next_call(10)).reject(status)
        seen = await until(lambda: agent.call(call_id), lambda c: c["legs"][2]["outcome"] is not None)
        assert seen["legs"][2]["outcome"] == outcome
        await agent.does("resume", call_id)
        await until_hears(call, "agent")
        await until_hears(at_desk, "caller")
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_a_specialist_without_a_phone_is_unreachable_at_once(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec2")
        seen = await agent.call(call_id)
        assert seen["legs"][2]["outcome"] == "unreachable"
        await until_hears(call, "agent")  # the caller was not put on hold for nobody
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_a_specialist_who_is_talking_is_busy(clean_house: House) -> None:
    house = clean_house
    async with (
        house.person("agent2", "1002") as one,
        house.person("agent1", "1001") as two,
        house.person("spec1", "8001", ready=False) as specialist,
        house.caller("13800000001") as first,
        house.caller("13800000002") as second,
    ):
        calls = [await dial(first)]
        desks = [await one.answers()]
        calls.append(await dial(second))
        desks.append(await two.answers())
        first_id, second_id = await one.call_id(), await two.call_id()
        await one.does("invite", first_id, user="spec1")
        at_department = await specialist.answers("specialist")
        await until_hears(desks[0], "specialist")
        await two.does("invite", second_id, user="spec1")
        assert (await two.call(second_id))["legs"][2]["outcome"] == "busy"
        for call in calls:
            await call.hang_up()
        for call in [*desks, at_department]:
            if not call.ended.is_set():
                await call.hang_up()


async def test_a_caller_who_hangs_up_while_the_specialist_rings(clean_house: House) -> None:
    """The ringing stops and the attempt is counted as: caller gone."""
    house = clean_house
    async with (
        house.person("agent1", "1001") as agent,
        house.person("spec1", "8001", ready=False) as specialist,
        house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec1")
        ringing = await specialist.phone.next_call(10)
        await call.hang_up()
        await ringing.cancelled.wait(5)
        await at_desk.ended.wait(5)
        seen = await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended")
        assert seen["legs"][2]["outcome"] == "caller_gone"


async def test_the_agent_takes_the_invitation_back(clean_house: House) -> None:
    house = clean_house
    async with (
        house.person("agent1", "1001") as agent,
        house.person("spec1", "8001", ready=False) as specialist,
        house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec1")
        ringing = await specialist.phone.next_call(10)
        leg = (await agent.call(call_id))["legs"][2]["leg_id"]
        with pytest.raises(ProblemError) as refused:
            await agent.does("invite", call_id, user="spec1")
        assert refused.value.reason == "already_inviting"
        await agent.does("drop", call_id, leg_id=leg)
        await ringing.cancelled.wait(5)
        await until(lambda: agent.call(call_id), lambda c: c["legs"][2]["outcome"] == "withdrawn")
        await agent.does("resume", call_id)
        await until_hears(call, "agent")
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_a_party_is_muted_and_dropped(clean_house: House) -> None:
    house = clean_house
    async with (
        house.person("agent1", "1001") as agent,
        house.person("spec1", "8001", ready=False) as specialist,
        house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await agent.answers()
        call_id = await agent.call_id()
        await agent.does("invite", call_id, user="spec1", privately=False)
        at_department = await specialist.answers("specialist")
        await until_hears(call, "agent", "specialist")
        leg = next(e["leg_id"] for e in (await agent.call(call_id))["legs"] if e["user_id"] == "spec1")
        await agent.does("mute", call_id, leg_id=leg, on=True)
        await until_hears(call, "agent")
        await agent.does("mute", call_id, leg_id=leg, on=False)
        await until_hears(call, "agent", "specialist")
        await agent.does("drop", call_id, leg_id=leg)
        await at_department.ended.wait(5)
        await until_hears(call, "agent")
        await until_hears(at_desk, "caller")
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_the_report_counts_every_attempt(clean_house: House) -> None:
    """What the tests above did, and this one, add up: nothing without an outcome."""
    async with clean_house.rest("leader1") as leader:
        report = await leader.get("/api/v1/reports/invitations")
        assert report["total"] == sum(row["count"] for row in report["outcomes"])
