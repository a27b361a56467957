"""HiFT as kernels, in Triton's interpreter: what each stream's own tail says."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.vocoder.hift_stream import VocoderTail
from tests.rig.machine_streams import Alone, with_machine
from tests.rig.tiny_hift import causal_hift, classic_hift
from tests.rig.unwritten import fill_new_memory


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.set_num_threads(1)
    fill_new_memory(monkeypatch)
    with torch.inference_mode():
        yield


# The fewest tokens of a chunk of which something is said at once.
@pytest.mark.parametrize(("generation", "most"), [("classic", 8), ("causal", 5)])
def test_sound_of_two_streams_is_that_of_each_alone(generation: str, most: int) -> None:
    hift = classic_hift() if generation == "classic" else causal_hift()
    vocoder, machine = with_machine("prompt_plus_recent", hift, most, 100)
    streams = [Alone(vocoder, machine, 30), Alone(vocoder, machine, 30)]
    tails: list[VocoderTail] = [vocoder.sounding.open_tail("anna") for _ in streams]
    generator = torch.Generator().manual_seed(3)
    for lasts, counts in (((False, False), (most, most)), ((False, True), (most - 1, most))):
        plans = [
            stream.chunk(count, final=last)[0]
            for stream, count, last in zip(streams, counts, lasts, strict=True)
        ]
        mel = torch.randn(2, 2 * most, 80, generator=generator) - 4
        plan = torch.from_numpy(np.stack(plans))
        ours = machine._hift(mel, plan, machine._stores.window)
        said = plan[:, machine.rules.layout.window.said].tolist()
        for at, (samples, tail) in enumerate(zip(said, tails, strict=True)):
            heard = mel[at : at + 1, : 2 * counts[at]].transpose(1, 2)
            assert samples > 0
            assert _is_near(ours[at, :samples], tail.push(heard, last=lasts[at]))
    # A stream goes on by itself from what its window holds.
    mel = torch.randn(1, 80, 2 * most, generator=generator) - 4
    alone = machine.tail(streams[0].turn, "anna")
    assert type(alone) is type(tails[0])
    assert _is_near(alone.push(mel), tails[0].push(mel))


def _is_near(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm()) < 2e-4
