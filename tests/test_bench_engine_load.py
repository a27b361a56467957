"""`bench.engine load` and `sweep`: units come in real time, and what is late counts as late."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agent.errors import EngineError
from agent.fleet.callers import Material
from bench.engine_drive import Calls, OneCall
from bench.engine_load import LoadBench, LoadOptions
from bench.engine_parts import SETTINGS
from tests.rig.engine_rows import Rows
from tests.rig.timed_core import FIRST_TOKENS, TimedCore
from tests.rig.virtual_time import VirtualClock, run_virtually

CPU = torch.device("cpu")


@pytest.fixture
def rows() -> Rows:
    return Rows()


# ---- loads --------------------------------------------------------------------------------------


@dataclass
class TimedMade:
    """What `engine_parts.Made` is."""

    core: TimedCore
    parts: Any
    device: torch.device = CPU

    def renewed(self) -> "TimedMade":
        assert not self.core.calls and not self.core.waiting, "what was there is over"
        self.core.admits_all = False
        return self

    def admit_all(self) -> None:
        self.core.admits_all = True

    def admit_as_served(self) -> None:
        self.core.admits_all = False


def load_bench(rows: Rows, core: TimedCore, mode: str = "audio", low: int = 300) -> LoadBench:
    parts = SimpleNamespace(window=SimpleNamespace(low_tokens=low))
    return LoadBench(rows.report, TimedMade(core, parts), mode, core.clock)  # type: ignore[arg-type]


def test_units_come_in_real_time_and_late_ones_count(rows: Rows) -> None:
    """Six calls of 0.3 s a unit: every second 0.8 s more wait."""

    async def measure() -> None:
        core = TimedCore(VirtualClock(), unit_s=0.3)
        await load_bench(rows, core).load(6, LoadOptions(settle_s=0), 5.0)

    run_virtually(measure())
    values = rows.values
    assert rows.read()["load_audio_6_ms"]["n"] == 30, "six calls for five seconds"
    assert 60 < values["load_audio_6_late_percent"] <= 100
    assert values["load_audio_6_spoken_percent"] == 0


def test_units_in_time_are_told_by_their_percentiles(rows: Rows) -> None:
    async def measure() -> float:
        core = TimedCore(VirtualClock(), unit_s=0.02, spoken=True)
        load = load_bench(rows, core)
        await load.load(4, LoadOptions(settle_s=1), 30.0)
        load.end()
        assert sorted(core.ended) == [1, 2, 3, 4]
        return core.clock.now_s()

    filled_s = 4 * 8 * 0.02
    assert run_virtually(measure()) == pytest.approx(filled_s + 32, abs=0.2)
    values = rows.values
    assert rows.read()["load_audio_4_ms"]["n"] == 120
    assert 20 <= values["load_audio_4_ms"] <= values["load_audio_4_max_ms"] <= 80
    assert values["load_audio_4_late_percent"] == 0
    assert values["load_audio_4_spoken_percent"] == 100
    assert values["load_audio_4_first_sound_ms"] == values["load_audio_4_ms"]


def test_windows_are_full_before_time_goes_on() -> None:
    async def measure() -> list[int]:
        core = TimedCore(VirtualClock(), unit_s=0.01)
        calls = Calls(core, SETTINGS, Material(camera=False), core.clock)
        calls.grow(3, 700)
        assert core.clock.now_s() < 1
        before = calls.context_tokens
        await calls.run_until(core.clock.now_s() + 2)
        assert calls.log.times(0.0, 99.0).units > 6
        return before

    assert all(700 <= tokens < 800 for tokens in run_virtually(measure()))


def test_without_a_window_three_units_are_heard_at_least() -> None:
    async def measure() -> list[int]:
        core = TimedCore(VirtualClock())
        calls = Calls(core, SETTINGS, Material(camera=False), core.clock)
        calls.grow(1, 0)
        return calls.context_tokens

    assert run_virtually(measure()) == [FIRST_TOKENS + 3 * 15]


def swept(rows: Rows, mode: str, levels: Sequence[int], **core: Any) -> tuple[int, TimedCore]:
    async def measure() -> tuple[int, TimedCore]:
        made = TimedCore(VirtualClock(), **core)
        bench_ = load_bench(rows, made, mode)
        options = LoadOptions(settle_s=2, step_s=4, confirm_s=30)
        return await bench_.sweep(levels, options), made

    return run_virtually(measure())


def test_a_sweep_goes_up_until_a_unit_is_late_and_confirms_what_was_held(rows: Rows) -> None:
    """A unit of 0.095 s: eleven calls are too many, but not at once."""
    sessions, core = swept(rows, "audio", [1, 2, 4, 8, 10, 11, 16, 20], unit_s=0.095, accepts=30)
    assert sessions == 10
    row = rows.read()["sessions_audio"]
    assert (row["value"], row["target"], row["meets"]) == (10, 64, False)
    assert not core.calls and "load_audio_20_ms" not in rows.read()
    assert rows.read()["load_audio_10_ms"]["n"] == 40
    assert rows.read()["held_audio_10_ms"]["n"] == 300, "the best is held for thirty seconds"
    assert rows.values["held_audio_11_late_percent"] > 0


def test_a_sweep_ends_where_the_engine_takes_no_more(rows: Rows) -> None:
    sessions, _ = swept(rows, "audio", [1, 4, 8, 16, 32], unit_s=0.01, accepts=6)
    assert sessions == 6
    refused = rows.read()["load_audio_8_ms"]
    assert refused["value"] is None and "6 calls were taken: full" in refused["reason"]


def test_what_the_engine_would_take_is_told_beside_what_it_holds(rows: Rows) -> None:
    """It is too cautious, or too bold, or just right."""
    for admits, told in ((2, 2), (7, 7), (4, 4)):
        assert swept(rows, "audio", [1, 2, 4, 8], unit_s=0.2, admits=admits)[0] == 4
        assert rows.values["sessions_audio"] == 4
        assert rows.values["admitted_audio"] == told


def test_pictures_that_are_left_out_end_a_sweep(rows: Rows) -> None:
    sessions, _ = swept(rows, "omni", [1, 2], unit_s=0.01, blind=True)
    assert sessions == 0 and rows.values["load_omni_1_unseen_percent"] == 100
    seeing = Rows()
    assert swept(seeing, "omni", [1, 2], unit_s=0.01, accepts=3)[0] == 2
    assert seeing.read()["sessions_omni"]["target"] == 32


def test_a_call_that_fails_ends_the_run(rows: Rows) -> None:
    with pytest.raises(EngineError, match="broken"):
        swept(rows, "audio", [1], failure=EngineError("broken"))


def test_an_engine_that_rests_before_a_unit_is_done_is_found_out() -> None:
    class Forgetful(TimedCore):
        def work(self) -> list[Any]:
            self.waiting.popleft()
            return []

    async def alone() -> None:
        OneCall(Forgetful(VirtualClock()), SETTINGS).take(Material(camera=False).unit(0))

    async def many() -> None:
        core = Forgetful(VirtualClock())
        Calls(core, SETTINGS, Material(camera=False), core.clock).grow(1, 0)

    for work in (alone(), many()):
        with pytest.raises(EngineError, match="rests"):
            run_virtually(work)
