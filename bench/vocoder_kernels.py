"""Where token2wav's second goes on a GPU: `python -m bench.vocoder_kernels --json`.

The time of each stage as a graph of its own, of one stream and of many, beside the floor that its
operations set; and each product of the estimator and of HiFT in tiles of several sizes, beside
torch's own product. The fastest tiles are what `agent.vocoder.kernels.tiles` should name.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.interfaces import VocoderPush
from agent.torch_parts.checkpoint import Target
from agent.torch_parts.cuda_graph import GraphRecorder
from agent.vocoder.loading import Token2wavSettings, load_token2wav, prepare_graphs
from agent.vocoder.token2wav import StreamSettings, Token2wav
from bench.random_vocoder import random_prompt, random_tokens, write_token2wav
from bench.report import Report, add_arguments

DEVICE = torch.device("cuda")
STREAMS = (1, 8, 32)
FRAMES = 50
STAGE_GFLOP = {"encoder": 4.6, "solver": 164.0, "hift": 52.0}
"""Of a second of sound, ten steps, a voice of four seconds; HiFT decodes 86 frames for 50."""
MATRIX_TFLOP_PER_S = 783.0
"""What an H200 was measured to multiply in bfloat16; float16 is no other."""
_REPEATS = 10
_LAYERS = 16
_SECONDS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A product of the model: outputs, inputs and taps, and rows of a stream."""

    name: str
    outputs: int
    inputs: int
    taps: int
    rows: int
    is_hift: bool = False


