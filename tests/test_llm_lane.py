"""The LLM's lane without its stream and graphs: batches in the interpreter are each work alone."""

import pytest
import torch
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.duplex.config import LlmConfig, Numerics
from agent.duplex.cuda.llm_lane_program import LlmProgram
from agent.duplex.cuda.llm_lane_rows import LlmSizes, passes_of
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.llm import Llm
from agent.duplex.random_source import RandomSource
from agent.duplex.reading import ReadAll
from agent.duplex.sampling import Drawing, History, TextSampler, TextSampling, banned_ids
from agent.duplex.tokens import VOCABULARY_SIZE
from agent.duplex.work import Choice, Choose, Read
from agent.errors import ContextOverflow

CONFIG = LlmConfig(
    width=32,
    ffn_width=48,
    layers=1,
    heads=2,
    kv_heads=1,
    head_width=16,
    vocabulary=VOCABULARY_SIZE,
    max_positions=512,
    rope_theta=1e4,
    norm_eps=1e-6,
)
SIZES = LlmSizes(rows=(1, 4, 12), choices=(1, 4))
POSITIONS = 40
BANNED = banned_ids((42, 43), torch.device("cpu"))
CLOSE = 1e-5


@pytest.fixture(scope="module")
def llm() -> Llm:
    torch.manual_seed(3)
    llm = Llm(CONFIG, Numerics()).requires_grad_(False)
    for parameter in llm.parameters():
        parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return llm


class Bench:
    """The same conversations twice: in a program's cache, and in one that is read eagerly."""

    def __init__(self, llm: Llm) -> None:
        shape = (1, 2, 4, 1, POSITIONS, CONFIG.head_width)
        self.llm = llm
        self.cache, self.eager = KvCache(torch.zeros(shape)), KvCache(torch.zeros(shape))
        self.program = LlmProgram(llm, self.cache, BANNED, SIZES)

    def run(self, *works: Read | Choose) -> dict[int, Exception]:
        assert self.program.count(works) == len(works)
        self.program.begin(works)
        return dict(self.program.take())

    def alone(self, ids: list[int], stream: KvStream, vectors: Tensor | None = None) -> Tensor:
        """The state at the end; `stream` is eager's own."""
        rows = self.llm.embed(ids) if vectors is None else torch.cat([self.llm.embed(ids), vectors])
        return self.llm.read(rows[None], [stream], self.eager)[0, -1]

    def is_same(self) -> bool:
        return close(self.cache.tensor, self.eager.tensor)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= CLOSE * theirs.abs().max())


def choice(seed: int, settings: TextSampling | None = None) -> Choice:
    drawing = Drawing(History(512, [(5, 1), (seed, 1)]), RandomSource(seed), may_listen=True)
    return Choice(TextSampler(settings or TextSampling(), BANNED), drawing)


def test_a_batch_of_any_reads_is_each_of_them_alone(llm: Llm) -> None:
    bench, eager = Bench(llm), [KvStream(slot) for slot in (2, 0, 3)]
    ours = [KvStream(slot) for slot in (2, 0, 3)]
    vectors = torch.randn(4, CONFIG.width)
    assert bench.run(Read(ours[1], [9, 8, 7])) == {}
    bench.alone([9, 8, 7], eager[1])
    works = [
        Read(ours[0], [1, 2], vectors, choice(11)),
        Read(ours[1], [3], choice=choice(12)),
        Read(ours[2], vectors=vectors[:2]),
    ]
    assert bench.run(*works) == {}
    states = [
        bench.alone([1, 2], eager[0], vectors),
        bench.alone([3], eager[1]),
        bench.alone([], eager[2], vectors[:2]),
    ]
    assert [stream.length for stream in ours] == [6, 4, 2]
    for work, state in zip(works, states, strict=True):
        assert close(work.state, state)
    assert bench.is_same()
    for work, state, seed in zip(works[:2], states, (11, 12), strict=False):
        one = choice(seed)
        assert [work.token] == one.sampler.choose(llm.logits(state[None]), [one.drawing])
    assert works[2].token == -1


