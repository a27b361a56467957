"""Which codec a call gets: libopus where it loads, else Opus by PyAV; G.711 and G.722 by PyAV.

PyAV (FFmpeg) neither repairs from in-band redundancy nor conceals, so what is lost sounds worse
there: it is for machines without a libopus to load, and for peers that offer no Opus.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import av
import numpy as np

from agent.errors import ConfigError, MediaError
from agent.interfaces import AudioDecoder, SpeechEncoder
from agent.media.audio import Resampler, falling_edge, mix_down
from agent.transport import opus
from agent.types import MIC_RATE_HZ, SPEECH_FRAME_SAMPLES, SPEECH_RATE_HZ, FloatArray

log = logging.getLogger(__name__)

OPUS_CLOCK_HZ = 48_000
_NARROW_CLOCK_HZ = 8_000
"""Of G.711 and, by an old mistake that became the standard, of G.722 too."""
_EXPECTED_LOSS_PERCENT = 10
_LONGEST_SAMPLES = MIC_RATE_HZ * 120 // 1000
_HELD_SAMPLES = MIC_RATE_HZ // 100
_FADE_SAMPLES = MIC_RATE_HZ * 60 // 1000
_MAX_SPARE_SAMPLES = MIC_RATE_HZ // 50
# An older FFmpeg may come without libopus; its own decoder is always there.
_OPUS_DECODERS = ("libopus", "opus")

SourceKind: TypeAlias = Literal["bundled", "system", "pyav"]


@dataclass(frozen=True, slots=True)
class CodecSource:
    """Where Opus comes from: libopus beside PyAV, the system's, or PyAV itself."""

    kind: SourceKind
    detail: str


@cache
def codec_source() -> CodecSource:
    """Which Opus every call of this process gets. Logs one warning when libopus is missing."""
    try:
        library = opus.libopus()
    except ConfigError as error:
        log.warning("Opus is coded by PyAV, lost packets are not repaired: %s", error)
        return CodecSource("pyav", f"PyAV {av.__version__} ({error})")
    whose = "bundled with PyAV" if library.origin == "bundled" else "the system's"
    return CodecSource(library.origin, f"{library.version}, {whose} ({Path(library.path).name})")


def audio_decoder(mime_type: str, clock_rate_hz: int) -> AudioDecoder:
    """A decoder for one stream of `mime_type` as SDP names it; `ConfigError` for any other."""
    name = mime_type.lower()
    if name == "audio/opus" and clock_rate_hz == OPUS_CLOCK_HZ:
        if codec_source().kind != "pyav":
            return opus.OpusDecoder()
        return PyavDecoder(_OPUS_DECODERS, OPUS_CLOCK_HZ, opus_samples)
    if name in _NARROW and clock_rate_hz == _NARROW_CLOCK_HZ:
        codec, rate_hz = _NARROW[name]
        return PyavDecoder((codec,), rate_hz, narrow_samples)
    raise ConfigError(f"no decoder for {mime_type} with a clock of {clock_rate_hz} Hz")


def speech_encoder(complexity: int = opus.COMPLEXITY) -> SpeechEncoder:
    """An encoder for one stream of speech; `ConfigError` when even PyAV has none."""
    if codec_source().kind != "pyav":
        return opus.OpusEncoder(complexity)
    return PyavOpusEncoder(complexity)


_NARROW = {
    "audio/pcmu": ("pcm_mulaw", 8_000),
    "audio/pcma": ("pcm_alaw", 8_000),
    "audio/g722": ("g722", 16_000),
}


def narrow_samples(payload: bytes) -> int:
    """What a G.711 or G.722 packet holds at 16 kHz: two samples a byte; `MediaError` if odd."""
    if not 0 < len(payload) <= _LONGEST_SAMPLES // 2:
        raise MediaError(f"no packet of G.711 or G.722: {len(payload)} bytes")
    return 2 * len(payload)


def opus_samples(payload: bytes) -> int:
    """What an Opus packet holds at 16 kHz, by its first bytes (RFC 6716, section 3.1)."""
    if not payload:
        raise MediaError("no Opus packet: it is empty")
    config, code = payload[0] >> 3, payload[0] & 3
    if config < 12:
        frame = (160, 320, 640, 960)[config % 4]
    elif config < 16:
        frame = (160, 320)[config % 2]
    else:
        frame = 40 << (config % 4)
    if code == 3 and len(payload) < 2:
        raise MediaError("no Opus packet: its frame count is missing")
    samples = frame * (1, 2, 2, payload[1] & 0x3F if code == 3 else 0)[code]
    if not 0 < samples <= _LONGEST_SAMPLES:
        raise MediaError(f"no Opus packet: it claims {samples} samples")
    return samples


