"""`callcenter flows`: check the flow files, draw one, walk through one in the terminal."""

import html
import json
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, assert_never

import typer

from callcenter.domain import ivr
from callcenter.domain.ivr import Flow, NodeId
from callcenter.domain.spoken import queue_announcement
from callcenter.flows import SHANGHAI, FlowSet, FlowsRefused, facts_at, flow_schema
from callcenter.speech.prompts import CatalogueError, load_catalogue

app = typer.Typer(no_args_is_help=True, help="语音流程：检查、画图、试走。Flows: check, draw, walk through.")


@dataclass(frozen=True, slots=True)
class Site:
    """What the flows are held against; whoever mounts `app` gives the real one as the context's object."""

    directory: Path = Path("ivr_flows")
    queues: frozenset[str] = frozenset({"hotline", "company"})
    numbers: frozenset[str] = field(default_factory=frozenset)


class Format(StrEnum):
    MERMAID = "mermaid"
    SVG = "svg"
    TEXT = "text"


def prompt_texts(directory: Path) -> Mapping[str, str]:
    """The text of every prompt, from prompts/prompts.yaml of the flows' directory; CatalogueError names a mistake."""
    catalogue = load_catalogue(directory / "prompts" / "prompts.yaml")
    return {name: prompt.text for name, prompt in catalogue.prompts.items()}


# --- commands -----------------------------------------------------------------------------------------------

_Directory = Annotated[
    Path | None, typer.Argument(help="流程目录。Directory of the flows.", show_default=False)
]


@app.command()
def check(context: typer.Context, directory: _Directory = None) -> None:
    """检查全部流程，逐条列出文件:行:列。Check every flow; each mistake with file:line:column; exit 1 if any."""
    site = _site(context, directory)
    flows, _ = _load(site)
    for notice in flows.notices(datetime.now(SHANGHAI).date()):
        typer.echo(f"注意 notice: {notice}", err=True)
    lines = ", ".join(sorted(flows.flows))
    typer.echo(f"{len(flows.flows)} 条专线流程正确 flows are right: {lines}")


@app.command()
def graph(
    context: typer.Context,
    flow: Annotated[str, typer.Argument(help="专线号或文件。A line or a file.")],
    format_: Annotated[
        Format, typer.Option("--format", help="图的格式。Form of the drawing.")
    ] = Format.MERMAID,
) -> None:
    """画出一条流程。Draw a flow."""
    drawn, texts = _one(context, flow)
    match format_:
        case Format.MERMAID:
            typer.echo(mermaid(drawn, texts))
        case Format.SVG:
            typer.echo(svg(drawn, texts))
        case Format.TEXT:
            typer.echo(tree(drawn, texts))
        case _:
            assert_never(format_)


@app.command(name="try")
def try_(
    context: typer.Context,
    line: Annotated[str, typer.Argument(help="专线号或文件。A line or a file.")],
    at: Annotated[
        datetime | None,
        typer.Option(
            help="假定的上海时间，如 2026-10-01T09:00。Time in Shanghai.", formats=["%Y-%m-%dT%H:%M"]
        ),
    ] = None,
) -> None:
    """在终端试走一条流程。Walk through a flow in the terminal."""
    flow, texts = _one(context, line)
    moment = datetime.now(SHANGHAI) if at is None else at.replace(tzinfo=SHANGHAI)
    walk(flow, texts, facts_at(moment, position=3, expected_wait_seconds=110))


@app.command()
def schema() -> None:
    """输出供编辑器使用的 JSON Schema。Print the JSON Schema for editors."""
    typer.echo(schema_text(), nl=False)


def schema_text() -> str:
    """The content of ivr_flows/flow.schema.json."""
    return json.dumps(flow_schema(), ensure_ascii=False, indent=2) + "\n"


def _site(context: typer.Context, directory: Path | None = None) -> Site:
    found = context.find_object(Site) or Site()
    return found if directory is None else Site(directory, found.queues, found.numbers)


def _load(site: Site) -> tuple[FlowSet, Mapping[str, str]]:
    try:
        texts = prompt_texts(site.directory)
        flows = FlowSet.load(site.directory, queues=site.queues, prompts=texts.keys(), numbers=site.numbers)
    except FlowsRefused as refused:
        for error in refused.errors:
            typer.echo(str(error), err=True)
        typer.echo(f"{len(refused.errors)} 处错误 mistakes: 流程未采用 the flows are not taken.", err=True)
        raise typer.Exit(1) from refused
    except CatalogueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    return flows, texts


