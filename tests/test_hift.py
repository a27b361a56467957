"""HiFT and its streams: what holds whatever the weights are."""

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from agent.errors import CheckpointError, VocoderError
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.hift import Hift
from agent.vocoder.hift_config import FRAME_SAMPLES, HiftConfig, read_hift_config
from agent.vocoder.hift_layers import Conv, NormedUp, same_conv, weight_norm_folds
from agent.vocoder.hift_stream import (
    CausalHiftStream,
    HiftStream,
    HiftStreamSettings,
    ReferenceHiftStream,
    VocoderTail,
    open_tail,
)
from agent.vocoder.source import SourceNoise, gaussian_noise, uniform_noise
from tests.rig import tiny_hift

CPU = torch.device("cpu")
SEAM_SAMPLES = FRAME_SAMPLES
"""±20 ms."""
NOISE = gaussian_noise(5, CPU)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def speaking() -> Hift:
    """The tiny classic network with a pitch that wanders about 150 Hz, unvoiced now and then."""
    hift = copy.deepcopy(tiny_hift.classic_hift())
    classifier = hift.f0_predictor.classifier
    with torch.no_grad():
        spread = 50 / hift.f0(_mel(200)).std()
        classifier.weight.mul_(spread)
        classifier.bias.zero_()
        hidden = hift.f0_predictor.condnet(_mel(200)).transpose(1, 2)
        classifier.bias.fill_(150 - float(classifier(hidden).mean()))
        hift.conv_post.bias[:9] -= 2.5  # so that it is never clipped, which would hide an error
    return hift


