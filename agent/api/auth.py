"""Who may do what: every request's key is looked at here, before anything else is done for it.

Once a key is configured, everything below `/v1/`, and `/metrics`, asks for one: an API key, or a
client secret for less (`Caller`). Without any, the server answers whoever reaches it by one of its
own names and from no foreign page. `/healthz`, the page's files and `/README.md` are open: there
is nothing in them that is not public, or a number that probes need.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from agent.api.caller import ANYONE, CALLER, Caller, Forbidden, Share, VoiceForbidden
from agent.api.client_secrets import SECRET_PREFIX, ClientSecret, ClientSecrets
from agent.api.key_ring import KeyRefused, KeyRing
from agent.api.origins import Origins
from agent.api.rates import Rates
from agent.clock import SYSTEM_CLOCK, Clock
from agent.config import Config
from agent.errors import AuthError, ConfigError, QuotaError
from agent.keys import MOST_CALLS, MOST_CHATS, ApiKey, keys_file
from agent.realtime import RateLimit
from agent.telemetry import Telemetry
from agent.tls import is_loopback

PAGE = "(page)"
"""The key of those who opened the page without one; no key can be called so."""

_SUBPROTOCOL = "openai-insecure-api-key."
PAGE_MARK = "p"
"""What the secrets of pages begin with, behind `ek_`."""
_NO_KEY = (
    "You didn't provide an API key. Provide it in an Authorization header using Bearer auth "
    "(Authorization: Bearer YOUR_KEY); `voice-agent keys add NAME` on the server makes one."
)
_OPEN_PATHS = ("/healthz",)
"""What probes ask for, by whatever name or address they know."""
_METRICS = "/metrics"
_SECRETS = "/v1/realtime/client_secrets"
_VOICES = "/v1/audio/voices"
_OF_CALLS = ("/v1/realtime", "/v1/models", _VOICES)
_READS = (hdrs.METH_GET, hdrs.METH_HEAD)


def expect_key_or_loopback(config: Config, ring: KeyRing) -> None:
    """`ConfigError` where the whole network could use a server that asks nobody for a key."""
    host = config.server.host
    if ring.asks or not config.auth.required or is_loopback(host):
        return
    raise ConfigError(
        f"server.host: {host} can be reached from other machines, and there is no API key. Either "
        "make one (`voice-agent keys add NAME`), or listen on this machine alone "
        "(--host 127.0.0.1), or let everybody use it who reaches it (--no-auth). "
        f"Keys are looked for in {keys_file(config)}."
    )


def who_is_let_in(config: Config) -> str:
    """In words. `ConfigError` where a server with these settings would not listen."""
    ring = KeyRing.of(config)
    expect_key_or_loopback(config, ring)
    if ring.asks:
        return "a key is asked for"
    reach = "this machine" if is_loopback(config.server.host) else "the network"
    return f"there is none, and all on {reach} are let in"


class Guard:
    """Lets requests in, each with its `Caller`, or says why not."""

    def __init__(
        self, config: Config, ring: KeyRing, telemetry: Telemetry, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._settings = config.auth
        self._ring = ring
        self._telemetry = telemetry
        self.origins = Origins(config, lambda: ring.asks)
        self.secrets = ClientSecrets(clock)
        self.page_secrets = ClientSecrets(clock, PAGE_MARK, forgets=True)
        # Apart: no flood of strangers pushes out what is known of holders of keys.
        self._requests, self._page_requests, self._failures = (Rates(clock) for _ in range(3))

    @property
    def asks(self) -> bool:
        """Whether a key is needed."""
        return self._ring.asks

    @web.middleware
    async def let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """`AuthError` or `QuotaError` for whom it does not let in."""
        with self._counted():
            if self._ring.asks:
                self._examine(request)
            elif request.path not in _OPEN_PATHS:
                self._look_at(request)
            return await handler(request)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """What is refused inside is told to the metrics."""
        try:
            yield
        except (AuthError, QuotaError) as error:
            self._telemetry.request_refused(error.reason)
            raise

    def expect_still_in(self, caller: Caller) -> None:
        """`AuthError` for whoever's key has gone since, or is for fewer voices than it was."""
        if not caller.key_id:
            return
        voices = self._ring.still(caller.key_id).voices
        if voices and not (caller.voices and set(caller.voices) <= set(voices)):
            # What a call may switch to was settled when it began.
            raise VoiceForbidden("your key may not use all of this call's voices any more")

    def count_page_request(self, address: str) -> None:
        """One more of the pages there. `QuotaError`."""
        self._page_requests.take(address, self._settings.page_requests_per_minute)

    # ---- without keys -------------------------------------------------------------------------

    def _look_at(self, request: web.Request) -> None:
        self.origins.expect_known_host(request)
        self.origins.expect_allowed_page(request)
        key = key_in(request)
        # Any other key is what a client has to send to anybody.
        if key.startswith(SECRET_PREFIX):
            request[CALLER] = _granted(ANYONE, self.secrets.find(key))

    # ---- with keys ----------------------------------------------------------------------------

    def _examine(self, request: web.Request) -> None:
        if not _is_guarded(request) or request.method == hdrs.METH_OPTIONS:
            return
        if _is_upgrade(request):
            # Browsers ask nobody before they open a WebSocket, whatever the page.
            self.origins.expect_allowed_page(request)
        key = key_in(request)
        if not key:
            raise KeyRefused(_NO_KEY, reason="no_key")
        try:
            caller = self._caller(request, key)
        except KeyRefused:
            # Counted after it was found wrong: who holds a key shares no fate with strangers who
            # come from the same address, as all do behind a proxy.
            address = self.origins.address(request)
            self._failures.take(address, self._settings.failures_per_minute, "wrong keys")
            raise
        _expect_may(caller, request)
        request[CALLER] = caller

    def _caller(self, request: web.Request, key: str) -> Caller:
        if not key.startswith(SECRET_PREFIX):
            return self._counted_holder(self._ring.holder_of(key))
        if key.startswith(SECRET_PREFIX + PAGE_MARK):
            return self._visitor(request, self.page_secrets.find(key))
        secret = self.secrets.find(key)
        return _granted(self._counted_holder(self._ring.still(secret.holder)), secret)

    def _counted_holder(self, key: ApiKey) -> Caller:
        settings = self._settings
        per_minute = key.requests_per_minute or settings.requests_per_minute
        self._requests.take(key.name, per_minute)
        # Those without a limit are counted, too: it may be given one while they call.
        most_calls = key.max_calls or settings.max_calls or MOST_CALLS
        most_chats = key.max_chats or settings.max_chats or MOST_CHATS
        name = f"the key {key.name}"
        return Caller(
            key.name,
            key.sha256,
            shares=(Share(name, most_calls),),
            chat_shares=(Share(name, most_chats),),
            voices=key.voices,
            allowance=partial(_left, self._requests, key.name, per_minute),
            count_request=partial(self._requests.take, key.name, per_minute),
            # Whoever may use some voices only may not make those of others go away either.
            may_change_voices=not key.voices,
        )

    def _visitor(self, request: web.Request, secret: ClientSecret) -> Caller:
        settings, address = self._settings, self.origins.address(request)
        self.count_page_request(address)
        return Caller(
            PAGE,
            secret=secret.visitor,
            shares=(
                Share("the page", settings.page_calls),
                Share(f"the page at {address}", settings.page_calls_per_address),
            ),
            chat_shares=(
                Share("the page", settings.page_chats),
                Share(f"the page at {address}", settings.page_chats_per_address),
            ),
            may_grant=False,
            may_change_voices=settings.page_voices,
            count_request=partial(self.count_page_request, address),
        )