def _one(context: typer.Context, wanted: str) -> tuple[Flow, Mapping[str, str]]:
    """A flow by its line, or by its file in any directory."""
    path = Path(wanted)
    is_file = path.suffix == ".yaml"
    flows, texts = _load(_site(context, path.parent if is_file else None))
    flow = flows.flows.get(path.stem if is_file else wanted)
    if flow is None:
        typer.echo(f"没有专线 There is no line {wanted}; 现有 there are {', '.join(flows.flows)}.", err=True)
        raise typer.Exit(1)
    return flow, texts


# --- drawings -----------------------------------------------------------------------------------------------


def describe(node: ivr.Node, texts: Mapping[str, str]) -> str:
    """A node in one short line, for people."""
    match node:
        case ivr.Play():
            days = ""
            if node.first_day or node.last_day:
                days = f"（{node.first_day or ''} 至 {node.last_day or ''}）"
            return f"播放{days} {_spoken(node.prompts, texts)}"
        case ivr.Menu():
            return f"菜单 {_spoken(node.prompts, texts)}"
        case ivr.When():
            return "按时间"
        case ivr.EnterQueue():
            ahead = f"，领先 {node.head_start_seconds:g} 秒" if node.head_start_seconds else ""
            limit = f"，最长 {node.max_wait_seconds:g} 秒" if node.max_wait_seconds else ""
            return f"排队 {node.queue}{ahead}{limit}"
        case ivr.Transfer():
            kinds = {
                ivr.TransferTo.AGENT: "座席",
                ivr.TransferTo.QUEUE: "队列",
                ivr.TransferTo.NUMBER: "号码",
            }
            return f"转接{kinds[node.to_kind]} {node.to}"
        case ivr.TakeMessage():
            return f"留言（最长 {node.max_seconds} 秒）"
        case ivr.AskRating():
            return "评价 1–5"
        case ivr.Say():
            return f"播报 {node.what} {node.value}".rstrip()
        case ivr.Goto():
            return "转到"
        case ivr.HangUp():
            return "挂机" if node.cause is ivr.HangUpCause.NORMAL else f"挂机（{node.cause}）"
        case _:
            assert_never(node)


def _spoken(prompts: tuple[str, ...], texts: Mapping[str, str]) -> str:
    said = "".join(texts.get(prompt, prompt) for prompt in prompts)
    return said if len(said) <= 18 else said[:17] + "…"


_LABELS = {
    "otherwise": "未选",
    "else": "否则",
    "unknown day": "日历未知",
    "max wait": "超时",
    "full": "队满",
    "closed": "无人值守",
    "failed": "失败",
}


def _ways(node: ivr.Node) -> list[tuple[NodeId, str]]:
    """Ways out with their labels, one for each target."""
    labels: dict[NodeId, list[str]] = {}
    for edge in ivr.edges(node):
        label = f"按 {edge.label}" if edge.by == "caller" else _LABELS.get(edge.label, edge.label)
        labels.setdefault(edge.to, []).append(label)
    return [(to, " / ".join(label for label in several if label)) for to, several in labels.items()]


def mermaid(flow: Flow, texts: Mapping[str, str]) -> str:
    """The flow as Mermaid text, which GitHub and many editors draw."""
    ids = {name: f"n{index}" for index, name in enumerate(flow.nodes)}
    drawn = [
        f"%% {flow.line} {flow.name['zh']} {flow.version}",
        "flowchart TD",
        f'  call(["来电 {" ".join(flow.numbers)}"]) --> {ids[flow.start]}',
    ]
    if flow.after_call is not None:
        drawn.append(f'  after(["通话结束"]) --> {ids[flow.after_call]}')
    for name, node in flow.nodes.items():
        opening, closing = ("{{", "}}") if isinstance(node, ivr.Menu | ivr.When) else ("[", "]")
        text = f"{name}<br/>{describe(node, texts)}".replace('"', "#quot;")
        drawn.append(f'  {ids[name]}{opening}"{text}"{closing}')
        for to, label in _ways(node):
            arrow = f'-- "{label}" -->' if label else "-->"
            drawn.append(f"  {ids[name]} {arrow} {ids[to]}")
    people = [
        ids[name] for name, node in flow.nodes.items() if isinstance(node, ivr.EnterQueue | ivr.Transfer)
    ]
    if people:
        drawn += ["  classDef person fill:#d9f2e3,stroke:#1b7f4b", f"  class {','.join(people)} person"]
    return "\n".join(drawn)


