"""The benchmark of the vocoder's kernels: its products and rows are all there."""

import io
import json
from typing import Any

import pytest
import torch

import bench.vocoder_kernels as bench
import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from bench.report import Report
from bench.vocoder_kernels import Shape

SMALL = (Shape("linear", 20, 16, 1, 6), Shape("conv", 8, 16, 3, 9, is_hift=True))


def test_every_product_is_measured_in_every_tile_beside_torch_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[Any] = []
    few = {"DEVICE": torch.device("cpu"), "SHAPES": SMALL, "STREAMS": (2,), "_LAYERS": 2}
    for name, value in few.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "FLOW_TILES", ((32, 16, 16, 2, 4),))
    monkeypatch.setattr(bench, "HIFT_TILES", ((32, 16, 16, 2, 4), (16, 16, 16, 2, 4, 128)))
    monkeypatch.setattr(bench, "replayed_ms", lambda call: called.append(call()) or 2.0)
    monkeypatch.setattr(torch, "float16", torch.float32)  # which the interpreter multiplies exactly
    out = io.StringIO()
    bench.measure_tiles(Report(as_json=True, out=out))
    _, *rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["name"] for row in rows] == [
        "linear_2_streams_32x16x16x2x4_us",
        "conv_2_streams_32x16x16x2x4_us",
        "conv_2_streams_16x16x16x2x4x128_us",
    ]
    assert all(row["value"] == row["against"] == 1000 for row in rows)
    # What torch made is there to see that both are products of the same sizes.
    made = [one for one in called if one is not None]
    assert [tuple(one[0].shape) for one in made] == [(2, 6, 20), (2, 8, 9)]


def test_a_missing_gpu_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--json"]) == 2
    assert "finds no GPU" in capsys.readouterr().err
