"""Everything between the microphone and the engine, joined: echo, speech, barge-in, units."""

from collections import deque
from typing import Protocol, TypeAlias

import numpy as np

from agent.commands import Retract
from agent.interfaces import EchoCanceller, VoiceDetector
from agent.media.audio import SILENCE_DBFS, falling_edge, power_dbfs
from agent.media.barge_in import BargeIn, BargeInDue, BargeInEvent, DuckDue, ResumeDue
from agent.media.early_unit import EarlyUnit
from agent.media.echo_canceller import MeasuringCanceller, TracingCanceller
from agent.media.echo_level import EchoLevel
from agent.media.overlap import VoiceFrame
from agent.media.room_tone import RoomTone
from agent.media.units import UnitBuilder
from agent.media.vad import Judged
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    UNIT_SAMPLES,
    AudioFrame,
    FloatArray,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
    VideoFrame,
)

__all__ = ["BargeInDue", "DuckDue", "FrontEnd", "FrontEndEvent", "ResumeDue", "SpeechDetector"]

FrontEndEvent: TypeAlias = Unit | Retract | BargeInEvent

MAX_FILLED_SAMPLES = MIC_RATE_HZ
"""A hole of up to a second in the microphone becomes silence; the rest of a longer one is lost."""


class SpeechDetector(VoiceDetector, Protocol):
    """A voice detector that also tells how sure it is, and how far the speech was heard."""

    @property
    def speaking(self) -> bool:
        """Whether a segment is open."""

    @property
    def voiced_until(self) -> int:
        """The end of the last frame that held speech, in samples at 16 kHz."""

    def take_judged(self) -> list[Judged]:
        """Its frames since the last call, in order."""

    def end(self) -> list[SpeechEnded]:
        """Somebody else knows that speech is over: it ended where it was heard last."""


