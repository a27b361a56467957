"""One half-duplex call on the model: who speaks is found by the voice detector.

What is said between onset and end is the user's turn, with the pictures of that time; then the
model answers to the end, and hears nothing meanwhile. Typed words and pictures join the turn that
comes next. New instructions begin the conversation anew.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from agent.chat_types import ChatPicture
from agent.duplex.call import MAX_URGENT
from agent.duplex.call_parts import CallParts, CallVoices, conversation_settings
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.half_duplex_prompt import call_system, lay_out_opening, prompted_by
from agent.duplex.half_duplex_rules import HalfDuplexRules
from agent.duplex.job import Job
from agent.duplex.lanes import StageTimes
from agent.duplex.typed_input import TypedInput, opened
from agent.duplex.unit_input import PictureRoom, is_seen
from agent.duplex.voice_line import VoiceLine
from agent.duplex.window import WindowMode
from agent.duplex.work import Work
from agent.errors import RequestError, UnsupportedError
from agent.scheduler import Shown
from agent.types import (
    MIC_RATE_HZ,
    UNIT_SAMPLES,
    AddPicture,
    AddText,
    ByteArray,
    ClearInput,
    Command,
    CommitInput,
    DeleteItem,
    FloatArray,
    ForceListen,
    Interrupt,
    Listened,
    Respond,
    Retract,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TurnEndReason,
    Unit,
    UnitReport,
    UpdateSettings,
)

log = logging.getLogger(__name__)

MAX_UTTERANCE_S = 60
"""Of a longer one the end is heard."""
MAX_PICTURES = 16  # of one turn: the newest
_VECTOR_SAMPLES = MIC_RATE_HZ // 10
_SHORTEST_SAMPLES = 2 * _VECTOR_SAMPLES  # shorter sound makes no vector, or nearly none
_ALL_MS = 1 << 40

Steps: TypeAlias = Generator[Work, None, Any]


@dataclass(frozen=True, slots=True)
class _Utterance:
    """What the user said: samples on the microphone's clock."""

    start: int
    end: int
    answer: bool


