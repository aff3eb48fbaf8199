"""G.711: mu-law (PCMU) and A-law (PCMA) to and from 16-bit linear samples, by table (ITU-T G.711, G.191)."""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
SAMPLE_RATE = 8000


def _ulaw_tables() -> tuple[NDArray[np.uint8], Pcm]:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)) - 0x84
    decode = np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)

    sample = np.arange(-32768, 32768, dtype=np.int32) >> 2  # mu-law works on 14 bits
    mask = np.where(sample < 0, 0x7F, 0xFF)
    biased = np.minimum(np.abs(sample) + 33, 8191)
    segment = np.searchsorted([0x3F, 0x7F, 0xFF, 0x1FF, 0x3FF, 0x7FF, 0xFFF, 0x1FFF], biased)
    encode = ((segment << 4) | ((biased >> (segment + 1)) & 0x0F)) ^ mask
    return encode.astype(np.uint8), decode


def _alaw_tables() -> tuple[NDArray[np.uint8], Pcm]:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = (code & 0x70) >> 4
    low = (code & 0x0F) << 4
    magnitude = np.where(segment == 0, low + 8, (low + 0x108) << np.maximum(segment - 1, 0))
    decode = np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)

    sample = np.arange(-32768, 32768, dtype=np.int32) >> 3  # A-law works on 13 bits
    mask = np.where(sample < 0, 0x55, 0xD5)
    magnitude = np.where(sample < 0, -sample - 1, sample)
    segment = np.searchsorted([0x1F, 0x3F, 0x7F, 0xFF, 0x1FF, 0x3FF, 0x7FF, 0xFFF], magnitude)
    encode = ((segment << 4) | ((magnitude >> np.maximum(segment, 1)) & 0x0F)) ^ mask
    return encode.astype(np.uint8), decode


class Codec(Enum):
    """A G.711 law; the value is its static RTP payload type (RFC 3551, table 4)."""

    PCMU = 0
    PCMA = 8

    def encode(self, pcm: Pcm) -> bytes:
        """Turn int16 samples into one byte each."""
        return _ENCODE[self][np.asarray(pcm, dtype=np.int16).astype(np.int32) + 32768].tobytes()

    def decode(self, payload: bytes) -> Pcm:
        """Turn bytes into int16 samples."""
        return _DECODE[self][np.frombuffer(payload, dtype=np.uint8)]

    def transcode(self, payload: bytes, target: Codec) -> bytes:
        """Turn this law's bytes into the other law's."""
        return payload if target is self else payload.translate(_TRANSCODE[self])

    @property
    def silence(self) -> bytes:
        """The byte that means zero."""
        return b"\xff" if self is Codec.PCMU else b"\xd5"


_ULAW, _ALAW = _ulaw_tables(), _alaw_tables()
_ENCODE = {Codec.PCMU: _ULAW[0], Codec.PCMA: _ALAW[0]}
_DECODE = {Codec.PCMU: _ULAW[1], Codec.PCMA: _ALAW[1]}
_TRANSCODE = {
    source: target.encode(source.decode(bytes(range(256))))
    for source, target in ((Codec.PCMU, Codec.PCMA), (Codec.PCMA, Codec.PCMU))
}
