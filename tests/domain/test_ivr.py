"""Flows as data: what a caller hears, and what must never run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callcenter.domain import ivr
from callcenter.domain.calendar import working_day
from callcenter.domain.ivr import (
    AskRating,
    Case,
    ChoiceMade,
    ChoiceMissed,
    CollectStep,
    Cursor,
    DigitPressed,
    EnterQueue,
    Facts,
    Flow,
    GaveUp,
    Goto,
    HangUp,
    HangUpCause,
    HangUpStep,
    Menu,
    MessageEnded,
    MessageLeft,
    MessageStep,
    MissedBy,
    Node,
    NodeEntered,
    NodeId,
    Play,
    PlayStep,
    PromptsEnded,
    Purpose,
    QueueGaveUp,
    QueueStep,
    Rating,
    Say,
    SayWhat,
    Started,
    TakeMessage,
    TimedOut,
    Transfer,
    TransferFailed,
    TransferStep,
    TransferTo,
    When,
)

CHINA = timezone(timedelta(hours=8))
FRIDAY = datetime(2026, 10, 9, 9, 0, tzinfo=CHINA)
FACTS = Facts(local=FRIDAY, working_day=True)


def n(name: str) -> NodeId:
    return NodeId(name)


def flow_of(start: str = "a", after_call: str | None = None, **nodes: Node) -> Flow:
    return Flow(
        line="12345",
        name={"zh": "热线", "en": "hotline"},
        numbers=("12345",),
        start=n(start),
        after_call=n(after_call) if after_call else None,
        nodes={n(name): node for name, node in nodes.items()},
        version="0" * 12,
    )


MENU = Menu(
    prompts=("ask",),
    choices={"1": n("one"), "2": n("two")},
    on_timeout=("silent",),
    on_invalid=("wrong",),
    otherwise=n("person"),
    tries=2,
)
QUEUE = EnterQueue("hotline", n("bye"))
MENU_FLOW = flow_of(
    "menu",
    menu=MENU,
    one=Play(("first",), n("person")),
    two=Goto(n("person")),
    person=QUEUE,
    bye=HangUp(),
)


class TestPlaying:
    def test_a_prompt_leads_on_when_it_has_ended(self) -> None:
        flow = flow_of(a=Play(("hello",), n("q")), q=QUEUE, bye=HangUp())

        cursor, step, noted = ivr.begin(flow, FACTS)

        assert step == PlayStep(("hello",), barge_in=True)
        assert noted == (NodeEntered(n("a")),)
        cursor, step, noted = ivr.advance(flow, cursor, PromptsEnded(), FACTS)
        assert isinstance(step, QueueStep)
        assert (cursor.node, noted) == (n("q"), (NodeEntered(n("q")),))

    def test_a_key_ends_a_prompt_with_barge_in_only(self) -> None:
        for barge_in in (True, False):
            flow = flow_of(a=Play(("hello",), n("bye"), barge_in=barge_in), bye=HangUp())
            before, _, _ = ivr.begin(flow, FACTS)
            after, step, _ = ivr.advance(flow, before, DigitPressed("5"), FACTS)
            assert (step, after) == ((HangUpStep(HangUpCause.NORMAL), after) if barge_in else (None, before))

    def test_a_key_pressed_early_answers_the_menu_behind_the_prompt(self) -> None:
        flow = replace(
            MENU_FLOW, start=n("a"), nodes={**MENU_FLOW.nodes, n("a"): Play(("hello",), n("menu"))}
        )
        cursor, _, _ = ivr.begin(flow, FACTS)

        _, chosen, noted = ivr.advance(flow, cursor, DigitPressed("1"), FACTS)
        _, asked, _ = ivr.advance(flow, cursor, DigitPressed("9"), FACTS)

        assert chosen == PlayStep(("first",), barge_in=True)
        assert ChoiceMade(n("menu"), "1") in noted
        assert isinstance(asked, CollectStep)

    @pytest.mark.parametrize(
        ("day", "heard"),
        [(30, False), (1, True), (9, True), (10, False)],
        ids=["before", "first", "last", "after"],
    )
    def test_a_dated_announcement_is_passed_over_outside_its_days(self, day: int, heard: bool) -> None:
        dated = Play(("news",), n("bye"), first_day=date(2026, 10, 1), last_day=date(2026, 10, 9))
        flow = flow_of(a=dated, bye=HangUp())
        local = FRIDAY.replace(month=9 if day == 30 else 10, day=day)

        _, step, noted = ivr.begin(flow, Facts(local=local, working_day=None))

        assert isinstance(step, PlayStep if heard else HangUpStep)
        assert noted[0] == NodeEntered(n("a"))


class TestMenu:
    def test_a_choice_is_taken_and_noted(self) -> None:
        cursor, step, _ = ivr.begin(MENU_FLOW, FACTS)
        assert step == CollectStep(("ask",), 5, 2, "12", Purpose.MENU, barge_in=True)
        _, step, noted = ivr.advance(MENU_FLOW, cursor, DigitPressed("2"), FACTS)
        assert isinstance(step, QueueStep)
        assert noted == (ChoiceMade(n("menu"), "2"), NodeEntered(n("two")), NodeEntered(n("person")))

    @pytest.mark.parametrize(
        ("event", "by", "first"),
        [
            (TimedOut(), MissedBy.TIMEOUT, "silent"),
            (DigitPressed("7"), MissedBy.INVALID, "wrong"),
            (DigitPressed(""), MissedBy.INVALID, "wrong"),
            (DigitPressed("A"), MissedBy.INVALID, "wrong"),
        ],
    )
    def test_who_does_not_choose_is_asked_again_and_then_comes_to_a_person(
        self, event: ivr.Input, by: MissedBy, first: str
    ) -> None:
        cursor, _, _ = ivr.begin(MENU_FLOW, FACTS)
        cursor, step, noted = ivr.advance(MENU_FLOW, cursor, event, FACTS)
        assert isinstance(step, CollectStep)
        assert (step.prompts, step.tries_left) == ((first, "ask"), 1)
        assert noted == (ChoiceMissed(n("menu"), by),)
        _, step, noted = ivr.advance(MENU_FLOW, cursor, event, FACTS)
        assert isinstance(step, QueueStep)
        assert noted == (ChoiceMissed(n("menu"), by), NodeEntered(n("person")))

    def test_without_barge_in_keys_count_once_the_prompts_are_over(self) -> None:
        flow = replace(MENU_FLOW, nodes={**MENU_FLOW.nodes, n("menu"): replace(MENU, barge_in=False)})
        cursor, _, _ = ivr.begin(flow, FACTS)
        assert ivr.advance(flow, cursor, DigitPressed("1"), FACTS) == (cursor, None, ())
        cursor, step, _ = ivr.advance(flow, cursor, PromptsEnded(), FACTS)
        assert step is None
        _, step, _ = ivr.advance(flow, cursor, DigitPressed("1"), FACTS)
        assert isinstance(step, PlayStep)


class TestWhen:
    @pytest.mark.parametrize(
        ("case", "local", "holds"),
        [
            (Case(n("yes"), hours=((540, 720),)), "2026-10-09T09:00", True),
            (Case(n("yes"), hours=((540, 720),)), "2026-10-09T11:59", True),
            (Case(n("yes"), hours=((540, 720),)), "2026-10-09T12:00", False),
            (Case(n("yes"), hours=((540, 720), (810, 1050))), "2026-10-09T13:30", True),
            (Case(n("yes"), hours=((1320, 360),)), "2026-10-09T23:00", True),
            (Case(n("yes"), hours=((1320, 360),)), "2026-10-09T05:59", True),
            (Case(n("yes"), hours=((1320, 360),)), "2026-10-09T06:00", False),
            (Case(n("yes"), hours=((0, 1440),)), "2026-10-09T23:59", True),
            (Case(n("yes"), weekdays=frozenset({4})), "2026-10-09T09:00", True),
            (Case(n("yes"), weekdays=frozenset({5, 6})), "2026-10-09T09:00", False),
            (Case(n("yes"), first_day=date(2026, 10, 10)), "2026-10-09T09:00", False),
            (Case(n("yes"), last_day=date(2026, 10, 9)), "2026-10-09T23:59", True),
            (Case(n("yes"), hours=((540, 720),), weekdays=frozenset({0})), "2026-10-09T09:00", False),
        ],
    )
    def test_all_conditions_of_a_case_must_hold(self, case: Case, local: str, holds: bool) -> None:
        flow = flow_of(a=When((case,), n("no")), yes=HangUp(HangUpCause.BUSY), no=HangUp())
        moment = datetime.fromisoformat(local).replace(tzinfo=CHINA)
        cursor, _, _ = ivr.begin(flow, Facts(local=moment, working_day=None))
        assert cursor.node == ("yes" if holds else "no")

    @pytest.mark.parametrize(("known", "node"), [(True, "yes"), (False, "no"), (None, "maybe")])
    def test_an_unknown_year_takes_its_stated_branch(self, known: bool | None, node: str) -> None:
        case = Case(n("yes"), working_day=True, hours=((540, 720),), unknown=n("maybe"))
        flow = flow_of(a=When((case,), n("no")), yes=HangUp(), no=HangUp(), maybe=HangUp())
        cursor, _, _ = ivr.begin(flow, Facts(local=FRIDAY, working_day=known))
        assert cursor.node == node
        cursor, _, _ = ivr.begin(flow, Facts(local=FRIDAY.replace(hour=8), working_day=None))
        assert cursor.node == "no"

    def test_the_first_case_that_holds_is_taken(self) -> None:
        cases = (Case(n("one"), weekdays=frozenset({4})), Case(n("two"), hours=((0, 1440),)))
        flow = flow_of(a=When(cases, n("two")), one=HangUp(), two=HangUp())
        assert ivr.begin(flow, FACTS)[0].node == "one"

    def test_a_day_nobody_has_published_is_not_guessed(self) -> None:
        known = {date(2026, 10, 10): True}
        assert working_day(date(2026, 10, 10), known) is True
        assert working_day(date(2027, 10, 11), known) is None


class TestQueueAndTransfer:
    def test_a_queue_is_entered_with_its_head_start(self) -> None:
        queue = EnterQueue(
            "company",
            n("bye"),
            head_start_seconds=60,
            announce_every_seconds=30,
            announce_wait=False,
            max_wait_seconds=120,
            music="soft",
        )
        _, step, _ = ivr.begin(flow_of(a=queue, bye=HangUp()), FACTS)
        assert step == QueueStep("company", 60, 30, True, False, 120, "soft")

    @pytest.mark.parametrize(
        ("reason", "node"), [(GaveUp.MAX_WAIT, "late"), (GaveUp.FULL, "full"), (GaveUp.CLOSED, "closed")]
    )
    def test_each_reason_to_give_up_has_its_way(self, reason: GaveUp, node: str) -> None:
        queue = EnterQueue("hotline", n("late"), on_full=n("full"), on_closed=n("closed"))
        flow = flow_of(a=queue, late=HangUp(), full=HangUp(), closed=HangUp())
        cursor, _, _ = ivr.begin(flow, FACTS)
        assert ivr.advance(flow, cursor, QueueGaveUp(reason), FACTS)[0].node == node
        plain = replace(flow, nodes={**flow.nodes, n("a"): EnterQueue("hotline", n("late"))})
        assert ivr.advance(plain, cursor, QueueGaveUp(reason), FACTS)[0].node == "late"

    @pytest.mark.parametrize("event", [TransferFailed(), QueueGaveUp(GaveUp.FULL)])
    def test_a_transfer_that_fails_goes_on(self, event: ivr.Input) -> None:
        flow = flow_of(a=Transfer(TransferTo.AGENT, "1001", n("bye")), bye=HangUp())
        cursor, step, _ = ivr.begin(flow, FACTS)
        assert step == TransferStep(TransferTo.AGENT, "1001")
        assert ivr.advance(flow, cursor, event, FACTS)[1] == HangUpStep(HangUpCause.NORMAL)


class TestMessage:
    FLOW = flow_of(
        a=TakeMessage(
            ("ask",), n("bye"), saved=("kept",), too_short=("short",), max_seconds=60, min_seconds=2
        ),
        bye=HangUp(),
    )

    def test_a_message_is_kept_and_acknowledged(self) -> None:
        cursor, step, _ = ivr.begin(self.FLOW, FACTS)
        assert step == MessageStep(("ask",), 60, 2)
        cursor, step, noted = ivr.advance(self.FLOW, cursor, MessageEnded(7.5), FACTS)
        assert (step, noted) == (PlayStep(("kept",), barge_in=True), (MessageLeft(n("a"), 7.5),))
        assert ivr.advance(self.FLOW, cursor, MessageEnded(9), FACTS)[1] is None
        assert isinstance(ivr.advance(self.FLOW, cursor, PromptsEnded(), FACTS)[1], HangUpStep)

    def test_a_message_too_short_is_asked_for_again_and_then_let_go(self) -> None:
        cursor, _, _ = ivr.begin(self.FLOW, FACTS)
        cursor, step, noted = ivr.advance(self.FLOW, cursor, MessageEnded(0.4), FACTS)
        assert (step, noted) == (MessageStep(("short", "ask"), 60, 2), ())
        assert isinstance(ivr.advance(self.FLOW, cursor, MessageEnded(0), FACTS)[1], HangUpStep)


class TestRating:
    FLOW = flow_of(a=AskRating(("ask",), n("bye"), thanks=("thanks",), invalid=("wrong",)), bye=HangUp())

    @pytest.mark.parametrize("score", [1, 2, 3, 4, 5])
    def test_a_rating_is_noted_and_thanked_for(self, score: int) -> None:
        cursor, step, _ = ivr.begin(self.FLOW, FACTS)
        assert isinstance(step, CollectStep)
        assert (step.purpose, step.digits) == (Purpose.RATING, "12345")
        cursor, step, noted = ivr.advance(self.FLOW, cursor, DigitPressed(str(score)), FACTS)
        assert (step, noted) == (PlayStep(("thanks",), barge_in=True), (Rating(n("a"), score),))
        cursor, step, noted = ivr.advance(self.FLOW, cursor, DigitPressed("1"), FACTS)
        assert isinstance(step, HangUpStep)
        assert not any(isinstance(one, Rating) for one in noted), "a call is rated once"

    @pytest.mark.parametrize("event", [DigitPressed("6"), DigitPressed("0"), TimedOut()])
    def test_who_does_not_rate_is_asked_once_more(self, event: ivr.Input) -> None:
        cursor, _, _ = ivr.begin(self.FLOW, FACTS)
        cursor, step, _ = ivr.advance(self.FLOW, cursor, event, FACTS)
        assert isinstance(step, CollectStep)
        assert step.prompts == ("wrong", "ask")
        assert isinstance(ivr.advance(self.FLOW, cursor, event, FACTS)[1], HangUpStep)


class TestSaying:
    @pytest.mark.parametrize(
        ("say", "prompts"),
        [
            (Say(SayWhat.NUMBER, n("bye"), "12"), ("digits/shi", "digits/2")),
            (Say(SayWhat.DIGITS, n("bye"), "10"), ("digits/yao", "digits/0")),
            (Say(SayWhat.TEXT, n("bye"), "第1位"), ("words/di", "digits/1", "words/wei")),
            (Say(SayWhat.POSITION, n("bye")), ("queue/position_2",)),
            (Say(SayWhat.WAIT, n("bye")), ("queue/wait_2",)),
        ],
    )
    def test_what_is_known_is_said(self, say: Say, prompts: tuple[str, ...]) -> None:
        facts = replace(FACTS, position=2, expected_wait_seconds=100)
        assert ivr.begin(flow_of(a=say, bye=HangUp()), facts)[1] == PlayStep(prompts, barge_in=True)

    @pytest.mark.parametrize("what", [SayWhat.POSITION, SayWhat.WAIT])
    @pytest.mark.parametrize("wait", [None, float("inf")])
    def test_what_is_not_known_is_passed_over(self, what: SayWhat, wait: float | None) -> None:
        facts = replace(FACTS, expected_wait_seconds=wait)
        _, step, _ = ivr.begin(flow_of(a=Say(what, n("bye")), bye=HangUp()), facts)
        assert isinstance(step, HangUpStep)


class TestRestart:
    def test_a_cursor_survives_json_and_the_step_is_carried_out_again(self) -> None:
        cursor, _, _ = ivr.begin(MENU_FLOW, FACTS)
        cursor, _, _ = ivr.advance(MENU_FLOW, cursor, TimedOut(), FACTS)
        restored = Cursor.restored(json.loads(json.dumps(asdict(cursor))))
        assert restored == cursor

        cursor, step, noted = ivr.advance(MENU_FLOW, restored, Started(), FACTS)

        assert isinstance(step, CollectStep)
        assert (step.tries_left, cursor.tries, noted) == (1, 1, ())

    def test_a_rating_already_given_is_not_asked_for_again(self) -> None:
        cursor, _, _ = ivr.begin(TestRating.FLOW, FACTS)
        cursor, _, _ = ivr.advance(TestRating.FLOW, cursor, DigitPressed("1"), FACTS)
        _, step, _ = ivr.advance(TestRating.FLOW, cursor, Started(), FACTS)
        assert isinstance(step, HangUpStep)

    def test_a_newer_flow_without_the_node_begins_anew(self) -> None:
        cursor, _, _ = ivr.begin(MENU_FLOW, FACTS)
        newer = replace(flow_of(a=Play(("hello",), n("bye")), bye=HangUp()), version="1" * 12)
        after, step, _ = ivr.advance(newer, cursor, Started(), FACTS)
        assert (after.node, after.version) == (n("a"), newer.version)
        assert isinstance(step, PlayStep)

    def test_any_other_input_needs_the_version_the_call_began_with(self) -> None:
        cursor, _, _ = ivr.begin(MENU_FLOW, FACTS)
        with pytest.raises(ValueError, match="This call is in version 000000000000"):
            ivr.advance(replace(MENU_FLOW, version="1" * 12), cursor, TimedOut(), FACTS)

    @pytest.mark.parametrize("stored", [{}, {"phase": "speaking"}, {"phase": "x", "line": "1"}])
    def test_what_is_no_cursor_is_refused(self, stored: Mapping[str, object]) -> None:
        with pytest.raises(ValueError, match=r"no stored cursor|is not a valid Phase"):
            Cursor.restored(stored)

    def test_a_flow_is_entered_at_a_node_it_has(self) -> None:
        assert ivr.begin(MENU_FLOW, FACTS, at=n("bye"))[1] == HangUpStep(HangUpCause.NORMAL)
        with pytest.raises(ValueError, match="has no node nowhere"):
            ivr.begin(MENU_FLOW, FACTS, at=n("nowhere"))

    def test_facts_need_their_time_zone(self) -> None:
        with pytest.raises(ValueError, match="time zone"):
            Facts(local=FRIDAY.replace(tzinfo=None), working_day=None)


PROMPTS = {"hello", "ask", "silent", "wrong", "first", "digits/1", "digits/shi"}


def messages(flow: Flow) -> list[tuple[str | None, str, tuple[str | int, ...]]]:
    found = ivr.problems(flow, queues={"hotline"}, prompts=PROMPTS, numbers={"110"})
    return [(problem.node, problem.message, problem.path) for problem in found]


GREETED = {"a": Play(("hello",), n("q")), "q": QUEUE, "bye": HangUp()}


class TestProblems:
    def test_a_good_flow_has_none(self) -> None:
        assert messages(MENU_FLOW) == []
        assert messages(flow_of(**GREETED)) == []

    @pytest.mark.parametrize(
        ("nodes", "node", "part", "path"),
        [
            ({"a": Play(("hello",), n("qq"))}, "a", "There is no node qq; did you mean q?", ("next",)),
            (
                {"a": Play(("helo",), n("q"))},
                "a",
                "no prompt helo; did you mean hello?",
                ("play", "prompts", 0),
            ),
            ({"a": Play((), n("q"))}, "a", "plays nothing", ("play", "prompts")),
            ({"q": EnterQueue("hotlin", n("bye"))}, "q", "did you mean hotline?", ("queue", "queue")),
            ({"extra": HangUp()}, "extra", "Nothing leads to extra", ()),
            (
                {"q": EnterQueue("hotline", n("b")), "b": Play(("hello",), n("q"))},
                "b",
                "A loop in which nothing waits for the caller: q → b → q",
                ("next",),
            ),
            ({"a": Goto(n("a"))}, "a", "a → a", ("goto",)),
            (
                {"q": Transfer(TransferTo.NUMBER, "119", n("bye"))},
                "q",
                "may not be transferred to 119",
                ("transfer", "number"),
            ),
            (
                {"q": Transfer(TransferTo.QUEUE, "hotlin", n("bye"))},
                "q",
                "no queue hotlin",
                ("transfer", "queue"),
            ),
            (
                {"a": Play(("hello",), n("q"), first_day=date(2026, 2, 1), last_day=date(2026, 1, 1))},
                "a",
                "is before",
                ("play", "until"),
            ),
            ({"a": When((Case(n("q")),), n("q"))}, "a", "states no condition", ("when", "cases", 0)),
            (
                {"a": When((Case(n("q"), working_day=True),), n("q"))},
                "a",
                "Say under unknown where to go",
                ("when", "cases", 0),
            ),
            (
                {"a": When((Case(n("q"), weekdays=frozenset({1}), unknown=n("q")),), n("q"))},
                "a",
                "unknown belongs to",
                ("when", "cases", 0, "unknown"),
            ),
            ({"a": When((Case(n("q"), hours=()),), n("q"))}, "a", "No hours", ("when", "cases", 0, "hours")),
            (
                {"a": When((Case(n("q"), weekdays=frozenset()),), n("q"))},
                "a",
                "No weekdays",
                ("when", "cases", 0, "weekdays"),
            ),
            ({"a": Say(SayWhat.NUMBER, n("q"), "x")}, "a", "'x' is no whole number", ("say", "value")),
            ({"a": Say(SayWhat.TEXT, n("q"), "")}, "a", "nothing to say", ("say",)),
            ({"a": Say(SayWhat.DIGITS, n("q"), "2")}, "a", "no prompt digits/2", ("say",)),
            ({"a": Say(SayWhat.WAIT, n("q"), "2")}, "a", "known by itself", ("say", "value")),
            ({"a": AskRating((), n("q"))}, "a", "asks nothing", ("rating", "ask")),
            (
                {"a": TakeMessage(("ask",), n("q"), max_seconds=5, min_seconds=5)},
                "a",
                "no message is ever kept",
                ("message",),
            ),
        ],
    )
    def test_each_mistake_is_named_at_its_place(
        self, nodes: dict[str, Node], node: str, part: str, path: tuple[str | int, ...]
    ) -> None:
        found = messages(flow_of(**{**GREETED, **nodes}))
        assert any(one[0] == node and part in one[1] and one[2] == path for one in found), found

    @pytest.mark.parametrize(
        ("change", "part", "path"),
        [
            ({"prompts": ()}, "asks nothing", ("menu", "prompts")),
            ({"on_timeout": ()}, "who presses no key", ("menu", "on_timeout")),
            ({"on_invalid": ()}, "who presses a wrong key", ("menu", "on_invalid")),
            ({"choices": {}}, "no choices", ("menu", "choices")),
            (
                {"choices": {"12": n("one"), "2": n("two")}},
                "no key of a telephone",
                ("menu", "choices", "12"),
            ),
            ({"tries": 0}, "at least one try", ("menu", "tries")),
            ({"otherwise": n("bye")}, "must come to a person", ("menu", "otherwise")),
            ({"otherwise": n("menu")}, "A loop", ("menu", "otherwise")),
        ],
    )
    def test_a_menu_leads_everybody_to_a_person(
        self, change: dict[str, object], part: str, path: tuple[str | int, ...]
    ) -> None:
        flow = replace(MENU_FLOW, nodes={**MENU_FLOW.nodes, n("menu"): replace(MENU, **change)})  # type: ignore[arg-type] # fields by name
        assert any(one[0] == "menu" and part in one[1] and one[2] == path for one in messages(flow))

    def test_a_loop_that_waits_for_a_key_or_a_stated_time_is_allowed(self) -> None:
        again = replace(MENU, choices={"1": n("one"), "2": n("two"), "9": n("menu")})
        assert messages(replace(MENU_FLOW, nodes={**MENU_FLOW.nodes, n("menu"): again})) == []
        patient = EnterQueue("hotline", n("a"), max_wait_seconds=60, on_full=n("bye"), on_closed=n("bye"))
        assert messages(flow_of(**{**GREETED, "q": patient})) == []

    def test_a_line_without_a_person_must_say_why(self) -> None:
        flow = flow_of(a=Play(("hello",), n("bye")), bye=HangUp())
        (only,) = messages(flow)
        assert only[0] is None
        assert "or say why there is none under without_person" in only[1]
        assert messages(replace(flow, without_person="the number was given back in 2025")) == []

    @pytest.mark.parametrize("node", [QUEUE, Transfer(TransferTo.NUMBER, "110", n("bye"))])
    def test_after_the_call_nobody_is_put_through_again(self, node: Node) -> None:
        found = messages(
            flow_of(after_call="rate", **GREETED, rate=AskRating(("ask",), n("back")), back=node)
        )
        assert [(one[0], "must not be put through again" in one[1]) for one in found] == [("back", True)]

    @pytest.mark.parametrize("field", ["start", "after_call"])
    def test_the_ways_in_must_exist(self, field: str) -> None:
        found = messages(replace(flow_of(after_call="bye", **GREETED), **{field: n("byee")}))  # type: ignore[arg-type] # fields by name
        assert (None, "There is no node byee; did you mean bye?", (field,)) in found

    def test_problems_stand_in_the_order_of_the_file(self) -> None:
        found = messages(flow_of(a=Play(("x",), n("zz")), b=Goto(n("zz")), bye=HangUp()))
        assert [one[0] for one in found] == [None, "a", "a", "b", "b", "bye"]


# A loaded machine may be slow: what is asked here is whether it is right.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- random flows -------------------------------------------------------------------------------------------

SIZE = 7
names = st.integers(0, SIZE - 1).map(lambda index: n(f"n{index}"))
prompts = st.sampled_from([("hello",), ("ask", "first")])
days = st.none() | st.dates(date(2026, 10, 1), date(2026, 10, 20))
cases = st.builds(
    Case,
    then=names,
    hours=st.none() | st.just(((540, 720),)) | st.just(((1320, 360),)),
    weekdays=st.none() | st.frozensets(st.integers(0, 6), min_size=1),
    working_day=st.none() | st.booleans(),
    first_day=days,
    unknown=st.none() | names,
)
nodes = st.one_of(
    st.builds(Play, prompts, names, barge_in=st.booleans(), first_day=days, last_day=days),
    st.builds(
        Menu,
        prompts=prompts,
        choices=st.dictionaries(st.sampled_from(ivr.MENU_DIGITS), names, min_size=1, max_size=4),
        on_timeout=prompts,
        on_invalid=prompts,
        otherwise=names,
        tries=st.integers(1, 3),
        barge_in=st.booleans(),
    ),
    st.builds(When, st.lists(cases, min_size=1, max_size=2).map(tuple), names),
    st.builds(
        EnterQueue,
        st.just("hotline"),
        names,
        on_full=st.none() | names,
        max_wait_seconds=st.none() | st.just(60.0),
    ),
    st.builds(Transfer, st.just(TransferTo.NUMBER), st.just("110"), names),
    st.builds(TakeMessage, prompts, names, saved=st.just(()) | prompts, tries=st.integers(1, 2)),
    st.builds(AskRating, prompts, names, thanks=st.just(()) | prompts, tries=st.integers(1, 2)),
    st.builds(Say, st.just(SayWhat.POSITION) | st.just(SayWhat.WAIT), names),
    st.builds(Goto, names),
    st.builds(HangUp),
)


def only_reachable(flow: Flow) -> Flow:
    """What nobody can come to is left out, as a person would after the first `flows check`."""
    kept = {*ivr.reachable(flow, flow.start), *ivr.reachable(flow, flow.after_call)}
    return replace(flow, nodes={name: node for name, node in flow.nodes.items() if name in kept})


def forward(index: int, node: Node) -> Node:
    """Turn every way out that does not wait for a key to a later node, so that most drawn flows are valid."""
    ahead = n(f"n{index + 1}")

    def later(name: NodeId | None) -> NodeId:
        return name if name is not None and int(name[1:]) > index else ahead

    match node:
        case Play():
            first, last = node.first_day, node.last_day
            if first is not None and last is not None:
                first, last = min(first, last), max(first, last)
            return replace(node, next=later(node.next), first_day=first, last_day=last)
        case Say() | TakeMessage() | AskRating():
            return replace(node, next=later(node.next))
        case Menu():
            return replace(node, otherwise=later(node.otherwise))
        case When():
            fixed = tuple(
                replace(
                    case,
                    then=later(case.then),
                    hours=case.hours or ((0, 1440),),
                    unknown=None if case.working_day is None else later(case.unknown),
                )
                for case in node.cases
            )
            return When(fixed, later(node.otherwise))
        case EnterQueue():
            return replace(
                node,
                on_give_up=later(node.on_give_up),
                on_full=None if node.on_full is None else later(node.on_full),
            )
        case Transfer():
            return replace(node, on_failure=later(node.on_failure))
        case Goto():
            return Goto(later(node.to))
        case HangUp():
            return node


@st.composite
def wild_flows(draw: st.DrawFn) -> Flow:
    drawn = draw(st.lists(nodes, min_size=SIZE, max_size=SIZE))
    flow = flow_of("n0", **{f"n{index}": node for index, node in enumerate(drawn)})
    return only_reachable(replace(flow, without_person="drawn by lot"))


@st.composite
def tame_flows(draw: st.DrawFn) -> Flow:
    drawn = draw(st.lists(nodes, min_size=SIZE - 1, max_size=SIZE - 1))
    made = {f"n{index}": forward(index, node) for index, node in enumerate(drawn)}
    flow = flow_of("n0", **made, **{f"n{SIZE - 1}": HangUp()})
    return only_reachable(replace(flow, without_person="drawn by lot"))


facts = st.builds(
    Facts,
    local=st.integers(-14 * 1440, 16 * 1440).map(lambda minutes: FRIDAY + timedelta(minutes=minutes)),
    working_day=st.none() | st.booleans(),
    position=st.none() | st.integers(1, 200),
    expected_wait_seconds=st.none() | st.floats(0, 5000) | st.just(float("inf")),
)
inputs = st.one_of(
    st.builds(Started),
    st.builds(PromptsEnded),
    st.builds(TimedOut),
    st.builds(TransferFailed),
    st.builds(DigitPressed, st.sampled_from([*ivr.MENU_DIGITS, "A", ""])),
    st.builds(QueueGaveUp, st.sampled_from(GaveUp)),
    st.builds(MessageEnded, st.floats(0, 200)),
)


def faults(flow: Flow) -> list[str]:
    found = ivr.problems(flow, queues={"hotline"}, prompts=PROMPTS, numbers={"110"})
    return [problem.message for problem in found]


def fits(flow: Flow, cursor: Cursor, step: ivr.Step) -> bool:
    """A step belongs to the node where the cursor stands."""
    match flow.nodes[cursor.node]:
        case Play() | Say():
            return isinstance(step, PlayStep)
        case Menu():
            return isinstance(step, CollectStep)
        case AskRating():
            return isinstance(step, CollectStep | PlayStep)
        case TakeMessage():
            return isinstance(step, MessageStep | PlayStep)
        case EnterQueue():
            return isinstance(step, QueueStep)
        case Transfer():
            return isinstance(step, TransferStep)
        case HangUp():
            return isinstance(step, HangUpStep)
        case _:
            return False


def silent(step: ivr.Step) -> ivr.Input:
    """What happens to a caller who presses nothing and says nothing, where nobody ever answers."""
    match step:
        case PlayStep():
            return PromptsEnded()
        case CollectStep():
            return TimedOut()
        case QueueStep():
            return QueueGaveUp(GaveUp.CLOSED)
        case TransferStep():
            return TransferFailed()
        case MessageStep():
            return MessageEnded(0)
        case HangUpStep():
            raise AssertionError("after the end nothing happens")


def walk_in_silence(flow: Flow, facts: Facts) -> None:
    cursor, step, _ = ivr.begin(flow, facts)
    for _ in range(10 * SIZE):
        if isinstance(step, HangUpStep):
            return
        cursor, onward, _ = ivr.advance(flow, cursor, silent(step), facts)
        assert onward is not None
        step = onward
    raise AssertionError("a silent caller never comes to an end")


@patiently
@given(tame_flows(), st.lists(st.tuples(inputs, facts), max_size=30), facts)
def test_any_inputs_lead_through_a_valid_flow(
    flow: Flow, happened: list[tuple[ivr.Input, Facts]], first: Facts
) -> None:
    assert faults(flow) == []
    cursor, step, _ = ivr.begin(flow, first)
    assert fits(flow, cursor, step)
    for event, now in happened:
        before = cursor
        cursor, onward, noted = ivr.advance(flow, cursor, event, now)
        assert Cursor.restored(json.loads(json.dumps(asdict(cursor)))) == cursor
        if onward is None:
            assert noted == ()
            assert cursor.steps == before.steps
        else:
            step = onward
            assert cursor.steps > before.steps
            assert fits(flow, cursor, step)


@patiently
@given(wild_flows() | tame_flows(), facts)
def test_in_a_flow_without_problems_a_silent_caller_comes_to_an_end(flow: Flow, now: Facts) -> None:
    if not faults(flow):
        walk_in_silence(flow, now)


@patiently
@given(wild_flows(), facts)
def test_a_flow_that_goes_round_is_always_refused(flow: Flow, now: Facts) -> None:
    try:
        walk_in_silence(flow, now)
    except (AssertionError, ValueError):
        assert any("loop" in fault for fault in faults(flow))
