"""CosyVoice2's flow against the reference: one step, whole utterances, streams by chunks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.cosyvoice2 import UPSTREAM, HopSchedule
from agent.vocoder.cosyvoice2_flow import BLOCK_FRAMES, FlowChunk, flow_noise
from agent.vocoder.unet import Beginning, block_causal
from tests.rig.tiny_cosyvoice2 import (
    CPU,
    facts,
    golden,
    golden_prompt,
    listening,
    tiny_flow,
    tiny_weights,
)
from tests.rig.tiny_model import compare

LIMIT = 1e-5
RUNS = ["prompt50", "prompt44"]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _error(name: str, ours: Tensor) -> float:
    return compare(f"cosy.{name}", ours, golden(name))


def test_the_noise_is_the_reference_s() -> None:
    assert _error("noise.first_360_frames", flow_noise(0, 80, CPU)[:, :360]) == 0


@pytest.mark.parametrize("name", ["whole", "streaming"])
def test_one_step_s_velocity_is_the_reference_s(name: str) -> None:
    unet = tiny_weights().decoder["estimator"]
    x, mu, told, times = (golden(f"step.{part}") for part in ("x", "mu", "cond", "t"))
    frames = x.shape[2]
    speaker = golden("step.speaker")[:, :, None].expand(-1, -1, frames)
    mask = block_causal(0, frames, BLOCK_FRAMES, CPU) if name == "streaming" else None
    rows = torch.cat([x, mu, speaker, told], 1)
    # The steps of the solver have one time for both rows; here each has its own.
    velocity = torch.cat(
        [
            unet(row[None], shifts, Beginning(mask))
            for row, shifts in zip(rows.transpose(1, 2), unet.shifts(times), strict=True)
        ]
    )
    assert _error(f"step.velocity.{name}", velocity.transpose(1, 2)) <= LIMIT


def _voice(prompt_tokens: int) -> tuple[Tensor, Tensor]:
    prompt = golden_prompt(prompt_tokens)
    return torch.tensor(prompt.mel).T, tiny_flow().speaker(torch.tensor(prompt.embedding))


@pytest.mark.parametrize("run", RUNS)
def test_the_whole_utterance_is_the_reference_s(run: str) -> None:
    prompt = facts()["runs"][run]["prompt_tokens"]
    everything = [*golden("prompt.tokens")[:prompt].tolist(), *golden("tokens").tolist()]
    made = tiny_flow().whole(everything, *_voice(prompt), in_blocks=False)
    assert _error(f"{run}.whole.mu", made.mu.T) <= LIMIT
    assert _error(f"{run}.whole.mel", made.mel[:, FRAMES_PER_TOKEN * prompt :]) <= LIMIT


@pytest.mark.parametrize("run", RUNS)
def test_a_stream_s_mel_is_the_reference_s_chunk_by_chunk(run: str) -> None:
    facts_of_run: dict[str, Any] = facts()["runs"][run]
    vocoder, ears = listening(UPSTREAM)
    voice = vocoder.voice(golden_prompt(facts_of_run["prompt_tokens"]), "anna")
    stream = vocoder.open(voice)
    for token in golden("tokens").tolist():
        stream.push([token])
    stream.finish()
    *chunks, last = ears[-1].heard
    assert len(chunks) == len(facts_of_run["chunks"]) - 1
    for index, mel in enumerate(chunks):
        assert _error(f"{run}.chunk{index}.mel", mel) <= LIMIT
    assert _error(f"{run}.final_streaming_true.mel", last) <= LIMIT


@pytest.mark.parametrize("run", RUNS)
def test_what_the_first_chunk_s_tokens_are_encoded_to_is_the_reference_s(run: str) -> None:
    prompt = facts()["runs"][run]["prompt_tokens"]
    schedule = HopSchedule(prompt, UPSTREAM)
    count = prompt + schedule.next_tokens
    assert schedule.next_tokens == facts()["runs"][run]["chunks"][0]["hop"]
    everything = [*golden("prompt.tokens")[:prompt].tolist(), *golden("tokens").tolist()]
    state, made = tiny_flow().start(), list[FlowChunk]()
    for start in range(0, count, 25):
        window = everything[start : start + 28]
        chunk, state = tiny_flow().advance(state, window, _voice(prompt), final=False)
        made.append(chunk)
    mu = torch.cat([chunk.mu for chunk in made], 1)
    assert _error(f"{run}.chunk0.mu", mu.T) <= LIMIT
