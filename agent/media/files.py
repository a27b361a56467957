"""Files that a client attaches: bytes of any common format to pictures, sounds and videos.

The type is read from the first bytes and from nothing else; names and declared types lie. The
reader is then chosen by us: FFmpeg, left to guess, also takes playlists, which make it open other
files and addresses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agent.chat_types import ChatPicture, ChatSound, ChatVideo
from agent.errors import RequestError
from agent.media.file_picture import decode_picture
from agent.media.film import FilmLimits, decode_film

ReadPart: TypeAlias = ChatPicture | ChatSound | ChatVideo
MediaKind: TypeAlias = Literal["picture", "sound", "video"]

SUPPORTED_SOUNDS = (
    "WAV, MP3, FLAC, Ogg, Opus, AAC, M4A, AIFF, AMR and WMA sounds; MP4, MOV, WebM, MKV, AVI, "
    "MPEG, WMV and FLV videos"
)
"""What has sound that can be read, in words for the user."""
SUPPORTED = f"JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF pictures; {SUPPORTED_SOUNDS}"
"""What `read_media` takes, in words for the user."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What one file may cost; beyond it, it is refused.

    A picture larger than `kept_pixels` is scaled down to them, proportions kept.
    """

    file_bytes: int = 33_554_432
    picture_pixels: int = 50_000_000
    sound_s: float = 600.0
    video_s: float = 120.0
    # The largest model in sight looks at 1.8 million; a camera's 48 would be 144 MB for nothing.
    kept_pixels: int = 4_000_000


@dataclass(frozen=True, slots=True)
class _Magic:
    """Bytes at an offset, and who reads such a file: `picture`, or FFmpeg's demuxer `reader`."""

    offset: int
    start: bytes
    reader: str


