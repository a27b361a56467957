"""Which failures leave the device unusable, told without torch: the process's own thread asks, too.

Memory that ran out is not among them, whoever asked for it, torch or a library of the GPU's: only
what asked for it fails.
"""

_NO_MEMORY = ("out of memory", "ALLOC_FAILED")


def breaks_device(error: BaseException | None) -> bool:
    """Whether `error` comes of a fault of the GPU, after which no call on it can succeed.

    By name and words, of the error itself and of what it came from.
    """
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        is_of_gpu = isinstance(error, RuntimeError) and "CUDA error" in str(error)
        has_memory = not any(words in str(error) for words in _NO_MEMORY)
        if has_memory and ("AcceleratorError" in kinds or is_of_gpu):
            return True
        error = error.__cause__ or error.__context__
    return False
