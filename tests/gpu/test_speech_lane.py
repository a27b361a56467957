"""The speech lane on a GPU: what the modules say, in every company, and nothing of what was not."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.duplex.config import Numerics, SpeechConfig
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.lanes import Lane
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import SpeechSampling
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.speech_lm import SpeechCall, SpeechLm
from agent.duplex.work import Speak, SpeakOn
from agent.errors import ContextOverflow
from agent.torch_parts.checkpoint import Target
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import letter_vocabulary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FULL = SpeechConfig(
    width=768,
    ffn_width=3072,
    layers=4,
    heads=12,
    kv_heads=12,
    max_positions=4096,
    llm_width=4096,
    text_tokens=152064,
    audio_tokens=6562,
    audio_bos=151687,
    text_eos=151692,
)
"""The published sizes, and a few of its layers."""
SLOTS, POSITIONS = 12, 512
ANSWER = SpeechSampling(top_p=0.85, top_k=25)


@functools.cache
def mind(dtype: torch.dtype) -> DuplexModel:
    target = Target(torch.device("cuda"), dtype)
    model = load_model(tiny.RecipeSource(), tiny.tiny_config(), letter_vocabulary(), target=target)
    config = replace(model.config, speech=FULL)
    return replace(model, config=config, speech=speech_lm(dtype))


def speech_lm(dtype: torch.dtype) -> SpeechLm:
    """Random weights that keep what flows through them finite."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        lm = SpeechLm(FULL, Numerics())
    for name, weight in lm.named_parameters():
        scale = 0.5 if "emb" in name else weight.shape[-1] ** -0.5
        torch.nn.init.normal_(weight, std=scale) if weight.ndim > 1 else torch.nn.init.ones_(weight)
    lm.model.rotary.derive(torch.device("cuda"))
    return lm.to(dtype).requires_grad_(False)


