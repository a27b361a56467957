"""One half-duplex call on the model: who speaks is found by the voice detector.

What is said between onset and end is the user's turn, with the pictures of that time; then the
model answers to the end, and hears nothing meanwhile. Typed words and pictures join the turn that
comes next. New instructions begin the conversation anew.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
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
from agent.duplex.call import MAX_URGENT
from agent.duplex.call_parts import CallParts, CallVoices, conversation_settings
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.half_duplex_prompt import call_system, lay_out_opening, prompted_by
from agent.duplex.half_duplex_rules import HalfDuplexRules
from agent.duplex.job import Job
from agent.duplex.lanes import StageTimes
from agent.duplex.tool_prompt import NO_TOOLS, tool_block
from agent.duplex.tool_use import settings_of
from agent.duplex.turns_answer import Telling
from agent.duplex.turns_hearing import HeardUnits, Utterance
from agent.duplex.turns_reading import Steps, TurnReader
from agent.duplex.usage import Meter
from agent.duplex.voice_line import VoiceLine
from agent.duplex.window import WindowMode
from agent.duplex.work import Work
from agent.errors import RequestError, UnsupportedError
from agent.scheduler import Shown
from agent.types import (
    Listened,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    ToolCalled,
    Unit,
)

log = logging.getLogger(__name__)

_ALL_MS = 1 << 40
_UNASKED = Respond()
"""What the user's turn asks for by its end."""


