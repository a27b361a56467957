"""Sound at 16 kHz to the log-mel frames that the audio encoder was trained on (Whisper's).

A frame is 25 ms around a multiple of 10 ms, 80 bands, log10 of the power, floored and scaled as
(x + 4) / 4; f32 [80, T]. The floor is 8 below the loudest value of a whole stretch of sound, so a
frame's value depends on its surroundings:

- offline (`offline_mel`), the stretch is the recording, in pieces of 30 s each padded with zeros
  to 30 s;
- streaming (`StreamingMel`), it is what a buffer of at most 30 s holds when the frame is given
  out: no floor until the buffer has 5 s, and the oldest 10 s leave it when it is full. Given out
  once, a frame never changes.

Sound that is not a number, or infinite, counts as silence; no sample may poison the floor of the
30 s around it.
"""

import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.torch_parts.mel_filters import slaney_filters
from agent.types import MIC_RATE_HZ, FloatArray

HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HALF_WINDOW_SAMPLES = WINDOW_SAMPLES // 2
BANDS = 80
PIECE_SAMPLES = 30 * MIC_RATE_HZ
"""The longest stretch that one floor is taken from, and the longest buffer while streaming."""
DROP_SAMPLES = 10 * MIC_RATE_HZ
"""What leaves a full buffer."""
FLOOR_FROM_SAMPLES = 5 * MIC_RATE_HZ
"""From this much sound in the buffer on, its loudest value sets the floor."""
UNIT_FRAMES = 100
"""Frames of a second."""
DYNAMIC_RANGE = 8.0
LOWEST = -10.0
"""log10 of the smallest power that is told from silence."""
_LOUDEST = 32_768.0
"""Samples are −1..1; even those that someone forgot to scale fit, and their power in float32."""


def frame_count(samples: int) -> int:
    """Mel frames of a recording of this length."""
    return -(-samples // HOP_SAMPLES)


def clean(samples: FloatArray) -> FloatArray:
    """Mono samples [T] as float32 in which every value can be computed with.

    ValueError when they are integers (whose scale nobody knows) or not one-dimensional.
    """
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"sound is f32 [T], not {samples.dtype} {list(samples.shape)}")
    if np.isfinite(samples).all() and np.abs(samples).max(initial=0) <= _LOUDEST:
        return np.asarray(samples, np.float32)
    finite = np.where(np.isfinite(samples), samples, 0)
    return finite.clip(-_LOUDEST, _LOUDEST).astype(np.float32)


def offline_mel(samples: FloatArray, *, floored: bool = True) -> list[Tensor]:
    """A recording f32 [T] at 16 kHz, one mel [80, frames] for each 30 s of it.

    All but the last have 3000 frames, and the last `frame_count` of what is left. Not `floored` is
    how the reference hears a recording after a session of less than 5 s, whose lack of a floor it
    fails to undo; for comparing with it alone.
    """
    sound = torch.from_numpy(clean(samples))
    return [_piece_mel(piece, floored) for piece in torch.split(sound, PIECE_SAMPLES) if len(piece)]


def _piece_mel(piece: Tensor, floored: bool) -> Tensor:
    # Zeros up to 30 s change nothing beyond the last window that still touches the sound, since
    # silence is the lowest value there is: so many of them are computed and no more.
    padded = min(PIECE_SAMPLES, len(piece) + 2 * WINDOW_SAMPLES)
    sound = F.pad(piece, (0, padded - len(piece)))
    log = _log_mel(_mirrored(sound, left=True, right=True))[:, : padded // HOP_SAMPLES]
    floor = _floor(float(log.max())) if floored else LOWEST
    return _scaled(log, floor)[:, : frame_count(len(piece))]


# ---- frames -------------------------------------------------------------------------------------


def _mirrored(sound: Tensor, *, left: bool, right: bool) -> Tensor:
    """`sound` with half a window of its own mirror image where its ends are."""
    before = HALF_WINDOW_SAMPLES if left else 0
    after = HALF_WINDOW_SAMPLES if right else 0
    return F.pad(sound[None], (before, after), mode="reflect")[0]


def _log_mel(sound: Tensor) -> Tensor:
    """log10 of the mel power of every whole window in `sound` [T]: f32 [80, frames].

    Windowed in float32, as in training, but transformed in float64: in the bands that lie far
    below a frame's loudest, float32 transforms differ from one machine to the next by 1e-5.
    """
    windows = sound.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES) * _hann()
    spectrum = torch.fft.rfft(windows.double())
    # [frames, 201]; by way of the absolute value, and its root, this takes half as long again
    power = (spectrum.real.square() + spectrum.imag.square()).float()
    bands: Tensor = mel_filters() @ power.T
    return bands.clamp(min=10.0**LOWEST).log10()


