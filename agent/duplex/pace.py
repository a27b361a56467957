"""How a call's sound comes: a second of it for each unit, and some units later than others."""

from collections import deque

from agent.clock import Clock

_WATCHED_UNITS = 16
"""Speaking units, the slowest of which tells how late the next one may be."""
_LEAST_SLACK_MS = 60
_MOST_SLACK_MS = 500
"""More than that a caller would wait longer than he would mind a gap."""


class Pace:
    """Tells how long the first sound of a turn is to be held, that no gap follows it."""

    def __init__(self, clock: Clock, period_ms: int) -> None:
        """A second of sound is expected every `period_ms`."""
        self._clock = clock
        self._period_ms = period_ms
        self._took_ms: deque[float] = deque(maxlen=_WATCHED_UNITS)
        self._came_s = 0.0

    def begin(self, came_s: float) -> None:
        """What is said from now on belongs to a unit that came at `came_s`."""
        self._came_s = came_s

    def over(self) -> None:
        """All that the unit says was said: so long it took."""
        self._took_ms.append(self._so_far_ms())

    def hold_ms(self, first_ms: int) -> int:
        """How long a first piece of `first_ms` is held, which is ready now.

        As much as it lacks of a period, and as much as the slowest unit of late came later.
        """
        late_ms = max(self._took_ms, default=0.0) - self._so_far_ms()
        slack_ms = min(max(0, int(late_ms)) + _LEAST_SLACK_MS, _MOST_SLACK_MS)
        return max(0, self._period_ms - first_ms) + slack_ms

    def _so_far_ms(self) -> float:
        return (self._clock.now_s() - self._came_s) * 1000