class FrontEnd:
    """Takes 10 ms of microphone at a time and tells, in stream order, what is in it.

    Speech is looked for in the signal without echo. Units hear the signal without echo while the
    agent sounds, and the microphone itself while it is silent, ducked or not, and its echo is
    gone: the canceller spares the echo nowhere and the user's voice not always.

    All sample indices that come out count the samples taken in, holes of up to a second
    included; they equal the microphone's own `start` until a longer hole. What one push gives is
    ordered: `SpeechStarted` before its `BargeInDue`, both before the `Unit` that the same frame
    completed. `at` of a speech event may lie in a unit that was given before: onsets reach back
    by their padding, ends are noticed late.

    A unit may be tried before it is whole: when `early_is_due`, whoever knows that the engine waits
    asks for it by `try_early`. If the user goes on speaking before the second is over, a `Retract`
    comes, and the whole unit at its end as ever; if not, the next one begins where that was cut.
    """

    def __init__(
        self,
        canceller: EchoCanceller,
        detector: SpeechDetector,
        units: UnitBuilder,
        barge_in: BargeIn,
        early: EarlyUnit | None = None,
    ) -> None:
        self._canceller = canceller
        # Asked once: to look whether an object fits a protocol takes 80 µs.
        self._measuring = canceller if isinstance(canceller, MeasuringCanceller) else None
        self._tracing = canceller if isinstance(canceller, TracingCanceller) else None
        self._detector = detector
        self._units = units
        self._barge_in = barge_in
        self._ears = _UnitEars(canceller.delay_samples)
        self._level = _Level()
        self._frames = _Frames()
        self._echo_level = EchoLevel()
        self._early = early or EarlyUnit()
        self._tone = RoomTone()
        self._agent_playing = self._agent_held = False
        self._position = 0
        self._expected: int | None = None
        self._half_duplex = False

    @property
    def position(self) -> int:
        """How much of the microphone was taken in: the scale of all sample indices."""
        return self._position

    @property
    def erle_db(self) -> float:
        """What the canceller says of itself; 0 when it does not measure, or not yet."""
        return self._measuring.erle_db if self._measuring else 0.0

    @property
    def echo_delay_ms(self) -> float:
        """How far the echo is behind what was sent; 0 while that is unknown."""
        return self._measuring.delay_ms if self._measuring else 0.0

    @property
    def near_level_dbfs(self) -> float:
        """The microphone's effective level over the last 200 ms or so, echo included."""
        return self._level.dbfs

    def update(self, settings: SessionSettings) -> None:
        """From the next frame on these settings hold."""
        self._detector.update(settings.turn_detection)
        self._barge_in.update(settings.turn_detection)
        self._units.pictures_per_unit = settings.pictures_per_unit
        self._early.update(settings)
        self._half_duplex = settings.mode == "half_duplex"

    def agent_silenced(self) -> None:
        """The agent was cut off: what it says next, however soon, is another turn."""
        self._barge_in.agent_stopped()

    def push_far(self, frame: AudioFrame) -> None:
        """What was just handed to the sender, 24 kHz."""
        self._canceller.push_far(frame)

    def push(
        self,
        frame: AudioFrame,
        agent_playing: bool,
        picture: VideoFrame | None = None,
        *,
        agent_held: bool = False,
    ) -> list[FrontEndEvent]:
        """10 ms at 16 kHz [160]; `ValueError` for anything else. What was found in them.

        A picture joins the unit that holds this frame. In half duplex the microphone is silent
        while the agent plays. `agent_held`: it does not play, but its next turn is about to.
        """
        if frame.rate_hz != MIC_RATE_HZ or len(frame.samples) != MIC_FRAME_SAMPLES:
            raise ValueError(f"not 10 ms at 16 kHz: {len(frame.samples)} at {frame.rate_hz} Hz")
        events: list[FrontEndEvent] = []
        for _ in range(self._frames_missing(frame)):
            silence = np.zeros(MIC_FRAME_SAMPLES, np.float32)
            events += self._hear(silence, agent_playing, agent_held)
        if picture is not None:
            self._units.add_picture(picture)
        deaf = self._half_duplex and agent_playing
        samples = np.zeros(MIC_FRAME_SAMPLES, np.float32) if deaf else frame.samples
        return events + self._hear(samples, agent_playing, agent_held)

    # ---- early units --------------------------------------------------------------------------

    @property
    def wants_picture(self) -> bool:
        """Whether the next frame ends a part of the unit that has a picture of its own."""
        return self._units.wants_picture(MIC_FRAME_SAMPLES)

    @property
    def early_is_due(self) -> bool:
        """Whether the user seems to have finished, and the open unit had better be tried now."""
        return not self.tries_early and self._early.is_due(self._position, self._units.filled)

    @property
    def tries_early(self) -> bool:
        """Whether the open unit was tried, and is neither whole nor retracted yet."""
        return self._units.tried is not None

    @property
    def voiced_until(self) -> int:
        """The last sample of the user's that was speech."""
        return self._detector.voiced_until

    def try_early(self, picture: VideoFrame | None = None) -> Unit:
        """The open unit as if silence followed, with one more picture; when `early_is_due`."""
        self._early.tried(self._position)
        quiet = self._position - self._early.silence_from
        silence = self._tone.silence(quiet, UNIT_SAMPLES, self._position)
        return self._units.try_early(silence, picture)

    def stand_early(self) -> None:
        """What was tried is not taken back any more, whatever follows."""
        self._units.stand()

    def end_speech(self) -> list[FrontEndEvent]:
        """The engine answers, so the user has finished: what there is to be told of that."""
        for ended in self._detector.end():
            self._barge_in.speech_ended(ended.at)
        return [*self._barge_in.advance(self._position, self._agent_playing, held=self._agent_held)]

    def finish(self) -> list[FrontEndEvent]:
        """End of the microphone: the end of speech still open, and the unit begun."""
        events: list[FrontEndEvent] = [*self._barge_in.finish()]
        unit = self._units.finish()
        return [*events, unit] if unit is not None else events

    def _frames_missing(self, frame: AudioFrame) -> int:
        """Whole frames of silence before this one; a time line that jumps back has none."""
        hole = 0 if self._expected is None else frame.start - self._expected
        self._expected = frame.start + MIC_FRAME_SAMPLES
        return min(max(hole, 0), MAX_FILLED_SAMPLES) // MIC_FRAME_SAMPLES

    def _hear(self, near: FloatArray, agent_playing: bool, agent_held: bool) -> list[FrontEndEvent]:
        self._position += MIC_FRAME_SAMPLES
        self._level.push(near)
        cleaned = self._canceller.cancel(near)
        alone = self._barge_in.hears_echo_alone
        sent_power = self._tracing.sent_power if self._tracing else None
        over_db = self._echo_level.push(near, sent_power, echo_alone=alone)
        self._frames.push(near, cleaned, over_db)
        events: list[FrontEndEvent] = [*self._judge(cleaned, agent_playing, agent_held)]
        sounding = agent_playing and not self._barge_in.ducked
        heard = self._ears.push(near, cleaned, sounding, self.echo_delay_ms)
        return events + self._collect(heard)

    def _collect(self, heard: FloatArray) -> list[FrontEndEvent]:
        """The next 10 ms of what the engine is to hear."""
        events: list[FrontEndEvent] = []
        tried = self._units.tried
        if tried is not None and self._early.was_wrong:
            self._units.retract()
            events.append(Retract(tried.index))
        self._tone.push(heard)
        unit = self._units.push(heard)
        return [*events, unit] if unit is not None else events

    def _judge(
        self, cleaned: FloatArray, agent_playing: bool, agent_held: bool
    ) -> list[BargeInEvent]:
        for event in self._detector.push(cleaned):
            if isinstance(event, SpeechStarted):
                self._barge_in.speech_started(event.at)
            else:
                self._barge_in.speech_ended(event.at)
        if self._detector.speaking:
            self._barge_in.speech_continues(self._detector.voiced_until)
        self._barge_in.echo_delay_ms = self.echo_delay_ms
        for judged in self._detector.take_judged():
            self._barge_in.hear(self._frames.frame(judged))
            self._early.hear(judged)
        self._agent_playing, self._agent_held = agent_playing, agent_held
        unheard = self._tracing.no_echo if self._tracing else False
        return self._barge_in.advance(
            self._position, agent_playing, held=agent_held, unheard=unheard
        )


