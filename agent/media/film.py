"""Recordings and films, decoded by FFmpeg: 16 kHz mono sound, and one picture a second."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeAlias

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from agent.chat_types import ChatSound, ChatVideo
from agent.errors import RequestError
from agent.media.audio import mix_down
from agent.types import MIC_RATE_HZ, ByteArray, FloatArray

FilmPacket: TypeAlias = "Packet[Any]"

_FRAME_PIXELS = 4096 * 2304
_KEPT_PIXELS = 1280 * 720
"""A film's picture is looked at in one piece, so it needs no more."""
_MOST_CHANNELS = 24
"""Those of 22.2, the most that anybody records."""
_MOST_FRAMES_S = 250
"""No camera is faster; what claims to be only burns time."""
_DAMAGED_SHARE = 0.1
_MISSING_SHARE, _MISSING_S = 0.05, 0.5
"""A file that lacks more than both of the length that its header states was cut off."""
_REST_S = 0.1
"""A second of which less is left is none: encoders round the length of sound and film up."""
_EARLY_S = 1e-3
"""Time stamps in milliseconds are rounded: a picture this much late still begins the second."""


@dataclass(frozen=True, slots=True)
class FilmLimits:
    """How long sound and video may be."""

    sound_s: float
    video_s: float


def decode_film(data: bytes, reader: str, limits: FilmLimits) -> ChatSound | ChatVideo:
    """What `data` holds, read by FFmpeg's demuxer `reader`: a video when it has moving pictures.

    The pictures of a video are those shown at the start of each second. `RequestError` when it is
    damaged, cut off, too long, without sound and pictures, or holds samples that are no numbers.
    """
    try:
        with av.open(BytesIO(data), "r", format=reader, metadata_errors="replace") as container:
            video = _moving(container)
            if video is None:
                return _sound(container, limits.sound_s)
            return _video(container, video, limits.video_s)
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        # The library's errors show their number and a made-up file name, too.
        words = getattr(error, "strerror", None) or str(error)
        raise damaged(f"it cannot be read: {words}") from error


