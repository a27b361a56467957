"""token2wav's flow beside the golden files: what is remembered, and where noise starts."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.errors import VocoderError
from agent.torch_parts.checkpoint import stored_shapes, unfilled
from agent.vocoder.config import DitConfig, EncoderConfig, FlowConfig
from agent.vocoder.conformer import EncoderState
from agent.vocoder.flow import (
    EstimatorMemory,
    Flow,
    FlowSettings,
    FlowState,
    Noise,
    kept_positions,
    stretches,
    stretches_of_legacy,
    trimmed_encoder,
)
from agent.vocoder.segments import in_one_piece
from tests.rig.tiny_flow import golden, golden_noise, golden_prompt, tiny_flow


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _voice(tokens: int = 30) -> FlowState:
    return tiny_flow().setup(*golden_prompt(tokens), golden_noise())


def _close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * float(theirs.abs().max())


# ---- what the estimator remembers ---------------------------------------------------------------


def _held_after(prompt: int, chunks: Sequence[int], policy: str) -> list[int]:
    held, position = list(range(prompt)), prompt
    for count in chunks:
        held = [*range(position, position + count), *held]
        position += count
        held = [held[at] for at in kept_positions(held, prompt, policy)]  # type: ignore[arg-type]
    return held


def _frames(*stretches_: tuple[int, int]) -> list[int]:
    """Both ends included."""
    return [frame for first, last in stretches_ for frame in range(first, last + 1)]


def test_the_reference_forgets_the_start_of_a_long_prompt() -> None:
    generated = _frames((310, 359), (260, 309), (210, 259), (160, 169))
    assert _held_after(160, [50] * 4, "reference") == generated + _frames((60, 159))


def test_the_reference_freezes_a_short_prompt_with_what_came_first() -> None:
    expected = _frames((260, 309), (210, 219), (70, 109), (0, 59))
    # Of generated frames counted from the end of the prompt: 200..249, 150..159, 10..49.
    assert _held_after(60, [50] * 5, "reference") == expected


@pytest.mark.parametrize("prompt", [60, 160, 200])
@pytest.mark.parametrize("chunks", [[50] * 6, [10, 50, 30, 50, 50, 12]])
def test_prompt_plus_recent_keeps_just_that(prompt: int, chunks: list[int]) -> None:
    end = prompt + sum(chunks)
    kept = _held_after(prompt, chunks, "prompt_plus_recent")
    assert sorted(kept) == [*range(prompt), *range(end - 100, end)]


def test_nothing_is_dropped_before_there_is_too_much() -> None:
    assert _held_after(160, [50, 50], "reference") == _frames((210, 259), (160, 209), (0, 159))


def test_stretches_are_unbroken() -> None:
    assert stretches([0, 1, 2, 7, 8, 11]) == [slice(0, 3), slice(7, 9), slice(11, 12)]
    assert stretches([]) == []


def _remembered(state: FlowState) -> Tensor:
    """Keys and values of the second step, in the order of `held`."""
    return torch.cat([*state.steps[1].turn, *state.steps[1].prompt], 2)


def test_the_states_keys_are_those_of_the_frames_that_it_says() -> None:
    flow, noise, state = tiny_flow(), golden_noise(), _voice()
    for start in (0, 25, 50):
        before = state
        _, state = flow.chunk(state, golden("tokens")[start : start + 28], noise, final=False)
        seen, past = _remembered(state), _remembered(before)
        assert seen.shape[2] == len(state.held)
        for at, frame in enumerate(state.held):
            if frame in before.held:
                assert torch.equal(seen[:, :, at], past[:, :, before.held.index(frame)])


def test_the_order_of_what_is_remembered_changes_nothing() -> None:
    flow, state = tiny_flow(), _voice()
    backwards = tuple(
        replace(step, prompt=tuple(one.flip(2) for one in step.prompt)) for step in state.steps
    )
    mel, _ = flow.chunk(state, golden("tokens")[:28], golden_noise(), final=False)
    turned = replace(state, steps=backwards)
    again, _ = flow.chunk(turned, golden("tokens")[:28], golden_noise(), final=False)
    _close(again, mel)


def test_a_voice_lies_in_one_piece_which_is_not_copied() -> None:
    voice = _voice()
    prompts = [step.prompt[0] for step in voice.steps]
    assert all(len(step.prompt) == 1 and not step.turn for step in voice.steps)
    together = in_one_piece(prompts)
    assert together.data_ptr() == prompts[0].data_ptr()
    assert torch.equal(together, torch.stack(prompts))
    # In memory of their own, in another order, or with something between them they are brought so.
    for apart in ([one.clone() for one in prompts], prompts[::-1], prompts[::2]):
        copied = in_one_piece(apart)
        assert copied.data_ptr() not in {one.data_ptr() for one in apart}
        assert torch.equal(copied, torch.stack(apart))


@pytest.mark.parametrize("memory", ["reference", "prompt_plus_recent"])
def test_a_stream_weighs_what_is_its_own_alone(memory: EstimatorMemory) -> None:
    flow = tiny_flow(FlowSettings(steps=3, estimator_memory=memory))
    voice = flow.setup(*golden_prompt(75), golden_noise())
    state = voice
    for start in range(0, 125, 25):
        tokens = golden("tokens")[start : start + 28]
        _, state = flow.chunk(state, tokens, golden_noise(), final=False)
    shared = {one.untyped_storage().data_ptr() for step in voice.steps for one in step.prompt}
    for step in state.steps:
        assert step.prompt
        assert {one.untyped_storage().data_ptr() for one in step.prompt} <= shared
        assert all(
            one.untyped_storage().nbytes() == one.numel() * one.element_size() for one in step.turn
        )
    turn_frames = {"reference": 150, "prompt_plus_recent": 100}[memory]
    assert sum(one.shape[2] for one in state.steps[0].turn) == turn_frames
    assert state.bytes_owned < state.bytes_held


# ---- what the encoder remembers -----------------------------------------------------------------


def _encoder_of(tokens: int) -> EncoderState:
    places = torch.arange(tokens, dtype=torch.float32)[None, None, :, None]
    doubled = torch.arange(2 * tokens, dtype=torch.float32)[None, None, :, None]
    nothing = torch.zeros(1, 1, 0)
    return EncoderState(nothing, nothing, ((places, places),), ((doubled, doubled),))


def _places(state: EncoderState) -> tuple[list[int], list[int]]:
    token_places, mel_places = state.token_layers[0][0], state.mel_layers[0][1]
    return token_places.int().flatten().tolist(), mel_places.int().flatten().tolist()


def test_the_encoder_keeps_the_prompt_and_two_seconds() -> None:
    tokens, frames = _places(trimmed_encoder(_encoder_of(130), 40, "recent"))
    assert tokens == [*range(40), *range(80, 130)]
    assert frames == [*range(80), *range(160, 260)]
    assert _places(trimmed_encoder(_encoder_of(90), 40, "recent"))[0] == [*range(90)]


def test_the_old_encoder_memory_is_frozen_after_two_seconds() -> None:
    tokens, frames = _places(trimmed_encoder(_encoder_of(155), 80, "legacy106"))
    assert tokens == [*range(130)]
    assert frames == [*range(160), *range(210, 310)]
    assert stretches_of_legacy(155, 80) == [slice(0, 130)]


def test_all_is_kept_where_that_is_wanted() -> None:
    assert _places(trimmed_encoder(_encoder_of(300), 40, "all"))[0] == [*range(300)]


# ---- noise --------------------------------------------------------------------------------------


class _Watched(Noise):
    """Remembers where it was asked for noise."""

    asked: list[tuple[int, int]]

    def at(self, frame: int, count: int) -> Tensor:
        self.asked.append((frame, count))
        return super().at(frame, count)


def _asked(settings: FlowSettings) -> list[tuple[int, int]]:
    class Watched(_Watched):
        asked: list[tuple[int, int]] = []  # noqa: RUF012  # one per call of this function

    flow, noise = tiny_flow(settings), Watched(golden("noise.first_600_frames"))
    state = flow.setup(*golden_prompt(30), noise)
    for start in range(0, 125, 25):
        _, state = flow.chunk(state, golden("tokens")[start : start + 28], noise, final=False)
    return noise.asked


def test_noise_starts_at_what_is_held_and_stays_there() -> None:
    assert [frame for frame, _ in _asked(FlowSettings(steps=3))] == [0, 60, 110, 160, 160, 160]


def test_noise_starts_at_the_place_in_the_turn_where_that_is_wanted() -> None:
    asked = _asked(FlowSettings(steps=3, noise_place="absolute"))
    assert asked == [(0, 60), (60, 50), (110, 50), (160, 50), (210, 50), (260, 50)]


def test_noise_follows_from_the_seed_alone_and_starts_again_at_its_end() -> None:
    noise = Noise.seeded(3, 4)
    assert torch.equal(noise.values, Noise.seeded(3, 4).values)
    assert not torch.equal(noise.values, Noise.seeded(4, 4).values)
    length = noise.values.shape[1]
    around = noise.at(length - 2, 5)
    assert torch.equal(around, torch.cat([noise.at(length - 2, 2), noise.at(0, 3)], 1))
    assert torch.equal(noise.at(length + 7, 3), noise.at(7, 3))


# ---- sizes and precision ------------------------------------------------------------------------


def _official_flow() -> Flow:
    """At full size, without memory: shapes alone."""
    encoder = EncoderConfig(512, 8, 64, 2048, 6, 4)
    dit = DitConfig(80, 512, 2048, 16, 8, 64)
    with unfilled():
        return Flow(FlowConfig(6561, 192, 80, 0.7, encoder, dit), FlowSettings())


def _bytes(config: FlowConfig, steps: int, prompt_tokens: int, item_bytes: int) -> int:
    """What a stream in full course weighs by its sizes."""
    dit, encoder, mel_bins = config.dit, config.encoder, config.mel_bins
    frames, tokens = 2 * prompt_tokens + 100, prompt_tokens + 50
    keys = 2 * 2 * dit.heads * dit.head_width * frames
    tails = 2 * 2 * 2 * dit.width
    estimator = steps * dit.layers * (keys + tails)
    layers = encoder.token_layers * tokens + encoder.mel_layers * frames
    rest = 2 * encoder.heads * encoder.head_width * layers + 6 * encoder.width + mel_bins
    return item_bytes * (estimator + rest)


def test_a_stream_holds_less_than_240_mb_and_no_more_as_it_goes_on() -> None:
    flow, state, held = tiny_flow(), _voice(), []
    for start in range(0, 125, 25):
        tokens = golden("tokens")[start : start + 28]
        _, state = flow.chunk(state, tokens, golden_noise(), final=False)
        held.append(state.bytes_held)
    assert held[1:] == [_bytes(flow.config, 3, 30, 4)] * 4
    full = _official_flow()
    assert _bytes(full.config, full.settings.steps, 100, 2) < 240e6


def test_the_official_sizes_have_the_official_keys() -> None:
    flow = _official_flow()
    shapes = stored_shapes({Flow.PREFIX: flow})
    assert len(shapes) == 605
    assert not any("to_qkv" in key for key in shapes)
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 3) == 155.802
    assert shapes["decoder.estimator.blocks.15.adaLN_modulation.1.weight"] == (4608, 512)
    assert shapes["decoder.estimator.blocks.0.attn.to_k.bias"] == (512,)


def test_a_lesser_precision_is_near_and_holds_half() -> None:
    exact = _voice()
    flow = tiny_flow()
    mel, _ = flow.chunk(exact, golden("tokens")[:28], golden_noise(), final=False)
    narrow = copy.deepcopy(flow).narrow(torch.bfloat16)
    state = narrow.setup(*golden_prompt(30), golden_noise())
    assert state.bytes_held * 2 == exact.bytes_held
    near, _ = narrow.chunk(state, golden("tokens")[:28], golden_noise(), final=False)
    assert near.dtype == torch.float32
    assert 0 < (near - mel).abs().mean() < 0.05
    # A state of another precision goes on there.
    wide, _ = flow.chunk(
        state.to(torch.float32), golden("tokens")[:28], golden_noise(), final=False
    )
    assert (wide - mel).abs().mean() < 0.05


def test_the_estimator_s_norms_of_heads_and_convolutions_add_a_hundred_thousandth() -> None:
    block = tiny_flow().estimator.blocks[0]
    for norm in (block.attn.q_norm, block.attn.k_norm, block.conv.block["3"]):
        signal = torch.tensor([1.0, -1.0] * (len(norm.weight) // 2)) * 1e-5**0.5
        normed = (norm(signal[None]) - norm.bias) / norm.weight
        assert float(normed.square().mean()) == pytest.approx(0.5, rel=0.01)


def test_an_encoder_that_forgets_nothing_comes_to_an_end() -> None:
    flow = tiny_flow(FlowSettings(steps=3, encoder_memory="all"))
    state = flow.setup(*golden_prompt(30), golden_noise())
    many = state.encoder.keep([slice(0, 30)] * 160, [slice(0, 60)] * 166)
    with pytest.raises(VocoderError, match="longer than"):
        flow.chunk(replace(state, encoder=many), golden("tokens")[:28], golden_noise(), final=False)
