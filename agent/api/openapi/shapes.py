"""Words in which the document is written: JSON schemas, and the parts of an operation."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

JSON = "application/json"
HALF_LETTERS = "^[^\\ud800-\\udfff]*$"


# ---- schemas ----------------------------------------------------------------------------------


def text(description: str = "", *, least: int = 0, most: int | None = None) -> Schema:
    """A string."""
    schema = _described({"type": "string"}, description)
    if least:
        schema["minLength"] = least
    if most is not None:
        schema["maxLength"] = most
    return schema


def number(least: float, most: float, description: str = "") -> Schema:
    """A number within bounds."""
    return _described({"type": "number", "minimum": least, "maximum": most}, description)


def whole(least: int, most: int | None = None, description: str = "") -> Schema:
    """A whole number within bounds."""
    schema: Schema = {"type": "integer", "minimum": least}
    return _described(schema if most is None else schema | {"maximum": most}, description)


def flag(description: str = "") -> Schema:
    """true or false."""
    return _described({"type": "boolean"}, description)


def one_of(*values: str, description: str = "") -> Schema:
    """One of some words."""
    return _described({"type": "string", "enum": list(values)}, description)


def just(word: str) -> Schema:
    """This word and no other."""
    return {"type": "string", "const": word}


def listing(items: Schema, *, least: int = 0, most: int | None = None, about: str = "") -> Schema:
    """An array."""
    schema = _described({"type": "array", "items": items}, about)
    if least:
        schema["minItems"] = least
    if most is not None:
        schema["maxItems"] = most
    return schema


def thing(
    properties: Mapping[str, Schema], *, needs: Sequence[str] = (), about: str = ""
) -> Schema:
    """An object of a request: fields that are not named are passed over, null is absent."""
    told = {name: each if name in needs else maybe(each) for name, each in properties.items()}
    schema = _described({"type": "object", "properties": told}, about)
    return schema | ({"required": list(needs)} if needs else {})


def reply(
    properties: Mapping[str, Schema], *, may_lack: Sequence[str] = (), about: str = ""
) -> Schema:
    """An object of an answer: it has these fields and no others."""
    needs = [name for name in properties if name not in may_lack]
    schema = _described({"type": "object", "properties": dict(properties)}, about)
    return schema | {"required": needs, "additionalProperties": False}


def events(description: str) -> Schema:
    """Server-sent events, each with its `data`."""
    return _described({"type": "object", "properties": {"data": text()}}, description)


def either(*schemas: Schema, about: str = "") -> Schema:
    """What fits one of them."""
    return _described({"anyOf": list(schemas)}, about)


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    kind = schema.get("type")
    if isinstance(kind, str):
        more: Schema = {"type": [kind, "null"]}
        if isinstance(words := schema.get("enum"), list):
            more["enum"] = [*words, None]
        return schema | more
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Schema:
    """A schema of the document, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _described(schema: Schema, description: str) -> Schema:
    return schema | ({"description": description} if description else {})


# ---- operations -------------------------------------------------------------------------------


def body(kinds: Mapping[str, Schema], *, required: bool = True) -> Schema:
    """A request's body, by its content types."""
    return {"required": required, "content": {kind: media(each) for kind, each in kinds.items()}}


def media(schema: Schema) -> Schema:
    """What a body of one content type holds; `example` of the schema becomes that of the body."""
    rest = {name: value for name, value in schema.items() if name != "example"}
    return {"schema": rest} | ({"example": schema["example"]} if "example" in schema else {})


def answer(
    description: str,
    kinds: Mapping[str, Schema] | None = None,
    headers: Mapping[str, Schema] | None = None,
) -> Schema:
    """A response: its bodies by content type, and its headers."""
    told: Schema = {"description": description}
    if kinds:
        told["content"] = {kind: media(each) for kind, each in kinds.items()}
    if headers:
        told["headers"] = dict(headers)
    return told


def header(description: str, pattern: str = "", *, always: bool = True) -> Schema:
    """A header of a response."""
    schema: Schema = {"type": "string"} | ({"pattern": pattern} if pattern else {})
    return {"description": description, "required": always, "schema": schema}


def parameter(place: str, name: str, schema: Schema, *, required: bool = False) -> Schema:
    """A parameter in "path", "query" or "header"."""
    about = schema.get("description", "")
    rest = {key: value for key, value in schema.items() if key != "description"}
    needed = required or place == "path"
    return {"in": place, "name": name, "required": needed, "description": about, "schema": rest}
