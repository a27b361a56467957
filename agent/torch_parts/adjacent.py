"""Whether tensors lie side by side, so that they can be taken for one without a copy."""

from collections.abc import Sequence

from torch import Tensor


def follow_each_other(tensors: Sequence[Tensor]) -> bool:
    """Whether these, at least one, lie one behind the other in the same storage, with no gap."""
    storage, end = tensors[0].untyped_storage().data_ptr(), tensors[0].data_ptr()
    for tensor in tensors:
        here = tensor.untyped_storage().data_ptr() == storage and tensor.data_ptr() == end
        if not here or not tensor.is_contiguous():
            return False
        end += tensor.nbytes
    return True
