"""Keys and values of all conversations, allocated once: what a transformer remembers.

A conversation has a slot and a length in it; nothing else of it is here. To forget its end, shorten
the length. To forget something in the middle, move what lies behind it: keys carry their position
as a rotation, so a move turns them by the distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.errors import ContextOverflow

_MOVED_POSITIONS = 128
"""At full size a piece of so many takes 19 MB, and 70 while it is turned."""


@dataclass(slots=True)
class KvStream:
    """One conversation's place in a cache: its slot, and how many positions are filled."""

    slot: int
    length: int = 0


@dataclass(frozen=True, slots=True)
class KvPlaces:
    """Where the next T positions of B streams go, and what they see."""

    slots: Tensor  # i64 [B]
    positions: Tensor  # i64 [B, T]
    span: int
    """How many positions of the cache are looked at, from 0 on."""
    mask: Tensor | None  # bool [B, 1, T, span]; None when everything in the span is seen
    rows: slice | None
    """The slots, where they lie side by side: then they are read in place."""


@dataclass(frozen=True, slots=True)
class KvCopy:
    """What a stream had cached, kept elsewhere: [layers, 2, kv heads, length, D]."""

    tensor: Tensor

    @property
    def length(self) -> int:
        return self.tensor.shape[3]


class KvCache:
    """Keys and values [layers, 2, slots, kv heads, positions, D]; see `Slots` for their number.

    At full size the LLM's take 147,456 bytes a position in bfloat16, the speech LM's 61,440.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def positions(self) -> int:
        """How many positions a slot holds."""
        return self.tensor.shape[4]

    def places(self, streams: Sequence[KvStream], count: int, *, whole: bool = False) -> KvPlaces:
        """Where the next `count` positions of these streams go. ContextOverflow if they do not fit.

        `whole` looks at all positions and masks those not filled yet, so that every call has the
        same shapes; otherwise no more is looked at than the longest stream needs.
        """
        past = [stream.length for stream in streams]
        if max(past) + count > self.positions:
            raise ContextOverflow(
                f"{max(past)} positions are taken and {count} more do not fit into {self.positions}"
            )
        span = self.positions if whole else max(past) + count
        device = self.tensor.device
        begin = torch.tensor(past).to(device, non_blocking=True)
        positions = begin[:, None] + torch.arange(count, device=device)
        sees_all = not whole and count == 1 and min(past) == max(past)
        seen = None
        if not sees_all:
            seen = (torch.arange(span, device=device) <= positions[..., None])[:, None]
        slots = [stream.slot for stream in streams]
        beside = slots == list(range(slots[0], slots[0] + len(slots)))
        return KvPlaces(
            slots=torch.tensor(slots).to(device, non_blocking=True),
            positions=positions,
            span=span,
            mask=seen,
            rows=slice(slots[0], slots[0] + len(slots)) if beside else None,
        )

    def extend(
        self, layer: int, places: KvPlaces, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write key and value [B, KV, T, D] to their places; all that is seen: [B, KV, span, D]."""
        keys, values = self.tensor[layer]
        slots = places.slots[:, None]
        keys[slots, :, places.positions] = key.transpose(1, 2)
        values[slots, :, places.positions] = value.transpose(1, 2)
        read = places.slots if places.rows is None else places.rows
        return keys[read][:, :, : places.span], values[read][:, :, : places.span]

    def move(self, stream: KvStream, start: int, to: int, frequencies: Tensor) -> None:
        """Bring everything from position `start` on to position `to`; the length follows.

        `frequencies` f32 [D / 2]: by how much each pair of a key turns from one position to the
        next. Turned in float32. In place, piece by piece: it takes as much memory beside the cache
        however much there is to move.
        """
        count, distance = stream.length - start, to - start
        if to < 0 or count < 0 or to + count > self.positions:
            raise ContextOverflow(f"{count} positions do not fit at {to} of {self.positions}")
        if distance:
            angles, mine = frequencies * distance, self.tensor[:, :, stream.slot]
            pieces = range(start, stream.length, _MOVED_POSITIONS)
            # Nothing is written before it was read: the piece that is ahead goes first.
            for begin in pieces if distance < 0 else reversed(pieces):
                end = min(begin + _MOVED_POSITIONS, stream.length)
                piece = mine[:, :, :, begin:end].clone()
                piece[:, 0] = turned(piece[:, 0], angles)
                mine[:, :, :, begin + distance : end + distance] = piece
        stream.length = to + count

    def copy(self, stream: KvStream, device: torch.device | None = None) -> KvCopy:
        """What `stream` has cached, kept apart from it (on `device` if one is given)."""
        kept = self.tensor[:, :, stream.slot, :, : stream.length]
        return KvCopy(kept.clone() if device is None else kept.to(device, copy=True))

    def put_back(self, stream: KvStream, copy: KvCopy) -> None:
        """Fill the slot that `stream` has now with what was copied."""
        self.tensor[:, :, stream.slot, :, : copy.length] = copy.tensor.to(self.tensor.device)
        stream.length = copy.length


def turned(keys: Tensor, angles: Tensor) -> Tensor:
    """Keys [..., D] rotated by `angles` [D / 2], the first half of D paired with the second."""
    cosine, sine = angles.cos(), angles.sin()
    first, second = keys.float().chunk(2, -1)
    whole = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    return whole.to(keys.dtype)
