"""The camera: packets into whole pictures, of which only the newest is kept."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from agent.clock import Clock
from agent.types import MIC_RATE_HZ, VideoFrame

MAX_WAITING_PACKETS = 512
"""More than a large key picture has; beyond it the hole is given up."""
HOLE_WAIT_S = 1.0
"""A packet that was asked for again comes after a round trip or never."""
ASK_EVERY_S = 0.3
"""A key picture that was asked for comes after a round trip, or the question was lost."""
RESTART_PACKETS = 1_000
"""So far back no packet comes late: the sender counts anew."""
LARGE_PIXELS = 640 * 480
"""More than a camera sends unless it is told to: RGB of it takes more than a millisecond or two."""
MOST_PIXELS = 4096 * 4096
"""Of a picture that is decoded: more than any screen has. A few bytes may claim 16 times as many,
and cost the decoder a gigabyte and more than a second."""
MOST_UNDECODED = 64
"""Pictures that wait for the decoder: a second that was held back by a hole, twice."""

_SEQUENCES = 1 << 16
_VP8_START_CODE = b"\x9d\x01\x2a"
"""Follows the three bytes at the beginning of each key picture, and of no other."""
_VP8_SIDE = (1 << 14) - 1
"""Width and height follow it; above them stands how to scale."""
_H264_START_CODE = b"\x00\x00\x00\x01"
_H264_KEY = re.compile(_H264_START_CODE + rb"[\x05\x25\x45\x65\x07\x27\x47\x67]")
"""A slice of a key picture, or the parameters that are sent before one."""
_H264_FIRST = re.compile(_H264_START_CODE + rb"[\x07\x27\x47\x67\x09\x29\x49\x69]")
"""Parameters and delimiters come before all else of a picture."""


@dataclass(slots=True)
class WholePicture:
    """An encoded picture; the decoder's thread counts `timestamp` anew."""

    data: bytes
    timestamp: int


class PictureOrder:
    """Packets in any order in, whole pictures out at their last packet: a `PacketOrder`.

    It begins with a key picture. A hole holds everything back, since later pictures build on it,
    until a key picture behind it is whole. After `HOLE_WAIT_S`, or `MAX_WAITING_PACKETS`, what is
    before the next key picture is lost: the sender is asked for one, every `ASK_EVERY_S` until it
    is there.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[int, Any] = {}
        self._next: int | None = None  # None: waits for a key picture
        self._newest: int | None = None
        self._hole_since_s: float | None = None
        self._asked_s = 0.0
        self.given_up = 0
        """How often a hole was given up."""

    def add(self, packet: Any) -> tuple[bool, list[WholePicture]]:
        """The next packet, its picture data in `_data`.

        Whether the sender is to be asked for a key picture, and the pictures that became whole.
        """
        sequence: int = packet.sequence_number
        if self._newest is None:
            self._newest, self._asked_s = sequence, self._clock.now_s()
        behind = _distance(sequence, self._newest)
        if behind > RESTART_PACKETS:
            self._waiting.clear()
            self._newest = sequence
            self._give_up()
        elif behind < 0:
            self._newest = sequence
        if self._next is not None and _distance(self._next, sequence) < 0:
            return False, []
        self._waiting[sequence] = packet
        pictures = [*self._released()]
        if not pictures and self._begin_at_key_near(sequence):
            pictures = [*self._released()]
        if self._next is not None and self._is_stuck(self._next):
            self._give_up()
        self._drop_oldest()
        return self._asks(), pictures

    def _released(self) -> Iterator[WholePicture]:
        """All that is whole from `_next` on."""
        while self._next is not None:
            packet = self._waiting.get(self._next)
            if packet is not None and not packet._data:
                # Padding belongs to the picture before it or to none.
                self._advance([packet])
            elif packets := self._whole(self._next):
                self._advance(packets)
                yield WholePicture(_joined(packets), packets[0].timestamp)
            else:
                return

    def _advance(self, packets: list[Any]) -> None:
        for packet in packets:
            del self._waiting[packet.sequence_number]
        self._next = (packets[-1].sequence_number + 1) % _SEQUENCES
        self._hole_since_s = None

    def _whole(self, first: int) -> list[Any]:
        """The packets from `first` to a marker or another picture's first; [] if not all came."""
        packets: list[Any] = []
        while (packet := self._waiting.get((first + len(packets)) % _SEQUENCES)) is not None:
            if packets and packet.timestamp != packets[0].timestamp:
                return packets
            packets.append(packet)
            if packet.marker:
                return packets
        return []

    # ---- beginning at a key picture -----------------------------------------------------------

    def _begin_at_key_near(self, sequence: int) -> bool:
        """Whether `sequence` made a key picture whole; then nothing before it is needed.

        A packet can end its own picture, or the one before it by not being part of it, or tell
        that the one after it begins there.
        """
        for near in (sequence + 1, sequence, sequence - 1):
            first = self._beginning(near % _SEQUENCES)
            packets = self._whole(first) if self._is_beginning(first) else []
            if packets and _is_key(_joined(packets)):
                for each in list(self._waiting):
                    if _distance(first, each) < 0:
                        del self._waiting[each]
                self._next, self._hole_since_s = first, None
                return True
        return False

    def _beginning(self, sequence: int) -> int:
        """The first packet without a gap before it of the picture that `sequence` is part of."""
        packet = self._waiting.get(sequence)
        while packet is not None:
            before = self._waiting.get((sequence - 1) % _SEQUENCES)
            if before is None or before.marker or before.timestamp != packet.timestamp:
                break
            sequence, packet = (sequence - 1) % _SEQUENCES, before
        return sequence

    def _is_beginning(self, first: int) -> bool:
        """Whether nothing of the picture can be missing before its packet `first`."""
        packet = self._waiting.get(first)
        if packet is None:
            return False
        before = (first - 1) % _SEQUENCES in self._waiting
        return before or _is_vp8_key(packet._data) or bool(_H264_FIRST.match(packet._data))

    # ---- giving up ----------------------------------------------------------------------------

    def _is_stuck(self, first: int) -> bool:
        if not self._waiting:
            return False
        newest = max(_distance(first, sequence) for sequence in self._waiting)
        if newest + 1 == len(self._waiting):
            self._hole_since_s = None  # nothing is missing, the picture is only not all there
            return len(self._waiting) >= MAX_WAITING_PACKETS
        now_s = self._clock.now_s()
        if self._hole_since_s is None:
            self._hole_since_s = now_s
        return newest >= MAX_WAITING_PACKETS or now_s - self._hole_since_s > HOLE_WAIT_S

    def lose(self) -> None:
        """What was given last is not shown, so nothing is before the next key picture."""
        self._give_up()

    def _give_up(self) -> None:
        """What waits stays: it may be the beginning of a key picture."""
        self._next = None
        self._hole_since_s = None
        self.given_up += 1

    def _drop_oldest(self) -> None:
        for sequence in list(self._waiting):
            if self._newest is None or _distance(sequence, self._newest) >= MAX_WAITING_PACKETS:
                del self._waiting[sequence]

    def _asks(self) -> bool:
        now_s = self._clock.now_s()
        if self._next is not None or now_s - self._asked_s < ASK_EVERY_S:
            return False
        self._asked_s = now_s
        return True


