"""The delay of the echo and the drift of its clock, measured on sound that is known exactly."""

from functools import lru_cache

import numpy as np
import pytest

from agent.media.echo_delay import EchoDelay, find_peak
from agent.media.echo_drift import ClockDrift
from agent.media.echo_far import FarEnd, History
from agent.media.echo_fraction import read_between
from agent.media.echo_reference import Alignment, Reference
from tests.rig.echo_path import HARD_DRIVE, EchoPath, PathChange
from tests.rig.voices import say, talk

RATE_HZ = 16_000
BLOCK = 8192
OTHER_TEXT = (
    "The museum opens at ten and closes at six, except on Mondays. Mix the two powders carefully, "
    "add water, and wait until the bubbles have gone. You have two new messages, one from your "
    "sister and one from the garage. In the year eighteen sixty nine the canal was opened."
)


@lru_cache
def agent(seconds: int = 10, voice: str = "en-us") -> np.ndarray:
    return talk(seconds, 24_000, voice)


@lru_cache
def user(seconds: int = 10) -> np.ndarray:
    return np.resize(say(OTHER_TEXT, RATE_HZ, "en-gb+f3"), seconds * RATE_HZ)


class Measured:
    """An estimator that has heard the far end [T] at 24 kHz and the microphone, step by step."""

    def __init__(self, far: np.ndarray, mic: np.ndarray, cuts: tuple[int, ...] = ()) -> None:
        self.delay = EchoDelay()
        self.lags_ms: list[tuple[float, float]] = []
        end = FarEnd()
        for start in range(0, len(mic) - 159, 160):
            if start % 320 == 0:
                end.push(far[start * 3 // 2 : start * 3 // 2 + 480])
            end.advance()
            for first, last in zip((0, *cuts), (*cuts, 160), strict=True):
                self.delay.push(mic[start + first : start + last], start + first, 0)
            if self.delay.work(end.read) and self.delay.lag is not None:
                # The far end is late by its change of rate.
                self.lags_ms.append((start / RATE_HZ, self.delay.lag / 16 + 1.75))

    @property
    def found_after_s(self) -> float:
        return self.lags_ms[0][0]

    @property
    def last_ms(self) -> float:
        return self.lags_ms[-1][1]


# ---- the delay ----------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ms", [20, 80, 400, 1000])
@pytest.mark.parametrize("drive", [1.0, HARD_DRIVE])
def test_delay_is_found_within_a_second_of_the_first_echo(delay_ms: int, drive: float) -> None:
    path = EchoPath(delay_ms, rt60_s=0.4, drive=drive, noise_dbfs=-55, seed=delay_ms)
    measured = Measured(agent(), path.record(agent()))
    assert measured.found_after_s < delay_ms / 1000 + 1.1
    assert [lag for _, lag in measured.lags_ms] == pytest.approx(
        [delay_ms] * len(measured.lags_ms), abs=0.5
    )


@pytest.mark.parametrize("over_echo_db", [0, 8])
def test_a_user_who_talks_all_the_time_does_not_hide_it(over_echo_db: float) -> None:
    mic = EchoPath(300, rt60_s=0.4, drive=HARD_DRIVE).record_with(agent(), user(), 0, over_echo_db)
    measured = Measured(agent(), mic)
    assert measured.found_after_s < 3
    assert measured.last_ms == pytest.approx(300, abs=0.5)


def test_a_loudspeaker_connected_the_wrong_way_round_is_no_matter() -> None:
    measured = Measured(agent(), -EchoPath(150).record(agent()))
    assert measured.last_ms == pytest.approx(150, abs=0.5)


@pytest.mark.parametrize(("before_ms", "after_ms"), [(80, 240), (240, 80), (60, 900)])
def test_a_delay_that_jumps_is_followed_within_two_seconds(before_ms: int, after_ms: int) -> None:
    path = EchoPath(before_ms, changes=(PathChange(5, after_ms),))
    measured = Measured(agent(), path.record(agent()))
    before = [lag for at_s, lag in measured.lags_ms if at_s < 5]
    after = [lag for at_s, lag in measured.lags_ms if at_s > 7]
    assert before == pytest.approx([before_ms] * len(before), abs=0.5)
    assert after == pytest.approx([after_ms] * len(after), abs=0.5)


def noise(seconds: int, level: float) -> np.ndarray:
    return (np.random.default_rng(3).standard_normal(seconds * RATE_HZ) * level).astype(np.float32)


@pytest.mark.parametrize(
    "mic",
    [
        pytest.param(np.zeros(160_000, np.float32), id="nothing"),
        pytest.param(noise(10, 1e-2), id="noise"),
        pytest.param(user() + noise(10, 1e-4), id="user with a headset"),
        pytest.param(np.roll(talk(10, RATE_HZ), 5 * RATE_HZ), id="the same voice"),
        pytest.param(
            np.sin(2 * np.pi * 50 * np.arange(160_000) / RATE_HZ).astype(np.float32), id="hum"
        ),
    ],
)
def test_without_an_echo_nothing_is_found(mic: np.ndarray) -> None:
    assert Measured(agent(), mic).delay.lag is None


def test_silence_says_nothing() -> None:
    assert Measured(np.zeros(240_000, np.float32), user()).delay.lag is None


def periodic(kind: str) -> np.ndarray:
    """10 s at 24 kHz that fade in, so that their start does not give them away."""
    time_s = np.arange(240_000) / 24_000
    if kind == "tone":
        sound = np.sin(2 * np.pi * 440 * time_s)
    elif kind == "chord":
        sound = sum(np.sin(2 * np.pi * hertz * time_s) for hertz in (262, 330, 392, 523))
    else:
        beat = np.random.default_rng(4).standard_normal(12_000) * np.exp(-np.arange(12_000) / 1500)
        sound = np.tile(beat, 20)
    return (0.1 * sound / np.std(sound) * np.minimum(1, time_s / 2)).astype(np.float32)


@pytest.mark.parametrize("kind", ["tone", "chord", "beat"])
def test_what_repeats_itself_gives_no_false_delay(kind: str) -> None:
    far = periodic(kind)
    measured = Measured(far, EchoPath(300, noise_dbfs=-60).record(far))
    lags = [lag for _, lag in measured.lags_ms]
    assert lags == pytest.approx([300] * len(lags), abs=2)


def test_a_tone_after_speech_moves_nothing() -> None:
    far = np.concatenate((agent()[: 4 * 24_000], periodic("tone")[: 6 * 24_000]))
    measured = Measured(far, EchoPath(300).record(far))
    lags = [lag for _, lag in measured.lags_ms]
    assert lags == pytest.approx([300] * len(lags), abs=2)


def test_cut_otherwise_it_finds_the_same() -> None:
    mic = EchoPath(200).record(agent())
    whole, cut = Measured(agent(), mic), Measured(agent(), mic, cuts=(77, 78))
    assert whole.lags_ms == cut.lags_ms
    assert whole.delay.drift_ppm == cut.delay.drift_ppm


def test_its_work_is_spread_over_frames() -> None:
    """One transform a frame at most: a step must not hold up the event loop."""
    reads = []
    delay = EchoDelay()
    mic = EchoPath(200).record(agent())

    def read(start: int, count: int) -> np.ndarray:
        reads.append(start)
        return np.zeros(count, np.float32)

    for start in range(0, 4 * BLOCK - 159, 160):
        delay.push(mic[start : start + 160], start, 0)
        assert delay.work(read) is False
    assert len(reads) == 3


def test_peak_is_weighed_against_the_rest() -> None:
    correlation = np.random.default_rng(1).standard_normal(16_384).astype(np.float32)
    assert not find_peak(correlation).surpasses(1.7, 10)
    correlation[5000:5003] = (20, 40, 30)
    peak = find_peak(correlation)
    assert peak.surpasses(5, 20)
    assert peak.index == pytest.approx(5001.17, abs=0.01)


# ---- the drift ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ppm", [-500, -50, 0, 50, 100, 500])
def test_drift_is_measured(ppm: int) -> None:
    measured = Measured(agent(), EchoPath(150, drift_ppm=ppm).record(agent()))
    assert measured.delay.drift_ppm == pytest.approx(ppm, abs=5)
    assert measured.last_ms == pytest.approx(150 + ppm * 1e-3 * 9.5, abs=0.4)


def test_drift_is_measured_while_both_talk() -> None:
    path = EchoPath(150, drift_ppm=200, drive=HARD_DRIVE)
    measured = Measured(agent(), path.record_with(agent(), user(), 0, 3))
    assert measured.delay.drift_ppm == pytest.approx(200, abs=15)


def track(
    ppm: float, blocks: int, steps: dict[int, float] | None = None, first: int = 0
) -> list[tuple[int, float]]:
    """Delays with a little noise; `steps` are added from that block on."""
    random, points, offset = np.random.default_rng(2), [], 0.0
    for block in range(first, first + blocks):
        offset += (steps or {}).get(block, 0.0)
        at = block * BLOCK
        points.append((at, 2000 + ppm * 1e-6 * at + offset + random.normal() * 0.05))
    return points


def drift_of(points: list[tuple[int, float]]) -> ClockDrift:
    drift = ClockDrift()
    for at, lag in points:
        drift.add(at, lag)
    return drift


@pytest.mark.parametrize("ppm", [-300.0, 0.0, 300.0])
def test_jumps_of_a_jitter_buffer_are_no_drift(ppm: float) -> None:
    steps = {10: 160.0, 20: -80.0, 30: 40.0}
    assert drift_of(track(ppm, 40, steps)).ppm == pytest.approx(ppm, abs=3)


def test_what_a_pause_brings_is_no_drift() -> None:
    points = track(0, 12) + track(0, 12, {30: 48.0}, first=30)
    assert drift_of(points).ppm == pytest.approx(0, abs=3)


def test_a_point_that_lies_off_alone_is_not_believed() -> None:
    points = track(0, 12)
    drift = drift_of(points)
    assert drift.add(12 * BLOCK, 2040.0) is None
    assert drift.add(13 * BLOCK, 2000.0) == 2000.0
    assert drift.ppm == pytest.approx(0, abs=3)


def test_few_points_say_nothing() -> None:
    assert drift_of(track(300, 4)).ppm is None


def test_a_new_drift_replaces_the_old_one() -> None:
    assert drift_of(track(100, 20) + track(-100, 60, first=20)).ppm == pytest.approx(-100, abs=5)


# ---- reading between samples --------------------------------------------------------------------


@pytest.mark.parametrize("ppm", [-500, 100, 500])
@pytest.mark.parametrize("hertz", [300, 3000])
def test_reading_at_another_rate_hits_the_samples_in_between(ppm: int, hertz: int) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(40_000) / RATE_HZ).astype(np.float32)
    step = 1 - ppm * 1e-6
    got = read_between(lambda start, count: wave[start : start + count], 99, 0.37, step, 32_000)
    positions = 99.37 + np.arange(32_000) * step
    expected = np.sin(2 * np.pi * hertz * positions / RATE_HZ)
    assert 20 * np.log10(np.std(got - expected) / np.std(expected)) < -55


def test_reading_between_in_pieces_is_as_in_one_go() -> None:
    far = FarEnd()
    far.push(agent(2))
    far.advance()
    alignment = Alignment(0, -3000.3, 400.0)
    whole, pieces = Reference(far, 0, alignment), Reference(far, 0, alignment)
    in_pieces = [pieces.read(count) for count in (160, 480, 160, 3200, 12_000)]
    np.testing.assert_allclose(np.concatenate(in_pieces), whole.read(16_000), atol=1e-4)
    assert pieces.lag == pytest.approx(whole.lag, abs=1e-6)
    assert whole.lag == pytest.approx(-3000.3 + 400e-6 * 16_000, abs=1e-6)


def test_reading_on_whole_samples_changes_nothing() -> None:
    sound = noise(1, 0.1)
    got = read_between(lambda start, count: sound[start : start + count], 500, 0.0, 1.0, 1600)
    np.testing.assert_allclose(got, sound[500:2100], atol=1e-7)


def test_history_keeps_the_newest_and_is_silent_beyond() -> None:
    sound = noise(1, 0.1)
    history = History(1000)
    for start in range(0, 7000, 70):
        history.append(sound[start : start + 70])
    assert (history.end, history.oldest) == (7000, 6000)
    np.testing.assert_array_equal(history.read(6000, 1000), sound[6000:7000])
    np.testing.assert_array_equal(history.read(6990, 20)[:10], sound[6990:7000])
    assert not history.read(6990, 20)[10:].any()
    assert not history.read(7100, 50).any()
    history.append(sound[:5000])
    assert (history.end, history.oldest) == (12_000, 11_000)
    np.testing.assert_array_equal(history.read(11_000, 1000), sound[4000:5000])
