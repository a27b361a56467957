"""`bench.load`: lateness from RTP timestamps, and one call through the whole harness."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aioice.ice
import numpy as np
import pytest

from bench.load import _capacity, measure
from bench.load_engine import measure_engine_load
from bench.load_slots import Lateness, SlotLog
from bench.load_steps import LoadOptions, Step
from bench.report import Report


def stream(late_ms: list[float], *, first: int = 0, lost: tuple[int, ...] = ()) -> SlotLog:
    """A stream whose n-th slot is late by so much, on a grid that begins at 10 s."""
    log = SlotLog()
    for slot, late in enumerate(late_ms):
        if slot not in lost:
            timestamp = (first + 960 * slot) % (1 << 32)
            log.note(10.0 + 0.02 * slot + late / 1000, timestamp, 40)
    return log


def test_lateness_counts_from_the_earliest_slot_of_the_call() -> None:
    late_ms = stream([3.0, 8.0, 3.0, 33.0]).late_ms(0.08)

    assert late_ms == pytest.approx([0.0, 5.0, 0.0, 30.0], abs=1e-6)


def test_lateness_survives_the_wrap_of_timestamps() -> None:
    late_ms = stream([0.0, 1.0, 2.0], first=(1 << 32) - 960).late_ms(0.06)

    assert late_ms == pytest.approx([0.0, 1.0, 2.0], abs=1e-6)


def test_a_slot_left_out_is_late_without_end() -> None:
    late = Lateness.of(stream([0.0] * 11, lost=(4, 5)).late_ms(0.2401))

    assert late.missing == 2
    assert late.on_time == pytest.approx(9 / 11)
    assert late.max_ms == pytest.approx(0.0, abs=1e-6)


def test_a_new_window_keeps_the_grid() -> None:
    log = stream([0.0, 0.0])
    log.begin()
    log.note(10.04 + 0.007, 1920, 40)

    assert log.late_ms(0.02) == pytest.approx([7.0], abs=1e-6)


def test_a_grid_given_up_costs_the_slots_that_were_never_filled() -> None:
    log = stream([0.0] * 100 + [300.0] * 100)

    late = Lateness.of(log.late_ms(4.3001))

    assert late.missing == 14  # 15 slots of silence, less the one that a window's ends may hide
    assert late.max_ms == pytest.approx(0.0, abs=1e-6)


def test_a_burst_after_a_stall_is_late_as_long_as_it_lasts() -> None:
    late = Lateness.of(
        stream([0.0] * 50 + [300.0 - 20 * n for n in range(15)] + [0.0] * 50).late_ms(2.3)
    )

    assert late.missing == 0
    assert late.on_time == pytest.approx(1 - 14 / 115)


def test_a_stream_that_stopped_is_late_throughout() -> None:
    assert np.isinf(SlotLog().late_ms(0.2201)).sum() == 10


def test_speech_is_told_from_silence_by_size() -> None:
    log = SlotLog()
    for slot, size in enumerate((30, 120, 130, 30)):
        log.note(slot * 0.02, slot * 960, size)

    assert log.share_above(50) == 0.5


def test_capacity_ends_below_the_first_rung_that_failed() -> None:
    fine, bad = (Lateness(0.0, 1.0, 2.0, share, 0) for share in (0.995, 0.994))
    steps = [
        Step(calls, 10.0, 0.0, late, {}, 0.0, 0.5, [])
        for calls, late in ((4, fine), (8, fine), (12, bad), (16, fine))
    ]

    assert _capacity(steps) == 8


class PlayedLadder:
    """Servers of which it is known what they do to a call."""

    def __init__(self, late_ms: dict[str, float], speaking: float) -> None:
        self._late_ms = late_ms
        self._speaking = speaking

    @asynccontextmanager
    async def __call__(self, kind: str, *_: object) -> AsyncIterator["PlayedLadder"]:
        self._now_ms = self._late_ms[kind]
        yield self

    async def climb(self, calls: int) -> Step:
        late = Lateness.of(np.full(100, self._now_ms))
        inside = {"sent_late_p99_ms": self._now_ms, "lag_p99_ms": None}
        return Step(calls, 50.0, 1.0, late, inside, 0.0, self._speaking, [])


@pytest.mark.parametrize("process_ms", [4.0, 6.0])
async def test_an_engine_at_full_load_is_held_against_a_thread(
    monkeypatch: pytest.MonkeyPatch, process_ms: float
) -> None:
    late_ms = {"engine_process": process_ms, "engine_thread": 30.0, "engine_rest": 1.0}
    monkeypatch.setattr("bench.load_engine.ladder", PlayedLadder(late_ms, speaking=1.0))
    rows = await engine_rows()
    assert (
        rows["engine_load_late_p99_ms"]["value"],
        rows["engine_load_late_p99_ms"]["against"],
    ) == (
        process_ms,
        30.0,
    )
    assert rows["engine_load_late_p99_ms"]["meets"] is (process_ms <= 5)
    assert rows["engine_load_on_time_percent"]["against"] == 0
    assert rows["engine_rest_late_p99_ms"]["value"] == 1.0


async def test_an_agent_that_did_not_speak_is_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    late_ms = {"engine_process": 1.0, "engine_thread": 1.0, "engine_rest": 1.0}
    monkeypatch.setattr("bench.load_engine.ladder", PlayedLadder(late_ms, speaking=0.5))
    rows = await engine_rows()
    assert list(rows) == ["engine_load_late_p99_ms"]
    assert "did not speak" in rows["engine_load_late_p99_ms"]["reason"]


async def engine_rows() -> dict[str, dict[str, Any]]:
    """What `measure_engine_load` prints."""
    out = io.StringIO()
    await measure_engine_load(Report(as_json=True, out=out), LoadOptions())
    return {row["name"]: row for row in map(json.loads, out.getvalue().splitlines()[1:])}


async def test_one_call_through_the_whole_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", aioice.ice.get_host_addresses)
    out = io.StringIO()
    options = LoadOptions(server_core=0, client_core=0, warm_up_s=0.3, seconds=1.0)

    await measure(Report(as_json=True, out=out), ("transport",), (1,), options)

    rows = {row["name"]: row for row in map(json.loads, out.getvalue().splitlines()[1:])}
    assert rows["transport_1_calls_frames_per_s"]["value"] == pytest.approx(100, abs=15)
    assert 0 < rows["cpu_transport_percent"]["value"] < 100
    assert rows["cpu_transport_percent"]["target"] == 4
    assert rows["transport_1_calls_on_time_percent"]["value"] > 50
