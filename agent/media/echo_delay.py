"""How late the echo comes, measured while the agent speaks: generalised cross-correlation.

Half a second of microphone at a time is compared with all of the far end that may be heard in it.
Both spectra are whitened by their envelope (in the manner of GCC-PHAT), so that a room shows as a
sharp peak, at its direct sound, and the pitch of a voice does not show. The sum over some seconds
holds its own against a user who talks at the same time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.media.echo_drift import ClockDrift
from agent.types import MIC_RATE_HZ, FloatArray

BLOCK_SAMPLES = 8192
LAGS = 16384
"""Delays of up to a second after arrival: an echo cannot come before what was sent."""

_FFT_SAMPLES = BLOCK_SAMPLES + LAGS
_LOWEST_HZ, _HIGHEST_HZ = 200.0, 3800.0
_ENVELOPE_BINS = 8
_ENVELOPE_FLOOR = 0.05
_EDGE_SAMPLES = 1024
# Sum of all blocks: each new one counts for a fifth, so that it looks back some 3 s.
_FORGETTING = 0.8
_AUDIBLE_POWER = 1e-7  # −70 dBFS
_SPOKEN_POWER = 1e-6  # −60 dBFS

# What else is high near a peak is the same room: its early reflections.
_BEFORE_SAMPLES, _AFTER_SAMPLES = 128, 480
_ALIKE_SAMPLES = 32
_TRACKED_SAMPLES = 48
_BORNE_OUT = 5.0
# Speech fills four fifths of the band, music half, a chord a twentieth.
_LEAST_BREADTH = 0.2

ComplexArray = npt.NDArray[np.complex64]


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest point of a correlation.

    `index` is fractional; `ratio` compares it with the highest point elsewhere, `height` with the
    effective value elsewhere.
    """

    index: float
    ratio: float
    height: float

    def surpasses(self, ratio: float, height: float) -> bool:
        """Whether it stands out at least that much."""
        return self.ratio >= ratio and self.height >= height


