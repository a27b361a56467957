"""Hearing in batches on a GPU: what the modules hear, whoever shares the batch."""

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from agent.duplex.audio_encoder import AudioStream
from agent.duplex.lanes import EagerLane, Lane
from agent.duplex.mel import TURN_BASED, StreamingMel, offline_mel
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.work import Hear, HearLive, HearRecording, Work
from agent.torch_parts.checkpoint import Target
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import letter_vocabulary

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from agent.duplex.cuda.audio_lane import AudioLane

DTYPES = [torch.float32, torch.bfloat16]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SIZES = SlotSizes(slots=6, context_tokens=16, turn_tokens=16)


@functools.cache
def mind(dtype: torch.dtype) -> DuplexModel:
    target = Target(torch.device("cuda"), dtype)
    return load_model(tiny.RecipeSource(), tiny.tiny_config(), letter_vocabulary(), target=target)


@functools.cache
def lane_of(dtype: torch.dtype) -> tuple[AudioLane, Slots]:
    slots = Slots(mind(dtype).config, SIZES, mind(dtype).target)
    return AudioLane(mind(dtype), slots), slots


def eager_of(dtype: torch.dtype) -> tuple[EagerLane, Slots]:
    slots = Slots(mind(dtype).config, SIZES, mind(dtype).target)
    return EagerLane(mind(dtype), slots), slots


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@functools.cache
def seconds(seed: int) -> list[Tensor]:
    return StreamingMel().push(tiny.recipe().audio(33, seed))


def do(lane: Lane, works: Sequence[Work]) -> None:
    while works:
        count = lane.count(works)
        assert not lane.begin(works[:count]).finish()
        works = works[count:]


def hear(lane: Lane, streams: Sequence[AudioStream], seeds: Sequence[int]) -> list[Tensor]:
    """The next second of each."""
    works = [
        Hear(seconds(seed)[stream.chunks], stream)
        for stream, seed in zip(streams, seeds, strict=True)
    ]
    do(lane, works)
    return [work.vectors for work in works]


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("dtype", DTYPES)
def test_streams_of_any_age_hear_what_they_hear_alone_in_the_modules(dtype: torch.dtype) -> None:
    (lane, _), (eager, _) = lane_of(dtype), eager_of(dtype)
    ours = [AudioStream(slot) for slot in (5, 0, 3, 2, 1)]
    theirs = [AudioStream(slot) for slot in range(5)]
    # The first is alone for a while; then one after the other joins it.
    for second in range(12):
        count = min(5, 1 + second // 2)
        got = hear(lane, ours[:count], range(count))
        for place in range(count):
            (wanted,) = hear(eager, [theirs[place]], [place])
            assert apart(got[place], wanted) < LIMITS[dtype], (second, place)
    assert [(one.cached_frames, one.chunks) for one in ours] == [
        (one.cached_frames, one.chunks) for one in theirs
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_after_29_seconds_all_is_forgotten_as_in_the_modules(dtype: torch.dtype) -> None:
    (lane, _), (eager, _) = lane_of(dtype), eager_of(dtype)
    ours, theirs, young = AudioStream(1), AudioStream(0), AudioStream(4)
    lengths = []
    for second in range(31):
        together = [ours, young] if second > 20 else [ours]
        got = hear(lane, together, [3, 4][: len(together)])
        (wanted,) = hear(eager, [theirs], [3])
        assert apart(got[0], wanted) < LIMITS[dtype], second
        lengths.append(ours.cached_frames)
    assert max(lengths) == 1450 and lengths[28:] == [1450, 50, 100]
    assert (ours.cached_frames, ours.chunks) == (theirs.cached_frames, theirs.chunks)
    assert young.cached_frames == 500


@pytest.mark.parametrize("count", [1, 3, 5])
def test_nobody_else_s_cache_is_touched(count: int) -> None:
    lane, slots = lane_of(torch.bfloat16)
    streams = [AudioStream(slot) for slot in range(count)]
    for tensor in (slots.audio.keys, slots.audio.values):
        tensor.normal_()
    before = [slots.audio.keys.clone(), slots.audio.values.clone()]
    for _ in range(2):
        hear(lane, streams, range(count))
    for now, then in zip((slots.audio.keys, slots.audio.values), before, strict=True):
        assert (now[:, count:] == then[:, count:]).all()
        assert (now[:, :count, :, 100:] == then[:, :count, :, 100:]).all()
        assert (now[:, :count, :, :100] != then[:, :count, :, :100]).float().mean() > 0.9


def test_a_batch_s_vectors_are_its_own() -> None:
    lane, _ = lane_of(torch.bfloat16)
    (first,) = hear(lane, [AudioStream(0)], [1])
    kept = first.clone()
    hear(lane, [AudioStream(0)], [2])
    assert (first == kept).all()


def test_recordings_and_live_turns_go_by_themselves() -> None:
    dtype = torch.bfloat16
    (lane, _), (eager, _) = lane_of(dtype), eager_of(dtype)
    sound = tiny.recipe().audio(3.3, 7)
    live = StreamingMel(TURN_BASED).push(sound)
    made = []
    for used in (lane, eager):
        stream, second = AudioStream(2), Hear(seconds(1)[0], AudioStream(3))
        works = [
            HearRecording(offline_mel(sound)[0], 50),
            second,
            *(HearLive(mel, stream) for mel in live),
        ]
        assert used.count(works) == used.count(works[1:]) == used.count(works[2:]) == 1
        do(used, works)
        made.append(torch.cat([work.vectors for work in works]))
        assert stream.cached_frames == sum((mel.shape[1] + 1) // 2 for mel in live)
    assert apart(*made) < LIMITS[dtype]


def test_as_many_as_there_are_slots_are_heard_together() -> None:
    lane, _ = lane_of(torch.bfloat16)
    works: list[Work] = [Hear(seconds(1)[0], AudioStream(0)) for _ in range(9)]
    assert lane.count(works) == 8
    assert lane.count(works[:3]) == 3
    assert lane.count([*works[:2], HearRecording(seconds(1)[0], None), *works]) == 2


def test_a_mel_of_another_length_is_a_mistake_of_the_caller() -> None:
    lane, _ = lane_of(torch.bfloat16)
    with pytest.raises(ValueError, match="102 mel frames, not 104"):
        lane.begin([Hear(seconds(1)[1], AudioStream(0))])
