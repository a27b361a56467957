"""How kernels are started where Triton interprets them."""

from tests.rig import triton_on_cpu  # noqa: F401, I001  the kernels are interpreted

from itertools import combinations

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import JITFunction, native_specialize_impl

from agent.torch_parts.kernels.launching import compile_together, kind_of, launch


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


def _given(fixed, free):  # type: ignore[no-untyped-def]
    """A kernel's parameters; nothing is compiled for the value of the first."""


_NUMBERS = torch.zeros(64, dtype=torch.int32)
_ARGUMENTS = (
    *(0, 1, 2, 3, 16, -1, 2**31 - 1, 2**31, 1 << 40, (1 << 40) + 1),
    *(True, False, 1.0, 2.5, None, _NUMBERS, _NUMBERS[1:], _NUMBERS.half()),
)


@pytest.mark.parametrize("place", [0, 1], ids=["fixed", "free"])
def test_what_triton_compiles_anew_for_is_of_another_kind(place: int) -> None:
    parameter = JITFunction(_given, do_not_specialize=["fixed"]).params[place]

    def compiled_for(argument: object) -> object:
        is_special = not parameter.do_not_specialize
        return native_specialize_impl(BaseBackend, argument, False, is_special, True)

    for one, other in combinations(_ARGUMENTS, 2):
        if compiled_for(one) != compiled_for(other):
            assert kind_of(parameter, one) != kind_of(parameter, other), (one, other)
