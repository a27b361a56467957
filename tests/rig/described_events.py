"""Is an event what `/openapi.json` says that events are? Nothing lacks, and nothing is extra."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jsonschema_rs import Draft202012Validator

from agent.api.openapi import EVENTS, document
from agent.config import Config


def strays(event: Mapping[str, Any], side: str = "server") -> list[str]:
    """What of the event is not as it is described, a line for each; none: all is well."""
    schema = EVENTS[side].get(event["type"])
    if schema is None:
        return [f"{event['type']} is not described"]
    found = _validator(side, event["type"]).iter_errors(event)
    return [f"{event['type']}: {error.instance_path}: {error.message}" for error in found]


def top_fields(events: Iterable[Mapping[str, Any]]) -> dict[str, list[set[str]]]:
    """The fields of each event, by its type."""
    found: dict[str, list[set[str]]] = {}
    for event in events:
        found.setdefault(event["type"], []).append(set(event))
    return found


@cache
def _validator(side: str, kind: str) -> Draft202012Validator:
    components = document(Config())["components"]
    return Draft202012Validator(_closed(EVENTS[side][kind] | {"components": components}))


def _closed(schema: Any) -> Any:
    """The schema with no room for fields that it does not name, however deep."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict):
        closed["additionalProperties"] = False
    return closed