_PICTURE = "picture"
_MAGIC = (
    _Magic(0, b"\xff\xd8\xff", _PICTURE),
    _Magic(0, b"\x89PNG\r\n\x1a\n", _PICTURE),
    _Magic(0, b"GIF87a", _PICTURE),
    _Magic(0, b"GIF89a", _PICTURE),
    _Magic(8, b"WEBP", _PICTURE),
    _Magic(0, b"BM", _PICTURE),
    _Magic(0, b"II*\0", _PICTURE),
    _Magic(0, b"MM\0*", _PICTURE),
    _Magic(4, b"ftypavif", _PICTURE),
    _Magic(4, b"ftypavis", _PICTURE),
    _Magic(8, b"WAVE", "wav"),
    _Magic(8, b"AVI ", "avi"),
    _Magic(8, b"AIFF", "aiff"),
    _Magic(8, b"AIFC", "aiff"),
    _Magic(0, b"fLaC", "flac"),
    _Magic(0, b"OggS", "ogg"),
    _Magic(0, b"\x1aE\xdf\xa3", "matroska"),
    _Magic(0, b"ID3", "mp3"),
    _Magic(0, b"#!AMR", "amr"),
    _Magic(0, b".snd", "au"),
    _Magic(0, b"caff", "caf"),
    _Magic(0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
    _Magic(0, b"FLV\x01", "flv"),
    _Magic(0, b"\0\0\x01\xba", "mpeg"),
    _Magic(4, b"ftyp", "mov"),
    _Magic(4, b"moov", "mov"),
    _Magic(4, b"mdat", "mov"),
    _Magic(4, b"wide", "mov"),
)
_UNSUPPORTED = (
    (4, b"ftyphei", "a HEIC or HEIF picture"),
    (4, b"ftypmif1", "a HEIC or HEIF picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"\x1f\x8b", "a compressed archive"),
    (0, b"#EXTM3U", "a playlist"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)
_TS_PACKET_BYTES = 188
_WHOLE_SHARE = 0.95
_STREAMED_BYTES = 0x7FFF_0000


def read_media(data: bytes, name: str = "", limits: MediaLimits = MediaLimits()) -> ReadPart:
    """The picture, sound or video that `data` holds; `name` only stands in messages.

    Sound comes as 16 kHz mono within −1..1, a video as one picture a second with its sound.
    Blocks for as long as decoding takes. `RequestError` says what is wrong with the file.
    """
    try:
        return _read(data, limits)
    except RequestError as error:
        label = f"{name}: " if name else ""
        raise RequestError(f"{label}{error}", param=error.param, code=error.code) from error


def read_file(path: Path, limits: MediaLimits = MediaLimits()) -> ReadPart:
    """`read_media` of the file at `path`; `RequestError` too when it cannot be opened."""
    try:
        size = path.stat().st_size
        if size > limits.file_bytes:
            raise RequestError(f"{path.name}: {_too_large(size, limits)}", code="file_too_large")
        if not path.is_file():
            raise RequestError(f"{path.name}: is not a regular file", code="invalid_media")
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path.name}: cannot be read: {error.strerror}", code="invalid_media"
        ) from error
    return read_media(data, path.name, limits)


def kind_of(part: ReadPart) -> MediaKind:
    """What was read, in a word."""
    if isinstance(part, ChatPicture):
        return "picture"
    return "sound" if isinstance(part, ChatSound) else "video"


def sound_reader(data: bytes, limits: MediaLimits = MediaLimits()) -> str:
    """FFmpeg's demuxer for a sound or a video; `RequestError` for whatever else it is."""
    reader = _known_reader(data, limits, SUPPORTED_SOUNDS)
    if reader == _PICTURE:
        raise _unsupported("this is a picture", SUPPORTED_SOUNDS)
    return reader


def _read(data: bytes, limits: MediaLimits) -> ReadPart:
    reader = _known_reader(data, limits, SUPPORTED)
    if reader == _PICTURE:
        return ChatPicture(decode_picture(data, limits.picture_pixels, limits.kept_pixels))
    return decode_film(data, reader, FilmLimits(sound_s=limits.sound_s, video_s=limits.video_s))


def _known_reader(data: bytes, limits: MediaLimits, supported: str) -> str:
    if not data:
        raise RequestError("the file is empty", code="invalid_media")
    if len(data) > limits.file_bytes:
        raise RequestError(_too_large(len(data), limits), code="file_too_large")
    reader = _reader(data, supported)
    if reader != _PICTURE:
        _check_riff(data)
    return reader


def _check_riff(data: bytes) -> None:
    """WAV and AVI state their size; FFmpeg reads what is there of them and says nothing."""
    if not data.startswith(b"RIFF"):
        return
    stated = int.from_bytes(data[4:8], "little") + 8
    # Who writes into a pipe cannot know the size, and leaves one of several very large numbers.
    if len(data) < stated * _WHOLE_SHARE and stated < _STREAMED_BYTES:
        raise RequestError(
            f"the file is incomplete: {len(data):,} of the {stated:,} bytes that it states",
            code="invalid_media",
        )


def _reader(data: bytes, supported: str) -> str:
    for offset, start, what in _UNSUPPORTED:
        if data.startswith(start, offset):
            raise _unsupported(f"this is {what}", supported)
    if _is_text(data[:4096]):
        raise _unsupported("this is text", supported)
    for magic in _MAGIC:
        if data.startswith(magic.start, magic.offset):
            return magic.reader
    if data[::_TS_PACKET_BYTES][:3] == b"GGG":
        return "mpegts"
    # Encoders may pad the beginning of a stream without a header.
    return _frame_reader(data[:65_536].lstrip(b"\0")[:4], supported)


def _frame_reader(head: bytes, supported: str) -> str:
    """A stream of bare frames: eleven set bits, then the version and the layer."""
    if len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08:
        return "aac" if head[1] & 0x06 == 0 else "mp3"
    raise _unsupported("this is no known type of file", supported)


def _is_text(start: bytes) -> bool:
    # The last character may have been cut in the middle.
    text = start.decode("utf-8", errors="ignore")
    printable = sum(character.isprintable() or character.isspace() for character in text)
    return printable == len(text) and len(text.encode()) >= len(start) - 3


def _unsupported(what: str, supported: str) -> RequestError:
    return RequestError(f"{what}; supported are {supported}", code="unsupported_media")


def _too_large(size: int, limits: MediaLimits) -> str:
    return f"the file has {size:,} bytes; at most {limits.file_bytes:,} are allowed"
