"""Who asks: the key behind a request, and what its owner may do."""

from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Share:
    """Those who go by `name` hold at most so many calls at a time, all together."""

    name: str
    most: int


@dataclass(frozen=True, slots=True)
class Caller:
    """An API key by its name, or nobody in particular where the server asks for none.

    `secret` is the id of the client secret that they came with instead of the key itself, and
    `session` the session object that it is bound to. `voices` names those that they may use;
    empty: all.
    """

    key: str = ""
    secret: str = ""
    session: object = None
    shares: tuple[Share, ...] = ()
    voices: tuple[str, ...] = ()
    may_grant: bool = True
    """Whether they may make client secrets."""
    may_change_voices: bool = True
    """Whether they may add voices and delete them."""
    may_chat: bool = True
    """Whether they may have more than calls: chats, and texts read aloud."""

    def owns(self, caller: "Caller") -> bool:
        """Whether a call of `caller` is theirs: a key has those of its secrets, not the reverse."""
        return self.key == caller.key and self.secret in ("", caller.secret)


ANYONE = Caller()

CALLER = "caller"
"""Under which a request holds it."""


def caller_of(request: web.Request) -> Caller:
    """Whom the request's key belongs to; `ANYONE` where the server asks for none."""
    caller: Caller = request.get(CALLER, ANYONE)
    return caller
