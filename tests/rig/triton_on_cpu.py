"""Triton's interpreter: kernels on the CPU, slowly. To be imported before any module of kernels.

It is exact for float32 alone: its bfloat16 products are wrong.
"""

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime import interpreter

_patched = interpreter._patch_lang_tensor


def _patch(tensor, scope) -> None:  # type: ignore[no-untyped-def]
    """Of a whole number that is kept as an array of one, NumPy makes no index since 2.4."""
    _patched(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch
