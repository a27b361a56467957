"""Numbered places of a store, handed out and given back; no device in it.

    lease = places.take(50)   # Full when there are not so many
    other = lease.of(lease.numbers[:20])  # the same places, held once more

A place is free again when nobody holds a lease of it any more. Whoever reads or writes the store
does so on one stream of the device, so a place may be given away while work on it is still to come.
"""

import weakref
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]
Finite: TypeAlias = npt.NDArray[np.bool_]


class Full(Exception):
    """There are not so many free places."""


class Places:
    """So many places, from number `first` on."""

    def __init__(self, count: int, first: int = 0) -> None:
        self._free = np.arange(first + count - 1, first - 1, -1, dtype=np.int64)
        self._left = count
        self._holders = np.zeros(first + count, np.int64)
        self.count = count

    @property
    def left(self) -> int:
        """How many are free."""
        return self._left

    def take(self, count: int) -> "Lease":
        """So many of the free ones; `Full`."""
        if count > self._left:
            raise Full
        self._left -= count
        return self._held(self._free[self._left : self._left + count][::-1].copy())

    def _held(self, numbers: Numbers) -> "Lease":
        self._holders[numbers] += 1
        lease = Lease(numbers, self)
        weakref.finalize(lease, self._give_back, numbers)
        return lease

    def _give_back(self, numbers: Numbers) -> None:
        self._holders[numbers] -= 1
        free = numbers[self._holders[numbers] == 0]
        self._free[self._left : self._left + len(free)] = free
        self._left += len(free)


@dataclass(frozen=True, eq=False)
class Lease:
    """Places that are held as long as this lives."""

    numbers: Numbers
    _places: Places = field(repr=False)

    def of(self, numbers: Numbers) -> "Lease":
        """Some places of this one, or of others that are held now, held by themselves."""
        return self._places._held(numbers)

    def __len__(self) -> int:
        return len(self.numbers)
