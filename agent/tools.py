"""Functions of this server that the model may call: `@tool` over a Python function.

    from agent.tools import tool

    @tool
    def opening_hours(day: str, holiday: bool = False) -> str:
        \"""When the shop is open.

        Args:
            day: The day of the week, in English.
        \"""
        return "from nine to five"

`voice-agent serve --tools my_tools.py` offers it to the model in every call. What the model is told
of it comes from its name, its types and its docstring; a parameter may also be described by
`Annotated[str, "…"]`. A plain function runs in a thread; an `async` one runs in the event loop of
all calls, so it must never block. What it returns is text, or anything that pydantic turns into
JSON. A `ToolError` that it raises is told to the model in its own words, of anything else the model
hears only that the function failed. A parameter of the type `ToolContext` says which call it is.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, to_json

from agent.errors import AgentError, ConfigError
from agent.types import Tool

MAX_DESCRIPTION_CHARS = 4_096
MAX_PARAMETERS_CHARS = 32_768
MOST_TIMEOUT_S = 300.0
DONE = "done"
"""What the model reads of a function that returns nothing."""

_MARK = "__voice_agent_tool__"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_NAMES = ("auto", "none", "required")
_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):?\s*")
_PARAMETER = re.compile(r"(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_SHOWN_FAULTS = 5

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)


class ToolError(AgentError):
    """A function cannot do what it was asked; the message is for the model to speak of."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """In which call a function is called: its id, and the name of the API key behind it."""

    call_id: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class ServerTool:
    """A function as the server has it. `timeout_s` None: as the settings say."""

    definition: Tool
    function: Function
    arguments: type[BaseModel]
    context: str = ""
    """Its parameter that wants the `ToolContext`; "" where none does."""
    timeout_s: float | None = None

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.definition.name

    @property
    def is_async(self) -> bool:
        """Whether it runs in the event loop."""
        return inspect.iscoroutinefunction(self.function)

    def read(self, arguments: str, context: ToolContext) -> dict[str, Any]:
        """What the function is called with; `ToolError` says what is wrong with `arguments`."""
        try:
            read = self.arguments.model_validate_json(arguments.strip() or "{}")
        except ValidationError as error:
            raise ToolError(f"{self.name} was called wrongly: {_faults(error)}") from None
        fields = type(read).model_fields.items()
        values = {str(field.alias): getattr(read, name) for name, field in fields}
        return values | ({self.context: context} if self.context else {})


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *, name: str = "", description: str = "", timeout_s: float | None = None
) -> Callable[[F], F]: ...
def tool(
    function: F | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    timeout_s: float | None = None,
) -> F | Callable[[F], F]:
    """Let the model call a function, which itself stays as it is.

    `name` and `description` stand in place of its own and of its docstring, `timeout_s` in place
    of the setting `tools.timeout_s`. `ConfigError` for a function that cannot be offered.
    """

    def offer(plain: F) -> F:
        setattr(plain, _MARK, _read_function(plain, name, description, timeout_s))
        return plain

    return offer if function is None else offer(function)


def tool_of(value: object) -> ServerTool | None:
    """What `tool` made of a function; None for all else."""
    made = getattr(value, _MARK, None) if inspect.isfunction(value) else None
    return made if isinstance(made, ServerTool) else None


def result_text(result: object) -> str:
    """What a function returned, as the model reads it. `ToolError` for what is no JSON."""
    if result is None:
        return DONE
    try:
        text = result if isinstance(result, str) else to_json(result).decode()
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ToolError(f"what it returned cannot be written as JSON: {error}") from error
    # Half characters are refused wherever the text goes from here.
    return text.encode("utf-8", "replace").decode()


# ---- reading a function -------------------------------------------------------------------------


def _read_function(
    function: Function, name: str, description: str, timeout_s: float | None
) -> ServerTool:
    if not inspect.isfunction(function):
        raise ConfigError(f"@tool: {function!r} is no function; write it over a 'def'")
    name = name or function.__name__
    if not _NAME.fullmatch(name) or name in _NOT_NAMES:
        raise ConfigError(
            f"@tool: {name!r} cannot be the name of a function: use 1 to 64 letters, digits, "
            f"'_' or '-', and none of {', '.join(_NOT_NAMES)}"
        )
    if timeout_s is not None and not 0 < timeout_s <= MOST_TIMEOUT_S:
        raise ConfigError(f"@tool {name}: timeout_s is above 0 and up to {MOST_TIMEOUT_S:g}")
    about, described = _read_docstring(inspect.getdoc(function) or "")
    description = description or about
    if len(description) > MAX_DESCRIPTION_CHARS:
        raise ConfigError(f"@tool {name}: describe it in {MAX_DESCRIPTION_CHARS} characters")
    arguments, context = _read_parameters(function, name, described)
    definition = Tool(name, description, _schema(arguments, name))
    return ServerTool(definition, function, arguments, context, timeout_s)


def _read_parameters(
    function: Function, name: str, described: Mapping[str, str]
) -> tuple[type[BaseModel], str]:
    """A model of its parameters, under their own names as aliases; and who wants the context."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"@tool {name}: its types cannot be read: {error}") from error
    fields: dict[str, Any] = {}
    context = ""
    for parameter in inspect.signature(function).parameters.values():
        hint = _hint(parameter, hints, name)
        if hint is ToolContext:
            context = parameter.name
            continue
        about = _annotated_text(hint) or described.get(parameter.name, "")
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        more = {"description": about} if about else {}
        # Names of their own, as a parameter may be called what pydantic keeps for itself.
        fields[f"parameter_{len(fields)}"] = (
            hint,
            Field(default, alias=parameter.name, **more),  # type: ignore[call-overload]
        )
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields), context
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as error:
        raise ConfigError(f"@tool {name}: {_first_line(error)}") from error


