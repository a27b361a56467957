"""The `echo` engine: a conversation partner that needs no model.

It greets, then says back what it heard after each utterance, so that a user hears exactly what an
agent would hear; it says back what is typed and sent, too, and calls functions that it is told to.
`EchoPartner` is the whole behaviour, synchronous, its time passed in; `EchoConversation` makes it
asynchronous.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from agent.chat_types import AnswerRequest, ChatEvent, SpeechRequest
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import Command
from agent.engines.echo_partner import EchoPartner
from agent.engines.greeting import Greeting
from agent.errors import CapacityError, UnsupportedError
from agent.types import (
    Abilities,
    EngineEvent,
    Load,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Unit,
    UnitReport,
)

__all__ = ["ABILITIES", "EchoConversation", "EchoEngine", "EchoPartner"]

GREETS_AFTER_S = 0.5
"""Clients that lead by themselves have asked for something by then, and no greeting is in their
way: a script that types, asks for an answer and leaves with it."""

ABILITIES = Abilities(
    duplex=True,
    speech=True,
    camera=True,
    typed_text=True,
    pictures=True,
    recordings=True,
    tools=True,
)


class EchoConversation:
    """An `EchoPartner` behind the seam `Conversation`."""

    def __init__(self, partner: EchoPartner, clock: Clock, release: Callable[[], None]) -> None:
        self._partner = partner
        self._clock = clock
        self._release = release
        self._wake = asyncio.Event()
        self._finished = False
        self._reports: deque[UnitReport] = deque(maxlen=8)

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """Feed the next unit or speech boundary. Never blocks."""
        began_s = self._clock.now_s()
        self._partner.push(item)
        if isinstance(item, Unit):
            spent_ms = (self._clock.now_s() - began_s) * 1000
            self._reports.append(UnitReport(item.index, (("engine", spent_ms),)))
        self._wake.set()

    async def control(self, command: Command) -> None:
        """Carry out a command; `UnsupportedError` for what needs a model."""
        self._partner.control(command)
        self._wake.set()

    async def events(self) -> AsyncIterator[EngineEvent]:
        """What the engine says, paced in real time; the greeting is due behind the first call."""
        while not self._finished:
            self._wake.clear()
            for event in self._partner.take(self._clock.now_s()):
                yield event
            while self._reports:
                yield self._reports.popleft()
            await self._wait(self._partner.next_due_s())

    async def _wait(self, due_s: float | None) -> None:
        if self._finished or self._wake.is_set():
            return
        timer = None
        if due_s is not None:
            delay_s = max(0.0, due_s - self._clock.now_s())
            timer = asyncio.get_running_loop().call_later(delay_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer:
                timer.cancel()

    async def finish(self) -> None:
        """End of input: `events` ends and the slot is free again."""
        if not self._finished:
            self._finished = True
            self._release()
            self._wake.set()


class EchoEngine:
    """Opens echo conversations, at most `slots` at a time."""

    name = "echo"
    abilities = ABILITIES

    def __init__(self, greeting: Greeting, slots: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._greeting = greeting
        self._slots = slots
        self._clock = clock
        self._open: set[EchoConversation] = set()

    async def open(self, settings: SessionSettings) -> EchoConversation:
        """Start a conversation; `CapacityError` when every slot is taken."""
        if len(self._open) >= self._slots:
            raise CapacityError("every slot of the echo engine is taken", retry_after_s=5.0)
        partner = EchoPartner(settings, self._greeting, GREETS_AFTER_S)
        conversation = EchoConversation(
            partner, self._clock, lambda: self._open.discard(conversation)
        )
        self._open.add(conversation)
        return conversation

    def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """It understands nothing, so it cannot: `UnsupportedError`."""
        does = "read aloud" if isinstance(request, SpeechRequest) else "chat"
        raise UnsupportedError(f"the echo engine has no model, so it cannot {does}")

    def load(self) -> Load:
        """Slots used and free."""
        return Load(slots_used=len(self._open), slots_free=self._slots - len(self._open))

    async def close(self) -> None:
        """End every conversation."""
        for conversation in list(self._open):
            await conversation.finish()
