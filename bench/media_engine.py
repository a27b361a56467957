"""An engine for measurements: it speaks a given recording when asked to and notes interruptions."""

import asyncio
from collections.abc import AsyncIterator

from agent.chat_types import AnswerRequest, ChatEvent
from agent.clock import SYSTEM_CLOCK
from agent.commands import Command, Interrupt, Respond
from agent.errors import UnsupportedError
from agent.types import (
    SPEECH_RATE_HZ,
    Abilities,
    EngineEvent,
    FloatArray,
    Load,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
    TurnEndReason,
    TurnStarted,
    Unit,
)

_CHUNK_SAMPLES = SPEECH_RATE_HZ // 5
_LEAD_S = 1.0
"""Sound is handed over this far ahead of real time, as by an engine that is faster than speech."""
_MAX_WAITING = 64


class RecitingConversation:
    """Each `Respond` starts a turn that recites `speech` from its beginning."""

    def __init__(self, speech: FloatArray) -> None:
        self._speech = speech
        self._commands: asyncio.Queue[Command | None] = asyncio.Queue(_MAX_WAITING)
        self.interrupts: list[Interrupt] = []
        self.turns = 0

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """It does not listen."""

    async def control(self, command: Command) -> None:
        """Take `Respond` and `Interrupt`; whatever else is of no matter here."""
        if isinstance(command, Interrupt):
            self.interrupts.append(command)
        if isinstance(command, Respond | Interrupt):
            await self._commands.put(command)

    async def finish(self) -> None:
        """End of the call."""
        await self._commands.put(None)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """The turns, one after the other."""
        while (command := await self._commands.get()) is not None:
            if isinstance(command, Respond):
                self.turns += 1
                yield TurnStarted(self.turns)
                yield TextDelta(0, self.turns, "…")
                async for piece in self._recite():
                    yield piece

    async def _recite(self) -> AsyncIterator[EngineEvent]:
        """The recording, paced, until its end or an interruption."""
        turn, began_s = self.turns, SYSTEM_CLOCK.now_s()
        reason: TurnEndReason = "completed"
        for at in range(0, len(self._speech), _CHUNK_SAMPLES):
            await SYSTEM_CLOCK.sleep_until(began_s + at / SPEECH_RATE_HZ - _LEAD_S)
            if self._is_interrupted(turn):
                reason = "interrupted"
                break
            yield SpeechAudio(turn, 0, at, self._speech[at : at + _CHUNK_SAMPLES])
        yield TurnEnded(turn, reason)

    def _is_interrupted(self, turn: int) -> bool:
        return any(interrupt.turn == turn for interrupt in self.interrupts)


class RecitingEngine:
    """Opens conversations that recite `speech` [T] at 24 kHz."""

    name = "reciting"
    abilities = Abilities(duplex=True, speech=True)

    def __init__(self, speech: FloatArray) -> None:
        self._speech = speech
        self.opened: list[RecitingConversation] = []

    async def open(self, settings: SessionSettings) -> RecitingConversation:
        """Always one more."""
        conversation = RecitingConversation(self._speech)
        self.opened.append(conversation)
        return conversation

    def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """It only recites: `UnsupportedError`."""
        raise UnsupportedError("the reciting engine does not chat")

    def load(self) -> Load:
        """Never full."""
        return Load(slots_used=len(self.opened), slots_free=1)

    async def close(self) -> None:
        """Nothing is held."""
