"""The agent's side of a call: what it says, until it was heard, ducked or silenced."""

from collections.abc import Callable, Coroutine
from typing import Literal

from agent.call_parts import CallParts
from agent.clock import Clock
from agent.commands import Command, Interrupt
from agent.event_speech import EventSpeech
from agent.loudspeaker import Loudspeaker
from agent.media.playout import PlayoutDrained, PlayoutStarted
from agent.realtime import HeardReport, PlayoutReport, Reaction
from agent.telemetry import Telemetry
from agent.types import EngineEvent, SpeechAudio, TurnEnded

_REPORT_EVERY_S = 1.0
_LONGEST_ANSWER_S = 10.0
"""What is said later than that answers nothing."""

ClearReason = Literal["turn_detected", "client_cancelled"]


class Speaking:
    """Plays what the engine says, and tells client and engine what became of it.

    `send` tells the client, `command` the engine. The transport pulls the loudspeaker; where sound
    goes inside of events, `tasks` has one that does.
    """

    def __init__(
        self,
        parts: CallParts,
        telemetry: Telemetry,
        clock: Clock,
        send: Callable[[Reaction], None],
        command: Callable[[Command], None],
    ) -> None:
        self._protocol = parts.protocol
        self._transport = parts.transport
        self._front_end = parts.front_end
        self._playout = parts.playout
        self._telemetry = telemetry
        self._clock = clock
        self._send = send
        self._command = command
        self._loudspeaker = Loudspeaker(parts.playout, parts.transport, clock)
        self._event_speech: EventSpeech | None = None
        if parts.event_microphone is not None:
            self._event_speech = EventSpeech(self._loudspeaker, parts.playout, clock)
        self._user_fell_silent_s: float | None = None
        self._underruns = 0
        self._cancelled_turn = 0
        self._sounding_turn = 0

    def begin(self) -> None:
        """The connection stands."""
        if self._event_speech is None:
            self._playout.tap(self._front_end.push_far)
            self._transport.play(self._loudspeaker)

    def tasks(self) -> list[Coroutine[None, None, None]]:
        """What is to run as long as the call; to be cancelled."""
        if self._event_speech is not None:
            return [self._send_speech(self._event_speech)]
        return [self._follow_playout(), self._report()]

    # ---- what the engine says -----------------------------------------------------------------

    async def play(self, event: EngineEvent) -> None:
        """Let it be heard, if it is sound. Waits while too much of it is queued."""
        if isinstance(event, SpeechAudio):
            await self._loudspeaker.play(event)
        elif isinstance(event, TurnEnded):
            self._playout.end(event.turn)
            if event.reason == "interrupted" and event.turn != self._cancelled_turn:
                self.clear("client_cancelled")

    # ---- what the user does -------------------------------------------------------------------

    def user_fell_silent(self, at_s: float | None) -> None:
        """When the user's last sound came in; None while nobody waits for an answer."""
        self._user_fell_silent_s = None if self._playout.playing else at_s

    def duck(self) -> None:
        """Hold the agent's breath: perhaps the user begins to speak.

        Nobody is told of a turn that only begins later: there was no sound to fall silent.
        """
        self._announce()
        ducked = self._playout.duck()
        if ducked and self._playout.playing:
            self._send(self._protocol.ducked(ducked.turn, ducked.at_ms))

    def resume(self) -> None:
        """It was nothing: go on where it was silenced."""
        self._announce()
        has_begun, resumed = self._playout.playing, self._playout.resume()
        if resumed and has_begun:
            self._telemetry.duck_ended("resumed")
            self._send(self._protocol.resumed(resumed.turn, resumed.at_ms))

    def clear(self, reason: ClearReason, *, taken_back: int = 0) -> None:
        """Silence the agent now: what was not sent is given up, by an engine that has it still."""
        self._announce()
        if self._playout.ducked and self._playout.playing:
            self._telemetry.duck_ended("flushed")
        if self._event_speech is not None:
            self._event_speech.silence()
        for silenced in self._loudspeaker.silence():
            turn, heard_ms = silenced.turn, silenced.heard_ms
            self._send(self._protocol.playout_cleared(turn, heard_ms, reason))
            if turn != taken_back:
                self._command(Interrupt(turn, heard_ms))
        self._front_end.agent_silenced()

    # ---- what the client does -----------------------------------------------------------------

    def cancel(self, turn: int) -> None:
        """Stop generating; what is queued plays out, so it counts as heard."""
        heard_ms = self._loudspeaker.to_be_heard_ms(turn)
        self._cancelled_turn = turn
        self._playout.end(turn)
        self._command(Interrupt(turn, heard_ms))

    def reported(self, report: PlayoutReport) -> None:
        """The client says what it plays, by its own clock."""
        self._loudspeaker.reported(report.rtp_timestamp, report.at_ms)

    def named(self, report: HeardReport) -> None:
        """The client says how much of a turn it has played."""
        self._loudspeaker.named(report.turn, report.heard_ms)

    def tell_heard(self) -> None:
        """Let the protocol know how much of what plays was heard by now."""
        if self._sounding_turn:
            heard_ms = self._loudspeaker.heard_ms(self._sounding_turn)
            self._protocol.heard(self._sounding_turn, heard_ms)

    # ---- what follows from playout ------------------------------------------------------------

    async def _follow_playout(self) -> None:
        while True:
            await self._loudspeaker.pulled.wait()
            self._loudspeaker.pulled.clear()
            self._announce()

    async def _send_speech(self, speech: EventSpeech) -> None:
        while True:
            due_s = speech.pull(self._protocol.settings.output_format)
            self._announce()
            self._send_pulled(self._sounding_turn)
            await self._clock.sleep_until(due_s)

    def _send_pulled(self, turn: int) -> None:
        if self._event_speech is not None:
            for chunk in self._event_speech.take(turn):
                self._send(self._protocol.speech_sent(chunk.turn, chunk.data))

    def _announce(self) -> None:
        for event in self._playout.take_events():
            match event:
                case PlayoutStarted(turn=turn):
                    self._sounding_turn = turn
                    self._send(self._protocol.playout_started(turn))
                    self._note_first_sound(turn)
                case PlayoutDrained(turn=turn):
                    self._drained(turn)
        if fresh := self._playout.underruns - self._underruns:
            self._underruns += fresh
            self._telemetry.underruns(fresh)

    def _drained(self, turn: int) -> None:
        if self._event_speech is not None:
            self._event_speech.finish(turn)
            self._send_pulled(turn)
        self._send(self._protocol.playout_drained(turn))

    def _note_first_sound(self, turn: int) -> None:
        if self._user_fell_silent_s is None:
            return
        delay_s = self._clock.now_s() - self._user_fell_silent_s
        self._user_fell_silent_s = None
        if delay_s > _LONGEST_ANSWER_S:
            return
        self._telemetry.first_sound(delay_s)
        self._send(self._protocol.latency(turn, delay_s * 1000))

    async def _report(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now_s() + _REPORT_EVERY_S)
            if self._playout.playing:
                erle_db, delay_ms = self._front_end.erle_db, self._front_end.echo_delay_ms
                self._telemetry.echo(erle_db, delay_ms)
                self._telemetry.link(self._transport.link())
                self._send(self._protocol.echo(erle_db, delay_ms))
