"""One stretch of the user's speech, from its start to its end, as it is reported."""

from dataclasses import dataclass

from agent.types import MIC_RATE_HZ, SpeechEnded, SpeechStarted

_FRESH_SAMPLES = MIC_RATE_HZ // 10
"""Speech heard within this time goes on; older, it has paused or ended."""


@dataclass(slots=True)
class SpeechSegment:
    """Speech between its start and its end. All fields but the flags are sample indices.

    `over_agent`: it began while the agent played; `guarded`: inside the guard. `detected`: the
    detector found it, and will find its end. `overlap_samples` counts what was heard of it,
    pauses left out, since the agent began to play; `silenced`: it stopped the agent already.
    """

    started: SpeechStarted
    onset: int
    voiced_until: int
    over_agent: bool
    guarded: bool
    detected: bool = True
    reported: bool = False
    overlap_samples: int = 0
    silenced: bool = False
    ended: SpeechEnded | None = None

    @property
    def length(self) -> int:
        """From its onset to the last that was heard of it."""
        return self.voiced_until - self.onset

    def hear(self, voiced_until: int, *, agent_playing: bool) -> None:
        """It was heard until there, pauses not counted."""
        step = voiced_until - self.voiced_until
        if agent_playing and 0 < step <= _FRESH_SAMPLES:
            self.overlap_samples += step
        self.voiced_until = max(self.voiced_until, voiced_until)

    def end(self, at: int) -> None:
        """Its last sound was at `at`."""
        self.voiced_until = at
        self.ended = SpeechEnded(at)

    def goes_on(self, now: int) -> bool:
        """Whether it was heard just now."""
        return self.ended is None and now - self.voiced_until <= _FRESH_SAMPLES

    def forget_overlap(self) -> None:
        """The turn that it was spoken over is gone."""
        self.over_agent = self.silenced = False
        self.overlap_samples = 0
