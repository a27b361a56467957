"""The `echo` engine: a conversation partner that needs no model.

It greets, then says back what it heard after each utterance, so that a user hears exactly what an
agent would hear. `EchoPartner` is the whole behaviour, synchronous, its time passed in;
`EchoConversation` makes it asynchronous.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import numpy as np

from agent.chat_types import AnswerRequest, ChatEvent, SpeechRequest
from agent.clock import SYSTEM_CLOCK, Clock
from agent.engines.echo_memory import CHUNK_SAMPLES, Glimpse, Heard, Speech, Utterance
from agent.engines.greeting import Greeting
from agent.errors import CapacityError, UnsupportedError
from agent.media.audio import Resampler
from agent.types import (
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    Abilities,
    ClearInput,
    Command,
    CommitInput,
    EngineEvent,
    FloatArray,
    ForceListen,
    Interrupt,
    Listened,
    Load,
    Pause,
    Paused,
    Respond,
    Resume,
    Retract,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
    Unit,
    UnitReport,
    UpdateSettings,
)

MAX_ECHO_SAMPLES = 15 * MIC_RATE_HZ
"""No answer is longer than 15 s."""
_HISTORY_SAMPLES = 18 * MIC_RATE_HZ
"""15 s, the unit in which speech begins and the one in which it ends, and one to spare."""
_MOST_UNITS = 128
_TAIL_SAMPLES = MIC_RATE_HZ // 8
"""Speech fades: say back 125 ms more than the detector called speech."""
_MAX_PENDING_EVENTS = 256

ABILITIES = Abilities(duplex=True, speech=True, camera=True)


class EchoPartner:
    """Greets, listens, says back. Feed it, then `take(now_s)` what it has to say.

    Keeps the last 18 s and one utterance to answer: a newer one replaces it.
    """

    def __init__(self, settings: SessionSettings, greeting: Greeting) -> None:
        self._settings = settings
        self._greeting = greeting
        self._units: deque[Heard] = deque(maxlen=_MOST_UNITS)
        self._events: deque[EngineEvent] = deque(maxlen=_MAX_PENDING_EVENTS)
        self._onset: int | None = None
        self._committed = 0
        self._awaited: Utterance | None = None
        self._last_utterance: Utterance | None = None
        self._due: Callable[[float], None] | None = self._greet
        self._speech: Speech | None = None
        self._turn = 0
        self._unit = -1
        self._answered_in = -1
        self._forced_to_listen = False
        self._paused = False

    def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """The next unit, or where in the units speech began or ended."""
        if self._paused:
            return
        if isinstance(item, Unit):
            self._take_unit(item)
        elif isinstance(item, SpeechStarted):
            self._onset = self._resumed_from(item.at)
        elif self._onset is not None:
            detection = self._settings.turn_detection
            answer = detection is not None and detection.create_response
            self._awaited = Utterance(self._onset, item.at, answer)
            self._onset = None
            self._settle_utterance()

    def control(self, command: Command) -> None:
        """Carry out `command`; `UnsupportedError` for what needs a model."""
        match command:
            case Interrupt(turn=turn):
                self._stop(turn)
            case UpdateSettings(settings=settings):
                self._settings = settings
                if settings.turn_detection is None:
                    # Nobody will tell where speech that has begun ends.
                    self._onset = None
            case Respond():
                self._respond()
            case CommitInput(at=at):
                self._commit(at)
            case ClearInput(at=at):
                self._committed = self._time_of(at)
            case ForceListen(on=on):
                self._forced_to_listen = on
                self._stop(self._turn)
            case Retract(unit=unit):
                self._take_back(unit)
            case Pause():
                self._paused = True
                self._onset = self._awaited = None
                self._stop(self._turn)
                self._events.append(Paused("asked by the client"))
            case Resume():
                self._paused = False
            case _:
                name = type(command).__name__
                raise UnsupportedError(f"the echo engine has no model, so it cannot do {name}")

    def take(self, now_s: float) -> list[EngineEvent]:
        """What is to be said by `now_s`, in order."""
        if self._due and not self._speech and not self._forced_to_listen and not self._paused:
            begin, self._due = self._due, None
            begin(now_s)
        if self._speech:
            self._hand_out(self._speech, now_s)
        events = list(self._events)
        self._events.clear()
        return events

    def next_due_s(self) -> float | None:
        """When `take` has more to give although nothing is pushed; None if only input helps."""
        return self._speech.next_due_s() if self._speech else None

    def _take_unit(self, unit: Unit) -> None:
        glimpses = tuple(Glimpse.of(picture) for picture in unit.pictures)
        self._take_back(unit.index)
        self._units.append(
            Heard(unit.index, unit.start, unit.audio[: unit.samples_valid], glimpses)
        )
        while unit.end - self._units[0].start > _HISTORY_SAMPLES:
            self._units.popleft()
        self._unit = unit.index
        if not self._speech:
            self._events.append(Listened(unit.index))
        self._settle_utterance()

    def _take_back(self, unit: int) -> None:
        """Unit `unit` was only tried: it comes again, and the user may have gone on in it."""
        if not self._units or self._units[-1].index != unit:
            return
        self._units.pop()
        utterance = self._last_utterance
        if self._answered_in == unit and utterance is not None:
            self._due = None
            self._stop(self._turn)
            self._awaited = replace(utterance, sound=None, caption="")

    def _settle_utterance(self) -> None:
        """Once the units hold all of the awaited utterance, it can be answered."""
        utterance = self._awaited
        if utterance is None or utterance.end + _TAIL_SAMPLES > self._heard_until():
            return
        self._awaited = None
        self._last_utterance = self._complete(utterance)
        if utterance.answer:
            self._due = self._answer
            self._answered_in = self._unit

    def _resumed_from(self, at: int) -> int:
        """The onset of speech that starts at `at`: a user who only paused is not answered yet."""
        interrupted, self._awaited = self._awaited, None
        if self._due == self._answer and self._last_utterance and self._last_utterance.answer:
            interrupted, self._due = self._last_utterance, None
        return interrupted.start if interrupted else at

    def _complete(self, utterance: Utterance) -> Utterance:
        sound = self._recall(utterance)
        return replace(utterance, sound=sound, caption=self._caption(utterance))

    def _heard_until(self) -> int:
        return self._units[-1].end if self._units else 0

    def _respond(self) -> None:
        if self._awaited is not None and self._settings.turn_detection is None:
            # What was committed is about to come in: the answer is to that.
            self._awaited = replace(self._awaited, answer=True)
        else:
            self._due = self._answer if self._last_utterance else self._greet

    def _commit(self, at: int) -> None:
        """What was said up to `at`, which the units may hold later only, is an utterance."""
        until = self._time_of(at)
        if until - self._committed > _TAIL_SAMPLES:
            # No tail beyond the end: the client knows where that is.
            self._awaited = Utterance(self._committed, until - _TAIL_SAMPLES, False)
            self._settle_utterance()
        self._committed = until

    def _time_of(self, at: int) -> int:
        """The sample `at` on the microphone's clock; now, as far as that is known, if unknown."""
        return at if at >= 0 else self._heard_until()

    def _greet(self, now_s: float) -> None:
        self._begin(self._greeting.samples, self._greeting.text, now_s)

    def _answer(self, now_s: float) -> None:
        utterance = self._last_utterance
        if utterance is None or utterance.sound is None or not utterance.sound.size:
            self._greet(now_s)
            return
        self._begin(_to_speech_rate(utterance.sound), utterance.caption, now_s)

    def _begin(self, samples: FloatArray, text: str, now_s: float) -> None:
        self._turn += 1
        self._events.append(TurnStarted(self._turn))
        self._events.append(TextDelta(self._unit, self._turn, text))
        if "audio" in self._settings.output_modalities:
            self._speech = Speech(self._turn, samples, now_s)
        else:
            self._events.append(TurnEnded(self._turn, "completed"))

    def _hand_out(self, speech: Speech, now_s: float) -> None:
        while speech.position < min(speech.due_samples(now_s), speech.samples.size):
            chunk = speech.samples[speech.position : speech.position + CHUNK_SAMPLES]
            last = speech.position + chunk.size == speech.samples.size
            self._events.append(SpeechAudio(speech.turn, self._unit, speech.position, chunk, last))
            speech.position += chunk.size
        if speech.position == speech.samples.size:
            self._end("completed")

    def _stop(self, turn: int) -> None:
        if self._speech and self._speech.turn == turn:
            self._end("interrupted")

    def _end(self, reason: TurnEndReason) -> None:
        if self._speech:
            self._events.append(TurnEnded(self._speech.turn, reason))
            self._speech = None

    def _recall(self, utterance: Utterance) -> FloatArray:
        """The sound of `utterance`, its last 15 s at most, as far as it is still kept."""
        end = utterance.end + _TAIL_SAMPLES
        start = max(utterance.start, end - MAX_ECHO_SAMPLES)
        pieces = [
            unit.audio[max(0, start - at) : max(0, end - at)]
            for unit in self._units
            for at in (unit.start,)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def _caption(self, utterance: Utterance) -> str:
        seconds = (utterance.end - utterance.start) / MIC_RATE_HZ
        caption = f"You spoke for {seconds:.1f} s."
        if utterance.end + _TAIL_SAMPLES - utterance.start > MAX_ECHO_SAMPLES:
            caption += " Here are the last 15."
        return caption + self._camera_caption(utterance)

    def _camera_caption(self, utterance: Utterance) -> str:
        start, end = utterance.start, utterance.end
        units = [unit for unit in self._units if unit.end > start and unit.start <= end]
        seen = [glimpse for unit in units for glimpse in unit.pictures]
        if not seen:
            return ""
        rate_hz = len(seen) / len(units)
        return (
            f" I saw {seen[-1].width}×{seen[-1].height} pixels,"
            f" brightness {seen[-1].brightness:.0%}, {rate_hz:.1f} pictures a second."
        )


def _to_speech_rate(sound: FloatArray) -> FloatArray:
    resampler = Resampler(MIC_RATE_HZ, SPEECH_RATE_HZ)
    return np.concatenate((resampler.push(sound), resampler.finish()))


class EchoConversation:
    """An `EchoPartner` behind the seam `Conversation`."""

    def __init__(self, partner: EchoPartner, clock: Clock, release: Callable[[], None]) -> None:
        self._partner = partner
        self._clock = clock
        self._release = release
        self._wake = asyncio.Event()
        self._finished = False
        self._reports: deque[UnitReport] = deque(maxlen=8)

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """Feed the next unit or speech boundary. Never blocks."""
        began_s = self._clock.now_s()
        self._partner.push(item)
        if isinstance(item, Unit):
            spent_ms = (self._clock.now_s() - began_s) * 1000
            self._reports.append(UnitReport(item.index, (("engine", spent_ms),)))
        self._wake.set()

    async def control(self, command: Command) -> None:
        """Carry out a command; `UnsupportedError` for what needs a model."""
        self._partner.control(command)
        self._wake.set()

    async def events(self) -> AsyncIterator[EngineEvent]:
        """What the engine says, paced in real time; the greeting begins at the first call."""
        while not self._finished:
            self._wake.clear()
            for event in self._partner.take(self._clock.now_s()):
                yield event
            while self._reports:
                yield self._reports.popleft()
            await self._wait(self._partner.next_due_s())

    async def _wait(self, due_s: float | None) -> None:
        if self._finished or self._wake.is_set():
            return
        timer = None
        if due_s is not None:
            delay_s = max(0.0, due_s - self._clock.now_s())
            timer = asyncio.get_running_loop().call_later(delay_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer:
                timer.cancel()

    async def finish(self) -> None:
        """End of input: `events` ends and the slot is free again."""
        if not self._finished:
            self._finished = True
            self._release()
            self._wake.set()


class EchoEngine:
    """Opens echo conversations, at most `slots` at a time."""

    name = "echo"
    abilities = ABILITIES

    def __init__(self, greeting: Greeting, slots: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._greeting = greeting
        self._slots = slots
        self._clock = clock
        self._open: set[EchoConversation] = set()

    async def open(self, settings: SessionSettings) -> EchoConversation:
        """Start a conversation; `CapacityError` when every slot is taken."""
        if len(self._open) >= self._slots:
            raise CapacityError("every slot of the echo engine is taken", retry_after_s=5.0)
        partner = EchoPartner(settings, self._greeting)
        conversation = EchoConversation(
            partner, self._clock, lambda: self._open.discard(conversation)
        )
        self._open.add(conversation)
        return conversation

    def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """It understands nothing, so it cannot: `UnsupportedError`."""
        does = "read aloud" if isinstance(request, SpeechRequest) else "chat"
        raise UnsupportedError(f"the echo engine has no model, so it cannot {does}")

    def load(self) -> Load:
        """Slots used and free."""
        return Load(slots_used=len(self._open), slots_free=self._slots - len(self._open))

    async def close(self) -> None:
        """End every conversation."""
        for conversation in list(self._open):
            await conversation.finish()
