"""Triton's interpreter: kernels on the CPU, slowly. To be imported before any module of kernels.

It is exact for float32 alone: its bfloat16 products are wrong.
"""

import importlib.metadata
import importlib.util
import os
from typing import NoReturn

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

from triton.runtime import interpreter  # noqa: E402  it reads the variable

_patched = interpreter._patch_lang_tensor


def _patch(tensor, scope) -> None:  # type: ignore[no-untyped-def]
    """Of a whole number that is kept as an array of one, NumPy makes no index since 2.4."""
    _patched(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch
