"""A whole `Session` between a scripted peer and a scripted engine; time passes as the test says.

Only what lies beyond agent/interfaces.py is played here; session, loudspeaker, playout, ledger,
protocol and telemetry are the real ones.
"""

import asyncio
import json
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from agent.media.barge_in import BargeIn
from agent.media.echo_canceller import PassThrough
from agent.media.front_end import FrontEnd, FrontEndEvent
from agent.media.playout import Playout
from agent.media.units import UnitBuilder
from agent.realtime import RealtimeCall
from agent.session import CallParts, Session
from agent.telemetry import Telemetry
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    Abilities,
    AudioFrame,
    FloatArray,
    SessionSettings,
    SpeechAudio,
    TextDelta,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
    VideoFrame,
)
from tests.rig.call_parts import (
    ABLE,
    PULL_MS,
    DrivenClock,
    ScriptedConversation,
    ScriptedPeer,
    ToldDetector,
    settle,
)
from tests.rig.realtime_schema import check_events, check_order


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


def mark(call: DrivenCall, kind: str) -> tuple[int, int]:
    """Turn and millisecond of the newest duck or resume."""
    event = call.events(kind)[-1]
    return event["turn"], event["at_ms"]
