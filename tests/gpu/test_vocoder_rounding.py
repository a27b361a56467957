"""HiFT's products of float16 on a GPU: as near to float32 as TF32's are, in tiles of every size."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.torch_parts.checkpoint import Target
from agent.vocoder.hift_config import BLOCK_KERNELS
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.token2wav import StreamSettings
from tests.rig.tiny_vocoder import write_token2wav
from tests.rig.vocoder_voices import TOKENS, voice_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
ROUNDED = ("tf32", "half")
MORE_THAN_TF32 = 1.2
DILATION = 3
ALPHA = 1.5


def _error(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


# ---- products -----------------------------------------------------------------------------------


def _taps(channels: int, generator: torch.Generator) -> list[Tensor]:
    shapes = [(channels, one, channels) for one in BLOCK_KERNELS]
    made = [torch.randn(shape, device=GPU, generator=generator) for shape in shapes]
    return [one / (one.shape[1] * channels) ** 0.5 for one in made]


def _convolved(rows: Tensor, taps: list[Tensor], rounding: Any) -> tuple[Tensor, Tensor]:
    """Rows f32 [B, L, C] by each kernel [C, k, C], plus the rows: sums and Snake of them."""
    from agent.vocoder.kernels.product import After, Along, Span, Weights, product
    from agent.vocoder.kernels.spectrum import mean

    count, length, channels = rows.shape
    biases = [rows.new_zeros(channels) for _ in taps]
    weights = Weights.of_taps(taps, biases, BLOCK_KERNELS[1] - BLOCK_KERNELS[0]).rounded(rounding)
    source = torch.stack([mean(rows[None], 1.0, rounding) for _ in taps])
    out, acted = torch.empty(source.shape, device=GPU), torch.empty_like(source)
    plan = torch.full((count, 1), length, device=GPU)
    along = Along(length, length, dilation=DILATION, span=Span(plan, count=0))
    alpha = torch.full((len(taps), channels), ALPHA, device=GPU)
    after = After(out=out, added=rows, acted=acted, act="snake", alpha=alpha)
    product(source, weights, along, after)
    return out, acted


def _exact(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    reach = DILATION * (weight.shape[1] - 1)
    padded = F.pad(rows.double().transpose(1, 2), (reach, 0))
    made = F.conv1d(padded, weight.double().transpose(1, 2), dilation=DILATION)
    out = rows + made.transpose(1, 2)
    return out, out + (ALPHA * out).sin().square() / ALPHA


@pytest.mark.parametrize("streams", [1, 32])
@pytest.mark.parametrize(("channels", "length"), [(256, 720), (128, 1000), (64, 1001)])
def test_convolutions_in_float16_are_as_near_to_float64_as_in_tf32(
    channels: int, length: int, streams: int
) -> None:
    generator = torch.Generator(GPU).manual_seed(5)
    rows = torch.randn(streams, length, channels, device=GPU, generator=generator)
    taps = _taps(channels, generator)
    of_tf32, of_half = (_convolved(rows, taps, one) for one in ROUNDED)
    assert of_half[0].dtype == torch.float32 and of_half[1].dtype == torch.float16
    for group, weight in enumerate(taps):
        for theirs, ours, exact in zip(of_tf32, of_half, _exact(rows, weight), strict=True):
            assert (
                1e-5 < _error(ours[group], exact) <= MORE_THAN_TF32 * _error(theirs[group], exact)
            )


# ---- sound --------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["classic", "causal"])
def test_sound_in_float16_is_as_near_to_float32_as_in_tf32(
    generation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.vocoder.batched import hift as batched_hift

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    folder = write_token2wav(tmp_path / generation, generation)
    settings = Token2wavSettings(steps=4, graphs=True, streams=1, stream=StreamSettings(eager=True))
    vocoder: Any = load_token2wav(folder, settings, Target(GPU, torch.float16))
    machine = vocoder.machine
    # The proof at load held, with float16.
    assert machine is not None and machine._hift._rounding == "half"
    stream = vocoder.open(voice_of(vocoder, {generation: folder}, generation))
    stream.push(TOKENS[:50])
    plan, stores, layout = machine._plan[:1], machine._stores, machine.rules.layout
    samples = int(plan[0, layout.window.said])

    def said(rounding: str) -> Tensor:
        monkeypatch.setattr(batched_hift, "rounding_of", lambda _: rounding)
        noise, capacity = machine._parts.hift_noise, machine.rules.capacity
        hift = batched_hift.BatchedHift(machine._parts.hift, noise, capacity, layout)
        return hift(mel, plan, stores.window)[:, :samples]

    with torch.inference_mode():
        mel = machine._estimator(machine._encoder(plan, stores.encoder), plan, stores.estimator)
        exact, of_tf32, of_half = (said(one) for one in ("none", *ROUNDED))
    assert samples > 0 and exact.isfinite().all()
    assert 1e-5 < _error(of_half, exact) <= MORE_THAN_TF32 * _error(of_tf32, exact)
