"""One full-duplex call on the model: units, commands and settings in, engine events out.

The model listens to every unit and decides by itself when to speak. What a client may ask of it
beyond that ends here as an order for the next unit, as words that the unit is read with, or as
work on the conversation between two units.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from agent.duplex.conversation import MAX_PICTURES, MAX_PUT_IN_TOKENS, Conversation
from agent.duplex.conversation_settings import (
    ConversationSettings,
    UnitResult,
    reference_settings,
)
from agent.duplex.job import Job, StageTimes
from agent.duplex.memory import Snapshot
from agent.duplex.pictures import check_picture, decode_picture, piece_sizes
from agent.duplex.policy import Order, listen_bias
from agent.duplex.prompt import DuplexPrompt, duplex_prompt, duplex_system
from agent.duplex.tokens import Vocabulary
from agent.duplex.voice_line import VoiceLine
from agent.duplex.window import WindowSettings
from agent.duplex.work import Runner, Work
from agent.errors import RequestError, UnsupportedError
from agent.interfaces import Vocoder
from agent.types import (
    UNIT_SAMPLES,
    AddPicture,
    AddText,
    ByteArray,
    Command,
    CommitInput,
    DeleteItem,
    ForceListen,
    Interrupt,
    Listened,
    Respond,
    Retract,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
    UnitReport,
    UpdateSettings,
    VideoFrame,
)

log = logging.getLogger(__name__)

MAX_UNITS_BEHIND = 16
"""A model that is further behind leaves out the oldest: what was said so long ago, nobody waits
to be answered any more."""
_MAX_URGENT = 64
_ALL_MS = 1 << 40
"""Captions are heard as they are shown."""
_SEMANTIC_EAGERNESS = {"low": 0.25, "medium": 0.5, "high": 0.75}

Steps: TypeAlias = Generator[Work, None, Any]


@dataclass(frozen=True, slots=True)
class CallParts:
    """What all calls share. `voices` are vectors [n, W] of reference voices by name.

    `script` gives every token that would be drawn, for each conversation anew: for tests, which
    decide for the model.
    """

    runner: Runner
    voices: Mapping[str, Tensor] = field(default_factory=dict)
    vocoder: Vocoder | None = None
    window: WindowSettings = field(default_factory=WindowSettings)
    parity: bool = False
    seed: int | None = None
    script: Callable[[], Iterator[int]] | None = None


def conversation_settings(parts: CallParts, settings: SessionSettings) -> ConversationSettings:
    """How a conversation behaves by what the client set."""
    base = reference_settings() if parts.parity else ConversationSettings(window=parts.window)
    detection = settings.turn_detection
    eagerness = settings.eagerness
    if detection is not None and detection.kind == "semantic_vad":
        eagerness = _SEMANTIC_EAGERNESS.get(detection.eagerness, eagerness)
    speaks = parts.vocoder is not None and "audio" in settings.output_modalities
    return replace(
        base,
        text=replace(base.text, listen_bias=listen_bias(eagerness)),
        max_slices=settings.max_slices,
        speaks=speaks,
        speech_lag_ms=parts.vocoder.lag_ms if parts.vocoder is not None else 0,
        seed=parts.seed,
    )


class DuplexCall:
    """A call whose turns the model takes by itself. `next_job` between two pieces of work only."""

    def __init__(self, parts: CallParts, settings: SessionSettings, line: VoiceLine) -> None:
        """Take a slot and read the prompt. CapacityError, RequestError."""
        self._parts = parts
        self._settings = settings
        self._line = line
        self._turns_before = line.turn
        self._units: deque[Unit] = deque(maxlen=MAX_UNITS_BEHIND)
        self._urgent: deque[Callable[[], Job]] = deque(maxlen=_MAX_URGENT)
        self._texts: dict[str, str] = {}
        self._listens = self._is_asked = self._sees = False
        self._snapshot: tuple[int, Snapshot] | None = None
        self._prompted = self._system(settings)
        script = parts.script() if parts.script is not None else None
        self._talk = Conversation(
            parts.runner,
            self._prompt(self._prompted),
            parts.voices.get(settings.voice),
            conversation_settings(parts, settings),
            script,
        )

    # ---- what comes in --------------------------------------------------------------------------

    def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """The next unit; where speech begins and ends the model hears by itself."""
        if isinstance(item, Unit):
            if len(self._units) == MAX_UNITS_BEHIND:
                log.warning("the model is behind: unit %d was not heard", self._units[0].index)
            self._units.append(item)

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
            case Retract(unit=unit):
                self._urgent.append(lambda: Job(self._take_back(unit), _nothing))
            case CommitInput():
                pass  # every unit was heard as it came
            case _:
                name = type(command).__name__
                raise UnsupportedError(f"the model cannot do {name} in a call")

    def goes_on_under(self, settings: SessionSettings) -> bool:
        """Whether it can: its prompt is replaced in front of what was said."""
        return settings.mode == "duplex"

    def _add_text(self, added: AddText) -> None:
        if added.role == "assistant":
            raise UnsupportedError(
                "the model cannot be told what it said; send it as a message of the user",
                param="item.role",
            )
        waiting = [*self._texts.values(), added.text]
        count = sum(len(self._vocabulary.encode_foreign(text)) for text in waiting)
        most = min(MAX_PUT_IN_TOKENS, self._talk.unit_room_tokens // 4)
        if count > most or len(waiting) > most:
            raise RequestError(
                f"more than {most} tokens of text wait for the model; send less",
                param="item.content",
            )
        self._texts[added.item_id] = added.text

    def _add_picture(self, rgb: ByteArray) -> None:
        height, width = rgb.shape[:2]
        check_picture(width, height, self._settings.max_slices)
        pieces = self._pieces(rgb)
        if sum(self._talk.waiting_pictures) + pieces > self._most_pieces:
            raise RequestError(
                f"the picture takes {pieces} tiles and only {self._most_pieces} fit into a second; "
                "send it later, or with a smaller max_slices",
                param="item.content",
            )
        self._talk.put_in_picture(rgb)

    def _pieces(self, rgb: ByteArray) -> int:
        height, width = rgb.shape[:2]
        return len(piece_sizes(width, height, self._settings.max_slices))

    @property
    def _most_pieces(self) -> int:
        """Thumbnails and cells that a unit has room for, each with its two marks."""
        piece_tokens = self._parts.runner.model.config.resampler.queries + 2
        return self._talk.unit_room_tokens * 3 // 4 // piece_tokens

    def _update(self, settings: SessionSettings) -> None:
        system = self._system(settings)
        if system != self._prompted:
            prompt = self._prompt(system)
            self._talk.check_prompt(prompt, self._parts.voices.get(settings.voice))
            self._urgent.append(lambda: Job(self._reprompting(prompt), _nothing))
        self._prompted, self._settings = system, settings
        self._talk.update(conversation_settings(self._parts, settings))

    # ---- what is to be done ---------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `next_job` has something."""
        return bool(self._urgent or self._units)

    def next_job(self) -> Job | None:
        """The next work, if there is any."""
        if self._urgent:
            return self._urgent.popleft()()
        if not self._units:
            return None
        unit = self._units.popleft()
        return Job(self._unit_steps(unit), self._said)

    def _unit_steps(self, unit: Unit) -> Steps:
        if unit.pictures and not self._sees:
            yield from self._open_eyes()
        if unit.speculative:
            self._snapshot = (unit.index, self._talk.save())
        texts, self._texts = self._texts, {}
        for text in texts.values():
            self._talk.put_in_text(text)
        order = self._order()
        if order == "speak":
            self._is_asked = False
        return (yield from self._talk.steps(self._as_taken(unit), order))

    def _order(self) -> Order:
        """What the next unit is told to do."""
        if self._listens:
            return "listen"
        if self._is_asked and not self._talk.speaking:
            return "speak"
        detection = self._settings.turn_detection
        if (detection is None or not detection.create_response) and not self._talk.speaking:
            return "listen"
        return "free"

    def _as_taken(self, unit: Unit) -> Unit:
        """The unit as far as anything can be made of it, so that the call survives the rest.

        What is no number is silence, what is missing of the second too; of too many pictures the
        newest are seen, and one of an impossible shape is not.
        """
        audio = np.zeros(UNIT_SAMPLES, np.float32)
        given = unit.audio[:UNIT_SAMPLES]
        audio[: len(given)] = np.nan_to_num(given, nan=0.0, posinf=0.0, neginf=0.0)
        return replace(unit, audio=audio.clip(-1, 1), pictures=self._fitting(unit.pictures))

    def _fitting(self, pictures: Sequence[VideoFrame]) -> tuple[VideoFrame, ...]:
        """The newest pictures that a unit has room for beside those that were sent to it."""
        room = self._most_pieces - sum(self._talk.waiting_pictures)
        places = MAX_PICTURES - len(self._talk.waiting_pictures)
        kept: list[VideoFrame] = []
        for picture in reversed(pictures):
            if len(kept) == places or not self._is_seen(picture):
                continue
            room -= self._pieces(picture.rgb)
            if room < 0:
                break
            kept.insert(0, picture)
        return tuple(kept)

    def _is_seen(self, picture: VideoFrame) -> bool:
        height, width = picture.rgb.shape[:2]
        try:
            check_picture(width, height, self._settings.max_slices)
        except RequestError as error:
            log.warning("a picture of the camera was not seen: %s", error)
            return False
        return True

    def _said(self, result: UnitResult, stage_ms: StageTimes) -> None:
        """A unit is over: what came of it."""
        outcome, line = result.outcome, self._line
        if outcome.begins_turn:
            line.begin(self._settings.voice, speaks=self._talk.settings.speaks)
        if outcome.listened:
            line.tell(Listened(result.unit))
        else:
            line.say(result.unit, result.text, result.speech_tokens)
        if outcome.ends_turn is not None:
            line.end(outcome.ends_turn, result.unit)
        line.tell(UnitReport(result.unit, stage_ms, result.context_tokens))

    # ---- work between two units -----------------------------------------------------------------

    def _interruption(self, turn: int, heard_ms: int) -> Job:
        heard_ms = heard_ms if self._talk.settings.speaks else _ALL_MS
        mine = turn - self._turns_before
        return Job(self._rewinding(mine, heard_ms), lambda _, __: self._interrupted(turn))

    def _rewinding(self, turn: int, heard_ms: int) -> Steps:
        if turn > 0:
            yield from self._talk.rewind_steps(turn, heard_ms)

    def _interrupted(self, turn: int) -> None:
        if turn == self._line.turn:
            self._line.end("interrupted")

    def _take_back(self, unit: int) -> Steps:
        """The user went on speaking: unit `unit` was only tried."""
        kept, self._snapshot = self._snapshot, None
        if kept is None or kept[0] != unit:
            return
        self._talk.restore(kept[1])
        if self._line.turn - self._turns_before > self._talk.turn:
            self._line.end("interrupted")
            self._turns_before = self._line.turn - self._talk.turn
        yield from ()

    def _reprompting(self, prompt: DuplexPrompt) -> Steps:
        voice = self._parts.voices.get(self._settings.voice)
        yield from self._talk.replace_prompt_steps(prompt, voice)

    def _open_eyes(self) -> Steps:
        """The first picture: a call with a camera has a prompt of its own, unless it was given."""
        self._sees = True
        system = self._system(self._settings)
        if system != self._prompted:
            self._prompted = system
            yield from self._reprompting(self._prompt(system))

    def _system(self, settings: SessionSettings) -> str:
        return settings.instructions or duplex_system(settings.language, camera=self._sees)

    def _prompt(self, system: str) -> DuplexPrompt:
        return duplex_prompt(self._vocabulary, system)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._parts.runner.model.vocabulary

    # ---- its slot -------------------------------------------------------------------------------

    def give_up(self) -> None:
        """Forget what waits, and end the turn that goes on: the call is paused."""
        self._units.clear()
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


def _nothing(result: Any, stage_ms: StageTimes) -> None:
    pass
