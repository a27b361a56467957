"""Opus by libopus itself, through ctypes: straight to the rates that we use, no resampling.

libopus has what PyAV does not hand through: repair from in-band redundancy, concealment, a loss
expectation that follows the link, and decoding to 16 kHz. ctypes lets go of the interpreter lock
during each call. A codec state belongs to one thread at a time.
"""

import ctypes
import ctypes.util
import importlib.util
import weakref
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_int32, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from agent.errors import ConfigError, MediaError
from agent.types import MIC_RATE_HZ, SPEECH_FRAME_SAMPLES, SPEECH_RATE_HZ, FloatArray

BITRATE_BPS = 32_000
"""The target of the call; 40 kbit/s would gain 0.15 of PESQ at 10 % loss."""
COMPLEXITY = 8
"""Measured at 0 / 5 / 10 % loss: PESQ 3.93 / 3.58 / 3.12 at 5, 4.04 / 3.77 / 3.28 from 8 on, for
0.15 % of a core more. Only from 8 on is digital silence coded alike packet after packet."""

_LONGEST_SAMPLES = MIC_RATE_HZ * 120 // 1000
"""An Opus packet holds at most 120 ms."""
_STEP_SAMPLES = MIC_RATE_HZ // 400
"""libopus conceals in steps of 2.5 ms."""
_MAX_PACKET_BYTES = 1276
_STEADY_PACKETS = 10
"""So many equal packets of silence in a row, and the next one will be equal, too."""

# opus_defines.h
_APPLICATION_VOIP = 2048
_SIGNAL_VOICE = 3001
_SET_BITRATE = 4002
_SET_VBR = 4006
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_PACKET_LOSS_PERC = 4014
_SET_SIGNAL = 4024

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "opus_get_version_string": (c_char_p, []),
    "opus_strerror": (c_char_p, [c_int]),
    "opus_packet_get_nb_samples": (c_int, [c_char_p, c_int32, c_int32]),
    "opus_packet_get_samples_per_frame": (c_int, [c_char_p, c_int32]),
    "opus_decoder_create": (c_void_p, [c_int32, c_int, POINTER(c_int)]),
    "opus_decoder_destroy": (None, [c_void_p]),
    "opus_decode_float": (c_int, [c_void_p, c_char_p, c_int32, c_void_p, c_int, c_int]),
    "opus_encoder_create": (c_void_p, [c_int32, c_int, c_int, POINTER(c_int)]),
    "opus_encoder_destroy": (None, [c_void_p]),
    "opus_encode_float": (c_int32, [c_void_p, c_void_p, c_int, c_void_p, c_int32]),
    # Variadic: the value to set follows the request.
    "opus_encoder_ctl": (c_int, [c_void_p, c_int]),
}

Origin: TypeAlias = Literal["bundled", "system"]


@dataclass(frozen=True, slots=True)
class Libopus:
    """The loaded library: where it came from, and its own name and version."""

    functions: ctypes.CDLL
    path: str
    origin: Origin
    version: str


@cache
def libopus() -> Libopus:
    """The libopus that comes with PyAV, else the system's; `ConfigError` when there is none."""
    return load_libopus(list(_candidates()))


def load_libopus(candidates: list[tuple[str, Origin]]) -> Libopus:
    """The first library that loads and is libopus; `ConfigError` telling why none is."""
    faults = []
    for path, origin in candidates:
        try:
            return _opened(path, origin)
        except (OSError, AttributeError) as error:
            faults.append(f"{path}: {error}")
    raise ConfigError(f"no libopus: {'; '.join(faults) or 'neither beside PyAV nor on the system'}")


def _candidates() -> Iterator[tuple[str, Origin]]:
    spec = importlib.util.find_spec("av")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # Where the wheels of Linux and of macOS keep what they bundle.
        for bundle in (Path(folder).with_name("av.libs"), Path(folder) / ".dylibs"):
            for found in sorted(bundle.glob("libopus*")):
                yield str(found), "bundled"
    if system := ctypes.util.find_library("opus"):
        yield system, "system"


def _opened(path: str, origin: Origin) -> Libopus:
    functions = ctypes.CDLL(path)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    version = functions.opus_get_version_string().decode()
    return Libopus(functions, path, origin, version)


