"""Triton's interpreter: kernels on the CPU, slowly. To be imported before any module of kernels.

It is exact for float32 and float16. Of bfloat16, which NumPy does not have, conversions and matrix
products are made right here; anything else that is computed in it is wrong.
"""

import functools
import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

TRIED = "3.6."
"""The version whose interpreter is known to do what a GPU does; 3.9's takes no mask that is made of
a block and a single number."""


def _unable(reason: str) -> NoReturn:
    if os.environ.get("VOICE_AGENT_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


if torch.cuda.is_available():
    # What is imported for the interpreter stays there, for tests of the GPU, too.
    pytest.skip("the kernels are tried on the GPU here", allow_module_level=True)
if importlib.util.find_spec("triton") is None:
    _unable(f"Triton {TRIED}0 is not installed: its interpreter tries the kernels")
if not (found := importlib.metadata.version("triton")).startswith(TRIED):
    _unable(f"Triton {found} is installed; the kernels are tried with {TRIED}0")
os.environ["TRITON_INTERPRET"] = "1"

from triton.language import core, semantic  # noqa: E402
from triton.runtime import interpreter  # noqa: E402  it reads the variable

_patched = interpreter._patch_lang_tensor


def _patch(tensor, scope) -> None:  # type: ignore[no-untyped-def]
    """Of a whole number that is kept as an array of one, NumPy makes no index since 2.4."""
    _patched(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch
_executed = interpreter.GridExecutor.__call__


def _execute(self: Any, *given: Any, **named: Any) -> None:
    """Rows that are nobody's hold whatever was in memory; a GPU says nothing of what becomes of
    them either."""
    with np.errstate(over="ignore", invalid="ignore"):
        _executed(self, *given, **named)


interpreter.GridExecutor.__call__ = _execute


# ---- bfloat16: NumPy sees but its bits -----------------------------------------------------------

_cast, _dot = interpreter.InterpreterBuilder.cast_impl, interpreter.InterpreterBuilder.create_dot


def _cast_right(self: Any, src: Any, dst_type: Any) -> Any:
    """To the nearest bfloat16, as a GPU does: the interpreter cuts off what is behind it."""
    kinds = src.dtype.scalar, dst_type.scalar
    if kinds == (core.bfloat16, core.float32):
        wide = np.asarray(src.data, np.uint32) << 16
        return interpreter.TensorHandle(wide.view(np.float32), core.float32)
    if kinds != (core.float32, core.bfloat16):
        return _cast(self, src, dst_type)
    nearest = torch.from_numpy(np.array(src.data)).bfloat16().view(torch.uint16).numpy()
    return interpreter.TensorHandle(nearest, core.bfloat16)


def _dot_right(self: Any, a: Any, b: Any, *more: Any) -> Any:
    """Products of the numbers, not of their bits; of bfloat16 they are exact in float32."""
    wide = [
        self.cast_impl(one, core.float32) if one.dtype.scalar == core.bfloat16 else one
        for one in (a, b)
    ]
    return _dot(self, *wide, *more)


interpreter.InterpreterBuilder.cast_impl = _cast_right
interpreter.InterpreterBuilder.create_dot = _dot_right


# ---- in less time: half of it would go into names and shapes that nobody looks at ----------------


def _patch_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The language is patched at the first kernel and stays so, as no other kernels are here."""
    done = set()

    def once(fn: Any) -> Any:
        seen = frozenset(name for name in ("tl", "core") if name in fn.__globals__)
        if seen not in done:
            done.add(seen)
            patch(fn)
        return interpreter._LangPatchScope()

    return once


@functools.cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, int, Any, Any]:
    """As blocks and tensors keep it: (shape, count) of a block, (shape, count) of a tensor."""
    written = [core.constexpr(size) for size in sizes]
    count = core.validate_block_shape(sizes) if sizes else 1
    return core.tuple(list(sizes)), count, core.tuple(written), core.constexpr(math.prod(sizes))


def _make_block(self: Any, element_ty: Any, shape: Any) -> None:
    written = shape.values if isinstance(shape, core.tuple) else shape
    sizes = tuple(one.value if isinstance(one, core.constexpr) else one for one in written)
    if not sizes:
        raise TypeError("0d block_type is forbidden")
    self.element_ty = element_ty
    self.shape, self.numel, *_ = _shape(sizes)


def _make_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    *_, self.shape, self.numel = _shape(tuple(type.shape.values) if type.is_block() else ())


def _make_tuple(self: Any, args: Any, type: Any = None) -> None:
    self.values = list(args)
    if type is not None:
        self.type = type if isinstance(type, core.tuple_type) else core.tuple_type(type)


def _type_of_tuple(self: Any) -> Any:
    known = self.__dict__
    if "_type" not in known:
        known["_type"] = core._type_for_tuple_values(self.values)
    return known["_type"]


_numpy_kind = interpreter._get_np_dtype
_numpy_kind_of_numbers = functools.cache(_numpy_kind)


_operands = semantic.TritonSemantic.binary_op_type_checking_impl
_POINTERS_ALLOWED = 2
"""Arguments that say whether either side may be pointers; what is said behind them is for few."""


def _operands_of(self: Any, lhs: Any, rhs: Any, *given: Any) -> Any:
    """Two of one shape and one kind of number are as they are to be, unless they are divided."""
    are_tensors = isinstance(lhs, core.tensor) and isinstance(rhs, core.tensor)
    may_divide = len(given) > _POINTERS_ALLOWED
    if are_tensors and not may_divide and lhs.type == rhs.type and not lhs.dtype.is_ptr():
        return lhs, rhs
    return _operands(self, lhs, rhs, *given)


def _unchecked(self: Any, lhs: Any, rhs: Any, binary_op: Any) -> None:
    """Whether whole numbers overflow: the interpreter computes it for an assertion that it only
    makes where it is debugged itself."""


def _numpy_kind_of(kind: Any) -> Any:
    one = kind.element_ty if isinstance(kind, core.block_type) else kind
    return _numpy_kind(one) if one.is_ptr() else _numpy_kind_of_numbers(one)


core.block_type.__init__ = _make_block
core.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
core.tensor.__init__ = _make_tensor
core.tuple.__init__ = _make_tuple
semantic.TritonSemantic.binary_op_type_checking_impl = _operands_of
semantic.TritonSemantic.binary_op_sanitize_overflow_impl = _unchecked
core.tuple.type = property(_type_of_tuple, lambda self, made: self.__dict__.update(_type=made))
interpreter._get_np_dtype = _numpy_kind_of
interpreter._patch_lang = _patch_once(interpreter._patch_lang)


# ---- what is loaded ------------------------------------------------------------------------------

_load = interpreter._interpreter.load
_LOADS_SLOWLY = 1024
"""So many numbers; it takes them one by one, which only for fewer is faster than NumPy."""


class _Memory:
    """All bytes from one address to another, as an array of `kind`."""

    def __init__(self, first: int, last: int, kind: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "data": (first, True),
            "shape": ((last - first) // kind.itemsize + 1,),
            "typestr": kind.str,
            "version": 3,
        }


def _masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *_: Any) -> Any:
    """What lies at the pointers that count; of the others `other`, or 0."""
    element = ptrs.get_element_ty()
    kind = np.dtype(interpreter._get_np_dtype(element))
    rest = np.zeros(ptrs.data.shape, kind) if other is None else other.data
    load = _load if ptrs.data.size < _LOADS_SLOWLY else _load_many
    there = mask.data.astype(np.bool_, copy=False)
    return interpreter.TensorHandle(load(ptrs.data, there, rest, kind), element)


def _load_many(ptrs: Any, mask: Any, rest: Any, kind: Any) -> Any:
    a_valid = mask.argmax()
    if not mask.flat[a_valid]:
        return rest.astype(kind)
    places = np.where(mask, ptrs, ptrs.flat[a_valid])
    first, last = places.min(), places.max()
    places -= first
    if (places & (kind.itemsize - 1)).any():
        return _load(ptrs, mask, rest, kind)
    places >>= kind.itemsize.bit_length() - 1
    loaded = np.asarray(_Memory(int(first), int(last), kind)).take(places.view(np.int64))
    np.copyto(loaded, rest, where=~mask)
    return loaded


interpreter.InterpreterBuilder.create_masked_load = _masked_load
