"""Client secrets (`ek_…`): short-lived keys for browsers, each with a session that it is bound to.

`POST /v1/realtime/client_secrets`, as OpenAI has it. A secret opens any number of calls until it
expires; they outlive it, but not the API key that made it. What its session names holds for every
call that is opened with it: of a session that comes along with the offer only the rest counts. As
with OpenAI, a `session.update` inside of the call is free again.
"""

import hmac
import json
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from agent.api.caller import caller_of
from agent.api.chat import read_json
from agent.api.key_ring import KeyRefused
from agent.api.realtime import CALLS
from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import CapacityError, QuotaError, RequestError
from agent.keys import sha256_of
from agent.realtime.fields import Fields

SECRET_PREFIX = "ek_"

_SECONDS = 600
LEAST_SECONDS, MOST_SECONDS = 10, 7200
_MOST_BODY_BYTES = 131_072
_MOST_SECRETS = 10_000
_MOST_OF_ONE = 1_000
_MOST_SESSION_BYTES = 33_554_432
_SWEEP_EVERY_S = 10.0
_FIELDS = ("expires_after", "session")
_EXPIRY_FIELDS = ("anchor", "seconds")


class TooManySecrets(QuotaError):
    """So many secrets of one holder are good at the same time."""

    reason = "secrets"


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """What is remembered of a secret: of its random part only the hash.

    `id` is no secret; `holder` is the hash of the API key that made it, or whom else it counts for.
    """

    id: str
    sha256: str
    holder: str
    expires_s: float
    session: object = None
    visitor: str = ""
    """Who comes with it, where that outlives it: the secret's id, unless it was renewed."""


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret as it is told once; `expires_at` in Unix seconds."""

    value: str
    expires_at: int


class ClientSecrets:
    """The secrets that are good now, at most 10,000, with 32 MiB of sessions; more are refused."""

    def __init__(
        self, clock: Clock = SYSTEM_CLOCK, mark: str = "s", *, forgets: bool = False
    ) -> None:
        """`mark` is what the secrets begin with, behind `ek_`.

        With `forgets` none is refused: the first of whoever has most goes instead. That is for
        those who get another one without a word, as pages do.
        """
        self._clock = clock
        self._mark = mark
        self._forgets = forgets
        self._known: dict[str, ClientSecret] = {}
        self._sizes: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._session_bytes = 0
        self._sweep_at_s = clock.now_s() + _SWEEP_EVERY_S

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def create(
        self, holder: str, seconds: int, session: object = None, visitor: str = ""
    ) -> NewSecret:
        """One more for `holder`. `TooManySecrets`; `CapacityError` when there is no room at all."""
        size = len(json.dumps(session)) if session is not None else 0
        self._expect_room(holder, size)
        # The id finds the secret without a search whose time would tell of other secrets.
        secret_id, random = self._mark + secrets.token_hex(8), secrets.token_urlsafe(32)
        due_s = self._clock.now_s() + seconds
        self._known[secret_id] = ClientSecret(
            secret_id, sha256_of(random), holder, due_s, session, visitor or secret_id
        )
        self._sizes[secret_id] = size
        self._session_bytes += size
        self._held[holder] += 1
        expires_at = int(self._clock.unix_s()) + seconds
        return NewSecret(f"{SECRET_PREFIX}{secret_id}_{random}", expires_at)

    def find(self, value: str) -> ClientSecret:
        """What is remembered of it. `KeyRefused` when it is unknown, or has expired."""
        secret_id, _, random = value.removeprefix(SECRET_PREFIX).partition("_")
        known = self._known.get(secret_id)
        if known is None or not hmac.compare_digest(known.sha256, sha256_of(random)):
            raise KeyRefused("unknown or expired client secret", reason="unknown_secret")
        if self._clock.now_s() >= known.expires_s:
            raise KeyRefused("the client secret has expired", reason="expired_secret")
        return known

    def _expect_room(self, holder: str, size: int) -> None:
        if self._clock.now_s() >= self._sweep_at_s or not self._has_room(holder, size):
            self._sweep()
        if self._forgets and not self._has_room(holder, size):
            self._forget_first_of(holder)
        if self._held[holder] >= _MOST_OF_ONE:
            raise TooManySecrets(
                f"{_MOST_OF_ONE} secrets are good at a time; wait until some have expired",
                retry_after_s=_SWEEP_EVERY_S,
            )
        if not self._has_room(holder, size):
            raise CapacityError(
                "no room for more client secrets; try again later", retry_after_s=_SWEEP_EVERY_S
            )

    def _has_room(self, holder: str, size: int) -> bool:
        return (
            len(self._known) < _MOST_SECRETS
            and self._session_bytes + size <= _MOST_SESSION_BYTES
            and self._held[holder] < _MOST_OF_ONE
        )

    def _sweep(self) -> None:
        now_s = self._clock.now_s()
        self._sweep_at_s = now_s + _SWEEP_EVERY_S
        for known in [each for each in self._known.values() if now_s >= each.expires_s]:
            self._forget(known)
        self._held = +self._held

    def _forget_first_of(self, holder: str) -> None:
        """The oldest of `holder`, where they have too many, else of whoever has most."""
        if self._held[holder] < _MOST_OF_ONE:
            ((holder, _),) = self._held.most_common(1)
        self._forget(next(each for each in self._known.values() if each.holder == holder))

    def _forget(self, known: ClientSecret) -> None:
        del self._known[known.id]
        self._session_bytes -= self._sizes.pop(known.id)
        self._held[known.holder] -= 1


SECRETS = web.AppKey("secrets", ClientSecrets)


# ---- the endpoint -----------------------------------------------------------------------------


def add_to(app: web.Application, known: ClientSecrets) -> None:
    """Add this file's endpoint, after the calls; what it makes is remembered in `known`."""
    app[SECRETS] = known
    app.router.add_post("/v1/realtime/client_secrets", create_secret)


async def create_secret(request: web.Request) -> web.Response:
    """A new secret, and the session that calls with it begin with."""
    document = await read_json(request, _MOST_BODY_BYTES) if request.can_read_body else {}
    seconds, session = _parse(document)
    caller = caller_of(request)
    # Whatever is wrong with the session is to be said now, and not to a browser later.
    shown = request.app[CALLS].rehearse(session, caller)
    made = request.app[SECRETS].create(caller.key_id, seconds, session)
    body = {"value": made.value, "expires_at": made.expires_at, "session": shown}
    return web.json_response(body, headers={"Cache-Control": "no-store"})


def _parse(document: object) -> tuple[int, object]:
    """Seconds, and the session as it came."""
    if not isinstance(document, Mapping):
        raise RequestError("The body is not a JSON object.", code="invalid_type")
    body = Fields(document)
    _expect_only(document, _FIELDS, "")
    expiry = body.section("expires_after")
    raw = body.raw("expires_after")
    _expect_only(raw if isinstance(raw, Mapping) else {}, _EXPIRY_FIELDS, "expires_after.")
    expiry.choice("anchor", ("created_at",), "created_at")
    seconds = expiry.integer("seconds", _SECONDS, least=LEAST_SECONDS, most=MOST_SECONDS)
    return seconds, body.raw("session")


def _expect_only(document: Mapping[str, object], known: tuple[str, ...], path: str) -> None:
    for name in document:
        if name not in known:
            param = f"{path}{name}"[:80]
            raise RequestError(
                f"Unknown parameter: '{param}'; known here are: {', '.join(known)}.",
                param=param,
                code="unknown_parameter",
            )
