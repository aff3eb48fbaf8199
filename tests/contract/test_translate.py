"""AMI's words into events, effects into actions: pure, exact."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from callcenter.asterisk.ami import AmiMessage
from callcenter.asterisk.translate import Action, Switchboard, event_of, is_ours, outcome_of
from callcenter.domain.calls import (
    Call,
    CallId,
    Leg,
    LegId,
    LegState,
    Outcome,
    Phase,
    Place,
    Role,
    call_id_of,
)
from callcenter.domain.messages import (
    Arrange,
    CallArrived,
    ConversationOver,
    DigitPressed,
    FallBack,
    HangUp,
    LegAnswered,
    LegEnded,
    LegHungUp,
    Meanwhile,
    Mute,
    Play,
    PromptsEnded,
    Record,
    Ring,
    Wait,
)

CALL = CallId("ast1-1763763843.12")
CALLER = LegId("ast1-1763763843.12")
AGENT = LegId("ast1-1763763843.12-2")
THIRD = LegId("ast1-1763763843.12-3")
NAMES = {CALLER: "PJSIP/trunk-00000000", AGENT: "PJSIP/1001-00000001", THIRD: "PJSIP/8001-00000002"}


def message(name: str, **headers: str) -> AmiMessage:
    return AmiMessage(name=name, headers=headers, received=0.0)


def test_a_leg_knows_its_call() -> None:
    """Ids are arithmetic: no table has to survive a restart."""
    assert [call_id_of(leg) for leg in (CALLER, AGENT, THIRD)] == [CALL] * 3
    assert call_id_of(LegId("1763763843.12-7")) == CallId("1763763843.12")
    assert call_id_of(LegId("my-ast-1763763843.12")) == CallId("my-ast-1763763843.12")
    assert is_ours(AGENT)
    assert not is_ours("")


@pytest.mark.parametrize(
    ("given", "event"),
    [
        (
            message("UserEvent", UserEvent="CallArrived", Uniqueid=CALL, CallerIDNum="138", Dialled="12345"),
            CallArrived(CALL, "138", "12345"),
        ),
        (
            message(
                "UserEvent", UserEvent="CallArrived", Uniqueid=CALL, CallerIDNum="<unknown>", Dialled="1"
            ),
            CallArrived(CALL, "", "1"),
        ),
        (message("UserEvent", UserEvent="LegAnswered", Uniqueid=AGENT), LegAnswered(AGENT)),
        (message("UserEvent", UserEvent="PromptEnded", Uniqueid=CALLER, PlayId="7"), PromptsEnded(CALLER, 7)),
        (message("UserEvent", UserEvent="PromptEnded", Uniqueid=CALLER, PlayId="x"), None),
        (message("UserEvent", UserEvent="AfterTalk", Uniqueid=CALLER), ConversationOver(CALLER)),
        (message("DTMFEnd", Uniqueid=CALLER, Digit="5", Direction="Received"), DigitPressed(CALLER, "5")),
        (message("DTMFEnd", Uniqueid=CALLER, Digit="5", Direction="Sent"), None),
        (
            message("Hangup", Uniqueid=AGENT, Cause="17", TechCause="SIP 486 Busy"),
            LegEnded(AGENT, Outcome.BUSY),
        ),
        (message("HangupRequest", Uniqueid=CALLER, Cause="16"), LegHungUp(CALLER)),
        (message("Newexten", Uniqueid=AGENT), None),
    ],
)
def test_what_an_ami_event_means(given: AmiMessage, event: object) -> None:
    assert event_of(given) == event


@pytest.mark.parametrize(
    ("cause", "tech", "outcome"),
    [
        ("17", "486", Outcome.BUSY),
        ("21", "SIP 603", Outcome.REFUSED),
        ("21", "", Outcome.REFUSED),
        ("19", "", Outcome.NO_ANSWER),
        ("16", "487", Outcome.NO_ANSWER),
        ("19", "480", Outcome.UNREACHABLE),
        ("", "", Outcome.UNREACHABLE),
    ],
)
def test_why_a_ringing_leg_ended(cause: str, tech: str, outcome: Outcome) -> None:
    assert outcome_of(cause, tech) is outcome


@pytest.fixture
def board() -> Switchboard:
    board = Switchboard(lambda _call, leg, kind: Path("/r") / f"{kind}-{leg}", Path("/p"))
    for leg in (CALLER, AGENT, THIRD):
        board.appeared(message("Newchannel", Uniqueid=leg, Channel=NAMES[leg]))
    return board


def moves(actions: list[Action]) -> list[tuple[str, ...]]:
    """Each action as words: who goes where."""
    told = []
    for action in actions:
        h = action.headers
        if action.name == "Bridge":
            told.append(("bridge", str(h["Channel1"]), str(h["Channel2"])))
        elif "ExtraChannel" in h:
            told.append(
                ("both", str(h["Channel"]), str(h["Exten"]), str(h["ExtraChannel"]), str(h["ExtraExten"]))
            )
        else:
            told.append(("go", str(h["Channel"]), str(h["Exten"])))
    return told


def test_two_meet_on_a_plain_bridge_and_stay_there(board: Switchboard) -> None:
    assert moves(board.actions(Arrange(CALL, (CALLER, AGENT)))) == [("bridge", NAMES[CALLER], NAMES[AGENT])]
    assert board.actions(Arrange(CALL, (CALLER, AGENT))) == []


def test_hold_moves_both_at_once_and_resume_one(board: Switchboard) -> None:
    """Moved alone, the first would leave the second to the dialplan's good-bye."""
    board.actions(Arrange(CALL, (CALLER, AGENT)))
    held = board.actions(Arrange(CALL, (AGENT,), (CALLER,)))
    assert moves(held) == [("both", AGENT, f"room-{CALL}", CALLER, "hold")]
    assert moves(board.actions(Arrange(CALL, (CALLER, AGENT)))) == [("go", CALLER, f"room-{CALL}")]