def tree(flow: Flow, texts: Mapping[str, str]) -> str:
    """The flow as an indented tree; a node that has been shown is only named again."""
    drawn = [f"{flow.line} {flow.name['zh']} ({flow.version})"]
    shown: set[NodeId] = set()

    def branch(name: NodeId, label: str, indent: str, last: bool) -> None:
        mark = "└─ " if last else "├─ "
        again = name in shown
        text = f"{name} ↑" if again else f"{name}: {describe(flow.nodes[name], texts)}"
        drawn.append(f"{indent}{mark}{f'[{label}] ' if label else ''}{text}")
        if again:
            return
        shown.add(name)
        ways = _ways(flow.nodes[name])
        for index, (to, way) in enumerate(ways):
            branch(to, way, indent + ("   " if last else "│  "), index == len(ways) - 1)

    branch(flow.start, "来电", "", flow.after_call is None)
    if flow.after_call is not None:
        branch(flow.after_call, "通话结束", "", True)
    return "\n".join(drawn)


_BOX = (260, 56)
_GAP = (30, 66)
_LANE = 26
"""Width kept free in a row for the ways that only pass it."""
_MARGIN = 36
_TOP = 70

_Cell = tuple[NodeId, bool]
"""What stands in a row: a node's box, or (False) the lane of all ways to a node further down."""


def svg(flow: Flow, texts: Mapping[str, str]) -> str:
    """The flow as a drawing of its own: rows from top to bottom, ways back round the right side."""
    rows = _rows(flow)
    depth = {name: row for row, cells in enumerate(rows) for name, is_box in cells if is_box}
    middle = _middles(flow, rows)
    width, height = _BOX
    right = max(x + _width(cell) / 2 for (_, cell), x in middle.items())
    size = (right + _MARGIN + 60, _TOP + _MARGIN + len(rows) * (height + _GAP[1]))

    def top(row: int) -> float:
        return _TOP + 30 + row * (height + _GAP[1])

    ways: list[str] = []
    labels: list[str] = []
    for row, cells in enumerate(rows):
        for name, is_box in cells:
            if is_box:
                continue
            x = middle[row, (name, False)]
            onward = middle[row + 1, (name, depth[name] == row + 1)]
            ways.append(
                _bend(x, top(row) + height, onward, top(row + 1), tip=depth[name] == row + 1, start=top(row))
            )
    for name, node in flow.nodes.items():
        row = depth[name]
        # In the order of what stands below, so that the ways do not cross at the box.
        below = {to: middle.get((row + 1, (to, depth[to] == row + 1)), right) for to, _ in _ways(node)}
        exits = sorted(_ways(node), key=lambda way: below[way[0]])
        for index, (to, label) in enumerate(exits):
            x = middle[row, (name, True)] + width * ((index + 1) / (len(exits) + 1) - 0.5)
            y = top(row) + height
            if depth[to] > row:
                near = depth[to] == row + 1
                ways.append(_bend(x, y, middle[row + 1, (to, near)], top(row + 1), tip=near))
            else:
                ways.append(_way_back(x, y, middle[depth[to], (to, True)], top(depth[to]), right + 36))
            if label:
                labels.append(_label(label, x, y + 13 + 17 * (index % 2)))
    entries = [(flow.start, f"来电 {' '.join(flow.numbers)}")]
    entries += [(flow.after_call, "通话结束")] if flow.after_call else []
    for name, label in entries:
        x, y = middle[depth[name], (name, True)] - width / 2 + 24, top(depth[name])
        ways.append(f'<path d="M{x} {y - 22}V{y - 2}" class="way" marker-end="url(#tip)"/>')
        labels.append(_label(label, x + 12, y - 26))
    boxes = [
        _box(name, flow.nodes[name], texts, middle[row, (name, True)], top(row))
        for name, row in depth.items()
    ]
    title = html.escape(f"{flow.line} {flow.name['zh']}")
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]:.0f}" height="{size[1]:.0f}"'
        f' viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="img" aria-label="{title}">'
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto"><path d="M0 0L8 4L0 8z" fill="#52606d"/></marker></defs>'
    )
    heading = f'<text x="{_MARGIN}" y="30" class="title">{title}</text>'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join(
        [opening, f"<style>{_STYLE}</style>", tip, background, heading, *ways, *boxes, *labels, "</svg>"]
    )


