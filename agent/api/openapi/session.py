"""The session object, as clients send it and as they are told it."""

from agent.api.openapi.shapes import (
    Schema,
    either,
    flag,
    just,
    listing,
    maybe,
    number,
    one_of,
    ref,
    reply,
    text,
    thing,
    whole,
)
from agent.realtime.session_audio import EAGERNESS, FORMATS, KINDS
from agent.realtime.settings import CHANNELS, MAX_OUTPUT_TOKENS, MODALITIES, MODES
from agent.realtime.tools import MAX_TOOL_CHARS, MAX_TOOLS

_INFINITE = just("inf")


def _format() -> Schema:
    """Each kind has one rate."""
    kinds = [
        thing(
            {"type": just(kind), "rate": {"type": "integer", "const": rate}},
            needs=("type",) if kind != "audio/pcm" else (),
        )
        for kind, rate in FORMATS.items()
    ]
    return either(*kinds, about="Over WebRTC the SDP decides what is sent, and not this.")


def _detection() -> Schema:
    return thing(
        {
            "type": one_of(*KINDS),
            "threshold": number(0, 1, "Speech probability that counts as speech."),
            "prefix_padding_ms": whole(0, 5_000),
            "silence_duration_ms": whole(100, 10_000, "Silence that ends a turn."),
            "create_response": flag(),
            "interrupt_response": flag(),
            "eagerness": one_of(*EAGERNESS),
            "idle_timeout_ms": whole(1_000, 3_600_000),
        },
        about="null: the client commits and asks for responses itself.",
    )


def _voice() -> Schema:
    named = thing({"id": text(most=256)}, needs=("id",))
    return either(text(most=256), named, about="A voice of `/v1/audio/voices`, by its id.")


def _choice() -> Schema:
    named = thing({"type": just("function"), "name": text(most=256)}, needs=("type", "name"))
    return either(one_of("auto", "none", "required"), named)


_EXTENSION: dict[str, Schema] = {
    "language": text("Of the answers.", most=64),
    "prompt_voice": text("Id of the voice whose manner the model takes on.", most=256),
    "eagerness": number(0, 1, "Readiness to speak: 0 waits, 1 jumps in."),
    "mode": one_of(*MODES, description="`half_duplex` is deaf while the agent speaks."),
    "max_slices": whole(1, 9, "Into how many tiles a picture may be cut."),
    "pictures_per_unit": whole(0, 8, "Camera pictures for each second."),
    "early_units": flag("Do not wait for the end of the second."),
    "tools": one_of(
        *CHANNELS,
        description="Who decides that a function is called: the model in the conversation "
        "(`native`), or a chat beside it (`side`).",
    ),
}


def _extension() -> Schema:
    return thing(
        _EXTENSION,
        about="What OpenAI's session has no field for. Over a WebSocket the events of "
        "`voice_agent.` are sent once a client has set it, be it to `{}`.",
    )


def _function() -> Schema:
    return thing(
        {
            "type": just("function"),
            "name": text(least=1, most=64) | {"pattern": "^[a-zA-Z0-9_-]+$"},
            "description": text(most=MAX_TOOL_CHARS),
            "parameters": {"type": "object", "description": "A JSON schema."},
        },
        needs=("name",),
    )


def _given() -> Schema:
    audio_input = thing(
        {
            "format": ref("SoundFormat"),
            "transcription": thing(
                {
                    "model": text(most=256),
                    "language": text(most=64),
                    "prompt": text(most=16_384),
                },
                about="null: nobody writes down what the user says.",
            ),
            "turn_detection": ref("TurnDetection"),
            "noise_reduction": thing({"type": one_of("near_field", "far_field")}),
        }
    )
    audio_output = thing(
        {"format": ref("SoundFormat"), "voice": _voice(), "speed": number(0.25, 4)}
    )
    return thing(
        {
            "type": just("realtime"),
            "model": text("Any: the server has one.", most=256),
            "instructions": text("The system prompt.", most=100_000),
            "output_modalities": listing(one_of(*MODALITIES), least=1),
            "max_output_tokens": either(whole(1, MAX_OUTPUT_TOKENS), _INFINITE),
            "audio": thing({"input": audio_input, "output": audio_output}),
            "tools": listing(ref("SessionFunction"), most=MAX_TOOLS),
            "tool_choice": ref("ToolChoice"),
            "parallel_tool_calls": flag(),
            "include": listing(text(most=256)),
            "voice_agent": ref("SessionExtension"),
        },
        about="What is not named holds as it was; fields that are not known are passed over.",
    )


def _told() -> Schema:
    detection = {
        "type": one_of(*KINDS),
        "create_response": flag(),
        "interrupt_response": flag(),
        "threshold": number(0, 1),
        "prefix_padding_ms": whole(0),
        "silence_duration_ms": whole(0),
        "idle_timeout_ms": whole(0),
        "eagerness": one_of(*EAGERNESS),
    }
    needs = ("type", "create_response", "interrupt_response")
    audio_input = {
        "format": ref("SoundFormat"),
        "turn_detection": maybe(
            reply(detection, may_lack=[name for name in detection if name not in needs])
        ),
        "transcription": reply(
            {"model": text(), "language": text(), "prompt": text()},
            may_lack=("model", "language", "prompt"),
            about="Absent: nobody writes down what the user says.",
        ),
    }
    audio_output = {"format": ref("SoundFormat"), "speed": number(0.25, 4), "voice": text()}
    return reply(
        {
            "id": text(),
            "object": just("realtime.session"),
            "type": just("realtime"),
            "model": text(),
            "instructions": text(),
            "output_modalities": listing(one_of(*MODALITIES)),
            "audio": reply(
                {
                    "input": reply(audio_input, may_lack=("transcription",)),
                    "output": reply(audio_output, may_lack=("voice",)),
                }
            ),
            "tools": listing(ref("SessionFunction")),
            "tool_choice": ref("ToolChoice"),
            "parallel_tool_calls": flag(),
            "max_output_tokens": either(whole(1), _INFINITE),
            "truncation": text(),
            "voice_agent": reply(_EXTENSION, may_lack=("tools",)),
            "sample_rate_hz": whole(1, description="Of PCM that is appended (`?duplex=1`)."),
            "capabilities": _capabilities(),
        },
        may_lack=("sample_rate_hz", "capabilities"),
        about="The session in force.",
    )


def _capabilities() -> Schema:
    able = ("input_append", "barge_in", "audio_truncate", "multi_session")
    unable = ("session_lease", "session_resume")
    return reply(
        {
            "implementation_level": just("model_native_duplex"),
            "chunk_period_ms": whole(1, description="How often the model decides."),
            "input_modes": listing(text()),
            **{f"supports_{name}": flag() for name in (*able, *unable)},
        },
        may_lack=("implementation_level",),
        about="What vLLM-Omni's clients are told of the server (`?duplex=1`).",
    )


SCHEMAS: dict[str, Schema] = {
    "SoundFormat": _format(),
    "TurnDetection": _detection(),
    "SessionFunction": _function(),
    "ToolChoice": _choice(),
    "SessionExtension": _extension(),
    "Session": _given(),
    "SessionInForce": _told(),
}
