"""The reading engine with a voice: each word sounds for a fifth of a second, always the same."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np

from agent.chat_types import (
    AnswerRequest,
    ChatAudio,
    ChatDelta,
    ChatDone,
    ChatEvent,
    ChatRequest,
    SpeechRequest,
)
from agent.errors import RequestError
from agent.types import SPEECH_RATE_HZ, Abilities, Failed, FloatArray
from tests.rig.reading_engine import ReadingEngine

WORD_SAMPLES = SPEECH_RATE_HZ // 5
WORD_TOKENS = 5


@dataclass(frozen=True, slots=True)
class _Aloud(ChatRequest):
    """A text to be read, as the reading engine counts what it is asked."""

    order: SpeechRequest = field(default_factory=lambda: SpeechRequest(""))


class SpeakingEngine(ReadingEngine):
    """Reads texts aloud and speaks its answers, sound right behind each word.

    `held_after` words it waits until `go_on` is set. `fails_after` words its voice fails: of an
    answer the words go on, a text is at its end.
    """

    name = "speaking"
    abilities = Abilities(
        chat=True, text_to_speech=True, voices=("anna", "ben"), languages=("en", "zh")
    )

    def __init__(
        self, *, before: Exception | None = None, failing: Exception | None = None
    ) -> None:
        super().__init__(before=before, failing=failing)
        self.spoken: list[SpeechRequest] = []
        self.held_after = self.fails_after = 1_000_000
        self.go_on = asyncio.Event()

    async def chat(self, request: AnswerRequest) -> AsyncIterator[ChatEvent]:
        """The answer, or the text as sound; "voice_not_found" for a voice that there is not."""
        if request.voice not in ("", *self.abilities.voices):
            raise RequestError("There is no such voice.", param="voice", code="voice_not_found")
        is_text = isinstance(request, SpeechRequest)
        asked = _Aloud((), speaks=True, order=request) if is_text else request
        async with aclosing(super().chat(asked)) as events:
            async for event in events:
                yield event

    async def _say(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        is_text, speaks = isinstance(request, _Aloud), request.speaks
        said = self._read(request.order) if is_text else super()._say(request)
        words = 0
        async for event in said:
            if isinstance(event, ChatDone) and speaks:
                yield self._voiced(event, words)
            elif not is_text or not isinstance(event, ChatDelta):
                yield event
            if isinstance(event, ChatDelta) and not event.reasoning and speaks:
                words += 1
                if words <= self.fails_after:
                    yield ChatAudio(sound_of(event.text.strip()))
                if words == self.held_after:
                    await self.go_on.wait()

    def _voiced(self, done: ChatDone, words: int) -> ChatDone:
        tokens = WORD_TOKENS * min(words, self.fails_after)
        return replace(done, speech_tokens=tokens, is_voiced=words <= self.fails_after)

    async def _read(self, request: SpeechRequest) -> AsyncIterator[ChatEvent]:
        self.spoken.append(request)
        words = request.text.split()
        for index, word in enumerate(words):
            if self.failing is not None and index == 2:
                yield Failed(self.failing)
                return
            await asyncio.sleep(0)
            yield ChatDelta(word)
        yield ChatDone("stop", prompt_tokens=len(words), answer_tokens=0)


def sound_of(*words: str) -> FloatArray:
    """What these words sound like, one after the other, [words * WORD_SAMPLES]."""
    if not words:
        return np.zeros(0, np.float32)
    at_s = np.arange(WORD_SAMPLES) / SPEECH_RATE_HZ
    pitches_hz = [200 + 10 * (zlib.crc32(word.encode()) % 80) for word in words]
    sound = [0.3 * np.sin(2 * np.pi * pitch_hz * at_s) for pitch_hz in pitches_hz]
    return np.concatenate(sound).astype(np.float32)
