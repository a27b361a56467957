"""The seams: what one part may expect of another, and nothing more."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.chat_types import Answered, AnswerRequest, ChatEvent
from agent.commands import Command
from agent.errors import VocoderError
from agent.types import (
    Abilities,
    AudioFrame,
    EngineEvent,
    FloatArray,
    LinkQuality,
    Load,
    SessionSettings,
    SoundFormat,
    SpeechEnded,
    SpeechStarted,
    TurnDetection,
    Unit,
    VideoFrame,
)


class Engine(Protocol):
    """What answers: shared by all calls, holds no conversation itself."""

    @property
    def name(self) -> str:
        """The name by which `--engine` and `session.model` pick it."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    async def open(self, settings: SessionSettings) -> "Conversation":
        """Start a conversation; `CapacityError` when no slot is free."""

    def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """Answer once, piece by piece; to leave the iterator is to give the answer up.

        UnsupportedError, RequestError or CapacityError come before the first piece.
        """

    def load(self) -> Load:
        """How full it is."""

    async def close(self) -> None:
        """Release everything; open conversations end."""


class Conversation(Protocol):
    """One conversation; to reset it, drop it. All that crosses is frozen data."""

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """Feed the next unit, or tell of speech inside the units so far."""

    async def control(self, command: Command) -> None:
        """Carry out a command; `UnsupportedError` when the engine cannot."""

    def events(self) -> AsyncIterator[EngineEvent]:
        """What the engine says, until `finish`; to be iterated by one task."""

    async def finish(self) -> None:
        """End of input: `events` ends after what is already said. Idempotent."""


class EngineCore(Protocol):
    """An engine as the one thread sees it that does its work: nothing here waits.

    Conversations and chats are numbered by whoever opens them, no number twice. What goes wrong
    with one of them after it was opened is a `Failed` of its own.
    """

    @property
    def name(self) -> str:
        """The name by which it is picked."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    def open(self, number: int, settings: SessionSettings) -> None:
        """Start conversation `number`; `CapacityError` or `RequestError`."""

    def chat(self, number: int, request: AnswerRequest) -> None:
        """Start chat `number`; `UnsupportedError`, `RequestError` or `CapacityError`."""

    def push(self, number: int, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """What a conversation hears next; ignored when it has ended."""

    def control(self, number: int, command: Command) -> None:
        """Carry out a command, in order with what was pushed; `RequestError` if it cannot be.

        Ignored when the conversation has ended.
        """

    def finish(self, number: int) -> None:
        """Conversation or chat `number` is over, whatever it was doing. Idempotent."""

    def work(self) -> list[tuple[int, EngineEvent | ChatEvent]]:
        """Do one piece of work; what is to be said because of it, to whom."""

    def idle_s(self) -> float | None:
        """0 while there is work; else when there will be some unasked; None: only input helps."""

    def load(self) -> Load:
        """How full it is."""


class VocoderStream(Protocol):
    """The voice of one turn: speech tokens (25 Hz) in, sound at 24 kHz out."""

    def push(self, tokens: Sequence[int]) -> FloatArray:
        """The sound [T] that these tokens complete; may be empty. `VocoderError`."""

    def finish(self) -> FloatArray:
        """What is left of the turn [T]. `VocoderError`."""


class VoiceKey(str):
    """One voice as who speaks with it holds it: the same voice whatever becomes of its name.

    What was loaded or computed of a voice lives at least as long as somebody holds its key; a copy
    of the text holds nothing. Equal keys that live at the same time are one object.
    """

    __slots__ = ("__weakref__",)


class Vocoder(Protocol):
    """Speech tokens to sound, shared by all calls. Voices are those of a `VoiceKey`."""

    @property
    def lag_ms(self) -> int:
        """How much of a turn's sound comes before that of its first token."""

    def prepare(self, voice: str) -> None:
        """Have a voice ready before it is wanted; it stays so while its key is held.

        `VocoderError`.
        """

    def open(self, voice: str) -> VocoderStream:
        """A stream for one turn in that voice; to give it up, drop it. `VocoderError`."""


@dataclass(frozen=True, slots=True)
class VocoderPush:
    """A turn's next speech tokens, and with the `last` of them its end."""

    stream: VocoderStream
    tokens: Sequence[int]
    last: bool = False


class VocoderBatch(Protocol):
    """Pushes that were begun together."""

    @property
    def done(self) -> bool:
        """Whether `take` would not wait."""

    def take(self) -> Sequence[FloatArray | VocoderError]:
        """The sound [T] of each push, or what went wrong with it alone; waits, once."""


class BatchVocoder(Vocoder, Protocol):
    """A vocoder that makes the sound of many turns at once."""

    @property
    def most_pushes(self) -> int:
        """How many go together."""

    def begin(self, pushes: Sequence[VocoderPush]) -> VocoderBatch:
        """Begin to make their sound, on a stream of its own; one batch at a time.

        It does not wait for the device where that can be avoided.
        """


