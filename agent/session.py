"""One call: joins transport, media, protocol and engine, and owns the call's tasks.

Three streams run side by side until the peer hangs up: microphone and camera to the engine
(uplink), engine to playout and protocol (downlink), client events to the protocol (inbox). What
the agent says is the matter of `Speaking`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.call_parts import CallParts
from agent.chat_types import Answered
from agent.client_line import ClientLine
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import (
    ClearInput,
    Command,
    CommitInput,
    ForceListen,
    Pause,
    Retract,
    UpdateSettings,
)
from agent.early_try import EarlyTry
from agent.engine_line import EngineLine, Refusal, Told
from agent.errors import (
    AgentError,
    EngineError,
    PeerTimeout,
    RequestError,
    SessionError,
    root_cause,
)
from agent.media.barge_in import BargeInDue, DuckDue, ResumeDue
from agent.media.front_end import FrontEndEvent
from agent.realtime import (
    AnswerAside,
    CancelTurn,
    ClearPlayout,
    CloseCall,
    HearAudio,
    HeardReport,
    PlayoutReport,
    Reaction,
    RestoreSettings,
)
from agent.speaking import Speaking
from agent.telemetry import Telemetry
from agent.types import (
    MIC_RATE_HZ,
    EngineEvent,
    SoundFormat,
    SpeechEnded,
    SpeechStarted,
    Unit,
    UnitReport,
)
from agent.unit_pace import UnitPace
from agent.watchers import Askers, Watcher, Watchers

__all__ = ["CallParts", "Session"]

log = logging.getLogger(__name__)

_LEAVE_S = 10.0


class Session:
    """One call, from the answered offer to the end. `run` it once."""

    def __init__(
        self,
        parts: CallParts,
        telemetry: Telemetry,
        max_duration_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._protocol, self._transport = parts.protocol, parts.transport
        self._client = ClientLine(parts.transport.send)
        self._conversation = parts.conversation
        self._engine = EngineLine(parts.conversation, self._refused, parts.protocol.due)
        self._front_end = parts.front_end
        self._event_microphone = parts.event_microphone
        self._attendants, self._answer_aside = parts.attendants, parts.answer_aside
        self._watchers, self._askers = Watchers(), Askers()
        self._playout = parts.playout
        self._speaking = Speaking(parts, telemetry, clock, self._send, self._command)
        self._early = EarlyTry(parts.front_end, parts.playout, clock)
        self._pace = UnitPace(clock)
        self._telemetry = telemetry
        self._max_duration_s = max_duration_s
        self._clock = clock
        self._hang_up = asyncio.Event()
        self._over = asyncio.Event()
        self._outcome = "hung_up"

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
        except EngineError as error:
            self._note("failed", error)
            self._send(self._protocol.failed(error))
        except Exception:
            self._outcome = "failed"
            log.exception("call %s failed", self._protocol.call_id)
        finally:
            try:
                await self._leave()
            finally:
                self._over.set()
                self._telemetry.call_ended(self._outcome)
                log.info("call %s ended: %s", self._protocol.call_id, self._outcome)
        return self._outcome

    def hang_up(self, outcome: str = "hung_up") -> None:
        """Ask the call to end; `run` returns soon after."""
        self._outcome = outcome
        self._hang_up.set()

    async def over(self) -> str:
        """Wait until the call has ended; how."""
        await self._over.wait()
        return self._outcome

    # ---- whoever takes part besides the client -------------------------------------------------

    @property
    def call_id(self) -> str:
        """Under which the call is known to the outside."""
        return self._protocol.call_id

    @property
    def document(self) -> dict[str, object]:
        """The session object in force, ready for JSON."""
        return self._protocol.session

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """From now on `watcher` is given every server event, until what comes back is called.

        `CapacityError` when too many follow this call.
        """
        return self._watchers.add(watcher)

    def receive(self, message: str | bytes, refused: Watcher | None = None) -> None:
        """Do what a client event asks, whoever it comes from.

        `refused` is told why not, now or when the engine says so, where that is not for the call's
        own client, who did not ask.
        """
        self._speaking.tell_heard()
        reaction = self._protocol.receive(message, self._microphone_end, is_client=refused is None)
        if refused is None or not reaction.is_refusal:
            # No engine refuses what is out of band, and it may be large.
            self._askers.note(() if reaction.is_aside else reaction.actions, refused)
            self._apply(reaction)
            return
        for event in reaction.events:
            refused(event)

    def says(self, event: EngineEvent | Answered) -> None:
        """Let the engine have said `event`, which is no sound."""
        self._apply(self._protocol.engine(event))

    def tell(self, event: Mapping[str, object]) -> None:
        """Send the client an event of this server's own."""
        self._send(Reaction((dict(event),)))

    @property
    def _microphone_end(self) -> int:
        line = self._event_microphone
        return self._front_end.position if line is None else line.end

    # ---- ending -------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Release both sides, each whatever the other does: a place must become free again."""
        sides = {"transport": self._transport.close(), "engine": self._conversation.finish()}
        releases = {name: asyncio.ensure_future(release) for name, release in sides.items()}
        try:
            await asyncio.wait(releases.values(), timeout=_LEAVE_S)
        finally:
            for name, release in releases.items():
                self._check_released(name, release)

    def _check_released(self, side: str, release: asyncio.Future[None]) -> None:
        error = None
        if not release.done():
            release.cancel()
        elif release.cancelled() or (error := release.exception()) is None:
            return
        self._outcome = "failed"
        log.error("call %s: its %s did not end cleanly", self.call_id, side, exc_info=error)

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
                self._send(self._protocol.expired())
        finally:
            for task in (talking, hanging_up):
                task.cancel()
            await asyncio.wait((talking, hanging_up))
        if not talking.cancelled() and (error := talking.exception()):
            raise root_cause(error)

    async def _talk(self) -> None:
        await self._transport.connected()
        self._client.greet(lambda: self._send(self._protocol.open()))
        self._speaking.begin()
        async with asyncio.TaskGroup() as group:
            from_peer = [group.create_task(work) for work in (self._uplink(), self._inbox())]
            to_peer = [
                group.create_task(work)
                for work in (
                    self._engine.run(),
                    self._downlink(),
                    *self._speaking.tasks(),
                    *(attendant.run(self) for attendant in self._attendants),
                )
            ]
            await asyncio.wait(from_peer)
            # Nobody listens any more, and nobody pulls playout that the downlink may wait for.
            for task in to_peer:
                task.cancel()

    def _note(self, outcome: str, error: AgentError) -> None:
        self._outcome = outcome
        log.info("call %s: %s", self._protocol.call_id, error)

    # ---- the three streams --------------------------------------------------------------------

    async def _uplink(self) -> None:
        async for frame in self._transport.microphone():
            if self._event_microphone is not None:
                await self._pace.room()
            picture = None
            if self._front_end.wants_picture:
                picture = await self._transport.latest_picture(frame.start)
            began_s = self._clock.now_s()
            self._early.follow()
            playing, held = self._playout.playing, self._playout.held
            events = self._front_end.push(frame, playing, picture, agent_held=held)
            self._telemetry.stage("front_end", self._clock.now_s() - began_s)
            for event in events:
                self._heard(event)
            self._apply(self._protocol.listened(frame.start, self._on_client_clock(frame.start)))
            if self._early.is_due:
                await self._try_early(frame.start)

    async def _try_early(self, now_at: int) -> None:
        """Let the engine answer before the second is over."""
        shows = self._protocol.settings.pictures_per_unit
        unit = self._early.begin(await self._transport.latest_picture(now_at) if shows else None)
        self._speaking.user_fell_silent(self._silence_began_s(self._front_end.voiced_until))
        self._tell_engine(unit)

    def _retract(self, retract: Retract) -> None:
        """He went on: what the engine made of it was never said."""
        self._tell_engine(retract)
        self._speaking.user_fell_silent(None)
        if turn := self._early.take_back():
            self._speaking.clear("turn_detected", taken_back=turn)

    def _heard(self, event: FrontEndEvent) -> None:
        match event:
            case DuckDue():
                self._speaking.duck()
            case ResumeDue():
                self._speaking.resume()
            case BargeInDue():
                self._telemetry.barge_in()
                self._speaking.clear("turn_detected")
            case Retract():
                self._retract(event)
            case _:
                self._listened(event)

    def _listened(self, event: Unit | SpeechStarted | SpeechEnded) -> None:
        if isinstance(event, SpeechStarted):
            self._speaking.user_fell_silent(None)
            self._send(self._protocol.speech_started(self._on_client_clock(event.at)))
        elif isinstance(event, SpeechEnded):
            self._speaking.user_fell_silent(self._silence_began_s(event.at))
            self._send(self._protocol.speech_ended(self._on_client_clock(event.at)))
        self._tell_engine(event)

    def _silence_began_s(self, at: int) -> float:
        """When the user's last sound came in."""
        return self._clock.now_s() - (self._front_end.position - at) / MIC_RATE_HZ

    def _on_client_clock(self, at: int) -> int:
        """A client that sends its sound in events counts what it sent, and no silence between."""
        line = self._event_microphone
        return at if line is None else line.client_at(at)

    async def _inbox(self) -> None:
        async for message in self._transport.messages():
            self.receive(message)

    async def _downlink(self) -> None:
        async for event in self._conversation.events():
            if isinstance(event, UnitReport):
                self._telemetry.unit(event)
                self._pace.heard(event)
            for found in self._early.heard(event):
                self._heard(found)
            self._apply(self._protocol.engine(event))
            await self._speaking.play(event)

    # ---- what the protocol wants done ---------------------------------------------------------

    def _apply(self, reaction: Reaction) -> None:
        self._send(reaction)
        for action in reaction.actions:
            match action:
                case CancelTurn(turn=turn):
                    self._speaking.cancel(turn)
                case ClearPlayout():
                    self._speaking.clear("client_cancelled")
                case CloseCall(reason=reason):
                    self.hang_up(reason)
                case RestoreSettings(settings=settings):
                    self._front_end.update(settings)
                case AnswerAside():
                    self._answer_aside(action)
                case HearAudio(data=data, coding=coding):
                    self._take_in(data, coding)
                case HeardReport():
                    self._speaking.named(action)
                case PlayoutReport():
                    self._speaking.reported(action)
                case _:
                    self._command(action)

    def _take_in(self, data: bytes, coding: SoundFormat) -> None:
        if self._event_microphone is None:
            return
        try:
            self._event_microphone.push(data, coding)
        except RequestError as error:
            self._apply(self._protocol.failed(error))

    def _command(self, command: Command) -> None:
        match command:
            case UpdateSettings(settings=settings):
                self._front_end.update(settings)
            case Pause() | ForceListen(on=True):
                # An engine that has generated it all has nothing left to stop.
                self._speaking.clear("client_cancelled")
            case CommitInput():
                self._begin_committed()
            case ClearInput() if self._event_microphone is not None:
                command = ClearInput(self._event_microphone.dropped())
        self._tell_engine(command)

    def _begin_committed(self) -> None:
        """Of the silence before what the client appended nothing belongs to its turn."""
        if self._event_microphone is not None:
            self._tell_engine(ClearInput(self._event_microphone.committed()))

    def _tell_engine(self, item: Told) -> None:
        self._early.told(item)
        self._pace.told(item)
        for attendant in self._attendants:
            attendant.told_engine(item)
        self._engine.tell(item)

    def _refused(self, error: Refusal, command: Command) -> None:
        if isinstance(command, Retract):
            return  # nobody asked for it
        reaction = self._protocol.failed(error, command)
        refusal, *consequences = reaction.events
        if self._askers.tell(command, refusal):
            reaction = replace(reaction, events=tuple(consequences))
        self._apply(reaction)

    def _send(self, reaction: Reaction) -> None:
        for event in reaction.events:
            if self._protocol.tells(event):
                self._client.tell(event)
            for attendant in () if reaction.is_aside else self._attendants:
                attendant.told_client(event)
            self._watchers.tell(event)
