"""A lossy network inside the test's process: a UDP relay that loses RTP by a written pattern.

The relay stands between a server and one client, which may be a real Chromium: the client's offer
loses its candidates and the answer names the relay instead of the server, so every packet takes
the way through here. Only RTP is lost, late or out of order; connection checks, encryption and
events pass, so a call can be set up under any pattern. Needs no rights and no namespaces.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

HOST = "127.0.0.1"
_RTCP_TYPES = range(64, 96)
"""What the second byte of RTCP holds without its top bit (RFC 5761)."""
_MAX_UNDERWAY = 4096
"""So many packets may be delayed at a time; beyond it the newest are lost."""
_ANY_CANDIDATE = re.compile(r"^a=(candidate:.*|end-of-candidates)\r?\n", re.MULTILINE)
_HOST_CANDIDATE = re.compile(r"^a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", re.I | re.M)


class LossPattern(Protocol):
    """What becomes of RTP packets, counted from 0 since the pattern came into force."""

    def delay_s(self, number: int) -> float | None:
        """How much later than it could packet `number` arrives; None when it is lost."""


@dataclass(frozen=True, slots=True)
class Clean:
    """Nothing is lost; every packet takes `delay_ms`."""

    delay_ms: float = 0.0

    def delay_s(self, number: int) -> float | None:
        """The same for all."""
        return self.delay_ms / 1000


@dataclass(frozen=True, slots=True)
class Written:
    """Exactly these packets are lost, exactly those late by so many milliseconds."""

    lost: frozenset[int] = frozenset()
    late_ms: Mapping[int, float] = field(default_factory=dict)

    def delay_s(self, number: int) -> float | None:
        """As written."""
        return None if number in self.lost else self.late_ms.get(number, 0.0) / 1000


def burst(first: int, count: int) -> Written:
    """`count` packets in a row are lost."""
    return Written(frozenset(range(first, first + count)))


class RandomLoss:
    """A share of the packets is lost, in bursts of `burst`; the rest comes between `delay_ms` and
    `delay_ms + jitter_ms` late. The same `seed` gives the same pattern."""

    def __init__(
        self,
        share: float = 0.0,
        *,
        seed: int,
        burst: int = 1,
        delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
    ) -> None:
        self._share = share / burst
        self._burst = burst
        self._delay_ms = delay_ms
        self._jitter_ms = jitter_ms
        self._random = random.Random(seed)
        self._left = 0

    def delay_s(self, number: int) -> float | None:
        """Drawn anew for each packet: to be asked once for each, in order."""
        drawn, late = self._random.random(), self._random.random()
        if self._left:
            self._left -= 1
            return None
        if drawn < self._share:
            self._left = self._burst - 1
            return None
        return (self._delay_ms + late * self._jitter_ms) / 1000


class Way:
    """One direction of the relay. Its pattern may be changed at any time."""

    def __init__(self) -> None:
        self._pattern: LossPattern = Clean()
        self._number = 0
        self._reorder = False
        self._last_due_s = 0.0
        self.passed = 0
        """RTP packets that were let through since the pattern came into force."""
        self.lost = 0
        """RTP packets that were lost since then."""

    def follow(self, pattern: LossPattern, *, reorder: bool = False) -> None:
        """From now on `pattern` decides; without `reorder` a late packet holds those behind it."""
        self._pattern = pattern
        self._reorder = reorder
        self._number = self.passed = self.lost = 0

    def due_s(self, now_s: float, packet: bytes) -> float | None:
        """When `packet`, which came at `now_s`, is to be handed on; None when it is lost."""
        if not _is_rtp(packet):
            return now_s
        delay_s = self._pattern.delay_s(self._number)
        self._number += 1
        if delay_s is None:
            self.lost += 1
            return None
        self.passed += 1
        if self._reorder:
            return now_s + delay_s
        self._last_due_s = max(now_s + delay_s, self._last_due_s)
        return self._last_due_s


def _is_rtp(packet: bytes) -> bool:
    """Media, neither STUN nor DTLS nor RTCP, by the first two bytes (RFC 7983)."""
    return len(packet) > 1 and packet[0] >> 6 == 2 and packet[1] & 0x7F not in _RTCP_TYPES


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, relay: "LossyRelay", *, of_client: bool) -> None:
        self._relay = relay
        self._of_client = of_client
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if self._of_client:
            self._relay.from_client(data, addr)
        else:
            self._relay.from_server(data)


class LossyRelay:
    """Hand `offer` and `answer` through it, then everything between the two takes this way."""

    def __init__(self) -> None:
        self.to_server = Way()
        self.to_client = Way()
        self._client_side = _Socket(self, of_client=True)
        self._server_side = _Socket(self, of_client=False)
        self._client: tuple[str | Any, int] | None = None
        self._server: tuple[str, int] | None = None
        self._underway: set[asyncio.TimerHandle] = set()

    # ---- signalling ---------------------------------------------------------------------------

    def offer(self, sdp: str) -> str:
        """The client's offer without its addresses: the server must not find a way around."""
        return _ANY_CANDIDATE.sub("", sdp)

    def answer(self, sdp: str) -> str:
        """The server's answer with the relay in the place of the server."""
        found = _HOST_CANDIDATE.search(sdp)
        if found is None:
            raise ValueError("the answer names no host candidate")
        self._server = (found[1], int(found[2]))
        line = f"a=candidate:1 1 udp 2130706431 {HOST} {self.port} typ host\r\n"
        head, *media = re.split(r"(?m)^(?=m=)", _ANY_CANDIDATE.sub("", sdp))
        return head + "".join(section + line for section in media)

    @property
    def port(self) -> int:
        """Where the client finds the relay."""
        assert self._client_side.transport is not None, "the relay is not open"
        port: int = self._client_side.transport.get_extra_info("sockname")[1]
        return port

    # ---- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen, on ports that the system chooses."""
        loop = asyncio.get_running_loop()
        for side in (self._client_side, self._server_side):
            await loop.create_datagram_endpoint(lambda side=side: side, local_addr=(HOST, 0))  # type: ignore[misc]

    def close(self) -> None:
        """Stop; what is underway is lost."""
        for handle in self._underway:
            handle.cancel()
        self._underway.clear()
        for side in (self._client_side, self._server_side):
            if side.transport is not None:
                side.transport.close()

    # ---- packets ------------------------------------------------------------------------------

    def from_client(self, packet: bytes, address: tuple[str | Any, int]) -> None:
        """Carry `packet` on to the server."""
        self._client = address
        if self._server is not None:
            self._carry(self.to_server, packet, self._server_side, self._server)

    def from_server(self, packet: bytes) -> None:
        """Carry `packet` on to the client."""
        if self._client is not None:
            self._carry(self.to_client, packet, self._client_side, self._client)

    def _carry(
        self, way: Way, packet: bytes, side: _Socket, address: tuple[str | Any, int]
    ) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        due_s = way.due_s(now_s, packet)
        if due_s is None or side.transport is None or len(self._underway) >= _MAX_UNDERWAY:
            return
        if due_s <= now_s:
            side.transport.sendto(packet, address)
            return
        handle: asyncio.TimerHandle

        def arrive() -> None:
            self._underway.discard(handle)
            if side.transport is not None:
                side.transport.sendto(packet, address)

        handle = loop.call_at(due_s, arrive)
        self._underway.add(handle)


@asynccontextmanager
async def lossy_relay() -> AsyncIterator[LossyRelay]:
    """A relay that is open, clean at first."""
    relay = LossyRelay()
    await relay.open()
    try:
        yield relay
    finally:
        relay.close()
        await asyncio.sleep(0)  # the sockets close one turn of the loop later
