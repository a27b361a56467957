"""Many callers in one process that cost next to nothing, so that the server is what is measured.

A caller shakes hands as an aiortc peer. From then on its voice is packets that were encoded once,
protected and sent by one loop for all callers, and what it receives is never decrypted: the
kernel stamps each packet's arrival, so that not even a late client makes the server look late.
"""

import array
import asyncio
import json
import math
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

import aiohttp
import numpy as np
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtp import RtcpReceiverInfo, RtcpRrPacket, RtpPacket

from bench.load_slots import SLOT_S, SlotLog, Times

_SO_TIMESTAMPNS = 35
_MAX_DATAGRAM = 2048
_ANCILLARY_BYTES = 64
_SLOT_TICKS = 960
_RTCP_EVERY_SLOTS = 50
_PLAYOUT_EVERY_SLOTS = 5
_IN_THE_PAGE_TICKS = 4 * _SLOT_TICKS
_CONNECT_PATIENCE_S = 15.0
ANSWER_PATIENCE = aiohttp.ClientTimeout(total=15.0)
_SPREAD = (math.sqrt(5) - 1) / 2
"""Steps of the golden section: any number of callers lies evenly over the 20 ms."""


class _MuteTrack(MediaStreamTrack):
    """Never gives aiortc anything to send."""

    kind = "audio"

    async def recv(self) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