@functools.cache
def lane_and_slots(dtype: torch.dtype) -> tuple[Lane, Slots]:
    from agent.duplex.cuda.speech_lane import SpeechLane

    model = mind(dtype)
    sizes = SlotSizes(slots=SLOTS, context_tokens=64, turn_tokens=POSITIONS)
    slots = Slots(model.config, sizes, model.target)
    return SpeechLane(model, slots, (1, 4, 16)), slots


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def states(count: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (count, FULL.llm_width)
    return list(torch.randn(shape, generator=generator, device="cuda").to(dtype))


def speaks(dtype: torch.dtype, count: int, *, length: int = 0) -> list[Speak]:
    """Different words, seeds, slots and settings; some may end."""
    return [
        Speak(
            list(range(60 + row, 60 + row + row % 7)),
            states(row % 7, row, dtype),
            KvStream((5 * row + 3) % SLOTS, length),
            SpeechSampling(temperature=0.6 + 0.05 * row),
            RandomSource(row, 3),
            may_end=row % 2 == 1,
        )
        for row in range(count)
    ]


def outcome(work: Speak | SpeakOn) -> tuple[list[int], int, int]:
    tokens = work.tokens if isinstance(work, Speak) else work.call.tokens
    return tokens, work.stream.length, work.random.drawn


def eagerly(works: Sequence[Speak | SpeakOn], slots: Slots, dtype: torch.dtype) -> list[object]:
    for work in works:
        work.run(mind(dtype), slots)
    return [outcome(work) for work in works]


def in_lane(works: Sequence[Speak | SpeakOn], lane: Lane) -> list[object]:
    assert lane.count(works) == len(works)
    assert not lane.begin(works).finish()
    return [outcome(work) for work in works]


@pytest.mark.parametrize("count", [1, 3, 11])
def test_many_say_what_each_would_say_eagerly(count: int) -> None:
    lane, slots = lane_and_slots(torch.float32)
    expected = eagerly(speaks(torch.float32, count), slots, torch.float32)
    kept = slots.speech.tensor.clone()
    slots.speech.tensor.zero_()
    assert in_lane(speaks(torch.float32, count), lane) == expected
    for work, (tokens, length, _) in zip(speaks(torch.float32, count), expected, strict=True):  # type: ignore[misc]
        assert len(tokens) == 25 or work.may_end
        ours, theirs = (
            one[:, :, work.stream.slot, :, :length] for one in (slots.speech.tensor, kept)
        )
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("count", [1, 4, 12])
def test_in_bfloat16_the_logits_are_the_modules(count: int) -> None:
    """One step over caches that hold something, before any draw."""
    from agent.duplex.cuda.speech_lane_few import FewSteps
    from agent.duplex.cuda.static_decoder import Rows, StaticDecoder

    lm, (_, slots) = mind(torch.bfloat16).speech, lane_and_slots(torch.bfloat16)
    cache = KvCache(torch.randn_like(slots.speech.tensor))
    lengths = [(37 * row) % 400 for row in range(count)]
    tokens = torch.randn(count, FULL.width, device="cuda").bfloat16()
    kept = cache.tensor.clone()
    theirs = torch.cat(
        [
            lm.logits(lm.read(tokens[[row]], KvStream(row, lengths[row]), cache))
            for row in range(count)
        ]
    )
    cache.tensor.copy_(kept)
    places = torch.tensor([list(range(count)), lengths], dtype=torch.int32, device="cuda")
    ours = tokens.clone()
    if count <= 4:
        few = FewSteps(lm, cache)
        few.read(ours, *places)
        logits = few.logits(ours, norms=True)
    else:
        tiles = torch.tensor([[row, 1] for row in range(count)], dtype=torch.int32, device="cuda")
        logits = lm.logits(StaticDecoder(lm.model, cache).forward(ours, Rows(*places, tiles)))
    error = (logits.float() - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert error.max() <= 1e-2


def test_nobody_s_company_changes_what_is_said() -> None:
    lane, _ = lane_and_slots(torch.float32)
    alone = [in_lane([work], lane)[0] for work in speaks(torch.float32, 9)]
    assert in_lane(speaks(torch.float32, 9), lane) == alone
    assert in_lane(speaks(torch.float32, 9)[3:6], lane) == alone[3:6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_taken_back_was_never_said(dtype: torch.dtype) -> None:
    lane, slots = lane_and_slots(dtype)
    first, other = speaks(dtype, 2)
    in_lane([first], lane)
    length, drawn = first.stream.length, first.random.drawn
    before = slots.speech.tensor[:, :, first.stream.slot, :, :length].clone()
    then = replace(other, stream=first.stream, random=first.random, may_end=False, tokens=[])
    said = in_lane([then], lane)
    for _ in range(2):
        first.stream.length, first.random.drawn = length, drawn
        again = replace(then, tokens=[])
        assert in_lane([again], lane) == said
        kept = slots.speech.tensor[:, :, first.stream.slot, :, :length]
        assert torch.equal(before, kept)


def test_a_turn_goes_on_behind_what_it_said() -> None:
    lane, slots = lane_and_slots(torch.float32)
    ways: list[Callable[[Speak], object]] = [
        lambda work: eagerly([work], slots, torch.float32)[0],
        lambda work: in_lane([work], lane)[0],
    ]
    told = []
    for way in ways:
        stream, random = KvStream(2), RandomSource(9)
        told.append(
            [way(replace(one, stream=stream, random=random)) for one in speaks(torch.float32, 5)]
        )
    assert told[0] == told[1]


def calls(count: int) -> list[SpeakOn]:
    return [
        SpeakOn(
            SpeechCall(
                list(range(70, 70 + row)),
                states(row, row, torch.float32),
                text_ended=row % 2 == 0,
                most=(60, 40, 33)[row % 3],
                before=list(range(row)),
            ),
            KvStream((7 * row + 1) % SLOTS, 3 * row),
            replace(ANSWER, top_p=(0.85, 1.0, 0.999)[row % 3], top_k=(25, 0, 2)[row % 3]),
            RandomSource(40 + row),
        )
        for row in range(count)
    ]


@pytest.mark.parametrize("count", [1, 4, 9])
def test_answers_go_on_second_by_second_until_they_end(count: int) -> None:
    lane, slots = lane_and_slots(torch.float32)
    ours, theirs = calls(count), calls(count)
    for _ in range(3):
        left = [place for place, one in enumerate(theirs) if not one.call.ended]
        expected = eagerly([theirs[place] for place in left], slots, torch.float32)
        got = in_lane([ours[place] for place in left], lane)
        assert got == expected
        assert [one.call.ended for one in ours] == [one.call.ended for one in theirs]
    assert all(one.call.ended for one in ours)


def test_units_and_answers_share_a_batch() -> None:
    lane, slots = lane_and_slots(torch.float32)
    works = [[*speaks(torch.float32, 2), *calls(1)] for _ in range(2)]
    expected = eagerly(works[0], slots, torch.float32)
    assert in_lane(works[1], lane) == expected


def test_speech_that_has_no_room_left_costs_its_own_conversation_alone() -> None:
    lane, _ = lane_and_slots(torch.float32)
    works = speaks(torch.float32, 3)
    alone = in_lane([speaks(torch.float32, 3)[1]], lane)
    works[0].stream.length = POSITIONS - 10
    works[2].stream.length = POSITIONS - 2
    assert lane.count(works) == 2  # the third has no room for its words either
    failures = lane.begin(works[:2]).finish()
    assert isinstance(failures.pop(0), ContextOverflow) and not failures
    assert [outcome(works[1])] == alone
    (failure,) = lane.begin(works[2:]).finish().values()
    assert isinstance(failure, ContextOverflow)


def test_a_second_that_one_conversation_needs_is_not_asked_of_the_host() -> None:
    """Between the condition and the last token nothing is read."""
    lane, _ = lane_and_slots(torch.bfloat16)
    works = speaks(torch.bfloat16, 4)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = lane.begin(works)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not batch.finish() and all(work.tokens for work in works)
    assert math.isfinite(sum(sum(work.tokens) for work in works))
