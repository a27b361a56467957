"""An engine that answers in words what it was told: for tests of what needs more than an echo.

It has no voice and no model. It greets; typed words and pictures it answers when it is asked to,
and of settings, pauses and forced listening it says that they have reached it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import fields

from agent.chat_types import (
    AnswerRequest,
    ChatDelta,
    ChatDone,
    ChatEvent,
    ChatPicture,
    ChatRequest,
    ChatSound,
    ChatText,
    ChatVideo,
)
from agent.commands import (
    AddPicture,
    AddText,
    Command,
    ForceListen,
    Interrupt,
    Pause,
    Respond,
    Resume,
    UpdateSettings,
)
from agent.duplex.pictures import decode_picture
from agent.errors import CapacityError, UnsupportedError
from agent.types import (
    Abilities,
    EngineEvent,
    Listened,
    Load,
    Paused,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
    TurnStarted,
    Unit,
)

ABILITIES = Abilities(
    duplex=True,
    chat=True,
    camera=True,
    typed_text=True,
    pictures=True,
    languages=("en", "zh"),
)
GREETINGS = {"en": "Hello, I answer in captions.", "zh": "你好，我用字幕回答。"}
_MAX_EVENTS = 4_096
"""Of what waits to be said; beyond it the oldest is lost."""


class TalkingConversation:
    """One conversation; what it says is ready at once."""

    def __init__(self, settings: SessionSettings, release: Callable[[], None]) -> None:
        self._settings = settings
        self._release = release
        self._ready: deque[EngineEvent] = deque(maxlen=_MAX_EVENTS)
        self._news: deque[str] = deque(maxlen=16)
        self._wake = asyncio.Event()
        self._turn = 0
        self._finished = False
        self._listens_only = False
        follows = f" I follow: {settings.instructions}" if settings.instructions else ""
        self._say(GREETINGS[settings.language] + follows)

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        """It listens to no sound, but says that it did."""
        if isinstance(item, Unit):
            self._tell(Listened(item.index))

    async def control(self, command: Command) -> None:
        """Carry out a command, and say so."""
        match command:
            case AddText(text=text):
                self._news.append(f"You typed: {text}")
            case AddPicture(file=file):
                height, width = decode_picture(file).shape[:2]
                self._news.append(f"I see {width} by {height} pixels.")
            case Respond():
                self._say(" ".join(self._news) or "There is nothing to answer.")
                self._news.clear()
            case Pause():
                self._tell(Paused("asked by the client"))
            case Resume():
                self._say("I am back.")
            case ForceListen(on=on):
                self._listens_only = on
                if not on:
                    self._say("I only listened.")
            case UpdateSettings(settings=settings):
                self._say(f"Changed: {_changes(self._settings, settings)}.")
                self._settings = settings
            case Interrupt():
                pass
            case _:
                raise UnsupportedError(f"the talking engine cannot do {type(command).__name__}")

    async def events(self) -> AsyncIterator[EngineEvent]:
        """What it says."""
        while not self._finished:
            await self._wake.wait()
            self._wake.clear()
            while self._ready:
                yield self._ready.popleft()

    async def finish(self) -> None:
        """The conversation is over."""
        if not self._finished:
            self._finished = True
            self._release()
            self._wake.set()

    def _say(self, text: str) -> None:
        if self._listens_only:
            return
        self._turn += 1
        self._tell(TurnStarted(self._turn))
        for word in text.split(" "):
            self._tell(TextDelta(0, self._turn, word + " "))
        self._tell(TurnEnded(self._turn, "completed"))

    def _tell(self, event: EngineEvent) -> None:
        self._ready.append(event)
        self._wake.set()


class TalkingEngine:
    """Opens such conversations, and chats word by word."""

    name = "talking"
    abilities = ABILITIES

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._open: set[TalkingConversation] = set()

    async def open(self, settings: SessionSettings) -> TalkingConversation:
        """Start a conversation; `CapacityError` when every slot is taken."""
        if len(self._open) >= self._slots:
            raise CapacityError("every slot is taken", retry_after_s=5.0)
        conversation = TalkingConversation(settings, lambda: self._open.discard(conversation))
        self._open.add(conversation)
        return conversation

    async def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """Say what was asked, a word at a time."""
        if not isinstance(request, ChatRequest):
            raise UnsupportedError("it has no voice")
        if request.thinking:
            yield ChatDelta("First I count what there is.", reasoning=True)
        words = described(request).split(" ")
        for word in words:
            yield ChatDelta(word + " ")
            await asyncio.sleep(0)
        yield ChatDone("stop", prompt_tokens=1, answer_tokens=len(words))

    def load(self) -> Load:
        """Slots used and free."""
        return Load(len(self._open), self._slots - len(self._open))

    async def close(self) -> None:
        """End every conversation."""
        for conversation in list(self._open):
            await conversation.finish()


def described(request: ChatRequest) -> str:
    """All that the request holds, in words."""
    kinds = {ChatPicture: "picture", ChatSound: "recording", ChatVideo: "film"}
    parts = [part for message in request.messages for part in message.content]
    counts = [
        f"{sum(isinstance(part, kind) for part in parts)} {name}(s)" for kind, name in kinds.items()
    ]
    texts = [part.text for part in parts if isinstance(part, ChatText)]
    roles = "/".join(message.role for message in request.messages)
    return f"{roles}: {', '.join(counts)}; the words: {' | '.join(texts)}"


def _changes(before: SessionSettings, after: SessionSettings) -> str:
    names = [field.name for field in fields(SessionSettings)]
    return ", ".join(
        f"{name} {getattr(after, name)}"
        for name in names
        if getattr(before, name) != getattr(after, name)
    )
