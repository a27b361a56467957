"""The machine in Triton's interpreter: many streams' chunks are what the modules say of each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.interfaces import VocoderPush
from agent.vocoder.batched.machine import buckets
from agent.vocoder.token2wav import StreamSettings
from tests.rig.machine_streams import TOKENS, Alone, with_machine
from tests.rig.tiny_cosyvoice2 import golden_prompt
from tests.rig.tiny_hift import classic_hift
from tests.rig.unwritten import fill_new_memory
from tests.rig.written_anew import Recorder


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.set_num_threads(1)
    fill_new_memory(monkeypatch)
    with torch.inference_mode():
        yield


# ---- tokens to mel ------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "frames"), [("prompt_plus_recent", 100), ("reference", 120)])
def test_mel_of_two_streams_is_that_of_each_alone(memory: Any, frames: int) -> None:
    vocoder, machine = with_machine(memory, classic_hift(), 25, frames)
    streams = [Alone(vocoder, machine, 30), Alone(vocoder, machine, 55)]
    lengths = [(25, 25), (25, 25), (9, 25), (25, 3)]
    for number, counts in enumerate(lengths):
        last = number == len(lengths) - 1
        made = [
            stream.chunk(count, final=last) for stream, count in zip(streams, counts, strict=True)
        ]
        nobody = np.zeros(machine.rules.layout.columns, np.int64)
        plan = torch.from_numpy(np.stack([*(plan for plan, _ in made), nobody]))
        mu = machine._encoder(plan, machine._stores.encoder)
        mel = machine._estimator(mu, plan, machine._stores.estimator)
        for ours, (_, theirs) in zip(mel[:-1], made, strict=True):
            assert float((ours[: len(theirs)] - theirs).abs().max()) < 3e-5
    for stream in streams:
        stream.assert_remembers_alike()
    # A place in a round that no stream has begins and ends with nothing.
    stores = machine._stores
    tails = (stores.encoder.smooth_tails, stores.encoder.up_tails, stores.estimator.first_tails)
    assert not any(one[0].any() for one in (*tails, stores.estimator.second_tails))


# ---- whole rounds -------------------------------------------------------------------------------


def test_a_batch_says_what_its_streams_say(monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder, machine = with_machine("prompt_plus_recent", classic_hift(), 8, 100)
    vocoder.settings = StreamSettings(first_hop_tokens=8, hop_tokens=8, lead="none")
    # Sound is another test's: here what is said of it tells whose it is.
    monkeypatch.setattr(type(machine._hift), "__call__", _loudness)
    machine.record(Recorder())
    voices = [vocoder.voice(golden_prompt(tokens), "anna") for tokens in (30, 40)]
    streams = [vocoder.open(voice) for voice in voices]
    texts = [TOKENS[:12], TOKENS[60:72]]
    pushes = [VocoderPush(stream, text) for stream, text in zip(streams, texts, strict=True)]
    answers = vocoder.begin(pushes).take()
    expected = vocoder.open(voices[1]).push(texts[1])
    assert len(answers[1]) == len(expected) > 0
    assert np.allclose(answers[1], expected, atol=1e-5) and expected.std() > 0
    assert not np.allclose(answers[0], answers[1])


def _loudness(hift: Any, mel: Tensor, plan: Tensor, slots: Any) -> Tensor:
    """Instead of sound: the sum of each band's mel, over and over."""
    return mel.sum(1).repeat(1, 1 + hift.samples // 80)[:, : hift.samples]


def test_what_was_tried_in_inference_mode_is_used_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, machine = with_machine("prompt_plus_recent", classic_hift(), 8, 100)

    def said(_: Any, plan: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(plan), machine._hift.samples), 0.5), plan[:, 0] == 0

    monkeypatch.setattr(type(machine), "chunks", said)
    machine.record(Recorder())
    nobody = np.zeros((1, machine._plan.shape[1]), np.int64)
    machine.begin(nobody).finish()
    with torch.inference_mode(False), torch.no_grad():
        sound, finite = machine.begin(nobody).finish()
    assert (sound == 0.5).all() and finite.all()


def test_sound_that_was_taken_stays_when_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder, machine = with_machine("prompt_plus_recent", classic_hift(), 8, 100)
    vocoder.settings = StreamSettings(first_hop_tokens=8, hop_tokens=8, lead="none")

    def said(_: Any, plan: Tensor) -> tuple[Tensor, Tensor]:
        target = plan[:, machine.rules.layout.target, None]
        return target.float().repeat(1, machine._hift.samples), target[:, 0] > 0

    monkeypatch.setattr(type(machine), "chunks", said)
    machine.record(Recorder())
    stream = vocoder.open(vocoder.voice(golden_prompt(30), "anna"))
    first, second = stream.push(TOKENS[:11]), stream.push(TOKENS[11:19])
    assert len(set(first)) == len(set(second)) == 1 and first[0] != second[0]
    assert first.base is None and second.base is None


def test_of_a_voice_in_more_than_one_piece_nothing_is_left_out_unsaid() -> None:
    vocoder, machine = with_machine("prompt_plus_recent", classic_hift(), 8, 100)
    state = vocoder.voice(golden_prompt(30), "anna").state
    (prompt,) = state.steps[0].prompt
    halves = prompt[:, :, :20], prompt[:, :, 20:]
    apart = replace(state, steps=tuple(replace(step, prompt=halves) for step in state.steps))
    with pytest.raises(ValueError, match="too many values"):
        machine.packed(apart)


def test_there_is_a_graph_for_each_number_of_streams() -> None:
    assert buckets(1) == [1] and buckets(3) == [1, 2, 4]
    assert buckets(32) == buckets(200) == [1, 2, 4, 8, 16, 32]
