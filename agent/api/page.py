"""`POST /page/secret`: the server's own page gets what it uses the API with.

It is a client secret like those that an API key makes, but for this server's own page alone, and
with the limits of `auth.page_*`. Who renews one stays who they were: their calls stay theirs.
"""

from aiohttp import hdrs, web

from agent.api.auth import GUARD, Guard, key_in
from agent.api.caller import Forbidden
from agent.api.key_ring import KeyRefused
from agent.config import Config

SECONDS = 600
"""How long a secret is good; the page renews it before."""


class PageNeedsKey(Forbidden):
    """`auth.page` is off: whoever opens the page has to bring a key."""

    code = "page_needs_key"
    reason = "page_off"


def add_to(app: web.Application, config: Config) -> None:
    """Add this file's endpoint, after the guard."""
    is_open = config.auth.page == "open"

    async def secret(request: web.Request) -> web.Response:
        guard = request.app[GUARD]
        if not guard.asks:
            return web.Response(status=204)
        guard.origins.expect_own_page(request)
        if not is_open:
            raise PageNeedsKey("this page needs an API key; ask whoever runs the server")
        return _made(request, guard)

    app.router.add_post("/page/secret", secret)


def _made(request: web.Request, guard: Guard) -> web.Response:
    address = guard.origins.address(request)
    guard.count_page_request(address)
    made = guard.page_secrets.create(address, SECONDS, visitor=_visitor(request, guard))
    body = {"value": made.value, "expires_at": made.expires_at, "seconds": SECONDS}
    return web.json_response(body, headers={hdrs.CACHE_CONTROL: "no-store"})


def _visitor(request: web.Request, guard: Guard) -> str:
    """Who has one already; "" for somebody new."""
    try:
        return guard.page_secrets.find(key_in(request)).visitor
    except KeyRefused:
        return ""
