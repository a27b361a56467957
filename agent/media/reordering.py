"""How long a hole in a stream of packets is worth waiting for."""

from collections import deque

_MAX_MISSING = 256
_OUTCOMES = 16
_MIN_FOUND_SHARE = 1 / 8
_MARGIN = 1.25
_MARGIN_S = 0.002
_NEVER = -1.0


class Reordering:
    """Learned from what came out of the last 16 holes.

    A hole either fills up late (packets overtook each other) or never (loss). As long as at least
    one in eight filled up within the longest wait, holes wait for the longest such delay and a
    quarter more; otherwise, as on a link that only loses, they do not wait at all.
    """

    def __init__(self, longest_wait_s: float) -> None:
        self._longest_wait_s = longest_wait_s
        self._missing: dict[int, float] = {}  # sequence number → when a later packet came
        self._delays_s: deque[float] = deque(maxlen=_OUTCOMES)
        self.wait_s = 0.0

    def miss(self, first: int, end: int, now_s: float) -> None:
        """Packets `first` up to `end` were overtaken; the oldest of more than 256 are forgotten."""
        for sequence in range(max(first, end - _MAX_MISSING), end):
            self._missing[sequence] = now_s
        while len(self._missing) > _MAX_MISSING:
            del self._missing[next(iter(self._missing))]

    def found(self, sequence: int, now_s: float) -> bool:
        """A packet came after a later one; False when it was not missing."""
        opened_s = self._missing.pop(sequence, None)
        if opened_s is None:
            return False
        delay_s = now_s - opened_s
        self._learn(delay_s if delay_s <= self._longest_wait_s else _NEVER)
        return True

    def lose(self) -> None:
        """A hole was waited for in vain."""
        self._learn(_NEVER)

    def deadline_s(self, sequence: int) -> float:
        """Until when to wait for a missing packet; the past if it is not known to be missing."""
        return self._missing.get(sequence, float("-inf")) + self.wait_s

    def forget(self) -> None:
        """Another source: other numbers."""
        self._missing.clear()

    def _learn(self, delay_s: float) -> None:
        self._delays_s.append(delay_s)
        found = sum(delay_s != _NEVER for delay_s in self._delays_s)
        self.wait_s = 0.0
        if found >= _MIN_FOUND_SHARE * len(self._delays_s):
            self.wait_s = min(_MARGIN * max(self._delays_s) + _MARGIN_S, self._longest_wait_s)