class _Wire:
    """The socket below a connected peer, taken over from its event loop."""

    def __init__(self, peer: RTCPeerConnection) -> None:
        self._dtls = peer.getSenders()[0].transport
        pair = next(iter(self._dtls.transport._connection._nominated.values()))
        self._protocol, self._address = pair.protocol, pair.remote_addr
        self.source = 0
        """The SSRC of the voice that comes."""
        of_loop = self._protocol.transport.get_extra_info("socket")
        loop: Any = asyncio.get_running_loop()
        loop._remove_reader(of_loop.fileno())
        self._socket = socket.socket(fileno=os.dup(of_loop.fileno()))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def send(self, packet: bytes) -> None:
        """Protect one RTP packet and send it."""
        self._socket.sendto(self._dtls._tx_srtp.protect(packet), self._address)

    def send_control(self, packet: bytes) -> None:
        """The same for RTCP."""
        self._socket.sendto(self._dtls._tx_srtp.protect_rtcp(packet), self._address)

    def receive(self, log: SlotLog) -> None:
        """Note all media that has come; the rest is for aiortc."""
        while True:
            try:
                data, stamps, _, address = self._socket.recvmsg(_MAX_DATAGRAM, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            if _is_media(data):
                seconds, nanoseconds = struct.unpack("qq", stamps[0][2][:16])
                timestamp, self.source = struct.unpack_from("!LL", data, 4)
                log.note(seconds + nanoseconds * 1e-9, timestamp, len(data))
            else:
                self._protocol.datagram_received(data, address)

    def close(self) -> None:
        """Only this handle: the socket itself belongs to the peer."""
        self._socket.close()


def _is_media(data: bytes) -> bool:
    """RTP, not RTCP, not STUN, not DTLS."""
    return len(data) > 12 and data[0] >> 6 == 2 and not 192 <= data[1] <= 223


class Caller:
    """One call. `dial`, then `step` every 20 ms; `reports` says so as the page does."""

    def __init__(self, packets: Sequence[bytes], place: float, *, reports: bool) -> None:
        self.heard = SlotLog()
        self.errors: list[str] = []
        self._packets = packets
        self._next = int(place * len(packets))
        self._reports = reports
        self._open = asyncio.Event()
        self._peer = RTCPeerConnection()
        self._sender = self._peer.addTrack(_MuteTrack())
        self._channel = self._peer.createDataChannel("oai-events") if reports else None
        if self._channel:
            self._channel.on("open", self._open.set)
            self._channel.on("message", self._on_message)
        self._peer.on("connectionstatechange", self._on_state)
        self._wire: _Wire | None = None
        self._header = bytearray()
        self._slot = 0

    async def dial(self, url: str, http: aiohttp.ClientSession) -> None:
        """Shake hands and take the wire over; `RuntimeError` when the server refuses."""
        await self._peer.setLocalDescription(await self._peer.createOffer())
        headers = {"Content-Type": "application/sdp"}
        body = self._peer.localDescription.sdp
        async with http.post(url, data=body, headers=headers) as reply:
            answer = await reply.text()
            if reply.status not in (200, 201):
                raise RuntimeError(f"the server refuses a call: {reply.status} {answer}")
        await self._peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(_CONNECT_PATIENCE_S):
            await self._open.wait()
        self._wire = _Wire(self._peer)
        self._header = self._make_header()

    def step(self) -> None:
        """Send the packet that is due and take what has come."""
        if self._wire is None:
            return
        struct.pack_into("!HL", self._header, 2, self._slot & 0xFFFF, self._slot * _SLOT_TICKS)
        self._wire.send(bytes(self._header) + self._packets[self._next])
        self._next = (self._next + 1) % len(self._packets)
        self._slot += 1
        self._wire.receive(self.heard)
        if self._slot % _RTCP_EVERY_SLOTS == 0:
            self._wire.send_control(self._receiver_report(self._wire.source))
        if self._channel and self._slot % _PLAYOUT_EVERY_SLOTS == 0:
            self._tell_playout()

    async def close(self) -> None:
        """Hang up."""
        if self._wire:
            self._wire.close()
        await self._peer.close()

    def _make_header(self) -> bytearray:
        """A packet's header with the extensions that a browser sends with each."""
        packet = RtpPacket(payload_type=self._payload_type(), ssrc=self._sender._ssrc)
        packet.extensions.mid = "0"
        packet.extensions.audio_level = (True, 40)
        packet.extensions.abs_send_time = 0
        sender: Any = self._sender
        extensions = sender._RTCRtpSender__rtp_header_extensions_map
        return bytearray(packet.serialize(extensions))

    def _payload_type(self) -> int:
        for line in self._peer.remoteDescription.sdp.splitlines():
            if line.startswith("a=rtpmap:") and "opus/48000" in line.lower():
                return int(line.removeprefix("a=rtpmap:").split(" ")[0])
        raise RuntimeError("the server does not take Opus")

    def _receiver_report(self, source: int) -> bytes:
        """All well, as a browser says about once a second."""
        report = RtcpReceiverInfo(source, 0, 0, highest_sequence=0, jitter=0, lsr=0, dlsr=0)
        return bytes(RtcpRrPacket(ssrc=self._sender._ssrc, reports=[report]))

    def _tell_playout(self) -> None:
        last = self.heard.last_timestamp
        if last is None or self._channel is None or self._channel.readyState != "open":
            return
        at_ms = self._slot * 1000 * SLOT_S
        heard = (last - _IN_THE_PAGE_TICKS) % (1 << 32)
        event = {"type": "voice_agent.playout", "rtp_timestamp": heard, "at_ms": at_ms}
        self._channel.send(json.dumps(event))

    def _on_message(self, message: str) -> None:
        if '"type": "error"' in message and len(self.errors) < 10:
            self.errors.append(message)

    def _on_state(self) -> None:
        if self._channel is None and self._peer.connectionState == "connected":
            self._open.set()


class Crowd:
    """All callers and the loop that paces them. `grow_to`, `measure`; at the end `close`."""

    def __init__(self, url: str, packets: Sequence[bytes], *, reports: bool) -> None:
        self._url = url
        self._packets = packets
        self._reports = reports
        self._callers: list[tuple[float, Caller]] = []
        self._late_s = array.array("d")
        self._pacing: asyncio.Task[None] | None = None

    @property
    def callers(self) -> list[Caller]:
        """In the order of their places in the 20 ms."""
        return [caller for _, caller in self._callers]

    async def grow_to(self, count: int) -> None:
        """Dial until there are `count` callers."""
        async with aiohttp.ClientSession(timeout=ANSWER_PATIENCE) as http:
            while len(self._callers) < count:
                number = len(self._callers)
                place = number * _SPREAD % 1.0
                caller = Caller(self._packets, place, reports=self._reports)
                await caller.dial(self._url, http)
                self._callers = sorted([*self._callers, (place, caller)], key=_place)
        if self._pacing is None:
            self._pacing = asyncio.get_running_loop().create_task(self._pace())

    def begin(self) -> None:
        """A window begins."""
        for caller in self.callers:
            caller.heard.begin()
        self._late_s = array.array("d")

    @property
    def late_ms(self) -> Times:
        """How late this process itself was with what it sent in the window."""
        return 1000 * np.array(self._late_s)

    async def close(self) -> None:
        """Hang up all."""
        if self._pacing:
            self._pacing.cancel()
            await asyncio.wait((self._pacing,))
        for caller in self.callers:
            await caller.close()

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        start_s, period = loop.time(), 0
        while True:
            for place, caller in list(self._callers):
                due_s = start_s + (period + place) * SLOT_S
                if (wait_s := due_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                caller.step()
                self._late_s.append(loop.time() - due_s)
            # Even when there is no time left, everything else must have its turn.
            await asyncio.sleep(0)
            period += 1


def _place(entry: tuple[float, Caller]) -> float:
    return entry[0]
