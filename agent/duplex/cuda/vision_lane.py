"""Looking on a GPU: the thumbnails and cells of many conversations at once.

Patches of all pieces lie packed one behind the other, so that no piece is padded to the length of
another, and attention keeps to each piece's own. A batch is rounded up to one of a few sizes, for
each of which there is a graph; what it has too many means nothing.

Pictures go to the device as they came, and are resized there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.duplex.cuda.device_lane import DeviceLane
from agent.duplex.cuda.picture_cutter import PictureCutter, pinned, to_device
from agent.duplex.cuda.tower import TowerLayer, run_tower
from agent.duplex.cuda.tower_kernels import Spans, attend_spans
from agent.duplex.lanes import Batch, Done, EagerLane, Failures
from agent.duplex.model import DuplexModel
from agent.duplex.pictures import PATCH_VALUES, Patches, Piece, Region
from agent.duplex.slots import Slots
from agent.duplex.vision import Eyes, shape_tables
from agent.duplex.work import Look, Work
from agent.torch_parts.cuda_graph import CudaGraph, GraphRecorder
from agent.torch_parts.device import breaks_device
from agent.torch_parts.kernels.launching import compile_together

BATCH_SIZES = (1, 2, 4)
"""Pieces of a graph. Twice as many at once would be 2 % faster a piece, for 0.2 GB more (measured
on an H200)."""
_TOGETHER = 8
"""Pieces of a batch: its graphs are started one behind the other, and nobody waits for more."""
PIECE_PATCHES = 1040
"""Room for one piece; 16:9, 4:3 and square pictures take 1032, 1036 and 1024 patches."""
MOST_PATCHES = 1152
"""The longest piece that the graphs are made for; pictures are cut to 924 to 1092 patches."""
CAMERA_BYTES = 1280 * 720 * 3
_WAY_OUT = "set model.graphs to false to go without"


class VisionLane:
    """Looks. To be made before anything runs on the device; not for two threads at once."""

    def __init__(
        self, model: DuplexModel, slots: Slots, sizes: Sequence[int] = BATCH_SIZES
    ) -> None:
        """Record a graph for each of `sizes`. ConfigError when that does not work."""
        device = model.target.device
        self._eager = EagerLane(model, slots)
        self._lane = DeviceLane(device)
        self._cutter = PictureCutter(device, model.target.dtype)
        # Kept, since the graphs read tensors that are its own.
        self._pieces = PiecesOfMany(model.eyes)
        # The largest first: what the others need fits into its memory, not the other way round.
        largest_first = sorted(sizes, reverse=True)
        recorder = GraphRecorder(device, _WAY_OUT)
        self._graphs = _record(self._pieces, largest_first, recorder)[::-1]
        self._most = self._graphs[-1].size
        self._empty = self._pieces.empty
        self._warm_up()

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return together(works, _TOGETHER)

    @torch.no_grad()
    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`."""
        looks = [work for work in works if isinstance(work, Look)]
        pieces = [piece for look in looks for piece in look.pieces]
        with self._lane.working():
            if len(looks) < len(works) or any(_patches(one) > MOST_PATCHES for one in pieces):
                failures = self._eager.begin(works).finish()
                return self._lane.batch(lambda: failures)
            try:
                vectors = self._look(pieces)
            except RuntimeError as error:
                if breaks_device(error):
                    raise
                return Done(dict.fromkeys(range(len(works)), error))
            return self._lane.batch(lambda: _hand_out(looks, vectors))

    def _look(self, pieces: Sequence[Patches]) -> Tensor:
        """Start it all → vectors [N, queries, W], of this batch alone."""
        on_device: dict[int, Tensor] = {}
        made = [self._empty]
        for group in groups(pieces, self._most):
            graph = next(one for one in self._graphs if one.fits(group))
            told = pinned(tell(group, graph.size), graph.tables.device)
            graph.tables.copy_(told, non_blocking=True)
            begin = 0
            for piece in group:
                end = begin + _patches(piece)
                self._fill(piece, on_device, graph.pixels[begin:end])
                begin = end
            graph.recorded.replay()
            made.append(graph.recorded.output[: len(group)].clone())
        return torch.cat(made) if len(made) > 2 else made[-1]

    def _fill(self, piece: Patches, on_device: dict[int, Tensor], out: Tensor) -> None:
        """A piece's patches [n, 588]; a picture is sent once for all of its pieces."""
        if not isinstance(piece, Piece):
            out.copy_(pinned(piece.pixels.numpy(), out.device), non_blocking=True)
            return
        picture = piece.picture
        if id(picture) not in on_device:
            on_device[id(picture)] = to_device(picture.rgb, out.device)
        self._cutter.cut(on_device[id(picture)], piece.region, out)

    def _warm_up(self) -> None:
        """What a first picture would have to wait for: kernels are built, memory is pinned."""
        device = self._lane.device
        with self._lane.working():
            # Rows first, and columns first.
            cuts = [partial(self._cut_nothing, height) for height in (2, 90)]
            compile_together(cuts)
            for cut in cuts:
                cut()
            many = range(_TOGETHER)
            held = [torch.empty(CAMERA_BYTES, dtype=torch.uint8, pin_memory=True) for _ in many]
        del held
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what recording took besides the graphs

    def _cut_nothing(self, height: int) -> None:
        device = self._lane.device
        pixels = to_device(np.zeros((height, 2, 3), np.uint8), device)
        out = torch.empty(2, PATCH_VALUES, device=device, dtype=self._empty.dtype)
        self._cutter.cut(pixels, Region(28, 14, 0, 0, 28, 14), out)


