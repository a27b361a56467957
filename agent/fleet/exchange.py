"""Who asked what of one child, and who is waiting for what it says. On the event loop alone."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from agent.chat_types import ChatAudio, ChatEvent
from agent.errors import AgentError, EngineError, WorkerLost
from agent.fleet.channel import ChannelClosed
from agent.fleet.life import Life
from agent.fleet.link import LinkClosed
from agent.fleet.messages import Answered, Finish, Message, Said, ToEngine
from agent.types import SPEECH_RATE_HZ, EngineEvent, SpeechAudio

_MAX_WAITING = 16_384
"""Events that a call or a chat has not taken: more than the tokens of the longest answer."""
_MAX_WAITING_SAMPLES = 1200 * SPEECH_RATE_HZ
"""Twenty minutes of speech that nobody has taken, 115 MB: the longest text that is read aloud."""

Event: TypeAlias = EngineEvent | ChatEvent


class EventLine:
    """What one conversation or chat is told, in order.

    When too much waits, the line ends with an `EngineError` instead of taking more.
    """

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._waiting_samples = 0
        self._news = asyncio.Event()
        self._ended = False
        self._error: AgentError | None = None

    def put(self, event: Event) -> None:
        """Next in line; ignored once it has ended."""
        if self._ended:
            return
        self._waiting_samples += _samples(event)
        if len(self._waiting) >= _MAX_WAITING or self._waiting_samples > _MAX_WAITING_SAMPLES:
            self.end(EngineError("the call does not take what the engine says"))
            return
        self._waiting.append(event)
        self._news.set()

    def end(self, error: AgentError | None = None) -> None:
        """Nothing more comes after what waits, but `error` if there is one. Idempotent."""
        if not self._ended:
            self._ended, self._error = True, error
            self._news.set()

    async def events(self) -> AsyncIterator[Event]:
        """All that is put, until the end; to be iterated by one task."""
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                self._waiting_samples -= _samples(event)
                yield event
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


def _samples(event: Event) -> int:
    return len(event.samples) if isinstance(event, SpeechAudio | ChatAudio) else 0


class Exchange:
    """All that passes between the event loop and one child; ends with it."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._tickets = itertools.count(1)
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._lines: dict[int, EventLine] = {}
        self._ended: str | None = None

    def __len__(self) -> int:
        return len(self._lines)

    def line(self, number: int) -> EventLine:
        """The line of what is said to `number` from now on; bounded by the engine's slots."""
        line = self._lines[number] = EventLine()
        return line

    def tell(self, message: ToEngine) -> None:
        """Send `message` now. `WorkerLost`; `EngineError` when no more is taken, or in a chat's
        case `CapacityError`."""
        if self._ended is not None:
            raise WorkerLost(self._ended)
        try:
            self._life.tell(message)
        except (ChannelClosed, LinkClosed) as error:
            raise WorkerLost("the engine's process is gone") from error

    async def ask(self, make: Callable[[int], ToEngine]) -> None:
        """Send what `make` makes of a ticket, and wait for the answer.

        Raises what the core raised; `WorkerLost`; `EngineError` when no more is taken.
        """
        ticket = next(self._tickets)
        self.tell(make(ticket))
        answer = self._asked[ticket] = asyncio.get_running_loop().create_future()
        try:
            await answer
        finally:
            self._asked.pop(ticket, None)

    def drop(self, number: int) -> None:
        """Conversation or chat `number` was refused: there is nothing to be said to it."""
        self._lines.pop(number, None)

    def finish(self, number: int) -> None:
        """Conversation or chat `number` is over. Idempotent, and never refused."""
        line = self._lines.pop(number, None)
        if line is None:
            return
        line.end()
        if self._ended is None:
            try:
                # A slot is at stake; there are no more of these than conversations.
                self._life.tell(Finish(number), must=True)
            except EngineError:
                # The child is going, and its slots with it.
                return

    def take(self, message: Message) -> None:
        """Hand on what the child says."""
        match message:
            case Answered(ticket=ticket, error=error):
                self._settle(ticket, error)
            case Said(events=events):
                for number, event in events:
                    if line := self._lines.get(number):
                        line.put(event)

    def end(self, why: str | None) -> None:
        """The child is gone: lost, and `why`, or in peace when that is None."""
        self._ended = why or "the engine was closed"
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(WorkerLost(self._ended))
        for line in self._lines.values():
            line.end(None if why is None else WorkerLost(why))
        self._asked.clear()
        self._lines.clear()

    def _settle(self, ticket: int, error: AgentError | None) -> None:
        answer = self._asked.get(ticket)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)
