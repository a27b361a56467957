"""Functions as the model reads and writes them: the tool blocks of its own chat template.

The texts are the template's, letter for letter: it is that of Qwen3, on which the model was built.
What strangers wrote into them cannot become a control token.
"""

import json
from collections.abc import Iterable, Sequence

from agent.chat_types import ChatToolCall
from agent.duplex.tokens import WRITTEN, Token, Vocabulary
from agent.errors import RequestError
from agent.types import Tool

OPEN_CALL = WRITTEN[Token.TOOL_CALL]
CLOSE_CALL = WRITTEN[Token.END_TOOL_CALL]
_OPEN_RESULT = WRITTEN[Token.TOOL_RESPONSE]
_CLOSE_RESULT = WRITTEN[Token.END_TOOL_RESPONSE]
_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_BEHIND_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    f"within {OPEN_CALL}{CLOSE_CALL} XML tags:\n{OPEN_CALL}\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n'
    f"{CLOSE_CALL}"
)
NO_TOOLS = "The functions given before can no longer be called."
"""What the model is told where it was given some, and has none any more."""


def tool_block(vocabulary: Vocabulary, tools: Sequence[Tool]) -> str:
    """What stands of functions at the end of a system message; "" where there are none."""
    if not tools:
        return ""
    lines = [f"\n{vocabulary.defused(_signature(one))}" for one in tools]
    return _BEFORE_TOOLS + "".join(lines) + _BEHIND_TOOLS


def with_tools(system: str, block: str) -> str:
    """A system message's text, and that block behind it."""
    return f"{system}\n\n{block}" if system and block else system + block


def written_calls(vocabulary: Vocabulary, calls: Iterable[ChatToolCall]) -> str:
    """Calls as the model wrote them, a line break between two."""
    return "\n".join(
        f'{OPEN_CALL}\n{{"name": "{vocabulary.defused(one.name)}", '
        f'"arguments": {vocabulary.defused(one.arguments)}}}\n{CLOSE_CALL}'
        for one in calls
    )


def result_marks() -> tuple[str, str]:
    """What stands before and behind what a function returned."""
    return f"{_OPEN_RESULT}\n", f"\n{_CLOSE_RESULT}"


def written_result(vocabulary: Vocabulary, output: str) -> str:
    """What a function returned."""
    before, behind = result_marks()
    return before + vocabulary.defused(output) + behind


def forced_opening(tools: Sequence[Tool], choice: str) -> str:
    """How an answer begins that has to be a call; "" where it need not be one.

    It ends where the model's own next token would begin. RequestError for a choice of nothing.
    """
    if choice in ("auto", "none"):
        return ""
    names = [one.name for one in tools]
    if not names or (choice != "required" and choice not in names):
        raise RequestError(
            f"tool_choice asks for {choice!r}, and the functions given are: "
            f"{', '.join(names) or 'none'}",
            param="tool_choice",
            code="invalid_value",
        )
    named = names[0] if choice == "required" and len(names) == 1 else choice
    head = f'{OPEN_CALL}\n{{"name": "'
    return head if named == "required" else f'{head}{named}", "arguments":'


def _signature(tool: Tool) -> str:
    """As the template's `tojson` writes it; what is empty is left out."""
    function: dict[str, object] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    parameters = _parameters(tool)
    if parameters:
        function["parameters"] = parameters
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def _parameters(tool: Tool) -> object:
    try:
        return json.loads(tool.parameters or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the parameters of the function {tool.name!r} are no JSON", param="tools"
        ) from error
