"""The data of a turn-based chat: what is asked, and what comes back. Frozen like `agent.types`."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.types import ByteArray, Failed, FloatArray, Role, Tool

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
"""stop: the model ended its answer, or a stop token did. length: `max_tokens` did. tool_calls: the
model ended it, and waits for what the functions return that it calls."""
ChatRole: TypeAlias = Role | Literal["tool"]
"""tool: what a function returned."""


@dataclass(frozen=True, slots=True)
class ChatText:
    """Words."""

    text: str


@dataclass(frozen=True, slots=True)
class ChatPicture:
    """One picture."""

    rgb: ByteArray  # [H, W, 3]


@dataclass(frozen=True, slots=True)
class ChatSound:
    """A recording."""

    samples: FloatArray  # [T] at 16 kHz


@dataclass(frozen=True, slots=True)
class ChatVideo:
    """A film, second by second: the picture at the start of each, and the sound of all of them."""

    pictures: tuple[ByteArray, ...]  # one a second, each [H, W, 3]
    samples: FloatArray  # [T] at 16 kHz; empty where the film has no sound


ChatPart: TypeAlias = ChatText | ChatPicture | ChatSound | ChatVideo


@dataclass(frozen=True, slots=True)
class ChatToolCall:
    """The model calls one of the request's `tools`; `arguments` is its JSON text, as far as the
    model wrote any: it may be none at all."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message, its parts in order; `calls` are those of an earlier answer, behind its words.

    What functions returned follows in the order of their calls, a message each.
    """

    role: ChatRole
    content: tuple[ChatPart, ...]
    calls: tuple[ChatToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A whole conversation, to be answered once. None leaves a choice to the engine.

    `greedy` takes the likeliest token each time, whatever the numbers beside it say. `max_slices`
    is into how many tiles a picture may be cut. `tool_choice` is as in `SessionSettings`;
    `one_call`: the answer is over with the first call.
    """

    messages: tuple[ChatMessage, ...]
    max_tokens: int | None = None
    greedy: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    thinking: bool = False
    tools: tuple[Tool, ...] = ()
    """Functions that the model may call instead of answering, or behind what it says first."""
    max_slices: int | None = None
    speaks: bool = False
    """The answer comes as sound too, in `voice`; empty is the first there is."""
    voice: str = ""
    tool_choice: str = "auto"
    one_call: bool = False


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A text, to be read aloud word by word in `voice`; empty is the first there is."""

    text: str
    voice: str = ""
    language: str = "en"
    seed: int | None = None


AnswerRequest: TypeAlias = ChatRequest | SpeechRequest


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of the answer, or of the reasoning before it."""

    text: str
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class ChatAudio:
    """The next sound of the answer, at 24 kHz; it comes after the words that it says."""

    samples: FloatArray  # [T]


@dataclass(frozen=True, slots=True)
class ChatDone:
    """The answer is complete; the last event of a chat that did not fail."""

    reason: FinishReason
    prompt_tokens: int
    answer_tokens: int
    speech_tokens: int = 0
    """Of the answer's sound, 25 a second."""
    is_voiced: bool = True
    """False where the voice failed on the way: the sound ends before the words."""


ChatEvent: TypeAlias = ChatDelta | ChatAudio | ChatToolCall | ChatDone | Failed


@dataclass(frozen=True, slots=True)
class Answered:
    """The next of the answer for an out-of-band response."""

    response_id: str
    event: ChatEvent
