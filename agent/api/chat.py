"""`POST /v1/chat/completions`: turn-based chat in OpenAI's shape, and who may have it at a time."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web

from agent.api.caller import Caller, caller_of
from agent.api.calls import Services
from agent.api.chat_parts import Attachments
from agent.api.chat_replies import (
    STREAM_HEADERS,
    AnswerStream,
    Heading,
    LateReply,
    whole_answer,
)
from agent.api.chat_request import Asked, parse_chat
from agent.api.fetch import Fetcher, FetchLimits
from agent.api.realtime import SlowBody, WrongContentType
from agent.chat_types import AnswerRequest, ChatEvent
from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import CapacityError, RequestError, UnsupportedError
from agent.model_settings import ChatSettings
from agent.types import Abilities

_BODY_TIMEOUT_S = 60.0
_LOOK_S = 0.2
"""How often is looked whether the client is still there."""
_SLOT_WAIT_S = 30.0
"""How long a chat whose turn it is waits until calls and other chats leave it a slot."""
_SLOT_LOOK_S = 0.25
_SMALL_BYTES = 65_536
_GONE = 499


class LargeBody(RequestError):
    """The request holds more than is read."""

    status = 413
    code = "request_too_large"


class Chats:
    """The chats of this server, and the texts that it reads aloud: how many wait, how many run."""

    def __init__(
        self, services: Services, fetcher: Fetcher | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        settings = services.config.chat
        self._services = services
        self.clock = clock
        self.slot_wait_s = _SLOT_WAIT_S
        self.engine = services.engine
        self.settings: ChatSettings = settings
        limits = FetchLimits(
            settings.max_item_bytes, settings.fetch_timeout_s, settings.allow_private_urls
        )
        self.attachments = Attachments(settings, fetcher or Fetcher(limits))
        self._places = asyncio.Semaphore(settings.max_chats)
        self._inside = 0

    @property
    def abilities(self) -> Abilities:
        """What the engine can do, with the voices that are there now."""
        return replace(self._services, engine=self.engine).abilities

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[None]:
        """Held from the first byte of a request to the last of its answer.

        `CapacityError`, `TooManyChats` beyond what `caller` may have at a time.
        """
        with self._services.chat_shares.one_more(caller, self.settings.retry_after_s):
            yield from self._let_in()

    def _let_in(self) -> Iterator[None]:
        if self._inside >= self.settings.max_chats + self.settings.max_waiting:
            raise CapacityError(
                "too many chats are waiting; try again later",
                retry_after_s=float(self.settings.retry_after_s),
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places among the chats that are answered; waits for it."""
        async with self._places:
            yield

    async def answer(self, order: AnswerRequest) -> AsyncGenerator[ChatEvent, None]:
        """What the engine says to `order`, which waits for a slot within `slot_wait_s`.

        Those that wait hold places, of which there are few, so all others wait for them in turn.
        As the engine raises; `CapacityError` when none is free by then, or it says that it will
        take longer.
        """
        until_s = self.clock.now_s() + self.slot_wait_s
        while True:
            try:
                events = self.engine.chat(order)
                async with leaving(events):
                    # Nothing is refused for want of a slot after the first event.
                    async for event in events:
                        yield event
                return
            except CapacityError as error:
                again_s = self.clock.now_s() + error.retry_after_s
                if again_s >= until_s:
                    raise
                await self._until_room(again_s)

    async def _until_room(self, until_s: float) -> None:
        """Look, rather than ask: what a chat holds is sent to the engine each time it is asked.

        The engine may keep slots for calls, so it is one more than now that is waited for.
        """
        free = self.engine.load().slots_free
        while self.engine.load().slots_free <= free and self.clock.now_s() < until_s:
            await self.clock.sleep_until(min(until_s, self.clock.now_s() + _SLOT_LOOK_S))


CHATS = web.AppKey("chats", Chats)


def add_to(app: web.Application, services: Services) -> None:
    """Add this file's endpoint."""
    app[CHATS] = Chats(services)
    app.router.add_post("/v1/chat/completions", complete)


async def complete(request: web.Request) -> web.StreamResponse:
    """The answer, whole or in pieces; it is given up when the client goes away."""
    return await while_connected(request, _complete(request, request.app[CHATS]))


async def _complete(request: web.Request, chats: Chats) -> web.StreamResponse:
    if not chats.engine.abilities.chat:
        raise UnsupportedError(
            f"the {chats.engine.name} engine cannot chat in turns; it only takes calls"
        )
    with chats.admitted(caller_of(request)):
        asked = await _read(request, chats)
        async with chats.place():
            order = await chats.attachments.resolve(asked)
            async with leaving(chats.answer(order)) as events:
                return await _answer(request, asked, events)


async def _answer(
    request: web.Request, asked: Asked, events: AsyncIterator[ChatEvent]
) -> web.StreamResponse:
    chats = request.app[CHATS]
    heading = Heading(chats.engine.name)
    if not asked.stream:
        return await whole_answer(events, heading, asked.sound)
    stream = AnswerStream(LateReply(request, STREAM_HEADERS), heading, asked)
    return await stream.send(events, chats.settings.keep_alive_s)


@asynccontextmanager
async def leaving(events: AsyncIterator[ChatEvent]) -> AsyncIterator[AsyncIterator[ChatEvent]]:
    """To leave the iterator gives the answer up: at once, and not when it is collected."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


# ---- the client's side ------------------------------------------------------------------------


async def while_connected(
    request: web.Request, work: Coroutine[Any, Any, web.StreamResponse]
) -> web.StreamResponse:
    """Do the work as long as somebody waits for it."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait((task,), timeout=_LOOK_S)
            if _is_gone(request):
                break
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if task.cancelled():
        return web.Response(status=_GONE)
    try:
        return task.result()
    except ConnectionError:
        if request.transport is not None:
            request.transport.close()
        return web.Response(status=_GONE)


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


async def _read(request: web.Request, chats: Chats) -> Asked:
    settings = chats.settings
    document = await read_json(request, settings.max_body_bytes, " (chat.max_body_bytes)")
    caller, abilities = caller_of(request), chats.abilities
    asked = parse_chat(document, settings, caller.able(abilities))
    if not asked.order.speaks:
        return asked
    voice = caller.voice(asked.order.voice, abilities)
    return replace(asked, order=replace(asked.order, voice=voice))


async def read_json(request: web.Request, most_bytes: int, limit: str = "") -> object:
    """The body's JSON. `RequestError`, also when it does not come, or is larger than `most_bytes`.

    `limit` is what is said of that limit.
    """
    if request.content_type != "application/json":
        raise WrongContentType(
            f"Content-Type is {request.content_type!r}; send application/json",
            param="Content-Type",
        )
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            body = await _body(request, most_bytes, limit)
    except TimeoutError as error:
        raise SlowBody(f"the body did not come within {_BODY_TIMEOUT_S:.0f} s") from error
    except web.RequestPayloadError as error:
        raise RequestError(f"the body cannot be read: {error}", code="invalid_body") from error
    if len(body) < _SMALL_BYTES:
        return _json(body)
    # Long bodies take longer than a frame of somebody's call.
    return await asyncio.to_thread(_json, body)


async def _body(request: web.Request, most_bytes: int, limit: str) -> bytes:
    if (request.content_length or 0) > most_bytes:
        raise _too_large(most_bytes, limit)
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > most_bytes:
            raise _too_large(most_bytes, limit)
    return bytes(body)


def _too_large(most_bytes: int, limit: str) -> LargeBody:
    return LargeBody(f"the body is larger than {most_bytes:,} bytes{limit}")


def _json(body: bytes) -> object:
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from error
    return document