class PyavDecoder:
    """An `AudioDecoder` by FFmpeg: the first codec of `codecs` that is there, coded at `rate_hz`.

    `samples_in` reads the length off a payload. What is lost goes on as the last 10 ms back and
    forth and fades within 60 ms. `ConfigError` when FFmpeg has none of the codecs.
    """

    def __init__(
        self, codecs: tuple[str, ...], rate_hz: int, samples_in: Callable[[bytes], int]
    ) -> None:
        self._codec = _opened_decoder(codecs, rate_hz)
        self._resampler = None if rate_hz == MIC_RATE_HZ else Resampler(rate_hz, MIC_RATE_HZ)
        self._samples_in = samples_in
        # The resampler gives whole milliseconds: one in hand evens out packets that hold a half.
        self._spare = np.zeros(MIC_RATE_HZ // 1000 if self._resampler else 0, np.float32)
        self._last = np.zeros(_HELD_SAMPLES, np.float32)
        self._faded_samples = 0

    def samples_in(self, payload: bytes) -> int:
        """How much sound `payload` holds at 16 kHz; `MediaError` when it is no packet."""
        return self._samples_in(payload)

    def decode(self, payload: bytes) -> FloatArray:
        """The sound of the next packet [T]; `MediaError` when it is no packet."""
        samples = self._samples_in(payload)
        try:
            frames = self._codec.decode(av.Packet(payload))
        except av.error.FFmpegError as error:
            raise MediaError(f"a packet cannot be decoded: {error}") from error
        sound = self._cut([_mono(frame) for frame in frames], samples)
        self._last = np.concatenate((self._last, sound))[-_HELD_SAMPLES:]
        self._faded_samples = 0
        return sound

    def repair(self, following: bytes, samples: int) -> FloatArray:
        """The same as `conceal`: FFmpeg does not read redundancy."""
        self._samples_in(following)
        return self.conceal(samples)

    def conceal(self, samples: int) -> FloatArray:
        """`samples` that go on and fade to silence within 60 ms of the last packet."""
        swing = np.concatenate((self._last[::-1], self._last))
        whole = np.zeros(self._faded_samples + samples, np.float32)
        heard = min(len(whole), _FADE_SAMPLES)
        whole[:heard] = np.resize(swing, heard) * falling_edge(_FADE_SAMPLES)[:heard]
        held = whole[self._faded_samples :]
        self._faded_samples = min(self._faded_samples + samples, _FADE_SAMPLES)
        return held

    def _cut(self, pieces: list[FloatArray], samples: int) -> FloatArray:
        """Exactly `samples`, whatever FFmpeg holds back or gives more."""
        sound = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        resampled = self._resampler.push(sound) if self._resampler else sound
        sound = np.concatenate((self._spare, resampled))
        missing = max(0, samples - len(sound))
        self._spare = sound[samples:][-_MAX_SPARE_SAMPLES:]
        return np.concatenate((np.zeros(missing, np.float32), sound[:samples]))


class PyavOpusEncoder:
    """A `SpeechEncoder` by FFmpeg's libopus, which fixes the expected loss once, at 10 %."""

    def __init__(self, complexity: int = opus.COMPLEXITY) -> None:
        try:
            codec = av.CodecContext.create("libopus", "w")
        except av.codec.codec.UnknownCodecError as error:
            raise ConfigError(f"this PyAV has no Opus encoder: {error}") from error
        codec.sample_rate = SPEECH_RATE_HZ
        codec.layout = "mono"
        codec.format = "flt"
        codec.bit_rate = opus.BITRATE_BPS
        codec.time_base = Fraction(1, SPEECH_RATE_HZ)
        codec.options = {
            "application": "voip",
            "fec": "1",
            "packet_loss": str(_EXPECTED_LOSS_PERCENT),
            "frame_duration": "20",
            "compression_level": str(complexity),
        }
        self._codec = codec
        self._slot = 0

    def encode(self, samples: FloatArray) -> bytes:
        """The packet of the next 20 ms [480]; `ValueError` for any other length."""
        if samples.shape != (SPEECH_FRAME_SAMPLES,):
            raise ValueError(f"20 ms are {SPEECH_FRAME_SAMPLES} samples, not {samples.shape}")
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="flt", layout="mono")
        frame.sample_rate = SPEECH_RATE_HZ
        frame.pts = self._slot * SPEECH_FRAME_SAMPLES
        self._slot += 1
        try:
            packets = self._codec.encode(frame)
        except av.error.FFmpegError as error:
            raise MediaError(f"speech cannot be encoded: {error}") from error
        if len(packets) != 1:
            raise MediaError(f"20 ms of speech became {len(packets)} packets")
        return bytes(packets[0])

    def expect_loss(self, share: float) -> None:
        """Nothing: FFmpeg takes the expectation only when the encoder is opened."""


def _opened_decoder(codecs: tuple[str, ...], rate_hz: int) -> av.AudioCodecContext:
    for name in codecs:
        try:
            codec = av.CodecContext.create(name, "r")
        except av.codec.codec.UnknownCodecError:
            continue
        if isinstance(codec, av.AudioCodecContext):
            codec.sample_rate = rate_hz
            codec.layout = "mono"
            return codec
    raise ConfigError(f"this PyAV decodes none of {', '.join(codecs)}")


def _mono(frame: av.AudioFrame) -> FloatArray:
    """[T], −1..1, of 16-bit or floating-point frames."""
    samples = frame.to_ndarray()
    scale = np.float32(1.0 / 32768.0 if samples.dtype == np.int16 else 1.0)
    return mix_down(samples.astype(np.float32) * scale, len(frame.layout.channels))
