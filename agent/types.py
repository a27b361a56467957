"""The data that flows: frames, units, events and settings. No behaviour, no state.

Everything here is frozen, so it crosses a thread or a process unchanged. The unit of a number is
in its name; `start`, `at` and `captured_at` are sample indices on the clock of their stream.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
ByteArray: TypeAlias = npt.NDArray[np.uint8]

MIC_RATE_HZ = 16_000
"""Rate of everything on the way in: microphone, echo canceller, voice detector, units."""
SPEECH_RATE_HZ = 24_000
"""Rate of everything on the way out, until the transport encodes it."""
MIC_FRAME_SAMPLES = MIC_RATE_HZ // 100
"""10 ms, the frame of the echo canceller."""
SPEECH_FRAME_SAMPLES = SPEECH_RATE_HZ // 50
"""20 ms, the frame of an RTP packet."""
UNIT_SAMPLES = MIC_RATE_HZ
"""One second, the model's step."""


# ---- frames and units -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """Mono PCM, −1..1. `start` counts samples since the stream began."""

    samples: FloatArray  # [T]
    rate_hz: int
    start: int


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One picture. `captured_at` is the microphone's sample index at 16 kHz when it was taken."""

    rgb: ByteArray  # [H, W, 3]
    captured_at: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One second of input: the engine's step.

    The first `samples_valid` samples are the microphone's, what follows is silence in the place of
    what is not there yet or never will be. A unit is `speculative` when the rest of its second is
    guessed. Either it is undone by `Retract`, and the unit of that index comes again when it is
    whole; or it stands, and the next one begins behind its last valid sample. `inserted_samples`
    is how much silence the units before it hold that the microphone never heard.
    """

    index: int
    audio: FloatArray  # [16000] at 16 kHz
    samples_valid: int
    pictures: tuple[VideoFrame, ...] = ()
    speculative: bool = False
    inserted_samples: int = 0

    @property
    def start(self) -> int:
        """Its first sample's index on the microphone's clock."""
        return self.index * UNIT_SAMPLES - self.inserted_samples

    @property
    def end(self) -> int:
        """Behind its last valid sample: where the next unit begins."""
        return self.start + self.samples_valid


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """The way to a peer; zeros until the peer has reported. `loss` is a share, 0..1."""

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0


# ---- media events -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user began to speak; `at` is the sample index at 16 kHz, prefix padding included."""

    at: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The user stopped speaking at sample `at` (16 kHz), found out some silence later."""

    at: int


@dataclass(frozen=True, slots=True)
class BargedIn:
    """The user talked over `turn`, of which `played_ms` had been handed to the sender."""

    turn: int
    played_ms: int


# ---- what an engine says ----------------------------------------------------------------------

TurnEndReason: TypeAlias = Literal["completed", "interrupted", "max_tokens"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one turn cost in tokens: all that it was answered from, and what was generated.

    `cached_in` of those taken in were known since the turn before it.
    """

    text_in: int = 0
    audio_in: int = 0
    pictures_in: int = 0
    cached_in: int = 0
    text_out: int = 0
    audio_out: int = 0


