"""A plain WebRTC client: an aiortc peer that knows nothing of the server but its URL.

Its offer carries no candidates, as the offers of the OpenAI SDKs.
"""

import asyncio
import json
import time
from collections.abc import Callable
from fractions import Fraction

import aiohttp
import av
import numpy as np
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from agent.types import FloatArray

RATE_HZ = 48_000
FRAME_SAMPLES = 960
Event = dict[str, object]


class SpeakingTrack(MediaStreamTrack):
    """A microphone in a silent room; `say` makes it speak. 48 kHz, 20 ms frames, in real time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._waiting = np.zeros(0, np.float32)
        self._sent = 0
        self._start_s = 0.0

    def say(self, samples: FloatArray) -> None:
        """Speak `samples` (48 kHz) after what is still being said."""
        self._waiting = np.concatenate((self._waiting, samples))

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        self._start_s = self._start_s or time.monotonic()
        await asyncio.sleep(max(0.0, self._start_s + self._sent / RATE_HZ - time.monotonic()))
        piece, self._waiting = self._waiting[:FRAME_SAMPLES], self._waiting[FRAME_SAMPLES:]
        padded = np.zeros(FRAME_SAMPLES, np.float32)
        padded[: len(piece)] = piece
        pcm = (padded * 32767).astype(np.int16)[None, :]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, self._sent, Fraction(1, RATE_HZ)
        self._sent += FRAME_SAMPLES
        return frame


class Caller:
    """One client. `dial`, then `say`, `send`, `wait_for`; at the end `hang_up` or `close`."""

    def __init__(self, base_url: str, *, camera: bool = False, codec: str = "") -> None:
        """`codec`, as "audio/PCMU", is the only one that it speaks, without saying how fast."""
        self._base_url = base_url
        self._codec = codec
        self.microphone = SpeakingTrack()
        self.events: list[Event] = []
        self.location = ""
        self.answer = ""
        self._heard: list[FloatArray] = []
        self._news = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.peer = RTCPeerConnection()
        self.peer.addTrack(self.microphone)
        if camera:
            self.peer.addTrack(VideoStreamTrack())
        if codec:
            known = RTCRtpSender.getCapabilities("audio").codecs
            alone = [one for one in known if one.mimeType == codec]
            self.peer.getTransceivers()[0].setCodecPreferences(alone)
        self.channel = self.peer.createDataChannel("oai-events")
        self.channel.on("message", self._on_message)
        self.channel.on("close", self._news.set)
        self.peer.on("track", self._on_track)

    async def dial(self) -> None:
        """Offer, post, take the answer, wait for `session.created`."""
        offer = await self.offer()
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{self._base_url}/v1/realtime/calls",
                data=offer,
                headers={"Content-Type": "application/sdp"},
            ) as response,
        ):
            self.answer = await response.text()
            assert response.status == 201, self.answer
            self.location = response.headers["Location"]
        await self.accept(self.answer)
        await self.wait_for("session.created")

    async def offer(self) -> str:
        """The offer without its candidates."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        lines = self.peer.localDescription.sdp.split("\r\n")
        # What the payload types of the standard mean, everybody knows.
        known = ("a=rtpmap",) if self._codec else ()
        gone = ("a=candidate", "a=end-of-candidates", *known)
        return "\r\n".join(line for line in lines if not line.startswith(gone))

    async def accept(self, answer: str) -> None:
        """Take the server's answer."""
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def send(self, event: Event | str) -> None:
        """One client event, or raw text."""
        self.channel.send(event if isinstance(event, str) else json.dumps(event))

    def types(self, *, extensions: bool = False) -> list[str]:
        """The types of all events so far."""
        names = [str(event["type"]) for event in self.events]
        return [name for name in names if extensions or not name.startswith("voice_agent.")]

    async def wait_for(
        self,
        kind: str,
        matching: Callable[[Event], bool] = lambda _: True,
        *,
        after: int = 0,
        timeout_s: float = 60,
    ) -> Event:
        """The first event of type `kind` that matches, counted from position `after`."""
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.events[after:]:
                    if event["type"] == kind and matching(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def wait_until_closed(self, timeout_s: float = 60) -> None:
        """Until the server has ended the call."""
        async with asyncio.timeout(timeout_s):
            while self.channel.readyState != "closed":
                self._news.clear()
                await self._news.wait()

    def heard(self, *, since_samples: int = 0) -> FloatArray:
        """All that the agent sent so far, mono at 48 kHz."""
        sound = np.concatenate(self._heard) if self._heard else np.zeros(0, np.float32)
        return sound[since_samples:]

    async def hang_up(self) -> int:
        """`POST …/hangup`; returns the HTTP status."""
        url = f"{self._base_url}{self.location}/hangup"
        async with aiohttp.ClientSession() as http, http.post(url) as response:
            return response.status

    async def close(self) -> None:
        """Leave."""
        self.microphone.stop()
        await self.peer.close()
        if self._listening:
            await self._listening

    def _on_message(self, message: str) -> None:
        self.events.append(json.loads(message))
        self._news.set()

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._listening = asyncio.ensure_future(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                channels = len(frame.layout.channels)
                samples = frame.to_ndarray().reshape(-1, channels).mean(axis=1) / 32768
                whole = np.repeat(samples, RATE_HZ // frame.sample_rate)
                self._heard.append(whole.astype(np.float32))
        except MediaStreamError:
            pass
