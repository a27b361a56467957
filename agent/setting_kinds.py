"""What a setting may be: a section of them, and texts that more than their length is asked of."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Allowed:
    """Says in words what a validated text may be.

    One with `hide` is a secret: messages leave it out, and listings show what `hide` makes of it.
    """

    words: str
    hide: Callable[[str], str] | None = None


def _ip_address(text: str) -> str:
    ipaddress.ip_address(text)
    return text


def _device(text: str) -> str:
    name, colon, number = text.partition(":")
    if text not in ("auto", "cpu", "cuda") and not (
        name == "cuda" and colon and number.isdecimal()
    ):
        raise ValueError("not a device")
    return text


def _cors_origin(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if text != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
        raise ValueError("not an origin")
    return text


_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}:[0-9a-f]{64}")


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("not a host name")
    return text


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _key_hash(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise ValueError("not a key's name and hash")
    return text


def _ice_server(text: str) -> str:
    scheme, _, rest = text.partition(":")
    credentials, _, address = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    is_stun = scheme in ("stun", "stuns") and not credentials
    is_turn = scheme in ("turn", "turns") and bool((user and password) or not credentials)
    if not address or any(character.isspace() for character in text) or not (is_stun or is_turn):
        raise ValueError("not an ICE server")
    return text


def _less_password(server: str) -> str:
    scheme, _, rest = server.partition(":")
    credentials, at, address = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}:{user}:***@{address}" if at else server


def _less_all(secret: str) -> str:
    return "***" if secret else ""


def _less_hash(key: str) -> str:
    return f"{key.partition(':')[0]}:***"


Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_cors_origin)], ...],
    Allowed('"*" or origins such as "https://example.org"'),
]
Device = Annotated[
    str, AfterValidator(_device), Allowed('"auto" or "cpu" or "cuda" or "cuda:1" and so on')
]
Addresses = Annotated[
    tuple[Annotated[str, AfterValidator(_ip_address)], ...], Allowed("IP addresses")
]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_host)], ...],
    Allowed('names such as "voice.example.org", in small letters'),
]
Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...],
    Allowed('addresses, or networks such as "10.0.0.0/8"'),
]
# Somebody may well write a key there instead of its hash.
KeyHashes = Annotated[
    tuple[Annotated[str, AfterValidator(_key_hash)], ...],
    Allowed("what `voice-agent keys add NAME --no-file` prints", hide=_less_hash),
]
IceServers = Annotated[
    tuple[Annotated[str, AfterValidator(_ice_server)], ...],
    Allowed(
        '"stun:host:port" or "turn:user:password@host:port", with `rtc.turn_secret` also '
        '"turn:host:port"',
        hide=_less_password,
    ),
]
TurnSecret = Annotated[str, Allowed("coturn's `static-auth-secret`", hide=_less_all)]


class Section(BaseModel):
    """One section of the settings."""

    # Strict, so that `port = "8006"` and `port = true` are mistakes and not ports.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
