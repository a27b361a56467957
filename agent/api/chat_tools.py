"""Functions in `POST /v1/chat/completions`: what is offered, what was called, what came back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from agent.chat_types import ChatRole, ChatToolCall
from agent.errors import RequestError
from agent.realtime.fields import Fields, quoted, wrong_type
from agent.realtime.tools import offered_tools
from agent.types import Tool

MAX_CALLS = 128
"""Calls of one message."""
_MODES = ("auto", "none", "required")
_MOST_ARGUMENTS = 1_000_000
_MOST_ID = 256

Message = TypeVar("Message")


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """The request's `tools`; `RequestError` with the field that is wrong."""
    offered = []
    for one in fields.objects("tools"):
        _expect_function(one)
        if not one.has("function"):
            raise RequestError(
                f"Missing required parameter: '{one.name('function')}'.",
                param=one.name("function"),
                code="missing_required_parameter",
            )
        offered.append(one.section("function"))
    return offered_tools(offered, fields.name("tools"))


def read_choice(fields: Fields, tools: Sequence[Tool]) -> str:
    """The request's `tool_choice`: a mode, or the name of one of `tools`."""
    choice = "auto"
    if isinstance(fields.raw("tool_choice"), str):
        choice = fields.choice("tool_choice", _MODES, "auto")
    elif fields.has("tool_choice"):
        asked = fields.section("tool_choice")
        _expect_function(asked)
        choice = asked.section("function").text("name", most=_MOST_ID)
    if choice in ("auto", "none") or choice in {one.name for one in tools}:
        return choice
    if choice == "required" and tools:
        return choice
    raise RequestError(
        f"'tool_choice' asks for {quoted(choice)}; offer functions in 'tools' first.",
        param="tool_choice",
        code="invalid_value",
    )


def _expect_function(one: Fields) -> None:
    kind = one.text("type", "function", most=256)
    if kind != "function":
        raise RequestError(
            f"'{one.name('type')}' is not supported: only 'function' is, not {quoted(kind)}.",
            param=one.name("type"),
            code="unsupported",
        )


def read_calls(message: Fields) -> tuple[ChatToolCall, ...]:
    """The `tool_calls` of an earlier answer."""
    asked = message.objects("tool_calls")
    if len(asked) > MAX_CALLS:
        raise wrong_type(message.name("tool_calls"), f"at most {MAX_CALLS} calls", asked)
    return tuple(_call(one) for one in asked)


def _call(one: Fields) -> ChatToolCall:
    _expect_function(one)
    function = one.section("function")
    return ChatToolCall(
        one.text("id", most=_MOST_ID),
        function.text("name", most=_MOST_ID),
        function.text("arguments", most=_MOST_ARGUMENTS),
    )


@dataclass(slots=True)
class Returned:
    """Puts what functions returned into the order of their calls: the model knows no ids."""

    places: dict[str, int] = field(default_factory=dict)
    """Of the calls of the newest answer, by id."""
    results: list[tuple[int, int]] = field(default_factory=list)
    """Of the results since then: the place of the call, and where the message is."""

    def see(self, role: ChatRole, calls: Sequence[ChatToolCall], fields: Fields, at: int) -> None:
        """The next message, which is number `at`; `RequestError` for a result of no call."""
        if role != "tool":
            self.places = {one.call_id: place for place, one in enumerate(calls)}
            return
        call_id = fields.text("tool_call_id", most=_MOST_ID)
        if call_id not in self.places:
            raise RequestError(
                f"'{fields.name('tool_call_id')}': the assistant's message before made no call "
                f"{quoted(call_id)}.",
                param=fields.name("tool_call_id"),
                code="invalid_value",
            )
        self.results.append((self.places[call_id], at))

    def ordered(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, results that follow each other in the order of their calls."""
        ordered = list(messages)
        for run in self._runs():
            places = sorted(at for _, at in run)
            for at, (_, found) in zip(places, sorted(run), strict=True):
                ordered[at] = messages[found]
        return tuple(ordered)

    def _runs(self) -> list[list[tuple[int, int]]]:
        """Results of messages side by side."""
        runs: list[list[tuple[int, int]]] = []
        for one in self.results:
            if runs and runs[-1][-1][1] + 1 == one[1]:
                runs[-1].append(one)
            else:
                runs.append([one])
        return runs


def call_object(call: ChatToolCall) -> Mapping[str, object]:
    """A call in OpenAI's shape."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}
