"""How many calls an engine holds: the search, what counts as late, and how calls are made."""

import asyncio
import itertools
import math
from typing import Any

import numpy as np
import pytest

from agent.commands import ForceListen, Respond
from agent.errors import EngineError, WorkerLost
from agent.fleet.callers import PICTURE_SHAPE, Caller, Material, next_due_s
from agent.fleet.capacity import Capacity, Effort, LoadResult, climb, measure_capacity
from agent.fleet.held_calls import BLOCK_UNITS, HeldCalls
from agent.fleet.unit_times import Times, UnitLog, percentile
from agent.types import (
    Abilities,
    Listened,
    SessionSettings,
    SpeechAudio,
    TurnStarted,
    Unit,
    UnitReport,
    VideoFrame,
)
from tests.rig.timed_engine import SECOND, TimedEngine
from tests.rig.virtual_time import VirtualClock, run_virtually

SETTINGS = SessionSettings(model="timed")
SILENCE = np.zeros(16_000, np.float32)
SHOWN = (VideoFrame(np.zeros((4, 4, 3), np.uint8), 0),)


def unit(index: int, pictures: tuple[VideoFrame, ...] = ()) -> Unit:
    return Unit(index, SILENCE, 16_000, pictures)


def report(index: int, *stages: str) -> UnitReport:
    return UnitReport(index, tuple((stage, 1.0) for stage in stages), 77)


# ---- times --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.95, 95), (0.99, 99), (0.995, 100), (1.0, 100)]
)
def test_a_percentile_is_the_smallest_that_so_many_do_not_exceed(
    share: float, expected: float
) -> None:
    assert percentile(range(1, 101), share) == expected


def test_a_percentile_of_one_is_that_one_and_of_none_no_number() -> None:
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_a_unit_is_late_by_its_report_its_sound_or_its_silence() -> None:
    log = UnitLog()
    for index in range(5):
        log.arrived(1, unit(index), 10.0 + index)
    log.told(1, report(0), 11.0)  # the very second
    log.told(1, report(1), 12.001)  # too late
    log.told(1, report(2), 12.5)
    log.told(1, SpeechAudio(1, 2, 0, SECOND), 13.2)  # its sound is
    log.told(1, SpeechAudio(1, 3, 0, SECOND), 13.3)  # never reported
    log.told(1, report(4), 14.9)
    times = log.times(10.0, 15.0)
    assert (times.units, times.late, times.in_time) == (5, 3, False)
    assert times.latency_s(0.0) == pytest.approx(0.9)
    assert times.latency_s(1.0) == math.inf
    assert log.times(14.0, 15.0).in_time
    assert not log.times(20.0, 30.0).in_time, "of nothing nothing can be said"
    assert log.waits(13.0, 14.0) and not log.waits(14.0, 15.0)


def test_a_turn_s_first_sound_counts_from_its_unit_and_emptiness_is_no_sound() -> None:
    log = UnitLog()
    for number in (1, 2):
        log.arrived(number, unit(0), 5.0)
        log.told(number, TurnStarted(1), 5.01)
    log.told(1, SpeechAudio(1, 0, 0, SECOND[:0]), 5.02)
    log.told(1, SpeechAudio(1, 0, 0, SECOND), 5.05)
    log.told(1, SpeechAudio(1, 0, 0, SECOND), 5.5)
    log.told(2, Listened(0), 5.1)
    for number in (1, 2):
        log.told(number, report(0), 5.5)
    times = log.times(0.0, 9.0)
    assert times.first_sounds_s == (pytest.approx(0.05),)
    assert times.spoken == 1


def test_a_picture_that_was_not_looked_at_is_not_kept_quiet() -> None:
    log = UnitLog()
    for index, stages in enumerate((("vision", "audio"), ("audio",))):
        log.arrived(1, unit(index, SHOWN), float(index))
        log.told(1, report(index, *stages), index + 0.1)
    times = log.times(0.0, 9.0)
    assert (times.unseen, times.late, times.in_time) == (1, 0, False)
    assert log.times(0.0, 1.0).in_time


