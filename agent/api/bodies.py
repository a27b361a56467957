"""Small bodies of requests: of the type that is taken, in time, as text or JSON."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent.errors import RequestError

BODY_TIMEOUT_S = 10.0
JSON = "application/json"


class WrongContentType(RequestError):
    """The body is of a type that this endpoint does not take."""

    status = 415
    code = "unsupported_media_type"


class SlowBody(RequestError):
    """The body did not come in time."""

    status = 408
    code = "request_timeout"


def expect_type(request: web.Request, *taken: str) -> str:
    """The body's type, which is one of `taken`. `WrongContentType`."""
    if request.content_type not in taken:
        raise WrongContentType(
            f"Content-Type is {request.content_type[:80]!r}; send {' or '.join(taken)}",
            param="Content-Type",
        )
    return request.content_type


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Around the reading of a body. `SlowBody`; `RequestError` for one that cannot be read."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise SlowBody(f"the body did not come within {BODY_TIMEOUT_S:.0f} s") from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise RequestError(f"the body cannot be read: {error}", code="invalid_body") from error


async def read_text(request: web.Request, param: str) -> str:
    """The whole body. `SlowBody`, `RequestError`."""
    async with in_time():
        return as_text(await request.read(), param)


async def read_object(request: web.Request, param: str) -> dict[str, object]:
    """The JSON object that is the body. `WrongContentType`, `SlowBody`, `RequestError`."""
    expect_type(request, JSON)
    document = as_json(await read_text(request, param), param)
    if not isinstance(document, dict):
        raise RequestError(f"{param} is no JSON object", param=param, code="invalid_type")
    return document


def as_text(body: bytes, param: str) -> str:
    """`body` as UTF-8. `RequestError`."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{param} is not UTF-8 text", param=param, code="invalid_text"
        ) from error


def as_json(text: str, param: str) -> object:
    """`text` parsed. `RequestError`."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{param} is not JSON: {error}", param=param, code="invalid_json"
        ) from error
    return document
