"""Who asks: the key behind a request, and what its owner may do."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from aiohttp import web

from agent.errors import AuthError
from agent.realtime import Allowance
from agent.types import Abilities


class Forbidden(AuthError):
    """The key is good, but this is not for its holder; `reason` is for the metrics."""

    status = 403
    code = "permission_denied"
    reason = "forbidden"


class VoiceForbidden(Forbidden):
    """A voice that is not among the key's."""

    code = "voice_not_allowed"
    reason = "voice"


@dataclass(frozen=True, slots=True)
class Share:
    """Those who go by `name` hold at most so many at a time, all together."""

    name: str
    most: int


@dataclass(frozen=True, slots=True)
class Caller:
    """An API key by its name, or nobody in particular where the server asks for none.

    `key_id` is the key's hash; "" where there is none, and of those who opened the page. `secret`
    is the id of the client secret that they came with instead of the key itself, and `session` the
    session object that it is bound to. `voices` names those that they may use; empty: all.
    """

    key: str = ""
    key_id: str = ""
    secret: str = ""
    session: object = None
    shares: tuple[Share, ...] = ()
    """Of calls."""
    chat_shares: tuple[Share, ...] = ()
    """Of chats, and of texts that are read aloud."""
    voices: tuple[str, ...] = ()
    may_grant: bool = True
    """Whether they may make client secrets."""
    may_change_voices: bool = True
    """Whether they may add voices and delete them."""
    may_chat: bool = True
    """Whether they may have more than calls: chats, and texts read aloud."""
    allowance: Allowance = field(default=tuple, compare=False)
    """Of requests."""
    count_request: Callable[[], None] = field(default=lambda: None, compare=False)
    """One more request of theirs that comes by no request of its own. `QuotaError`."""

    def owns(self, caller: "Caller") -> bool:
        """Whether a call of `caller` is theirs: a key has those of its secrets, not the reverse."""
        return self.key == caller.key and self.secret in ("", caller.secret)

    def has_any(self, shares: Collection[str]) -> bool:
        """Whether their calls count among one of these; none: of all."""
        return not shares or any(share.name in shares for share in self.shares)

    def opening(self, session: object) -> object:
        """`session`, with all that theirs names as theirs has it; either may be None."""
        if session is None or self.session is None:
            return self.session if session is None else session
        return _joined(session, self.session) if isinstance(session, Mapping) else session

    def able(self, abilities: Abilities) -> Abilities:
        """`abilities`, with none but their voices; an engine that names none has what they may."""
        if not self.voices:
            return abilities
        known = abilities.voices or self.voices
        return replace(abilities, voices=tuple(each for each in known if each in self.voices))

    def voice(self, asked: str, abilities: Abilities) -> str:
        """The voice that they get where they ask for `asked`, of an engine of these `abilities`.

        "" asks for none in particular. `VoiceForbidden`.
        """
        if not self.voices or asked in self.voices:
            return asked
        if asked:
            raise VoiceForbidden(
                f"your key may not use the voice {asked[:64]!r}; it may use: "
                + ", ".join(self.voices)
            )
        known = self.able(abilities).voices
        if not known:
            raise VoiceForbidden("none of the voices that your key may use is here")
        return known[0]


ANYONE = Caller()

CALLER = web.RequestKey("caller", Caller)
"""Under which a request holds it."""


def caller_of(request: web.Request) -> Caller:
    """Whom the request's key belongs to; `ANYONE` where the server asks for none."""
    caller: Caller = request.get(CALLER, ANYONE)
    return caller


def _joined(session: object, by: object) -> object:
    """`by`, and what only `session` has, field by field."""
    if not isinstance(session, Mapping) or not isinstance(by, Mapping):
        return by
    both = {name: _joined(session[name], by[name]) for name in session.keys() & by.keys()}
    return {**session, **by, **both}
