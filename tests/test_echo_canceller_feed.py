"""What WebRTC's canceller is fed when either side comes late, in bursts or not at all."""

import numpy as np
import pytest

from agent.media.echo_canceller import Aec3
from agent.types import AudioFrame
from tests.rig.echo_path import EchoPath, cancel_all


class RecordingApm:
    """Stands for WebRTC: keeps the far end that it is fed and hands the near end through."""

    def __init__(self) -> None:
        self.near = np.zeros(0, np.float32)
        self.far = np.zeros(0, np.float32)

    def process(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        assert len(near) == len(far)
        assert len(near) % 160 == 0
        self.near, self.far = np.append(self.near, near), np.append(self.far, far)
        return near


@pytest.fixture
def apm(monkeypatch: pytest.MonkeyPatch) -> RecordingApm:
    recording = RecordingApm()
    monkeypatch.setattr("agent.media.echo_canceller._load_aec3", lambda: recording)
    return recording


class Line:
    """A far end whose samples say when they were sent, in milliseconds, and the microphone."""

    def __init__(self, apm: RecordingApm) -> None:
        self._apm = apm
        self._canceller = Aec3()
        self._sent_ms = 0

    def send(self, milliseconds: int = 20) -> None:
        times_ms = self._sent_ms + np.arange(milliseconds * 24) / 24
        self._canceller.push_far(AudioFrame((times_ms / 1e5).astype(np.float32), 24_000, 0))
        self._sent_ms += milliseconds

    def hear(self, frames: int = 2) -> None:
        for _ in range(frames):
            self._canceller.cancel(np.ones(160, np.float32))

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds // 20):
            self.send()
            self.hear()

    @property
    def late_ms(self) -> float:
        """How old the far end is that the canceller was last fed."""
        return self._sent_ms - 1e5 * float(self._apm.far[-1]) - 1.75


def test_far_end_reaches_webrtc_whole_and_at_once(apm: RecordingApm) -> None:
    line = Line(apm)
    line.run(3000)
    assert line.late_ms == pytest.approx(0, abs=0.2)
    assert np.all(np.diff(apm.far[100:]) >= 0)
    assert len(apm.far) == 3000 * 16


def test_bursts_of_the_microphone_move_nothing(apm: RecordingApm) -> None:
    line = Line(apm)
    for _ in range(100):
        line.send()
        line.send()
        line.hear(4)
    assert len(apm.far) == 100 * 640
    assert np.diff(apm.far[100:]).max() < 2e-6


def test_sound_that_was_missing_does_not_stay_behind(apm: RecordingApm) -> None:
    line = Line(apm)
    line.run(1000)
    line.hear(4)  # the sender comes 40 ms late, so silence was fed; then it catches up
    line.send(40)
    line.run(200)
    assert line.late_ms == pytest.approx(40, abs=1)
    line.run(1200)
    assert line.late_ms <= 11


@pytest.mark.parametrize("stall_ms", [100, 300, 1000])
def test_a_microphone_that_skips_what_it_missed_is_caught_up_with_in_80_ms(
    apm: RecordingApm, stall_ms: int
) -> None:
    line = Line(apm)
    line.run(1000)
    for _ in range(stall_ms // 20):
        line.send()
    line.run(100)
    assert line.late_ms <= 11
    # What was skipped is heard as well, against silence: its echo comes later.
    assert np.diff(apm.far[100:]).max() < 2e-6
    assert apm.near.sum() == pytest.approx((1000 + 100) * 16)


def test_a_microphone_that_is_only_late_moves_nothing(apm: RecordingApm) -> None:
    line = Line(apm)
    line.run(1000)
    for _ in range(15):
        line.send()
    line.hear(30)
    line.run(1000)
    assert line.late_ms == pytest.approx(0, abs=0.2)
    assert len(apm.far) == 2300 * 16


def test_what_waits_is_bounded_to_two_seconds(apm: RecordingApm) -> None:
    line = Line(apm)
    line.hear(1)
    line.send(10_000)
    line.hear(1)
    assert line.late_ms == pytest.approx(1990, abs=2)
    line.run(200)
    assert line.late_ms <= 11
    for _ in range(125):
        line.send()
    line.hear(1)
    assert line.late_ms == pytest.approx(1990, abs=2)


def test_while_the_agent_is_silent_aec3_rests_and_the_microphone_is_only_delayed(
    apm: RecordingApm,
) -> None:
    canceller = Aec3()
    user = np.random.default_rng(5).standard_normal(64_000).astype(np.float32)
    cleaned = cancel_all(canceller, np.zeros(96_000, np.float32), user)
    worked = len(apm.near)
    assert worked < 2 * 16_000
    np.testing.assert_array_equal(cleaned[32_000:], user[32_000 - 128 : 64_000 - 128])
    canceller.push_far(AudioFrame(np.ones(480, np.float32), 24_000, 0))
    canceller.cancel(user[:160])
    # It hears what came just before, so that its filters are filled, and then the new frame.
    np.testing.assert_array_equal(apm.near[worked:], np.append(user[-320:], user[:160]))


# ---- once the delay is known --------------------------------------------------------------------


@pytest.fixture
def apms(monkeypatch: pytest.MonkeyPatch) -> list[RecordingApm]:
    """One for each canceller that was tried; the last is the one in use."""
    made: list[RecordingApm] = []

    def make() -> RecordingApm:
        made.append(RecordingApm())
        return made[-1]

    monkeypatch.setattr("agent.media.echo_canceller._load_aec3", make)
    return made


class Echo:
    """A loudspeaker that plays noise, a microphone that hears it 100 ms later, and nobody else."""

    def __init__(self, apms: list[RecordingApm]) -> None:
        self._apms = apms
        self.canceller = Aec3()
        noise = np.random.default_rng(7).standard_normal(24_000 * 20) * 0.05
        self._far = noise.astype(np.float32)
        self._mic = EchoPath(100, rt60_s=0.05).record(self._far)
        self._sent = self._heard = 0

    def send(self, slots: int = 1) -> None:
        for _ in range(slots):
            start = self._sent * 480
            self.canceller.push_far(AudioFrame(self._far[start : start + 480], 24_000, start))
            self._sent += 1

    def hear(self, slots: int = 1) -> None:
        for _ in range(slots):
            for start in (self._heard * 320, self._heard * 320 + 160):
                self.canceller.cancel(self._mic[start : start + 160])
            self._heard += 1

    def skip(self, slots: int) -> None:
        """The microphone loses so much."""
        self._heard += slots

    def run(self, slots: int) -> None:
        for _ in range(slots):
            self.send()
            self.hear()

    @property
    def lead_ms(self) -> float:
        """How long before its echo WebRTC was fed the far end, over the last 300 ms."""
        near, far = self._apms[-1].near[-4800:], self._apms[-1].far[-4800 - 4000 :]
        likeness = [float(np.dot(near, far[4000 - lag :][:4800])) for lag in range(4000)]
        return int(np.argmax(likeness)) / 16 + 1.75


def test_a_sender_that_comes_late_leaves_no_trace(apms: list[RecordingApm]) -> None:
    echo = Echo(apms)
    echo.run(120)
    assert echo.canceller.delay_ms == pytest.approx(100, abs=0.2)
    assert echo.lead_ms == pytest.approx(100, abs=0.2)
    echo.hear(2)
    echo.send(2)
    echo.run(20)
    assert echo.lead_ms == pytest.approx(100, abs=0.2)
    echo.run(120)
    assert echo.lead_ms == pytest.approx(100, abs=0.2)


def test_a_microphone_that_loses_sound_is_caught_up_with(apms: list[RecordingApm]) -> None:
    echo = Echo(apms)
    echo.run(120)
    echo.send(15)
    echo.skip(15)
    echo.run(20)
    assert echo.lead_ms == pytest.approx(90, abs=11)


def test_a_sender_that_stays_late_is_waited_for(apms: list[RecordingApm]) -> None:
    """After a quarter of a second without sound, what comes next counts as the next."""
    echo = Echo(apms)
    echo.run(120)
    echo.hear(13)
    before = len(apms[-1].far)
    echo.run(3)
    assert np.abs(apms[-1].far[before:]).min() > 0


# ---- the rest -----------------------------------------------------------------------------------


def test_far_end_in_other_lengths_is_caught_up_with_in_whole_frames(apm: RecordingApm) -> None:
    line = Line(apm)
    line.hear(1)
    for _ in range(11):
        line.send(25)
    for _ in range(10):
        line.send(25)
        line.hear(2)
        line.send(15)
        line.hear(2)
    assert line.late_ms <= 35
