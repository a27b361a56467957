"""Where a request comes from: by which name, from which page, from which address.

A browser sends requests for any page that it has open. What keeps foreign pages out is the key that
they have not got; a server that asks for none has to look where a request comes from. A page whose
host's name was turned to this machine's address (DNS rebinding) passes for our own, but for the
name: it is in the Host header. A page at a bare address cannot do that.
"""

import ipaddress
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from agent.config import Config
from agent.errors import AuthError
from agent.tls import certificate_names, is_loopback

_REQUEST_HEADERS = (
    "Authorization, Content-Type, X-OpenAI-Agents-SDK, OpenAI-Beta, OpenAI-Organization, "
    "OpenAI-Project, If-Match"
)
_REPLY_HEADERS = "Location, ETag, Link, Retry-After, Accept-Patch, Accept-Post"
_METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
_V6_SITE_BITS = 64
_SAME = "same-origin"


class UnknownHost(AuthError):
    """The request is meant for a server of another name."""

    status = 421
    code = "unknown_host"
    reason = "host"


class ForeignOrigin(AuthError):
    """A page sends this that may not."""

    status = 403
    code = "foreign_origin"
    reason = "origin"


class Origins:
    """What the settings say of hosts, pages and proxies. `asks` says whether a key is asked for."""

    def __init__(self, config: Config, asks: Callable[[], bool]) -> None:
        server = config.server
        self._listed = server.cors_origins
        self._asks = asks
        self._open_to_all = not config.auth.required
        self._public = server.public_hosts
        self._hosts = frozenset(server.public_hosts) | _own_names(config)
        self._proxies = tuple(ipaddress.ip_network(each) for each in server.proxies)

    # ---- hosts --------------------------------------------------------------------------------

    def expect_known_host(self, request: web.Request) -> None:
        """`UnknownHost` for a name that is neither this machine's nor in the settings."""
        host = _host_in(request.headers.get(hdrs.HOST, ""))
        if not (_is_address(host) or _is_localhost(host) or self._is_named(host)):
            raise UnknownHost(
                f"this server is not called {host[:100]!r}; name it in server.public_hosts, or "
                "use its address"
            )

    def _is_named(self, host: str) -> bool:
        any_below = f"*.{host.partition('.')[2]}"
        return host in self._hosts or any_below in self._hosts

    # ---- pages --------------------------------------------------------------------------------

    def allow(self, origin: str) -> bool:
        """Whether pages of `origin` may call, and read what is said."""
        if origin in self._listed:
            return True
        if "*" not in self._listed or not origin:
            return False
        return self._asks() or self._open_to_all or _is_localhost(_host_of(origin))

    def expect_allowed_page(self, request: web.Request) -> None:
        """`ForeignOrigin` for a request of a page that is neither our own nor allowed."""
        origin = request.headers.get(hdrs.ORIGIN, "")
        if origin and not self.allow(origin) and not self._is_own(request, origin):
            raise ForeignOrigin(
                f"pages of {origin[:100]!r} may not use this server; list it in server.cors_origins"
            )

    def expect_own_page(self, request: web.Request) -> None:
        """`ForeignOrigin`, or `UnknownHost`, unless a page of this server says that it asks."""
        origin = request.headers.get(hdrs.ORIGIN, "")
        site = request.headers.get("Sec-Fetch-Site")
        if site is None:
            # Browsers leave it out over plain HTTP, where names can be turned to any address.
            self.expect_known_host(request)
        if not (site == _SAME or (site is None and self._is_own(request, origin))):
            raise ForeignOrigin("only this server's own page is answered here")

    def _is_own(self, request: web.Request, origin: str) -> bool:
        site = request.headers.get("Sec-Fetch-Site")
        place = _place_in(origin)
        # Behind a proxy the host may be another one; browsers say so themselves where they can.
        is_here = bool(place) and place in (request.host.lower(), *self._public)
        return site == _SAME if site is not None else is_here

    def tell(self, request: web.Request) -> Mapping[str, str]:
        """The headers that let the page read the reply; none where it may not."""
        origin = request.headers.get(hdrs.ORIGIN, "")
        if not request.path.startswith("/v1/") or not self.allow(origin):
            return {}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _REPLY_HEADERS,
            hdrs.VARY: hdrs.ORIGIN,
        }

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks before it sends; None for every other request."""
        asks = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if request.method != hdrs.METH_OPTIONS or not asks or not self.tell(request):
            return None
        headers = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, _REQUEST_HEADERS)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: headers,
                hdrs.ACCESS_CONTROL_MAX_AGE: "600",
            },
        )

    # ---- addresses ----------------------------------------------------------------------------

    def address(self, request: web.Request) -> str:
        """Whom to count for: the client's address, of IPv6 the network that a site is given."""
        address = request.remote or ""
        said = request.headers.getall(hdrs.X_FORWARDED_FOR, [])
        # The last one was written by the proxy that we know; what stands before, by anybody.
        for before in reversed([each.strip() for line in said for each in line.split(",")]):
            if not self._is_proxy(address):
                break
            has_port = before.startswith("[") or before.count(":") == 1
            address = _host_in(before) if has_port else before
        return _site(address)

    def _is_proxy(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in each for each in self._proxies)
        except ValueError:
            return False


def _own_names(config: Config) -> frozenset[str]:
    """Of this machine and of the certificate that the settings name."""
    machine = socket.gethostname().lower()
    names = {machine, f"{machine}.local", config.server.host.lower()}
    if config.server.tls_certificate:
        names |= certificate_names(Path(config.server.tls_certificate))
    return frozenset(names)


def _host_in(header: str) -> str:
    """Less the port."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _host_of(origin: str) -> str:
    return _host_in(_place_in(origin))


def _place_in(origin: str) -> str:
    """Host and port; "" where it names none."""
    try:
        return urlsplit(origin).netloc.lower() if "://" in origin else ""
    except ValueError:  # no browser sends such brackets
        return ""


def _is_localhost(host: str) -> bool:
    return host.endswith(".localhost") or is_loopback(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _site(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), _V6_SITE_BITS), strict=False))
    return str(found)
