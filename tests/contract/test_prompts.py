"""The prompts in the tree are playable, fit their texts, and can be made again."""

import json
import re
import wave
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from callcenter.domain.spoken import ATOMS, queue_announcement
from callcenter.speech.prompts import (
    CatalogueError,
    Fault,
    PromptName,
    audio_file,
    check,
    load_catalogue,
    load_manifest,
    render,
)
from callcenter.speech.prompts_cli import app
from callcenter.speech.synthesis import (
    EspeakSynthesiser,
    KokoroSynthesiser,
    Samples,
    SynthesiserMissingError,
    SynthesisError,
    active_level_dbfs,
    for_telephone,
)

PROMPTS = Path(__file__).parents[2] / "ivr_flows" / "prompts"
CATALOGUE = PROMPTS / "prompts.yaml"
AUDIO = PROMPTS / "audio"
NAMES = sorted(load_catalogue(CATALOGUE).prompts)


def read(file: Path) -> Samples:
    with wave.open(str(file)) as audio:
        assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (8000, 1, 2)
        return np.frombuffer(audio.readframes(audio.getnframes()), dtype="<i2")


def catalogue_of(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "prompts.yaml"
    file.write_text(text, encoding="utf-8")
    return file


class Tone:
    """A synthesiser that needs no program: one second of a tone between silences."""

    name = "tone"
    voice = "440"

    def speak(self, text: str) -> tuple[Samples, int]:
        time = np.arange(16_000) / 16_000
        silence = np.zeros(8_000)
        return np.concatenate([silence, 9_000 * np.sin(2 * np.pi * 440 * time), silence]).astype(
            np.int16
        ), 16_000


# --- what is in the tree ------------------------------------------------------------------------------------


def test_every_prompt_has_audio_rendered_from_its_present_text() -> None:
    assert [str(finding) for finding in check(load_catalogue(CATALOGUE), AUDIO)] == []


@pytest.mark.parametrize("name", NAMES)
def test_audio_suits_a_telephone_line(name: PromptName) -> None:
    samples = read(audio_file(AUDIO, name))
    text = load_catalogue(CATALOGUE).prompts[name].spoken

    assert load_manifest(AUDIO)[name].duration_seconds == pytest.approx(len(samples) / 8000, abs=0.001)
    assert 0.12 * len(text) < len(samples) / 8000 < 0.5 + 0.45 * len(text), (
        "speech has 3 to 8 syllables a second"
    )
    assert np.abs(samples.astype(int)).max() < 32768 * 10 ** (-3 / 20)
    assert -23 < active_level_dbfs(samples) < -18
    for edge in (samples[:20], samples[-20:]):
        assert np.abs(edge.astype(int)).max() < 330, "an edge louder than -40 dBFS clicks"


def test_everything_that_is_said_has_a_prompt_with_the_same_words() -> None:
    prompts = load_catalogue(CATALOGUE).prompts
    words = {name: re.sub("[，。]", "", prompts[PromptName(name)].spoken) for name in ATOMS}
    assert words == dict(ATOMS)


def test_every_place_and_wait_that_can_be_announced_has_audio() -> None:
    places = {name for place in range(1, 1001) for name in queue_announcement(place, None)}
    waits = {name for seconds in range(7201) for name in queue_announcement(None, seconds)}
    assert sorted(name for name in places | waits if not audio_file(AUDIO, PromptName(name)).is_file()) == []


def test_the_audio_stays_small_enough_for_the_tree() -> None:
    assert sum(file.stat().st_size for file in AUDIO.rglob("*.wav")) < 6_000_000


# --- the catalogue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("version: 1\nprompts:\n  Hello: 您好\n", 3, "the name 'Hello'"),
        ("version: 1\nprompts:\n  ../escape: 您好\n", 3, "the name '../escape'"),
        ("version: 1\nprompts:\n  a: 您好\n  a: 再见\n", 4, "written twice"),
        ("version: 1\nprompts:\n  a: 请按1\n", 3, "add `spoken`"),
        ("version: 1\nprompts:\n  a:\n    text: 您好\n    speed: 2\n", 5, "speed is unknown"),
        ("version: 1\nprompts:\n  a: ''\n", 3, "needs a text"),
        ("version: one\nprompts:\n  a: 您好\n", 1, "whole number"),
        ("prompts:\n  a: 您好\n", 1, "lacks version"),
        ("version: 1\nprompts: {}\n", 2, "no prompt"),
        ("version: 1\nprompts: [\n", 3, "not YAML"),
        ("", 1, "must be names with values"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    file = catalogue_of(tmp_path, text)
    with pytest.raises(CatalogueError, match=problem) as caught:
        load_catalogue(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")


def test_a_missing_catalogue_is_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"prompts\.yaml: cannot be read"):
        load_catalogue(tmp_path / "prompts.yaml")


# --- rendering ----------------------------------------------------------------------------------------------


def test_only_what_changed_is_rendered_again_and_what_left_is_reported(tmp_path: Path) -> None:
    out = tmp_path / "audio"
    first = load_catalogue(
        catalogue_of(tmp_path, "version: 1\nprompts:\n  a: 您好\n  b: 再见\n  words/c: 第\n")
    )
    assert {finding.fault for finding in check(first, out)} == {Fault.MISSING}
    assert render(first, Tone(), out, only_missing=True) == ["a", "b", "words/c"]
    assert check(first, out) == []
    assert render(first, Tone(), out, only_missing=True) == []

    second = load_catalogue(catalogue_of(tmp_path, "version: 1\nprompts:\n  a: 你好\n  b: 再见\n"))
    audio_file(out, PromptName("b")).write_bytes(b"somebody else's")
    assert [(finding.name, finding.fault) for finding in check(second, out)] == [
        ("a", Fault.STALE),
        ("b", Fault.CHANGED),
        ("words/c", Fault.UNLISTED),
    ]
    assert render(second, Tone(), out, only_missing=True) == ["a", "b"]
    audio_file(out, PromptName("words/c")).unlink()
    assert check(second, out) == []


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="there is no prompt nobody"):
        render(load_catalogue(CATALOGUE), Tone(), tmp_path, only_missing=True, names=[PromptName("nobody")])


def test_finishing_trims_levels_and_limits() -> None:
    samples = for_telephone(*Tone().speak(""))
    assert 1.0 <= len(samples) / 8000 < 1.1
    assert active_level_dbfs(samples) == pytest.approx(-20, abs=0.5)
    assert samples[0] == 0


def test_a_broken_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"a": {"sha256": 1}}), encoding="utf-8")
    with pytest.raises(CatalogueError, match="not a manifest"):
        load_manifest(tmp_path)


