"""The body of a form with a recording: read with bounds on all of it, then taken apart.

Nothing of it is looked for line by line, as a body of nothing but line ends would hold up calls.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser

from aiohttp import StreamReader, hdrs, web

from agent.api.chat import LargeBody
from agent.api.realtime import SlowBody, WrongContentType
from agent.errors import RequestError

SAMPLE = "audio_sample"
TEXTS = ("name", "consent", "language")
OVERHEAD_BYTES = 65_536
"""Of a body beyond its recording: the other fields, and what parts them. A body that has not sent
more than that yet takes nobody's place."""
_MOST_PARTS = 16
_MOST_TEXT_BYTES = 8192
_MOST_HEAD_BYTES = 2048
_MOST_BOUNDARY_BYTES = 70
_LINE = b"\r\n"


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
    start = _start_of(request)
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


def _start_of(request: web.Request) -> bytes:
    """What every part begins with."""
    if request.content_type != "multipart/form-data":
        raise WrongContentType(
            f"Content-Type is {request.content_type!r}; send multipart/form-data",
            param="Content-Type",
        )
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if coding.lower() != "identity":
        raise WrongContentType(
            f"Content-Encoding is {coding[:40]!r}; send the form as it is", param="Content-Encoding"
        )
    head = Message()
    head[hdrs.CONTENT_TYPE] = request.headers[hdrs.CONTENT_TYPE]
    try:
        boundary = head.get_boundary("")
    except (TypeError, ValueError) as error:
        raise _no_form("Content-Type cannot be read") from error
    if not boundary.isascii() or not 0 < len(boundary) <= _MOST_BOUNDARY_BYTES:
        raise _no_form("Content-Type names no boundary")
    return b"--" + boundary.encode()


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
            raise _no_form("it does not begin with the boundary that Content-Type names")
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
    for number, (first, end) in enumerate(_parts(body, start)):
        if number >= _MOST_PARTS:
            raise _no_form(f"it has more than {_MOST_PARTS} parts")
        head, begin = _head(body, first, end)
        if head.get_content_maintype() == "multipart":
            raise _no_form("it holds a form within the form")
        try:
            name = head.get_param("name", "", "content-disposition")
        except (TypeError, ValueError) as error:
            raise _no_form("a part's Content-Disposition cannot be read") from error
        if name == SAMPLE:
            if end - begin > most_bytes:
                raise _too_large(most_bytes)
            form.sample = bytes(memoryview(body)[begin:end])
        elif isinstance(name, str) and name in TEXTS:
            form.texts[name] = _text(name, body, begin, end)
    return form


def _parts(body: bytes | bytearray, start: bytes) -> Iterator[tuple[int, int]]:
    """From where to where each part goes."""
    if not body.startswith(start):
        raise _no_form("it is empty" if not body else "it does not begin with its boundary")
    at = len(start)
    while not body.startswith(b"--", at):
        if not body.startswith(_LINE, at):
            raise _no_form("more than a line end follows a boundary")
        begin = at + len(_LINE)
        end = body.find(_LINE + start, begin - len(_LINE))
        if end < 0:
            raise _no_form("it ends within a part")
        yield begin, max(begin, end)
        at = end + len(_LINE) + len(start)


def _head(body: bytes | bytearray, begin: int, end: int) -> tuple[Message, int]:
    """The headers of a part, and where it begins after them."""
    if body.startswith(_LINE, begin):
        return Message(), begin + len(_LINE)
    after = body.find(_LINE + _LINE, begin, min(end, begin + _MOST_HEAD_BYTES))
    if after < 0:
        raise _no_form("the headers of a part are too long, or do not end")
    return BytesHeaderParser().parsebytes(bytes(body[begin:after])), after + 2 * len(_LINE)


def _text(name: str, body: bytes | bytearray, begin: int, end: int) -> str:
    if end - begin > _MOST_TEXT_BYTES:
        raise RequestError(f"{name} is too long", param=name, code="too_long")
    try:
        return body[begin:end].decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8", param=name, code="invalid_body") from error


def _no_form(why: str) -> RequestError:
    return RequestError(f"the body is no form: {why}", code="invalid_body")


def _too_large(most_bytes: int) -> LargeBody:
    return LargeBody(
        f"the recording is larger than {most_bytes:,} bytes (voices.max_file_bytes)",
        param=SAMPLE,
    )
