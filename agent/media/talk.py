"""One turn-based conversation: its history, and the files that the user's lines name."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from agent.chat_types import (
    ChatAudio,
    ChatDelta,
    ChatDone,
    ChatMessage,
    ChatPart,
    ChatRequest,
    ChatText,
    ChatToolCall,
)
from agent.errors import AgentError, EngineError, RequestError
from agent.interfaces import Engine
from agent.media.files import MediaLimits, read_file
from agent.media.mentioned import Named, find_named
from agent.types import Failed

MOST_TURNS = 100
"""Older turns are forgotten, if the engine's context has not made them so before."""
_TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Note:
    """Something to tell the user that is no part of the answer."""

    text: str


Show: TypeAlias = Callable[[ChatDelta | ChatAudio | Note], None]
Tell: TypeAlias = Callable[[Note], None]


@dataclass(frozen=True, slots=True)
class _Turn:
    asked: ChatMessage
    answered: ChatMessage


class Talk:
    """Questions and answers in turn; `usual` says how to answer, and holds the system message."""

    def __init__(self, engine: Engine, usual: ChatRequest, limits: MediaLimits) -> None:
        self._engine = engine
        self._usual = usual
        self._limits = limits
        self._turns: list[_Turn] = []

    @property
    def turns(self) -> int:
        """How many questions with their answers are remembered."""
        return len(self._turns)

    def clear(self) -> None:
        """Forget what was said."""
        self._turns.clear()

    async def say(self, line: str, show: Show) -> None:
        """Ask `line`, with the files that it names; as `ask` with what `attach` gives."""
        await self.ask(await attach(line, self._limits, show), show)

    async def ask(self, parts: tuple[ChatPart, ...], show: Show) -> None:
        """Ask what `attach` gave; the answer goes to `show` as it comes, words and sound in order.

        To cancel it stops the answer; what was said of it by then is remembered. `RequestError`
        for what cannot be asked, `EngineError` when the engine fails: then nothing has changed.
        """
        message = ChatMessage("user", parts)
        before = list(self._turns)
        while True:
            try:
                return await self._ask(message, show, len(before) - len(self._turns))
            except RequestError as error:
                if error.code != _TOO_LONG or not self._turns:
                    self._turns = before
                    raise
                # The oldest turn makes room.
                del self._turns[0]
            except AgentError:
                self._turns = before
                raise

    async def _ask(self, message: ChatMessage, show: Show, dropped: int) -> None:
        earlier = [each for turn in self._turns for each in (turn.asked, turn.answered)]
        messages = (*self._usual.messages, *earlier, message)
        events = self._engine.chat(replace(self._usual, messages=messages))
        said: list[str] = []
        try:
            async for event in events:
                if dropped:
                    show(Note(f"left the {_counted(dropped)} out, to make room"))
                    dropped = 0
                if isinstance(event, Failed):
                    raise _failure(event)
                if isinstance(event, ChatDone):
                    _say_why(event, show)
                    break
                if isinstance(event, ChatDelta) and not event.reasoning:
                    said.append(event.text)
                if not isinstance(event, ChatToolCall):  # nobody offers it any function
                    show(event)
        except asyncio.CancelledError:
            self._remember(message, "".join(said))
            raise
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
        self._remember(message, "".join(said))

    def _remember(self, message: ChatMessage, answer: str) -> None:
        # A question without an answer would come before the next one as if it were half of it.
        if answer.strip():
            self._turns.append(_Turn(message, ChatMessage("assistant", (ChatText(answer),))))
            del self._turns[:-MOST_TURNS]


async def attach(line: str, limits: MediaLimits, tell: Tell) -> tuple[ChatPart, ...]:
    """The text of `line` and the files that it names, read and told of to `tell`, in its order.

    `RequestError` for a file that is not there or cannot be taken, and for an empty line.
    """
    parts: list[ChatPart] = []
    for found in find_named(line):
        if isinstance(found, Named):
            parts.append(await _file(found, limits, tell))
        else:
            parts.append(ChatText(found))
    if not parts:
        raise RequestError("there is nothing to say")
    return tuple(parts)


async def _file(named: Named, limits: MediaLimits, tell: Tell) -> ChatPart:
    if not named.is_there:
        raise RequestError(f"there is no file {named.path}")
    part = await asyncio.to_thread(read_file, named.path, limits)
    kind = type(part).__name__.removeprefix("Chat").lower()
    tell(Note(f"attached {named.path.name} ({kind})"))
    return part


def _counted(turns: int) -> str:
    return "oldest turn" if turns == 1 else f"{turns} oldest turns"


def _say_why(done: ChatDone, show: Show) -> None:
    if done.reason == "length":
        show(Note("cut off: the answer reached its longest; --max-tokens allows more"))
    if not done.is_voiced:
        show(Note("the voice failed on the way: the sound ends before the words"))


def _failure(event: Failed) -> AgentError:
    if isinstance(event.error, AgentError):
        return event.error
    return EngineError(f"the engine failed: {event.error}")