def _box(name: NodeId, node: ivr.Node, texts: Mapping[str, str], x: float, y: float) -> str:
    width, height = _BOX
    radius = 28 if isinstance(node, ivr.HangUp) else 4 if isinstance(node, ivr.Menu | ivr.When) else 10
    return (
        f'<g class="{_look(node)}">'
        f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width}" height="{height}" rx="{radius}"/>'
        f'<text x="{x:.0f}" y="{y + 23:.0f}" class="name">{html.escape(name)}</text>'
        f'<text x="{x:.0f}" y="{y + 43:.0f}">{html.escape(describe(node, texts))}</text></g>'
    )


_STYLE = (
    "text{font:12px system-ui,'Noto Sans SC','PingFang SC','Microsoft YaHei',sans-serif;fill:#1f2933;"
    "text-anchor:middle}.name{font-weight:600;font-size:14px}.title{font-size:18px;font-weight:600;"
    "text-anchor:start}rect{stroke-width:1.4}.play rect{fill:#eef4fb;stroke:#5b7fa6}"
    ".ask rect{fill:#fff6dd;stroke:#b98900}.person rect{fill:#dcf3e6;stroke:#1b7f4b}"
    ".end rect{fill:#f1f1f2;stroke:#7b8794}.way{fill:none;stroke:#52606d;stroke-width:1.3}.back{stroke-dasharray:5 4}"
    ".label rect{fill:#fff;stroke:none;opacity:.9}.label text{font-size:11px;fill:#3e4c59}"
)


def _look(node: ivr.Node) -> str:
    match node:
        case ivr.EnterQueue() | ivr.Transfer():
            return "person"
        case ivr.Menu() | ivr.When() | ivr.AskRating() | ivr.TakeMessage():
            return "ask"
        case ivr.HangUp():
            return "end"
        case ivr.Play() | ivr.Say() | ivr.Goto():
            return "play"
        case _:
            assert_never(node)


