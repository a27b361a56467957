"""Out-of-band responses: a chat with the same model answers beside the call.

The protocol says what is to be answered and tells what comes of it; here the model is shown words,
sounds and pictures, and asked. What fails is the end of that response and of nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

from agent.attendants.asking import Asker
from agent.attendants.record import CallRecord
from agent.chat_types import (
    Answered,
    ChatEvent,
    ChatMessage,
    ChatPart,
    ChatPicture,
    ChatRequest,
    ChatSound,
    ChatText,
)
from agent.clock import SYSTEM_CLOCK, Clock
from agent.commands import Command
from agent.errors import AgentError, CapacityError, EngineError, RequestError
from agent.interfaces import CallDesk
from agent.media.file_picture import decode_picture
from agent.realtime import AnswerAside
from agent.realtime.question import ItemSound, PictureFile, Question, SaidPart
from agent.telemetry import Telemetry
from agent.types import Failed, SpeechEnded, SpeechStarted, Unit

log = logging.getLogger(__name__)

_PICTURE_PIXELS, _KEPT_PIXELS = 50_000_000, 4_000_000
"""A picture larger than the first is refused, than the second scaled down."""
Admit: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Counts one chat of whoever calls while it is entered; `QuotaError` when they may not."""

SOUND_WAIT_S = 2.0
"""How long the ends of utterances are waited for, which the engine is told second by second."""
_UNHEARD = "[something was said that nobody has written down]"


class PictureReader:
    """Unpacks pictures beside the event loop, `most` at a time, whoever gives them up."""

    def __init__(self, most: int = 2) -> None:
        self._places = asyncio.Semaphore(most)

    async def read(self, file: bytes) -> ChatPicture:
        """The picture in a file. `RequestError`."""
        await self._places.acquire()
        decoding = asyncio.to_thread(decode_picture, file, _PICTURE_PIXELS, _KEPT_PIXELS)
        reading = asyncio.ensure_future(decoding)
        reading.add_done_callback(self._over)
        return ChatPicture(await asyncio.shield(reading))

    def _over(self, reading: "asyncio.Future[Any]") -> None:
        self._places.release()
        if not reading.cancelled():
            reading.exception()  # nobody may be there any more to whom it is news


class Asides:
    """An attendant, behind the `CallRecord` that it asks for what was said aloud."""

    def __init__(
        self,
        record: CallRecord,
        asker: Asker,
        pictures: PictureReader,
        admit: Admit,
        telemetry: Telemetry,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._record = record
        self._asker = asker
        self._pictures = pictures
        self._admit = admit
        self._telemetry = telemetry
        self._clock = clock
        self._waiting: dict[str, Question] = {}
        self._answering: dict[str, asyncio.Future[None]] = {}
        self._news, self._heard = asyncio.Event(), asyncio.Event()

    # ---- what is told ---------------------------------------------------------------------------

    def told_client(self, event: Mapping[str, Any]) -> None:
        """What is told of the conversation is the record's matter."""

    def told_engine(self, item: Unit | SpeechStarted | SpeechEnded | Command) -> None:
        """There may be more sound now."""
        self._heard.set()

    def answer(self, asked: AnswerAside) -> None:
        """Begin to answer, or give it up. Never waits."""
        if asked.question is not None:
            self._waiting[asked.response_id] = asked.question
            self._news.set()
        elif self._waiting.pop(asked.response_id, None) is not None:
            self._telemetry.beside("aside", "cancelled")
        elif (answering := self._answering.get(asked.response_id)) is not None:
            answering.cancel()

    # ---- what is done ---------------------------------------------------------------------------

    async def run(self, desk: CallDesk) -> None:
        """Answer, until the call ends."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                waiting, self._waiting = self._waiting, {}
                for response_id, question in waiting.items():
                    self._begin(response_id, question, desk)
        finally:
            left = list(self._answering.values())
            for answering in left:
                answering.cancel()
            if left:
                await asyncio.wait(left)

    def _begin(self, response_id: str, question: Question, desk: CallDesk) -> None:
        answering = asyncio.ensure_future(self._answer(response_id, question, desk))
        self._answering[response_id] = answering
        began_s = self._clock.now_s()
        answering.add_done_callback(partial(self._over, response_id, began_s, desk))

    async def _answer(self, response_id: str, question: Question, desk: CallDesk) -> None:
        def tell(event: ChatEvent) -> None:
            desk.says(Answered(response_id, event))

        with self._admit():
            await self._until_heard(question)
            # Pictures take a thousand times their file: none is unpacked that has to wait.
            await self._asker.follow(partial(self._request, question), tell)

    def _over(
        self, response_id: str, began_s: float, desk: CallDesk, answering: "asyncio.Future[None]"
    ) -> None:
        del self._answering[response_id]
        if answering.cancelled():
            self._telemetry.beside("aside", "cancelled")
            return
        error = answering.exception()
        self._telemetry.beside("aside", _outcome(error), self._clock.now_s() - began_s)
        failed = error if isinstance(error, Exception) else EngineError("it has no end")
        # Says nothing where the answer has come to its end.
        desk.says(Answered(response_id, Failed(failed)))

    # ---- what is shown --------------------------------------------------------------------------

    async def _request(self, question: Question) -> ChatRequest:
        messages = []
        if question.instructions:
            messages.append(ChatMessage("system", (ChatText(question.instructions),)))
        for said in question.said:
            parts = [await self._shown(part) for part in said.parts]
            messages.append(ChatMessage(said.role, tuple(parts), said.calls))
        return ChatRequest(
            tuple(messages),
            max_tokens=question.max_tokens,
            tools=question.tools,
            tool_choice=question.tool_choice,
        )

    async def _shown(self, part: SaidPart) -> ChatPart:
        match part:
            case PictureFile(file=file):
                return await self._pictures.read(file)
            case ItemSound(item_id=item_id):
                return self._sound_of(item_id)
        return part

    def _sound_of(self, item_id: str) -> ChatPart:
        """How it sounds; its words, where somebody has written them down meanwhile."""
        entry = self._record.transcript.find(item_id)
        if entry is None or entry.sound is None or not len(entry.sound):
            return ChatText(entry.text if entry is not None and entry.text else _UNHEARD)
        return ChatSound(entry.sound)

    async def _until_heard(self, question: Question) -> None:
        """Until all that is to be heard has come in; no longer than `SOUND_WAIT_S`."""
        parts = [part for said in question.said for part in said.parts]
        named = {part.item_id for part in parts if isinstance(part, ItemSound)}
        try:
            async with asyncio.timeout(SOUND_WAIT_S):
                while any(map(self._record.awaits, named)):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            log.debug("an utterance has no end yet")


def _outcome(error: BaseException | None) -> str:
    """How one that ended is counted."""
    if error is None:
        return "answered"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, CapacityError):
        return "full"
    if isinstance(error, RequestError):
        return "refused"
    if not isinstance(error, AgentError):
        log.error("an out-of-band response failed", exc_info=error)
    return "failed"
