"""`callcenter demo`: callers and agents who play at a running system."""

import asyncio
import random
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import numpy as np
import typer
import yaml
from rich.console import Console
from typer.core import TyperGroup

from callcenter.demo import table
from callcenter.demo.play import CannotPlay, House, Play, Tally
from callcenter.demo.scenario import (
    BadScenario,
    Scenario,
    TraceColumns,
    arrival_times,
    load,
    plans,
    trace_times,
)
from callcenter.phone import Pcm
from callcenter.phone.measure import read_wav
from callcenter.probe import BadAddress, address_of, site_of

if TYPE_CHECKING:
    from typer._click import Context


class _PlayUnlessTold(TyperGroup):
    """`callcenter demo rush` is `callcenter demo play rush`."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["play", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_PlayUnlessTold,
    add_completion=False,
    help="示范与压力：来电人、话务员和专家对着运行中的系统演练 / callers and agents who play at a running system",
)
_SPOKEN = ("after_hours", "queue_closed", "transition_96500", "leave_message")
_LOAD_PHONES = 20_000


@app.command()
def play(
    context: typer.Context,
    scenario: Annotated[
        str, typer.Argument(help="场景名或文件 / quiet, rush, load, or a file", metavar="[SCENARIO]")
    ] = "quiet",
    url: Annotated[str, typer.Option(help="系统地址 / where the system is (settings)")] = "",
    sip: Annotated[str, typer.Option(help="SIP 地址 / HOST:PORT (settings)", metavar="HOST:PORT")] = "",
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="来电持续秒数 / how long callers call")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="每秒来电数 / calls a second")] = None,
    seed: Annotated[
        int | None, typer.Option(help="随机种子，相同则重演 / the same seed repeats a run")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="真实来电记录 CSV / a CSV of real arrivals"),
    ] = None,
    trace_time: Annotated[
        str, typer.Option(help="到达时刻一列 / its column with the time of day")
    ] = "vru_entry",
    trace_day_column: Annotated[str, typer.Option(help="日期一列 / its column with the day")] = "date_1999",
    trace_day: Annotated[str, typer.Option(help="只用这一天 / this day alone")] = "",
    trace_from: Annotated[float, typer.Option(min=0, help="从几点开始 / hour of the day to begin at")] = 0,
    speed: Annotated[float, typer.Option(min=0.01, help="记录加速倍数 / play a trace so much faster")] = 1,
) -> None:
    """演练一个场景并显示实时通话表，Ctrl-C 停止 / play a scenario and show a live table of calls; Ctrl-C stops it

    有不该失败的来电时退出码为 1。Exit status 1 when a call failed that should not have.
    """
    site = site_of(context)
    try:
        chosen = load(scenario)
        given = {"seconds": seconds, "rate": rate, "seed": seed}
        chosen = chosen.model_copy(update={name: value for name, value in given.items() if value is not None})
        lot = chosen.seed if chosen.seed is not None else random.randrange(1_000_000)  # noqa: S311 - a play
        times: Iterable[float] = arrival_times(chosen, seed=lot)
        if trace is not None:
            with trace.open(encoding="utf-8", newline="") as lines:
                columns = TraceColumns(time=trace_time, day=trace_day_column, only_day=trace_day)
                times = trace_times(lines, columns, start=trace_from * 3600, speed=speed)
        house = House(url=url or site.url, sip=address_of(sip or site.sip))
        tally = asyncio.run(_play(chosen, times, house, seed=lot, speech=_speech(chosen, site.prompts)))
    except (BadAddress, BadScenario, UnicodeDecodeError) as error:
        _fail(str(error), status=2)
    except CannotPlay as error:
        _fail(str(error))
    sys.exit(0 if tally.well else 1)


@app.command()
def prepare(
    context: typer.Context,
    agents: Annotated[int, typer.Option(min=1, max=999, help="人数 / how many")] = 100,
) -> None:
    """添加压力用话务员 load001…，话机 20001…，仅限演示环境 / add agents load001… with phones, in the demo profile only"""
    site = site_of(context)
    if not site.demo:
        _fail(
            "正式环境不添加密码公开的用户 / only in the demo profile: everybody knows these passwords",
            status=2,
        )
    site.data_dir.mkdir(parents=True, exist_ok=True)
    asyncio.run(_add_agents(site.database_url, agents))
    typer.echo(
        f"load001–load{agents:03} 已在库中，密码 demo；重新启动系统后生效 / are in the database, password demo: restart the system"
    )


async def _add_agents(database_url: str, count: int) -> None:
    from tempfile import TemporaryDirectory

    from callcenter.database import Database, migrate
    from callcenter.directory.store import Directory

    content = {
        "password": "demo",
        "phone_secret": "demo",
        "skills": [{"skill": "hotline", "zh": "热线综合", "en": "Hotline"}],
        "users": [
            {
                "user": f"load{number:03}",
                "name": f"压力座席 {number:03}",
                "roles": ["agent"],
                "phone": str(_LOAD_PHONES + number),
                "skills": {"hotline": 3},
            }
            for number in range(1, count + 1)
        ],
    }
    await migrate(database_url, progress=typer.echo)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "load.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        async with Database.connect(database_url) as database:
            await Directory(database).seed(path)


async def _play(
    scenario: Scenario, times: Iterable[float], house: House, *, seed: int, speech: Pcm | None
) -> Tally:
    console = Console(highlight=False)
    console.print(f"{scenario.title or '场景 scenario'}  {house.url}  --seed {seed}", soft_wrap=True)
    run = Play(scenario, plans(scenario, times, seed=seed), house, speech=speech)
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        run.hurry.set()
        loop.remove_signal_handler(number)  # the second one ends the program at once

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    showing = asyncio.create_task(table.show(run, console), name="table")
    try:
        await run.run()
    finally:
        showing.cancel()
        await asyncio.wait([showing])
    console.print(table.summary(run.tally), soft_wrap=True)
    return run.tally


def _speech(scenario: Scenario, prompts: Path) -> Pcm | None:
    """Mandarin from the product's own prompts, or None where there is none."""
    if scenario.sound != "speech":
        return None
    found = [read_wav(path)[0] for name in _SPOKEN if (path := prompts / f"{name}.wav").is_file()]
    return np.concatenate(found) if found else None


def _fail(line: str, *, status: int = 1) -> NoReturn:
    typer.echo(f"callcenter: {line}", err=True)
    sys.exit(status)
