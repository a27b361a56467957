"""The transform of fixed windows against torch's own."""

import pytest
import torch

from agent.torch_parts.spectrum import Spectrum


def _sound(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))


def _theirs(sound: torch.Tensor, window: int, hop: int) -> torch.Tensor:
    hann = torch.hann_window(window)
    drawn = torch.stft(sound, window, hop, window, hann, pad_mode="reflect", return_complex=True)
    return torch.cat([drawn.real, drawn.imag], dim=1)


@pytest.mark.parametrize(("window", "hop"), [(16, 4), (64, 16), (400, 100)])
def test_it_analyses_as_torch_does(window: int, hop: int) -> None:
    sound = _sound(3 * window + 7)
    ours = Spectrum(window, hop).analyse(sound)
    assert ours.shape == (2, 2 * (window // 2 + 1), len(sound[0]) // hop + 1)
    torch.testing.assert_close(ours, _theirs(sound, window, hop), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [3, 4, 121])
def test_it_synthesises_as_torch_does(frames: int) -> None:
    drawn = torch.randn(2, 18, frames, generator=torch.Generator().manual_seed(1))
    # The imaginary parts of the first and the last bin have no sound, whatever they are.
    complex_spectrum = torch.complex(drawn[:, :9], drawn[:, 9:])
    theirs = torch.istft(complex_spectrum, 16, 4, 16, torch.hann_window(16))
    ours = Spectrum(16, 4).synthesise(drawn)
    assert ours.shape == (2, 4 * (frames - 1))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_sound_comes_back_from_its_spectrum() -> None:
    sound, spectrum = _sound(480), Spectrum(16, 4)
    torch.testing.assert_close(spectrum.synthesise(spectrum.analyse(sound)), sound)


@pytest.mark.parametrize(("window", "hop"), [(15, 5), (16, 5)])
def test_windows_that_no_hop_fits_are_refused(window: int, hop: int) -> None:
    with pytest.raises(ValueError, match="no whole number of hops"):
        Spectrum(window, hop)
