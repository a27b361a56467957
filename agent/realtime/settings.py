"""The session object: what a client asks for, checked, and what is in force, told back.

`parse_session` is all or nothing: the first field that cannot be served raises `RequestError`
with its dotted path, and nothing has changed. Fields that only tune what a hosted service does
(`speed`, `truncation`, `noise_reduction`, `tracing`, `include`, `reasoning`) have to be of their
type and change nothing; the session that is told back shows what holds.
"""

from dataclasses import replace

from agent.errors import RequestError, UnsupportedError
from agent.realtime.fields import Fields, quoted, wrong_type
from agent.realtime.session_audio import (
    format_object,
    input_object,
    parse_format,
    parse_input,
    settle_eagerness,
)
from agent.realtime.spelling import current_spelling
from agent.realtime.tools import choice_object, parse_tools, tool_objects
from agent.types import (
    Abilities,
    CallMode,
    Modality,
    SessionSettings,
    ToolChannel,
)

OPENAI_VOICES = frozenset(
    {"alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"}
    | {"marin", "nova", "onyx", "sage", "shimmer", "verse"}
)
"""Names that stock clients send by default: one that the engine has not got changes nothing."""

MAX_OUTPUT_TOKENS = 65_536
MODALITIES: tuple[Modality, ...] = ("audio", "text")
MODES: tuple[CallMode, ...] = ("duplex", "half_duplex")
CHANNELS: tuple[ToolChannel, ...] = ("native", "side")
SPEED = 1.0
"""Speech has the one pace of its voice."""


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
    session = Fields(current_spelling(document), "session")
    _check_type(session)
    _check_tolerated(session)
    audio = session.section("audio")
    changed = replace(
        base,
        instructions=session.text("instructions", base.instructions),
        output_modalities=parse_modalities(session, base.output_modalities, abilities),
        max_output_tokens=parse_token_limit(session, base.max_output_tokens),
        voice=_voice(audio.section("output"), base.voice, abilities, locked=voice_locked),
        output_format=parse_format(audio.section("output"), base.output_format),
    )
    changed = parse_input(audio.section("input"), changed)
    changed = _extension(session.section("voice_agent"), changed, abilities)
    return parse_tools(session, settle_eagerness(changed, base), abilities)


def session_object(
    settings: SessionSettings, abilities: Abilities, session_id: str
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
            "output": speech_output(settings) | {"speed": SPEED},
        },
        "tools": tool_objects(settings.tools),
        "tool_choice": choice_object(settings.tool_choice),
        "parallel_tool_calls": True,
        "max_output_tokens": token_limit(settings),
        "truncation": "auto",
        "voice_agent": _extension_object(settings, abilities),
    }


def speech_output(settings: SessionSettings) -> dict[str, object]:
    """`audio.output` of a session or a response: format, and the voice where one is set."""
    output: dict[str, object] = {"format": format_object(settings.output_format)}
    if settings.voice:
        output["voice"] = settings.voice
    return output


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


def is_foreign_voice(name: str, abilities: Abilities) -> bool:
    """Whether it is one of OpenAI's, which clients name by default."""
    return name in OPENAI_VOICES and name not in abilities.voices


# ---- reading ----------------------------------------------------------------------------------


def parse_token_limit(asked: Fields, base: int | None) -> int | None:
    """`max_output_tokens` of a session or a response; None for "inf": as the engine likes."""
    if asked.raw("max_output_tokens") == "inf":
        return None
    if not asked.has("max_output_tokens"):
        return base
    return asked.integer("max_output_tokens", least=1, most=MAX_OUTPUT_TOKENS)


def parse_modalities(
    asked: Fields, base: tuple[Modality, ...], abilities: Abilities
) -> tuple[Modality, ...]:
    """What is asked for; stock clients ask for sound even of an engine that has no voice."""
    if not asked.has("output_modalities"):
        return base
    param = asked.name("output_modalities")
    wanted = asked.items("output_modalities")
    for value in wanted:
        if value not in MODALITIES:
            raise wrong_type(param, "an array of 'audio' or 'text'", value)
    chosen = [modality for modality in MODALITIES if modality in wanted]
    if not chosen:
        raise RequestError(
            f"'{param}' is empty; use ['audio'] or ['text'].", param=param, code="invalid_value"
        )
    return tuple(chosen) if abilities.speech else ("text",)


