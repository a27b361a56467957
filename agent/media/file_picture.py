"""Picture files to RGB: turned upright, flattened, not larger than allowed."""

import math
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from agent.errors import RequestError
from agent.types import ByteArray

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# What Pillow's readers raise on damaged files, as its documentation and fuzzing show.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode_picture(data: bytes, most_pixels: int, kept_pixels: int) -> ByteArray:
    """RGB [H, W, 3] of a picture file: of the first frame, upright, transparency made white.

    More than `most_pixels` are refused by what the header says, before anything is decoded; more
    than `kept_pixels` are scaled down to them. `RequestError`.
    """
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as picture:
            _check_size(picture.size, most_pixels)
            # JPEG can be decoded at a half, a quarter, an eighth: much cheaper than all of it.
            picture.draft(None, _fitted(picture.size, kept_pixels))
            picture.load()
            upright = _shrunk(_upright(picture), kept_pixels)
            return np.array(_flat(upright), np.uint8)
    except _TOO_LARGE as error:
        raise _too_many(f"more than {most_pixels:,}", most_pixels) from error
    except UnidentifiedImageError as error:
        raise RequestError("the picture is damaged at its start", code="invalid_media") from error
    except _DAMAGE as error:
        raise RequestError(
            f"the picture is damaged or incomplete: {error}", code="invalid_media"
        ) from error


def shrink(rgb: ByteArray, kept_pixels: int) -> ByteArray:
    """The same picture [H, W, 3] with at most `kept_pixels`."""
    if rgb.shape[0] * rgb.shape[1] <= kept_pixels:
        return rgb
    return np.array(_shrunk(Image.fromarray(rgb), kept_pixels), np.uint8)


def _check_size(size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        raise _too_many(f"{width:,} × {height:,}", most_pixels)
    if width < 1 or height < 1:
        raise RequestError("the picture has no pixels", code="invalid_media")


def _too_many(what: str, most_pixels: int) -> RequestError:
    return RequestError(
        f"the picture has {what} pixels; at most {most_pixels:,} in all are allowed",
        code="picture_too_large",
    )


def _upright(picture: Image.Image) -> Image.Image:
    """As the camera was held; a photo whose EXIF data is damaged stays as it is."""
    try:
        return ImageOps.exif_transpose(picture)
    except _DAMAGE:
        return picture


def _fitted(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    width, height = size
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _shrunk(picture: Image.Image, pixels: int) -> Image.Image:
    size = _fitted(picture.size, pixels)
    if size == picture.size:
        return picture
    # Palettes and 16-bit pictures can only be scaled as what they mean.
    plain = picture if picture.mode in ("RGB", "RGBA", "L") else _flat(picture)
    return plain.resize(size, Image.Resampling.LANCZOS)


def _flat(picture: Image.Image) -> Image.Image:
    """RGB of any mode; what is transparent shows white paper."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _from_deep(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def _from_deep(picture: Image.Image) -> Image.Image:
    """16 bits a pixel as 8; deeper pictures are measurements, with no white to tell."""
    levels = np.asarray(picture)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > 0xFFFF:
        raise RequestError(
            "the picture has more than 16 bits a pixel; send it with 8 or 16",
            code="unsupported_media",
        )
    return Image.fromarray((levels.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
