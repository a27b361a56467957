"""A call that tries units early: both sides live in the same driven time."""

from dataclasses import replace

import numpy as np

from agent.types import (
    FloatArray,
    SessionSettings,
    SpeechAudio,
    TextDelta,
    TurnStarted,
    Unit,
    UnitReport,
)
from tests.rig.call_parts import ScriptedConversation, ToldDetector, settle, voice
from tests.rig.driven_call import DrivenCall

SETTINGS = SessionSettings(model="echo", early_units=True)


class EarlyCall(DrivenCall):
    """A call whose engine is done with every unit `lag_ms` after it came."""

    def __init__(
        self,
        lag_ms: int = 0,
        conversation: ScriptedConversation | None = None,
        **settings: object,
    ) -> None:
        super().__init__(conversation, detector=ToldDetector(patience=8000))
        self.lag_ms = lag_ms
        self.settings = replace(SETTINGS, **settings)  # type: ignore[arg-type]
        self.front_end.update(self.settings)
        self._reported = 0
        self._report_s: list[tuple[float, int]] = []

    async def live(self, ms: int, *, speaks: bool = False) -> FloatArray:
        """So much time passes for both sides, in which the user is silent or not; what was sent."""
        self.detector.voiced = speaks
        frames = []
        for _ in range(ms // 20):
            await self.listen(20, level=0.2 if speaks else 0.0)
            frames.append(self.peer.pull())
            await self.engine_works()
        return np.concatenate(frames)

    async def answer(self, turn: int, unit: int, ms: int, hold_ms: int = 180) -> None:
        """The engine begins a turn because of `unit`."""
        audio = SpeechAudio(turn, unit, 0, voice(ms), hold_ms=hold_ms)
        self.engine.say(TurnStarted(turn), TextDelta(unit, turn, "Yes"), audio)
        await settle()

    async def engine_works(self) -> None:
        """What it says by now; the scripted one reports its units."""
        units = self.units
        now_s = self.clock.now_s()
        self._report_s += [
            (now_s + self.lag_ms / 1000, one.index) for one in units[self._reported :]
        ]
        self._reported = len(units)
        while self._report_s and self._report_s[0][0] <= now_s:
            self.engine.say(UnitReport(self._report_s.pop(0)[1], ()))
        await settle()

    @property
    def units(self) -> list[Unit]:
        """All that the engine was told."""
        return self.commands(Unit)

    @property
    def tried(self) -> list[Unit]:
        return [unit for unit in self.units if unit.speculative]


async def until_tried(call: EarlyCall, spoken_ms: int = 400) -> Unit:
    """The user says something, and falls silent until that is sure."""
    await call.live(spoken_ms, speaks=True)
    before = len(call.tried)
    for _ in range(20):
        await call.live(20)
        if len(call.tried) > before:
            return call.tried[-1]
    raise AssertionError("nothing was tried")
