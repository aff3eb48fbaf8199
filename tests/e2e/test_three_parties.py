"""Specialists in the call: privately first, together, one leaves; every attempt has its outcome."""

import pytest

from tests.e2e.house import House, Person, ProblemError, dial, talking, until, until_hears


async def test_privately_first_then_together_then_the_other_two(clean_house: House) -> None:
    """Music for the caller meanwhile, everybody hears the other two, the agent leaves and the talk goes on."""
    async with talking(clean_house, specialist=True) as talk:
        await until_hears(talk.call, "agent")

        await talk.does("invite", user="spec1")
        third = await talk.specialist.answers("specialist")
        await until_hears(talk.desk, "specialist")
        await until_hears(third, "agent")
        await until_hears(talk.call)  # music, and neither of the two

        await talk.does("merge")
        await until_hears(talk.call, "agent", "specialist")
        await until_hears(talk.desk, "caller", "specialist")
        await until_hears(third, "caller", "agent")

        await talk.does("leave")
        await talk.desk.ended.wait(5)
        await until_hears(talk.call, "specialist")
        await until_hears(third, "caller")
        await talk.agent.until_state("wrap_up")

        await third.hang_up()
        await talk.call.hang_up()
        ended = await talk.until(lambda call: call["phase"] == "ended")
        leg = ended["legs"][2]
        assert (leg["role"], leg["outcome"], leg["user_id"]) == ("specialist", "joined", "spec1")
        assert leg["joined_at"] is not None
        kinds = [step["kind"] for step in ended["steps"]]
        for kind in ("invited", "held", "consulted", "joined", "left", "ended"):
            assert kind in kinds
        assert [person["user_id"] for person in ended["handled_by"]] == ["agent1"]


async def test_a_specialist_is_found_by_skill_and_the_next_one_is_tried(clean_house: House) -> None:
    """The first declines; the second, with the same skill, is rung by itself."""
    async with (
        talking(clean_house, specialist=True) as talk,
        clean_house.person("spec2", "8002", ready=False) as second,
    ):
        await talk.does("invite", skill="enterprise")
        one, other = await _whoever_rings(talk.specialist, second)
        await (await one.phone.next_call(10)).reject(603)
        third = await other.answers("specialist")
        await until_hears(talk.desk, "specialist")
        await talk.does("merge")
        await until_hears(talk.call, "agent", "specialist")
        await talk.does("hangup", to_rating=False)
        await third.ended.wait(5)
        outcomes = [leg["outcome"] for leg in (await talk.seen())["legs"][2:]]
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
    async with talking(clean_house, specialist=True) as talk:
        await talk.does("invite", user="spec1")
        await (await talk.specialist.phone.next_call(10)).reject(status)
        seen = await talk.until(lambda call: call["legs"][2]["outcome"] is not None)
        assert seen["legs"][2]["outcome"] == outcome
        await talk.does("resume")
        await until_hears(talk.call, "agent")
        await until_hears(talk.desk, "caller")


async def test_a_specialist_without_a_phone_is_unreachable_at_once(clean_house: House) -> None:
    """The caller is not put on hold for nobody."""
    async with talking(clean_house) as talk:
        await talk.does("invite", user="spec2")
        assert (await talk.seen())["legs"][2]["outcome"] == "unreachable"
        await until_hears(talk.call, "agent")


async def test_a_specialist_who_is_talking_is_busy(clean_house: House) -> None:
    async with talking(clean_house, specialist=True) as talk:
        await talk.does("invite", user="spec1")
        third = await talk.specialist.answers("specialist")
        await until_hears(talk.desk, "specialist")
        async with (
            clean_house.person("agent2", "1002") as colleague,
            clean_house.caller("13800000002") as other,
        ):
            call = await dial(other)
            desk = await colleague.answers()
            call_id = await colleague.call_id()
            await colleague.does("invite", call_id, user="spec1")
            assert (await colleague.call(call_id))["legs"][2]["outcome"] == "busy"
            await call.hang_up()
            await desk.ended.wait(5)
        await third.hang_up()


async def test_a_caller_who_hangs_up_while_the_specialist_rings(clean_house: House) -> None:
    """The ringing stops and the attempt is counted as: caller gone."""
    async with talking(clean_house, specialist=True) as talk:
        await talk.does("invite", user="spec1")
        ringing = await talk.specialist.phone.next_call(10)
        await talk.call.hang_up()
        await ringing.cancelled.wait(5)
        await talk.desk.ended.wait(5)
        seen = await talk.until(lambda call: call["phase"] == "ended")
        assert seen["legs"][2]["outcome"] == "caller_gone"


async def test_the_agent_takes_the_invitation_back(clean_house: House) -> None:
    async with talking(clean_house, specialist=True) as talk:
        await talk.does("invite", user="spec1")
        ringing = await talk.specialist.phone.next_call(10)
        leg = (await talk.seen())["legs"][2]["leg_id"]
        with pytest.raises(ProblemError) as refused:
            await talk.does("invite", user="spec1")
        assert refused.value.reason == "already_inviting"
        await talk.does("drop", leg_id=leg)
        await ringing.cancelled.wait(5)
        await talk.until(lambda call: call["legs"][2]["outcome"] == "withdrawn")
        await talk.does("resume")
        await until_hears(talk.call, "agent")


async def test_a_party_is_muted_and_dropped(clean_house: House) -> None:
    async with talking(clean_house, specialist=True) as talk:
        await talk.does("invite", user="spec1", privately=False)
        third = await talk.specialist.answers("specialist")
        await until_hears(talk.call, "agent", "specialist")
        leg = (await talk.seen())["legs"][2]["leg_id"]
        await talk.does("mute", leg_id=leg, on=True)
        await until_hears(talk.call, "agent")
        await talk.does("mute", leg_id=leg, on=False)
        await until_hears(talk.call, "agent", "specialist")
        await talk.does("drop", leg_id=leg)
        await third.ended.wait(5)
        await until_hears(talk.call, "agent")
        await until_hears(talk.desk, "caller")


async def test_the_report_counts_every_attempt(clean_house: House) -> None:
    """One more attempt is one more in the report, under its outcome."""
    async with clean_house.rest("leader1") as leader:
        before = _counts(await leader.get("/api/v1/reports/invitations"))
        async with talking(clean_house) as talk:
            await talk.does("invite", user="spec2")
        after = await until(
            lambda: leader.get("/api/v1/reports/invitations"), lambda report: _counts(report) != before
        )
        assert _counts(after) == before | {"unreachable": before["unreachable"] + 1}
        assert after["total"] == sum(before.values()) + 1


def _counts(report: dict) -> dict[str, int]:
    return {row["outcome"]: row["count"] for row in report["outcomes"]}
