"""An `EngineCore` that spends a known time on each unit, one after the other."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from agent.commands import AddText, Command
from agent.errors import CapacityError
from agent.types import (
    Abilities,
    EngineEvent,
    Failed,
    Listened,
    Load,
    SessionSettings,
    SpeechAudio,
    TurnStarted,
    Unit,
    UnitReport,
)
from tests.rig.virtual_time import VirtualClock

FIRST_TOKENS = 50
UNIT_TOKENS = 15


@dataclass
class TimedCore:
    """`unit_s` is what a unit takes. The units of `spoken` calls are spoken, each a turn's first;
    with `blind` no picture is looked at; there are `accepts` places, and of these it fills `admits`
    unless it `admits_all`. What is typed counts a token a word, and a call forgets what is beyond
    `window_tokens`."""

    clock: VirtualClock
    unit_s: float = 0.1
    accepts: int = 1000
    admits: int = 1000
    admits_all: bool = False
    blind: bool = False
    spoken: bool = False
    window_tokens: int = 1000
    failure: Exception | None = None
    name = "minicpm-o"
    abilities: Abilities = field(default_factory=Abilities)

    def __post_init__(self) -> None:
        self.calls: dict[int, int] = {}
        self.waiting: deque[tuple[int, Unit]] = deque()
        self.most_calls = 0
        self.ended: list[int] = []

    def open(self, number: int, settings: SessionSettings) -> None:
        most = self.accepts if self.admits_all else min(self.accepts, self.admits)
        if len(self.calls) >= most:
            raise CapacityError("full", retry_after_s=1)
        self.calls[number] = FIRST_TOKENS
        self.most_calls = max(self.most_calls, len(self.calls))

    def push(self, number: int, item: object) -> None:
        assert isinstance(item, Unit) and number in self.calls
        self.waiting.append((number, item))

    def control(self, number: int, command: Command) -> None:
        assert isinstance(command, AddText)
        self.calls[number] += len(command.text.split())

    def finish(self, number: int) -> None:
        self.calls.pop(number)
        self.ended.append(number)
        self.waiting = deque(one for one in self.waiting if one[0] != number)

    def idle_s(self) -> float | None:
        return 0.0 if self.waiting else None

    def load(self) -> Load:
        return Load(len(self.calls), 1000)

    def work(self) -> list[tuple[int, EngineEvent]]:
        number, unit = self.waiting.popleft()
        self.clock.spend_s(self.unit_s)
        if self.failure is not None:
            return [(number, Failed(self.failure))]
        tokens = min(self.window_tokens, self.calls[number] + UNIT_TOKENS)
        self.calls[number] = tokens
        stages = (("vision", 1.0),) if unit.pictures and not self.blind else (("audio", 1.0),)
        report = UnitReport(unit.index, stages, tokens)
        said: list[EngineEvent] = [Listened(unit.index), report]
        if self.spoken:
            sound = SpeechAudio(1, unit.index, 0, np.ones(24_000, np.float32))
            said = [TurnStarted(1), sound, report]
        return [(number, event) for event in said]
