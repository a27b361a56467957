"""Time: the one place that tests replace.

Streams count samples; wall time is read only where the outside world sets the pace.
"""

import asyncio
import time


class Clock:
    """Monotonic time in seconds; its origin has no meaning."""

    def now_s(self) -> float:
        """Seconds since an arbitrary origin; never goes back."""
        return time.monotonic()

    def unix_s(self) -> float:
        """Seconds since 1970, for what others are told or have written down; may jump."""
        return time.time()

    async def sleep_until(self, due_s: float) -> None:
        """Return at `due_s`, or at once when that is past (after other tasks had their turn)."""
        await asyncio.sleep(max(0.0, due_s - self.now_s()))


SYSTEM_CLOCK = Clock()