# --- synthesisers -------------------------------------------------------------------------------------------


def test_espeak_speaks_mandarin() -> None:
    samples, rate = EspeakSynthesiser().speak("您好，正在为您转接人工服务。")
    finished = for_telephone(samples, rate)
    assert 1.5 < len(finished) / 8000 < 6
    assert -23 < active_level_dbfs(finished) < -18


def test_espeak_says_a_text_that_looks_like_an_option() -> None:
    samples, _ = EspeakSynthesiser().speak("--version 您好")
    assert samples.any()


def test_espeak_failures_say_what_to_do() -> None:
    with pytest.raises(SynthesiserMissingError, match="apt-get install espeak-ng"):
        EspeakSynthesiser(program="espeak-ng-of-nobody").speak("您好")
    with pytest.raises(SynthesisError, match="voice 'xx-none'"):
        EspeakSynthesiser(voice="xx-none").speak("您好")
    with pytest.raises(SynthesisError, match="did not finish within"):
        EspeakSynthesiser(timeout_seconds=0.001).speak("您好")
    with pytest.raises(SynthesisError, match="empty"):
        EspeakSynthesiser().speak(" ")
    with pytest.raises(SynthesisError, match="at most 2000"):
        EspeakSynthesiser().speak("好" * 2001)


def test_kokoro_without_its_voice_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(SynthesiserMissingError, match="npm pack kokoro-js"):
        KokoroSynthesiser(voice_file=tmp_path / "zf_xiaobei.bin")


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_renders_and_checks(tmp_path: Path) -> None:
    file = catalogue_of(tmp_path, "version: 1\nprompts:\n  goodbye: 感谢您的来电，再见。\n")
    where = ["--catalogue", str(file), "--audio", str(tmp_path / "audio")]
    run = CliRunner().invoke

    before = run(app, ["check", *where])
    rendered = run(app, ["render", "--engine", "espeak", *where])
    after = run(app, ["check", *where])
    again = run(app, ["render", "--engine", "espeak", *where])

    assert (before.exit_code, rendered.exit_code, after.exit_code, again.exit_code) == (1, 0, 0, 0)
    assert "goodbye has no audio" in before.output
    assert "up to date" in again.output
