"""`response.create`: what a client asks of the one response to come."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from agent.commands import Respond
from agent.errors import RequestError, UnsupportedError
from agent.realtime.fields import Fields, wrong_type
from agent.realtime.response import Asked
from agent.realtime.session_audio import parse_format
from agent.realtime.settings import (
    MAX_OUTPUT_TOKENS,
    check_answering,
    is_foreign_voice,
    parse_modalities,
    parse_token_limit,
    refuse_prompt,
    voice_name,
)
from agent.realtime.spelling import current_spelling
from agent.realtime.tools import parse_tools
from agent.types import Abilities, SessionSettings

MAX_METADATA = 16

_Value = TypeVar("_Value")


def parse_response(document: object, settings: SessionSettings, abilities: Abilities) -> Asked:
    """What to answer by, and what the response object tells of it.

    An override that cannot be served raises `UnsupportedError` naming ``response.<field>``.
    """
    asked = Fields(current_spelling({} if document is None else document), "response")
    _refuse_another_conversation(asked)
    check_asked(asked, settings, abilities)
    instructions = asked.text("instructions", "")
    holds = parse_tools(asked, overridden(asked, settings, abilities), abilities)
    respond = Respond(
        instructions=instructions or None,
        output_modalities=_changed(holds.output_modalities, settings.output_modalities),
        max_output_tokens=_changed(holds.max_output_tokens, settings.max_output_tokens),
        tools=_changed(holds.tools, settings.tools),
        tool_choice=_changed(holds.tool_choice, settings.tool_choice),
    )
    return Asked(respond, metadata_of(asked))


def is_aside(document: object) -> bool:
    """Whether the response is to stand beside the conversation."""
    return isinstance(document, Mapping) and document.get("conversation") == "none"


def check_asked(asked: Fields, settings: SessionSettings, abilities: Abilities) -> None:
    """What no response can be asked for. `RequestError`."""
    refuse_prompt(asked)
    check_answering(asked)
    _require_same_sound(asked, settings, abilities)


def _changed(value: _Value, base: _Value) -> _Value | None:
    """Stock clients repeat what the session says: that overrides nothing."""
    return value if value != base else None


def overridden(asked: Fields, settings: SessionSettings, abilities: Abilities) -> SessionSettings:
    """The settings that hold for this response; "inf" in place of a bound is the largest one."""
    limit = parse_token_limit(asked, settings.max_output_tokens)
    if limit is None and settings.max_output_tokens is not None:
        limit = MAX_OUTPUT_TOKENS
    modalities = parse_modalities(asked, settings.output_modalities, abilities)
    return replace(settings, output_modalities=modalities, max_output_tokens=limit)


def _refuse_another_conversation(asked: Fields) -> None:
    """The engine has one conversation, which all that it says becomes a part of."""
    if asked.text("conversation", "auto", most=256) != "auto":
        raise _no_override(asked, "conversation")
    if asked.has("input"):
        raise UnsupportedError(
            "The conversation is answered as a whole; 'response.input' goes with "
            "'conversation': 'none', or add items by 'conversation.item.create'.",
            param=asked.name("input"),
        )


def _require_same_sound(asked: Fields, settings: SessionSettings, abilities: Abilities) -> None:
    output = asked.section("audio").section("output")
    voice = voice_name(output)
    if voice not in (None, settings.voice) and not is_foreign_voice(voice or "", abilities):
        raise _no_override(output, "voice")
    if parse_format(output, settings.output_format) != settings.output_format:
        raise _no_override(output, "format")


def metadata_of(asked: Fields) -> dict[str, str]:
    """Handed back with the response: at most 16 texts of 512 characters, by names of 64."""
    section = asked.section("metadata")
    names = list(asked.mapping("metadata"))
    if len(names) > MAX_METADATA:
        raise wrong_type(section.path, f"at most {MAX_METADATA} entries", asked.raw("metadata"))
    if any(len(name) > 64 for name in names):
        raise RequestError(
            f"The names in '{section.path}' have at most 64 characters.",
            param=section.path,
            code="invalid_value",
        )
    return {name: section.text(name, "", most=512) for name in names}


def _no_override(fields: Fields, field: str) -> UnsupportedError:
    return UnsupportedError(
        f"The engine cannot change '{fields.name(field)}' for one response.",
        param=fields.name(field),
    )
