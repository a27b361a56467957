"""Speech at 24 kHz as files: encoded while it is made, or written to the disk.

    file = SpeechFile("mp3")
    for samples in sound:
        send(file.push(samples))
    send(file.finish())

Nobody seeks in what is sent, so what can only be known at the end stands nowhere in it.
"""

import struct
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import av
import numpy as np
from av.audio.stream import AudioStream

from agent.media.audio import Pcm16Array, to_pcm16
from agent.types import SPEECH_RATE_HZ, FloatArray

SpeechFormat: TypeAlias = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
SPEECH_FORMATS: tuple[SpeechFormat, ...] = ("mp3", "opus", "aac", "flac", "wav", "pcm")

CONTENT_TYPES: dict[SpeechFormat, str] = {
    "mp3": "audio/mpeg",
    # Browsers play Opus where it is called by its container.
    "opus": "audio/ogg; codecs=opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": f"audio/pcm;rate={SPEECH_RATE_HZ};channels=1",
}
AAC_DELAY_SAMPLES = 1024
"""Silence before the sound of an `aac` file: ADTS cannot say that it is to be left out."""

_UNKNOWN_BYTES = 0xFFFF_FFFF
_SAMPLE_BYTES = 2
_RIFF_BYTES = 36
"""Of a WAV's header behind the field that says so."""
_FLAC_LENGTH_AT = 18
"""Where 64 bits of a FLAC's header begin: its form (28), then how many samples it has (36)."""
_FLAC_LENGTH_BITS = 36
_MP3_HEADER = b"\xff\xf3\x84\xc0"
"""A frame of MPEG-2, layer III, 64 kbit/s, 24 kHz, mono: 192 bytes, 576 samples."""
_MP3_FRAME_BYTES = 192
_MP3_SIDE_BYTES = 9
_MP3_DELAY_SAMPLES = 576
"""What LAME puts before the sound, less the 529 of every decoder."""


class _Encoder(Protocol):
    def push(self, pcm: Pcm16Array) -> bytes: ...

    def finish(self) -> bytes: ...


class SpeechFile:
    """One file of mono speech at 24 kHz, in pieces; how the sound was cut changes no byte of it.

    What is louder than −1..1 is clipped. Decoded, the sound is as long as what was pushed; `mp3`
    and `aac` fill their last frame with silence (under 24 and 43 ms), and `aac` begins with
    `AAC_DELAY_SAMPLES` of it. A WAV states a size that stands for "until it ends", and a FLAC a
    length that stands for "unknown"; `settled` mends both. `samples` were pushed.
    """

    def __init__(self, form: SpeechFormat) -> None:
        self.content_type = CONTENT_TYPES[form]
        self.samples = 0
        self._encoder: _Encoder = _Plain(form) if form in ("wav", "pcm") else _Coded(form)

    def push(self, samples: FloatArray) -> bytes:
        """The next sound, [T] of any length; what can be sent by now, which may be nothing."""
        self.samples += len(samples)
        return self._encoder.push(to_pcm16(samples)) if len(samples) else b""

    def finish(self) -> bytes:
        """The rest of the file; nothing can be pushed any more."""
        return self._encoder.finish()


def wav_header(samples: int | None = None) -> bytes:
    """The 44 bytes before the PCM of a WAV of that many samples; None: nobody knows how many."""
    size = _UNKNOWN_BYTES if samples is None else samples * _SAMPLE_BYTES
    riff = _UNKNOWN_BYTES if samples is None else size + _RIFF_BYTES
    rate = SPEECH_RATE_HZ
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * _SAMPLE_BYTES, _SAMPLE_BYTES, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
    return head + b"data" + struct.pack("<I", size)


def settled(form: SpeechFormat, file: bytes | bytearray, samples: int) -> bytes:
    """A whole file of `SpeechFile` of that many samples: a WAV or FLAC states its length."""
    if form == "wav":
        return wav_header(samples) + bytes(file[len(wav_header()) :])
    if form == "flac":
        at, behind = _FLAC_LENGTH_AT, _FLAC_LENGTH_AT + 8
        stated = int.from_bytes(file[at:behind], "big") >> _FLAC_LENGTH_BITS << _FLAC_LENGTH_BITS
        return bytes(file[:at]) + (stated | samples).to_bytes(8, "big") + bytes(file[behind:])
    return bytes(file)


