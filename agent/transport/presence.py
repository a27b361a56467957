"""Whether a peer is there: how long ago it gave its last sign of life, and what that means."""

from agent.clock import Clock
from agent.transport.options import RtcOptions


class Presence:
    """A peer that is silent for `watchdog_s` is away; `return_s` later it is lost."""

    def __init__(self, options: RtcOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._heard_s = clock.now_s()

    def hear(self) -> None:
        """It gives a sign of life."""
        self._heard_s = self._clock.now_s()

    @property
    def silent_s(self) -> float:
        """How long ago the last one was."""
        return self._clock.now_s() - self._heard_s

    @property
    def away_s(self) -> float:
        """How long it has been away; 0 while it is there."""
        return max(0.0, self.silent_s - self._options.watchdog_s)

    @property
    def is_lost(self) -> bool:
        """Whether it is waited for no longer."""
        return self.away_s > self._options.return_s
