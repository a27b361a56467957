"""Pictures: sizes, slices, patches, positions; the tower's invariants; what is refused."""

import io
import math
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from agent.duplex.config import ResamplerConfig, VisionConfig
from agent.duplex.pictures import (
    MAX_SIDE_PATCHES,
    CutPatches,
    Grid,
    Patches,
    check_picture,
    choose_grid,
    decode_picture,
    patch_picture,
    piece_grids,
    piece_sizes,
)
from agent.duplex.resampler import Resampler, side_positions
from agent.duplex.vision import Eyes, VisionTower, batch_patches, position_buckets
from agent.errors import RequestError
from agent.torch_parts.checkpoint import Target
from tests.rig import tiny_model as tiny


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return tiny.tiny_eyes()


def _patches(rows: int, columns: int, seed: int = 0) -> Patches:
    generator = torch.Generator().manual_seed(seed + rows * 1000 + columns)
    return CutPatches(torch.rand(rows * columns, 588, generator=generator) * 2 - 1, rows, columns)


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "slices", "sizes"),
    [
        ((640, 480), 1, [(518, 392)]),
        ((1280, 720), 1, [(602, 336)]),
        ((448, 448), 1, [(448, 448)]),
        ((448, 448), 9, [(448, 448)]),
        ((640, 480), 4, [(518, 392), (364, 546), (364, 546)]),
        ((1, 1), 9, [(448, 448)]),
        ((7, 7), 1, [(448, 448)]),
    ],
)
def test_sizes_of_thumbnail_and_cells(
    size: tuple[int, int], slices: int, sizes: list[tuple[int, int]]
) -> None:
    assert piece_sizes(*size, slices) == sizes


def test_the_grid_fits_the_picture_s_shape() -> None:
    assert choose_grid(640, 480, 1) is None
    assert choose_grid(440, 440, 9) is None
    assert choose_grid(1920, 1080, 9) == Grid(4, 2)
    assert choose_grid(1080, 1920, 9) == Grid(2, 4)
    # Of two grids equally far from the picture's shape the first stands: few columns.
    assert choose_grid(500, 500, 2) == Grid(1, 2)


@pytest.mark.parametrize("slices", [1, 2, 9])
def test_every_size_that_is_let_in_stays_within_the_tables(slices: int) -> None:
    for width in (1, 2, 13, 100, 449, 1000, 1500):
        for ratio in (1, 1.7, 3.3, 10, 24.9, 25):
            for size in ((width, math.ceil(width * ratio)), (math.ceil(width * ratio), width)):
                if max(size) > 25 * min(size):
                    continue
                check_picture(*size, slices)
                for rows, columns in piece_grids(*size, slices):
                    assert 1 <= max(rows, columns) <= MAX_SIDE_PATCHES, size
                    assert rows * columns <= 1200, size


# ---- pixels -------------------------------------------------------------------------------------


def test_patches_are_cut_row_by_row_with_channels_first() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    (piece,) = patch_picture(rgb)
    assert (piece.rows, piece.columns) == (32, 32)
    patch = piece.pixels[1 * 32 + 2].view(3, 14, 14)
    wanted = rgb[14:28, 28:42].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    assert torch.allclose(patch, torch.from_numpy(wanted), atol=1e-6)


def test_cells_are_parts_of_one_enlarged_picture() -> None:
    rgb = tiny.recipe().picture(640, 480, 3)
    _, left, right = patch_picture(rgb, 4)
    whole = np.asarray(Image.fromarray(rgb).resize((728, 546), Image.Resampling.BICUBIC))
    first = left.pixels[0].view(3, 14, 14).permute(1, 2, 0)
    last = right.pixels[-1].view(3, 14, 14).permute(1, 2, 0)
    for ours, theirs in ((first, whole[:14, :14]), (last, whole[-14:, -14:])):
        wanted = torch.from_numpy(theirs / np.float32(127.5) - 1)
        assert torch.allclose(ours, wanted.float(), atol=1e-6)


