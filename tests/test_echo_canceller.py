import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from agent.media.audio import level_dbfs
from agent.media.echo_canceller import Aec3, MeasuringCanceller, PassThrough
from agent.types import AudioFrame
from tests.rig.echo_path import EchoPath
from tests.rig.voices import say, talk


def far_frames(far: np.ndarray) -> Iterator[AudioFrame]:
    for start in range(0, len(far) - 479, 480):
        yield AudioFrame(far[start : start + 480], 24_000, start)


def cancel_all(canceller: Aec3, far: np.ndarray, mic: np.ndarray) -> np.ndarray:
    """20 ms of each in turn."""
    cleaned = []
    for index, frame in enumerate(far_frames(far)):
        canceller.push_far(frame)
        for start in (index * 320, index * 320 + 160):
            cleaned.append(canceller.cancel(mic[start : start + 160]))
    return np.concatenate(cleaned)


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


@pytest.mark.parametrize("delay_ms", [60, 200])
def test_takes_the_agents_voice_out(delay_ms: int) -> None:
    far = talk(10, 24_000)
    mic = EchoPath(delay_ms).record(far)
    canceller = Aec3()
    cleaned = cancel_all(canceller, far, mic)
    settled = slice(4 * 16_000, 10 * 16_000)
    erle_db = level_dbfs(mic[settled]) - level_dbfs(cleaned[settled])
    assert erle_db > 20
    assert canceller.erle_db > 20


def test_leaves_the_user_alone_while_the_agent_is_silent() -> None:
    user = say("I would like to know when the next train leaves.", 16_000)
    canceller = Aec3()
    cleaned = cancel_all(canceller, np.zeros(len(user) * 3 // 2, np.float32), user)
    assert abs(level_dbfs(cleaned) - level_dbfs(user)) < 1.5
    assert canceller.erle_db == 0.0


def test_output_lags_by_what_it_says() -> None:
    user = talk(3, 16_000)
    cleaned = cancel_all(Aec3(), np.zeros(len(user) * 3 // 2, np.float32), user)
    likeness = [float(np.dot(cleaned[lag:], user[: len(user) - lag])) for lag in range(320)]
    assert abs(int(np.argmax(likeness)) - Aec3.delay_samples) <= 1


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


def test_far_end_of_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="24000"):
        Aec3().push_far(AudioFrame(np.zeros(320, np.float32), 16_000, 0))


def test_pass_through_changes_nothing() -> None:
    canceller = PassThrough()
    near = np.ones(160, np.float32)
    canceller.push_far(AudioFrame(np.ones(480, np.float32), 24_000, 0))
    assert canceller.cancel(near) is near
    assert isinstance(canceller, MeasuringCanceller)
    assert canceller.erle_db == 0.0


def test_missing_package_is_named() -> None:
    program = (
        "import sys\n"
        "sys.modules['pywebrtc_audio'] = None\n"
        "from agent.errors import ConfigError\n"
        "from agent.media.echo_canceller import Aec3, PassThrough\n"
        "PassThrough()\n"
        "try:\n"
        "    Aec3()\n"
        "except ConfigError as error:\n"
        "    sys.exit(0 if 'pywebrtc-audio' in str(error) else 2)\n"
        "sys.exit(3)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
