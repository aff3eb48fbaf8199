"""What a call sounded like: correlation, tones over time, loudness and gaps; and the sounds to measure with.

Samples are int16 at 8 kHz; times are monotonic seconds as the phone stamps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from callcenter.phone.g711 import SAMPLE_RATE, Codec, Pcm
from callcenter.phone.rtp import Packet

TONE_AMPLITUDE = 6000
HEARD_AMPLITUDE = 1000  # a tone this strong within one packet counts as present


class Heard(Protocol):
    """Anything that kept audio packets, such as a Call."""

    @property
    def packets(self) -> list[Packet]: ...

    @property
    def codec(self) -> Codec: ...


class Presence(NamedTuple):
    """What one packet held: monotonic arrival, the tones in it, its RMS."""

    at: float
    tones: frozenset[str]
    level: float


def correlation(reference: Pcm, received: Pcm) -> tuple[float, float]:
    """How alike two sounds are at their best alignment: peak in -1…1, and the seconds by which `received` lags.

    Each shift is normalised by the energy of what overlaps; shifts that overlap less than half of the shorter sound,
    or only its quiet parts, do not count.  Sounds of under 0.1 s, or silence, give (0, 0).
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(received, dtype=np.float64)
    if min(len(a), len(b)) < SAMPLE_RATE // 10 or not a.any() or not b.any():
        return 0.0, 0.0
    size = 1 << (len(a) + len(b) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    lags = np.arange(-len(a) + 1, len(b))
    products = product[lags % size]
    energy_a, energy_b = (np.concatenate(([0.0], np.cumsum(x * x))) for x in (a, b))
    start, end = np.maximum(lags, 0), np.minimum(lags + len(a), len(b))  # the overlap, in b
    in_a = np.maximum(
        energy_a[end - lags] - energy_a[start - lags], energy_a[-1] * 1e-9
    )  # rounding is not energy
    in_b = np.maximum(energy_b[end] - energy_b[start], energy_b[-1] * 1e-9)
    counts = (end - start) * 2 >= min(len(a), len(b))
    counts &= np.maximum(in_a / energy_a[-1], in_b / energy_b[-1]) > 0.1
    alike = np.where(counts, products / np.sqrt(in_a * in_b), -1.0)
    best = int(np.argmax(alike))
    return float(alike[best]), float(lags[best]) / SAMPLE_RATE


def tones(
    heard: Heard | Iterable[Packet],
    frequencies: Mapping[str, float],
    *,
    since: float | None = None,
    until: float | None = None,
    threshold: float = HEARD_AMPLITUDE,
    codec: Codec = Codec.PCMU,
) -> list[Presence]:
    """Which of the named tones each packet holds, in order of arrival.

    Choose frequencies that are multiples of 50 Hz: they do not leak into each other within 20 ms.  `threshold` is an
    amplitude; `codec` is for bare packets, a call knows its own.
    """
    if isinstance(heard, Iterable):
        packets = list(heard)
    else:
        packets, codec = heard.packets, heard.codec
    found = []
    for packet in packets:
        if (since is not None and packet.arrival < since) or (until is not None and packet.arrival >= until):
            continue
        samples = codec.decode(packet.payload).astype(np.float64)
        if len(samples):
            present = frozenset(n for n, f in frequencies.items() if _amplitude(samples, f) >= threshold)
            found.append(Presence(packet.arrival, present, float(np.sqrt(np.mean(samples**2)))))
    return found


def _amplitude(samples: NDArray[np.float64], frequency: float) -> float:
    turns = np.exp(-2j * np.pi * frequency / SAMPLE_RATE * np.arange(len(samples)))
    return float(2 * np.abs(np.mean(samples * turns)))


def first_heard(
    heard: Heard | Iterable[Packet],
    frequency: float,
    *,
    since: float | None = None,
    present: bool = True,
    threshold: float = HEARD_AMPLITUDE,
    codec: Codec = Codec.PCMU,
) -> float | None:
    """When a tone was first there (or, with `present=False`, first not there), or None."""
    found = tones(heard, {"tone": frequency}, since=since, threshold=threshold, codec=codec)
    return next((each.at for each in found if bool(each.tones) is present), None)


def shares(
    heard: Heard | Iterable[Packet],
    frequencies: Mapping[str, float],
    *,
    since: float | None = None,
    until: float | None = None,
    threshold: float = HEARD_AMPLITUDE,
    codec: Codec = Codec.PCMU,
) -> dict[str, float]:
    """The part of the packets, 0…1, that held each tone; all 0 when nothing arrived."""
    found = tones(heard, frequencies, since=since, until=until, threshold=threshold, codec=codec)
    return {name: sum(name in each.tones for each in found) / max(1, len(found)) for name in frequencies}


def rms(pcm: Pcm) -> float:
    """Root mean square of samples, 0 for none."""
    return float(np.sqrt(np.mean(np.asarray(pcm, dtype=np.float64) ** 2))) if len(pcm) else 0.0


def largest_gap(
    packets: Iterable[Packet], *, since: float | None = None, until: float | None = None
) -> float:
    """The longest time in seconds between two arrivals, 0 for fewer than two packets."""
    times = np.array(
        [
            packet.arrival
            for packet in packets
            if (since is None or packet.arrival >= since) and (until is None or packet.arrival < until)
        ]
    )
    return float(np.diff(times).max()) if len(times) > 1 else 0.0


def tone(frequency: float, seconds: float, *, amplitude: float = TONE_AMPLITUDE) -> Pcm:
    """A sine; whole periods loop without a click (a multiple of 50 Hz does in every 20 ms)."""
    count = round(seconds * SAMPLE_RATE)
    wave = amplitude * np.sin(2 * np.pi * frequency / SAMPLE_RATE * np.arange(count))
    samples: Pcm = wave.astype(np.int16)
    return samples


def speech_like(seconds: float, *, seed: int, amplitude: float = TONE_AMPLITUDE) -> Pcm:
    """Noise in the telephone band with the loudness of syllables; unlike a tone it fits itself at one lag only."""
    count = round(seconds * SAMPLE_RATE)
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft(random.standard_normal(count))
    pitch = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    spectrum[(pitch < 300) | (pitch > 3000)] = 0
    noise = np.fft.irfft(spectrum, count)
    moments = np.arange(count) / SAMPLE_RATE
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * moments + random.uniform(0, 6))
    shaped = noise * syllables
    samples: Pcm = (amplitude * np.clip(shaped / (3 * shaped.std() + 1e-9), -1, 1)).astype(np.int16)
    return samples


def read_wav(path: Path | str) -> tuple[NDArray[np.int16], int]:
    """Samples, and their rate in Hz; a stereo file gives one column a channel."""
    samples, rate = soundfile.read(str(path), dtype="int16")
    return samples, int(rate)


def write_wav(path: Path | str, pcm: NDArray[np.int16], *, rate: int = SAMPLE_RATE) -> None:
    """Write 16-bit samples; one column a channel."""
    soundfile.write(str(path), pcm, rate, subtype="PCM_16", format="WAV")
