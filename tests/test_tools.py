"""Functions with `@tool`: what the model is told of them, how they are called, what comes back."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agent.errors import ConfigError
from agent.tools import ServerTool, ToolContext, ToolError, result_text, tool, tool_of

HERE = ToolContext("rtc_1", "kiosk")


def made(function: object) -> ServerTool:
    found = tool_of(function)
    assert found is not None
    return found


def schema(function: object) -> Any:
    return json.loads(made(function).definition.parameters)


@tool
def opening_hours(
    day: str, holiday: bool = False, floor: Annotated[int, "Which floor."] = 0
) -> str:
    """When the shop is open.

    Asked for every hour.

    Args:
        day (str): The day of the week,
            in English.
        holiday: Whether it is one.

    Returns:
        hours: The hours.
    """
    return f"{day} {holiday} {floor}"


class Address(BaseModel):
    """Where to."""

    street: str
    number: int


def test_the_model_is_told_what_name_types_and_docstring_say() -> None:
    told = made(opening_hours).definition
    assert told.name == "opening_hours"
    assert told.description == "When the shop is open.\n\nAsked for every hour."
    assert schema(opening_hours) == {
        "type": "object",
        "additionalProperties": False,
        "required": ["day"],
        "properties": {
            "day": {"type": "string", "description": "The day of the week, in English."},
            "holiday": {"type": "boolean", "default": False, "description": "Whether it is one."},
            "floor": {"type": "integer", "default": 0, "description": "Which floor."},
        },
    }


def test_the_function_itself_stays_as_it_is() -> None:
    assert opening_hours("Monday", floor=2) == "Monday False 2"


def test_types_become_a_schema_whatever_the_parameters_are_called() -> None:
    @tool(name="send-it", description="Sends.", timeout_s=2.5)
    def send(
        json: Address,
        copy: Literal["by post", "by mail"],
        model_config: list[int] | None = None,
        _urgency: Annotated[float, Field(ge=0, le=1, description="0 to 1")] = 0.5,
    ) -> None:
        """Something else."""

    sends = made(send)
    assert (sends.name, sends.definition.description, sends.timeout_s) == (
        "send-it",
        "Sends.",
        2.5,
    )
    told = schema(send)
    assert list(told["properties"]) == ["json", "copy", "model_config", "_urgency"]
    assert told["required"] == ["json", "copy"]
    assert told["properties"]["copy"]["enum"] == ["by post", "by mail"]
    assert told["properties"]["_urgency"]["maximum"] == 1
    assert told["$defs"]["Address"]["required"] == ["street", "number"]
    read = sends.read('{"json": {"street": "A", "number": "7"}, "copy": "by post"}', HERE)
    assert read == {
        "json": Address(street="A", number=7),
        "copy": "by post",
        "model_config": None,
        "_urgency": 0.5,
    }


def test_arguments_are_read_into_their_types_and_the_context_is_filled_in() -> None:
    @tool
    def order(amount: int, who: ToolContext) -> str:
        """Orders."""
        return f"{amount} for {who.key} in {who.call_id}"

    assert set(schema(order)["properties"]) == {"amount"}
    assert order(**made(order).read('{"amount": "3"}', HERE)) == "3 for kiosk in rtc_1"


def test_no_arguments_may_come_as_no_text() -> None:
    @tool
    def now() -> str:
        return "noon"

    assert made(now).read("", HERE) == {}
    assert schema(now)["properties"] == {}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("{}", "day: Field required"),
        ('{"day": "Monday", "hour": 3}', "hour: Extra inputs are not permitted"),
        ('{"day": "Monday", "floor": "up"}', "floor: Input should be a valid integer"),
        ('{"day": ', "Invalid JSON"),
        ("[]", "Input should be"),
    ],
)
def test_wrong_arguments_are_said_in_words_for_the_model(arguments: str, fault: str) -> None:
    with pytest.raises(ToolError, match="opening_hours was called wrongly") as caught:
        made(opening_hours).read(arguments, HERE)
    assert fault in str(caught.value)


@dataclass
class Hours:
    opens: str
    closes: str


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("nine", "nine"),
        (None, "done"),
        ({"open": [9, 17]}, '{"open":[9,17]}'),
        (Hours("9", "17"), '{"opens":"9","closes":"17"}'),
        (Address(street="Höhe", number=1), '{"street":"Höhe","number":1}'),
        ("half \ud800", "half ?"),
    ],
)
def test_results_are_text_or_json(result: object, text: str) -> None:
    assert result_text(result) == text


def test_a_result_that_is_no_json_is_an_error_for_the_model() -> None:
    round_trip: list[object] = []
    round_trip.append(round_trip)
    for result in (object(), round_trip):
        with pytest.raises(ToolError, match="cannot be written as JSON"):
            result_text(result)


def _untyped(day) -> str:  # type: ignore[no-untyped-def]
    return str(day)


def _unnamed(*days: str) -> str:
    return " ".join(days)


def _many(**days: str) -> str:
    return " ".join(days)


def _by_place(day: str, /) -> str:
    return day


def _odd(day: re.Scanner) -> str:  # type: ignore[name-defined]
    return str(day)


def _unknown(day: "Weekday") -> str:  # type: ignore[name-defined]  # noqa: F821
    return str(day)


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (_untyped, "the parameter 'day' has no type"),
        (_unnamed, r"name each parameter, '\*days: str'"),
        (_many, r"name each parameter, '\*\*days: str'"),
        (_by_place, "name each parameter"),
        (_unknown, "types cannot be read: name 'Weekday' is not defined"),
        (_odd, "@tool _odd"),
        (lambda: "", "'<lambda>' cannot be the name of a function"),
        (Hours, "is no function"),
    ],
)
def test_what_cannot_be_offered_is_refused_with_the_reason(function: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        tool(function)


@pytest.mark.parametrize("name", ["", "two words", "auto", "x" * 65])
def test_names_are_those_that_the_protocol_takes(name: str) -> None:
    def named() -> None: ...

    if not name:
        assert made(tool(name=name)(named)).name == "named"
        return
    with pytest.raises(ConfigError, match="cannot be the name"):
        tool(name=name)(named)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 301.0])
def test_a_time_limit_is_within_reason(timeout_s: float) -> None:
    def waits() -> None: ...

    with pytest.raises(ConfigError, match="timeout_s"):
        tool(timeout_s=timeout_s)(waits)


def test_what_is_no_tool_is_none() -> None:
    assert tool_of(len) is None
    assert tool_of(result_text) is None
    assert tool_of("opening_hours") is None


def test_it_comes_without_the_server() -> None:
    code = "import agent.tools, sys; print(sorted({'torch', 'aiohttp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
