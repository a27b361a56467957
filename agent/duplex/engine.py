"""The `minicpm-o` engine: all calls and chats of one set of weights, worked on by one thread.

`work` does the next piece of whoever is first: duplex calls, whose next unit comes in a second;
then calls that take turns; then chats. Among equals, work that was begun comes first, then whoever
waits longest; chats take turns. A paused call keeps its slot for a minute, then leaves it to others
until it is resumed. One slot is never a chat's, where there are more.
"""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from agent.chat_types import (
    AnswerRequest,
    ChatAudio,
    ChatDelta,
    ChatDone,
    ChatEvent,
    FinishReason,
    SpeechRequest,
)
from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.answer import AnswerPiece
from agent.duplex.call import DuplexCall
from agent.duplex.call_parts import CallParts, CallVoices
from agent.duplex.chat import Chat
from agent.duplex.chat_prompt import asked_language
from agent.duplex.job import Job
from agent.duplex.lanes import Runner, StageTimes
from agent.duplex.reading import Reading
from agent.duplex.speakers import find_speaker
from agent.duplex.turns_call import TurnsCall
from agent.duplex.voice_line import VoiceLine
from agent.duplex.work import Work
from agent.errors import AgentError, CapacityError, EngineError, RequestError
from agent.torch_parts.device import breaks_device
from agent.types import (
    Abilities,
    Command,
    EngineEvent,
    Failed,
    Load,
    Pause,
    Paused,
    Resume,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
    UpdateSettings,
)

log = logging.getLogger(__name__)

PARK_AFTER_S = 60.0
"""So long a paused call keeps its slot."""
MAX_CHATS = 16
"""Chats that are being answered; each has a slot."""

Told = tuple[int, EngineEvent | ChatEvent]


class Call(Protocol):
    """What the engine needs of a call, whichever way it takes turns."""

    def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None: ...

    def control(self, command: Command) -> None: ...

    def goes_on_under(self, settings: SessionSettings) -> bool: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def voices(self) -> CallVoices: ...

    def next_job(self) -> Job | None: ...

    def give_up(self, then: Callable[[], None]) -> None: ...

    def park(self) -> None: ...

    def unpark(self) -> None: ...

    def close(self) -> None: ...


