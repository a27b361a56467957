"""Older and other spellings of the session object and of `response.create`, put into today's.

| sent | read as |
|---|---|
| `modalities` | `output_modalities` |
| `max_response_output_tokens` | `max_output_tokens` |
| `voice`, `speed` | `audio.output.voice`, `.speed` |
| `input_audio_format`, `output_audio_format`: `pcm16`, `g711_ulaw`, `g711_alaw` | `audio.input.format`, `audio.output.format` |
| `turn_detection` | `audio.input.turn_detection` |
| `input_audio_transcription` | `audio.input.transcription` |
| `input_audio_noise_reduction` | `audio.input.noise_reduction` |
| `sample_rate_hz`, `audio.input.sample_rate_hz` (vLLM-Omni) | `audio.input.format.rate` |
| `audio.output.sample_rate_hz` (vLLM-Omni) | `audio.output.format.rate` |

OpenAI's beta had all but the last two; what is sent in today's spelling, too, counts. Errors name
today's field. `temperature`, which is no field any more, is passed over. `session.update` may carry
its fields without `session` around them (vLLM).
"""  # noqa: E501

from collections.abc import Mapping
from typing import TypeAlias

_Object: TypeAlias = dict[str, object]
_Path: TypeAlias = tuple[str, ...]

_MOVED: dict[_Path, _Path] = {
    ("modalities",): ("output_modalities",),
    ("max_response_output_tokens",): ("max_output_tokens",),
    ("voice",): ("audio", "output", "voice"),
    ("speed",): ("audio", "output", "speed"),
    ("turn_detection",): ("audio", "input", "turn_detection"),
    ("input_audio_transcription",): ("audio", "input", "transcription"),
    ("input_audio_noise_reduction",): ("audio", "input", "noise_reduction"),
}
_FORMATS: dict[_Path, _Path] = {
    ("input_audio_format",): ("audio", "input", "format"),
    ("output_audio_format",): ("audio", "output", "format"),
}
_RATES: dict[_Path, _Path] = {
    ("sample_rate_hz",): ("audio", "input", "format", "rate"),
    ("audio", "input", "sample_rate_hz"): ("audio", "input", "format", "rate"),
    ("audio", "output", "sample_rate_hz"): ("audio", "output", "format", "rate"),
}
_CODES = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_NOTHING = object()


def current_spelling(document: object) -> object:
    """`document` in today's spelling; itself where there is nothing to change."""
    if not isinstance(document, Mapping):
        return document
    told: _Object = dict(document)
    for old, new in _MOVED.items():
        _put(told, new, _value(document, old))
    for old, new in _FORMATS.items():
        kind = _value(document, old)
        _put(told, new, {"type": _CODES.get(kind, kind)} if isinstance(kind, str) else kind)
    for old, new in _RATES.items():
        _put(told, new, _value(document, old))
    return told


def _value(document: object, path: _Path) -> object:
    for name in path:
        if not isinstance(document, Mapping) or name not in document:
            return _NOTHING
        document = document[name]
    return document


def _put(told: _Object, path: _Path, value: object) -> None:
    """Set `path`, its objects copied, unless it is set or something else is in the way."""
    if value is _NOTHING:
        return
    *way, last = path
    for name in way:
        inner = told.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            return
        copied: _Object = dict(inner or {})
        told[name] = copied
        told = copied
    told.setdefault(last, value)
