"""A push that fails late still gives the sound that it made before; what went wrong comes next."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from agent.errors import VocoderError
from agent.torch_parts.device import breaks_device
from agent.types import FloatArray


def made_of(chunks: Iterator[Tensor]) -> tuple[FloatArray, str]:
    """The sound [T] of the chunks [t] as far as they come, and why no more came; "": all did.

    What fails the first chunk is raised, and so is a broken GPU.
    """
    made: list[FloatArray] = []
    failure = ""
    try:
        for chunk in chunks:
            made.append(chunk.cpu().numpy())
    except (VocoderError, RuntimeError) as error:
        if not made or breaks_device(error):
            raise
        failure = str(error) or type(error).__name__
    return np.concatenate([np.zeros(0, np.float32), *made]), failure
