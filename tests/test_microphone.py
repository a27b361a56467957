"""The microphone between the wire and its listener."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from agent.clock import Clock
from agent.media.jitter import MicrophoneLine, RtpAudio
from agent.transport.beat import FEWEST, Beat
from agent.transport.microphone import MAX_FRAMES, Microphone
from agent.types import AudioFrame, FloatArray


class StoppedClock(Clock):
    """Time passes only when the test says so."""

    now = 10.0

    def now_s(self) -> float:
        return self.now


class Steps:
    """A decoder whose sound is the number in the payload."""

    def samples_in(self, payload: bytes) -> int:
        return 320

    def decode(self, payload: bytes) -> FloatArray:
        return np.full(320, payload[0] / 256, np.float32)

    def repair(self, following: bytes, samples: int) -> FloatArray:
        return np.zeros(samples, np.float32)

    def conceal(self, samples: int) -> FloatArray:
        return np.zeros(samples, np.float32)


@dataclass
class Packet:
    sequence_number: int
    timestamp: int
    payload: bytes


def packet(number: int) -> Packet:
    return Packet(number, number * 960, bytes([number % 256]))


def listening() -> tuple[Microphone, list[int], StoppedClock]:
    heard: list[int] = []
    clock = StoppedClock()
    microphone = Microphone(clock, lambda: heard.append(1))
    microphone.listen(MicrophoneLine(Steps()))
    return microphone, heard, clock


async def collected(microphone: Microphone) -> list[AudioFrame]:
    return [frame async for frame in microphone.frames()]


async def test_packets_become_frames_at_once_and_each_is_a_sign_of_life() -> None:
    microphone, heard, _ = listening()
    for number in range(3):
        microphone.push(packet(number))
    microphone.end()
    frames = await collected(microphone)
    assert [frame.start for frame in frames] == [160 * at for at in range(6)]
    assert [round(float(frame.samples[0]) * 256) for frame in frames] == [0, 0, 1, 1, 2, 2]
    assert len(heard) == 3


async def test_a_listener_that_is_too_far_behind_loses_the_oldest() -> None:
    microphone, _, _ = listening()
    for number in range(MAX_FRAMES):
        microphone.push(packet(number))
    microphone.end()
    frames = await collected(microphone)
    assert len(frames) == MAX_FRAMES
    assert frames[0].start == MAX_FRAMES * 160, "two frames a packet: the first half is gone"


async def test_what_comes_after_the_end_is_not_heard() -> None:
    microphone, heard, _ = listening()
    microphone.end()
    microphone.push(packet(0))
    assert await collected(microphone) == [] and heard == []


async def test_while_it_rests_no_time_passes() -> None:
    microphone, heard, clock = listening()
    microphone.begin()
    microphone.push(packet(0))
    microphone.rest()
    microphone.rest()
    clock.now += 10
    await asyncio.sleep(0.05)
    # The sender's clock went on; the second packet proves that the first is no stray one.
    microphone.push(packet(500))
    microphone.push(packet(501))
    microphone.rest()
    clock.now += 10
    microphone.go_on()
    microphone.push(packet(502))
    microphone.end()
    frames = await collected(microphone)
    assert [frame.start for frame in frames] == [160 * at for at in range(8)]
    said = [round(float(frame.samples[0]) * 256) for frame in frames]
    assert said == [0, 0, 500 % 256, 500 % 256, 501 % 256, 501 % 256, 502 % 256, 502 % 256]
    assert len(heard) == 4


async def test_a_hole_is_closed_by_the_timer_though_nothing_more_comes() -> None:
    microphone, _, clock = listening()
    got: list[int] = []

    async def listen() -> None:
        async for frame in microphone.frames():
            got.append(frame.start)

    listener = asyncio.create_task(listen())
    microphone.push(packet(0))
    microphone.push(packet(2))
    clock.now += 0.07
    async with asyncio.timeout(60):
        while len(got) < 6:
            await asyncio.sleep(0.005)
    assert got == [160 * at for at in range(6)]
    microphone.end()
    await listener


class NotingLine(MicrophoneLine):
    """Notes when a packet is said to have come, and what it was asked for in which order."""

    def __init__(self) -> None:
        super().__init__(Steps())
        self.arrivals_s: list[float] = []
        self.asked: list[str] = []

    def push(self, packet: RtpAudio, now_s: float) -> list[AudioFrame]:
        self.arrivals_s.append(now_s)
        self.asked.append("push")
        return super().push(packet, now_s)

    def advance(self, now_s: float) -> list[AudioFrame]:
        self.asked.append("advance")
        return super().advance(now_s)


def in_company() -> tuple[Microphone, NotingLine, StoppedClock, Beat]:
    clock, line, beat = StoppedClock(), NotingLine(), Beat()
    for _ in range(FEWEST - 1):
        beat.join()
    microphone = Microphone(clock, lambda: None, beat=beat)
    microphone.listen(line)
    microphone.begin()
    return microphone, line, clock, beat


async def test_in_company_packets_wait_for_the_beat_and_count_from_when_they_came() -> None:
    microphone, line, clock, _ = in_company()
    for number in range(3):
        microphone.push(packet(number))
        clock.now += 0.001
    assert line.arrivals_s == []
    frames = microphone.frames()
    assert [(await anext(frames)).start for _ in range(6)] == [160 * at for at in range(6)]
    assert line.arrivals_s == pytest.approx([10.0, 10.001, 10.002], abs=1e-9)
    microphone.push(packet(3))
    assert (await anext(frames)).start == 960
    microphone.end()


async def test_time_passes_for_the_line_only_after_what_waits_for_the_beat() -> None:
    clock, line, beat = StoppedClock(), NotingLine(), Beat()
    for _ in range(FEWEST):
        beat.join()
    microphone = Microphone(clock, lambda: None, beat=beat)
    microphone.listen(line)
    line.begin(clock.now)
    clock.now += 5.0
    microphone.push(packet(0))
    # Silence is long due, so the timer that this sets fires at once.
    microphone.begin()
    await anext(microphone.frames())
    assert line.asked[0] == "push"
    microphone.end()


async def test_who_has_left_keeps_no_company_and_takes_nothing_in() -> None:
    microphone, line, _, beat = in_company()
    microphone.begin()
    microphone.push(packet(0))
    microphone.end()
    microphone.end()
    done: list[int] = []
    beat.do(lambda: done.append(1), lambda error: None)
    assert done == [1]
    assert line.arrivals_s == []


async def test_a_packet_that_cannot_be_taken_in_is_told_and_the_next_one_is_taken() -> None:
    errors: list[Exception] = []
    microphone = Microphone(StoppedClock(), lambda: None, errors.append)
    microphone.listen(MicrophoneLine(Steps()))
    microphone.push(Packet(0, 0, b""))
    assert [type(error) for error in errors] == [IndexError]
    microphone.push(packet(1))
    microphone.end()
    assert len(await collected(microphone)) >= 2
