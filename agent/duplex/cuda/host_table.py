"""A table that the device reads where it lies: in the host's memory.

Of the table of words a pass looks up some rows, 8 KB each, and the device can do that over the bus:
what it would take of its own memory, 1.2 GB, is worth more to it.
"""

import logging

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

_WHOLE_NUMBERS = {1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}
"""How numbers of so many bytes are announced: of bfloat16 the interface knows nothing."""


def keep_on_host(table: nn.Embedding) -> None:
    """From now on the rows of `table` are in the host's memory, for whoever looks them up alike.

    It stays on the device where the host has no such memory left, which is logged.
    """
    try:
        weight = on_host(table.weight.detach())
    except RuntimeError as error:
        log.warning("the table of words stays in the GPU's memory: %s", error)
        return
    table.weight = nn.Parameter(weight, requires_grad=False)
    torch.cuda.empty_cache()


def on_host(table: Tensor) -> Tensor:
    """The same values in pinned memory of the host, as a tensor of `table`'s device.

    RuntimeError when there is none left.
    """
    pinned = torch.empty(table.shape, dtype=table.dtype, pin_memory=True).copy_(table)
    with torch.cuda.device(table.device):
        numbers = torch.as_tensor(_Mapped(pinned), device=table.device)
    return numbers.view(table.dtype)


class _Mapped:
    """Pinned memory under the address that the device knows it by too; lives as its tensors do."""

    def __init__(self, pinned: Tensor) -> None:
        self._pinned = pinned
        self.__cuda_array_interface__ = {
            "shape": tuple(pinned.shape),
            "typestr": _WHOLE_NUMBERS[pinned.element_size()],
            "data": (pinned.data_ptr(), False),
            "version": 2,
        }
