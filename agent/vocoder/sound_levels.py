"""Where in a recording somebody speaks, how loud, and how loud everything else is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent.media.audio import SILENCE_DBFS, power_dbfs
from agent.types import FloatArray

BoolArray: TypeAlias = npt.NDArray[np.bool_]
PowerArray: TypeAlias = npt.NDArray[np.float64]

STEP_S = 0.01
_FRAME_S = 0.04
"""Two periods of the lowest voice."""
_LOWEST_PITCH_HZ = 60.0
_HIGHEST_PITCH_HZ = 400.0
_PERIODIC = 0.5
"""Autocorrelation at the pitch from which a frame counts as voiced; noise stays below 0.25."""
_MOST_FRAMES = 500
"""Enough to tell speech from noise, evenly taken from the whole recording."""

_LOUD_PERCENTILE = 95
_NOISE_PERCENTILE = 5
NOISE_FRAMES = round(5.0 / STEP_S)
"""Long enough to hold a pause, short enough to tell where it is noisy."""
_BELOW_LOUD_DB = 35.0
_ABOVE_NOISE_DB = 8.0
_LEAST_BELOW_LOUD_DB = 10.0
_BRIDGED_S = 0.2
"""Shorter gaps, the closures of stops among them, are part of the speech."""
_SHORTEST_SPEECH_S = 0.05
"""Shorter sounds, clicks among them, are not."""

_FULL_SCALE = 0.999
_FLAT = 1e-4
_FLAT_RUN = 3
_OFTEN_REACHED = 0.9995
"""Share of the samples of one sign; above are clicks and what a coder adds to flat tops."""
_LOWEST_CEILING = 0.7
_CEILINGS = 25
_AT_CEILING = (0.96, 1.04)
_BELOW_CEILING = (0.7, 0.88)
_ABOVE_CEILING = (1.1, 1.25)
_STEEPEST = 5.0
"""Where nothing is above, as at the top of any sound, that counts no more than this."""
_LEAST_HEAP = 0.0015
_LEAST_HEAPED = 60
"""Samples; fewer come together by chance."""

_NARROW_ABOVE_HZ = 4_300.0
_NARROW_DB = -60.0
_CHANNELS_APART_DB = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class SoundLevels:
    """`active` [frames of 10 ms]: where somebody speaks; between `start_s` and `end_s`.

    `powers` [frames]: mean square, f64. `noise_dbfs`: the mean of what every five seconds never
    fall below. `voiced_share` is how much of the active sound has a pitch.
    """

    active: BoolArray
    powers: PowerArray
    start_s: float
    end_s: float
    speech_dbfs: float
    noise_dbfs: float
    voiced_share: float

    def share(self, from_s: float, to_s: float) -> float:
        """How much of the time between is speech, 0..1."""
        part = self.active[round(from_s / STEP_S) : round(to_s / STEP_S)]
        return float(part.mean()) if len(part) else 0.0

    def spans(self) -> list[tuple[int, int]]:
        """(first, behind the last) frame of every stretch of speech, in order."""
        return _runs(self.active)


def measure(
    mono: FloatArray, rate_hz: int, speech: Sequence[tuple[float, float]] | None = None
) -> SoundLevels:
    """f32 [T] of at least 0.1 s. `speech`, where given, says where somebody speaks, in seconds."""
    frames = _frames(mono - np.float32(mono.mean(dtype=np.float64)), rate_hz)
    energies = np.einsum("ij,ij->i", frames, frames)
    powers: PowerArray = energies.astype(np.float64) / frames.shape[1]
    levels = 10 * np.log10(np.maximum(powers, 10 ** (SILENCE_DBFS / 10)))
    quietest_dbfs = float(np.percentile(levels, _NOISE_PERCENTILE))
    loud_dbfs = float(np.percentile(levels, _LOUD_PERCENTILE))
    if speech is None:
        threshold = max(loud_dbfs - _BELOW_LOUD_DB, quietest_dbfs + _ABOVE_NOISE_DB)
        active = _bridged(levels > min(threshold, loud_dbfs - _LEAST_BELOW_LOUD_DB))
    else:
        active = _inside(len(levels), speech)
    noise_dbfs = power_dbfs(float(noise_floors(powers)[1].mean()))
    if not active.any():
        return SoundLevels(active, powers, 0.0, 0.0, SILENCE_DBFS, noise_dbfs, 0.0)
    where = np.flatnonzero(active)
    looked_at = where[:: -(-len(where) // _MOST_FRAMES)]
    voiced = 1.0 if speech is not None else _voiced_share(frames[looked_at], rate_hz)
    return SoundLevels(
        active,
        powers,
        float(where[0] * STEP_S),
        float((where[-1] + 1) * STEP_S),
        power_dbfs(float(powers[active].mean())),
        noise_dbfs,
        voiced,
    )


def noise_floors(powers: PowerArray) -> tuple[npt.NDArray[np.int64], PowerArray]:
    """Of every five seconds, half of them shared: the first frame, and what it never falls below.

    The quietest of the whole would hide that a part of it is noisy.
    """
    step = NOISE_FRAMES // 2
    first = np.arange(0, max(1, len(powers) - step), step)
    parts = (powers[begin : begin + NOISE_FRAMES] for begin in first)
    return first, np.array([np.percentile(part, _NOISE_PERCENTILE) for part in parts])


def one_channel(planar: FloatArray) -> tuple[FloatArray, int | None]:
    """[channels, T] → mono [T], and which channel that is, or None for the mean of them all.

    A channel that is much quieter than another, or its mirror image, would only weaken it.
    """
    powers: PowerArray = np.mean(np.square(planar), axis=1, dtype=np.float64)
    mixed: FloatArray = planar.mean(0, dtype=np.float32)
    best = int(powers.argmax())
    apart = powers.min() < powers[best] * 10 ** (-_CHANNELS_APART_DB / 10)
    cancelling = float(np.mean(np.square(mixed), dtype=np.float64)) < powers[best] / 8
    if len(planar) > 1 and (apart or cancelling):
        return planar[best].astype(np.float32), best
    return mixed, None


def clipped_share(planar: FloatArray) -> float:
    """How many samples lie in flat tops at the peak, at whatever level that is; 0..1."""
    peak = float(np.abs(planar).max(initial=0.0))
    if peak == 0:
        return 0.0
    flat = 0
    for channel in planar:
        top = np.abs(channel) >= _FULL_SCALE * peak
        level = np.abs(np.diff(channel, prepend=channel[:1])) <= _FLAT * peak
        # The first sample of a flat top has come up a slope.
        flat += sum(b - a + 1 for a, b in _runs(top & level) if b - a + 1 >= _FLAT_RUN)
    return min(1.0, flat / planar.size)


def heaping(planar: FloatArray) -> float:
    """How much the samples of [channels, T] heap up at some height near their peak.

    A coder or a change of rate blurs flat tops, but their samples stay near the old ceiling, more
    than just below it and far more than above. Those of speech grow fewer towards the peak: it has
    1 to 2, with a hard limiter up to 4, clipped by 6 dB 3 to 20, by 12 dB 6 to 100.
    """
    centred = planar - planar.mean(axis=1, keepdims=True)
    return max(_heaping(channel * sign) for channel in centred for sign in (1, -1))


def _heaping(samples: FloatArray) -> float:
    """Of the positive samples: density at the ceiling by that below, times that by that above."""
    heights = np.sort(samples[samples > 0])
    if not len(heights):
        return 0.0
    often = heights[int(len(heights) * _OFTEN_REACHED)]
    ceilings = np.linspace(_LOWEST_CEILING, 1.0, _CEILINGS) * often

    def density(band: tuple[float, float]) -> PowerArray:
        low, high = (np.searchsorted(heights, ceilings * edge) for edge in band)
        return np.asarray(high - low, np.float64) / (band[1] - band[0])

    at, below, above = (density(b) for b in (_AT_CEILING, _BELOW_CEILING, _ABOVE_CEILING))
    least = max(_LEAST_HEAPED, _LEAST_HEAP * len(heights))
    enough = at * (_AT_CEILING[1] - _AT_CEILING[0]) >= least
    steepness = np.minimum(_STEEPEST, at / np.maximum(above, 1e-9))
    return float((at / np.maximum(below, 1.0) * steepness)[enough].max(initial=0.0))


def is_narrow(mono: FloatArray, rate_hz: int) -> bool:
    """Whether there is nothing above what a telephone carries."""
    spectrum = np.square(np.abs(np.fft.rfft(mono)))
    lines_hz = np.fft.rfftfreq(len(mono), 1 / rate_hz)
    whole, above = spectrum.sum(), spectrum[lines_hz > _NARROW_ABOVE_HZ].sum()
    return bool(above < whole * 10 ** (_NARROW_DB / 10))


def _frames(mono: FloatArray, rate_hz: int) -> FloatArray:
    """[frames, samples of 40 ms], one around every 10 ms."""
    width, step = round(_FRAME_S * rate_hz), round(STEP_S * rate_hz)
    count = max(1, len(mono) // step)
    before = (width - step) // 2
    padded = np.pad(mono, (before, width))
    frames: FloatArray = np.lib.stride_tricks.sliding_window_view(padded, width)[::step][:count]
    return frames


def _voiced_share(frames: FloatArray, rate_hz: int) -> float:
    """How many of the frames repeat themselves at the period of a voice."""
    size = 1 << (2 * frames.shape[1] - 1).bit_length()
    centred = frames - frames.mean(1, keepdims=True)
    power = np.square(np.abs(np.fft.rfft(centred, size)))
    correlation = np.fft.irfft(power)
    first, last = int(rate_hz / _HIGHEST_PITCH_HZ), int(rate_hz / _LOWEST_PITCH_HZ)
    lags = np.arange(first, last + 1)
    overlap = frames.shape[1] / (frames.shape[1] - lags)
    at_pitch = correlation[:, first : last + 1] * overlap
    periodic = at_pitch.max(1) > _PERIODIC * np.maximum(correlation[:, 0], 1e-20)
    return float(periodic.mean())


def _bridged(active: BoolArray) -> BoolArray:
    """Without the short sounds, and then without the short gaps."""
    bridged = active.copy()
    for a, b in _runs(active):
        if (b - a) * STEP_S < _SHORTEST_SPEECH_S:
            bridged[a:b] = False
    for a, b in _runs(~bridged):
        inside = a > 0 and b < len(bridged)
        if inside and (b - a) * STEP_S < _BRIDGED_S:
            bridged[a:b] = True
    return bridged


def _inside(count: int, spans: Sequence[tuple[float, float]]) -> BoolArray:
    active = np.zeros(count, np.bool_)
    for from_s, to_s in spans:
        active[max(0, round(from_s / STEP_S)) : max(0, round(to_s / STEP_S))] = True
    return active


def _runs(flags: BoolArray) -> list[tuple[int, int]]:
    """(first, behind the last) of every stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
