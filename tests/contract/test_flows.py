"""Flow files: what is taken, what is refused and where it says so, and how a change on disk is taken."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from callcenter.domain import ivr
from callcenter.domain.ivr import (
    CollectStep,
    DigitPressed,
    GaveUp,
    HangUpStep,
    MessageEnded,
    MessageStep,
    NodeId,
    PlayStep,
    PromptsEnded,
    QueueGaveUp,
    QueueStep,
    TimedOut,
    TransferFailed,
    TransferStep,
)
from callcenter.domain.spoken import ATOMS
from callcenter.flows import (
    MAX_FILE_BYTES,
    FlowError,
    FlowSet,
    FlowsRefused,
    Reloaded,
    facts_at,
    flow_schema,
    load_flow,
    working_days,
)
from callcenter.flows_cli import Site, app, mermaid, schema_text, svg, tree

SHIPPED = Path(__file__).parents[2] / "ivr_flows"
LINES = ["12345", "12346", "7220000", "96500"]
QUEUES = frozenset({"hotline", "company"})
PROMPT_NAMES = [
    "welcome_12345",
    "welcome_96500",
    "transition_96500",
    "welcome_7220000",
    "menu_12346",
    "menu_invalid",
    "menu_timeout",
    "please_wait",
    "queue_full",
    "queue_closed",
    "after_hours",
    "leave_message",
    "message_saved",
    "message_too_short",
    "rating_ask",
    "rating_thanks",
    "rating_invalid",
    "goodbye",
    "transferring",
    "no_such_number",
    "system_trouble",
]
TEXTS = dict.fromkeys(PROMPT_NAMES, "您好")
PROMPTS = frozenset({*TEXTS, *ATOMS})
NUMBERS = frozenset({"110"})

GOOD = """\
line: "12345"
name: {zh: 热线, en: hotline}
numbers: ["12345"]
start: hello
nodes:
  hello:
    play: {prompts: [welcome_12345]}
    next: person
  person:
    queue: {queue: hotline, on_give_up: bye}
  bye:
    hangup:
"""


def loaded(file: Path) -> ivr.Flow:
    return load_flow(file, queues=QUEUES, prompts=PROMPTS, numbers=NUMBERS)


def refused(file: Path) -> list[tuple[int, int, str]]:
    with pytest.raises(FlowsRefused) as caught:
        loaded(file)
    assert all(error.file == file for error in caught.value.errors)
    return [(error.line, error.column, error.message) for error in caught.value.errors]


def shipped() -> FlowSet:
    return FlowSet.load(SHIPPED, queues=QUEUES, prompts=PROMPTS, numbers=NUMBERS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "12345.yaml"


# --- one file -----------------------------------------------------------------------------------------------


def test_every_kind_of_node_is_read_as_it_is_written(file: Path) -> None:
    file.write_text(
        """\
line: 12345
name: {zh: 热线, en: hotline}
numbers: [12345, 010]
start: 开始
after_call: rate
nodes:
  开始:
    play: {prompts: [welcome_12345, digits/3], barge_in: false, from: 2026-10-01, until: 2026-10-07}
    next: place
  place: {say: {what: digits, value: 110}, next: clock}
  clock:
    when:
      cases:
        - {working_day: true, hours: "08:30-12:00, 22:00-06:00", then: menu, unknown: person}
        - {weekdays: [mon, sun], from: 2026-10-01, until: 2026-10-07, then: person}
      else: away
  menu:
    menu:
      prompts: [menu_12346]
      choices: {1: person, "*": away}
      timeout_seconds: 7.5
      tries: 2
      on_timeout: [menu_timeout]
      on_invalid: [menu_invalid]
      otherwise: person
  person:
    queue:
      queue: hotline
      priority: raised
      announce: {every_seconds: 30, wait: false}
      max_wait_seconds: 300
      on_give_up: away
      on_full: emergency
      on_closed: away
      music: soft
  emergency: {transfer: {number: 110, on_failure: desk}}
  desk: {transfer: {agent: agent1, on_failure: away}}
  away:
    message: {prompts: [leave_message], saved: [message_saved], max_seconds: 60, min_seconds: 1.5, tries: 3}
    next: jump
  rate: {rating: {ask: [rating_ask], thanks: [rating_thanks], tries: 1}, next: jump}
  jump: {goto: bye}
  bye: {hangup: {cause: busy}}
