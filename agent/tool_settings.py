"""The settings of functions that the model may call; see `agent.settings` for all others."""

from typing import Annotated

from pydantic import Field, StringConstraints

from agent.setting_kinds import Allowed, Section
from agent.types import SessionSettings, ToolChannel

_CALL = SessionSettings(model="")

Files = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...],
    Allowed("Python files or modules"),
]


class ToolSettings(Section):
    """Functions that the model may call, and what this server does beside the engine of a call."""

    files: Files = Field(
        default=(),
        strict=False,
        description="Where this server's own functions are (`@tool`); offered in every call.",
    )
    channel: ToolChannel = Field(
        default=_CALL.tool_channel,
        description="How functions are called unless the client says otherwise: by the model in "
        "the conversation, or by a chat beside it.",
    )
    timeout_s: float = Field(
        default=10.0, ge=0.1, le=300, description="How long one of them may take."
    )
    max_running: int = Field(
        default=16, ge=1, le=1000, description="How many of them run at a time, in all calls."
    )
    max_result_chars: int = Field(
        default=4000,
        ge=100,
        le=16_000,
        description="What is longer of what one returns is cut off.",
    )
    side_timeout_s: float = Field(
        default=5.0,
        ge=0.1,
        le=60,
        description="A chat beside a call that has not decided by then is given up.",
    )
    max_side_chats: int = Field(
        default=2,
        ge=0,
        le=64,
        description="Chats at a time that decide on functions or write down what users said; 0: "
        "neither is done.",
    )
