"""The live calls: opens them within the limit, ends them, leaves none behind."""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from agent.api.call_voices import expect_voice, with_their_voice
from agent.api.caller import ANYONE, Caller, Share
from agent.api.chat_shares import ChatShares
from agent.api.ice_servers import ice_servers
from agent.api.packet_fates import PacketFates
from agent.api.staffing import staff_rules
from agent.attendants.staff import Staff
from agent.config import Config
from agent.errors import AgentError, AuthError, CapacityError, QuotaError, RequestError
from agent.interfaces import Conversation, EchoCanceller, Engine, Transport
from agent.media.barge_in import BargeIn, BargeInRules
from agent.media.echo_canceller import Aec3, PassThrough
from agent.media.front_end import FrontEnd
from agent.media.playout import Playout
from agent.media.units import UnitBuilder
from agent.media.vad import SileroModel, SileroVad
from agent.realtime import Limits, RealtimeCall, parse_opening
from agent.realtime.events import error_event
from agent.session import CallParts, Session
from agent.telemetry import Telemetry
from agent.tools import ServerTool, ToolContext
from agent.transport.options import RtcOptions
from agent.transport.peer_ice import PeerIce
from agent.transport.rtc import RtcTransport
from agent.transport.websocket import LEAST_EVENT_BYTES, WebSocketTransport
from agent.types import Abilities, SessionSettings, Wire
from agent.voices import Voices

log = logging.getLogger(__name__)

_MAX_READING = 64
_MAX_READING_EACH = 32


class CallNotFound(AgentError):
    """No call of that id is in progress, or it is somebody else's: ids cannot be probed."""

    status = 404
    code = "call_not_found"


class TooManyCalls(QuotaError):
    """Whoever asks has as many calls as they may."""

    code = "call_limit_exceeded"
    reason = "calls"


class TooManyBodies(QuotaError):
    """Whoever asks has not finished what they began to send."""

    reason = "bodies"


@dataclass(frozen=True, slots=True)
class Services:
    """What all calls share."""

    config: Config
    engine: Engine
    telemetry: Telemetry
    voice_model: SileroModel
    voices: Voices | None = None
    tools: tuple[ServerTool, ...] = ()
    chat_shares: ChatShares = field(default_factory=ChatShares)

    @property
    def abilities(self) -> Abilities:
        """What the engine can do, with the voices that are there now, and this server beside it."""
        abilities = staff_rules(self.config).able(self.engine.abilities)
        if self.voices is None or not abilities.voices:
            return abilities
        return replace(abilities, voices=self.voices.ready_ids())


@dataclass(frozen=True, slots=True)
class Answered:
    """An accepted offer."""

    call_id: str
    sdp: str
    ice_tag: str


@dataclass(slots=True)
class _Live:
    session: Session
    task: asyncio.Task[str]
    caller: Caller
    transport: Transport
    is_revoked: bool = False

    @property
    def away_s(self) -> float:
        """How long its peer has been gone; 0 while it is there."""
        return self.transport.away_s if isinstance(self.transport, RtcTransport) else 0.0


