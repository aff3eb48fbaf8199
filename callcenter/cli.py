"""The `callcenter` command.

Parts are imported inside the commands that use them, so that `callcenter settings` starts at once and a fault in
one part leaves the other commands usable. Exit status: 0 well, 1 a problem, 2 wrong settings or wrong usage.
"""

import asyncio
import dataclasses
import importlib
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from callcenter.settings import (
    DEFAULT_FILE,
    Explained,
    LogFormat,
    Profile,
    Settings,
    SettingsError,
    explain_defaults,
    explain_settings,
    load_settings,
    section_titles,
)

if TYPE_CHECKING:
    from typer._click import Command, Context

    from callcenter.directory.store import DirectoryContent
    from callcenter.flows_cli import Site

_PARTS = {"flows": "callcenter.flows_cli", "prompts": "callcenter.speech.prompts_cli"}
"""Command -> the module whose `app` it is."""


class _Commands(TyperGroup):
    """The commands, those of a part imported only when they are asked for."""

    def list_commands(self, ctx: "Context") -> list[str]:
        return sorted({*super().list_commands(ctx), *_PARTS})

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        if cmd_name in _PARTS and cmd_name not in self.commands:
            part = get_group(importlib.import_module(_PARTS[cmd_name]).app)
            part.name = cmd_name
            self.add_command(part)
        return super().get_command(ctx, cmd_name)


@dataclass(frozen=True, slots=True)
class _Given:
    """What stands before the command."""

    config: Path | None


commands = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, help="12345 热线话务平台 / hotline engine"
)
users = typer.Typer(no_args_is_help=True, help="用户与密码 / users and passwords")
commands.add_typer(users, name="users")


def main() -> None:
    """Run the command line; an error is one line on the standard error stream."""
    if "--debug" not in sys.argv[1:]:
        sys.excepthook = _one_line
    try:
        get_command(commands)(prog_name="callcenter")
    except SettingsError as error:
        _fail(*error.problems, status=2)
    except KeyboardInterrupt:
        sys.exit(130)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the interpreter shows for an exception nobody caught; it then exits with status 1."""
    for leaf in _leaves(error):
        text = str(leaf).strip() or type(leaf).__name__
        if _is_expected(leaf):
            _complain(text)
        else:
            _complain(
                f"程序故障 / a fault of the program: {type(leaf).__name__}: {text.splitlines()[0]} "
                f"(callcenter --debug … shows where)"
            )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _is_expected(error: BaseException) -> bool:
    """Whether the message was written for people: our own sentences, and the system's about files and ports."""
    return isinstance(error, OSError) or type(error).__module__.startswith("callcenter.")


def _complain(*lines: str) -> None:
    for line in lines:
        print(f"callcenter: {line}", file=sys.stderr)  # noqa: T201 - the command's own voice


def _fail(*lines: str, status: int = 1) -> NoReturn:
    _complain(*lines)
    sys.exit(status)


def _say(text: str = "") -> None:
    print(text, flush=True)  # noqa: T201 - the command's own voice


def _progress() -> Callable[[str], None]:
    """Shows each step of a start with the seconds since its beginning."""
    began = time.monotonic()
    return lambda step: _say(f"{time.monotonic() - began:6.1f} s  {step}")


@commands.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help=f"设置文件 / settings file (CALLCENTER_CONFIG, ./{DEFAULT_FILE})", metavar="FILE"),
    ] = None,
    debug: Annotated[  # main() looks for it before the options are read
        bool, typer.Option("--debug", help="出错时显示完整的调用栈 / show tracebacks")
    ] = False,
) -> None:
    context.obj = _Given(config=config)
    if context.invoked_subcommand == "flows" and "--help" not in sys.argv:
        context.obj = _flow_site(load_settings(config))


def _config(context: typer.Context) -> Path | None:
    given = context.find_object(_Given)
    return given.config if given else None


@commands.command()
def version() -> None:
    """版本 / version"""
    _say(f"callcenter {importlib.metadata.version('callcenter')} (Python {platform.python_version()})")


@commands.command("settings")
def show_settings(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="JSON")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="文档用的表（默认值） / the documentation's table (defaults)")
    ] = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="带说明的设置文件样本 / a commented settings file to start from")
    ] = False,
) -> None:
    """列出每项设置：现值、来源、默认值、单位、含义 / every setting, its value and where that comes from"""
    if as_markdown:
        _say(_markdown(explain_defaults()))
    elif as_toml:
        _say(_toml(explain_defaults()))
    else:
        rows = explain_settings(_config(context))
        if as_json:
            _say(json.dumps([dataclasses.asdict(row) for row in rows], ensure_ascii=False, indent=2))
        else:
            _table(rows)


def _by_section(rows: list[Explained]) -> Iterator[tuple[str, str, list[Explained]]]:
    for section, title in section_titles().items():
        yield section, title, [row for row in rows if row.name.rpartition(".")[0] == section]