def _rows(flow: Flow) -> list[list[_Cell]]:
    """Each node below all that lead to it (ways back left aside), with lanes where a way passes a row."""
    depth: dict[NodeId, int] = {}
    _sink(flow, flow.start, depth)
    if flow.after_call is not None and flow.after_call not in depth:
        _sink(flow, flow.after_call, depth)
        # It need not stand at the top: only what follows must be below it.
        targets = [depth[to] for to, _ in _ways(flow.nodes[flow.after_call])]
        depth[flow.after_call] = max(0, min(targets, default=1) - 1)
    rows: list[list[_Cell]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in flow.nodes:
        rows[depth[name]].append((name, True))
    for name in flow.nodes:
        above = [depth[other] for other, node in flow.nodes.items() if name in dict(_ways(node))]
        for row in range(min(above, default=depth[name]) + 1, depth[name]):
            rows[row].append((name, False))
    for row in range(1, len(rows)):
        place = {cell: index for index, cell in enumerate(rows[row - 1])}

        def pull(cell: _Cell, place: Mapping[_Cell, int] = place) -> float:
            above = [index for other, index in place.items() if _leads(flow, other, cell[0])]
            return sum(above) / len(above) if above else len(place)

        rows[row].sort(key=pull)
    return rows


def _leads(flow: Flow, cell: _Cell, to: NodeId) -> bool:
    """Whether a way goes from a cell straight down to a node or its lane."""
    name, is_box = cell
    return any(onward == to for onward, _ in _ways(flow.nodes[name])) if is_box else name == to


def _width(cell: _Cell) -> float:
    return _BOX[0] if cell[1] else _LANE


def _middles(flow: Flow, rows: list[list[_Cell]]) -> dict[tuple[int, _Cell], float]:
    """Where each cell's middle is, drawn towards the cells above and below it, none over another."""
    at: dict[tuple[int, _Cell], float] = {}
    for row, cells in enumerate(rows):
        x = 0.0
        for cell in cells:
            at[row, cell] = x + _width(cell) / 2
            x += _width(cell) + _GAP[0]
    for _ in range(6):
        for row, cells in enumerate(rows):
            wished = {cell: _wish(flow, rows, at, row, cell) for cell in cells}
            edge = float("-inf")
            for cell in cells:
                at[row, cell] = max(wished[cell], edge + _width(cell) / 2)
                edge = at[row, cell] + _width(cell) / 2 + _GAP[0]
            shift = sum(wished[cell] - at[row, cell] for cell in cells) / len(cells)
            for cell in cells:
                at[row, cell] += shift
    left = min(x - _width(cell) / 2 for (_, cell), x in at.items())
    return {key: x - left + _MARGIN for key, x in at.items()}


def _wish(
    flow: Flow, rows: list[list[_Cell]], at: Mapping[tuple[int, _Cell], float], row: int, cell: _Cell
) -> float:
    near = [at[row - 1, other] for other in rows[row - 1] if _leads(flow, other, cell[0])] if row else []
    if row + 1 < len(rows):
        near += [at[row + 1, other] for other in rows[row + 1] if _leads(flow, cell, other[0])]
    return sum(near) / len(near) if near else at[row, cell]


def _sink(flow: Flow, entry: NodeId, depth: dict[NodeId, int]) -> None:
    """Longest way from the entry to each node, found in the order in which a search leaves them."""
    order: list[NodeId] = []
    back: set[tuple[NodeId, NodeId]] = set()
    trail: dict[NodeId, list[NodeId]] = {entry: [to for to, _ in _ways(flow.nodes[entry])]}
    left: set[NodeId] = set()
    while trail:
        here = next(reversed(trail))
        if not trail[here]:
            del trail[here]
            left.add(here)
            order.append(here)
            continue
        to = trail[here].pop(0)
        if to in trail:
            back.add((here, to))
        elif to not in left:
            trail[to] = [onward for onward, _ in _ways(flow.nodes[to])]
    depth.setdefault(entry, 0)
    for name in reversed(order):
        for to, _ in _ways(flow.nodes[name]):
            if (name, to) not in back:
                depth[to] = max(depth.get(to, 0), depth[name] + 1)


def _bend(x1: float, y1: float, x2: float, y2: float, *, tip: bool, start: float | None = None) -> str:
    """A way down from one row to the next; `start` is where a lane begins above it."""
    begin = f"M{x1:.0f} {y1:.0f}" if start is None else f"M{x1:.0f} {start:.0f}V{y1:.0f}"
    end = y2 - 2 if tip else y2
    half = (y1 + end) / 2
    marker = ' marker-end="url(#tip)"' if tip else ""
    return (
        f'<path d="{begin}C{x1:.0f} {half:.0f} {x2:.0f} {half:.0f} {x2:.0f} {end:.0f}" class="way"{marker}/>'
    )


def _way_back(x1: float, y1: float, x2: float, y2: float, side: float) -> str:
    """A way up to an earlier row, round the right side."""
    return (
        f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + 44:.0f} {side:.0f} {y1 + 44:.0f} {side:.0f} {(y1 + y2) / 2:.0f}'
        f'S{x2:.0f} {y2 - 48:.0f} {x2:.0f} {y2 - 2:.0f}" class="way back" marker-end="url(#tip)"/>'
    )


def _label(text: str, x: float, y: float) -> str:
    width = sum(11 if unicodedata.east_asian_width(character) in "WF" else 6.5 for character in text) + 8
    return (
        f'<g class="label"><rect x="{x - width / 2:.0f}" y="{y - 9:.0f}" width="{width:.0f}" height="16" rx="3"/>'
        f'<text x="{x:.0f}" y="{y + 3:.0f}">{html.escape(text)}</text></g>'
    )


# --- a walk in the terminal ---------------------------------------------------------------------------------


