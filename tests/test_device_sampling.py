"""DECODE for many rows at once: the tokens that the sampler would have chosen for each alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.duplex.cuda.text_sampling import RowSampling
from agent.duplex.cuda.text_sampling_kernels import TextDraw
from agent.duplex.cuda.text_sampling_rows import MOST_TOP_K, TextRows
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History, TextSampler, TextSampling, banned_ids
from agent.duplex.tokens import VOCABULARY_SIZE, Token

torch.set_num_threads(1)
BANNED = banned_ids([9, 11, 13], torch.device("cpu"))
PLAIN = TextSampling()
SETTINGS = [
    PLAIN,
    replace(PLAIN, greedy=True),
    replace(PLAIN, temperature=1.3, top_k=MOST_TOP_K, top_p=0.97),
    replace(PLAIN, repetition_penalty=1.6, repetition_window=20, length_penalty=0.8),
    replace(PLAIN, listen_bias=3.0, listen_scale=1.5),
    replace(PLAIN, listen_scale=2.0, listen_top_k=4),
    replace(PLAIN, listen_scale=2.0, listen_top_k=5, parity=True),
    replace(PLAIN, top_p=0.0, temperature=0.05),
]
"""As different as they come; each is a row's of every batch."""
MARKS = [Token.CHUNK_EOS, Token.TURN_EOS, Token.LISTEN, Token.IM_END, 9]


def drawings(seed: int) -> list[Drawing]:
    """A row's for each of the settings: none remembers the same, and some remember nothing."""
    made = []
    for row in range(len(SETTINGS)):
        generator = torch.Generator().manual_seed(seed * 100 + row)
        count = int(torch.randint(0, 700, (1,), generator=generator)) * (row % 3 > 0)
        said = torch.randint(0, 60, (count,), generator=generator).tolist()
        said += [Token.TURN_EOS, Token.LISTEN] * (row % 2)
        history = History(512, [(one, 1) for one in said])
        made.append(Drawing(history, RandomSource(seed + row, 7 * seed), row % 4 == 0))
    return made


def near_logits(seed: int, dtype: torch.dtype) -> Tensor:
    """What is likeliest lies close together, so that in bfloat16 much is equal."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(len(SETTINGS), VOCABULARY_SIZE, generator=generator)
    out[:, :60] = 5 + 3 * torch.randn(len(SETTINGS), 60, generator=generator)
    out[:, MARKS] = 8 + 3 * torch.randn(len(SETTINGS), len(MARKS), generator=generator)
    return out.to(dtype)


def alone(logits: Tensor, seed: int) -> list[int]:
    rows = zip(SETTINGS, logits, drawings(seed), strict=True)
    return [TextSampler(one, BANNED).choose(row[None], [each])[0] for one, row, each in rows]


def together(sampling: RowSampling, logits: Tensor, seed: int) -> list[int]:
    for row, (one, each) in enumerate(zip(SETTINGS, drawings(seed), strict=True)):
        sampling.fill(row, TextSampler(one, BANNED), each)
    sampling.send()
    tokens: list[int] = sampling.choose(logits).tolist()
    return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_of_a_batch_is_drawn_as_it_would_be_alone(dtype: torch.dtype) -> None:
    sampling = RowSampling(len(SETTINGS), BANNED)
    seen: set[int] = set()
    for seed in range(25):
        logits = near_logits(seed, dtype)
        expected = alone(logits, seed)
        assert together(sampling, logits, seed) == expected
        seen |= set(expected)
    assert {Token.CHUNK_EOS, Token.LISTEN, Token.IM_END} <= seen and len(seen) > 20


@pytest.mark.parametrize(
    ("dtype", "which"), [(torch.float32, [0, 1, 6]), (torch.bfloat16, [3, 4, 5])]
)
def test_the_kernels_draw_the_same(dtype: torch.dtype, which: list[int]) -> None:
    draw, rows = TextDraw(3, BANNED, tile=65536), TextRows(3, torch.device("cpu"))
    for row, one in enumerate(which):
        rows.fill(row, TextSampler(SETTINGS[one], BANNED), drawings(1)[one])
    rows.send()
    logits = near_logits(1, dtype)
    expected = alone(logits, 1)
    assert draw.tokens(logits[which], rows.device).tolist() == [expected[one] for one in which]


def test_equal_logits_go_by_their_ids() -> None:
    sampling = RowSampling(len(SETTINGS), BANNED)
    for seed in range(5):
        logits = torch.full((len(SETTINGS), VOCABULARY_SIZE), -30.0)
        logits[:, 100:160] = torch.tensor([4.0, 5.0]).repeat(30)
        assert together(sampling, logits, seed) == alone(logits, seed)


def test_what_is_drawn_with_a_row_does_not_count_for_it() -> None:
    logits = near_logits(1, torch.bfloat16)
    whole = together(RowSampling(len(SETTINGS), BANNED), logits, 1)
    few = RowSampling(len(SETTINGS), BANNED)
    for row in range(3):
        few.fill(row, TextSampler(SETTINGS[row], BANNED), drawings(1)[row])
    few.send()
    assert few.choose(logits[:4]).tolist()[:3] == whole[:3]


def test_as_many_keys_are_drawn_as_by_the_sampler() -> None:
    (ours, theirs) = drawings(3)[1], drawings(3)[1]
    RowSampling(1, BANNED).fill(0, TextSampler(PLAIN, BANNED), ours)
    TextSampler(PLAIN, BANNED).choose(near_logits(3, torch.float32)[:1], [theirs])
    assert ours.random == theirs.random


def test_what_it_cannot_draw_it_says() -> None:
    def takes(settings: TextSampling) -> bool:
        return RowSampling.takes(TextSampler(settings, BANNED))

    assert all(takes(one) for one in SETTINGS)
    assert not takes(replace(PLAIN, top_k=0)) and not takes(replace(PLAIN, top_k=MOST_TOP_K + 1))
    assert not takes(replace(PLAIN, repetition_window=513))
    assert not RowSampling.takes(object())
