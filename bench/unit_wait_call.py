"""One simulated call for `bench.unit_wait`: a user, the real front end and policy, a played model.

Time goes in frames of 10 ms. The model takes `COMPUTE_MS` for a unit; its answer begins as the
engine's does: with sound that is held until what follows will come in time, and 280 ms of it
silent. The user wears a headset. He goes on speaking whatever the agent does, and begins anew when
the answer is over.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from agent.clock import Clock
from agent.commands import Retract
from agent.early_try import EarlyTry
from agent.media.barge_in import BargeIn, BargeInDue, DuckDue, ResumeDue
from agent.media.early_unit import EarlyUnit, EarlyUnitRules
from agent.media.echo_canceller import PassThrough
from agent.media.front_end import FrontEnd, FrontEndEvent
from agent.media.playout import Playout
from agent.media.units import UnitBuilder
from agent.media.vad import SileroModel, SileroVad
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    UNIT_SAMPLES,
    AudioFrame,
    EngineEvent,
    FloatArray,
    SessionSettings,
    SpeechAudio,
    TurnEnded,
    TurnStarted,
    Unit,
    UnitReport,
)
from bench.unit_wait_talk import Talker, Utterance

COMPUTE_MS = 60
_FRAME_S = 0.01
_FIRST_MS, _HOLD_MS, _SILENT_MS = 880, 180, 280
_ANSWER_UNITS = 2
_PATIENCE_S = 6.0
_HASTY_SAMPLES = MIC_RATE_HZ // 4
_SHORTEST_PAUSE = MIC_RATE_HZ // 5
_AUDIBLE = 0.05


@dataclass(slots=True)
class Measured:
    """What came of a call; of each utterance its waits in ms, from its last sample on."""

    waits_ms: list[float] = field(default_factory=list)
    """Until the unit that holds its end was complete at the engine, and stayed."""
    answers_ms: list[float] = field(default_factory=list)
    """Until the first sound of the answer was sent."""
    tries: int = 0
    retracted: int = 0
    units: int = 0
    """All that the engine had to do."""
    frames: int = 0
    pauses: int = 0
    cut_in: int = 0
    """Pauses inside an utterance in which the agent was heard."""
    guesses: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)
    """What was put in the place of the rest of a unit, and what the rest was."""


class _SimulatedClock(Clock):
    def __init__(self) -> None:
        self.frames = 0

    def now_s(self) -> float:
        return self.frames * _FRAME_S


class _Model:
    """Answers as soon as `may_answer` says of a unit; what it says comes `COMPUTE_MS` later."""

    def __init__(self, clock: Clock, may_answer: Callable[[Unit], bool]) -> None:
        self._clock = clock
        self._may_answer = may_answer
        self._events: deque[tuple[float, EngineEvent]] = deque()
        self._turn = self._said = 0
        self._left = 0
        self._tried_turn = 0

    @property
    def answers(self) -> bool:
        """Whether it has something to say yet."""
        return self._left > 0 or bool(self._events)

    def hear(self, unit: Unit) -> None:
        self._tried_turn = 0
        if not self._left and self._may_answer(unit):
            self._turn += 1
            self._left, self._said = _ANSWER_UNITS, 0
            self._tried_turn = self._turn if unit.speculative else 0
            self._tell(TurnStarted(self._turn))
        if self._left:
            self._speak(unit.index)
        self._tell(UnitReport(unit.index, ()))

    def stop(self) -> None:
        """The turn is over, whatever it was about to say."""
        if self._left:
            self._left = 0
            self._events = deque(one for one in self._events if not isinstance(one[1], SpeechAudio))
            self._tell(TurnEnded(self._turn, "interrupted"))

    def take_back(self) -> None:
        if self._tried_turn == self._turn:
            self.stop()

    def said(self) -> list[EngineEvent]:
        """What it has to say by now."""
        said = []
        while self._events and self._events[0][0] <= self._clock.now_s() + 1e-9:
            said.append(self._events.popleft()[1])
        return said

    def _speak(self, unit: int) -> None:
        first = self._said == 0
        length = (_FIRST_MS if first else 1000) * SPEECH_RATE_HZ // 1000
        samples = np.full(length, 2 * _AUDIBLE, np.float32)
        if first:
            samples[: _SILENT_MS * SPEECH_RATE_HZ // 1000] = 0
        self._left -= 1
        hold_ms = _HOLD_MS if first else 0
        self._tell(SpeechAudio(self._turn, unit, self._said, samples, self._left == 0, hold_ms))
        self._said += length
        if not self._left:
            self._tell(TurnEnded(self._turn, "completed"))

    def _tell(self, event: EngineEvent) -> None:
        self._events.append((self._clock.now_s() + COMPUTE_MS / 1000, event))


class WaitCall:
    """Carries a talker's utterances through; `run` it once."""

    def __init__(
        self,
        talker: Talker,
        model: SileroModel,
        settings: SessionSettings,
        rules: EarlyUnitRules,
        *,
        is_hasty: bool,
    ) -> None:
        """A hasty model answers whatever ends in 250 ms of silence, as if nobody paused to think;
        the other one knows when the user has finished."""
        self._talker = talker
        self._clock = _SimulatedClock()
        parts = PassThrough(), SileroVad(model), UnitBuilder(), BargeIn()
        self._front_end = FrontEnd(*parts, EarlyUnit(rules))
        self._front_end.update(settings)
        self._playout = Playout()
        self._early = EarlyTry(self._front_end, self._playout, self._clock)
        self._model = _Model(self._clock, self._seems_over if is_hasty else self._is_over)
        self._spoken: list[tuple[int, int]] = []
        self._answered_until = 0
        self._speech_end = 0
        self._tried: Unit | None = None
        self._before_try = (-1, 0)
        self._since_try: list[FloatArray] = []
        self._answered_at = -1
        self._complete_at = -1
        self._audible: list[int] = []
        self.measured = Measured()

    def run(self, utterances: Iterable[Utterance]) -> Measured:
        """All of them."""
        for utterance in utterances:
            self._let_pass(utterance.reaction_samples)
            self._say(utterance)
        self.measured.frames = self._clock.frames
        return self.measured

    # ---- the user -----------------------------------------------------------------------------

    def _say(self, utterance: Utterance) -> None:
        begin = self._clock.frames * MIC_FRAME_SAMPLES
        voice_samples = len(utterance.samples)
        self._speech_end = begin + utterance.voiced_samples
        edges = [0, *(edge for pause in utterance.pauses for edge in pause)]
        ends = [*edges[1:], utterance.voiced_samples]
        self._spoken = [(begin + a, begin + b) for a, b in zip(edges[::2], ends[::2], strict=True)]
        self._complete_at = self._answered_at = -1
        self._before_try = (-1, self._answered_until)
        self._audible = []
        for at in range(0, voice_samples, MIC_FRAME_SAMPLES):
            self._step(utterance.samples[at : at + MIC_FRAME_SAMPLES])
        waited = 0.0
        while waited < _PATIENCE_S and (self._answered_at < 0 or self._is_answered_yet):
            self._step(np.zeros(0, np.float32))
            waited += _FRAME_S if self._answered_at < 0 else 0.0
        self._note(begin, utterance)

    @property
    def _is_answered_yet(self) -> bool:
        return self._model.answers or self._playout.playing or self._playout.queued_ms > 0

    def _let_pass(self, samples: int) -> None:
        for _ in range(samples // MIC_FRAME_SAMPLES):
            self._step(np.zeros(0, np.float32))

    def _note(self, begin: int, utterance: Utterance) -> None:
        measured = self.measured
        if self._complete_at >= 0 and self._answered_at >= 0:
            measured.waits_ms.append(_ms(self._complete_at - self._speech_end))
            measured.answers_ms.append(_ms(self._answered_at - self._speech_end))
        for first, last in utterance.pauses:
            if last - first >= _SHORTEST_PAUSE:
                measured.pauses += 1
                measured.cut_in += any(begin + first <= at < begin + last for at in self._audible)

    # ---- the model's mind ---------------------------------------------------------------------

    def _is_over(self, unit: Unit) -> bool:
        return self._answered_until < self._speech_end <= unit.end and self._note_answer()

    def _seems_over(self, unit: Unit) -> bool:
        heard = [min(end, unit.end) for begin, end in self._spoken if begin < unit.end]
        if not heard or heard[-1] <= self._answered_until:
            return False
        silent = unit.end - heard[-1] + UNIT_SAMPLES - unit.samples_valid
        return silent >= _HASTY_SAMPLES and self._note_answer()

    def _note_answer(self) -> bool:
        self._answered_until = self._front_end.position
        return True

    # ---- 10 ms --------------------------------------------------------------------------------

    def _step(self, voice: FloatArray) -> None:
        start = self._clock.frames * MIC_FRAME_SAMPLES
        near = self._talker.noise(MIC_FRAME_SAMPLES)
        near[: len(voice)] += voice
        self._clock.frames += 1
        if self._clock.frames % 2 == 0:
            self._pull()
        for event in self._model.said():
            self._engine_says(event)
        self._early.follow()
        playing, held = self._playout.playing, self._playout.held
        self._compare(near)
        frame = AudioFrame(near, MIC_RATE_HZ, start)
        for found in self._front_end.push(frame, playing, agent_held=held):
            self._found(found)
        if self._early.is_due:
            self.measured.tries += 1
            self._tell(self._early.begin(None))

    def _pull(self) -> None:
        sounds = np.flatnonzero(np.abs(self._playout.pull()) > _AUDIBLE)
        if not len(sounds):
            return
        at = self._clock.frames * MIC_FRAME_SAMPLES
        self._audible.append(at)
        if self._answered_at < 0 and at > self._speech_end:
            self._answered_at = at

    def _engine_says(self, event: EngineEvent) -> None:
        for found in self._early.heard(event):
            self._found(found)
        if isinstance(event, SpeechAudio):
            self._playout.push(event)
        elif isinstance(event, TurnEnded):
            self._playout.end(event.turn)

    def _found(self, found: FrontEndEvent) -> None:
        match found:
            case Unit():
                self._tell(found)
            case Retract():
                self.measured.retracted += 1
                self._tried = None
                self._complete_at, self._answered_until = self._before_try
                self._model.take_back()
                if self._early.take_back():
                    self._silence()
            case DuckDue():
                self._playout.duck()
            case ResumeDue():
                self._playout.resume()
            case BargeInDue():
                self._model.stop()
                self._silence()

    def _silence(self) -> None:
        self._playout.flush()
        self._front_end.agent_silenced()

    def _tell(self, unit: Unit) -> None:
        self.measured.units += 1
        self._early.told(unit)
        if unit.speculative:
            self._before_try = (self._complete_at, self._answered_until)
            self._tried, self._since_try = unit, []
        if self._complete_at < 0 and unit.end >= self._speech_end:
            self._complete_at = self._front_end.position
        self._model.hear(unit)

    def _compare(self, near: FloatArray) -> None:
        """What was guessed, once it is known."""
        if self._tried is None:
            return
        self._since_try.append(near)
        guess = self._tried.audio[self._tried.samples_valid :]
        if len(self._since_try) * MIC_FRAME_SAMPLES >= len(guess):
            self.measured.guesses.append((guess, np.concatenate(self._since_try)[: len(guess)]))
            self._tried = None


def _ms(samples: int) -> float:
    return samples * 1000 / MIC_RATE_HZ
