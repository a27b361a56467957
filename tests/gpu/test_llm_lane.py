"""The LLM's lane on a GPU, at full width with a few layers: graphs say what eager reads say."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from agent.duplex.config import Numerics, parse_config
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.lanes import EagerLane
from agent.duplex.llm import Llm
from agent.duplex.model import DuplexModel
from agent.duplex.random_source import RandomSource
from agent.duplex.reading import ReadAll
from agent.duplex.sampling import Drawing, History, TextSampler, TextSampling, banned_ids
from agent.duplex.slots import Slots
from agent.duplex.work import Choice, Choose, Read, Work
from agent.errors import ContextOverflow
from agent.torch_parts.checkpoint import Target
from bench.random_model import FULL_SIZE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LAYERS, SLOTS, POSITIONS = 3, 8, 2304
PAST = {0: 2000, 1: 0, 2: 700, 3: 63, 4: 64, 5: 1200}
"""How many positions each slot has read before a test."""


def made() -> tuple[DuplexModel, Llm]:
    device = torch.device("cuda")
    config = dataclasses.replace(parse_config(FULL_SIZE).llm, layers=LAYERS)
    with torch.device("meta"):
        llm = Llm(config, Numerics()).requires_grad_(False)
    llm = llm.bfloat16().to_empty(device=device)
    llm.model.rotary.derive(device)
    torch.manual_seed(0)
    for name, parameter in llm.named_parameters():
        noise = torch.randn_like(parameter)
        wide = 0.5 if "embed" in name else parameter.shape[-1] ** -0.5
        parameter.copy_(noise * wide if parameter.ndim == 2 else 1 + 0.1 * noise)
    banned = banned_ids((42, 43), device)
    target = Target(device, torch.bfloat16)
    model = SimpleNamespace(llm=llm, banned=banned, target=target, config=SimpleNamespace())
    return cast(DuplexModel, model), llm


def cache() -> KvCache:
    shape = (LAYERS, 2, SLOTS, 8, POSITIONS, 128)
    return KvCache(torch.zeros(shape, dtype=torch.bfloat16, device="cuda"))


class Pair:
    """The same conversations in a lane and eagerly, each with a cache of its own."""

    def __init__(self) -> None:
        from agent.duplex.cuda.llm_lane import LlmLane

        self.model, self.llm = made()
        self.ours, self.theirs = cache(), cache()
        self.lane = LlmLane(self.model, cast(Slots, SimpleNamespace(llm=self.ours, count=SLOTS)))
        self.eager = EagerLane(self.model, cast(Slots, SimpleNamespace(llm=self.theirs)))
        for slot, length in PAST.items():
            if length:
                self.eager.begin([Read(KvStream(slot), vectors=vectors(length, seed=slot))])
        self.past = self.theirs.tensor.clone()

    def anew(self) -> None:
        self.ours.tensor.copy_(self.past)
        self.theirs.tensor.copy_(self.past)

    def run(self, works: list[Work]) -> dict[int, Exception]:
        assert self.lane.count(works) == len(works)
        torch.cuda.synchronize()
        return dict(self.lane.begin(works).finish())


@pytest.fixture(scope="module")
def shared() -> Pair:
    return Pair()


@pytest.fixture
def pair(shared: Pair) -> Pair:
    shared.anew()
    return shared


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    noise = torch.randn(count, 4096, generator=generator, device="cuda", dtype=torch.bfloat16)
    return noise * 0.5


def choice(seed: int, settings: TextSampling) -> Choice:
    banned = banned_ids((42, 43), torch.device("cuda"))
    drawing = Drawing(History(512, [(7, 1), (8, 1)]), RandomSource(seed))
    return Choice(TextSampler(settings, banned), drawing)


def mixture(settings: TextSampling) -> list[Read]:
    """A decode step, a unit, a unit with a picture, and more; in no order of slots."""
    counts = {5: 1, 0: 13, 2: 80, 1: 2, 4: 1, 3: 5}
    return [
        Read(KvStream(slot, PAST[slot]), [1000 + slot], vectors(count - 1, 90 + slot) if count > 1
             else None, choice(slot, settings))
        for slot, count in counts.items()
    ]  # fmt: skip


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def test_a_mixed_batch_is_each_read_alone(pair: Pair) -> None:
    ours, theirs = mixture(TextSampling(greedy=True)), mixture(TextSampling(greedy=True))
    assert pair.run(list(ours)) == {}
    for one in theirs:
        assert not pair.eager.begin([one]).finish()
    for our, their in zip(ours, theirs, strict=True):
        assert apart(our.state, their.state) < 1e-2
        assert our.stream == their.stream
        best = pair.llm.logits(their.state).float().topk(2).values
        # Rounding of a bfloat16 logit, and of what led to it.
        if float(best[0] - best[1]) > 0.05 * float(best[0].abs()):
            assert our.token == their.token
    assert apart(pair.ours.tensor, pair.theirs.tensor) < 1e-2


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 40, 96, 130, 500, 700])
def test_any_number_of_rows(pair: Pair, count: int) -> None:
    ours = Read(KvStream(5, 1200), vectors=vectors(count, seed=count))
    theirs = Read(KvStream(5, 1200), vectors=vectors(count, seed=count))
    assert pair.run([ours]) == {} and not pair.eager.begin([theirs]).finish()
    assert apart(ours.state, theirs.state) < 1e-2
    assert apart(pair.ours.tensor[:, :, 5], pair.theirs.tensor[:, :, 5]) < 1e-2
    assert torch.equal(pair.ours.tensor[:, :, 0], pair.past[:, :, 0])


def test_company_changes_rounding_alone_and_a_batch_is_the_same_twice(pair: Pair) -> None:
    settings = TextSampling(greedy=True)
    first, again = mixture(settings), mixture(settings)
    pair.run(list(first))
    pair.anew()
    pair.run(list(again))
    assert [work.token for work in first] == [work.token for work in again]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.state, other.state)
    for alone, together in zip(mixture(settings), first, strict=True):
        pair.anew()
        pair.run([alone])
        assert apart(alone.state, together.state) < 1e-2


def test_a_draw_is_what_the_sampler_draws_from_the_same_state(pair: Pair) -> None:
    works = mixture(TextSampling())
    pair.run(list(works))
    for work in works:
        expected = choice(work.stream.slot, TextSampling())
        choosing = Choose(work.state, expected)
        pair.run([choosing])
        assert choosing.token == work.token


def test_going_back_and_moving(pair: Pair) -> None:
    frequencies = pair.llm.model.rotary.frequencies
    states = []
    for used, kept in ((pair.run, pair.ours), (pair.eager.begin, pair.theirs)):
        stream = KvStream(0, 2000)
        used([Read(stream, vectors=vectors(30, seed=1))])
        stream.length = 2010
        kept.move(stream, start=1500, to=900, frequencies=frequencies)
        last = Read(stream, [5, 6])
        used([last])
        assert stream.length == 1412
        states.append(last.state)
    assert apart(*states) < 1e-2


def test_what_fails_and_what_is_done_eagerly(pair: Pair) -> None:
    full = Read(KvStream(0, POSITIONS), [1], choice=choice(0, TextSampling()))
    other = Read(KvStream(1), [1], choice=choice(1, TextSampling()))
    failures = pair.run([full, other])
    assert list(failures) == [0] and isinstance(failures[0], ContextOverflow)
    assert 0 <= other.token < 151748 and full.token == -1
    every = ReadAll(vectors(20, seed=3), KvStream(1, 1))
    assert pair.run([every]) == {} and every.states.shape == (20, 4096)
