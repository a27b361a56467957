"""What the GPU has free, by torch's own word: it alone knows which one it can use.

Asked in a process of its own, since the server does without torch and without a CUDA context.
"""

import importlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_PATIENCE_S = 180
"""For importing torch from a cold disk."""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl", "/dev/nvhost-ctrl-gpu", "/dev/kfd")
"""What a driver leaves here: NVIDIA's, Windows' for its Linux, Tegra's two, AMD's."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class NoGpu:
    """There is none, in words."""

    reason: str


def gpu_number(device: str) -> int:
    """Which GPU a device is, by torch's name of it; `auto` and `cuda` are the first."""
    return int(device.partition(":")[2] or 0)


def look_here(number: int) -> Gpu | NoGpu:
    """GPU `number`; imports torch and leaves a CUDA context in this process."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return NoGpu(f"torch does not import: {error}")
    if not torch.cuda.is_available():
        return NoGpu("no GPU that torch can use")
    count = torch.cuda.device_count()
    if number >= count:
        return NoGpu(f"there is no cuda:{number}, of {count} GPUs")
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_properties(number).name
    except RuntimeError as error:
        return NoGpu(f"the GPU does not answer: {error}")
    return Gpu(name, free_bytes, total_bytes)


def look(number: int) -> Gpu | NoGpu:
    """The same, asked in another process.

    Takes the seconds that torch takes to import, and no time where no driver is.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return NoGpu("no GPU that torch can use")
    try:
        answer = subprocess.run(
            # Without the folder of this file on its path, where torch would find other modules.
            [sys.executable, "-P", __file__, str(number)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
        )
        values = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        # Of a child that failed, its own last line says more than its exit status.
        told = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return NoGpu(f"torch could not be asked for a GPU: {told[-1]}")
    return NoGpu(**values) if "reason" in values else Gpu(**values)


def _report(number: int) -> None:
    sys.stdout.write(f"\n{json.dumps(asdict(look_here(number)))}\n")


if __name__ == "__main__":
    _report(int(sys.argv[1]))
