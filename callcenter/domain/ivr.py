"""What a caller hears before and after the conversation: flows, their validation, and a one-step interpreter.

A flow is data. The telephone core keeps one `Cursor` a call, tells it what happened to the caller (`Input`) and
carries out the `Step` it gets back. Nothing here waits, plays or remembers.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, NewType, assert_never

from callcenter.domain.records import replace
from callcenter.domain.spoken import digits_prompts, number_prompts, queue_announcement, text_prompts

NodeId = NewType("NodeId", str)

MENU_DIGITS = "0123456789*#"
RATING_DIGITS = "12345"
"""1 非常满意, 2 满意, 3 基本满意, 4 不满意, 5 非常不满意: the five levels of 好差评, best first."""

# --- what the file says -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Play:
    """Play prompts; outside its dates (both included) it is passed over."""

    prompts: tuple[str, ...]
    next: NodeId
    barge_in: bool = True
    first_day: date | None = None
    last_day: date | None = None


@dataclass(frozen=True, slots=True)
class Menu:
    prompts: tuple[str, ...]
    choices: Mapping[str, NodeId]
    on_timeout: tuple[str, ...]
    on_invalid: tuple[str, ...]
    otherwise: NodeId
    """Where a caller goes who has used up the tries: to a person."""
    timeout_seconds: float = 5
    tries: int = 3
    barge_in: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """All the conditions that are stated must hold."""

    then: NodeId
    hours: tuple[tuple[int, int], ...] | None = None
    """Minutes of the local day, end excluded; a span whose end is not after its start goes past midnight."""
    weekdays: frozenset[int] | None = None
    """0 is Monday, as in `date.weekday()`; of the day on which the caller calls, also after midnight."""
    working_day: bool | None = None
    first_day: date | None = None
    last_day: date | None = None
    unknown: NodeId | None = None
    """Where to go when the calendar does not know whether it is a working day; needed with `working_day`."""


@dataclass(frozen=True, slots=True)
class When:
    """The first case that holds is taken."""

    cases: tuple[Case, ...]
    otherwise: NodeId


class Priority(StrEnum):
    """Classes of callers; a class is worth a head start in the queue."""

    NORMAL = "normal"
    RAISED = "raised"
    URGENT = "urgent"


HEAD_START_SECONDS: Mapping[Priority, float] = MappingProxyType(
    {Priority.NORMAL: 0, Priority.RAISED: 60, Priority.URGENT: 600}
)


@dataclass(frozen=True, slots=True)
class EnterQueue:
    queue: str
    on_give_up: NodeId
    on_full: NodeId | None = None
    on_closed: NodeId | None = None
    """None: as `on_give_up`."""
    head_start_seconds: float = 0
    """The call is treated as if it had waited so long already: priority that ages by itself."""
    announce_every_seconds: float | None = None
    announce_position: bool = True
    announce_wait: bool = True
    max_wait_seconds: float | None = None
    music: str | None = None


class TransferTo(StrEnum):
    AGENT = "agent"
    QUEUE = "queue"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Transfer:
    to_kind: TransferTo
    to: str
    on_failure: NodeId


@dataclass(frozen=True, slots=True)
class TakeMessage:
    prompts: tuple[str, ...]
    next: NodeId
    saved: tuple[str, ...] = ()
    too_short: tuple[str, ...] = ()
    max_seconds: int = 120
    min_seconds: float = 2
    tries: int = 2


@dataclass(frozen=True, slots=True)
class AskRating:
    """Ask for 1 to 5 and go on, rated or not."""

    ask: tuple[str, ...]
    next: NodeId
    thanks: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    timeout_seconds: float = 8
    tries: int = 2


class SayWhat(StrEnum):
    NUMBER = "number"
    DIGITS = "digits"
    TEXT = "text"
    POSITION = "position"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Say:
    """Say something put together from atoms; what is not known at that moment is passed over."""

    what: SayWhat
    next: NodeId
    value: str = ""
    barge_in: bool = True


@dataclass(frozen=True, slots=True)
class Goto:
    to: NodeId


class HangUpCause(StrEnum):
    NORMAL = "normal"
    BUSY = "busy"
    CONGESTION = "congestion"


@dataclass(frozen=True, slots=True)
class HangUp:
    cause: HangUpCause = HangUpCause.NORMAL


Node = Play | Menu | When | EnterQueue | Transfer | TakeMessage | AskRating | Say | Goto | HangUp


@dataclass(frozen=True, slots=True)
class Flow:
    line: str
    name: Mapping[str, str]
    """By language: zh, en."""
    numbers: tuple[str, ...]
    start: NodeId
    after_call: NodeId | None
    """Where a caller goes on whose agent has hung up."""
    nodes: Mapping[NodeId, Node]
    version: str
    """First twelve hex digits of the SHA-256 of the file."""
    without_person: str | None = None
    """Why no person can be reached on this line; None: one can."""


# --- what the core is told to do ----------------------------------------------------------------------------


class Purpose(StrEnum):
    MENU = "menu"
    RATING = "rating"


@dataclass(frozen=True, slots=True)
class PlayStep:
    """Play, then say PromptsEnded."""

    prompts: tuple[str, ...]
    barge_in: bool


@dataclass(frozen=True, slots=True)
class CollectStep:
    """Play and wait for one digit: DigitPressed at once, PromptsEnded after the last prompt, TimedOut
    `timeout_seconds` after that."""

    prompts: tuple[str, ...]
    timeout_seconds: float
    tries_left: int
    """This try included."""
    digits: str
    """Those that mean something."""
    purpose: Purpose
    barge_in: bool


@dataclass(frozen=True, slots=True)
class QueueStep:
    """Wait for an agent; the first announcement comes `announce_every_seconds` after entering."""

    queue: str
    head_start_seconds: float
    announce_every_seconds: float | None
    announce_position: bool
    announce_wait: bool
    max_wait_seconds: float | None
    """Of real waiting: the head start does not count."""
    music: str | None


@dataclass(frozen=True, slots=True)
class TransferStep:
    to_kind: TransferTo
    to: str


@dataclass(frozen=True, slots=True)
class MessageStep:
    """Play, record the caller, then say MessageEnded; what is shorter than `min_seconds` is not kept."""

    prompts: tuple[str, ...]
    max_seconds: int
    min_seconds: float


@dataclass(frozen=True, slots=True)
class HangUpStep:
    cause: HangUpCause


Step = PlayStep | CollectStep | QueueStep | TransferStep | MessageStep | HangUpStep

# --- what happened to the caller ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The engine was started anew in the middle of the step: it is to be carried out again."""


