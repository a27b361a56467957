"""What a call tells its engine, in order, without anybody who tells it waiting."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from agent.commands import AddAudio, AddPicture, AddText, Command, DeleteItem
from agent.errors import CapacityError, EngineError, RequestError
from agent.interfaces import Conversation
from agent.types import SpeechEnded, SpeechStarted, Unit

MAX_WAITING = 64
"""A minute of units: an engine that is further behind takes nothing any more."""
_MAX_TOLD = 2048
"""A client may restore a long history at once: twice what a transport queues."""

Told: TypeAlias = Unit | SpeechStarted | SpeechEnded | Command
Refusal: TypeAlias = RequestError | CapacityError
"""The engine does not carry out a command; the call goes on."""


class EngineLine:
    """A queue before a `Conversation`.

    Speech over the agent must silence it within a moment, whatever the engine is doing; so
    nothing on that way may wait for the engine. `run` hands on, `refused` hears of commands that
    the engine cannot carry out. `due` says what a command has become by the time that its turn
    comes.

    The pictures, sounds and text of one item are told one after the other: when one of them is
    refused, the engine gets none of the item.
    """

    def __init__(
        self,
        conversation: Conversation,
        refused: Callable[[Refusal, Command], None],
        due: Callable[[Command], Command] = lambda command: command,
    ) -> None:
        self._conversation = conversation
        self._refused = refused
        self._due = due
        self._taken_item = ""
        self._waiting: deque[Told] = deque()
        self._told = asyncio.Event()
        self._units = 0

    def tell(self, item: Told) -> None:
        """Next in line. `EngineError` when `MAX_WAITING` units wait: the call cannot go on."""
        self._units += isinstance(item, Unit)
        if self._units > MAX_WAITING or len(self._waiting) >= _MAX_TOLD:
            raise EngineError("the engine no longer takes what it is told")
        self._waiting.append(item)
        self._told.set()

    async def run(self) -> None:
        """Hand everything on; to be cancelled."""
        while True:
            item = await self._next()
            self._units -= isinstance(item, Unit)
            if isinstance(item, Unit | SpeechStarted | SpeechEnded):
                await self._conversation.push(item)
            else:
                await self._carry_out(item)

    async def _next(self) -> Told:
        while not self._waiting:
            self._told.clear()
            await self._told.wait()
        return self._waiting.popleft()

    async def _carry_out(self, command: Command) -> None:
        item_id = _item_of(command)
        begun, self._taken_item = self._taken_item, item_id
        try:
            await self._conversation.control(self._due(command))
        except (RequestError, CapacityError) as error:
            self._taken_item = ""
            self._drop_rest(item_id)
            if item_id and begun == item_id:
                await self._forget(item_id)
            self._refused(error, command)

    def _drop_rest(self, item_id: str) -> None:
        """All of an item waits by now: what comes later under its id is another one."""
        while item_id and self._waiting and _item_of(self._waiting[0]) == item_id:
            self._waiting.popleft()

    async def _forget(self, item_id: str) -> None:
        """Before anything else is told: the engine might answer to half an item."""
        # An engine that forgets nothing keeps it; the client hears of the refusal all the same.
        with contextlib.suppress(RequestError, CapacityError):
            await self._conversation.control(DeleteItem(item_id))


def _item_of(told: Told) -> str:
    """The item that a command is a part of; "" for all else."""
    return told.item_id if isinstance(told, AddAudio | AddPicture | AddText) else ""