def _floor(loudest: float) -> float:
    return loudest - DYNAMIC_RANGE


def _scaled(log: Tensor, floor: float) -> Tensor:
    return (log.clamp(min=floor) + 4) / 4


@lru_cache(maxsize=1)
def _hann() -> Tensor:
    return torch.hann_window(WINDOW_SAMPLES)


def mel_filters() -> Tensor:
    """Triangles on Slaney's mel scale, each of unit area: f32 [80, 201] for 0..8000 Hz."""
    return slaney_filters(MIC_RATE_HZ, WINDOW_SAMPLES, BANDS, MIC_RATE_HZ / 2)


# ---- streaming ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MelLayout:
    """How a stream is cut into chunks.

    In a duplex session 35 ms of silence stand before the first sample, and the first chunk takes
    1030 ms of the two together: so 5 ms of the stream always wait for the next chunk. `overlap`
    frames on both sides of a chunk's own hundred belong to its neighbours too; the encoder's
    convolutions need them and its caller cuts them off again.
    """

    silence_samples: int = 560
    first_chunk_samples: int = 16_480
    overlap_frames: int = 2


DUPLEX = MelLayout()
TURN_BASED = MelLayout(first_chunk_samples=16_560, overlap_frames=0)
"""A user's turn fed live, second by second: nothing waits, and nothing overlaps."""


