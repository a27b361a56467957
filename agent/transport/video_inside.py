"""What is known of the inside of aiortc where pictures are put together and decoded."""

import asyncio
import contextlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiortc.rtcrtpreceiver
from aiortc import RTCPeerConnection, RTCRtpReceiver
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import NackGenerator, RemoteStreamTrack
from aiortc.rtp import RTP_HISTORY_SIZE, RtpPacket

from agent.transport.pictures import MOST_PIXELS

_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_CODECS = "_RTCRtpReceiver__codecs"
_DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"
_DECODER_THREAD = "_RTCRtpReceiver__decoder_thread"
_TIMESTAMPS = "_RTCRtpReceiver__timestamp_mapper"
_MISSING = "_RTCRtpReceiver__nack_generator"
_MAKE_DECODER = "get_decoder"
_PATIENCE_S = 10.0
_SEQUENCES = 1 << 16


class EncodedPicture(Protocol):
    """What aiortc's decoder thread takes; it rewrites `timestamp`."""

    data: bytes
    timestamp: int


class PacketOrder(Protocol):
    """What stands where aiortc has its jitter buffer."""

    def add(self, packet: Any) -> tuple[bool, Sequence[EncodedPicture]]:
        """Take a packet: whether the sender must start afresh, and what can be decoded now."""


def _raised(error: Exception) -> None:
    raise error


class _Undecoded(queue.Queue[Any]):
    """What waits for the decoder's thread; None ends that, and aiortc waits for it: with all calls,
    which is no time to decode what nobody will see."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is None:
            with self.mutex:
                self.queue.clear()
        super().put(item, block, timeout)


class _Missing(NackGenerator):
    """Counts what is missing since the last packet, and of a leap only what is asked for again.

    aiortc counts all of it, to forget it at once: 18 ms for one packet, while all calls wait.
    """

    def add(self, packet: RtpPacket) -> bool:
        if self.max_seq is not None:
            ahead = (packet.sequence_number - self.max_seq) % _SEQUENCES
            if RTP_HISTORY_SIZE < ahead < _SEQUENCES // 2:
                self.missing.clear()
                self.max_seq = (packet.sequence_number - RTP_HISTORY_SIZE - 1) % _SEQUENCES
        return bool(super().add(packet))


class _VideoTap:
    """Gives aiortc the last picture that a packet made whole, and the decoder those before it."""

    def __init__(
        self, receiver: RTCRtpReceiver, order: PacketOrder, failed: Callable[[Exception], None]
    ) -> None:
        self._receiver = receiver
        self._order = order
        self._failed = failed

    def add(self, packet: Any) -> tuple[bool, EncodedPicture | None]:
        try:
            return self._add(packet)
        except Exception as error:  # noqa: BLE001 - aiortc would close the connection unheard
            self._failed(error)
        return False, None

    def _add(self, packet: Any) -> tuple[bool, EncodedPicture | None]:
        asks, pictures = self._order.add(packet)
        if len(pictures) > 1 and getattr(self._receiver, _DECODER_THREAD):
            codec = getattr(self._receiver, _CODECS)[packet.payload_type]
            for picture in pictures[:-1]:
                mapped = getattr(self._receiver, _TIMESTAMPS).map(picture.timestamp)
                picture.timestamp = mapped
                getattr(self._receiver, _DECODER_QUEUE).put((codec, picture))
        return asks, pictures[-1] if pictures else None


def take_video(
    receiver: RTCRtpReceiver,
    order: PacketOrder,
    failed: Callable[[Exception], None] = _raised,
) -> Callable[[], int]:
    """From now on `order` decides when a picture is complete; `failed` gets what it raises.

    What comes back tells how many pictures wait to be decoded.

    aiortc's own buffer waits for the first packet of the next picture, which at two pictures a
    second comes half a second later.
    """
    for place in (_DECODER_QUEUE, _MISSING):
        if not hasattr(receiver, place):
            raise AttributeError(f"its receiver has no {place}")
    waiting = _Undecoded()
    setattr(receiver, _DECODER_QUEUE, waiting)
    setattr(receiver, _MISSING, _Missing())
    setattr(receiver, _JITTER_BUFFER, _VideoTap(receiver, order, failed))
    return waiting.qsize


def _bounded(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes decoders that refuse what is too large; VP8's looks at that only afterwards."""

    def bounded(codec: Any) -> Any:
        decoder = make(codec)
        if codec.mimeType.lower() == "video/h264":
            decoder.codec.options = {"max_pixels": str(MOST_PIXELS)}
        return decoder

    return bounded


_make_decoder: Any = getattr(aiortc.rtcrtpreceiver, _MAKE_DECODER, None)
if _make_decoder is not None:  # else `check_pictures` tells
    setattr(aiortc.rtcrtpreceiver, _MAKE_DECODER, _bounded(_make_decoder))


# ---- at start ---------------------------------------------------------------------------------

_VP8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
_PICTURE = bytes.fromhex(  # 16 x 16 grey pixels in VP8, behind the shortest descriptor
    "107002009d012a10001000390300001c221616226612200490400181ab00fec3e000"
)


@dataclass(slots=True)
class _OnePicture:
    data: bytes
    timestamp: int


class _TwoAtATime:
    """Gives the pictures of two packets at once, as a packet that fills a hole does."""

    def __init__(self) -> None:
        self._pictures: list[_OnePicture] = []

    def add(self, packet: Any) -> tuple[bool, Sequence[_OnePicture]]:
        self._pictures.append(_OnePicture(packet._data, packet.timestamp))
        return False, self._pictures if len(self._pictures) == 2 else []


async def check_pictures(peer: RTCPeerConnection) -> None:
    """Show two pictures. AttributeError, TypeError or KeyError."""
    if _make_decoder is None:
        raise AttributeError("its receiver makes its decoders elsewhere")
    receiver = peer.addTransceiver("video").receiver
    receiver._track = RemoteStreamTrack(kind="video")
    take_video(receiver, _TwoAtATime())
    await receiver.receive(RTCRtpReceiveParameters(codecs=[_VP8]))
    shown: list[Any] = []
    try:
        for at in (0, 1):
            packet = RtpPacket(97, 1, sequence_number=at, timestamp=at * 3_000, payload=_PICTURE)
            await receiver._handle_rtp_packet(packet, arrival_time_ms=0)
        # The end behind them, and not, as at a call's end, in their place.
        queue.Queue.put(getattr(receiver, _DECODER_QUEUE), None)
        with contextlib.suppress(MediaStreamError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    shown.append(await receiver.track.recv())
    finally:
        await receiver.stop()
    if [each.pts for each in shown] != [0, 3_000]:
        raise AttributeError("pictures do not come from the place of its jitter buffer")
