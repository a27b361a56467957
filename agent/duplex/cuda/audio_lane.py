"""Hearing on a GPU: a second of many conversations at once, each over its own part of the cache.

A batch is rounded up to one of a few sizes, for each of which there is a graph. A place that nobody
has hears silence and leaves every cache alone. What a batch costs grows with what its streams have
cached, not with how much a cache holds.

Recordings and turns that are fed live come in every length, and seldom: they go eagerly, on the
same stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.audio_encoder import (
    BLOCK_FRAMES,
    SECOND_MEL_FRAMES,
    AudioCache,
    AudioStream,
    Ears,
)
from agent.duplex.cuda.device_lane import DeviceLane, EventBatch, Sent
from agent.duplex.cuda.tower import TowerLayer, run_tower
from agent.duplex.cuda.tower_kernels import StreamPlaces, attend_streams
from agent.duplex.lanes import EagerLane, Failures
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import Hear, Work
from agent.torch_parts.cuda_graph import CudaGraph, GraphRecorder
from agent.torch_parts.kernels.launching import compile_together

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_BUSY = 8
"""Streams whose heads keep a device busy without sharing out the past of any."""
_SLOT, _PAST, _SILENT = range(3)
"""What is told of each stream: its slot, or -1; frames cached; mel frames before its sound."""
_WAY_OUT = "set model.graphs to false to go without"


class AudioLane:
    """Hears. To be made before anything runs on the device; not for two threads at once."""

    def __init__(
        self, model: DuplexModel, slots: Slots, sizes: Sequence[int] = BATCH_SIZES
    ) -> None:
        """Record a graph for each of `sizes`, as far as there are slots. ConfigError when that
        does not work."""
        self._ears, self._cache = model.ears, slots.audio
        self._eager = EagerLane(model, slots)
        self._lane = DeviceLane(model.target.device)
        # Kept, since the graphs read tensors that are its own.
        self._second = SecondOfMany(model.ears, slots.audio)
        self._graphs = _record(
            self._second,
            useful_sizes(sizes, slots.count),
            GraphRecorder(model.target.device, _WAY_OUT),
        )
        torch.cuda.empty_cache()  # what recording took besides the graphs

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return together(works, self._graphs[-1].size)

    @torch.no_grad()
    def begin(self, works: Sequence[Work]) -> EventBatch:
        """See `Lane`."""
        with self._lane.working():
            hears = [work for work in works if isinstance(work, Hear)]
            if len(hears) < len(works):
                failures = self._eager.begin(works).finish()
                return self._lane.batch(lambda: failures)
            vectors = self._hear(hears)
            return self._lane.batch(lambda: _hand_out(hears, vectors))

    def _hear(self, hears: Sequence[Hear]) -> Tensor:
        """Start it all → vectors [B, 10, W], of this batch alone."""
        streams = [work.stream for work in hears]
        mels = [work.mel for work in hears]
        self._ears.prepare(mels, streams, self._cache)
        graph = next(graph for graph in self._graphs if graph.size >= len(hears))
        tell(graph.sent.host, mels, streams)
        graph.sent.send()
        graph.recorded.replay()
        for stream in streams:
            stream.cached_frames += BLOCK_FRAMES
            stream.chunks += 1
        return graph.recorded.output[: len(hears)].clone()


def together(works: Sequence[Work], most: int) -> int:
    """How many go together: seconds that follow each other, and all else by itself."""
    seconds = takewhile(lambda work: isinstance(work, Hear), works[:most])
    return max(1, len(list(seconds)))


def useful_sizes(sizes: Sequence[int], slots: int) -> list[int]:
    """Those that so many conversations can need, from small to large."""
    enough = [size for size in sizes if size >= slots]
    return [size for size in sorted(sizes) if not enough or size <= min(enough)]


def _hand_out(hears: Sequence[Hear], vectors: Tensor) -> Failures:
    for work, mine in zip(hears, vectors, strict=True):
        work.vectors = mine
    return {}


def told_words(size: int, bands: int) -> int:
    """How many words of 32 bits a batch of `size` streams is told in."""
    return size * (3 + bands * SECOND_MEL_FRAMES)


def tell(words: np.ndarray, mels: Sequence[Tensor], streams: Sequence[AudioStream]) -> None:
    """Write what a batch hears, and where: i32 [`told_words`]; `told` reads it.

    A mel that is shorter, as a stream's first is, stands at the end of its place.
    """
    bands = mels[0].shape[0]
    size = len(words) // told_words(1, bands)
    header = words[: 3 * size].reshape(3, size)
    sound = words[3 * size :].view(np.float32).reshape(size, bands, SECOND_MEL_FRAMES)
    header[:] = np.array([[-1], [0], [0]], np.int32)
    sound[len(mels) :] = 0
    for place, (mel, stream) in enumerate(zip(mels, streams, strict=True)):
        silent = SECOND_MEL_FRAMES - mel.shape[1]
        header[:, place] = stream.slot, stream.cached_frames, silent
        sound[place, :, :silent] = 0
        sound[place, :, silent:] = mel.numpy()


def told(words: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """What `tell` wrote: i32 [3, B] of each stream and f32 [B, bands, mel frames]."""
    size = len(words) // told_words(1, bands)
    sound = words[3 * size :].view(torch.float32)
    return words[: 3 * size].view(3, size), sound.view(size, bands, SECOND_MEL_FRAMES)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A batch of `size` streams: where it is told and what is replayed."""

    size: int
    sent: Sent
    recorded: CudaGraph[Tensor]


