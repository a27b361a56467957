"""How kernels are started where Triton interprets them."""

from tests.rig import triton_on_cpu  # noqa: F401, I001  the kernels are interpreted

import torch
import triton
import triton.language as tl

from agent.torch_parts.kernels.launching import compile_together, launch


@triton.jit
def _add(numbers, more, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, BLOCK)
    tl.store(numbers + place, tl.load(numbers + place) + more)


def test_nothing_is_compiled_where_kernels_are_interpreted() -> None:
    numbers = torch.zeros(8, dtype=torch.int32)
    compile_together([lambda: launch(_add, (1,), numbers, 2, BLOCK=8)])
    assert not numbers.any(), "what would only be compiled is not called"
    launch(_add, (1,), numbers, 2, BLOCK=8)
    assert (numbers == 2).all()
