"""Functions decided on beside the conversation, by a chat with the same model.

Duplex conversation with functions is no skill that models are trained for, chat with functions is.
So behind each utterance of the user (and each text that the agent is asked to answer) a chat is
shown what was said, the last words as sound, and calls a function or does not. A call that it makes
is told like one of the conversation's own, and what comes of it reaches the engine as a message.

One decision at a time, the newest. It is given up when the user speaks again, when it takes too
long, and when the agent has begun to say two more things by then. Nothing of that is an error of
the call: it is counted.
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.attendants.asking import Answer, Asker
from agent.attendants.decision import called, decision_request
from agent.attendants.equipment import Equipment
from agent.attendants.record import CallRecord, Utterance
from agent.attendants.server_tools import ServerTools
from agent.chat_types import ChatToolCall
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import Command, Respond
from agent.errors import AgentError, CapacityError
from agent.interfaces import CallDesk
from agent.realtime.events import server_event
from agent.telemetry import Telemetry
from agent.types import SpeechEnded, SpeechStarted, Tool, ToolCalled, Unit

log = logging.getLogger(__name__)

MOST_TURNS = 2
"""Of the agent, begun since the user spoke: then a decision comes too late."""


@dataclass(frozen=True, slots=True, eq=False)
class _Occasion:
    """What there is to decide about, since when, and how often the agent had spoken by then."""

    item_id: str
    since_s: float
    turns: int


class SideTools:
    """An attendant, behind the `CallRecord` and the `ServerTools` that it asks."""

    def __init__(
        self,
        record: CallRecord,
        server_tools: ServerTools,
        equipment: Equipment,
        asker: Asker,
        telemetry: Telemetry,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._record = record
        self._server_tools = server_tools
        self._equipment = equipment
        self._asker = asker
        self._telemetry = telemetry
        self._clock = clock
        self._occasion: _Occasion | None = None
        self._deciding: asyncio.Future[Answer] | None = None
        self._decided_on = ""
        self._news = asyncio.Event()
        record.on_utterance.append(self._heard)

    # ---- what is told ---------------------------------------------------------------------------

    def told_client(self, event: Mapping[str, Any]) -> None:
        """The user goes on: what was asked before may mean something else now."""
        if event["type"] == "input_audio_buffer.speech_started":
            self._give_up("late")

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """An answer to what was typed is asked for."""
        if not isinstance(item, Respond):
            return
        asked = self._record.transcript.last_of("user")
        if asked is not None and asked.is_known:
            self._decide_on(asked.item_id, self._clock.now_s())

    def _heard(self, utterance: Utterance) -> None:
        """Its last sound has come, of which the engine is told second by second."""
        if not self._record.settings.uses_side_channel:
            return
        if self._record.floor.user_speaks:
            self._telemetry.beside("decision", "late")
            return
        self._decide_on(utterance.item_id, utterance.committed_s)

    def _decide_on(self, item_id: str, since_s: float) -> None:
        settings = self._record.settings
        if not settings.uses_side_channel or settings.tool_choice == "none" or not self._tools:
            return
        if item_id == self._decided_on:
            return
        self._give_up("superseded")
        self._decided_on = item_id
        self._occasion = _Occasion(item_id, since_s, self._record.floor.turns)
        self._news.set()

    def _give_up(self, outcome: str) -> None:
        """Whatever is being decided, or is about to be."""
        if self._occasion is not None or self._deciding is not None:
            self._telemetry.beside("decision", outcome)
        self._occasion = None
        if self._deciding is not None:
            self._deciding.cancel()
            self._deciding = None

    @property
    def _tools(self) -> tuple[Tool, ...]:
        return (*self._record.settings.tools, *self._server_tools.offered)

    # ---- what is done ---------------------------------------------------------------------------

    async def run(self, desk: CallDesk) -> None:
        """Decide, until the call ends."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                occasion, self._occasion = self._occasion, None
                if occasion is not None:
                    await self._decide(occasion, desk)
        finally:
            if self._deciding is not None:
                self._deciding.cancel()

    async def _decide(self, occasion: _Occasion, desk: CallDesk) -> None:
        tools = self._tools
        entries, choice = self._record.transcript.entries, self._record.settings.tool_choice
        request = decision_request(entries, occasion.item_id, tools, choice)
        deciding = asyncio.ensure_future(self._asker.ask(request))
        self._deciding = deciding
        await asyncio.wait((deciding,))
        if self._deciding is not deciding or deciding.cancelled():
            return  # given up, and counted
        self._deciding = None
        error = deciding.exception()
        if error is not None:
            self._telemetry.beside("decision", _why_not(error))
            return
        calls, held_others = called(deciding.result(), tools)
        self._act(occasion, calls, held_others, desk)

    def _act(
        self, occasion: _Occasion, calls: list[ChatToolCall], held_others: bool, desk: CallDesk
    ) -> None:
        took_s = self._clock.now_s() - occasion.since_s
        if calls and self._record.floor.turns - occasion.turns >= MOST_TURNS:
            self._telemetry.beside("decision", "late")
            return
        none = "wrong" if held_others else "none"
        self._telemetry.beside("decision", "called" if calls else none, took_s)
        for call in calls:
            self._call(call, occasion, took_s, desk)

    def _call(self, call: ChatToolCall, occasion: _Occasion, took_s: float, desk: CallDesk) -> None:
        """Tell the client of it; one of this server's functions begins at once."""
        call_id = f"call_{secrets.token_hex(12)}"
        self._equipment.remember(call_id, call.name, call.arguments)
        self._server_tools.begin(call_id, call.name, call.arguments, asked_s=occasion.since_s)
        decided_ms = round(took_s * 1000, 1)
        desk.tell(
            server_event("voice_agent.tool", call_id=call_id, name=call.name, decided_ms=decided_ms)
        )
        desk.says(ToolCalled(0, call_id, call.name, call.arguments))


def _why_not(error: BaseException) -> str:
    """How a decision that failed is counted."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, CapacityError):
        return "full"
    if not isinstance(error, AgentError):
        log.error("a decision on functions failed", exc_info=error)
    return "failed"