""",
        encoding="utf-8",
    )
    n = NodeId

    flow = loaded(file)

    assert (flow.line, flow.numbers, flow.start, flow.after_call) == (
        "12345",
        ("12345", "010"),
        "开始",
        "rate",
    )
    assert len(flow.version) == 12
    assert flow.nodes == {
        "开始": ivr.Play(
            ("welcome_12345", "digits/3"),
            n("place"),
            barge_in=False,
            first_day=date(2026, 10, 1),
            last_day=date(2026, 10, 7),
        ),
        "place": ivr.Say(ivr.SayWhat.DIGITS, n("clock"), "110"),
        "clock": ivr.When(
            (
                ivr.Case(n("menu"), hours=((510, 720), (1320, 360)), working_day=True, unknown=n("person")),
                ivr.Case(
                    n("person"),
                    weekdays=frozenset({0, 6}),
                    first_day=date(2026, 10, 1),
                    last_day=date(2026, 10, 7),
                ),
            ),
            n("away"),
        ),
        "menu": ivr.Menu(
            ("menu_12346",),
            {"1": n("person"), "*": n("away")},
            ("menu_timeout",),
            ("menu_invalid",),
            n("person"),
            timeout_seconds=7.5,
            tries=2,
        ),
        "person": ivr.EnterQueue(
            "hotline",
            n("away"),
            on_full=n("emergency"),
            on_closed=n("away"),
            head_start_seconds=60,
            announce_every_seconds=30,
            announce_wait=False,
            max_wait_seconds=300,
            music="soft",
        ),
        "emergency": ivr.Transfer(ivr.TransferTo.NUMBER, "110", n("desk")),
        "desk": ivr.Transfer(ivr.TransferTo.AGENT, "agent1", n("away")),
        "away": ivr.TakeMessage(
            ("leave_message",), n("jump"), saved=("message_saved",), max_seconds=60, min_seconds=1.5, tries=3
        ),
        "rate": ivr.AskRating(("rating_ask",), n("jump"), thanks=("rating_thanks",), tries=1),
        "jump": ivr.Goto(n("bye")),
        "bye": ivr.HangUp(ivr.HangUpCause.BUSY),
    }


BAD_TEXTS = [
    pytest.param("", 1, 1, "This file is empty", id="empty"),
    pytest.param("a: [1, 2", 1, 9, "This is not YAML", id="open bracket"),
    pytest.param("a: 1\n\tb: 2", 2, 1, "A tab stands here", id="tab"),
    pytest.param(GOOD + "---\na: 1\n", 13, 1, "This is not YAML", id="two documents"),
    pytest.param("- a", 1, 1, "Keys with values must stand here", id="list"),
    pytest.param("x", 1, 1, "Keys with values must stand here", id="word"),
    pytest.param("a: &x [1]\nb: *x", 1, 4, "Aliases and anchors", id="anchor"),
    pytest.param("b: *x", 1, 4, "Aliases and anchors", id="alias"),
    pytest.param("a: !!python/object/apply:os.system [ls]", 1, 4, "Tags", id="python tag"),
    pytest.param("a: !!str 1", 1, 4, "Tags", id="tag"),
    pytest.param("a: " + "[" * 11 + "]" * 11, 1, 13, "Nested deeper than 10", id="deep"),
    pytest.param("a: " + "[" * 30_000, 1, 13, "Nested deeper than 10", id="very deep"),
    pytest.param("# " + "x" * MAX_FILE_BYTES, 1, 1, "larger than 64 KiB", id="large"),
    pytest.param("a: 1\nb: \x07", 2, 4, "Character U+0007", id="control character"),
    pytest.param("? [a]\n: 1", 1, 3, "A key must be a plain word", id="key is a list"),
]


@pytest.mark.parametrize(("text", "line", "column", "part"), BAD_TEXTS)
def test_what_is_no_safe_yaml_is_refused_at_its_place(
    file: Path, text: str, line: int, column: int, part: str
) -> None:
    file.write_text(text, encoding="utf-8")
    assert [one for one in refused(file) if one[:2] == (line, column) and part in one[2]]


def test_a_file_in_gbk_says_how_to_save_it(file: Path) -> None:
    file.write_bytes(b'line: "12345"\nname: ' + "热线".encode("gbk"))
    assert refused(file) == [
        (2, 7, "This is not UTF-8: save the file in UTF-8 (many editors of Windows save GBK).")
    ]


def test_a_byte_order_mark_does_no_harm(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert loaded(file).line == "12345"


def test_a_file_that_cannot_be_read_says_so(file: Path) -> None:
    file.mkdir()
    assert "cannot be read" in refused(file)[0][2]


BAD_ENTRIES = [
    ("numbers:", "numbrs:", 3, 1, 'Unknown key "numbrs"; did you mean "numbers"?'),
    ("numbers:", "numbrs:", 1, 1, '"numbers" is missing'),
    ('["12345"]', "[]", 3, 10, "This is empty: name at least one"),
    ('["12345"]', '"12345"', 3, 10, "A list must stand here: write [12345]"),
    ('["12345"]', "[12345, 12345]", 3, 18, "named twice"),
    ('["12345"]', "[abc]", 3, 11, "'abc' is no telephone number"),
    ('line: "12345"', "line: 12", 1, 7, "'12' is no line"),
    ('line: "12345"', "line: 96500", 1, 7, "must be named 96500.yaml"),
    ('line: "12345"', "line:", 1, 1, "This is empty: give it a value"),
    (", en: hotline", "", 2, 1, '"en" is missing'),
    ("start: hello", "start: helo", 4, 8, "There is no node helo; did you mean hello?"),
    ("start: hello", "start: hello\nstart: bye", 5, 1, 'Key "start" stands here twice, first on line 4'),
    ("    next: person", "", 6, 3, '"next" is missing, so the caller would go nowhere'),
    (
        "    next: person",
        "    nxt: person",
        8,
        5,
        'Unknown key "nxt"; did you mean "next"? Here can stand: play, next.',
    ),
    ("    next: person", "    next: [person]", 8, 11, "One word or number must stand here"),
    ("    next: person", "    next: a b", 8, 11, "'a b' is no name of a node"),
    ("    play:", "    paly:", 6, 3, 'There is no kind of node "paly"; did you mean "play"?'),
    (
        "    play: {prompts: [welcome_12345]}",
        "    goto: bye\n    hangup:",
        6,
        3,
        "this one is goto and hangup",
    ),
    (
        "    play: {prompts: [welcome_12345]}",
        "    colour: red",
        6,
        3,
        "A node must name its kind: play, menu",
    ),
    (
        "    play: {prompts: [welcome_12345]}",
        "    play: welcome_12345",
        7,
        11,
        "Keys with values must stand here",
    ),
    (
        "[welcome_12345]}",
        "[welcome_12354]}",
        7,
        22,
        "There is no prompt welcome_12354; did you mean welcome_12345?",
    ),
    ("[welcome_12345]}", "welcome_12345}", 7, 21, "A list must stand here: write [welcome_12345]."),
    ("[welcome_12345]}", "[../../etc/passwd]}", 7, 22, "is no name of a prompt"),
    ("[welcome_12345]}", "[please_wait], barge_in: yes}", 7, 46, "'yes' is neither true nor false"),
    ("[welcome_12345]}", "[please_wait], from: 2026-02-30}", 7, 42, "There is no day 2026-02-30."),
    (
        "[welcome_12345]}",
        "[please_wait], from: tomorrow}",
        7,
        42,
        "'tomorrow' is no day: write it as 2026-10-01.",
    ),
    (
        "[welcome_12345]}",
        "[please_wait], from: 2026-02-02, until: 2026-02-01}",
        7,
        61,
        "until (2026-02-01) is before from (2026-02-02)",
    ),
    ("queue: hotline", "queue: hotlin", 10, 20, "There is no queue hotlin; did you mean hotline?"),
    ("on_give_up: bye", "on_give_up: by", 10, 41, "There is no node by; did you mean bye?"),
    (", on_give_up: bye", "", 10, 5, '"on_give_up" is missing'),
    ("on_give_up: bye", "on_give_up: bye, priority: high", 10, 56, "'high' is not known here"),
    (
        "on_give_up: bye",
        "on_give_up: bye, priority: urgent, head_start_seconds: 1",
        10,
        12,
        "priority and head_start_seconds say the same thing",
    ),
    ("on_give_up: bye", "on_give_up: bye, head_start_seconds: -1", 10, 66, "-1 is too small: at least 0."),
    ("on_give_up: bye", "on_give_up: bye, max_wait_seconds: 1e9", 10, 64, "1e9 is too large: at most 7200."),
    ("on_give_up: bye", "on_give_up: bye, max_wait_seconds: .nan", 10, 64, "'.nan' is no number"),
    (
        "on_give_up: bye",
        "on_give_up: bye, announce: {every: 3}",
        10,
        57,
        'Unknown key "every"; did you mean "every_seconds"?',
    ),
    ("on_give_up: bye", "on_give_up: hello", 10, 41, "A loop in which nothing waits for the caller"),
    ("  bye:", "  lost: {hangup: }\n  bye:", 11, 3, "Nothing leads to lost"),
    ("    hangup:", "    hangup: {cause: bored}", 12, 21, "'bored' is not known here"),
    ("    hangup:", "    transfer: {on_failure: person}", 12, 15, "exactly one of agent, queue or number"),
    (
        "    hangup:",
        "    transfer: {number: 119, on_failure: person}",
        12,
        24,
        "may not be transferred to 119",
    ),
    ("    hangup:", "    say: {what: number}\n    next: person", 12, 10, "give the number under value"),
    (
        "    hangup:",
        "    say: {what: text, value: 天气}\n    next: person",
        12,
        30,
        "Nothing is recorded for “天气”",
    ),
    (
        "    hangup:",
        '    when: {cases: [{hours: "8-12", then: person}], else: person}',
        12,
        28,
        "'8-12' are no hours: write them as 08:30-12:00,13:30-17:30.",
    ),
    (
        "    hangup:",
        '    when: {cases: [{hours: "08:60-12:00", then: person}], else: person}',
        12,
        28,
        "08:60 is no time of day",
    ),
    (
        "    hangup:",
        '    when: {cases: [{hours: "08:00-08:00", then: person}], else: person}',
        12,
        28,
        "08:00-08:00 is no span of time",
    ),
    (
        "    hangup:",
        "    when: {cases: [{weekdays: [monday], then: person}], else: person}",
        12,
        32,
        "'monday' is not known here; did you mean \"mon\"?",
    ),
    (
        "    hangup:",
        "    when: {cases: [{working_day: true, then: person}], else: person}",
        12,
        20,
        "Say under unknown where to go",
    ),
    (
        "    hangup:",
        "    when: {cases: [{then: person}], otherwise: person}",
        12,
        37,
        'Unknown key "otherwise". Here can stand: cases, else.',
    ),
    (
        "    hangup:",
        "    menu: {prompts: [menu_12346], choices: {12: person}, on_timeout: [menu_timeout], on_invalid: [menu_invalid], otherwise: person, tries: two}",
        12,
        45,
        "'12' is not known here",
    ),
    (
        "    hangup:",
        "    menu: {prompts: [menu_12346], choices: {1: person}, on_timeout: [menu_timeout], on_invalid: [menu_invalid], otherwise: person, tries: two}",
        12,
        139,
        "'two' is no whole number",
    ),
    (
        "    hangup:",
        "    menu: {prompts: [menu_12346], choices: {1: person}}",
        12,
        5,
        '"otherwise" is missing',
    ),
    (
        "    hangup:",
        "    message: {prompts: [leave_message], max_seconds: 1000}\n    next: person",
        12,
        54,
        "1000 is too large: at most 600.",
    ),
    (
        "  person:\n    queue: {queue: hotline, on_give_up: bye}",
        "  person: {goto: bye}",
        4,
        8,
        "No caller can reach a person",
    ),
    ("start: hello", "start: hello\nafter_call: person", 10, 3, "must not be put through again"),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "part"), BAD_ENTRIES, ids=[f"{one[4][:40]}" for one in BAD_ENTRIES]
)
def test_every_mistake_is_named_with_its_line_and_column(
    file: Path, old: str, new: str, line: int, column: int, part: str
) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    found = refused(file)
    assert [one for one in found if one[:2] == (line, column) and part in one[2]], found


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(file: Path) -> None:
    file.write_text(
        GOOD.replace("welcome_12345", "welcome")
        .replace("hotline, on", "hot, on")
        .replace("hangup:", "goto: x"),
        encoding="utf-8",
    )
    found = refused(file)
    assert [line for line, _, _ in found] == [7, 10, 12]


def test_the_version_is_that_of_the_bytes(file: Path) -> None:
    file.write_text(GOOD, encoding="utf-8")
    first = loaded(file).version
    file.write_text(GOOD + "# changed\n", encoding="utf-8")
    assert loaded(file).version != first


def test_the_example_of_the_documentation_is_right(file: Path) -> None:
    text = (SHIPPED.parent / "docs" / "flows.md").read_text(encoding="utf-8")
    file.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert loaded(file).start == "欢迎"


# --- the four lines that come with the program ---------------------------------------------------------------


def happenings(step: ivr.Step) -> list[ivr.Input]:
    """Everything that can happen to a caller at a step."""
    match step:
        case PlayStep():
            return [PromptsEnded(), DigitPressed("5")]
        case CollectStep():
            return [TimedOut(), DigitPressed("#"), *(DigitPressed(digit) for digit in step.digits)]
        case QueueStep():
            return [QueueGaveUp(reason) for reason in GaveUp]
        case TransferStep():
            return [TransferFailed()]
        case MessageStep():
            return [MessageEnded(0), MessageEnded(10)]
        case HangUpStep():
            return []


MOMENTS = [
    datetime(2026, 10, 9, 1, 0, tzinfo=UTC),  # a working Friday, 09:00 in Shanghai
    datetime(2026, 10, 9, 12, 0, tzinfo=UTC),  # the same evening
    datetime(2026, 10, 1, 1, 0, tzinfo=UTC),  # National Day
    datetime(
        2026, 2, 14, 1, 0, tzinfo=UTC
    ),  # a Saturday that is worked (调休); before the announcement of 96500
    datetime(2099, 3, 2, 1, 0, tzinfo=UTC),  # a year nobody has published
]


def paths(flow: ivr.Flow, at: NodeId, facts: ivr.Facts) -> Iterator[list[tuple[ivr.Cursor, ivr.Step]]]:
    """Every path from a node to its end, each decision of the caller taken."""
    cursor, step, _ = ivr.begin(flow, facts, at=at)
    ahead = [[(cursor, step)]]
    while ahead:
        path = ahead.pop()
        cursor, step = path[-1]
        choices = happenings(step)
        if not choices:
            yield path
        for event in choices:
            after, onward, _ = ivr.advance(flow, cursor, event, facts)
            assert onward is not None
            ahead.append([*path, (after, onward)])


@pytest.mark.parametrize("line", LINES)
def test_every_path_of_a_line_comes_to_its_end(line: str) -> None:
    flow = shipped().flows[line]
    walked: set[str] = set()
    for moment in MOMENTS:
        facts = facts_at(moment)
        for entry in (flow.start, flow.after_call):
            assert entry is not None
            for path in paths(flow, entry, facts):
                assert isinstance(path[-1][1], HangUpStep)
                assert len(path) < 30
                walked |= {cursor.node for cursor, _ in path}
                if entry == flow.after_call:
                    assert not any(isinstance(step, QueueStep) for _, step in path)
                else:
                    assert any(isinstance(step, QueueStep | MessageStep) for _, step in path)
    instant = {name for name, node in flow.nodes.items() if isinstance(node, ivr.When | ivr.Goto)}
    assert walked == set(flow.nodes) - instant


def steps_of_a_silent_caller(line: str, moment: datetime) -> list[str]:
    """What a caller meets who presses nothing, up to the queue."""
    flow = shipped().flows[line]
    cursor, step, _ = ivr.begin(flow, facts_at(moment))
    met: list[str] = []
    while isinstance(step, PlayStep | CollectStep):
        met += step.prompts
        event = PromptsEnded() if isinstance(step, PlayStep) else TimedOut()
        cursor, onward, _ = ivr.advance(flow, cursor, event, facts_at(moment))
        assert onward is not None
        step = onward
    assert isinstance(step, QueueStep)
    return [*met, f"{step.queue}+{step.head_start_seconds:g}"]


@pytest.mark.parametrize(
    ("line", "moment", "met"),
    [
        ("12345", MOMENTS[0], ["welcome_12345", "hotline+0"]),
        ("96500", MOMENTS[0], ["welcome_96500", "transition_96500", "hotline+0"]),
        ("96500", MOMENTS[3], ["welcome_96500", "hotline+0"]),
        ("7220000", MOMENTS[0], ["welcome_7220000", "company+60"]),
        ("12346", MOMENTS[0], ["menu_12346", "menu_timeout", "menu_12346", "hotline+0"]),
    ],
)
def test_each_line_leads_to_a_person_by_itself(line: str, moment: datetime, met: list[str]) -> None:
    assert steps_of_a_silent_caller(line, moment) == met


@pytest.mark.parametrize(
    ("moment", "node"),
    list(zip(MOMENTS, ["企业专席", "非工作时间", "非工作时间", "企业专席", "人工"], strict=True)),
)
def test_the_company_service_of_the_menu_keeps_office_hours(moment: datetime, node: str) -> None:
    flow = shipped().flows["12346"]
    cursor, _, _ = ivr.begin(flow, facts_at(moment))
    assert ivr.advance(flow, cursor, DigitPressed("3"), facts_at(moment))[0].node == node


def test_a_number_finds_its_line() -> None:
    flows = shipped()
    assert sorted(flows.flows) == LINES
    found = flows.dialled("96500")
    assert found is not None
    assert found.line == "96500"
    assert flows.dialled("10086") is None


# --- all lines together, and changes on disk -----------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "12345.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "96500.yaml").write_text(GOOD.replace('"12345"', '"96500"'), encoding="utf-8")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "prompts.yaml").write_text(
        yaml.safe_dump({"version": 1, "prompts": {**TEXTS, **ATOMS}}), encoding="utf-8"
    )
    return tmp_path


def flow_set(directory: Path) -> FlowSet:
    return FlowSet.load(directory, queues=QUEUES, prompts=PROMPTS, numbers=NUMBERS)


def rewrite(file: Path, text: str) -> None:
    """Save as careful editors do: a new file in the place of the old one."""
    fresh = file.with_suffix(".tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)


def test_two_lines_with_one_number_are_refused(directory: Path) -> None:
    text = GOOD.replace('line: "12345"', 'line: "96500"').replace('["12345"]', '["96500", "12345"]')
    (directory / "96500.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FlowsRefused) as caught:
        flow_set(directory)
    (error,) = caught.value.errors
    assert (error.file.name, error.line, error.column) == ("96500.yaml", 3, 20)
    assert error.message == "Number 12345 belongs to line 12345 already: a number has one line."


@pytest.mark.parametrize(("name", "part"), [("none", "no such directory"), ("prompts", "no flow here")])
def test_a_directory_without_flows_is_refused(directory: Path, name: str, part: str) -> None:
    (directory / "prompts" / "prompts.yaml").unlink()
    with pytest.raises(FlowsRefused, match=part):
        flow_set(directory / name)


def test_a_flow_with_another_ending_is_not_passed_over_in_silence(directory: Path) -> None:
    (directory / "12345.yaml").rename(directory / "12345.yml")
    with pytest.raises(FlowsRefused, match=r"rename it to 12345\.yaml"):
        flow_set(directory)


def test_nothing_changed_nothing_done(directory: Path) -> None:
    flows = flow_set(directory)
    assert flows.reload_changed() == []
    os.utime(directory / "12345.yaml", (1, 1))
    assert flows.reload_changed() == [], "touched, not changed"


def test_a_change_is_taken_for_the_next_call_and_leaves_the_one_in_progress(directory: Path) -> None:
    flows = flow_set(directory)
    old = flows.dialled("12345")
    assert old is not None
    cursor, _, _ = ivr.begin(old, facts_at(MOMENTS[0]))

    rewrite(directory / "12345.yaml", GOOD.replace("welcome_12345", "please_wait"))
    (reloaded,) = flows.reload_changed()

    new = flows.dialled("12345")
    assert new is not None
    assert reloaded == Reloaded("12345", new.version)
    assert ivr.begin(new, facts_at(MOMENTS[0]))[1] == PlayStep(("please_wait",), barge_in=True)
    _, step, _ = ivr.advance(old, cursor, PromptsEnded(), facts_at(MOMENTS[0]))
    assert isinstance(step, QueueStep)


def test_a_broken_flow_is_refused_once_and_the_old_one_stays(directory: Path) -> None:
    flows = flow_set(directory)
    old = flows.dialled("12345")

    rewrite(directory / "12345.yaml", GOOD.replace("queue: hotline", "queue: nowhere"))
    (error,) = flows.reload_changed()

    assert isinstance(error, FlowError)
    assert (error.line, error.column) == (10, 20)
    assert flows.dialled("12345") is old
    assert flows.reload_changed() == []
    rewrite(directory / "12345.yaml", GOOD)
    assert flows.reload_changed() == [], "it is again what it was"


def test_a_file_that_goes_leaves_its_line_in_service(directory: Path) -> None:
    flows = flow_set(directory)
    old = flows.dialled("12345")
    (directory / "12345.yaml").unlink()
    (error,) = flows.reload_changed()
    assert "goes on with the last version" in str(error)
    assert flows.dialled("12345") is old
    assert flows.reload_changed() == []
    rewrite(directory / "12345.yaml", GOOD + "# back\n")
    (back,) = flows.reload_changed()
    assert isinstance(back, Reloaded)


def test_a_new_file_is_a_new_line(directory: Path) -> None:
    flows = flow_set(directory)
    rewrite(directory / "7220000.yaml", GOOD.replace('"12345"', '"7220000"'))
    (reloaded,) = flows.reload_changed()
    assert isinstance(reloaded, Reloaded)
    assert flows.dialled("7220000") is not None


def test_two_lines_may_swap_their_numbers(directory: Path) -> None:
    flows = flow_set(directory)
    rewrite(directory / "12345.yaml", GOOD.replace('["12345"]', '["96500"]'))
    rewrite(directory / "96500.yaml", GOOD.replace('line: "12345"', 'line: "96500"'))
    assert all(isinstance(one, Reloaded) for one in flows.reload_changed())
    found = flows.dialled("12345")
    assert found is not None
    assert found.line == "96500"


def test_who_takes_anothers_number_waits_until_it_is_free(directory: Path) -> None:
    flows = flow_set(directory)
    rewrite(directory / "12345.yaml", GOOD.replace('["12345"]', '["12345", "96500"]'))
    (error,) = flows.reload_changed()
    assert "belongs to line 96500 already" in str(error)
    found = flows.dialled("96500")
    assert found is not None
    assert found.line == "96500"
    assert flows.reload_changed() == []

    rewrite(
        directory / "96500.yaml",
        GOOD.replace('"12345"', '"96500"', 1)
        .replace("12345", "96501", 1)
        .replace("welcome_96501", "welcome_12345"),
    )
    outcome = flows.reload_changed()

    assert sorted(one.line for one in outcome if isinstance(one, Reloaded)) == ["12345", "96500"]
    found = flows.dialled("96500")
    assert found is not None
    assert found.line == "12345"


# --- calendar, notices, schema --------------------------------------------------------------------------------


def test_the_calendar_knows_moved_working_days_and_no_year_that_is_not_published() -> None:
    assert working_days(2026)[date(2026, 10, 1)] is False
    assert working_days(2026)[date(2026, 2, 14)] is True, "a Saturday worked for the Spring Festival"
    assert len(working_days(2026)) == 365
    assert working_days(2099) == {}
    assert facts_at(datetime(2026, 9, 30, 16, 30, tzinfo=UTC)).working_day is False, (
        "already 1 October in Shanghai"
    )


def test_notices_tell_of_unknown_years_bygone_announcements_and_menus() -> None:
    told = {
        (notice.file.name, notice.message.split(":")[0]) for notice in shipped().notices(date(2098, 12, 1))
    }
    assert {name for name, _ in told} == {"12346.yaml", "96500.yaml"}
    assert any("2098" in message for _, message in told)
    assert any("This announcement ended on 2027-06-30" in message for _, message in told)
    assert [notice.message for notice in shipped().notices(date(2026, 8, 1))] == [
        "Callers meet this menu before a person: GB/T 33358-2016 advises against it, some provinces forbid it."
    ]


def test_the_schema_for_editors_is_up_to_date() -> None:
    assert (SHIPPED / "flow.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "write it again: callcenter flows schema > ivr_flows/flow.schema.json"
    )


def as_an_editor_reads(text: str) -> object:
    """YAML 1.2 knows no dates: what PyYAML makes a date of is a text to an editor."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


