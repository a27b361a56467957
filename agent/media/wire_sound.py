"""Sound as it travels inside of events, in pieces of any size: PCM16 at 24 kHz, G.711 at 8 kHz.

What comes is turned into the microphone's 16 kHz, what goes comes from the speech rate of 24 kHz.
Both ways keep step: of a sound as long as T comes out a sound as long as T, in pieces or in one go,
and the delay of the rate change is taken off its beginning. The user's may be PCM16 at 16 kHz, too.
"""

import numpy as np
import numpy.typing as npt

from agent.media.audio import Resampler, from_pcm16, to_pcm16
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray, SoundFormat

PCM_RATE_HZ = 24_000
G711_RATE_HZ = 8_000
"""ITU-T G.711: eight thousand samples a second, a byte each."""
_FORGETS_MS = 10
"""More than the resampler reaches back, and the millisecond that it waits for."""


def wire_rate_hz(coding: SoundFormat) -> int:
    """Samples a second."""
    if coding == "audio/pcm;rate=16000":
        return MIC_RATE_HZ
    return PCM_RATE_HZ if coding == "audio/pcm" else G711_RATE_HZ


def sample_bytes(coding: SoundFormat) -> int:
    """Bytes of one sample."""
    return 1 if coding in ("audio/pcmu", "audio/pcma") else 2


class WholeSamples:
    """Puts together again what was cut within a sample."""

    def __init__(self, coding: SoundFormat) -> None:
        self.coding: SoundFormat = coding
        self._half = b""

    def push(self, data: bytes) -> bytes:
        """All that is whole by now."""
        data = self._half + data
        whole = len(data) - len(data) % sample_bytes(self.coding)
        self._half = data[whole:]
        return data[:whole]

    def count(self, data: bytes) -> int:
        """How many samples `push` would give."""
        return (len(self._half) + len(data)) // sample_bytes(self.coding)

    def lose(self, data: bytes) -> None:
        """`data` is not taken: of a sample that is half in it, this half is nothing."""
        self._half = b"\0" * ((len(self._half) + len(data)) % sample_bytes(self.coding))


class WireDecoder:
    """The user's sound out of events: `push(...)` and `pause(...)`, then `finish()`; 16 kHz."""

    def __init__(self, coding: SoundFormat) -> None:
        self.coding: SoundFormat = coding
        self._rate_hz = wire_rate_hz(coding)
        self._resampler: Resampler | None = None
        self._to_skip = 0
        if self._rate_hz != MIC_RATE_HZ:
            self._resampler = Resampler(self._rate_hz, MIC_RATE_HZ)
            self._to_skip = self._resampler.delay_samples
        self._samples_in = 0
        self._samples_out = 0
        self._silent_samples = self._rate_hz  # so much silence came last

    @property
    def end(self) -> int:
        """How long all that came is, in samples at 16 kHz; a part of one counts as none."""
        return self._samples_in * MIC_RATE_HZ // self._rate_hz

    def push(self, data: bytes | memoryview) -> FloatArray:
        """More of the sound, in whole samples; what is ready at 16 kHz."""
        self._silent_samples = 0
        return self._resample(_decoded(data, self.coding))

    def pause(self, ms: int) -> FloatArray:
        """So much silence between what came and what comes; what is ready at 16 kHz."""
        samples = ms * self._rate_hz // 1000
        if self._silent_samples * 1000 < _FORGETS_MS * self._rate_hz or self._to_skip:
            self._silent_samples += samples
            return self._resample(np.zeros(samples, np.float32))
        # Silence alone leaves the resampler as it is, and calls are silent most of the time.
        self._samples_in += samples
        return self._count(np.zeros(ms * MIC_RATE_HZ // 1000, np.float32))

    def finish(self) -> FloatArray:
        """The rest: in all, as long as what came."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        due = self.end - self._samples_out
        return self._count(self._aligned(self._resampler.finish())[: max(0, due)])

    def _resample(self, samples: FloatArray) -> FloatArray:
        self._samples_in += len(samples)
        if self._resampler is None:
            return self._count(samples)
        return self._count(self._aligned(self._resampler.push(samples)))

    def _aligned(self, resampled: FloatArray) -> FloatArray:
        skipped = min(self._to_skip, len(resampled))
        self._to_skip -= skipped
        return resampled[skipped:]

    def _count(self, samples: FloatArray) -> FloatArray:
        self._samples_out += len(samples)
        return samples


class WireEncoder:
    """One turn of the agent's speech (24 kHz) into events: `push(...)`, then `finish()`."""

    def __init__(self, coding: SoundFormat) -> None:
        self._coding: SoundFormat = coding
        self._resampler: Resampler | None = None
        self._to_skip = self._samples_in = self._bytes_out = 0
        if wire_rate_hz(coding) != SPEECH_RATE_HZ:
            self._resampler = Resampler(SPEECH_RATE_HZ, wire_rate_hz(coding))
            self._to_skip = self._resampler.delay_samples

    def push(self, samples: FloatArray) -> bytes:
        """The next samples [T]; the bytes that are ready."""
        self._samples_in += len(samples)
        if self._resampler is None:
            return to_pcm16(samples).tobytes()
        resampled = self._resampler.push(samples)
        skipped = min(self._to_skip, len(resampled))
        self._to_skip -= skipped
        data = _g711(resampled[skipped:], self._coding)
        self._bytes_out += len(data)
        return data

    def finish(self) -> bytes:
        """The end of the turn, where it came out late: in all, as long as what was pushed."""
        if self._resampler is None:
            return b""
        whole = -(-self._samples_in * G711_RATE_HZ // SPEECH_RATE_HZ)
        resampled = self._resampler.finish()[self._to_skip :]
        return _g711(resampled[: whole - self._bytes_out], self._coding)


# ---- codes ------------------------------------------------------------------------------------


def _decoded(data: bytes | memoryview, coding: SoundFormat) -> FloatArray:
    if sample_bytes(coding) == 2:
        return from_pcm16(data)
    return _EXPANDED[coding][np.frombuffer(data, np.uint8)]


def _g711(samples: FloatArray, coding: SoundFormat) -> bytes:
    return _COMPRESSED[coding][to_pcm16(samples).view(np.uint16)].tobytes()


def _mu_law_levels() -> npt.NDArray[np.int32]:
    """G.711 table 2: the level of each µ-law byte, in 16 bits."""
    code = ~np.arange(256) & 0xFF
    exponent, mantissa = (code >> 4) & 7, code & 0xF
    magnitude = ((mantissa * 8 + 132) << exponent) - 132
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int32)


def _a_law_levels() -> npt.NDArray[np.int32]:
    """G.711 table 1: the level of each A-law byte, in 16 bits."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 0xF
    low = mantissa * 16 + 8
    magnitude = np.where(exponent == 0, low, (low + 256) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int32)


def _compressor(levels: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """The byte whose level is nearest, of every 16-bit sample as an unsigned number [65536]."""
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][1:] + levels[order][:-1]) / 2.0
    samples = np.arange(65_536).astype(np.uint16).view(np.int16)
    return order[np.searchsorted(middles, samples, side="right")].astype(np.uint8)


_LEVELS: dict[SoundFormat, npt.NDArray[np.int32]] = {
    "audio/pcmu": _mu_law_levels(),
    "audio/pcma": _a_law_levels(),
}
_EXPANDED = {name: (levels / 32768.0).astype(np.float32) for name, levels in _LEVELS.items()}
_COMPRESSED = {name: _compressor(levels) for name, levels in _LEVELS.items()}
