"""What an engine is told of functions: this server's besides the client's, or none of them.

Between a call and its engine: in the conversation ("native") the engine hears of this server's
functions besides those of the client. Beside it ("side") it hears of none; it is told that somebody
else looks things up, and what was found comes as a message.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from agent.commands import AddText, AddToolResult, Command, Respond, UpdateSettings
from agent.interfaces import Conversation
from agent.types import (
    Abilities,
    EngineEvent,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Tool,
    Unit,
)

MOST_REMEMBERED = 64
MOST_ABOUT_CHARS = 2_000
"""What an engine is told of all that is looked up for it: it stands in its prompt."""
_SIDE_NOTES = {
    "en": "While you talk, somebody else looks things up for you: {what}. When the user asks for "
    "one of these, say in a few words that you are having a look, and never make the answer up. "
    "What was found comes to you as a message; then tell the user.",
    "zh": "在你说话的同时，有人替你查询：{what}。当用户问到这些时，简短地说你正在查，"
    "绝不要编造答案。查到的结果会以消息的形式告诉你，然后你再告诉用户。",
}
_FOUND = {
    "en": "[{name} {arguments} was looked up: {output}] Tell the user.",
    "zh": "[{name} {arguments} 的查询结果：{output}] 请告诉用户。",
}


class Equipment:
    """This server's functions for one call, and the calls that were decided on beside it."""

    def __init__(self, tools: tuple[Tool, ...], abilities: Abilities) -> None:
        """`abilities` are the engine's own."""
        self._tools = tools
        self._abilities = abilities
        self._settings: SessionSettings | None = None
        self._side_calls: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._own: OrderedDict[str, str | None] = OrderedDict()

    def remember(self, call_id: str, name: str, arguments: str) -> None:
        """A function was called beside the conversation: the engine knows nothing of it."""
        self._side_calls[call_id] = (name, arguments)
        _forget_oldest(self._side_calls)

    def answer(self, call_id: str, output: str | None) -> None:
        """This server runs that call: with `output`, or not yet. Nobody else's answer counts."""
        self._own[call_id] = output
        _forget_oldest(self._own)

    def settings(self, settings: SessionSettings) -> SessionSettings:
        """What the engine is told in place of the call's settings."""
        self._settings = settings
        names = {tool.name for tool in settings.tools}
        tools = (*settings.tools, *(tool for tool in self._tools if tool.name not in names))
        if settings.tool_channel == "side":
            instructions = self._side_instructions(settings, tools)
            return replace(settings, tools=(), tool_choice="auto", instructions=instructions)
        return replace(settings, tools=tools) if self._abilities.tools else settings

    def command(self, command: Command) -> Command | None:
        """What the engine is told in place of a command; None: nothing.

        Some clients answer calls of functions that they do not know, to say so: of those that this
        server runs, the engine is not to hear it.
        """
        match command:
            case AddToolResult(call_id=call_id, output=output) if (
                call_id in self._own and output != self._own[call_id]
            ):
                return None
            case UpdateSettings(settings=settings):
                return UpdateSettings(self.settings(settings))
            case AddToolResult(call_id=call_id) if call_id in self._side_calls:
                return self._found(command)
            case Respond() if self._settings and self._settings.tool_channel == "side":
                return replace(command, tools=None, tool_choice=None)
        return command

    def _side_instructions(self, settings: SessionSettings, tools: tuple[Tool, ...]) -> str:
        if not tools or settings.tool_choice == "none":
            return settings.instructions
        default = dict(self._abilities.default_instructions).get(settings.language, "")
        what = "; ".join(map(_about, tools))[:MOST_ABOUT_CHARS]
        note = _SIDE_NOTES[_language(settings)].format(what=what)
        return "\n\n".join(filter(None, (settings.instructions or default, note)))

    def _found(self, result: AddToolResult) -> AddText:
        name, arguments = self._side_calls[result.call_id]
        language = _language(self._settings)
        text = _FOUND[language].format(name=name, arguments=arguments, output=result.output)
        return AddText(f"result_{result.call_id}", "system", text)


class EquippedConversation:
    """A conversation whose engine is told so."""

    def __init__(self, conversation: Conversation, equipment: Equipment) -> None:
        self._conversation = conversation
        self._equipment = equipment

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """As it is."""
        await self._conversation.push(item)

    async def control(self, command: Command) -> None:
        """In the engine's own terms; `UnsupportedError` as ever."""
        told = self._equipment.command(command)
        if told is not None:
            await self._conversation.control(told)

    def events(self) -> AsyncIterator[EngineEvent]:
        """As they are."""
        return self._conversation.events()

    async def finish(self) -> None:
        """As ever."""
        await self._conversation.finish()


def _forget_oldest(calls: OrderedDict[str, Any]) -> None:
    while len(calls) > MOST_REMEMBERED:
        calls.popitem(last=False)


def _language(settings: SessionSettings | None) -> str:
    return "zh" if settings is not None and settings.language.startswith("zh") else "en"


def _about(tool: Tool) -> str:
    """Its name, and the first line of what it does."""
    line = tool.description.strip().partition("\n")[0]
    return f"{tool.name} ({line})" if line else tool.name