@dataclass(frozen=True, slots=True)
class PromptsEnded:
    pass


@dataclass(frozen=True, slots=True)
class DigitPressed:
    digit: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    pass


class GaveUp(StrEnum):
    MAX_WAIT = "max_wait"
    FULL = "full"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class QueueGaveUp:
    reason: GaveUp


@dataclass(frozen=True, slots=True)
class TransferFailed:
    pass


@dataclass(frozen=True, slots=True)
class MessageEnded:
    seconds: float


Input = Started | PromptsEnded | DigitPressed | TimedOut | QueueGaveUp | TransferFailed | MessageEnded

# --- what a report wants to know ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeEntered:
    node: NodeId


@dataclass(frozen=True, slots=True)
class ChoiceMade:
    node: NodeId
    digit: str


class MissedBy(StrEnum):
    TIMEOUT = "timeout"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ChoiceMissed:
    """In a menu or a rating the caller pressed nothing, or nothing that means something."""

    node: NodeId
    by: MissedBy


@dataclass(frozen=True, slots=True)
class Rating:
    node: NodeId
    score: int
    """The key pressed: 1 非常满意 (best) to 5 非常不满意 (worst)."""


@dataclass(frozen=True, slots=True)
class MessageLeft:
    node: NodeId
    seconds: float


Noted = NodeEntered | ChoiceMade | ChoiceMissed | Rating | MessageLeft

# --- the interpreter ----------------------------------------------------------------------------------------


class Phase(StrEnum):
    SPEAKING = "speaking"
    """Prompts are being played, or something is being waited for."""
    LISTENING = "listening"
    """The prompts of a question are over."""
    CLOSING = "closing"
    """The last words of a node that has what it wanted."""