def _mel(frames: int, seed: int = 2) -> Tensor:
    """As smooth in time and over the bands as speech's: [1, 80, T]."""
    drawn = torch.randn(1, 20, frames // 4 + 2, generator=torch.Generator().manual_seed(seed))
    sheet = torch.nn.functional.interpolate(
        drawn[None], (80, 4 * (frames // 4 + 2)), mode="bicubic"
    )
    return sheet[0, :, :, :frames] * 2 - 4


def _said(tail: VocoderTail, mel: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    bounds = list(accumulate(sizes, initial=0))
    assert bounds[-1] == mel.shape[-1]
    pieces = list(pairwise(bounds))
    return [
        tail.push(mel[..., start:end], last=number == len(pieces) - 1)
        for number, (start, end) in enumerate(pieces)
    ]


def _error_db(ours: Tensor, theirs: Tensor) -> float:
    return float(10 * ((ours - theirs).square().mean() / theirs.square().mean()).log10())


def _seams(pieces: Sequence[Tensor]) -> list[int]:
    return list(accumulate(len(piece) for piece in pieces[:-1]))


def _around(sound: Tensor, seam: int) -> Tensor:
    return sound[seam - SEAM_SAMPLES : seam + SEAM_SAMPLES]


# ---- loading ------------------------------------------------------------------------------------


def test_the_generations_are_told_apart_by_shape() -> None:
    classic = read_hift_config(tiny_hift.classic_recipe().shapes)
    causal = read_hift_config(tiny_hift.causal_recipe().shapes)
    assert classic == HiftConfig(causal=False, base_channels=32)
    assert causal == HiftConfig(causal=True, base_channels=32)
    with pytest.raises(ValueError, match="causal"):
        Hift(causal)
    with pytest.raises(ValueError, match="classic"):
        CausalHift(classic)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv_pre.parametrizations.weight.original1", (32, 80, 6)),
        ("f0_predictor.condnet.0.parametrizations.weight.original1", (512, 80, 4)),
        ("m_source.l_linear.weight", None),
    ],
)
def test_foreign_checkpoints_are_refused(key: str, shape: tuple[int, ...] | None) -> None:
    shapes = dict(tiny_hift.classic_recipe().shapes)
    if shape is None:
        del shapes[key]
    else:
        shapes[key] = shape
    with pytest.raises(CheckpointError):
        read_hift_config(shapes)


@pytest.mark.parametrize("module", [same_conv(6, 8, 3), NormedUp(6, 8, 11, 5)])
def test_each_filter_is_its_direction_times_its_gain(module: Conv | NormedUp) -> None:
    (name, fold), *others = weight_norm_folds(torch.nn.ModuleDict({"up": module})).items()
    assert name == "up.weight" and not others
    direction, gain = torch.randn(module.weight.shape), torch.rand(len(module.weight), 1, 1)
    expected = {"original0": gain, "original1": direction}
    assert {key.rpartition(".")[2]: shape for key, shape in fold.sources.items()} == {
        key: tuple(tensor.shape) for key, tensor in expected.items()
    }
    length = direction.square().sum(dim=(1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(fold.make(gain, direction), gain * direction / length)


def test_the_causal_pitch_is_told_in_float64() -> None:
    pitch = tiny_hift.causal_hift().f0_predictor
    assert {parameter.dtype for parameter in pitch.parameters()} == {torch.float64}
    assert {p.dtype for p in tiny_hift.causal_hift().resblocks.parameters()} == {torch.float32}


# ---- the classic network ------------------------------------------------------------------------


def test_a_frame_is_480_samples_within_the_limit(speaking: Hift) -> None:
    for frames in (1, 7, 30):
        sound = speaking.whole(_mel(frames), NOISE)
        assert sound.shape == (FRAME_SAMPLES * frames,)
    assert 0.01 < float(sound.abs().max()) < 0.99


def test_sound_keeps_its_limit() -> None:
    sound = tiny_hift.classic_hift().whole(_mel(100), NOISE)
    assert float(sound.abs().max()) == pytest.approx(0.99, abs=1e-6)


def test_the_loudest_bin_is_clipped(speaking: Hift) -> None:
    shouting = copy.deepcopy(speaking)
    with torch.no_grad():
        shouting.conv_post.bias[:9].fill_(1e4)
    assert shouting.whole(_mel(5), NOISE).isfinite().all()


def test_the_phase_goes_on_from_call_to_call(speaking: Hift) -> None:
    f0 = torch.linspace(90, 300, 40)
    silence = torch.zeros(40 * FRAME_SAMPLES, 9)
    whole = speaking.m_source.gliding(f0, silence)
    rest = speaking.m_source.gliding(f0[15:], silence[15 * FRAME_SAMPLES :], whole.cycles[14] % 1)
    torch.testing.assert_close(rest.wave, whole.wave[15 * FRAME_SAMPLES :], atol=1e-6, rtol=0)
    alone = speaking.m_source.gliding(f0[15:], silence[15 * FRAME_SAMPLES :])
    assert (alone.wave - rest.wave).abs().max() > 0.01


def test_the_phase_is_exact_after_an_hour(speaking: Hift) -> None:
    seconds = 3600
    f0 = torch.full((3,), 250.0)
    silence = torch.zeros(3 * FRAME_SAMPLES, 9)
    early = speaking.m_source.gliding(f0, silence, torch.zeros(9, dtype=torch.float64))
    cycles = torch.arange(1, 10, dtype=torch.float64) * 250 * seconds
    late = speaking.m_source.gliding(f0, silence, cycles)
    torch.testing.assert_close(late.wave, early.wave, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "sizes", [(50, 50, 50, 50), (10, 10, 14, 50, 36, 50, 30), (200,), (3,) * 60 + (20,)]
)
def test_a_stream_says_what_the_whole_utterance_says(
    speaking: Hift, sizes: tuple[int, ...]
) -> None:
    mel = _mel(200)
    pieces = _said(open_tail(speaking, NOISE), mel, sizes)
    sound, whole = torch.cat(pieces), speaking.whole(mel, NOISE)
    assert len(sound) == len(whole)
    assert _error_db(sound, whole) < -50


def test_no_seam_is_heard(speaking: Hift) -> None:
    mel = _mel(300)
    whole = speaking.whole(mel, NOISE)
    pieces = _said(HiftStream(speaking, NOISE), mel, (26, 50, 50, 20, 54, 50, 50))
    sound, seams = torch.cat(pieces), _seams(pieces)
    errors = [_error_db(_around(sound, seam), _around(whole, seam)) for seam in seams]
    assert len(errors) == 6 and max(errors) <= -40, errors
    steps = sound.diff().abs()
    elsewhere = torch.cat([steps[: seams[0] - 1], steps[seams[0] :]]).quantile(0.999)
    assert max(float(steps[seam - 1]) for seam in seams) <= elsewhere


def test_the_references_seams_are_far_worse(speaking: Hift) -> None:
    mel = _mel(200)
    whole = speaking.whole(mel, NOISE)
    pieces = _said(ReferenceHiftStream(speaking, NOISE), mel, (50,) * 4)
    sound = torch.cat(pieces)
    assert min(_error_db(_around(sound, s), _around(whole, s)) for s in _seams(pieces)) > -30


def test_the_references_head_start_is_silent(speaking: Hift) -> None:
    stream = ReferenceHiftStream(speaking, NOISE, lead_in=True)
    assert len(stream.push(_mel(5))) == 0
    first = stream.push(_mel(45, seed=3))
    assert len(first) == 50 * FRAME_SAMPLES and not first[:3840].any() and first[3840:].any()
    # Nothing new: what it held back is all there is.
    held = stream.push(_mel(0), last=True)
    assert len(held) == 3840 and held.any()


def test_a_piece_too_short_to_say_anything_waits(speaking: Hift) -> None:
    stream = HiftStream(speaking, NOISE, HiftStreamSettings(held_frames=8))
    assert len(stream.push(_mel(8))) == 0
    assert len(stream.push(_mel(1, seed=3))) == FRAME_SAMPLES
    assert len(stream.push(_mel(0), last=True)) == 8 * FRAME_SAMPLES


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="context"):
        HiftStreamSettings(context_frames=4)
    with pytest.raises(ValueError, match="fade"):
        HiftStreamSettings(held_frames=1, fade_samples=481)


# ---- both generations ---------------------------------------------------------------------------


def _tails(speaking: Hift) -> list[VocoderTail]:
    causal = tiny_hift.causal_hift()
    return [
        HiftStream(speaking, NOISE),
        ReferenceHiftStream(speaking, NOISE),
        CausalHiftStream(causal, uniform_noise(5, CPU)),
    ]


def test_a_clone_goes_on_by_itself(speaking: Hift) -> None:
    for tail in _tails(speaking):
        tail.push(_mel(40))
        saved, again = tail.clone(), tail.clone()
        expected = tail.push(_mel(30, seed=3), last=True)
        saved.push(_mel(30, seed=4), last=True)
        assert torch.equal(again.push(_mel(30, seed=3), last=True), expected)


def test_streams_do_not_disturb_each_other(speaking: Hift) -> None:
    for alone, one, other in zip(*(_tails(speaking) for _ in range(3)), strict=True):
        expected = _said(alone, _mel(60), (20, 20, 20))
        heard = []
        for number, piece in enumerate(_mel(60).split(20, dim=-1)):
            heard.append(one.push(piece, last=number == 2))
            other.push(_mel(20, seed=9))
        assert torch.equal(torch.cat(heard), torch.cat(expected))


def test_nothing_comes_after_the_last(speaking: Hift) -> None:
    for tail in _tails(speaking):
        assert len(tail.push(_mel(0), last=True)) == 0
        with pytest.raises(VocoderError, match="over"):
            tail.push(_mel(5))


def test_half_precision_mels_are_taken(speaking: Hift) -> None:
    for tail in _tails(speaking):
        assert tail.push(_mel(20).half(), last=True).dtype == torch.float32


@pytest.mark.parametrize("sizes", [(7, 1, 30, 2, 40), (79, 1), (80, 0)])
def test_the_causal_stream_is_exact_however_it_is_cut(sizes: tuple[int, ...]) -> None:
    hift, noise, mel = tiny_hift.causal_hift(), uniform_noise(5, CPU), _mel(80)
    sound = torch.cat(_said(CausalHiftStream(hift, noise), mel, sizes))
    assert (sound - hift.whole(mel, noise)).abs().max() < 1e-4


# ---- noise --------------------------------------------------------------------------------------


def test_noise_is_a_function_of_seed_voice_and_position() -> None:
    noise = gaussian_noise(5, CPU)
    assert torch.equal(noise.at(100, 50), NOISE.at(80, 100)[20:70])
    assert not torch.equal(gaussian_noise(6, CPU).at(0, 50), noise.at(0, 50))
    voices = [noise.of_voice(name).at(0, 50) for name in ("anna", "ben", "anna")]
    assert torch.equal(voices[0], voices[2]) and not torch.equal(voices[0], voices[1])


def test_noise_never_ends() -> None:
    noise = SourceNoise(torch.arange(12.0).reshape(4, 3), start=3)
    assert noise.at(2, 5)[:, 0].tolist() == [3, 6, 9, 0, 3]
    assert gaussian_noise(1, CPU).at(10**12, 3).shape == (3, 9)
