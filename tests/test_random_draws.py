"""Chance inside kernels: the numbers that torch computes, from the same keys."""

import torch

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.duplex.cuda import random_draws
from agent.duplex.random_source import RandomSource, exponential, uniform

torch.set_num_threads(1)
triton, tl = random_draws.triton, random_draws.tl


@triton.jit
def _numbers(keys, index, even, late, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    row, place = tl.program_id(0), tl.arange(0, COUNT)
    key, one = tl.load(keys + row), tl.load(index + place)
    tl.store(even + row * COUNT + place, random_draws.uniform(key, one))
    tl.store(late + row * COUNT + place, random_draws.exponential(key, one))


def test_a_kernel_draws_the_same_numbers() -> None:
    keys = torch.tensor([*RandomSource(6).keys(6), 0, (1 << 32) - 1])
    index = torch.cat([torch.arange(1000), torch.arange(151_724, 151_748)])
    words = torch.where(keys < 1 << 31, keys, keys - (1 << 32)).int()
    even, late = torch.empty(2, len(keys), len(index)).unbind()
    _numbers[(len(keys),)](words, index.int(), even, late, len(index))
    assert torch.equal(even, uniform(keys[:, None], index))
    assert torch.allclose(late, exponential(keys[:, None], index), rtol=1e-6)