class TurnsCall:
    """A call whose turns are taken one after the other."""

    def __init__(
        self, parts: CallParts, settings: SessionSettings, line: VoiceLine, voices: CallVoices
    ) -> None:
        """Take a slot and read the prompt. CapacityError, RequestError."""
        self._parts = parts
        self._settings = settings
        self._line = line
        self._units: deque[Unit] = deque(maxlen=MAX_UTTERANCE_S + 1)
        self._camera: deque[tuple[int, ByteArray]] = deque(maxlen=MAX_PICTURES)
        self._onset: int | None = None
        self._committed = 0
        self._awaited: _Utterance | None = None
        self._typed = TypedInput(parts.runner.model.vocabulary)
        self._urgent: deque[Callable[[], Job]] = deque()
        self._opened = self._is_asked = self._listens = self._answers = False
        self._voices = voices
        self._to_prepare = True
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
            self._awaited = _Utterance(self._onset, item.at, answer)
            self._onset = None

    def _take_unit(self, unit: Unit) -> None:
        self._forget(unit.index)
        self._units.append(replace(unit, pictures=()))
        self._camera.extend((unit.start, one.rgb) for one in unit.pictures)
        self._line.tell(Listened(unit.index))
        self._line.tell(UnitReport(unit.index, (), self._talk.context_tokens))

    def _forget(self, unit: int) -> None:
        """Unit `unit` was only tried: it comes again. Nothing was answered but what it held."""
        if self._units and self._units[-1].index == unit:
            start = self._units.pop().start
            kept = [shown for shown in self._camera if shown[0] < start]
            self._camera = deque(kept, maxlen=MAX_PICTURES)

    def control(self, command: Command) -> None:
        """Carry out a command; RequestError, with nothing changed, when it cannot be."""
        match command:
            case Interrupt(turn=turn, heard_ms=heard_ms):
                self._before_all(lambda: self._interruption(turn, heard_ms))
            case UpdateSettings(settings=settings):
                self._update(settings)
            case AddText():
                self._typed.add_text(command, self._most_tokens // 2)
            case AddPicture():
                self._add_picture(command)
            case DeleteItem(item_id=item_id):
                self._typed.forget(item_id)
            case Respond(instructions=instructions):
                if instructions:
                    added = AddText("", "system", instructions)
                    self._typed.add_text(added, self._most_tokens // 2)
                self._is_asked = True
            case ForceListen(on=on):
                self._listen(on)
            case Retract(unit=unit):
                self._forget(unit)
            case CommitInput(at=at):
                self._commit(at)
            case ClearInput(at=at):
                self._committed = at if at >= 0 else self._heard_until
            case _:
                name = type(command).__name__
                raise UnsupportedError(f"the model cannot do {name} in a half-duplex call")

    def _before_all(self, work: Callable[[], Job]) -> None:
        """What is done before what waits; it is made when it is begun."""
        if len(self._urgent) >= MAX_URGENT:
            raise RequestError("too many commands wait for the model; send fewer")
        self._urgent.append(work)

    def _listen(self, on: bool) -> None:
        self._listens = on
        if on and (self._line.is_open or self._is_asked):
            self._before_all(lambda: self._interruption(self._line.turn, _ALL_MS))
        if on:
            self._is_asked = False

    @property
    def _most_tokens(self) -> int:
        """A quarter of what a slot holds: so much a turn takes beside what is said in it."""
        return self._parts.runner.slots.llm.positions // 4

    def _add_picture(self, added: AddPicture) -> None:
        self._typed.expect_room(MAX_PICTURES, "with the next turn")
        self._typed.add_picture(added.item_id, opened(added, self._settings.max_slices))

    @property
    def _heard_until(self) -> int:
        return self._units[-1].end if self._units else 0

    def _commit(self, at: int) -> None:
        until = at if at >= 0 else self._heard_until
        if until > self._committed:
            self._awaited = _Utterance(self._committed, until, answer=False)
        self._committed = until

    @staticmethod
    def check(parts: CallParts, settings: SessionSettings, voices: CallVoices) -> None:
        """RequestError when no call could begin under these settings."""
        voice = parts.voices.turns(voices.heard)
        lay_out_opening(parts.runner, call_system(settings, voice))

    @property
    def voices(self) -> CallVoices:
        """Whose voice it has."""
        return self._voices

    def goes_on_under(self, settings: SessionSettings) -> bool:
        """Whether its system prompt stays: it stands before all that was said."""
        is_same = prompted_by(self._settings) == prompted_by(settings)
        return settings.mode == "half_duplex" and is_same

    def _update(self, settings: SessionSettings) -> None:
        self._settings = settings
        spoke = self._talk.settings.speaks
        self._talk.update(conversation_settings(self._parts, settings))
        if not self._talk.settings.speaks:
            self._line.mute()
        self._to_prepare |= self._talk.settings.speaks and not spoke

    # ---- what is to be done ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `next_job` has something."""
        waits = bool(self._urgent or self._answers or self._to_prepare) or not self._opened
        return waits or self._is_settled() or self._may_answer()

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
        return self._awaited is not None and self._awaited.end <= self._heard_until

    def _may_answer(self) -> bool:
        return self._is_asked and not self._listens and self._awaited is None

    def _hearing(self, utterance: _Utterance) -> Steps:
        yield from self._read_typed()
        sound = self._recalled(utterance)
        first, slices = utterance.start - UNIT_SAMPLES, self._settings.max_slices
        cameras = [rgb for at, rgb in self._camera if first < at <= utterance.end]
        pictures = self._typed.take_pictures() + [rgb for rgb in cameras if is_seen(rgb, slices)]
        is_said = yield from self._read(sound, pictures)
        self._is_asked = self._is_asked or (utterance.answer and is_said)

    def _read(self, sound: FloatArray, pictures: list[ByteArray]) -> Steps:
        """Sound and pictures join the user's turn, as far as there is room → whether any did.

        A turn that leaves none begins again with them: only its newest part is heard. Of sound
        that is too long the end, and of too many pictures the newest ones.
        """
        wanted = len(sound) // _VECTOR_SAMPLES + self._piece_tokens
        if wanted > self._talk.turn_room_tokens:
            log.warning("the user's turn is longer than the context: its beginning is forgotten")
            self._talk.abandon_turn()
        room = self._talk.turn_room_tokens
        sound = sound[-max(1, room * 3 // 4) * _VECTOR_SAMPLES :]
        fitting = self._fitting(pictures, room - len(sound) // _VECTOR_SAMPLES - self._piece_tokens)
        if len(sound) >= _SHORTEST_SAMPLES:
            yield from self._talk.hear_steps(sound, fitting)
        elif fitting:
            yield from self._talk.read_steps([*map(ChatPicture, fitting)])
        return bool(fitting) or len(sound) >= _SHORTEST_SAMPLES

    def _fitting(self, pictures: Sequence[ByteArray], room: int) -> list[ByteArray]:
        pieces = room // self._piece_tokens
        newest = PictureRoom(pieces, MAX_PICTURES, self._settings.max_slices).newest(pictures)
        return [pictures[place] for place in newest]

    @property
    def _piece_tokens(self) -> int:
        """Positions of a thumbnail or cell with its marks."""
        return self._parts.runner.model.config.resampler.queries + 2

    def _beginning(self) -> Steps:
        self._is_asked = False
        yield from self._read_typed()
        if self._typed.pictures:
            yield from self._read(np.zeros(0, np.float32), self._typed.take_pictures())
        self._answers = True
        yield from self._line.begin(self._voices.spoken, speaks=self._talk.settings.speaks)

    def _read_typed(self) -> Steps:
        if self._typed.text_tokens > self._talk.turn_room_tokens:
            self._talk.abandon_turn()
        for text in self._typed.take_texts():
            yield from self._talk.read_text(text)

    def _answering(self) -> Generator[Work, None, int]:
        """The answer's next piece → the unit that it came in."""
        piece = yield from self._talk.piece_steps()
        unit = self._units[-1].index if self._units else -1
        if piece.finish is not None:
            self._answers = False
        self._line.tell_words(unit, piece.text)
        ends: TurnEndReason | None = None
        if piece.finish is not None:
            ends = "completed" if piece.finish == "stop" else "max_tokens"
        yield from self._line.say(unit, piece.speech_tokens, ends)
        return unit

    def _reported(self, unit: int, stage_ms: StageTimes) -> None:
        self._line.tell(UnitReport(unit, stage_ms, self._talk.context_tokens))

    def _interruption(self, turn: int, heard_ms: int) -> Job:
        return Job(self._stopping(turn, heard_ms), _nothing)

    def _stopping(self, turn: int, heard_ms: int) -> Steps:
        if turn == self._line.turn:
            self._talk.stop(heard_ms if self._line.is_heard(turn) else _ALL_MS)
            self._answers = False
            self._line.end("interrupted")
        yield from ()

    # ---- the user's turn ------------------------------------------------------------------------

    def _recalled(self, utterance: _Utterance) -> FloatArray:
        """Its sound, as far as it is still kept; what is no number is silence."""
        pieces = [
            unit.audio[: unit.samples_valid][
                max(0, utterance.start - at) : max(0, utterance.end - at)
            ]
            for unit in self._units
            for at in (unit.start,)
        ]
        sound = np.concatenate(pieces)[-MAX_UTTERANCE_S * MIC_RATE_HZ :]
        return np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)

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
        )
        if parts.script is not None:
            talk.script = parts.script()
        return talk

    def give_up(self, then: Callable[[], None]) -> None:
        """Forget what waits and end the answer that goes on; `then` is called once that is so."""
        self._onset = self._awaited = None
        self._urgent.append(lambda: self._giving_up(then))

    def _giving_up(self, then: Callable[[], None]) -> Job:
        self._is_asked = False
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
