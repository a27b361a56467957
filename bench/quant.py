"""The LLM with projections of fewer bits, at full size: `python -m bench.quant --json`.

For each way of keeping them: memory, the time of a decode step and of a read, as graphs and started
piece by piece, and how far the logits are from bfloat16's. Needs torch and a GPU with 30 GB.

The weights are random. Times and memory do not depend on what weights say. The error of the logits
does: it is printed so that a mistake in the arithmetic is seen, and says nothing of how well a
trained model goes on talking. Trained weights have outliers that four bits serve worse than random
ones, and logits that lie further apart than random ones.
"""

import argparse
import statistics
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from agent.clock import SYSTEM_CLOCK
from agent.duplex.config import DuplexConfig, Numerics, parse_config
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.llm import Llm
from agent.duplex.quant import quantise_llm
from agent.duplex.quant_choice import PROJECTIONS, Quantisation
from agent.duplex.quant_linear import QuantLinear
from agent.duplex.quant_sizes import projection_bytes
from agent.torch_parts.checkpoint import (
    Target,
    TensorHeader,
    load_parts,
    stored_shapes,
    unfilled,
)
from bench.random_model import FULL_SIZE
from bench.report import Report, add_arguments, at_most
from bench.report import Target as Goal

if TYPE_CHECKING:
    from agent.duplex.cuda.static_decoder import StaticDecoder

_GB = 1e9
_POSITIONS = 2048
_FILLED = 1024
"""Positions in a slot's cache, and how many of them are filled when a step is timed."""
_STREAMS = 32
_TIMES = 20
_ROWS = (1, 16, 64, 256)
_ASKED, _ASKED_OF_CPU = (4, 64), (2, 24)
"""Streams, and positions of each, whose logits are compared."""
_PROJECTIONS_TARGET_MS = 2.0
"""Of the projections of all layers in 4 bits, for one row on an H200."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 when a target was missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.quant", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("bench.quant: torch finds no GPU\n")
        return 2
    report = Report(as_json=options.json, gpu=torch.cuda.get_device_name())
    measure(report, parse_config(FULL_SIZE), Target(torch.device("cuda"), torch.bfloat16))
    return 1 if report.missed else 0


def measure(report: Report, config: DuplexConfig, target: Target) -> None:
    """Every way in turn. Without a GPU: the logits alone."""
    true: Tensor | None = None
    for kind in get_args(Quantisation):
        llm = _load(report, config, target, kind)
        cache = KvCache(_cache(config, target))
        ours = _logits(llm, cache)
        true = ours if true is None else true
        if kind != "none":
            _print_apart(report, kind, ours, true)
        if target.device.type == "cuda":
            _Clock(report, kind, llm, cache).print_times()
        del llm, cache


# ---- loading ------------------------------------------------------------------------------------


class _RandomLlm:
    """Weights of each key alike, whatever is read before it."""

    def __init__(self, llm: Llm) -> None:
        self.headers = {
            key: TensorHeader(shape, "BF16", Path("random"))
            for key, shape in stored_shapes({Llm.PREFIX: llm}).items()
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Drawn where they are needed, so nothing is copied."""
        for key in keys:
            generator = torch.Generator(device).manual_seed(zlib.crc32(key.encode()))
            shape = self.headers[key].shape
            noise = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            yield key, _scaled(key, noise)


def _scaled(key: str, noise: Tensor) -> Tensor:
    """So that what flows through the layers stays of one size."""
    if noise.ndim == 1:
        return noise.mul_(0.1).add_(1)
    return noise.mul_(0.5 if "embed" in key else noise.shape[1] ** -0.5)


def _load(report: Report, config: DuplexConfig, target: Target, kind: Quantisation) -> Llm:
    with unfilled():
        llm = Llm(config.llm, Numerics())
    source = _RandomLlm(llm)
    quantise_llm(llm, kind, source.headers)
    memory = _Memory(target.device)
    began_s = SYSTEM_CLOCK.now_s()
    load_parts(source, {Llm.PREFIX: llm}, unused={}, target=target)
    memory.wait()
    report.row(f"{kind}_load_s", SYSTEM_CLOCK.now_s() - began_s, "s")
    report.row(f"{kind}_projections_gb", projection_bytes(config.llm, kind) / _GB, "GB")
    if memory.is_gpu:
        report.row(f"{kind}_llm_gb", memory.taken / _GB, "GB")
        report.row(f"{kind}_peak_of_loading_gb", memory.peak / _GB, "GB")
    return llm