class Calls:
    """Every call of this server; owns their tasks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limits = services.config.calls
        rules = staff_rules(services.config)
        self._staff = Staff(services.engine, services.telemetry, rules, services.tools)
        self._live: dict[str, _Live] = {}
        self._opening: list[Caller] = []
        self._reading: Counter[str] = Counter()
        self._closing = False

    @property
    def config(self) -> Config:
        """The settings of the server."""
        return self._services.config

    @property
    def count(self) -> int:
        """Calls that hold a place, those being answered included."""
        return len(self._live) + len(self._opening)

    async def open(self, offer: str, session: object = None, caller: Caller = ANYONE) -> Answered:
        """Answer `offer`; `session` is OpenAI's session object as parsed JSON, or None.

        Raises CapacityError without a free place, RequestError for an offer or session that
        cannot be used.
        """
        await self._make_room(caller)
        with self._place(caller):
            return await self._open(offer, session, caller)

    async def open_socket(
        self, transport: WebSocketTransport, caller: Caller, *, is_omni: bool = False
    ) -> Session:
        """A call over `transport`, whose socket is still to come. As `open`.

        `is_omni`: its client is to be told what vLLM-Omni's duplex API tells besides.
        """
        await self._make_room(caller)
        with self._place(caller):
            call_id = f"rtc_{secrets.token_hex(16)}"
            protocol = self._protocol(call_id, None, caller, wire="websocket")
            if is_omni:
                protocol.use_omni()
            async with AsyncExitStack() as undo:
                live = await self._begin(protocol, transport, undo, caller)
                undo.pop_all()
            return live.session

    def rehearse(self, session: object, caller: Caller) -> dict[str, object]:
        """The session object that a call of `caller` with that `session` would begin with.

        `RequestError` or `AuthError` for one that could not be opened.
        """
        return self._protocol("", session, caller).session

    def owned_by(self, call_id: str, caller: Caller) -> Session:
        """The call in progress of that id. `CallNotFound`, also when it is not `caller`'s."""
        return self._owned_by(call_id, caller).session

    def stands(self, call_id: str, caller: Caller) -> bool:
        """Whether that call is connected. `CallNotFound`."""
        transport = self._owned_by(call_id, caller).transport
        return not isinstance(transport, RtcTransport) or transport.stands

    def ice_of(self, call_id: str, caller: Caller) -> PeerIce:
        """The way of that call through the network. `CallNotFound`; `RequestError`: has none."""
        transport = self._owned_by(call_id, caller).transport
        if not isinstance(transport, RtcTransport):
            raise RequestError("the call does not go over WebRTC", code="not_webrtc")
        return transport.signalled()

    async def _make_room(self, caller: Caller) -> None:
        """Where no place is left, end the call that has waited longest for its peer to come back:
        whoever asks now is there."""
        full = {share.name for share in self._full_shares(caller)}
        has_slot = self._services.engine.load().slots_free > 0
        if not full and has_slot and self.count < self._limits.max_calls:
            return
        away = [live for live in self._live.values() if live.away_s and live.caller.has_any(full)]
        if away:
            gone = max(away, key=lambda live: live.away_s)
            gone.session.hang_up("peer_gone")
            await asyncio.wait((gone.task,), timeout=self._limits.shutdown_s)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """Held while a call is made; `CapacityError` when there is no room for it."""
        self._refuse_when_closing()
        if self.count >= self._limits.max_calls:
            raise self._no_capacity("every line is busy")
        self._refuse_beyond_share(caller)
        self._opening.append(caller)
        try:
            yield
        finally:
            self._opening.remove(caller)

    @contextmanager
    def reading(self, caller: Caller = ANYONE) -> Iterator[None]:
        """Held while an offer is read: slow senders must not use up the server's sockets, nor one
        of them what all others need."""
        who = caller.shares[-1].name if caller.shares else caller.key
        if who and self._reading[who] >= _MAX_READING_EACH:
            raise TooManyBodies(
                f"{_MAX_READING_EACH} of your requests are still being sent; finish them first",
                retry_after_s=float(self._limits.retry_after_s),
            )
        if self._reading.total() >= _MAX_READING:
            raise self._no_capacity("too many offers are being sent")
        self._reading[who] += 1
        try:
            yield
        finally:
            self._reading[who] -= 1
            self._reading = +self._reading

    async def hang_up(self, call_id: str, caller: Caller = ANYONE) -> None:
        """End a call and wait until it is gone. `CallNotFound`, also when it is not `caller`'s."""
        live = self._owned_by(call_id, caller)
        live.session.hang_up()
        await asyncio.wait((live.task,), timeout=self._limits.shutdown_s)

    def end_revoked(self, expect_still_in: Callable[[Caller], None]) -> None:
        """End the calls of all of whom `expect_still_in` raises `AuthError`; they are told why."""
        for live in [one for one in self._live.values() if not one.is_revoked]:
            try:
                expect_still_in(live.caller)
            except AuthError as error:
                live.is_revoked = True
                log.info("call %s of %s: %s", live.session.call_id, live.caller.key, error)
                live.session.tell(error_event(str(error), code=error.code))
                live.session.hang_up("revoked")

    async def close(self) -> None:
        """End all calls, by force those that do not end within `calls.shutdown_s`."""
        self._closing = True
        tasks = [live.task for live in self._live.values()]
        for live in list(self._live.values()):
            live.session.hang_up("shutdown")
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=self._limits.shutdown_s)
            for task in stuck:
                task.cancel()
            if stuck:
                await asyncio.wait(stuck, timeout=1)

    def _owned_by(self, call_id: str, caller: Caller) -> _Live:
        live = self._live.get(call_id)
        if live is None or not caller.owns(live.caller):
            raise CallNotFound(f"there is no call {call_id[:80]!r}; it may have ended already")
        return live

    def _refuse_beyond_share(self, caller: Caller) -> None:
        for share in self._full_shares(caller):
            raise TooManyCalls(
                f"{share.name} may have {share.most} call(s) at a time; hang one up first",
                retry_after_s=float(self._limits.retry_after_s),
            )

    def _full_shares(self, caller: Caller) -> list[Share]:
        callers = [*self._opening, *(live.caller for live in self._live.values())]
        return [
            share
            for share in caller.shares
            if sum(one.has_any({share.name}) for one in callers) >= share.most
        ]

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise self._no_capacity("the server is shutting down")

    def _no_capacity(self, reason: str) -> CapacityError:
        self._services.telemetry.call_refused()
        wait_s = float(self._limits.retry_after_s)
        return CapacityError(f"{reason}; try again later", retry_after_s=wait_s)

    def _protocol(
        self, call_id: str, session: object, caller: Caller, *, wire: Wire = "webrtc"
    ) -> RealtimeCall:
        engine, config = self._services.engine, self._services.config
        limits = Limits(
            max_message_bytes=max_event_bytes(config, wire),
            max_sideband_bytes=max_event_bytes(config, "websocket"),
        )
        abilities = caller.able(self._services.abilities)
        settings = with_their_voice(config.session_settings(engine.name), caller, abilities)
        if not abilities.side_tools:
            settings = replace(settings, tool_channel="native")
        if not abilities.speech:
            settings = replace(settings, output_modalities=("text",))
        session = caller.opening(session)
        if session is not None:
            expect_voice(session, caller, self._services.abilities)
            settings = parse_opening(session, settings, abilities, limits)
        return RealtimeCall(call_id, settings, abilities, limits, wire, allowance=caller.allowance)

    async def _open(self, offer: str, session: object, caller: Caller) -> Answered:
        config = self._services.config
        protocol = self._protocol(f"rtc_{secrets.token_hex(16)}", session, caller)
        async with AsyncExitStack() as undo:
            telemetry = self._services.telemetry
            transport = RtcTransport(
                _rtc_options(config),
                late_frame=telemetry.late_frame,
                packets=PacketFates(telemetry).note,
            )
            undo.push_async_callback(transport.close)
            # Before a slot is taken and a prompt is read for what may be no offer at all.
            answer = await transport.answer(offer)
            await self._begin(protocol, transport, undo, caller)
            undo.pop_all()
        return Answered(protocol.call_id, answer, transport.ice_tag)

    async def _begin(
        self, protocol: RealtimeCall, transport: Transport, undo: AsyncExitStack, caller: Caller
    ) -> _Live:
        """The call over `transport`, which runs from now on; `undo` is for when it cannot."""
        admit = partial(
            self._services.chat_shares.aside, caller, self._services.config.chat.retry_after_s
        )
        staff = self._staff.for_call(ToolContext(protocol.call_id, caller.key), admit)
        conversation = await self._conversation(staff.settings(protocol.settings))
        undo.push_async_callback(conversation.finish)
        self._refuse_when_closing()
        ears = transport.ears if isinstance(transport, WebSocketTransport) else None
        media = self._media(protocol.settings, in_events=ears is not None)
        equipped = staff.equip(conversation)
        beside = staff.attendants, staff.answer
        parts = CallParts(protocol, transport, equipped, *media, ears, *beside)
        return self._run(parts, caller)

    async def _conversation(self, settings: SessionSettings) -> Conversation:
        try:
            return await self._services.engine.open(settings)
        except CapacityError:
            self._services.telemetry.call_refused()
            raise

    def _media(self, settings: SessionSettings, *, in_events: bool) -> tuple[FrontEnd, Playout]:
        config = self._services.config
        # When sound sounds that goes inside of events, only the client knows.
        cancels = config.echo.canceller == "aec3" and not in_events
        canceller: EchoCanceller = Aec3() if cancels else PassThrough()
        front_end = FrontEnd(
            canceller,
            SileroVad(self._services.voice_model),
            UnitBuilder(),
            BargeIn(BargeInRules(**config.barge_in.model_dump())),
        )
        front_end.update(settings)
        max_queued_ms = int(config.playout.max_queued_s * 1000)
        return front_end, Playout(max_queued_ms, fades=not in_events)

    def _run(self, parts: CallParts, caller: Caller) -> _Live:
        call_id = parts.protocol.call_id
        session = Session(parts, self._services.telemetry, self._limits.max_duration_s)
        task = asyncio.get_running_loop().create_task(session.run(), name=call_id)
        live = self._live[call_id] = _Live(session, task, caller, parts.transport)
        task.add_done_callback(lambda _: self._live.pop(call_id, None))
        log.info("call %s opened, %d in progress", call_id, len(self._live))
        return live


def max_event_bytes(config: Config, wire: Wire) -> int:
    """How long an event of a client may be; where it may hold sound, at least a minute of it."""
    least = LEAST_EVENT_BYTES if wire == "websocket" else 0
    return max(least, config.calls.max_message_bytes)


def _rtc_options(config: Config) -> RtcOptions:
    return RtcOptions(
        ice_servers=ice_servers(config),
        connect_timeout_s=config.calls.connect_timeout_s,
        watchdog_s=config.calls.watchdog_s,
        return_s=config.calls.return_s,
    )
