"""What is said in a load test: by callers as Opus packets made once, by the agent as samples."""

from fractions import Fraction

import av
import numpy as np

from agent.types import SPEECH_FRAME_SAMPLES, SPEECH_RATE_HZ, FloatArray
from tests.rig.voices import talk

TALK_S = 5.0
PAUSE_S = 7.0
"""A user talks for `TALK_S`, then is silent: long enough that an agent that says it all back,
which takes it a second to begin, has finished. So either speaks nearly half of the time."""
_CALLER_RATE_HZ = 48_000
_CALLER_FRAME = _CALLER_RATE_HZ // 50
_ROOM_DBFS = -60.0


def caller_packets() -> tuple[bytes, ...]:
    """One cycle of talking and silence, a packet each 20 ms, as Chromium would encode it."""
    return _encode(np.concatenate((talk(TALK_S, _CALLER_RATE_HZ), _room())))


def silent_packets() -> tuple[bytes, ...]:
    """A user who only listens, a packet each 20 ms."""
    return _encode(_room())


def _room() -> FloatArray:
    level = 10 ** (_ROOM_DBFS / 20)
    noise = np.random.default_rng(1).normal(0.0, level, int(PAUSE_S * _CALLER_RATE_HZ))
    return noise.astype(np.float32)


def _encode(sound: FloatArray) -> tuple[bytes, ...]:
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = _CALLER_RATE_HZ, "mono", "s16"
    encoder.bit_rate = 32_000
    encoder.options = {"application": "voip", "fec": "1", "packet_loss": "5"}
    packets: list[bytes] = []
    pcm = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
    for at in range(0, len(pcm) - _CALLER_FRAME + 1, _CALLER_FRAME):
        frame = av.AudioFrame.from_ndarray(
            pcm[None, at : at + _CALLER_FRAME], format="s16", layout="mono"
        )
        frame.sample_rate, frame.time_base = _CALLER_RATE_HZ, Fraction(1, _CALLER_RATE_HZ)
        frame.pts = at
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return (*packets, *(bytes(packet) for packet in encoder.encode(None)))


def agent_speech(rate_hz: int = SPEECH_RATE_HZ) -> FloatArray:
    """Speech for half of the cycle and digital silence for the other half."""
    return np.concatenate((talk(TALK_S, rate_hz), np.zeros(int(TALK_S * rate_hz), np.float32)))


class HalfTheTime:
    """A `SpeechSource` that speaks half of the time, each from another place of the cycle."""

    def __init__(self, cycle: FloatArray, place: float) -> None:
        frames = len(cycle) // SPEECH_FRAME_SAMPLES
        self._frames = cycle[: frames * SPEECH_FRAME_SAMPLES].reshape(frames, SPEECH_FRAME_SAMPLES)
        self._next = int(place * frames) % frames

    def pull(self) -> FloatArray:
        """The next 20 ms [480]."""
        frame: FloatArray = self._frames[self._next]
        self._next = (self._next + 1) % len(self._frames)
        return frame