def test_without_a_model_only_reports_count() -> None:
    log = UnitLog(by_model=False)
    log.arrived(1, unit(0, SHOWN), 0.0)
    log.told(1, report(0, "engine"), 0.1)
    log.told(1, SpeechAudio(1, 0, 0, SECOND), 1.9)
    assert log.times(0.0, 1.0).in_time


def test_what_is_over_is_forgotten() -> None:
    log = UnitLog()
    for number in (1, 2):
        for index in range(3):
            log.arrived(number, unit(index), float(index))
    log.told(1, report(0), 0.5)
    assert (log.context_tokens(1), log.context_tokens(2)) == (77, 0)
    log.ended(1)
    assert log.times(0.0, 9.0).units == 3 and log.context_tokens(1) == 0
    log.forget(2.0)
    assert log.times(0.0, 9.0).units == 1


# ---- callers ------------------------------------------------------------------------------------


def test_callers_come_at_phases_of_their_own_a_second_apart() -> None:
    material = Material(camera=True)
    callers = [Caller(number, 100.0, material) for number in range(64)]
    phases = sorted(caller.next_s - 100.0 for caller in callers)
    assert 0 <= phases[0] < 0.1 and 0.9 < phases[-1] < 1
    assert max(b - a for a, b in itertools.pairwise(phases)) < 0.2
    assert next_due_s(callers, 999.0) == 100.0 + phases[0]
    assert next_due_s([], 999.0) == 999.0
    first, before_s = callers[0].take(), callers[0].next_s
    second = callers[0].take()
    assert callers[0].next_s - before_s == 1.0
    assert (first.index, second.index, len(first.audio)) == (0, 1, 16_000)
    assert first.pictures[0].rgb.shape == PICTURE_SHAPE
    assert Material(camera=False).unit(3).pictures == ()


# ---- the search ---------------------------------------------------------------------------------


def climbed(limit: int, most: int, unit_s: float) -> list[int]:
    """The loads tried on a machine that holds `limit`, its slowest unit in proportion."""
    ladder, tried = climb(most), []
    level = next(ladder)
    while True:
        tried.append(level)
        try:
            level = ladder.send(level * unit_s if level <= limit else math.inf)
        except StopIteration:
            return tried


def test_the_search_finds_every_limit() -> None:
    for limit in range(33):
        tried = climbed(limit, 32, 1 / max(1, limit))
        assert max((one for one in tried if one <= limit), default=0) == limit
        assert limit == 32 or limit + 1 in tried, "the next one was tried, and not held"
        assert len(tried) <= 11


def test_where_there_is_room_it_goes_up_faster() -> None:
    assert climbed(64, 64, 0.001) == [1, 4, 16, 64]
    assert climbed(48, 48, 0.02) == [1, 4, 16, 32, 48]


def search(engine: dict[str, Any], **options: Any) -> tuple[Capacity, TimedEngine]:
    async def run() -> tuple[Capacity, TimedEngine]:
        made = TimedEngine(VirtualClock(), **engine)
        effort = options.pop("effort", Effort())
        found = await measure_capacity(made, SETTINGS, effort, clock=made.clock, **options)
        assert not made.calls, "every call was ended"
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found, made

    return run_virtually(run())


def test_a_machine_s_calls_are_counted() -> None:
    """A unit of 0.18 s: five fit into a second, and six for a few seconds only."""
    told: list[LoadResult] = []
    found, engine = search({"unit_s": 0.18}, on_load=told.append, effort=Effort(70))
    assert (found.best.calls, found.why) == (5, "late")
    assert [load.calls for load in found.loads] == [1, 4, 8, 6, 7, 6, 5]
    assert list(found.loads) == told
    assert found.best.times.units == 50, "ten seconds of five calls"
    assert engine.most_calls == 8
    assert found.quickest_s == pytest.approx(0.18)
    assert 0.17 < found.best.times.latency_s(0.5) < found.best.times.latency_s(1.0) <= 1.0
    assert found.best.spoken_share == pytest.approx(0.5, abs=0.25)


