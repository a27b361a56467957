"""How far the microphone may run ahead of the engine, where clients send recordings at once."""

import asyncio

from agent.clock import Clock
from agent.types import EngineEvent, Unit, UnitReport

MOST_AHEAD = 8
"""Engines forget what they have not heard when twice as much waits."""
_UNIT_S = 0.9
"""A little less than it sounds: live sound is not to fall behind."""


class UnitPace:
    """Counts the units that the engine was told, and those that it has reported.

    Where it reports none, units go on at the pace of speech, as those of a live microphone.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told = self._reported = self._waited_for = -1
        self._news = asyncio.Event()

    def told(self, item: object) -> None:
        """What the engine is told."""
        if isinstance(item, Unit):
            self._told = item.index

    def heard(self, event: EngineEvent) -> None:
        """What it says."""
        if isinstance(event, UnitReport):
            self._reported = max(self._reported, event.unit)
            self._news.set()

    async def room(self) -> None:
        """Wait until there is room for more sound."""
        if self._told - self._reported < MOST_AHEAD or self._told == self._waited_for:
            return
        self._waited_for = self._told
        waits = (
            asyncio.ensure_future(self._clock.sleep_until(self._clock.now_s() + _UNIT_S)),
            asyncio.ensure_future(self._followed()),
        )
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    async def _followed(self) -> None:
        while self._told - self._reported >= MOST_AHEAD:
            self._news.clear()
            await self._news.wait()