class EchoDelay:
    """Finds the lag of the echo and the drift of its clock.

    `push` the microphone, then let `work` do a step: one of the few that a block needs, none of
    them longer than a millisecond. `lag` counts samples at 16 kHz from the far index to the near
    index and follows every block; None until an echo was found, and kept when it is gone.
    """

    def __init__(self) -> None:
        self.lag: float | None = None
        self.since = 0
        """Near index at which the lag was first seen about where it is now."""
        self._drift = ClockDrift()
        self._near = np.zeros(BLOCK_SAMPLES, np.float32)
        self._filled = 0
        self._near_index = 0
        self._base = 0
        self._block: _Block | None = None
        self._sum = np.zeros(LAGS, np.float32)
        self._last = np.zeros(LAGS, np.float32)
        self._sum_base = 0
        self._slip = 0.0
        self._judged_at = 0
        self._candidate: float | None = None
        self._candidate_since = 0

    @property
    def drift_ppm(self) -> float | None:
        """How much faster the microphone counts than the echo; None while that is not certain."""
        return self._drift.ppm

    def push(self, near: FloatArray, near_index: int, arrival_lag: int) -> None:
        """The microphone [T] from `near_index` on, and the lag that arrival alone would give."""
        if near_index != self._near_index + self._filled:
            self._filled = 0
        while len(near):
            if self._filled == 0:
                self._near_index, self._base = near_index, arrival_lag
            taken = min(len(near), BLOCK_SAMPLES - self._filled)
            self._near[self._filled : self._filled + taken] = near[:taken]
            self._filled += taken
            near, near_index = near[taken:], near_index + taken
            if self._filled == BLOCK_SAMPLES:
                self._block = _Block(self._near.copy(), self._near_index, self._base)
                self._near_index, self._filled = near_index, 0

    def work(self, read_far: Callable[[int, int], FloatArray]) -> bool:
        """One step; whether `lag` and `drift_ppm` were judged anew by it."""
        block = self._block
        if block is None:
            return False
        correlation = block.work(read_far)
        if block.worthless or correlation is not None:
            self._block = None
        if correlation is None:
            return False
        self._judge(correlation, block)
        return True

    def _judge(self, correlation: FloatArray, block: "_Block") -> None:
        self._rebase(block)
        latest = correlation + self._last
        self._sum = _FORGETTING * self._sum + correlation
        self._last = correlation
        candidate, certain = self._best(correlation, latest, block.base)
        if candidate is not None and _is_high(correlation, candidate - block.base):
            self._consider(candidate, block.near_index, certain)
        if self.lag is not None:
            self._track(correlation, block)

    def _rebase(self, block: "_Block") -> None:
        """Move what was summed to where a change of arrival and the drift put it."""
        drift = (self.drift_ppm or 0.0) * 1e-6
        self._slip += drift * (block.near_index - self._judged_at)
        whole = round(self._slip)
        self._slip -= whole
        shift = self._sum_base - block.base + whole
        if shift:
            self._sum, self._last = _shifted(self._sum, shift), _shifted(self._last, shift)
        self._sum_base, self._judged_at = block.base, block.near_index

    def _best(self, alone: FloatArray, latest: FloatArray, base: int) -> tuple[float | None, bool]:
        """The lag that stands out in this block, with the last, or in the sum; None if none does.

        And whether this block alone leaves no doubt.
        """
        for correlation, ratio, height, certain in (
            (alone, 3.5, 20.0, True),
            (latest, 2.0, 12.0, False),
            (self._sum, 1.7, 10.0, False),
        ):
            peak = find_peak(correlation)
            if peak.surpasses(ratio, height):
                return base + peak.index, certain
        return None, False

    def _consider(self, lag: float, near_index: int, certain: bool) -> None:
        """Believe what leaves no doubt, or two blocks agree on."""
        known, since = self._candidate, self._candidate_since
        self._candidate, self._candidate_since = lag, near_index
        if self.lag is not None and abs(lag - self.lag) <= _TRACKED_SAMPLES:
            return
        agreed = known is not None and abs(lag - known) <= _ALIKE_SAMPLES
        if agreed or certain:
            self.lag, self.since = lag, since if agreed else near_index
            self._drift.jump()

    def _track(self, correlation: FloatArray, block: "_Block") -> None:
        assert self.lag is not None
        first = round(self.lag) - block.base - _TRACKED_SAMPLES
        if first < 1 or first + 2 * _TRACKED_SAMPLES >= LAGS:
            return
        near_peak = correlation[first : first + 2 * _TRACKED_SAMPLES + 1]
        at = first + int(np.argmax(np.abs(near_peak)))
        if abs(correlation[at]) < 8.0 * float(np.sqrt(np.mean(correlation**2))):
            return
        lag = self._drift.add(block.near_index, block.base + at + _summit(correlation, at))
        if lag is not None:
            self.lag = lag


