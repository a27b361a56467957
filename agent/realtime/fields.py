"""Reading a client's JSON object field by field, naming what is wrong by its dotted path.

Everywhere `null` counts as absent; where it means something, ask `is_null` first.
"""

import math
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import TypeGuard, TypeVar

from agent.errors import RequestError

MAX_BASE64_CHARS = 32 * 1024 * 1024
"""Far above what a transport takes in one message; its own limits come first."""

Choice = TypeVar("Choice", bound=str)
Value = TypeVar("Value")


class Fields:
    """A JSON object at `path`; every read checks the type and the range of one field."""

    __slots__ = ("_object", "path")

    def __init__(self, document: object, path: str = "") -> None:
        if not isinstance(document, Mapping):
            raise wrong_type(path or "event", "an object", document)
        self._object: Mapping[str, object] = document
        self.path = path

    def name(self, field: str) -> str:
        """The dotted path of `field`, as `param` of an error."""
        return f"{self.path}.{field}" if self.path else field

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self._object.get(field) is not None

    def is_null(self, field: str) -> bool:
        """Whether the field is there and null."""
        return field in self._object and self._object[field] is None

    def raw(self, field: str) -> object:
        """The value as it came; None when absent."""
        return self._object.get(field)

    def section(self, field: str) -> "Fields":
        """The object in `field`; an empty one when absent."""
        value = self._object.get(field)
        return Fields({} if value is None else value, self.name(field))

    def mapping(self, field: str) -> Mapping[str, object]:
        """The object in `field` as it came; an empty one when absent."""
        return self.section(field)._object

    def without(self, *fields: str) -> dict[str, object]:
        """The object as it came, less `fields`."""
        return {name: value for name, value in self._object.items() if name not in fields}

    def text(self, field: str, default: str | None = None, *, most: int = 100_000) -> str:
        """A string of at most `most` characters; required when there is no default."""
        value = self._object.get(field)
        if value is None:
            return self._or_missing(field, default)
        if not isinstance(value, str):
            raise wrong_type(self.name(field), "a string", value)
        if len(value) > most:
            raise RequestError(
                f"'{self.name(field)}' has {len(value)} characters; shorten it to {most}.",
                param=self.name(field),
                code="string_above_max_length",
            )
        return value

    def base64(self, field: str) -> bytes:
        """What base64 text stands for, at least one byte; required."""
        return decoded(self.text(field, most=MAX_BASE64_CHARS), self.name(field))

    def flag(self, field: str, default: bool | None = None) -> bool:
        """A boolean; required when there is no default."""
        value = self._object.get(field)
        if value is None:
            return self._or_missing(field, default)
        if not isinstance(value, bool):
            raise wrong_type(self.name(field), "true or false", value)
        return value

    def number(
        self, field: str, default: float | None = None, *, least: float, most: float
    ) -> float:
        """A number in `least`..`most`; required when there is no default."""
        value = self._object.get(field)
        if value is None:
            return self._or_missing(field, default)
        if not _is_number(value):
            raise wrong_type(self.name(field), "a number", value)
        if not least <= value <= most:
            raise out_of_range(self.name(field), f"{least:g} to {most:g}", value)
        return float(value)

    def any_number(self, field: str) -> int | float:
        """A number as it came, however large or odd; NaN for all else. Never an error."""
        value = self._object.get(field)
        return value if _is_number(value) else math.nan

    def integer(self, field: str, default: int | None = None, *, least: int, most: int) -> int:
        """A whole number in `least`..`most`; required when there is no default."""
        whole = self.number(field, default, least=least, most=most)
        if whole != int(whole):
            raise wrong_type(self.name(field), "a whole number", whole)
        return int(whole)

    def choice(self, field: str, options: Sequence[Choice], default: Choice) -> Choice:
        """One of `options`."""
        value = self.text(field, default, most=256)
        for option in options:
            if option == value:
                return option
        raise RequestError(
            f"Invalid value {quoted(value)} for '{self.name(field)}'; use one of: "
            + ", ".join(options)
            + ".",
            param=self.name(field),
            code="invalid_value",
        )

    def items(self, field: str) -> Sequence[object]:
        """An array; empty when absent."""
        value = self._object.get(field)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise wrong_type(self.name(field), "an array", value)
        return value

    def texts(self, field: str, *, most: int = 256) -> list[str]:
        """An array of strings of at most `most` characters; empty when absent."""
        values = self.items(field)
        for index, value in enumerate(values):
            if not isinstance(value, str) or len(value) > most:
                wanted = f"a string of at most {most} characters"
                raise wrong_type(f"{self.name(field)}[{index}]", wanted, value)
        return [str(value) for value in values]

    def objects(self, field: str) -> "list[Fields]":
        """An array of objects; empty when absent."""
        return [
            Fields(value, f"{self.name(field)}[{index}]")
            for index, value in enumerate(self.items(field))
        ]

    def _or_missing(self, field: str, default: Value | None) -> Value:
        if default is None:
            raise RequestError(
                f"Missing required parameter: '{self.name(field)}'.",
                param=self.name(field),
                code="missing_required_parameter",
            )
        return default


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decoded(text: str, param: str) -> bytes:
    """What the base64 in `param` stands for, at least one byte; `RequestError`."""
    try:
        data = b64decode(text, validate=True)
    except ValueError as error:
        raise RequestError(
            f"The base64 of '{param}' is damaged.", param=param, code="invalid_value"
        ) from error
    if not data:
        raise RequestError(
            f"'{param}' is empty; send it in base64.", param=param, code="invalid_value"
        )
    return data


def wrong_type(param: str, wanted: str, value: object) -> RequestError:
    """The field `param` holds something else than `wanted`."""
    return RequestError(
        f"Invalid type for '{param}': expected {wanted}, got {json_kind(value)}.",
        param=param,
        code="invalid_type",
    )


def out_of_range(param: str, wanted: str, value: object) -> RequestError:
    """The field `param` holds a number outside of `wanted`."""
    return RequestError(
        f"Invalid value {quoted(value)} for '{param}'; use {wanted}.",
        param=param,
        code="invalid_value",
    )


def quoted(value: object) -> str:
    """A value as an error message shows it: at most 64 characters."""
    shown = repr(value)
    return shown if len(shown) <= 64 else shown[:60] + "...'"


def json_kind(value: object) -> str:
    """What JSON calls the kind of `value`."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), (str, "a string"), (int | float, "a number"), (list, "an array"))
    for kind, name in kinds:
        if isinstance(value, kind):
            return name
    return "an object"
