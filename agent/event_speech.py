"""The agent's sound for clients that get it inside of events: no track pulls it, so this does.

It goes out at the pace of speech, a little ahead: what a client holds by then carries it over a
hole in the network. How much that is follows from what it was sent, taken to sound at once.
"""

from dataclasses import dataclass

from agent.clock import Clock
from agent.loudspeaker import Loudspeaker
from agent.media.playout import Playout, SentSpan
from agent.media.wire_sound import WireEncoder
from agent.types import SPEECH_FRAME_SAMPLES, SPEECH_RATE_HZ, FloatArray, SoundFormat

AHEAD_S = 0.3
"""So much a client may hold that has not sounded yet; less than the 0.4 s that were promised."""
CHUNK_FRAMES = 3
"""60 ms in an event: a fiftieth of a second in each would cost three times the events."""

_FRAME_S = SPEECH_FRAME_SAMPLES / SPEECH_RATE_HZ
_CHUNK_SAMPLES = CHUNK_FRAMES * SPEECH_FRAME_SAMPLES
_SCARCE_S = 0.1
"""A client that holds less is sent what there is; one that holds more waits for a whole chunk."""


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """Sound of one turn as it goes on the wire."""

    turn: int
    data: bytes


class EventSpeech:
    """Pulls the loudspeaker, and keeps what was pulled until it is taken, in the same moment."""

    def __init__(self, loudspeaker: Loudspeaker, playout: Playout, clock: Clock) -> None:
        self._loudspeaker = loudspeaker
        self._playout = playout
        self._clock = clock
        self._spans: list[SentSpan] = []
        self._chunks: list[SpeechChunk] = []
        self._encoder = WireEncoder("audio/pcm")
        self._turn = 0
        self._pulled_samples = 0
        self._lasts_until_s = clock.now_s()
        playout.tap_spans(self._spans.append)

    def pull(self, coding: SoundFormat) -> float:
        """Pull what is due; when to pull again. A turn keeps the coding in which it began."""
        now_s = self._clock.now_s()
        self._lasts_until_s = max(self._lasts_until_s, now_s)
        held_s = self._lasts_until_s - now_s
        if held_s + CHUNK_FRAMES * _FRAME_S > AHEAD_S + 1e-6:
            return self._lasts_until_s - AHEAD_S + CHUNK_FRAMES * _FRAME_S
        if held_s > _SCARCE_S and self._playout.would_tear(_CHUNK_SAMPLES):
            return now_s + _FRAME_S
        for _ in range(CHUNK_FRAMES):
            if self._lasts_until_s > now_s and self._playout.would_tear(SPEECH_FRAME_SAMPLES):
                return now_s + _FRAME_S
            if not self._pull_frame(coding):
                return now_s + _FRAME_S
        return now_s

    def take(self, up_to_turn: int) -> list[SpeechChunk]:
        """What was pulled of the turns up to that one, each once."""
        taken = [chunk for chunk in self._chunks if chunk.turn <= up_to_turn]
        self._chunks = self._chunks[len(taken) :]
        return taken

    def finish(self, turn: int) -> None:
        """Nothing more of `turn` comes: what its encoder still holds goes out."""
        if turn == self._turn:
            self._put(self._encoder.finish())
            self._turn = 0

    def silence(self) -> None:
        """The agent was cut off: its client lets go of what it holds."""
        self._chunks.clear()
        self._turn = 0
        self._lasts_until_s = self._clock.now_s()

    def _pull_frame(self, coding: SoundFormat) -> bool:
        """20 ms of what there is; whether that was anything."""
        begin, frame = self._pulled_samples, self._loudspeaker.pull()
        self._pulled_samples += len(frame)
        for span in self._spans:
            self._encode(span, frame[span.position - begin :], coding)
        pulled = sum(span.samples for span in self._spans)
        self._spans.clear()
        self._lasts_until_s += pulled / SPEECH_RATE_HZ
        return pulled > 0

    def _encode(self, span: SentSpan, sound: FloatArray, coding: SoundFormat) -> None:
        if span.turn != self._turn:
            self.finish(self._turn)
            self._turn, self._encoder = span.turn, WireEncoder(coding)
        self._put(self._encoder.push(sound[: span.samples]))

    def _put(self, data: bytes) -> None:
        if self._chunks and self._chunks[-1].turn == self._turn:
            data = self._chunks.pop().data + data
        if data:
            self._chunks.append(SpeechChunk(self._turn, data))