class _Block:
    """Half a second of microphone on its way to a correlation, in three steps."""

    def __init__(self, near: FloatArray, near_index: int, base: int) -> None:
        self.near_index = near_index
        self.base = base
        self.worthless = False
        self._near = near
        self._far_spectrum: ComplexArray | None = None
        self._product: ComplexArray | None = None

    def work(self, read_far: Callable[[int, int], FloatArray]) -> FloatArray | None:
        """The next step; in the end the correlation [LAGS] by lag from `base` on."""
        if self._far_spectrum is None:
            self._far_spectrum = self._transform_far(read_far)
        elif self._product is None:
            self._product = self._compare(self._far_spectrum)
        else:
            spectrum = np.zeros(_FFT_SAMPLES // 2 + 1, np.complex64)
            spectrum[_BINS] = self._product
            return np.fft.irfft(spectrum)[BLOCK_SAMPLES:].astype(np.float32, copy=False)
        return None

    def _transform_far(self, read_far: Callable[[int, int], FloatArray]) -> ComplexArray | None:
        far = read_far(self.near_index - self.base - LAGS, _FFT_SAMPLES)
        self.worthless = not _is_spoken(far)
        if self.worthless:
            return None
        spectrum = _whitened(_spectrum(far * _FAR_EDGES))
        self.worthless = _breadth(spectrum) < _LEAST_BREADTH
        return spectrum

    def _compare(self, far_spectrum: ComplexArray) -> ComplexArray:
        spectrum = _spectrum(self._near * _NEAR_EDGES)
        energy = 2.0 * float(np.vdot(spectrum, spectrum).real) / _FFT_SAMPLES
        self.worthless = energy < _AUDIBLE_POWER * BLOCK_SAMPLES
        product: ComplexArray = _whitened(spectrum) * np.conj(far_spectrum)
        return product


def _is_spoken(far: FloatArray) -> bool:
    """Whether a quarter of a second of it is loud."""
    pieces = far.reshape(-1, BLOCK_SAMPLES // 2)
    return bool(np.max(np.einsum("ij,ij->i", pieces, pieces)) > _SPOKEN_POWER * pieces.shape[1])


def find_peak(correlation: FloatArray) -> Peak:
    """The highest point of a correlation [T], either sign: a loudspeaker may be connected so."""
    heights = np.abs(correlation)
    at = int(np.argmax(heights))
    top = float(heights[at])
    heights[max(0, at - _BEFORE_SAMPLES) : at + _AFTER_SAMPLES] = 0.0
    second, rest = float(heights.max()), float(np.sqrt(np.mean(heights**2)))
    return Peak(at + _summit(correlation, at), top / max(second, 1e-20), top / max(rest, 1e-20))


def _is_high(correlation: FloatArray, index: float) -> bool:
    """Whether this block itself bears out what the sum over several says."""
    first = max(0, round(index) - _ALIKE_SAMPLES)
    there = float(np.abs(correlation[first : first + 2 * _ALIKE_SAMPLES]).max(initial=0.0))
    return there > _BORNE_OUT * float(np.sqrt(np.mean(correlation**2)))


def _summit(correlation: FloatArray, at: int) -> float:
    """Where between the samples the peak at `at` is highest, −0.5..0.5: of a parabola."""
    if not 0 < at < len(correlation) - 1:
        return 0.0
    left, middle, right = (float(correlation[at + step]) for step in (-1, 0, 1))
    curvature = left - 2.0 * middle + right
    return min(0.5, max(-0.5, 0.5 * (left - right) / curvature)) if curvature else 0.0


def _shifted(correlation: FloatArray, by: int) -> FloatArray:
    shifted = np.zeros_like(correlation)
    if 0 <= by < len(correlation):
        shifted[by:] = correlation[: len(correlation) - by]
    elif -len(correlation) < by < 0:
        shifted[:by] = correlation[-by:]
    return shifted


def _spectrum(sound: FloatArray) -> ComplexArray:
    return np.fft.rfft(sound, _FFT_SAMPLES)[_BINS].astype(np.complex64, copy=False)


def _whitened(spectrum: ComplexArray) -> ComplexArray:
    """Divided by its envelope, which has a floor: what leaks out of a tone is no signal."""
    size = np.abs(spectrum)
    width = 2 * _ENVELOPE_BINS + 1
    total = np.cumsum(np.pad(size, (_ENVELOPE_BINS + 1, _ENVELOPE_BINS), mode="edge"))
    envelope = (total[width:] - total[:-width]) / width
    whitened: ComplexArray = spectrum / (envelope + _ENVELOPE_FLOOR * envelope.mean() + 1e-12)
    return whitened


def _breadth(whitened: ComplexArray) -> float:
    """The share of the band, 0..1, that a signal fills: tones alone say nothing of their time."""
    size = np.abs(whitened)
    energy = float(size @ size) * len(size)
    return float(size.sum()) ** 2 / energy if energy else 0.0


def _edges(samples: int) -> FloatArray:
    rising = np.sin((np.arange(_EDGE_SAMPLES) + 0.5) * (np.pi / 2 / _EDGE_SAMPLES)) ** 2
    window = np.ones(samples, np.float32)
    window[:_EDGE_SAMPLES] = rising
    window[-_EDGE_SAMPLES:] = rising[::-1]
    return window


_NEAR_EDGES = _edges(BLOCK_SAMPLES)
_FAR_EDGES = _edges(_FFT_SAMPLES)
_BINS = slice(
    int(_LOWEST_HZ * _FFT_SAMPLES / MIC_RATE_HZ), int(_HIGHEST_HZ * _FFT_SAMPLES / MIC_RATE_HZ)
)
