"""Conversations and chats whose engine is elsewhere, behind the seams of `agent.interfaces`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

from agent.chat_types import AnswerRequest, ChatDone, ChatEvent
from agent.commands import Command
from agent.errors import AgentError
from agent.fleet.exchange import EventLine, Exchange
from agent.fleet.messages import Chat, Control, Open, Push
from agent.types import EngineEvent, Failed, SessionSettings, SpeechEnded, SpeechStarted, Unit


class RemoteConversation:
    """A `Conversation` held by another process; made by `open_conversation`."""

    def __init__(self, exchange: Exchange, number: int, line: EventLine) -> None:
        self._exchange = exchange
        self._number = number
        self._line = line

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """Send it; never waits. `WorkerLost`; `EngineError` when no more is taken."""
        self._exchange.tell(Push(self._number, item))

    async def control(self, command: Command) -> None:
        """Have it carried out, in order with what was pushed. `RequestError`; as `push`."""
        await self._exchange.ask(lambda ticket: Control(ticket, self._number, command))

    def events(self) -> AsyncIterator[EngineEvent]:
        """What the engine says, until `finish`; `WorkerLost` when its process is lost."""
        return cast("AsyncIterator[EngineEvent]", self._line.events())

    async def finish(self) -> None:
        """End of input: `events` ends after what has come. Idempotent, never waits."""
        self._exchange.finish(self._number)


async def open_conversation(
    exchange: Exchange, number: int, settings: SessionSettings
) -> RemoteConversation:
    """Have conversation `number` started. What the core raises; `WorkerLost`."""
    line = await _start(exchange, number, lambda ticket: Open(ticket, number, settings))
    return RemoteConversation(exchange, number, line)


async def chat(exchange: Exchange, number: int, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
    """Have chat `number` answered; to leave the iterator is to give it up.

    What the core raises comes before the first piece; `WorkerLost` at any time.
    """
    line = await _start(exchange, number, lambda ticket: Chat(ticket, number, request))
    try:
        async for event in line.events():
            yield cast("ChatEvent", event)
            if isinstance(event, ChatDone | Failed):
                return
    finally:
        exchange.finish(number)


async def _start(exchange: Exchange, number: int, make: Callable[[int], Open | Chat]) -> EventLine:
    line = exchange.line(number)
    try:
        await exchange.ask(make)
    except AgentError:
        exchange.drop(number)
        raise
    except asyncio.CancelledError:
        # Whether it was started or not: nobody will take it.
        exchange.finish(number)
        raise
    return line
