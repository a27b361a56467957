"""Chance that depends on nothing but a conversation's seed and how often it drew.

Every draw has a number, and from seed and number comes a key of 32 bits. A key gives one uniform
number for each index: the same on every device, in every batch, in any order, so nobody's company
changes what is said, and going back is going back to a number. A kernel computes the same from the
same key: `mixed` is plain arithmetic on 32 bits.
"""

import secrets
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
FIRST_FACTOR = 0x7FEB352D
SECOND_FACTOR = 0x846CA68B
"""Factors and shifts of a mixer whose bits all depend on all, found by search: C. Wellons, 2018."""
OFFSET = 0x9E3779B9
"""Keeps index 0 under key 0 from being 0 through every round."""
_MANTISSA_BITS = 24


@dataclass(slots=True)
class RandomSource:
    """A conversation's own chance."""

    seed: int
    drawn: int = 0
    """How many keys were given out."""

    @classmethod
    def of(cls, seed: int | None) -> "RandomSource":
        """Any whole number is a seed; None: another one every time."""
        return cls(secrets.randbits(64) if seed is None else seed % (1 << 64))

    def copy(self) -> "RandomSource":
        """The same from here on, by itself."""
        return replace(self)

    def aside(self) -> "RandomSource":
        """Another one of the same seed, for draws that do not count among these."""
        return RandomSource(self.seed ^ OFFSET << 16)

    def key(self) -> int:
        """The next draw's key."""
        return self.keys(1)[0]

    def keys(self, count: int) -> list[int]:
        """Those of the next `count` draws."""
        first, self.drawn = self.drawn, self.drawn + count
        low, high = self.seed & _MASK, self.seed >> 32 & _MASK
        return [_mixed(_mixed(number & _MASK ^ low) ^ high) for number in range(first, self.drawn)]


def uniform(key: int | Tensor, index: Tensor) -> Tensor:
    """One number of (0, 1) for each index, f32: of one key, or of keys i64 [..., 1] each its own.

    `index` is i64 and below 2^32.
    """
    once = mixed((index + OFFSET & _MASK) ^ key)
    twice = mixed((once + OFFSET & _MASK) ^ key)
    high = twice >> (32 - _MANTISSA_BITS)
    # Neither end comes: of a logarithm nothing is infinite.
    return (high.float() + 0.5) * 2.0**-_MANTISSA_BITS


def exponential(key: int | Tensor, index: Tensor) -> Tensor:
    """The same, exponentially distributed with mean 1."""
    return -uniform(key, index).log()


def mixed(values: Tensor) -> Tensor:
    """i64 below 2^32 → the same, every bit depending on all."""
    values = values ^ values >> 16
    values = values * FIRST_FACTOR & _MASK
    values = values ^ values >> 15
    values = values * SECOND_FACTOR & _MASK
    return values ^ values >> 16


def _mixed(value: int) -> int:
    value ^= value >> 16
    value = value * FIRST_FACTOR & _MASK
    value ^= value >> 15
    value = value * SECOND_FACTOR & _MASK
    return value ^ value >> 16


def draw(weights: Tensor, key: int, index: Tensor | None = None) -> Tensor:
    """One place i64 [1], each as likely as its weight in [n] says.

    `index` i64 [n] names the places, where they stand in another order than by number: the draw
    depends on the names alone.
    """
    if index is None:
        index = torch.arange(weights.shape[-1], device=weights.device)
    return (weights.float() / exponential(key, index)).argmax(-1, keepdim=True)
