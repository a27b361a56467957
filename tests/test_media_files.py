"""Attached files: common formats are read as what they are, all others refused in words."""

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.chat_types import ChatPicture, ChatSound, ChatVideo
from agent.errors import RequestError
from agent.media.files import SUPPORTED, MediaLimits, kind_of, read_file, read_media
from tests.rig.attached import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    film,
    film_of,
    picture,
    saved,
    sound,
    tone,
    turned_film,
    wav,
)

LIMITS = MediaLimits()


def refused(data: bytes, name: str = "", limits: MediaLimits = LIMITS) -> RequestError:
    """The error with which a file is turned away."""
    with pytest.raises(RequestError) as caught:
        read_media(data, name, limits)
    return caught.value


def rgb_of(data: bytes, limits: MediaLimits = LIMITS) -> np.ndarray:
    part = read_media(data, "a.jpg", limits)
    assert isinstance(part, ChatPicture) and kind_of(part) == "picture"
    assert part.rgb.dtype == np.uint8 and part.rgb.shape[2] == 3
    return part.rgb


def sound_of(data: bytes) -> np.ndarray:
    part = read_media(data)
    assert isinstance(part, ChatSound) and kind_of(part) == "sound"
    assert part.samples.dtype == np.float32 and part.samples.ndim == 1
    return part.samples


def video_of(data: bytes, limits: MediaLimits = LIMITS) -> ChatVideo:
    part = read_media(data, "a.mp4", limits)
    assert isinstance(part, ChatVideo) and kind_of(part) == "video"
    return part


def near(rgb: np.ndarray, colour: tuple[int, ...], tolerance: int = 40) -> bool:
    return bool(np.abs(rgb.reshape(-1, 3).mean(axis=0) - np.array(colour)).max() < tolerance)


def pitch_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * 16_000 / len(samples))


# ---- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pictures_of_every_common_format(kind: str) -> None:
    rgb = rgb_of(picture(RED, (40, 30), kind))
    assert rgb.shape == (30, 40, 3) and near(rgb, RED, 8)


def test_the_smallest_picture() -> None:
    assert rgb_of(picture(BLUE, (1, 1))).tolist() == [[list(BLUE)]]


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("L", 255), ("1", 1), ("LA", (255, 255)), ("CMYK", (0, 0, 0, 0)), ("P", 0), ("I;16", 65535)],
)
def test_other_modes_become_rgb(mode: str, colour: int) -> None:
    image = Image.new(mode, (8, 6), colour)
    if mode == "P":
        image.putpalette([255, 255, 255] * 256)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert near(rgb_of(saved(image, kind)), WHITE, 3)


def test_sixteen_bits_keep_their_shade() -> None:
    rgb = rgb_of(saved(Image.new("I;16", (8, 6), 0x4080), "PNG"))
    assert (rgb == 0x40).all()


def test_what_is_transparent_shows_white_paper() -> None:
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (10, 0, 20, 10))
    rgb = rgb_of(saved(image, "PNG"))
    assert near(rgb[:, :10], WHITE, 2) and near(rgb[:, 10:], BLUE, 2)
    palette = saved(Image.new("P", (8, 8), 0), "PNG", transparency=0)
    assert near(rgb_of(palette), WHITE, 2)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (GREEN, RED, BLUE)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert near(rgb_of(data), GREEN, 20)


def test_a_phone_s_picture_is_turned_upright() -> None:
    image = Image.new("RGB", (60, 40), WHITE)
    image.paste(RED, (0, 0, 30, 40))  # left as stored: with orientation 6 it is shown on top
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = rgb_of(saved(image, "JPEG", exif=exif))
    assert rgb.shape == (60, 40, 3)
    assert near(rgb[:28], RED, 12) and near(rgb[32:], WHITE, 12)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it says so and goes on
