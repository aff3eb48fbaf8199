"""Prompts: their texts, the audio rendered from them, and the manifest that tells which audio is stale."""

import hashlib
import json
import re
import wave
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import NewType

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from callcenter.speech.synthesis import TELEPHONE_RATE, Samples, Synthesiser, for_telephone

PromptName = NewType("PromptName", str)

MANIFEST = "manifest.json"

_NAME = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")
_ARABIC_OR_LATIN = re.compile(r"[0-9０-９A-Za-z]")


class CatalogueError(ValueError):
    """The catalogue of prompts, or the manifest of their audio, cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: `text` is what people read, `spoken` what the synthesiser says, `line` where it is written."""

    name: PromptName
    text: str
    spoken: str
    line: int

    @property
    def spoken_sha256(self) -> str:
        return hashlib.sha256(self.spoken.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every prompt by its name, in the order of the file."""

    path: Path
    version: int
    prompts: Mapping[PromptName, Prompt]


class Rendered(BaseModel):
    """What the manifest knows of one rendered prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_sha256: str
    synthesiser: str
    voice: str
    duration_seconds: float
    sha256: str


class Fault(StrEnum):
    """Why a prompt's audio does not fit the catalogue."""

    MISSING = "missing"
    STALE = "stale"
    CHANGED = "changed"
    UNLISTED = "unlisted"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one prompt's audio; `str()` says what to do."""

    name: PromptName
    fault: Fault

    def __str__(self) -> str:
        match self.fault:
            case Fault.MISSING:
                advice = "has no audio; run: callcenter prompts render"
            case Fault.STALE:
                advice = "was rendered from another text; run: callcenter prompts render"
            case Fault.CHANGED:
                advice = "is not the file that was rendered; run: callcenter prompts render"
            case Fault.UNLISTED:
                advice = "is not in the catalogue; give it a text or delete its audio"
        return f"{self.name} {advice}"


def audio_file(audio_dir: Path, name: PromptName) -> Path:
    """Where the audio of a prompt is; Asterisk is given this path without its suffix."""
    return audio_dir / f"{name}.wav"


def load_catalogue(path: Path) -> Catalogue:
    """Read prompts.yaml; every mistake is a `CatalogueError` that names file and line."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise CatalogueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{path}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CatalogueError(f"{path}:{line}: is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise CatalogueError(f"{path}:1: is not YAML: {error}") from error
    reader = _Reader(path)
    fields = reader.mapping(root, "the file", allowed={"version", "prompts"}, required={"version", "prompts"})
    version = fields["version"]
    if not (isinstance(version, yaml.ScalarNode) and version.value.isdecimal() and int(version.value) >= 1):
        raise reader.error(version, "version must be a whole number from 1")
    prompts = {
        PromptName(name): reader.prompt(name, node)
        for name, node in reader.mapping(fields["prompts"], "prompts").items()
    }
    if not prompts:
        raise reader.error(fields["prompts"], "there is no prompt")
    return Catalogue(path, int(version.value), MappingProxyType(prompts))


class _Reader:
    """Reads YAML nodes of one file, so that each mistake is told with its line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def error(self, node: yaml.Node | None, problem: str) -> CatalogueError:
        line = node.start_mark.line + 1 if node is not None else 1
        return CatalogueError(f"{self._path}:{line}: {problem}")

    def mapping(
        self,
        node: yaml.Node | None,
        what: str,
        *,
        allowed: Collection[str] | None = None,
        required: Collection[str] = (),
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be names with values")
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, f"a name in {what} must be plain text")
            if key.value in fields:
                raise self.error(key, f"{key.value} is written twice")
            if allowed is not None and key.value not in allowed:
                raise self.error(key, f"{key.value} is unknown here; known: {', '.join(sorted(allowed))}")
            fields[key.value] = value
        for name in sorted(set(required) - fields.keys()):
            raise self.error(node, f"{what} lacks {name}")
        return fields

    def prompt(self, name: str, node: yaml.Node) -> Prompt:
        if not _NAME.fullmatch(name):
            raise self.error(node, f"the name {name!r} must be of a-z, 0-9, _ and -, with / between folders")
        if isinstance(node, yaml.MappingNode):
            fields = self.mapping(node, name, allowed={"text", "spoken"}, required={"text"})
            text = self._words(name, fields["text"])
            spoken_node = fields.get("spoken", fields["text"])
        else:
            text, spoken_node = self._words(name, node), node
        spoken = self._words(name, spoken_node)
        if wrong := _ARABIC_OR_LATIN.search(spoken):
            raise self.error(
                spoken_node,
                f"{name} would speak {wrong[0]!r}: add `spoken` with the words as they are read (12345 is 幺二三四五)",
            )
        return Prompt(PromptName(name), text, spoken, node.start_mark.line + 1)

    def _words(self, name: str, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self.error(node, f"{name} needs a text")
        return str(node.value).strip()


def render(
    catalogue: Catalogue,
    synthesiser: Synthesiser,
    out_dir: Path,
    *,
    only_missing: bool,
    names: Collection[PromptName] = (),
    progress: Callable[[Prompt, int, int], None] = lambda prompt, at, total: None,
) -> list[PromptName]:
    """Render prompts into `out_dir` and return the names that were rendered.

    `only_missing` leaves audio alone that fits its text; `names` limits the work to these. The manifest is written
    after each prompt, so that an interrupted run goes on where it stopped. `progress` gets (prompt, number from 1,
    total) before each. Raises `SynthesisError`, and `CatalogueError` for an unknown name.
    """
    if unknown := sorted(set(names) - catalogue.prompts.keys()):
        raise CatalogueError(f"{catalogue.path}: there is no prompt {', '.join(unknown)}")
    faulty = {finding.name for finding in check(catalogue, out_dir)}
    wanted = [
        prompt
        for prompt in catalogue.prompts.values()
        if (not names or prompt.name in names) and (not only_missing or prompt.name in faulty)
    ]
    known = load_manifest(out_dir)
    manifest = {name: known[name] for name in known if name in catalogue.prompts}
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_manifest(out_dir, manifest)
    for number, prompt in enumerate(wanted, start=1):
        progress(prompt, number, len(wanted))
        samples = for_telephone(*synthesiser.speak(prompt.spoken))
        file = audio_file(out_dir, prompt.name)
        _write_wave(file, samples)
        manifest[prompt.name] = Rendered(
            text_sha256=prompt.spoken_sha256,
            synthesiser=synthesiser.name,
            voice=synthesiser.voice,
            duration_seconds=round(len(samples) / TELEPHONE_RATE, 3),
            sha256=_sha256(file),
        )
        _write_manifest(out_dir, manifest)
    return [prompt.name for prompt in wanted]


def check(catalogue: Catalogue, audio_dir: Path) -> list[Finding]:
    """Compare texts, manifest and files; an empty list means that every prompt can be played as it is written."""
    manifest = load_manifest(audio_dir)
    findings = [
        Finding(prompt.name, fault)
        for prompt in catalogue.prompts.values()
        if (fault := _fault(prompt, manifest.get(prompt.name), audio_file(audio_dir, prompt.name)))
    ]
    on_disk = {
        PromptName(file.relative_to(audio_dir).with_suffix("").as_posix())
        for file in audio_dir.rglob("*.wav")
    }
    unlisted = (on_disk | manifest.keys()) - catalogue.prompts.keys()
    return findings + [Finding(name, Fault.UNLISTED) for name in sorted(unlisted)]


def load_manifest(audio_dir: Path) -> dict[PromptName, Rendered]:
    """Read what was rendered; nothing when there is no manifest yet, `CatalogueError` when it is broken."""
    file = audio_dir / MANIFEST
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {PromptName(name): Rendered.model_validate(entry) for name, entry in entries.items()}
    except json.JSONDecodeError as error:
        raise CatalogueError(f"{file}:{error.lineno}: is not JSON; delete it and render again") from error
    except (AttributeError, ValidationError) as error:
        raise CatalogueError(f"{file}:1: is not a manifest of prompts; delete it and render again") from error


def _fault(prompt: Prompt, rendered: Rendered | None, file: Path) -> Fault | None:
    if rendered is None or not file.is_file():
        return Fault.MISSING
    if rendered.text_sha256 != prompt.spoken_sha256:
        return Fault.STALE
    if rendered.sha256 != _sha256(file):
        return Fault.CHANGED
    return None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write_wave(file: Path, samples: Samples) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with wave.open(str(unfinished), "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(TELEPHONE_RATE)
        audio.writeframes(samples.astype("<i2").tobytes())
    unfinished.replace(file)  # a call that plays the old prompt keeps its file


def _write_manifest(out_dir: Path, manifest: Mapping[PromptName, Rendered]) -> None:
    entries = {name: manifest[name].model_dump() for name in sorted(manifest)}
    unfinished = out_dir / f"{MANIFEST}.part"
    unfinished.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(out_dir / MANIFEST)
