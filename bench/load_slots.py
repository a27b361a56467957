"""How late the 20 ms slots of a voice come, told by the RTP timestamps alone.

A slot's due time is where it lies on the grid that the earliest slot of the call sets, so that
this works for any sender, seen from its own side or from its peer's. A sender that gives up its
grid after a long stall begins a new one; the slots that it never filled are missing then, and a
missing slot is as late as can be.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SLOT_S = 0.02
_SLOT_TICKS = 960
_WRAP = 1 << 32
_LONGEST = 100_000  # slots kept of one window: more than half an hour
_MOVED_S = 0.2
_MOVED_SLOTS = 50

Times = npt.NDArray[np.float64]


class SlotLog:
    """Notes the packets of one stream, on one clock; `begin` a window, then ask for `late_ms`."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._timestamps: list[int] = []
        self._sizes: list[int] = []
        self._origin: int | None = None
        self._grid_s = float("inf")

    def note(self, at_s: float, timestamp: int, size: int) -> None:
        """A packet of `size` bytes passed; beyond half an hour without `begin` none are kept."""
        if len(self._times_s) < _LONGEST:
            self._times_s.append(at_s)
            self._timestamps.append(timestamp)
            self._sizes.append(size)

    @property
    def last_timestamp(self) -> int | None:
        """Of the newest packet in the window."""
        return self._timestamps[-1] if self._timestamps else None

    def begin(self) -> None:
        """Forget the packets so far, but not the grid that they lie on."""
        self._late_s()
        self._times_s, self._timestamps, self._sizes = [], [], []

    def share_above(self, size: int) -> float:
        """How many of the window's packets are larger than `size`: those that hold speech."""
        return float(np.mean(np.array(self._sizes) > size)) if self._sizes else 0.0

    def late_ms(self, window_s: float) -> Times:
        """Lateness of each slot of a window that was so long; infinite for those missing."""
        late_s = self._late_s()
        # A window begins and ends anywhere between two slots.
        missing = max(0, int(window_s / SLOT_S) - 1 - len(late_s))
        return np.concatenate((1000 * late_s, np.full(missing, np.inf)))

    def _late_s(self) -> Times:
        if not self._times_s:
            return np.zeros(0)
        if self._origin is None:
            self._origin = self._timestamps[0]
        ticks = np.array(self._timestamps, np.int64) - self._origin
        # Half the range back: packets may be out of order.
        slots = ((ticks + _WRAP // 2) % _WRAP - _WRAP // 2) // _SLOT_TICKS
        grid_s = np.array(self._times_s) - slots * SLOT_S
        first_s = min(self._grid_s, float(grid_s[:_MOVED_SLOTS].min()))
        late_s = self._since_moves(grid_s, first_s)
        self._grid_s = float(grid_s[-1] - late_s[-1])
        return late_s

    def _since_moves(self, grid_s: Times, first_s: float) -> Times:
        """How far each slot lies behind its grid, which moves on when a stall is given up."""
        late_s, begin, now_s = np.empty_like(grid_s), 0, first_s
        for index in np.flatnonzero(grid_s - first_s > _MOVED_S):
            moved_s = float(grid_s[index : index + _MOVED_SLOTS].min())
            if moved_s - now_s > _MOVED_S:
                late_s[begin:index] = grid_s[begin:index] - now_s
                begin, now_s = int(index), moved_s
        late_s[begin:] = grid_s[begin:] - now_s
        # A grid set by a late slot at the beginning is corrected by earlier ones after it.
        return late_s - min(0.0, float(late_s.min()))


@dataclass(frozen=True, slots=True)
class Lateness:
    """Of all slots of all calls in a window, in ms; missing slots count as late without end."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    on_time: float
    """The share that was at most 20 ms late."""
    missing: int

    @classmethod
    def of(cls, late_ms: Times) -> "Lateness":
        """Sum up; nothing at all is nothing on time."""
        if not len(late_ms):
            return cls(float("inf"), float("inf"), float("inf"), 0.0, 0)
        here = late_ms[np.isfinite(late_ms)]
        p50_ms, p99_ms = np.percentile(late_ms, [50, 99], method="higher")
        return cls(
            float(p50_ms),
            float(p99_ms),
            float(here.max()) if len(here) else float("inf"),
            float(np.mean(late_ms <= 1000 * SLOT_S)),
            int(len(late_ms) - len(here)),
        )
