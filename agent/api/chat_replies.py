"""What an engine says in a chat, in OpenAI's shapes: one object, or a stream of chunks.

An answer with sound is as OpenAI has it, with `voice_agent: {"voiced": false}` in the message (in a
stream: in its last delta) where the voice failed on the way and the sound ends before the words.
Two things are told otherwise. A stream's words stand in `delta.content` as well as in
`delta.audio.transcript`, for clients that know of no sound. No sound is kept: `expires_at` is the
moment of the answer, and earlier answers come back to us by their transcripts.
"""

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from agent.api.chat_request import Asked
from agent.api.chat_tools import call_object
from agent.api.replies import error_reply
from agent.chat_types import ChatAudio, ChatDelta, ChatDone, ChatEvent, ChatToolCall
from agent.errors import AgentError, EngineError
from agent.media.audio import to_pcm16
from agent.media.speech_file import SpeechFile, SpeechFormat, settled
from agent.types import SPEECH_RATE_HZ, Failed

log = logging.getLogger(__name__)

_WRITE_TIMEOUT_S = 30.0
_MOST_SAMPLES = 600 * SPEECH_RATE_HZ
"""Of an answer in one object, which is held as a whole; later sound is left out, and that said."""
_PIECE_BYTES = 3 << 16
"""Base64 is made in pieces, for nothing else runs meanwhile; whole threes need no filling."""
QUIET_NOTE = ": still at it\n\n"
"""A comment between events, which readers of events pass over."""
STREAM_HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    # Proxies that gather a reply before they pass it on would make a stream of one piece.
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, slots=True)
class Heading:
    """What all objects of one answer have in common."""

    model: str
    identity: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(14)}")
    sound: str = field(default_factory=lambda: f"audio_{secrets.token_hex(14)}")
    # A date for the reader, as the API has it; nothing here is measured by it.
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, kind: str) -> dict[str, object]:
        """The head of an object of this `kind`."""
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


def failure(event: Failed) -> AgentError:
    """What a client is told when the engine gave up."""
    if isinstance(event.error, AgentError):
        return event.error
    log.error("a chat failed", exc_info=event.error)
    return EngineError("the engine failed; the server's log says more")


def ended() -> EngineError:
    """What a client is told when an answer just stops."""
    return EngineError("the engine ended its answer without a word about why")


def _usage(done: ChatDone) -> dict[str, object]:
    answered = done.answer_tokens + done.speech_tokens
    usage: dict[str, object] = {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": done.prompt_tokens + answered,
    }
    if done.speech_tokens:
        usage["completion_tokens_details"] = {
            "text_tokens": done.answer_tokens,
            "audio_tokens": done.speech_tokens,
        }
    return usage


# ---- one object -------------------------------------------------------------------------------


async def whole_answer(
    events: AsyncIterator[ChatEvent], heading: Heading, form: SpeechFormat | None = None
) -> web.Response:
    """Wait for the answer and return it in one object. What went wrong is raised.

    `form` is the format of its sound; None: it is words alone.
    """
    whole = _Whole(form)
    async for event in events:
        if isinstance(event, Failed):
            raise failure(event)
        if isinstance(event, ChatDone):
            body = await asyncio.to_thread(whole.body, heading, event)
            return web.Response(body=body, content_type="application/json", charset="utf-8")
        if isinstance(event, ChatDelta):
            whole.say(event)
        elif isinstance(event, ChatToolCall):
            whole.calls.append(call_object(event))
        else:
            await whole.sound(event)
    raise ended()


class _Whole:
    """An answer that is gathered: its words, its reasoning, its sound as a file."""

    def __init__(self, form: SpeechFormat | None) -> None:
        self._form = form
        self._file = SpeechFile(form) if form else None
        self._coded = bytearray()
        self._samples = 0
        self._is_cut = False
        self._words: list[str] = []
        self._reasoning: list[str] = []
        self.calls: list[Mapping[str, object]] = []

    def say(self, delta: ChatDelta) -> None:
        (self._reasoning if delta.reasoning else self._words).append(delta.text)

    async def sound(self, audio: ChatAudio) -> None:
        room = _MOST_SAMPLES - self._samples
        samples = audio.samples[:room]
        self._is_cut |= len(audio.samples) > room
        self._samples += len(samples)
        if self._file is not None:
            self._coded += await asyncio.to_thread(self._file.push, samples)

    def body(self, heading: Heading, done: ChatDone) -> bytes:
        """The object as JSON; takes long where the sound is long."""
        mark = secrets.token_hex(16)
        choice = {
            "index": 0,
            "message": self._message(heading, done, mark),
            "logprobs": None,
            "finish_reason": done.reason,
        }
        head = heading.fields("chat.completion")
        text = json.dumps({**head, "choices": [choice], "usage": _usage(done)}).encode()
        before, found, behind = text.partition(mark.encode())
        # Put in afterwards: JSON's writer goes through all of it, and no thread runs meanwhile.
        return before + self._base64() + behind if found else text

    def _message(self, heading: Heading, done: ChatDone, mark: str) -> dict[str, object]:
        text = "".join(self._words)
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self.calls:
            message |= {"content": text or None, "tool_calls": self.calls}
        if self._file is None:
            return message
        message["audio"] = None
        is_voiced = done.is_voiced and not self._is_cut
        if self._samples or (is_voiced and (text or not self.calls)):
            message["content"] = None
            message["audio"] = {
                "id": heading.sound,
                "data": mark,
                "expires_at": heading.created,
                "transcript": text,
            }
        return message if is_voiced else {**message, **_NOT_VOICED}

    def _base64(self) -> bytes:
        assert self._file is not None and self._form is not None
        file = settled(self._form, self._coded + self._file.finish(), self._file.samples)
        pieces = range(0, len(file), _PIECE_BYTES)
        return b"".join(base64.b64encode(file[at : at + _PIECE_BYTES]) for at in pieces)


