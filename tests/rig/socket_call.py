"""A call whose sound goes inside of events, under way in driven time; the client is played."""

import base64
from typing import Any

import numpy as np

from agent.media.audio import from_pcm16
from agent.media.playout import Playout
from agent.realtime import Limits, RealtimeCall
from agent.session import CallParts, Session
from agent.transport.websocket import LEAST_EVENT_BYTES
from agent.transport.websocket_line import TimeLine
from agent.types import Abilities, FloatArray, SessionSettings, SoundFormat, Unit, UnitReport
from tests.rig.call_parts import ABLE, ScriptedConversation, ToldDetector, settle
from tests.rig.driven_call import DrivenCall
from tests.rig.realtime_schema import check_events, check_order

DELTA = "response.output_audio.delta"


class DrivenEars:
    """The line of a microphone on the call's clock."""

    def __init__(self, call: "SocketCall") -> None:
        self._call = call
        self.line = TimeLine(call.clock.now_s())

    @property
    def end(self) -> int:
        return self.line.end

    def push(self, data: bytes, coding: SoundFormat) -> None:
        self.line.push(data, coding, self._call.clock.now_s())

    def committed(self) -> int:
        return self.line.committed()

    def dropped(self) -> int:
        return self.line.drop()

    def client_at(self, position: int) -> int:
        return self.line.client_at(position)


class SocketCall(DrivenCall):
    """One call. Time passes by `live`, in which the client may say something."""

    def __init__(
        self,
        conversation: ScriptedConversation | None = None,
        abilities: Abilities = ABLE,
        detector: ToldDetector | None = None,
        settings: SessionSettings | None = None,
    ) -> None:
        super().__init__(conversation, abilities=abilities, detector=detector)
        self.playout = Playout(fades=False)
        self.ears = DrivenEars(self)
        settings = settings or SessionSettings(model="echo")
        limits = Limits(max_message_bytes=LEAST_EVENT_BYTES)
        protocol = RealtimeCall("rtc_test", settings, abilities, limits, "websocket")
        self.front_end.update(settings)
        parts = CallParts(protocol, self.peer, self.engine, self.front_end, self.playout, self.ears)
        self.session = Session(parts, self.telemetry, 3600.0, self.clock)
        self.arrived_s: list[float] = []
        self.reports_units = True
        self._reported = 0

    async def leave(self) -> None:
        if not self.over:
            self.session.hang_up()
            self.engine.let_go.set()
            await settle()
        assert self.over, "the call does not end"
        check_order(check_events(self.peer.events), "websocket")

    # ---- time and the client ------------------------------------------------------------------

    async def live(self, ms: int) -> None:
        """So much time passes."""
        for _ in range(ms // 10):
            for frame in self.ears.line.take(self.clock.now_s()):
                self.peer.capture(frame)
            await settle()
            if self.reports_units:
                self.report_units()
            self.clock.advance(0.01)
            await settle()
            self._note_arrivals()

    def report_units(self, most: int = 1000) -> int:
        """The engine is done with so many more units, if it has been told of them; all so far."""
        told = self.commands(Unit)[self._reported :][:most]
        for unit in told:
            self.engine.say(UnitReport(unit.index, ()))
        self._reported += len(told)
        return self._reported

    async def append(self, data: bytes) -> None:
        """The client sends sound."""
        await self.client("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    async def talk(self, data: bytes, piece_ms: int = 20) -> None:
        """The client sends sound at the pace of speech."""
        size = 48 * piece_ms
        for begin in range(0, len(data), size):
            await self.append(data[begin : begin + size])
            await self.live(piece_ms)

    # ---- what came of it ----------------------------------------------------------------------

    @property
    def deltas(self) -> list[bytes]:
        """The sound that the client got, event by event."""
        return [base64.b64decode(event["delta"]) for event in self.events(DELTA)]

    @property
    def heard(self) -> FloatArray:
        """All of it, were it PCM16."""
        return from_pcm16(b"".join(self.deltas))

    def ahead_ms(self) -> float:
        """How much a client holds at most that plays from the first delta on, without a pause."""
        held_s, most_s, before_s = 0.0, 0.0, 0.0
        times = [at for at, event in zip(self.arrived_s, self.peer.events, strict=True)
                 if event["type"] == DELTA]  # fmt: skip
        for at_s, data in zip(times, self.deltas, strict=True):
            held_s = max(0.0, held_s - (at_s - before_s)) + len(data) / 48_000
            most_s, before_s = max(most_s, held_s), at_s
        return most_s * 1000

    def last(self, kind: str) -> dict[str, Any]:
        """The newest event of that type."""
        return self.events(kind)[-1]

    def _note_arrivals(self) -> None:
        fresh = len(self.peer.events) - len(self.arrived_s)
        self.arrived_s += [self.clock.now_s()] * fresh


def exact(samples: FloatArray) -> FloatArray:
    """`samples` as PCM16 has them."""
    return (np.rint(np.clip(samples, -1, 32767 / 32768) * 32768) / 32768).astype(np.float32)
