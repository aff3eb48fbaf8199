"""What Asterisk has, compared with what the centre believes: pure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callcenter.asterisk.ami import AmiMessage
from callcenter.asterisk.audit import Difference, Stray, Untold, differences
from callcenter.domain.calls import Call, CallId, Leg, LegId, LegState, Outcome, Phase, Place, Role
from callcenter.domain.messages import CallAstray, LegAnswered, LegEnded

NOW = datetime(2026, 10, 12, 2, 0, tzinfo=UTC)
CALL = CallId("ast1-1763763843.7")
CALLER, AGENT = LegId(CALL), LegId(f"{CALL}-2")


def leg(leg_id: LegId, role: Role, state: LegState, place: Place) -> Leg:
    return Leg(
        leg_id=leg_id,
        role=role,
        address="1001",
        user_id=None,
        state=state,
        place=place,
        asked_at=NOW - timedelta(seconds=10),
    )


TALKING = Call(
    call_id=CALL,
    line="12345",
    flow_version="1",
    dialled="12345",
    caller="13800138000",
    arrived_at=NOW,
    phase=Phase.TALKING,
    legs=(
        leg(CALLER, Role.CALLER, LegState.UP, Place.TOGETHER),
        leg(AGENT, Role.AGENT, LegState.UP, Place.TOGETHER),
    ),
)
RINGING = replace(
    TALKING,
    phase=Phase.WAITING,
    legs=(
        leg(CALLER, Role.CALLER, LegState.UP, Place.ALONE),
        leg(AGENT, Role.AGENT, LegState.RINGING, Place.ALONE),
    ),
)
HELD = replace(TALKING, legs=(replace(TALKING.legs[0], place=Place.HELD), TALKING.legs[1]))


def row(
    leg_id: str, *, exten: str = "wait", bridge: str = "", context: str = "engine", state: str = "Up"
) -> AmiMessage:
    headers = {
        "Uniqueid": leg_id,
        "Context": context,
        "Exten": exten,
        "BridgeId": bridge,
        "ChannelStateDesc": state,
    }
    return AmiMessage("CoreShowChannel", headers, 0.0)


@pytest.mark.parametrize(
    ("call", "rows", "found"),
    [
        (TALKING, [row(CALLER, bridge="b"), row(AGENT, exten="answered", bridge="b")], set()),
        (TALKING, [row(CALLER, bridge="b")], {LegEnded(AGENT, Outcome.UNREACHABLE)}),
        (TALKING, [row(CALLER), row(AGENT, bridge="b")], {CallAstray(CALL)}),
        (TALKING, [row(CALLER, bridge="b"), row(AGENT, bridge="c")], {CallAstray(CALL)}),
        (TALKING, [row(CALLER, context="fallback", exten="s"), row(AGENT)], {CallAstray(CALL)}),
        (HELD, [row(CALLER, exten="hold"), row(AGENT, bridge="r")], set()),
        (HELD, [row(CALLER, bridge="r"), row(AGENT, bridge="r")], {CallAstray(CALL)}),
        (RINGING, [row(CALLER), row(AGENT, state="Ringing")], set()),
        (RINGING, [row(CALLER), row(AGENT, exten="answered")], {LegAnswered(AGENT)}),
        (RINGING, [row(CALLER)], {LegEnded(AGENT, Outcome.UNREACHABLE)}),
        (RINGING, [row(CALLER, bridge="b"), row(AGENT, state="Ringing")], {CallAstray(CALL)}),
        (None, [row(CALLER, exten="arrived")], {Untold(CALLER, fell_back=False)}),
        (None, [row(CALLER, context="fallback", exten="s")], {Untold(CALLER, fell_back=True)}),
        (None, [row(CALLER, context="fallback", exten="s", bridge="b")], set()),
        (None, [row(AGENT, exten="answered")], {Stray(AGENT)}),
        (None, [row("ast1-1763763843.9", context="from-phone", exten="*43")], set()),
    ],
)
def test_what_differs(call: Call | None, rows: list[AmiMessage], found: set[Difference]) -> None:
    assert differences({CALL: call} if call else {}, rows, NOW) == found


def test_a_ring_just_asked_for_is_not_missed() -> None:
    young = replace(RINGING.legs[1], asked_at=NOW - timedelta(seconds=1))
    call = replace(RINGING, legs=(RINGING.legs[0], young))
    assert differences({CALL: call}, [row(CALLER)], NOW) == frozenset()


def test_whom_the_fallback_queue_gave_him_is_left_with_him() -> None:
    """His channel has a name of Asterisk's own."""
    given = replace(TALKING.legs[1], leg_id=TALKING.fallback_leg_id)
    call = replace(TALKING, legs=(TALKING.legs[0], given))
    rows = [
        row(CALLER, context="fallback", exten="s", bridge="b"),
        row("ast1-1763763843.8", context="from-phone", bridge="b"),
    ]
    assert differences({CALL: call}, rows, NOW) == frozenset()
