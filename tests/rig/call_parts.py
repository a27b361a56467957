"""A whole `Session` between a scripted peer and a scripted engine; time passes as the test says.

Only what lies beyond agent/interfaces.py is played here; session, loudspeaker, playout, ledger,
protocol and telemetry are the real ones.
"""

import asyncio
import heapq
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from agent.clock import Clock
from agent.commands import Command
from agent.errors import CapacityError, RequestError, SessionError
from agent.interfaces import SpeechSource
from agent.media.barge_in import BargeIn
from agent.media.echo_canceller import PassThrough
from agent.media.front_end import FrontEnd, FrontEndEvent
from agent.media.playout import Playout
from agent.media.units import UnitBuilder
from agent.media.vad import Judged
from agent.realtime import RealtimeCall
from agent.session import CallParts, Session
from agent.telemetry import Telemetry
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    SPEECH_FRAME_SAMPLES,
    SPEECH_RATE_HZ,
    Abilities,
    AudioFrame,
    EngineEvent,
    FloatArray,
    LinkQuality,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnDetection,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
    Unit,
    VideoFrame,
)
from tests.rig.realtime_schema import check_events, check_order

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


class OrderedFrontEnd(FrontEnd):
    """A real front end in a silent room, which besides finds what the test has ordered."""

    def __init__(self, detector: ToldDetector) -> None:
        super().__init__(PassThrough(), detector, UnitBuilder(), BargeIn())
        self.ordered: list[FrontEndEvent] = []

    def push(
        self,
        frame: AudioFrame,
        agent_playing: bool,
        picture: VideoFrame | None = None,
        *,
        agent_held: bool = False,
    ) -> list[FrontEndEvent]:
        ordered, self.ordered = self.ordered, []
        found = super().push(frame, agent_playing, picture, agent_held=agent_held)
        return [*ordered, *found]


class DrivenCall:
    """One call under way."""

    def __init__(
        self,
        conversation: ScriptedConversation | None = None,
        max_queued_ms: int = 30_000,
        abilities: Abilities = ABLE,
        detector: ToldDetector | None = None,
    ) -> None:
        self.clock = DrivenClock()
        self.peer = ScriptedPeer()
        self.engine = conversation or ScriptedConversation()
        self.detector = detector or ToldDetector()
        self.front_end = OrderedFrontEnd(self.detector)
        self.playout = Playout(max_queued_ms)
        self.telemetry = Telemetry()
        protocol = RealtimeCall("rtc_test", SessionSettings(model="echo"), abilities)
        parts = CallParts(protocol, self.peer, self.engine, self.front_end, self.playout)
        # Wall time must not end the call, however slow the machine is.
        self.session = Session(parts, self.telemetry, 3600.0, self.clock)
        self.sent: list[FloatArray] = []
        self._captured = 0
        self._generated: dict[int, int] = {}
        self._task: asyncio.Task[str] | None = None

    # ---- life ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        self._task = asyncio.ensure_future(self.session.run())
        await settle()

    @property
    def over(self) -> bool:
        """Whether `run` has returned."""
        return self._task is not None and self._task.done()

    async def outcome(self) -> str:
        """How the call ended, which it must have by now."""
        await settle()
        assert self._task is not None and self._task.done(), "the call goes on"
        return self._task.result()

    async def cancel(self) -> None:
        """By force."""
        assert self._task is not None
        self._task.cancel()
        await settle()

    async def leave(self) -> None:
        """End what is left of the call, which has told its client nothing out of place."""
        if not self.over:
            self.session.hang_up()
            self.engine.let_go.set()
            await settle()
        assert self.over, "the call does not end"
        check_order(check_events(self.peer.events))

    # ---- the engine ---------------------------------------------------------------------------

    async def speak(self, turn: int, *pieces: tuple[str, FloatArray]) -> None:
        """The engine begins a turn and says some of it."""
        self.engine.say(TurnStarted(turn))
        await self.go_on(turn, *pieces)

    async def go_on(self, turn: int, *pieces: tuple[str, FloatArray]) -> None:
        """More of a turn: text, and the sound of it."""
        for text, samples in pieces:
            start = self._generated.get(turn, 0)
            self._generated[turn] = start + len(samples)
            self.engine.say(TextDelta(0, turn, text), SpeechAudio(turn, 0, start, samples))
        await settle()

    async def end_turn(self, turn: int, reason: TurnEndReason = "completed") -> None:
        self.engine.say(TurnEnded(turn, reason))
        await settle()

    def commands(self, kind: type[Any]) -> list[Any]:
        """What the engine was told of that kind."""
        return [item for item in self.engine.told if isinstance(item, kind)]

    # ---- the peer -----------------------------------------------------------------------------

    async def play(self, ms: int) -> FloatArray:
        """So much time passes in pulls, each followed by its 20 ms; what was sent."""
        frames = []
        for _ in range(ms // PULL_MS):
            frames.append(self.peer.pull())
            await settle()
            self.clock.advance(PULL_MS / 1000)
        self.sent += frames
        await settle()
        return np.concatenate(frames)

    async def hear(self, *events: FrontEndEvent) -> None:
        """10 ms of silence come in, in which the front end finds `events`."""
        self.front_end.ordered += events
        await self._capture(0.0)

    async def listen(self, ms: int, level: float = 0.0) -> None:
        """So much time passes in microphone frames alone, as loud as that."""
        for _ in range(ms // 10):
            # A voice rises and falls.
            await self._capture(level * (1 + self._captured // 800 % 3))
            self.clock.advance(0.01)

    async def client(self, kind: str, **fields: object) -> None:
        """A client event."""
        self.peer.say(json.dumps({"type": kind, **fields}))
        await settle()

    async def report(self, position_ms: float) -> None:
        """The client says that this part of the sent stream leaves its loudspeaker now."""
        at_ms = self.clock.now_s() * 1000 - 7000  # by a clock of its own
        await self.client("voice_agent.playout", rtp_timestamp=round(position_ms * 48), at_ms=at_ms)

    async def _capture(self, level: float) -> None:
        samples = np.full(MIC_FRAME_SAMPLES, level, np.float32)
        self.peer.capture(AudioFrame(samples, MIC_RATE_HZ, self._captured))
        self._captured += MIC_FRAME_SAMPLES
        await settle()

    # ---- what came of it ----------------------------------------------------------------------

    def kinds(self) -> list[str]:
        """The types of all events that the client got."""
        return [event["type"] for event in self.peer.events]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Those of one type."""
        return [event for event in self.peer.events if event["type"] == kind]

    def counted(self, name: str, **labels: str) -> float:
        """A counter of the telemetry; 0 while it has not begun."""
        text = self.telemetry.render().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"voice_agent_{name}" and sample.labels == labels:
                    return float(sample.value)
        return 0.0
