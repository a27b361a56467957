"""The stock path to compare with: a peer written the way aiortc's examples are.

Its microphone is `track.recv()`, so aiortc's own jitter buffer and decoder; its speech is a track
of 20 ms frames paced as aiortc's `AudioStreamTrack` paces them, encoded by aiortc.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from fractions import Fraction

import av
import numpy as np
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from agent.interfaces import SpeechSource
from agent.media.audio import Resampler, to_pcm16
from agent.types import SPEECH_RATE_HZ, AudioFrame, FloatArray, VideoFrame

WIRE_RATE_HZ = 48_000
_FRAME_S = 0.02
_FRAME_SAMPLES = WIRE_RATE_HZ // 50
_SILENCE = np.zeros(SPEECH_RATE_HZ // 50, np.float32)


class _StockTrack(MediaStreamTrack):
    """What the examples send: raw frames, slept for one by one."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.source: SpeechSource | None = None
        self._resampler = Resampler(SPEECH_RATE_HZ, WIRE_RATE_HZ)
        self._start_s: float | None = None
        self._timestamp = 0

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        if self._start_s is None:
            self._start_s = time.time()
        else:
            self._timestamp += _FRAME_SAMPLES
            wait_s = self._start_s + self._timestamp / WIRE_RATE_HZ - time.time()
            await asyncio.sleep(max(0.0, wait_s))
        sound = self._resampler.push(self.source.pull() if self.source else _SILENCE)
        frame = av.AudioFrame.from_ndarray(to_pcm16(sound)[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts = WIRE_RATE_HZ, self._timestamp
        frame.time_base = Fraction(1, WIRE_RATE_HZ)
        return frame


class StockPeer:
    """A peer with the parts of `Transport` that a measurement of the media path needs.

    Frames of the microphone come as aiortc gives them, 20 ms at 48 kHz; `start` counts what came.
    """

    def __init__(self) -> None:
        self._peer = RTCPeerConnection()
        self._track = _StockTrack()
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._microphone: MediaStreamTrack | None = None
        self._picture: av.VideoFrame | None = None
        self._peer.on("track", self._on_track)
        self._peer.on("connectionstatechange", self._on_state)

    async def answer(self, offer: str) -> str:
        """The SDP answer."""
        await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        self._peer.addTrack(self._track)
        await self._peer.setLocalDescription(await self._peer.createAnswer())
        sdp: str = self._peer.localDescription.sdp
        return sdp

    async def connected(self) -> None:
        """Return when sound can flow."""
        await self._ready.wait()

    async def microphone(self) -> AsyncIterator[AudioFrame]:
        """What `track.recv()` gives, mono."""
        assert self._microphone is not None, "the offer has no audio"
        start = 0
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await self._microphone.recv()
                assert isinstance(frame, av.AudioFrame)
                samples = _mono(frame)
                yield AudioFrame(samples, frame.sample_rate, start)
                start += len(samples)

    def play(self, source: SpeechSource) -> None:
        """From now on send what `source` gives."""
        self._track.source = source

    async def latest_picture(self, now_at: int) -> VideoFrame | None:
        """The newest picture, once."""
        frame, self._picture = self._picture, None
        if frame is None:
            return None
        return VideoFrame(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), now_at)

    async def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._track.stop()
        await self._peer.close()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._microphone = track
        else:
            self._tasks.append(asyncio.ensure_future(self._read_camera(track)))

    def _on_state(self) -> None:
        if self._peer.connectionState == "connected":
            self._ready.set()

    async def _read_camera(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame)
                self._picture = frame


def _mono(frame: av.AudioFrame) -> FloatArray:
    channels = len(frame.layout.channels)
    samples = frame.to_ndarray().astype(np.float32) / 32768
    return np.asarray(samples.reshape(-1, channels).mean(axis=1), np.float32)
