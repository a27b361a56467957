"""`bench.engine floor`: what the device itself allows, and the least that a unit can take on it.

Two figures are measured: how fast memory is copied (bytes read and bytes written, by the second)
and how fast bfloat16 matrices are multiplied. A step of the model takes at least the time in which
its weights, and what it reads of the cache, pass once through memory, and at least the time of its
multiplications: the longer of both,

    step = max(bytes / copy bandwidth, 2 · weights · positions / matrix rate)

and a unit is the sum of its steps, one after the other:

    listening = audio encoder over 50 positions + LLM over 14 positions
    speaking  = the same + 6 times LLM over 1 position
              + speech LM: 7 positions, then 25 times 1 position
              + vocoder: 205 GFLOP a second of sound (10 steps), or its weights 10 times
    omni      = the same + vision over 1024 patches, and 66 positions more for the LLM

A batch of conversations shares the bytes of the weights, so a whole load has a lower floor than
the sum of its units. Nothing runs below the floor; overlapping steps of one unit might by a little.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from agent.clock import SYSTEM_CLOCK, Clock
from agent.duplex.config import DuplexConfig, parse_config
from agent.duplex.model import build_parts
from agent.torch_parts.checkpoint import unfilled
from agent.vocoder.flow import Flow, FlowSettings
from bench import random_model, random_vocoder
from bench.engine_parts import finish_device
from bench.engine_report import EngineReport
from bench.engine_script import SPOKEN_WORDS

_BYTES = 2
"""Of a weight in bfloat16, or in the vocoder's float16."""
_COPY_BYTES = 4 << 30
_SIDE = 8192
_REPEATS = 20
_AUDIO_POSITIONS = 50
_AUDIO_VECTORS = 10
_UNIT_MARKS = 4
_PICTURE_POSITIONS = 66
_PATCHES = 1024
_SPEECH_TOKENS = 25
_VOCODER_FLOP = 205e9
_VOCODER_STEPS = 10
_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device was measured to do."""

    bytes_per_s: float
    flop_per_s: float

    def step_ms(self, moved: float, flop: float) -> float:
        """The least that so many bytes and so much arithmetic take."""
        return 1000 * max(moved / self.bytes_per_s, flop / self.flop_per_s)


@dataclass(frozen=True, slots=True)
class Weights:
    """How many weights pass through memory in a step of each part, and a position of the LLM's
    cache in bytes."""

    audio: int
    vision: int
    llm: int
    speech: int
    vocoder: int
    position_bytes: int

    @classmethod
    def of(cls, config: DuplexConfig) -> "Weights":
        """Of the model; tables that are only looked up in do not count."""
        eyes, ears, llm, speech = build_parts(config)
        with unfilled():
            flow = Flow(random_vocoder.FULL_SIZE.flow, FlowSettings())
        return cls(
            audio=_weights(ears.encoder) + _weights(ears.projection),
            vision=_weights(eyes.tower) + _weights(eyes.resampler),
            llm=_weights(llm),
            speech=_weights(speech.model) + _weights(speech.head_code),
            vocoder=_weights(flow.estimator),
            position_bytes=2
            * _BYTES
            * config.llm.layers
            * config.llm.kv_heads
            * config.llm.head_width,
        )


def _weights(module: nn.Module) -> int:
    tables = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    return sum(one.numel() for one in module.parameters() if id(one) not in tables)


def floor_ms(weights: Weights, rates: Rates) -> dict[str, float]:
    """By kind of unit, the formula above."""

    def step(count: int, positions: int, cached: int = 0) -> float:
        moved = _BYTES * count + cached * weights.position_bytes
        return rates.step_ms(moved, 2.0 * count * positions)

    heard = step(weights.audio, _AUDIO_POSITIONS)
    seen = step(weights.vision, _PATCHES)
    decoded = (SPOKEN_WORDS + 1) * step(weights.llm, 1, _CONTEXT_TOKENS)
    spoken = step(weights.speech, SPOKEN_WORDS + 2) + _SPEECH_TOKENS * step(weights.speech, 1)
    sounded = rates.step_ms(_BYTES * _VOCODER_STEPS * weights.vocoder, _VOCODER_FLOP)
    floors = {}
    for mode, before_ms, more in (("audio", heard, 0), ("omni", heard + seen, _PICTURE_POSITIONS)):
        positions = _AUDIO_VECTORS + _UNIT_MARKS + more
        listened = before_ms + step(weights.llm, positions, _CONTEXT_TOKENS)
        floors[f"{mode}_listen"] = listened
        floors[f"{mode}_speak"] = listened + decoded + spoken + sounded
    return floors


def measure_floor(
    report: EngineReport, device: torch.device, clock: Clock = SYSTEM_CLOCK, *, small: bool = False
) -> None:
    """All rows of `floor`; `small` takes little memory and time, and says little."""
    rates = measure_rates(device, clock, small=small)
    report.row("floor_copy_gb_per_s", rates.bytes_per_s / 1e9, "GB/s", n=_REPEATS)
    report.row("floor_matrix_tflop_per_s", rates.flop_per_s / 1e12, "TFLOP/s", n=_REPEATS)
    weights = Weights.of(parse_config(random_model.FULL_SIZE))
    llm_ms = rates.step_ms(_BYTES * weights.llm, 2.0 * weights.llm)
    report.row("floor_llm_step_ms", llm_ms, "ms")
    for kind, least_ms in floor_ms(weights, rates).items():
        report.row(f"floor_{kind}_ms", least_ms, "ms")


def measure_rates(device: torch.device, clock: Clock, *, small: bool = False) -> Rates:
    """The best of several tries, each long enough for a clock of the host."""
    shrink = 64 if small else 1
    source = torch.empty(_COPY_BYTES // shrink, dtype=torch.uint8, device=device).fill_(7)
    sink = torch.empty_like(source)
    copied_s = _quickest_s(lambda: sink.copy_(source), device, clock)
    side = int(_SIDE / math.sqrt(shrink) / 2) if small else _SIDE
    left = torch.randn(side, side, device=device).to(torch.bfloat16)
    product = torch.empty_like(left)
    multiplied_s = _quickest_s(lambda: torch.mm(left, left, out=product), device, clock)
    return Rates(2 * source.numel() / copied_s, 2.0 * side**3 / multiplied_s)


def _quickest_s(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    times = []
    for _ in range(_REPEATS):
        finish_device(device)
        began_s = clock.now_s()
        call()
        finish_device(device)
        times.append(clock.now_s() - began_s)
    return max(min(times), 1e-9)
