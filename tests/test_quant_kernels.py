"""The kernels of weights of few bits, interpreted on the CPU, against the widened weight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

_RUN = """
import json
import torch
from agent.duplex import quant_formats as formats
from agent.duplex.quant_linear import QuantLinear, side_by_side
from agent.torch_parts.kernels import quant as kernels

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
CUTS = [
    kernels.Plan(16, 8, 2, 2, 2),
    kernels.Plan(32, 16, 1, 1, 3),
    kernels.Plan(32, 16, 0, 4, 2),
]

def apart(ours, true):
    return float((ours - true).norm() / true.norm())

def layer(kind, outputs):
    made = QuantLinear(512, outputs, kind)
    made.pack({"weight": torch.randn(outputs, 512, generator=generator) * 0.02})
    return made

def tokens(rows):
    return torch.randn(rows, 512, generator=generator)

told = {}
for kind in ("int4", "int8", "fp8"):
    one = layer(kind, 32)
    weight = one.codes, one.steps
    wide = one.widened(torch.float32)
    told[f"{kind} widen"] = apart(kernels.widen(*weight, torch.float32), wide)
    for cut in CUTS:
        for rows in (1, cut.columns + 1):
            x = tokens(rows)
            told[f"{kind} {rows} {cut}"] = apart(kernels.multiply(x, *weight, cut), x @ wide.t())
    whole = side_by_side([layer(kind, 32), part := layer(kind, 16)])
    x = tokens(3)
    theirs = kernels.multiply(x, whole.codes, whole.steps, CUTS[0])[:, 32:]
    told[f"{kind} part"] = apart(kernels.multiply(x, part.codes, part.steps, CUTS[0]), theirs)
for rows in (1, 9, 17, kernels.MOST_ROWS + 1):
    x = tokens(rows)
    told[f"product {rows}"] = apart(kernels.product(x, *weight), x @ wide.t())
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", _RUN],
        cwd=root,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told: dict[str, float] = json.loads(ran.stdout)
    return told


def test_every_cut_says_what_the_widened_weight_says(errors: dict[str, float]) -> None:
    cuts = {name: error for name, error in errors.items() if "Plan" in name}
    assert len(cuts) == 3 * 3 * 2
    assert max(cuts.values()) < 1e-6


def test_widened_by_a_kernel_is_widened_by_torch(errors: dict[str, float]) -> None:
    assert [errors[f"{kind} widen"] for kind in ("int4", "int8", "fp8")] == [0, 0, 0]


def test_a_part_of_what_lies_side_by_side_is_read_as_such(errors: dict[str, float]) -> None:
    assert [errors[f"{kind} part"] for kind in ("int4", "int8", "fp8")] == [0, 0, 0]


def test_the_product_is_right_however_many_rows(errors: dict[str, float]) -> None:
    products = [error for name, error in errors.items() if "product" in name]
    assert len(products) == 4 and max(products) < 1e-6
