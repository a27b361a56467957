"""Which failures leave the device unusable, told without torch: the process's own thread asks, too.

Memory that ran out (`torch.OutOfMemoryError`) is not among them: only what asked for it fails.
"""


def breaks_device(error: BaseException | None) -> bool:
    """Whether `error` comes of a fault of the GPU, after which no call on it can succeed.

    By name and words, of the error itself and of what it came from.
    """
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "AcceleratorError" in kinds:
            return True
        if isinstance(error, RuntimeError) and "CUDA error" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