class WavFile:
    """A WAV on the disk, written as the sound comes; its sizes are right from `finish` on."""

    def __init__(self, path: Path) -> None:
        """Begin the file, over one that is there. OSError, as from the methods."""
        self.path = path
        self.samples = 0
        self._file = path.open("wb")
        self._file.write(wav_header())

    def push(self, samples: FloatArray) -> None:
        """The next sound [T]."""
        self._file.write(to_pcm16(samples).astype("<i2").tobytes())
        self.samples += len(samples)

    def finish(self) -> None:
        """Write the sizes and close the file. Idempotent."""
        if not self._file.closed:
            with self._file:
                self._file.seek(0)
                self._file.write(wav_header(self.samples))


class _Plain:
    """Samples as they are, behind a WAV's header or bare."""

    def __init__(self, form: SpeechFormat) -> None:
        self._head = wav_header() if form == "wav" else b""

    def push(self, pcm: Pcm16Array) -> bytes:
        head, self._head = self._head, b""
        return head + pcm.astype("<i2").tobytes()

    def finish(self) -> bytes:
        return self._head


class _Sink:
    """What FFmpeg writes to; without `seek`, so that it does not count on going back."""

    name = "speech"

    def __init__(self) -> None:
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


_CODECS: dict[SpeechFormat, tuple[str, str, str]] = {
    "mp3": ("mp3", "libmp3lame", "s16p"),
    "opus": ("ogg", "libopus", "s16"),
    "aac": ("adts", "aac", "fltp"),
    "flac": ("flac", "flac", "s16"),
}
"""FFmpeg's container, its codec, and how that takes samples."""
_CONTAINER_OPTIONS: dict[SpeechFormat, dict[str, str]] = {
    "mp3": {"write_xing": "0", "id3v2_version": "0"},
    # Microseconds; a second by default, for which the first sound would wait.
    # Bit-exact: no number drawn by lot in the header.
    "opus": {"page_duration": "60000", "fflags": "+bitexact"},
}
_CODEC_OPTIONS: dict[SpeechFormat, dict[str, str]] = {"flac": {"frame_size": "1152"}}
_BITS_PER_S = 64_000


class _Coded:
    """Through FFmpeg. Holds what does not fill a frame yet, and nothing else."""

    def __init__(self, form: SpeechFormat) -> None:
        container, codec, self._sample_format = _CODECS[form]
        self._sink = _Sink()
        self._output = av.open(
            self._sink, "w", format=container, options=_CONTAINER_OPTIONS.get(form, {})
        )
        stream = self._output.add_stream(
            codec, rate=SPEECH_RATE_HZ, layout="mono", options=_CODEC_OPTIONS.get(form, {})
        )
        assert isinstance(stream, AudioStream)
        self._stream = stream
        self._stream.format = self._sample_format
        self._stream.bit_rate = _BITS_PER_S
        self._head = _mp3_delay() if form == "mp3" else b""
        self._samples = 0

    def push(self, pcm: Pcm16Array) -> bytes:
        frame = av.AudioFrame.from_ndarray(self._as_taken(pcm), self._sample_format, "mono")
        frame.sample_rate = SPEECH_RATE_HZ
        frame.pts = self._samples
        self._samples += len(pcm)
        self._output.mux(self._stream.encode(frame))
        return self._take()

    def finish(self) -> bytes:
        self._output.start_encoding()  # a file without sound needs its header all the same
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._take()

    def _as_taken(self, pcm: Pcm16Array) -> FloatArray | Pcm16Array:
        if self._sample_format == "fltp":
            return (pcm.astype(np.float32) / np.float32(32768.0))[None]  # [1, T]
        return pcm[None]

    def _take(self) -> bytes:
        taken = self._sink.take()
        if not taken:
            return b""
        head, self._head = self._head, b""
        return head + taken


def _mp3_delay() -> bytes:
    """A frame of no sound in which decoders find how much of the beginning to leave out.

    FFmpeg writes one at the end, with the number of frames; where that is not known, the field
    for it may be absent. Layout: the "LAME tag", which all decoders know that play without gaps.
    """
    delays = (_MP3_DELAY_SAMPLES << 12).to_bytes(3, "big")  # 12 bits before, 12 bits behind
    tag = b"Info" + bytes(4) + b"LAME3.100" + bytes(12) + delays + bytes(12)
    frame = _MP3_HEADER + bytes(_MP3_SIDE_BYTES) + tag
    return frame.ljust(_MP3_FRAME_BYTES, b"\0")
