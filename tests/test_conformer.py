"""The vocoders' encoder: in steps as in one go, and its attention pair by pair."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from agent.vocoder.config import EncoderConfig
from agent.vocoder.conformer import Encoder, EncoderState, RelativeAttention

CONFIG = EncoderConfig(width=24, heads=3, head_width=8, ffn_width=32, token_layers=2, mel_layers=1)
AHEAD = CONFIG.lookahead_tokens


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, float(theirs.abs().max()))


def _random(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with torch.inference_mode():
        made = Encoder(CONFIG)
        _random(made)
    return made


def _tokens(count: int) -> Tensor:
    return torch.randn(1, count, CONFIG.width, generator=torch.Generator().manual_seed(count))


def _in_steps(encoder: Encoder, tokens: Tensor, steps: list[int], block: int | None) -> Tensor:
    state, at, made = encoder.start(), 0, []
    for count in steps:
        final = at + count == tokens.shape[1]
        window = tokens[:, at : at + count + (0 if final else AHEAD)]
        out, state = encoder.step(window, state, final=final, block_tokens=block)
        made.append(out)
        at += count
    assert state.tokens == tokens.shape[1]
    assert state.frames == 2 * tokens.shape[1]
    return torch.cat(made, 1)


@pytest.mark.parametrize("steps", [[5, 5, 5, 5, 3], [10, 5, 8], [15, 8], [23]])
def test_steps_on_the_grid_give_what_one_pass_with_blocks_gives(
    encoder: Encoder, steps: list[int]
) -> None:
    tokens = _tokens(23)
    whole = encoder.whole(tokens, block_tokens=5)
    _close(_in_steps(encoder, tokens, steps, 5), whole)


def test_without_a_grid_each_call_is_a_block(encoder: Encoder) -> None:
    tokens = _tokens(20)
    called = _in_steps(encoder, tokens, [5, 5, 5, 5], None)
    _close(called, encoder.whole(tokens, block_tokens=5))
    assert (called - encoder.whole(tokens)).abs().max() > 0.01


def test_what_is_not_final_is_looked_at_and_not_said(encoder: Encoder) -> None:
    tokens = _tokens(12)
    assert encoder.whole(tokens, final=False).shape == (1, 18, CONFIG.width)
    assert encoder.whole(tokens).shape == (1, 24, CONFIG.width)
    changed = tokens.clone()
    changed[:, -1] += 1
    assert not torch.equal(encoder.whole(tokens, final=False), encoder.whole(changed, final=False))


def test_a_state_is_never_changed_by_what_follows(encoder: Encoder) -> None:
    tokens = _tokens(16)
    _, state = encoder.step(tokens[:, :8], encoder.start(), final=False)
    first, _ = encoder.step(tokens[:, 5:], state, final=True)
    encoder.step(_tokens(9), state, final=True)
    again, _ = encoder.step(tokens[:, 5:], state, final=True)
    assert torch.equal(first, again)


def test_dropping_the_middle_leaves_both_ends(encoder: Encoder) -> None:
    _, state = encoder.step(_tokens(13), encoder.start(), final=True)
    kept: EncoderState = state.keep([slice(0, 4), slice(10, 13)], [slice(0, 8), slice(20, 26)])
    assert (kept.tokens, kept.frames) == (7, 14)
    key, value = state.token_layers[0]
    assert torch.equal(kept.token_layers[0][0], torch.cat([key[:, :, :4], key[:, :, 10:]], 2))
    assert torch.equal(kept.token_layers[0][1][:, :, 4:], value[:, :, 10:])


# ---- attention ----------------------------------------------------------------------------------


def _encoding(distance: int) -> Tensor:
    frequencies = [10000 ** (-2 * m / CONFIG.width) for m in range(CONFIG.width // 2)]
    pairs = [(math.sin(distance * w), math.cos(distance * w)) for w in frequencies]
    return torch.tensor([value for pair in pairs for value in pair])


def _by_pairs(attention: RelativeAttention, states: Tensor, past: Tensor) -> Tensor:
    """The formula for every pair of frames by itself."""
    heads, width = CONFIG.heads, CONFIG.head_width
    seen = torch.cat([past, states])
    query = attention.linear_q(states).view(-1, heads, width)
    key, value = (
        layer(seen).view(-1, heads, width) for layer in (attention.linear_k, attention.linear_v)
    )
    mixed = torch.zeros(len(states), heads, width)
    for row in range(len(states)):
        for head in range(heads):
            scores = []
            for at in range(len(seen)):
                place = attention.linear_pos(_encoding(len(past) + row - at)).view(heads, width)[
                    head
                ]
                score = (query[row, head] + attention.pos_bias_u[head]) @ key[at, head]
                score = score + (query[row, head] + attention.pos_bias_v[head]) @ place
                scores.append(score / math.sqrt(width))
            mixed[row, head] = torch.stack(scores).softmax(0) @ value[:, head]
    return attention.linear_out(mixed.flatten(1))


@pytest.mark.parametrize(("count", "past"), [(1, 0), (5, 0), (4, 7), (1, 6)])
def test_attention_is_the_formula_of_every_pair(count: int, past: int) -> None:
    attention = RelativeAttention(CONFIG)
    _random(attention)
    frames = _tokens(count + past)
    memory = tuple(
        layer(frames[:, :past]).view(1, past, CONFIG.heads, CONFIG.head_width).transpose(1, 2)
        for layer in (attention.linear_k, attention.linear_v)
    )
    out, _ = attention(frames[:, past:], memory, None)
    expected = _by_pairs(attention, frames[0, past:], frames[0, :past])
    _close(out[0], expected)


def test_a_reach_beyond_the_table_makes_a_longer_one() -> None:
    attention = RelativeAttention(CONFIG)
    _random(attention)
    frames = _tokens(300)
    nothing = torch.zeros(1, CONFIG.heads, 0, CONFIG.head_width)
    short, _ = attention(frames[:, :20], (nothing, nothing), None)
    attention(frames, (nothing, nothing), None)
    again, _ = attention(frames[:, :20], (nothing, nothing), None)
    _close(again, short)


def _epsilon(norm: torch.nn.Module, variance: float) -> float:
    """What a norm adds to the variance, told by what it does to a signal of that variance."""
    signal = torch.tensor([1.0, -1.0] * (CONFIG.width // 2)) * variance**0.5
    normed = (norm(signal[None]) - norm.bias) / norm.weight
    return variance / float(normed.square().mean()) - variance


def test_the_norms_of_layers_hear_what_is_very_faint() -> None:
    encoder = Encoder(CONFIG)
    for layer in (*encoder.encoders, *encoder.up_encoders):
        for norm in (layer.norm_mha, layer.norm_ff):
            assert _epsilon(norm, 1e-12) == pytest.approx(1e-12, rel=0.01)
    for norm in (encoder.embed.out[1], encoder.up_embed.out[1], encoder.after_norm):
        assert _epsilon(norm, 1e-5) == pytest.approx(1e-5, rel=0.01)
