"""Chats with the engine for the sake of a call: few at a time, each within its time.

Chats come last in the engine: every unit of every call goes before them, they are held where units
are late, and one slot stays free for a call. Beyond that, this keeps how many there are small.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.chat_types import ChatDelta, ChatEvent, ChatRequest, ChatToolCall
from agent.errors import EngineError
from agent.interfaces import Engine
from agent.types import Failed

MOST_CHARS = 8_192
"""An answer is not read beyond that."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said: words, and the functions that it called."""

    text: str = ""
    calls: tuple[ChatToolCall, ...] = ()


class Asker:
    """Asks an engine for all calls of a server, `most` at a time."""

    def __init__(self, engine: Engine, most: int, timeout_s: float = 5.0) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(most)

    async def ask(self, request: ChatRequest, within_s: float | None = None) -> Answer:
        """The whole answer; to be cancelled like any wait.

        `TimeoutError` when it is not there in time, waiting for a place included; `CapacityError`
        when the engine has no slot, `RequestError` and `EngineError` as it raises.
        """
        limit_s = self._timeout_s if within_s is None else within_s
        async with asyncio.timeout(limit_s), self._places:
            async with _left(self._engine.chat(request)) as events:
                return await _whole(events)

    async def follow(
        self, request: Callable[[], Awaitable[ChatRequest]], tell: Callable[[ChatEvent], None]
    ) -> None:
        """`tell` each piece of the answer as it comes, to the end. Raises as `ask` does.

        `request` is made when there is a place for it, and in its time: it may hold a lot.
        """
        async with asyncio.timeout(self._timeout_s), self._places:
            async with _left(self._engine.chat(await request())) as events:
                async for event in events:
                    tell(event)


async def _whole(events: AsyncIterator[ChatEvent]) -> Answer:
    text, calls = "", []
    async for event in events:
        match event:
            case ChatDelta(reasoning=False):
                text += event.text
            case ChatToolCall():
                calls.append(event)
            case Failed(error=error):
                raise EngineError(f"the engine gave a chat up: {error}") from error
        if len(text) > MOST_CHARS:
            break
    return Answer(text, tuple(calls))


@asynccontextmanager
async def _left(events: AsyncIterator[ChatEvent]) -> AsyncIterator[AsyncIterator[ChatEvent]]:
    """To leave it gives the answer up: at once, and not when it is collected."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