GUARD = web.AppKey("guard", Guard)


def _left(rates: Rates, name: str, per_minute: int) -> list[RateLimit]:
    remaining, reset_s = rates.left(name, per_minute)
    return [RateLimit("requests", per_minute, remaining, reset_s)]


# ---- reading a request ------------------------------------------------------------------------


def key_in(request: web.Request) -> str:
    """What a request gives as its key; "" when it gives none."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if _is_upgrade(request):
        for offered in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(","):
            if offered.strip().startswith(_SUBPROTOCOL):
                return offered.strip().removeprefix(_SUBPROTOCOL)
    return ""


def _is_upgrade(request: web.Request) -> bool:
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


def _place(request: web.Request) -> str:
    """By the route that will answer, however the path is spelt; where there is none, the path."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else request.path


def _is_guarded(request: web.Request) -> bool:
    place = _place(request)
    return place.startswith("/v1/") or place == _METRICS


def _granted(holder: Caller, secret: ClientSecret) -> Caller:
    """Less than the holder of the key may do, who gave the secret away."""
    return replace(
        holder,
        secret=secret.visitor,
        session=secret.session,
        may_grant=False,
        may_change_voices=False,
        may_chat=False,
    )


def _expect_may(caller: Caller, request: web.Request) -> None:
    """`Forbidden` for what is not for this caller, whatever it is about."""
    place, reads = _place(request), request.method in _READS
    if place in (_SECRETS, _METRICS) and not caller.may_grant:
        raise Forbidden("this needs an API key; a client secret does not do")
    if place.startswith(_VOICES) and not reads and not caller.may_change_voices:
        raise Forbidden("your key may use voices, but not add or delete them")
    if not caller.may_chat and not place.startswith(_OF_CALLS):
        raise Forbidden("a client secret opens calls; chats and speech need an API key")
