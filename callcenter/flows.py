"""Flow files: ivr_flows/*.yaml read into domain flows, every mistake with its file, line and column.

A file is read as text first: what a field means decides its type, not YAML's guess (so that 12345, 010, no and
2026-10-01 are what they look like). Aliases, anchors and tags are refused, size and nesting are bounded.
"""

import difflib
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self
from zoneinfo import ZoneInfo

import chinese_calendar
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from callcenter.domain import calendar, ivr
from callcenter.domain.ivr import Flow, NodeId

MAX_FILE_BYTES = 64 * 1024
MAX_DEPTH = 10
MAX_MISTAKES = 50
"""So many are reported of one file; the rest follows when these are put right."""

SHANGHAI = ZoneInfo("Asia/Shanghai")

_Path = tuple[str | int, ...]


class FlowError(Exception):
    """One mistake in a flow file; line and column count from 1."""

    def __init__(self, file: Path, line: int, column: int, message: str) -> None:
        super().__init__(f"{file}:{line}:{column}: {message}")
        self.file = file
        self.line = line
        self.column = column
        self.message = message


class FlowsRefused(Exception):  # noqa: N818 - a refusal that carries errors, not one more error
    """The mistakes for which flow files are not taken."""

    def __init__(self, errors: Sequence[FlowError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class FlowNotice:
    """Something to know about a flow that is right as it stands."""

    file: Path
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A flow that the next call will take."""

    line: str
    version: str


# --- the form of a file -------------------------------------------------------------------------------------


def _flag(value: object) -> object:
    if value not in ("true", "false"):
        raise ValueError(f"{value!r} is neither true nor false.")
    return value == "true"


def _day(value: object) -> date:
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError(f"{value!r} is no day: write it as 2026-10-01.")
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"There is no day {value}.") from error


_HOURS = r"^\s*\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2}\s*(,\s*\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2}\s*)*$"


def _hours(value: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, str) or not re.match(_HOURS, value):
        raise ValueError(f"{value!r} are no hours: write them as 08:30-12:00,13:30-17:30.")
    spans = []
    for span in value.split(","):
        start, end = (_minute(clock.strip()) for clock in span.split("-"))
        if start == end or start == 24 * 60:
            raise ValueError(
                f"{span.strip()} is no span of time: it must end at another time than it starts."
            )
        spans.append((start, end))
    return tuple(spans)


def _minute(clock: str) -> int:
    hour, minute = (int(part) for part in clock.split(":"))
    if minute > 59 or hour * 60 + minute > 24 * 60:
        raise ValueError(f"{clock} is no time of day: write 00:00 to 24:00.")
    return hour * 60 + minute


_NODE_NAME = r"^[A-Za-z_一-鿿][A-Za-z0-9_一-鿿-]{0,63}$"
_PROMPT_NAME = r"^[a-z0-9_]+(/[a-z0-9_]+)*$"
_NAME = r"^[A-Za-z0-9_-]{1,64}$"
_LINE = r"^[0-9]{3,15}$"
_TELEPHONE = r"^\+?[0-9]{3,20}$"
_SHAPES = {
    _NODE_NAME: "is no name of a node: begin with a letter, go on with letters, digits, _ or -.",
    _PROMPT_NAME: "is no name of a prompt: use small letters, digits and _, as in digits/3.",
    _NAME: "is no name: use letters, digits, _ or -.",
    _LINE: "is no line: write its 3 to 15 digits.",
    _TELEPHONE: "is no telephone number: write its 3 to 20 digits.",
}
"""What to say of a text that does not match."""

NodeName = Annotated[str, Field(pattern=_NODE_NAME)]
PromptName = Annotated[str, Field(pattern=_PROMPT_NAME)]
Name = Annotated[str, Field(pattern=_NAME)]
LineNumber = Annotated[str, Field(pattern=_LINE)]
TelephoneNumber = Annotated[str, Field(pattern=_TELEPHONE)]
Prompts = Annotated[list[PromptName], Field(min_length=1, max_length=50)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Day = Annotated[date, BeforeValidator(_day)]
Hours = Annotated[
    tuple[tuple[int, int], ...],
    BeforeValidator(_hours),
    WithJsonSchema({"type": "string", "pattern": _HOURS, "examples": ["08:30-12:00,13:30-17:30"]}),
]
Digit = Literal["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "*", "#"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _PlayForm(_Form):
    prompts: Prompts = Field(description="依次播放的提示音。Prompts, played one after the other.")
    barge_in: Flag = Field(default=True, description="按键可打断。A key ends the prompts.")
    first_day: Day | None = Field(
        default=None, alias="from", description="自该日起播放（含）。First day on which it is played."
    )
    last_day: Day | None = Field(
        default=None, alias="until", description="播放至该日（含）。Last day on which it is played."
    )


class _MenuForm(_Form):
    prompts: Prompts = Field(description="菜单提示音。What the caller is asked.")
    choices: Annotated[dict[Digit, NodeName], Field(min_length=1)] = Field(
        description="按键到节点。Key to node."
    )
    timeout_seconds: float = Field(
        default=5, ge=1, le=60, description="播完后等待按键的秒数。Seconds to wait after the prompts."
    )
    tries: int = Field(default=3, ge=1, le=10, description="最多尝试次数。How often it is asked.")
    barge_in: Flag = Field(default=True, description="按键可打断。A key ends the prompts.")
    on_timeout: Prompts = Field(
        description="超时未按键时先播放。Played before asking again a caller who pressed nothing."
    )
    on_invalid: Prompts = Field(
        description="按错键时先播放。Played before asking again a caller who pressed a wrong key."
    )
    otherwise: NodeName = Field(
        description="次数用完后转到的节点，应为人工。Where a caller goes after the last try: to a person."
    )


class _CaseForm(_Form):
    hours: Hours | None = Field(
        default=None,
        description="时段，不含结束时刻，可跨零点。Hours, end excluded; may go past midnight.",
    )
    weekdays: Annotated[list[Weekday], Field(min_length=1)] | None = Field(
        default=None, description="星期。Days of the week."
    )
    working_day: Flag | None = Field(
        default=None,
        description="是否工作日（按国务院节假日安排，含调休）。Whether it is a working day in China.",
    )
    first_day: Day | None = Field(default=None, alias="from", description="自该日起（含）。From this day on.")
    last_day: Day | None = Field(
        default=None, alias="until", description="至该日（含）。Up to this day, included."
    )
    then: NodeName = Field(description="全部条件成立时转到的节点。Where to go when all of them hold.")
    unknown: NodeName | None = Field(
        default=None,
        description="工作日历未公布时转到的节点，与 working_day 同用。"
        "Where to go when the year's working days are not known; needed with working_day.",
    )


class _WhenForm(_Form):
    cases: Annotated[list[_CaseForm], Field(min_length=1)] = Field(
        description="依次判断，取第一个成立的。The first that holds is taken."
    )
    otherwise: NodeName = Field(
        alias="else", description="都不成立时转到的节点。Where to go when none holds."
    )


class _AnnounceForm(_Form):
    every_seconds: float = Field(
        ge=5, le=600, description="每隔多少秒播报一次。Seconds from one announcement to the next."
    )
    position: Flag = Field(default=True, description="播报排位。Say the place in the queue.")
    wait: Flag = Field(default=True, description="播报预计等待。Say the expected wait.")


class _QueueForm(_Form):
    queue: Name = Field(description="队列名。Name of the queue.")
    priority: ivr.Priority | None = Field(
        default=None,
        description="优先级：normal 0 秒，raised 60 秒，urgent 600 秒的领先。Class of priority: a head start in seconds.",
    )
    head_start_seconds: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        description="领先秒数，与 priority 二选一。A head start in seconds, instead of priority.",
    )
    announce: _AnnounceForm | None = Field(default=None, description="排队播报。Announcements while waiting.")
    max_wait_seconds: float | None = Field(
        default=None, ge=5, le=7200, description="最长等待秒数。Longest wait in seconds."
    )
    on_give_up: NodeName = Field(
        description="等待超时、队满或无人值守时转到的节点。"
        "Where to go when the wait is over, the queue full, or nobody on duty."
    )
    on_full: NodeName | None = Field(
        default=None, description="队满时，默认同 on_give_up。When full; as on_give_up by default."
    )
    on_closed: NodeName | None = Field(
        default=None,
        description="无人值守时，默认同 on_give_up。When nobody is on duty; as on_give_up by default.",
    )
    music: Name | None = Field(default=None, description="等待音乐类别。Class of waiting music.")

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.priority is not None and self.head_start_seconds is not None:
            raise ValueError("priority and head_start_seconds say the same thing: keep one of them.")
        return self


class _TransferForm(_Form):
    agent: Name | None = Field(default=None, description="座席。An agent.")
    queue: Name | None = Field(default=None, description="队列。A queue.")
    number: TelephoneNumber | None = Field(
        default=None, description="允许转接的号码。A number that is allowed."
    )
    on_failure: NodeName = Field(description="转接失败时转到的节点。Where to go when it fails.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if sum(target is not None for target in (self.agent, self.queue, self.number)) != 1:
            raise ValueError("A transfer goes to exactly one of agent, queue or number.")
        return self


class _MessageForm(_Form):
    prompts: Prompts = Field(description="请来电人留言。What the caller is asked.")
    saved: list[PromptName] = Field(
        default=[], max_length=50, description="留言保存后播放。Played when it is kept."
    )
    too_short: list[PromptName] = Field(
        default=[], max_length=50, description="留言过短时播放。Played when it is too short."
    )
    max_seconds: int = Field(default=120, ge=5, le=600, description="最长秒数。Longest message in seconds.")
    min_seconds: float = Field(
        default=2, ge=0, le=60, description="短于此秒数不保存。Shorter ones are not kept."
    )
    tries: int = Field(default=2, ge=1, le=10, description="最多尝试次数。How often it is asked.")


class _RatingForm(_Form):
    ask: Prompts = Field(
        description="请来电人评价：1 非常满意 … 5 非常不满意。Asks for 1 (best) to 5 (worst)."
    )
    thanks: list[PromptName] = Field(default=[], max_length=50, description="评价后播放。Played when rated.")
    invalid: list[PromptName] = Field(
        default=[], max_length=50, description="未按或按错键时播放。Played before asking again."
    )
    timeout_seconds: float = Field(default=8, ge=1, le=60, description="等待按键的秒数。Seconds to wait.")
    tries: int = Field(default=2, ge=1, le=10, description="最多尝试次数。How often it is asked.")


class _SayForm(_Form):
    what: ivr.SayWhat = Field(
        description="number 数值，digits 逐位，text 短语，position 排位，wait 预计等待。What is said."
    )
    value: Annotated[str, WithJsonSchema({"type": ["string", "integer"]})] = Field(
        default="", max_length=200, description="要说的数或短语。The number or text."
    )
    barge_in: Flag = Field(default=True, description="按键可打断。A key ends it.")


class _HangUpForm(_Form):
    cause: ivr.HangUpCause = Field(default=ivr.HangUpCause.NORMAL, description="挂机原因。Cause.")


_Next = Annotated[NodeName, Field(description="之后转到的节点。The node that follows.")]


class _PlayNode(_Form):
    """播放提示音。Play prompts."""

    play: _PlayForm
    next: _Next


class _MenuNode(_Form):
    """按键菜单；GB/T 33358-2016 不宜设置。A menu; the standard advises against one."""

    menu: _MenuForm


class _WhenNode(_Form):
    """按时间分支。Branch by time."""

    when: _WhenForm


class _QueueNode(_Form):
    """排队等人工。Wait for a person."""

    queue: _QueueForm


class _TransferNode(_Form):
    """转接。Transfer."""

    transfer: _TransferForm


class _MessageNode(_Form):
    """留言。Take a message."""

    message: _MessageForm
    next: _Next


class _RatingNode(_Form):
    """满意度评价。Ask for a rating."""

    rating: _RatingForm
    next: _Next


class _SayNode(_Form):
    """播报数字、排位、等待。Say a number, the place in the queue, the wait."""

    say: _SayForm
    next: _Next


class _GotoNode(_Form):
    """转到另一节点。Go to another node."""

    goto: NodeName


class _HangUpNode(_Form):
    """挂机。Hang up."""

    hangup: _HangUpForm


_FORMS: Mapping[str, type[_Form]] = {
    "play": _PlayNode,
    "menu": _MenuNode,
    "when": _WhenNode,
    "queue": _QueueNode,
    "transfer": _TransferNode,
    "message": _MessageNode,
    "rating": _RatingNode,
    "say": _SayNode,
    "goto": _GotoNode,
    "hangup": _HangUpNode,
}


def _kind(entry: object) -> str | None:
    kinds = [kind for kind in _FORMS if isinstance(entry, dict) and kind in entry]
    return kinds[0] if len(kinds) == 1 else None


_AnyNode = Annotated[
    Annotated[_PlayNode, Tag("play")]
    | Annotated[_MenuNode, Tag("menu")]
    | Annotated[_WhenNode, Tag("when")]
    | Annotated[_QueueNode, Tag("queue")]
    | Annotated[_TransferNode, Tag("transfer")]
    | Annotated[_MessageNode, Tag("message")]
    | Annotated[_RatingNode, Tag("rating")]
    | Annotated[_SayNode, Tag("say")]
    | Annotated[_GotoNode, Tag("goto")]
    | Annotated[_HangUpNode, Tag("hangup")],
    Discriminator(_kind),
]


class _Names(_Form):
    zh: Annotated[str, Field(min_length=1, max_length=60)]
    en: Annotated[str, Field(min_length=1, max_length=60)]


class _FlowForm(_Form):
    """一条服务专线的语音流程。The flow of one service line."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="callcenter flow")

    line: LineNumber = Field(
        description="专线，与文件名相同，加引号。The line, as the file is named; in quotes."
    )
    name: _Names = Field(description="专线名称。Name of the line.")
    numbers: Annotated[list[TelephoneNumber], Field(min_length=1)] = Field(
        description="被叫号码。Numbers that callers dial."
    )
    start: NodeName = Field(description="首个节点。First node.")
    after_call: NodeName | None = Field(
        default=None, description="座席挂机后的节点。Where a caller goes on whose agent has hung up."
    )
    without_person: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="本线不能转人工的理由。Why no person can be reached on this line."
    )
    nodes: Annotated[dict[NodeName, _AnyNode], Field(min_length=1, max_length=500)] = Field(
        description="节点。The nodes."
    )


def flow_schema() -> dict[str, Any]:
    """The JSON Schema by which editors complete and check a flow file."""
    schema: dict[str, Any] = _plain_schema(_FlowForm.model_json_schema(by_alias=True))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _plain_schema(schema: Any) -> Any:
    """Leave out pydantic's ways of saying "may be left out": in a file nothing is null."""
    if isinstance(schema, list):
        return [_plain_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        key: _plain_schema(value) for key, value in schema.items() if not (key == "default" and value is None)
    }
    if {"type": "null"} in plain.get("anyOf", []):
        (only,) = (item for item in plain.pop("anyOf") if item != {"type": "null"})
        plain = {**only, **plain}
    return plain


# --- from the form to the domain ----------------------------------------------------------------------------


def _node(form: _Form) -> ivr.Node:
    match form:
        case _PlayNode(play=play):
            return ivr.Play(
                tuple(play.prompts),
                NodeId(form.next),
                barge_in=play.barge_in,
                first_day=play.first_day,
                last_day=play.last_day,
            )
        case _MenuNode(menu=menu):
            return ivr.Menu(
                prompts=tuple(menu.prompts),
                choices={digit: NodeId(to) for digit, to in menu.choices.items()},
                on_timeout=tuple(menu.on_timeout),
                on_invalid=tuple(menu.on_invalid),
                otherwise=NodeId(menu.otherwise),
                timeout_seconds=menu.timeout_seconds,
                tries=menu.tries,
                barge_in=menu.barge_in,
            )
        case _WhenNode(when=when):
            return ivr.When(tuple(_case(case) for case in when.cases), NodeId(when.otherwise))
        case _QueueNode(queue=queue):
            announce = queue.announce
            head_start = queue.head_start_seconds
            if head_start is None:
                head_start = ivr.HEAD_START_SECONDS[queue.priority or ivr.Priority.NORMAL]
            return ivr.EnterQueue(
                queue=queue.queue,
                on_give_up=NodeId(queue.on_give_up),
                on_full=_optional(queue.on_full),
                on_closed=_optional(queue.on_closed),
                head_start_seconds=head_start,
                announce_every_seconds=announce.every_seconds if announce else None,
                announce_position=announce.position if announce else True,
                announce_wait=announce.wait if announce else True,
                max_wait_seconds=queue.max_wait_seconds,
                music=queue.music,
            )
        case _TransferNode(transfer=transfer):
            if transfer.agent is not None:
                target = (ivr.TransferTo.AGENT, transfer.agent)
            elif transfer.queue is not None:
                target = (ivr.TransferTo.QUEUE, transfer.queue)
            else:
                target = (ivr.TransferTo.NUMBER, transfer.number or "")
            return ivr.Transfer(*target, NodeId(transfer.on_failure))
        case _MessageNode(message=message):
            return ivr.TakeMessage(
                tuple(message.prompts),
                NodeId(form.next),
                saved=tuple(message.saved),
                too_short=tuple(message.too_short),
                max_seconds=message.max_seconds,
                min_seconds=message.min_seconds,
                tries=message.tries,
            )
        case _RatingNode(rating=rating):
            return ivr.AskRating(
                tuple(rating.ask),
                NodeId(form.next),
                thanks=tuple(rating.thanks),
                invalid=tuple(rating.invalid),
                timeout_seconds=rating.timeout_seconds,
                tries=rating.tries,
            )
        case _SayNode(say=say):
            return ivr.Say(say.what, NodeId(form.next), value=say.value, barge_in=say.barge_in)
        case _GotoNode(goto=goto):
            return ivr.Goto(NodeId(goto))
        case _HangUpNode(hangup=hangup):
            return ivr.HangUp(hangup.cause)
        case _:
            raise TypeError(f"{type(form).__name__} has no node in the domain: add it to _node.")


def _case(form: _CaseForm) -> ivr.Case:
    return ivr.Case(
        then=NodeId(form.then),
        hours=form.hours,
        weekdays=None if form.weekdays is None else frozenset(map(_WEEKDAYS.index, form.weekdays)),
        working_day=form.working_day,
        first_day=form.first_day,
        last_day=form.last_day,
        unknown=_optional(form.unknown),
    )


def _optional(name: str | None) -> NodeId | None:
    return None if name is None else NodeId(name)


# --- from the file to the form ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Marks:
    """Where each entry of a file stands: its key (or list item) and its value, both from 1."""

    keys: dict[_Path, tuple[int, int]]
    values: dict[_Path, tuple[int, int]]

    def of_key(self, path: _Path) -> tuple[int, int]:
        return self._nearest(self.keys, path)

    def of_value(self, path: _Path) -> tuple[int, int]:
        return self._nearest(self.values, path) if path in self.values else self.of_key(path)

    def _nearest(self, marks: dict[_Path, tuple[int, int]], path: _Path) -> tuple[int, int]:
        for length in range(len(path), 0, -1):
            if path[:length] in marks:
                return marks[path[:length]]
        return 1, 1


@dataclass(frozen=True, slots=True)
class _Loaded:
    file: Path
    flow: Flow
    marks: _Marks

    def error(self, path: _Path, message: str) -> FlowError:
        return FlowError(self.file, *self.marks.of_value(path), message)

    def notice(self, path: _Path, message: str) -> FlowNotice:
        return FlowNotice(self.file, *self.marks.of_value(path), message)


def load_flow(path: Path, *, queues: Set[str], prompts: Set[str], numbers: Set[str]) -> Flow:
    """Read and check one flow file; FlowsRefused with every mistake in it."""
    return _load(path, _read(path), queues=queues, prompts=prompts, numbers=numbers).flow


def _load(path: Path, raw: bytes, *, queues: Set[str], prompts: Set[str], numbers: Set[str]) -> _Loaded:
    data, marks = _Reader(path).tree(raw)
    try:
        form = _FlowForm.model_validate(data)
    except ValidationError as invalid:
        errors = [_mistake(path, marks, data, detail) for detail in invalid.errors()]
        raise FlowsRefused(_ordered(errors)) from invalid
    flow = Flow(
        line=form.line,
        name={"zh": form.name.zh, "en": form.name.en},
        numbers=tuple(form.numbers),
        start=NodeId(form.start),
        after_call=_optional(form.after_call),
        nodes={NodeId(name): _node(node) for name, node in form.nodes.items()},
        version=hashlib.sha256(raw).hexdigest()[:12],
        without_person=form.without_person,
    )
    loaded = _Loaded(path, flow, marks)
    errors = list(_own_mistakes(loaded))
    for problem in ivr.problems(flow, queues=queues, prompts=prompts, numbers=numbers):
        place: _Path = problem.path if problem.node is None else ("nodes", problem.node, *problem.path)
        errors.append(FlowError(path, *_place(marks, place), problem.message))
    if errors:
        raise FlowsRefused(_ordered(errors))
    return loaded


def _place(marks: _Marks, path: _Path) -> tuple[int, int]:
    """A whole node is pointed at by its name, anything smaller by its value."""
    return marks.of_key(path) if len(path) == 2 and path[0] == "nodes" else marks.of_value(path)


def _own_mistakes(loaded: _Loaded) -> Iterator[FlowError]:
    flow = loaded.flow
    if loaded.file.stem != flow.line:
        yield loaded.error(
            ("line",), f"The file of line {flow.line} must be named {flow.line}.yaml: one file a line."
        )
    for index, number in enumerate(flow.numbers):
        if number in flow.numbers[:index]:
            yield loaded.error(("numbers", index), f"Number {number} is named twice: leave one out.")


def _ordered(errors: Sequence[FlowError]) -> list[FlowError]:
    return sorted(errors, key=lambda error: (error.line, error.column))[:MAX_MISTAKES]


def _read(path: Path) -> bytes:
    """The file's bytes, at most one more than allowed."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FlowsRefused(
            [
                FlowError(
                    path, 1, 1, f"This file cannot be read ({error.strerror}): put it right or remove it."
                )
            ]
        ) from error


class _Mark(Protocol):
    """Where the parser stands, from 0."""

    line: int
    column: int


class _Reader:
    """Reads one YAML document into texts, lists and mappings and keeps the place of everything."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._errors: list[FlowError] = []
        self._marks = _Marks({}, {})

    def tree(self, raw: bytes) -> tuple[object, _Marks]:
        text = self._text(raw)
        try:
            self._check_events(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._refused(mark, _yaml_sentence(error)) from error
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            at = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
            raise FlowsRefused(
                [
                    FlowError(
                        self._file, *at, f"Character U+{error.character:04X} may not stand here: remove it."
                    )
                ]
            ) from error
        if node is None:
            raise self._refused(None, "This file is empty: describe the line, or remove the file.")
        data = self._plain(node, ())
        if self._errors:
            raise FlowsRefused(_ordered(self._errors))
        return data, self._marks

    def _text(self, raw: bytes) -> str:
        if len(raw) > MAX_FILE_BYTES:
            raise self._refused(
                None, f"This file is larger than {MAX_FILE_BYTES // 1024} KiB: no flow needs that much."
            )
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = raw[: error.start]
            at = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
            message = "This is not UTF-8: save the file in UTF-8 (many editors of Windows save GBK)."
            raise FlowsRefused([FlowError(self._file, *at, message)]) from error

    def _check_events(self, text: str) -> None:
        """Refuse what could make a small file large or slow, before anything is built of it."""
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or (
                isinstance(event, yaml.NodeEvent) and event.anchor is not None
            ):
                raise self._refused(
                    event.start_mark, "Aliases and anchors (* and &) are not allowed: write it out."
                )
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise self._refused(event.start_mark, f"Tags ({tag}) are not allowed: leave it out.")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise self._refused(
                        event.start_mark, f"Nested deeper than {MAX_DEPTH} levels: no flow needs that."
                    )
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _plain(self, node: yaml.Node, path: _Path) -> object:
        at = _from_one(node.start_mark)
        self._marks.values[path] = at
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._marks.keys[(*path, index)] = _from_one(item.start_mark)
            return [self._plain(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if node.tag == "tag:yaml.org,2002:null":
            if len(path) == 3 and path[0] == "nodes" and path[2] == "hangup":
                return {}
            self._errors.append(
                FlowError(
                    self._file, *self._marks.of_key(path), "This is empty: give it a value or leave it out."
                )
            )
            return None
        return str(node.value)

    def _mapping(self, node: yaml.MappingNode, path: _Path) -> dict[str, object]:
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            at = _from_one(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self._errors.append(FlowError(self._file, *at, "A key must be a plain word."))
                continue
            key = str(key_node.value)
            if key in mapping:
                first = self._marks.keys[(*path, key)][0]
                message = f'Key "{key}" stands here twice, first on line {first}: leave one out.'
                self._errors.append(FlowError(self._file, *at, message))
                continue
            self._marks.keys[(*path, key)] = at
            mapping[key] = self._plain(value_node, (*path, key))
        return mapping

    def _refused(self, mark: _Mark | None, message: str) -> FlowsRefused:
        return FlowsRefused([FlowError(self._file, *_from_one(mark), message)])


def _from_one(mark: _Mark | None) -> tuple[int, int]:
    return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def _yaml_sentence(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "\\t" in problem:
        return "A tab stands here: indent with spaces."
    if error.context_mark is not None and error.context:
        return f"This is not YAML: {problem}, {error.context} from line {error.context_mark.line + 1}."
    return f"This is not YAML: {problem}."


def _mistake(file: Path, marks: _Marks, data: object, detail: Any) -> FlowError:
    """A pydantic error as one sentence at its place in the file."""
    location = tuple(detail["loc"])
    if location[:1] == ("nodes",) and len(location) > 2 and location[2] in _FORMS:
        location = (*location[:2], *location[3:])  # pydantic puts the union's tag between name and key
    on_key = location[-1:] == ("[key]",)
    path: _Path = location[:-1] if on_key else location
    key = path[-1] if path else ""
    given, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            message = f'"{key}" is missing: add it.'
            if key == "next":
                message = '"next" is missing, so the caller would go nowhere: name the node that follows.'
            return FlowError(file, *_missing_place(marks, path[:-1]), message)
        case "extra_forbidden":
            allowed = _allowed_keys(data, path[:-1])
            message = (
                f'Unknown key "{key}"{_suggestion(str(key), allowed)} Here can stand: {", ".join(allowed)}.'
            )
            return FlowError(file, *marks.of_key(path), message)
        case "union_tag_not_found":
            return FlowError(file, *marks.of_key(path), _kind_sentence(given))
        case "value_error":
            message = str(context["error"])
        case "string_pattern_mismatch":
            message = f"{given!r} {_SHAPES[context['pattern']]}"
        case "int_parsing" | "int_type" | "int_from_float":
            message = f"{given!r} is no whole number."
        case "float_parsing" | "float_type" | "finite_number":
            message = f"{given!r} is no number."
        case "greater_than_equal":
            message = f"{given} is too small: at least {context['ge']:g}."
        case "less_than_equal":
            message = f"{given} is too large: at most {context['le']:g}."
        case "enum" | "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            message = (
                f"{given!r} is not known here{_suggestion(str(given), allowed)} Use {', '.join(allowed)}."
            )
        case "list_type":
            message = f"A list must stand here: write [{given if isinstance(given, str) else '…'}]."
        case "dict_type" | "model_type" | "model_attributes_type":
            message = "Keys with values must stand here, indented under it."
        case "string_type":
            message = "One word or number must stand here, not a list or keys."
        case "too_short" | "string_too_short":
            message = "This is empty: name at least one."
        case "too_long" | "string_too_long":
            message = f"This is too long: at most {context['max_length']}."
        case _:
            message = f"{detail['msg']}."
    return FlowError(file, *(marks.of_key(path) if on_key else marks.of_value(path)), message)


def _missing_place(marks: _Marks, path: _Path) -> tuple[int, int]:
    return marks.of_key(path) if path else (1, 1)


def _kind_sentence(entry: object) -> str:
    if not isinstance(entry, dict):
        return f"A node must name its kind: {', '.join(_FORMS)}."
    kinds = [kind for kind in _FORMS if kind in entry]
    if kinds:
        return f"A node is of one kind, and this one is {' and '.join(kinds)}: make two nodes of it."
    for key in entry:
        close = difflib.get_close_matches(str(key), list(_FORMS), n=1)
        if close:
            return f'There is no kind of node "{key}"; did you mean "{close[0]}"?'
    return f"A node must name its kind: {', '.join(_FORMS)}."


def _suggestion(word: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else "."


def _allowed_keys(data: object, path: _Path) -> list[str]:
    """The keys of the form that a mapping in the file was held against."""
    form: type[BaseModel] = _FlowForm
    entry = data
    for step, key in enumerate(path):
        entry = entry[key] if isinstance(entry, dict | list) else None  # type: ignore[index]  # a path that pydantic took through this very data
        if path[0] == "nodes" and step == 0:
            continue
        if path[0] == "nodes" and step == 1:
            form = _FORMS[_kind(entry) or "goto"]
            continue
        form = _inner_form(form, key) or form
    return [field.alias or name for name, field in form.model_fields.items()]


def _inner_form(form: type[BaseModel], key: str | int) -> type[BaseModel] | None:
    for name, field in form.model_fields.items():
        if key in (name, field.alias):
            return next(iter(_forms_in(field.annotation)), None)
    return None


def _forms_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _forms_in(argument)


# --- all lines together -------------------------------------------------------------------------------------

_Signature = tuple[int, int, int, int]


class FlowSet:
    """The flows of all lines; a flow changed on disk is taken for the next call, a broken one is refused.

    One thread at a time polls `reload_changed`; others may read meanwhile, and see all of a change or nothing.
    A call in progress keeps the Flow it began with.
    """

    def __init__(self, directory: Path, *, queues: Set[str], prompts: Set[str], numbers: Set[str]) -> None:
        """No flow is read yet: use `load`."""
        self.directory = directory
        self._queues = queues
        self._prompts = prompts
        self._numbers = numbers
        self._loaded: dict[str, _Loaded] = {}
        self._by_number: dict[str, Flow] = {}
        self._waiting: dict[str, _Loaded] = {}
        """Right in themselves, but with a number that another line has."""
        self._seen: dict[Path, _Signature | None] = {}

    @classmethod
    def load(cls, directory: Path, *, queues: Set[str], prompts: Set[str], numbers: Set[str]) -> Self:
        """Read every *.yaml of a directory; FlowsRefused with every mistake in all of them."""
        flows = cls(directory, queues=queues, prompts=prompts, numbers=numbers)
        if not directory.is_dir():
            raise FlowsRefused(
                [FlowError(directory, 1, 1, "There is no such directory of flows: create it.")]
            )
        errors = [outcome for outcome in flows.reload_changed() if isinstance(outcome, FlowError)]
        if not errors and not flows._loaded:
            errors = [FlowError(directory, 1, 1, "There is no flow here: add a file such as 12345.yaml.")]
        if errors:
            raise FlowsRefused(errors)
        return flows

    @property
    def flows(self) -> Mapping[str, Flow]:
        """By line."""
        return {line: loaded.flow for line, loaded in self._loaded.items()}

    def dialled(self, number: str) -> Flow | None:
        """The flow that the next call to this number takes; None for a number of no line."""
        return self._by_number.get(number)

    def reload_changed(self) -> list[FlowError | Reloaded]:
        """Take what has changed on disk since the last time; each mistake is reported once, and its old flow stays.

        A file that has gone leaves its flow in place as well: many editors save by removing and renaming, and a line
        must not fall silent for that. A line is taken out of service by a restart.
        """
        found: dict[Path, _Signature | None] = dict.fromkeys(self._seen)
        found |= {path: _signature(path) for path in sorted(self.directory.glob("*.y*ml"))}
        changed = {
            path: one for path, one in found.items() if path not in self._seen or self._seen[path] != one
        }
        if not changed:
            return []
        self._seen |= changed
        errors: list[FlowError] = []
        candidates = {line: one for line, one in self._waiting.items() if one.file not in changed}
        for path, signature in changed.items():
            try:
                if signature is None:
                    errors += self._gone(path)
                else:
                    loaded = self._load(path)
                    candidates[loaded.flow.line] = loaded
            except FlowsRefused as refused:
                errors += refused.errors
        return [*errors, *self._take(candidates)]

    def _gone(self, path: Path) -> list[FlowError]:
        message = (
            "This file has gone: its line goes on with the last version. "
            "Put the file back, or restart to take the line out of service."
        )
        return (
            [FlowError(path, 1, 1, message)] if any(path == one.file for one in self._loaded.values()) else []
        )

    def _load(self, path: Path) -> _Loaded:
        if path.suffix != ".yaml":
            raise FlowsRefused(
                [FlowError(path, 1, 1, f"A flow's name ends in .yaml: rename it to {path.stem}.yaml.")]
            )
        return _load(path, _read(path), queues=self._queues, prompts=self._prompts, numbers=self._numbers)

    def _take(self, candidates: dict[str, _Loaded]) -> Iterator[FlowError | Reloaded]:
        """Put candidates into service together, so that two lines may swap a number; who takes another's waits."""
        waiting: dict[str, _Loaded] = {}
        while clash := _clash({**self._loaded, **candidates}, candidates.keys()):
            loser, index, owner = clash
            waiting[loser] = candidates.pop(loser)
            number = waiting[loser].flow.numbers[index]
            if self._waiting.get(loser) != waiting[loser]:
                yield waiting[loser].error(
                    ("numbers", index),
                    f"Number {number} belongs to line {owner} already: a number has one line.",
                )
        old = self._loaded
        self._waiting = waiting
        self._loaded = {**old, **candidates}
        self._by_number = {number: one.flow for one in self._loaded.values() for number in one.flow.numbers}
        for line, loaded in candidates.items():
            if line not in old or old[line].flow.version != loaded.flow.version:
                yield Reloaded(line, loaded.flow.version)

    def notices(self, today: date) -> list[FlowNotice]:
        """What the people of the hotline should know about flows that are right: unknown years, bygone dates, menus."""
        return [notice for loaded in self._loaded.values() for notice in _notices(loaded, today)]


def _clash(lines: Mapping[str, _Loaded], candidates: Set[str]) -> tuple[str, int, str] | None:
    """The first candidate that names a number of another line: its line, the number's index, the other line."""
    owners: dict[str, str] = {}
    for line in sorted(lines, key=lambda line: (line in candidates, line)):
        for index, number in enumerate(lines[line].flow.numbers):
            if owners.setdefault(number, line) != line:
                return line, index, owners[number]
    return None


_LOOK_AHEAD = timedelta(days=45)
"""The notice of next year's holidays comes in October or November: six weeks are time enough to update."""


def _notices(loaded: _Loaded, today: date) -> Iterator[FlowNotice]:
    years = sorted({today.year, (today + _LOOK_AHEAD).year})
    unknown = [year for year in years if not working_days(year)]
    for name, node in loaded.flow.nodes.items():
        match node:
            case ivr.When():
                for index, case in enumerate(node.cases):
                    if case.working_day is not None and unknown:
                        yield loaded.notice(
                            ("nodes", name, "when", "cases", index),
                            f"The working days of {unknown[0]} are not known yet: callers will go to {case.unknown}. "
                            "Update chinesecalendar once the State Council has published them.",
                        )
            case ivr.Play() if node.last_day is not None and node.last_day < today:
                yield loaded.notice(
                    ("nodes", name, "play", "until"),
                    f"This announcement ended on {node.last_day}: it can be taken out.",
                )
            case _:
                pass
    for name in _menus_before_a_person(loaded.flow):
        yield loaded.notice(
            ("nodes", name),
            "Callers meet this menu before a person: GB/T 33358-2016 advises against it, some provinces forbid it.",
        )


def _menus_before_a_person(flow: Flow) -> list[NodeId]:
    return [name for name in ivr.reachable(flow, flow.start) if isinstance(flow.nodes[name], ivr.Menu)]


def _signature(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


# --- what else a flow needs to know --------------------------------------------------------------------------


@functools.cache
def working_days(year: int) -> Mapping[date, bool]:
    """Each day of a year and whether it is worked; empty for a year whose holidays are not published yet.

    A year is known when its National Day is listed, which is in every yearly notice: a single day at New Year may
    come from the notice of the year before.
    """
    if date(year, 10, 1) not in chinese_calendar.holidays:
        return {}
    first = date(year, 1, 1)
    days = (first + timedelta(days=count) for count in range((date(year + 1, 1, 1) - first).days))
    return {day: bool(chinese_calendar.is_workday(day)) for day in days}


def facts_at(
    now: datetime, *, position: int | None = None, expected_wait_seconds: float | None = None
) -> ivr.Facts:
    """What a flow may ask about at an (aware) moment."""
    local = now.astimezone(SHANGHAI)
    today = local.date()
    return ivr.Facts(
        local=local,
        working_day=calendar.working_day(today, working_days(today.year)),
        position=position,
        expected_wait_seconds=expected_wait_seconds,
    )
