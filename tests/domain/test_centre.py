"""Given, when, then: one call, a few people, and exactly what is done about it."""

from collections.abc import Iterable
from datetime import timedelta

import pytest

from callcenter.domain.agents import AgentState
from callcenter.domain.calls import EndReason, LegId, Now, Outcome, Phase, Place, Role, StepKind
from callcenter.domain.messages import (
    Alarm,
    Arrange,
    ArrangeFailed,
    CallArrived,
    CallAstray,
    ConsoleLost,
    ConversationOver,
    DigitPressed,
    Draining,
    Drop,
    FallBack,
    FellBack,
    HangUp,
    HangUpCall,
    Hold,
    Invite,
    Leave,
    LegDead,
    LegHungUp,
    LegSeen,
    LegWas,
    LogOut,
    Meanwhile,
    Merge,
    MessageEnded,
    Play,
    PromptsEnded,
    Reason,
    Record,
    Refused,
    Request,
    Resume,
    Ring,
    SetMute,
    SetNotReady,
    SetReady,
    ShuttingDown,
    TakeMessage,
    TelephonyLost,
    Transfer,
    Unattended,
    Wait,
    WrapUp,
)
from callcenter.domain.spoken import queue_announcement
from tests.domain.house import (
    EVERYBODY,
    HOTLINE,
    LEADER,
    LI,
    NUMBER,
    QUEUES,
    TAX1,
    TAX2,
    WANG,
    ZHANG,
    House,
    directory,
    leg_id,
    only,
    outside,
    queue,
    rung,
    skill,
    specialist,
)


@pytest.fixture
def house() -> House:
    return House()


def reason_of(house: House, request: Request) -> Reason:
    """Why it is refused; that nothing has changed is checked too."""
    calls, agents, due = dict(house.centre.calls), dict(house.centre.agents), house.centre.next_deadline()
    with pytest.raises(Refused) as refused:
        house.asks(request)
    assert (dict(house.centre.calls), dict(house.centre.agents)) == (calls, agents)
    assert house.centre.next_deadline() == due
    assert house.later(0) == []
    return refused.value.reason


def kinds(house: House, call_id: str) -> list[StepKind]:
    return [step.kind for step in house.saved_calls[call_id].steps]  # type: ignore[index]


# --- arriving -----------------------------------------------------------------------------------------------


def test_a_call_is_greeted_waits_is_offered_answered_talked_rated_and_ends(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.new_call_id()
    caller, agent = LegId(call_id), leg_id(call_id, 2)

    greeting = house.handle(CallArrived(call_id, "13800138000", "12345"))
    assert greeting == [Play(caller, 1, ("welcome",), Meanwhile.MUSIC)]
    house.later(3)
    assert house.prompts_end(greeting) == [
        Wait(caller, Meanwhile.MUSIC),
        Ring(call_id, agent, Role.AGENT, "1001", 20.0, "13800138000", "12345"),
    ]
    house.later(4)
    answered = house.answers(agent)
    assert [type(effect) for effect in answered] == [Record, Arrange]
    assert answered[0].leg_id == caller  # type: ignore[union-attr]  # a Record, as the line above says
    assert answered[1] == Arrange(call_id, (caller, agent))
    house.later(60)
    assert house.ends(agent) == [Play(caller, 2, ("rating_ask",), Meanwhile.QUIET)]
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    thanks = house.handle(DigitPressed(caller, "2"))
    bye = house.prompts_end(thanks)
    assert house.prompts_end(bye) == [HangUp(caller)]
    assert house.ends(caller) == []

    call = house.call(call_id)
    assert (call.phase, call.end_reason, call.rating) == (Phase.ENDED, EndReason.COMPLETED, 2)
    assert kinds(house, call_id) == [
        StepKind.ARRIVED,
        StepKind.GREETED,
        StepKind.QUEUED,
        StepKind.OFFERED,
        StepKind.ANSWERED,
        StepKind.LEFT,
        StepKind.RATED,
        StepKind.LEFT,
        StepKind.ENDED,
    ]
    house.later(60)
    assert not house.centre.calls


def test_a_number_without_a_flow_is_told_so_and_hung_up(house: House) -> None:
    call_id = house.new_call_id()
    said = house.handle(CallArrived(call_id, "", "000"))
    assert said == [
        Alarm("no_flow", {"dialled": "000"}),
        Play(LegId(call_id), 1, ("no_such_number",), Meanwhile.QUIET),
    ]
    assert house.prompts_end(said) == [HangUp(LegId(call_id))]


@pytest.mark.parametrize(
    ("dialled", "reason"),
    [
        ("12345", EndReason.ABANDONED_IN_FLOW),
        ("12346", EndReason.ABANDONED_IN_FLOW),
        ("96500", EndReason.ABANDONED_WAITING),
    ],
)
def test_a_caller_who_hangs_up_before_anybody_answers_leaves_only_his_record(
    house: House, dialled: str, reason: EndReason
) -> None:
    call_id = house.arrives(dialled)
    assert house.ends(call_id) == []
    assert house.call(call_id).end_reason is reason
    assert not house.centre.calls
    assert house.centre.next_deadline() is None


def test_a_caller_who_hangs_up_as_a_phone_rings_frees_the_agent_without_blame(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    assert house.ends(call_id) == [HangUp(leg_id(call_id, 2))]
    assert house.ends(leg_id(call_id, 2), Outcome.NO_ANSWER) == []
    call = house.call(call_id)
    assert (call.end_reason, call.legs[1].outcome) == (EndReason.ABANDONED_RINGING, Outcome.CALLER_GONE)
    assert house.agent(ZHANG).state is AgentState.READY


def test_prompts_whose_end_is_never_told_do_not_silence_the_caller_for_ever(house: House) -> None:
    house.arrives("12345")
    effects = house.later(95)
    assert effects[0] == Wait(LegId(next(iter(house.centre.calls))), Meanwhile.MUSIC)


def test_an_end_of_earlier_prompts_is_passed_over(house: House) -> None:
    call_id = house.arrives("12346")
    house.handle(PromptsEnded(LegId(call_id), 1))
    again = house.later(5)
    assert only(Play, again).play_id == 2
    assert house.handle(PromptsEnded(LegId(call_id), 1)) == []


def test_a_message_of_a_caller_who_hangs_up_is_kept_and_nothing_more_is_played(house: House) -> None:
    call_id = house.arrives("12346")
    ask = house.handle(DigitPressed(LegId(call_id), "5"))
    assert isinstance(house.prompts_end(ask)[0], TakeMessage)
    house.later(7)
    assert house.ends(call_id) == []
    assert house.call(call_id).end_reason is EndReason.MESSAGE_LEFT


def test_a_message_ends_by_itself_when_its_end_is_lost(house: House) -> None:
    call_id = house.arrives("12346")
    house.prompts_end(house.handle(DigitPressed(LegId(call_id), "5")))
    assert only(Play, house.later(125)).prompts == ("saved",)


def test_a_message_and_then_a_good_bye(house: House) -> None:
    call_id = house.arrives("12346")
    house.prompts_end(house.handle(DigitPressed(LegId(call_id), "5")))
    house.later(5)
    saved = house.handle(MessageEnded(LegId(call_id)))
    assert only(Play, saved).prompts == ("saved",)
    assert house.handle(MessageEnded(LegId(call_id))) == []


# --- queues -------------------------------------------------------------------------------------------------


def test_an_agent_who_does_not_answer_is_set_not_ready_and_the_next_one_is_rung(house: House) -> None:
    house.ready(ZHANG, LI)
    call_id = house.arrives()
    assert house.later(15) == [HangUp(leg_id(call_id, 2))]
    assert rung(house.ends(leg_id(call_id, 2))) == [(leg_id(call_id, 3), "1002")]
    assert (house.agent(ZHANG).state, house.agent(ZHANG).reason) == (AgentState.NOT_READY, "missed")
    assert house.call(call_id).legs[1].outcome is Outcome.NO_ANSWER


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(Outcome.REFUSED, "rejected"), (Outcome.BUSY, "rejected"), (Outcome.UNREACHABLE, "no_phone")],
)
def test_an_agent_who_rejects_or_has_no_phone_is_not_offered_again(
    house: House, outcome: Outcome, reason: str
) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    assert house.ends(leg_id(call_id, 2), outcome) == []
    assert (house.agent(ZHANG).state, house.agent(ZHANG).reason) == (AgentState.NOT_READY, reason)
    assert house.waiting() == 1
    assert rung(house.asks(SetReady(ZHANG.user_id))) == [(leg_id(call_id, 3), "1001")]