def test_a_third_party_brings_everybody_into_the_room(board: Switchboard) -> None:
    board.actions(Arrange(CALL, (CALLER, AGENT)))
    together = board.actions(Arrange(CALL, (CALLER, AGENT, THIRD)))
    room = f"room-{CALL}"
    assert moves(together) == [("both", CALLER, room, AGENT, room), ("go", THIRD, room)]


def test_who_is_in_a_room_stays_in_it_when_two_are_left(board: Switchboard) -> None:
    board.actions(Arrange(CALL, (CALLER, AGENT, THIRD)))
    board.forget_leg(AGENT)
    assert board.actions(Arrange(CALL, (CALLER, THIRD))) == []


def test_a_caller_back_from_the_queue_meets_the_next_agent_on_a_bridge(board: Switchboard) -> None:
    board.actions(Arrange(CALL, (CALLER, AGENT)))
    board.actions(Arrange(CALL, (AGENT,), (CALLER,)))
    board.forget_leg(AGENT)
    board.actions(Wait(CALLER, Meanwhile.MUSIC))
    board.settled(CALLER)
    assert moves(board.actions(Arrange(CALL, (CALLER, THIRD)))) == [("bridge", NAMES[CALLER], NAMES[THIRD])]


def test_a_leg_under_way_goes_to_the_room_because_bridge_might_overtake_its_redirect(
    board: Switchboard,
) -> None:
    board.actions(Wait(CALLER, Meanwhile.MUSIC))
    room = f"room-{CALL}"
    assert moves(board.actions(Arrange(CALL, (CALLER, AGENT)))) == [("go", CALLER, room), ("go", AGENT, room)]


def test_who_waits_already_is_not_moved(board: Switchboard) -> None:
    """Given a caller who rests with music, when he shall wait with music, then only another wish moves him."""
    board.arrived(CALLER)
    assert board.actions(Wait(CALLER, Meanwhile.MUSIC)) == []
    board.actions(Play(CALLER, 7, ("welcome_12345",), Meanwhile.MUSIC))
    board.settled(CALLER)
    board.prompts_ended(CALLER, 7)
    assert board.actions(Wait(CALLER, Meanwhile.MUSIC)) == []
    assert moves(board.actions(Arrange(CALL, (CALLER, AGENT)))) == [("bridge", NAMES[CALLER], NAMES[AGENT])]
    assert moves(board.actions(Wait(CALLER, Meanwhile.MUSIC))) == [("go", CALLER, "wait")]
    assert board.actions(Wait(CALLER, Meanwhile.MUSIC)) == []
    assert moves(board.actions(Wait(CALLER, Meanwhile.QUIET))) == [("go", CALLER, "quiet")]


@pytest.mark.parametrize("ended", [6, 8])
def test_the_end_of_other_prompts_does_not_make_a_caller_rest(board: Switchboard, ended: int) -> None:
    board.actions(Play(CALLER, 7, ("welcome_12345",), Meanwhile.MUSIC))
    board.prompts_ended(CALLER, ended)
    assert moves(board.actions(Wait(CALLER, Meanwhile.MUSIC))) == [("go", CALLER, "wait")]


def test_nobody_is_moved_while_his_bridge_dissolves(board: Switchboard) -> None:
    """Asterisk refuses a Redirect in that moment; the dialplan's AfterTalk ends it."""
    board.actions(Arrange(CALL, (CALLER, AGENT)))
    board.leaving(AGENT)
    play = Play(CALLER, 1, ("rating_ask",), Meanwhile.QUIET)
    assert board.being_let_go(play) == CALLER
    assert board.being_let_go(Arrange(CALL, (CALLER, THIRD))) == CALLER
    assert board.being_let_go(HangUp(CALLER)) is None
    board.left(CALLER)
    assert board.being_let_go(play) is None


