"""`callcenter prompts`: render the prompts from their texts, and check that audio and texts agree."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, assert_never

import typer

from callcenter.speech.prompts import Prompt, PromptName, check, load_catalogue, render
from callcenter.speech.synthesis import EspeakSynthesiser, KokoroSynthesiser, Synthesiser

app = typer.Typer(no_args_is_help=True, help="提示音的合成与核对 / render and check the prompts")


class Engine(StrEnum):
    KOKORO = "kokoro"
    ESPEAK = "espeak"


_CatalogueFile = Annotated[Path, typer.Option("--catalogue", help="提示音文字。Texts of the prompts.")]
_AudioDir = Annotated[Path, typer.Option("--audio", help="录音目录。Directory of the audio.")]
_CATALOGUE = Path("ivr_flows/prompts/prompts.yaml")
_AUDIO = Path("ivr_flows/prompts/audio")


@app.command("render")
def render_command(
    engine: Annotated[Engine, typer.Option(help="合成引擎。Synthesiser.")] = Engine.KOKORO,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="只合成这一条，可重复。Only this prompt; may be given again."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="连同未变的一起重做。Render again even what has not changed.")
    ] = False,
    voice_file: Annotated[
        Path, typer.Option("--voice-file", help="kokoro 音色文件。Voice of kokoro, from npm kokoro-js.")
    ] = Path("voices/zf_xiaobei.bin"),
    catalogue_file: _CatalogueFile = _CATALOGUE,
    audio_dir: _AudioDir = _AUDIO,
) -> None:
    """合成缺少或已过时的提示音。Render the prompts that are missing or stale; a named one is always rendered."""
    catalogue = load_catalogue(catalogue_file)
    names = [PromptName(name) for name in only or ()]
    only_missing = not (everything or names)
    if only_missing and not check(catalogue, audio_dir):
        typer.echo("提示音均为最新，无需合成 every prompt is up to date")
        return
    done = render(
        catalogue,
        _synthesiser(engine, voice_file),
        audio_dir,
        only_missing=only_missing,
        names=names,
        progress=_show,
    )
    typer.echo(f"已合成 {len(done)} 条 prompts rendered")


@app.command("check")
def check_command(catalogue_file: _CatalogueFile = _CATALOGUE, audio_dir: _AudioDir = _AUDIO) -> None:
    """核对每条提示音与文字一致，否则退出码为 1。Check that every prompt's audio fits its text; exit 1 if not."""
    catalogue = load_catalogue(catalogue_file)
    findings = check(catalogue, audio_dir)
    for finding in findings:
        typer.echo(str(finding), err=True)
    if findings:
        raise typer.Exit(1)
    typer.echo(f"{len(catalogue.prompts)} 条提示音与文字一致 prompts fit their texts")


def _synthesiser(engine: Engine, voice_file: Path) -> Synthesiser:
    match engine:
        case Engine.KOKORO:
            return KokoroSynthesiser(voice_file=voice_file)
        case Engine.ESPEAK:
            return EspeakSynthesiser()
        case _:
            assert_never(engine)


def _show(prompt: Prompt, number: int, total: int) -> None:
    typer.echo(f"[{number}/{total}] {prompt.name}  {prompt.text}")
