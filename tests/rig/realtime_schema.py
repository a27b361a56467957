"""Is a server event what OpenAI's types say, to the letter? And are they in the documented order?

Stricter than the SDK: no type coercion, no unknown field, no unknown `type`, and null only where
it means something (a stock client silently drops an event with a null it does not expect). And it
is exactly what `/docs` says that it is.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tests.rig.described_events import strays
from tests.rig.realtime_order import OrderError, check_order

__all__ = ["OrderError", "SchemaError", "check_event", "check_events", "check_order"]


class SchemaError(AssertionError):
    """A server event that a strict client would not understand."""


class _Ours(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: str
    event_id: str


class _State(_Ours):
    state: Literal["listening", "speaking", "paused", "queued"]
    turn: int


class _Unit(_Ours):
    unit: int
    stage_ms: dict[str, float]
    context_tokens: int


class _Echo(_Ours):
    erle_db: float
    delay_ms: float


class _Latency(_Ours):
    turn: int
    first_sound_ms: float


class _AtTurn(_Ours):
    turn: int
    at_ms: int


class _Played(BaseModel):
    model_config = ConfigDict(extra="forbid")
    item_id: str
    response_id: str
    played_ms: int
    committed_ms: int
    truncate: bool


class _Acknowledged(_Ours):
    event: _Played


class _Tool(_Ours):
    call_id: str
    name: str
    decided_ms: float


class _OfSession(_Ours):
    session_id: str


class _Why(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["session.closed"]
    reason: str


class _Ended(_OfSession):
    reason: str


class _Closed(_Ended):
    event: _Why


class _Listen(_OfSession):
    epoch: int
    response: dict[str, Any]


class _Speak(_Ours):
    response_id: str
    item_id: str
    output_index: int
    content_index: int
    metadata: dict[str, Any]


class _Overlap(_OfSession):
    epoch: int
    policy: str
    action: Literal["drop", "listen", "barge_in"]
    reason: str
    metadata: dict[str, Any]


def _openai_models() -> dict[str, TypeAdapter[Any]]:
    """One adapter for each `type`, taken out of the SDK's union."""
    union = get_args(RealtimeServerEvent)[0]
    return {
        get_args(model.model_fields["type"].annotation)[0]: TypeAdapter(model)
        for model in get_args(union)
    }


MODELS: dict[str, TypeAdapter[Any]] = _openai_models() | {
    "voice_agent.state": TypeAdapter(_State),
    "voice_agent.unit": TypeAdapter(_Unit),
    "voice_agent.echo": TypeAdapter(_Echo),
    "voice_agent.latency": TypeAdapter(_Latency),
    "voice_agent.ducked": TypeAdapter(_AtTurn),
    "voice_agent.resumed": TypeAdapter(_AtTurn),
    "voice_agent.tool": TypeAdapter(_Tool),
    "playback.acknowledged": TypeAdapter(_Acknowledged),
}
FOR_OMNI: dict[str, TypeAdapter[Any]] = {
    "response.listen": TypeAdapter(_Listen),
    "response.speak": TypeAdapter(_Speak),
    "overlap.decision": TypeAdapter(_Overlap),
    "session.expired": TypeAdapter(_Ended),
}
"""For those alone who connected by `?duplex=1`."""
OMNI_MODELS: dict[str, TypeAdapter[Any]] = FOR_OMNI | {
    "session.heartbeat_ack": TypeAdapter(_OfSession),
    "session.closed": TypeAdapter(_Closed),
}
MODELS |= OMNI_MODELS

EXTRA_FIELDS = {
    "session": {"id", "object", "voice_agent"},
}
OMNI_FIELDS = {"session": EXTRA_FIELDS["session"] | {"sample_rate_hz", "capabilities"}}
"""What our objects, or OpenAI's own server, hold beyond the SDK's types; by the field's name."""

MEANINGFUL_NULLS = {
    "previous_item_id": "the item is the first",
    "turn_detection": "off",
    "noise_reduction": "off",
    "conversation_id": "the response is out of band",
    "status_details": "there are none; pipecat's types require the field",
}
NULL_TRANSCRIPT = "user speech that is not written down; stock clients require the field"


def check_event(event: object, *, is_omni: bool = False) -> dict[str, Any]:
    """The event itself, if it is right to the letter; else `SchemaError`. `is_omni`: its client
    connected by `?duplex=1`."""
    if not isinstance(event, Mapping):
        raise SchemaError(f"not an object: {event!r}")
    kind = event.get("type")
    model = MODELS.get(kind) if isinstance(kind, str) else None
    if model is None or (kind in FOR_OMNI and not is_omni):
        raise SchemaError(f"unknown type {kind!r}")
    event_id = event.get("event_id")
    if not isinstance(event_id, str) or not event_id.startswith("event_"):
        raise SchemaError(f"{kind}: no event_id: {event_id!r}")
    text = json.dumps(event, allow_nan=False)
    try:
        parsed = model.validate_json(text, strict=True)
    except ValueError as error:
        raise SchemaError(f"{kind}: {error}") from error
    _check_nulls(dict(event), kind)
    _check_extras(parsed, kind, "", OMNI_FIELDS if is_omni else EXTRA_FIELDS)
    _check_content(event)
    if undescribed := strays(event):
        raise SchemaError("; ".join(undescribed))
    return dict(event)


def check_events(events: Iterable[object], *, is_omni: bool = False) -> list[dict[str, Any]]:
    """All of them, checked one by one; their ids are unique."""
    checked = [check_event(event, is_omni=is_omni) for event in events]
    ids = [event["event_id"] for event in checked]
    if len(set(ids)) != len(ids):
        raise SchemaError("two events share an event_id")
    return checked


def _check_nulls(value: object, path: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if inner is None and not _may_be_null(value, name):
                raise SchemaError(f"{path}.{name} is null; leave it out")
            _check_nulls(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            _check_nulls(inner, f"{path}[]")


def _may_be_null(parent: Mapping[str, object], name: str) -> bool:
    if name == "transcript":
        return parent.get("type") == "input_audio"
    return name in MEANINGFUL_NULLS


def _check_extras(value: object, path: str, name: str, known: Mapping[str, set[str]]) -> None:
    if isinstance(value, BaseModel):
        unknown = set(value.model_extra or {}) - known.get(name, set())
        if unknown:
            raise SchemaError(f"{path}: unknown fields {sorted(unknown)}")
        for field, inner in value:
            if field not in (value.model_extra or {}):
                _check_extras(inner, f"{path}.{field}", field, known)
    elif isinstance(value, list):
        for inner in value:
            _check_extras(inner, f"{path}[]", name, known)


def _check_content(event: Mapping[str, Any]) -> None:
    """What stock clients require beyond the types, found in their schemas."""
    item = event.get("item")
    if not isinstance(item, Mapping) or item.get("type") != "message":
        return
    for field in ("id", "status", "content"):
        if field not in item:
            raise SchemaError(f"{event['type']}: item without {field}")
    for part in item["content"]:
        wanted = "transcript" if "audio" in part["type"] else "text"
        if part["type"] != "input_image" and wanted not in part:
            raise SchemaError(f"{event['type']}: {part['type']} without {wanted}")
