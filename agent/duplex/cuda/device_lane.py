"""What every lane on a GPU is made of: a stream of its own, buffers that graphs read, and batches
whose end an event tells."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agent.duplex.lanes import Failures


@dataclass(slots=True)
class EventBatch:
    """A batch that is over when the device has come to `event`."""

    event: torch.cuda.Event
    take: Callable[[], Failures]
    """Puts the answers into the works; called once, when the device is there."""

    @property
    def done(self) -> bool:
        """See `Batch`."""
        done: bool = self.event.query()  # type: ignore[no-untyped-call]
        return done

    def finish(self) -> Failures:
        """See `Batch`."""
        self.event.synchronize()
        return self.take()


class DeviceLane:
    """A stream of its own. What is told to it runs behind what was told to the caller's stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @contextmanager
    def working(self) -> Iterator[None]:
        """What is started inside goes to this lane's stream."""
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                yield

    def batch(self, take: Callable[[], Failures]) -> EventBatch:
        """To be called last inside `working`: over when all that was started there is."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return EventBatch(event, take)


@dataclass(frozen=True, slots=True)
class Sent:
    """A buffer that graphs read, and the pinned memory of the host that it is filled from.

    The host's side may be written again only when the batch it was sent with is finished.
    """

    device: Tensor
    pinned: Tensor = field(init=False)

    def __post_init__(self) -> None:
        pinned = torch.zeros(
            self.device.shape, dtype=self.device.dtype, pin_memory=self.device.is_cuda
        )
        object.__setattr__(self, "pinned", pinned)

    @property
    def host(self) -> np.ndarray:
        """The host's side, to be written."""
        return self.pinned.numpy()

    def send(self) -> None:
        """Start the copy on the current stream."""
        self.device.copy_(self.pinned, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Returned:
    """A buffer that graphs write, and the pinned memory of the host that it is read from."""

    device: Tensor
    pinned: Tensor = field(init=False)

    def __post_init__(self) -> None:
        pinned = torch.zeros(
            self.device.shape, dtype=self.device.dtype, pin_memory=self.device.is_cuda
        )
        object.__setattr__(self, "pinned", pinned)

    def fetch(self) -> None:
        """Start the copy on the current stream."""
        self.pinned.copy_(self.device, non_blocking=True)

    @property
    def host(self) -> np.ndarray:
        """What was fetched, once the device has come there."""
        return self.pinned.numpy()