def test_an_answer_after_our_cancel_does_not_undo_it(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    house.later(15)
    assert house.answers(leg_id(call_id, 2)) == [HangUp(leg_id(call_id, 2))]
    house.ends(leg_id(call_id, 2))
    assert house.call(call_id).legs[1].outcome is Outcome.NO_ANSWER


def test_an_answer_after_the_end_is_nothing(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    house.ends(leg_id(call_id, 2), Outcome.BUSY)
    assert house.answers(leg_id(call_id, 2)) == []
    assert house.ends(leg_id(call_id, 2), Outcome.BUSY) == []


def test_a_specialist_at_a_queue_who_misses_is_not_rung_for_ever() -> None:
    house = House(profiles=[*EVERYBODY[:3], TAX1, TAX2, LEADER])
    tax = QUEUES[0].__class__(HOTLINE, {}, skill="tax")
    house.handle(directory(EVERYBODY, [tax]))
    house.ready(TAX2)
    call_id = house.arrives()
    house.later(15)
    assert house.ends(leg_id(call_id, 2)) == []
    assert house.agent(TAX2).state is AgentState.NOT_READY


def test_level_first_then_the_longest_idle(house: House) -> None:
    house.ready(LI, ZHANG, WANG)
    addresses = [house.call(house.arrives()).legs[1].address for _ in range(3)]
    assert addresses == ["1003", "1002", "1001"]


def test_an_urgent_caller_goes_first_but_is_overtaken_by_who_has_waited_longer(house: House) -> None:
    early = house.arrives("96500")
    house.later(61)
    urgent = house.arrives("7220000")
    late = house.arrives("96500")
    house.ready(ZHANG, LI, WANG)
    offered = [
        step.at
        for c in (early, urgent, late)
        for step in house.call(c).steps
        if step.kind is StepKind.OFFERED
    ]
    assert offered == sorted(offered)
    assert len(offered) == 3


def test_one_agent_in_two_queues_takes_the_longest_waiting_of_both(house: House) -> None:
    english = house.arrives("12346")
    house.handle(DigitPressed(LegId(english), "2"))
    house.later(1)
    house.arrives("96500")
    assert rung(house.asks(SetReady(WANG.user_id))) == [(leg_id(english, 2), "1003")]


def test_a_full_queue_sends_the_caller_where_the_flow_says(house: House) -> None:
    for _ in range(3):
        house.arrives()
    call_id = house.new_call_id()
    greeting = house.handle(CallArrived(call_id, "1", "12345"))
    assert only(Play, house.prompts_end(greeting)).prompts == ("goodbye",)


def test_place_and_wait_are_announced_only_while_he_waits(house: House) -> None:
    house.arrives()
    greeting = house.handle(CallArrived(house.new_call_id(), "1", "12345"))
    house.prompts_end(greeting)
    said = only(Play, house.later(30))
    assert said.prompts == queue_announcement(2, None)
    assert said.then is Meanwhile.MUSIC
    house.ready(ZHANG, LI)
    assert [effect for effect in house.later(10) if isinstance(effect, Play)] == []


def test_the_longest_wait_ends_in_the_message_even_when_a_phone_rang_at_that_second(house: House) -> None:
    call_id = house.arrives("7220000")
    house.later(40)
    house.ready(ZHANG)
    assert house.later(6) == []
    house.ends(leg_id(call_id, 2), Outcome.BUSY)
    assert house.later(1) == [HangUp(LegId(call_id))]


# --- the agent's own state ----------------------------------------------------------------------------------


def test_wrap_up_begins_with_the_end_of_the_agents_leg_and_lasts_exactly(house: House) -> None:
    _, leg = house.talking()
    house.ends(leg)
    house.later(29.99)
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    house.later(0.01)
    assert house.agent(ZHANG).state is AgentState.READY


def test_wrap_up_after_a_transfer_is_that_of_the_queue_he_answered_from(house: House) -> None:
    call_id, leg = house.talking()
    house.later(5)
    house.asks(Transfer(ZHANG.user_id, call_id, queue("english")))
    house.later(0.05)
    house.ends(leg)
    assert house.agent(ZHANG).wrap_up_until == house.now.seconds + 30


def test_disposition_ends_wrap_up_unless_more_time_is_wanted(house: House) -> None:
    call_id, leg = house.talking()
    house.ends(leg)
    house.ends(call_id)
    house.asks(WrapUp(ZHANG.user_id, call_id, "enquiry", "asked for opening hours", more_time=True))
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    house.asks(WrapUp(ZHANG.user_id, call_id, "enquiry"))
    assert house.agent(ZHANG).state is AgentState.READY
    assert house.call(call_id).disposition == "enquiry"
    assert not house.centre.calls


@pytest.mark.parametrize(
    ("wish", "state"),
    [
        (SetNotReady(ZHANG.user_id, "lunch"), AgentState.NOT_READY),
        (LogOut(ZHANG.user_id), AgentState.LOGGED_OUT),
    ],
)
def test_not_ready_or_log_out_during_a_call_comes_true_after_wrap_up(
    house: House, wish: Request, state: AgentState
) -> None:
    _, leg = house.talking()
    house.asks(wish)
    assert house.agent(ZHANG).state is AgentState.TALKING
    house.ends(leg)
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    house.later(30)
    assert house.agent(ZHANG).state is state


def test_not_ready_while_the_phone_rings_refuses_the_offer_and_keeps_the_reason(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    assert house.asks(SetNotReady(ZHANG.user_id, "lunch")) == [HangUp(leg_id(call_id, 2))]
    house.ends(leg_id(call_id, 2))
    assert (house.agent(ZHANG).state, house.agent(ZHANG).reason) == (AgentState.NOT_READY, "lunch")
    assert house.call(call_id).legs[1].outcome is Outcome.REFUSED


def test_a_lost_console_takes_the_agent_out_and_says_why(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    assert house.handle(ConsoleLost(ZHANG.user_id)) == [HangUp(leg_id(call_id, 2))]
    house.ends(leg_id(call_id, 2))
    assert house.agent(ZHANG).reason == "connection_lost"
    assert house.waiting() == 1


def test_a_phone_that_vanishes_takes_the_ready_and_spares_the_talking(house: House) -> None:
    house.ready(LI)
    call_id, leg = house.talking(ZHANG)
    assert call_id
    other = house.agent(LI) if house.agent(LI).state is AgentState.READY else house.agent(ZHANG)
    house.phone(other.profile, reachable=False)
    assert (house.agent(other.profile).state, house.agent(other.profile).reason) == (
        AgentState.NOT_READY,
        "no_phone",
    )
    assert leg


def test_a_phone_gone_during_the_call_means_not_ready_after_it(house: House) -> None:
    _, leg = house.talking()
    house.phone(ZHANG, reachable=False)
    assert house.agent(ZHANG).state is AgentState.TALKING
    house.ends(leg)
    house.later(30)
    assert (house.agent(ZHANG).state, house.agent(ZHANG).reason) == (AgentState.NOT_READY, "no_phone")


def test_whoever_leaves_the_directory_during_a_call_is_gone_after_it(house: House) -> None:
    _, leg = house.talking()
    house.handle(directory(EVERYBODY[1:]))
    assert house.agent(ZHANG).state is AgentState.TALKING
    house.ends(leg)
    house.later(30)
    assert ZHANG.user_id not in house.centre.agents
    assert house.saved_agents[ZHANG.user_id].state is AgentState.LOGGED_OUT
    assert house.phone(ZHANG, reachable=False) == []


def test_a_caller_whose_queue_is_taken_away_as_a_phone_rings_goes_on_in_his_flow(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives("96500")
    house.handle(directory(EVERYBODY, QUEUES[1:]))
    assert house.ends(leg_id(call_id, 2), Outcome.BUSY) == [HangUp(LegId(call_id))]


def recorded(effects: Iterable[object]) -> list[LegId]:
    return [effect.leg_id for effect in effects if isinstance(effect, Record)]


# --- three parties ------------------------------------------------------------------------------------------


def test_consult_merge_leave(house: House) -> None:
    call_id, agent = house.talking()
    caller, third = LegId(call_id), leg_id(call_id, 3)
    by = ZHANG.user_id
    asked = house.asks(Invite(by, call_id, specialist("tax1")))
    assert [effect for effect in asked if not isinstance(effect, Record)] == [
        Ring(call_id, third, Role.SPECIALIST, "8001", 30.0, "96500", "96500"),
        Arrange(call_id, (agent,), (caller,)),
    ]
    assert house.agent(ZHANG).state is AgentState.HELD
    answered = house.answers(third)
    assert answered[-1] == Arrange(call_id, (agent, third), (caller,))
    # Each from the moment on at which he may be heard where the caller is not.
    assert [recorded(asked), recorded(answered)] == [[agent], [third]]
    assert house.call(call_id).legs[2].joined_at is None
    assert house.asks(Merge(by, call_id)) == [Arrange(call_id, (caller, agent, third))]
    assert house.asks(Merge(by, call_id)) == []
    assert house.asks(Leave(by, call_id)) == [HangUp(agent)]
    assert house.ends(agent) == []
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    assert house.ends(third) == [HangUp(caller)]
    house.ends(caller)
    assert kinds(house, call_id)[3:] == [
        StepKind.ANSWERED,
        StepKind.INVITED,
        StepKind.HELD,
        StepKind.CONSULTED,
        StepKind.RESUMED,
        StepKind.JOINED,
        StepKind.LEFT,
        StepKind.LEFT,
        StepKind.LEFT,
        StepKind.ENDED,
    ]
    assert house.agent(TAX1).state is AgentState.LOGGED_OUT


def test_a_third_at_the_table_is_recorded_by_himself_and_so_is_who_was_there_before(house: House) -> None:
    """Of two the file of the call holds both; of three it holds a mixture."""
    call_id, agent = house.talking()
    third, fourth = leg_id(call_id, 3), leg_id(call_id, 4)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1"), privately=False))
    house.later(2)
    assert recorded(house.answers(third)) == [agent, third]
    assert recorded(house.asks(Hold(ZHANG.user_id, call_id))) == []
    house.asks(Invite(ZHANG.user_id, call_id, outside()))
    assert recorded(house.answers(fourth)) == [fourth]


def test_who_takes_over_from_an_agent_is_in_the_file_of_the_call(house: House) -> None:
    call_id, agent = house.talking()
    house.ready(LI)
    house.asks(Transfer(ZHANG.user_id, call_id, specialist(LI.user_id)))
    house.ends(agent)
    house.later(2)
    assert recorded(house.answers(leg_id(call_id, 3))) == []


def test_attended_transfer_is_invite_then_leave_while_the_caller_still_hears_music(house: House) -> None:
    call_id, agent = house.talking()
    caller, third = LegId(call_id), leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1")))
    house.answers(third)
    assert house.asks(Leave(ZHANG.user_id, call_id)) == [
        Arrange(call_id, (caller, agent, third)),
        HangUp(agent),
    ]
    assert house.call(call_id).legs[2].joined_at is not None
    assert house.agent(TAX1).state is AgentState.TALKING


def test_whoever_leaves_while_the_target_rings_leaves_the_caller_to_its_answer(house: House) -> None:
    call_id, agent = house.talking()
    caller, third = LegId(call_id), leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1"), privately=False))
    house.asks(Leave(ZHANG.user_id, call_id))
    assert house.ends(agent) == [Arrange(call_id, (), (caller,))]
    assert house.answers(third)[-1] == Arrange(call_id, (caller, third))


def test_a_target_that_fails_after_the_agent_left_gives_the_caller_back_to_the_front(house: House) -> None:
    call_id, agent = house.talking()
    caller = LegId(call_id)
    house.later(100)
    house.arrives()
    house.asks(Transfer(ZHANG.user_id, call_id, specialist("tax1")))
    house.ends(agent)
    assert house.ends(leg_id(call_id, 3), Outcome.BUSY) == [Wait(caller, Meanwhile.MUSIC)]
    assert rung(house.asks(SetReady(LI.user_id))) == [(leg_id(call_id, 4), "1002")]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(Outcome.BUSY, "busy"), (Outcome.REFUSED, "refused"), (Outcome.NO_ANSWER, "no_answer")],
)
def test_a_specialist_who_cannot_be_reached_is_an_outcome_and_the_agent_keeps_the_call(
    house: House, outcome: Outcome, told: str
) -> None:
    call_id, agent = house.talking()
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1")))
    assert house.ends(leg_id(call_id, 3), outcome) == []
    assert house.call(call_id).legs[2].outcome == told
    assert house.agent(TAX1).state is AgentState.LOGGED_OUT
    assert house.asks(Resume(ZHANG.user_id, call_id)) == [Arrange(call_id, (LegId(call_id), agent))]


def test_an_absent_specialist_is_unreachable_at_once_and_the_caller_is_not_held(house: House) -> None:
    call_id, _ = house.talking()
    house.phone(TAX1, reachable=False)
    assert house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1"))) == []
    call = house.call(call_id)
    assert (call.legs[2].outcome, call.caller_leg.place) == (Outcome.UNREACHABLE, Place.TOGETHER)


def test_a_caller_who_hangs_up_while_the_specialist_rings(house: House) -> None:
    call_id, agent = house.talking()
    third = leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1")))
    assert house.ends(call_id) == [HangUp(third), HangUp(agent)]
    house.ends(third, Outcome.NO_ANSWER)
    house.ends(agent)
    call = house.call(call_id)
    assert (call.legs[2].outcome, call.end_reason) == (Outcome.CALLER_GONE, EndReason.COMPLETED)


def test_by_skill_the_next_specialist_is_tried_by_itself(house: House) -> None:
    call_id, _ = house.talking()
    first = house.asks(Invite(ZHANG.user_id, call_id, skill("tax")))
    assert rung(first) == [(leg_id(call_id, 3), "8001")]
    assert rung(house.ends(leg_id(call_id, 3), Outcome.BUSY)) == [(leg_id(call_id, 4), "8002")]
    assert house.ends(leg_id(call_id, 4), Outcome.REFUSED) == []
    assert [leg.outcome for leg in house.call(call_id).legs[2:]] == [Outcome.BUSY, Outcome.REFUSED]


def test_by_skill_with_nobody_there_the_attempt_still_has_its_outcome(house: House) -> None:
    call_id, _ = house.talking()
    for who in (TAX1, TAX2):
        house.phone(who, reachable=False)
    assert house.asks(Transfer(ZHANG.user_id, call_id, skill("tax"))) == []
    assert house.call(call_id).legs[2].outcome is Outcome.UNREACHABLE
    assert house.agent(ZHANG).state is AgentState.TALKING


def test_dropping_the_third_and_dropping_what_rings(house: House) -> None:
    call_id, agent = house.talking()
    third = leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, outside(), privately=False))
    assert house.asks(Drop(ZHANG.user_id, call_id, third)) == [HangUp(third)]
    assert house.asks(Drop(ZHANG.user_id, call_id, third)) == []
    house.ends(third, Outcome.NO_ANSWER)
    assert house.call(call_id).legs[2].outcome is Outcome.WITHDRAWN
    house.asks(Invite(ZHANG.user_id, call_id, outside(), privately=False))
    house.answers(leg_id(call_id, 4))
    assert house.asks(Drop(ZHANG.user_id, call_id, leg_id(call_id, 4))) == [HangUp(leg_id(call_id, 4))]
    assert house.ends(leg_id(call_id, 4)) == []
    assert house.call(call_id).leg(agent).up  # type: ignore[union-attr]


def test_an_agent_who_vanishes_during_the_consult_leaves_caller_and_specialist_together(house: House) -> None:
    call_id, agent = house.talking()
    third = leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1")))
    house.answers(third)
    assert house.ends(agent) == [Arrange(call_id, (LegId(call_id), third))]


def test_an_agent_who_hangs_up_on_a_held_caller_gives_him_back_to_the_queue(house: House) -> None:
    call_id, agent = house.talking()
    house.asks(Hold(ZHANG.user_id, call_id))
    assert house.ends(agent) == [Wait(LegId(call_id), Meanwhile.MUSIC)]
    assert house.waiting() == 1


def test_hanging_up_without_rating_plays_nothing_more(house: House) -> None:
    call_id, agent = house.talking(dialled="96500")
    assert house.asks(HangUpCall(ZHANG.user_id, call_id, to_rating=False)) == [
        HangUp(LegId(call_id)),
        HangUp(agent),
    ]
    assert house.ends(agent) == []
    assert house.ends(call_id) == []


def test_two_hang_ups_at_once_are_one(house: House) -> None:
    call_id, _ = house.talking()
    house.asks(HangUpCall(ZHANG.user_id, call_id))
    assert reason_of(house, HangUpCall(ZHANG.user_id, call_id)) is Reason.NOT_TALKING


def test_the_flow_may_put_a_caller_straight_through_and_gets_him_back_when_that_fails(house: House) -> None:
    call_id = house.arrives("12346")
    effects = house.handle(DigitPressed(LegId(call_id), "3"))
    assert rung(effects) == [(leg_id(call_id, 2), "1003")]
    assert only(Play, house.ends(leg_id(call_id, 2), Outcome.BUSY)).prompts == ("leave_message",)


def test_a_caller_without_a_queue_is_not_lost_by_a_failed_transfer(house: House) -> None:
    call_id = house.arrives("12346")
    house.handle(DigitPressed(LegId(call_id), "3"))
    house.answers(leg_id(call_id, 2))
    house.asks(Transfer(WANG.user_id, call_id, outside()))
    house.ends(leg_id(call_id, 2))
    assert only(Play, house.ends(leg_id(call_id, 3), Outcome.BUSY)).prompts == ("leave_message",)


# --- refusals -----------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_refused_with_its_reason_and_changes_nothing(house: House) -> None:
    call_id, agent = house.talking()
    by, other = ZHANG.user_id, LI.user_id
    wrong = LegId("ast1-9.9")
    expected: list[tuple[Request, Reason]] = [
        (SetReady(LEADER.user_id), Reason.NOT_AN_AGENT),
        (SetNotReady(by, "nonsense"), Reason.UNKNOWN_REASON),
        (Hold(other, call_id), Reason.NOT_YOUR_CALL),
        (Hold(by, house.new_call_id()), Reason.NO_SUCH_CALL),
        (Resume(by, call_id), Reason.NOT_HELD),
        (Merge(by, call_id), Reason.NOBODY_TO_MERGE),
        (Leave(by, call_id), Reason.NOBODY_LEFT),
        (Drop(by, call_id, LegId(call_id)), Reason.NO_SUCH_PARTY),
        (Drop(by, call_id, agent), Reason.NO_SUCH_PARTY),
        (Drop(by, call_id, wrong), Reason.NO_SUCH_PARTY),
        (SetMute(by, call_id, wrong, on=True), Reason.NO_SUCH_PARTY),
        (Invite(by, call_id, specialist("nobody")), Reason.NO_SUCH_USER),
        (Invite(by, call_id, specialist("zhang")), Reason.NO_SUCH_USER),
        (Invite(by, call_id, specialist("leader")), Reason.NO_PHONE),
        (Invite(by, call_id, skill("juggling")), Reason.NO_SUCH_SKILL),
        (Invite(by, call_id, queue("hotline")), Reason.NO_SUCH_USER),
        (Invite(by, call_id, outside("13800138000")), Reason.NUMBER_NOT_ALLOWED),
        (Transfer(by, call_id, queue("nowhere")), Reason.NO_SUCH_QUEUE),
        (Transfer(by, call_id, outside("0085212345678")), Reason.NUMBER_NOT_ALLOWED),
        (WrapUp(by, call_id, "nonsense"), Reason.UNKNOWN_DISPOSITION),
        (WrapUp(other, call_id, "enquiry"), Reason.NO_SUCH_CALL),
    ]
    assert [(request, reason_of(house, request)) for request, _ in expected] == expected


def test_contradicting_commands(house: House) -> None:
    call_id, _ = house.talking()
    by = ZHANG.user_id
    house.asks(Invite(by, call_id, specialist("tax1")))
    assert reason_of(house, Hold(by, call_id)) is Reason.ALREADY_HELD
    assert reason_of(house, Invite(by, call_id, specialist("tax2"))) is Reason.ALREADY_INVITING
    assert reason_of(house, Transfer(by, call_id, queue("hotline"))) is Reason.ALREADY_INVITING
    house.ends(call_id)
    assert reason_of(house, Resume(by, call_id)) is Reason.NOT_TALKING


# --- what goes wrong below ----------------------------------------------------------------------------------


def test_a_lost_end_of_the_partner_is_found_by_the_caller_being_let_go(house: House) -> None:
    call_id, agent = house.talking(dialled="96500")
    house.handle(ConversationOver(LegId(call_id)))
    effects = house.later(0.5)
    assert effects == [Alarm("leg_end_unseen", {"leg": agent}), HangUp(agent), HangUp(LegId(call_id))]
    assert house.agent(ZHANG).state is AgentState.WRAP_UP


def test_being_let_go_and_then_the_partners_end_is_an_ordinary_end(house: House) -> None:
    call_id, agent = house.talking(dialled="96500")
    assert house.handle(ConversationOver(LegId(call_id))) == []
    assert house.ends(agent) == [HangUp(LegId(call_id))]
    house.ends(call_id)
    assert house.later(10) == []


def test_a_leg_told_to_hang_up_whose_end_is_lost_holds_nobody(house: House) -> None:
    call_id, _ = house.talking()
    house.asks(HangUpCall(ZHANG.user_id, call_id, to_rating=False))
    house.later(4)
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    assert house.call(call_id).phase is Phase.ENDED


def test_a_party_that_leaves_as_it_is_moved_does_not_cost_the_caller_his_agent(house: House) -> None:
    call_id, agent = house.talking()
    third = leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1")))
    house.answers(third)
    house.asks(Merge(ZHANG.user_id, call_id))
    house.handle(ArrangeFailed(call_id, "no such channel"))
    house.ends(third)
    assert house.later(1) == [Arrange(call_id, (LegId(call_id), agent))]
    assert house.agent(ZHANG).state is AgentState.TALKING


def test_a_caller_who_cannot_be_connected_gets_a_second_agent_and_then_is_let_go(house: House) -> None:
    house.ready(LI)
    call_id = house.arrives()
    for number in (2, 3):
        house.answers(leg_id(call_id, number))
        house.later(10)
        house.handle(ArrangeFailed(call_id, "no such channel"))
        effects = house.later(0.5)
        assert effects[:2] == [Alarm("arrange_failed", {"call": call_id}), HangUp(leg_id(call_id, number))]
        house.ends(leg_id(call_id, number))
        house.ready(ZHANG)
    house.later(5)
    assert house.call(call_id).phase is Phase.ENDED


def test_a_fault_costs_one_call_which_the_fallback_takes_and_keeps(house: House) -> None:
    call_id, agent = house.talking()
    event = DigitPressed(LegId(call_id), "1")
    effects = house.centre.give_up(event, house.now)
    assert effects[:2] == [HangUp(agent), FallBack(LegId(call_id))]
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    assert house.handle(FellBack(call_id, "1", "96500")) == []
    assert house.resyncs([LegSeen(LegId(call_id), up=True, dialled="96500")]) == []


def test_a_party_left_over_from_an_engine_that_died_in_a_hang_up_is_hung_up(house: House) -> None:
    call_id, agent = house.talking()
    house.asks(HangUpCall(ZHANG.user_id, call_id))
    legs = [LegSeen(LegId(call_id), up=True), LegSeen(agent, up=True)]
    assert HangUp(agent) in house.restarts(legs)


def test_hanging_up_a_second_time_does_not_put_off_the_deadline(house: House) -> None:
    call_id, _ = house.talking()
    third = leg_id(call_id, 3)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1"), privately=False))
    house.answers(third)
    house.asks(Drop(ZHANG.user_id, call_id, third))
    house.later(3)
    house.asks(Drop(ZHANG.user_id, call_id, third))
    house.later(1)
    assert house.agent(TAX1).state is AgentState.LOGGED_OUT


def test_a_fault_at_a_deadline_costs_that_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()

    def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(house.centre, "_leg_due", fault)
        with pytest.raises(RuntimeError):
            house.later(15)
    effects = house.centre.give_up(None, house.now)
    assert effects[:2] == [HangUp(leg_id(call_id, 2)), FallBack(LegId(call_id))]


def test_a_caller_in_the_fallback_queue_is_taken_back_once(house: House) -> None:
    call_id = house.new_call_id()
    assert house.handle(FellBack(call_id, "1", "96500")) == [Wait(LegId(call_id), Meanwhile.MUSIC)]
    assert house.handle(FellBack(call_id, "1", "96500")) == [Wait(LegId(call_id), Meanwhile.MUSIC)]
    assert house.waiting() == 1


# --- resync and restart -------------------------------------------------------------------------------------


def test_after_a_cut_everybody_is_told_again_what_he_hears(house: House) -> None:
    talking, agent = house.talking()
    waiting = house.arrives("96500")
    greeted = house.arrives("12345")
    house.handle(TelephonyLost("reset"))
    assert reason_of(house, Hold(ZHANG.user_id, talking)) is Reason.TELEPHONY_DOWN
    seen = [LegSeen(LegId(leg), up=True) for leg in (talking, agent, waiting, greeted)]
    effects = house.resyncs(seen)
    assert effects[0] == Arrange(talking, (LegId(talking), agent))
    assert effects[1] == Wait(LegId(waiting), Meanwhile.MUSIC)
    assert only(Play, effects).leg_id == LegId(greeted)


def test_who_died_during_the_cut_is_ended_and_who_answered_is_put_through(house: House) -> None:
    dead, dead_agent = house.talking(ZHANG)
    house.ready(LI)
    ringing = house.arrives()
    house.handle(TelephonyLost("reset"))
    effects = house.resyncs([LegSeen(LegId(ringing), up=True), LegSeen(leg_id(ringing, 2), up=True)])
    assert only(Arrange, effects) == Arrange(ringing, (LegId(ringing), leg_id(ringing, 2)))
    assert house.call(dead).end_reason is EndReason.TELEPHONY_LOST
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    assert dead_agent


def test_ringing_that_ends_while_the_line_is_cut_is_settled_by_the_resync(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    house.handle(TelephonyLost("reset"))
    assert house.later(60) == []
    assert house.agent(ZHANG).state is AgentState.OFFERED
    # He may never have been rung: that is not held against him.
    effects = house.resyncs([LegSeen(LegId(call_id), up=True)])
    assert rung(effects) == [(leg_id(call_id, 3), "1001")]


def test_a_new_engine_keeps_the_talking_and_the_order_of_the_waiting_and_the_ready(house: House) -> None:
    talking, agent = house.talking(ZHANG)
    first, second = house.arrives(), house.arrives()
    house.ready(TAX1)
    house.later(20)
    legs = [LegSeen(LegId(leg), up=True) for leg in (second, first, talking, agent)]
    house.restarts(legs)
    assert house.agent(ZHANG).state is AgentState.TALKING
    assert house.agent(TAX1).state is AgentState.READY
    assert rung(house.asks(SetReady(LI.user_id))) == [(leg_id(first, 2), "1002")]
    assert rung(house.asks(SetReady(WANG.user_id))) == [(leg_id(second, 2), "1003")]


def test_a_new_engine_offers_the_waiting_to_agents_who_were_ready(house: House) -> None:
    house.ready(ZHANG)
    assert house.restarts([]) == []
    call_id = house.arrives()
    assert house.call(call_id).legs[1].address == "1001"


def test_a_new_engine_lets_wrap_up_last_as_long_as_it_was_to(house: House) -> None:
    call_id, leg = house.talking()
    house.ends(leg)
    house.ends(call_id)
    house.later(10)
    house.restarts([])
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    house.later(19.99)
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    house.later(0.02)
    assert house.agent(ZHANG).state is AgentState.READY


def test_a_new_engine_without_that_phone_does_not_offer_it(house: House) -> None:
    house.ready(ZHANG)
    house.restarts([], phones=["1002"])
    assert (house.agent(ZHANG).state, house.agent(ZHANG).reason) == (AgentState.NOT_READY, "no_phone")


def test_a_caller_nobody_knows_is_adopted_and_a_leg_nobody_knows_is_hung_up(house: House) -> None:
    effects = house.resyncs(
        [
            LegSeen(LegId("ast1-5.1"), up=True, caller="1", dialled="96500"),
            LegSeen(LegId("ast1-5.9-2"), up=True),
        ]
    )
    assert effects == [Wait(LegId("ast1-5.1"), Meanwhile.MUSIC), HangUp(LegId("ast1-5.9-2"))]


def test_outside_numbers_are_those_of_the_list(house: House) -> None:
    call_id, _ = house.talking()
    effects = house.asks(Transfer(ZHANG.user_id, call_id, outside(NUMBER)))
    assert only(Ring, effects).role is Role.OUTSIDE


def test_a_caller_whom_the_fallback_queue_has_served_is_left_to_talk(house: House) -> None:
    """Waiting when the engine died, given an agent by the dialplan: a conversation like any other from then on."""
    waiting = house.arrives()
    stranger = house.new_call_id()
    answered_at = house.now.utc + timedelta(seconds=5)
    house.later(20)
    desks = [LegId(f"{call_id}-900") for call_id in (waiting, stranger)]
    talking = [
        *(LegSeen(LegId(call_id), up=True, dialled="96500") for call_id in (waiting, stranger)),
        *(LegSeen(desk, up=True) for desk in desks),
    ]
    past = tuple(
        Unattended(call_id, "1", "96500", answered_at, phone=phone, answered_at=answered_at)
        for call_id, phone in ((waiting, ZHANG.phone or ""), (stranger, WANG.phone or ""))
    )
    effects = house.restarts(talking, unattended=past)
    assert not [effect for effect in effects if isinstance(effect, HangUp | Wait | Play | Ring)]
    for call_id, desk, user in ((waiting, desks[0], ZHANG), (stranger, desks[1], WANG)):
        call = house.centre.calls[call_id]
        assert (call.phase, call.answered_at, call.answered_by) == (Phase.TALKING, answered_at, user.user_id)
        assert house.centre.agents[user.user_id].state is AgentState.TALKING
        house.ends(LegId(call_id))
        house.ends(desk)
        assert house.saved_calls[call_id].end_reason is EndReason.FELL_BACK
        assert house.centre.agents[user.user_id].state is AgentState.WRAP_UP


def test_who_came_and_went_without_an_engine_has_a_record_all_the_same(house: House) -> None:
    came = house.now.utc + timedelta(seconds=6)
    served, lost = house.new_call_id(), house.new_call_id()
    house.later(60)
    past = (
        Unattended(
            served,
            "1",
            "96500",
            came,
            phone=ZHANG.phone or "",
            answered_at=came + timedelta(seconds=3),
            parted_at=came + timedelta(seconds=20),
            ended_at=came + timedelta(seconds=20),
        ),
        Unattended(lost, "2", "96500", came, ended_at=came + timedelta(seconds=9)),
    )
    ended = {LegId(lost): LegWas(came + timedelta(seconds=9), Outcome.UNREACHABLE)}
    ended[LegId(served)] = LegWas(came + timedelta(seconds=20), Outcome.UNREACHABLE)
    house.restarts([], unattended=past, ended=ended)
    call = house.saved_calls[served]
    assert (call.phase, call.end_reason) == (Phase.ENDED, EndReason.FELL_BACK)
    assert (call.arrived_at, call.ended_at) == (came, came + timedelta(seconds=20))
    assert (call.answered_by, call.answered_at) == (ZHANG.user_id, came + timedelta(seconds=3))
    assert [step.at for step in call.steps] == sorted(step.at for step in call.steps)
    call = house.saved_calls[lost]
    assert (call.end_reason, call.ended_at) == (EndReason.ABANDONED_WAITING, came + timedelta(seconds=9))
    assert call.answered_at is None


def test_who_left_without_an_engine_keeps_the_record_he_had(house: House) -> None:
    """Asterisk's log names every caller whose record has not ended: also those whom the records know."""
    call_id = house.arrives()
    before, came = house.saved_calls[call_id], house.now.utc
    left = came + timedelta(seconds=4)
    house.later(30)
    house.restarts(
        [],
        unattended=(Unattended(call_id, "1", "96500", came, ended_at=left),),
        ended={LegId(call_id): LegWas(left, Outcome.UNREACHABLE)},
    )
    call = house.saved_calls[call_id]
    assert (call.end_reason, call.ended_at) == (EndReason.ABANDONED_WAITING, left)
    assert call.version > before.version
    assert call.steps[: len(before.steps)] == before.steps


def test_what_happened_meanwhile_has_its_own_time(house: House) -> None:
    """The agent hung up, then the caller, while no engine was there: the record tells when, and who was first."""
    call_id, desk = house.talking(ZHANG)
    left = house.now.utc + timedelta(seconds=4)
    house.later(30)
    ended = {
        desk: LegWas(left, Outcome.UNREACHABLE),
        LegId(call_id): LegWas(left + timedelta(seconds=3), Outcome.UNREACHABLE),
    }
    house.restarts([], ended=ended)
    call = house.saved_calls[call_id]
    assert (call.end_reason, call.ended_at) == (EndReason.COMPLETED, left + timedelta(seconds=3))
    assert call.legs[1].ended_at == left
    assert [step.leg_id for step in call.steps if step.kind is StepKind.LEFT] == [desk, call_id]


def test_switched_off_every_call_ends_with_its_reason_and_none_begins(house: House) -> None:
    talking, agent = house.talking(ZHANG)
    waiting = house.arrives()
    effects = house.handle(ShuttingDown())
    assert {effect.leg_id for effect in effects if isinstance(effect, HangUp)} == {talking, agent, waiting}
    for leg in (talking, agent, waiting):
        house.ends(leg)
    assert house.saved_calls[talking].end_reason is EndReason.COMPLETED
    assert house.saved_calls[waiting].end_reason is EndReason.SHUT_DOWN
    late = house.new_call_id()
    assert house.handle(CallArrived(late, "1", "96500")) == [HangUp(LegId(late))]
    house.ends(LegId(late))
    assert house.saved_calls[late].end_reason is EndReason.SHUT_DOWN


def test_who_is_moved_is_moved_before_who_leaves_is_hung_up(house: House) -> None:
    """The other way round the bridge dissolves under the caller's Redirect, which Asterisk then refuses: he was lost."""
    call_id, agent = house.talking()
    effects = house.asks(Transfer(ZHANG.user_id, call_id, queue("hotline")))
    assert effects.index(Wait(LegId(call_id), Meanwhile.MUSIC)) < effects.index(HangUp(agent))


def test_a_caller_is_on_his_way_to_the_rating_before_his_agent_is_hung_up(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.new_call_id()
    house.prompts_end(house.handle(CallArrived(call_id, "1", "12345")))
    agent = leg_id(call_id, 2)
    house.answers(agent)
    effects = house.asks(HangUpCall(ZHANG.user_id, call_id))
    assert effects.index(only(Play, effects)) < effects.index(HangUp(agent))


def test_the_first_to_hang_up_is_the_first_to_leave(house: House) -> None:
    """A caller hangs up: his agent's leg ends a moment before his own, and yet he was the one who went."""
    call_id, agent = house.talking(dialled="96500")
    house.handle(LegHungUp(LegId(call_id)))
    house.ends(agent)
    house.ends(LegId(call_id))
    call = house.saved_calls[call_id]
    assert [step.leg_id for step in call.steps if step.kind is StepKind.LEFT] == [call_id, agent]
    assert call.end_reason is EndReason.COMPLETED


def test_a_phone_that_declines_is_heard_by_its_outcome_only(house: House) -> None:
    house.ready(ZHANG)
    call_id = house.arrives()
    assert house.handle(LegHungUp(leg_id(call_id, 2))) == []
    house.ends(leg_id(call_id, 2), Outcome.REFUSED)
    assert house.agent(ZHANG).reason == "rejected"


# --- whoever vanishes without a word ------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_a_dead_phone_gives_its_caller_to_the_next_agent_before_all_others(
    house: House, *, held: bool
) -> None:
    call_id, leg = house.talking(ZHANG)
    if held:
        house.asks(Hold(ZHANG.user_id, call_id))
    house.arrives()
    house.phone(ZHANG, reachable=False)
    effects = house.handle(LegDead(leg))
    assert only(Play, effects).prompts == ("transferring",)
    assert effects.index(only(Play, effects)) < effects.index(HangUp(leg))
    house.ends(leg)
    house.later(60)
    assert house.agent(ZHANG).state is AgentState.NOT_READY
    assert rung(house.asks(SetReady(LI.user_id))) == [(leg_id(call_id, 3), "1002")]


def test_a_dead_phone_of_three_parties_leaves_the_other_two_talking(house: House) -> None:
    call_id, leg = house.talking(ZHANG)
    house.asks(Invite(ZHANG.user_id, call_id, specialist("tax1"), privately=False))
    house.answers(leg_id(call_id, 3))
    assert house.handle(LegDead(leg))[-1:] == [HangUp(leg)]
    house.ends(leg)
    assert house.call(call_id).phase is Phase.TALKING
    assert [party.address for party in house.call(call_id).parties] == ["8001"]


def test_a_dead_line_ends_the_call(house: House) -> None:
    call_id, leg = house.talking(ZHANG)
    assert HangUp(LegId(call_id)) in house.handle(LegDead(LegId(call_id)))
    assert HangUp(leg) in house.ends(call_id)


def test_a_phone_that_is_back_soon_makes_its_agent_ready_again(house: House) -> None:
    house.ready(ZHANG)
    house.phone(ZHANG, reachable=False)
    assert house.agent(ZHANG).state is AgentState.NOT_READY
    house.later(20)
    house.phone(ZHANG, reachable=True)
    assert house.agent(ZHANG).state is AgentState.READY
    house.phone(ZHANG, reachable=False)
    house.later(600)
    house.phone(ZHANG, reachable=True)
    assert house.agent(ZHANG).state is AgentState.NOT_READY


def test_an_offer_to_a_phone_that_vanishes_goes_to_the_next_one(house: House) -> None:
    house.ready(ZHANG, LI)
    call_id = house.arrives()
    assert house.phone(ZHANG, reachable=False) == [HangUp(leg_id(call_id, 2))]
    assert rung(house.ends(leg_id(call_id, 2))) == [(leg_id(call_id, 3), "1002")]


def test_a_call_found_elsewhere_is_put_where_it_belongs(house: House) -> None:
    call_id, leg = house.talking(ZHANG)
    assert house.handle(CallAstray(call_id)) == [Arrange(call_id, (LegId(call_id), leg), ())]
    waiting = house.arrives()
    assert Wait(LegId(waiting), Meanwhile.MUSIC) in house.handle(CallAstray(waiting))


def test_draining_serves_who_is_there_and_refuses_who_comes(house: House) -> None:
    waiting = house.arrives()
    house.handle(Draining())
    late = house.new_call_id()
    effects = house.handle(CallArrived(late, "13800138000", "96500"))
    assert only(Play, effects).prompts == ("system_trouble",)
    assert house.prompts_end(effects) == [HangUp(LegId(late))]
    house.ends(late)
    assert house.call(late).end_reason is EndReason.SHUT_DOWN
    assert rung(house.asks(SetReady(ZHANG.user_id))) == [(leg_id(waiting, 2), "1001")]


# --- restarts and clocks ------------------------------------------------------------------------------------


def test_a_wrap_up_goes_on_over_a_restart_and_takes_its_disposition(house: House) -> None:
    """Given 10 s of 30 s of wrap-up gone, when the engine is started anew, then 20 s are left, and the call is known."""
    call_id, agent = house.talking()
    house.ends(agent)
    house.ends(call_id)
    house.later(10)
    house.restarts([])
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    version = house.call(call_id).version
    house.asks(WrapUp(ZHANG.user_id, call_id, "enquiry", more_time=True))
    assert (house.call(call_id).disposition, house.call(call_id).version) == ("enquiry", version + 1)
    house.later(19.9)
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
    house.later(0.2)
    assert house.agent(ZHANG).state is AgentState.READY
    assert not house.centre.calls


def test_an_ended_call_nobody_wraps_up_any_more_is_not_kept_by_a_new_engine(house: House) -> None:
    call_id, agent = house.talking()
    house.ends(agent)
    house.ends(call_id)
    house.later(300)
    house.restarts([])
    assert not house.centre.calls


def test_who_was_left_to_the_fallback_goes_on_in_the_same_record(house: House) -> None:
    """Given a call given up after it was answered, when a new engine finds its caller, then nothing of it is lost."""
    call_id, _ = house.talking()
    house.gives_up(DigitPressed(LegId(call_id), "1"))
    before = house.call(call_id)
    assert before.end_reason is EndReason.FAULT
    house.later(100)
    effects = house.restarts([LegSeen(LegId(call_id), up=True, dialled="96500")])
    # A leg of its own number: the recording of the first conversation stays what it is.
    assert rung(effects) == [(leg_id(call_id, 3), "1001")]
    after = house.call(call_id)
    assert after.version > before.version
    assert after.steps[: len(before.steps)] == before.steps
    assert after.steps[len(before.steps)].kind is StepKind.ADOPTED
    assert (after.answered_at, after.ended_at) == (before.answered_at, None)
    house.answers(leg_id(call_id, 3))
    house.ends(leg_id(call_id, 3))
    house.ends(call_id)
    assert house.call(call_id).end_reason is EndReason.COMPLETED
    assert [leg.outcome for leg in house.call(call_id).legs] == [None, Outcome.JOINED, Outcome.JOINED]


def test_nothing_rings_between_a_cut_and_the_list_of_what_lives(house: House) -> None:
    """Given a cut line, when a caller asks for the police, then the number is rung once the line is back."""
    call_id = house.arrives("12346")
    house.handle(TelephonyLost("reset"))
    assert rung(house.handle(DigitPressed(LegId(call_id), "4"))) == []
    effects = house.resyncs([LegSeen(LegId(call_id), up=True)])
    assert rung(effects) == [(leg_id(call_id, 2), NUMBER)]


@pytest.mark.parametrize("hours", [1, 24])
def test_a_step_of_the_clock_moves_nobody_in_the_queue(house: House, hours: int) -> None:
    """Given two waiting, the clock put forward and an agent who misses the second, then the first is still first."""
    first = house.arrives()
    house.later(10)
    second = house.arrives("7220000")  # 60 s ahead by its class, and so the first to be offered
    house.ready(ZHANG)
    house.now = Now(house.now.seconds, house.now.utc + timedelta(hours=hours))
    house.later(5)
    third = house.arrives()
    [status] = [s for s in house.centre.queue_status(house.now) if s.queue_id == HOTLINE]
    assert status.longest_wait_seconds < 60
    house.ends(leg_id(second, 2), Outcome.NO_ANSWER)
    assert house.waiting() == 3
    for call_id in (second, first, third):
        house.ready(ZHANG)
        assert house.agent(ZHANG).call_id == call_id
        house.ends(house.agent(ZHANG).leg_id or "", Outcome.NO_ANSWER)
        house.ends(call_id)


def test_a_step_of_the_clock_ends_no_wrap_up(house: House) -> None:
    _, agent = house.talking()
    house.ends(agent)
    house.now = Now(house.now.seconds, house.now.utc + timedelta(hours=1))
    house.later(29.9)
    assert house.agent(ZHANG).state is AgentState.WRAP_UP
