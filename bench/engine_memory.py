"""`bench.engine memory`: what each further call takes of the GPU.

The difference between few places and more, all of them taken by calls that are in the middle of a
turn: caches of the LLM, the speech LM and the audio encoder, and the vocoder's stream.
"""

import math
from collections.abc import Callable

import torch

from agent.fleet.callers import Material
from bench.engine_drive import Calls
from bench.engine_parts import SETTINGS, Made, Wanted, make_eager, taken_gb
from bench.engine_report import EngineReport
from bench.report import at_most

EACH_GB = {2048: at_most(0.85), 8192: at_most(1.8)}
"""By window."""
FEW, MORE = 2, 6
_TURN_UNITS = 64
_HEARD_S = 3
"""Then all of them are in the middle of their turns, and the vocoder remembers all that it does."""


def measure_memory(
    report: EngineReport,
    served: Made,
    taken: Callable[[torch.device], float] = taken_gb,
    windows: tuple[int, ...] = tuple(EACH_GB),
) -> None:
    """A row for each window, with the weights and the voice of `served`; `taken` tells what is
    taken of the device's memory."""
    for window in windows:
        name = f"vram_each_gb_{window}"
        few, more = (_taken_by(served, window, count, taken) for count in (FEW, MORE))
        each = (more - few) / (MORE - FEW)
        if math.isnan(each):
            report.not_measured(name, "GB", "there is no GPU")
        else:
            report.row(name, each, "GB", target=EACH_GB.get(window), n=MORE - FEW)


def _taken_by(
    served: Made, window: int, count: int, taken: Callable[[torch.device], float]
) -> float:
    """With so many calls. Their lanes are eager: what lanes take is the first call's."""
    made = make_eager(served, Wanted(count, window, speak=1.0, turn_units=_TURN_UNITS))
    calls = Calls(made.core, SETTINGS, Material(camera=False))
    calls.grow(count, 0)
    for _ in range(_HEARD_S):
        calls.take_second()
    taken_now = taken(served.device)
    calls.end_all()
    return taken_now
