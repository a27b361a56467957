"""An engine whose chat says in words what it was given, so that a test sees every part of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields

import numpy as np

from agent.chat_types import (
    AnswerRequest,
    ChatDelta,
    ChatDone,
    ChatEvent,
    ChatMessage,
    ChatPart,
    ChatPicture,
    ChatRequest,
    ChatSound,
    ChatText,
)
from agent.errors import UnsupportedError
from agent.interfaces import Conversation
from agent.types import Abilities, ByteArray, Failed, Load, SessionSettings

_COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}


class ReadingEngine:
    """Answers with a line for each message and one for the settings, a word at a time.

    `held` stops it before its first word; `before` is raised then, `failing` is said after two
    words. `requests` keeps what it was asked, `given_up` counts answers that nobody waited for.
    """

    name = "reading"
    abilities = Abilities(chat=True)

    def __init__(
        self, *, before: Exception | None = None, failing: Exception | None = None
    ) -> None:
        self.requests: list[ChatRequest] = []
        self.given_up = 0
        self.running = 0
        self.most_running = 0
        self.go = asyncio.Event()
        self.go.set()
        self.before = before
        self.failing = failing

    async def open(self, settings: SessionSettings) -> Conversation:
        """It takes no calls."""
        raise UnsupportedError("the reading engine takes no calls")

    async def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """The answer."""
        if not isinstance(request, ChatRequest):
            raise UnsupportedError("it reads for itself only")
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.go.wait()
            if self.before is not None:
                raise self.before
            async for event in self._say(request):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up += 1
            raise
        finally:
            self.running -= 1

    async def _say(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        if request.thinking:
            yield ChatDelta("Let me ", reasoning=True)
            yield ChatDelta("see.", reasoning=True)
        words = said(request).split(" ")
        most = len(words) if request.max_tokens is None else request.max_tokens
        for index, word in enumerate(words[:most]):
            if self.failing is not None and index == 2:
                yield Failed(self.failing)
                return
            await asyncio.sleep(0)
            yield ChatDelta(word if index == 0 else f" {word}")
        reason = "length" if len(words) > most else "stop"
        yield ChatDone(reason, len(request.messages), min(len(words), most))

    def load(self) -> Load:
        """Always room."""
        return Load(self.running, 1)

    async def close(self) -> None:
        """Nothing to release."""


def said(request: ChatRequest) -> str:
    """The request in words: a line for each message, then the settings that are not the usual."""
    lines = [f"{message.role}: {_content(message)}" for message in request.messages]
    usual = ChatRequest(())
    chosen = [
        f"{field.name}={getattr(request, field.name)!r}"
        for field in fields(request)
        if field.name != "messages" and getattr(request, field.name) != getattr(usual, field.name)
    ]
    return "\n".join([*lines, *chosen])


def _content(message: ChatMessage) -> str:
    return " + ".join(_words(part) for part in message.content)


def _words(part: ChatPart) -> str:
    if isinstance(part, ChatText):
        return part.text
    if isinstance(part, ChatPicture):
        height, width = part.rgb.shape[:2]
        return f"[{_colour(part.rgb)} {width}x{height}]"
    seconds = len(part.samples) / 16_000
    if isinstance(part, ChatSound):
        return f"[sound {seconds:.1f}s {_pitch_hz(part)}Hz]"
    colours = ",".join(_colour(rgb) for rgb in part.pictures)
    return f"[video {colours} with {seconds:.0f}s]"


def _colour(rgb: ByteArray) -> str:
    mean = rgb.reshape(-1, 3).mean(axis=0)
    return min(_COLOURS, key=lambda name: float(np.abs(mean - np.array(_COLOURS[name])).sum()))


def _pitch_hz(part: ChatSound) -> int:
    spectrum = np.abs(np.fft.rfft(part.samples))
    return round(float(np.argmax(spectrum)) * 16_000 / len(part.samples) / 10) * 10
