"""The camera: packets into whole pictures, of which only the newest is kept."""

from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from agent.clock import Clock
from agent.types import MIC_RATE_HZ, VideoFrame

MAX_WAITING_PACKETS = 512
"""More than a large key frame has; beyond it the hole is given up."""
HOLE_WAIT_S = 1.0
"""A packet that was asked for again comes after a round trip or never."""

_SEQUENCES = 1 << 16


@dataclass(slots=True)
class WholePicture:
    """An encoded picture; the decoder's thread counts `timestamp` anew."""

    data: bytes
    timestamp: int


class PictureOrder:
    """Packets in any order in, pictures out at their last packet: a `PacketOrder`.

    A hole holds everything back, since later pictures build on it; after `HOLE_WAIT_S`, or
    `MAX_WAITING_PACKETS`, all is dropped and the sender is asked to start afresh. Of pictures that
    become whole at once, each further packet releases one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[int, Any] = {}
        self._next: int | None = None
        self._hole_since_s: float | None = None
        self.given_up = 0
        """How often a hole was given up."""

    def add(self, packet: Any) -> tuple[bool, WholePicture | None]:
        """The next packet, its picture data in `_data`; asks for a fresh start where needed."""
        if self._next is None:
            self._next = packet.sequence_number
        if (packet.sequence_number - self._next) % _SEQUENCES >= _SEQUENCES // 2:
            return False, None
        self._waiting[packet.sequence_number] = packet
        picture = self._take_whole(self._next)
        if picture is None and self._is_stuck(self._next):
            self._give_up()
            return True, None
        return False, picture

    def _take_whole(self, first: int) -> WholePicture | None:
        """The packets from `first` up to a marker, or up to another picture's first."""
        packets: list[Any] = []
        while (packet := self._waiting.get((first + len(packets)) % _SEQUENCES)) is not None:
            if packets and packet.timestamp != packets[0].timestamp:
                break
            packets.append(packet)
            if packet.marker:
                break
        else:
            return None
        for packet in packets:
            del self._waiting[packet.sequence_number]
        self._next = (first + len(packets)) % _SEQUENCES
        self._hole_since_s = None
        return WholePicture(b"".join(each._data for each in packets), packets[0].timestamp)

    def _is_stuck(self, first: int) -> bool:
        newest = max((sequence - first) % _SEQUENCES for sequence in self._waiting)
        if newest + 1 == len(self._waiting):
            self._hole_since_s = None  # nothing is missing, the picture is only not all there
            return len(self._waiting) >= MAX_WAITING_PACKETS
        now_s = self._clock.now_s()
        if self._hole_since_s is None:
            self._hole_since_s = now_s
        return newest >= MAX_WAITING_PACKETS or now_s - self._hole_since_s > HOLE_WAIT_S

    def _give_up(self) -> None:
        self._waiting.clear()
        self._next = None
        self._hole_since_s = None
        self.given_up += 1


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

    def take(self, now_at: int) -> VideoFrame | None:
        """The newest picture, once; None when it was taken already or none came.

        `now_at` is where the microphone stands; the picture is stamped with where that stood when
        it came.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            return None
        age_samples = round((self._clock.now_s() - self._came_s) * MIC_RATE_HZ)
        rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        return VideoFrame(rgb, max(0, now_at - age_samples))
