"""Hearing in batches, without a GPU: what a batch is told, who goes together, what is heard."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from agent.duplex.audio_encoder import AudioCache, AudioStream
from agent.duplex.mel import StreamingMel
from agent.duplex.work import Hear, HearRecording, Work
from tests.rig import tiny_model as tiny
from tests.rig import triton_on_cpu  # noqa: F401

CPU = torch.device("cpu")


def seconds(count: int, seed: int) -> list[Tensor]:
    return StreamingMel().push(tiny.recipe().audio(count + 0.5, seed))


def test_a_batch_is_told_and_understood() -> None:
    from agent.duplex.cuda.audio_lane import tell, told, told_words

    first, later = seconds(2, 1)
    words = torch.full((told_words(4, 80),), 77, dtype=torch.int32)
    streams = [AudioStream(5, 700, 14), AudioStream(0)]
    tell(words.numpy(), [later, first], streams)
    header, mel = told(words, 80)
    assert header.tolist() == [[5, 0, -1, -1], [700, 0, 0, 0], [0, 2, 0, 0]]
    assert torch.equal(mel[0], later)
    assert torch.equal(mel[1, :, 2:], first) and (mel[1, :, :2] == 0).all()
    assert (mel[2:] == 0).all()


def test_who_goes_together() -> None:
    from agent.duplex.cuda.audio_lane import together

    mel = torch.zeros(80, 102)
    hears: list[Work] = [Hear(mel, AudioStream(slot)) for slot in range(5)]
    recording = HearRecording(mel, None)
    assert together(hears, 8) == 5
    assert together(hears, 4) == 4
    assert together([*hears[:2], recording, *hears], 8) == 2
    assert together([recording, *hears], 8) == 1


@pytest.mark.parametrize(
    ("slots", "sizes"), [(1, [1]), (3, [1, 2, 4]), (4, [1, 2, 4]), (9, [1, 2, 4, 8])]
)
def test_no_larger_batch_is_prepared_than_there_are_slots(slots: int, sizes: list[int]) -> None:
    from agent.duplex.cuda.audio_lane import useful_sizes

    assert useful_sizes((8, 4, 2, 1), slots) == sizes


def test_streams_of_any_age_hear_what_the_modules_hear() -> None:
    from agent.duplex.cuda.audio_lane import SecondOfMany, tell, told_words

    torch.set_num_threads(1)
    ears, measure = tiny.tiny_ears(), tiny.tiny_ears()
    caches = [AudioCache(ears.encoder.config, 3, CPU, torch.float32) for _ in range(2)]
    for tensor, same in zip(*[(one.keys, one.values) for one in caches], strict=True):
        same.copy_(tensor.normal_(generator=torch.Generator().manual_seed(1)))
    second = SecondOfMany(ears, caches[0])
    mels = [seconds(3, 1), seconds(3, 2)]

    def heard(streams: Sequence[AudioStream], at: Sequence[int]) -> Tensor:
        words = torch.zeros(told_words(2, 80), dtype=torch.int32)
        tell(words.numpy(), [mels[0][at[0]], mels[1][at[1]]], streams)
        with torch.no_grad():
            return second(words)

    for ages in ((0, 2), (1, 1)):
        streams = [AudioStream(2, 50 * ages[0], ages[0]), AudioStream(0, 130, ages[1])]
        ours = heard(streams, ages)
        wanted = measure.hear([mels[0][ages[0]], mels[1][ages[1]]], streams, caches[1])
        assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert torch.allclose(caches[0].keys, caches[1].keys, atol=1e-4)
        assert torch.allclose(caches[0].values, caches[1].values, atol=1e-4)
