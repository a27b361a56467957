"""What the `echo` engine does, without an event loop: it greets, listens and says back."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

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
    Pause,
    Respond,
    Resume,
    Retract,
    UpdateSettings,
)
from agent.engines.echo_items import MAX_ECHO_SAMPLES, Inbox, Item, Meter, word_count
from agent.engines.echo_memory import (
    Glimpse,
    Heard,
    Speech,
    Utterance,
    caption_of,
    recalled,
)
from agent.engines.echo_speech import (
    cut_to_words,
    pieces_of,
    timed_pieces,
    to_speech_rate,
    typed_sound,
)
from agent.engines.echo_tools import called, due_calls
from agent.engines.greeting import Greeting
from agent.types import (
    MIC_RATE_HZ,
    EngineEvent,
    FloatArray,
    Listened,
    Paused,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
    Unit,
    Usage,
)

_HISTORY_SAMPLES = 18 * MIC_RATE_HZ
"""15 s, the unit in which speech begins and the one in which it ends, and one to spare."""
_MOST_UNITS = 128
_TAIL_SAMPLES = MIC_RATE_HZ // 8
"""Speech fades: say back 125 ms more than the detector called speech."""
_MAX_PENDING_EVENTS = 256


class EchoPartner:
    """Greets, listens, says back. Feed it, then `take(now_s)` what it has to say.

    Keeps the last 18 s and one utterance to answer: a newer one replaces it. It greets
    `greets_after_s` after the first `take`, unless the client has asked it to speak by then.
    """

    def __init__(
        self, settings: SessionSettings, greeting: Greeting, greets_after_s: float = 0.0
    ) -> None:
        self._settings = settings
        self._greeting = greeting
        self._greets_after_s = greets_after_s
        self._greets = True
        self._opened_s: float | None = None
        self._units: deque[Heard] = deque(maxlen=_MOST_UNITS)
        self._events: deque[EngineEvent] = deque(maxlen=_MAX_PENDING_EVENTS)
        self._inbox = Inbox()
        self._answered: Sequence[Item] = ()
        self._meter = Meter()
        self._onset: int | None = None
        self._committed = 0
        self._awaited: Utterance | None = None
        self._last_utterance: Utterance | None = None
        self._due: Callable[[float], None] | None = None
        self._asked = Respond()
        self._speech: Speech | None = None
        self._turn = 0
        self._unit = -1
        self._answered_in = -1
        self._is_tried = self._is_unsaid = False
        # Whether a `Respond` waits for its answer, and whether the newest turn was one.
        self._is_asked = self._was_asked = False
        self._forced_to_listen = False
        self._paused = False

    # ---- what comes in --------------------------------------------------------------------------

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
        """Carry out `command`; RequestError, with nothing changed, when it cannot be."""
        match command:
            case Interrupt(turn=turn):
                self._stop(turn)
            case UpdateSettings(settings=settings):
                self._settings = settings
                if settings.turn_detection is None:
                    # Nobody will tell where speech that has begun ends.
                    self._onset = None
            case AddText() | AddPicture() | AddAudio() | AddToolResult():
                self._meter.add(self._inbox.add(command))
            case DeleteItem(item_id=item_id):
                self._inbox.forget(item_id)
            case Respond():
                self._respond(command)
            case CommitInput(at=at):
                self._commit(at)
            case ClearInput(at=at):
                self._committed = self._time_of(at)
            case ForceListen(on=on):
                self._forced_to_listen = on
                self._stop(self._turn)
            case Retract(unit=unit):
                self._take_back(unit)
            case Pause() | Resume():
                self._pause(on=isinstance(command, Pause))

    def _pause(self, *, on: bool) -> None:
        self._paused = on
        if not on:
            return
        self._onset = self._awaited = None
        self._stop(self._turn)
        self._events.append(Paused("asked by the client"))

    def _take_unit(self, unit: Unit) -> None:
        glimpses = tuple(Glimpse.of(picture) for picture in unit.pictures)
        self._take_back(unit.index)
        self._units.append(
            Heard(unit.index, unit.start, unit.audio[: unit.samples_valid], glimpses)
        )
        self._meter.pictures += len(glimpses)
        while unit.end - self._units[0].start > _HISTORY_SAMPLES:
            self._units.popleft()
        self._unit, self._is_tried = unit.index, unit.speculative
        if not self._speech:
            self._events.append(Listened(unit.index))
        self._settle_utterance()

    def _take_back(self, unit: int) -> None:
        """Unit `unit` was only tried: it comes again, and the user may have gone on in it."""
        if not self._units or self._units[-1].index != unit:
            return
        self._meter.pictures -= len(self._units.pop().pictures)
        utterance = self._last_utterance
        if self._answered_in == unit and utterance is not None:
            self._due = None
            self._stop(self._turn)
            self._inbox.bring_back(self._answered)
            self._answered = ()
            self._awaited = replace(utterance, sound=None, caption="")

    # ---- utterances -----------------------------------------------------------------------------

    def _settle_utterance(self) -> None:
        """Once the units hold all of the awaited utterance, it can be answered."""
        utterance = self._awaited
        if utterance is None or utterance.end + _TAIL_SAMPLES > self._heard_until():
            return
        self._awaited = None
        self._last_utterance = self._complete(utterance)
        self._is_unsaid = True
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
        sound = recalled(self._units, utterance, _TAIL_SAMPLES, MAX_ECHO_SAMPLES)
        caption = caption_of(self._units, utterance, _TAIL_SAMPLES, MAX_ECHO_SAMPLES)
        return replace(utterance, sound=sound, caption=caption)

    def _heard_until(self) -> int:
        return self._units[-1].end if self._units else 0

    def _respond(self, asked: Respond) -> None:
        self._asked, self._is_asked, self._greets = asked, True, False
        self._meter.add(Usage(text_in=word_count(asked.instructions or "")))
        if self._awaited is not None and self._settings.turn_detection is None:
            # What was committed is about to come in: the answer is to that.
            self._awaited = replace(self._awaited, answer=True)
        else:
            self._due = self._answer

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

    # ---- what it says ---------------------------------------------------------------------------

    def take(self, now_s: float) -> list[EngineEvent]:
        """What is to be said by `now_s`, in order."""
        if self._opened_s is None:
            self._opened_s = now_s
        if self._greets and now_s >= self._opened_s + self._greets_after_s:
            self._due = self._due or self._greet
        if self._due and not self._holds_back:
            begin, self._due = self._due, None
            self._greets = False
            begin(now_s)
        if self._speech:
            self._hand_out(self._speech, now_s)
        events = list(self._events)
        self._events.clear()
        return events

    def next_due_s(self) -> float | None:
        """When `take` has more to give although nothing is pushed; None if only input helps."""
        if self._speech:
            return self._speech.next_due_s()
        if self._greets and self._opened_s is not None and not self._holds_back:
            return self._opened_s + self._greets_after_s
        return None

    @property
    def _holds_back(self) -> bool:
        if self._speech or self._forced_to_listen or self._paused:
            return True
        # What a function did cannot be taken back: it is called once the unit stands.
        is_tried = self._is_tried and self._answered_in == self._unit
        return is_tried and self._due == self._answer and bool(self._under(self._asked).tools)

    def _under(self, asked: Respond) -> SessionSettings:
        """The settings of one answer."""
        settings = self._settings
        named = ("output_modalities", "max_output_tokens", "tools", "tool_choice")
        own = {name: value for name in named if (value := getattr(asked, name)) is not None}
        return replace(settings, **own)

    def _greet(self, now_s: float) -> None:
        self._begin(self._greeting.samples, self._greeting.text, self._settings, now_s)

    def _answer(self, now_s: float) -> None:
        asked, self._asked = self._asked, Respond()
        self._was_asked, self._is_asked = self._is_asked, False
        settings, items = self._under(asked), self._inbox.take()
        self._answered = items
        if calls := due_calls(settings, items, asked.instructions or ""):
            self._call(calls, settings)
        elif items:
            self._answer_items(items, settings, now_s)
        else:
            self._say_back(settings, now_s)

    def _call(self, calls: Sequence[tuple[str, str]], settings: SessionSettings) -> None:
        """A turn of nothing but calls; those that are more than it may hold are not made."""
        self._turn += 1
        self._events.append(TurnStarted(self._turn, self._was_asked, self._taken()))
        room, words = settings.max_output_tokens, 0
        reason: TurnEndReason = "completed"
        for name, arguments in calls:
            needed = 1 + word_count(arguments)
            if room is not None and words + needed > room:
                reason = "max_tokens"
                break
            words += needed
            event = called(self._turn, name, arguments)
            self._inbox.called(event.call_id, name)
            self._events.append(event)
        self._end(reason, words, 0)

    def _answer_items(self, items: Sequence[Item], settings: SessionSettings, now_s: float) -> None:
        """What was put in, said back behind each other, and what was said beside it."""
        utterance = self._last_utterance if self._is_unsaid else None
        self._is_unsaid = False
        captions = [one.caption for one in items]
        sounds = [one.sound for one in items if one.sound is not None]
        if utterance is not None and utterance.sound is not None:
            captions.append(utterance.caption)
            sounds.append(utterance.sound)
        text = " ".join(captions)
        if sounds:
            sound = np.concatenate(sounds)[-MAX_ECHO_SAMPLES:]
            self._begin(to_speech_rate(sound), text, settings, now_s)
        else:
            self._begin(typed_sound(self._voice(), text), text, settings, now_s)

    def _say_back(self, settings: SessionSettings, now_s: float) -> None:
        utterance, self._is_unsaid = self._last_utterance, False
        if utterance is None or utterance.sound is None or not utterance.sound.size:
            self._begin(self._greeting.samples, self._greeting.text, settings, now_s)
            return
        self._begin(to_speech_rate(utterance.sound), utterance.caption, settings, now_s)

    def _voice(self) -> FloatArray:
        """What it says words with that nobody said to it: the user's own, or the greeting's."""
        utterance = self._last_utterance
        if utterance is not None and utterance.sound is not None and utterance.sound.size:
            return to_speech_rate(utterance.sound)
        return self._greeting.samples

    def _begin(
        self, samples: FloatArray, text: str, settings: SessionSettings, now_s: float
    ) -> None:
        words, most = word_count(text), settings.max_output_tokens
        reason: TurnEndReason = "completed"
        if most is not None and words > most:
            reason = "max_tokens"
            text, samples = cut_to_words(text, samples, most)
        self._turn += 1
        self._events.append(TurnStarted(self._turn, self._was_asked, self._taken()))
        if "audio" in settings.output_modalities:
            timed = deque(timed_pieces(text, samples.size))
            self._speech = Speech(self._turn, samples, now_s, timed, reason)
        else:
            said = 0
            for piece in pieces_of(text):
                said += word_count(piece)
                self._events.append(TextDelta(self._unit, self._turn, piece, self._taken(said)))
            self._end(reason, word_count(text), 0)

    def _hand_out(self, speech: Speech, now_s: float) -> None:
        while speech.position < min(speech.due_samples(now_s), speech.samples.size):
            self._say(speech)
            chunk = speech.next_sound()
            start, end = speech.position, speech.position + chunk.size
            last, taken = end == speech.samples.size, self._taken(speech.said, end)
            event = SpeechAudio(speech.turn, self._unit, start, chunk, last, usage=taken)
            self._events.append(event)
            speech.position = end
        if speech.position == speech.samples.size:
            self._say(speech)  # where there is no sound at all
            self._end_speech(speech, speech.reason)

    def _say(self, speech: Speech) -> None:
        if words := speech.next_words():
            taken = self._taken(speech.said, speech.position)
            self._events.append(TextDelta(self._unit, speech.turn, words, taken))

    def _stop(self, turn: int) -> None:
        if self._speech and self._speech.turn == turn:
            self._end_speech(self._speech, "interrupted")

    def _end_speech(self, speech: Speech, reason: TurnEndReason) -> None:
        self._speech = None
        self._end(reason, speech.said, speech.position)

    def _taken(self, words: int = 0, samples: int = 0) -> Usage:
        """By the turn that goes on, which has said so much."""
        return self._meter.now(self._heard_until(), words, samples)

    def _end(self, reason: TurnEndReason, words: int, samples: int) -> None:
        usage = self._meter.take(self._heard_until(), words, samples)
        self._events.append(TurnEnded(self._turn, reason, usage))