def _record(
    second: "SecondOfMany", sizes: Sequence[int], recorder: GraphRecorder
) -> list[_Recorded]:
    with torch.no_grad(), recorder.recording():
        sent = [_nothing_heard(second, size) for size in sizes]
        calls = [partial(second, one.device) for one in sent]
        compile_together(calls)
        made = []
        for size, one, call in zip(sizes, sent, calls, strict=True):
            call()
            made.append(_Recorded(size, one, recorder.record(call)))
        return made


def _nothing_heard(second: "SecondOfMany", size: int) -> Sent:
    sent = Sent(
        torch.zeros(told_words(size, second.bands), dtype=torch.int32, device=second.device)
    )
    tell(sent.host, [torch.zeros(second.bands, 0)], [AudioStream(-1)])
    sent.send()
    return sent


class SecondOfMany:
    """The encoder and the projection, for a second of B streams; says what `Ears.hear` says."""

    def __init__(self, ears: Ears, cache: AudioCache) -> None:
        self._encoder, self._projection, self._cache = ears.encoder, ears.projection, cache
        self._layers = [_laid_out(layer) for layer in ears.encoder.layers]
        self._heads = ears.encoder.config.heads
        self.device = cache.keys.device
        self.bands = ears.encoder.config.mel_bands
        frames = torch.arange(BLOCK_FRAMES)
        self._frames = frames.to(self.device)
        self._mel_frames = torch.arange(SECOND_MEL_FRAMES).to(self.device)

    def __call__(self, words: Tensor) -> Tensor:
        """What a batch was told (`tell`) → vectors [B, 10, LLM width]."""
        header, mel = told(words, self.bands)
        past = header[_PAST]
        inside = self._mel_frames >= header[_SILENT][:, None]
        # The overlap's conv frames belong to the neighbouring seconds.
        frames = self._encoder.convolve(mel, inside)[:, 1:-1]
        positions = past[:, None] + self._frames
        tokens = (frames + self._encoder.embed_positions(positions)).flatten(0, 1)
        places = StreamPlaces(header[_SLOT], past, BLOCK_FRAMES)
        splits = max(1, _BUSY // len(past))

        def look(index: int, merged: Tensor) -> Tensor:
            cache = self._cache.keys[index], self._cache.values[index]
            return attend_streams(self._heads, merged, cache, places, splits)

        encoded = run_tower(self._layers, self._encoder.layer_norm, tokens, look, _widen)
        vectors: Tensor = self._projection(encoded.view(len(past), BLOCK_FRAMES, -1))
        return vectors


def _laid_out(layer: Any) -> TowerLayer:
    norm, wide_norm = layer.self_attn_layer_norm, layer.final_layer_norm
    return TowerLayer(norm, layer.self_attn, wide_norm, layer.fc1, layer.fc2)


def _widen(normed: Tensor, linear: nn.Linear) -> Tensor:
    return F.gelu(linear(normed))