@dataclass(frozen=True)
class Cursor:
    """Where a call stands in its flow; `dataclasses.asdict` and `Cursor.restored` take it through JSON."""

    line: str
    version: str
    node: NodeId
    tries: int = 0
    """Tries left, this one included."""
    phase: Phase = Phase.SPEAKING
    steps: int = 0
    """Steps given out so far; tells an input that belongs to an earlier step."""

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "Cursor":
        """The cursor that `dataclasses.asdict` and JSON have stored. ValueError when it is not one."""
        try:
            return cls(**{**stored, "phase": Phase(stored["phase"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no stored cursor of a flow: {stored!r}.") from error


@dataclass(frozen=True, slots=True)
class Facts:
    """What conditions and announcements may ask about, at the moment of the input."""

    local: datetime
    """Aware, Asia/Shanghai."""
    working_day: bool | None
    """None: the calendar does not know that year."""
    position: int | None = None
    expected_wait_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.local.tzinfo is None:
            raise ValueError("Facts.local needs its time zone, Asia/Shanghai.")


Advance = tuple[Cursor, Step | None, tuple[Noted, ...]]
Entered = tuple[Cursor, Step, tuple[Noted, ...]]


def begin(flow: Flow, facts: Facts, *, at: NodeId | None = None) -> Entered:
    """Enter a flow at its start, or at another node such as `flow.after_call`.

    ValueError for a node that the flow does not have.
    """
    node = flow.start if at is None else at
    if node not in flow.nodes:
        raise ValueError(f"Flow {flow.line} has no node {node}.")
    return _enter(flow, Cursor(flow.line, flow.version, node), node, facts)


def advance(flow: Flow, cursor: Cursor, event: Input, facts: Facts) -> Advance:
    """Take a call one step further; None for an input that changes nothing at this node.

    `flow` is the one with which the call began; ValueError for another. `Started` alone may come with a newer one: it
    carries out the node in progress again, or begins anew where the newer flow has no such node.
    """
    if isinstance(event, Started):
        return _resume(flow, cursor, facts)
    if (flow.line, flow.version) != (cursor.line, cursor.version):
        raise ValueError(
            f"This call is in version {cursor.version} of flow {cursor.line}, not in {flow.version} of {flow.line}."
        )
    node = flow.nodes[cursor.node]
    match node:
        case Play() | Say():
            if isinstance(event, PromptsEnded):
                return _enter(flow, cursor, node.next, facts)
            if isinstance(event, DigitPressed) and node.barge_in:
                return _type_ahead(flow, cursor, node.next, event, facts)
        case Menu() | AskRating():
            return _answered(flow, cursor, node, event, facts)
        case EnterQueue():
            if isinstance(event, QueueGaveUp):
                return _enter(flow, cursor, _after_queue(node, event.reason), facts)
        case Transfer():
            if isinstance(event, TransferFailed | QueueGaveUp):
                return _enter(flow, cursor, node.on_failure, facts)
        case TakeMessage():
            return _spoken(flow, cursor, node, event, facts)
        case HangUp() | When() | Goto():
            pass
        case _:
            assert_never(node)
    return cursor, None, ()


def _resume(flow: Flow, cursor: Cursor, facts: Facts) -> Entered:
    if flow.line != cursor.line or cursor.node not in flow.nodes:
        return begin(flow, facts)
    cursor = replace(cursor, version=flow.version)
    node = flow.nodes[cursor.node]
    if cursor.phase is Phase.CLOSING and isinstance(node, AskRating | TakeMessage):
        return _enter(flow, cursor, node.next, facts)
    after, step, noted = _enter(flow, cursor, cursor.node, facts)
    if isinstance(step, CollectStep) and 0 < cursor.tries < step.tries_left:
        return (
            replace(after, tries=cursor.tries),
            dataclasses.replace(step, tries_left=cursor.tries),
            noted[1:],
        )
    return after, step, noted[1:]


def _enter(flow: Flow, cursor: Cursor, target: NodeId, facts: Facts) -> Entered:
    """Go to a node and on through those that need no time; `problems` has seen to it that this ends."""
    noted: list[Noted] = []
    for _ in flow.nodes:
        noted.append(NodeEntered(target))
        node = flow.nodes[target]
        step, tries, onward = _step(node, facts)
        if step is not None:
            entered = replace(cursor, node=target, tries=tries, phase=Phase.SPEAKING, steps=cursor.steps + 1)
            return entered, step, tuple(noted)
        target = onward
    raise ValueError(f"Flow {flow.line} goes round at {target} without a step: it was never checked.")


def _step(node: Node, facts: Facts) -> tuple[Step | None, int, NodeId]:
    """What is done at a node and how many tries it has; no step: where to go instead."""
    nowhere = NodeId("")
    match node:
        case Play():
            if not _within(facts.local.date(), node.first_day, node.last_day):
                return None, 0, node.next
            return PlayStep(node.prompts, node.barge_in), 0, nowhere
        case Say():
            said = _said(node, facts)
            return (PlayStep(said, node.barge_in) if said else None), 0, node.next
        case Menu():
            return _ask(node, node.tries, ()), node.tries, nowhere
        case AskRating():
            return _ask(node, node.tries, ()), node.tries, nowhere
        case TakeMessage():
            return MessageStep(node.prompts, node.max_seconds, node.min_seconds), node.tries, nowhere
        case EnterQueue():
            step = QueueStep(
                queue=node.queue,
                head_start_seconds=node.head_start_seconds,
                announce_every_seconds=node.announce_every_seconds,
                announce_position=node.announce_position,
                announce_wait=node.announce_wait,
                max_wait_seconds=node.max_wait_seconds,
                music=node.music,
            )
            return step, 0, nowhere
        case Transfer():
            return TransferStep(node.to_kind, node.to), 0, nowhere
        case HangUp():
            return HangUpStep(node.cause), 0, nowhere
        case When():
            return None, 0, _taken(node, facts)
        case Goto():
            return None, 0, node.to
        case _:
            assert_never(node)


def _ask(node: Menu | AskRating, tries: int, first: tuple[str, ...]) -> CollectStep:
    menu = isinstance(node, Menu)
    return CollectStep(
        prompts=(*first, *(node.prompts if isinstance(node, Menu) else node.ask)),
        timeout_seconds=node.timeout_seconds,
        tries_left=tries,
        digits="".join(node.choices) if isinstance(node, Menu) else RATING_DIGITS,
        purpose=Purpose.MENU if menu else Purpose.RATING,
        barge_in=node.barge_in if isinstance(node, Menu) else True,
    )


def _answered(flow: Flow, cursor: Cursor, node: Menu | AskRating, event: Input, facts: Facts) -> Advance:
    """An input during a question."""
    if cursor.phase is Phase.CLOSING:
        if isinstance(node, AskRating) and isinstance(event, PromptsEnded | DigitPressed):
            return _enter(flow, cursor, node.next, facts)
        return cursor, None, ()
    match event:
        case PromptsEnded():
            return replace(cursor, phase=Phase.LISTENING), None, ()
        case TimedOut():
            return _missed(flow, cursor, node, MissedBy.TIMEOUT, facts)
        case DigitPressed(digit):
            if isinstance(node, Menu):
                if cursor.phase is Phase.SPEAKING and not node.barge_in:
                    return cursor, None, ()
                if digit in node.choices:
                    return _noted(
                        ChoiceMade(cursor.node, digit), _enter(flow, cursor, node.choices[digit], facts)
                    )
            elif digit in tuple(RATING_DIGITS):
                rating = Rating(cursor.node, int(digit))
                if not node.thanks:
                    return _noted(rating, _enter(flow, cursor, node.next, facts))
                closing = replace(cursor, phase=Phase.CLOSING, steps=cursor.steps + 1)
                return closing, PlayStep(node.thanks, barge_in=True), (rating,)
            return _missed(flow, cursor, node, MissedBy.INVALID, facts)
        case Started() | QueueGaveUp() | TransferFailed() | MessageEnded():
            return cursor, None, ()
        case _:
            assert_never(event)


def _missed(flow: Flow, cursor: Cursor, node: Menu | AskRating, by: MissedBy, facts: Facts) -> Entered:
    missed = ChoiceMissed(cursor.node, by)
    left = cursor.tries - 1
    if left < 1:
        return _noted(
            missed, _enter(flow, cursor, node.otherwise if isinstance(node, Menu) else node.next, facts)
        )
    if isinstance(node, Menu):
        first = node.on_timeout if by is MissedBy.TIMEOUT else node.on_invalid
    else:
        first = node.invalid
    again = replace(cursor, tries=left, phase=Phase.SPEAKING, steps=cursor.steps + 1)
    return again, _ask(node, left, first), (missed,)


def _spoken(flow: Flow, cursor: Cursor, node: TakeMessage, event: Input, facts: Facts) -> Advance:
    """An input while the caller leaves a message."""
    if cursor.phase is Phase.CLOSING:
        if isinstance(event, PromptsEnded | DigitPressed):
            return _enter(flow, cursor, node.next, facts)
        return cursor, None, ()
    if not isinstance(event, MessageEnded):
        return cursor, None, ()
    if event.seconds >= node.min_seconds:
        left = MessageLeft(cursor.node, event.seconds)
        if not node.saved:
            return _noted(left, _enter(flow, cursor, node.next, facts))
        closing = replace(cursor, phase=Phase.CLOSING, steps=cursor.steps + 1)
        return closing, PlayStep(node.saved, barge_in=True), (left,)
    if cursor.tries <= 1:
        return _enter(flow, cursor, node.next, facts)
    again = replace(cursor, tries=cursor.tries - 1, steps=cursor.steps + 1)
    return again, MessageStep((*node.too_short, *node.prompts), node.max_seconds, node.min_seconds), ()


def _type_ahead(flow: Flow, cursor: Cursor, target: NodeId, event: DigitPressed, facts: Facts) -> Advance:
    """A digit that ends a prompt is also the answer to the menu it leads to: regular callers know it by heart."""
    cursor, step, noted = _enter(flow, cursor, target, facts)
    node = flow.nodes[cursor.node]
    if isinstance(node, Menu) and node.barge_in and event.digit in node.choices:
        after, chosen, more = _answered(flow, cursor, node, event, facts)
        return after, chosen, (*noted, *more)
    return cursor, step, noted


def _noted(first: Noted, entered: Entered) -> Entered:
    cursor, step, noted = entered
    return cursor, step, (first, *noted)


def _after_queue(node: EnterQueue, reason: GaveUp) -> NodeId:
    match reason:
        case GaveUp.MAX_WAIT:
            return node.on_give_up
        case GaveUp.FULL:
            return node.on_full or node.on_give_up
        case GaveUp.CLOSED:
            return node.on_closed or node.on_give_up
        case _:
            assert_never(reason)


def _taken(node: When, facts: Facts) -> NodeId:
    """Where the first case leads whose conditions hold; one that hangs on an unknown day leads to its `unknown`."""
    minute = facts.local.hour * 60 + facts.local.minute
    today = facts.local.date()
    for case in node.cases:
        if case.hours is not None and not any(_in_span(minute, start, end) for start, end in case.hours):
            continue
        if case.weekdays is not None and today.weekday() not in case.weekdays:
            continue
        if not _within(today, case.first_day, case.last_day):
            continue
        if case.working_day is not None:
            if facts.working_day is None:
                return case.unknown or node.otherwise
            if facts.working_day is not case.working_day:
                continue
        return case.then
    return node.otherwise


def _in_span(minute: int, start: int, end: int) -> bool:
    return start <= minute < end if start < end else minute >= start or minute < end


def _within(day: date, first: date | None, last: date | None) -> bool:
    return (first is None or first <= day) and (last is None or day <= last)


def _said(node: Say, facts: Facts) -> tuple[str, ...]:
    match node.what:
        case SayWhat.NUMBER:
            if not node.value.isdecimal():
                raise ValueError(f"{node.value!r} is no whole number: write it in digits.")
            return number_prompts(int(node.value))
        case SayWhat.DIGITS:
            return digits_prompts(node.value)
        case SayWhat.TEXT:
            return text_prompts(node.value)
        case SayWhat.POSITION:
            return queue_announcement(facts.position, None)
        case SayWhat.WAIT:
            return queue_announcement(None, facts.expected_wait_seconds)
        case _:
            assert_never(node.what)


# --- validation ---------------------------------------------------------------------------------------------

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """A way from one node to another."""

    to: NodeId
    label: str
    by: Literal["caller", "time", "at once"]
    """What makes it be taken: a key pressed, a stated wait, or nothing that could keep a loop from spinning."""
    path: Path
    """The keys under which the node's file entry names the target."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a flow; `path` leads from the node's entry (from the file's top where node is None) to it."""

    node: NodeId | None
    message: str
    path: Path = ()


def edges(node: Node) -> tuple[Edge, ...]:
    """Every way out of a node, in the order of the file."""
    match node:
        case Play() | Say():
            return (Edge(node.next, "", "at once", ("next",)),)
        case TakeMessage() | AskRating():
            return (Edge(node.next, "", "at once", ("next",)),)
        case Menu():
            return (
                *(
                    Edge(to, digit, "caller", ("menu", "choices", digit))
                    for digit, to in node.choices.items()
                ),
                Edge(node.otherwise, "otherwise", "at once", ("menu", "otherwise")),
            )
        case When():
            found = []
            for index, case in enumerate(node.cases):
                label = condition_text(case)
                found.append(Edge(case.then, label, "at once", ("when", "cases", index, "then")))
                if case.unknown is not None:
                    path: Path = ("when", "cases", index, "unknown")
                    found.append(Edge(case.unknown, "unknown day", "at once", path))
            return (*found, Edge(node.otherwise, "else", "at once", ("when", "else")))
        case EnterQueue():
            waited = (Edge(node.on_give_up, "max wait", "time", ("queue", "on_give_up")),)
            full = "on_full" if node.on_full else "on_give_up"
            closed = "on_closed" if node.on_closed else "on_give_up"
            return (
                *(waited if node.max_wait_seconds is not None else ()),
                Edge(_after_queue(node, GaveUp.FULL), "full", "at once", ("queue", full)),
                Edge(_after_queue(node, GaveUp.CLOSED), "closed", "at once", ("queue", closed)),
            )
        case Transfer():
            return (Edge(node.on_failure, "failed", "at once", ("transfer", "on_failure")),)
        case Goto():
            return (Edge(node.to, "", "at once", ("goto",)),)
        case HangUp():
            return ()
        case _:
            assert_never(node)


def prompts_of(node: Node) -> tuple[tuple[Path, str], ...]:
    """Every prompt that a node names, with its place in the node's file entry."""
    lists: tuple[tuple[str, str, tuple[str, ...]], ...]
    match node:
        case Play():
            lists = (("play", "prompts", node.prompts),)
        case Menu():
            lists = (
                ("menu", "prompts", node.prompts),
                ("menu", "on_timeout", node.on_timeout),
                ("menu", "on_invalid", node.on_invalid),
            )
        case TakeMessage():
            lists = (
                ("message", "prompts", node.prompts),
                ("message", "saved", node.saved),
                ("message", "too_short", node.too_short),
            )
        case AskRating():
            lists = (
                ("rating", "ask", node.ask),
                ("rating", "thanks", node.thanks),
                ("rating", "invalid", node.invalid),
            )
        case When() | EnterQueue() | Transfer() | Say() | Goto() | HangUp():
            lists = ()
        case _:
            assert_never(node)
    return tuple(
        ((kind, field, index), prompt) for kind, field, named in lists for index, prompt in enumerate(named)
    )


_WEEKDAYS = "一二三四五六日"


def condition_text(case: Case) -> str:
    """A case's conditions as a person reads them: “工作日 09:00-17:30”."""
    parts = []
    if case.working_day is not None:
        parts.append("工作日" if case.working_day else "非工作日")
    if case.weekdays is not None:
        parts.append("周" + "".join(_WEEKDAYS[day] for day in sorted(case.weekdays)))
    if case.hours is not None:
        parts.append(",".join(f"{_clock(start)}-{_clock(end)}" for start, end in case.hours))
    if case.first_day is not None or case.last_day is not None:
        parts.append(f"{case.first_day or ''}..{case.last_day or ''}")
    return " ".join(parts)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def problems(flow: Flow, *, queues: Set[str], prompts: Set[str], numbers: Set[str]) -> list[Problem]:
    """Everything that would leave a caller stranded, in the order of the file; a flow without any is safe to run.

    `numbers` are those to which callers may be transferred. In a flow without problems every node is reachable, every
    input leads to a step, and a caller who never presses a key comes to an end or to a person.
    """
    found: list[Problem] = []
    for field, target in (("start", flow.start), ("after_call", flow.after_call)):
        if target is not None and target not in flow.nodes:
            found.append(Problem(None, _no_such("node", target, flow.nodes), (field,)))
    for name, node in flow.nodes.items():
        found += _problems_of(name, node, queues=queues, prompts=prompts, numbers=numbers)
        for edge in _distinct(edges(node)):
            if edge.to not in flow.nodes:
                found.append(Problem(name, _no_such("node", edge.to, flow.nodes), edge.path))
    found += _lost(flow)
    found += _circles(flow)
    return sorted(found, key=lambda problem: list(flow.nodes).index(problem.node) if problem.node else -1)


def _problems_of(
    name: NodeId, node: Node, *, queues: Set[str], prompts: Set[str], numbers: Set[str]
) -> Iterable[Problem]:
    """Mistakes that can be seen in one node alone."""
    for path, prompt in prompts_of(node):
        if prompt not in prompts:
            yield Problem(name, _no_such("prompt", prompt, prompts), path)
    match node:
        case Play():
            if not node.prompts:
                yield Problem(name, "This plays nothing: name a prompt.", ("play", "prompts"))
            yield from _dates(name, node.first_day, node.last_day, ("play",))
        case Menu():
            yield from _menu_problems(name, node)
        case When():
            for index, case in enumerate(node.cases):
                yield from _case_problems(name, case, ("when", "cases", index))
        case EnterQueue():
            if node.queue not in queues:
                yield Problem(name, _no_such("queue", node.queue, queues), ("queue", "queue"))
        case Transfer():
            if node.to_kind is TransferTo.QUEUE and node.to not in queues:
                yield Problem(name, _no_such("queue", node.to, queues), ("transfer", "queue"))
            if node.to_kind is TransferTo.NUMBER and node.to not in numbers:
                message = (
                    f"Callers may not be transferred to {node.to}: add it to the numbers that are allowed, or "
                    "name one of them."
                )
                yield Problem(name, message, ("transfer", "number"))
        case TakeMessage():
            if node.min_seconds >= node.max_seconds:
                yield Problem(
                    name,
                    "min_seconds must be less than max_seconds, or no message is ever kept.",
                    ("message",),
                )
        case AskRating():
            if not node.ask:
                yield Problem(name, "This asks nothing: name a prompt.", ("rating", "ask"))
        case Say():
            yield from _say_problems(name, node, prompts)
        case Goto() | HangUp():
            pass
        case _:
            assert_never(node)


def _menu_problems(name: NodeId, node: Menu) -> Iterable[Problem]:
    if not node.prompts:
        yield Problem(name, "This menu asks nothing: name a prompt.", ("menu", "prompts"))
    if not node.choices:
        yield Problem(name, "This menu has no choices: name one, or leave the menu out.", ("menu", "choices"))
    if not node.on_timeout:
        message = "This menu says nothing to a caller who presses no key: name a prompt under on_timeout."
        yield Problem(name, message, ("menu", "on_timeout"))
    if not node.on_invalid:
        message = (
            "This menu says nothing to a caller who presses a wrong key: name a prompt under on_invalid."
        )
        yield Problem(name, message, ("menu", "on_invalid"))
    for digit in node.choices:
        if digit not in tuple(MENU_DIGITS):
            message = f"{digit!r} is no key of a telephone: use 0 to 9, * or #."
            yield Problem(name, message, ("menu", "choices", digit))
    if node.tries < 1:
        yield Problem(name, "A menu needs at least one try.", ("menu", "tries"))


def _case_problems(name: NodeId, case: Case, path: Path) -> Iterable[Problem]:
    conditions = (case.hours, case.weekdays, case.working_day, case.first_day, case.last_day)
    if all(condition is None for condition in conditions):
        yield Problem(name, "This case states no condition: put its node under else.", path)
    if case.working_day is not None and case.unknown is None:
        message = (
            "Say under unknown where to go in a year whose working days are not published yet: "
            "the calendar does not guess."
        )
        yield Problem(name, message, path)
    if case.working_day is None and case.unknown is not None:
        yield Problem(name, "unknown belongs to a case with working_day: leave it out.", (*path, "unknown"))
    if case.hours is not None and not case.hours:
        yield Problem(name, "No hours are named: the case would never hold.", (*path, "hours"))
    if case.weekdays is not None and not case.weekdays:
        yield Problem(name, "No weekdays are named: the case would never hold.", (*path, "weekdays"))
    yield from _dates(name, case.first_day, case.last_day, path)


def _dates(name: NodeId, first: date | None, last: date | None, path: Path) -> Iterable[Problem]:
    if first is not None and last is not None and first > last:
        yield Problem(
            name, f"until ({last}) is before from ({first}): the days would never come.", (*path, "until")
        )


def _say_problems(name: NodeId, node: Say, prompts: Set[str]) -> Iterable[Problem]:
    speaks_a_value = node.what in (SayWhat.NUMBER, SayWhat.DIGITS, SayWhat.TEXT)
    if not speaks_a_value:
        if node.value:
            yield Problem(name, f"{node.what} is known by itself: leave value out.", ("say", "value"))
        return
    try:
        said = _said(node, Facts(local=_ANY_TIME, working_day=None)) if node.value else ()
    except ValueError as error:
        yield Problem(name, str(error), ("say", "value"))
        return
    if not said:
        yield Problem(name, f"There is nothing to say: give the {node.what} under value.", ("say",))
    for prompt in sorted(set(said) - prompts):
        yield Problem(name, _no_such("prompt", prompt, prompts), ("say",))


_ANY_TIME = datetime.fromisoformat("2026-01-01T00:00:00+08:00")


def _distinct(ways: Iterable[Edge]) -> Iterable[Edge]:
    """One edge for each place in the file."""
    return {edge.path: edge for edge in ways}.values()


def _no_such(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"There is no {kind} {name}; did you mean {close[0]}?"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"There is no {kind} {name}" + (f"; there are {shown}." if shown else ".")


def reachable(flow: Flow, start: NodeId | None) -> list[NodeId]:
    """The nodes to which some caller can come from `start`, nearest first."""
    seen: dict[NodeId, None] = {}
    ahead = [start] if start is not None else []
    for name in ahead:
        if name in flow.nodes and name not in seen:
            seen[name] = None
            ahead.extend(edge.to for edge in edges(flow.nodes[name]))
    return list(seen)


def _lost(flow: Flow) -> Iterable[Problem]:
    """Nodes nobody comes to, callers who come to nobody."""
    before = reachable(flow, flow.start)
    after = reachable(flow, flow.after_call)
    for name in flow.nodes:
        if name not in before and name not in after:
            yield Problem(name, f"Nothing leads to {name}: name it somewhere, or delete it.")
    for name in after:
        if isinstance(flow.nodes[name], EnterQueue | Transfer):
            message = (
                "after_call leads here: a caller whose call has been answered must not be put through again. "
                "End that part with hangup."
            )
            yield Problem(name, message)
    if flow.start not in flow.nodes:
        return
    if flow.without_person is not None:
        return
    if not _to_a_person(flow, flow.start):
        message = (
            "No caller can reach a person on this line: lead to a queue or a transfer, "
            "or say why there is none under without_person."
        )
        yield Problem(None, message, ("start",))
        return
    for name in before:
        node = flow.nodes[name]
        if isinstance(node, Menu) and node.otherwise in flow.nodes and not _to_a_person(flow, node.otherwise):
            message = (
                "A caller who presses no key must come to a person: lead otherwise to a queue or a transfer."
            )
            yield Problem(name, message, ("menu", "otherwise"))


def _to_a_person(flow: Flow, start: NodeId) -> bool:
    return any(isinstance(flow.nodes[name], EnterQueue | Transfer) for name in reachable(flow, start))


def _circles(flow: Flow) -> Iterable[Problem]:
    """Loops on which nothing waits for a key or for a stated time: they would spin, or hold a silent caller for ever."""
    done: set[NodeId] = set()
    for root in flow.nodes:
        # The way from `root` to where the search stands, each node with the edges still to be tried.
        trail: dict[NodeId, list[Edge]] = {}
        if root not in done:
            trail[root] = _spinning(flow, root)
        while trail:
            here = next(reversed(trail))
            if not trail[here]:
                del trail[here]
                done.add(here)
                continue
            edge = trail[here].pop(0)
            if edge.to in trail:
                names = list(trail)
                circle = [*names[names.index(edge.to) :], edge.to]
                message = (
                    f"A loop in which nothing waits for the caller: {' → '.join(circle)}. "
                    "Lead one of them to hangup, to a queue or to a menu."
                )
                yield Problem(here, message, edge.path)
            elif edge.to not in done and edge.to in flow.nodes:
                trail[edge.to] = _spinning(flow, edge.to)


def _spinning(flow: Flow, name: NodeId) -> list[Edge]:
    return [edge for edge in _distinct_targets(edges(flow.nodes[name])) if edge.by == "at once"]


def _distinct_targets(ways: Iterable[Edge]) -> Iterable[Edge]:
    return {(edge.to, edge.by): edge for edge in ways}.values()
