"""What a `Session` of a test stands between: a peer, an engine, a detector, and the clock.

They do as the test says; tests/rig/driven_call.py puts a session among them.
"""

import asyncio
import heapq
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from agent.clock import Clock
from agent.commands import Command
from agent.errors import CapacityError, RequestError, SessionError
from agent.interfaces import SpeechSource
from agent.media.vad import Judged
from agent.types import (
    SPEECH_FRAME_SAMPLES,
    SPEECH_RATE_HZ,
    Abilities,
    AudioFrame,
    EngineEvent,
    FloatArray,
    LinkQuality,
    SpeechEnded,
    SpeechStarted,
    TurnDetection,
    Unit,
    VideoFrame,
)

MS = SPEECH_RATE_HZ // 1000
PULL_MS = 20
ABLE = Abilities(duplex=True, speech=True, typed_text=True)


def voice(ms: int, seed: int = 0) -> FloatArray:
    """Sound no two samples of which are alike, so that each is known wherever it turns up."""
    noise = np.random.default_rng(seed).uniform(0.1, 0.9, ms * MS)
    return np.asarray(noise, np.float32)


async def settle() -> None:
    """Let every task do what it can without time passing."""
    for _ in range(25):
        await asyncio.sleep(0)


class DrivenClock(Clock):
    """Time that a test moves; sleepers wake when it has come."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def now_s(self) -> float:
        return self.time_s

    async def sleep_until(self, due_s: float) -> None:
        if due_s <= self.time_s:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (due_s, next(self._order), woken))
        await woken.wait()

    def advance(self, step_s: float) -> None:
        """So much later."""
        self.time_s += step_s
        while self._sleepers and self._sleepers[0][0] <= self.time_s:
            heapq.heappop(self._sleepers)[2].set()


class ScriptedPeer:
    """A `Transport`: pulls when told, and sends what the test gives it."""

    def __init__(self) -> None:
        self.source: SpeechSource | None = None
        self.quality = LinkQuality()
        self.events: list[dict[str, Any]] = []
        self.closed = False
        self._pulled = 0
        self._reason: SessionError | None = None
        self._microphone: asyncio.Queue[AudioFrame | None] = asyncio.Queue()
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue()

    # ---- what the test does -------------------------------------------------------------------

    def pull(self) -> FloatArray:
        """20 ms of what is sent."""
        assert self.source is not None, "nothing to pull yet"
        self._pulled += SPEECH_FRAME_SAMPLES
        return self.source.pull()

    @property
    def pulled_ms(self) -> int:
        """How much was pulled so far, silence included."""
        return self._pulled // MS

    def capture(self, frame: AudioFrame) -> None:
        """10 ms of microphone."""
        self._microphone.put_nowait(frame)

    def say(self, message: str) -> None:
        """A client event."""
        self._messages.put_nowait(message)

    def end(self, reason: SessionError | None = None) -> None:
        """The peer is gone."""
        self._reason = self._reason or reason
        self._microphone.put_nowait(None)
        self._messages.put_nowait(None)

    # ---- what the session sees ----------------------------------------------------------------

    async def connected(self) -> None:
        return

    async def microphone(self) -> AsyncIterator[AudioFrame]:
        while (frame := await self._microphone.get()) is not None:
            yield frame
        if self._reason is not None:
            raise self._reason

    async def messages(self) -> AsyncIterator[str | bytes]:
        while (message := await self._messages.get()) is not None:
            yield message
        if self._reason is not None:
            raise self._reason

    async def latest_picture(self, now_at: int) -> VideoFrame | None:
        return None

    def play(self, source: SpeechSource) -> None:
        self.source = source

    def speech_position(self, rtp_timestamp: int) -> int | None:
        """Of a stream at 48 kHz whose first timestamp is 0."""
        return rtp_timestamp // 2 if self._pulled else None

    def link(self) -> LinkQuality:
        return self.quality

    def send(self, message: str) -> None:
        assert not self.closed, "an event after the end"
        self.events.append(json.loads(message))

    async def close(self) -> None:
        self.closed = True
        self.end()


class ScriptedConversation:
    """A `Conversation` that says what the test says, and notes what it is told.

    `stuck`: takes the next item and never returns. `refuses`: what `control` raises. `hangs`:
    `finish` waits until `let_go` is set.
    """

    def __init__(self, *, stuck: bool = False, hangs: bool = False) -> None:
        self.stuck = stuck
        self.hangs = hangs
        self.refuses: RequestError | CapacityError | None = None
        self.told: list[Unit | SpeechStarted | SpeechEnded | Command] = []
        self.finished = False
        self.let_go = asyncio.Event()
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()

    def say(self, *events: EngineEvent) -> None:
        """The next events of the engine."""
        for event in events:
            self._events.put_nowait(event)

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        await self._take(item)

    async def control(self, command: Command) -> None:
        await self._take(command)
        if self.refuses is not None:
            raise self.refuses

    async def events(self) -> AsyncIterator[EngineEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def finish(self) -> None:
        if self.hangs:
            await self.let_go.wait()
        self.finished = True
        self._events.put_nowait(None)

    async def _take(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        self.told.append(item)


class ToldDetector:
    """A voice detector that believes the test: `voiced` says whether somebody speaks.

    It finds the end of speech after `patience` samples of silence.
    """

    def __init__(self, patience: int = 0) -> None:
        self.patience = patience
        self.voiced = False
        self.speaking = False
        self.voiced_until = 0
        self._off = False
        self._position = 0
        self._judged: list[Judged] = []

    def push(self, samples: FloatArray) -> list[SpeechStarted | SpeechEnded]:
        before, self._position = self._position, self._position + len(samples)
        if self._off or self._position // 512 == before // 512:
            return []
        until = self._position // 512 * 512
        self._judged.append(Judged(until, 0.99 if self.voiced else 0.01))
        if self.voiced:
            self.voiced_until = until
        return self._turn(until)

    def take_judged(self) -> list[Judged]:
        judged, self._judged = self._judged, []
        return judged

    def end(self) -> list[SpeechEnded]:
        was, self.speaking = self.speaking, False
        return [SpeechEnded(self.voiced_until)] if was else []

    def update(self, detection: TurnDetection | None) -> None:
        self._off = detection is None
        self.speaking = self.speaking and not self._off

    def _turn(self, until: int) -> list[SpeechStarted | SpeechEnded]:
        lasts = self.speaking and until - self.voiced_until < self.patience
        if self.voiced == self.speaking or lasts:
            return []
        self.speaking = self.voiced
        ended = SpeechEnded(self.voiced_until if self.patience else until)
        return [SpeechStarted(max(0, until - 4800)) if self.voiced else ended]
