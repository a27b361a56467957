"""Which pictures of a call are seen: those of a possible shape, the newest ones, as many as fit."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agent.duplex.pictures import check_picture, piece_sizes
from agent.errors import RequestError
from agent.types import ByteArray

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PictureRoom:
    """Room for `pieces` thumbnails and cells of `pictures` pictures at most."""

    pieces: int
    pictures: int
    max_slices: int

    def newest(self, shown: Sequence[ByteArray]) -> list[int]:
        """The places of those that fit, in order."""
        room, kept = self.pieces, list[int]()
        for place in reversed(range(len(shown))):
            if len(kept) == self.pictures or not is_seen(shown[place], self.max_slices):
                continue
            room -= piece_count(shown[place], self.max_slices)
            if room < 0:
                break
            kept.insert(0, place)
        return kept


def piece_count(rgb: ByteArray, max_slices: int) -> int:
    """Thumbnail and cells of a picture [H, W, 3]."""
    height, width = rgb.shape[:2]
    return len(piece_sizes(width, height, max_slices))


def is_seen(rgb: ByteArray, max_slices: int) -> bool:
    """Whether anything can be made of a picture of the camera [H, W, 3]; logged where not."""
    height, width = rgb.shape[:2]
    try:
        check_picture(width, height, max_slices)
    except RequestError as error:
        log.warning("a picture of the camera was not seen: %s", error)
        return False
    return True
