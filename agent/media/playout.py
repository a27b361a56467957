"""What the agent says, on its way to the sender: queued by turn, pulled at real-time pace.

`duck` silences a turn without giving it up, `resume` lets it go on. The next pull after `duck`
fades the 10 ms that were due, at the held position, by a falling edge; the first pull after
`resume` begins with the same 10 ms times what that edge left out. Added up, each sample sounds
exactly once: no click, no word lost, none said twice, however often the agent ducks. A listener
hears a breath in the middle of a word; a decoder finds the two halves of the word, and of the
stretch between them every sample with the gains of both adding up to one. Rewinding to the
beginning of the word would be kinder to the ear, but repeats sound that was heard. Of a turn that
is still held there is nothing to fade: ducked, it does not begin.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from agent.media.audio import fade_out, falling_edge
from agent.media.playout_events import (
    Ducked,
    Flushed,
    PlayoutDrained,
    PlayoutEvent,
    PlayoutStarted,
    Resumed,
    SentSpan,
)
from agent.types import (
    SPEECH_FRAME_SAMPLES,
    SPEECH_RATE_HZ,
    AudioFrame,
    FloatArray,
    SpeechAudio,
)

__all__ = [
    "FADE_SAMPLES",
    "MAX_TURNS",
    "Ducked",
    "Flushed",
    "Playout",
    "PlayoutDrained",
    "PlayoutEvent",
    "PlayoutStarted",
    "Resumed",
    "SentSpan",
]

FADE_SAMPLES = SPEECH_RATE_HZ // 100
"""10 ms: short enough to be called at once, long enough not to click."""
MAX_TURNS = 64
"""So many turns may wait, be remembered, or have events that nobody has taken yet."""

_SAMPLES_PER_MS = SPEECH_RATE_HZ // 1000

_Flow: TypeAlias = Literal["flowing", "falling", "held", "rising"]
"""Falling: ducked, the fade-out not pulled yet. Rising: resumed, the fade-in not pulled yet."""


@dataclass(slots=True)
class _Turn:
    """Sound of one turn that waits; of its first piece, `offset` samples are already gone.

    It does not begin while `hold` samples are still to be pulled; `is_late`: it had to wait.
    """

    number: int
    pieces: deque[FloatArray] = field(default_factory=deque)
    offset: int = 0
    queued: int = 0
    played: int = 0
    ended: bool = False
    hold: int = 0
    is_late: bool = False

    @property
    def waits(self) -> bool:
        """Whether it waits for more before it begins."""
        return self.hold > 0 and not self.played and not self.ended

    def append(self, samples: FloatArray) -> None:
        if len(samples):
            self.pieces.append(samples)
            self.queued += len(samples)

    def take_into(self, room: FloatArray) -> int:
        """Fills `room` from its beginning, as far as there is sound; how far."""
        filled = 0
        while self.pieces and filled < len(room):
            part = self.pieces[0][self.offset : self.offset + len(room) - filled]
            room[filled : filled + len(part)] = part
            filled += len(part)
            self.offset += len(part)
            if self.offset == len(self.pieces[0]):
                self.pieces.popleft()
                self.offset = 0
        self.queued -= filled
        return filled

    def peek(self, samples: int) -> FloatArray:
        """The next [<= samples], which stay."""
        ahead = np.zeros(min(samples, self.queued), np.float32)
        filled, offset = 0, self.offset
        for piece in self.pieces:
            part = piece[offset : offset + len(ahead) - filled]
            ahead[filled : filled + len(part)] = part
            filled, offset = filled + len(part), 0
            if filled == len(ahead):
                break
        return ahead


class Playout:
    """A `SpeechSource`: turns in the order of their numbers, silence when there is nothing.

    To be used by one thread. Turn numbers only grow: what comes for a turn that was flushed,
    has drained or was overtaken is stale and dropped. A turn ends by `end`, by its `last`
    audio, or because a later one begins. At most `max_queued_ms` of sound and `MAX_TURNS` turns
    wait: whoever pushes waits for `room_ms`; beyond it the newest sound is dropped and counted in
    `dropped_ms`. Of events not taken, the newest `MAX_TURNS` stay.

    Without `fades` every sample is pulled once as it is, and falls silent or sounds from one to the
    next: for whoever hands samples on instead of letting them sound.
    """

    def __init__(self, max_queued_ms: int = 30_000, *, fades: bool = True) -> None:
        self._max_queued = max_queued_ms * _SAMPLES_PER_MS
        self._fades = fades
        self._turns: deque[_Turn] = deque()
        self._newest_turn = 0
        self._queued = 0
        self._dropped = 0
        self._position = 0
        self._fading = np.zeros(0, np.float32)
        self._flow: _Flow = "flowing"
        self._faded = 0  # samples at the held position that already sounded, fading
        self._played: dict[int, int] = {}
        self._events: deque[PlayoutEvent] = deque(maxlen=MAX_TURNS)
        self._taps: tuple[Callable[[AudioFrame], None], ...] = ()
        self._span_taps: tuple[Callable[[SentSpan], None], ...] = ()
        self._gap_frames = 0
        self.underruns = 0
        """Holes in the middle of a turn, each counted once, when its sound goes on."""
        self.underrun_frames = 0
        """Pulls that found less than 20 ms in those holes. While ducked none are counted."""

    # ---- from the engine ----------------------------------------------------------------------

    def push(self, audio: SpeechAudio) -> None:
        """More sound of a turn [T] at 24 kHz, played after what that turn has already."""
        turn = self._turn(audio.turn)
        if turn is None or turn.ended:
            return
        if not (turn.played or turn.queued):
            turn.hold = audio.hold_ms * _SAMPLES_PER_MS
            turn.is_late = turn.hold > 0
        fitting = audio.samples[: max(0, self._max_queued - self._queued)]
        self._dropped += len(audio.samples) - len(fitting)
        turn.append(fitting)
        self._queued += len(fitting)
        if self._gap_frames and turn is self._turns[0] and len(fitting):
            self.underruns += 1
            self.underrun_frames += self._gap_frames
            self._gap_frames = 0
        if audio.last:
            self.end(audio.turn)

    def end(self, turn: int) -> None:
        """No more sound will come for `turn`. A turn without any is drained in its place."""
        ended = self._turn(turn)
        if ended is not None:
            ended.ended = True
            self._retire()

    # ---- to the sender ------------------------------------------------------------------------

    def pull(self) -> FloatArray:
        """The next 20 ms [480] at 24 kHz; not to be written to. Never blocks."""
        frame = np.zeros(SPEECH_FRAME_SAMPLES, np.float32)
        if self._flow == "falling":
            self._fading = fade_out(self._turns[0].peek(FADE_SAMPLES))
            self._faded = len(self._fading)
            self._flow = "held"
        filled = len(self._fading)
        frame[:filled] = self._fading
        self._fading = self._fading[:0]
        if self._flow != "held":
            self._fill(frame, filled)
        for waiting in self._turns:
            waiting.hold = max(0, waiting.hold - len(frame))
        self._tell(frame)
        return frame

    def tap(self, listener: Callable[[AudioFrame], None]) -> None:
        """From now on `listener` gets every frame as it is pulled; `start` counts all of them."""
        self._taps = (*self._taps, listener)

    def tap_spans(self, listener: Callable[[SentSpan], None]) -> None:
        """From now on `listener` is told which sound each pull carried; of silence, nothing."""
        self._span_taps = (*self._span_taps, listener)

    # ---- from whoever decides who speaks ------------------------------------------------------

    def duck(self) -> Ducked | None:
        """Fade to silence within the next pull and hold the position; None when nothing plays.

        A turn that is `held` does not begin before `resume`: it ducks at 0. Ducking twice changes
        nothing and tells the same mark.
        """
        if not (self.playing or self.held):
            return None
        head = self._turns[0]
        if not head.played:
            self._flow, self._faded = "held", 0
        elif self._flow == "flowing":
            self._flow = "falling" if self._fades else "held"
        elif self._flow == "rising":
            self._flow = "held"
        return Ducked(head.number, head.played // _SAMPLES_PER_MS)

    def resume(self) -> Resumed | None:
        """Go on exactly where it ducked; None when it is not ducked."""
        if not self.ducked:
            return None
        head = self._turns[0]
        # Before the fade-out was pulled nothing has happened to the sound yet.
        self._flow = "rising" if self._flow == "held" and self._faded else "flowing"
        self._retire()
        return Resumed(head.number, head.played // _SAMPLES_PER_MS)

    def flush(self) -> Flushed | None:
        """Silence now, but for a 10 ms fade-out; None when no turn is there to be cut off.

        All turns known are given up, those that are drained but not ended too. What is silent
        already, because it is ducked, stays so.
        """
        if not self._turns:
            return None
        head, *waiting = self._turns
        if self._fades and head.played and self._flow in ("flowing", "falling"):
            self._fading = fade_out(head.peek(FADE_SAMPLES))
        self._turns.clear()
        self._queued = 0
        self._gap_frames = 0
        self._flow = "flowing"
        played_ms = self._played.get(head.number, 0) // _SAMPLES_PER_MS
        return Flushed(head.number, played_ms, tuple(turn.number for turn in waiting))

    # ---- for whoever watches ------------------------------------------------------------------

    def take_events(self) -> list[PlayoutEvent]:
        """What happened since the last call, in order."""
        events = list(self._events)
        self._events.clear()
        return events

    @property
    def has_events(self) -> bool:
        """Whether `take_events` has something to give."""
        return bool(self._events)

    def played_ms(self, turn: int) -> int:
        """How much of `turn` was pulled; 0 for one not begun, or forgotten long ago.

        While ducked that is where `resume` goes on.
        """
        return self._played.get(turn, 0) // _SAMPLES_PER_MS

    def waiting_ms(self, turn: int) -> int:
        """How much of `turn` waits to be pulled."""
        queued = next((waiting.queued for waiting in self._turns if waiting.number == turn), 0)
        return queued // _SAMPLES_PER_MS

    @property
    def playing(self) -> bool:
        """Whether a turn has begun and still has sound, or may get more; also while ducked."""
        return bool(self._turns) and self._turns[0].played > 0

    @property
    def held(self) -> bool:
        """Whether the next sound is that of a turn which was made to wait, and has not begun."""
        head = self._turns[0] if self._turns else None
        return head is not None and head.is_late and head.queued > 0 and not head.played

    @property
    def ducked(self) -> bool:
        """Whether a turn is held in silence until `resume` or `flush`."""
        return self._flow in ("falling", "held")

    def would_tear(self, samples: int) -> bool:
        """Whether the next so many samples would have a hole in the middle of a turn."""
        head = self._turns[0] if self._turns and not self.ducked else None
        return head is not None and head.played > 0 and not head.ended and head.queued < samples

    @property
    def queued_ms(self) -> int:
        """Sound that waits, of all turns."""
        return self._queued // _SAMPLES_PER_MS

    @property
    def room_ms(self) -> int:
        """Sound that may be pushed now without being dropped."""
        return (self._max_queued - self._queued) // _SAMPLES_PER_MS

    @property
    def dropped_ms(self) -> int:
        """Sound that found no room, since the beginning. Stale sound is not counted."""
        return self._dropped // _SAMPLES_PER_MS

    # ---- inside -------------------------------------------------------------------------------

    def _turn(self, number: int) -> _Turn | None:
        """The waiting turn of that number, begun now if it is newer than all; None if stale."""
        if number <= self._newest_turn:
            return next((turn for turn in self._turns if turn.number == number), None)
        if len(self._turns) == MAX_TURNS:
            return None
        self._newest_turn = number
        # A turn that nobody ended must not mute those after it.
        for earlier in self._turns:
            earlier.ended = True
        self._turns.append(_Turn(number))
        self._retire()
        return self._turns[-1]

    def _fill(self, frame: FloatArray, filled: int) -> None:
        """Sound into `frame` from its sample `filled` on, as far as there is any."""
        while filled < len(frame) and self._turns and self._turns[0].queued:
            if self._turns[0].waits:
                break
            filled += self._take_into(frame, filled)
            self._retire()
        if filled < len(frame) and self._turns and self._turns[0].played:
            self._gap_frames += 1
        if self._flow == "rising":
            frame[: self._faded] *= 1.0 - falling_edge(self._faded)
            self._flow = "flowing"

    def _take_into(self, frame: FloatArray, filled: int) -> int:
        head = self._turns[0]
        if not head.played:
            self._events.append(PlayoutStarted(head.number))
        taken = head.take_into(frame[filled:])
        span = SentSpan(self._position + filled, head.number, head.played, taken)
        head.played += taken
        self._queued -= taken
        self._remember(head)
        for listener in self._span_taps:
            listener(span)
        return taken

    def _remember(self, turn: _Turn) -> None:
        self._played[turn.number] = turn.played
        if len(self._played) > MAX_TURNS:
            del self._played[next(iter(self._played))]

    def _retire(self) -> None:
        """Turns in front that are ended and empty are done, but not while one is held."""
        if self.ducked:
            return
        while self._turns and self._turns[0].ended and not self._turns[0].queued:
            self._events.append(PlayoutDrained(self._turns.popleft().number))
            self._gap_frames = 0

    def _tell(self, samples: FloatArray) -> None:
        frame = AudioFrame(samples, SPEECH_RATE_HZ, self._position)
        self._position += len(samples)
        for listener in self._taps:
            listener(frame)
