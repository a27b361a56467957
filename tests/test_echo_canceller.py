import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from agent.media.audio import level_dbfs
from agent.media.echo_align import Move
from agent.media.echo_canceller import Aec3, MeasuringCanceller, PassThrough
from agent.media.echo_far import FarEnd, History
from agent.media.echo_lane import Lane, Rival
from agent.media.echo_reference import Alignment, Reference
from agent.types import AudioFrame
from tests.rig.echo_path import HARD_DRIVE, EchoPath, PathChange
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


def reduction_db(mic: np.ndarray, cleaned: np.ndarray, from_s: float, to_s: float) -> float:
    part = slice(round(from_s * 16_000), round(to_s * 16_000))
    return level_dbfs(mic[part]) - level_dbfs(cleaned[part])


@pytest.mark.parametrize(("delay_ms", "drive"), [(600, 1.0), (1000, HARD_DRIVE)])
def test_an_echo_that_comes_late_is_taken_out_too(delay_ms: int, drive: float) -> None:
    far = talk(8, 24_000)
    mic = EchoPath(delay_ms, drive=drive).record(far)
    canceller = Aec3()
    cleaned = cancel_all(canceller, far, mic)
    assert canceller.delay_ms == pytest.approx(delay_ms, abs=0.5)
    assert 60 <= delay_ms - canceller.pre_delay_ms <= 150
    assert reduction_db(mic, cleaned, 3, 8) > 20


def test_within_reach_of_aec3_nothing_is_moved() -> None:
    far = talk(4, 24_000)
    canceller = Aec3()
    cancel_all(canceller, far, EchoPath(300).record(far))
    assert canceller.delay_ms == pytest.approx(300, abs=0.5)
    assert canceller.pre_delay_ms == 0


@pytest.mark.parametrize(("before_ms", "after_ms"), [(80, 240), (240, 80), (80, 700)])
def test_after_a_jump_of_the_delay_the_echo_is_soon_gone_again(
    before_ms: int, after_ms: int
) -> None:
    far = talk(10, 24_000)
    mic = EchoPath(before_ms, changes=(PathChange(5, after_ms),)).record(far)
    canceller = Aec3()
    cleaned = cancel_all(canceller, far, mic)
    assert canceller.delay_ms == pytest.approx(after_ms, abs=0.5)
    assert reduction_db(mic, cleaned, 7.5, 10) > 18


@pytest.mark.parametrize("drift_ppm", [-400, 400])
def test_clocks_that_drift_apart_are_followed(drift_ppm: int) -> None:
    far = talk(14, 24_000)
    mic = EchoPath(120, drift_ppm=drift_ppm).record(far)
    canceller = Aec3()
    cleaned = cancel_all(canceller, far, mic)
    assert canceller.drift_ppm == pytest.approx(drift_ppm, abs=6)
    # Without it 27 dB are left at the end of this, and less as time goes on.
    assert reduction_db(mic, cleaned, 9, 14) > 34


def test_a_user_with_a_headset_is_left_alone_while_the_agent_speaks() -> None:
    user = np.tile(say("I would like to know when the next train leaves, please.", 16_000), 3)
    canceller = Aec3()
    cleaned = cancel_all(canceller, talk(len(user) / 16_000, 24_000, "en-gb+f3"), user)
    assert canceller.delay_ms == 0
    assert canceller.pre_delay_ms == 0
    # AEC3 itself takes two seconds to learn that there is no echo.
    assert reduction_db(user[: len(cleaned)], cleaned, 3, len(cleaned) / 16_000) < 3.5


@pytest.mark.parametrize(("lag_ms", "wins"), [(500, True), (100, False)])
def test_a_rival_takes_over_only_when_it_is_better(lag_ms: int, wins: bool) -> None:
    """The one in use stands 100 ms before the echo, its rival as much or 500 ms."""
    pywebrtc_audio = pytest.importorskip("pywebrtc_audio")
    voice = talk(12, 24_000)
    mic = EchoPath(600).record(voice)
    far, near = FarEnd(), History(32_000)
    lag = 0.0 if wins else 8000.0
    lane = Lane(
        pywebrtc_audio.EchoCanceller(sample_rate=16_000), Reference(far, 0, Alignment(0, lag))
    )
    rival, taken = None, None
    for frame in range(1200):
        if frame % 2 == 0:
            far.push(voice[frame * 240 : frame * 240 + 480])
        far.advance()
        near.append(mic[frame * 160 : frame * 160 + 160])
        lane.process(near.read(frame * 160, 160))
        if frame == 400:
            move = Move(Alignment(near.end, lag_ms * 16.0), near.end - 32_000)
            apm = pywebrtc_audio.EchoCanceller(sample_rate=16_000)
            rival = Rival(apm, far, near, move)
        if rival is not None and taken is None:
            taken = rival.advance(near, lane.residual)
    assert (taken is not None) is wins
    assert rival is not None
    assert rival.beaten is not wins


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


def test_after_a_rest_the_echo_is_taken_out_as_before() -> None:
    far = talk(12, 24_000)
    far[5 * 24_000 : 8 * 24_000] = 0
    mic = EchoPath(150).record(far)
    cleaned = cancel_all(Aec3(), far, mic)
    assert reduction_db(mic, cleaned, 8.15, 8.65) > 25
    assert reduction_db(mic, cleaned, 9, 12) > 25


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
    assert canceller.delay_ms == 0.0


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