def test_a_party_moved_before_the_other_is_hung_up_is_not_being_let_go(board: Switchboard) -> None:
    board.actions(Arrange(CALL, (CALLER, AGENT)))
    board.actions(Wait(CALLER, Meanwhile.MUSIC))
    board.actions(HangUp(AGENT))
    assert board.being_let_go(Wait(CALLER, Meanwhile.MUSIC)) is None


def test_who_stays_in_a_room_can_be_moved_at_once(board: Switchboard) -> None:
    board.actions(Arrange(CALL, (CALLER, AGENT, THIRD)))
    board.leaving(AGENT)
    assert board.being_let_go(Wait(CALLER, Meanwhile.MUSIC)) is None


def test_without_a_name_the_room_is_safe(board: Switchboard) -> None:
    """Bridge matches beginnings: the caller's id would also fit his other legs, so ids never go into it."""
    board.forget_leg(AGENT)
    room = f"room-{CALL}"
    assert moves(board.actions(Arrange(CALL, (CALLER, AGENT)))) == [("go", CALLER, room), ("go", AGENT, room)]


def test_after_a_restart_the_board_knows_where_everybody_is(board: Switchboard) -> None:
    rows = [
        message(
            "CoreShowChannel", Uniqueid=CALLER, Context="engine", Exten="hold", Application="WaitForCondition"
        ),
        message("CoreShowChannel", Uniqueid=AGENT, Application="ConfBridge", BridgeId="b"),
    ]
    board.found(rows)
    assert moves(board.actions(Arrange(CALL, (CALLER, AGENT)))) == [("go", CALLER, f"room-{CALL}")]


def test_prompts_go_out_in_one_breath(board: Switchboard) -> None:
    setvar, redirect = board.actions(Play(CALLER, 3, ("words/di", "digits/3"), Meanwhile.MUSIC))
    assert setvar.headers["Variable"] == "ARRAY(PROMPTS,PLAY_ID,AFTER_PROMPT)"
    assert setvar.headers["Value"] == "/p/words/di&/p/digits/3,3,wait"
    assert redirect.headers["Exten"] == "play"


@pytest.mark.parametrize("name", ["a,b", "a&b", "../x;y", "A", "${X}", ""])
def test_a_prompt_name_that_is_syntax_is_never_sent(board: Switchboard, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a prompt"):
        board.actions(Play(CALLER, 1, (name,), Meanwhile.QUIET))


def test_a_caller_number_on_a_phones_display_is_digits_only(board: Switchboard) -> None:
    ring = Ring(CALL, AGENT, Role.AGENT, "1001", 20.0, '138"<x>\\,evil', "12345")
    (originate,) = board.actions(ring)
    assert originate.headers["CallerID"] == '"12345" <138>'
    assert originate.headers["ChannelId"] == AGENT
    assert originate.rings == AGENT
    (outside,) = board.actions(Ring(CALL, AGENT, Role.OUTSIDE, "110", 20.0, "", "12345"))
    assert outside.headers["Channel"] == "PJSIP/110@trunk"


def test_the_caller_is_recorded_in_stereo_the_others_alone(board: Switchboard) -> None:
    call = _call()
    (both,) = board.actions(Record(call, CALLER))
    assert (both.headers["File"], both.headers["Options"]) == (f"/r/call-{CALLER}", "D")
    (alone,) = board.actions(Record(call, AGENT))
    assert (alone.headers["File"], alone.headers["Options"]) == ("", f"r(/r/leg-{AGENT})")


def test_small_effects(board: Switchboard) -> None:
    assert board.actions(HangUp(AGENT))[0].headers == {"Channel": AGENT, "Cause": "16"}
    assert board.actions(Mute(AGENT, on=True))[0].headers["State"] == "on"
    (fall_back,) = board.actions(FallBack(CALLER))
    assert (fall_back.headers["Context"], fall_back.headers["Exten"]) == ("fallback", "s")


def _call() -> Call:
    at = datetime(2026, 11, 21, tzinfo=UTC)

    def leg(leg_id: LegId, role: Role) -> Leg:
        return Leg(leg_id, role, "1", None, LegState.UP, Place.TOGETHER, at)

    return Call(
        call_id=CALL,
        line="12345",
        flow_version="v",
        dialled="12345",
        caller="138",
        arrived_at=at,
        phase=Phase.TALKING,
        legs=(leg(CALLER, Role.CALLER), leg(AGENT, Role.AGENT)),
    )
