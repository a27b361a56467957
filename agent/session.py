"""One call: joins transport, media, protocol and engine, and owns the call's tasks.

Three streams run side by side until the peer hangs up: microphone and camera to the engine
(uplink), engine to playout and protocol (downlink), client events to the protocol (inbox).
Playout is pulled by the transport; `_Speaker` taps there what the echo canceller must know.
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Literal

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import PeerTimeout, RequestError, SessionError
from agent.interfaces import Conversation, Transport
from agent.media.front_end import BargeInDue, FrontEnd
from agent.media.playout import Playout, PlayoutDrained, PlayoutStarted
from agent.realtime import (
    CancelTurn,
    ClearPlayout,
    CloseCall,
    PlayoutReport,
    Reaction,
    RealtimeCall,
)
from agent.telemetry import Telemetry
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    UNIT_SAMPLES,
    AudioFrame,
    Command,
    EngineEvent,
    FloatArray,
    Interrupt,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TurnEnded,
    Unit,
    UnitReport,
    UpdateSettings,
    VideoFrame,
)

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 1.0

ClearReason = Literal["turn_detected", "client_cancelled"]


@dataclass(frozen=True, slots=True)
class CallParts:
    """What one call is made of; all of it belongs to this call alone."""

    protocol: RealtimeCall
    transport: Transport
    conversation: Conversation
    front_end: FrontEnd
    playout: Playout


class _Speaker:
    """What the transport pulls: playout, which wakes those who follow it."""

    def __init__(self, playout: Playout) -> None:
        self._playout = playout
        self.pulled = asyncio.Event()
        self.room = asyncio.Event()

    def pull(self) -> FloatArray:
        """20 ms for the sender."""
        samples = self._playout.pull()
        self.pulled.set()
        self.room.set()
        return samples


class Session:
    """One call, from the answered offer to the end. `run` it once."""

    def __init__(
        self,
        parts: CallParts,
        telemetry: Telemetry,
        max_duration_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._protocol = parts.protocol
        self._transport = parts.transport
        self._conversation = parts.conversation
        self._front_end = parts.front_end
        self._playout = parts.playout
        self._speaker = _Speaker(parts.playout)
        self._telemetry = telemetry
        self._max_duration_s = max_duration_s
        self._clock = clock
        self._hang_up = asyncio.Event()
        self._outcome = "hung_up"
        self._mic_samples = 0
        self._user_fell_silent_s: float | None = None
        self._underruns = 0
        self._cancelled_turn = 0

    # ---- life ---------------------------------------------------------------------------------

    async def run(self) -> str:
        """Carry the call until it ends; returns how it ended. Leaves nothing open, ever."""
        self._telemetry.call_started()
        try:
            await self._until_hung_up()
        except PeerTimeout as error:
            self._note("peer_gone", error)
        except SessionError as error:
            self._note("connection_lost", error)
        except Exception:
            self._outcome = "failed"
            log.exception("call %s failed", self._protocol.call_id)
        finally:
            await self._leave()
            self._telemetry.call_ended(self._outcome)
        return self._outcome

    def hang_up(self, outcome: str = "hung_up") -> None:
        """Ask the call to end; `run` returns soon after."""
        self._outcome = outcome
        self._hang_up.set()

    async def _leave(self) -> None:
        """Release both sides, each whatever the other does: a place must become free again."""
        for release in (self._conversation.finish, self._transport.close):
            try:
                await release()
            except Exception:
                self._outcome = "failed"
                log.exception("call %s did not end cleanly", self._protocol.call_id)

    async def _until_hung_up(self) -> None:
        talking = asyncio.ensure_future(self._talk())
        hanging_up = asyncio.ensure_future(self._hang_up.wait())
        try:
            await asyncio.wait(
                (talking, hanging_up),
                timeout=self._max_duration_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not talking.done() and not hanging_up.done():
                self._outcome = "max_duration"
        finally:
            for task in (talking, hanging_up):
                task.cancel()
            await asyncio.wait((talking, hanging_up))
        if not talking.cancelled() and (error := talking.exception()):
            raise _root_cause(error)

    async def _talk(self) -> None:
        await self._transport.connected()
        self._send(self._protocol.open())
        self._playout.tap(self._front_end.push_far)
        self._transport.play(self._speaker)
        async with asyncio.TaskGroup() as group:
            from_peer = [group.create_task(work) for work in (self._uplink(), self._inbox())]
            to_peer = [
                group.create_task(work)
                for work in (self._downlink(), self._follow_playout(), self._report())
            ]
            await asyncio.wait(from_peer)
            # Nobody listens any more, and nobody pulls playout that the downlink may wait for.
            for task in to_peer:
                task.cancel()

    def _note(self, outcome: str, error: SessionError) -> None:
        self._outcome = outcome
        log.info("call %s ended: %s", self._protocol.call_id, error)

    # ---- the three streams --------------------------------------------------------------------

    async def _uplink(self) -> None:
        async for frame in self._transport.microphone():
            self._mic_samples = frame.start + MIC_FRAME_SAMPLES
            picture = self._picture_for(frame)
            began_s = self._clock.now_s()
            events = self._front_end.push(frame, self._playout.playing, picture)
            self._telemetry.stage("front_end", self._clock.now_s() - began_s)
            for event in events:
                await self._heard(event)
        await self._conversation.finish()

    def _picture_for(self, frame: AudioFrame) -> VideoFrame | None:
        """The newest picture, asked for as often as a unit takes one: turning it into RGB costs."""
        end = (frame.start + MIC_FRAME_SAMPLES) * self._protocol.settings.pictures_per_unit
        if end // UNIT_SAMPLES == (end - self._picture_step) // UNIT_SAMPLES:
            return None
        return self._transport.latest_picture(frame.start)

    @property
    def _picture_step(self) -> int:
        return MIC_FRAME_SAMPLES * self._protocol.settings.pictures_per_unit

    async def _heard(self, event: Unit | SpeechStarted | SpeechEnded | BargeInDue) -> None:
        if isinstance(event, BargeInDue):
            self._telemetry.barge_in()
            await self._clear_playout("turn_detected")
            return
        if isinstance(event, SpeechStarted):
            self._user_fell_silent_s = None
            self._send(self._protocol.speech_started(event.at))
        elif isinstance(event, SpeechEnded):
            self._user_fell_silent_s = self._silence_began_s(event.at)
            self._send(self._protocol.speech_ended(event.at))
        await self._conversation.push(event)

    def _silence_began_s(self, at: int) -> float | None:
        """When the user's last sound came in; None while the agent speaks and cannot answer."""
        if self._playout.playing:
            return None
        return self._clock.now_s() - (self._mic_samples - at) / MIC_RATE_HZ

    async def _inbox(self) -> None:
        async for message in self._transport.messages():
            await self._apply(self._protocol.receive(message))

    async def _downlink(self) -> None:
        async for event in self._conversation.events():
            if isinstance(event, UnitReport):
                self._telemetry.unit(event)
            await self._apply(self._protocol.engine(event))
            await self._play(event)

    async def _play(self, event: EngineEvent) -> None:
        if isinstance(event, SpeechAudio):
            await self._wait_for_room(len(event.samples) * 1000 // SPEECH_RATE_HZ)
            self._playout.push(event)
        elif isinstance(event, TurnEnded):
            self._playout.end(event.turn)
            if event.reason == "interrupted" and event.turn != self._cancelled_turn:
                await self._clear_playout("client_cancelled")

    async def _wait_for_room(self, chunk_ms: int) -> None:
        """The engine waits while playout is full; a chunk larger than playout waits for empty."""
        while self._playout.room_ms < chunk_ms and self._playout.queued_ms:
            self._speaker.room.clear()
            await self._speaker.room.wait()

    # ---- what follows from playout ------------------------------------------------------------

    async def _follow_playout(self) -> None:
        while True:
            await self._speaker.pulled.wait()
            self._speaker.pulled.clear()
            self._announce_playout()

    def _announce_playout(self) -> None:
        for event in self._playout.take_events():
            match event:
                case PlayoutStarted(turn=turn):
                    self._send(self._protocol.playout_started(turn))
                    self._note_first_sound(turn)
                case PlayoutDrained(turn=turn):
                    self._send(self._protocol.playout_drained(turn))
        if fresh := self._playout.underruns - self._underruns:
            self._underruns += fresh
            self._telemetry.underruns(fresh)

    def _note_first_sound(self, turn: int) -> None:
        if self._user_fell_silent_s is None:
            return
        delay_s = self._clock.now_s() - self._user_fell_silent_s
        self._user_fell_silent_s = None
        self._telemetry.first_sound(delay_s)
        self._send(self._protocol.latency(turn, delay_s * 1000))

    async def _report(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now_s() + _REPORT_EVERY_S)
            if self._playout.playing:
                self._send(self._protocol.echo(self._front_end.erle_db, 0.0))

    async def _clear_playout(self, reason: ClearReason) -> None:
        """Silence the agent now: what was not played is given up everywhere."""
        self._announce_playout()
        flushed = self._playout.flush()
        if flushed is None:
            return
        silenced = [(flushed.turn, flushed.played_ms), *((turn, 0) for turn in flushed.unheard)]
        for turn, played_ms in silenced:
            self._send(self._protocol.playout_cleared(turn, played_ms, reason))
            await self._command(Interrupt(turn, played_ms))

    # ---- what the protocol wants done ---------------------------------------------------------

    async def _apply(self, reaction: Reaction) -> None:
        self._send(reaction)
        for action in reaction.actions:
            match action:
                case CancelTurn(turn=turn):
                    await self._cancel(turn)
                case ClearPlayout():
                    await self._clear_playout("client_cancelled")
                case CloseCall(reason=reason):
                    self.hang_up(reason)
                case PlayoutReport():
                    pass
                case _:
                    await self._command(action)

    async def _cancel(self, turn: int) -> None:
        """Stop generating; what is queued plays out, so it counts as heard."""
        heard_ms = self._playout.played_ms(turn) + self._playout.waiting_ms(turn)
        self._cancelled_turn = turn
        self._playout.end(turn)
        await self._command(Interrupt(turn, heard_ms))

    async def _command(self, command: Command) -> None:
        if isinstance(command, UpdateSettings):
            self._front_end.update(command.settings)
        try:
            await self._conversation.control(command)
        except RequestError as error:
            self._send(self._protocol.failed(error, command))

    def _send(self, reaction: Reaction) -> None:
        for event in reaction.events:
            self._transport.send(json.dumps(event, allow_nan=False))


def _root_cause(error: BaseException) -> BaseException:
    """The one error that says why: of a group, a lost connection before its consequences."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_root_cause(member) for member in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, SessionError)), causes[0])
