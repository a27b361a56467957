"""When the user's voice silences the agent: policy alone, driven by sample counts."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.types import MIC_RATE_HZ, SpeechEnded, SpeechStarted, TurnDetection

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
GUARD_SAMPLES = 2000 * _SAMPLES_PER_MS
"""Two seconds: so much of the agent's first words the echo canceller needs to converge."""
BLIP_SAMPLES = 400 * _SAMPLES_PER_MS
"""Speech below this length, found inside the guard, is taken for a rest of echo."""
SURE_SAMPLES = 600 * _SAMPLES_PER_MS
"""Speech of this length is the user's, guard or no guard, and whoever spoke first."""

_ECHO_TAIL_SAMPLES = 500 * _SAMPLES_PER_MS
"""So long after the agent's last word its echo may still come in."""
_FRESH_SAMPLES = 100 * _SAMPLES_PER_MS
"""Speech heard within this time goes on; older, it has paused or ended."""


@dataclass(frozen=True, slots=True)
class BargeInDue:
    """The agent must be silenced now, at sample `at` (16 kHz) of the microphone."""

    at: int


BargeInEvent: TypeAlias = SpeechStarted | SpeechEnded | BargeInDue


@dataclass(slots=True)
class _Segment:
    """Speech between its start and its end. All fields but the flags are sample indices.

    `over_agent`: it began while the agent played. `overlap_samples` counts what was heard of it,
    pauses left out, since the agent began to play; `silenced`: it stopped the agent already.
    """

    started: SpeechStarted
    onset: int
    voiced_until: int
    over_agent: bool
    guarded: bool
    reported: bool = False
    overlap_samples: int = 0
    silenced: bool = False
    ended: SpeechEnded | None = None

    @property
    def length(self) -> int:
        return self.voiced_until - self.onset


class BargeIn:
    """Onset while the agent plays silences it at once; speech that began before it, later.

    Whoever goes on speaking when the agent begins has the floor: 600 ms of speech over the agent,
    pauses not counted, silence it. Each segment silences the agent once for each time it begins.

    During the guard, the first two seconds that the agent plays in a call, what sounds like
    speech may be echo that is not cancelled yet, so decisions are postponed:
    `SpeechStarted` is held back until the speech has lasted 600 ms, or is still going on when the
    guard is over; ended before, it is reported late if it lasted 400 ms and forgotten otherwise.
    What goes on for 600 ms over the agent silences it then, and what still goes on when the guard
    is over does so at that moment.

    Tell what the detector found with `speech_started`, `speech_continues` and `speech_ended`,
    then ask with `advance`, once a frame. All times are samples of the microphone at 16 kHz.
    """

    def __init__(self, guard_samples: int = GUARD_SAMPLES) -> None:
        self._guard_samples = guard_samples
        self._detection: TurnDetection | None = TurnDetection()
        self._played = 0
        self._now = 0
        self._silent_since: int | None = None
        self._playing = False
        self._segment: _Segment | None = None
        self._reports: list[BargeInEvent] = []

    def update(self, detection: TurnDetection | None) -> None:
        """Follow these settings; None forgets the speech that is going on."""
        if detection is None:
            self._segment = None
        self._detection = detection

    def speech_started(self, at: int) -> None:
        """The detector found an onset; `at` includes its padding."""
        padding_ms = self._detection.prefix_padding_ms if self._detection else 0
        onset = min(at + padding_ms * _SAMPLES_PER_MS, self._now)
        self._segment = _Segment(
            SpeechStarted(at), onset, self._now, over_agent=self._playing, guarded=self._guarded()
        )

    def speech_continues(self, voiced_until: int) -> None:
        """The last sample of speech heard so far in the open segment, pauses not counted."""
        segment = self._segment
        if segment is None:
            return
        step = voiced_until - segment.voiced_until
        if self._playing and 0 < step <= _FRESH_SAMPLES:
            segment.overlap_samples += step
        segment.voiced_until = voiced_until

    def speech_ended(self, at: int) -> None:
        """The detector found the end of the open segment at sample `at`."""
        if self._segment is not None:
            self._segment.voiced_until = at
            self._segment.ended = SpeechEnded(at)

    def advance(self, now_samples: int, agent_playing: bool) -> list[BargeInEvent]:
        """What is to be told and done, now that the microphone stands at `now_samples`."""
        self._follow_agent(now_samples, agent_playing)
        return self._decide(self._segment) if self._segment is not None else []

    def finish(self) -> list[BargeInEvent]:
        """End of the microphone: a reported segment that is still open ends where it was heard."""
        segment, self._segment = self._segment, None
        if segment is None or not segment.reported:
            return []
        return [SpeechEnded(segment.voiced_until)]

    def _follow_agent(self, now: int, agent_playing: bool) -> None:
        if self._playing:
            self._played += now - self._now
        if agent_playing:
            self._silent_since = None
        elif self._playing:
            self._silent_since = now
            self._forget_overlap()
        self._playing = agent_playing
        self._now = now

    def _forget_overlap(self) -> None:
        """The turn that was talked over is gone: what was said over it does not stop the next."""
        if self._segment is not None:
            self._segment.over_agent = self._segment.silenced = False
            self._segment.overlap_samples = 0

    def _guarded(self) -> bool:
        if self._played >= self._guard_samples:
            return False
        since = self._silent_since
        return self._playing or (since is not None and self._now - since < _ECHO_TAIL_SAMPLES)

    def _decide(self, segment: _Segment) -> list[BargeInEvent]:
        events: list[BargeInEvent] = []
        if not segment.reported and self._is_speech(segment):
            segment.reported = True
            events.append(segment.started)
        if segment.reported and self._is_due(segment):
            segment.silenced = True
            events.append(BargeInDue(self._now))
        if segment.ended is not None:
            self._segment = None
            events += [segment.ended] if segment.reported else []
        return events

    def _is_speech(self, segment: _Segment) -> bool:
        if not segment.guarded or segment.length >= SURE_SAMPLES:
            return True
        if segment.ended is not None:
            return segment.length >= BLIP_SAMPLES
        return not self._guarded() and self._goes_on(segment)

    def _is_due(self, segment: _Segment) -> bool:
        allowed = self._detection is not None and self._detection.interrupt_response
        if not allowed or segment.silenced or not self._goes_on(segment):
            return False
        if segment.overlap_samples >= SURE_SAMPLES:
            return True
        sure = not self._guarded() or segment.length >= SURE_SAMPLES
        return segment.over_agent and sure

    def _goes_on(self, segment: _Segment) -> bool:
        return segment.ended is None and self._now - segment.voiced_until <= _FRESH_SAMPLES
