"""Who asks: the key behind a request, and what its owner may do."""

from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Caller:
    """An API key by its name, or nobody in particular where the server asks for none.

    `session` is the session object that a client secret is bound to. `max_calls` bounds the calls
    of all who come with that key, `voices` names those that they may use; empty: all.
    """

    key: str = ""
    session: object = None
    max_calls: int | None = None
    voices: tuple[str, ...] = ()


ANYONE = Caller()

CALLER = "caller"
"""Under which a request holds it."""


def caller_of(request: web.Request) -> Caller:
    """Whom the request's key belongs to; `ANYONE` where the server asks for none."""
    caller: Caller = request.get(CALLER, ANYONE)
    return caller
