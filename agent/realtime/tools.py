"""The functions that a client offers to the model, and which of them it must call."""

import json
import re
from dataclasses import replace

from agent.errors import RequestError, UnsupportedError
from agent.realtime.fields import Fields, quoted, wrong_type
from agent.types import Abilities, SessionSettings, Tool

MAX_TOOLS = 128
MAX_TOOL_CHARS = 32_768
"""Of one function's description, and of its parameters as JSON."""
MAX_TOOLS_CHARS = 131_072
"""Of all functions together: all of it stands in the prompt."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = ("auto", "none", "required")


def parse_tools(asked: Fields, base: SessionSettings, abilities: Abilities) -> SessionSettings:
    """`base` with the `tools` and the `tool_choice` of a session or of one response.

    `[]` takes all functions away. A choice that is not sent again falls back to ``auto`` when its
    function is gone. `UnsupportedError` where nobody calls any.
    """
    able = calls_functions(base, abilities)
    tools = base.tools
    if asked.has("tools"):
        tools = offered_tools(asked.objects("tools"), asked.name("tools"))
    if tools and asked.has("tools") and not able:
        raise UnsupportedError("The engine calls no functions.", param=asked.name("tools"))
    names = {tool.name for tool in tools}
    choice = _choice(asked, names, able) if asked.has("tool_choice") else base.tool_choice
    return with_known_choice(replace(base, tools=tools, tool_choice=choice))


def calls_functions(settings: SessionSettings, abilities: Abilities) -> bool:
    """Whether functions can be called in the way that the session says."""
    return abilities.side_tools if settings.tool_channel == "side" else abilities.tools


def with_known_choice(settings: SessionSettings) -> SessionSettings:
    """``auto`` instead of a choice whose function is gone."""
    known = (*_MODES, *(tool.name for tool in settings.tools))
    return settings if settings.tool_choice in known else replace(settings, tool_choice="auto")


def tool_objects(tools: tuple[Tool, ...]) -> list[dict[str, object]]:
    """The functions in OpenAI's shape."""
    return [_tool_object(tool) for tool in tools]


def choice_object(choice: str) -> str | dict[str, object]:
    """`tool_choice` in OpenAI's shape."""
    return choice if choice in _MODES else {"type": "function", "name": choice}


def _tool_object(tool: Tool) -> dict[str, object]:
    told: dict[str, object] = {"type": "function", "name": tool.name}
    if tool.description:
        told["description"] = tool.description
    return told | {"parameters": json.loads(tool.parameters)}


def offered_tools(offered: list[Fields], param: str) -> tuple[Tool, ...]:
    """The functions in these objects, which are the array `param`; `RequestError`."""
    if len(offered) > MAX_TOOLS:
        raise wrong_type(param, f"at most {MAX_TOOLS} functions", offered)
    tools = tuple(_tool(one) for one in offered)
    _require_unique(offered, tools)
    size = sum(len(tool.description) + len(tool.parameters) for tool in tools)
    if size > MAX_TOOLS_CHARS:
        raise RequestError(
            f"The functions take {size} characters together; shorten them to {MAX_TOOLS_CHARS}.",
            param=param,
            code="string_above_max_length",
        )
    return tools


def _tool(one: Fields) -> Tool:
    kind = one.text("type", "function", most=256)
    if kind == "mcp":
        raise UnsupportedError(
            "This server calls no MCP servers; offer the function itself, as type 'function'.",
            param=one.path,
        )
    if kind != "function":
        raise UnsupportedError(
            f"Tools of type {quoted(kind)} are not supported; use 'function'.",
            param=one.name("type"),
        )
    name = one.text("name", most=256)
    if not _NAME.fullmatch(name) or name in _MODES:
        raise RequestError(
            f"Invalid function name {quoted(name)}; use 1 to 64 letters, digits, '_' or '-', "
            f"and none of {', '.join(_MODES)}.",
            param=one.name("name"),
            code="invalid_value",
        )
    return Tool(name, one.text("description", "", most=MAX_TOOL_CHARS), _parameters(one))


def _parameters(one: Fields) -> str:
    schema = json.dumps(one.mapping("parameters"), ensure_ascii=False, separators=(",", ":"))
    if len(schema) > MAX_TOOL_CHARS:
        raise RequestError(
            f"'{one.name('parameters')}' takes {len(schema)} characters; shorten it to "
            f"{MAX_TOOL_CHARS}.",
            param=one.name("parameters"),
            code="string_above_max_length",
        )
    return schema


def _require_unique(offered: list[Fields], tools: tuple[Tool, ...]) -> None:
    seen: set[str] = set()
    for one, tool in zip(offered, tools, strict=True):
        if tool.name in seen:
            raise RequestError(
                f"There are two functions {quoted(tool.name)}; give each a name of its own.",
                param=one.name("name"),
                code="invalid_value",
            )
        seen.add(tool.name)


def _choice(asked: Fields, names: set[str], able: bool) -> str:
    """A mode, or the name of the function that has to be called."""
    if isinstance(asked.raw("tool_choice"), str):
        choice: str = asked.choice("tool_choice", _MODES, "auto")
    else:
        choice = _named_choice(asked.section("tool_choice"), names, able)
    if choice not in ("auto", "none") and not able:
        raise UnsupportedError("The engine calls no functions.", param=asked.name("tool_choice"))
    return choice


def _named_choice(asked: Fields, names: set[str], able: bool) -> str:
    if asked.text("type", most=256) != "function":
        raise UnsupportedError(
            "Only a choice of type 'function' is supported.", param=asked.name("type")
        )
    name = asked.text("name", most=256)
    if able and name not in names:
        raise RequestError(
            f"There is no function {quoted(name)} to choose; offer it in 'tools' first.",
            param=asked.name("name"),
            code="invalid_value",
        )
    return name
