"""A bounded queue between two threads that can be closed and emptied at once."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.errors import EngineError

T = TypeVar("T")


class ChannelClosed(EngineError):
    """Nothing comes any more, and nothing is taken."""


@dataclass(slots=True)
class _Budget:
    """Bytes that may wait; what is larger than all of them may only wait alone."""

    most: int
    waiting: int = 0

    def fits(self, size_bytes: int) -> bool:
        return not self.waiting or self.waiting + size_bytes <= self.most


class Channel(Generic[T]):
    """First in, first out. When `max_items` or `max_bytes` wait, it is full.

    `put` waits for room, `offer` refuses; an item larger than `max_bytes` is taken when no other
    bytes wait. What is offered as `bulk` counts for `max_bulk_bytes` in their place, so that
    neither kind takes the room of the other.
    """

    def __init__(
        self, max_items: int, max_bytes: int = 1 << 62, max_bulk_bytes: int = 1 << 62
    ) -> None:
        self._max_items = max_items
        self._budget = _Budget(max_bytes)
        self._bulk = _Budget(max_bulk_bytes)
        self._items: deque[tuple[T, int, _Budget]] = deque()
        self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def put(self, item: T) -> None:
        """Add `item` once there is room. `ChannelClosed`."""
        with self._changed:
            while self._full(0, self._budget) and not self._closed:
                self._changed.wait()
            self._add(item, 0, self._budget)

    def offer(
        self, item: T, size_bytes: int = 0, *, must: bool = False, bulk: bool = False
    ) -> bool:
        """Add `item` if there is room, or if it `must` be; says whether. `ChannelClosed`."""
        budget = self._bulk if bulk else self._budget
        with self._changed:
            if self._full(size_bytes, budget) and not must and not self._closed:
                return False
            self._add(item, size_bytes, budget)
            return True

    def get(self) -> T:
        """Wait for the next. `ChannelClosed` after the last."""
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                raise ChannelClosed("the channel is closed")
            item, size_bytes, budget = self._items.popleft()
            budget.waiting -= size_bytes
            self._changed.notify_all()
            return item

    def drain(self, wait_s: float = 0.0) -> list[T]:
        """All that waits; none after `wait_s` without any. `ChannelClosed` after the last."""
        with self._changed:
            if not self._items and not self._closed and wait_s > 0:
                self._changed.wait(wait_s)
            if self._closed and not self._items:
                raise ChannelClosed("the channel is closed")
            items = [item for item, _, _ in self._items]
            self._items.clear()
            self._budget.waiting = self._bulk.waiting = 0
            self._changed.notify_all()
            return items

    def close(self) -> None:
        """Take nothing more; what waits can still be had. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _full(self, size_bytes: int, budget: _Budget) -> bool:
        return not budget.fits(size_bytes) or len(self._items) >= self._max_items

    def _add(self, item: T, size_bytes: int, budget: _Budget) -> None:
        if self._closed:
            raise ChannelClosed("the channel is closed")
        self._items.append((item, size_bytes, budget))
        budget.waiting += size_bytes
        self._changed.notify_all()
