"""What a call says: its turns as engine events, and their speech tokens made sound.

Turns keep counting through everything that starts the model afresh. As long as no vocoder is
installed, or the client wants text, a turn is captions only.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agent.errors import VocoderError
from agent.interfaces import Vocoder, VocoderStream
from agent.types import (
    SPEECH_RATE_HZ,
    EngineEvent,
    FloatArray,
    SpeechAudio,
    TextDelta,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
)

log = logging.getLogger(__name__)

MAX_EVENTS = 4096
"""They are taken after every piece of work, which makes a few."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a turn's sound comes: a second of it every `period_ms`, up to `slack_ms` late."""

    period_ms: int
    slack_ms: int

    def hold_ms(self, first_ms: int) -> int:
        """How long a first piece of `first_ms` is held, that no gap follows it."""
        return max(0, self.period_ms - first_ms) + self.slack_ms


class VoiceLine:
    """The events of one call in order, until they are taken."""

    def __init__(self, vocoder: Vocoder | None) -> None:
        self._vocoder = vocoder
        self._stream: VocoderStream | None = None
        self._events: deque[EngineEvent] = deque(maxlen=MAX_EVENTS)
        self._position = 0
        self._pace: Pace | None = None
        self.turn = 0
        """The newest turn."""
        self.is_open = False
        """Whether it goes on."""

    @property
    def waits(self) -> bool:
        """Whether something was said that was not taken."""
        return bool(self._events)

    def take(self) -> list[EngineEvent]:
        """What was said since the last time."""
        events = list(self._events)
        self._events.clear()
        return events

    def tell(self, event: EngineEvent) -> None:
        """An event that is not of a turn."""
        self._events.append(event)

    def begin(self, voice: str, *, speaks: bool, pace: Pace | None = None) -> None:
        """The next turn opens; without a pace its sound comes as fast as it can be made."""
        if self.is_open:
            self.end("interrupted")
        self.turn += 1
        self.is_open = True
        self._position = 0
        self._pace = pace
        self._stream = self._opened(voice) if speaks else None
        self._events.append(TurnStarted(self.turn))

    def prepare(self, voice: str) -> None:
        """Have a voice ready for the next turn."""
        try:
            if self._vocoder is not None:
                self._vocoder.prepare(voice)
        except VocoderError as error:
            log.warning("a voice cannot be spoken with: %s", error)

    def say(self, unit: int, text: str, tokens: tuple[int, ...] = ()) -> None:
        """Words of the turn, and the speech tokens that came with them."""
        if text:
            self._events.append(TextDelta(unit, self.turn, text))
        if tokens and self._stream is not None:
            self._sound(unit, lambda stream: stream.push(tokens), last=False)

    def end(self, reason: TurnEndReason, unit: int = -1) -> None:
        """The turn is over; an interrupted one's sound is given up. Idempotent."""
        if not self.is_open:
            return
        self.is_open = False
        if self._stream is not None and reason != "interrupted":
            self._sound(unit, lambda stream: stream.finish(), last=True)
        self._stream = None
        self._events.append(TurnEnded(self.turn, reason))

    def _opened(self, voice: str) -> VocoderStream | None:
        try:
            return self._vocoder.open(voice) if self._vocoder is not None else None
        except VocoderError as error:
            log.warning("turn %d is captions only: %s", self.turn, error)
            return None

    def _sound(self, unit: int, ask: Callable[[VocoderStream], FloatArray], *, last: bool) -> None:
        assert self._stream is not None
        try:
            samples = ask(self._stream)
        except VocoderError as error:
            log.warning("turn %d goes on in captions: %s", self.turn, error)
            self._stream = None
            return
        if samples.size or last:
            hold_ms = 0
            if self._pace is not None and not self._position:
                hold_ms = self._pace.hold_ms(samples.size * 1000 // SPEECH_RATE_HZ)
            event = SpeechAudio(self.turn, unit, self._position, samples, last, hold_ms)
            self._events.append(event)
        self._position += samples.size