def _distance(first: int, then: int) -> int:
    """How many packets `then` comes after `first`; negative when it comes before."""
    half = _SEQUENCES // 2
    return (then - first + half) % _SEQUENCES - half


def _joined(packets: list[Any]) -> bytes:
    return b"".join(each._data for each in packets)


def _is_key(picture: bytes) -> bool:
    """VP8 and H.264 cannot be mistaken: the first bit of VP8 without a start code is 1."""
    return _is_vp8_key(picture) or bool(_H264_KEY.search(picture))


def _is_vp8_key(data: bytes) -> bool:
    return len(data) > 5 and data[0] & 1 == 0 and data[3:6] == _VP8_START_CODE


def is_too_large(picture: bytes) -> bool:
    """Whether a key picture of VP8 claims more than `MOST_PIXELS`."""
    if not _is_vp8_key(picture):
        return False
    width, height = (int.from_bytes(picture[at : at + 2], "little") & _VP8_SIDE for at in (6, 8))
    return width * height > MOST_PIXELS


class DecodablePictures:
    """A `PacketOrder`: those of another, as long as they can be decoded, and in time."""

    def __init__(self, order: PictureOrder) -> None:
        self._order = order
        self.undecoded: Callable[[], int] = lambda: 0
        """How many wait for the decoder."""

    def add(self, packet: Any) -> tuple[bool, list[WholePicture]]:
        """The next packet. As the other's."""
        asks, pictures = self._order.add(packet)
        too_many = len(pictures) + self.undecoded() > MOST_UNDECODED
        if pictures and (too_many or any(is_too_large(each.data) for each in pictures)):
            self._order.lose()
            return asks, []
        return asks, pictures


class NewestPicture:
    """Keeps the newest camera frame; it becomes RGB only when somebody asks for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._frame: av.VideoFrame | None = None
        self._came_s = 0.0

    def put(self, frame: av.VideoFrame) -> None:
        """Replace whatever was not taken yet."""
        self._frame = frame
        self._came_s = self._clock.now_s()

    @property
    def is_large(self) -> bool:
        """Whether the picture that waits takes long to become RGB."""
        frame = self._frame
        return frame is not None and frame.width * frame.height > LARGE_PIXELS

    def take(self, now_at: int) -> VideoFrame | None:
        """The newest picture, once; None when it was taken already or none came.

        `now_at` is where the microphone stands; the picture is stamped with where that stood when
        it came.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            return None
        age_samples = round((self._clock.now_s() - self._came_s) * MIC_RATE_HZ)
        # Lines of odd widths are padded, and what has gaps is slow to send to another process.
        rgb = np.ascontiguousarray(frame.to_ndarray(format="rgb24"), np.uint8)
        return VideoFrame(rgb, max(0, now_at - age_samples))
