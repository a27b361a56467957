"""One full-duplex call on the model: units, commands and settings in, engine events out.

The model listens to every unit and decides by itself when to speak. What a client may ask of it
beyond that ends here as an order for the next unit, as words that the unit is read with, or as
work on the conversation between two units.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from agent.commands import (
    AddAudio,
    AddPicture,
    AddText,
    AddToolResult,
    ClearInput,
    Command,
    CommitInput,
    DeleteItem,
    ForceListen,
    Interrupt,
    Respond,
    Retract,
    UpdateSettings,
)
from agent.duplex.call_input import CallInput
from agent.duplex.call_parts import CallParts, CallVoices, call_prompt, conversation_settings
from agent.duplex.call_telling import CallTelling, Steps
from agent.duplex.context import lay_out_window
from agent.duplex.conversation import Conversation
from agent.duplex.conversation_settings import UnitResult
from agent.duplex.job import Job
from agent.duplex.lanes import StageTimes
from agent.duplex.pace import Pace
from agent.duplex.policy import Order, Outcome
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.tokens import Vocabulary
from agent.duplex.tool_prompt import NO_TOOLS, tool_block
from agent.duplex.tool_use import settings_of
from agent.duplex.trial import Trial
from agent.duplex.unit_input import whole_second
from agent.duplex.unit_speech import UNIT_MS
from agent.duplex.voice_line import VoiceLine
from agent.duplex.work import Work
from agent.errors import RequestError, UnsupportedError
from agent.scheduler import UNIT_S, Shown
from agent.types import SessionSettings, SpeechEnded, SpeechStarted, Unit

log = logging.getLogger(__name__)

MAX_UNITS_BEHIND = 16
"""A model that is further behind leaves out the oldest: what was said so long ago, nobody waits
to be answered any more."""
MAX_URGENT = 64
"""Interruptions and other work between two units; what comes beyond is refused."""
_ALL_MS = 1 << 40
"""Captions are heard as they are shown."""


class DuplexCall:
    """A call whose turns the model takes by itself. `next_job` between two pieces of work only."""

    def __init__(
        self, parts: CallParts, settings: SessionSettings, line: VoiceLine, voices: CallVoices
    ) -> None:
        """Take a slot; the prompt is read with the first job. CapacityError, RequestError."""
        self._parts = parts
        self._settings = settings
        self._line = line
        self._units: deque[tuple[Unit, float]] = deque(maxlen=MAX_UNITS_BEHIND)
        self._urgent: deque[Callable[[], Job]] = deque()
        self._opened = self._listens = self._sees = self._is_own = False
        self._asked: Respond | None = None
        self._to_prepare = True
        self._trial: Trial | None = None
        self._prompted = self._prompt(settings)
        self._voices = voices
        self._heard_voice = parts.voices.duplex(voices.heard)
        script = parts.script() if parts.script is not None else None
        self._talk = Conversation(
            parts.runner,
            self._prompted,
            self._heard_voice,
            conversation_settings(parts, settings),
            script,
            opened=False,
        )
        self._input = CallInput(parts.runner, self._talk, settings.max_slices)
        self._telling = CallTelling(self._talk, line, Pace(parts.runner.clock, UNIT_MS))

    # ---- what comes in --------------------------------------------------------------------------

    def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """The next unit; where speech begins and ends the model hears by itself."""
        if isinstance(item, Unit):
            self._drop_tried(item.index)
            if len(self._units) == MAX_UNITS_BEHIND:
                log.warning("the model is behind: unit %d was not heard", self._units[0][0].index)
            self._units.append((item, self._parts.runner.clock.now_s()))

    def control(self, command: Command) -> None:
        """Carry out a command; RequestError, with nothing changed, when it cannot be."""
        match command:
            case Interrupt(turn=turn, heard_ms=heard_ms):
                self._before_units(lambda: self._interruption(turn, heard_ms))
            case UpdateSettings(settings=settings):
                self._update(settings)
            case AddText() | AddPicture() | AddAudio() | AddToolResult() | DeleteItem():
                self._input.put_in(command)
            case Respond():
                self._respond(command)
            case ForceListen(on=on):
                self._listen(on)
            case Retract(unit=unit):
                self._drop_tried(unit)
                self._before_units(lambda: Job(self._take_back(unit), _nothing))
            case CommitInput() | ClearInput():
                pass  # every unit was heard as it came
            case _:
                name = type(command).__name__
                raise UnsupportedError(f"the model cannot do {name} in a call")

    def _respond(self, asked: Respond) -> None:
        """RequestError, before anything is changed, for an answer that cannot be so.

        Of functions of its own the model reads along with the unit that it answers in.
        """
        own = settings_of(self._settings, asked)
        conversation_settings(self._parts, own)
        if asked.instructions:
            self._input.put_in(AddText("", "system", asked.instructions))
        if own.tools != self._settings.tools:
            try:
                self._input.put_in_written(tool_block(self._vocabulary, own.tools) or NO_TOOLS)
            except RequestError:
                self._input.put_in(DeleteItem(""))
                raise
        self._asked = asked

    def _listen(self, on: bool) -> None:
        self._listens = on
        if on:
            self._asked = None
            if self._trial is not None:
                self._trial.asked = None

    def _drop_tried(self, unit: int) -> None:
        """Unit `unit` was only to be tried, and was not yet."""
        kept = [one for one in self._units if one[0].index != unit or not one[0].speculative]
        self._units = deque(kept, maxlen=MAX_UNITS_BEHIND)

    def _before_units(self, work: Callable[[], Job]) -> None:
        """What is done before the units that wait; it is made when it is begun."""
        if len(self._urgent) >= MAX_URGENT:
            raise RequestError("too many commands wait for the model; send fewer")
        self._urgent.append(work)

    @staticmethod
    def check(parts: CallParts, settings: SessionSettings, voices: CallVoices) -> None:
        """RequestError when no call could begin under these settings."""
        conversation_settings(parts, settings)
        prompt = call_prompt(parts.runner.model.vocabulary, settings, camera=False)
        voice = parts.voices.duplex(voices.heard)
        lay_out_window(parts.runner.model, parts.runner.slots, parts.window, prompt, voice)

    @property
    def voices(self) -> CallVoices:
        """Whose voice it has."""
        return self._voices

    def goes_on_under(self, settings: SessionSettings) -> bool:
        """Whether it can: its prompt is replaced in front of what was said."""
        return settings.mode == "duplex"

    def _update(self, settings: SessionSettings) -> None:
        prompt, heard = self._prompt(settings), self._heard_voice
        changed = conversation_settings(self._parts, settings)
        voices = self._voices.updated(self._parts, settings)
        if voices.heard != self._voices.heard:
            heard = self._parts.voices.duplex(voices.heard)
        if (prompt, voices.heard) != (self._prompted, self._voices.heard):
            self._talk.check_prompt(prompt, heard)
            self._before_units(lambda: Job(self._reprompting(prompt), _nothing))
        self._to_prepare |= voices.spoken != self._voices.spoken
        self._voices, self._heard_voice = voices, heard
        self._prompted, self._settings = prompt, settings
        self._input.sight.max_slices = settings.max_slices
        spoke = self._talk.settings.speaks
        self._talk.update(changed)
        if not self._talk.settings.speaks:
            self._line.mute()
        self._to_prepare |= self._talk.settings.speaks and not spoke

    # ---- what is to be done ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `next_job` has something."""
        return bool(self._urgent or self._to_prepare) or not self._opened or self._has_unit

    @property
    def sees(self) -> bool:
        """Whether it has seen anything."""
        return self._sees

    def ease(self, shown: Shown) -> None:
        """From the next unit on so much is seen of the camera."""
        self._input.ease(shown)

    @property
    def _has_unit(self) -> bool:
        """Nothing is tried while a turn goes on: what was said is not taken back. It waits until
        it is retracted, or stands."""
        tried = len(self._units) == 1 and self._units[0][0].speculative
        return bool(self._units) and not (tried and self._talk.speaking)

    def next_job(self) -> Job | None:
        """The next work, if there is any."""
        if not self._opened:
            self._opened = True
            return Job(self._talk.open_steps(), _nothing)
        if self._urgent:
            return self._urgent.popleft()()
        if self._to_prepare:
            self._to_prepare = False
            return Job(self._preparing(), _nothing)
        if not self._has_unit:
            return None
        unit, came_s = self._units.popleft()
        return Job(self._unit_steps(unit, came_s), self._reported, came_s + UNIT_S)

    def _unit_steps(self, unit: Unit, came_s: float) -> Generator[Work, None, UnitResult]:
        if self._trial is not None and not unit.speculative:
            yield from self._take_back(unit.index)
        yield from self._stand()
        if unit.speculative and not self._talk.speaking:
            self._trial = Trial(unit.index, self._talk.save(), self._asked)
        if unit.pictures and not self._sees and self._trial is None:
            yield from self._open_eyes()
        taken = self._as_taken(unit)
        self._input.hand_over(is_tried=self._trial is not None)
        order = self._order()
        self._telling.is_asked = order == "speak"
        if order == "speak":
            self._begin_own()
        decided = partial(self._decided, unit.index, came_s)
        say = partial(self._telling.say, is_tried=self._trial is not None)
        slices = self._input.sight.slices
        result = yield from self._talk.steps(taken, order, slices, decided, say)
        if result.outcome.ends_turn is not None:
            self._end_own()
        return result

    def _begin_own(self) -> None:
        """The turn that begins now is as it was asked for."""
        asked, self._asked = self._asked or Respond(), None
        own = conversation_settings(self._parts, settings_of(self._settings, asked))
        self._is_own = own != self._talk.settings
        if self._is_own:
            self._talk.update(own)

    def _end_own(self) -> None:
        """That turn is over."""
        if self._is_own:
            self._is_own = False
            self._talk.update(conversation_settings(self._parts, self._settings))

    def _decided(self, unit: int, came_s: float, outcome: Outcome, text: str) -> Sequence[Work]:
        return self._telling.decided(unit, outcome, text, self._voices.spoken, came_s)

    def _order(self) -> Order:
        """What the next unit is told to do."""
        if self._listens:
            return "listen"
        if self._asked is not None and not self._talk.speaking:
            return "speak"
        detection = self._settings.turn_detection
        if (detection is None or not detection.create_response) and not self._talk.speaking:
            return "listen"
        return "free"

    def _as_taken(self, unit: Unit) -> Unit:
        """The unit as far as anything can be made of it, so that the call survives the rest."""
        # The first picture changes the prompt for good, so it is not tried.
        pictures = unit.pictures if self._sees else ()
        seen = self._input.seen(pictures)
        return replace(unit, audio=whole_second(unit.audio), pictures=seen)

    def _reported(self, result: UnitResult, stage_ms: StageTimes) -> None:
        self._line.report(result.unit, stage_ms, result.context_tokens)

    # ---- work between two units -----------------------------------------------------------------

    def _interruption(self, turn: int, heard_ms: int) -> Job:
        heard_ms = heard_ms if self._line.is_heard(turn) else _ALL_MS
        return Job(self._rewinding(turn, heard_ms), lambda _, __: self._interrupted(turn))

    def _rewinding(self, turn: int, heard_ms: int) -> Steps:
        if own := self._telling.own(turn):
            yield from self._talk.rewind_steps(own, heard_ms)

    def _interrupted(self, turn: int) -> None:
        self._telling.interrupted(turn)
        if not self._talk.speaking:
            self._end_own()

    def _take_back(self, unit: int) -> Steps:
        """The user went on speaking: unit `unit` was only tried. What it came with, comes again."""
        trial = self._trial
        if trial is None or trial.unit != unit:
            return
        self._trial = None
        self._talk.restore(trial.point)
        self._input.bring_back()
        self._asked = self._asked or trial.asked
        self._telling.take_back()
        self._end_own()
        if trial.is_reprompted:
            yield from self._reprompting(self._prompted)

    def _stand(self) -> Steps:
        """What was tried is no trial any more."""
        self._trial = None
        self._input.keep()
        yield from self._telling.stand()
        yield from self._talk.stand_steps()

    def _preparing(self) -> Steps:
        """The first turn is not to wait for its voice."""
        if self._talk.settings.speaks:
            yield from self._line.prepare(self._voices.spoken)

    def _reprompting(self, prompt: DuplexPrompt) -> Steps:
        if self._trial is not None:
            self._trial.is_reprompted = True
        yield from self._talk.replace_prompt_steps(prompt, self._heard_voice)

    def _open_eyes(self) -> Steps:
        """The first picture: a call with a camera has a prompt of its own, unless it was given."""
        self._sees = True
        prompt = self._prompt(self._settings)
        if prompt != self._prompted:
            self._prompted = prompt
            yield from self._reprompting(prompt)

    def _prompt(self, settings: SessionSettings) -> DuplexPrompt:
        return call_prompt(self._vocabulary, settings, camera=self._sees)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._parts.runner.model.vocabulary

    # ---- its slot -------------------------------------------------------------------------------

    def give_up(self, then: Callable[[], None]) -> None:
        """Forget what waits and end the turn that goes on, also one that a unit under way begins;
        `then` is called once that is so."""
        self._units.clear()
        self._urgent.append(lambda: self._giving_up(then))

    def _giving_up(self, then: Callable[[], None]) -> Job:
        self._asked = None
        turn = self._line.turn

        def steps() -> Steps:
            yield from self._stand()
            yield from self._rewinding(turn, _ALL_MS)

        def settle(result: Any, stage_ms: StageTimes) -> None:
            self._interrupted(turn)
            then()

        return Job(steps(), settle)

    def park(self) -> None:
        """Leave the slot to others, keeping the conversation in the host's memory."""
        self._talk.park()

    def unpark(self) -> None:
        """Take a slot again; CapacityError when none is free."""
        self._talk.unpark()

    def close(self) -> None:
        """Give the slot back for good. Idempotent."""
        self._talk.close()


def _nothing(result: Any, stage_ms: StageTimes) -> None:
    pass
