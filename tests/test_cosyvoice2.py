"""CosyVoice2 as a vocoder: in pieces as in one go, streams apart, what fails and what is kept."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.errors import CheckpointError, VocoderError
from agent.torch_parts.checkpoint import TensorHeader, load_parts, stored_shapes, unfilled
from agent.types import FloatArray
from agent.vocoder.config import EncoderConfig
from agent.vocoder.cosyvoice2 import (
    UPSTREAM,
    ChunkSettings,
    Cosyvoice2,
    Cosyvoice2Stream,
    HopSchedule,
)
from agent.vocoder.cosyvoice2_flow import (
    NOISE_FRAMES,
    Cosyvoice2Config,
    Cosyvoice2Flow,
    Cosyvoice2Weights,
    cosyvoice2_config,
    flow_noise,
)
from agent.vocoder.loading import HiftSound
from agent.vocoder.unet import UnetConfig, block_causal_bias
from agent.vocoder.unet_memory import StepHistory, StepMemory, UnetMemory
from tests.rig.failing_tail import FailingSound
from tests.rig.tiny_cosyvoice2 import (
    CPU,
    HEAD_WIDTH,
    Ears,
    flow_recipe,
    golden_prompt,
    listening,
    tiny_flow,
    tiny_weights,
)
from tests.rig.tiny_hift import classic_hift
from tests.rig.tiny_model import FLOAT32

TOKENS = [(37 * index) % 6561 for index in range(110)]
STEPS = 2
"""Enough where only pieces are compared with the whole."""


def _sounding(settings: ChunkSettings = ChunkSettings()) -> Cosyvoice2:  # noqa: B008  # frozen
    flow = tiny_flow(STEPS)
    sound = HiftSound(classic_hift(), classic_hift(), seed=3, crossfade="unity")
    return Cosyvoice2(flow, sound, settings, lambda: flow)


def _said(stream: Cosyvoice2Stream, tokens: Sequence[int], sizes: Sequence[int]) -> FloatArray:
    """All the sound of these tokens, pushed in pieces of these sizes, the last again and again."""
    pieces, at, sizes = [], 0, list(sizes)
    while at < len(tokens):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        pieces.append(stream.push(tokens[at : at + size]))
        at += size
    return np.concatenate([*pieces, stream.finish()])


# ---- pieces and wholes --------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 3, 28, 53])
def test_a_turn_is_960_samples_a_token_however_it_is_cut(tokens: int) -> None:
    vocoder = _sounding()
    voice = vocoder.voice(golden_prompt(44), "anna")
    spoken = TOKENS[:tokens]
    at_once = _said(vocoder.open(voice), spoken, [tokens])
    in_pieces = _said(vocoder.open(voice), spoken, [1, 2, 30, 7])
    assert at_once.dtype == np.float32
    assert len(at_once) == 960 * tokens
    assert np.array_equal(at_once, in_pieces)
    assert len(vocoder.whole(voice, spoken)) == 960 * tokens


@pytest.mark.parametrize("prompt", [2, 20, 28, 44, 50])
@pytest.mark.parametrize(
    "settings",
    [ChunkSettings(), ChunkSettings(first_hop_tokens=4), UPSTREAM],
    ids=["default", "early", "upstream"],
)
def test_what_is_remembered_stands_for_computing_it_again(
    prompt: int, settings: ChunkSettings
) -> None:
    vocoder, ears = listening(settings, STEPS)
    voice = vocoder.voice(golden_prompt(prompt), "anna")
    _said(vocoder.open(voice), TOKENS, [6])
    with torch.inference_mode():
        known = (voice.mel, voice.speaker)
        again = vocoder.flow.whole([*voice.tokens, *TOKENS], *known, in_blocks=True)
    expected = again.mel[:, voice.mel.shape[1] :]
    assert torch.allclose(ears[-1].mel, expected, atol=2e-5)


def test_streams_at_once_do_not_hear_each_other() -> None:
    vocoder = _sounding()
    voices = [vocoder.voice(golden_prompt(tokens), str(tokens)) for tokens in (50, 44)]
    said = TOKENS[:40]
    alone = [_said(vocoder.open(voice), said, [9]) for voice in voices]
    streams = [vocoder.open(voice) for voice in voices]
    mixed: list[list[FloatArray]] = [[], []]
    for at in range(0, len(said), 9):
        for stream, sound in zip(streams, mixed, strict=True):
            sound.append(stream.push(said[at : at + 9]))
    for stream, sound, expected in zip(streams, mixed, alone, strict=True):
        assert np.array_equal(np.concatenate([*sound, stream.finish()]), expected)
    assert not np.allclose(*alone, atol=1e-3)


def test_a_clone_goes_on_by_itself() -> None:
    vocoder = _sounding()
    stream = vocoder.open(vocoder.voice(golden_prompt(44), "anna"))
    stream.push(TOKENS[:30])
    other, third = stream.clone(), stream.clone()
    other.push(TOKENS[5:40])
    rest = _said(stream, TOKENS[30:60], [8])
    assert np.array_equal(_said(third, TOKENS[30:60], [11]), rest)


# ---- when a chunk is due ------------------------------------------------------------------------


def _hops(prompt: int, settings: ChunkSettings) -> list[int]:
    schedule, hops = HopSchedule(prompt, settings), []
    for _ in range(5):
        hops.append(schedule.next_tokens)
        schedule.advance()
    return hops


def test_chunks_end_on_the_grid_that_starts_with_the_prompt() -> None:
    assert _hops(44, UPSTREAM) == [31, 50, 100, 100, 100]
    assert _hops(50, UPSTREAM) == [25, 50, 100, 100, 100]
    assert _hops(26, UPSTREAM) == [49, 50, 100, 100, 100]
    assert _hops(50, ChunkSettings()) == [25, 25, 25, 25, 25]
    assert _hops(40, ChunkSettings(first_hop_tokens=10)) == [10, 25, 25, 25, 25]
    assert _hops(20, ChunkSettings(first_hop_tokens=10)) == [30, 25, 25, 25, 25]


@pytest.mark.parametrize(
    ("first", "kept", "wait"), [(25, 25, 28), (10, 40, 13), (4, 46, 7), (None, 49, 29)]
)
def test_the_first_sound_comes_as_early_as_it_was_asked_for(
    first: int | None, kept: int, wait: int
) -> None:
    vocoder, _ = listening(ChunkSettings(first_hop_tokens=first), STEPS)
    voice = vocoder.voice(golden_prompt(49), "anna")
    stream = vocoder.open(voice)
    assert len(stream.push(TOKENS[: wait - 1])) == 0
    assert len(stream.push(TOKENS[wait - 1 : wait])) == 960 * (wait - 3)
    assert voice.tokens == tuple(golden_prompt(49).speech_tokens[49 - kept :].tolist())
    assert voice.mel.shape[1] == 2 * len(voice.tokens)


def test_a_short_prompt_is_not_cut() -> None:
    vocoder, _ = listening(ChunkSettings(), STEPS)
    for tokens in (2, 20, 49):
        kept = len(vocoder.voice(golden_prompt(tokens), "anna").tokens)
        assert kept == (25 if tokens == 49 else tokens)


def test_settings_off_the_grid_are_refused() -> None:
    for wrong in ({"hop_tokens": 30}, {"first_hop_tokens": 3}, {"context_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ChunkSettings(**wrong)
    with pytest.raises(ValueError, match="largest_hop_tokens"):
        ChunkSettings(hop_tokens=50)


# ---- what is kept -------------------------------------------------------------------------------


def test_a_long_turn_remembers_the_prompt_and_the_last_of_itself() -> None:
    vocoder, ears = listening(ChunkSettings(context_tokens=50), STEPS)
    exact, exact_ears = listening(ChunkSettings(), STEPS)
    sizes = set()
    stream = vocoder.open(vocoder.voice(golden_prompt(44), "anna"))
    for at in range(0, 250, 25):
        stream.push([TOKENS[(at + step) % 110] for step in range(25)])
        sizes.add(stream.nbytes)
    whole = exact.open(exact.voice(golden_prompt(44), "anna"))
    whole.push([TOKENS[step % 110] for step in range(250)])
    assert len(sizes) <= 3
    assert bool(ears[-1].mel.isfinite().all())
    # The prompt's 25 tokens that were not cut away, 50 of the turn, and then one chunk more.
    assert torch.allclose(ears[-1].mel[:, :150], exact_ears[-1].mel[:, :150], atol=2e-5)
    assert not torch.allclose(ears[-1].mel[:, 150:], exact_ears[-1].mel[:, 150:], atol=1e-3)


def _numbered(first: int, last: int) -> torch.Tensor:
    """One layer's frames of one number each, that of the frame."""
    return torch.arange(float(first), float(last)).reshape(1, 1, -1, 1).expand(1, 2, -1, 1)