@pytest.mark.parametrize("line", LINES)
def test_the_shipped_flows_fit_the_schema_and_name_it(line: str) -> None:
    text = (SHIPPED / f"{line}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=flow.schema.json\n")
    jsonschema.Draft202012Validator(flow_schema()).validate(as_an_editor_reads(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [("next: person", "nxt: person"), ("play:", "paly:"), ("start: hello", ""), ("[welc", "[/welc")],
)
def test_the_schema_refuses_what_the_program_refuses(old: str, new: str) -> None:
    validator = jsonschema.Draft202012Validator(flow_schema())
    good = GOOD.replace("hangup:", "hangup: {}")
    assert validator.is_valid(as_an_editor_reads(good))
    assert not validator.is_valid(as_an_editor_reads(good.replace(old, new)))


# --- the commands ---------------------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path: Path) -> Site:
    for line in LINES:
        (tmp_path / f"{line}.yaml").write_bytes((SHIPPED / f"{line}.yaml").read_bytes())
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "prompts.yaml").write_text(
        yaml.safe_dump({"version": 1, "prompts": {**TEXTS, **ATOMS}}), encoding="utf-8"
    )
    return Site(directory=tmp_path, queues=QUEUES, numbers=NUMBERS)


def run(site: Site, *arguments: str, keys: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), obj=site, input=keys)
    return result.exit_code, result.output


