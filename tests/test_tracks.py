"""The grid on which speech is sent, its form on the wire, and which packet carried what."""

import numpy as np
import pytest

from agent.clock import Clock
from agent.transport.tracks import FRAME_S, SILENCE, Frames, SendGrid, SentPositions
from agent.types import FloatArray


class DrivenClock(Clock):
    """Time that passes only when somebody sleeps or the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def now_s(self) -> float:
        return self.now

    async def sleep_until(self, due_s: float) -> None:
        self.now = max(self.now, due_s)


def tone(samples: int, rate_hz: int) -> FloatArray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate_hz)).astype(np.float32)


async def test_slots_follow_an_absolute_grid() -> None:
    clock = DrivenClock()
    grid = SendGrid(clock, lambda: None)
    for expected in range(100):
        assert await grid.next_slot() == expected
        clock.now += 0.003
    assert clock.now == pytest.approx(1000.0 + 99 * FRAME_S + 0.003)


async def test_a_short_stall_is_caught_up() -> None:
    clock = DrivenClock()
    late: list[float] = []
    grid = SendGrid(clock, lambda: late.append(clock.now))
    await grid.next_slot()
    clock.now += 0.1
    assert [await grid.next_slot() for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert len(late) == 3, "slots 1, 2 and 3 left more than 20 ms late"
    assert clock.now == pytest.approx(1000.0 + 6 * FRAME_S)


async def test_a_long_stall_moves_the_grid_without_a_burst_and_without_skipping_a_slot() -> None:
    clock = DrivenClock()
    late: list[float] = []
    grid = SendGrid(clock, lambda: late.append(clock.now))
    await grid.next_slot()
    clock.now += 1.0
    times = []
    for expected in (1, 2, 3, 4):
        assert await grid.next_slot() == expected
        times.append(clock.now)
    assert np.diff(times) == pytest.approx([FRAME_S] * 3)
    assert len(late) == 1


def test_frames_for_other_codecs_are_20_ms_at_48_khz() -> None:
    form = Frames()
    speech = tone(480 * 50, 24_000)
    frames = [form.form(speech[n * 480 : n * 480 + 480], n) for n in range(50)]
    assert [frame.pts for frame in frames] == [n * 960 for n in range(50)]
    assert {frame.samples for frame in frames} == {960}
    sound = np.concatenate([frame.to_ndarray()[0] for frame in frames]) / 32768
    assert abs(float(np.abs(sound[9600:38400]).max()) - 0.5) < 0.02
    assert not np.any(Frames().form(SILENCE, 7).to_ndarray())


def test_a_timestamp_is_traced_to_its_sample_across_the_wrap() -> None:
    sent = SentPositions()
    assert sent.position(12345) is None
    sent.note(2**32 - 960, 48_000)
    assert sent.position(2**32 - 960) == 48_000
    assert sent.position(0) == 48_000 + 480
    assert sent.position(960) == 48_000 + 960
    assert sent.position(2**32 - 1920) == 48_000 - 480
    sent.note(0, 48_480)
    assert sent.position(2**32 - 960) == 48_000