_NOT_VOICED: dict[str, object] = {"voice_agent": {"voiced": False}}


# ---- streams ----------------------------------------------------------------------------------


class LateReply:
    """A reply that begins with its first bytes; until then, what goes wrong has its own status."""

    def __init__(self, request: web.Request, headers: dict[str, str]) -> None:
        self._request = request
        self.reply = web.StreamResponse(headers=headers)

    @property
    def has_begun(self) -> bool:
        """Whether something was sent, be it the headers."""
        return self.reply.prepared

    async def write(self, data: bytes) -> None:
        """Send; ConnectionError when the client is gone, or has stopped to read."""
        # A place among the chats is not held for somebody who has stopped to read.
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                if not self.has_begun:
                    await self.reply.prepare(self._request)
                await self.reply.write(data)
        except TimeoutError as error:
            raise ConnectionResetError("the client does not read its answer") from error

    async def write_event(self, body: dict[str, object]) -> None:
        """Send one server-sent event."""
        await self.write(f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode())

    async def write_error(self, error: AgentError) -> None:
        """Say as the last event what went wrong, and end."""
        await self.write(f"data: {error_reply(error).text}\n\n".encode())
        await self.reply.write_eof()


class AnswerStream:
    """An answer as server-sent events; nothing is sent before there is something to send."""

    def __init__(self, reply: LateReply, heading: Heading, asked: Asked) -> None:
        self._reply = reply
        self._heading = heading
        self._include_usage = asked.include_usage
        self._speaks = asked.sound is not None
        self._calls = 0

    async def send(self, events: AsyncIterator[ChatEvent], quiet_s: float) -> web.StreamResponse:
        """Send all events, and a sign of life after each `quiet_s` without one.

        Errors before the first piece are raised; later ones end the stream with an error object.
        """
        try:
            async for event in with_quiet(events, quiet_s):
                if isinstance(event, Failed):
                    raise failure(event)
                if await self._say(event):
                    return self._reply.reply
            raise ended()
        except AgentError as error:
            if not self._reply.has_begun:
                raise
            await self._reply.write_error(error)
        return self._reply.reply

    async def _say(self, event: ChatDelta | ChatAudio | ChatToolCall | ChatDone | None) -> bool:
        """True when that was the last."""
        if not self._reply.has_begun:
            await self._chunk({"role": "assistant", "content": ""})
        match event:
            case None:
                await self._reply.write(QUIET_NOTE.encode())
            case ChatDelta():
                await self._chunk(self._words(event))
            case ChatAudio() if self._speaks and len(event.samples):
                # As fast as it comes, and so in pieces of about a second.
                coded = base64.b64encode(to_pcm16(event.samples).astype("<i2").tobytes())
                await self._chunk(self._audio("data", coded.decode()))
            case ChatToolCall():
                called = {"index": self._calls, **call_object(event)}
                self._calls += 1
                await self._chunk({"tool_calls": [called]})
            case ChatDone():
                await self._finish(event)
                return True
        return False

    def _words(self, delta: ChatDelta) -> dict[str, object]:
        if delta.reasoning:
            return {"reasoning_content": delta.text}
        if not self._speaks:
            return {"content": delta.text}
        return {"content": delta.text, **self._audio("transcript", delta.text)}

    def _audio(self, name: str, value: object) -> dict[str, object]:
        return {"audio": {"id": self._heading.sound, name: value}}

    async def _finish(self, done: ChatDone) -> None:
        if self._speaks:
            await self._chunk(self._audio("expires_at", self._heading.created))
        await self._chunk({} if done.is_voiced else _NOT_VOICED, done.reason)
        if self._include_usage:
            await self._send({"choices": [], "usage": _usage(done)})
        await self._reply.write(b"data: [DONE]\n\n")
        await self._reply.reply.write_eof()

    async def _chunk(self, delta: dict[str, object], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        body: dict[str, object] = {"choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        await self._send(body)

    async def _send(self, body: dict[str, object]) -> None:
        await self._reply.write_event({**self._heading.fields("chat.completion.chunk"), **body})


async def with_quiet(
    events: AsyncIterator[ChatEvent], quiet_s: float
) -> AsyncIterator[ChatEvent | None]:
    """The events, and None whenever there was none for `quiet_s`."""
    while True:
        upcoming = asyncio.ensure_future(_next(events))
        try:
            while not (await asyncio.wait((upcoming,), timeout=quiet_s))[0]:
                yield None
        finally:
            if not upcoming.done():
                upcoming.cancel()
                await asyncio.wait((upcoming,))
        event = upcoming.result()
        if event is None:
            return
        yield event


async def _next(events: AsyncIterator[ChatEvent]) -> ChatEvent | None:
    """The next event; None at the end, which a task cannot tell by StopAsyncIteration."""
    async for event in events:
        return event
    return None
