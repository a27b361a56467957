"""What a call tells its engine, in order, without anybody who tells it waiting."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from agent.errors import EngineError, RequestError
from agent.interfaces import Conversation
from agent.types import Command, SpeechEnded, SpeechStarted, Unit

MAX_WAITING = 64
"""A minute of units: an engine that is further behind takes nothing any more."""
_MAX_TOLD = 2048
"""A client may restore a long history at once: twice what a transport queues."""

Told: TypeAlias = Unit | SpeechStarted | SpeechEnded | Command


class EngineLine:
    """A queue before a `Conversation`.

    Speech over the agent must silence it within a moment, whatever the engine is doing; so
    nothing on that way may wait for the engine. `run` hands on, `refused` hears of commands that
    the engine cannot carry out.
    """

    def __init__(
        self, conversation: Conversation, refused: Callable[[RequestError, Command], None]
    ) -> None:
        self._conversation = conversation
        self._refused = refused
        self._waiting: asyncio.Queue[Told] = asyncio.Queue(_MAX_TOLD)
        self._units = 0

    def tell(self, item: Told) -> None:
        """Next in line. `EngineError` when `MAX_WAITING` units wait: the call cannot go on."""
        self._units += isinstance(item, Unit)
        if self._units > MAX_WAITING or self._waiting.full():
            raise EngineError("the engine no longer takes what it is told")
        self._waiting.put_nowait(item)

    async def run(self) -> None:
        """Hand everything on; to be cancelled."""
        while True:
            item = await self._waiting.get()
            self._units -= isinstance(item, Unit)
            if isinstance(item, Unit | SpeechStarted | SpeechEnded):
                await self._conversation.push(item)
                continue
            try:
                await self._conversation.control(item)
            except RequestError as error:
                self._refused(error, item)
