"""Writes down what the user said, by a chat with an engine that does not do so by itself.

The prompts are the model's own for this task: MiniCPM-o's documentation gives them for its two
languages. Newest first, since that is what people look at; what waits too long is not written.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from agent.attendants.asking import Asker
from agent.attendants.record import CallRecord, Utterance
from agent.chat_types import ChatMessage, ChatRequest, ChatSound, ChatText
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import Command
from agent.errors import AgentError, CapacityError
from agent.interfaces import CallDesk
from agent.telemetry import Telemetry
from agent.types import (
    MIC_RATE_HZ,
    SpeechEnded,
    SpeechStarted,
    Transcription,
    Unit,
    UserText,
    UserTextFailed,
)

MOST_WAITING = 3
TIMEOUT_S = 15.0
_TOKENS, _TOKENS_PER_S, _MOST_TOKENS = 32, 12, 512
_PROMPTS = {
    "en": "Please listen to the audio snippet carefully and transcribe the content.",
    "zh": "请仔细听这段音频片段，并将其内容逐字记录。",
}
_HINT_CHARS = 500


class Transcriber:
    """An attendant, behind the `CallRecord` that it asks."""

    def __init__(
        self,
        record: CallRecord,
        asker: Asker,
        telemetry: Telemetry,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._record = record
        self._asker = asker
        self._telemetry = telemetry
        self._clock = clock
        self._waiting: deque[Utterance] = deque()
        self._news = asyncio.Event()
        record.on_utterance.append(self._heard)

    def told_client(self, event: Mapping[str, Any]) -> None:
        """The record tells of utterances."""

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """As above."""

    def _heard(self, utterance: Utterance) -> None:
        if self._record.settings.transcription is not None:
            self._waiting.append(utterance)
            self._news.set()

    async def run(self, desk: CallDesk) -> None:
        """Write, until the call ends."""
        while True:
            while len(self._waiting) > MOST_WAITING:
                passed_over = self._waiting.popleft()
                self._telemetry.beside("transcript", "passed_over")
                desk.says(UserTextFailed(passed_over.item_id, "too much was said meanwhile"))
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
                continue
            desk.says(await self._written(self._waiting.pop()))

    async def _written(self, utterance: Utterance) -> UserText | UserTextFailed:
        settings = self._record.settings
        wanted = settings.transcription or Transcription()
        request = transcript_request(utterance, wanted, settings.language)
        try:
            answer = await self._asker.ask(request, TIMEOUT_S)
        except (AgentError, TimeoutError) as error:
            self._telemetry.beside("transcript", "full" if _is_full(error) else "failed")
            return UserTextFailed(utterance.item_id, _reason(error))
        took_s = self._clock.now_s() - utterance.committed_s
        self._telemetry.beside("transcript", "written", took_s)
        text = answer.text.strip()
        return UserText(utterance.item_id, f"… {text}" if utterance.is_cut else text)


def transcript_request(utterance: Utterance, wanted: Transcription, language: str) -> ChatRequest:
    """What an engine is asked. A language of the call's own client comes before the call's."""
    language = (wanted.language or language).lower()
    prompt = _PROMPTS["zh" if language.startswith("zh") else "en"]
    if not language.startswith(("en", "zh")):
        prompt += f" Its language is {language[:_HINT_CHARS]!r}."
    if wanted.prompt:
        prompt += f" It may hold these words: {wanted.prompt[:_HINT_CHARS]}"
    seconds = len(utterance.sound) / MIC_RATE_HZ
    return ChatRequest(
        (ChatMessage("user", (ChatText(prompt + "\n"), ChatSound(utterance.sound))),),
        max_tokens=min(_MOST_TOKENS, _TOKENS + round(_TOKENS_PER_S * seconds)),
        greedy=True,
    )


def _is_full(error: AgentError | TimeoutError) -> bool:
    return isinstance(error, CapacityError | TimeoutError)


def _reason(error: AgentError | TimeoutError) -> str:
    """For the client; the engine's own words are for the log."""
    if _is_full(error):
        return "the engine was too busy to write it down"
    return "the engine failed to write it down"
