"""What a stream remembers of its past frames, in pieces that are never changed.

A segment is [layers, 2, n, C]: what n frames left in all layers, with the conditions and without.
The pieces of a voice are shared by all that speak with it, so a turn weighs only what is its own,
and to clone it is to keep its pieces.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from agent.torch_parts.adjacent import follow_each_other

Segment: TypeAlias = Tensor


def stretches_of(
    segments: Sequence[Segment], start: int, kept: Sequence[slice]
) -> Iterator[Segment]:
    """Those parts of the segments, the first of which begins at `start`, that `kept` names."""
    for segment in segments:
        end = start + segment.shape[2]
        for one in kept:
            first, last = max(one.start, start), min(one.stop, end)
            if first < last:
                yield segment[:, :, first - start : last - start]
        start = end


def owned(part: Segment) -> Segment:
    """The part in memory of its own, so that the rest can be freed."""
    return part if part.is_contiguous() else part.clone()


def frames_of(segments: Iterable[Segment]) -> int:
    """How many frames these are."""
    return sum(segment.shape[2] for segment in segments)


def nbytes_of(tensors: Iterable[Tensor]) -> int:
    """What these weigh."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def in_one_piece(segments: Sequence[Segment]) -> Tensor:
    """Segments of one shape, one behind the other; copied unless that is how they lie."""
    if not follow_each_other(segments):
        return torch.stack(list(segments))
    first = segments[0]
    return first.as_strided((len(segments), *first.shape), (first.numel(), *first.stride()))