class OpusDecoder:
    """An `AudioDecoder`: Opus of any rate and channel count to 16 kHz mono.

    `ConfigError` when there is no libopus. The state is freed by `close` or with the object.
    """

    def __init__(self) -> None:
        functions = libopus().functions
        self._decode = functions.opus_decode_float
        self._samples_in = functions.opus_packet_get_nb_samples
        self._samples_per_frame = functions.opus_packet_get_samples_per_frame
        self._pcm = np.zeros(_LONGEST_SAMPLES, np.float32)
        self._pcm_address = self._pcm.ctypes.data
        fault = c_int()
        state = functions.opus_decoder_create(MIC_RATE_HZ, 1, ctypes.byref(fault))
        _check_created(state, fault)
        self._state: int | None = state
        self._free = weakref.finalize(self, functions.opus_decoder_destroy, state)

    def samples_in(self, payload: bytes) -> int:
        """How much sound `payload` holds at 16 kHz; `MediaError` when it is no Opus packet."""
        count: int = self._samples_in(payload, len(payload), MIC_RATE_HZ)
        if count <= 0:
            raise MediaError(f"no Opus packet: {_fault(count)}")
        return count

    def decode(self, payload: bytes) -> FloatArray:
        """The sound of the next packet [T]; `MediaError` when it is no Opus packet."""
        if not payload:
            # To libopus no data means "conceal".
            raise MediaError("no Opus packet: it is empty")
        return self._run(payload, len(payload), _LONGEST_SAMPLES, 0)

    def repair(self, following: bytes, samples: int) -> FloatArray:
        """`samples` lost just before `following`: its redundancy for the last frame of them.

        What that does not cover is concealed. `MediaError` when `following` is no Opus packet.
        """
        self.samples_in(following)
        if samples > _LONGEST_SAMPLES:
            before = self.conceal(samples - _LONGEST_SAMPLES)
            return np.concatenate((before, self.repair(following, _LONGEST_SAMPLES)))
        # Redundancy comes in whole frames; of one that reaches further back the end counts.
        frame: int = self._samples_per_frame(following, MIC_RATE_HZ)
        wanted = max(_whole_steps(samples), frame)
        return self._run(following, len(following), wanted, 1)[wanted - samples :]

    def conceal(self, samples: int) -> FloatArray:
        """`samples` by libopus' own concealment, which goes on, fades and ends in faint noise."""
        pieces = []
        for at in range(0, samples, _LONGEST_SAMPLES):
            count = min(samples - at, _LONGEST_SAMPLES)
            pieces.append(self._run(None, 0, _whole_steps(count), 0)[:count])
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def close(self) -> None:
        """Free the state now; every later call raises `MediaError`. Idempotent."""
        self._state = None
        self._free()

    def _run(self, payload: bytes | None, size: int, room: int, repair: int) -> FloatArray:
        if self._state is None:
            raise MediaError("the Opus decoder is closed")
        count = self._decode(self._state, payload, size, self._pcm_address, room, repair)
        if count <= 0:
            raise MediaError(f"an Opus packet cannot be decoded: {_fault(count)}")
        return self._pcm[:count].copy()


class OpusEncoder:
    """A `SpeechEncoder`: 24 kHz mono to packets of 20 ms at 32 kbit/s with in-band redundancy.

    How much redundancy follows `expect_loss`; expecting none, none is sent. `complexity` 0..10
    trades processor time for quality. `ConfigError` when there is no libopus.

    Digital silence costs almost nothing: once its packets repeat, the last one is given again and
    the encoder rests. Repeating it leaves the listener's decoder where the encoder believes it is,
    so what comes after is no worse (same signal-to-noise ratio, same PESQ).
    """

    def __init__(self, complexity: int = COMPLEXITY) -> None:
        functions = libopus().functions
        self._encode = functions.opus_encode_float
        self._control = functions.opus_encoder_ctl
        self._pcm = np.zeros(SPEECH_FRAME_SAMPLES, np.float32)
        self._pcm_address = self._pcm.ctypes.data
        self._packet = ctypes.create_string_buffer(_MAX_PACKET_BYTES)
        self._packet_address = ctypes.addressof(self._packet)
        fault = c_int()
        state = functions.opus_encoder_create(
            SPEECH_RATE_HZ, 1, _APPLICATION_VOIP, ctypes.byref(fault)
        )
        _check_created(state, fault)
        self._state: int | None = state
        self._free = weakref.finalize(self, functions.opus_encoder_destroy, state)
        self._expected_percent = 0
        self._silence = b""
        self._repeats = 0
        self._set(_SET_BITRATE, BITRATE_BPS)
        self._set(_SET_VBR, 1)
        self._set(_SET_SIGNAL, _SIGNAL_VOICE)
        self._set(_SET_COMPLEXITY, complexity)
        self._set(_SET_INBAND_FEC, 1)

    def encode(self, samples: FloatArray) -> bytes:
        """The packet of the next 20 ms [480]; `ValueError` for any other length."""
        if self._state is None:
            raise MediaError("the Opus encoder is closed")
        if samples.shape != self._pcm.shape:
            raise ValueError(f"20 ms are {self._pcm.shape}, not {samples.shape}")
        if samples.any():
            self._silence, self._repeats = b"", 0
            return self._run(samples)
        if self._repeats < _STEADY_PACKETS:
            packet = self._run(samples)
            self._repeats = self._repeats + 1 if packet == self._silence else 0
            self._silence = packet
        return self._silence

    def expect_loss(self, share: float) -> None:
        """Spend redundancy for so many lost packets, 0..1, from the next packet on."""
        percent = round(100 * min(max(share, 0.0), 1.0))
        if percent != self._expected_percent:
            self._set(_SET_PACKET_LOSS_PERC, percent)
            self._expected_percent = percent
            self._repeats = 0

    def close(self) -> None:
        """Free the state now; every later call raises `MediaError`. Idempotent."""
        self._state = None
        self._free()

    def _run(self, samples: FloatArray) -> bytes:
        self._pcm[:] = samples
        size = self._encode(
            self._state,
            self._pcm_address,
            SPEECH_FRAME_SAMPLES,
            self._packet_address,
            _MAX_PACKET_BYTES,
        )
        if size <= 0:
            raise MediaError(f"speech cannot be encoded: {_fault(size)}")
        return ctypes.string_at(self._packet_address, size)

    def _set(self, request: int, value: int) -> None:
        if self._state is None:
            raise MediaError("the Opus encoder is closed")
        if fault := self._control(self._state, request, c_int32(value)):
            raise ConfigError(f"libopus refuses setting {request} = {value}: {_fault(fault)}")


def _whole_steps(samples: int) -> int:
    return -(-samples // _STEP_SAMPLES) * _STEP_SAMPLES


def _check_created(state: int | None, fault: c_int) -> None:
    if not state:
        raise ConfigError(f"libopus makes no codec: {_fault(fault.value)}")


def _fault(code: int) -> str:
    text: str = libopus().functions.opus_strerror(code).decode()
    return text if code else "it holds nothing"
