"""Agents who miss, reject, vanish or contradict themselves: the caller is never lost for it."""

import asyncio

import pytest

from tests.e2e.house import House, ProblemError, Talk, dial, talking, until, until_hears


async def test_a_missed_offer_goes_to_the_next_agent(clean_house: House) -> None:
    """Nobody picks up at the first desk: not ready there, and the second rings."""
    async with (
        clean_house.person("agent2", "1002") as sleeper,
        clean_house.person("agent1", "1001") as awake,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        ringing = await sleeper.phone.next_call(10)
        at_desk = await awake.answers()
        await ringing.cancelled.wait(5)
        me = await sleeper.until_state("not_ready")
        assert me["agent"]["reason"] == "missed"
        await until_hears(call, "agent")
        seen = await awake.call(await awake.call_id())
        assert [leg["outcome"] for leg in seen["legs"][1:]] == ["no_answer", "joined"]
        await call.hang_up()
        await at_desk.ended.wait(5)


@pytest.mark.parametrize("status", [486, 603])
async def test_a_rejected_offer_goes_to_the_next_agent(clean_house: House, status: int) -> None:
    async with (
        clean_house.person("agent2", "1002") as busy,
        clean_house.person("agent1", "1001") as awake,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        await (await busy.phone.next_call(10)).reject(status)
        at_desk = await awake.answers()
        assert (await busy.until_state("not_ready"))["agent"]["reason"] == "rejected"
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_an_agent_without_a_phone_cannot_be_ready(clean_house: House) -> None:
    async with clean_house.rest("agent3") as rest:
        with pytest.raises(ProblemError) as refused:
            await rest.put("/api/v1/me/state", {"state": "ready"})
        assert refused.value.status == 409
        assert refused.value.reason == "phone_unreachable"
        assert "话机" in refused.value.body["error"]["message_zh"]


async def test_a_phone_that_is_switched_off_makes_its_agent_not_ready(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent:
        await agent.phone.unregister()
        me = await agent.until_state("not_ready")
        assert me["agent"]["reason"] == "no_phone"


async def test_a_phone_that_vanished_costs_its_caller_a_few_seconds_and_no_more(clean_house: House) -> None:
    """The cable was pulled: the offer finds nobody, and the next agent gets the call."""
    async with (
        clean_house.person("agent2", "1002") as gone,
        clean_house.person("agent1", "1001") as awake,
        clean_house.caller() as citizen,
    ):
        gone.phone.vanish()
        call = await dial(citizen)
        at_desk = await awake.answers()
        await gone.until_state("not_ready")
        await until_hears(call, "agent")
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_the_most_skilled_agent_is_first(clean_house: House) -> None:
    """Level before idleness: agent2 has 5 at the hotline, agent1, who is free for longer, 3."""
    async with (
        clean_house.person("agent1", "1001") as one,
        clean_house.person("agent2", "1002") as two,
        clean_house.caller() as citizen,
    ):
        call = await dial(citizen)
        at_desk = await two.answers()
        assert await one.state() == "ready"
        await call.hang_up()
        await at_desk.ended.wait(5)


async def test_not_ready_asked_during_a_call_comes_after_it(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        directory = await talk.agent.rest.get("/api/v1/directory")
        reason = directory["not_ready_reasons"][0]["code"]
        await talk.agent.set("not_ready", reason)
        assert await talk.agent.state() == "talking"
        await talk.call.hang_up()
        await talk.agent.until_state("wrap_up")
        me = await talk.agent.until_state("not_ready")
        assert me["agent"]["reason"] == reason


async def test_an_unknown_reason_is_refused(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent:
        with pytest.raises(ProblemError) as refused:
            await agent.set("not_ready", "no such reason")
        assert refused.value.reason == "unknown_reason"
        assert await agent.state() == "ready"


async def test_hold_and_resume_and_two_commands_that_contradict(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        await until_hears(talk.call, "agent")
        await talk.does("hold")
        await until_hears(talk.call)
        assert await talk.agent.state() == "held"
        assert await _refused(talk, "hold") == "already_held"
        await talk.does("resume")
        await until_hears(talk.call, "agent")
        await until_hears(talk.desk, "caller")
        assert await _refused(talk, "resume") == "not_held"
        await talk.does("hangup", to_rating=False)
        await talk.call.ended.wait(5)
        assert await _refused(talk, "hold") in {"call_ended", "no_such_call"}


async def _refused(talk: Talk, command: str, **body: object) -> str:
    with pytest.raises(ProblemError) as refused:
        await talk.does(command, **body)
    return refused.value.reason


async def test_a_colleague_cannot_touch_the_call(clean_house: House) -> None:
    async with (
        talking(clean_house) as talk,
        clean_house.person("agent2", "1002", ready=False) as stranger,
    ):
        with pytest.raises(ProblemError) as refused:
            await stranger.does("hangup", talk.call_id)
        assert refused.value.reason in {"not_your_call", "no_such_call"}
        await until_hears(talk.call, "agent")


async def test_muting_oneself(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        await until_hears(talk.call, "agent")
        await talk.does("mute", on=True)
        await until_hears(talk.call)
        await until_hears(talk.desk, "caller")
        await talk.does("mute", on=False)
        await until_hears(talk.call, "agent")


async def test_wrap_up_is_timed_and_ends_with_the_disposition(clean_house: House) -> None:
    async with talking(clean_house) as talk:
        await talk.call.hang_up()
        me = await talk.agent.until_state("wrap_up")
        assert me["agent"]["wrap_up_ends_at"] is not None
        assert await _refused(talk, "wrap-up", disposition="no such disposition") == "unknown_disposition"
        await talk.does("wrap-up", disposition="answered", note="")
        await talk.agent.until_state("ready", seconds=1)
        assert (await talk.until(lambda call: call["disposition"] is not None))["disposition"] == "answered"


async def test_who_is_disabled_is_rung_no_more_and_comes_back(clean_house: House) -> None:
    """Also one who has no screen whose closing could tell."""
    async with (
        clean_house.phone("1001"),
        clean_house.rest("agent1") as rest,
        clean_house.rest("admin") as admin,
    ):
        await until(lambda: rest.get("/api/v1/me"), lambda me: me["agent"]["phone_reachable"])
        await rest.put("/api/v1/me/state", {"state": "ready"})

        async def staffed() -> int:
            queues = (await admin.get("/api/v1/queues"))["queues"]
            return next(queue["staffed"] for queue in queues if queue["queue_id"] == "hotline")

        assert await staffed() == 1
        try:
            disabled = await asyncio.to_thread(clean_house.command, "users", "disable", "agent1")
            assert disabled.returncode == 0, disabled.stderr
            await until(staffed, lambda count: count == 0)
        finally:
            await asyncio.to_thread(clean_house.command, "users", "disable", "agent1", "--undo")
        async with clean_house.rest("leader1") as leader:
            await until(
                lambda: leader.get("/api/v1/agents"),
                lambda seen: "agent1" in {agent["user_id"] for agent in seen["agents"]},
            )
