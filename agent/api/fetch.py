"""Fetching what a client's URL points to, without lending the client this machine's network.

The address is checked where the socket for it is made. So it does not matter how it was spelled,
what a name resolved to a moment ago, or which redirect led there: it is the very address that
would be connected to.
"""

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver
from yarl import URL

from agent import __version__
from agent.errors import RequestError

_MOST_REDIRECTS = 5
_MOST_URL_CHARACTERS = 8192
_SCHEMES = ("http", "https")
_HEADERS = {
    hdrs.USER_AGENT: f"voice-agent/{__version__}",
    # What is small on the wire could otherwise be huge here.
    hdrs.ACCEPT_ENCODING: "identity",
}
_NOT_PUBLIC = (
    # Azure's metadata service has a public address; Oracle's lies in one kept for protocols.
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("192.0.0.0/24"),
)
_NAT64 = b"\0\x64\xff\x9b" + bytes(8)
"""64:ff9b::/96, by which networks with IPv6 alone reach the rest."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one URL may cost, and whether it may lead to addresses that are not public."""

    most_bytes: int
    timeout_s: float
    allow_private: bool = False


class SharedBytes:
    """What all files of one request together may still hold, counted as they come."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._left_bytes = most_bytes

    def take(self, count: int) -> None:
        """`count` bytes more have come. `RequestError` when that is too much."""
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise RequestError(
                f"the files behind the URLs are larger than {self._most_bytes:,} bytes in all, "
                "which is the limit for whole requests (chat.max_body_bytes)",
                code="file_too_large",
            )


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the internet at large."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return all(_is_global(each) for each in _meant(parsed))


def _is_global(address: IpAddress) -> bool:
    special = (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_private
    )
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    listed = any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not (special or site_local or listed)


def _meant(address: IpAddress) -> list[IpAddress]:
    """An address, and the IPv4 addresses to which a gateway would carry it."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    last = ipaddress.IPv4Address(address.packed[12:])
    if address.packed[:12] == _NAT64:
        return [last]
    embedded = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    return [address, *(each for each in embedded if each is not None)]


class Fetcher:
    """Fetches files over HTTP and HTTPS.

    `resolver` and `public` are seams for tests: who turns names into addresses, and which
    addresses are those of the internet.
    """

    def __init__(
        self,
        limits: FetchLimits,
        resolver: AbstractResolver | None = None,
        public: Callable[[str], bool] = is_public,
    ) -> None:
        self._limits = limits
        self._resolver = resolver
        self._public = public

    async def fetch(self, url: str, shared: SharedBytes | None = None) -> bytes:
        """The file at `url`; `RequestError` for whatever keeps it from coming whole and in time.

        What comes is taken from `shared`, too.
        """
        address = _checked_url(url)
        guard = _Guard(self._public, self._limits.allow_private)
        try:
            async with self._session(guard) as session:
                async with session.get(address, max_redirects=_MOST_REDIRECTS) as response:
                    return await self._read(response, shared)
        except aiohttp.TooManyRedirects as error:
            raise _failed(f"it redirects more than {_MOST_REDIRECTS} times") from error
        except aiohttp.InvalidURL as error:
            raise _failed("it is, or leads to, an address that cannot be used") from error
        except TimeoutError as error:
            raise _failed(f"it did not come within {self._limits.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if guard.refused:
                raise _private() from error
            raise _failed(f"it cannot be reached ({type(error).__name__})") from error

    def _session(self, guard: "_Guard") -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=guard.make_socket,
            use_dns_cache=False,
            force_close=True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._limits.timeout_s),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def _read(self, response: aiohttp.ClientResponse, shared: SharedBytes | None) -> bytes:
        if response.status != 200:
            raise _failed(f"its server answers {response.status}")
        most = self._limits.most_bytes
        if (response.content_length or 0) > most:
            raise _too_large(most)
        received = bytearray()
        async for piece in response.content.iter_any():
            received += piece
            if shared is not None:
                shared.take(len(piece))
            if len(received) > most:
                raise _too_large(most)
        return bytes(received)


class _Guard:
    """Makes the sockets of one fetch, none for an address that is not allowed."""

    def __init__(self, public: Callable[[str], bool], allow_private: bool) -> None:
        self.refused = False
        self._public = public
        self._allow_private = allow_private

    def make_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for `address`; `OSError`, which lets other addresses of a name be tried."""
        family, kind, protocol, _, where = address
        if not self._allow_private and not self._public(str(where[0])):
            self.refused = True
            raise PermissionError("not a public address")
        return socket.socket(family, kind, protocol)


def _checked_url(url: str) -> URL:
    if len(url) > _MOST_URL_CHARACTERS:
        raise _failed(f"it is longer than {_MOST_URL_CHARACTERS:,} characters")
    try:
        address = URL(url)
    except ValueError as error:
        raise _failed(f"it is malformed: {error}") from error
    if address.scheme not in _SCHEMES:
        raise _failed("it begins with neither http:// nor https:// nor data:")
    if not address.host:
        raise _failed("it names no host")
    return address


def _failed(why: str) -> RequestError:
    return RequestError(f"the URL cannot be fetched: {why}", code="url_not_fetched")


def _private() -> RequestError:
    return RequestError(
        "the URL leads to an address that is not public; the setting chat.allow_private_urls "
        "would allow it",
        code="private_url",
    )


def _too_large(most: int) -> RequestError:
    return RequestError(
        f"the file behind the URL is larger than the {most:,} bytes allowed", code="file_too_large"
    )
