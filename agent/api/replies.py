"""What every reply has in common: OpenAI-shaped errors, CORS, and headers that protect the page."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from agent.api.origins import Origins
from agent.errors import AgentError, AuthError, CapacityError, RequestError, WorkerLost

log = logging.getLogger(__name__)

_PAGE_POLICY = (
    "default-src 'self'; media-src 'self' blob: mediastream:; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'self'"
)

_KINDS = {403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "unknown_url", 405: "method_not_supported", 413: "request_too_large"}
"""Of what aiohttp refuses by itself; the first two are OpenAI's own words."""
_CLIENT_IS_GONE = 499
"""Nobody reads it; nginx logs it so."""
_LOST_RETRY_S = 5
"""Whoever comes back before the engine does is told how long that still takes."""


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost loop of a request: whatever goes wrong becomes OpenAI's error object."""
    try:
        return await handler(request)
    except AgentError as error:
        return error_reply(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = (
            {str(hdrs.ALLOW): error.headers.get(hdrs.ALLOW, "")} if error.status == 405 else {}
        )
        code, text = _CODES.get(error.status), _http_error_text(error, request)
        return _error(error.status, text, code, None, headers)
    except Exception as error:
        if isinstance(error, ConnectionError) and _is_gone(request):
            log.info("%s: the client is gone", _shown(request))
            return _error(_CLIENT_IS_GONE, "the client is gone", None, None, {})
        log.exception("%s failed", _shown(request))
        return _error(500, "internal error; the server's log says more", None, None, {})


def _shown(request: web.Request) -> str:
    """As it was sent: a line end that is decoded would begin a line of the log."""
    return f"{request.method} {request.rel_url.raw_path[:200]}"


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def error_reply(error: AgentError) -> web.Response:
    """`error` in OpenAI's shape, with Retry-After where waiting helps."""
    headers: dict[str, str] = {}
    if isinstance(error, CapacityError):
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, WorkerLost):
        headers[hdrs.RETRY_AFTER] = str(_LOST_RETRY_S)
    elif isinstance(error, AuthError) and error.status == 401:
        headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="voice-agent"'
    param = error.param if isinstance(error, RequestError) else None
    return _error(error.status, str(error), error.code, param, headers)


def cors(origins: Origins) -> Middleware:
    """A middleware that tells browsers which pages may call `/v1`; it asks for no key."""

    @web.middleware
    async def allow(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = origins.preflight(request)
        return answer if answer is not None else await handler(request)

    return allow


def tell_pages(origins: Origins) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Adds what lets pages read a reply, streams and errors included, before it is sent."""

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(origins.tell(request))

    return tell


async def protect_page(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of everything but the API: nothing foreign runs in the page, nothing goes stale."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    if not request.path.startswith("/v1/"):
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        response.headers.setdefault(hdrs.CACHE_CONTROL, "no-cache")


def _http_error_text(error: web.HTTPException, request: web.Request) -> str:
    match error.status:
        case 404:
            return f"there is nothing at {request.path[:200]}; what there is stands at /docs"
        case 405:
            return f"{request.method} is not possible at {request.path[:200]}"
        case 413:
            return "the body is too large; server.max_body_bytes is the limit"
        case _:
            return error.reason


def _error(
    status: int, message: str, code: str | None, param: str | None, headers: Mapping[str, str]
) -> web.Response:
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "code": code, "param": param}}
    return web.json_response(body, status=status, headers=headers)
