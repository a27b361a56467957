"""Recordings as they are: at their own rate, with all their channels, decoded by FFmpeg.

`read_media` brings everything to 16 kHz mono, which is what the models hear; a voice that is to be
cloned needs what lies above, and whoever judges a recording wants to see what it really is.
"""

from dataclasses import dataclass
from io import BytesIO

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from agent.errors import RequestError
from agent.media.files import MediaLimits, sound_reader
from agent.media.film import (
    FilmPacket,
    channels_of,
    check_channels,
    check_known,
    check_whole,
    counting,
    damaged,
    stated_s,
    too_long,
)
from agent.types import FloatArray

_MOST_CHANNELS = 8
_MOST_RATE_HZ = 192_000


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """What a recording may cost. What comes after `kept_s` is decoded but not kept."""

    file_bytes: int = 20_971_520
    longest_s: float = 120.0
    kept_s: float = 60.0
    kept_values: int = 1 << 25
    """Samples of all channels together, 128 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Sound as it was stored: `samples` f32 [channels, T], −1..1, the first of `duration_s`."""

    samples: FloatArray
    rate_hz: int
    duration_s: float


def decode_recording(data: bytes, limits: RecordingLimits = RecordingLimits()) -> Recording:
    """The sound of a file of any common format, that of a video too.

    Blocks for as long as decoding takes. `RequestError` when it is none, damaged, cut off, too long
    or too large.
    """
    reader = sound_reader(data, MediaLimits(file_bytes=limits.file_bytes))
    try:
        with av.open(BytesIO(data), "r", format=reader, metadata_errors="replace") as container:
            return _decode(container, limits)
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise damaged(f"it cannot be read: {words}") from error


def _decode(container: InputContainer, limits: RecordingLimits) -> Recording:
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        raise RequestError("the file has no sound", code="invalid_media")
    check_known(stream)
    # The calls on this machine need the other cores.
    stream.codec_context.thread_count = 1
    track = _Track(stream, limits)
    with counting(container) as damage:
        for packet in container.demux(stream):
            damage.try_to(track.push, packet)
    recording = track.finish()
    check_whole(stated_s(container, stream), recording.duration_s)
    return recording


class _Track:
    """The sound of one stream: `push` its packets, then `finish`."""

    def __init__(self, stream: AudioStream, limits: RecordingLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._form: tuple[int, AudioLayout] | None = None
        self._kind: tuple[str, str, int] | None = None
        self._resampler: AudioResampler | None = None
        self._pieces: list[FloatArray] = []
        self._samples = 0
        self._kept = 0

    def push(self, packet: FilmPacket) -> None:
        """Decode a packet; the last, empty one too, which flushes the decoder."""
        for frame in self._stream.codec_context.decode(packet):
            self._take(frame)

    def finish(self) -> Recording:
        """All that is kept of it."""
        self._flush()
        if self._form is None or not self._samples:
            raise damaged("it holds no sound")
        rate_hz = self._form[0]
        samples = np.concatenate(self._pieces, axis=1)
        if not np.isfinite(samples).all():
            raise RequestError(
                "the sound holds samples that are no finite numbers", code="invalid_media"
            )
        np.clip(samples, -1.0, 1.0, out=samples)
        return Recording(samples, rate_hz, self._samples / rate_hz)

    def _take(self, frame: AudioFrame) -> None:
        check_channels(frame, _MOST_CHANNELS)
        if self._form is None:
            self._form = _checked_form(frame)
        # Some codecs change channels or rate on the way: the first ones hold for all.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:
            self._flush()
            rate_hz, layout = self._form
            self._resampler, self._kind = AudioResampler("flt", layout, rate_hz), kind
        frame.pts = None
        self._keep(self._resampler.resample(frame) if self._resampler else [])

    def _flush(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))

    def _keep(self, frames: list[AudioFrame]) -> None:
        rate_hz = self._form[0] if self._form else 1
        for frame in frames:
            planar = channels_of(frame)
            room = int(self._limits.kept_s * rate_hz) - self._kept
            if room > 0:
                self._pieces.append(planar[:, :room])
                self._kept += self._pieces[-1].shape[1]
            self._samples += planar.shape[1]
            if self._kept * len(planar) > self._limits.kept_values:
                raise RequestError(
                    f"its sound of {len(planar)} channels at {rate_hz:,} Hz is too large; save it "
                    "with one channel at 48 kHz",
                    code="media_too_large",
                )
        if self._samples > self._limits.longest_s * rate_hz:
            raise too_long(self._limits.longest_s)


def _checked_form(frame: AudioFrame) -> tuple[int, AudioLayout]:
    """Rate and layout of a stream by its first frame."""
    if frame.sample_rate > _MOST_RATE_HZ:
        raise RequestError(
            f"its sound has {frame.sample_rate:,} Hz; at most {_MOST_RATE_HZ:,} Hz can be read",
            code="unsupported_media",
        )
    return frame.sample_rate, frame.layout
