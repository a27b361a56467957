"""What is known of the inside of aiortc and aioice: the one place to look when either changes.

`check_fit` tries all of it at start, so that another version fails there and not in a call.
"""

import importlib.metadata
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import aioice
import aioice.ice
import aioice.stun
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCRtpSender
from aiortc.codecs import CODECS
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcpeerconnection import find_common_codecs
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from aiortc.rtp import RtpPacket
from aiortc.sdp import SessionDescription

from agent.errors import ConfigError
from agent.transport.ice_inside import check_second_way
from agent.transport.peer_bounds import check_bounds
from agent.transport.short_ways import RUN, ShortWayIn, speak_through
from agent.transport.video_inside import check_pictures

_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_RTP_TIMESTAMP = "_RTCRtpSender__rtp_timestamp"
_PACKET_COUNT = "_RTCRtpSender__packet_count"
_DECRYPTS = "_rx_srtp"
_SENDS = "_send_rtp"


def _raised(error: Exception) -> None:
    raise error


class _AudioTap:
    """Hands every packet on as it comes; nothing is left for aiortc to decode."""

    def __init__(
        self,
        receiver: RTCRtpReceiver,
        on_packet: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._way = ShortWayIn(receiver, self._take)
        self._on_packet = on_packet
        self._failed = failed

    def add(self, packet: Any) -> tuple[bool, None]:
        self._way.learn(packet)
        self._take(packet)
        return False, None

    def _take(self, packet: Any) -> None:
        try:
            self._on_packet(packet)
        except Exception as error:  # noqa: BLE001 - aiortc would close the connection unheard
            self._failed(error)


def take_audio(
    receiver: RTCRtpReceiver,
    on_packet: Callable[[Any], None],
    failed: Callable[[Exception], None] = _raised,
) -> None:
    """From now on `on_packet` gets each RTP packet; aiortc goes on with its receiver reports.

    aiortc's own buffer adds 80 ms, holds on to 280 ms after the first lost packet, and drops what
    waited for the hole. `failed` gets what `on_packet` raises, once for each packet: out of here
    it would close the connection without a word.
    """
    setattr(receiver, _JITTER_BUFFER, _AudioTap(receiver, on_packet, failed))


def last_timestamp(sender: RTCRtpSender) -> int | None:
    """The RTP timestamp of the packet sent last; None before the first.

    aiortc begins at a random number that it keeps to itself.
    """
    return int(getattr(sender, _RTP_TIMESTAMP)) if getattr(sender, _PACKET_COUNT) else None


async def is_there(peer: RTCPeerConnection) -> bool:
    """Ask a silent peer (muted, on hold) for a sign of life by a STUN check.

    The same request as aioice's own consent check, which comes only every five seconds.
    """
    connection = peer.getTransceivers()[0].receiver.transport.transport._connection
    for pair in list(connection._nominated.values()):
        try:
            await pair.protocol.request(
                connection.build_request(pair, nominate=False),
                pair.remote_addr,
                integrity_key=str(connection.remote_password).encode(),
                retransmissions=0,
            )
        except (aioice.stun.TransactionError, ConnectionError):
            continue
        return True
    return False


def can_decode(section: list[str]) -> bool:
    """Whether aiortc knows one of the formats of a video section, given by its lines.

    It refuses a call over a section of which it knows none. A section that cannot be read is left
    to it to refuse.
    """
    try:
        media = SessionDescription.parse("\r\n".join(["v=0", *section]) + "\r\n").media
        return any(find_common_codecs(CODECS["video"], each.rtp.codecs) for each in media)
    except (ValueError, LookupError, AttributeError, AssertionError, TypeError, StopIteration):
        return True


_ADDRESSES = "get_host_addresses"
_found_addresses: Any = getattr(aioice.ice, _ADDRESSES, None)  # `check_fit` tells when it is gone


def offer_addresses(addresses: tuple[str, ...], *, loopback: bool) -> None:
    """Choose the addresses that answers carry, for this process.

    aioice offers every address of the machine but 127.0.0.1. `addresses`, unless empty, replace
    those; `loopback` adds 127.0.0.1, without which a call on a machine that has no network fails.
    """

    def chosen(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        found = list(addresses or _found_addresses(use_ipv4=use_ipv4, use_ipv6=use_ipv6))
        return [*dict.fromkeys([*found, "127.0.0.1"])] if loopback else found

    setattr(aioice.ice, _ADDRESSES, chosen)


# ---- at start ---------------------------------------------------------------------------------

_OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=111)
_ADDRESS = aioice.Candidate.from_sdp("1 1 udp 1 192.0.2.1 9 typ host")
_PAYLOAD = b"\xf8\xff\xfe"  # 20 ms of silence in Opus


class _OnePacket(MediaStreamTrack):
    """Says one packet, as the agent's voice does."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.sent: int | None = None

    async def recv(self) -> Any:
        raise MediaStreamError

    async def next_payload(self) -> tuple[bytes, int]:
        if self.sent is not None:
            raise MediaStreamError
        return _PAYLOAD, 960

    def note_sent(self, timestamp: int) -> None:
        self.sent = timestamp


class _Plain:
    """Encryption that does nothing."""

    def unprotect(self, data: bytes) -> bytes:
        return data


class _Answering:
    """A way to a peer that answers every check."""

    def __init__(self, local: aioice.Candidate) -> None:
        self.local_candidate = local
        self.asked = 0

    async def request(self, *given: Any, **named: Any) -> None:
        inspect.signature(aioice.ice.StunProtocol.request).bind(self, *given, **named)
        self.asked += 1


async def check_fit() -> None:
    """Send something through each place that is taken over or reached into.

    `ConfigError` names the package, its version and what is not as expected. Takes some tens of
    milliseconds.
    """
    peer = RTCPeerConnection()
    checks: tuple[tuple[str, Callable[[RTCPeerConnection], Awaitable[None]]], ...] = (
        ("aiortc", _check_receiving),
        ("aiortc", _check_formats),
        ("aiortc", check_pictures),
        ("aiortc", _check_sending),
        ("aioice", _check_asking),
        ("aioice", _check_addresses),
        ("aioice", lambda _: check_second_way()),
        ("aiortc", lambda peer: check_bounds(peer, _ADDRESS)),
    )
    try:
        for package, check in checks:
            try:
                await check(peer)
            except (AttributeError, TypeError, AssertionError, KeyError) as error:
                version = importlib.metadata.version(package)
                raise ConfigError(
                    f"{package} {version} does not fit: {error}; "
                    "install a version that pyproject.toml names"
                ) from error
    finally:
        await peer.close()


async def _check_receiving(peer: RTCPeerConnection) -> None:
    receiver = peer.addTransceiver("audio").receiver
    if not hasattr(receiver, _JITTER_BUFFER):
        raise AttributeError("its receiver has no jitter buffer to take the place of")
    taken: list[Any] = []
    receiver._track = RemoteStreamTrack(kind="audio")
    take_audio(receiver, taken.append)
    await receiver.receive(RTCRtpReceiveParameters(codecs=[_OPUS]))
    try:
        first, second = (RtpPacket(111, 0, number, 960 * number, 5, _PAYLOAD) for number in (7, 8))
        await receiver._handle_rtp_packet(first, arrival_time_ms=0)
        if not hasattr(receiver.transport, _DECRYPTS):
            raise AttributeError("its transport hides what decrypts")
        setattr(receiver.transport, _DECRYPTS, _Plain())
        receiver.transport.transport._connection.data_received(second.serialize(), 1)
    finally:
        await receiver.stop()
    if [each.sequence_number for each in taken[:1]] != [7] or taken[0].payload != _PAYLOAD:
        raise AttributeError("packets do not come to the place of its jitter buffer")
    if len(taken) != 2 or taken[1].payload != _PAYLOAD:
        raise AttributeError("datagrams do not come to where they are handed over")


async def _check_formats(_: RTCPeerConnection) -> None:
    if not can_decode(["m=video 9 UDP/TLS/RTP/SAVPF 97", "a=rtpmap:97 VP8/90000"]):
        raise AttributeError("it does not find VP8 in a video section")
    if can_decode(["m=video 9 UDP/TLS/RTP/SAVPF 97", "a=rtpmap:97 none/90000"]):
        raise AttributeError("it finds a format that does not exist in a video section")


async def _check_asking(peer: RTCPeerConnection) -> None:
    connection = peer.getTransceivers()[0].receiver.transport.transport._connection
    if connection.remote_password is not None or connection._nominated:
        raise AttributeError("its connection has a peer before it is given one")
    connection.remote_username = connection.remote_password = "unknown"
    way: Any = _Answering(_ADDRESS)
    connection._nominated[1] = aioice.ice.CandidatePair(way, _ADDRESS)
    try:
        if not await is_there(peer) or way.asked != 1:
            raise AttributeError("a peer cannot be asked for a sign of life")
    finally:
        connection._nominated.clear()


async def _check_addresses(peer: RTCPeerConnection) -> None:
    present = getattr(aioice.ice, _ADDRESSES)
    setattr(aioice.ice, _ADDRESSES, lambda use_ipv4, use_ipv6: ["127.0.0.1"])
    connection = aioice.ice.Connection(ice_controlling=True)
    try:
        await connection.gather_candidates()
        hosts = [candidate.host for candidate in connection.local_candidates]
    finally:
        setattr(aioice.ice, _ADDRESSES, present)
        await connection.close()
    if hosts != ["127.0.0.1"]:
        raise AttributeError(f"it does not ask {_ADDRESSES} which addresses to offer")


async def _check_sending(peer: RTCPeerConnection) -> None:
    voice = _OnePacket()
    sender = peer.addTrack(voice)
    if last_timestamp(sender) is not None or not isinstance(getattr(sender, _RTP_TIMESTAMP), int):
        raise AttributeError("its sender does not tell the timestamp of its last packet")
    datagrams: list[bytes] = []

    async def keep(data: bytes) -> None:
        datagrams.append(data)

    if not (hasattr(sender, RUN) and hasattr(sender.transport, _SENDS) and sender._enabled):
        raise AttributeError("its sender does not run as it did")
    setattr(sender.transport, _SENDS, keep)
    speak_through(sender, voice)
    await sender._run_rtp(_OPUS)
    packets = [RtpPacket.parse(data) for data in datagrams]
    said = [(packet.payload, packet.timestamp, packet.ssrc) for packet in packets]
    if said != [(_PAYLOAD, voice.sent, sender._ssrc)] or last_timestamp(sender) != voice.sent:
        raise AttributeError("its sender does not pass encoded packets on as they are")
