"""How fast one client may send: what comes faster waits where the client can be made to wait."""

from dataclasses import dataclass

from agent.clock import Clock
from agent.realtime.events import error_event


@dataclass(frozen=True, slots=True)
class SocketPace:
    """Bounds of what comes over one socket or data channel: at once, then how much a second."""

    events_s: float = 200.0
    events_at_once: float = 2_000.0
    """A client that restores a conversation sends all its items at once."""
    bytes_s: float = 1.0 * (1 << 20)
    """Sixteen times what sound takes at the pace of speech."""
    bytes_at_once: float = 8.0 * (1 << 20)


DEFAULT_PACE = SocketPace()


class Pacer:
    """Holds one client to its pace.

    A socket that is not read makes its client wait. A data channel does not: what is not taken
    from it waits on this side, so that there more events than may come are too many.
    """

    def __init__(self, pace: SocketPace, clock: Clock) -> None:
        self.pace = pace
        self._clock = clock
        self._events = _Bucket(pace.events_s, pace.events_at_once, clock.now_s())
        self._bytes = _Bucket(pace.bytes_s, pace.bytes_at_once, clock.now_s())

    async def hold_back(self, size: int) -> None:
        """Wait until an event of `size` bytes may come in."""
        now_s = self._clock.now_s()
        owed_s = -self._events.take(1.0, now_s) / self.pace.events_s
        await self._wait(now_s, max(owed_s, self._owed_s(size, now_s)))

    async def admit(self, size: int) -> bool:
        """The same, but False for an event too many; only bytes are waited for."""
        now_s = self._clock.now_s()
        if self._events.take(1.0, now_s) < 0:
            return False
        await self._wait(now_s, self._owed_s(size, now_s))
        return True

    def _owed_s(self, size: int, now_s: float) -> float:
        return -self._bytes.take(float(size), now_s) / self.pace.bytes_s

    async def _wait(self, now_s: float, owed_s: float) -> None:
        if owed_s > 0:
            await self._clock.sleep_until(now_s + owed_s)


def too_many_events(pace: SocketPace) -> dict[str, object]:
    """The error event for a client that is not to be listened to any longer."""
    text = f"More than {pace.events_s:.0f} events a second came; send fewer, larger ones."
    return error_event(text, code="rate_limit_exceeded")


class _Bucket:
    def __init__(self, rate: float, most: float, now_s: float) -> None:
        self._rate = rate
        self._most = self._left = most
        self._at_s = now_s

    def take(self, amount: float, now_s: float) -> float:
        """What is left without it; below 0 that was too much."""
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._rate) - amount
        self._at_s = now_s
        return self._left
