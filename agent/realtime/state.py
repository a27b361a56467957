"""What a call remembers, shared by those who act on it: client, engine, loudspeaker."""

from dataclasses import dataclass

from agent.realtime.asides import Asides
from agent.realtime.events import Event, new_id, server_event
from agent.realtime.idle import Quiet
from agent.realtime.items import Items, SpokenItem, UserSpeechItem, added, done
from agent.realtime.limits import Allowance, Limits, with_limits
from agent.realtime.omni import Omni, Overlap
from agent.realtime.reaction import Action, ClearPlayout, Reaction
from agent.realtime.responses import Responses
from agent.realtime.settings import session_object
from agent.realtime.transcripts import impossible
from agent.realtime.turns import ClearReason, Turns
from agent.realtime.updates import Updates
from agent.types import MIC_RATE_HZ, Abilities, SessionSettings, Wire


@dataclass(frozen=True, slots=True)
class OpenSpeech:
    """Speech that goes on; `start` is its first sample at 16 kHz."""

    item_id: str
    start: int

    def started(self) -> Event:
        """`input_audio_buffer.speech_started`."""
        return server_event(
            "input_audio_buffer.speech_started",
            audio_start_ms=_mic_ms(self.start),
            item_id=self.item_id,
        )

    def stopped(self, end: int) -> Event:
        """`input_audio_buffer.speech_stopped` at sample `end`."""
        return server_event(
            "input_audio_buffer.speech_stopped",
            audio_end_ms=_mic_ms(end),
            item_id=self.item_id,
        )


class CallState:
    """Settings, items and responses of one call, and the state that the client was told."""

    def __init__(
        self, settings: SessionSettings, abilities: Abilities, limits: Limits, wire: Wire
    ) -> None:
        self.settings = settings
        self.abilities = abilities
        self.limits = limits
        self.wire = wire
        self.allowance: Allowance = tuple
        self.updates = Updates(limits.max_commands)
        self.items = Items(limits)
        self.turns = Turns(self.items, limits, wire)
        self.responses = Responses(self.turns, limits, wire)
        self.asides = Asides(limits, wire)
        self.opened = False
        self.spoke = False
        """Whether there was sound: from then on the voice stays."""
        self.paused = False
        self.pausing = False
        """Whether the client asked for a pause, and not yet for its end."""
        self.listens_only = False
        """Whether the client keeps the agent from speaking."""
        self.speech: OpenSpeech | None = None
        """What the detector reported as begun, and not yet as ended."""
        self.quiet = Quiet()
        self.microphone_at = -1
        """Where the microphone stood when the client's event came (16 kHz); −1: nobody said."""
        self.input_from = 0
        """Where begins what was not yet committed or cleared, of a track (16 kHz)."""
        self.appended_s = 0.0
        """The same, of what came inside of events: how long it is."""
        self._extended = wire == "webrtc"
        self.omni = Omni(new_id("sess"))
        self._told: tuple[str, int] = ("", 0)

    @property
    def extended(self) -> bool:
        """Whether the client is told the events of our extension.

        Some clients end when they meet an event that they do not know. Over a WebSocket only those
        are told who have used the extension themselves, and first of all what the state is.
        """
        return self._extended

    @extended.setter
    def extended(self, extended: bool) -> None:
        if extended and not self._extended:
            self._told = ("", 0)
        self._extended = extended

    def take_input_s(self) -> float:
        """How long the sound was that came since it was last taken; 0 where nobody knows."""
        taken_s, self.appended_s = self.appended_s, 0.0
        if self.wire == "websocket" or self.microphone_at < 0:
            return taken_s
        taken = max(0, self.microphone_at - self.input_from)
        self.input_from = self.microphone_at
        return taken / MIC_RATE_HZ

    def may_speak(self) -> bool:
        """Whether neither a response nor the client keeps the agent from speaking."""
        held = self.paused or self.pausing or self.listens_only
        return self.turns.active is None and not held

    def truncate(self, item: SpokenItem, end_ms: int) -> list[Action]:
        """The client cuts what the agent said; what is to be done.

        Where sound comes inside of events, no more of it is sent: the client would not play it.
        """
        interrupts = self.turns.truncate(item, end_ms)
        sounds = bool(interrupts) and self.wire == "websocket" and self.turns.pending_sound()
        return [*([ClearPlayout()] if sounds else []), *interrupts]

    def session(self) -> dict[str, object]:
        """The session object in force, ready for JSON."""
        told = session_object(self.settings, self.abilities, self.omni.session_id)
        return told | self.omni.told(self.abilities)

    def tell(self, events: list[Event], *actions: Action) -> Reaction:
        """The reaction, with `voice_agent.state` behind it where the state changed, and with what
        the client may still use where a response begins."""
        state, turn = self._now()
        told_state, told_turn = self._told
        another_turn = state == "speaking" and turn != told_turn
        if self.opened and (state != told_state or another_turn):
            self._told = (state, turn)
            events = [*events, server_event("voice_agent.state", state=state, turn=turn)]
        if self.omni.is_asked:
            events = self.omni.beside(events)
        return Reaction(tuple(with_limits(events, self.allowance)), actions)

    def overlapped(self, overlap: Overlap, turn: int, at_ms: int) -> list[Event]:
        """What clients of vLLM-Omni's API are told besides when somebody talks over `turn`."""
        response = self.turns.get(turn)
        if response is None or not self.omni.is_asked:
            return []
        metadata = {"turn": turn, "response_id": response.id, "at_ms": at_ms}
        return [self.omni.overlapped(overlap, self.settings, metadata)]

    def kept(self) -> list[Event]:
        """The same where he begins to, and nothing that he says will stop the agent."""
        detection, playing = self.settings.turn_detection, self.turns.playing
        if playing is None or detection is None or detection.interrupt_response:
            return []
        return self.overlapped("kept", playing.turn, playing.item.sounded_ms or 0)

    def yielded(self, turn: int, heard_ms: int, reason: ClearReason) -> list[Event]:
        """The same where `turn` falls silent, of which that was heard."""
        playing = self.turns.playing
        if reason != "turn_detected" or playing is None or playing.turn != turn:
            return []
        return self.overlapped("yielded", turn, heard_ms)

    def tell_aside(self, events: list[Event], *actions: Action) -> Reaction:
        """The same of out-of-band responses, whose events change no state."""
        return Reaction(tuple(with_limits(events, self.allowance)), actions, is_aside=True)

    def commit(self, item: UserSpeechItem) -> list[Event]:
        """The user's speech becomes an item at the end of the conversation."""
        events = self.commit_silence(item)
        if self.settings.transcription is not None and not self.abilities.transcription:
            events.append(impossible(item))
        return events

    def commit_silence(self, item: UserSpeechItem) -> list[Event]:
        """The same for what nobody will write down."""
        previous_id = self.items.add(item)
        committed = server_event(
            "input_audio_buffer.committed", previous_item_id=previous_id, item_id=item.id
        )
        return [committed, added(item, previous_id), done(item, previous_id)]

    def give_up_speech(self) -> list[Event]:
        """Nobody listens for its end any more: it stops, of no length, and becomes no item."""
        speech, self.speech = self.speech, None
        return [speech.stopped(speech.start)] if speech is not None else []

    def _now(self) -> tuple[str, int]:
        if self.paused:
            return "paused", self.turns.newest
        speaking = self.turns.playing or self.turns.writing
        if speaking is not None:
            return "speaking", speaking.turn
        return "listening", self.turns.newest


def _mic_ms(sample: int) -> int:
    return sample * 1000 // MIC_RATE_HZ
