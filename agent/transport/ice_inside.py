"""What is known of aioice's inside beyond what aiortc asks of it: candidates that come late, and
a second connection that takes the place of the first, which aiortc calls an ICE restart and lacks.

DTLS and SRTP do not notice: keys and counters stay, only the way of the datagrams is another.
"""

import asyncio
import contextlib
import functools
import struct
from collections.abc import Callable, Iterable
from typing import Any

import aioice
import aioice.mdns
import aioice.stun
from aiortc import RTCIceGatherer, RTCIceTransport, RTCPeerConnection

from agent.transport.ice_fragment import Credentials, IceSection
from agent.transport.peer_bounds import bound_addresses
from agent.transport.short_ways import RECEIVED, ShortWayIn

_TAKEN = "udp"
_ASK_S = 1.5
"""STUN and TURN servers that take longer are done without: callers wait for the answer."""


def _read_or_refused(
    read: Callable[..., aioice.stun.Message],
) -> Callable[..., aioice.stun.Message]:
    """`read`, whose ValueError tells all that cannot be read.

    An attribute that is too short raises what aioice does not catch: each such datagram, from
    whomever, would write a page into the log.
    """

    @functools.wraps(read)
    def reading(*given: Any, **named: Any) -> aioice.stun.Message:
        try:
            return read(*given, **named)
        except struct.error as error:
            raise ValueError("a STUN attribute of the wrong length") from error

    return reading


aioice.stun.parse_message = _read_or_refused(aioice.stun.parse_message)


def ways_of(peer: RTCPeerConnection) -> list[tuple[RTCIceTransport, list[str]]]:
    """Each transport with the names of the sections that go by it, which is all in a bundle."""
    named = [(each.receiver.transport.transport, each.mid) for each in peer.getTransceivers()]
    if peer.sctp is not None:
        named.append((peer.sctp.transport.transport, peer.sctp.mid))
    found: dict[RTCIceTransport, list[str]] = {}
    for transport, mid in named:
        found.setdefault(transport, []).append(mid or "")
    return list(found.items())


def ask_briefly(connection: Any) -> None:
    """Let gathering wait for STUN and TURN servers no longer than `_ASK_S`; aioice takes 5 s."""
    gather = connection.get_component_candidates
    connection.get_component_candidates = functools.partial(gather, timeout=_ASK_S)


def read_candidates(texts: Iterable[str]) -> list[aioice.Candidate]:
    """Those that can be used here: UDP, and no second one for RTCP. ValueError."""
    found = []
    for text in texts:
        try:
            candidate = aioice.Candidate.from_sdp(text)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{text[:120]!r} is no candidate") from error
        if not 0 < candidate.port < 1 << 16:
            raise ValueError(f"{text[:120]!r} names no port")
        if candidate.component == 1 and candidate.transport.lower() == _TAKEN:
            found.append(candidate)
    return found


def hides_address(candidate: aioice.Candidate) -> bool:
    """Whether it has to be asked for in the local network first, which may take a second."""
    return bool(aioice.mdns.is_mdns_hostname(candidate.host))


async def add_candidates(
    connection: aioice.Connection, candidates: Iterable[aioice.Candidate]
) -> None:
    """Let them be tried; one whose name nobody knows is passed over."""
    for candidate in candidates:
        # No socket for asking: the peer's own checks will show where it is.
        with contextlib.suppress(OSError):
            await connection.add_remote_candidate(candidate)


def local_side(connection: aioice.Connection, mid: str) -> IceSection:
    """What the other side has to know of `connection`, whose candidates are gathered."""
    credentials = Credentials(connection.local_username, connection.local_password)
    candidates = tuple(each.to_sdp() for each in connection.local_candidates)
    return IceSection(mid, credentials, candidates)


class SecondWay:
    """A new ICE connection beside the one in use; `take_over` once it stands, else `give_up`.

    What comes in by it counts from the first datagram on, what goes out goes by the old one until
    then.
    """

    def __init__(self, transport: RTCIceTransport) -> None:
        old = self._old = transport._connection
        self._transport = transport
        self.connection = aioice.Connection(
            ice_controlling=old.ice_controlling,
            stun_server=old.stun_server,
            turn_server=old.turn_server,
            turn_username=old.turn_username,
            turn_password=old.turn_password,
            turn_ssl=old.turn_ssl,
            turn_transport=old.turn_transport,
        )
        self.connection.remote_is_lite = old.remote_is_lite
        self.connection._queue = old._queue
        bound_addresses(self.connection)
        self._hook = _hook_of(old)
        if self._hook is not None:
            self._hook.stand_at(self.connection)

    async def gather(self) -> None:
        """Find this side's candidates."""
        ask_briefly(self.connection)
        await self.connection.gather_candidates()

    async def connect(self, remote: Credentials) -> None:
        """Return when the other side has chosen a way. `ConnectionError`."""
        self.connection.remote_username = remote.username
        self.connection.remote_password = remote.password
        await self.connection.connect()

    def take_over(self) -> None:
        """From now on all goes by the new way; what is on the old one still comes in."""
        transport, old, new = self._transport, self._old, self.connection
        transport._connection = transport.iceGatherer._connection = new
        transport._recv, transport._send = new.recv, new.send
        # aiortc waits there for the end of its connection, which this is not.
        new._event_waiter, old._event_waiter = old._event_waiter, None
        # Whoever closes wakes whoever receives.
        old._queue = asyncio.Queue()
        if self._hook is None:
            setattr(old, RECEIVED, new.data_received)

    async def retire(self) -> None:
        """Close the old way, after `take_over`."""
        await self._old.close()

    async def give_up(self) -> None:
        """Close the new way; all goes on by the old one."""
        if self._hook is not None:
            self._hook.stand_at(self._old)
        self.connection._queue = asyncio.Queue()
        await self.connection.close()


def _hook_of(connection: aioice.Connection) -> ShortWayIn | None:
    """What stands where datagrams are handed over."""
    hook = getattr(vars(connection).get(RECEIVED), "__self__", None)
    return hook if isinstance(hook, ShortWayIn) else None


async def check_second_way() -> None:
    """Send something through a way that took over. AttributeError or TypeError."""
    transport = RTCIceTransport(RTCIceGatherer(iceServers=[]))
    old: Any = transport._connection
    old._nominated[1] = None
    receiving, ending = (asyncio.ensure_future(one()) for one in (transport._recv, old.get_event))
    await asyncio.sleep(0)
    second = SecondWay(transport)
    ask_briefly(second.connection)
    second.take_over()
    await second.retire()
    early = receiving.done() or ending.done()
    second.connection.data_received(b"x", 1)
    await second.connection.close()
    came, lasting = await asyncio.wait((receiving, ending), timeout=1)
    for task in lasting:
        task.cancel()
    if early or ending not in came:
        raise AttributeError("the end of a connection is told elsewhere")
    if receiving not in came or receiving.exception() or receiving.result() != b"x":
        raise AttributeError("what comes by a second connection does not arrive")
