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
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.main import get_command

from callcenter.domain.agents import UserRole
from callcenter.domain.calls import UserId
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
    settings_file,
)

if TYPE_CHECKING:
    from typer._click import Command, Context

    from callcenter.directory.store import Directory, DirectoryContent
    from callcenter.flows_cli import Site
    from callcenter.keeping.backup import House
    from callcenter.keeping.verify import Check
    from callcenter.probe import RunningSite

Answer = TypeVar("Answer")

_SHORTEST_PASSWORD = 8
_PARTS = {
    "demo": "callcenter.demo.cli",
    "flows": "callcenter.flows_cli",
    "probe": "callcenter.probe",
    "prompts": "callcenter.speech.prompts_cli",
}
"""Command -> the module whose `app` it is."""


class _Commands(TyperGroup):
    """The commands, those of a part imported only when they are asked for."""

    def list_commands(self, ctx: "Context") -> list[str]:
        return sorted({*super().list_commands(ctx), *_PARTS})

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        if cmd_name in _PARTS and cmd_name not in self.commands:
            part = get_command(importlib.import_module(_PARTS[cmd_name]).app)
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
bans = typer.Typer(no_args_is_help=True, help="被封禁的地址 / addresses that are shut out")
commands.add_typer(bans, name="bans")


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
        if isinstance(leaf, OSError) and leaf.strerror:
            _complain(f"{leaf.filename}: {leaf.strerror}" if leaf.filename else leaf.strerror)
        elif type(leaf).__module__.startswith("callcenter."):
            _complain(text)  # our own sentence
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
    if context.invoked_subcommand in ("demo", "probe") and "--help" not in sys.argv:
        context.obj = _running_site(load_settings(config))


def _running_site(settings: Settings) -> "RunningSite":
    from callcenter.probe import RunningSite

    return RunningSite(
        url=f"http://{_reachable(settings.http.bind)}:{settings.http.port}",
        sip=f"{_reachable(settings.sip.bind)}:{settings.sip.port}",
        data_dir=settings.data_dir,
        prompts=settings.flows.dir / "prompts" / "audio",
        flows=settings.flows.dir,
        database_url=settings.database_url,
        demo=settings.profile is Profile.DEMO,
    )


