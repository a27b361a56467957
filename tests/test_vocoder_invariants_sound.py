"""What holds of every vocoder whatever its weights: invariants 8 to 12, by their numbers.

The others, of tokens and mel, are in `test_vocoder_invariants`.
"""

import copy
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import (
    Target,
    TensorHeader,
    load_parts,
    stored_shapes,
    unfilled,
)
from agent.torch_parts.spectrum import Spectrum
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.config import DitConfig, EncoderConfig, FlowConfig, flow_config
from agent.vocoder.cosyvoice2_flow import Cosyvoice2Config, Cosyvoice2Weights
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.flow import Flow, FlowSettings
from agent.vocoder.hift import Hift
from agent.vocoder.hift_body import source_spectrum
from agent.vocoder.hift_config import HiftConfig, read_hift_config
from agent.vocoder.hift_layers import Conv, NormedUp
from agent.vocoder.hift_stream import (
    CausalHiftStream,
    HiftStream,
    HiftStreamSettings,
    ReferenceHiftStream,
    VocoderTail,
)
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.source import gaussian_noise, uniform_noise
from agent.vocoder.speech_tokenizer import SpeechTokenizer, TokenizerConfig
from agent.vocoder.unet import Beginning, UnetConfig
from tests.rig import tiny_cosyvoice2, tiny_flow, tiny_hift
from tests.rig.speaking_hift import make_speaking
from tests.rig.tiny_model import FLOAT32
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav

