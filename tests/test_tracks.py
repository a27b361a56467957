"""From decoded packets to the microphone's time line, and the grid on which speech is sent."""

from fractions import Fraction

import av
import numpy as np
import pytest

from agent.clock import Clock
from agent.transport.tracks import (
    FRAME_S,
    MicrophoneTimeLine,
    NewestPicture,
    SendGrid,
    SpeechEncoder,
)
from agent.types import FloatArray


class DrivenClock(Clock):
    """Time that passes only when somebody sleeps or the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def now_s(self) -> float:
        return self.now

    async def sleep_until(self, due_s: float) -> None:
        self.now = max(self.now, due_s)


def packet(samples: FloatArray, pts: int, rate_hz: int = 48_000, layout: str = "stereo"):
    channels = 2 if layout == "stereo" else 1
    pcm = np.repeat((samples * 32767).astype(np.int16), channels)[None, :]
    frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, pts, Fraction(1, rate_hz)
    return frame


def tone(samples: int, rate_hz: int) -> FloatArray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize(
    ("rate_hz", "layout"), [(48_000, "stereo"), (48_000, "mono"), (8_000, "mono"), (16_000, "mono")]
)
def test_any_codec_becomes_10_ms_frames_at_16_khz(rate_hz: int, layout: str) -> None:
    line, step = MicrophoneTimeLine(), rate_hz // 50
    whole = tone(rate_hz, rate_hz)
    frames = []
    for at in range(0, rate_hz, step):
        frames += line.push(packet(whole[at : at + step], at, rate_hz, layout))
    assert [frame.start for frame in frames] == [160 * index for index in range(100)]
    sound = np.concatenate([frame.samples for frame in frames])[1600:14400]
    assert abs(float(np.abs(sound).max()) - 0.5) < 0.02
    spectrum = np.abs(np.fft.rfft(sound))
    assert abs(spectrum.argmax() * 16_000 / len(sound) - 440) < 2


def test_a_lost_packet_leaves_silence_not_a_shorter_time_line() -> None:
    line = MicrophoneTimeLine()
    frames = []
    for index in (0, 1, 2, 5, 6):
        frames += line.push(packet(tone(960, 48_000) + 0.1, index * 960))
    assert len(frames) == 14
    assert float(np.abs(frames[8].samples).max()) < 0.01


def test_a_long_absence_is_made_up_for_by_one_second_at_most() -> None:
    line = MicrophoneTimeLine()
    line.push(packet(tone(960, 48_000), 0))
    assert len(line.push(packet(tone(960, 48_000), 48_000 * 3600))) == 102


def test_a_restarted_clock_of_the_peer_costs_nothing() -> None:
    line = MicrophoneTimeLine()
    line.push(packet(tone(960, 48_000), 48_000))
    assert len(line.push(packet(tone(960, 48_000), 0))) == 2


async def test_slots_follow_an_absolute_grid() -> None:
    clock = DrivenClock()
    grid = SendGrid(clock, lambda: None)
    for expected in range(100):
        assert await grid.next_slot() == expected
        clock.now += 0.003
    assert clock.now == pytest.approx(1000.0 + 99 * FRAME_S + 0.003)


async def test_a_short_stall_is_caught_up_and_a_long_one_jumped_over() -> None:
    clock = DrivenClock()
    late: list[float] = []
    grid = SendGrid(clock, lambda: late.append(clock.now))
    await grid.next_slot()
    clock.now += 0.1
    assert [await grid.next_slot() for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert len(late) == 3, "slots 1, 2 and 3 left more than 20 ms late"
    clock.now += 1.0
    slot = await grid.next_slot()
    assert slot >= 55
    assert clock.now - (1000.0 + slot * FRAME_S) < FRAME_S


def test_sent_frames_are_20_ms_at_48_khz_with_the_pts_of_their_slot() -> None:
    encoder = SpeechEncoder()
    speech = tone(480 * 50, 24_000)
    frames = [encoder.frame(speech[n * 480 : n * 480 + 480], n) for n in range(50)]
    assert [frame.pts for frame in frames] == [n * 960 for n in range(50)]
    assert {frame.samples for frame in frames} == {960}
    sound = np.concatenate([frame.to_ndarray()[0] for frame in frames]) / 32768
    assert abs(float(np.abs(sound[9600:38400]).max()) - 0.5) < 0.02
    assert not np.any(SpeechEncoder().frame(None, 7).to_ndarray())


def test_only_the_newest_picture_counts_and_only_once() -> None:
    camera = NewestPicture()
    assert camera.take(0) is None
    for level in (10, 200):
        rgb = np.full((48, 64, 3), level, np.uint8)
        camera.put(av.VideoFrame.from_ndarray(rgb, format="rgb24"))
    picture = camera.take(1600)
    assert picture is not None and picture.rgb.shape == (48, 64, 3)
    assert int(picture.rgb[0, 0, 0]) == 200 and picture.captured_at == 1600
    assert camera.take(1600) is None
