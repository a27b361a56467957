"""Samples: rates, 16-bit PCM, channels, levels, fades. Numpy alone."""

from math import ceil, log10

import numpy as np
import numpy.typing as npt

from agent.types import FloatArray

Pcm16Array = npt.NDArray[np.int16]

SILENCE_DBFS = -100.0
"""What `level_dbfs` answers for digital silence."""

_DELAY_MS = 1.75
"""Signal delay of `Resampler`: 3.5 ms of filter fall from flat to −65 dB within 1.2 kHz."""
_STOP_BAND_DB = 66.0
_KAISER_BETA = 0.1102 * (_STOP_BAND_DB - 8.7)
_TRANSITION_HZ = (_STOP_BAND_DB - 7.95) / (14.36 * 2.0 * _DELAY_MS * 1e-3)


class Resampler:
    """Streaming change of sample rate: `push(...)` any number of samples, then `finish()`.

    Both rates are whole kilohertz. Sound comes out delayed by `delay_samples` (1.75 ms, counted
    at the new rate), in whole milliseconds: 20 ms in are always exactly 20 ms out, a remainder
    waits for the next push. Aliases and images stay below −60 dB; flat up to 1.2 kHz below the
    lower Nyquist frequency. The result does not depend on how the input was cut.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        if from_hz <= 0 or to_hz <= 0 or from_hz % 1000 or to_hz % 1000 or from_hz == to_hz:
            raise ValueError(f"cannot resample {from_hz} Hz to {to_hz} Hz: two whole kHz needed")
        self._in_per_ms = from_hz // 1000
        self._out_per_ms = to_hz // 1000
        self.delay_samples = ceil(_DELAY_MS * self._out_per_ms)
        self._weights = _filter_bank(self._in_per_ms, self._out_per_ms)
        self._context_samples = len(self._weights) - self._in_per_ms
        self._waiting = np.zeros(self._context_samples, np.float32)
        self._samples_in = 0
        self._samples_out = 0

    def push(self, samples: FloatArray) -> FloatArray:
        """Mono [T] at `from_hz` in; what is ready at `to_hz` out."""
        self._samples_in += len(samples)
        signal = np.concatenate((self._waiting, samples))
        count = (len(signal) - self._context_samples) // self._in_per_ms
        self._waiting = signal[count * self._in_per_ms :].astype(np.float32)
        if count == 0:
            return np.zeros(0, np.float32)
        resampled = self._filter(signal, count)
        self._samples_out += len(resampled)
        return resampled

    def finish(self) -> FloatArray:
        """The rest: in all, the duration of the input plus the delay."""
        whole = ceil(self._samples_in * self._out_per_ms / self._in_per_ms) + self.delay_samples
        missing = whole - self._samples_out
        silence_ms = ceil(missing / self._out_per_ms) + 1
        tail = self.push(np.zeros(silence_ms * self._in_per_ms, np.float32))
        return tail[:missing]

    def _filter(self, signal: FloatArray, count: int) -> FloatArray:
        # In double precision the rounding of BLAS, which varies with the number of rows, stays
        # below the last bit of the result.
        exact = signal.astype(np.float64)
        step = exact.itemsize
        shape, strides = (count, len(self._weights)), (self._in_per_ms * step, step)
        # One row a millisecond, overlapping; numpy's own view takes longer than the filter.
        rows = np.ndarray(shape, np.float64, exact, strides=strides)
        return (rows.copy() @ self._weights).astype(np.float32).ravel()


def _filter_bank(in_per_ms: int, out_per_ms: int) -> npt.NDArray[np.float64]:
    """Weights [inputs, outputs of one millisecond]: a Kaiser-windowed sinc, one column a phase."""
    context = ceil(2.0 * _DELAY_MS * in_per_ms)
    inputs_ms = (np.arange(-context, in_per_ms) / in_per_ms)[:, None]
    outputs_ms = (np.arange(out_per_ms) / out_per_ms)[None, :]
    offset_ms = outputs_ms - inputs_ms - _DELAY_MS
    cutoff_khz = min(in_per_ms, out_per_ms) / 2.0 - _TRANSITION_HZ / 2000.0
    inside = np.clip(1.0 - (offset_ms / _DELAY_MS) ** 2, 0.0, None)
    window = np.i0(_KAISER_BETA * np.sqrt(inside)) * (np.abs(offset_ms) <= _DELAY_MS)
    weights = np.sinc(2.0 * cutoff_khz * offset_ms) * window
    normalised: npt.NDArray[np.float64] = weights / weights.sum(axis=0)
    return normalised


def to_pcm16(samples: FloatArray) -> Pcm16Array:
    """−1..1 to 16-bit integers of the same shape; what is louder is clipped."""
    scaled = np.rint(np.clip(samples, -1.0, 32767.0 / 32768.0) * 32768.0)
    pcm: Pcm16Array = scaled.astype(np.int16)
    return pcm


def from_pcm16(pcm: bytes | bytearray | memoryview | Pcm16Array) -> FloatArray:
    """16-bit little-endian PCM, as bytes or integers, to −1..1 [T].

    Raises `ValueError` for an odd number of bytes.
    """
    return np.frombuffer(pcm, "<i2").astype(np.float32) * np.float32(1.0 / 32768.0)


def mix_down(samples: FloatArray, channels: int) -> FloatArray:
    """The mean of the channels, [T].

    `samples` is planar [channels, T], or interleaved ([T * channels], also as one row).
    """
    planar = samples.ndim == 2 and samples.shape[0] == channels
    by_channel = samples if planar else samples.reshape(-1, channels).T
    mono: FloatArray = by_channel.mean(axis=0, dtype=np.float32)
    return mono


def level_dbfs(samples: FloatArray) -> float:
    """Effective level; 0 dBFS is a constant 1, a full-scale sine is at −3 dBFS."""
    if not len(samples):
        return SILENCE_DBFS
    return power_dbfs(float(np.dot(samples, samples)) / len(samples))


def power_dbfs(power: float) -> float:
    """A mean square as a level, not below `SILENCE_DBFS`."""
    return max(SILENCE_DBFS, 10.0 * log10(max(power, 1e-20)))


def fade_out(samples: FloatArray) -> FloatArray:
    """The same samples, brought down to nothing by half a period of a cosine."""
    return samples * falling_edge(len(samples))


def falling_edge(samples: int) -> FloatArray:
    """A raised cosine from 1 down to 0, [samples]."""
    phase = (np.arange(samples) + 0.5) * (np.pi / max(1, samples))
    edge: FloatArray = (0.5 + 0.5 * np.cos(phase)).astype(np.float32)
    return edge