def together(works: Sequence[Work], most: int) -> int:
    """How many go together: as have no more than so many pieces among them."""
    pieces = accumulate(len(work.pieces) if isinstance(work, Look) else most for work in works)
    return max(1, sum(count <= most for count in pieces))


def groups(pieces: Sequence[Patches], most: int) -> list[list[Patches]]:
    """Pieces in groups of at most so many, none of more patches than there is room for."""
    made: list[list[Patches]] = []
    room = 0
    for piece in pieces:
        room -= _patches(piece)
        if not made or room < 0 or len(made[-1]) == most:
            made.append([])
            room = most * PIECE_PATCHES - _patches(piece)
        made[-1].append(piece)
    return made


def _patches(piece: Patches) -> int:
    return piece.rows * piece.columns


def _hand_out(looks: Sequence[Look], vectors: Tensor) -> Failures:
    begin = 0
    for look in looks:
        end = begin + len(look.pieces)
        look.vectors = vectors[begin:end]
        begin = end
    return {}


# ---- what a batch is told -----------------------------------------------------------------------


@lru_cache(maxsize=256)
def _shape(rows: int, columns: int) -> np.ndarray:
    """For one shape: position ids, rows and columns of its patches, i32 [3, patches]."""
    ids, places = shape_tables(rows, columns)
    return torch.cat([ids[None], places.T]).numpy().astype(np.int32)


def told_words(size: int) -> int:
    """How many words a batch of `size` pieces is told in."""
    return size * (3 * PIECE_PATCHES + 2)


