"""How fast two clocks drift apart, from a track of delays that may jump now and then."""

from collections import deque
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from agent.types import MIC_RATE_HZ

MAX_PPM = 700.0
"""Sound cards are off by up to 500 ppm; what looks faster is something else."""

_POINTS = 48
_FEWEST_POINTS = 6
_FEWEST_IN_SEGMENT = 3
_PAUSE_SAMPLES = 2 * MIC_RATE_HZ
_JUMP_SAMPLES = 5.0
_NOISE_SAMPLES = 0.1
_CERTAIN_PPM = 15.0

FloatArray64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Point:
    at: int
    lag: float
    segment: int


class ClockDrift:
    """Fits one slope to the pieces of a track: `add` delays in samples at 16 kHz, in order.

    A jump (a jitter buffer that skips or stretches) begins a new piece, and so does a pause of
    two seconds: only what happens within a piece is drift. A point that lies off alone is not
    believed.
    """

    def __init__(self) -> None:
        self.ppm: float | None = None
        """Samples in a million by which the delay grows; None while uncertain."""
        self._points: deque[_Point] = deque(maxlen=_POINTS)
        self._segment = 0
        self._doubtful: _Point | None = None

    def jump(self) -> None:
        """The delay is another one from here on."""
        self._segment += 1
        self._doubtful = None

    def add(self, at: int, lag: float) -> float | None:
        """A delay measured at sample `at`; the delay as it is now, None for a point in doubt."""
        expected = self._expected(at)
        point = _Point(at, lag, self._segment)
        if expected is not None and abs(lag - expected) > self._tolerance(at):
            return self._doubt(point)
        self._doubtful = None
        self._believe(point)
        return lag

    def _doubt(self, point: _Point) -> float | None:
        before, self._doubtful = self._doubtful, point
        if before is None or abs(point.lag - before.lag) > _JUMP_SAMPLES:
            return None
        self.jump()
        self._believe(_Point(before.at, before.lag, self._segment))
        self._believe(_Point(point.at, point.lag, self._segment))
        return point.lag

    def _expected(self, at: int) -> float | None:
        """The lag that the open segment predicts; None where it has nothing to say."""
        if not self._points or self._points[-1].segment != self._segment:
            return None
        last = self._points[-1]
        if at - last.at > _PAUSE_SAMPLES:
            self.jump()
            return None
        return last.lag + (self.ppm or 0.0) * 1e-6 * (at - last.at)

    def _tolerance(self, at: int) -> float:
        unknown_ppm = MAX_PPM if self.ppm is None else 100.0
        return _JUMP_SAMPLES + unknown_ppm * 1e-6 * (at - self._points[-1].at)

    def _believe(self, point: _Point) -> None:
        self._points.append(point)
        slope, error = self._fit()
        if error * 1e6 <= _CERTAIN_PPM and abs(slope) * 1e6 <= MAX_PPM:
            self.ppm = slope * 1e6

    def _fit(self) -> tuple[float, float]:
        """Slope of all segments together and its standard error, in samples a sample."""
        spread, common, squares, count = 0.0, 0.0, 0.0, 0
        for times, lags in self._centred():
            spread += float(times @ times)
            common += float(times @ lags)
            squares += float(lags @ lags)
            count += len(times)
        if count < _FEWEST_POINTS:
            return 0.0, 1.0
        slope = common / spread
        residual = max(0.0, squares - slope * common) / (count - 2)
        return slope, sqrt((residual + _NOISE_SAMPLES**2) / spread)

    def _centred(self) -> list[tuple[FloatArray64, FloatArray64]]:
        """Times and lags of each segment, less their means."""
        table = np.array([(point.at, point.lag, point.segment) for point in self._points])
        pieces = [table[table[:, 2] == number, :2] for number in np.unique(table[:, 2])]
        long = [piece - piece.mean(axis=0) for piece in pieces if len(piece) >= _FEWEST_IN_SEGMENT]
        return [(piece[:, 0], piece[:, 1]) for piece in long]
