"""Pushes of many turns, done one after the other: what every batch says the same as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from agent.errors import VocoderError
from agent.interfaces import VocoderPush
from agent.torch_parts.device import breaks_device
from agent.types import FloatArray

Answer: TypeAlias = FloatArray | VocoderError


@dataclass(frozen=True, slots=True)
class DoneBatch:
    """A `VocoderBatch` that was done when it was begun."""

    answers: Sequence[Answer]
    done: bool = True

    def take(self) -> Sequence[Answer]:
        """See `VocoderBatch`."""
        return self.answers


def done_one_by_one(pushes: Sequence[VocoderPush]) -> DoneBatch:
    """All of them, here and now."""
    return DoneBatch([answer_to(partial(pushed, push)) for push in pushes])


def pushed(push: VocoderPush) -> FloatArray:
    """The sound of one. `VocoderError`."""
    parts = [push.stream.push(push.tokens)] if push.tokens else []
    parts += [push.stream.finish()] if push.last else []
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def answer_to(ask: Callable[[], FloatArray]) -> Answer:
    """What `ask` gives, or what went wrong with it alone; a broken GPU is everybody's."""
    try:
        return ask()
    except VocoderError as error:
        return error
    except RuntimeError as error:
        if breaks_device(error):
            raise
        # Without the error as its cause, whose frames would hold on to the device's memory.
        return VocoderError(f"the vocoder failed: {str(error) or type(error).__name__}")