def _check_type(session: Fields) -> None:
    if session.text("type", "realtime", most=256) != "realtime":
        raise RequestError(
            "'session.type' cannot be changed; use 'realtime'.",
            param="session.type",
            code="invalid_value",
        )


def _check_tolerated(session: Fields) -> None:
    """Fields that change nothing here still have to be of their type."""
    session.text("model", "", most=256)
    session.texts("include")
    session.number("temperature", 1.0, least=0, most=2)
    refuse_prompt(session)
    check_answering(session)
    _check_tracing(session)
    _check_truncation(session)
    audio = session.section("audio")
    noise = audio.section("input").section("noise_reduction")
    noise.choice("type", ("near_field", "far_field"), "near_field")
    audio.section("output").number("speed", SPEED, least=0.25, most=4.0)


def check_answering(asked: Fields) -> None:
    """What a session and a response have in common and what changes nothing."""
    asked.flag("parallel_tool_calls", True)
    asked.section("reasoning").text("effort", "", most=64)


def refuse_prompt(asked: Fields) -> None:
    """A prompt that is kept by OpenAI is not known here, and to go on without would be wrong."""
    if asked.has("prompt"):
        asked.section("prompt").text("id", most=256)
        raise UnsupportedError(
            "There are no stored prompts here; send the text as 'instructions'.",
            param=asked.name("prompt"),
        )


def _check_tracing(session: Fields) -> None:
    """Nothing is traced at a hosted service; `null` and "auto" are what most clients send."""
    if not isinstance(session.raw("tracing"), str):
        tracing = session.section("tracing")
        tracing.text("group_id", "", most=512)
        tracing.text("workflow_name", "", most=512)
        tracing.section("metadata")
        return
    session.choice("tracing", ("auto",), "auto")


def _check_truncation(session: Fields) -> None:
    """The engine forgets by rules of its own, which "auto" leaves to it."""
    if isinstance(session.raw("truncation"), str):
        session.choice("truncation", ("auto", "disabled"), "auto")
        return
    asked = session.section("truncation")
    asked.choice("type", ("retention_ratio",), "retention_ratio")
    asked.number("retention_ratio", 1.0, least=0, most=1)
    asked.section("token_limits").integer("post_instructions", 0, least=0, most=2**31)


def _voice(output: Fields, current: str, abilities: Abilities, *, locked: bool) -> str:
    param = output.name("voice")
    asked = voice_name(output)
    if asked is None or asked == current:
        return current
    if is_foreign_voice(asked, abilities) and (locked or abilities.voices):
        # Named by default, and perhaps only after an engine without voices has greeted.
        return current
    if abilities.voices and asked not in abilities.voices:
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


# ---- our extension ----------------------------------------------------------------------------


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
        tool_channel=_tool_channel(asked, settings.tool_channel, abilities),
    )


def _extension_object(settings: SessionSettings, abilities: Abilities) -> dict[str, object]:
    told: dict[str, object] = {
        "language": settings.language,
        "prompt_voice": settings.prompt_voice,
        "eagerness": settings.eagerness,
        "mode": settings.mode,
        "max_slices": settings.max_slices,
        "pictures_per_unit": settings.pictures_per_unit,
        "early_units": settings.early_units,
    }
    if abilities.tools or abilities.side_tools:
        told["tools"] = settings.tool_channel
    return told


def _tool_channel(asked: Fields, current: ToolChannel, abilities: Abilities) -> ToolChannel:
    """Who decides that a function is called."""
    channel = asked.choice("tools", CHANNELS, current)
    able = abilities.side_tools if channel == "side" else abilities.tools
    if channel != current and not able:
        other = "'native'" if abilities.tools else "'side'" if abilities.side_tools else "nothing"
        raise UnsupportedError(
            f"This engine does not call functions by {quoted(channel)}; it does by {other}.",
            param=asked.name("tools"),
        )
    return channel


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
