"""`callcenter probe`: one call to a number, to see that its greeting is heard; for monitoring."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
import yaml

from callcenter.phone import Call, Pcm, Phone, SipRefused
from callcenter.phone.g711 import SAMPLE_RATE
from callcenter.phone.measure import correlation, read_wav, tones

app = typer.Typer(
    add_completion=False, help="拨测：打一通电话，核对问候语 / one call, to see that the greeting is heard"
)

ALIKE = 0.8
"""Correlation from which a sound counts as the greeting; a telephone line gives 0.95 and more, other speech 0.2."""
_ENOUGH_SECONDS = 3.0  # of a greeting, to know it by
_SOUND_LEVEL = 200.0  # RMS of a packet that is not silence
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class RunningSite:
    """Where the settings say that the system of this place runs, and what it has."""

    url: str
    sip: str
    data_dir: Path
    flows: Path
    prompts: Path
    database_url: str
    demo: bool


class BadAddress(Exception):  # noqa: N818 - a sentence for who typed it
    """It is not written HOST:PORT."""


class ProbeFailed(Exception):  # noqa: N818 - a sentence for the one on duty
    """The number does not do what it should; the text says what was missing."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What one call found; seconds from the INVITE."""

    answered: float
    greeted: float
    likeness: float


@app.command()
def probe(
    context: typer.Context,
    number: Annotated[str, typer.Option(help="拨哪个号码 / the number to call")] = "12345",
    sip: Annotated[str, typer.Option(help="SIP 地址 / HOST:PORT (settings)", metavar="HOST:PORT")] = "",
    seconds: Annotated[float, typer.Option(min=1, max=120, help="总时限 / to give up after")] = 20,
    greeting: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="问候语录音，默认按流程查找 / its greeting (from the flow)"
        ),
    ] = None,
    caller: Annotated[str, typer.Option(help="主叫号码 / number to call from")] = "12300",
) -> None:
    """打一通电话，听到该线路的问候语即正常 / place one call; well when the greeting of that line is heard

    一行结果；退出码 0 正常，1 有问题，2 用法有误。One line; exit status 0 well, 1 a problem, 2 wrong usage.
    """
    site = site_of(context)
    try:
        server = address_of(sip or site.sip)
        reference = _sound(greeting or greeting_of(number, flows=site.flows, prompts=site.prompts))
    except (BadAddress, ProbeFailed) as error:
        typer.echo(f"callcenter: {error}", err=True)
        sys.exit(2)
    try:
        found = asyncio.run(call_once(server, number, reference, seconds=seconds, caller=caller))
    except (ProbeFailed, OSError) as error:
        typer.echo(f"{number} 异常 FAILED: {error}")
        sys.exit(1)
    typer.echo(
        f"{number} 正常 OK: 应答 answered {found.answered * 1000:.0f} ms, 问候 greeting {found.greeted * 1000:.0f} ms, "
        f"相似度 likeness {found.likeness:.2f}"
    )


async def call_once(
    server: tuple[str, int], number: str, greeting: Pcm, *, seconds: float, caller: str
) -> Probed:
    """Call, listen until the greeting is known or the time is over, hang up; raises ProbeFailed."""
    local = "127.0.0.1" if server[0] in ("127.0.0.1", "localhost") else "0.0.0.0"  # noqa: S104 - it finds the address the server sees
    deadline = monotonic() + seconds
    async with Phone(user=caller, server=server, bind=local) as phone:
        call = await phone.dial(number)
        began = call.dialled.at or monotonic()
        try:
            await call.wait_answered(seconds)
        except TimeoutError:
            raise ProbeFailed(f"{seconds:g} 秒内无人应答 / not answered within {seconds:g} s") from None
        except SipRefused as refused:
            raise ProbeFailed(f"被拒绝 / refused: {refused.status} {refused.reason}") from refused
        answered = (call.answered.at or began) - began
        try:
            greeted, likeness = await _listen(call, greeting, deadline)
        finally:
            await call.hang_up()
    return Probed(answered=answered, greeted=greeted - began, likeness=likeness)


async def _listen(call: Call, greeting: Pcm, deadline: float) -> tuple[float, float]:
    """When the first sound came and how much it is like the greeting."""
    enough = min(_ENOUGH_SECONDS, len(greeting) / SAMPLE_RATE)
    first: float | None = None
    likeness = 0.0
    while monotonic() < deadline and not call.ended.is_set():
        await asyncio.sleep(_LOOK_SECONDS)
        if first is None:
            first = next((heard.at for heard in tones(call, {}) if heard.level > _SOUND_LEVEL), None)
        elif monotonic() - first >= enough:
            likeness, _ = correlation(greeting, call.received(since=first))
            if likeness >= ALIKE:
                return first, likeness
    if first is None:
        raise ProbeFailed("已应答，但没有声音 / answered, but nothing was heard")
    raise ProbeFailed(
        f"听到的不是问候语（相似度 {likeness:.2f}）/ what was heard is not the greeting (likeness {likeness:.2f})"
    )


def greeting_of(number: str, *, flows: Path, prompts: Path) -> Path:
    """The first prompt of a number's flow; raises ProbeFailed when it cannot be told from the file."""
    for path in sorted(flows.glob("*.yaml")):
        try:
            flow: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            if number not in map(str, flow["numbers"]):
                continue
            node = flow["nodes"][flow["start"]]
            kind = node.get("play") or node["menu"]
            return prompts / f"{kind['prompts'][0]}.wav"
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError):
            continue
    raise ProbeFailed(
        f"{flows} 里找不到 {number} 的问候语，请用 --greeting 指明 / no greeting of {number} found: name it with --greeting"
    )


def _sound(path: Path) -> Pcm:
    try:
        pcm, rate = read_wav(path)
    except (OSError, RuntimeError) as error:  # soundfile's own is a RuntimeError
        raise ProbeFailed(f"{path}: 不能读取 / cannot be read: {error}") from error
    if rate != SAMPLE_RATE or pcm.ndim != 1:
        raise ProbeFailed(f"{path}: 须为 8 kHz 单声道 / must be 8 kHz, one channel")
    return pcm


def site_of(context: typer.Context) -> RunningSite:
    """What `callcenter` found in the settings."""
    site = context.find_object(RunningSite)
    if site is None:
        raise RuntimeError("This command must be called as a part of `callcenter`.")
    return site


def address_of(value: str) -> tuple[str, int]:
    """HOST:PORT as typed; raises BadAddress."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise BadAddress(f"{value}: 应写成 地址:端口 / is written HOST:PORT")
    return host.strip("[]"), int(port)