CPU = torch.device("cpu")
KINDS = ("classic", "causal", "cosyvoice2")
TOKENS = [(37 * number) % 6561 for number in range(110)]
STATE_DICT = Path(__file__).resolve().parents[2] / "shared" / "spec" / "vocoder_state_dict.txt"


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def _mel(frames: int, seed: int = 2) -> Tensor:
    """As smooth in time and over the bands as speech's: [1, 80, T]."""
    drawn = torch.randn(1, 1, 20, frames // 4 + 2, generator=torch.Generator().manual_seed(seed))
    sheet = nn.functional.interpolate(drawn, (80, 4 * (frames // 4 + 2)), mode="bicubic")
    return sheet[0, :, :, :frames] * 2 - 4


def _speaking(hift: Hift | CausalHift) -> Any:
    changed = copy.deepcopy(hift)
    make_speaking(changed, _mel(200))
    return changed


# ---- HiFT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 7, 30])
def test_invariant_08_a_frame_is_480_samples(frames: int) -> None:
    mel, source = _mel(frames), torch.zeros(1, 480 * frames)
    assert tiny_hift.classic_hift().decode(mel, source).shape == (1, 480 * frames)
    causal = tiny_hift.causal_hift()
    assert causal.decode(mel, source).shape == (1, 480 * frames)
    if frames > 5:
        assert causal.decode(mel, source, final=False).shape == (1, 480 * (frames - 5))


def test_invariant_08_the_transforms_are_torch_s() -> None:
    sound = torch.randn(2, 9600, generator=torch.Generator().manual_seed(1))
    window = torch.hann_window(16)
    theirs = torch.stft(sound, 16, 4, 16, window, pad_mode="reflect", return_complex=True)
    ours = source_spectrum(sound)
    torch.testing.assert_close(ours, torch.cat([theirs.real, theirs.imag], 1), atol=2e-5, rtol=0)
    back = torch.istft(theirs, 16, 4, 16, window)
    torch.testing.assert_close(Spectrum(16, 4).synthesise(ours), back, atol=2e-6, rtol=0)


@pytest.mark.parametrize("generation", ["classic", "causal"])
def test_invariant_08_folded_weights_are_the_parametrised_module_s(generation: str) -> None:
    classic = generation == "classic"
    hift = tiny_hift.classic_hift() if classic else tiny_hift.causal_hift()
    recipe = tiny_hift.classic_recipe() if classic else tiny_hift.causal_recipe()
    stored = dict(recipe.read(recipe.headers, CPU))
    normed = [(n, m) for n, m in hift.named_modules() if isinstance(m, Conv | NormedUp)]
    assert len(normed) == sum(key.endswith("original0") for key in stored)
    for name, module in normed:
        parts = [stored[f"{name}.parametrizations.weight.original{n}"] for n in (0, 1)]
        twin: nn.Module = nn.Conv1d(1, 1, 1)
        twin.weight = nn.Parameter(parts[1].to(module.weight.dtype))
        nn.utils.parametrizations.weight_norm(twin)
        twin.parametrizations.weight.original0.copy_(parts[0])
        torch.testing.assert_close(module.weight, twin.weight, atol=1e-6, rtol=1e-6)


def _said(tail: VocoderTail, mel: Tensor, bounds: Sequence[int]) -> list[Tensor]:
    """What comes of the mel cut at these frames, the first 0 and the last its end."""
    return [
        tail.push(mel[..., start:end], last=end == bounds[-1])
        for start, end in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_invariant_09_the_causal_hift_in_any_pieces_is_the_whole(seed: int) -> None:
    hift, noise, mel = _speaking(tiny_hift.causal_hift()), uniform_noise(5, CPU), _mel(110)
    cuts = random.Random(seed).sample(range(1, 110), 6)
    pieces = _said(CausalHiftStream(hift, noise), mel, [0, *sorted(cuts), 110])
    whole = hift.whole(mel, noise)
    assert float((torch.cat(pieces) - whole).abs().max()) < 1e-4
    assert float(whole.abs().max()) > 0.01


def _worst_seam_db(pieces: Sequence[Tensor], whole: Tensor) -> float:
    """The largest error within 20 ms of a seam, over the sound there."""
    sound, worst = torch.cat(list(pieces)), -200.0
    for seam in itertools.accumulate(len(piece) for piece in pieces[:-1]):
        around = slice(seam - 480, seam + 480)
        error = (sound[around] - whole[around]).square().mean() / whole[around].square().mean()
        worst = max(worst, float(10 * error.log10()))
    return worst


@pytest.mark.parametrize("seed", range(2))
def test_invariant_09_the_classic_hift_with_past_and_phase_has_no_seam(seed: int) -> None:
    hift, noise, mel = _speaking(tiny_hift.classic_hift()), gaussian_noise(5, CPU), _mel(230, seed)
    whole, bounds = hift.whole(mel, noise), [0, 40, 90, 110, 160, 230]
    settings = HiftStreamSettings(context_frames=24)
    carried = _worst_seam_db(_said(HiftStream(hift, noise, settings), mel, bounds), whole)
    anew = _worst_seam_db(_said(ReferenceHiftStream(hift, noise), mel, bounds), whole)
    assert carried < -40 < -20 < anew


# ---- whole vocoders -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Loaded from folders on the disk, both generations and CosyVoice2."""
    root, made = tmp_path_factory.mktemp("vocoders"), dict[str, Any]()
    for kind in ("classic", "causal"):
        folder = write_token2wav(root / kind, kind)  # type: ignore[arg-type]
        made[kind] = load_token2wav(folder, Token2wavSettings(steps=1), FLOAT32)
    folder = write_cosyvoice2(root / "cosyvoice2")
    made["cosyvoice2"] = load_cosyvoice2(folder, Cosyvoice2Settings(steps=1), FLOAT32)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_10_a_state_kept_in_mid_turn_goes_on_the_same(
    vocoders: dict[str, Any], kind: str
) -> None:
    vocoder = vocoders[kind]
    stream = vocoder.open(vocoder.voice(tiny_cosyvoice2.golden_prompt(44), "anna"))
    stream.push(TOKENS[:40])
    kept = stream.clone()
    first = np.concatenate([stream.push(TOKENS[40:70]), stream.finish()])
    again = np.concatenate([kept.push(TOKENS[40:70]), kept.finish()])
    assert len(first) > 960 * 30
    assert np.array_equal(again, first)


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_10_two_turns_at_once_do_not_touch_each_other(
    vocoders: dict[str, Any], kind: str
) -> None:
    vocoder = vocoders[kind]
    prompts = [tiny_cosyvoice2.golden_prompt(tokens) for tokens in (44, 50)]
    voices = [vocoder.voice(prompt, str(at)) for at, prompt in enumerate(prompts)]
    texts = [TOKENS[:56], TOKENS[54:110]]
    alone = []
    for voice, text in zip(voices, texts, strict=True):
        stream = vocoder.open(voice)
        pieces = [stream.push(text[at : at + 7]) for at in range(0, 56, 7)]
        alone.append(np.concatenate([*pieces, stream.finish()]))
    streams = [vocoder.open(voice) for voice in voices]
    mixed: list[list[Any]] = [[], []]
    for at in range(0, 56, 7):
        for stream, text, pieces in zip(streams, texts, mixed, strict=True):
            pieces.append(stream.push(text[at : at + 7]))
    for stream, pieces, expected in zip(streams, mixed, alone, strict=True):
        assert np.array_equal(np.concatenate([*pieces, stream.finish()]), expected)
    assert not np.allclose(*alone, atol=1e-3)


def _on_gpu(network: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """One of the networks with inputs for it."""
    frames = _mel(40).cuda()
    if network == "dit":
        flow = _flow_on_gpu()
        table, dit = flow._table, flow.estimator
        assert table is not None
        modulation, start = (table.layers[1], table.last[1]), dit.start()
        conditions = dit.condition(frames.mT, frames[..., 0], frames.mT)
        return (
            lambda noisy, told: dit(noisy, told, modulation, start, [slice(0, 0)])[0],
            [frames.mT.contiguous(), conditions],
        )
    if network == "unet":
        weights = copy.deepcopy(tiny_cosyvoice2.tiny_weights()).cuda()
        unet: Any = weights.decoder["estimator"]
        shifts = unet.shifts(torch.tensor([0.3], device="cuda"))[0]
        return lambda rows: unet(rows, shifts, Beginning(None)), [frames.mT.repeat(2, 1, 4)]
    return _hift_on_gpu(network).decode, [frames, torch.zeros(1, 40 * 480).cuda()]


def _flow_on_gpu() -> Flow:
    source = tiny_flow.RecipeFlow()
    with unfilled():
        flow = Flow(flow_config(source.headers), FlowSettings(steps=3))
    load_parts(source, {Flow.PREFIX: flow}, unused={}, target=_gpu())
    return flow


def _hift_on_gpu(generation: str) -> Hift | CausalHift:
    classic = generation == "classic"
    source = tiny_hift.classic_recipe() if classic else tiny_hift.causal_recipe()
    config = read_hift_config(source.shapes)
    with unfilled():
        hift = Hift(config) if classic else CausalHift(config)
    load_parts(source, {"": hift}, unused={}, target=_gpu())
    return hift


def _gpu() -> Target:
    return Target(torch.device("cuda"), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("network", ["classic", "causal", "dit", "unet"])
def test_invariant_11_a_replayed_graph_says_what_eager_says(network: str) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    run, inputs = _on_gpu(network)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run(*inputs)
    for seed in (5, 6):
        generator = torch.Generator().manual_seed(seed)
        for one in inputs:
            one.copy_(0.1 * torch.randn(one.shape, generator=generator))
        graph.replay()
        torch.testing.assert_close(replayed, run(*inputs), atol=1e-5, rtol=1e-5)
        assert float(replayed.abs().max()) > 1e-3


# ---- checkpoints --------------------------------------------------------------------------------


def _listed(letter: str) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of one part of the list, its ranges and choices written out."""
    if not STATE_DICT.is_file():
        pytest.skip(f"needs the list of the checkpoints' tensors, {STATE_DICT.name}")
    part = STATE_DICT.read_text(encoding="utf-8").split(f"\n## {letter}. ")[1].split("\n====")[0]
    lines = re.findall(r"^(\S+)  \[([\d, ]*)\]  float", part, re.MULTILINE)
    return {
        key: tuple(int(size) for size in sizes.split(","))
        for pattern, sizes in lines
        for key in _written_out(pattern)
    }


def _written_out(pattern: str) -> Iterator[str]:
    found = re.search(r"\[([^\]]+)\]", pattern)
    if found is None:
        yield pattern
        return
    numbers: list[int] = []
    for part in found[1].strip("{}").split(","):
        first, _, last = part.partition("..")
        numbers += range(int(first), int(last or first) + 1)
    for number in numbers:
        yield from _written_out(f"{pattern[: found.start()]}{number}{pattern[found.end() :]}")


def _full_size(letter: str) -> nn.Module:
    """Without memory: shapes alone."""
    encoder = EncoderConfig(512, 8, 64, 2048, 6, 4)
    with unfilled():
        if letter == "A":
            dit = DitConfig(80, 512, 2048, 16, 8, 64)
            return Flow(FlowConfig(6561, 192, 80, 0.7, encoder, dit), FlowSettings())
        if letter == "E":
            return Cosyvoice2Weights(Cosyvoice2Config(6561, 192, encoder, UnetConfig()))
        if letter == "D":
            return SpeechTokenizer(TokenizerConfig())
        return CausalHift(HiftConfig(causal=True)) if letter == "C" else Hift(HiftConfig(False))


@pytest.mark.parametrize(
    ("letter", "tensors"), [("A", 605), ("B", 328), ("C", 328), ("D", 102), ("E", 1121)]
)
def test_invariant_12_every_tensor_of_a_checkpoint_has_its_place(letter: str, tensors: int) -> None:
    listed = _listed(letter)
    assert len(listed) == tensors
    module = _full_size(letter)
    assert stored_shapes({"": module}) == listed
    if letter in "BC":
        assert read_hift_config(listed) == module.config
    # Strict: one key too many, or one too few, and nothing is read.
    headers = {key: TensorHeader(shape, "F32", Path("x")) for key, shape in listed.items()}
    lacking = dict(headers)
    del lacking[next(iter(listed))]
    for wrong in (lacking, headers | {"one.more": TensorHeader((1,), "F32", Path("x"))}):
        with pytest.raises(CheckpointError, match="one.more|" + re.escape(next(iter(listed)))):
            load_parts(_Unread(wrong), {"": module}, unused={}, target=FLOAT32)


class _Unread:
    """A source of which nothing may be read."""

    def __init__(self, headers: dict[str, TensorHeader]) -> None:
        self.headers = headers

    def read(self, keys: Any, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        raise AssertionError("read before its keys were compared")
