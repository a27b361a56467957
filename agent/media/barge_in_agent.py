"""What the barge-in policy knows of the agent: whether it sounds, is about to, may be echoed."""

from agent.types import MIC_RATE_HZ

_ECHO_TAIL_SAMPLES = MIC_RATE_HZ // 2
"""So long after the agent's last word its echo may still come in."""


class AgentVoice:
    """Follows the agent, a frame of the microphone at a time; all times in samples at 16 kHz.

    `guard_samples`: so much of its first words the echo canceller still converges.
    """

    def __init__(self, guard_samples: int) -> None:
        self._guard_samples = guard_samples
        self._now = 0
        self._sounded = 0
        self._silent_since = -_ECHO_TAIL_SAMPLES
        self.sounding = False
        """Whether a turn has begun and is not over, ducked or not."""
        self.unheard = False
        """Whether it is known that nothing of it comes back."""
        self.held = False
        """Whether the next turn is there but has not begun: nothing of it can be echoed yet."""

    @property
    def talking(self) -> bool:
        """Whether there is a turn to be given up."""
        return self.sounding or self.held

    @property
    def silent(self) -> bool:
        """Whether nothing of it can be heard, not even its last echo."""
        return not self.sounding and self._now - self._silent_since >= _ECHO_TAIL_SAMPLES

    @property
    def guarded(self) -> bool:
        """Whether what sounds like speech may be echo that is not cancelled yet."""
        return self._sounded < self._guard_samples and not (self.silent or self.unheard)

    def follow(self, now: int, sounding: bool, held: bool) -> None:
        """The microphone stands at `now`."""
        if self.sounding:
            self._sounded += now - self._now
            self._silent_since = now
        self._now = now
        self.sounding = sounding
        self.held = held and not sounding
