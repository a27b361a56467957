"""How loud the agent's echo may be in the microphone, and by how much the microphone exceeds it.

A canceller may take a voice away together with an echo that is hardly weaker, and leave nothing
to be heard. But speech has gaps: in those of the agent the microphone is then far louder than
any echo could be.
"""

import numpy as np

from agent.media.audio import power_dbfs
from agent.types import MIC_FRAME_SAMPLES, FloatArray

LEAST_DB, MOST_DB = -3.0, 6.0
"""What is told is kept between these: no single sound shall count for more."""

_TAIL = 10 ** (-1.2 / 10)
"""What a room that needs half a second for 60 dB leaves after 10 ms."""
_AUDIBLE_POWER = 1e-6  # −60 dBFS
_LEAST_POWER = 1e-10
_SPREADS = 2.0
_FIRST_SPREAD_DB = 2.0
_OUTLIER_DB = 8.0
_OVER_FLOOR_DB = 12.0
_FLOOR_RISES = 1.005
"""Each 10 ms: 2 dB a second."""
_SETTLED_SLOTS = 150
_QUICK_SLOTS = 20


class EchoLevel:
    """Learns how much of what is sent comes back, a slot of 10 ms at a time.

    The limit lies two spreads above the mean of what came back: when the agent is alone, one
    slot in thirty is above it.
    """

    _mean_speed, _first_mean_speed = 0.003, 0.2
    _spread_speed, _first_spread_speed = 0.003, 0.1

    def __init__(self) -> None:
        self._tail = 0.0
        self._floor = 1.0
        self._return_db: float | None = None
        self._spread_db = _FIRST_SPREAD_DB
        self._slots = 0

    def push(self, near: FloatArray, sent_power: float | None, *, echo_alone: bool) -> float:
        """10 ms of the microphone: by how many dB it is above all that the echo should be.

        `sent_power`: the most that this may be the echo of, None while that is unknown.
        `echo_alone`: as far as is known nobody else is to be heard, so that the echo may be learnt
        from it. Between `LEAST_DB` and `MOST_DB`; `LEAST_DB` as long as too little is known.
        """
        power = float(np.dot(near, near)) / MIC_FRAME_SAMPLES
        self._floor = min(max(power, _LEAST_POWER), self._floor * _FLOOR_RISES)
        if sent_power is None:
            return LEAST_DB
        self._tail = max(self._tail * _TAIL, sent_power)
        over_db = self._over(power_dbfs(power), echo_alone)
        return min(max(over_db, LEAST_DB), MOST_DB)

    def _over(self, near_dbfs: float, echo_alone: bool) -> float:
        back_db = near_dbfs - power_dbfs(self._tail)
        if self._return_db is None:
            self._return_db = back_db
        over_db = back_db - self._return_db
        if echo_alone and self._tail > _AUDIBLE_POWER:
            self._learn(min(max(over_db, -_OUTLIER_DB), _OUTLIER_DB))
        if self._slots < _SETTLED_SLOTS:
            return LEAST_DB
        over_floor_db = near_dbfs - power_dbfs(self._floor) - _OVER_FLOOR_DB
        return min(over_db - _SPREADS * self._spread_db, over_floor_db)

    def _learn(self, over_db: float) -> None:
        """Fast at first: the speed falls with what was learnt already."""
        assert self._return_db is not None
        self._slots += 1
        share = 1 / (1 + self._slots / _QUICK_SLOTS)
        self._return_db += max(self._mean_speed, self._first_mean_speed * share) * over_db
        if over_db > 0:
            speed = max(self._spread_speed, self._first_spread_speed * share)
            self._spread_db += speed * (over_db - self._spread_db)
