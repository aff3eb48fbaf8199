"""What is shown of a play: a living table on a terminal, plain lines elsewhere, and the figures at its end."""

import asyncio
from collections.abc import Sequence
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from callcenter.demo.play import Outcome, Play, Stage, Tally, Track

_SHOWN = 20
_LINE_SECONDS = 5.0
_REDRAWS = 4  # a second
_TRUSTED_DELAY_SECONDS = 0.1
_STAGES = {
    Stage.DIALLING: "拨号 dialling",
    Stage.GREETING: "问候 greeting",
    Stage.WAITING: "排队 waiting",
    Stage.RINGING: "振铃 ringing",
    Stage.TALKING: "通话 talking",
    Stage.AFTER: "评价 rating",
}
_OUTCOMES = {
    Outcome.COMPLETED: "完成 completed",
    Outcome.ABANDONED: "放弃 abandoned",
    Outcome.STOPPED: "中止 stopped",
    Outcome.FAILED: "失败 failed",
}


async def show(play: Play, console: Console) -> None:
    """Show the play until cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            console.print(_line(play), soft_wrap=True, highlight=False)
    with Live(_screen(play), console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(1 / _REDRAWS)
            live.update(_screen(play), refresh=True)


def _line(play: Play) -> str:
    if play.began is None:
        return "座席上班 people come to work"
    stages = {stage: sum(track.stage is stage for track in play.tracks.values()) for stage in Stage}
    living = "  ".join(f"{_STAGES[stage]} {count}" for stage, count in stages.items() if count)
    return (
        f"{monotonic() - play.began:6.0f} s  来电 placed {play.tally.placed}  {living}  {_ends(play.tally)}"
    )


def _ends(tally: Tally) -> str:
    return "  ".join(
        f"{words} {tally.outcomes[end]}" for end, words in _OUTCOMES.items() if tally.outcomes[end]
    )


def _screen(play: Play) -> Group:
    now = monotonic()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("来电 caller", "拨打 line", "阶段 stage", "秒 s", "座席 agent"):
        table.add_column(heading)
    tracks = [*play.tracks.values()]
    for track in tracks[:_SHOWN]:
        table.add_row(
            track.plan.number,
            track.plan.line,
            Text(_STAGES[track.stage], style="green" if track.stage is Stage.TALKING else ""),
            f"{now - track.placed_at:.0f}",
            _who(track),
        )
    if len(tracks) > _SHOWN:
        table.add_row(f"… {len(tracks) - _SHOWN}")
    return Group(Text(_line(play), style="bold"), table)


def _who(track: Track) -> str:
    third = " + 专家 specialist" if track.specialist and not track.specialist.ended.is_set() else ""
    return track.agent + third if track.stage is Stage.TALKING else ""


def summary(tally: Tally) -> str:
    """The figures of a finished play."""
    rate = tally.placed / tally.placing_seconds if tally.placing_seconds else 0.0
    lines = [
        f"来电 placed {tally.placed} ({rate:.2f}/s)  听到问候 greeted {tally.greeted}  接通 answered {tally.answered}",
        _ends(tally),
    ]
    if tally.turns:
        lines.append(
            "其间 on the way: " + ", ".join(f"{what} {n}" for what, n in sorted(tally.turns.items()))
        )
    lines += [
        "毫秒 ms                                        n      p50      p95      p99      max",
        _row("呼叫到问候 INVITE to greeting", tally.to_greeting),
        _row("呼叫到座席振铃 INVITE to agent's ring", tally.to_ring),
        _row("应答到互相听见 answer to both hear", tally.to_hearing),
        f"最长的语音间断 largest RTP gap {tally.largest_gap * 1000:.0f} ms",
        f"本程序自己最多迟 own delays: 语音 audio {tally.largest_delay * 1000:.0f} ms, 拨号 calls {tally.latest_arrival * 1000:.0f} ms",
    ]
    if max(tally.largest_delay, tally.latest_arrival) > _TRUSTED_DELAY_SECONDS:
        lines.append(
            "注意：本机太忙，以上时间含本程序自己的延误 / this machine was too busy: the times hold this program's own delays"
        )
    lines += [f"失败 FAILED {count}: {reason}" for reason, count in tally.failures.most_common()]
    lines += [f"异常 TROUBLE {count}: {what}" for what, count in tally.troubles.most_common()]
    return "\n".join(lines)


def _row(name: str, seconds: Sequence[float]) -> str:
    width = 42 - sum(ord(letter) > 0x2E7F for letter in name)  # a Chinese character takes two places
    found = "".join(f"{percentile(seconds, share) * 1000:9.0f}" for share in (0.5, 0.95, 0.99, 1.0))
    return f"{name:{width}}{len(seconds):6}{found if seconds else ''}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below this share of all; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * len(ordered) * 1e6) // 1_000_000) - 1)]
