"""Texts read aloud, and the voices to do it with."""

from agent.api.chat_request import SEEDS
from agent.api.openapi.refusals import ACCESS, BODY, refusals
from agent.api.openapi.shapes import (
    JSON,
    Schema,
    answer,
    body,
    either,
    events,
    flag,
    listing,
    number,
    one_of,
    parameter,
    ref,
    reply,
    text,
    thing,
    whole,
)
from agent.api.speech import MOST_CHARACTERS, MOST_INSTRUCTIONS
from agent.media.speech_file import CONTENT_TYPES, SPEECH_FORMATS
from agent.settings import Config
from agent.vocoder.voice_store import MAX_ID_CHARACTERS
from agent.voices_shelf import MOST_CONSENT, MOST_NAME

FORM, STREAM = "multipart/form-data", "text/event-stream"


def paths(config: Config) -> dict[str, Schema]:
    """By path and method."""
    voice_id = text("As the list has it.", least=1, most=MAX_ID_CHARACTERS)
    voices = "/v1/audio/voices"
    return {
        "/v1/audio/speech": {"post": _speak()},
        voices: {"get": _list(), "post": _add(config)},
        f"{voices}/check": {"post": _check(config)},
        f"{voices}/{{id}}": {
            "parameters": [parameter("path", "id", voice_id)],
            "delete": _remove(),
        },
    }


def _speak() -> Schema:
    kinds = {kind.partition(";")[0]: _FILE for kind in CONTENT_TYPES.values()}
    return {
        "operationId": "createSpeech",
        "tags": ["Speech"],
        "summary": "Read a text aloud",
        "requestBody": body({JSON: ref("SpeechRequest")}),
        "responses": {
            "200": answer(
                "The sound, sent as it is made.", {**kinds, STREAM: events("OpenAI's events.")}
            ),
            **refusals(*BODY, *ACCESS, 500, 501, 503),
        },
    }


def _list() -> Schema:
    told = reply({"object": {"type": "string", "const": "list"}, "data": listing(ref("Voice"))})
    return {
        "operationId": "listVoices",
        "tags": ["Speech"],
        "summary": "The voices",
        "responses": {"200": answer("All of them.", {JSON: told}), **refusals(*ACCESS)},
    }


def _add(config: Config) -> Schema:
    form = _form(
        {
            "name": text(least=1, most=MOST_NAME),
            "consent": text("What the speaker agrees to, in a sentence.", most=MOST_CONSENT),
            "language": text("A code such as `en`."),
            "audio_sample": _FILE,
        },
        needs=("name", "consent", "audio_sample"),
    )
    return {
        "operationId": "addVoice",
        "tags": ["Speech"],
        "summary": "Clone a voice from a recording",
        "description": f"At most {config.voices.max_file_bytes:,} bytes "
        f"(`voices.max_file_bytes`) and {config.voices.max_recording_s:g} s "
        f"(`voices.max_recording_s`); {config.voices.max_voices} voices (`voices.max_voices`).",
        "requestBody": body({FORM: form}),
        "responses": {
            "200": answer("The voice, which is soon ready.", {JSON: ref("AddedVoice")}),
            **refusals(*BODY, *ACCESS, 500, 503),
        },
    }


def _check(config: Config) -> Schema:
    form = _form({"audio_sample": _FILE}, needs=("audio_sample",))
    return {
        "operationId": "checkRecording",
        "tags": ["Speech"],
        "summary": "Whether a voice could be cloned from a recording",
        "description": f"At most {config.voices.max_file_bytes:,} bytes (`voices.max_file_bytes`).",
        "requestBody": body({FORM: form}),
        "responses": {
            "200": answer("What was found out; nothing is kept.", {JSON: ref("Recording")}),
            **refusals(*BODY, *ACCESS, 503),
        },
    }


def _remove() -> Schema:
    told = reply(
        {
            "id": text(),
            "object": {"type": "string", "const": "audio.voice.deleted"},
            "deleted": {"type": "boolean", "const": True},
        }
    )
    return {
        "operationId": "deleteVoice",
        "tags": ["Speech"],
        "summary": "Delete a voice",
        "responses": {
            "200": answer("It is gone.", {JSON: told}),
            **refusals(400, 404, 500, 503, *ACCESS),
        },
    }


_FILE: Schema = {"type": "string", "format": "binary"}


def _form(properties: dict[str, Schema], *, needs: tuple[str, ...]) -> Schema:
    """No part of a form is null."""
    return {"type": "object", "properties": properties, "required": list(needs)}


_VOICE: dict[str, Schema] = {
    "id": text(),
    "object": {"type": "string", "const": "audio.voice"},
    "name": text(),
    "created_at": whole(0),
    "built_in": flag(),
    "status": one_of("stored", "prepared", "preparing", "ready", "failed"),
    "error": {"type": ["string", "null"]},
    "language": text(),
    "duration_s": number(0, 3600),
    "notes": listing(text()),
}

SCHEMAS: dict[str, Schema] = {
    "SpeechRequest": thing(
        {
            "input": text("What is read.", least=1, most=MOST_CHARACTERS),
            "model": text("Any: the server has one.", most=256),
            "voice": either(text(most=256), thing({"id": text(most=256)}, needs=("id",))),
            "instructions": text("Passed over.", most=MOST_INSTRUCTIONS),
            "speed": number(1, 1),
            "language": text(most=256),
            "response_format": one_of(*SPEECH_FORMATS),
            "stream_format": one_of("audio", "sse"),
            "seed": whole(-SEEDS, SEEDS - 1),
        },
        needs=("input",),
    ),
    "Voice": reply(_VOICE),
    "AddedVoice": reply({**_VOICE, "report": ref("Recording")}),
    "Recording": reply(
        {
            "accepted": flag(),
            "duration_s": number(0, 1e9),
            "rate_hz": whole(1),
            "channels": whole(1),
            "level_dbfs": {"type": "number"},
            "snr_db": number(0, 1e9),
            "clipped_share": number(0, 1),
            "speech_s": number(0, 1e9),
            "speech_share": number(0, 1),
            "findings": listing(
                reply(
                    {
                        "code": text(),
                        "severity": one_of("refused", "warning", "note"),
                        "message": text(),
                    }
                )
            ),
        }
    ),
}
