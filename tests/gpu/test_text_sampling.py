"""DECODE's kernels on a GPU against the sampler on the same GPU: thousands of draws."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History, TextSampler, TextSampling, banned_ids
from agent.duplex.tokens import VOCABULARY_SIZE, Token

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PLAIN = TextSampling()
SETTINGS = [
    PLAIN,
    PLAIN,
    replace(PLAIN, greedy=True),
    replace(PLAIN, temperature=1.3, top_k=128, top_p=0.97),
    replace(PLAIN, repetition_penalty=1.6, repetition_window=20, length_penalty=0.8),
    replace(PLAIN, listen_bias=3.0, listen_scale=1.5),
    replace(PLAIN, listen_scale=2.0, listen_top_k=5, parity=True),
    replace(PLAIN, top_p=0.0, temperature=0.05),
]
ROUNDS = 250
MARKS = [Token.CHUNK_EOS, Token.TURN_EOS, Token.LISTEN, Token.IM_END, 9]


def device() -> torch.device:
    return torch.device("cuda")


def drawings(seed: int) -> list[Drawing]:
    made = []
    for row in range(len(SETTINGS)):
        generator = torch.Generator().manual_seed(seed * 100 + row)
        count = int(torch.randint(0, 700, (1,), generator=generator)) * (row % 3 > 0)
        said = torch.randint(0, 3000, (count,), generator=generator).tolist()
        history = History(512, [(one, 1) for one in said])
        made.append(Drawing(history, RandomSource(seed + row, 7 * seed), row % 4 == 0))
    return made


def logits(seed: int, dtype: torch.dtype) -> Tensor:
    """As a model's are: most of them far below, and in bfloat16 many that are equal."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (len(SETTINGS), VOCABULARY_SIZE)
    out = 2 * torch.randn(shape, generator=generator, device="cuda")
    out[:, MARKS] = 9 + 2 * torch.randn(
        len(SETTINGS), len(MARKS), generator=generator, device="cuda"
    )
    return out.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_draw_what_the_sampler_draws(dtype: torch.dtype) -> None:
    from agent.duplex.cuda.text_sampling import RowSampling

    banned = banned_ids(list(range(100, 160)), device())
    sampling = RowSampling(len(SETTINGS), banned)
    samplers = [TextSampler(one, banned) for one in SETTINGS]
    same = 0
    for seed in range(ROUNDS):
        values = logits(seed, dtype)
        for row, each in enumerate(drawings(seed)):
            sampling.fill(row, samplers[row], each)
        sampling.send()
        ours = sampling.choose(values).tolist()
        rows = zip(samplers, values, drawings(seed), strict=True)
        theirs = [one.choose(row[None], [each])[0] for one, row, each in rows]
        same += sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert same >= 0.999 * ROUNDS * len(SETTINGS)


def test_a_recorded_draw_follows_what_is_sent() -> None:
    from agent.duplex.cuda.text_sampling import RowSampling

    banned = banned_ids([9], device())
    sampling = RowSampling(4, banned)
    sampler = TextSampler(PLAIN, banned)
    values = logits(0, torch.bfloat16)[:4].clone()
    sampling.choose(values)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sampling.choose(values)
    for seed in range(1, 6):
        values.copy_(logits(seed, torch.bfloat16)[:4])
        for row in range(4):
            sampling.fill(row, sampler, drawings(seed)[row])
        sampling.send()
        graph.replay()
        expected = [sampler.choose(values[[row]], [drawings(seed)[row]])[0] for row in range(4)]
        assert tokens.tolist() == expected
