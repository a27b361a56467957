"""Kernels that are compiled together: they are not run, and are there when they are."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

import triton
import triton.language as tl
from torch import Tensor

from agent.torch_parts.kernels.launching import compile_together, launch

_COUNT = 64


@triton.jit
def _add(numbers, more, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, BLOCK)
    tl.store(numbers + place, tl.load(numbers + place) + more)


def _start(numbers: Tensor, more: int) -> None:
    launch(_add, (1,), numbers, more, BLOCK=_COUNT)


def _compiled() -> int:
    """Kinds of the kernel that are there."""
    return len(_add.device_caches[torch.cuda.current_device()][0])


def test_what_is_compiled_together_is_not_run_and_compiled_once() -> None:
    whole = torch.zeros(_COUNT + 1, dtype=torch.int32, device="cuda")
    aligned, odd, wide = whole[:_COUNT], whole[1:], whole.long()[:_COUNT]
    kinds = [(aligned, 1), (aligned, 3), (aligned, 16), (odd, 3), (wide, 3), (aligned, 1 << 40)]
    before = _compiled()
    compile_together(lambda kind=kind: _start(*kind) for kind in [*kinds, *kinds])
    assert _compiled() - before == len(kinds)
    assert not whole.any()
    for numbers, more in kinds:
        _start(numbers, more)
    assert _compiled() - before == len(kinds), "those that were compiled are found"
    assert whole[0] == 1 + 3 + 16


def test_starts_are_run_again_behind_a_call_that_fails() -> None:
    numbers = torch.zeros(_COUNT, dtype=torch.int32, device="cuda")

    def fail() -> None:
        _start(numbers, 2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        compile_together([fail])
    _start(numbers, 2)
    assert (numbers == 2).all()