class SpeechSource(Protocol):
    """What a sender pulls, once every 20 ms."""

    def pull(self) -> FloatArray:
        """The next 480 samples at 24 kHz; silence when there is nothing to say. Never blocks."""


class AudioDecoder(Protocol):
    """Packets of one codec into 16 kHz mono; one stream, in order. Counts at 16 kHz."""

    def samples_in(self, payload: bytes) -> int:
        """How much sound `payload` holds; `MediaError` when it is no packet of this codec."""

    def decode(self, payload: bytes) -> FloatArray:
        """The sound of the next packet [T]; `MediaError` as above."""

    def repair(self, following: bytes, samples: int) -> FloatArray:
        """`samples` lost just before `following`, from its redundancy where it carries any."""

    def conceal(self, samples: int) -> FloatArray:
        """`samples` that were lost without a trace: what went before goes on and fades."""


class SpeechEncoder(Protocol):
    """24 kHz mono into packets of 20 ms."""

    def encode(self, samples: FloatArray) -> bytes:
        """The packet of the next 20 ms [480]."""

    def expect_loss(self, share: float) -> None:
        """Spend redundancy for so many lost packets, 0..1, from the next packet on."""


class Transport(Protocol):
    """One peer's connection. `TransportClosed` or `PeerTimeout` end every iterator."""

    async def connected(self) -> None:
        """Return when sound and events can flow."""

    def microphone(self) -> AsyncIterator[AudioFrame]:
        """10 ms frames at 16 kHz on one unbroken time line."""

    async def latest_picture(self, now_at: int) -> VideoFrame | None:
        """The newest camera picture not handed out before; None if there is none.

        `now_at` is the microphone's sample index now; the picture is stamped with that of when it
        came.
        """

    def messages(self) -> AsyncIterator[str | bytes]:
        """Client events as they came, not yet parsed."""

    def play(self, source: SpeechSource) -> None:
        """From now on send what `source` gives, at real-time pace."""

    def speech_position(self, rtp_timestamp: int) -> int | None:
        """Which sample (24 kHz, counted since `play`) a client's RTP timestamp stands for.

        None before anything was sent; clients may name any number, so check the range.
        """

    def link(self) -> LinkQuality:
        """How the way to the peer is, by its own reports."""

    def send(self, message: str) -> None:
        """Queue one server event; a peer that does not read is disconnected, not buffered."""

    async def close(self) -> None:
        """Hang up and release everything. Idempotent."""


class EventMicrophone(Protocol):
    """Takes the user's sound out of events, where the wire has no track for it."""

    @property
    def end(self) -> int:
        """Where the sound that has come so far ends, on the microphone's clock (16 kHz)."""

    def push(self, data: bytes, coding: SoundFormat) -> None:
        """The next sound; `RequestError` when too much of it waits."""

    def committed(self) -> int:
        """The user's turn ends at `end`; where it began, on the same clock."""

    def dropped(self) -> int:
        """What came since the last turn belongs to none, and nobody need hear what still waits of
        it; where the microphone goes on."""

    def client_at(self, position: int) -> int:
        """How much the client had sent by `position` of the microphone, in samples at 16 kHz."""


class CallDesk(Protocol):
    """Where an attendant takes part in a call."""

    def receive(
        self, message: str, refused: Callable[[dict[str, object]], None] | None = None
    ) -> None:
        """Do what this client event asks, as if the client had sent it.

        `refused` is told why not, now or when the engine says so; without, the client is.
        """

    def says(self, event: EngineEvent | Answered) -> None:
        """Let the engine have said this."""

    def tell(self, event: Mapping[str, object]) -> None:
        """Send the client an event of this server's own, ready for JSON."""


class Attendant(Protocol):
    """Somebody on this server who follows a call and may take part in it."""

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """What the engine is told next. Never waits."""

    def told_client(self, event: Mapping[str, object]) -> None:
        """The server event that was just sent. Never waits."""

    async def run(self, desk: CallDesk) -> None:
        """Follow the call until cancelled; may end before."""


class EchoCanceller(Protocol):
    """Takes the agent's own voice out of the microphone."""

    @property
    def delay_samples(self) -> int:
        """How far the output of `cancel` lags its input, at 16 kHz."""

    def push_far(self, frame: AudioFrame) -> None:
        """What was just sent: 24 kHz, exactly the samples handed to the sender."""

    def cancel(self, near: FloatArray) -> FloatArray:
        """10 ms of microphone at 16 kHz [160] in, the same without the agent's voice out."""


class VoiceDetector(Protocol):
    """Finds where speech starts and ends."""

    def push(self, samples: FloatArray) -> list[SpeechStarted | SpeechEnded]:
        """The next samples at 16 kHz, any number of them."""

    def update(self, detection: TurnDetection | None) -> None:
        """Use these thresholds from here on; None stops reporting."""
