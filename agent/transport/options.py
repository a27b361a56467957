"""What a WebRTC connection is made with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server that helps to find a way through a NAT."""

    url: str
    username: str = ""
    credential: str = ""


@dataclass(frozen=True, slots=True)
class RtcOptions:
    """Limits and helpers of one connection; times in seconds."""

    ice_servers: tuple[IceServer, ...] = ()
    connect_timeout_s: float = 10.0
    watchdog_s: float = 4.0
    return_s: float = 0.0
    """How long after that a silent peer may come back."""
