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
import yaml

from callcenter.domain import ivr
from callcenter.domain.ivr import Flow, NodeId
from callcenter.domain.spoken import ATOMS, queue_announcement
from callcenter.flows import SHANGHAI, FlowSet, FlowsRefused, facts_at, flow_schema

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
    """The text of every prompt: prompts/prompts.yaml of the flows' directory, and the atoms.

    ValueError when the file is there and cannot be read as names with texts.
    """
    file = directory / "prompts" / "prompts.yaml"
    if not file.is_file():
        raise ValueError(f"{file} is missing: it names every prompt with its text.")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    entries = data.get("prompts", data) if isinstance(data, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{file} must name prompts with their texts.")  # noqa: TRY004 - the content is wrong, not a caller
    texts = {
        str(name): str(entry.get("text", entry.get("zh", name)) if isinstance(entry, dict) else entry)
        for name, entry in entries.items()
    }
    return {**ATOMS, **texts}


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
    except ValueError as error:
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
_GAP = (36, 64)
_MARGIN = 28


def svg(flow: Flow, texts: Mapping[str, str]) -> str:
    """The flow as a drawing of its own: rows from top to bottom, the ways back at the sides."""
    rows = _rows(flow)
    width, height = _BOX
    columns = max(len(row) for row in rows)
    whole = columns * (width + _GAP[0]) - _GAP[0]
    at: dict[NodeId, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        left = (whole - (len(row) * (width + _GAP[0]) - _GAP[0])) / 2
        for index, name in enumerate(row):
            at[name] = (
                _MARGIN + left + index * (width + _GAP[0]),
                70 + _MARGIN + depth * (height + _GAP[1]),
            )
    total = (whole + 2 * _MARGIN + 80, 70 + 2 * _MARGIN + len(rows) * (height + _GAP[1]) - _GAP[1])
    ways: list[str] = []
    labels: list[str] = []
    for name, node in flow.nodes.items():
        exits = _ways(node)
        for index, (to, label) in enumerate(exits):
            share = (index + 1) / (len(exits) + 1)
            path, middle = _curve(at[name], at[to], share, total[0])
            ways.append(f'<path d="{path}" class="way" marker-end="url(#tip)"/>')
            if label:
                labels.append(_label(label, *middle))
    entries = [(flow.start, f"来电 {' '.join(flow.numbers)}")]
    entries += [(flow.after_call, "通话结束")] if flow.after_call else []
    for name, label in entries:
        x, y = at[name][0] + width / 2, at[name][1]
        ways.append(f'<path d="M{x} {y - 26}V{y - 2}" class="way entry" marker-end="url(#tip)"/>')
        labels.append(_label(label, x, y - 36))
    boxes = []
    for name, (x, y) in at.items():
        node = flow.nodes[name]
        radius = 28 if isinstance(node, ivr.HangUp) else 4 if isinstance(node, ivr.Menu | ivr.When) else 10
        boxes.append(
            f'<g class="{_look(node)}"><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>'
            f'<text x="{x + width / 2}" y="{y + 23}" class="name">{html.escape(name)}</text>'
            f'<text x="{x + width / 2}" y="{y + 43}">{html.escape(describe(node, texts))}</text></g>'
        )
    title = html.escape(f"{flow.line} {flow.name['zh']}")
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{total[0]}" height="{total[1]}"'
                f' viewBox="0 0 {total[0]} {total[1]}" role="img" aria-label="{title}">'
            ),
            f"<style>{_STYLE}</style>",
            (
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
                ' orient="auto"><path d="M0 0L8 4L0 8z" fill="#52606d"/></marker></defs>'
            ),
            '<rect width="100%" height="100%" fill="#fff"/>',
            f'<text x="{_MARGIN}" y="30" class="title">{title}</text>',
            *ways,
            *boxes,
            *labels,
            "</svg>",
        ]
    )


_STYLE = (
    "text{font:12px system-ui,'Noto Sans SC','PingFang SC','Microsoft YaHei',sans-serif;fill:#1f2933;"
    "text-anchor:middle}.name{font-weight:600;font-size:14px}.title{font-size:18px;font-weight:600;"
    "text-anchor:start}rect{stroke-width:1.4}.play rect{fill:#eef4fb;stroke:#5b7fa6}"
    ".ask rect{fill:#fff6dd;stroke:#b98900}.person rect{fill:#dcf3e6;stroke:#1b7f4b}"
    ".end rect{fill:#f1f1f2;stroke:#7b8794}.way{fill:none;stroke:#52606d;stroke-width:1.3}"
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


def _rows(flow: Flow) -> list[list[NodeId]]:
    """Each node below all that lead to it, ways back left aside; the part after the call stands beside."""
    depth: dict[NodeId, int] = {}
    for entry in (flow.start, flow.after_call):
        if entry is not None:
            _sink(flow, entry, depth)
    rows: list[list[NodeId]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in flow.nodes:
        rows[depth[name]].append(name)
    place = {name: index / len(row) for row in rows for index, name in enumerate(row)}
    for row in rows[1:]:
        above = {
            name: [
                place[other] for other, node in flow.nodes.items() if any(to == name for to, _ in _ways(node))
            ]
            for name in row
        }
        row.sort(key=lambda name: sum(above[name]) / len(above[name]) if above[name] else place[name])
        place.update({name: index / len(row) for index, name in enumerate(row)})
    return [row for row in rows if row]


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


def _curve(
    start: tuple[float, float], end: tuple[float, float], share: float, right: float
) -> tuple[str, tuple[float, float]]:
    """A way from the lower edge of one box to the upper edge of another, and where its label stands."""
    width, height = _BOX
    x1, y1 = start[0] + width * share, start[1] + height
    x2, y2 = end[0] + width / 2, end[1] - 2
    if y2 > y1:
        bend = max(24, (y2 - y1) / 2)
        at_label = 0.3
        return (
            f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}",
            (x1 + (x2 - x1) * at_label * at_label * (3 - 2 * at_label), y1 + (y2 - y1) * at_label),
        )
    side = right - 30
    return (
        (
            f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + 40:.0f} {side:.0f} {y1 + 40:.0f} {side:.0f} {(y1 + y2) / 2:.0f}"
            f"S{x2:.0f} {y2 - 50:.0f} {x2:.0f} {y2:.0f}"
        ),
        (side - 10, (y1 + y2) / 2),
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
                    f"  每 {step.announce_every_seconds:g} 秒：{''.join(texts[name] for name in said)}"
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
