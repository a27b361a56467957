"""`audio.input` of the session object, and the formats of sound inside of events."""

from dataclasses import replace

from agent.errors import RequestError
from agent.realtime.fields import Fields, quoted
from agent.types import (
    Eagerness,
    SessionSettings,
    SoundFormat,
    Transcription,
    TurnDetection,
)

FORMATS: dict[SoundFormat, int] = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
"""Each with its one rate in Hz."""
EAGERNESS: tuple[Eagerness, ...] = ("low", "medium", "high", "auto")


def parse_input(asked: Fields, base: SessionSettings) -> SessionSettings:
    """`base` changed by `audio.input`."""
    return replace(
        base,
        input_format=parse_format(asked, base.input_format),
        transcription=_transcription(asked, base.transcription),
        turn_detection=_turn_detection(asked, base.turn_detection),
    )


def parse_format(asked: Fields, base: SoundFormat) -> SoundFormat:
    """The `format` of an input or output; `RequestError` for one that is not known.

    Over WebRTC it is checked and told back, but the SDP decides what is sent.
    """
    if not asked.has("format"):
        return base
    wanted = asked.section("format")
    kind = wanted.choice("type", tuple(FORMATS), "audio/pcm")
    rate_hz = FORMATS[kind]
    if wanted.integer("rate", rate_hz, least=0, most=10_000_000) != rate_hz:
        raise RequestError(
            f"The rate of {quoted(kind)} is {rate_hz} Hz here; convert it, or leave 'rate' out.",
            param=wanted.name("rate"),
            code="invalid_value",
        )
    return kind


def format_object(kind: SoundFormat) -> dict[str, object]:
    """A format in OpenAI's shape: only PCM names its rate."""
    return {"type": kind} | ({"rate": FORMATS[kind]} if kind == "audio/pcm" else {})


def input_object(settings: SessionSettings) -> dict[str, object]:
    """`audio.input` as it is in force; without `transcription` nobody writes anything down."""
    told: dict[str, object] = {
        "format": format_object(settings.input_format),
        "turn_detection": _detection_object(settings.turn_detection),
    }
    if settings.transcription is not None:
        told["transcription"] = _transcription_object(settings.transcription)
    return told


# ---- transcription ----------------------------------------------------------------------------


def _transcription(asked: Fields, base: Transcription | None) -> Transcription | None:
    if asked.is_null("transcription"):
        return None
    if not asked.has("transcription"):
        return base
    wanted, old = asked.section("transcription"), base or Transcription()
    return Transcription(
        model=wanted.text("model", old.model, most=256),
        language=wanted.text("language", old.language, most=64),
        prompt=wanted.text("prompt", old.prompt, most=16_384),
    )


def _transcription_object(transcription: Transcription) -> dict[str, object]:
    fields = ("model", "language", "prompt")
    told = ((name, getattr(transcription, name)) for name in fields)
    return {name: value for name, value in told if value}


# ---- turn detection ---------------------------------------------------------------------------


def _turn_detection(audio_input: Fields, base: TurnDetection | None) -> TurnDetection | None:
    if audio_input.is_null("turn_detection"):
        return None
    if not audio_input.has("turn_detection"):
        return base
    asked = audio_input.section("turn_detection")
    kind = asked.choice(
        "type", ("server_vad", "semantic_vad"), base.kind if base is not None else "server_vad"
    )
    old = base if base is not None and base.kind == kind else TurnDetection()
    asked.integer("idle_timeout_ms", 0, least=0, most=3_600_000)
    return TurnDetection(
        kind="semantic_vad" if kind == "semantic_vad" else "server_vad",
        threshold=asked.number("threshold", old.threshold, least=0, most=1),
        prefix_padding_ms=asked.integer(
            "prefix_padding_ms", old.prefix_padding_ms, least=0, most=5_000
        ),
        silence_duration_ms=asked.integer(
            "silence_duration_ms", old.silence_duration_ms, least=100, most=10_000
        ),
        create_response=asked.flag("create_response", old.create_response),
        interrupt_response=asked.flag("interrupt_response", old.interrupt_response),
        eagerness=asked.choice("eagerness", EAGERNESS, old.eagerness),
    )


def _detection_object(detection: TurnDetection | None) -> dict[str, object] | None:
    if detection is None:
        return None
    told: dict[str, object] = {
        "type": detection.kind,
        "create_response": detection.create_response,
        "interrupt_response": detection.interrupt_response,
    }
    if detection.kind == "semantic_vad":
        return told | {"eagerness": detection.eagerness}
    return told | {
        "threshold": detection.threshold,
        "prefix_padding_ms": detection.prefix_padding_ms,
        "silence_duration_ms": detection.silence_duration_ms,
    }