def _reachable(bind: str) -> str:
    """An address under which what listens on `bind` can be called from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, bind)  # noqa: S104 - nothing is bound here


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
    headings = ["设置 setting / 变量 variable", "现值 value", "来源 from", "默认 default", "含义 meaning"]
    cells = []
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        meaning = f"{row.zh} / {row.en}\n[{row.allowed}]"
        name = f"{row.name}\n{row.variable}"
        cells.append([name, row.value + unit, row.source, row.default + unit, meaning])
    _print_table(headings, cells, space_between=1)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, space_between: int = 0) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 200
    table = Table(box=None, pad_edge=False, padding=(0, 2, space_between, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
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
    plain = default in {"true", "false"} or default.replace(".", "", 1).isdigit()
    return default if plain else json.dumps(default, ensure_ascii=False)


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
    if settings.open_demo:
        _fail(
            "演示环境（人人皆知的密码）不得对外开放，见 demo_beyond_this_machine / the demo profile, whose passwords everybody "
            "knows, would be open to other machines; see demo_beyond_this_machine"
        )
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
    """What flows may refer to: the queues and numbers of the site's database; before there is one, the demo's."""
    from callcenter.flows_cli import Site

    if _has_schema(settings):
        content = asyncio.run(_content(settings))
        queues = {str(queue.queue_id) for queue in content.queues}
        numbers = {number.number for number in content.allowed_numbers}
    else:
        from callcenter.app import DEMO_CONTENT
        from callcenter.directory.content import read_content

        demo = read_content(DEMO_CONTENT)
        queues = {queue.queue for queue in demo.queues}
        numbers = {number.number for number in demo.allowed_numbers}
    return Site(settings.flows.dir, frozenset(queues), frozenset(numbers))


async def _content(settings: Settings) -> "DirectoryContent":
    from callcenter.database import Database
    from callcenter.directory.store import Directory

    async with Database.connect(settings.database_url) as database:
        return await Directory(database).load()


def _has_schema(settings: Settings) -> bool:
    from callcenter.database import newest_schema_version, schema_version

    scheme, _, path = settings.database_url.partition("sqlite:///")
    if not scheme and not Path(path).exists():
        return False  # looking into a SQLite file would make it
    return asyncio.run(schema_version(settings.database_url)) == newest_schema_version()


# --- bans -----------------------------------------------------------------------------------------------------


@bans.command("list")
def list_bans(context: typer.Context) -> None:
    """列出被封禁的地址、原因与解除时间 / addresses that are shut out, why and until when"""
    settings = load_settings(_config(context))
    from callcenter.flows import SHANGHAI
    from callcenter.gate import ban_file, read_bans

    now = datetime.now(UTC)
    rows = [
        [
            str(ban.network),
            ban.fault.value,
            *(f"{each.astimezone(SHANGHAI):%Y-%m-%d %H:%M:%S}" for each in (ban.since, ban.until)),
        ]
        for ban in read_bans(ban_file(settings.data_dir))
        if ban.until > now
    ]
    _print_table(["地址 address", "原因 reason", "自 since", "至 until"], rows)


@bans.command("lift")
def lift(context: typer.Context, address: Annotated[str, typer.Argument(help="地址 / address")]) -> None:
    """解除封禁，一秒内生效 / let an address in again, within a second"""
    settings = load_settings(_config(context))
    from callcenter.gate import ban_file, lift_ban

    try:
        lifted = lift_ban(ban_file(settings.data_dir), address)
    except ValueError:
        _fail(f"{address}: 不是 IP 地址 / no IP address", status=2)
    if not lifted:
        _fail(f"{address}: 没有被封禁，见 callcenter bans list / is not shut out, see `callcenter bans list`")

    async def note(directory: "Directory") -> None:
        await directory.audit(None, "ban_lifted", address)

    _with_directory(context, note)
    _say(f"{address}: 已解除 / let in again")


# --- backup -------------------------------------------------------------------------------------------------

_Backup = Annotated[Path, typer.Argument(help="备份目录或 .tar 文件 / directory of backups, or a .tar file")]
_Named = Annotated[
    str | None, typer.Option("--name", help="目录中的哪个备份，默认最新 / which one (the newest)")
]


@commands.command()
def backup(
    context: typer.Context,
    target: _Backup,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="只留最新几个备份 / keep so many of the newest, remove the others"),
    ] = None,
) -> None:
    """备份数据库、录音、流程与设置，运行中也可 / keep database, recordings, flows and settings, also while running"""
    from callcenter.keeping import backup as keeping

    house = _house(context)
    made = keeping.backup(house, target, progress=_progress(), keep=keep)
    size = sum(entry.bytes for entry in made.files) / 1e6
    _say(f"{made.name}: {len(made.files)} 个文件 files, {size:,.1f} MB, 版本 schema {made.schema}")
    if made.problems:
        _fail(*made.problems)


@commands.command()
def restore(
    context: typer.Context,
    source: _Backup,
    name: _Named = None,
    without_flows: Annotated[
        bool, typer.Option("--without-flows", help="流程目录保持现状 / leave the flows as they are")
    ] = False,
) -> None:
    """把备份恢复到空的系统，升级并核对 / bring a backup back into an empty house, migrate and verify it"""
    from callcenter.keeping import backup as keeping

    made, checks = keeping.restore(
        source, _house(context), progress=_progress(), name=name, flows=not without_flows
    )
    _say(f"已恢复 / restored: {made.name}")
    _show_checks(checks)


@commands.command()
def verify(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(help="备份；不给则核对现有系统 / a backup; without it the house itself")
    ] = None,
    name: _Named = None,
) -> None:
    """核对备份或现有系统：记录、工单、录音是否齐全 / is a backup, or the house itself, whole?"""
    from callcenter.keeping import backup as keeping

    if source is not None:
        _, checks = keeping.verify_backup(source, progress=_progress(), name=name)
    else:
        checks = asyncio.run(keeping.look(_house(context), at=datetime.now(UTC), progress=_progress()))
    _show_checks(checks)


def _house(context: typer.Context) -> "House":
    from callcenter.keeping.backup import House

    given = _config(context)
    settings = load_settings(given)
    return House(
        settings.database_url,
        settings.data_dir,
        settings.recordings.dir,
        settings.flows.dir,
        settings_file(given),
        f"{'https' if settings.http.speaks_tls else 'http'}://"
        f"{_reachable(settings.http.bind)}:{settings.http.port}/metrics",
    )


def _show_checks(checks: "Sequence[Check]") -> None:
    """The table; exit status 1 when something is not as promised."""
    rows = [
        [f"{each.zh} / {each.en}", f"{each.looked_at:,}", f"{each.faults:,}", each.note] for each in checks
    ]
    _print_table(["核对 check", "查看 looked at", "不符 faults", ""], rows)
    if told := [line for each in checks for line in each.told]:
        _fail(*told)


# --- users --------------------------------------------------------------------------------------------------

_User = Annotated[str, typer.Argument(help="登录名 / login", metavar="USER")]


@users.command("list")
def list_users(
    context: typer.Context,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="连同话机的 SIP 密码 / with the phones' SIP secrets")
    ] = False,
) -> None:
    """列出能登录的用户、角色、分机与技能 / users who may log in, roles, phones and skills"""

    async def read(directory: "Directory") -> "tuple[DirectoryContent, dict[str, str]]":
        return await directory.load(), await directory.phone_secrets()

    content, secret_of = _with_directory(context, read)
    headings = ["用户 user", "姓名 name", "角色 roles", "分机 phone", "技能 skills"]
    rows = [
        [
            profile.user_id,
            profile.name,
            " ".join(sorted(profile.roles)),
            profile.phone or "",
            " ".join(f"{skill}={level}" for skill, level in sorted(profile.skills.items())),
        ]
        for profile in content.profiles
    ]
    if secrets:
        headings.append("SIP 密码 secret")
        rows = [[*row, secret_of.get(row[3], "")] for row in rows]
    _print_table(headings, rows)


@users.command("add")
def add_user(
    context: typer.Context,
    user: _User,
    name: Annotated[str, typer.Option(help="姓名 / name")],
    role: Annotated[list[UserRole], typer.Option(help="角色，可重复 / role, may be given again")],
    phone: Annotated[str | None, typer.Option(help="分机号 / number of the SIP phone")] = None,
    department: Annotated[str, typer.Option(help="部门 / department")] = "",
    skill: Annotated[
        list[str] | None,
        typer.Option(help="技能=级别 1–5，可重复 / skill=level, may be given again", metavar="SKILL=LEVEL"),
    ] = None,
) -> None:
    """新用户；密码从键盘或标准输入读 / a new user; the password is asked for or read from the standard input"""
    from callcenter.directory.content import UserData

    try:
        data = UserData.model_validate(
            {
                "user": user,
                "name": name,
                "roles": role,
                "phone": phone,
                "department": department,
                "skills": dict(entry.partition("=")[::2] for entry in skill or ()),
            }
        )
    except ValidationError as error:
        _fail(*(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()), status=2)
    password = _new_password()
    _with_directory(context, lambda directory: directory.add_user(data, password=password))
    _say(f"{user}: 已添加，重新启动后生效 / added, from the next start on")


@users.command("password")
def set_password(context: typer.Context, user: _User) -> None:
    """改密码，从键盘或标准输入读 / a new password, asked for or read from the standard input"""
    password = _new_password()
    _with_directory(context, lambda directory: directory.set_password(UserId(user), password))
    _say(f"{user}: 密码已改，原有登录全部失效 / the password is changed, all logins have ended")


@users.command("disable")
def disable_user(
    context: typer.Context,
    user: _User,
    undo: Annotated[bool, typer.Option("--undo", help="恢复 / enable again")] = False,
) -> None:
    """停用：不能登录 / no more logins"""
    _with_directory(context, lambda directory: directory.set_disabled(UserId(user), disabled=not undo))
    _say(f"{user}: {'已恢复 / enabled again' if undo else '已停用 / disabled'}")


@users.command("new-secret")
def renew_phone_secret(
    context: typer.Context, phone: Annotated[str, typer.Argument(help="分机号 / number", metavar="PHONE")]
) -> None:
    """给话机换一个随机的 SIP 密码 / give a phone a new random SIP secret"""
    secret = _with_directory(context, lambda directory: directory.renew_phone_secret(phone))
    _say(f"{phone}: {secret}（重新启动后生效 / from the next start on）")


def _with_directory(context: typer.Context, work: "Callable[[Directory], Awaitable[Answer]]") -> Answer:
    """Do something with the people of the site's database, which must be set up."""
    settings = load_settings(_config(context))
    if not _has_schema(settings):
        _fail("数据库还没有建立，请先 make setup / the database is not set up yet: run `make setup` first")
    from callcenter.database import Database
    from callcenter.directory.store import Directory

    async def connected() -> Answer:
        async with Database.connect(settings.database_url) as database:
            return await work(Directory(database))

    return asyncio.run(connected())


def _new_password() -> str:
    if sys.stdin.isatty():
        password = str(typer.prompt("新密码 new password", hide_input=True, confirmation_prompt=True))
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < _SHORTEST_PASSWORD:
        _fail(f"密码至少 {_SHORTEST_PASSWORD} 位 / a password has at least {_SHORTEST_PASSWORD} characters")
    return password
