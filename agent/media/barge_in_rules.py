"""The thresholds of turn taking over the agent's speech."""

from dataclasses import dataclass

from agent.types import MIC_RATE_HZ


@dataclass(frozen=True, slots=True)
class BargeInRules:
    """Every threshold of turn taking over the agent's speech, and one dial over all of them.

    `eagerness`, 0..1, is how readily the agent yields. At 0.5 the others hold as they are; at 1
    speech is yielded to in half the time, at 0 in twice the time, and `duck_score`, `user_db`
    and `stranger_db` move along.
    """

    eagerness: float = 0.5
    guard_s: float = 2.0
    """So much of the agent's first words only speech of `sure_ms` interrupts: the echo canceller
    still converges."""
    duck_score: float = 0.5
    """Sum of speech likelihoods, each frame's counting 0.8 of the next's, at which to duck."""
    yield_ms: int = 700
    """Speech of this length interrupts."""
    repeat_share: float = 0.35
    """So much of it is enough from somebody who tries again, and again, all tries together."""
    memory_ms: int = 1000
    """Who speaks again within this time tries again."""
    resume_ms: int = 128
    """Silence of this length lets the agent go on."""
    max_duck_ms: int = 2500
    """The agent is never held longer than this without being interrupted."""
    user_db: float = 5.5
    """Speech down to this much below the user's own level counts fully."""
    stranger_db: float = 9.5
    """At this much below it and more, it is somebody else's and counts a fifth."""
    sure_ms: int = 600
    """Speech of this length is the user's, guard or no guard, and whoever spoke first."""
    blip_ms: int = 400
    """Speech below this length, found inside the guard, is taken for a rest of echo."""

    @property
    def patience(self) -> float:
        """By how much times grow with less eagerness: 2 at 0, 1 at 0.5, 0.5 at 1."""
        return float(2 ** (1 - 2 * self.eagerness))

    @property
    def reluctance(self) -> float:
        """By how much what is ducked for must be clearer with less eagerness: √2 at 0, 1 at 0.5."""
        return float(2 ** (0.5 - self.eagerness))

    @property
    def yield_samples(self) -> float:
        """So much speech interrupts, at this eagerness (16 kHz)."""
        return self.yield_ms * MIC_RATE_HZ / 1000 * self.patience