class TurnsCall:
    """A call whose turns are taken one after the other."""

    def __init__(
        self, parts: CallParts, settings: SessionSettings, line: VoiceLine, voices: CallVoices
    ) -> None:
        """Take a slot and read the prompt. CapacityError, RequestError."""
        self._parts = parts
        self._settings = settings
        self._line = line
        self._heard = HeardUnits()
        self._onset: int | None = None
        self._committed = 0
        self._awaited: Utterance | None = None
        self._tried: int | None = None
        self._reader = TurnReader(parts.runner, settings.max_slices)
        self._urgent: deque[Callable[[], Job]] = deque()
        self._opened = self._listens = self._answers = False
        self._asked: Respond | None = None
        self._told = Telling()
        self._meter = line.meter = Meter(lambda: self._talk.held)
        self._voices = voices
        self._to_prepare = True
        self._tools = self._tool_block(settings)
        self._talk = self._begun()

    # ---- what comes in --------------------------------------------------------------------------

    def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """The next unit, or where in the units speech began or ended."""
        if isinstance(item, Unit):
            self._take_unit(item)
        elif isinstance(item, SpeechStarted):
            self._onset = self._awaited.start if self._awaited is not None else item.at
            self._awaited = None  # he only paused
        elif self._onset is not None:
            detection = self._settings.turn_detection
            answer = detection is not None and detection.create_response
            self._awaited = Utterance(self._onset, item.at, answer)
            self._onset = None

    def _take_unit(self, unit: Unit) -> None:
        self._told.hear(unit.index)
        self._tried = None
        self._heard.take(unit)
        self._line.tell(Listened(unit.index))
        self._line.report(unit.index, (), self._talk.context_tokens)

    def control(self, command: Command) -> None:
        """Carry out a command; RequestError, with nothing changed, when it cannot be."""
        match command:
            case Interrupt(turn=turn, heard_ms=heard_ms):
                self._before_all(lambda: self._interruption(turn, heard_ms))
            case UpdateSettings(settings=settings):
                self._update(settings)
            case AddText() | AddPicture() | AddAudio() | AddToolResult() | DeleteItem():
                self._reader.put_in(command)
            case Respond():
                self._respond(command)
            case ForceListen(on=on):
                self._listen(on)
            case Retract(unit=unit):
                self._told.retract(unit)
                self._heard.forget(unit)
            case CommitInput(at=at):
                self._commit(at)
            case ClearInput(at=at):
                self._committed = at if at >= 0 else self._heard.until
            case _:
                name = type(command).__name__
                raise UnsupportedError(f"the model cannot do {name} in a half-duplex call")

    def _respond(self, asked: Respond) -> None:
        """RequestError, before anything is changed, for an answer that cannot be so."""
        own = settings_of(self._settings, asked)
        conversation_settings(self._parts, own)
        self._check_notice(self._tool_block(own))
        if asked.instructions:
            self._reader.put_in(AddText("", "system", asked.instructions))
        self._asked = asked

    def _before_all(self, work: Callable[[], Job]) -> None:
        """What is done before what waits; it is made when it is begun."""
        if len(self._urgent) >= MAX_URGENT:
            raise RequestError("too many commands wait for the model; send fewer")
        self._urgent.append(work)

    def _listen(self, on: bool) -> None:
        self._listens = on
        if on and (self._line.is_open or self._asked is not None):
            self._before_all(lambda: self._interruption(self._line.turn, _ALL_MS))
        if on:
            self._asked = None

    def _commit(self, at: int) -> None:
        until = at if at >= 0 else self._heard.until
        if until > self._committed:
            self._awaited = Utterance(self._committed, until, answer=False)
        self._committed = until

    @staticmethod
    def check(parts: CallParts, settings: SessionSettings, voices: CallVoices) -> None:
        """RequestError when no call could begin under these settings."""
        voice = parts.voices.turns(voices.heard)
        conversation_settings(parts, settings)
        block = tool_block(parts.runner.model.vocabulary, settings.tools)
        lay_out_opening(parts.runner, call_system(settings, voice), block)

    @property
    def voices(self) -> CallVoices:
        """Whose voice it has."""
        return self._voices

    def goes_on_under(self, settings: SessionSettings) -> bool:
        """Whether its system prompt stays: it stands before all that was said.

        Of other functions the model is told in between, once there was anything.
        """
        is_same = prompted_by(self._settings) == prompted_by(settings)
        has_begun = self._talk.has_begun or self._reader.waits
        is_same &= has_begun or self._settings.tools == settings.tools
        return settings.mode == "half_duplex" and is_same

    def _update(self, settings: SessionSettings) -> None:
        changed, block = conversation_settings(self._parts, settings), self._tool_block(settings)
        self._check_notice(block)
        self._settings, self._reader.max_slices = settings, settings.max_slices
        spoke = self._talk.settings.speaks
        self._talk.update(changed)
        if not self._talk.settings.speaks:
            self._line.mute()
        self._to_prepare |= self._talk.settings.speaks and not spoke

    def _tool_block(self, settings: SessionSettings) -> str:
        return tool_block(self._parts.runner.model.vocabulary, settings.tools)

    def _check_notice(self, block: str) -> None:
        """RequestError when the model cannot be told of these functions before an answer."""
        vocabulary, most = self._parts.runner.model.vocabulary, self._reader.most_tokens
        tokens = len(vocabulary.encode(block))
        if block != self._tools and tokens > most:
            raise RequestError(
                f"the functions take {tokens} tokens, and {most} are left for them; offer fewer, "
                "or describe them in less",
                param="session.tools",
            )

    # ---- what is to be done ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `next_job` has something."""
        waits = bool(self._urgent or self._answers or self._to_prepare) or not self._opened
        return waits or self._told.is_due or self._is_settled() or self._may_answer()

    @property
    def sees(self) -> bool:
        """Whether its units ask for more than sound: nothing is seen before a turn is over."""
        return False

    def ease(self, shown: Shown) -> None:
        """Its pictures make nobody's units late: they are read behind these."""

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
        if self._answers:
            return Job(self._answering(), self._reported)
        if self._told.is_due:
            return Job(self._ending(), _nothing)
        if self._is_settled() and self._awaited is not None:
            utterance, self._awaited = self._awaited, None
            return Job(self._hearing(utterance), _nothing)
        if self._may_answer():
            return Job(self._beginning(), _nothing)
        return None

    def _preparing(self) -> Steps:
        """The first answer is not to wait for its voice."""
        if self._talk.settings.speaks:
            yield from self._line.prepare(self._voices.spoken)

    def _is_settled(self) -> bool:
        """Whether the units hold all of what the user said."""
        return self._awaited is not None and self._awaited.end <= self._heard.until

    def _may_answer(self) -> bool:
        is_free = not self._listens and self._told.ends is None
        return self._asked is not None and is_free and self._awaited is None

    def _hearing(self, utterance: Utterance) -> Steps:
        heard = self._heard
        self._tried = heard.newest if heard.is_tried else None
        sound, cameras = heard.sound(utterance), heard.pictures(utterance)
        is_said = yield from self._reader.hear(self._talk, sound, cameras)
        if utterance.answer and is_said and self._asked is None:
            self._asked = _UNASKED

    def _beginning(self) -> Steps:
        asked, self._asked = self._asked or _UNASKED, None
        yield from self._reader.read_rest(self._talk)
        own = settings_of(self._settings, asked)
        self._tell_tools(self._tool_block(own))
        self._use(own)
        self._told, self._tried = Telling(self._tried), None
        self._answers = True
        yield from self._line.begin(
            self._voices.spoken,
            speaks=self._talk.settings.speaks,
            asked=asked is not _UNASKED,
        )

    def _tell_tools(self, block: str) -> None:
        """The model reads before its answer what it may call, where it knows of something else."""
        if block != self._tools:
            self._tools = block
            self._talk.note(block or NO_TOOLS)

    def _use(self, settings: SessionSettings) -> None:
        """The answer that comes next is by these settings."""
        wanted = conversation_settings(self._parts, settings)
        if wanted != self._talk.settings:
            self._talk.update(wanted)

    def _answering(self) -> Generator[Work, None, int]:
        """The answer's next piece → the unit that it came in."""
        piece = yield from self._talk.piece_steps()
        unit = self._heard.newest
        self._meter.add(piece.tokens, len(piece.speech_tokens))
        self._told.add(piece)
        self._answers = piece.finish is None
        self._line.tell_words(unit, piece.text)
        yield from self._say(unit, piece.speech_tokens)
        return unit

    def _ending(self) -> Steps:
        """The unit stands in which the answer called a function: now it is told."""
        yield from self._say(self._heard.newest)

    def _say(self, unit: int, tokens: tuple[int, ...] = ()) -> Steps:
        """Calls are told before the turn's last sound, and its end."""
        told = self._told
        for one in told.take_calls():
            self._talk.remember_call()
            self._line.tell(ToolCalled(self._line.turn, one.call_id, one.name, one.arguments))
        ends = told.end
        yield from self._line.say(unit, tokens, ends)
        if ends is not None and told is self._told:
            self._over()

    def _over(self) -> None:
        """The answer is: what was asked of it alone holds no longer."""
        self._told = Telling()
        self._use(self._settings)

    def _reported(self, unit: int, stage_ms: StageTimes) -> None:
        self._line.report(unit, stage_ms, self._talk.context_tokens)

    def _interruption(self, turn: int, heard_ms: int) -> Job:
        return Job(self._stopping(turn, heard_ms), _nothing)

    def _stopping(self, turn: int, heard_ms: int) -> Steps:
        if turn == self._line.turn:
            self._talk.stop(heard_ms if self._line.is_heard(turn) else _ALL_MS)
            self._answers = False
            self._line.end("interrupted")
            self._over()
        yield from ()

    # ---- its slot -------------------------------------------------------------------------------

    def _begun(self) -> HalfDuplexConversation:
        parts, settings = self._parts, self._settings
        voice = parts.voices.turns(self._voices.heard)
        rounds: WindowMode = "off" if parts.window.mode == "off" else "basic"
        talk = HalfDuplexConversation(
            parts.runner,
            call_system(settings, voice),
            voice,
            conversation_settings(parts, settings),
            HalfDuplexRules(window=replace(parts.window, mode=rounds)),
            self._tools,
        )
        if parts.script is not None:
            talk.script = parts.script()
        return talk

    def give_up(self, then: Callable[[], None]) -> None:
        """Forget what waits and end the answer that goes on; `then` is called once that is so."""
        self._onset = self._awaited = None
        self._urgent.append(lambda: self._giving_up(then))

    def _giving_up(self, then: Callable[[], None]) -> Job:
        self._asked = None
        steps = self._stopping(self._line.turn, _ALL_MS)
        return Job(steps, lambda _, __: then())

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
