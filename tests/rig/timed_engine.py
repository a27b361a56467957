"""An engine that takes a known time for each unit, one after the other, and says what is asked."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from agent.clock import Clock
from agent.commands import Command, ForceListen, Respond
from agent.errors import CapacityError
from agent.types import (
    Abilities,
    EngineEvent,
    Failed,
    Listened,
    Load,
    SessionSettings,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TurnEnded,
    TurnStarted,
    Unit,
    UnitReport,
)

SECOND = np.ones(24_000, np.float32)


@dataclass
class TimedEngine:
    """`unit_s` is what a unit takes, with pictures `picture_s` more; more than `accepts` calls it
    refuses, though it has `slots`. From `blind_from` calls on it looks at no picture; a call that
    comes when `fails_from` are there fails at its first unit."""

    clock: Clock
    unit_s: float = 0.1
    picture_s: float = 0.0
    slots: int = 16
    accepts: int = 1000
    blind_from: int = 1000
    fails_from: int = 1000
    failure: Exception = field(default_factory=lambda: RuntimeError("broken"))
    abilities: Abilities = field(
        default_factory=lambda: Abilities(duplex=True, speech=True, camera=True, typed_text=True)
    )
    name = "timed"

    def __post_init__(self) -> None:
        self.calls: set[TimedCall] = set()
        self.most_calls = 0
        self.device = asyncio.Lock()

    async def open(self, settings: SessionSettings) -> "TimedCall":
        if len(self.calls) >= min(self.slots, self.accepts):
            raise CapacityError("full", retry_after_s=1)
        call = TimedCall(self, broken=len(self.calls) + 1 >= self.fails_from)
        self.calls.add(call)
        self.most_calls = max(self.most_calls, len(self.calls))
        return call

    def load(self) -> Load:
        return Load(len(self.calls), self.slots - len(self.calls))


class TimedCall:
    def __init__(self, engine: TimedEngine, *, broken: bool) -> None:
        self.engine = engine
        self.broken = broken
        self.commands: list[Command] = []
        self.said: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self.turn = 0
        self.speaks = self.asked = False
        self.works: set[asyncio.Task[None]] = set()

    async def push(self, item: Unit | SpeechStarted | SpeechEnded) -> None:
        assert isinstance(item, Unit)
        work = asyncio.create_task(self._do(item))
        self.works.add(work)
        work.add_done_callback(self.works.discard)

    async def control(self, command: Command) -> None:
        self.commands.append(command)
        match command:
            case Respond():
                self.asked = True
            case ForceListen(on=True) if self.speaks:
                self.speaks = False
                self.said.put_nowait(TurnEnded(self.turn, "interrupted"))

    async def _do(self, unit: Unit) -> None:
        engine = self.engine
        async with engine.device:
            took_s = engine.unit_s + engine.picture_s * len(unit.pictures)
            await engine.clock.sleep_until(engine.clock.now_s() + took_s)
        if self.broken:
            self.said.put_nowait(Failed(engine.failure))
            return
        self._say(unit)
        sees = unit.pictures and len(engine.calls) < engine.blind_from
        stages = (("vision", 1.0),) if sees else (("audio", 1.0),)
        self.said.put_nowait(UnitReport(unit.index, stages, 100 + unit.index))

    def _say(self, unit: Unit) -> None:
        if self.asked:
            self.asked, self.speaks = False, True
            self.turn += 1
            self.said.put_nowait(TurnStarted(self.turn))
        if self.speaks:
            self.said.put_nowait(SpeechAudio(self.turn, unit.index, 0, SECOND))
        else:
            self.said.put_nowait(Listened(unit.index))

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self.said.get()

    async def finish(self) -> None:
        self.engine.calls.discard(self)
        works = list(self.works)
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
