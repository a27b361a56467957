"""How much of the agent's voice is taken out of the microphone, and what is left alone."""

import subprocess
import sys

import numpy as np
import pytest

from agent.media.audio import level_dbfs
from agent.media.echo_align import Move
from agent.media.echo_canceller import Aec3, MeasuringCanceller, PassThrough
from agent.media.echo_far import FarEnd, History
from agent.media.echo_lane import Lane, Rival
from agent.media.echo_reference import Alignment, Reference
from agent.types import AudioFrame
from tests.rig.echo_path import HARD_DRIVE, EchoPath, PathChange, cancel_all
from tests.rig.voices import say, talk


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


def test_after_a_rest_the_echo_is_taken_out_as_before() -> None:
    far = talk(12, 24_000)
    far[5 * 24_000 : 8 * 24_000] = 0
    mic = EchoPath(150).record(far)
    cleaned = cancel_all(Aec3(), far, mic)
    assert reduction_db(mic, cleaned, 8.15, 8.65) > 25
    assert reduction_db(mic, cleaned, 9, 12) > 25


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