def _hint(parameter: inspect.Parameter, hints: Mapping[str, object], name: str) -> object:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if parameter.kind not in kinds:
        raise ConfigError(f"@tool {name}: name each parameter, '{parameter}' cannot be offered")
    if parameter.name not in hints:
        raise ConfigError(f"@tool {name}: the parameter '{parameter.name}' has no type")
    return hints[parameter.name]


def _annotated_text(hint: object) -> str:
    if get_origin(hint) is not Annotated:
        return ""
    return next((note for note in get_args(hint)[1:] if isinstance(note, str)), "")


def _schema(arguments: type[BaseModel], name: str) -> str:
    try:
        schema = arguments.model_json_schema(schema_generator=_Untitled)
    except PydanticUserError as error:
        raise ConfigError(f"@tool {name}: {_first_line(error)}") from error
    schema.pop("title", None)
    text = to_json(schema).decode()
    if len(text) > MAX_PARAMETERS_CHARS:
        raise ConfigError(f"@tool {name}: its parameters are too many to be told to a model")
    return text


class _Untitled(GenerateJsonSchema):
    """Without titles, which say each name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _faults(error: ValidationError) -> str:
    """What is wrong, by the parameters' names, for the model to read."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in faults[:_SHOWN_FAULTS]
    ]
    return "; ".join(shown)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


# ---- docstrings ---------------------------------------------------------------------------------


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section, and what an `Args` section says of each parameter."""
    about: list[str] = []
    parameters: list[str] = []
    section = ""
    for line in text.splitlines():
        if heading := _SECTION.fullmatch(line):
            section = heading[1]
        elif not section:
            about.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            parameters.append(line)
    return "\n".join(about).strip(), _read_parameter_lines(parameters)


def _read_parameter_lines(lines: list[str]) -> dict[str, str]:
    """By name; a line that stands further in goes on with the one before."""
    described: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        if found := _PARAMETER.fullmatch(line):
            name = found[1]
            described[name] = found[2].strip()
        elif name and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    return described
