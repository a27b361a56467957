"""The agent's sound from the queue to the user's ear: playout, and the ledger of what was heard."""

import asyncio
from dataclasses import dataclass

from agent.clock import Clock
from agent.interfaces import Transport
from agent.media.ledger import Ledger, ReportClock, path_delay_s
from agent.media.playout import MAX_TURNS, Playout
from agent.types import SPEECH_RATE_HZ, FloatArray, SpeechAudio

_PLAYS_ON_S = 1.0
"""So long a client that names what it played is taken to have played on since."""


@dataclass(frozen=True, slots=True)
class Silenced:
    """A turn that was cut off, and how much of it the user will have heard."""

    turn: int
    heard_ms: int


class Loudspeaker:
    """What the transport pulls; wakes those who follow it."""

    def __init__(self, playout: Playout, transport: Transport, clock: Clock) -> None:
        self._playout = playout
        self._transport = transport
        self._clock = clock
        self._ledger = Ledger(clock)
        self._page_clock = ReportClock()
        self._named: dict[int, tuple[int, float]] = {}  # turn to what was played of it, and when
        playout.tap_spans(self._ledger.sent)
        self.pulled = asyncio.Event()
        self._room = asyncio.Event()

    def pull(self) -> FloatArray:
        """20 ms for the sender."""
        samples = self._playout.pull()
        if self._playout.has_events:
            self.pulled.set()
        self._room.set()
        return samples

    async def play(self, audio: SpeechAudio) -> None:
        """Queue sound. Waits while the queue is full; a chunk larger than it waits for empty."""
        chunk_ms = len(audio.samples) * 1000 // SPEECH_RATE_HZ
        while self._playout.room_ms < chunk_ms and self._playout.queued_ms:
            self._room.clear()
            await self._room.wait()
        self._playout.push(audio)

    def reported(self, rtp_timestamp: int, at_ms: float) -> None:
        """A client says what it plays, by its own clock."""
        position = self._transport.speech_position(rtp_timestamp)
        if position is None:
            return
        rtt_s = self._transport.link().rtt_ms / 1000
        at_s = self._page_clock.server_s(at_ms, self._clock.now_s(), rtt_s)
        self._ledger.rendered(position, at_s)

    def named(self, turn: int, heard_ms: int) -> None:
        """A client says how much of `turn` it has played by now; less than before says nothing."""
        known_ms, _ = self._named.get(turn, (-1, 0.0))
        if heard_ms <= known_ms:
            return
        self._named[turn] = (heard_ms, self._clock.now_s())
        if len(self._named) > MAX_TURNS:
            del self._named[next(iter(self._named))]

    def heard_ms(self, turn: int) -> int:
        """How much of `turn` the user has heard by now."""
        if turn in self._named:
            return self._sent_ms(turn)
        self._ledger.estimate(path_delay_s(self._transport.link()))
        return self._ledger.heard_ms(turn, self._clock.now_s())

    def to_be_heard_ms(self, turn: int) -> int:
        """How much of `turn` will be heard if all that is queued plays out."""
        return self._sent_ms(turn) + self._playout.waiting_ms(turn)

    def silence(self) -> list[Silenced]:
        """Give up all that was not sent; what is on its way is still heard."""
        flushed = self._playout.flush()
        if flushed is None:
            return []
        unheard = [Silenced(turn, 0) for turn in flushed.unheard]
        return [Silenced(flushed.turn, self._sent_ms(flushed.turn)), *unheard]

    def _sent_ms(self, turn: int) -> int:
        """How much of it was sent and is heard, should no more be sent."""
        now_s = self._clock.now_s()
        sent_ms = self._ledger.final_ms(turn, now_s)
        if turn not in self._named:
            return sent_ms
        heard_ms, at_s = self._named[turn]
        return min(sent_ms, heard_ms + round(min(now_s - at_s, _PLAYS_ON_S) * 1000))