def test_check_says_what_is_right(demo: Site) -> None:
    code, output = run(demo, "check")
    assert code == 0
    assert "12345, 12346, 7220000, 96500" in output
    assert "12346.yaml:12:5: Callers meet this menu before a person" in output


def test_check_names_every_mistake_of_every_file_and_fails(demo: Site) -> None:
    for line in ("12345", "96500"):
        file = demo.directory / f"{line}.yaml"
        file.write_text(
            file.read_text(encoding="utf-8").replace("queue: hotline", "queue: hot"), encoding="utf-8"
        )
    code, output = run(Site(), "check", str(demo.directory))
    assert code == 1
    for line, row in (("12345", 17), ("96500", 24)):
        assert f"{demo.directory / line}.yaml:{row}:14: There is no queue hot" in output


def test_check_misses_the_prompts(demo: Site) -> None:
    texts = demo.directory / "prompts" / "prompts.yaml"
    texts.write_text("- a", encoding="utf-8")
    assert run(demo, "check") == (1, f"{texts}:1: the file must be names with values\n")
    texts.unlink()
    assert run(demo, "check") == (1, f"{texts}: cannot be read: No such file or directory\n")


def test_the_flows_in_the_tree_are_right_with_the_prompts_in_the_tree() -> None:
    code, output = run(Site(directory=SHIPPED, queues=QUEUES), "check")
    assert code == 0, output


