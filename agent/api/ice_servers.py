"""The STUN and TURN servers that calls go by: for the calls themselves, and for who makes them."""

from agent.config import Config
from agent.transport.options import IceServer


def ice_servers(config: Config) -> tuple[IceServer, ...]:
    """Those of the settings."""
    return tuple(_ice_server(text) for text in config.rtc.ice_servers)


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


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ice_server(text: str) -> IceServer:
    """`stun:host:port` or `turn:user:password@host:port`, as the settings hold them."""
    scheme, _, rest = text.partition(":")
    credentials, _, address = rest.rpartition("@")
    username, _, credential = credentials.partition(":")
    return IceServer(f"{scheme}:{address}", username, credential)
