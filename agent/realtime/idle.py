"""How long nobody has said anything, for `idle_timeout_ms`; it begins at the agent's last word."""

from dataclasses import dataclass

from agent.types import MIC_RATE_HZ


@dataclass(slots=True)
class Quiet:
    """Since when it is quiet: on the call's own clock, and on the one that the client is told.

    Samples at 16 kHz; −1 as long as the agent has not spoken since it was last asked to go on.
    """

    since: int = -1
    told_since: int = -1

    def broken(self, at: int, told_at: int) -> None:
        """Somebody speaks: it begins anew."""
        self.since, self.told_since = at, told_at

    def lasts(self, at: int, timeout_ms: int) -> bool:
        """Whether it has been quiet for so long at `at`."""
        return self.since >= 0 and at - self.since >= timeout_ms * MIC_RATE_HZ // 1000

    def over(self) -> None:
        """The agent was asked to go on: nothing counts before it has."""
        self.since = self.told_since = -1
