"""What an out-of-band response is asked to answer: data that leaves the protocol."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.chat_types import ChatRole, ChatSound, ChatText, ChatToolCall
from agent.types import Tool


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture as the file that the client sent; whoever shows it unpacks it."""

    file: bytes


@dataclass(frozen=True, slots=True)
class ItemSound:
    """How an item of the conversation sounds, of which nobody has written down the words."""

    item_id: str


SaidPart: TypeAlias = ChatText | ChatSound | PictureFile | ItemSound


@dataclass(frozen=True, slots=True)
class Said:
    """One item of what is to be answered: a message, or functions called, or what one returned."""

    role: ChatRole
    parts: tuple[SaidPart, ...] = ()
    calls: tuple[ChatToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """All that the model is shown, and how it may answer; as in `ChatRequest`."""

    instructions: str
    said: tuple[Said, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    max_tokens: int | None = None
