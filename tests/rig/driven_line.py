"""A microphone's time line with a driven clock and a decoder whose sound tells where it is from."""

import struct
from collections.abc import Iterable

import numpy as np

from agent.errors import MediaError
from agent.media.jitter import LineOptions, MicrophoneLine, RtpAudio
from agent.types import AudioFrame, FloatArray

CONCEALED = -1000.0
REPAIRED = 500.0
SLOT_S = 0.02


class SlotDecoder:
    """Sound that says where it came from: packet n is n, repaired n is n + 500."""

    def samples_in(self, payload: bytes) -> int:
        if len(payload) != 6:
            raise MediaError("garbage")
        return int(struct.unpack("!IH", payload)[1]) * 16

    def decode(self, payload: bytes) -> FloatArray:
        number, ms = struct.unpack("!IH", payload)
        if number == 0xFFFFFFFF:
            raise MediaError("looks fine, is not")
        return np.full(ms * 16, number, np.float32)

    def repair(self, following: bytes, samples: int) -> FloatArray:
        number = struct.unpack("!IH", following)[0]
        return np.full(samples, number - 1 + REPAIRED, np.float32)

    def conceal(self, samples: int) -> FloatArray:
        return np.full(samples, CONCEALED, np.float32)


def packet(number: int, ms: int = 20, ticks: int | None = None) -> RtpAudio:
    """Packet `number`, both counters near their wrap; at `ticks` instead of its usual place."""
    at = number * ms * 48 if ticks is None else ticks
    payload = struct.pack("!IH", number, ms)
    return RtpAudio((65_530 + number) & 0xFFFF, (0xFFFFFFFF - 5000 + at) & 0xFFFFFFFF, payload)


class Driven:
    """A line with its timers served, that checks every frame and notes when it came out."""

    def __init__(self, options: LineOptions | None = None) -> None:
        self.line = MicrophoneLine(SlotDecoder(), options)
        self.now_s = 1000.0
        self.sound: list[FloatArray] = []
        self.given_s: list[float] = []

    def until(self, now_s: float) -> None:
        """Let time pass."""
        while (due_s := self.line.due_s()) is not None and due_s <= now_s:
            self.now_s = max(self.now_s, due_s)
            self._note(self.line.advance(self.now_s))
            assert (later_s := self.line.due_s()) is None or later_s > due_s
        self.now_s = now_s

    def push(self, item: RtpAudio, now_s: float | None = None) -> None:
        self.until(self.now_s if now_s is None else now_s)
        self._note(self.line.push(item, self.now_s))

    def finish(self) -> None:
        self._note(self.line.finish())

    def slots(self) -> list[float]:
        """What each 20 ms is, by its last sample (a fade begins at its own value)."""
        whole = np.concatenate(self.sound)
        return [float(value) for value in whole[319 : len(whole) // 320 * 320 : 320]]

    def _note(self, frames: Iterable[AudioFrame]) -> None:
        for frame in frames:
            assert frame.start == 160 * len(self.sound), "the time line has no gap"
            assert frame.samples.shape == (160,) and frame.rate_hz == 16_000
            self.sound.append(frame.samples)
            self.given_s.append(self.now_s)


def driven(numbers: Iterable[int]) -> Driven:
    """Packets in the order given, 20 ms after one another."""
    run = Driven()
    for place, number in enumerate(numbers):
        run.push(packet(number), 1000.0 + place * SLOT_S)
    return run
