"""The session object: what a client asks for, checked, and what is in force, told back.

`parse_session` is all or nothing: the first field that cannot be served raises `RequestError`
with its dotted path, and nothing has changed.
"""

from dataclasses import replace

from agent.errors import RequestError, UnsupportedError
from agent.realtime.fields import Fields, wrong_type
from agent.realtime.session_audio import format_object, input_object, parse_format, parse_input
from agent.realtime.tools import choice_object, parse_tools, tool_objects
from agent.types import (
    Abilities,
    CallMode,
    Modality,
    SessionSettings,
)

OPENAI_VOICES = frozenset(
    {"alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"}
    | {"marin", "nova", "onyx", "sage", "shimmer", "verse"}
)
"""Names that stock clients send by default: one that the engine has not got changes nothing."""

MAX_OUTPUT_TOKENS = 65_536

MODALITIES: tuple[Modality, ...] = ("audio", "text")
MODES: tuple[CallMode, ...] = ("duplex", "half_duplex")


def parse_session(
    document: object,
    base: SessionSettings,
    abilities: Abilities,
    *,
    voice_locked: bool = False,
) -> SessionSettings:
    """`base` changed by an OpenAI session object; fields that are unknown are tolerated.

    `model` is checked, not used: the engine was chosen before. `voice_locked` says that the agent
    has spoken, after which its voice stays. Raises `RequestError` or `UnsupportedError`.
    """
    session = Fields(document, "session")
    if session.text("type", "realtime", most=256) != "realtime":
        raise RequestError(
            "'session.type' cannot be changed; use 'realtime'.",
            param="session.type",
            code="invalid_value",
        )
    _check_tolerated(session)
    audio = session.section("audio")
    changed = replace(
        base,
        instructions=session.text("instructions", base.instructions),
        output_modalities=_modalities(session, base, abilities),
        max_output_tokens=parse_token_limit(session, base.max_output_tokens),
        voice=_voice(audio.section("output"), base.voice, abilities, locked=voice_locked),
        output_format=parse_format(audio.section("output"), base.output_format),
    )
    changed = parse_input(audio.section("input"), changed)
    changed = parse_tools(session, changed, abilities)
    return _extension(session.section("voice_agent"), changed, abilities)


def session_object(
    settings: SessionSettings,
    abilities: Abilities,
    session_id: str,
) -> dict[str, object]:
    """The session as it is in force, in OpenAI's shape plus `voice_agent`, ready for JSON."""
    return {
        "id": session_id,
        "object": "realtime.session",
        "type": "realtime",
        "model": settings.model,
        "instructions": settings.instructions,
        "output_modalities": list(settings.output_modalities),
        "audio": {
            "input": input_object(settings),
            "output": speech_output(settings),
        },
        "max_output_tokens": token_limit(settings),
        "tools": tool_objects(settings.tools),
        "tool_choice": choice_object(settings.tool_choice),
        "voice_agent": {
            "language": settings.language,
            "prompt_voice": settings.prompt_voice,
            "eagerness": settings.eagerness,
            "mode": settings.mode,
            "max_slices": settings.max_slices,
            "pictures_per_unit": settings.pictures_per_unit,
            "early_units": settings.early_units,
        },
    }


def speech_output(settings: SessionSettings) -> dict[str, object]:
    """`audio.output` of a session or a response: format, and the voice where one is set."""
    output: dict[str, object] = {"format": format_object(settings.output_format)}
    if settings.voice:
        output["voice"] = settings.voice
    return output


def parse_token_limit(asked: Fields, base: int | None) -> int | None:
    """`max_output_tokens` of a session or a response; None for "inf": as the engine likes."""
    if asked.raw("max_output_tokens") == "inf":
        return None
    if not asked.has("max_output_tokens"):
        return base
    return asked.integer("max_output_tokens", least=1, most=MAX_OUTPUT_TOKENS)


def token_limit(settings: SessionSettings) -> int | str:
    """`max_output_tokens` of a session or a response."""
    return "inf" if settings.max_output_tokens is None else settings.max_output_tokens


def voice_name(output: Fields) -> str | None:
    """The `voice` of an `audio.output` object, given as a name or as `{id}`; None when absent."""
    voice = output.raw("voice")
    if voice is None:
        return None
    if isinstance(voice, dict):
        return output.section("voice").text("id", most=256)
    return output.text("voice", most=256)


# ---- reading ----------------------------------------------------------------------------------


def _check_tolerated(session: Fields) -> None:
    """Fields that change nothing here still have to be of their type."""
    session.text("model", "", most=256)
    session.items("include")
    session.flag("parallel_tool_calls", True)
    audio = session.section("audio")
    audio.section("input").section("noise_reduction")
    audio.section("output").number("speed", 1.0, least=0.25, most=4.0)


def _modalities(
    session: Fields, base: SessionSettings, abilities: Abilities
) -> tuple[Modality, ...]:
    """What is asked for; stock clients ask for sound even of an engine that has no voice."""
    if not session.has("output_modalities"):
        return base.output_modalities
    param = session.name("output_modalities")
    asked = session.items("output_modalities")
    for value in asked:
        if value not in MODALITIES:
            raise wrong_type(param, "an array of 'audio' or 'text'", value)
    chosen = [modality for modality in MODALITIES if modality in asked]
    if not chosen:
        raise RequestError(
            f"'{param}' is empty; use ['audio'] or ['text'].", param=param, code="invalid_value"
        )
    return tuple(chosen) if abilities.speech else ("text",)


def _voice(output: Fields, current: str, abilities: Abilities, *, locked: bool) -> str:
    param = output.name("voice")
    asked = voice_name(output)
    if asked is None or asked == current:
        return current
    if abilities.voices and asked not in abilities.voices:
        if asked in OPENAI_VOICES:
            return current
        raise RequestError(
            f"There is no voice '{asked[:64]}'; use one of: {', '.join(abilities.voices)}.",
            param=param,
            code="invalid_value",
        )
    if locked:
        raise RequestError(
            "The voice cannot change once the agent has spoken; open a new call for another.",
            param=param,
            code="cannot_update_voice",
        )
    return asked


def _extension(asked: Fields, settings: SessionSettings, abilities: Abilities) -> SessionSettings:
    language = asked.text("language", settings.language, most=64)
    known = abilities.languages
    if known and language not in known and language != settings.language:
        raise UnsupportedError(
            f"The engine does not speak '{language}'; use one of: {', '.join(known)}.",
            param=asked.name("language"),
        )
    return replace(
        settings,
        language=language,
        prompt_voice=_prompt_voice(asked, settings.prompt_voice, abilities),
        eagerness=asked.number("eagerness", settings.eagerness, least=0, most=1),
        mode=asked.choice("mode", MODES, settings.mode),
        max_slices=asked.integer("max_slices", settings.max_slices, least=1, most=9),
        pictures_per_unit=asked.integer(
            "pictures_per_unit", settings.pictures_per_unit, least=0, most=8
        ),
        early_units=asked.flag("early_units", settings.early_units),
    )


def _prompt_voice(asked: Fields, current: str, abilities: Abilities) -> str:
    """Whose manner the model takes on; "" is that of the voice."""
    voice = asked.text("prompt_voice", current, most=256)
    if not voice or voice == current:
        return voice
    if not abilities.voices:
        raise UnsupportedError("The engine has no voices.", param=asked.name("prompt_voice"))
    if voice not in abilities.voices:
        raise RequestError(
            f"There is no voice '{voice[:64]}'; use one of: {', '.join(abilities.voices)}.",
            param=asked.name("prompt_voice"),
            code="invalid_value",
        )
    return voice
