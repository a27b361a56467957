"""`audio.input` of the session object, and the formats of sound inside of events."""

from dataclasses import replace
from typing import Literal

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
KINDS: tuple[Literal["server_vad", "semantic_vad"], ...] = ("server_vad", "semantic_vad")
_READINESS: dict[Eagerness, float] = {"low": 0.25, "medium": 0.5, "high": 0.75, "auto": 0.5}
"""OpenAI's words as the agent's readiness to speak."""


def parse_input(asked: Fields, base: SessionSettings) -> SessionSettings:
    """`base` changed by `audio.input`.

    The eagerness of `semantic_vad` becomes the agent's readiness to speak when it changes.
    """
    detection = _turn_detection(asked, base.turn_detection)
    changed = replace(
        base,
        input_format=parse_format(asked, base.input_format),
        transcription=_transcription(asked, base.transcription),
        turn_detection=detection,
    )
    word = _semantic_eagerness(detection)
    if _semantic_eagerness(base.turn_detection) == word:
        return changed
    return replace(changed, eagerness=_READINESS[word])


def settle_eagerness(settings: SessionSettings, base: SessionSettings) -> SessionSettings:
    """`voice_agent.eagerness` counts: beside another number no word of `semantic_vad` is in force.

    What was so before stays so: a client may send back the session that it was given.
    """
    detection, word = settings.turn_detection, _semantic_eagerness(settings.turn_detection)
    same = (base.eagerness, _semantic_eagerness(base.turn_detection)) == (settings.eagerness, word)
    if same or detection is None or word == "auto" or _READINESS[word] == settings.eagerness:
        return settings
    return replace(settings, turn_detection=replace(detection, eagerness="auto"))


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


def _turn_detection(asked: Fields, base: TurnDetection | None) -> TurnDetection | None:
    if asked.is_null("turn_detection"):
        return None
    if not asked.has("turn_detection"):
        return base
    wanted = asked.section("turn_detection")
    kind = wanted.choice("type", KINDS, base.kind if base is not None else "server_vad")
    old = base if base is not None and base.kind == kind else TurnDetection()
    eagerness = wanted.choice("eagerness", EAGERNESS, old.eagerness)
    return TurnDetection(
        kind=kind,
        threshold=wanted.number("threshold", old.threshold, least=0, most=1),
        prefix_padding_ms=wanted.integer(
            "prefix_padding_ms", old.prefix_padding_ms, least=0, most=5_000
        ),
        silence_duration_ms=wanted.integer(
            "silence_duration_ms", old.silence_duration_ms, least=100, most=10_000
        ),
        create_response=wanted.flag("create_response", old.create_response),
        interrupt_response=wanted.flag("interrupt_response", old.interrupt_response),
        eagerness=eagerness if kind == "semantic_vad" else "auto",
        idle_timeout_ms=_idle_timeout_ms(wanted, old) if kind == "server_vad" else None,
    )


def _idle_timeout_ms(wanted: Fields, old: TurnDetection) -> int | None:
    """Null switches it off, as does its absence in a session that had none."""
    if wanted.is_null("idle_timeout_ms"):
        return None
    if not wanted.has("idle_timeout_ms"):
        return old.idle_timeout_ms
    return wanted.integer("idle_timeout_ms", least=1_000, most=3_600_000)


def _semantic_eagerness(detection: TurnDetection | None) -> Eagerness:
    return detection.eagerness if detection is not None else "auto"


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
    if detection.idle_timeout_ms is not None:
        told["idle_timeout_ms"] = detection.idle_timeout_ms
    return told | {
        "threshold": detection.threshold,
        "prefix_padding_ms": detection.prefix_padding_ms,
        "silence_duration_ms": detection.silence_duration_ms,
    }
