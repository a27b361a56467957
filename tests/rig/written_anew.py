"""What stands in for CUDA graphs where there is no GPU: calls that are made anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class WrittenAnew:
    """A "graph" of tensors: like a graph's, its output stays where it is and is written over."""

    def __init__(self, call: Callable[[], tuple[Tensor, ...]]) -> None:
        self._call = call
        self.output: Any = None

    def replay(self) -> None:
        """Make the call."""
        made = self._call()
        if self.output is None:
            # A graph's, which is recorded outside of inference mode, can be written anywhere.
            with torch.inference_mode(False):
                self.output = tuple(one.clone() for one in made)
        for ours, theirs in zip(self.output, made, strict=True):
            ours.copy_(theirs)


class Recorder:
    """A `Recorder` for the CPU."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See `GraphRecorder`."""
        yield

    def record(self, call: Callable[[], Any]) -> WrittenAnew:
        """See `GraphRecorder`: nothing is called yet."""
        return WrittenAnew(call)
