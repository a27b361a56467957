"""Numbered places of a store, handed out and given back; no device in it.

    lease = places.take(50)   # Full when there are not so many
    other = lease.part(0, 20)  # the first of these, held once more
    rows = Rows((lease,), 50).with_newer(places.take(25), 60)  # of several leases, the last 60

A place is free again when nobody holds a lease of it any more. Whoever reads or writes the store
does so on one stream of the device, so a place may be given away while work on it is still to come.
"""

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]
Finite: TypeAlias = npt.NDArray[np.bool_]

_NONE: Numbers = np.zeros(0, np.int64)


class Full(Exception):
    """There are not so many free places."""


class Places:
    """So many places, from number `first` on."""

    def __init__(self, count: int, first: int = 0) -> None:
        # In pieces as they came back, to be given away again as they are where the size is right.
        self._free = [np.arange(first, first + count)]
        self._left = count
        # Beside a place's first lease. Nearly all places have one, and it is not counted.
        self._others = np.zeros(first + count, np.int64)
        self._ended: deque[tuple[Numbers, bool]] = deque()
        self.count = count

    @property
    def left(self) -> int:
        """How many are free."""
        self._collect()
        return self._left

    def take(self, count: int) -> "Lease":
        """So many of the free ones; `Full`."""
        if self._ended:
            self._collect()
        if count > self._left:
            raise Full
        self._left -= count
        if self._free and len(self._free[-1]) == count:
            return Lease(self._free.pop(), self)
        return Lease(self._gathered(count), self)

    def _gathered(self, count: int) -> Numbers:
        pieces = [_NONE]
        while count:
            piece = self._free.pop()
            if len(piece) > count:
                self._free.append(piece[count:])
                piece = piece[:count]
            pieces.append(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def _collect(self) -> None:
        """Take back what was held by leases that are no more."""
        while self._ended:
            numbers, is_shared = self._ended.popleft()
            free = self._without_others(numbers) if is_shared else numbers
            if len(free):
                self._free.append(free)
                self._left += len(free)

    def _without_others(self, numbers: Numbers) -> Numbers:
        others = self._others[numbers]
        self._others[numbers] = np.maximum(others - 1, 0)
        free: Numbers = numbers[others == 0]
        return free


class Lease:
    """Places that are held as long as this lives; its numbers are never changed."""

    __slots__ = ("_is_shared", "_places", "count", "numbers")

    def __init__(self, numbers: Numbers, places: Places, *, is_shared: bool = False) -> None:
        self.numbers = numbers
        self.count = len(numbers)
        self._places = places
        # Whether others hold some of them too, or did.
        self._is_shared = is_shared

    def of(self, numbers: Numbers) -> "Lease":
        """Some places of this one, held by themselves."""
        self._is_shared = True
        self._places._others[numbers] += 1
        return Lease(numbers, self._places, is_shared=True)

    def part(self, first: int, end: int) -> "Lease":
        """Those from its `first` to its `end`; itself where these are all."""
        return self if end - first == self.count else self.of(self.numbers[first:end])

    def __len__(self) -> int:
        return self.count

    def __del__(self) -> None:
        # Only noted, as it may end anywhere: on another thread, or amid `take`.
        self._places._ended.append((self.numbers, self._is_shared))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Places of several leases, in that order: so many."""

    leases: tuple[Lease, ...] = ()
    count: int = 0

    @property
    def numbers(self) -> Numbers:
        """Of all of them."""
        return np.concatenate([_NONE, *(one.numbers for one in self.leases)])

    def with_newer(self, fresh: Lease, most: int) -> "Rows":
        """These and others behind them: of all the last ones, at most so many."""
        leases, count = (*self.leases, fresh), self.count + fresh.count
        if count <= most:
            return Rows(leases, count)
        forgotten, at = count - most, 0
        while forgotten >= leases[at].count:
            forgotten -= leases[at].count
            at += 1
        oldest = leases[at].part(forgotten, leases[at].count)
        return Rows((oldest, *leases[at + 1 :]), most)

    def __len__(self) -> int:
        return self.count
