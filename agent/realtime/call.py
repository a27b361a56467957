"""One call as the protocol sees it: no sockets, no clock, no engine.

Whatever happens (a client event, speech, the engine, the loudspeaker) goes in as a method call;
what the client is to be told and what is to be done comes out as a `Reaction`.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from agent.chat_types import Answered
from agent.commands import Command, Respond, UpdateSettings
from agent.errors import AgentError, CapacityError, RequestError
from agent.realtime import transcripts
from agent.realtime.client_events import (
    EXTENSION,
    check_values,
    client_event_id,
    read_message,
    uses_extension,
)
from agent.realtime.events import Event, error_event, expired_event, new_id, server_event
from agent.realtime.fields import Fields
from agent.realtime.items import UserSpeechItem
from agent.realtime.limits import Allowance, Limits
from agent.realtime.obey import cancel, obey
from agent.realtime.omni import SERVER_EVENTS, uses_omni
from agent.realtime.reaction import NOT_FOR_THE_ENGINE, CloseCall, Reaction
from agent.realtime.state import CallState, OpenSpeech
from agent.realtime.turns import ClearReason
from agent.realtime.undo import undo
from agent.types import (
    MIC_RATE_HZ,
    Abilities,
    EngineEvent,
    Failed,
    Listened,
    Paused,
    SessionSettings,
    SpeechAudio,
    TextDelta,
    ToolCalled,
    TurnEnded,
    TurnStarted,
    UnitReport,
    UserText,
    UserTextFailed,
    Wire,
)

DEFAULT_LIMITS = Limits()


class RealtimeCall:
    """The protocol state of one call. Nothing here raises on what a client sends."""

    def __init__(
        self,
        call_id: str,
        settings: SessionSettings,
        abilities: Abilities,
        limits: Limits = DEFAULT_LIMITS,
        wire: Wire = "webrtc",
        *,
        allowance: Allowance = tuple,
    ) -> None:
        """`settings` are what `parse_opening` gave, or the defaults."""
        self.call_id = call_id
        self._call = CallState(settings, abilities, limits, wire)
        self._call.allowance = allowance
        self._commands: deque[tuple[Command, str]] = deque(maxlen=limits.max_commands)

    @property
    def settings(self) -> SessionSettings:
        """What is in force."""
        return self._call.settings

    @property
    def session(self) -> dict[str, object]:
        """The session object in force, ready for JSON."""
        return self._call.session()

    def use_omni(self) -> None:
        """The client is to be told what vLLM-Omni's duplex API tells besides; before `open`."""
        self._call.omni.ask()

    def open(self) -> Reaction:
        """The connection stands: `session.created`, once; later calls say nothing.

        `conversation.created` comes right behind it, as documented: all stock clients know it.
        """
        if self._call.opened:
            return Reaction()
        self._call.opened = True
        conversation = {
            "id": self._call.turns.conversation_id,
            "object": "realtime.conversation",
        }
        return self._call.tell(
            [
                server_event("session.created", session=self.session),
                server_event("conversation.created", conversation=conversation),
            ]
        )

    def tells(self, event: Mapping[str, object]) -> bool:
        """Whether the client is to be sent `event`, by this call or by anybody in it.

        Those of our extension go over a WebSocket only to clients that use it, as do everywhere
        those of vLLM-Omni's API.
        """
        kind = str(event["type"])
        if kind in SERVER_EVENTS:
            return self._call.omni.is_known
        return self._call.extended or not kind.startswith(EXTENSION)

    def receive(
        self, message: str | bytes, microphone_at: int = -1, *, is_client: bool = True
    ) -> Reaction:
        """A client event as it came; anything wrong is answered by an `error` event.

        `microphone_at` is how much of the microphone was taken in by then (samples at 16 kHz),
        −1 where nobody knows: what the client commits or clears ends there. `is_client`: it comes
        from the call's own client, not from somebody else in the call.
        """
        event_id: str | None = None
        self._call.microphone_at = microphone_at
        try:
            document = read_message(message, self._call.limits, is_client=is_client)
            event_id = client_event_id(document)
            if document.get("type") != "voice_agent.playout":
                # Of that one, numbers that mean nothing are passed over; nothing is kept.
                check_values(document, self._call.limits)
            if is_client and uses_extension(document):
                self._call.extended = True
            if is_client and uses_omni(document):
                self._call.omni.is_known = True
            reaction = obey(self._call, Fields(document))
        except RequestError as error:
            return replace(self._call.tell([_refusal(error, event_id)]), is_refusal=True)
        if event_id is not None:
            self._remember_commands(reaction, event_id)
        return reaction

    # ---- the user's speech --------------------------------------------------------------------

    def speech_started(self, at: int) -> Reaction:
        """The user speaks since microphone sample `at` (16 kHz).

        Says nothing while turn detection is off, or when speech is open already.
        """
        if self._call.speech is not None or self.settings.turn_detection is None:
            return Reaction()
        speech = self._call.speech = OpenSpeech(new_id("item"), max(0, at))
        # Whatever begins from now on answers the user, too.
        self._call.turns.request = "none"
        return self._call.tell([speech.started(), *self._call.kept()])

    def speech_ended(self, at: int) -> Reaction:
        """The user stopped at microphone sample `at`: the speech becomes an item."""
        speech, self._call.speech = self._call.speech, None
        if speech is None:
            return Reaction()
        end = max(speech.start, at)
        item = UserSpeechItem(speech.item_id, (end - speech.start) / MIC_RATE_HZ)
        self._call.input_from, self._call.appended_s = max(self._call.input_from, end), 0.0
        return self._call.tell([speech.stopped(end), *self._call.commit(item)])

    def listened(self, at: int, told_at: int) -> Reaction:
        """The microphone stands at sample `at` (16 kHz), which the client is told as `told_at`.

        To be told often: by it the call knows how long nobody has said anything
        (`idle_timeout_ms`).
        """
        detection, quiet = self.settings.turn_detection, self._call.quiet
        if detection is None or detection.idle_timeout_ms is None:
            return Reaction()
        turns = self._call.turns
        agent_speaks = turns.active is not None or turns.playing is not None
        if agent_speaks or (self._call.speech is not None and quiet.since >= 0):
            quiet.broken(at, told_at)
        if not quiet.lasts(at, detection.idle_timeout_ms):
            return Reaction()
        reaction = self.idle_timed_out(quiet.told_since, told_at)
        if reaction.events:
            quiet.over()
        return reaction

    def idle_timed_out(self, start: int, end: int) -> Reaction:
        """Nobody has said anything since `start`, and now it is `end` (16 kHz): the agent goes on.

        Says nothing where the session names no `idle_timeout_ms`, while the user speaks, and
        while the agent speaks or may not.
        """
        detection = self.settings.turn_detection
        waits = detection is not None and detection.idle_timeout_ms is not None
        if not waits or self._call.speech is not None or not self._call.may_speak():
            return Reaction()
        item = UserSpeechItem(new_id("item"), max(0, end - start) / MIC_RATE_HZ)
        triggered = server_event(
            "input_audio_buffer.timeout_triggered",
            audio_start_ms=start * 1000 // MIC_RATE_HZ,
            audio_end_ms=max(start, end) * 1000 // MIC_RATE_HZ,
            item_id=item.id,
        )
        return self._call.tell([triggered, *self._call.commit_silence(item)], Respond())

    # ---- the engine ---------------------------------------------------------------------------

    def engine(self, event: EngineEvent | Answered) -> Reaction:
        """What an engine said; what belongs to a turn that is over says nothing."""
        match event:
            case Failed(error=error):
                return self._engine_failed(error)
            case Paused():
                self._call.paused = True
                self._call.turns.drop_request()
                return self._call.tell([])
            case Listened():
                omni = self._call.omni
                return self._call.tell([omni.listened(event.unit)]) if omni.is_asked else Reaction()
            case Answered():
                return self._call.tell_aside(self._call.asides.answered(event))
            case UserText():
                return self._call.tell(transcripts.completed(self._call.items, event))
            case UserTextFailed():
                return self._call.tell(transcripts.failed(self._call.items, event))
            case UnitReport():
                took = self._call.responses.took(event.turn, event.usage)
                # What is answered before any unit came is of none.
                unit = [_unit_event(event)] if event.unit >= 0 else []
                return self._call.tell([*took, *unit])
            case _:
                return self._without_withdrawn(self._turn_event(event))

    def failed(self, error: AgentError, command: Command | None = None) -> Reaction:
        """The engine refused `command`, or the call cannot go on.

        A `RequestError` is always a refusal, a `CapacityError` is one of a command. `command` is
        the very object that a reaction carried: its client event is named, and what it had
        changed here is taken back.
        """
        if command is None:
            told = [_refusal(error, None)] if isinstance(error, RequestError) else []
            return self._call.tell(told) if told else self._engine_failed(error)
        if not isinstance(error, RequestError | CapacityError):
            return self._engine_failed(error)
        event_id = next((known for sent, known in self._commands if sent is command), None)
        events, actions = undo(self._call, command)
        return self._call.tell([_refusal(error, event_id), *events], *actions)

    def expired(self) -> Reaction:
        """The call has lasted for as long as one may: the last that its client is told."""
        omni = self._call.omni
        return self._call.tell([expired_event(), *([omni.expired()] if omni.is_asked else [])])

    def due(self, command: Command) -> Command:
        """What to tell the engine for `command` of a reaction now that its turn has come.

        An update of the settings no longer holds what was refused since it was made.
        """
        if isinstance(command, UpdateSettings):
            return self._call.updates.due(command)
        return command

    # ---- the loudspeaker ----------------------------------------------------------------------

    def speech_sent(self, turn: int, data: bytes) -> Reaction:
        """The next sound of `turn`, in the output format, goes out inside of an event.

        To be told in the order in which it is sent, the last of it before `playout_drained`.
        """
        return self._call.tell(self._call.responses.speech_sent(turn, data))

    def playout_started(self, turn: int) -> Reaction:
        """The first sample of `turn` was pulled (or the next one, after an underrun)."""
        return self._call.tell(self._call.responses.playout_started(turn))

    def playout_drained(self, turn: int) -> Reaction:
        """Nothing of `turn` is queued any more."""
        return self._call.tell(self._call.responses.playout_drained(turn))

    def playout_cleared(self, turn: int, heard_ms: int, reason: ClearReason) -> Reaction:
        """The queue was dropped; of `turn` the user will have heard `heard_ms`, once what is
        under way has sounded."""
        yielded = self._call.yielded(turn, heard_ms, reason)
        cleared = self._call.responses.playout_cleared(turn, heard_ms, reason)
        return self._call.tell([*yielded, *cleared])

    def heard(self, turn: int, heard_ms: int) -> None:
        """By now the user has heard `heard_ms` of `turn`, and nothing of later turns.

        To be told before `receive`: `conversation.item.retrieve` answers by it while a turn
        plays. Before the first time it answers with all that was generated.
        """
        self._call.turns.heard(turn, heard_ms)

    # ---- what only our own page listens to ----------------------------------------------------

    def echo(self, erle_db: float, delay_ms: float) -> Reaction:
        """How much echo is taken out, and how late it comes (0 while unknown); silent on a
        figure that is not finite."""
        if not (math.isfinite(erle_db) and math.isfinite(delay_ms)):
            return Reaction()
        figures = {"erle_db": round(erle_db, 2), "delay_ms": round(delay_ms, 1)}
        return self._call.tell([server_event("voice_agent.echo", **figures)])

    def latency(self, turn: int, first_sound_ms: float) -> Reaction:
        """How long the user waited for the first sound of `turn`."""
        if not math.isfinite(first_sound_ms):
            return Reaction()
        waited_ms = round(first_sound_ms, 2)
        return self._call.tell(
            [server_event("voice_agent.latency", turn=turn, first_sound_ms=waited_ms)]
        )

    def ducked(self, turn: int, at_ms: int) -> Reaction:
        """The agent grew quiet at `at_ms` of `turn`: the user may be barging in."""
        told = server_event("voice_agent.ducked", turn=turn, at_ms=at_ms)
        return self._call.tell([told, *self._call.overlapped("ducked", turn, at_ms)])

    def resumed(self, turn: int, at_ms: int) -> Reaction:
        """It was no barge-in: the agent goes on where it grew quiet."""
        told = server_event("voice_agent.resumed", turn=turn, at_ms=at_ms)
        return self._call.tell([told, *self._call.overlapped("resumed", turn, at_ms)])

    # ---- inside -------------------------------------------------------------------------------

    def _turn_event(
        self, event: TurnStarted | TextDelta | SpeechAudio | TurnEnded | ToolCalled
    ) -> list[Event]:
        responses = self._call.responses
        match event:
            case TurnStarted(turn=turn, asked=asked):
                return responses.started(
                    turn, self.settings, is_asked=asked is not False, usage=event.usage
                )
            case TextDelta(turn=turn, text=text):
                return responses.text(turn, text, event.usage)
            case SpeechAudio(turn=turn, start=start, samples=samples):
                self._call.spoke = True
                return responses.sound(turn, start + len(samples), event.usage)
            case TurnEnded():
                return responses.ended(event)
            case ToolCalled():
                return responses.tool_called(event, self.settings)

    def _without_withdrawn(self, events: list[Event]) -> Reaction:
        """What is told, and the end of a response that was cancelled before it began."""
        active = self._call.turns.active
        if active is None or not active.withdrawn:
            return self._call.tell(events)
        ended = cancel(self._call, active)
        return Reaction((*events, *ended.events), ended.actions)

    def _engine_failed(self, error: Exception) -> Reaction:
        """What a foreign exception says is for the log, not for the client."""
        message, code = "The engine failed; start a new call.", None
        if isinstance(error, AgentError):
            message, code = str(error) or message, error.code
        code = code or "engine_error"
        events = [*self._call.asides.fail(error), *self._call.responses.fail(code)]
        events.append(error_event(message, kind="server_error", code=code))
        return self._call.tell(events, CloseCall(code))

    def _remember_commands(self, reaction: Reaction, event_id: str) -> None:
        for action in reaction.actions:
            if not isinstance(action, NOT_FOR_THE_ENGINE):
                self._commands.append((action, event_id))


def _refusal(error: RequestError | CapacityError, event_id: str | None) -> Event:
    if isinstance(error, CapacityError):
        return error_event(str(error), kind="server_error", code=error.code, event_id=event_id)
    return error_event(str(error), code=error.code, param=error.param, event_id=event_id)


def _unit_event(report: UnitReport) -> Event:
    return server_event(
        "voice_agent.unit",
        unit=report.unit,
        stage_ms={name: round(ms, 3) for name, ms in report.stage_ms if math.isfinite(ms)},
        context_tokens=report.context_tokens,
    )
