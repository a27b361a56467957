"""The body of a form with a recording: read with bounds on all of it, then taken apart."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from aiohttp import StreamReader, web

from agent.api.chat import LargeBody
from agent.api.form_parts import form_parts, form_start, no_form
from agent.api.realtime import SlowBody
from agent.errors import RequestError

SAMPLE = "audio_sample"
TEXTS = ("name", "consent", "language")
OVERHEAD_BYTES = 65_536
"""Of a body beyond its recording: the other fields, and what parts them. A body that has not sent
more than that yet takes nobody's place."""
_MOST_TEXT_BYTES = 8192


@dataclass(slots=True)
class VoiceForm:
    """The parts of a body that mean something."""

    texts: dict[str, str] = field(default_factory=dict)
    sample: bytes | None = None

    def recording(self) -> bytes:
        """The file; RequestError when there is none."""
        if self.sample is None:
            raise RequestError(
                f"{SAMPLE} is missing: the recording, as a file",
                param=SAMPLE,
                code="missing_required_parameter",
            )
        return self.sample

    def text(self, name: str) -> str:
        """A field that must be there."""
        if name not in self.texts:
            raise RequestError(f"{name} is missing", param=name, code="missing_required_parameter")
        return self.texts[name]


@dataclass(frozen=True, slots=True)
class FormLimits:
    """How large a recording may be, and how slowly a body may come.

    `stalled_s` without a byte is too long; each byte is worth 1 / `least_bytes_s` of that.
    """

    file_bytes: int
    whole_s: float
    stalled_s: float
    least_bytes_s: float


async def read_form(
    request: web.Request,
    limits: FormLimits,
    place: ExitStack,
    admitted: Callable[[], AbstractContextManager[None]],
) -> VoiceForm:
    """The form that a request brings. From its recording on it holds `admitted` in `place`.

    RequestError for what is no form, too large or too slow; as `admitted`; ConnectionError.
    """
    start = form_start(request)
    if (request.content_length or 0) > limits.file_bytes + OVERHEAD_BYTES:
        raise _too_large(limits.file_bytes)
    try:
        async with asyncio.timeout(limits.whole_s):
            body = await _body(request.content, start, limits, lambda: _enter(place, admitted))
    except TimeoutError as error:
        raise SlowBody("the recording did not come in time") from error
    except web.RequestPayloadError as error:
        raise RequestError(f"the body cannot be read: {error}", code="invalid_body") from error
    # Long bodies take longer than a frame of somebody's call.
    return await asyncio.to_thread(parse_form, body, start, limits.file_bytes)


def _enter(place: ExitStack, admitted: Callable[[], AbstractContextManager[None]]) -> None:
    place.enter_context(admitted())


async def _body(
    content: StreamReader, start: bytes, limits: FormLimits, take_place: Callable[[], None]
) -> bytearray:
    """All bytes, at most so many. TimeoutError for a sender who is too slow."""
    clock, body, has_place = asyncio.get_running_loop().time, bytearray(), False
    due_s = clock() + limits.stalled_s
    while True:
        async with asyncio.timeout_at(due_s):
            piece = await content.readany()
        if not piece:
            break
        body += piece
        if not _may_start(body, start):
            raise no_form("it does not begin with the boundary that Content-Type names")
        if len(body) > limits.file_bytes + OVERHEAD_BYTES:
            raise _too_large(limits.file_bytes)
        if len(body) > OVERHEAD_BYTES and not has_place:
            take_place()
            has_place = True
        now_s = clock()
        due_s = min(now_s + limits.stalled_s, due_s + len(piece) / limits.least_bytes_s)
    if not has_place:
        take_place()
    return body


def _may_start(body: bytearray, start: bytes) -> bool:
    return start.startswith(body[: len(start)])


# ---- taken apart ------------------------------------------------------------------------------


def parse_form(body: bytes | bytearray, start: bytes, most_bytes: int) -> VoiceForm:
    """The parts that somebody knows; `start` is two dashes and the boundary. RequestError."""
    form = VoiceForm()
    for name, begin, end in form_parts(body, start):
        if name == SAMPLE:
            if end - begin > most_bytes:
                raise _too_large(most_bytes)
            form.sample = bytes(memoryview(body)[begin:end])
        elif name in TEXTS:
            form.texts[name] = _text(name, body, begin, end)
    return form


def _text(name: str, body: bytes | bytearray, begin: int, end: int) -> str:
    if end - begin > _MOST_TEXT_BYTES:
        raise RequestError(f"{name} is too long", param=name, code="too_long")
    try:
        return body[begin:end].decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8", param=name, code="invalid_body") from error


def _too_large(most_bytes: int) -> LargeBody:
    return LargeBody(
        f"the recording is larger than {most_bytes:,} bytes (voices.max_file_bytes)",
        param=SAMPLE,
    )
