"""From a picture to normalised patches: how it is sized, cut into slices and patched.

A picture becomes a thumbnail of about 448 × 448 pixels and, where slices are allowed and its area
is worth them, a grid of cells of that area each. Sizes are rounded to whole patches of 14 pixels
with Python's own rounding (halves to even). The thumbnail comes first, then the cells row by row.

What cannot be shown to the model is refused with RequestError, never cut down in silence: more
than 64 million pixels, or 25 in a file that comes in a call, shapes beyond 1:25, and data that no
decoder understands. A picture of a single pixel is fine: it is enlarged like any other.

Cutting a picture costs 10 ms of a processor, so it is put off until somebody asks for the pixels:
a GPU resizes for itself (`agent.duplex.cuda.picture_cutter`), to the same pixels bit for bit.
"""

import io
import math
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from agent.duplex.bicubic import columns_first
from agent.errors import RequestError
from agent.types import ByteArray

PATCH_PX = 14
PATCH_VALUES = 3 * PATCH_PX * PATCH_PX
SCALE_PX = 448
"""The side of the square whose area a thumbnail or cell has."""
MAX_SLICES = 9
"""The most cells that the model was trained on."""
MAX_SIDE_PATCHES = 160
"""As far as the tables of positions go."""
MAX_RATIO = 25
"""The longest shape that these tables hold: 448 · √25 pixels are 160 patches."""
MAX_PICTURE_PX = 64_000_000
"""Beyond a telephone's 50 megapixels; its RGB takes a quarter of a gigabyte while it is resized."""

MAX_FILE_PX = 25_000_000
"""Of a file that is unpacked here, beside all calls: beyond what telephones usually take. A file of
a few kilobytes can claim as much."""
KEPT_PX = 4_000_000
"""Of an unpacked file, and of a picture that waits: more than twice of what nine cells show."""

_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What browsers send; the library's other decoders (PostScript, say) see nothing of strangers."""
_DAMAGES = (OSError, ValueError, SyntaxError, TypeError, LookupError, struct.error, zlib.error)
"""What the decoders raise, besides their own errors, on data that was cut or altered."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How many cells a picture is cut into."""

    columns: int
    rows: int


class Patches(Protocol):
    """One thumbnail or cell as the model looks at it."""

    @property
    def rows(self) -> int:
        """Patches from top to bottom."""

    @property
    def columns(self) -> int:
        """Patches from left to right."""

    @property
    def pixels(self) -> Tensor:
        """Normalised, in −1..1, row by row, each patch as (channel, row, column): f32
        [rows · columns, 3 · 14 · 14]."""


@dataclass(frozen=True, slots=True)
class CutPatches:
    """Patches that were cut already."""

    pixels: Tensor
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Region:
    """`wide` × `high` pixels from (x, y) on of a picture that was resized to `width` × `height`."""

    width: int
    height: int
    x: int
    y: int
    wide: int
    high: int


