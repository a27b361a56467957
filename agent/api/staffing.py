"""What the settings say of those who attend calls beside the engine."""

import logging
from collections.abc import Sequence

from agent.attendants.staff import StaffRules
from agent.attendants.toolbox import ToolRules
from agent.config import Config
from agent.tools import ServerTool
from agent.types import Abilities, ToolChannel

log = logging.getLogger(__name__)

_BYTES_PER_CHAR = 8
"""What a letter takes in an event, however it is written there, and the rest of that event."""


def staff_rules(config: Config) -> StaffRules:
    """How they work."""
    tools = config.tools
    most_chars = config.calls.max_message_bytes // _BYTES_PER_CHAR
    return StaffRules(
        tools=ToolRules(
            timeout_s=tools.timeout_s,
            max_running=tools.max_running,
            max_result_chars=min(tools.max_result_chars, most_chars),
        ),
        max_side_chats=tools.max_side_chats,
        side_timeout_s=tools.side_timeout_s,
        transcribes=config.session.transcription == "auto",
        max_asides=config.chat.max_out_of_band,
        aside_timeout_s=config.chat.out_of_band_timeout_s,
    )


def note_tools(tools: Sequence[ServerTool], abilities: Abilities, channel: ToolChannel) -> None:
    """Log what is offered, or that nobody will call it, or not by the `channel` that was set."""
    if channel == "side" and not abilities.side_tools:
        log.warning("tools.channel is 'side', which this engine has none of: it needs a model")
    if not tools:
        return
    names = ", ".join(tool.name for tool in tools)
    if abilities.tools or abilities.side_tools:
        log.info("functions of this server: %s", names)
    else:
        log.warning("the engine calls no functions: nobody will call %s", names)
