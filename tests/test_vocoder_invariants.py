"""What holds of every vocoder whatever its weights: invariants 1 to 7, by their numbers.

The others, of sound and of whole vocoders, are in `test_vocoder_invariants_sound`.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.types import FloatArray
from agent.vocoder.config import FRAMES_PER_TOKEN, EncoderConfig
from agent.vocoder.conformer import Encoder, RelativeAttention
from agent.vocoder.cosyvoice2 import ChunkSettings
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.dit import DitMemory
from agent.vocoder.flow import Noise, kept_positions, stretches_of_legacy
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.token2wav import StreamSettings
from agent.vocoder.voice import SpeakerPrompt
from tests.rig import tiny_cosyvoice2, tiny_flow
from tests.rig.tiny_model import FLOAT32
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav

KINDS = ("classic", "causal", "cosyvoice2")
TOKENS = [(37 * number) % 6561 for number in range(110)]
SPLITS = {"once": [60], "singly": [1] * 60, "odd": [7, 0, 31, 22]}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


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


def _prompt(tokens: int = 44) -> SpeakerPrompt:
    return tiny_cosyvoice2.golden_prompt(tokens)


def _said(stream: Any, tokens: Sequence[int], sizes: Sequence[int]) -> FloatArray:
    bounds = itertools.accumulate([*sizes, len(tokens)], initial=0)
    pieces = [stream.push(tokens[start:end]) for start, end in itertools.pairwise(bounds)]
    return np.concatenate([*pieces, stream.finish()])


def _close(ours: Tensor, theirs: Tensor, limit: float) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= limit * max(1.0, float(theirs.abs().max()))


def _drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- the flow's two networks --------------------------------------------------------------------


def _encoders() -> list[Encoder]:
    cosyvoice2 = tiny_cosyvoice2.tiny_weights().encoder
    return [tiny_flow.tiny_flow().encoder, cosyvoice2]


def test_invariant_01_the_encoder_in_chunks_is_one_pass_with_a_block_causal_mask() -> None:
    for encoder in _encoders():
        tokens = _drawn(1, 23, encoder.config.width) * 0.2
        whole = encoder.whole(tokens, block_tokens=5)
        for block, ends in ((5, (5, 10, 20, 23)), (None, (5, 10, 15, 20, 23))):
            state, said, start = encoder.start(), [], 0
            for end in ends:
                final = end == 23
                window = tokens[:, start : end if final else end + encoder.config.lookahead_tokens]
                out, state = encoder.step(window, state, final=final, block_tokens=block)
                said.append(out)
                start = end
            _close(torch.cat(said, 1), whole, 2e-6)


class _BlockCausal:
    """Attention as it is, but with a mask over all frames: for a pass over several chunks."""

    def __init__(self, ends: Sequence[int]) -> None:
        blocks = torch.repeat_interleave(torch.arange(len(ends)), _widths(ends))
        self.allowed = blocks[None, :] <= blocks[:, None]
        self._attend = torch.nn.functional.scaled_dot_product_attention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        return self._attend(query, key, value, attn_mask=self.allowed, **given)


def _widths(ends: Sequence[int]) -> Tensor:
    return torch.tensor([end - start for start, end in itertools.pairwise([0, *ends])])


def _dit_pass(
    noisy: Tensor, conditions: Tensor, memory: DitMemory, kept: Sequence[slice]
) -> tuple[Tensor, DitMemory]:
    flow = tiny_flow.tiny_flow()
    table = flow._table
    assert table is not None
    return flow.estimator(noisy, conditions, (table.layers[1], table.last[1]), memory, kept)


def _dit_in_chunks(
    noisy: Tensor, conditions: Tensor, ends: Sequence[int], *, turned: bool = False
) -> Tensor:
    """Each chunk after those before it, of which everything is kept: as it comes, or `turned`."""
    memory, said = tiny_flow.tiny_flow().estimator.start(), []
    for start, end in itertools.pairwise([0, *ends]):
        kept = [slice(end // 2, end), slice(0, end // 2)] if turned else [slice(0, end)]
        piece = (noisy[:, start:end], conditions[:, start:end])
        velocity, memory = _dit_pass(*piece, memory, kept)
        said.append(velocity)
    return torch.cat(said, 1)


def test_invariant_02_the_dit_in_chunks_is_one_pass_with_a_block_causal_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dit = tiny_flow.tiny_flow().estimator
    noisy, ends = _drawn(1, 36, 80), (10, 16, 36)
    speaker, nothing = _drawn(1, 80, seed=5), torch.zeros(1, 36, 80)
    conditions = dit.condition(_drawn(1, 36, 80, seed=4), speaker, nothing)
    alone = _dit_in_chunks(noisy, conditions, [36])
    chunks = _dit_in_chunks(noisy, conditions, ends)
    _close(_dit_in_chunks(noisy, conditions, ends, turned=True), chunks, 2e-6)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _BlockCausal(ends))
    masked = _dit_in_chunks(noisy, conditions, [36])
    _close(chunks, masked, 2e-6)
    # Without a mask, frames of the first chunks see what comes later.
    assert float((alone - masked).abs().max()) > 1e-3


def test_invariant_02_a_single_chunk_of_the_flow_is_the_whole_utterance() -> None:
    """A prompt and its turn as one chunk see what the whole utterance sees."""
    flow, noise = tiny_flow.tiny_flow(), tiny_flow.golden_noise()
    tokens, mel, embedding = tiny_flow.golden_prompt(30)
    said = tiny_flow.golden("tokens")[:20]
    whole = flow.whole(said, tokens, mel, embedding, noise)
    encoder = flow.encoder.start()
    states, _ = flow.encoder.step(flow._embed(torch.cat([tokens, said])), encoder, final=True)
    known = torch.nn.functional.pad(mel, (0, 0, 0, 40))[None]
    speaker = flow._speaker(embedding)
    conditions = flow.estimator.condition(flow.encoder_proj(states), speaker, known)
    solved, _ = flow._solve(noise.at(0, 100), conditions, flow._fresh(), [slice(0, 100)])
    _close(solved[:, 60:].transpose(1, 2), whole, 1e-6)


def test_invariant_03_relative_attention_is_the_shifted_table_of_the_trained_model() -> None:
    config = EncoderConfig(24, 3, 8, 32, token_layers=1, mel_layers=1)
    attention = RelativeAttention(config)
    for number, parameter in enumerate(attention.parameters()):
        parameter.copy_(_drawn(*parameter.shape, seed=number) * 0.3)
    frames = _drawn(1, 13, 24)
    nothing = torch.zeros(1, 3, 0, 8)
    ours, _ = attention(frames, (nothing, nothing), None)
    _close(ours, _shifted(attention, frames), 1e-6)


def _shifted(attention: RelativeAttention, frames: Tensor) -> Tensor:
    """Scores of all 2T − 1 distances, moved into place by padding and reading on: no indices."""
    count = frames.shape[1]
    query, key, value = (
        layer(frames).view(1, count, 3, 8).transpose(1, 2)
        for layer in (attention.linear_q, attention.linear_k, attention.linear_v)
    )
    distances = torch.arange(count - 1, -count, -1.0)[:, None]
    angles = distances * 10_000 ** (-torch.arange(0, 24, 2) / 24)
    places = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)  # [2T - 1, W]
    place = attention.linear_pos(places).view(1, -1, 3, 8).transpose(1, 2)
    by_distance = (query + attention.pos_bias_v[:, None]) @ place.transpose(2, 3)
    padded = torch.nn.functional.pad(by_distance, (1, 0)).view(1, 3, 2 * count, count)
    moved = padded[:, :, 1:].reshape(1, 3, count, 2 * count - 1)[..., :count]
    scores = (query + attention.pos_bias_u[:, None]) @ key.transpose(2, 3) + moved
    mixed = (scores / 8**0.5).softmax(-1) @ value
    return attention.linear_out(mixed.transpose(1, 2).flatten(2))


# ---- what is remembered -------------------------------------------------------------------------


def _frames(*stretches: tuple[int, int]) -> list[int]:
    """Both ends included."""
    return [frame for first, last in stretches for frame in range(first, last + 1)]


@pytest.mark.parametrize(
    ("prompt", "chunks", "kept"),
    [
        (160, [50, 50], _frames((210, 259), (160, 209), (0, 159))),
        (160, [50] * 3, _frames((260, 309), (210, 259), (160, 209), (0, 9), (60, 159))),
        (160, [50] * 4, _frames((310, 359), (260, 309), (210, 259), (160, 169), (60, 159))),
        (60, [50] * 5, _frames((260, 309), (210, 219), (70, 109), (0, 59))),
        (200, [50] * 5, _frames((400, 449), (350, 399), (300, 349), (250, 299), (100, 199))),
        (
            160,
            [10, 50, 30, 50],
            _frames((250, 299), (220, 249), (170, 219), (160, 169), (0, 19), (60, 159)),
        ),
    ],
)
def test_invariant_04_what_the_reference_remembers(
    prompt: int, chunks: list[int], kept: list[int]
) -> None:
    held, position = list(range(prompt)), prompt
    for count in chunks:
        held = [*range(position, position + count), *held]
        position += count
        held = [held[at] for at in kept_positions(held, prompt, "reference")]
    assert held == kept


@pytest.mark.parametrize("prompt", [80, 100])
def test_invariant_04_the_old_encoder_s_memory_is_frozen(prompt: int) -> None:
    """Of a turn its first two seconds, whatever follows: what is held does not change again."""
    held = [*range(prompt + 50)]
    for chunk in range(1, 5):
        end = prompt + 50 + 25 * chunk
        held = [*held, *range(end - 25, end)]
        held = [held[at] for part in stretches_of_legacy(len(held), prompt) for at in _of(part)]
        assert held == [*range(prompt + 50)]


def _of(part: slice) -> range:
    return range(part.start, part.stop)


class _Watched(Noise):
    """Remembers where it was asked for noise."""

    asked: list[int]

    def at(self, frame: int, count: int) -> Tensor:
        self.asked.append(frame)
        return super().at(frame, count)


@pytest.mark.parametrize("prompt", [30, 50, 75])
def test_invariant_05_noise_starts_behind_what_is_held(prompt: int) -> None:
    class Watched(_Watched):
        asked: list[int] = []  # noqa: RUF012  # one per call of this function

    flow, noise = tiny_flow.tiny_flow(), Watched(tiny_flow.golden("noise.first_600_frames"))
    state = flow.setup(*tiny_flow.golden_prompt(prompt), noise)
    for start in range(0, 125, 25):
        window = tiny_flow.golden("tokens")[start : start + 28]
        _, state = flow.chunk(state, window, noise, final=False)
    frames = 2 * prompt
    assert noise.asked == [0, frames, frames + 50, *[frames + 100] * 3]


# ---- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_invariant_06_a_token_is_960_samples(
    vocoders: dict[str, Any], kind: str, sizes: list[int]
) -> None:
    vocoder = vocoders[kind]
    voice = vocoder.voice(_prompt(), "anna")
    for count in (0, 1, 28, 53):
        sound = _said(vocoder.open(voice), TOKENS[:count], sizes)
        assert len(sound) == 960 * count


@pytest.mark.parametrize("kind", ["classic", "causal"])
def test_invariant_06_with_its_lead_a_turn_is_120_ms_longer(
    vocoders: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    vocoder = vocoders[kind]
    monkeypatch.setattr(vocoder, "settings", StreamSettings(lead="heard"))
    # The reference's 3840 zeros make up for what HiFT holds; its lead of three tokens is 2880.
    sound = _said(vocoder.open(vocoder.voice(_prompt(), "anna")), TOKENS[:53], [7, 30])
    assert len(sound) == 960 * 53 + 2880


def test_invariant_07_cosyvoice2_in_hops_is_computing_it_again() -> None:
    vocoder, ears = tiny_cosyvoice2.listening(ChunkSettings(), 2)
    voice = vocoder.voice(_prompt(50), "anna")
    for count in (50, 80, 110):
        _said(vocoder.open(voice), TOKENS[:count], [])
    for ear, count in zip(ears, (50, 80, 110), strict=True):
        # Of one turn cut short the blocks that were whole are those of the longer one.
        stable = FRAMES_PER_TOKEN * (count // 25 * 25 - 25)
        assert torch.allclose(ear.mel[:, :stable], ears[-1].mel[:, :stable], atol=2e-5)
        tokens = [*voice.tokens, *TOKENS[:count]]
        again = vocoder.flow.whole(tokens, voice.mel, voice.speaker, in_blocks=True)
        assert torch.allclose(ear.mel, again.mel[:, voice.mel.shape[1] :], atol=2e-5)