SHAPES = (
    Shape("qkv", 1536, 512, 1, 2 * FRAMES),
    Shape("out", 512, 512, 1, 2 * FRAMES),
    Shape("conv", 512, 512, 3, 2 * FRAMES),
    Shape("ffn_wide", 2048, 512, 1, 2 * FRAMES),
    Shape("ffn_narrow", 512, 2048, 1, 2 * FRAMES),
    Shape("hift_0", 256, 256, 11, 8 * 90, is_hift=True),
    Shape("hift_1", 128, 128, 11, 40 * 90, is_hift=True),
    Shape("hift_2", 64, 64, 11, 120 * 90, is_hift=True),
)
FLOW_TILES = (
    (16, 32, 128, 8, 4), (32, 32, 128, 4, 4), (32, 64, 128, 4, 4), (64, 16, 128, 6, 4),
    (64, 32, 128, 5, 4), (64, 64, 64, 4, 4), (64, 128, 64, 4, 4), (128, 64, 64, 4, 4),
    (128, 128, 64, 3, 8),
)  # fmt: skip
HIFT_TILES = (
    (64, 32, 64, 5, 4), (64, 64, 64, 4, 4), (64, 64, 128, 3, 4), (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 8, 128), (256, 64, 64, 3, 8), (128, 128, 64, 3, 8),
)  # fmt: skip
"""Rows, columns, depth, stages, warps and, of some, registers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.vocoder_kernels", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--no-tiles", action="store_true", help="the stages alone")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("bench.vocoder_kernels: torch finds no GPU\n")
        return 2
    report = Report(as_json=options.json, gpu=torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        measure_stages(report, Path(folder))
        if not options.no_tiles:
            measure_tiles(report)
    return 0


# ---- stages -------------------------------------------------------------------------------------


def measure_stages(report: Report, folder: Path) -> None:
    """Of streams in the midst of a turn."""
    from agent.vocoder.batched.machine import Machine

    write_token2wav(folder, causal=True)
    settings = Token2wavSettings(
        estimator_memory="prompt_plus_recent", stream=StreamSettings(eager=True)
    )
    vocoder = load_token2wav(folder, settings, Target(DEVICE, torch.float16))
    prepare_graphs(vocoder, STREAMS[-1])
    if not isinstance(vocoder.machine, Machine):
        report.not_measured("stages", "ms", "the vocoder goes without graphs; its log says why")
        return
    _speak(vocoder)
    for count in STREAMS:
        for name, call in vocoder.machine.stages(count).items():
            floor_ms = count * STAGE_GFLOP[name] / MATRIX_TFLOP_PER_S
            took = replayed_ms(call)
            report.row(f"{name}_{count}_streams_ms", took, "ms", against=floor_ms, n=_REPEATS)


def _speak(vocoder: Token2wav) -> None:
    """Some seconds of as many turns, so that the plans of the last round stand there."""
    voice = vocoder.voice(random_prompt(100), "anna")
    turns = [vocoder.open(voice) for _ in range(STREAMS[-1])]
    for second in random_tokens(_SECONDS * 25).reshape(_SECONDS, -1).tolist():
        vocoder.begin([VocoderPush(turn, second) for turn in turns]).take()


# ---- products -----------------------------------------------------------------------------------


def measure_tiles(report: Report) -> None:
    """Microseconds of each product in each tile, in a chain over as many weights as layers."""
    from agent.torch_parts.kernels.launching import compile_together
    from agent.vocoder.kernels.tiles import Tile

    cases = [(shape, count) for shape in SHAPES for count in STREAMS]
    compile_together(
        partial(next, _chain(shape, count, Tile(*tile)))
        for shape, count in cases
        for tile in (HIFT_TILES if shape.is_hift else FLOW_TILES)
    )
    for shape, count in cases:
        torch_us = 1000 * replayed_ms(_torch_chain(shape, count)) / _LAYERS
        for tile in HIFT_TILES if shape.is_hift else FLOW_TILES:
            took = replayed_ms(partial(_last, _chain(shape, count, Tile(*tile)), _LAYERS))
            name = f"{shape.name}_{count}_streams_{'x'.join(map(str, tile))}_us"
            report.row(name, 1000 * took / _LAYERS, "µs", against=torch_us, n=_REPEATS)


def _rows(shape: Shape, count: int) -> Tensor:
    rows = shape.rows + shape.taps - 1
    return torch.randn(count, rows, shape.inputs, device=DEVICE).to(torch.float16)


def _weight(shape: Shape, like: Tensor) -> Tensor:
    weight = torch.randn(shape.outputs, shape.taps, shape.inputs, device=DEVICE)
    weight *= (shape.taps * shape.inputs) ** -0.5
    return weight.to(like.dtype)


def _chain(shape: Shape, count: int, tile: object) -> Iterator[None]:
    """One product after the other, each with a weight of its own."""
    from agent.vocoder.kernels.product import After, Along, Weights, product

    source = _rows(shape, count)
    bias = torch.zeros(shape.outputs, device=DEVICE)
    weights = [Weights.of_taps([_weight(shape, source)], [bias]) for _ in range(_LAYERS)]
    if shape.is_hift:
        weights = [one.rounded("half") for one in weights]
    out = torch.zeros(count, shape.rows, shape.outputs, device=DEVICE)
    after = After(out=out, added=out)
    if shape.is_hift:
        # As of the second of two convolutions: what is next is there as a sum and behind Snake.
        alpha, acted = torch.ones(1, shape.outputs, device=DEVICE), out.to(torch.float16)
        after = replace(after, acted=acted, act="snake", alpha=alpha)
    while True:
        for weight in weights:
            along = Along(shape.rows, source.shape[1])
            product(source, weight, along, after, tile)  # type: ignore[arg-type]
            yield


def _last(chain: Iterator[None], count: int) -> None:
    for _ in range(count):
        next(chain)


def _torch_chain(shape: Shape, count: int) -> Callable[[], object]:
    source = _rows(shape, count)
    weights = [_weight(shape, source) for _ in range(_LAYERS)]
    if shape.taps == 1:
        return lambda: [F.linear(source, one.flatten(1)) for one in weights]
    turned, kernels = source.transpose(1, 2), [one.transpose(1, 2) for one in weights]
    turned, kernels = turned.contiguous(), [one.contiguous() for one in kernels]
    return lambda: [F.conv1d(turned, one) for one in kernels]


# ---- measuring ----------------------------------------------------------------------------------


def replayed_ms(call: Callable[[], object]) -> float:
    """The median of a graph of it."""
    recorder = GraphRecorder(DEVICE, "")
    with recorder.recording():
        call()
        graph = recorder.record(call)
    events = [_event() for _ in range(_REPEATS + 2)]
    for event in events:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    took: list[float] = [one.elapsed_time(other) for one, other in pairwise(events[1:])]
    return statistics.median(took)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    raise SystemExit(main())