@dataclass(frozen=True, slots=True)
class Listened:
    """Unit `unit` was taken in and the engine decided to listen on."""

    unit: int


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The agent opens its mouth; turns count from 1.

    `asked`: whether this is the answer to a `Respond`. `usage`, here and in all that is said of the
    turn: what it has taken by now. Both None where the engine does not tell.
    """

    turn: int
    asked: bool | None = field(default=None, compare=False)
    usage: Usage | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of what the agent says, in the turn's text order."""

    unit: int
    turn: int
    text: str
    usage: Usage | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SpeechAudio:
    """Sound of a turn at 24 kHz; `start` is the sample index within the turn.

    `hold_ms`: so long a turn's first sound waits, unless the turn is over before, so that what
    follows at the pace of speech comes in time.
    """

    turn: int
    unit: int
    start: int
    samples: FloatArray  # [T] at 24 kHz
    last: bool = False
    hold_ms: int = 0
    usage: Usage | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """Nothing more will be generated for `turn`; what was generated may still be playing."""

    turn: int
    reason: TurnEndReason
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model calls a function; `arguments` is its JSON text.

    `turn` 0: beside the conversation, in no turn of the agent.
    """

    turn: int
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class UserText:
    """What the user said, for engines that transcribe."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class UserTextFailed:
    """What the user said could not be written down; `reason` is for the client to read."""

    item_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Paused:
    """The engine takes no units until `Resume`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The conversation cannot go on."""

    error: Exception


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What unit `unit` cost: milliseconds by stage name.

    `turn`, which goes on, has taken `usage`, whether anything was said of it or not; 0: none does.
    """

    unit: int
    stage_ms: tuple[tuple[str, float], ...]
    context_tokens: int = 0
    turn: int = field(default=0, compare=False)
    usage: Usage | None = field(default=None, compare=False)


EngineEvent: TypeAlias = (
    Listened
    | TurnStarted
    | TextDelta
    | SpeechAudio
    | TurnEnded
    | ToolCalled
    | UserText
    | UserTextFailed
    | Paused
    | Failed
    | UnitReport
)


# ---- settings of one call ---------------------------------------------------------------------

Eagerness: TypeAlias = Literal["low", "medium", "high", "auto"]
CallMode: TypeAlias = Literal["duplex", "half_duplex"]
Modality: TypeAlias = Literal["audio", "text"]
Role: TypeAlias = Literal["user", "system", "assistant"]
SoundFormat: TypeAlias = Literal["audio/pcm", "audio/pcmu", "audio/pcma", "audio/pcm;rate=16000"]
"""PCM16 little-endian at 24 kHz; G.711 µ-law and A-law at 8 kHz. All mono."""
ToolChannel: TypeAlias = Literal["native", "side"]
"""Who decides that a function is called: the engine in the conversation, or a chat beside it."""
Wire: TypeAlias = Literal["webrtc", "websocket"]
"""How a client is connected: sound as media beside the events, or inside of them."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON text of its JSON schema."""

    name: str
    description: str = ""
    parameters: str = "{}"


@dataclass(frozen=True, slots=True)
class Transcription:
    """The user's speech is to be written down; empty texts leave the choice to the engine."""

    model: str = ""
    language: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """How the end of the user's turn is found, as in OpenAI's session object.

    `create_response` lets the end of speech start an answer, `interrupt_response` lets its start
    silence the agent. `idle_timeout_ms`: after so much silence behind the agent's last word the
    client is told, and the agent asked to go on; None: never.
    """

    kind: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True
    eagerness: Eagerness = "auto"
    idle_timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Everything that a client may set for its call.

    `turn_detection` None means that the client itself commits the user's audio and asks for
    answers. `eagerness` is the agent's readiness to speak, 0 (waits) to 1 (jumps in). The model
    takes its manner from `prompt_voice`, which is `voice` where it is empty. `early_units`: once
    the user seems to have finished, the engine is not kept waiting for the rest of the second.
    `tool_choice` is "auto", "none", "required" or the name of one of `tools`. `max_output_tokens`
    bounds a turn, None as the engine likes. The formats are those of sound inside of events.
    """

    model: str
    instructions: str = ""
    voice: str = ""
    prompt_voice: str = ""
    output_modalities: tuple[Modality, ...] = ("audio",)
    turn_detection: TurnDetection | None = field(default_factory=TurnDetection)
    language: str = "en"
    eagerness: float = 0.5
    mode: CallMode = "duplex"
    max_slices: int = 1
    pictures_per_unit: int = 1
    early_units: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    tool_channel: ToolChannel = "native"
    max_output_tokens: int | None = None
    transcription: Transcription | None = None
    input_format: SoundFormat = "audio/pcm"
    output_format: SoundFormat = "audio/pcm"


# ---- what an engine is ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do; the protocol refuses the rest with `unsupported_by_engine`."""

    duplex: bool = False
    chat: bool = False
    speech: bool = False
    camera: bool = False
    typed_text: bool = False
    pictures: bool = False
    recordings: bool = False
    """A message may hold sound (`AddAudio`)."""
    tools: bool = False
    side_tools: bool = False
    """Functions can be called beside the conversation (`tool_channel` "side")."""
    out_of_band: bool = False
    """Questions can be answered beside the conversation (`conversation: "none"`)."""
    transcription: bool = False
    text_to_speech: bool = False
    """It reads texts aloud (`SpeechRequest`), and speaks its chat answers where that is asked."""
    voices: tuple[str, ...] = ()
    """Ids; empty where voices mean nothing to it. Of an engine that clones voices: those that were
    there when it was loaded."""
    languages: tuple[str, ...] = ()
    default_instructions: tuple[tuple[str, str], ...] = ()
    """By language, what the system prompt says unless the client sets it."""


@dataclass(frozen=True, slots=True)
class Load:
    """How full an engine is; `estimate_s` is the likely wait for a slot."""

    slots_used: int
    slots_free: int
    estimate_s: float = 0.0
