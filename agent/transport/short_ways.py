"""Two short ways around aiortc for sound, which is fifty packets a second each way for each call.

In: a packet of a known source is decrypted and handed on where it comes from the socket; aiortc
would take it through a queue, a task and a parser of every header extension. Out: encoded packets
go from the track to encryption behind a header that was made once. What is left to aiortc: all
that is not sound, the first packet of each source, receiver and sender reports.
"""

import asyncio
import contextlib
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pylibsrtp
from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RTCP_RTPFB_NACK, RtcpRrPacket, RtcpRtpfbPacket, RtcpSrPacket, RtpPacket

from agent.transport.repair import (
    Doubling,
    LossEstimate,
    RedFormat,
    SentPackets,
    is_worth_doubling,
)

RECEIVED = "data_received"
STREAMS = "_RTCRtpReceiver__remote_streams"
RUN = "_run_rtp"
TAKE_REPORT = "_handle_rtcp_packet"
EXTENSIONS = "_RTCRtpSender__rtp_header_extensions_map"
MID = "_RTCRtpSender__mid"
STARTED = "_RTCRtpSender__rtp_started"
EXITED = "_RTCRtpSender__rtp_exited"
NTP_TIMESTAMP = "_RTCRtpSender__ntp_timestamp"
RTP_TIMESTAMP = "_RTCRtpSender__rtp_timestamp"
OCTET_COUNT = "_RTCRtpSender__octet_count"
PACKET_COUNT = "_RTCRtpSender__packet_count"

_HEADER = struct.Struct("!BBHLL")
_PADDED, _EXTENDED = 0x20, 0x10
_MARKER = 0x80
_NTP_ORIGIN_S = 2_208_988_800


@dataclass(frozen=True, slots=True)
class SoundPacket:
    """What there is to know of a packet of sound."""

    sequence_number: int
    timestamp: int
    payload: bytes


class ShortWayIn:
    """Stands where aioice hands datagrams over; `learn` says which source is sound."""

    def __init__(self, receiver: RTCRtpReceiver, on_packet: Callable[[Any], None]) -> None:
        self._receiver = receiver
        self._on_packet = on_packet
        self._dtls = receiver.transport
        self._source: int | None = None
        self._payload_type = 0
        self._long_way: Callable[[bytes, int], None]
        self.stand_at(self._dtls.transport._connection)

    def stand_at(self, connection: Any) -> None:
        """Take what comes in there, too; the long way is that one's from now on."""
        if vars(connection).get(RECEIVED) == self.receive:
            delattr(connection, RECEIVED)
        self._long_way = getattr(connection, RECEIVED)
        setattr(connection, RECEIVED, self.receive)

    def learn(self, packet: RtpPacket) -> None:
        """Packets like this one, which came the long way, take the short way from now on."""
        self._source, self._payload_type = packet.ssrc, packet.payload_type

    def receive(self, data: bytes, component: int) -> None:
        """A datagram, encrypted."""
        if len(data) >= _HEADER.size:
            first, second, sequence, timestamp, source = _HEADER.unpack_from(data)
            if source == self._source and second & 0x7F == self._payload_type and first >> 6 == 2:
                self._take(data, SoundPacket(sequence, timestamp, b""))
                return
        self._long_way(data, component)

    def _take(self, data: bytes, head: SoundPacket) -> None:
        try:
            data = self._dtls._rx_srtp.unprotect(data)
        except pylibsrtp.Error:
            return
        packet = SoundPacket(head.sequence_number, head.timestamp, payload_of(data))
        getattr(self._receiver, STREAMS)[self._source].add(packet)
        self._on_packet(packet)


def payload_of(data: bytes) -> bytes:
    """Of a decrypted packet; nothing when its header says more than there is."""
    first = data[0]
    begin = _HEADER.size + 4 * (first & 0x0F)
    if first & _EXTENDED:
        begin += 4 + 4 * int.from_bytes(data[begin + 2 : begin + 4], "big")
    end = len(data) - (data[-1] if first & _PADDED else 0)
    return data[begin : max(begin, end)]


# ---- out --------------------------------------------------------------------------------------


class VoiceSource(Protocol):
    """The track that speaks."""

    async def next_payload(self) -> tuple[bytes, int]:
        """Wait for the next packet: its payload, and its first tick since the beginning."""

    def note_sent(self, timestamp: int) -> None:
        """The packet given last went out under that RTP timestamp."""

    def stop(self) -> None:
        """Nothing is sent any more."""


