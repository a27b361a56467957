"""When the open unit is tried before its second is over: policy alone, driven by sample counts.

The engine decides once a second, so an answer waits half a second on average before anything is
computed. Once the user's speech has been followed by sure silence, the rest of the second is taken
to be silence too. Should he speak before that second is really over, the unit was never tried.
"""

from dataclasses import dataclass
from typing import Final

from agent.media.vad import Judged
from agent.types import MIC_RATE_HZ, UNIT_SAMPLES, Eagerness, SessionSettings, TurnDetection

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_VOICED = 0.5
_USUAL_SILENCE_MS = TurnDetection().silence_duration_ms
_SEMANTIC: Final[dict[Eagerness, float]] = {"low": 0.25, "medium": 0.5, "high": 0.75}
"""How eager the model is made by the words of `semantic_vad`."""
_LEAST_MS, _MOST_MS = 128, 640


@dataclass(frozen=True, slots=True)
class EarlyUnitRules:
    """When silence is sure. `bench.unit_wait` shows what other values would do."""

    silence_ms: int = 192
    """Of sure silence, which the detector tells of some 140 ms late. Sessions that are not eager
    wait up to 1.4 times as long, eager ones down to 0.7, those for which the detector has to wait
    longer as much longer."""
    quiet: float = 0.2
    """Frames of the detector that are less likely than this to hold speech are silence."""
    speech_ms: int = 128
    """What is shorter was no utterance that anybody would answer."""
    least_gain_ms: int = 160
    """A unit that is whole so soon is waited for."""


class EarlyUnit:
    """Follows the user's speech: is the open unit to be tried now, and was that wrong?

    One pause is tried once. A unit holds no less than `silence_ms` of the microphone when it is
    tried, so that no more than 0.8 s of silence is ever made up.
    """

    def __init__(self, rules: EarlyUnitRules | None = None) -> None:
        self._rules = rules or EarlyUnitRules()
        self._silence = 0
        self._is_on = False
        self._voiced = 0
        self._sound_until = 0
        self._heard_until = 0
        self._tried_at = 0
        self.was_wrong = False
        """Whether the user has spoken since the open unit was tried."""

    @property
    def silence_from(self) -> int:
        """Where the last frame ended that was no sure silence, in samples."""
        return self._sound_until

    def update(self, settings: SessionSettings) -> None:
        """Whoever commits his turns himself, or asks for answers, is not guessed at."""
        self._silence = int(self._silence_ms(settings)) * _SAMPLES_PER_MS
        detection = settings.turn_detection
        free = detection is not None and detection.create_response and settings.mode == "duplex"
        # Text cannot be unsaid, sound that was not heard can.
        self._is_on = settings.early_units and free and "audio" in settings.output_modalities

    def _silence_ms(self, settings: SessionSettings) -> float:
        eagerness, detection = settings.eagerness, settings.turn_detection
        asked = 1.0
        if detection is not None and detection.kind == "semantic_vad":
            eagerness = _SEMANTIC.get(detection.eagerness, eagerness)
        elif detection is not None:
            asked = detection.silence_duration_ms / _USUAL_SILENCE_MS
        needed_ms = self._rules.silence_ms * asked * 2 ** (0.5 - eagerness)
        return min(max(needed_ms, _LEAST_MS), _MOST_MS)

    def hear(self, judged: Judged) -> None:
        """The next frame of the detector."""
        length, self._heard_until = judged.until - self._heard_until, judged.until
        if judged.likelihood >= self._rules.quiet:
            self._sound_until = judged.until
        if judged.likelihood >= _VOICED:
            self._voiced += length
            self.was_wrong = self.was_wrong or judged.until > self._tried_at

    def is_due(self, now: int, filled: int) -> bool:
        """Whether to try, with the microphone at `now` and so much of the open unit there."""
        if not self._is_on or self._voiced < self._rules.speech_ms * _SAMPLES_PER_MS:
            return False
        gain = UNIT_SAMPLES - filled
        sure = now - self._sound_until >= self._silence and filled >= self._silence
        return sure and gain >= self._rules.least_gain_ms * _SAMPLES_PER_MS

    def tried(self, now: int) -> None:
        """The open unit is tried, the microphone at `now`."""
        self._tried_at = now
        self._voiced = 0
        self.was_wrong = False
