"""The `minicpm-o` engine: all calls and chats of one set of weights, worked on by one thread.

Who comes and goes is here; `engine_loop` does their work on lanes side by side, in the order that
`agent.scheduler` says. A call or a chat has one job at a time. A paused call keeps its slot for a
minute, then leaves it to others until it is resumed. One slot is never a chat's, where there are
more. Who leaves while a work of his is under way has his slot until that is finished.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from agent.chat_types import (
    AnswerRequest,
    ChatAudio,
    ChatDelta,
    ChatEvent,
    SpeechRequest,
)
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import Command, Pause, Resume, UpdateSettings
from agent.duplex.answer import AnswerPiece
from agent.duplex.call import DuplexCall
from agent.duplex.call_parts import CallParts, CallVoices
from agent.duplex.chat import Chat
from agent.duplex.chat_prompt import asked_language, shows
from agent.duplex.engine_loop import LaneLoop, Task
from agent.duplex.engine_members import Asked, Asking, Call, Line
from agent.duplex.job import Job
from agent.duplex.lanes import StageTimes
from agent.duplex.reading import Reading
from agent.duplex.rehearsal import rehearse
from agent.duplex.speakers import find_speaker
from agent.duplex.turns_call import TurnsCall
from agent.duplex.voice_line import VoiceLine
from agent.errors import AgentError, CapacityError, EngineError, RequestError, UnsupportedError
from agent.scheduler import UNIT_S, Admission, Costs, Demand, Rank, Relief
from agent.types import (
    Abilities,
    EngineEvent,
    Failed,
    Load,
    Paused,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

PARK_AFTER_S = 60.0
"""So long a paused call keeps its slot."""
MAX_CHATS = 16
"""Chats that are being answered; each has a slot."""

Told = tuple[int, EngineEvent | ChatEvent]


class DuplexEngine:
    """An `EngineCore` on one model."""

    name = "minicpm-o"

    def __init__(
        self,
        parts: CallParts,
        abilities: Abilities,
        clock: Clock = SYSTEM_CLOCK,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`pause` waits for so many seconds, where the device is waited for."""
        self._parts = parts
        self._clock = clock
        self._calls: dict[int, Line] = {}
        self._chats: dict[int, Asking] = {}
        self._said: list[Told] = []
        self.abilities = abilities
        self.costs = Costs()
        """What batches take: whoever measured some before the first call tells it here."""
        self._admission = Admission(self.costs)
        self._relief = Relief()
        self._loop = LaneLoop(parts.runner, self.costs, pause)

    def rehearse(self) -> None:
        """Find out what batches take, before the first call; a second or two on a GPU.

        EngineError, RequestError where it cannot speak.
        """
        rehearse(self._parts, self.costs)

    # ---- who comes and goes ---------------------------------------------------------------------

    def open(self, number: int, settings: SessionSettings) -> None:
        """Start a call; RequestError for what cannot be.

        CapacityError without a slot, or where it would make the others' units late.
        """
        voice = VoiceLine(self._parts.vocoder)
        voices = CallVoices.of(self._parts, settings)
        self._expect_room()
        call = self._placed(lambda: self._call(settings, voice, voices))
        self._calls[number] = Line(call, voice, settings, voices, self._clock.now_s())

    def chat(self, number: int, request: AnswerRequest) -> None:
        """Start a chat, or a text read aloud.

        CapacityError without a slot, RequestError for what cannot be, UnsupportedError where a
        voice is wanted and there is none, or pictures are shown to a model that does not see.
        """
        slots = self._parts.runner.slots
        if len(self._chats) >= MAX_CHATS or (slots.free <= 1 and slots.count > 1):
            ages_s = self._ages_s(self._chats.values()) or self._ages_s(self._calls.values())
            retry_after_s = self._admission.retry_after_s(ages_s)
            raise CapacityError("too many chats wait for an answer", retry_after_s=retry_after_s)
        chat = self._placed(lambda: self._asked(request))
        self._chats[number] = Asking(chat, self._clock.now_s())

    def _asked(self, request: AnswerRequest) -> Asked:
        parts = self._parts
        if isinstance(request, SpeechRequest):
            speaker = find_speaker(parts, request.voice, request.language, "model")
            return Reading(parts.runner, request, speaker)
        if not self._sees and shows(request):
            raise UnsupportedError(
                "the model was started without what sees (model.vision)", param="messages"
            )
        if request.speaks:
            speaker = find_speaker(parts, request.voice, asked_language(request), "modalities")
            return Chat(parts.runner, request, speaker=speaker)
        return Chat(parts.runner, request)

    def _placed(self, begin: Callable[[], T]) -> T:
        """What takes a slot; where none is free, those are waited for that are about to be."""
        if not self._parts.runner.slots.free:
            self._loop.settle()
        try:
            return begin()
        except CapacityError as error:
            ages_s = self._ages_s([*self._calls.values(), *self._chats.values()])
            retry_after_s = self._admission.retry_after_s(ages_s)
            raise CapacityError(str(error), retry_after_s=retry_after_s) from error

    def _expect_room(self) -> None:
        """CapacityError where one more call would make the units of others late."""
        present = self._present()
        demand = Demand(present.calls + 1, present.seeing)
        if not self._admission.fits(demand):
            retry_after_s = self._admission.retry_after_s(self._ages_s(self._calls.values()))
            raise CapacityError(
                "one more call would make the others wait for their answers",
                retry_after_s=retry_after_s,
            )

    def _present(self) -> Demand:
        """The calls that have a slot, paused ones too: they may go on at any time."""
        calls = [line.call for line in self._calls.values() if not line.parked]
        return Demand(len(calls), sum(call.sees for call in calls))

    def _ages_s(self, members: Iterable[Line | Asking]) -> list[float]:
        now_s = self._clock.now_s()
        return [now_s - one.since_s for one in members]

    def finish(self, number: int) -> None:
        """Call or chat `number` is over. Idempotent."""
        if (line := self._calls.pop(number, None)) is not None:
            self._relief.forget(number)
            self._leave(line, line.call.close)
        if (asking := self._chats.pop(number, None)) is not None:
            self._leave(asking, asking.chat.close)

    def _leave(self, member: Line | Asking, close: Callable[[], None]) -> None:
        """Give up what it is at, and then its slot."""
        self._admission.ended(self._clock.now_s() - member.since_s)
        self._abandon(member, close)

    def _abandon(self, member: Line | Asking, close: Callable[[], None]) -> None:
        task, member.task = member.task, None
        if task is None:
            close()
        else:
            self._loop.drop(task, close)

    def load(self) -> Load:
        """Slots used and free."""
        free = self._parts.runner.slots.free
        return Load(slots_used=self._parts.runner.slots.count - free, slots_free=free)

    @property
    def _sees(self) -> bool:
        return self._parts.runner.model.config.parts.vision

    # ---- what calls are told --------------------------------------------------------------------

    def push(self, number: int, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """What a call hears next; while it is paused it hears nothing."""
        line = self._calls.get(number)
        if line is None or line.paused_s is not None:
            return
        if isinstance(item, Unit) and not self._sees:
            item = replace(item, pictures=())
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

    def _pause(self, line: Line) -> None:
        if line.paused_s is None:
            line.paused_s = self._clock.now_s()
            line.call.give_up(lambda: line.voice.tell(Paused("asked by the client")))

    def _resume(self, line: Line) -> None:
        try:
            if line.parked:
                self._expect_room()
                self._placed(lambda: self._come_back(line))
        except CapacityError as error:
            line.voice.tell(Paused("no place is free"))
            raise RequestError(
                f"{error}; the call stays paused, resume it later", code=error.code
            ) from error
        line.parked = line.stale = False
        line.paused_s = None

    def _come_back(self, line: Line) -> None:
        """Take a slot again."""
        if line.stale:
            before, line.call = line.call, self._call(line.settings, line.voice, line.voices)
            before.close()
        else:
            line.call.unpark()

    def _begin_anew(self, line: Line, settings: SessionSettings) -> None:
        """The model is prompted another way for each mode: what was said before is forgotten."""
        kind = TurnsCall if settings.mode == "half_duplex" else DuplexCall
        known = line.voices if line.stale else line.call.voices
        voices = known.updated(self._parts, settings)
        kind.check(self._parts, settings, voices)
        line.settings, line.voices = settings, voices
        if line.parked:
            line.stale = True
            return
        line.voice.end("interrupted")
        self._abandon(line, line.call.close)
        line.call = self._placed(lambda: self._call(settings, line.voice, voices))

    def _call(self, settings: SessionSettings, line: VoiceLine, voices: CallVoices) -> Call:
        kind = TurnsCall if settings.mode == "half_duplex" else DuplexCall
        return kind(self._parts, settings, line, voices)

    # ---- the work -------------------------------------------------------------------------------

    def work(self) -> list[Told]:
        """Begin what can be and take in what is done, and what is to be said by now."""
        self._park_the_paused()
        self._take_jobs()
        self._loop.holds_chats = self._relief.holds_chats
        self._loop.step()
        return self._collected()

    def idle_s(self) -> float | None:
        """0 while there is work; else until a paused call is to be parked; None: nothing is."""
        if self._chats or self._said or self._loop.is_busy:
            return 0.0
        if any(line.has_work or line.voice.waits for line in self._calls.values()):
            return 0.0
        due = [
            line.paused_s + PARK_AFTER_S
            for line in self._calls.values()
            if line.paused_s is not None and not line.parked
        ]
        return max(0.0, min(due) - self._clock.now_s()) if due else None

    def _take_jobs(self) -> None:
        """Whoever is at nothing begins what he has to do next."""
        for number, line in list(self._calls.items()):
            if line.task is None and not line.parked and line.call.has_work:
                self._take_job(number, line)
        for number, asking in list(self._chats.items()):
            if asking.task is None:
                self._take_piece(number, asking)

    def _take_job(self, number: int, line: Line) -> None:
        line.call.ease(self._relief.shown(number))
        job = line.call.next_job()
        if job is None:
            return
        rank: Rank = 0 if line.settings.mode == "duplex" else 1

        def over(error: Exception | None) -> None:
            line.task = None
            self._job_over(number, line, task, error)

        task = line.task = Task(job, rank, over)
        self._loop.start(task)

    def _job_over(self, number: int, line: Line, task: Task, error: Exception | None) -> None:
        if isinstance(error, RequestError):
            # What was to be read does not fit: it is left out, and the call goes on.
            log.warning("call %d: %s", number, error)
        elif error is not None:
            self._fail(number, error)
        elif task.job.due_s is not None:
            late_s = self._parts.runner.clock.now_s() - task.job.due_s
            self._relief.unit_over(number, late_s, sees=line.call.sees)
            steps = task.steps.get("decode", 0)
            self._admission.unit_over(late_s + UNIT_S, steps, self._present())
            self._loop.margin_s = self._admission.margin_s()

    def _take_piece(self, number: int, asking: Asking) -> None:
        if asking.begun:
            job = Job(asking.chat.advance(), self._answered(number, asking))
        else:
            asking.begun = True
            job = Job(asking.chat.begin(), lambda _, __: None)

        def over(error: Exception | None) -> None:
            asking.task = None
            if error is not None:
                self._fail(number, error)
            elif asking.over:
                self.finish(number)

        asking.task = Task(job, 2, over)
        self._loop.start(asking.task)

    def _answered(self, number: int, asking: Asking) -> Callable[[AnswerPiece, StageTimes], None]:
        def tell(piece: AnswerPiece, stage_ms: StageTimes) -> None:
            asking.answer_tokens += piece.tokens
            asking.speech_tokens += len(piece.speech_tokens)
            if piece.reasoning:
                self._said.append((number, ChatDelta(piece.reasoning, reasoning=True)))
            if piece.text:
                self._said.append((number, ChatDelta(piece.text)))
            if piece.samples.size:
                self._said.append((number, ChatAudio(piece.samples)))
            self._said += [(number, one.told()) for one in piece.calls]
            asking.has_called |= bool(piece.calls)
            if piece.finish is not None:
                self._said.append((number, asking.done(piece.finish)))
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
            if paused and not line.parked and not line.has_work:
                line.call.park()
                line.parked = True

    def _collected(self) -> list[Told]:
        for number in self._calls:
            self._collect(number)
        said, self._said = self._said, []
        return said

    def _collect(self, number: int) -> None:
        line = self._calls.get(number)
        if line is not None and line.voice.waits:
            self._said += [(number, event) for event in line.voice.take()]
