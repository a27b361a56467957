"""Two short ways around aiortc for sound, which is fifty packets a second each way for each call.

In: a packet of a known source is decrypted and handed on where it comes from the socket; aiortc
would take it through a queue, a task and a parser of every header extension. Out: encoded packets
go from the track to encryption behind a header that was made once. What is left to aiortc: all
that is not sound, the first packet of each source, receiver and sender reports.
"""

import asyncio
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
from aiortc.rtp import RtpPacket

RECEIVED = "data_received"
STREAMS = "_RTCRtpReceiver__remote_streams"
RUN = "_run_rtp"
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
        connection = self._dtls.transport._connection
        self._long_way = getattr(connection, RECEIVED)
        self._source: int | None = None
        self._payload_type = 0
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
    """The stream of RTP packets of one sender: numbers them, sends them, counts for its reports."""

    def __init__(self, sender: RTCRtpSender, codec: RTCRtpCodecParameters) -> None:
        first = RtpPacket(payload_type=codec.payloadType or 0, marker=1, ssrc=sender._ssrc)
        # In the lower half: a wrap soon after the beginning confuses decryption.
        self._sequence = secrets.randbelow(1 << 15)
        first.extensions.mid = getattr(sender, MID)
        self._header = bytearray(first.serialize(getattr(sender, EXTENSIONS)))
        self._sender = sender
        self._origin = secrets.randbits(32)
        self._octets = self._packets = 0

    async def send(self, payload: bytes, ticks: int) -> int:
        """The timestamp under which it went; `ConnectionError` when the peer is gone."""
        timestamp = (self._origin + ticks) & 0xFFFF_FFFF
        struct.pack_into("!HL", self._header, 2, self._sequence, timestamp)
        await self._sender.transport._send_rtp(bytes(self._header) + payload)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._octets += len(payload)
        self._packets += 1
        self._note(timestamp)
        return timestamp

    def _note(self, timestamp: int) -> None:
        """What aiortc's sender reports are made of."""
        sender = self._sender
        setattr(sender, NTP_TIMESTAMP, int((time.time() + _NTP_ORIGIN_S) * (1 << 32)))
        setattr(sender, RTP_TIMESTAMP, timestamp)
        setattr(sender, OCTET_COUNT, self._octets)
        setattr(sender, PACKET_COUNT, self._packets)


def speak_through(sender: RTCRtpSender, voice: VoiceSource) -> None:
    """From now on `sender` sends what `voice` gives, until that raises `MediaStreamError`.

    To be called before the connection stands. Whatever else ends it stops `voice`.
    """

    async def run(codec: RTCRtpCodecParameters) -> None:
        getattr(sender, STARTED).set()
        try:
            stream = ShortWayOut(sender, codec)
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