def test_a_read_longer_than_a_pass_goes_on_in_the_next(llm: Llm) -> None:
    bench, stream, eager = Bench(llm), KvStream(1), KvStream(1)
    vectors = torch.randn(20, CONFIG.width)
    work = Read(stream, [4, 5, 6], vectors)
    assert bench.program.count([work, Read(KvStream(0), [1])]) == 1
    assert bench.run(work) == {}
    assert close(work.state, bench.alone([4, 5, 6], eager, vectors)) and bench.is_same()
    pieces = [piece for one in passes_of([(0, work)], 12) for piece in one]
    assert [(piece.begin, piece.stop, piece.is_last) for piece in pieces] == [
        (0, 12, False),
        (12, 23, True),
    ]


def test_only_what_does_not_fit_fails_and_nothing_of_it_is_written(llm: Llm) -> None:
    bench, full, other = Bench(llm), KvStream(0, POSITIONS - 1), KvStream(1)
    before = bench.cache.tensor[:, :, 0].clone()
    lost = choice(3)
    works = [Read(full, [1, 2], choice=lost), Read(other, [5], choice=choice(4))]
    failures = bench.run(*works)
    assert list(failures) == [0] and isinstance(failures[0], ContextOverflow)
    assert full.length == POSITIONS - 1 and torch.equal(bench.cache.tensor[:, :, 0], before)
    assert lost.drawing.random.drawn == 0
    assert close(works[1].state, bench.alone([5], KvStream(1))) and works[1].token >= 0


def test_states_that_were_kept_are_chosen_from_by_any_sampler(llm: Llm) -> None:
    class Last:
        def choose(self, logits: Tensor, drawings: list[Drawing]) -> list[int]:
            assert len(logits) == len(drawings)
            return [int(row.argsort()[-2]) for row in logits]

    bench, state = Bench(llm), torch.randn(CONFIG.width)
    other = Choice(Last(), choice(0).drawing)
    greedy = choice(1, TextSampling(greedy=True))
    works = [Choose(state, other), Choose(state * 2, greedy), Read(KvStream(0), [6], choice=other)]
    assert bench.run(*works) == {}
    read = bench.alone([6], KvStream(0))
    assert works[0].token == int(llm.logits(state).argsort()[-2])
    assert works[2].token == int(llm.logits(read).argsort()[-2])
    expected = choice(1, TextSampling(greedy=True))
    assert [works[1].token] == expected.sampler.choose(
        llm.logits(state[None] * 2), [expected.drawing]
    )


def test_going_back_and_moving_leave_what_eager_reads_leave(llm: Llm) -> None:
    bench, ours, eager = Bench(llm), KvStream(3), KvStream(3)
    frequencies = llm.model.rotary.frequencies
    for stream, cache in ((ours, bench.cache), (eager, bench.eager)):
        if cache is bench.cache:
            bench.run(Read(stream, [1, 2, 3, 4, 5, 6, 7, 8]))
        else:
            bench.alone([1, 2, 3, 4, 5, 6, 7, 8], stream)
        stream.length = 7
        cache.move(stream, start=5, to=2, frequencies=frequencies)
    work = Read(ours, [9, 10])
    bench.run(work)
    assert close(work.state, bench.alone([9, 10], eager)) and ours.length == eager.length == 6
    assert close(bench.cache.tensor[..., :6, :], bench.eager.tensor[..., :6, :])


def test_batches_hold_what_fits_and_no_other_kind_of_work(llm: Llm) -> None:
    program = Bench(llm).program
    reads = [Read(KvStream(slot), [1] * 4) for slot in range(4)]
    assert program.count(reads) == 3
    assert program.count([reads[0], ReadAll(torch.zeros(2, CONFIG.width), KvStream(1))]) == 1
    assert program.count([Read(KvStream(0))]) == 0
    choosing = [Choose(torch.zeros(CONFIG.width), choice(0)) for _ in range(6)]
    assert program.count(choosing) == 4


def test_sizes_hold_every_conversation() -> None:
    assert LlmSizes.for_slots(1).choices == (1,)
    assert LlmSizes.for_slots(5).most_works == 8
    assert LlmSizes.for_slots(64).most_works == 64