class Asked(Protocol):
    """What the engine needs of a chat or a reading."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def is_voiced(self) -> bool: ...

    def begin(self) -> Generator[Work, None, None]: ...

    def advance(self) -> Generator[Work, None, AnswerPiece]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Line:
    """One call: how it takes turns now, what it says, what it is at."""

    call: Call
    voice: VoiceLine
    settings: SessionSettings
    voices: CallVoices
    """Of the call that is to begin anew; `call` knows what it has itself."""
    job: Job | None = None
    paused_s: float | None = None
    parked: bool = False
    stale: bool = False
    """While it was parked it was told to begin anew: it does when it is resumed."""

    @property
    def has_work(self) -> bool:
        return self.job is not None or (not self.parked and self.call.has_work)


@dataclass(slots=True)
class _Asking:
    """One chat or reading, and what it is at."""

    chat: Asked
    job: Job | None = None
    answer_tokens: int = 0
    speech_tokens: int = 0
    over: bool = False


class DuplexEngine:
    """An `EngineCore` on one model."""

    name = "minicpm-o"

    def __init__(self, parts: CallParts, abilities: Abilities, clock: Clock = SYSTEM_CLOCK) -> None:
        self._parts = parts
        self._clock = clock
        self._calls: dict[int, _Line] = {}
        self._chats: dict[int, _Asking] = {}
        self._said: list[Told] = []
        self.abilities = abilities

    # ---- who comes and goes ---------------------------------------------------------------------

    def open(self, number: int, settings: SessionSettings) -> None:
        """Start a call; CapacityError without a slot, RequestError for what cannot be."""
        voice = VoiceLine(self._parts.vocoder)
        voices = CallVoices.of(self._parts, settings)
        self._calls[number] = _Line(self._call(settings, voice, voices), voice, settings, voices)

    def chat(self, number: int, request: AnswerRequest) -> None:
        """Start a chat, or a text read aloud.

        CapacityError without a slot, RequestError for what cannot be, UnsupportedError where a
        voice is wanted and there is none.
        """
        slots = self._parts.runner.slots
        if len(self._chats) >= MAX_CHATS or (slots.free <= 1 and slots.count > 1):
            raise CapacityError("too many chats wait for an answer", retry_after_s=5.0)
        asking = _Asking(self._asked(request))
        self._chats[number] = asking
        asking.job = Job(asking.chat.begin(), lambda _, __: None)

    def _asked(self, request: AnswerRequest) -> Asked:
        parts = self._parts
        if isinstance(request, SpeechRequest):
            speaker = find_speaker(parts, request.voice, request.language, "model")
            return Reading(parts.runner, request, speaker)
        if request.speaks:
            speaker = find_speaker(parts, request.voice, asked_language(request), "modalities")
            return Chat(parts.runner, request, speaker=speaker)
        return Chat(parts.runner, request)

    def finish(self, number: int) -> None:
        """Call or chat `number` is over. Idempotent."""
        if (line := self._calls.pop(number, None)) is not None:
            line.call.close()
        if (asking := self._chats.pop(number, None)) is not None:
            asking.chat.close()

    def load(self) -> Load:
        """Slots used and free."""
        free = self._parts.runner.slots.free
        return Load(slots_used=self._parts.runner.slots.count - free, slots_free=free)

    # ---- what calls are told --------------------------------------------------------------------

    def push(self, number: int, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """What a call hears next; while it is paused it hears nothing."""
        line = self._calls.get(number)
        if line is not None and line.paused_s is None:
            line.call.push(item)

    def control(self, number: int, command: Command) -> None:
        """Carry out a command; RequestError if it cannot be."""
        line = self._calls.get(number)
        if line is None:
            return
        match command:
            case Pause():
                self._pause(line)
            case Resume():
                self._resume(line)
            case UpdateSettings(settings=settings) if not line.call.goes_on_under(settings):
                self._begin_anew(line, settings)
            case UpdateSettings(settings=settings):
                line.call.control(command)
                line.settings = settings
            case _:
                line.call.control(command)

    def _pause(self, line: _Line) -> None:
        if line.paused_s is None:
            line.paused_s = self._clock.now_s()
            line.call.give_up(lambda: line.voice.tell(Paused("asked by the client")))

    def _resume(self, line: _Line) -> None:
        try:
            if line.parked and line.stale:
                before, line.call = line.call, self._call(line.settings, line.voice, line.voices)
                before.close()
            elif line.parked:
                line.call.unpark()
        except CapacityError as error:
            line.voice.tell(Paused("no place is free"))
            raise RequestError(
                f"{error}; the call stays paused, resume it later", code=error.code
            ) from error
        line.parked = line.stale = False
        line.paused_s = None

    def _begin_anew(self, line: _Line, settings: SessionSettings) -> None:
        """The model is prompted another way for each mode: what was said before is forgotten."""
        kind = TurnsCall if settings.mode == "half_duplex" else DuplexCall
        known = line.voices if line.stale else line.call.voices
        voices = known.updated(self._parts, settings)
        kind.check(self._parts, settings, voices)
        line.settings, line.voices = settings, voices
        if line.parked:
            line.stale = True
            return
        line.job = None
        line.voice.end("interrupted")
        line.call.close()
        line.call = self._call(settings, line.voice, voices)

    def _call(self, settings: SessionSettings, line: VoiceLine, voices: CallVoices) -> Call:
        kind = TurnsCall if settings.mode == "half_duplex" else DuplexCall
        return kind(self._parts, settings, line, voices)

    # ---- the work -------------------------------------------------------------------------------

    def work(self) -> list[Told]:
        """The next piece of work, and what is to be said by now."""
        self._park_the_paused()
        number = self._next_call()
        if number is not None:
            self._advance(number, self._calls[number])
        elif self._chats:
            self._advance_chat()
        return self._collected()

    def idle_s(self) -> float | None:
        """0 while there is work; else until a paused call is to be parked; None: nothing is."""
        if self._chats or self._said or self._next_call() is not None:
            return 0.0
        if any(line.voice.waits for line in self._calls.values()):
            return 0.0
        due = [
            line.paused_s + PARK_AFTER_S
            for line in self._calls.values()
            if line.paused_s is not None and not line.parked
        ]
        return max(0.0, min(due) - self._clock.now_s()) if due else None

    def _next_call(self) -> int | None:
        """Whose work is next."""
        waiting = [number for number, line in self._calls.items() if line.has_work]
        # The first of equals: those that were served stand behind.
        return min(waiting, key=self._rank, default=None)

    def _rank(self, number: int) -> tuple[bool, bool]:
        line = self._calls[number]
        return line.settings.mode != "duplex", line.job is None

    def _advance(self, number: int, line: _Line) -> None:
        if line.job is None:
            line.job = line.call.next_job()
            # Whoever is served goes to the end of the line.
            self._calls[number] = self._calls.pop(number)
        try:
            if line.job is not None and not _advanced(line.job, self._parts.runner):
                line.job = None
        except RequestError as error:
            # What was to be read does not fit: it is left out, and the call goes on.
            log.warning("call %d: %s", number, error)
            line.job = None
        except (AgentError, RuntimeError) as error:
            # Whatever it is, torch's included, it is this one's alone, unless nothing works now.
            if breaks_device(error):
                raise
            self._fail(number, error)

    def _advance_chat(self) -> None:
        number, asking = next(iter(self._chats.items()))
        self._chats[number] = self._chats.pop(number)
        if asking.job is None:
            asking.job = Job(asking.chat.advance(), self._answered(number, asking))
        try:
            if not _advanced(asking.job, self._parts.runner):
                asking.job = None
        except (AgentError, RuntimeError) as error:
            # Whatever it is, torch's included, it is this one's alone, unless nothing works now.
            if breaks_device(error):
                raise
            self._fail(number, error)
        if asking.over:
            self.finish(number)

    def _answered(self, number: int, asking: _Asking) -> Callable[[AnswerPiece, StageTimes], None]:
        def tell(piece: AnswerPiece, stage_ms: StageTimes) -> None:
            asking.answer_tokens += piece.tokens
            asking.speech_tokens += len(piece.speech_tokens)
            if piece.reasoning:
                self._said.append((number, ChatDelta(piece.reasoning, reasoning=True)))
            if piece.text:
                self._said.append((number, ChatDelta(piece.text)))
            if piece.samples.size:
                self._said.append((number, ChatAudio(piece.samples)))
            if piece.finish is not None:
                self._said.append((number, _done(piece.finish, asking)))
                asking.over = True

        return tell

    def _fail(self, number: int, error: Exception) -> None:
        """This call or chat cannot go on; the others can."""
        is_known = isinstance(error, AgentError)
        log.warning("call or chat %d ended: %s", number, error, exc_info=not is_known)
        self._collect(number)
        failure = error if isinstance(error, EngineError) else EngineError(str(error))
        self._said.append((number, Failed(failure)))
        self.finish(number)

    def _park_the_paused(self) -> None:
        now_s = self._clock.now_s()
        for line in self._calls.values():
            paused = line.paused_s is not None and now_s - line.paused_s >= PARK_AFTER_S
            if paused and not line.parked and line.job is None and not line.call.has_work:
                line.call.park()
                line.parked = True

    def _collected(self) -> list[Told]:
        for number in self._calls:
            self._collect(number)
        said, self._said = self._said, []
        return said

    def _collect(self, number: int) -> None:
        line = self._calls.get(number)
        if line is not None:
            self._said += [(number, event) for event in line.voice.take()]


def _advanced(job: Job, runner: Runner) -> bool:
    """Whether there was a piece to do."""
    work = job.next()
    if work is None:
        return False
    began_s = runner.clock.now_s()
    runner.do(work)
    job.did(work, (runner.clock.now_s() - began_s) * 1000)
    return True


def _done(reason: FinishReason, asking: _Asking) -> ChatDone:
    chat = asking.chat
    return ChatDone(
        reason, chat.prompt_tokens, asking.answer_tokens, asking.speech_tokens, chat.is_voiced
    )