def tell(pieces: Sequence[Patches], size: int) -> np.ndarray:
    """Where each piece's patches lie, and each patch in its picture: i32 [`told_words`]."""
    words = np.zeros(told_words(size), np.int32)
    spans = words[: 2 * size].reshape(2, size)
    places = words[2 * size :].reshape(3, size * PIECE_PATCHES)
    begin = 0
    for index, piece in enumerate(pieces):
        end = begin + _patches(piece)
        spans[:, index] = begin, end - begin
        places[:, begin:end] = _shape(piece.rows, piece.columns)
        begin = end
    return words


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A batch of `size` pieces: what it reads and what is replayed."""

    size: int
    pixels: Tensor  # [size · PIECE_PATCHES, 588]
    tables: Tensor  # i32 [told_words]
    recorded: CudaGraph[Tensor]

    def fits(self, pieces: Sequence[Patches]) -> bool:
        """Whether there is room."""
        patches = sum(_patches(piece) for piece in pieces)
        return len(pieces) <= self.size and patches <= len(self.pixels)


def _record(
    pieces: "PiecesOfMany", sizes: Sequence[int], recorder: GraphRecorder
) -> list[_Recorded]:
    with torch.no_grad(), recorder.recording():
        buffers = [_nothing_seen(pieces, size) for size in sizes]
        calls = [partial(pieces, *given) for given in buffers]
        compile_together(calls)
        made = []
        for size, given, call in zip(sizes, buffers, calls, strict=True):
            call()
            made.append(_Recorded(size, *given, recorder.record(call)))
        return made


def _nothing_seen(pieces: "PiecesOfMany", size: int) -> tuple[Tensor, Tensor]:
    pixels = pieces.empty.new_zeros(size * PIECE_PATCHES, PATCH_VALUES)
    return pixels, to_device(tell([], size), pixels.device)


# ---- the network --------------------------------------------------------------------------------


class PiecesOfMany:
    """The tower and the resampler over packed patches; says what `Eyes.see` says."""

    def __init__(self, eyes: Eyes) -> None:
        self._tower, self._resampler = eyes.tower, eyes.resampler
        self._layers = [_laid_out(layer) for layer in eyes.tower.encoder.layers]
        self._heads = eyes.tower.heads
        resampler, attention = eyes.resampler, eyes.resampler.attn
        self._weights = attention.in_proj_weight.chunk(3)
        self._biases = attention.in_proj_bias.chunk(3)
        query = resampler.query
        with torch.no_grad():
            # The queries are the same for every picture.
            asked = resampler.ln_q(query)
            self._asked = functional.linear(asked, self._weights[0], self._biases[0])
            self._codes = resampler.positions.to(query.device, query.dtype)
        self.empty = query.detach().new_empty(0, *query.shape)

    def __call__(self, pixels: Tensor, tables: Tensor) -> Tensor:
        """Packed patches [size · room, 588] and what `tell` says of them → [size, queries, W]."""
        size = len(tables) // told_words(1)
        starts, counts = tables[: 2 * size].view(2, size)
        ids, rows, columns = tables[2 * size :].view(3, len(pixels))
        spans = Spans(starts, counts)
        tokens = self._tower.embeddings(pixels, ids)

        def look(index: int, merged: Tensor) -> Tensor:
            parts = merged.chunk(3, 1)
            out = (torch.empty_like(tokens), starts)
            return attend_spans(
                self._heads, (parts[0], parts[1], parts[2]), (spans, spans), out,
                MOST_PATCHES,
            )  # fmt: skip

        features = run_tower(self._layers, self._tower.post_layernorm, tokens, look, _widen)
        code = torch.cat([self._codes[columns], self._codes[rows]], 1)
        return self._read(features, code, spans)

    def _read(self, features: Tensor, code: Tensor, spans: Spans) -> Tensor:
        """What the queries read of each piece's features [rows, vision width]: [N, queries, W]."""
        resampler, size = self._resampler, len(spans.starts)
        value = resampler.ln_kv(resampler.kv_proj(features))
        parts = (
            self._asked,
            functional.linear(value + code, self._weights[1], self._biases[1]),
            functional.linear(value, self._weights[2], self._biases[2]),
        )
        queries, width = self._asked.shape
        begin = torch.arange(size, dtype=torch.int32, device=value.device) * queries
        same = Spans(torch.zeros_like(begin), torch.full_like(begin, queries))
        out = (value.new_empty(size * queries, width), begin)
        read = attend_spans(resampler.heads, parts, (same, spans), out, queries)
        vectors: Tensor = resampler.ln_post(resampler.attn.out_proj(read)) @ resampler.proj
        return vectors.view(size, queries, width)


def _laid_out(layer: Any) -> TowerLayer:
    norm, wide_norm, mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp
    return TowerLayer(norm, layer.self_attn, wide_norm, mlp.fc1, mlp.fc2)


def _widen(normed: Tensor, linear: nn.Linear) -> Tensor:
    if normed.is_cuda:
        # The activation as the product's epilogue: on CUDA that is the tower's own, by tanh.
        return torch._addmm_activation(linear.bias, normed, linear.weight.T, use_gelu=True)
    return functional.gelu(linear(normed), approximate="tanh")