def test_a_memory_keeps_the_first_and_the_last_frames() -> None:
    config = UnetConfig(mel_bins=2, width=2, mid_blocks=0)
    tails = torch.zeros(2, 2, sum(config.tail_widths))
    voice = (_numbered(0, 2),)
    step = StepMemory(voice, tuple(_numbered(*one) for one in ((2, 4), (4, 9), (9, 10))), tails)
    memory = UnetMemory((step,)).keep(3, 4)
    history = StepHistory(memory.steps[0], config, None)
    seen = history.extend(0, torch.full((2, 1, 1), 10.0))
    assert seen[0, :, 0].tolist() == seen[1, :, 0].tolist() == [0, 1, 2, 6, 7, 8, 9, 10]
    assert memory.steps[0].voice is voice
    assert memory.nbytes == 4 * 2 * 5 + tails.nbytes
    assert memory.keep(3, 4) is memory


@pytest.mark.parametrize(("past", "frames"), [(0, 10), (13, 10), (6, 4)])
def test_the_bias_hides_the_blocks_to_come_and_nothing_before(past: int, frames: int) -> None:
    bias = block_causal_bias(past, frames, 4, torch.zeros(0, dtype=torch.bfloat16))
    assert bias.shape == (frames, past + frames) and bias.stride(0) % 8 == 0
    ends = [past + min(frames, (at // 4 + 1) * 4) for at in range(frames)]
    for row, end in zip(bias, ends, strict=True):
        assert (row[:end] == 0).all() and (row[end:] == -math.inf).all()


def test_a_stream_weighs_what_is_its_own_alone() -> None:
    vocoder = _sounding()
    voice = vocoder.voice(golden_prompt(50), "anna")
    stream = vocoder.open(voice)
    assert stream.nbytes < voice.nbytes / 3
    stream.push(TOKENS[:28])
    shared = [one.data_ptr() for step in voice.state.memory.steps for one in step.voice]
    assert [one.data_ptr() for step in stream._state.memory.steps for one in step.voice] == shared


def test_a_stream_of_full_size_stays_below_240_mb() -> None:
    config, settings, steps, item_bytes = UnetConfig(), ChunkSettings(), 10, 2
    frames = 2 * (settings.context_tokens + 25)
    kept = config.layers * frames * config.width
    tails = 2 * sum(config.tail_widths)
    assert 2 * item_bytes * steps * (kept + tails) < 225e6


def test_the_noise_begins_again_after_five_minutes() -> None:
    flow = tiny_flow(STEPS)
    nothing = (torch.zeros(80, 0), torch.zeros(80))
    with torch.inference_mode():
        early = flow.start()
        late = replace(early, tokens=NOISE_FRAMES // 2)
        first, _ = flow.advance(early, TOKENS[:28], nothing, final=False)
        again, _ = flow.advance(late, TOKENS[:28], nothing, final=False)
    assert torch.equal(first.mel, again.mel)
    assert not torch.equal(flow_noise(1, 80, CPU), flow_noise(0, 80, CPU))


# ---- what goes wrong ----------------------------------------------------------------------------


def test_what_is_no_token_and_what_comes_too_late_is_refused() -> None:
    vocoder, _ = listening(ChunkSettings(), STEPS)
    stream = vocoder.open(vocoder.voice(golden_prompt(44), "anna"))
    for wrong in (6561, -1):
        with pytest.raises(VocoderError, match=str(wrong)):
            stream.push([5, wrong])
    stream.push(TOKENS)
    stream.finish()
    for late in (lambda: stream.push([1]), stream.finish):
        with pytest.raises(VocoderError, match="over"):
            late()


def test_a_turn_without_a_token_is_silent() -> None:
    vocoder, _ = listening(ChunkSettings(), STEPS)
    assert len(vocoder.open(vocoder.voice(golden_prompt(44), "anna")).finish()) == 0


def _poisoned(flow: Cosyvoice2Flow) -> Cosyvoice2Flow:
    weights = copy.deepcopy(tiny_weights())
    broken = Cosyvoice2Flow(weights, flow_noise(0, 80, CPU), STEPS).in_dtype(torch.bfloat16)
    assert broken.dtype == torch.bfloat16
    broken._weights.encoder_proj.bias.data.fill_(math.inf)
    return broken


def test_what_half_precision_cannot_hold_is_computed_again_in_float32() -> None:
    flow = tiny_flow(STEPS)
    ears = Ears()
    for first in (flow, _poisoned(flow)):
        vocoder = Cosyvoice2(first, ears, ChunkSettings(), lambda: flow)
        _said(vocoder.open(vocoder.voice(golden_prompt(50), "anna")), TOKENS, [40])
    assert torch.equal(ears.each[0].mel, ears.each[1].mel)


def test_what_fails_in_float32_too_fails_the_turn() -> None:
    vocoder, _ = listening(ChunkSettings(), STEPS)
    stream = vocoder.open(vocoder.voice(golden_prompt(20), "anna"))
    broken = _poisoned(tiny_flow(STEPS)).in_dtype(torch.float32)
    vocoder.flow, vocoder._exact = broken, lambda: broken
    with pytest.raises(VocoderError, match="finite"):
        stream.push(TOKENS)
    with pytest.raises(VocoderError, match="over"):
        stream.push(TOKENS)


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("no memory")])
def test_a_push_that_fails_late_gives_what_it_made_before(error: RuntimeError | None) -> None:
    vocoder = _sounding()
    vocoder.sounding = FailingSound(vocoder.sounding, at=2, error=error)
    voice = vocoder.voice(golden_prompt(50), "anna")
    once, pieces = vocoder.open(voice), vocoder.open(voice)
    sound = once.push(TOKENS)
    assert len(sound)
    assert np.array_equal(
        sound, np.concatenate([pieces.push(TOKENS[:30]), pieces.push(TOKENS[30:60])])
    )
    asks: list[Callable[[], FloatArray]] = [
        lambda: once.push([1]),
        once.finish,
        once.clone().finish,
    ]
    for ask in asks:
        with pytest.raises(VocoderError, match=str(error) if error else "HiFT gave numbers"):
            ask()


@pytest.mark.parametrize("last", [False, True])
def test_a_turn_whose_sound_failed_stays_failed(last: bool) -> None:
    vocoder = _sounding()
    vocoder.sounding = FailingSound(vocoder.sounding, at=0)
    stream = vocoder.open(vocoder.voice(golden_prompt(50), "anna"))
    stream.push(TOKENS[:5])
    with pytest.raises(VocoderError, match="HiFT gave numbers"):
        stream.finish() if last else stream.push(TOKENS[5:40])
    with pytest.raises(VocoderError, match="failed"):
        stream.push(TOKENS[40:])
    with pytest.raises(VocoderError, match="failed"):
        stream.finish()


def test_half_precision_says_nearly_the_same() -> None:
    exact = tiny_flow()
    narrow = exact.in_dtype(torch.bfloat16)
    known = (torch.tensor(golden_prompt(25).mel).T, torch.ones(80))
    with torch.inference_mode():
        wide, half = (one.whole(TOKENS, *known, in_blocks=True).mel for one in (exact, narrow))
    assert 0 < float((wide - half).abs().mean() / wide.abs().mean()) < 0.02


# ---- the checkpoint -----------------------------------------------------------------------------


def test_the_full_size_has_the_checkpoint_s_tensors() -> None:
    encoder = EncoderConfig(512, 8, 64, 2048, 6, 4)
    with unfilled():
        weights = Cosyvoice2Weights(Cosyvoice2Config(6561, 192, encoder, UnetConfig()))
    shapes = stored_shapes({"": weights})
    assert len(shapes) == 1121
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 3) == 112.549
    headers = {key: TensorHeader(shape, "F32", Path("x")) for key, shape in shapes.items()}
    assert cosyvoice2_config(headers) == weights.config


@pytest.mark.parametrize("key", ["encoder.after_norm.bias", "decoder.estimator.final_proj.bias"])
def test_a_missing_tensor_is_named(key: str) -> None:
    source = copy.copy(flow_recipe())
    source.headers = {name: header for name, header in source.headers.items() if name != key}
    with unfilled():
        weights = Cosyvoice2Weights(cosyvoice2_config(source.headers, head_width=HEAD_WIDTH))
    with pytest.raises(CheckpointError, match=key):
        load_parts(source, {"": weights}, unused={}, target=FLOAT32)


def test_another_model_s_flow_is_told() -> None:
    headers = {
        key: header for key, header in flow_recipe().headers.items() if ".estimator." not in key
    }
    with pytest.raises(CheckpointError, match="estimator"):
        cosyvoice2_config(headers, head_width=HEAD_WIDTH)


def test_a_voice_of_another_size_is_refused() -> None:
    vocoder, _ = listening(ChunkSettings(), STEPS)
    prompt = golden_prompt(20)
    wrong = type(prompt)(prompt.speech_tokens, prompt.mel[:, :40], prompt.embedding)
    with pytest.raises(VocoderError, match="40 mel bands"):
        vocoder.voice(wrong, "anna")