def _moving(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            check_known(stream)
            return stream
    return None


def check_known(stream: AudioStream | VideoStream) -> None:
    """`RequestError` when nothing here can decode it."""
    # The library's type says that there always is one; for codecs that it lacks there is none.
    if getattr(stream, "codec_context", None) is None:
        raise RequestError(
            f"its {'sound' if stream.type == 'audio' else 'picture'} is coded in a way that cannot "
            "be read",
            code="unsupported_media",
        )


def _sound(container: InputContainer, most_s: float) -> ChatSound:
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        raise RequestError("the file has neither sound nor pictures", code="invalid_media")
    check_known(stream)
    track = _SoundTrack(stream, most_s)
    with counting(container) as damage:
        for packet in container.demux(stream):
            damage.try_to(track.push, packet)
    samples = track.finish()
    if not len(samples):
        raise damaged("it holds no sound")
    check_whole(stated_s(container, stream), len(samples) / MIC_RATE_HZ)
    return ChatSound(samples)


def _video(container: InputContainer, stream: VideoStream, most_s: float) -> ChatVideo:
    pictures = _PictureTrack(stream, most_s)
    audio = next(iter(container.streams.audio), None)
    if audio:
        check_known(audio)
    sound = _SoundTrack(audio, most_s + 1.0) if audio else None
    with counting(container) as damage:
        for packet in container.demux([stream, audio] if audio else [stream]):
            track = sound if sound and packet.stream is audio else pictures
            damage.try_to(track.push, packet)
    samples = _aligned(sound, pictures.start_s) if sound else np.zeros(0, np.float32)
    shown = pictures.finish(len(samples) / MIC_RATE_HZ)
    check_whole(stated_s(container, stream), max(pictures.end_s, len(samples) / MIC_RATE_HZ))
    return ChatVideo(shown, samples)


def _aligned(sound: "_SoundTrack", pictures_start_s: float | None) -> FloatArray:
    """The sound from the moment of the first picture on."""
    samples = sound.finish()
    if sound.start_s is None or pictures_start_s is None:
        return samples
    late = round((sound.start_s - pictures_start_s) * MIC_RATE_HZ)
    if late <= 0:
        return samples[-late:]
    silence = min(late, sound.most_samples)
    return np.concatenate((np.zeros(silence, np.float32), samples))


def stated_s(container: InputContainer, stream: AudioStream | VideoStream) -> float:
    """The length that the header states; 0 where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def check_whole(stated_s: float, found_s: float) -> None:
    """`RequestError` when a file was cut off."""
    missing_s = stated_s - found_s
    if missing_s > max(_MISSING_S, _MISSING_SHARE * stated_s):
        raise damaged(f"it ends after {found_s:.1f} s of the {stated_s:.1f} s that it states")


def check_channels(frame: AudioFrame, most: int) -> None:
    """`RequestError` when there are more than `most`."""
    if frame.layout.nb_channels > most:
        raise RequestError(
            f"its sound has {frame.layout.nb_channels} channels; at most {most} can be read",
            code="unsupported_media",
        )


def channels_of(frame: AudioFrame) -> FloatArray:
    """f32 [channels, T] of a frame in the format `flt`.

    The library reads beyond the end of its list of planes where there are eight or more of them,
    which ends the process; a packed frame has one, whatever the number of channels.
    """
    packed = frame.to_ndarray().astype(np.float32, copy=False)
    return packed.reshape(-1, frame.layout.nb_channels).T


def damaged(why: str) -> RequestError:
    """What is to be raised for such a file."""
    return RequestError(f"the file is damaged or incomplete: {why}", code="invalid_media")


def too_long(most_s: float) -> RequestError:
    """What is to be raised for such a file."""
    return RequestError(f"it is longer than the {most_s:g} s allowed", code="media_too_long")


# ---- damage -----------------------------------------------------------------------------------


class _Damage:
    """Counts the packets that cannot be decoded: a few are usual, many are another file."""

    def __init__(self) -> None:
        self._packets = 0
        self._broken = 0

    def try_to(self, push: Callable[[FilmPacket], None], packet: FilmPacket) -> None:
        self._packets += 1
        try:
            push(packet)
        except av.error.InvalidDataError:
            self._broken += 1

    def check(self) -> None:
        if self._broken > max(1.0, _DAMAGED_SHARE * self._packets):
            raise damaged(f"{self._broken} of {self._packets} packets cannot be decoded")


@contextmanager
def counting(container: InputContainer) -> Iterator[_Damage]:
    """Bare end of file while demuxing is an end like any other."""
    damage = _Damage()
    try:
        yield damage
    except av.error.EOFError:
        pass
    damage.check()


# ---- sound ------------------------------------------------------------------------------------


class _SoundTrack:
    """The sound of one stream: `push` its packets, then `finish`."""

    def __init__(self, stream: AudioStream, most_s: float) -> None:
        self.start_s: float | None = None
        self.most_samples = int(most_s * MIC_RATE_HZ)
        self._most_s = most_s
        self._stream = stream
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None
        self._pieces: list[FloatArray] = []
        self._samples = 0

    def push(self, packet: FilmPacket) -> None:
        """Decode a packet; the last, empty one too, which flushes the decoder."""
        for frame in self._stream.codec_context.decode(packet):
            if self.start_s is None:
                self.start_s = frame.time or 0.0
            self._take(frame)

    def finish(self) -> FloatArray:
        """All of it [T] at 16 kHz, within −1..1."""
        self._flush()
        samples = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        if not np.isfinite(samples).all():
            raise RequestError(
                "the sound holds samples that are no finite numbers", code="invalid_media"
            )
        return np.clip(samples, -1.0, 1.0)

    def _take(self, frame: AudioFrame) -> None:
        check_channels(frame, _MOST_CHANNELS)
        # Some codecs change channels or rate on the way; a resampler takes only one kind.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._format:
            self._flush()
            # Channels are mixed by us: FFmpeg adds those of float sound up until they clip.
            self._resampler, self._format = AudioResampler("flt", None, MIC_RATE_HZ), kind
        frame.pts = None
        self._keep(self._resampler.resample(frame) if self._resampler else [])

    def _flush(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))

    def _keep(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            planar = channels_of(frame)
            self._pieces.append(mix_down(planar, planar.shape[0]))
            self._samples += planar.shape[1]
        if self._samples > self.most_samples:
            raise too_long(self._most_s)


# ---- pictures ---------------------------------------------------------------------------------


class _PictureTrack:
    """The pictures of one stream, one a second: `push` its packets, then `finish`."""

    def __init__(self, stream: VideoStream, most_s: float) -> None:
        self.start_s: float | None = None
        self.end_s = 0.0
        self._most_s = most_s
        self._stream = stream
        # The calls on this machine need the other cores.
        stream.codec_context.thread_count = 1
        self._shown: list[ByteArray] = []
        self._newest: VideoFrame | None = None
        self._frames = 0

    def push(self, packet: FilmPacket) -> None:
        """Decode a packet; the last, empty one too, which flushes the decoder."""
        context = self._stream.codec_context
        _check_frame(context.width, context.height)
        for frame in context.decode(packet):
            self._take(frame)

    def finish(self, sound_s: float) -> tuple[ByteArray, ...]:
        """The picture shown at the start of each second, the last one while sound goes on."""
        if self._newest is None:
            raise damaged("it holds no picture")
        end_s = max(self.end_s, sound_s) - _REST_S
        self._show_until(max(1, math.ceil(end_s)), self._newest)
        return tuple(self._shown)

    def _take(self, frame: VideoFrame) -> None:
        _check_frame(frame.width, frame.height)
        self._frames += 1
        at_s = self._time_s(frame)
        if self._frames > _MOST_FRAMES_S * max(1.0, self._most_s):
            raise too_long(self._most_s)
        # What was shown until now begins every second before this one.
        if self._newest is not None:
            self._show_until(math.ceil(at_s - _EARLY_S), self._newest)
        self._newest = frame
        self.end_s = max(self.end_s, at_s + self._duration_s(frame))
        if self.end_s > self._most_s + _REST_S:
            raise too_long(self._most_s)

    def _time_s(self, frame: VideoFrame) -> float:
        """Seconds since the first picture; a frame without a time follows its predecessor."""
        if frame.pts is None:
            return self.end_s
        if self.start_s is None:
            self.start_s = frame.time
        return max(0.0, frame.time - self.start_s)

    def _duration_s(self, frame: VideoFrame) -> float:
        rate = self._stream.average_rate
        usual_s = 1.0 / float(rate) if rate else 0.0
        if frame.duration and frame.time_base:
            return float(frame.duration * frame.time_base)
        return usual_s

    def _show_until(self, seconds: int, frame: VideoFrame) -> None:
        if seconds > self._most_s + 1:
            raise too_long(self._most_s)
        if len(self._shown) < seconds:
            rgb = _rgb(frame)
            self._shown.extend([rgb] * (seconds - len(self._shown)))


def _check_frame(width: int, height: int) -> None:
    if width * height > _FRAME_PIXELS:
        raise RequestError(
            f"its pictures have {width:,} × {height:,} pixels; at most {_FRAME_PIXELS:,} in all "
            "are allowed",
            code="picture_too_large",
        )


def _rgb(frame: VideoFrame) -> ByteArray:
    """Upright RGB [H, W, 3], scaled down to what a film needs."""
    scale = min(1.0, math.sqrt(_KEPT_PIXELS / (frame.width * frame.height)))
    width, height = max(1, int(frame.width * scale)), max(1, int(frame.height * scale))
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    rgb = small.to_ndarray().astype(np.uint8, copy=False)
    # The angle is the one by which the frame is to be turned counterclockwise.
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, quarters)) if quarters else rgb