class _UnitEars:
    """Chooses what units hear, and crosses over within one frame.

    The microphone is delayed as the canceller delays it: without that, a word that a change-over
    falls into would be cut by 8 ms.
    """

    _longest_tail_frames = 100
    # Beyond the echo's delay: the room, and the pull that the last sound still waits for.
    _room_ms = 250.0

    def __init__(self, delay_samples: int) -> None:
        self._echo_frames_left = 0
        self._delayed = np.zeros(delay_samples, np.float32)
        self._falling = falling_edge(MIC_FRAME_SAMPLES)

    def push(
        self, near: FloatArray, cleaned: FloatArray, agent_sounding: bool, echo_delay_ms: float
    ) -> FloatArray:
        """10 ms of what the next unit hears; `echo_delay_ms` is 0 where it is unknown."""
        line = np.concatenate((self._delayed, near))
        near, self._delayed = line[: len(near)], line[len(near) :]
        tail = self._tail_frames(echo_delay_ms)
        left = tail if agent_sounding else max(0, self._echo_frames_left - 1)
        before, self._echo_frames_left = self._echo_frames_left, left
        if bool(before) == bool(left):
            return cleaned if left else near
        leaving, coming = (near, cleaned) if left else (cleaned, near)
        return leaving * self._falling + coming * (1.0 - self._falling)

    def _tail_frames(self, echo_delay_ms: float) -> int:
        if echo_delay_ms <= 0:
            return self._longest_tail_frames
        return min(int((echo_delay_ms + self._room_ms) / 10), self._longest_tail_frames)


class _Frames:
    """What the last 30 ms, about a frame of the detector, were like on average."""

    def __init__(self) -> None:
        self._slots: deque[tuple[float, float, float]] = deque(maxlen=3)

    def push(self, near: FloatArray, cleaned: FloatArray, over_echo_db: float) -> None:
        """The next 10 ms."""
        near_power, cleaned_power = (
            float(np.dot(part, part)) / len(part) for part in (near, cleaned)
        )
        self._slots.append((near_power, cleaned_power, over_echo_db))

    def frame(self, judged: Judged) -> VoiceFrame:
        """`judged`, which has just ended, with its levels."""
        count = len(self._slots)
        near, cleaned, over_db = (sum(values) / count for values in zip(*self._slots, strict=True))
        return VoiceFrame(
            judged.until, judged.likelihood, power_dbfs(cleaned), power_dbfs(near), over_db
        )


class _Level:
    """A smoothed level."""

    _smoothing = 0.05

    def __init__(self) -> None:
        self._power = 0.0
        self.dbfs = SILENCE_DBFS

    def push(self, frame: FloatArray) -> None:
        power = float(np.dot(frame, frame)) / len(frame)
        self._power += self._smoothing * (power - self._power)
        self.dbfs = power_dbfs(self._power)