class StreamingMel:
    """The mel of a stream, second by second, from whatever pieces it comes in.

    Equal to computing the mel of the whole buffer anew for each chunk, without doing so: of the
    sound that was given out only its last windows are kept, and of each frame its loudest band.
    """

    def __init__(self, layout: MelLayout = DUPLEX) -> None:
        self._layout = layout
        self._waiting = np.zeros(layout.silence_samples, np.float32)
        self._chunks = 0
        self._sound = torch.zeros(0)
        """The end of the buffer, from sample `_sound_start` of the stream on."""
        self._sound_start = 0
        self._length = 0
        """Samples of the stream (the silence included) that were put into the buffer."""
        self._dropped = 0
        """Samples of the stream that have left the buffer."""
        self._loudest = torch.zeros(0)
        """The largest log-mel of each whole frame, from frame `_dropped / 160` of the stream on."""
        self._edges: tuple[float, ...] = ()
        """For each place where the buffer may begin one day: the loudest of its mirrored start."""

    def clone(self) -> "StreamingMel":
        """An independent stream that goes on from here: a snapshot."""
        return copy.copy(self)  # nothing that it points to is ever changed in place

    def push(self, samples: FloatArray) -> list[Tensor]:
        """The next samples f32 [T] → the chunks that they complete, each [80, 102 or 104].

        The first chunk has no overlap on its left, since nothing was before it.
        """
        self._waiting = np.concatenate([self._waiting, clean(samples)])
        chunks = []
        while len(self._waiting) >= self._next_samples():
            count = self._next_samples()
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            chunks.append(self._chunk(taken, is_last=False))
        return chunks

    def finish(self) -> list[Tensor]:
        """What is left as one last, shorter chunk, down to the mirrored end; none if nothing is.

        A duplex session does not end like this: it stops with its last whole second.
        """
        taken, self._waiting = self._waiting, self._waiting[:0]
        if not len(taken) or self._length + len(taken) <= HALF_WINDOW_SAMPLES:
            return []
        chunk = self._chunk(taken, is_last=True)
        return [chunk] if chunk.shape[1] else []

    def _next_samples(self) -> int:
        return MIC_RATE_HZ if self._chunks else self._layout.first_chunk_samples

    def _chunk(self, taken: FloatArray, *, is_last: bool) -> Tensor:
        """Put `taken` into the buffer and give out the next frames: [80, T]."""
        self._sound = torch.cat([self._sound, torch.from_numpy(taken)])
        self._length += len(taken)
        self._drop_oldest()
        self._look_at_starts()
        whole = (self._length - HALF_WINDOW_SAMPLES) // HOP_SAMPLES + 1
        ends = self._length // HOP_SAMPLES
        first = max(UNIT_FRAMES * self._chunks - self._layout.overlap_frames, 0)
        stop = ends if is_last else UNIT_FRAMES * (self._chunks + 1) + self._layout.overlap_frames
        log, start = self._frames(min(first, self._known_frames))
        loudest = log.amax(0)
        settled = max(whole - start, 0)
        self._loudest = torch.cat([self._loudest, loudest[self._known_frames - start : settled]])
        floor = self._buffer_floor(loudest[settled:])
        self._chunks += 1
        self._forget_sound(UNIT_FRAMES * self._chunks - self._layout.overlap_frames)
        return _scaled(log[:, first - start : stop - start], floor)

    @property
    def _known_frames(self) -> int:
        return self._dropped // HOP_SAMPLES + len(self._loudest)

    def _drop_oldest(self) -> None:
        if self._length - self._dropped < PIECE_SAMPLES:
            return
        self._dropped += DROP_SAMPLES
        self._loudest = self._loudest[DROP_SAMPLES // HOP_SAMPLES :]
        self._edges = self._edges[1:]

    def _look_at_starts(self) -> None:
        """Where a buffer begins, its first two frames see its mirror image instead of the past."""
        begin = self._dropped + DROP_SAMPLES * len(self._edges)
        if self._length < begin + WINDOW_SAMPLES:
            return
        sound = self._sound[begin - self._sound_start :][:WINDOW_SAMPLES]
        loudest = float(_log_mel(_mirrored(sound, left=True, right=False)).max())
        self._edges = (*self._edges, loudest)

    def _frames(self, start: int) -> tuple[Tensor, int]:
        """All frames from `start` or a little earlier on: log-mel [80, T] and the first's index.

        The last ones see the buffer's mirrored end; the very first see its mirrored start.
        """
        begin = HOP_SAMPLES * start - HALF_WINDOW_SAMPLES
        if begin < 0:
            start = begin = 0
        sound = self._sound[begin - self._sound_start :]
        log = _log_mel(_mirrored(sound, left=start == 0, right=True))
        return log[:, : self._length // HOP_SAMPLES - start], start

    def _buffer_floor(self, unsettled: Tensor) -> float:
        """The floor under the buffer as it is now; `unsettled` are the loudest of its last frames,
        which see its mirrored end."""
        if self._length - self._dropped < FLOOR_FROM_SAMPLES:
            return LOWEST
        settled = torch.cat([self._loudest[2:], unsettled])
        return _floor(max(self._edges[0], float(settled.max())))

    def _forget_sound(self, next_frame: int) -> None:
        """Keep what the next chunk's first frame sees, or a start of the buffer may see."""
        begin = HOP_SAMPLES * min(next_frame, self._known_frames) - HALF_WINDOW_SAMPLES
        begin = max(0, min(begin, self._length - WINDOW_SAMPLES))
        self._sound = self._sound[begin - self._sound_start :].clone()
        self._sound_start = begin
