"""What a pass of the LLM's lane is told about its rows: one buffer of whole numbers, sent at once.

A pass is a number of rows that go through the layers together: positions of reads, each in its
slot. A read that is longer than a pass goes on in the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.duplex.cuda.kernels_attention import Heads, Rows, splits_for
from agent.duplex.cuda.static_decoder import tiles_of
from agent.duplex.kv_cache import KvCache
from agent.duplex.work import Read

IntArray: TypeAlias = NDArray[np.int32]

BROUGHT = -1
"""In place of an id: the row's vector is brought along."""
NOWHERE = -1
"""In place of a slot: the row is nobody's. In place of a row: nothing is kept."""


@dataclass(frozen=True, slots=True)
class LlmSizes:
    """What graphs are made for. A batch takes the next size up, some of its rows being nobody's."""

    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
    """Rows of a pass."""
    choices: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Tokens drawn together; the last is how many works a batch has at most."""

    @classmethod
    def for_slots(cls, slots: int) -> "LlmSizes":
        """Of an engine with so many conversations."""
        most = 1 << max(0, slots - 1).bit_length()
        return cls(choices=tuple(1 << power for power in range(most.bit_length())))

    @property
    def most_rows(self) -> int:
        """Of a pass."""
        return self.rows[-1]

    @property
    def most_works(self) -> int:
        """Of a batch."""
        return self.choices[-1]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `begin` to `stop` of a read, which is the `place`-th of its batch."""

    read: Read
    place: int
    begin: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.begin

    @property
    def is_last(self) -> bool:
        """Whether the read ends with it."""
        return self.stop == self.read.count


def passes_of(reads: Sequence[tuple[int, Read]], most: int) -> list[list[Piece]]:
    """Reads, each with its place in the batch, cut into passes of `most` rows."""
    passes: list[list[Piece]] = [[]]
    room = most
    for place, read in reads:
        begin = 0
        while begin < read.count:
            if not room:
                passes.append([])
                room = most
            stop = min(read.count, begin + room)
            passes[-1].append(Piece(read, place, begin, stop))
            room -= stop - begin
            begin = stop
    return passes


class PassRows:
    """The buffer: on the device, where graphs read it, and on the host once for every pass that a
    batch may take."""

    def __init__(self, sizes: LlmSizes, heads: Heads, cache: KvCache) -> None:
        device = cache.tensor.device
        self._heads, self._streams = heads, sizes.most_works
        passes = -(-cache.positions // sizes.most_rows) + 1
        rows, tiles = sizes.most_rows, self._most_tiles(sizes.most_rows)
        parts = [rows, rows, rows, 2 * tiles, self._streams, 1]
        self._device = torch.zeros(sum(parts), dtype=torch.int32, device=device)
        self._ids, self._slots, self._positions, tiled, self.kept, self._splits = torch.split(
            self._device, parts
        )
        self._tiles = tiled.view(tiles, 2)
        shape = (passes, sum(parts))
        self._pinned = torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        bounds = np.cumsum(parts)[:-1]
        self._hosts: list[list[IntArray]] = [np.split(one, bounds) for one in self._pinned.numpy()]
        self._order = np.arange(cache.positions, dtype=np.int32)

    def ids(self, count: int) -> Tensor:
        """Those of the first `count` rows, i32."""
        return self._ids[:count]

    def rows(self, count: int) -> Rows:
        """The first `count` rows."""
        tiles = self._tiles[: self._most_tiles(count)]
        return Rows(self._slots[:count], self._positions[:count], tiles, self._splits)

    def _most_tiles(self, count: int) -> int:
        return min(count, self._streams + count // self._heads.wide)

    def fill(self, number: int, pieces: Sequence[Piece], count: int) -> None:
        """What the `number`-th pass reads: `pieces`, and rows of nobody up to `count`."""
        ids, slots, positions, tiled, kept, splits = self._hosts[number]
        kept[:] = NOWHERE
        row = 0
        for piece in pieces:
            end = row + piece.count
            self._fill_ids(ids[row:end], piece)
            slots[row:end] = piece.read.stream.slot
            first = piece.read.stream.length + piece.begin
            positions[row:end] = self._order[first : first + piece.count]
            row = end
            if piece.is_last:
                kept[piece.place] = row - 1
        ids[row:count], slots[row:count], positions[row:count] = 0, NOWHERE, 0
        tiles = tiles_of([piece.count for piece in pieces], self._heads.wide)
        tiled[: 2 * len(tiles)] = [number for tile in tiles for number in tile]
        tiled[2 * len(tiles) : 2 * self._most_tiles(count)] = 0
        splits[0] = splits_for([rows for _, rows in tiles], self._heads)

    def _fill_ids(self, ids: IntArray, piece: Piece) -> None:
        given = piece.read.ids[piece.begin : piece.stop]
        ids[: len(given)] = given
        ids[len(given) :] = BROUGHT

    def send(self, number: int) -> None:
        """Start the copy of the `number`-th pass on the current stream."""
        self._device.copy_(self._pinned[number], non_blocking=True)