def walk(flow: Flow, texts: Mapping[str, str], facts: ivr.Facts) -> None:
    """Play a caller's part: prompts are shown, keys are asked for; the end of the input hangs up."""
    known = {True: "工作日", False: "非工作日", None: "工作日历未知"}[facts.working_day]
    typer.secho(f"{flow.line} {flow.name['zh']} · {facts.local:%Y-%m-%d %H:%M} {known}", bold=True)
    cursor, step, noted = ivr.begin(flow, facts)
    answered = False
    while True:
        _show_noted(noted)
        _show(step, texts)
        if isinstance(step, ivr.HangUpStep):
            return
        event = _ask(step)
        if event is None:
            if flow.after_call is None or answered:
                typer.echo("  座席接听，通话结束。An agent answers; the call ends.")
                return
            answered = True
            typer.echo("  座席接听；通话后：An agent answers; after the call:")
            cursor, step, noted = ivr.begin(flow, facts, at=flow.after_call)
            continue
        cursor, onward, noted = ivr.advance(flow, cursor, event, facts)
        if onward is None:
            typer.echo("  （此时无作用 nothing happens）")
        step = onward or step


def _ask(step: ivr.Step) -> ivr.Input | None:
    """What happens to the caller now; None: somebody answers."""
    match step:
        case ivr.PlayStep():
            key = _key("回车=播完，或按键 Enter = listened, or a key")
            return ivr.DigitPressed(key[0]) if key else ivr.PromptsEnded()
        case ivr.CollectStep():
            key = _key(f"按键 [{step.digits}]，回车=超时 a key, Enter = none")
            return ivr.DigitPressed(key[0]) if key else ivr.TimedOut()
        case ivr.QueueStep():
            key = _key("回车=座席接听，m=等待超时，f=队满，c=无人 Enter = answered, m, f, c")
            reasons = {"m": ivr.GaveUp.MAX_WAIT, "f": ivr.GaveUp.FULL, "c": ivr.GaveUp.CLOSED}
            return ivr.QueueGaveUp(reasons[key]) if key in reasons else None
        case ivr.TransferStep():
            key = _key("回车=接通，x=失败 Enter = answered, x = failed")
            return ivr.TransferFailed() if key == "x" else None
        case ivr.MessageStep():
            spoken = _key(f"留言秒数 seconds of the message (0–{step.max_seconds})")
            return ivr.MessageEnded(float(spoken) if spoken.isdecimal() else 0)
        case ivr.HangUpStep():
            raise ValueError("Nothing happens to a caller after hanging up.")
        case _:
            assert_never(step)


def _key(question: str) -> str:
    typer.echo(f"  {question}: ", nl=False)
    line = sys.stdin.readline()
    if not line:
        typer.echo("\n来电人挂机。The caller hangs up.")
        raise typer.Exit
    return line.strip()


def _show(step: ivr.Step, texts: Mapping[str, str]) -> None:
    match step:
        case ivr.PlayStep(prompts) | ivr.MessageStep(prompts):
            _show_prompts(prompts, texts)
        case ivr.CollectStep():
            _show_prompts(step.prompts, texts)
        case ivr.QueueStep():
            typer.secho(f"▶ 排队 {step.queue}（领先 {step.head_start_seconds:g} 秒）", fg="green")
            if step.announce_every_seconds is not None:
                said = queue_announcement(
                    3 if step.announce_position else None, 110 if step.announce_wait else None
                )
                typer.echo(
                    f"  每 {step.announce_every_seconds:g} 秒：{''.join(texts.get(name, name) for name in said)}"
                )
        case ivr.TransferStep():
            typer.secho(f"▶ 转接 {step.to_kind} {step.to}", fg="green")
        case ivr.HangUpStep():
            typer.secho(f"■ 挂机 {step.cause}", fg="red")
        case _:
            assert_never(step)


def _show_prompts(prompts: tuple[str, ...], texts: Mapping[str, str]) -> None:
    for prompt in prompts:
        typer.secho(f"🔊 {texts.get(prompt, prompt)}", fg="cyan", nl=False)
        typer.secho(f"  [{prompt}]", dim=True)


def _show_noted(noted: tuple[ivr.Noted, ...]) -> None:
    for one in noted:
        match one:
            case ivr.NodeEntered(node):
                typer.secho(f"· {node}", dim=True)
            case ivr.ChoiceMade(digit=digit):
                typer.echo(f"  选择 {digit}")
            case ivr.ChoiceMissed(by=by):
                typer.echo("  未按键" if by is ivr.MissedBy.TIMEOUT else "  按错键")
            case ivr.Rating(score=score):
                typer.echo(f"  评价 {score}")
            case ivr.MessageLeft(seconds=seconds):
                typer.echo(f"  留言 {seconds:g} 秒已保存")
            case _:
                assert_never(one)
