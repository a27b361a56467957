"""token2wav's flow against the reference: streams with their trimmed memories, and whole."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.vocoder.flow import FlowState
from tests.rig.tiny_flow import facts, golden, golden_noise, golden_prompt, tiny_flow
from tests.rig.tiny_model import compare

LIMIT = 1e-5


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _chunk(state: FlowState, run: dict[str, Any]) -> tuple[Tensor, FlowState, int]:
    """Mel [M, T], the state after it, and what the estimator held before anything was dropped."""
    start, count = run["tokens_from"], run["count"]
    mel, after = tiny_flow().chunk(
        state, golden("tokens")[start : start + count], golden_noise(), final=run["last"]
    )
    return mel[0], after, len(state.held) + mel.shape[2]


@pytest.mark.parametrize("name", ["steady", "uneven", "short_prompt"])
def test_a_stream_s_mel_is_the_reference_s(name: str) -> None:
    run = facts()["runs"][name]
    state = tiny_flow().setup(*golden_prompt(run["prompt_tokens"]), golden_noise())
    assert state.prompt_frames == run["prompt_mel_frames"]
    for chunk in run["chunks"]:
        mel, state, frames = _chunk(state, chunk)
        assert frames == chunk["estimator_cache_frames_before_trim"]
        key = f"{name}.chunk{chunk['index']}.mel"
        assert compare(key, mel, golden(key)) <= LIMIT, key


def test_the_whole_utterance_s_mel_is_the_reference_s() -> None:
    mel = tiny_flow().whole(golden("tokens")[:50], *golden_prompt(75), golden_noise())
    assert compare("whole.mel", mel[0], golden("whole.mel")) <= LIMIT
