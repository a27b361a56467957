"""What a unit brings, as far as anything can be made of it: its sound, and those of its pictures
that are of a possible shape and fit, the newest ones."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.commands import AddPicture
from agent.duplex.pictures import check_picture, piece_sizes
from agent.duplex.typed_input import TypedInput, opened
from agent.duplex.unit_senses import MAX_PICTURES
from agent.errors import RequestError
from agent.scheduler import Shown
from agent.types import UNIT_SAMPLES, ByteArray, FloatArray, VideoFrame

log = logging.getLogger(__name__)


class Sight:
    """What a call sees: pictures that are sent to it, which wait in `typed`, and its units'."""

    def __init__(self, typed: TypedInput, piece_tokens: int, max_slices: int) -> None:
        """A thumbnail or cell takes `piece_tokens` with its marks."""
        self._typed = typed
        self._piece_tokens = piece_tokens
        self.max_slices = max_slices
        self.shown: Shown = "all"
        """How much is seen of the units' own pictures."""

    @property
    def slices(self) -> int:
        """At most so many of a unit's own pictures."""
        return self.max_slices if self.shown == "all" else 1

    def add(self, added: AddPicture, room_tokens: int) -> None:
        """A picture for the next unit, which has so much room; RequestError when it is refused."""
        self._typed.expect_room(MAX_PICTURES, "a second later")
        rgb = opened(added, self.max_slices)
        pieces, most = piece_count(rgb, self.max_slices), self._most_pieces(room_tokens)
        if self._waiting_pieces + pieces > most:
            raise RequestError(
                f"the picture takes {pieces} tiles and only {most} fit into a second; "
                "send it later, or with a smaller max_slices",
                param="item.content",
            )
        self._typed.add_picture(added.item_id, rgb)

    def seen(self, pictures: Sequence[VideoFrame], room_tokens: int) -> tuple[VideoFrame, ...]:
        """The newest of a unit's pictures that it has room for beside those that were sent."""
        if self.shown == "none":
            return ()
        room = PictureRoom(
            self._most_pieces(room_tokens) - self._waiting_pieces,
            MAX_PICTURES - len(self._typed.pictures),
            self.max_slices,
        )
        return tuple(pictures[place] for place in room.newest([one.rgb for one in pictures]))

    @property
    def _waiting_pieces(self) -> int:
        return sum(piece_count(rgb, self.max_slices) for rgb in self._typed.pictures)

    def _most_pieces(self, room_tokens: int) -> int:
        return room_tokens * 3 // 4 // self._piece_tokens


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


def whole_second(samples: FloatArray) -> FloatArray:
    """A unit's sound [16000], −1..1: what is no number is silence, and so is what is missing."""
    sound = np.zeros(UNIT_SAMPLES, np.float32)
    given = samples[:UNIT_SAMPLES]
    sound[: len(given)] = np.nan_to_num(given, nan=0.0, posinf=0.0, neginf=0.0)
    return sound.clip(-1, 1)