def test_a_picture_of_one_pixel_is_seen() -> None:
    (piece,) = patch_picture(np.full((1, 1, 3), 255, np.uint8), 9)
    assert piece.pixels.shape == (1024, 588)
    assert piece.pixels.eq(1).all()


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height"),
    [(20_000, 20_000), (8001, 8000), (0, 5), (5, 0), (26, 1), (1, 26), (30_000, 100)],
)
def test_pictures_that_cannot_be_shown_are_refused(width: int, height: int) -> None:
    with pytest.raises(RequestError) as told:
        check_picture(width, height)
    assert told.value.param == "image"
    # The same where the pixels are at hand; this array takes no memory.
    rgb = np.broadcast_to(np.uint8(0), (height, width, 3))
    with pytest.raises(RequestError):
        patch_picture(rgb)


@pytest.mark.parametrize("slices", [0, -1, 10])
def test_only_as_many_slices_as_the_model_knows(slices: int) -> None:
    with pytest.raises(RequestError, match="1 to 9 slices") as told:
        check_picture(640, 480, slices)
    assert told.value.param == "max_slice_nums"


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (1, 4, 4, 3)])
def test_what_is_no_picture_is_a_mistake_of_the_caller(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a picture is u8"):
        patch_picture(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="a picture is u8"):
        patch_picture(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]


# ---- files --------------------------------------------------------------------------------------


def _file(kind: str, mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> bytes:
    rgb = tiny.recipe().picture(*size, 5)
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_files_become_rgb(kind: str, mode: str) -> None:
    rgb = decode_picture(_file(kind, mode))
    assert rgb.shape == (40, 60, 3)
    assert rgb.dtype == np.uint8
    if kind == "PNG" and mode == "RGBA":
        assert np.array_equal(rgb, tiny.recipe().picture(60, 40, 5))


def test_a_telephone_s_picture_is_turned_upright() -> None:
    picture = Image.fromarray(tiny.recipe().picture(60, 40, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    rgb = decode_picture(buffer.getvalue())
    assert np.array_equal(rgb, np.rot90(np.asarray(picture), -1))


def test_a_huge_file_is_refused_by_its_header() -> None:
    for side in (5001, 20_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
        data += struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"
        with pytest.raises(RequestError, match="too large; send at most 25 million pixels"):
            decode_picture(data)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "1"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "L")]
)
def test_a_large_file_is_shrunk_and_shows_the_same(kind: str, mode: str) -> None:
    picture = Image.new("RGB", (60, 40), "white")
    picture.paste((0, 0, 0), (0, 0, 30, 20))  # the upper left is black
    picture = picture.resize((3000, 2000), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: the black goes to the upper right
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, kind, exif=exif)
    rgb = decode_picture(buffer.getvalue())
    height, width = rgb.shape[:2]
    assert height == pytest.approx(1.5 * width, rel=0.002)
    assert 3_900_000 < width * height <= 4_010_000
    assert rgb[height // 4, width // 4 :: width // 2].tolist() == [[255] * 3, [0] * 3]
    assert rgb[3 * height // 4].min() == 255


def test_a_large_jpeg_is_unpacked_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[tuple[int, int]] = []
    convert = Image.Image.convert

    def noted(image: Image.Image, mode: str) -> Image.Image:
        unpacked.append(image.size)
        return convert(image, mode)

    buffer = io.BytesIO()
    Image.new("RGB", (5760, 4320)).save(buffer, "JPEG")
    monkeypatch.setattr(Image.Image, "convert", noted)
    assert decode_picture(buffer.getvalue()).shape == (1733, 2309, 3)
    assert unpacked[0] == (2880, 2160)


def test_shrinking_makes_no_shape_too_long() -> None:
    buffer = io.BytesIO()
    Image.new("1", (24_975, 999)).save(buffer, "PNG")
    rgb = decode_picture(buffer.getvalue())
    check_picture(rgb.shape[1], rgb.shape[0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_damaged_files_are_refused_or_read_but_never_crash(kind: str) -> None:
    whole = _file(kind)
    chance = random.Random(7)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        if chance.random() < 0.5:
            del damaged[chance.randrange(len(damaged)) :]
        else:
            for _ in range(20):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            decode_picture(bytes(damaged))
        except RequestError:
            refused += 1
    assert refused >= 10


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(RequestError, match="none of JPEG"):
        decode_picture(data)


# ---- positions ----------------------------------------------------------------------------------


def test_position_buckets_and_their_exceptions() -> None:
    assert position_buckets(1) == [0]
    assert position_buckets(70) == list(range(70))
    assert position_buckets(35) == list(range(0, 70, 2))
    lowered = {
        side: [i for i, bucket in enumerate(position_buckets(side)) if bucket != i * 70 // side]
        for side in range(1, MAX_SIDE_PATCHES + 1)
    }
    assert {side for side, places in lowered.items() if places} == {
        *(25, 49, 50, 55, 58, 77, 82, 86, 94, 98, 100, 110, 115, 135, 147, 154, 155)
    }
    assert lowered[50] == [5, 10, 15, 20, 30, 40]
    assert position_buckets(58)[28:31] == [33, 34, 36]
    for side in (0, 161):
        with pytest.raises(ValueError, match="1 to 160"):
            position_buckets(side)


def test_side_positions_are_sines_then_cosines() -> None:
    table = side_positions(160, 8)
    assert table.shape == (160, 8)
    assert table[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert table[150, 1].item() == pytest.approx(math.sin(150 / 10_000**0.25), abs=1e-6)
    assert table[150, 7].item() == pytest.approx(math.cos(150 / 10_000**0.75), abs=1e-6)


def test_the_resampler_knows_a_row_from_a_column_and_reaches_beyond_70(eyes: Eyes) -> None:
    for long in (3, 71, 160):
        lying, standing = _patches(1, long), _patches(long, 1)
        same = CutPatches(lying.pixels, standing.rows, standing.columns)
        features = torch.randn(1, long, 144, generator=torch.Generator().manual_seed(1))
        ours = [
            eyes.resampler(features, batch_patches([piece], torch.device("cpu")).places, None)
            for piece in (lying, same)
        ]
        assert not torch.allclose(ours[0], ours[1], atol=1e-3)


# ---- invariants ---------------------------------------------------------------------------------


def _close(ours: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-5) -> bool:
    return bool((ours - theirs).abs().max() <= limit * theirs.abs().max())


def test_pictures_of_a_batch_come_out_as_alone(eyes: Eyes) -> None:
    shapes = [(3, 5), (1, 1), (12, 2), (3, 5), (7, 7), *[(2, count) for count in range(1, 31)]]
    pieces = [_patches(rows, columns, seed) for seed, (rows, columns) in enumerate(shapes)]
    together = eyes.see(pieces)  # more than two batches
    assert together.shape == (35, 64, 256)
    for piece, ours in zip(pieces, together, strict=True):
        assert _close(ours, eyes.see([piece])[0]), (piece.rows, piece.columns)


def test_no_more_than_sixteen_pictures_pass_at_once(
    eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = VisionTower.forward

    def watched(self: VisionTower, pixels: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return forward(self, pixels, *rest)

    monkeypatch.setattr(VisionTower, "forward", watched)
    eyes.see([_patches(1, 2)] * 35)
    assert sizes == [16, 16, 3]


def test_padding_to_a_fixed_length_changes_nothing(eyes: Eyes) -> None:
    piece = _patches(4, 6)
    cpu = torch.device("cpu")
    assert batch_patches([piece], cpu).mask is None
    padded = batch_patches([piece], cpu, length=40)
    assert padded.pixels.shape == (1, 40, 588)
    assert _close(eyes.see_batch(padded)[0], eyes.see([piece])[0])
    with pytest.raises(ValueError, match="24 patches do not fit into 23"):
        batch_patches([piece], cpu, length=23)


def test_no_pictures_give_no_vectors(eyes: Eyes) -> None:
    assert eyes.see([]).shape == (0, 64, 256)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_stays_near_float32(eyes: Eyes, attention: str) -> None:
    half = tiny.tiny_eyes(attention, Target(torch.device("cpu"), torch.bfloat16))  # type: ignore[arg-type]
    pieces = [_patches(5, 6), _patches(6, 3)]
    ours = half.see(pieces)
    assert ours.dtype == torch.bfloat16
    assert _close(ours.float(), eyes.see(pieces), 0.05)


def test_a_tower_for_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="a side of 70"):
        VisionTower(VisionConfig(16, 16, 1, 1, table_side=32, batch_pictures=1))


def test_positions_stay_float32_whatever_the_weights_are() -> None:
    resampler = Resampler(ResamplerConfig(128, 16, 1, 4)).to(torch.bfloat16)
    assert resampler.positions.dtype == torch.float32