class _Memory:
    """What the device holds more than when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.is_gpu = device.type == "cuda"
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    @property
    def taken(self) -> int:
        return torch.cuda.memory_allocated() - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self._before


def _cache(config: DuplexConfig, target: Target) -> Tensor:
    llm = config.llm
    is_gpu = target.device.type == "cuda"
    streams, positions = (_STREAMS, _POSITIONS) if is_gpu else _ASKED_OF_CPU
    shape = (llm.layers, 2, streams, llm.kv_heads, positions, llm.head_width)
    return torch.zeros(shape, device=target.device, dtype=target.dtype)


# ---- how far off --------------------------------------------------------------------------------


def _logits(llm: Llm, cache: KvCache) -> Tensor:
    """Of random words, in float32, on the host."""
    streams, count = _ASKED if cache.tensor.is_cuda else _ASKED_OF_CPU
    ids = torch.randint(0, 100_000, (streams * count,), generator=torch.Generator().manual_seed(7))
    words = llm.embed(ids.tolist()).view(streams, count, -1)
    states = llm.read(words, [KvStream(slot) for slot in range(streams)], cache)
    return torch.cat([llm.logits(one).float().cpu() for one in states])


def _print_apart(report: Report, kind: Quantisation, ours: Tensor, true: Tensor) -> None:
    rows = len(true)
    apart = (ours - true).norm(dim=-1) / true.norm(dim=-1)
    report.row(f"{kind}_logit_error", float(apart.mean()), "", n=rows)
    same = (ours.argmax(-1) == true.argmax(-1)).float().mean()
    report.row(f"{kind}_top1_agreement", float(same), "", n=rows)


# ---- how fast -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """One pass: so many streams, so many positions of each."""

    name: str
    streams: int
    count: int


_STEPS = (
    _Step("decode", 1, 1),
    _Step("decode_8", 8, 1),
    _Step("decode_32", 32, 1),
    _Step("read_16", 1, 16),
    _Step("read_80", 1, 80),
    _Step("read_8x80", 8, 80),
)


class _Clock:
    """Times one LLM; the head is part of every pass but `projections`."""

    def __init__(self, report: Report, kind: Quantisation, llm: Llm, cache: KvCache) -> None:
        self._report, self._kind, self._llm, self._cache = report, kind, llm, cache

    def print_times(self) -> None:
        """As graphs, and a decode step also started piece by piece."""
        # Kernels are Triton's, which is nowhere but where there is a GPU.
        from agent.duplex.cuda.static_decoder import StaticDecoder

        self._row("decode_eager", _started_ms(self._eager))
        static = StaticDecoder(self._llm.model, self._cache)
        for rows in _ROWS:
            name = "projections" if rows == 1 else f"projections_{rows}"
            took_ms = _replayed_ms(self._projections(rows))
            wanted = rows == 1 and self._kind == "int4"
            self._row(name, took_ms, at_most(_PROJECTIONS_TARGET_MS) if wanted else None)
        for step in _STEPS:
            self._row(step.name, _replayed_ms(self._pass(static, step)))

    def _row(self, name: str, took_ms: float, target: Goal | None = None) -> None:
        self._report.row(f"{self._kind}_{name}_ms", took_ms, "ms", target=target, n=_TIMES)

    def _eager(self) -> None:
        word = self._llm.embed([5])[None]
        self._llm.logits(self._llm.read(word, [KvStream(0, _FILLED)], self._cache))

    def _projections(self, rows: int) -> Callable[[], None]:
        """All layers' projections in their order, and nothing else: what bits alone change."""
        from agent.duplex.cuda.static_decoder_linear import ByMatrix, ByModules, side_by_side

        sets = list(_sets(self._llm))
        ways = [side_by_side(modules) for modules in sets]
        given = {
            width: torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
            for width in (self._llm.config.width, self._llm.config.ffn_width)
        }

        def run() -> None:
            for way, modules in zip(ways, sets, strict=True):
                tokens = given[_inputs(modules[0])]
                if isinstance(way, ByMatrix):
                    way.of(tokens)
                elif isinstance(way, ByModules):
                    way.modules[0](tokens)

        return run

    def _pass(self, static: "StaticDecoder", step: _Step) -> Callable[[], None]:
        from agent.duplex.cuda.static_decoder import plain_rows

        slots, counts = range(step.streams), [step.count] * step.streams
        lengths = [_FILLED] * step.streams
        rows = plain_rows(slots, lengths, counts, static.heads, torch.device("cuda"))
        # As the lane's own: what the layers add to is float32.
        tokens = self._llm.embed([5] * step.streams * step.count).float()
        last = torch.arange(step.count - 1, len(tokens), step.count, device="cuda")

        def run() -> None:
            states = static.forward(tokens.clone(), rows)
            self._llm.logits(states[last])

        return run


def _inputs(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear | QuantLinear)
    return module.in_features


def _sets(llm: Llm) -> Iterator[list[nn.Module]]:
    """What each layer multiplies at once."""
    for layer in llm.model.layers:
        for part, names in PROJECTIONS.items():
            module = layer.get_submodule(part)
            *together, alone = (module.get_submodule(name) for name in names)
            yield together
            yield [alone]


def _started_ms(run: Callable[[], None]) -> float:
    """Median of a call that is started piece by piece and waited for."""
    took_ms = []
    for _ in range(_TIMES):
        torch.cuda.synchronize()
        began_s = SYSTEM_CLOCK.now_s()
        run()
        torch.cuda.synchronize()
        took_ms.append((SYSTEM_CLOCK.now_s() - began_s) * 1000)
    return statistics.median(took_ms)


def _replayed_ms(run: Callable[[], None]) -> float:
    """Median of a call as a graph, by the device's own clock."""
    with torch.no_grad():
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    took_ms: list[float] = []
    for _ in range(_TIMES):
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        took_ms.append(began.elapsed_time(ended))
    return statistics.median(took_ms)


if __name__ == "__main__":
    raise SystemExit(main())
