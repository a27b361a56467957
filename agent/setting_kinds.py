"""What a setting may be: a section of them, and texts that more than their length is asked of."""

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Allowed:
    """Says in words what a validated text may be; `secret` keeps its value out of messages."""

    words: str
    secret: bool = False


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


def _ice_server(text: str) -> str:
    scheme, _, rest = text.partition(":")
    credentials, _, address = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    is_stun = scheme in ("stun", "stuns") and not credentials
    is_turn = scheme in ("turn", "turns") and bool(user and password)
    if not address or any(character.isspace() for character in text) or not (is_stun or is_turn):
        raise ValueError("not an ICE server")
    return text


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
IceServers = Annotated[
    tuple[Annotated[str, AfterValidator(_ice_server)], ...],
    Allowed('"stun:host:port" or "turn:user:password@host:port"', secret=True),
]


class Section(BaseModel):
    """One section of the settings."""

    # Strict, so that `port = "8006"` and `port = true` are mistakes and not ports.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
