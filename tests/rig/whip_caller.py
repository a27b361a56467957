"""A WHIP client: an aiortc peer that posts an offer and speaks of ICE by PATCH (RFC 9725).

It has no data channel. By default it only sends, video first, as broadcasting programs do. Its
restart is one of its own making, since aiortc has none: see `agent.transport.ice_inside`.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
import numpy as np
from aiortc import RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from yarl import URL

from agent.transport.ice_fragment import (
    Fragment,
    ice_lines,
    read_fragment,
    read_offer,
    without_ice,
    written,
)
from agent.transport.ice_inside import (
    SecondWay,
    add_candidates,
    local_side,
    read_candidates,
    ways_of,
)
from agent.types import FloatArray
from tests.rig.caller import RATE_HZ, SpeakingTrack
from tests.rig.sound import loud_s

FRAGMENT = "application/trickle-ice-sdpfrag"
SDP = "application/sdp"
_PAUSE = 50
"""Pieces of 20 ms: longer than between two words."""


Seconds: TypeAlias = list[tuple[SecondWay, str]]
"""New ways, each with the name of its first section."""


@dataclass(frozen=True)
class Again:
    """A later offer, and the ways that it is for."""

    offer: str
    seconds: Seconds


class WhipCaller:
    """One client. `post`, then `trickle`, `restart`; at the end `delete` and `close`."""

    def __init__(
        self,
        endpoint: str,
        *,
        kinds: Sequence[str] = ("video", "audio"),
        direction: str = "sendonly",
    ) -> None:
        self.endpoint = URL(endpoint)
        self.microphone = SpeakingTrack()
        self.http = aiohttp.ClientSession()
        self.peer = RTCPeerConnection()
        self.answer = ""
        self.location = self.endpoint
        self.tag = ""
        self.refusal: dict[str, object] = {}
        self.heard: list[FloatArray] = []
        self._listening: list[asyncio.Task[None]] = []
        self.peer.on("track", self._on_track)
        for kind in kinds:
            track = self.microphone if kind == "audio" else VideoStreamTrack()
            self.peer.addTransceiver(track, direction)

    async def offer(self, *, candidates: bool = False) -> str:
        """The offer, with its candidates or for trickling."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        lines = self.peer.localDescription.sdp.split("\r\n")
        gone = () if candidates else ("a=candidate", "a=end-of-candidates")
        return "\r\n".join(line for line in lines if not line.startswith(gone))

    async def post(
        self, *, candidates: bool = False, change: Callable[[str], str] = str
    ) -> "aiohttp.typedefs.CIMultiDictProxy[str]":
        """Offer, as `change` makes of it, and take the answer; the headers of the reply."""
        offer = change(await self.offer(candidates=candidates))
        async with self.http.post(
            self.endpoint, data=offer, headers={"Content-Type": SDP}
        ) as response:
            self.answer = await response.text()
            assert response.status == 201, self.answer
            self.location = self.endpoint.join(URL(response.headers["Location"]))
            self.tag = response.headers["ETag"]
            headers = response.headers
        await self.peer.setRemoteDescription(RTCSessionDescription(self.answer, "answer"))
        return headers

    async def connected(self) -> None:
        """Wait until media flow."""
        async with asyncio.timeout(20):
            while self.peer.connectionState != "connected":
                await asyncio.sleep(0.01)

    # ---- its way through the network ----------------------------------------------------------

    @property
    def call_id(self) -> str:
        """The call's id."""
        return self.location.name

    @property
    def ways(self) -> list[tuple[Any, str]]:
        """aiortc's transports, each with the name of its first section: one in a bundle."""
        return [(transport, mids[0]) for transport, mids in ways_of(self.peer)]

    def fragment(self) -> str:
        """All that this side could trickle."""
        return _said([(way._connection, mid) for way, mid in self.ways])

    async def patch(self, body: str, tag: str | None, kind: str = FRAGMENT) -> tuple[int, str, str]:
        """Status, body and tag of the reply."""
        headers = {"Content-Type": kind} | ({} if tag is None else {"If-Match": tag})
        async with self.http.patch(self.location, data=body, headers=headers) as response:
            if response.status >= 400:
                self.refusal = (await response.json())["error"]
            return response.status, await response.text(), response.headers.get("ETag", "")

    def lose_network(self) -> None:
        """Nothing goes out or comes in any more by the sockets that there are."""
        for way, _ in self.ways:
            for protocol in way._connection._protocols:
                protocol.transport.sendto = lambda *_: None
                protocol.datagram_received = lambda *_: None

    def wait_for_visit(self) -> "asyncio.Future[None]":
        """Send nothing until something comes in, which is told."""
        ((way, _),) = self.ways
        (protocol,) = way._connection._protocols
        visited = asyncio.get_running_loop().create_future()
        received, sendto = protocol.datagram_received, protocol.transport.sendto

        def come(*given: Any) -> None:
            if not visited.done():
                protocol.transport.sendto = sendto
                visited.set_result(None)
            received(*given)

        protocol.transport.sendto = lambda *_: None
        protocol.datagram_received = come
        return visited

    async def restart(self) -> Fragment:
        """Find a new way by new sockets; what the server said."""
        seconds = await self._second_ways()
        body = _said([(second.connection, mid) for second, mid in seconds])
        status, text, self.tag = await self.patch(body, '"*"')
        assert status == 200, text
        said = read_fragment(text)
        await _take_over(seconds, said)
        return said

    async def offer_again(self) -> "Again":
        """A whole offer for a restart."""
        ((second, mid),) = seconds = await self._second_ways()
        lines = without_ice(self.peer.localDescription.sdp.split("\r\n"))
        fresh = ice_lines(local_side(second.connection, mid))
        return Again("\r\n".join([*lines[:-1], *fresh, ""]), seconds)

    async def take_answer(self, again: "Again", answer: str) -> None:
        """The answer to that offer."""
        await _take_over(again.seconds, read_offer(answer))

    async def _second_ways(self) -> "Seconds":
        seconds = [(SecondWay(way), mid) for way, mid in self.ways]
        for second, _ in seconds:
            await second.gather()
        return seconds

    # ---- the end ------------------------------------------------------------------------------

    async def delete(self) -> int:
        """End the call at the server; the status."""
        async with self.http.delete(self.location) as response:
            return response.status

    async def close(self) -> None:
        """Leave."""
        self.microphone.stop()
        await self.peer.close()
        await self.http.close()
        for task in self._listening:
            # A track of a connection that never stood does not end.
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    def sound(self, since: int = 0) -> FloatArray:
        """What the agent said, from its piece number `since` on; mono, 48 kHz."""
        pieces = self.heard[since:]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    async def hears_s(self, seconds: float, since: int = 0) -> None:
        """Wait until the agent was loud for so long, since piece number `since`."""
        async with asyncio.timeout(30):
            while loud_s(self.sound(since), RATE_HZ) < seconds:
                await asyncio.sleep(0.1)

    async def greeted(self) -> None:
        """Wait until the agent has greeted and is silent."""
        await self.hears_s(1.0)
        async with asyncio.timeout(30):
            while loud_s(self.sound(-_PAUSE), RATE_HZ):
                await asyncio.sleep(0.1)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._listening.append(asyncio.ensure_future(self._listen(track)))

    async def _listen(self, track: MediaStreamTrack) -> None:
        with suppress(MediaStreamError):
            while True:
                frame: Any = await track.recv()
                channels = len(frame.layout.channels)
                samples = frame.to_ndarray().reshape(-1, channels).mean(axis=1) / 32768
                self.heard.append(samples.astype(np.float32))


def _said(connections: Sequence[tuple[Any, str]]) -> str:
    sides = [local_side(connection, mid) for connection, mid in connections]
    return written([("m=audio 9 UDP/TLS/RTP/SAVPF 0", side) for side in sides])


async def _take_over(seconds: Seconds, said: Fragment) -> None:
    for second, mid in seconds:
        remote = said.of(mid)
        assert remote.credentials is not None
        await add_candidates(second.connection, read_candidates(remote.candidates))
    connecting = [second.connect(said.of(mid).credentials) for second, mid in seconds]
    await asyncio.wait_for(asyncio.gather(*connecting), 20)
    for second, _ in seconds:
        second.take_over()
        await second.retire()
