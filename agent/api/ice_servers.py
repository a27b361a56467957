"""The STUN and TURN servers that calls go by: for the calls themselves, and for who makes them.

TURN servers that share a secret with this one (`rtc.turn_secret`) get user names that expire, by
the scheme of coturn's `use-auth-secret`: the time when it ends, and a hash of that as password.
"""

import base64
import hashlib
import hmac

from agent.clock import SYSTEM_CLOCK, Clock
from agent.config import Config
from agent.transport.options import IceServer

_MARGIN_S = 600
"""Calls are begun some time after their credentials were asked for."""


def ice_servers(
    config: Config, user: str = "agent", clock: Clock = SYSTEM_CLOCK
) -> tuple[IceServer, ...]:
    """Those of the settings, for a call of `user`'s that begins now."""
    ends_s = int(clock.unix_s() + config.calls.max_duration_s + _MARGIN_S)
    servers = (_ice_server(text) for text in config.rtc.ice_servers)
    secret = config.rtc.turn_secret
    return tuple(_with_pair(each, secret, f"{ends_s}:{user}") for each in servers)


def as_json(server: IceServer) -> dict[str, object]:
    """As browsers take it: an `RTCIceServer`."""
    told: dict[str, object] = {"urls": [server.url]}
    if server.username:
        told |= {"username": server.username, "credential": server.credential}
    return told


def as_link(server: IceServer) -> str:
    """As WHIP's answers have it: the value of a `Link` header."""
    words = [f"<{server.url}>", 'rel="ice-server"']
    if server.username:
        words.append(f"username={_quoted(server.username)}")
        words.append(f"credential={_quoted(server.credential)}")
        words.append('credential-type="password"')
    return "; ".join(words)


def _with_pair(server: IceServer, secret: str, username: str) -> IceServer:
    if server.username or not server.url.startswith("turn"):
        return server
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return IceServer(server.url, username, base64.b64encode(digest).decode())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ice_server(text: str) -> IceServer:
    """`stun:host:port` or `turn:user:password@host:port`, as the settings hold them."""
    scheme, _, rest = text.partition(":")
    credentials, _, address = rest.rpartition("@")
    username, _, credential = credentials.partition(":")
    return IceServer(f"{scheme}:{address}", username, credential)
