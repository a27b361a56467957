"""Which functions an answer may call, and what a client asks of one answer alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.commands import Respond
from agent.duplex.tool_prompt import forced_opening
from agent.types import SessionSettings, Tool


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What an answer may call, `opening` what it begins with, whatever the model would say.

    `is_banned`: the model knows of functions, and is to call none.
    """

    names: tuple[str, ...] = ()
    opening: str = ""
    is_banned: bool = False

    @classmethod
    def of(cls, tools: Sequence[Tool], choice: str) -> "ToolUse":
        """As `SessionSettings` says it; RequestError for a choice of nothing."""
        if tools and choice == "none":
            return cls(is_banned=True)
        return cls(tuple(one.name for one in tools), forced_opening(tools, choice))


def settings_of(settings: SessionSettings, asked: Respond) -> SessionSettings:
    """The settings of one answer that is asked for so."""
    named = ("output_modalities", "max_output_tokens", "tools", "tool_choice")
    own = {name: value for name in named if (value := getattr(asked, name)) is not None}
    return replace(settings, **own)