def test_a_picture_with_damaged_exif_is_still_a_picture() -> None:
    data = saved(Image.new("RGB", (60, 40), RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert rgb_of(data).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_kept_no_larger_than_needed(kind: str) -> None:
    rgb = rgb_of(picture(GREEN, (2000, 1000), kind), MediaLimits(kept_pixels=20_000))
    assert rgb.shape == (100, 200, 3) and near(rgb, GREEN, 8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels at all."""
    whole = picture(RED, (1, 1))
    return whole[:16] + struct.pack(">II", width, height) + whole[24:]


@pytest.mark.parametrize("size", [(20_000, 20_000), (100_000, 4000), (8000, 8000)])
def test_a_bomb_is_refused_by_what_its_header_says(size: tuple[int, int]) -> None:
    width, height = size
    image = Image.new("1", size) if size == (8000, 8000) else None
    error = refused(saved(image, "PNG") if image else _bomb(width, height), "big.png")
    assert error.code == "picture_too_large"
    assert "big.png" in str(error) and "50,000,000" in str(error)


def _bomb(width: int, height: int) -> bytes:
    # A BMP's header has no checksum that would have to fit.
    header = bytearray(picture(RED, (1, 1), "BMP"))
    header[18:26] = struct.pack("<ii", width, height)
    return bytes(header)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it says so and goes on
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF", "BMP"])
def test_a_truncated_or_damaged_picture_is_refused(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    whole = saved(Image.fromarray(noise), kind)
    for data in (whole[: len(whole) // 2], whole[:40]):
        assert refused(data).code == "invalid_media"
    assert "damaged" in str(refused(_png_header(8, 8)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it says so and goes on
def test_damage_anywhere_never_raises_anything_else() -> None:
    rng = np.random.default_rng(2)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = picture(RED, (24, 16), kind)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(4, len(data), 3):
                data[at] = rng.integers(0, 256)
            with suppress(RequestError):
                read_media(bytes(data), "x", MediaLimits(picture_pixels=1_000_000))


# ---- sounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("wav", "pcm_f32le"),
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("webm", "libopus"),
        ("ipod", "aac"),
        ("adts", "aac"),
        ("aiff", "pcm_s16be"),
        ("asf", "wmav2"),
    ],
)
def test_sounds_of_every_common_format(container: str, codec: str) -> None:
    rate_hz = 48_000 if codec == "libopus" else 44_100
    samples = sound_of(sound(container, codec, tone(1.0, rate_hz), rate_hz))
    assert abs(len(samples) - 16_000) < 2000
    assert abs(pitch_hz(samples[2000:14_000]) - 440) < 3
    assert 0.4 < np.abs(samples[2000:14_000]).max() < 0.6


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_comes_as_16_khz(rate_hz: int) -> None:
    samples = sound_of(wav(tone(1.0, rate_hz), rate_hz))
    assert abs(len(samples) - 16_000) <= 32
    assert abs(pitch_hz(samples) - 440) < 2


def test_at_16_khz_not_a_sample_is_changed() -> None:
    whole = tone(0.5)
    assert np.array_equal(sound_of(wav(whole)), whole)


@pytest.mark.parametrize("channels", [2, 3, 6, 8, 24])
def test_channels_are_averaged(channels: int) -> None:
    planes = np.zeros((16_000, channels), np.float32)
    planes[:, 0] = tone(1.0)
    assert np.allclose(sound_of(wav(planes)), tone(1.0) / channels, atol=1e-6)


def test_a_film_of_many_channels_and_more_than_can_be_read() -> None:
    assert "25 channels" in str(refused(wav(np.zeros((800, 25), np.int16))))
    eight = film([RED] * 2, tone(2.0), layout="7.1")
    part = read_media(eight)
    assert isinstance(part, ChatVideo) and np.abs(part.samples).max() > 0.04


def test_what_is_too_loud_is_clipped() -> None:
    samples = sound_of(wav(tone(0.2) * 8))
    assert samples.max() == 1.0 and samples.min() == -1.0


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(odd: float) -> None:
    samples = tone(0.5)
    samples[1234] = odd
    assert "no finite numbers" in str(refused(wav(samples)))
    assert "no finite numbers" in str(refused(wav(samples, 44_100)))


def test_a_sound_beyond_the_limit_is_refused() -> None:
    error = refused(wav(tone(2.1)), "long.wav", MediaLimits(sound_s=2.0))
    assert error.code == "media_too_long" and "longer than the 2 s" in str(error)
    assert len(sound_of(wav(tone(2.0)))) == 32_000


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("flac", "flac"), ("ipod", "aac")],
)
def test_a_truncated_sound_is_refused(container: str, codec: str) -> None:
    whole = sound(container, codec, tone(4.0))
    assert refused(whole[: len(whole) // 2]).code == "invalid_media"


def test_a_wav_from_a_pipe_knows_no_size_and_is_read() -> None:
    whole = bytearray(wav(tone(0.5)))
    whole[4:8] = whole[40:44] = b"\xff\xff\xff\xff"
    assert len(sound_of(bytes(whole))) == 8000


def test_a_sound_without_samples_is_refused() -> None:
    assert "no sound" in str(refused(wav(np.zeros(0, np.float32))))


# ---- videos -----------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts"])
def test_a_video_is_a_picture_a_second_and_its_sound(container: str) -> None:
    video = video_of(film([RED, GREEN, BLUE], tone(3.0), container=container))
    assert len(video.pictures) == 3
    for rgb, colour in zip(video.pictures, (RED, GREEN, BLUE), strict=True):
        assert rgb.shape == (48, 64, 3) and near(rgb, colour, 60)
    assert abs(len(video.samples) - 48_000) < 3000
    assert abs(pitch_hz(video.samples[2000:40_000]) - 440) < 2


def test_an_old_video() -> None:
    # Its writer shows the first picture for two frames, so the others begin too late to tell.
    video = video_of(film([RED, RED, BLUE, BLUE], tone(4.0), container="avi"))
    assert len(video.pictures) == 4 and abs(len(video.samples) - 64_000) < 3000
    assert near(video.pictures[1], RED, 60) and near(video.pictures[3], BLUE, 60)


def test_a_video_without_sound() -> None:
    video = video_of(film([RED, GREEN]))
    assert len(video.pictures) == 2 and len(video.samples) == 0


@pytest.mark.parametrize("frames_s", [1, 7, 25, 30])
def test_the_picture_is_the_one_at_the_start_of_its_second(frames_s: int) -> None:
    """The brightness of a frame tells its number."""
    frames = [
        np.full((48, 64, 3), 40 + 5 * index * 20 // frames_s, np.uint8)
        for index in range(2 * frames_s)
    ]
    video = video_of(film_of(frames, frames_s=frames_s))
    found = [float(rgb.mean()) for rgb in video.pictures]
    assert len(found) == 2
    assert abs(found[0] - 40) < 4 and abs(found[1] - 140) < 6


def test_a_still_picture_lasts_as_long_as_its_sound() -> None:
    video = video_of(film_of([np.full((48, 64, 3), 200, np.uint8)], tone(3.0), frames_s=1))
    assert len(video.pictures) == 3


def test_a_phone_s_film_is_turned_upright() -> None:
    frame = np.full((48, 64, 3), 255, np.uint8)
    frame[:, :32] = RED  # left as stored: turned clockwise it is on top
    video = video_of(turned_film(film_of([frame] * 10)))
    assert video.pictures[0].shape == (64, 48, 3)
    assert near(video.pictures[0][:28], RED, 60) and near(video.pictures[0][36:], WHITE, 60)


def test_a_video_beyond_the_limit_is_refused() -> None:
    error = refused(film([RED] * 4), "long.mp4", MediaLimits(video_s=3.0))
    assert error.code == "media_too_long" and "3 s" in str(error)
    assert len(video_of(film([RED] * 3), MediaLimits(video_s=3.0)).pictures) == 3


def test_a_cut_off_video_is_refused() -> None:
    whole = film([RED, GREEN] * 3, tone(6.0), container="matroska")
    for share in (0.05, 0.5):
        assert refused(whole[: int(len(whole) * share)]).code == "invalid_media"
    whole = film([RED, GREEN], tone(2.0))
    assert refused(whole[: len(whole) // 2]).code == "invalid_media"


def test_a_damaged_video_never_raises_anything_else() -> None:
    rng = np.random.default_rng(3)
    for container in ("mp4", "matroska", "avi"):
        whole = film([RED, GREEN], tone(2.0), container=container)
        for _ in range(25):
            data = bytearray(whole)
            for at in rng.integers(12, len(data), 5):
                data[at] = rng.integers(0, 256)
            with suppress(RequestError):
                read_media(bytes(data), "x", MediaLimits(video_s=10.0))


# ---- what is none of them ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, this is a letter\n" * 50, "text"),
        ("Grüße, BMW\n".encode(), "text"),
        (b"BM is how this text begins", "text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/secret\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "text"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"PK\x03\x04\x14\0\0\0", "ZIP"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (bytes(range(256)) * 8, "no known type"),
        (b"\0" * 5000, "no known type"),
    ],
)
def test_other_files_are_refused_by_what_they_are(data: bytes, words: str) -> None:
    error = refused(data, "holiday.jpg")
    assert words in str(error) and str(error).startswith("holiday.jpg: ")
    if data:
        assert SUPPORTED in str(error) and error.code == "unsupported_media"


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    path.write_bytes(picture(RED, kind="JPEG"))
    assert isinstance(read_file(path), ChatPicture)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"absent\.png: cannot be read"):
        read_file(tmp_path / "absent.png")
    with pytest.raises(RequestError, match="not a regular file"):
        read_file(tmp_path)
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 2000)
    with pytest.raises(RequestError, match="2,000 bytes; at most 1,024"):
        read_file(large, MediaLimits(file_bytes=1024))
    assert refused(b"x" * 2000, limits=MediaLimits(file_bytes=1024)).code == "file_too_large"
