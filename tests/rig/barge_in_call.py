"""The policy of barge-in driven as the front end drives it: who speaks when, and how."""

from dataclasses import dataclass, field, replace

from agent.media.barge_in import BargeIn, BargeInRules
from agent.media.overlap import VoiceFrame
from agent.types import SpeechEnded, SpeechStarted, TurnDetection

MS = 16
DETECTION = TurnDetection(prefix_padding_ms=0)
FRAME = 512
QUIET_DBFS = -70.0
USER_DBFS = -25.0
MELODY_DB = (0.0, -4.0, 3.0, -2.0, 2.0)
"""Speech rises and falls."""


@dataclass(frozen=True)
class Voice:
    """Somebody speaks from `begin` to `end` (ms); `likelihood` is what the detector makes of it.

    `over_echo_db`: how far the microphone is above the echo, whatever the canceller leaves of it.
    """

    begin: int
    end: int
    dbfs: float = USER_DBFS
    likelihood: float = 0.98
    melody: bool = True
    over_echo_db: float = 0.0
    near_dbfs: float | None = None

    def level_dbfs(self, frame: int) -> float:
        return self.dbfs + (MELODY_DB[frame % len(MELODY_DB)] if self.melody else 0.0)


@dataclass
class Call:
    """Drives the policy as the front end does, frame by frame; times in milliseconds.

    `agent` is when the agent plays, `held` when it is about to, `speech` when there is voice. The
    detector that it plays judges every 32 ms, finds an onset 100 ms late and an end 500 ms late.
    """

    agent: list[tuple[int, int]]
    speech: list[tuple[int, int] | Voice]
    detection: TurnDetection | None = DETECTION
    policy: BargeIn = field(default_factory=BargeIn)
    now: int = 0
    held: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy.update(self.detection)
        self.voices = [
            sound if isinstance(sound, Voice) else Voice(*sound) for sound in self.speech
        ]

    def run(self, until_ms: int) -> list[tuple[int, object]]:
        """What the policy said, and when."""
        told: list[tuple[int, object]] = []
        for now in range(self.now + 10, until_ms + 1, 10):
            self._detect(now)
            playing = any(begin < now <= end for begin, end in self.agent)
            held = any(begin < now <= end for begin, end in self.held)
            told += [(now, event) for event in self.policy.advance(now * MS, playing, held=held)]
        self.now = until_ms
        return told

    def _detect(self, now: int) -> None:
        for begin, end in self._segments():
            if now == begin + 100:
                self.policy.speech_started(begin * MS)
            if begin + 100 <= now <= end + 500:
                heard = [min(now, voice.end) for voice in self._audible() if voice.begin < now]
                self.policy.speech_continues(max(heard) * MS)
            if now == end + 500:
                self.policy.speech_ended(end * MS)
        if now * MS // FRAME > (now - 10) * MS // FRAME:
            self.policy.hear(self._frame(now * MS // FRAME))

    def _audible(self) -> list[Voice]:
        return [voice for voice in self.voices if voice.likelihood > 0.5]

    def _segments(self) -> list[tuple[int, int]]:
        """What the detector reports: speech with pauses of less than half a second."""
        segments: list[tuple[int, int]] = []
        for voice in self._audible():
            goes_on = segments and voice.begin - segments[-1][1] < 500
            begin = segments.pop()[0] if goes_on else voice.begin
            segments.append((begin, voice.end))
        return segments

    def _frame(self, number: int) -> VoiceFrame:
        until = number * FRAME
        middle_ms = (until - FRAME / 2) / MS
        for voice in self.voices:
            if voice.begin <= middle_ms < voice.end:
                level = voice.level_dbfs(number)
                near = voice.near_dbfs or level
                return VoiceFrame(until, voice.likelihood, level, near, voice.over_echo_db)
        return VoiceFrame(until, 0.01, QUIET_DBFS, QUIET_DBFS, -3.0)


def started(at_ms: int) -> SpeechStarted:
    return SpeechStarted(at_ms * MS)


def ended(at_ms: int) -> SpeechEnded:
    return SpeechEnded(at_ms * MS)


def names(told: list[tuple[int, object]]) -> list[str]:
    return [type(event).__name__ for _, event in told]


def at(told: list[tuple[int, object]], kind: type) -> list[int]:
    return [now for now, event in told if isinstance(event, kind)]


USER_FIRST = Voice(500, 2500)
"""By this the user's level becomes known."""
AFTER_QUESTION = [(4000, 30_000)]


def over_agent(*speech: Voice, rules: BargeInRules | None = None) -> Call:
    """The user asks, the agent answers; `speech` counts from 7 s on, well after the guard."""
    later = [replace(voice, begin=7000 + voice.begin, end=7000 + voice.end) for voice in speech]
    return Call(AFTER_QUESTION, [USER_FIRST, *later], policy=BargeIn(rules))


def heard_over_agent(*speech: Voice, rules: BargeInRules | None = None) -> list[tuple[int, object]]:
    """What is told from the first word over the agent on, by the time since then."""
    told = over_agent(*speech, rules=rules).run(20_000)
    return [(now - 7000, event) for now, event in told if now >= 7000]
