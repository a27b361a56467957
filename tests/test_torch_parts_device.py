"""Which failures the device does not survive: told by names and words, through their causes."""

import pytest
import torch

from agent.errors import VocoderError
from agent.torch_parts.device import breaks_device

ILLEGAL = "CUDA error: an illegal memory access was encountered"


def raised_from(error: Exception, cause: Exception, *, named: bool) -> Exception:
    """`error` as it is when raised where `cause` was at hand."""
    if named:
        error.__cause__ = cause
    else:
        error.__context__ = cause
    return error


@pytest.mark.parametrize("error", [RuntimeError(ILLEGAL), torch.AcceleratorError("assert")])
@pytest.mark.parametrize("named", [True, False])
def test_faults_of_the_gpu_break_it_also_as_causes(error: Exception, named: bool) -> None:
    assert breaks_device(error)
    assert breaks_device(raised_from(VocoderError("no sound"), error, named=named))


@pytest.mark.parametrize(
    "error",
    [
        None,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        VocoderError(ILLEGAL),
    ],
)
def test_other_failures_do_not(error: Exception | None) -> None:
    assert not breaks_device(error)
