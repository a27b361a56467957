"""A form, taken apart with bounds on all of it.

Nothing of it is looked for line by line, as a body of nothing but line ends would hold up calls,
and so would one of thousands of parts.
"""

from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser

from aiohttp import hdrs, web

from agent.api.bodies import WrongContentType
from agent.errors import RequestError

_MOST_PARTS = 16
_MOST_HEAD_BYTES = 2048
_MOST_BOUNDARY_BYTES = 70
_LINE = b"\r\n"
_AS_IT_IS = ("", "7bit", "8bit", "binary")


def form_start(request: web.Request) -> bytes:
    """What every part of a form begins with. `WrongContentType`; `RequestError` for no boundary."""
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
        raise no_form("Content-Type cannot be read") from error
    if not boundary.isascii() or not 0 < len(boundary) <= _MOST_BOUNDARY_BYTES:
        raise no_form("Content-Type names no boundary")
    return b"--" + boundary.encode()


def form_parts(body: bytes | bytearray, start: bytes) -> Iterator[tuple[str, int, int]]:
    """The name of each part ("": none), and from where to where its content goes. RequestError."""
    for number, (first, end) in enumerate(_ranges(body, start)):
        if number >= _MOST_PARTS:
            raise no_form(f"it has more than {_MOST_PARTS} parts")
        head, begin = _head(body, first, end)
        if head.get_content_maintype() == "multipart":
            raise no_form("it holds a form within the form")
        coding = head.get("Content-Transfer-Encoding", "")
        if coding.strip().lower() not in _AS_IT_IS:
            raise no_form(f"a part comes in the coding {coding[:40]!r}; send it as it is")
        try:
            name = head.get_param("name", "", "content-disposition")
        except (TypeError, ValueError) as error:
            raise no_form("a part's Content-Disposition cannot be read") from error
        yield name if isinstance(name, str) else "", begin, end


def _ranges(body: bytes | bytearray, start: bytes) -> Iterator[tuple[int, int]]:
    """From where to where each part goes."""
    if not body.startswith(start):
        raise no_form("it is empty" if not body else "it does not begin with its boundary")
    at = len(start)
    while not body.startswith(b"--", at):
        if not body.startswith(_LINE, at):
            raise no_form("more than a line end follows a boundary")
        begin = at + len(_LINE)
        end = body.find(_LINE + start, begin - len(_LINE))
        if end < 0:
            raise no_form("it ends within a part")
        yield begin, max(begin, end)
        at = end + len(_LINE) + len(start)


def _head(body: bytes | bytearray, begin: int, end: int) -> tuple[Message, int]:
    """The headers of a part, and where it begins after them."""
    if body.startswith(_LINE, begin):
        return Message(), begin + len(_LINE)
    after = body.find(_LINE + _LINE, begin, min(end, begin + _MOST_HEAD_BYTES))
    if after < 0:
        raise no_form("the headers of a part are too long, or do not end")
    return BytesHeaderParser().parsebytes(bytes(body[begin:after])), after + 2 * len(_LINE)


def no_form(why: str) -> RequestError:
    """What is said of a body that cannot be taken apart."""
    return RequestError(f"the body is no form: {why}", code="invalid_body")
