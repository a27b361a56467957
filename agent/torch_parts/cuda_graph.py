"""What a plain function starts on a GPU, recorded once, and started as one from then on.

    recorder = GraphRecorder(device, "set vocoder.graphs to false to go without")
    with recorder.recording():
        call()  # once as usual: libraries load what they need
        graph = recorder.record(call)
    graph.replay()  # and `graph.output` holds what it gave

A graph reads and writes the very memory that it was recorded with: to give it other numbers, copy
them into the tensors that the function reads. The graphs of one recorder share what they need for
themselves alone: they are replayed one after another on one stream, and what one of them gave is
copied there before the next is started.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from agent.errors import ConfigError

T = TypeVar("T")
MadeT_co = TypeVar("MadeT_co", covariant=True)


class Recorded(Protocol[MadeT_co]):
    """A call that can be started again; its output is then written anew."""

    @property
    def output(self) -> MadeT_co: ...

    def replay(self) -> None: ...


class Recorder(Protocol):
    """What `GraphRecorder` is to those that have calls recorded."""

    def recording(self) -> AbstractContextManager[None]: ...

    def record(self, call: Callable[[], T]) -> Recorded[T]: ...


@dataclass(frozen=True, slots=True, eq=False)
class CudaGraph(Generic[T]):
    """One recorded call; `output` is written anew by each replay."""

    output: T
    _graph: torch.cuda.CUDAGraph

    def replay(self) -> None:
        """Start it on the current stream."""
        self._graph.replay()


class GraphRecorder:
    """Records calls on `device`, a CUDA one; `way_out` ends the message of what goes wrong."""

    def __init__(self, device: torch.device, way_out: str) -> None:
        self._device = device
        self._way_out = way_out
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What `record` is called within: a stream of its own, that of the caller waiting for it.

        Memory made in here for longer than a call is not to be freed while the stream works.
        """
        with torch.cuda.device(self._device):
            around = torch.cuda.current_stream()
            self._stream.wait_stream(around)
            with torch.cuda.stream(self._stream):
                yield
            around.wait_stream(self._stream)
            torch.cuda.synchronize()

    def record(self, call: Callable[[], T]) -> CudaGraph[T]:
        """`call`, which must have run before, without waiting for the device inside.

        Its kernels are recorded, not run. ConfigError when that does not work.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = call()
            finally:
                graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                f"{self._device} could not record a CUDA graph: {error}; {self._way_out}"
            ) from error
        return CudaGraph(output, graph)
