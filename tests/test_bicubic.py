"""Resizing in whole numbers: Pillow's pixels, bit for bit, in Pillow's order of passes."""

import random

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from agent.duplex.bicubic import WEIGHT_BITS, columns_first, taps
from agent.duplex.pictures import CutPatches, Piece, patch_picture, piece_regions
from agent.types import ByteArray

BICUBIC = Image.Resampling.BICUBIC


def sizes(seed: int, count: int, most: int = 220) -> list[tuple[int, int, int, int]]:
    rng = random.Random(seed)
    return [tuple(rng.randint(1, most) for _ in range(4)) for _ in range(count)]  # type: ignore[misc]


def noise(width: int, height: int, seed: int) -> ByteArray:
    """Black and white: what overshoots the most."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


def along_rows(pixels: NDArray[np.uint8], wanted: int) -> NDArray[np.uint8]:
    made = taps(pixels.shape[1], wanted)
    places = made.first[:, None] + np.arange(made.weights.shape[1])
    seen = pixels[:, np.minimum(places, pixels.shape[1] - 1)].astype(np.int64)
    sums = (seen * made.weights[..., None]).sum(2) + (1 << WEIGHT_BITS - 1)
    return (sums >> WEIGHT_BITS).clip(0, 255).astype(np.uint8)


def along_columns(pixels: NDArray[np.uint8], wanted: int) -> NDArray[np.uint8]:
    return along_rows(pixels.transpose(1, 0, 2), wanted).transpose(1, 0, 2)


@pytest.mark.parametrize("seed", range(4))
def test_one_pass_gives_pillow_s_pixels(seed: int) -> None:
    for width, height, wanted, _ in sizes(seed, 25):
        rgb = noise(width, height, seed)
        theirs = np.asarray(Image.fromarray(rgb).resize((wanted, height), BICUBIC))
        assert (along_rows(rgb, wanted) == theirs).all(), (width, height, wanted)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="rows always come first")
def test_two_passes_in_the_order_of_pillow() -> None:
    for width, height, wide, high in [*sizes(9, 80), (100, 100, 99, 98), (100, 100, 99, 97)]:
        rgb = noise(width, height, width)
        theirs = np.asarray(Image.fromarray(rgb).resize((wide, high), BICUBIC))
        if columns_first((width, height), (wide, high)):
            ours = along_rows(along_columns(rgb, high), wide)
        else:
            ours = along_columns(along_rows(rgb, wide), high)
        assert (ours == theirs).all(), (width, height, wide, high)


def test_sums_fit_into_32_bits() -> None:
    for length, wanted in ((1, 448), (448, 448), (1280, 602), (3840, 602), (5000, 21)):
        weights = taps(length, wanted).weights.astype(np.int64)
        assert (np.abs(weights).sum(1) * 255).max() + (1 << WEIGHT_BITS - 1) < 2**31
        assert np.abs(weights.sum(1) - (1 << WEIGHT_BITS)).max() <= weights.shape[1]


def test_a_part_reaches_no_further_than_its_taps() -> None:
    made = taps(720, 336)
    begin, end = made.reach(100, 150, 720)
    assert begin == made.first[100] and begin > 100 * 720 / 336 - 10
    assert end == made.first[149] + made.weights.shape[1] < 150 * 720 / 336 + 10
    assert made.reach(0, 336, 720) == (0, 720)


# ---- when a picture is cut ----------------------------------------------------------------------


def test_a_picture_is_cut_when_its_pixels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        resized.append(size)
        return resize(self, size, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    pieces = patch_picture(noise(640, 480, 1), 4)
    assert [(piece.rows, piece.columns) for piece in pieces] == [(28, 37), (39, 26), (39, 26)]
    assert not resized
    pixels = [piece.pixels for piece in pieces]
    # Once for the thumbnail and once for all cells, each in two passes.
    assert resized == [(518, 480), (518, 392), (728, 480), (728, 546)]
    assert [one.data_ptr() for one in pixels] == [piece.pixels.data_ptr() for piece in pieces]


def test_a_very_large_picture_is_not_kept() -> None:
    (small,) = patch_picture(np.zeros((2000, 2000, 3), np.uint8))
    (large,) = patch_picture(np.zeros((2000, 2001, 3), np.uint8))
    assert isinstance(small, Piece) and isinstance(large, CutPatches)
    assert (small.rows, small.columns) == (large.rows, large.columns) == (32, 32)


def test_regions_tile_the_enlarged_picture() -> None:
    thumbnail, *cells = piece_regions(1920, 1080, 9)
    assert (thumbnail.wide, thumbnail.high) == (thumbnail.width, thumbnail.height) == (602, 336)
    assert {(one.width, one.height) for one in cells} == {(4 * cells[0].wide, 2 * cells[0].high)}
    corners = [(one.x // one.wide, one.y // one.high) for one in cells]
    assert corners == [(column, row) for row in range(2) for column in range(4)]
