"""Pictures cut by the device's kernels, in Triton's interpreter: Pillow's pixels, bit for bit."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from agent.duplex.bicubic import columns_first
from agent.duplex.pictures import Region, normalised
from agent.types import ByteArray
from tests.rig import triton_on_cpu  # noqa: F401

BICUBIC = Image.Resampling.BICUBIC


def noise(width: int, height: int, seed: int) -> ByteArray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


def wanted(rgb: ByteArray, region: Region) -> torch.Tensor:
    """The piece's patches: Pillow resizes, NumPy cuts."""
    height, width = rgb.shape[:2]
    tall = columns_first((width, height), (region.width, region.height))
    once = (width, region.height) if tall else (region.width, height)
    picture = Image.fromarray(rgb).resize(once, BICUBIC)
    whole = np.asarray(picture.resize((region.width, region.height), BICUBIC))
    piece = whole[region.y : region.y + region.high, region.x : region.x + region.wide]
    cut = piece.reshape(region.high // 14, 14, region.wide // 14, 14, 3).transpose(0, 2, 4, 1, 3)
    return normalised(torch.from_numpy(cut.reshape(-1, 588).copy()))


def cut(rgb: ByteArray, region: Region) -> torch.Tensor:
    from agent.duplex.cuda.picture_cutter import PictureCutter, to_device

    cutter = PictureCutter(torch.device("cpu"), torch.float32)
    patches = (region.high // 14) * (region.wide // 14)
    out = torch.full((patches + 1, 588), torch.nan)
    cutter.cut(to_device(rgb, torch.device("cpu")), region, out[:patches])
    assert out[patches].isnan().all()
    return out[:patches]


CASES = [
    (31, 20, Region(14, 14, 0, 0, 14, 14)),  # smaller
    (9, 5, Region(28, 14, 0, 0, 28, 14)),  # larger
    (1, 1, Region(14, 14, 0, 0, 14, 14)),
    (28, 14, Region(28, 14, 0, 0, 28, 14)),  # as it was
    (30, 23, Region(42, 28, 28, 14, 14, 14)),  # a cell at the end
    (14, 50, Region(14, 28, 0, 0, 14, 28)),  # so tall that columns come first
    (10, 40, Region(28, 28, 14, 14, 14, 14)),
]


@pytest.mark.parametrize(("width", "height", "region"), CASES)
def test_a_piece_is_pillow_s_bit_for_bit(width: int, height: int, region: Region) -> None:
    rgb = noise(width, height, width + height)
    assert (cut(rgb, region) == wanted(rgb, region)).all()


def test_tall_pictures_are_among_them() -> None:
    orders = {columns_first((w, h), (one.width, one.height)) for w, h, one in CASES}
    assert orders == {False, True}


def test_pieces_of_any_size_are_pillow_s() -> None:
    rng, region = random.Random(5), Region(14, 14, 0, 0, 14, 14)
    for _ in range(15):
        width, height = rng.randint(1, 60), rng.randint(1, 60)
        rgb = noise(width, height, width)
        assert (cut(rgb, region) == wanted(rgb, region)).all(), (width, height)


def test_no_more_than_the_latest_sides_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.duplex.cuda import picture_cutter

    monkeypatch.setattr(picture_cutter, "_KEPT_TAPS", 3)
    cutter = picture_cutter.PictureCutter(torch.device("cpu"), torch.float32)
    region, out = Region(14, 14, 0, 0, 14, 14), torch.empty(1, 588)
    for side in (2, 3, 4, 5):
        cutter.cut(torch.from_numpy(noise(side, side, side)), region, out)
    assert list(cutter._taps) == [(3, 14), (4, 14), (5, 14)]
    latest = noise(3, 5, 1)
    cutter.cut(torch.from_numpy(latest), region, out)
    assert list(cutter._taps) == [(4, 14), (3, 14), (5, 14)]
    assert (out == wanted(latest, region)).all()
