"""A driven call with everybody who attends one, and chats whose answers the test gives."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from agent.attendants.asides import Admit
from agent.attendants.staff import Staff, StaffRules
from agent.chat_types import (
    AnswerRequest,
    ChatDelta,
    ChatDone,
    ChatEvent,
    ChatMessage,
    ChatRequest,
    ChatSound,
    ChatText,
    ChatToolCall,
)
from agent.interfaces import Conversation
from agent.realtime import RealtimeCall
from agent.session import CallParts, Session
from agent.tools import ToolContext, tool, tool_of
from agent.types import (
    Abilities,
    Failed,
    Load,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    ToolCalled,
    TurnEnded,
    TurnStarted,
)
from tests.rig.call_parts import settle
from tests.rig.driven_call import DrivenCall

NATIVE = Abilities(duplex=True, speech=True, typed_text=True, tools=True)
RULES = StaffRules()
ECHO = SessionSettings(model="echo")
SIDE = SessionSettings(model="echo", tool_channel="side")
MONDAY = ChatToolCall("chat_1", "opening_hours", '{"day": "Monday"}')
CHATTING = Abilities(duplex=True, speech=True, typed_text=True, chat=True)


async def threads_over() -> None:
    """Until no function of this server runs in a thread any more."""
    while any(thread.name.startswith("tool ") for thread in threading.enumerate()):
        await asyncio.sleep(0.001)


class Asked:
    """A chat that waits for its answer."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.given_up = False
        self._events: asyncio.Queue[ChatEvent | Exception] = asyncio.Queue()

    async def answer(self, *events: ChatEvent | Exception) -> None:
        """These, and that it is complete."""
        for event in (*events, ChatDone("stop", 1, 1)):
            self._events.put_nowait(event)
        await settle()

    async def say(self, text: str) -> None:
        """Words."""
        await self.answer(ChatDelta(text))

    async def events(self) -> AsyncIterator[ChatEvent]:
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, ChatDone | Failed):
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up = True
            raise


class ScriptedChats:
    """An `Engine` that only chats; `refuses` is raised before the first piece."""

    name = "scripted"

    def __init__(self, abilities: Abilities) -> None:
        self.abilities = abilities
        self.asked: list[Asked] = []
        self.refuses: Exception | None = None

    async def open(self, settings: SessionSettings) -> Conversation:
        raise NotImplementedError

    async def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        assert isinstance(request, ChatRequest)
        if self.refuses is not None:
            raise self.refuses
        asked = Asked(request)
        self.asked.append(asked)
        events = asked.events()
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    def load(self) -> Load:
        return Load(0, 1)

    async def close(self) -> None:
        return


class AttendedCall(DrivenCall):
    """`functions` are this server's, each made a tool unless it is one; `admit` is asked before
    each out-of-band answer."""

    def __init__(
        self,
        *functions: Callable[..., Any],
        abilities: Abilities = NATIVE,
        rules: StaffRules = RULES,
        settings: SessionSettings = ECHO,
        admit: Admit = nullcontext,
    ) -> None:
        super().__init__(abilities=rules.able(abilities))
        self.chats = ScriptedChats(abilities)
        tools = [tool_of(one) or tool_of(tool(one)) for one in functions]
        offered = [one for one in tools if one is not None]
        staff = Staff(self.chats, self.telemetry, rules, offered, self.clock)
        self.staff = staff.for_call(ToolContext("rtc_test", "a key"), admit)
        protocol = RealtimeCall("rtc_test", settings, rules.able(abilities))
        self.opened_with = self.staff.settings(settings)
        parts = CallParts(
            protocol,
            self.peer,
            self.staff.equip(self.engine),
            self.front_end,
            self.playout,
            attendants=self.staff.attendants,
            answer_aside=self.staff.answer,
        )
        self.session = Session(parts, self.telemetry, 3600.0, self.clock)

    # ---- the engine ---------------------------------------------------------------------------

    async def calls(self, turn: int, *called: tuple[str, str]) -> None:
        """A turn that consists of calls: name, and arguments as JSON; ids are call_0, call_1, …"""
        self.engine.say(TurnStarted(turn))
        for number, (name, arguments) in enumerate(called):
            self.engine.say(ToolCalled(turn, f"call_{turn}{number}", name, arguments))
        self.engine.say(TurnEnded(turn, "completed"))
        await settle()

    async def call_in_turn(self, turn: int, name: str, arguments: str) -> None:
        """A call amid what is said."""
        self.engine.say(ToolCalled(turn, f"call_{turn}0", name, arguments))
        await settle()

    async def writes(self, turn: int, text: str) -> None:
        """A turn in words alone."""
        self.engine.say(TurnStarted(turn), TextDelta(0, turn, text), TurnEnded(turn, "completed"))
        await settle()

    # ---- the user -----------------------------------------------------------------------------

    async def utter(self, ms: int = 1000, level: float = 0.1) -> str:
        """The user speaks for so long and is silent until it is in a unit; the item's id."""
        start = self._captured
        await self.hear(SpeechStarted(start))
        await self.listen(ms, level)
        await self.hear(SpeechEnded(self._captured))
        item_id = self.events("input_audio_buffer.committed")[-1]["item_id"]
        await self.listen(1000)
        return str(item_id)

    async def types(self, text: str) -> None:
        """A message of the user."""
        part = {"type": "input_text", "text": text}
        item = {"type": "message", "role": "user", "content": [part]}
        await self.client("conversation.item.create", item=item)

    async def update(self, **session: object) -> None:
        """`session.update`."""
        await self.client("session.update", session={"type": "realtime", **session})

    # ---- what came of it ----------------------------------------------------------------------

    def outputs(self) -> list[tuple[str, str]]:
        """Call id and text of each function's result that has joined the conversation."""
        items = [event["item"] for event in self.events("conversation.item.added")]
        found = [item for item in items if item["type"] == "function_call_output"]
        return [(item["call_id"], item["output"]) for item in found]

    def tool_items(self) -> list[dict[str, Any]]:
        """The calls that the client was told of, complete."""
        items = [event["item"] for event in self.events("response.output_item.done")]
        return [item for item in items if item["type"] == "function_call"]


@asynccontextmanager
async def calls_begun(**usual: Any) -> AsyncIterator[Callable[..., Awaitable[AttendedCall]]]:
    """Begins calls with these functions and options; all of them end as they should."""
    calls: list[AttendedCall] = []

    async def begun(*functions: Callable[..., Any], **more: Any) -> AttendedCall:
        call = AttendedCall(*functions, **{**usual, **more})
        calls.append(call)
        await call.begin()
        return call

    yield begun
    for call in calls:
        await call.leave()


def function(name: str, description: str = "") -> dict[str, object]:
    """A function of the client's, as it offers it."""
    parameters: dict[str, object] = {"type": "object", "properties": {}}
    return {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": parameters,
    }


async def opening_hours(day: str) -> str:
    """When the shop is open.

    Asked for every hour.
    """
    return f"from nine on {day}"


def parts(message: ChatMessage) -> list[object]:
    """Words as they are, sound as how long it is."""
    return [
        part.text if isinstance(part, ChatText) else len(part.samples)
        for part in message.content
        if isinstance(part, ChatText | ChatSound)
    ]


def decided(call: AttendedCall, outcome: str) -> float:
    """How many decisions were counted so."""
    return call.counted("beside_total", work="decision", outcome=outcome)
