"""The benchmark of weights of few bits, on the tiny model and without a GPU."""

import io
import json

import pytest

from bench.quant import measure
from bench.report import Report
from tests.rig.tiny_model import FLOAT32, tiny_config


@pytest.fixture(scope="module")
def rows() -> dict[str, float]:
    out = io.StringIO()
    measure(Report(as_json=True, out=out), tiny_config(), FLOAT32)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    return {row["name"]: row["value"] for row in told if "name" in row}


def test_fewer_bits_are_further_off(rows: dict[str, float]) -> None:
    errors = [rows[f"{kind}_logit_error"] for kind in ("int8", "fp8", "int4")]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5
    assert "none_logit_error" not in rows


def test_the_likeliest_word_is_mostly_the_same(rows: dict[str, float]) -> None:
    assert rows["int8_top1_agreement"] > 0.9
    assert rows["int4_top1_agreement"] < rows["int8_top1_agreement"]


def test_fewer_bits_take_less(rows: dict[str, float]) -> None:
    taken = [rows[f"{kind}_projections_gb"] for kind in ("none", "int8", "int4")]
    assert taken[0] > 1.9 * taken[1] > 3.5 * taken[2]
