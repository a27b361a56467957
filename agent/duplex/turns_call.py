"""One half-duplex call on the model: who speaks is found by the voice detector.

What is said between onset and end is the user's turn, with the pictures of that time; then the
model answers to the end, and hears nothing meanwhile. Typed words and pictures join the turn that
comes next. New instructions begin the conversation anew.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from agent.chat_types import ChatPicture
from agent.duplex.answer import AnswerPiece
from agent.duplex.call import CallParts, conversation_settings
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.job import Job, StageTimes
from agent.duplex.pictures import check_picture, decode_picture
from agent.duplex.prompt import Content, Message, SoundSpan, system_content
from agent.duplex.voice_line import VoiceLine
from agent.duplex.work import Work
from agent.errors import RequestError, UnsupportedError
from agent.types import (
    MIC_RATE_HZ,
    UNIT_SAMPLES,
    AddPicture,
    AddText,
    ByteArray,
    Command,
    CommitInput,
    DeleteItem,
    FloatArray,
    ForceListen,
    Interrupt,
    Listened,
    Respond,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
    UnitReport,
    UpdateSettings,
)

log = logging.getLogger(__name__)

MAX_UTTERANCE_S = 60
"""Of a longer one the end is heard."""
MAX_PICTURES = 16
"""Pictures of one turn: the newest."""
MAX_TEXT_CHARS = 20_000
"""Typed words that may wait for the turn that comes next."""
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

    def __init__(self, parts: CallParts, settings: SessionSettings, line: VoiceLine) -> None:
        """Take a slot and read the prompt. CapacityError, RequestError."""
        self._parts = parts
        self._settings = settings
        self._line = line
        self._units: deque[Unit] = deque(maxlen=MAX_UTTERANCE_S + 1)
        self._onset: int | None = None
        self._committed = 0
        self._awaited: _Utterance | None = None
        self._texts: dict[str, str] = {}
        self._pictures: deque[ByteArray] = deque(maxlen=MAX_PICTURES)
        self._urgent: deque[Callable[[], Job]] = deque(maxlen=MAX_PICTURES)
        self._is_asked = self._listens = self._answers = False
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
        self._units.append(unit)
        self._line.tell(Listened(unit.index))
        self._line.tell(UnitReport(unit.index, (), self._talk.context_tokens))

    def control(self, command: Command) -> None:
        """Carry out a command; RequestError, with nothing changed, when it cannot be."""
        match command:
            case Interrupt(turn=turn, heard_ms=heard_ms):
                self._urgent.append(lambda: self._interruption(turn, heard_ms))
            case UpdateSettings(settings=settings):
                self._update(settings)
            case AddText():
                self._add_text(command)
            case AddPicture(file=file):
                self._add_picture(decode_picture(file))
            case DeleteItem(item_id=item_id):
                self._texts.pop(item_id, None)
            case Respond(instructions=instructions):
                if instructions:
                    self._add_text(AddText("", "system", instructions))
                self._is_asked = True
            case ForceListen(on=on):
                self._listens = on
                if on:
                    self._urgent.append(lambda: self._interruption(self._line.turn, _ALL_MS))
            case CommitInput():
                self._commit()
            case _:
                name = type(command).__name__
                raise UnsupportedError(f"the model cannot do {name} in a half-duplex call")

    def _add_text(self, added: AddText) -> None:
        if added.role == "assistant":
            raise UnsupportedError(
                "the model cannot be told what it said; send it as a message of the user",
                param="item.role",
            )
        waiting = {**self._texts, added.item_id: added.text}
        if sum(map(len, waiting.values())) > MAX_TEXT_CHARS:
            raise RequestError(
                f"more than {MAX_TEXT_CHARS} characters wait for the model; send less",
                param="item.content",
            )
        self._texts = waiting

    def _add_picture(self, rgb: ByteArray) -> None:
        height, width = rgb.shape[:2]
        check_picture(width, height, self._settings.max_slices)
        self._pictures.append(rgb)

    def _commit(self) -> None:
        """The client says that what it said since the last time is a turn."""
        until = (self._units[-1].index + 1) * UNIT_SAMPLES if self._units else 0
        if until > self._committed:
            self._awaited = _Utterance(self._committed, until, answer=False)
        self._committed = until

    def goes_on_under(self, settings: SessionSettings) -> bool:
        """Whether its system prompt stays: it stands before all that was said."""
        return settings.mode == "half_duplex" and _prompted(self._settings) == _prompted(settings)

    def _update(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._talk.update(conversation_settings(self._parts, settings))

    # ---- what is to be done ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `next_job` has something."""
        return bool(self._urgent or self._answers or self._is_settled() or self._may_answer())

    def next_job(self) -> Job | None:
        """The next work, if there is any."""
        if self._urgent:
            return self._urgent.popleft()()
        if self._answers:
            return Job(self._talk.answer_steps(), self._answered)
        if self._is_settled() and self._awaited is not None:
            utterance, self._awaited = self._awaited, None
            return Job(self._hearing(utterance), _nothing)
        if self._may_answer():
            return Job(self._beginning(), _nothing)
        return None

    def _is_settled(self) -> bool:
        """Whether the units hold all of what the user said."""
        last = self._units[-1].index if self._units else -1
        return self._awaited is not None and self._awaited.end <= (last + 1) * UNIT_SAMPLES

    def _may_answer(self) -> bool:
        return self._is_asked and not self._listens and self._awaited is None

    def _hearing(self, utterance: _Utterance) -> Steps:
        yield from self._read_typed()
        cameras = [
            picture.rgb
            for unit in self._units
            if utterance.start < (unit.index + 1) * UNIT_SAMPLES <= utterance.end + UNIT_SAMPLES
            for picture in unit.pictures
            if self._is_seen(picture.rgb)
        ]
        pictures = [*self._pictures, *cameras][-MAX_PICTURES:]
        self._pictures.clear()
        yield from self._talk.hear_steps(self._recalled(utterance), pictures)
        self._is_asked = self._is_asked or utterance.answer

    def _beginning(self) -> Steps:
        self._is_asked = False
        yield from self._read_typed()
        if self._pictures:
            pictures = list(self._pictures)
            self._pictures.clear()
            yield from self._talk.read_steps([*map(ChatPicture, pictures)])
        self._answers = True
        self._line.begin(self._settings.voice, speaks=self._talk.settings.speaks)

    def _read_typed(self) -> Steps:
        texts, self._texts = self._texts, {}
        for text in texts.values():
            yield from self._talk.read_text(text)

    def _answered(self, piece: AnswerPiece, stage_ms: StageTimes) -> None:
        unit = self._units[-1].index if self._units else -1
        self._line.say(unit, piece.text, piece.speech_tokens)
        self._line.tell(UnitReport(unit, stage_ms, self._talk.context_tokens))
        if piece.finish is not None:
            self._answers = False
            self._line.end("completed" if piece.finish == "stop" else "max_tokens", unit)

    def _interruption(self, turn: int, heard_ms: int) -> Job:
        return Job(self._stopping(turn, heard_ms), _nothing)

    def _stopping(self, turn: int, heard_ms: int) -> Steps:
        if turn == self._line.turn:
            self._talk.stop(heard_ms if self._talk.settings.speaks else _ALL_MS)
            self._answers = False
            self._line.end("interrupted")
        yield from ()

    # ---- the user's turn ------------------------------------------------------------------------

    def _recalled(self, utterance: _Utterance) -> FloatArray:
        """Its sound, as far as it is still kept; what is no number is silence."""
        pieces = [
            unit.audio[max(0, utterance.start - at) : max(0, utterance.end - at)]
            for unit in self._units
            for at in (unit.index * UNIT_SAMPLES,)
        ]
        sound = np.concatenate(pieces)[-MAX_UTTERANCE_S * MIC_RATE_HZ :]
        return np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)

    def _is_seen(self, rgb: ByteArray) -> bool:
        height, width = rgb.shape[:2]
        try:
            check_picture(width, height, self._settings.max_slices)
        except RequestError as error:
            log.warning("a picture of the camera was not seen: %s", error)
            return False
        return True

    # ---- its slot -------------------------------------------------------------------------------

    def _begun(self) -> HalfDuplexConversation:
        settings, voice = self._settings, self._parts.voices.get(self._settings.voice)
        span = None if voice is None else SoundSpan(len(voice))
        content: tuple[Content, ...] = (settings.instructions,)
        if not settings.instructions:
            content = system_content("assistant", settings.language, span)
        talk = HalfDuplexConversation(
            self._parts.runner,
            Message("system", content),
            None if settings.instructions else voice,
            conversation_settings(self._parts, settings),
        )
        if self._parts.script is not None:
            talk.script = self._parts.script()
        self._urgent.clear()
        self._urgent.append(lambda: Job(talk.open_steps(), _nothing))
        return talk

    def give_up(self) -> None:
        """Forget what waits, and end the answer that goes on: the call is paused."""
        self._onset = self._awaited = None
        if self._line.is_open:
            self._urgent.append(lambda: self._interruption(self._line.turn, _ALL_MS))

    def park(self) -> None:
        """Leave the slot to others, keeping the conversation in the host's memory."""
        self._talk.park()

    def unpark(self) -> None:
        """Take a slot again; CapacityError when none is free."""
        self._talk.unpark()

    def close(self) -> None:
        """Give the slot back for good. Idempotent."""
        self._talk.close()


def _prompted(settings: SessionSettings) -> tuple[str, str, str]:
    """What of the settings stands in the system prompt."""
    return settings.instructions, settings.language, settings.voice


def _nothing(result: Any, stage_ms: StageTimes) -> None:
    pass