@pytest.mark.parametrize("line", LINES)
def test_each_drawing_shows_every_node_and_every_way(demo: Site, line: str) -> None:
    flow = shipped().flows[line]
    ways = sum(len({edge.to for edge in ivr.edges(node)}) for node in flow.nodes.values())
    drawn = mermaid(flow, TEXTS)
    assert drawn.count("-->") == ways + 2
    for picture in (drawn, tree(flow, TEXTS), svg(flow, TEXTS)):
        assert all(name in picture for name in flow.nodes)


def test_graph_takes_a_line_or_a_file(demo: Site) -> None:
    by_line = run(demo, "graph", "12345", "--format", "text")
    by_file = run(Site(), "graph", str(demo.directory / "12345.yaml"), "--format", "text")
    assert by_line == by_file
    assert by_line[0] == 0
    assert "排队 hotline" in by_line[1]
    assert run(demo, "graph", "12346", "--format", "svg")[1].startswith("<svg ")
    assert run(demo, "graph", "12346")[1].splitlines()[1] == "flowchart TD"


def test_an_unknown_line_names_those_there_are(demo: Site) -> None:
    code, output = run(demo, "graph", "10086")
    assert code == 1
    assert "12345" in output


def test_a_hostile_name_does_no_harm_in_a_drawing() -> None:
    flow = replace(shipped().flows["12345"], name={"zh": "<script>", "en": ""})
    assert "<script>" not in svg(flow, {**TEXTS, "welcome_12345": "<script>"})


def test_try_walks_through_a_menu_to_a_person_and_the_rating(demo: Site) -> None:
    code, output = run(demo, "try", "12346", "--at", "2026-10-09T09:00", keys="\n3\n\n5\n\n\n")
    assert code == 0
    heard = [name for name in TEXTS if f"[{name}]" in output]
    assert heard == ["menu_12346", "menu_timeout", "rating_ask", "rating_thanks", "goodbye"]
    assert "排队 company" in output
    assert "您排在第三位预计等待两分钟" in output
    assert "评价 5" in output


def test_try_shows_another_day(demo: Site) -> None:
    code, output = run(demo, "try", "12346", "--at", "2026-10-01T09:00", keys="3\n\n1\n30\n\n\n")
    assert code == 0
    assert "非工作日" in output
    assert "[after_hours]" in output
    assert "[message_too_short]" in output
    assert "留言 30 秒已保存" in output


def test_try_ends_when_the_caller_hangs_up(demo: Site) -> None:
    code, output = run(demo, "try", "12345", keys="\nf\n")
    assert code == 0
    assert "来电人挂机" in output
    assert "[queue_full]" in output