class Picture:
    """RGB [H, W, 3] that is not to be written to any more, and what the model sees of it."""

    def __init__(self, rgb: ByteArray, max_slices: int = 1) -> None:
        """RequestError when it cannot be shown."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"a picture is u8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
        check_picture(rgb.shape[1], rgb.shape[0], max_slices)
        self.rgb = rgb
        self.regions = piece_regions(rgb.shape[1], rgb.shape[0], max_slices)
        """Of the thumbnail and then of the cells row by row."""

    @cached_property
    def cut(self) -> list[CutPatches]:
        """The pieces with their pixels, computed on the processor."""
        whole = Image.fromarray(self.rgb)
        sizes = dict.fromkeys((one.width, one.height) for one in self.regions)
        resized = {size: _resized(whole, *size) for size in sizes}
        return [_patch(resized[one.width, one.height], one) for one in self.regions]


@dataclass(frozen=True, slots=True)
class Piece:
    """A thumbnail or cell of a picture, cut when its pixels are asked for."""

    picture: Picture
    place: int

    @property
    def region(self) -> Region:
        """What it shows."""
        return self.picture.regions[self.place]

    @property
    def rows(self) -> int:
        """See `Patches`."""
        return self.region.high // PATCH_PX

    @property
    def columns(self) -> int:
        """See `Patches`."""
        return self.region.wide // PATCH_PX

    @property
    def pixels(self) -> Tensor:
        """See `Patches`."""
        return self.picture.cut[self.place].pixels


def patch_picture(rgb: ByteArray, max_slices: int = 1) -> list[Patches]:
    """RGB [H, W, 3] → the thumbnail and then, if it is cut up, its cells row by row.

    The picture is kept until it was looked at, and not to be written to before; a very large one
    is cut at once instead.
    """
    picture = Picture(rgb, max_slices)
    if rgb.shape[0] * rgb.shape[1] > KEPT_PX:
        return [*picture.cut]
    return [Piece(picture, place) for place in range(len(picture.regions))]


def decode_picture(data: bytes) -> ByteArray:
    """A picture file (JPEG, PNG, WebP, GIF, BMP) as RGB [H, W, 3], upright as its EXIF data says.

    The first picture of an animation; transparency becomes what lies under it. More than `KEPT_PX`
    are shrunk to these. RequestError when it is damaged, cut off, of another kind or has more than
    `MAX_FILE_PX`; that is seen before unpacking.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_KINDS) as picture:
            _check_size(picture.width, picture.height, MAX_FILE_PX)
            return np.asarray(ImageOps.exif_transpose(_shrunk(picture)).convert("RGB"))
    except UnidentifiedImageError as error:
        raise _refused(f"the picture is none of {', '.join(_KINDS)}, or damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("the picture", MAX_FILE_PX) from error
    except _DAMAGES as error:
        raise _refused(f"the picture is damaged: {error}") from error


def check_picture(width: int, height: int, max_slices: int = 1) -> None:
    """RequestError when a picture of this size cannot be shown to the model."""
    if not 1 <= max_slices <= MAX_SLICES:
        raise RequestError(
            f"a picture is cut into 1 to {MAX_SLICES} slices, not {max_slices}",
            param="max_slice_nums",
        )
    _check_size(width, height)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise _refused(
            f"a picture of {width}×{height} pixels is too long and narrow to be seen; crop it to "
            f"at most 1:{MAX_RATIO}"
        )


def _check_size(width: int, height: int, most_px: int = MAX_PICTURE_PX) -> None:
    if width < 1 or height < 1:
        raise _refused("the picture is empty")
    if width * height > most_px:
        raise _too_large(f"a picture of {width}×{height} pixels", most_px)


def _too_large(what: str, most_px: int) -> RequestError:
    return _refused(f"{what} is too large; send at most {most_px // 10**6} million pixels")


def _refused(message: str) -> RequestError:
    return RequestError(message, param="image", code="invalid_image")


def _shrunk(picture: Image.Image) -> Image.Image:
    """The same with about `KEPT_PX`, if it has more; not a longer shape than before."""
    width, height = picture.size
    scale = math.sqrt(KEPT_PX / (width * height))
    if scale >= 1:
        return picture
    # JPEG is unpacked at a half or a quarter at a fraction of the cost.
    picture.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    long, short = int(max(width, height) * scale), math.ceil(min(width, height) * scale)
    size = (long, short) if width >= height else (short, long)
    # Palettes and single bits can only be scaled as what they mean.
    plain = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    return plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


# ---- sizes --------------------------------------------------------------------------------------


def choose_grid(width: int, height: int, max_slices: int) -> Grid | None:
    """The cells that a picture of this size is cut into; None when it stays whole."""
    cells = min(math.ceil(width * height / SCALE_PX**2), max_slices)
    if cells <= 1:
        return None
    counts = [one for one in (cells - 1, cells, cells + 1) if 1 < one <= max_slices]
    grids = [Grid(c, one // c) for one in counts for c in range(1, one + 1) if one % c == 0]
    ratio = math.log(width / height)
    # The first of equals: `min` keeps it.
    return min(grids, key=lambda grid: abs(ratio - math.log(grid.columns / grid.rows)))


def piece_sizes(width: int, height: int, max_slices: int = 1) -> list[tuple[int, int]]:
    """(width, height) in pixels of the thumbnail and of each cell, whole patches all of them."""
    grid = choose_grid(width, height, max_slices)
    thumbnail = _fitted(width, height, enlarge=grid is None)
    if grid is None:
        return [thumbnail]
    return [thumbnail] + [_cell(width, height, grid)] * (grid.columns * grid.rows)


def piece_regions(width: int, height: int, max_slices: int = 1) -> list[Region]:
    """What the thumbnail and each cell show."""
    (wide, high), *cells = piece_sizes(width, height, max_slices)
    grid = choose_grid(width, height, max_slices)
    thumbnail = Region(wide, high, 0, 0, wide, high)
    if grid is None:
        return [thumbnail]
    wide, high = cells[0]
    whole = (wide * grid.columns, high * grid.rows)
    corners = [(c * wide, r * high) for r in range(grid.rows) for c in range(grid.columns)]
    return [thumbnail] + [Region(*whole, *corner, wide, high) for corner in corners]


def piece_grids(width: int, height: int, max_slices: int = 1) -> list[tuple[int, int]]:
    """(rows, columns) in patches of the thumbnail and of each cell."""
    sizes = piece_sizes(width, height, max_slices)
    return [(high // PATCH_PX, wide // PATCH_PX) for wide, high in sizes]


def _rounded(length: float, step: int) -> int:
    return max(round(length / step) * step, step)


def _fitted(width: float, height: float, *, enlarge: bool) -> tuple[int, int]:
    """The size in whole patches, of 448² area when it is larger than that or may be enlarged."""
    if width * height > SCALE_PX**2 or enlarge:
        ratio = width / height
        height = int(SCALE_PX / math.sqrt(ratio))
        width = int(height * ratio)
    return _rounded(width, PATCH_PX), _rounded(height, PATCH_PX)


def _cell(width: int, height: int, grid: Grid) -> tuple[int, int]:
    wide = _rounded(width, grid.columns) / grid.columns
    high = _rounded(height, grid.rows) / grid.rows
    return _fitted(wide, high, enlarge=True)


# ---- pixels -------------------------------------------------------------------------------------


def _resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """One pass after the other, rounded between, so that the order is ours and not Pillow's."""
    first = (width, picture.height)
    if columns_first((picture.width, picture.height), (width, height)):
        first = (picture.width, height)
    once = picture.resize(first, Image.Resampling.BICUBIC)
    return once.resize((width, height), Image.Resampling.BICUBIC)


def _patch(resized: Image.Image, region: Region) -> CutPatches:
    x, y, wide, high = region.x, region.y, region.wide, region.high
    piece = np.array(resized.crop((x, y, x + wide, y + high)))
    pixels = normalised(torch.from_numpy(piece))  # [H, W, 3]
    rows, columns = high // PATCH_PX, wide // PATCH_PX
    cut = pixels.view(rows, PATCH_PX, columns, PATCH_PX, 3)
    return CutPatches(cut.permute(0, 2, 4, 1, 3).reshape(-1, PATCH_VALUES), rows, columns)


def normalised(values: Tensor) -> Tensor:
    """Bytes of a picture as the model takes them: f32 in −1..1."""
    return (values.to(torch.float32) / 255 - 0.5) / 0.5