def test_as_many_as_there_are_places_may_be_too_few_to_find_the_limit() -> None:
    found, _ = search({"unit_s": 0.01, "slots": 6})
    assert (found.best.calls, found.why) == (6, "places")


def test_an_engine_that_takes_no_more_is_believed() -> None:
    found, _ = search({"unit_s": 0.01, "accepts": 7})
    assert (found.best.calls, found.why) == (7, "refused")


def test_pictures_that_are_left_out_count_against_a_load() -> None:
    found, _ = search({"unit_s": 0.02, "picture_s": 0.02, "blind_from": 4}, camera=True)
    assert (found.best.calls, found.why) == (3, "late")
    seeing, _ = search({"unit_s": 0.19, "picture_s": 0.14}, camera=True)
    assert seeing.best.calls == 3


def test_a_call_that_fails_counts_against_its_load() -> None:
    found, _ = search({"unit_s": 0.01, "fails_from": 3})
    assert (found.best.calls, found.why) == (1, "failed")
    assert [load.failed for load in found.loads] == [False, True, False]


def test_a_lost_engine_is_an_error() -> None:
    with pytest.raises(WorkerLost, match="gone"):
        search({"fails_from": 1, "failure": WorkerLost("gone")})


def test_an_engine_without_a_place_is_an_error() -> None:
    with pytest.raises(EngineError, match="no free place"):
        search({"slots": 0})


def test_a_machine_that_is_too_slow_holds_none_and_its_time_is_told() -> None:
    found, _ = search({"unit_s": 14.0})
    assert (found.best.calls, found.why) == (0, "late")
    assert found.best.times == Times()
    assert found.quickest_s == pytest.approx(14.0)
    hopeless, _ = search({"unit_s": 140.0})
    assert hopeless.best.calls == 0 and hopeless.quickest_s == math.inf


def test_time_is_kept() -> None:
    async def run() -> tuple[Capacity, float]:
        engine = TimedEngine(VirtualClock(), unit_s=0.03, slots=64)
        found = await measure_capacity(engine, SETTINGS, Effort(40), clock=engine.clock)
        return found, engine.clock.now_s()

    found, took_s = run_virtually(run())
    assert (found.why, found.best.calls) == ("time", 16)
    assert 30 < took_s < 41


# ---- the calls ----------------------------------------------------------------------------------


def test_half_of_the_units_are_to_be_spoken_in_blocks() -> None:
    async def run() -> tuple[list[object], Times]:
        engine = TimedEngine(VirtualClock(), unit_s=0.01)
        async with HeldCalls(engine, SETTINGS, Material(camera=False), engine.clock) as calls:
            await calls.hold(1)
            (call,) = engine.calls
            await engine.clock.sleep_until(4 * BLOCK_UNITS + 0.99)
            return call.commands, calls.log.times(0.0, 4 * BLOCK_UNITS)

    commands, times = run_virtually(run())
    story = Respond("Tell a long story.")
    assert commands[:4] == [ForceListen(True), ForceListen(False), story, ForceListen(True)]
    assert (times.units, times.spoken) == (4 * BLOCK_UNITS, 2 * BLOCK_UNITS)


def test_an_engine_without_a_model_is_asked_for_no_story() -> None:
    async def run() -> list[object]:
        able = Abilities(duplex=True, speech=True, camera=True)
        engine = TimedEngine(VirtualClock(), unit_s=0.01, abilities=able)
        async with HeldCalls(engine, SETTINGS, Material(camera=False), engine.clock) as calls:
            await calls.hold(2)
            await engine.clock.sleep_until(20.0)
            return [command for call in engine.calls for command in call.commands]

    assert Respond(None) in run_virtually(run())
