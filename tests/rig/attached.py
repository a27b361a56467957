"""Files that a client would attach, written on the spot: pictures, recordings, films."""

import base64
import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def tone(seconds: float, rate_hz: int = 16_000, pitch_hz: float = 440.0) -> FloatArray:
    """A sine of amplitude a half."""
    at_s = np.arange(round(seconds * rate_hz)) / rate_hz
    samples: FloatArray = (0.5 * np.sin(2 * np.pi * pitch_hz * at_s)).astype(np.float32)
    return samples


def wav(samples: npt.NDArray[np.generic], rate_hz: int = 16_000) -> bytes:
    """A WAV file of [T] or [T, channels], 16 bits for integers, 32 for floats."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    width = samples.dtype.itemsize
    code = 3 if samples.dtype.kind == "f" else 1
    data = samples.tobytes()
    form = struct.pack(
        "<HHIIHH", code, channels, rate_hz, rate_hz * channels * width, channels * width, 8 * width
    )
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def sound(container: str, codec: str, samples: FloatArray, rate_hz: int = 16_000) -> bytes:
    """The samples [T], encoded."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        stream.bit_rate = 64_000
        _encode_sound(output, stream, samples, rate_hz)
    return file.getvalue()


def picture(colour: tuple[int, ...], size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """One colour all over; `size` is width, height."""
    return saved(Image.new("RGB", size, colour), kind)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def film(
    colours: Sequence[tuple[int, ...]],
    samples: FloatArray | None = None,
    *,
    frames_s: int = 10,
    size: tuple[int, int] = (64, 48),
    container: str = "mp4",
    layout: str = "mono",
) -> bytes:
    """A second of each colour, with sound at 16 kHz if there is any."""
    frames = [
        np.full((size[1], size[0], 3), colour, np.uint8)
        for colour in colours
        for _ in range(frames_s)
    ]
    return film_of(frames, samples, frames_s=frames_s, container=container, layout=layout)


def film_of(
    frames: Sequence[ByteArray],
    samples: FloatArray | None = None,
    *,
    frames_s: int = 10,
    container: str = "mp4",
    layout: str = "mono",
) -> bytes:
    """These pictures [H, W, 3], one after the other."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=frames_s)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        voice = (
            output.add_stream("aac", rate=16_000, layout=layout) if samples is not None else None
        )
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, frames_s)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if voice is not None and samples is not None:
            _encode_sound(output, voice, samples, 16_000)
    return file.getvalue()


def turned_film(data: bytes) -> bytes:
    """The MP4 film, to be shown turned by a quarter clockwise, as phones held upright write it."""
    matrix = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    at = data.index(b"tkhd") + 4 + 40
    return data[:at] + matrix + data[at + len(matrix) :]


def data_url(data: bytes, kind: str = "image/png") -> str:
    """The file as an address of its own."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _encode_sound(output: object, stream: object, samples: FloatArray, rate_hz: int) -> None:
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
    # The encoder wants its own format of samples and its own length of frame.
    codec = stream.codec_context
    if not codec.is_open:
        codec.open()
    resampler = av.AudioResampler(
        codec.format, codec.layout, codec.sample_rate, codec.frame_size or 0
    )
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        output.mux(stream.encode(piece))
    output.mux(stream.encode(None))
