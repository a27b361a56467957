"""What a call says: its turns as engine events, and their speech tokens made sound.

Turns keep counting through everything that starts the model afresh. As long as no vocoder is
installed, or the client wants text, a turn is captions only; so is the rest of one whose voice
fails.
"""

import logging
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace

from agent.duplex.answer_speech import OpenVoice
from agent.duplex.lanes import StageTimes
from agent.duplex.pace import Pace
from agent.duplex.usage import Meter
from agent.duplex.voice_lane import PrepareVoice
from agent.duplex.work import Voice, Work
from agent.errors import VocoderError
from agent.interfaces import Vocoder, VocoderStream
from agent.types import (
    SPEECH_RATE_HZ,
    EngineEvent,
    SpeechAudio,
    TextDelta,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
    UnitReport,
)

log = logging.getLogger(__name__)

MAX_EVENTS = 4096
"""They are taken after every piece of work, which makes a few."""
_MAX_SILENT_TURNS = 64
"""Turns that may still be interrupted: the newest."""


class VoiceLine:
    """The events of one call in order, until they are taken."""

    def __init__(self, vocoder: Vocoder | None) -> None:
        self._vocoder = vocoder
        self._stream: VocoderStream | None = None
        self._events: deque[EngineEvent] = deque(maxlen=MAX_EVENTS)
        self._silent_turns: deque[int] = deque(maxlen=_MAX_SILENT_TURNS)
        self._position = 0
        self._speaks = self._is_voiced = False
        self._opening: OpenVoice | None = None
        self._pace: Pace | None = None
        self.turn = 0
        """The newest turn."""
        self.meter = Meter()
        """Says what a turn takes."""
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

    def report(self, unit: int, stage_ms: StageTimes, context_tokens: int) -> None:
        """What a unit cost, and by now the turn that goes on."""
        report = UnitReport(unit, stage_ms, context_tokens)
        if self.is_open:
            report = replace(report, turn=self.turn, usage=self.meter.now())
        self.tell(report)

    def is_heard(self, turn: int) -> bool:
        """Whether what was said in `turn` is known by its sound; else it was read as it came."""
        return turn not in self._silent_turns

    def prepare(self, voice: str) -> Generator[Work, None, None]:
        """Have a voice ready for the next turn."""
        if self._vocoder is not None:
            preparing = PrepareVoice(self._vocoder, voice)
            yield preparing
            if preparing.error is not None:
                self._lose_voice(preparing.error)

    def begin(
        self, voice: str, *, speaks: bool, asked: bool, pace: Pace | None = None
    ) -> Sequence[Work]:
        """The next turn opens; without a pace its sound comes as fast as it can be made. `asked`
        is whether somebody wanted it now.

        → what is to be done before its first `say`, along with anything else.
        """
        self.end("interrupted")
        self.turn += 1
        self.is_open = True
        self._position = 0
        self._is_voiced = False
        self._pace = pace
        self._stream = self._opening = None
        self._speaks = speaks and self._vocoder is not None
        self._events.append(TurnStarted(self.turn, asked, self.meter.now()))
        if not speaks or self._vocoder is None:
            self._silent_turns.append(self.turn)
            return ()
        vocoder = self._vocoder
        self._opening = OpenVoice(lambda: vocoder.open(voice))
        return (self._opening,)

    def mute(self) -> None:
        """The rest of the turn is captions only."""
        if self.is_open and self._speaks:
            self._speaks, self._stream, self._opening = False, None, None
            self._silent_turns.append(self.turn)

    def tell_words(self, unit: int, text: str) -> None:
        """Words of the turn: they are there before they sound."""
        if text:
            self._events.append(TextDelta(unit, self.turn, text, self.meter.now()))

    def say(
        self, unit: int, tokens: tuple[int, ...] = (), ends: TurnEndReason | None = None
    ) -> Generator[Work, None, None]:
        """The speech tokens that came with the words; where the turn ends with them, the rest of
        its sound is heard, too. Ending it twice does nothing."""
        self._take_stream()
        self._is_voiced |= bool(tokens)
        # A turn that only calls a function has no sound, not even an end.
        is_last = ends is not None and ends != "interrupted" and self._is_voiced
        if self._stream is not None and (tokens or is_last):
            yield from self._sound(unit, Voice(self._stream, tokens, is_last))
        if ends is not None:
            self.end(ends)

    def end(self, reason: TurnEndReason) -> None:
        """The turn is over, and what is left of its sound is given up. Idempotent."""
        if not self.is_open:
            return
        self.is_open = self._speaks = False
        self._stream = self._opening = None
        self._events.append(TurnEnded(self.turn, reason, self.meter.take()))

    def _sound(self, unit: int, voice: Voice) -> Generator[Work, None, None]:
        yield voice
        if self._stream is not voice.stream:
            return  # the turn was ended meanwhile
        if voice.error is not None:
            self._lose_voice(voice.error)
            return
        samples = voice.samples
        if samples.size or voice.last:
            hold_ms = 0
            if self._pace is not None and not self._position:
                hold_ms = self._pace.hold_ms(samples.size * 1000 // SPEECH_RATE_HZ)
            start, now = self._position, self.meter.now()
            event = SpeechAudio(self.turn, unit, start, samples, voice.last, hold_ms, now)
            self._events.append(event)
        self._position += samples.size

    def _take_stream(self) -> None:
        """The turn's stream, which was opened meanwhile, unless nobody wants it any more."""
        opening, self._opening = self._opening, None
        if opening is None or not self._speaks:
            return
        if opening.error is not None:
            self._lose_voice(opening.error)
        self._stream = opening.stream

    def _lose_voice(self, error: VocoderError) -> None:
        log.warning("turn %d goes on in captions: %s", self.turn, error)
        self.mute()