class ShortWayOut:
    """The stream of RTP packets of one sender: numbers them, sends them, counts for its reports.

    What the listener asks for again is sent again. Where a format for redundancy is agreed on
    (`red`), each packet carries the one before it, too, as long as packets are lost.
    """

    def __init__(self, sender: RTCRtpSender, red: RedFormat | None = None) -> None:
        self._sender = sender
        # In the lower half: a wrap soon after the beginning confuses decryption.
        self._sequence = secrets.randbelow(1 << 15)
        self._origin = secrets.randbits(32)
        self._octets = self._packets = 0
        self._header = bytearray()
        self._plain = 0
        self._doubling = Doubling(red) if red else None
        self._sent = SentPackets()
        self._asked_for = 0
        self._loss = LossEstimate(self._sequence)
        self._heed = sender._handle_rtcp_packet
        setattr(sender, TAKE_REPORT, self.take_report)

    @property
    def loss(self) -> float:
        """The share of packets that are lost on the way at first, 0..1."""
        return self._loss.share

    def begin(self, codec: RTCRtpCodecParameters) -> None:
        """From now on packets of `codec` go out; the sender knows its extensions."""
        self._plain = _MARKER | (codec.payloadType or 0)
        first = RtpPacket(ssrc=self._sender._ssrc)
        first.extensions.mid = getattr(self._sender, MID)
        self._header = bytearray(first.serialize(getattr(self._sender, EXTENSIONS)))

    async def send(self, payload: bytes, ticks: int) -> int:
        """The timestamp under which it went; `ConnectionError` when the peer is gone."""
        timestamp = (self._origin + ticks) & 0xFFFF_FFFF
        payload_type, body = self._form(payload, ticks)
        struct.pack_into("!BHL", self._header, 1, payload_type, self._sequence, timestamp)
        datagram = bytes(self._header) + body
        await self._sender.transport._send_rtp(datagram)
        self._sent.keep(self._sequence, datagram)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._octets += len(body)
        self._packets += 1
        self._note(timestamp)
        return timestamp

    def _form(self, payload: bytes, ticks: int) -> tuple[int, bytes]:
        """Marker and payload type, and what follows the header."""
        if self._doubling is None:
            return self._plain, payload
        doubled = self._doubling.wrap(payload, ticks)
        if not self._doubling.on:
            return self._plain, payload
        return _MARKER | self._doubling.form.payload_type, doubled

    def _note(self, timestamp: int) -> None:
        """What aiortc's sender reports are made of."""
        sender = self._sender
        setattr(sender, NTP_TIMESTAMP, int((time.time() + _NTP_ORIGIN_S) * (1 << 32)))
        setattr(sender, RTP_TIMESTAMP, timestamp)
        setattr(sender, OCTET_COUNT, self._octets)
        setattr(sender, PACKET_COUNT, self._packets)

    async def take_report(self, packet: Any) -> None:
        """RTCP for this sender: aiortc's statistics, the loss, and what to send again."""
        await self._heed(packet)
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._sender._ssrc:
                    self._learn(report.highest_sequence, report.packets_lost)
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            # The connection may end in between.
            with contextlib.suppress(ConnectionError):
                for datagram in self._sent.again(packet.lost):
                    await self._sender.transport._send_rtp(datagram)

    def _learn(self, highest: int, lost: int) -> None:
        lately = self._sent.asked_for - self._asked_for
        self._asked_for = self._sent.asked_for
        self._loss.report(highest, lost, lately)
        if self._doubling is not None:
            self._doubling.on = is_worth_doubling(self.loss, doubled=self._doubling.on)


def speak_through(
    sender: RTCRtpSender, voice: VoiceSource, red: RedFormat | None = None
) -> ShortWayOut:
    """From now on `sender` sends what `voice` gives, until that raises `MediaStreamError`.

    To be called before the connection stands. Whatever else ends it stops `voice`.
    """
    stream = ShortWayOut(sender, red)

    async def run(codec: RTCRtpCodecParameters) -> None:
        getattr(sender, STARTED).set()
        try:
            stream.begin(codec)
            while True:
                payload, ticks = await voice.next_payload()
                if sender._enabled:
                    voice.note_sent(await stream.send(payload, ticks))
        except (asyncio.CancelledError, ConnectionError, MediaStreamError):
            pass
        finally:
            voice.stop()
            # aiortc waits for this when it stops.
            getattr(sender, EXITED).set()

    setattr(sender, RUN, run)
    return stream
