import subprocess
import sys

import numpy as np
import pytest

from agent.media.audio import (
    Resampler,
    fade_out,
    from_pcm16,
    level_dbfs,
    mix_down,
    to_pcm16,
)

PAIRS = [(48_000, 16_000), (24_000, 16_000), (24_000, 48_000), (16_000, 24_000)]


def tone(frequency_hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    time_s = np.arange(int(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    resampler = Resampler(from_hz, to_hz)
    return np.concatenate((resampler.push(samples), resampler.finish()))


def spectrum_db(samples: np.ndarray) -> np.ndarray:
    """Relative to the 0.5 tone of this file, one bin a hertz: the middle of a 1 s signal."""
    windowed = samples * np.blackman(len(samples))
    return 20 * np.log10(np.abs(np.fft.rfft(windowed)) / (0.25 * 0.42 * len(samples)) + 1e-12)


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_in_pieces_is_in_one_go(from_hz: int, to_hz: int) -> None:
    random = np.random.default_rng(1)
    signal = random.uniform(-1, 1, from_hz // 2 + 17).astype(np.float32)
    whole = resample(signal, from_hz, to_hz)
    resampler = Resampler(from_hz, to_hz)
    cuts = np.sort(random.integers(0, len(signal), 60))
    pieces = [resampler.push(piece) for piece in np.split(signal, cuts)]
    pieces.append(resampler.finish())
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_twenty_milliseconds_in_are_twenty_out(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    for _ in range(5):
        assert len(resampler.push(np.ones(from_hz // 50, np.float32))) == to_hz // 50
    assert len(resampler.finish()) == resampler.delay_samples


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_delay_is_the_stated_one_and_below_two_milliseconds(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    assert resampler.delay_samples <= 0.002 * to_hz
    output = resample(tone(1000, from_hz), from_hz, to_hz)[resampler.delay_samples :]
    expected = tone(1000, to_hz)
    middle = slice(to_hz // 10, -to_hz // 10)
    np.testing.assert_allclose(output[middle], expected[middle], atol=2e-3)


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_flat_up_to_a_kilohertz_and_a_quarter_below_nyquist(from_hz: int, to_hz: int) -> None:
    edge_hz = min(from_hz, to_hz) // 2 - 1250
    for frequency_hz in (100, 3000, edge_hz):
        level = level_dbfs(resample(tone(frequency_hz, from_hz), from_hz, to_hz)[200:-200])
        assert abs(level - level_dbfs(tone(frequency_hz, from_hz))) < 0.1


@pytest.mark.parametrize("frequency_hz", [8050, 8600, 9000, 10_000, 11_900])
@pytest.mark.parametrize("from_hz", [24_000, 48_000])
def test_what_16_khz_cannot_hold_is_removed(from_hz: int, frequency_hz: int) -> None:
    output = resample(tone(frequency_hz, from_hz), from_hz, 16_000)[:16_000]
    assert spectrum_db(output[1000:-1000]).max() < -60


@pytest.mark.parametrize("frequency_hz", [500, 4000, 6700])
@pytest.mark.parametrize(("from_hz", "to_hz"), [(24_000, 48_000), (16_000, 24_000)])
def test_going_up_makes_no_images(from_hz: int, to_hz: int, frequency_hz: int) -> None:
    output = resample(tone(frequency_hz, from_hz), from_hz, to_hz)[:to_hz]
    levels = spectrum_db(output)
    assert levels[frequency_hz - 50 : frequency_hz + 50].max() > -1
    assert levels[frequency_hz + 200 :].max() < -60


def test_rates_that_it_cannot_do_are_refused() -> None:
    for from_hz, to_hz in [(44_100, 16_000), (16_000, 16_000), (0, 16_000)]:
        with pytest.raises(ValueError, match="cannot resample"):
            Resampler(from_hz, to_hz)


def test_pcm16_there_and_back_and_clipped() -> None:
    samples = np.array([-1.0, -0.5, 0.0, 0.25, 0.999], np.float32)
    np.testing.assert_allclose(from_pcm16(to_pcm16(samples)), samples, atol=1 / 32768)
    np.testing.assert_array_equal(
        to_pcm16(np.array([-3.0, 3.0, 1.0], np.float32)), [-32768, 32767, 32767]
    )
    np.testing.assert_array_equal(from_pcm16(b"\x00\x40\x00\xc0"), [0.5, -0.5])
    with pytest.raises(ValueError, match="buffer size"):
        from_pcm16(b"\x00\x40\x00")


def test_mix_down_of_every_layout() -> None:
    left, right = np.array([1, 0, 0.5], np.float32), np.array([0, 0, -0.5], np.float32)
    mono = [0.5, 0, 0]
    interleaved = np.stack((left, right), axis=1).ravel()
    np.testing.assert_array_equal(mix_down(np.stack((left, right)), 2), mono)
    np.testing.assert_array_equal(mix_down(interleaved, 2), mono)
    np.testing.assert_array_equal(mix_down(interleaved[None], 2), mono)
    np.testing.assert_array_equal(mix_down(left[None], 1), left)


def test_levels() -> None:
    assert level_dbfs(np.ones(100, np.float32)) == pytest.approx(0.0)
    assert level_dbfs(2 * tone(1000, 16_000)) == pytest.approx(-3.01, abs=0.01)
    assert level_dbfs(np.zeros(100, np.float32)) == level_dbfs(np.zeros(0, np.float32)) == -100


def test_fade_out_falls_from_full_to_nothing() -> None:
    faded = fade_out(np.ones(240, np.float32))
    assert faded.dtype == np.float32
    assert faded[0] > 0.999 and faded[-1] < 0.001
    assert np.all(np.diff(faded) < 0)


def test_importing_it_costs_numpy_alone() -> None:
    program = (
        "import sys, agent.media.audio\n"
        "heavy = {'onnxruntime', 'pywebrtc_audio', 'torch', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
