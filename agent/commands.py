"""What an engine is told besides units: commands, as frozen as `agent.types`."""

from dataclasses import dataclass
from typing import TypeAlias

from agent.types import FloatArray, Modality, Role, SessionSettings, Tool


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Give up `turn`; the user heard its first `heard_ms` milliseconds."""

    turn: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """From now on these settings hold."""

    settings: SessionSettings


@dataclass(frozen=True, slots=True)
class AddText:
    """A typed message joins the conversation."""

    item_id: str
    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class AddPicture:
    """A picture joins the conversation, as the file that the client sent (JPEG, PNG, WebP, …).

    Whoever looks at it unpacks it: that takes too long where sound is on its way.
    """

    item_id: str
    file: bytes


@dataclass(frozen=True, slots=True)
class AddAudio:
    """A recording joins the conversation."""

    item_id: str
    samples: FloatArray  # [T] at 16 kHz


@dataclass(frozen=True, slots=True)
class AddToolResult:
    """What the function that the model called returned."""

    call_id: str
    output: str


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """Forget an item, where the engine can."""

    item_id: str


@dataclass(frozen=True, slots=True)
class Respond:
    """Speak now, by these instructions if there are any.

    What is None is as in the session's settings; all of it is for this one answer.
    """

    instructions: str | None = None
    output_modalities: tuple[Modality, ...] | None = None
    max_output_tokens: int | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: str | None = None


@dataclass(frozen=True, slots=True)
class CommitInput:
    """The client says that the user's turn ends here (turn detection off).

    `at` is the microphone's sample index at 16 kHz when it said so; −1 where that is unknown.
    """

    item_id: str
    at: int = -1


@dataclass(frozen=True, slots=True)
class ClearInput:
    """What the user said since the last turn and before `at` (as above) belongs to no turn."""

    at: int = -1


@dataclass(frozen=True, slots=True)
class ForceListen:
    """While `on`, the agent only listens."""

    on: bool


@dataclass(frozen=True, slots=True)
class Retract:
    """Undo speculative unit `unit`: the user went on speaking. It comes again, whole."""

    unit: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Take no units until `Resume`."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Take units again."""


Command: TypeAlias = (
    Interrupt
    | UpdateSettings
    | AddText
    | AddPicture
    | AddAudio
    | AddToolResult
    | DeleteItem
    | Respond
    | CommitInput
    | ClearInput
    | ForceListen
    | Retract
    | Pause
    | Resume
)
