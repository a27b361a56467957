"""What an engine says in a chat, in OpenAI's shapes: one object, or a stream of chunks."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from agent.api.replies import error_reply
from agent.chat_types import ChatAudio, ChatDelta, ChatDone, ChatEvent
from agent.errors import AgentError, EngineError
from agent.types import Failed

log = logging.getLogger(__name__)

_WRITE_TIMEOUT_S = 30.0
_STREAM_HEADERS = {
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


async def whole_answer(events: AsyncIterator[ChatEvent], heading: Heading) -> web.Response:
    """Wait for the answer and return it in one object. What went wrong is raised."""
    said: dict[bool, list[str]] = {False: [], True: []}
    async for event in events:
        if isinstance(event, Failed):
            raise failure(event)
        if isinstance(event, ChatDone):
            return web.json_response(_whole(heading, said, event))
        if isinstance(event, ChatDelta):
            said[event.reasoning].append(event.text)
    raise _ended()


def _whole(heading: Heading, said: dict[bool, list[str]], done: ChatDone) -> dict[str, object]:
    message: dict[str, object] = {
        "role": "assistant",
        "content": "".join(said[False]),
        "refusal": None,
    }
    if said[True]:
        message["reasoning_content"] = "".join(said[True])
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.reason}
    return {**heading.fields("chat.completion"), "choices": [choice], "usage": _usage(done)}


def failure(event: Failed) -> AgentError:
    """What a client is told when the engine gave up."""
    if isinstance(event.error, AgentError):
        return event.error
    log.error("a chat failed", exc_info=event.error)
    return EngineError("the engine failed; the server's log says more")


def _ended() -> EngineError:
    return EngineError("the engine ended its answer without a word about why")


def _usage(done: ChatDone) -> dict[str, object]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.answer_tokens,
        "total_tokens": done.prompt_tokens + done.answer_tokens,
    }


# ---- streams ----------------------------------------------------------------------------------


class AnswerStream:
    """An answer as server-sent events; nothing is sent before there is something to send.

    So what goes wrong at once still gets a status of its own. `headers` go out with the first.
    """

    def __init__(
        self, request: web.Request, heading: Heading, include_usage: bool, headers: dict[str, str]
    ) -> None:
        self._request = request
        self._heading = heading
        self._include_usage = include_usage
        self._reply = web.StreamResponse(headers={**_STREAM_HEADERS, **headers})

    async def send(self, events: AsyncIterator[ChatEvent], quiet_s: float) -> web.StreamResponse:
        """Send all events, and a sign of life after each `quiet_s` without one.

        Errors before the first piece are raised; later ones end the stream with an error object.
        """
        try:
            async for event in _with_quiet(events, quiet_s):
                if isinstance(event, Failed):
                    raise failure(event)
                if await self._say(event):
                    return self._reply
            raise _ended()
        except AgentError as error:
            if not self._reply.prepared:
                raise
            await self._write(f"data: {error_reply(error).text}\n\n")
            await self._reply.write_eof()
        return self._reply

    async def _say(self, event: ChatDelta | ChatAudio | ChatDone | None) -> bool:
        """True when that was the last."""
        if not self._reply.prepared:
            await self._reply.prepare(self._request)
            await self._chunk({"role": "assistant", "content": ""})
        if event is None:
            await self._write(": still at it\n\n")
            return False
        if isinstance(event, ChatDelta):
            name = "reasoning_content" if event.reasoning else "content"
            await self._chunk({name: event.text})
        if not isinstance(event, ChatDone):
            return False
        await self._finish(event)
        return True

    async def _finish(self, done: ChatDone) -> None:
        await self._chunk({}, done.reason)
        if self._include_usage:
            await self._send({"choices": [], "usage": _usage(done)})
        await self._write("data: [DONE]\n\n")
        await self._reply.write_eof()

    async def _chunk(self, delta: dict[str, object], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        body: dict[str, object] = {"choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        await self._send(body)

    async def _send(self, body: dict[str, object]) -> None:
        chunk = {**self._heading.fields("chat.completion.chunk"), **body}
        await self._write(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")

    async def _write(self, text: str) -> None:
        # A place among the chats is not held for somebody who has stopped to read.
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await self._reply.write(text.encode())
        except TimeoutError as error:
            raise ConnectionResetError("the client does not read its answer") from error


async def _with_quiet(
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