def _table(rows: list[Explained]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 200
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for heading in (
        "设置 setting / 变量 variable",
        "现值 value",
        "来源 from",
        "默认 default",
        "含义 meaning",
    ):
        table.add_column(heading, overflow="fold")
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        table.add_row(
            Text(f"{row.name}\n{row.variable}"),
            Text(f"{row.value}{unit}"),
            Text(row.source),
            Text(f"{row.default}{unit}"),
            Text(f"{row.zh} / {row.en}\n[{row.allowed}]"),
        )
    console.print(table)


def _markdown(rows: list[Explained]) -> str:
    lines = []
    for _, title, part in _by_section(rows):
        lines += [
            f"**{title}**",
            "",
            "| 设置 setting · 变量 variable | 默认 default | 允许 allowed | 含义 meaning |",
        ]
        lines += ["| --- | --- | --- | --- |"]
        for row in part:
            default = (
                f"`{row.default}`{' ' + row.unit if row.unit else ''}" if row.default else "（空 / empty）"
            )
            allowed = row.allowed.replace("|", "·")
            lines.append(
                f"| `{row.name}` · `{row.variable}` | {default} | {allowed} | {row.zh}。<br>{row.en} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def _toml(rows: list[Explained]) -> str:
    lines = [
        "# 设置文件样本：复制为 callcenter.toml，去掉要改的行首的 # 。每项也可用环境变量设定，环境变量优先。",
        "# Copy to callcenter.toml and uncomment what you change. Each can also be set by its variable, which wins.",
        "# `callcenter settings` 显示现值与来源 / shows every value now and where it comes from.",
    ]
    for section, title, part in _by_section(rows):
        lines += ["", f"# --- {title}", *([f"[{section}]"] if section else [])]
        for row in part:
            unit = f"，单位 / in {row.unit}" if row.unit else ""
            lines += [f"# {row.zh}", f"# {row.en}", f"# {row.allowed}{unit}; {row.variable}"]
            lines.append(f"#{row.name.rpartition('.')[2]} = {_toml_value(row.default)}")
    return "\n".join(lines)


def _toml_value(default: str) -> str:
    return default if default.replace(".", "", 1).isdigit() else json.dumps(default, ensure_ascii=False)


@commands.command()
def setup(
    context: typer.Context,
    asterisk_only: Annotated[
        bool, typer.Option("--asterisk-only", help="只备好 Asterisk / Asterisk and nothing else")
    ] = False,
) -> None:
    """备好 Asterisk、数据库与示范内容 / make Asterisk, the database and the demo's content ready"""
    settings = load_settings(_config(context))
    progress = _progress()
    _get_asterisk(settings, progress)
    if not asterisk_only:
        asyncio.run(_prepare_database(settings, progress))
    progress("设置完毕 / set up")


@commands.command()
def run(context: typer.Context) -> None:
    """备好一切并启动，Ctrl-C 停止 / set everything up and serve until Ctrl-C"""
    settings = load_settings(_config(context))
    from callcenter import app
    from callcenter.logs import set_up_logs

    set_up_logs(level=settings.log.level, json=settings.log.format is LogFormat.JSON)
    progress = _progress()
    _get_asterisk(settings, progress)
    asyncio.run(app.serve(settings, progress=progress))


def _get_asterisk(settings: Settings, progress: Callable[[str], None]) -> None:
    from callcenter.asterisk.install import ensure_asterisk

    found = ensure_asterisk(settings.data_dir, mirror=settings.asterisk.mirror or None, progress=progress)
    progress(f"Asterisk {found.version}")


async def _prepare_database(settings: Settings, progress: Callable[[str], None]) -> None:
    from callcenter.app import DEMO_CONTENT
    from callcenter.database import Database, migrate
    from callcenter.directory.store import Directory

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    progress("数据库 / database")
    await migrate(settings.database_url, progress=progress)
    if settings.profile is Profile.DEMO:
        async with Database.connect(settings.database_url) as database:
            await Directory(database).seed(DEMO_CONTENT)


# --- check and flows ----------------------------------------------------------------------------------------


@commands.command()
def check(context: typer.Context) -> None:
    """检查设置、全部流程与提示音，指出文件与行 / check settings, every flow and prompt; names file and line"""
    settings = load_settings(_config(context))
    _say("设置正确 settings are right")
    from callcenter import flows_cli
    from callcenter.speech.prompts import check as check_prompts
    from callcenter.speech.prompts import load_catalogue

    context.obj = _flow_site(settings)
    flows_cli.check(context)
    prompts = settings.flows.dir / "prompts"
    findings = check_prompts(load_catalogue(prompts / "prompts.yaml"), prompts / "audio")
    if findings:
        _fail(*map(str, findings))
    _say("提示音齐全 prompts are complete")


def _flow_site(settings: Settings) -> "Site":
    """What flows may refer to: the queues and numbers of the site's database, else those of the demo."""
    from callcenter.flows_cli import Site

    content = asyncio.run(_content(settings, kept=_has_schema(settings)))
    return Site(
        settings.flows.dir,
        frozenset(queue.queue_id for queue in content.queues),
        frozenset(number.number for number in content.allowed_numbers),
    )


async def _content(settings: Settings, *, kept: bool) -> "DirectoryContent":
    """The content of the site's database; with nothing set up yet that of the demo, leaving no trace."""
    from callcenter.app import DEMO_CONTENT
    from callcenter.database import Database, migrate
    from callcenter.directory.store import Directory

    if kept:
        async with Database.connect(settings.database_url) as database:
            return await Directory(database).load()
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/check.db"
        await migrate(url, progress=lambda _: None)
        async with Database.connect(url) as database:
            await Directory(database).seed(DEMO_CONTENT)
            return await Directory(database).load()


def _has_schema(settings: Settings) -> bool:
    from callcenter.database import newest_schema_version, schema_version

    scheme, _, path = settings.database_url.partition("sqlite:///")
    if not scheme and not Path(path).exists():
        return False  # looking into a SQLite file would make it
    return asyncio.run(schema_version(settings.database_url)) == newest_schema_version()
