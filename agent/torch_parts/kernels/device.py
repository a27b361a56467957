"""What kernels ask of the device that they are for."""

from functools import lru_cache

import torch
import triton


@lru_cache(maxsize=16)
def fast_memory(device: torch.device) -> int:
    """Bytes of the memory of a multiprocessor that a program may have."""
    if device.type != "cuda":
        return 1 << 18
    index = torch.cuda.current_device() if device.index is None else device.index
    memory = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return int(memory)
