"""WebRTC: one aiortc peer connection behind the seam `Transport`.

The only importer of aiortc. What it knows of aiortc's and aioice's inside stands in
`offer_addresses` (which addresses become candidates) and `RtcTransport._probe` (is the peer there).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

import aioice.ice
import aioice.stun
import av
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import PeerTimeout, RequestError, SessionError, TransportClosed
from agent.interfaces import SpeechSource
from agent.transport.offer import checked_offer
from agent.transport.tracks import (
    MicrophoneTimeLine,
    NewestPicture,
    SendGrid,
    SpeechEncoder,
)
from agent.types import AudioFrame, VideoFrame

log = logging.getLogger(__name__)

EVENTS_LABEL = "oai-events"
_MAX_MESSAGES = 1024
_MAX_MIC_FRAMES = 200
_MAX_BUFFERED_BYTES = 1 << 20
_PROBE_EVERY_S = 0.5
_CLOSE_TIMEOUT_S = 5.0
_BAD_SDP = (
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    TypeError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)
"""What aiortc's SDP parser lets through when the text is not an offer."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server that helps to find a way through a NAT."""

    url: str
    username: str = ""
    credential: str = ""


@dataclass(frozen=True, slots=True)
class RtcOptions:
    """Limits and helpers of one connection; times in seconds."""

    ice_servers: tuple[IceServer, ...] = ()
    connect_timeout_s: float = 10.0
    watchdog_s: float = 4.0


_found_addresses = aioice.ice.get_host_addresses


def offer_addresses(addresses: tuple[str, ...], *, loopback: bool) -> None:
    """Choose the addresses that answers carry, for this process.

    aioice offers every address of the machine but 127.0.0.1. `addresses`, unless empty, replace
    those; `loopback` adds 127.0.0.1, without which a call on a machine that has no network fails.
    """

    def chosen(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        found = list(addresses) or _found_addresses(use_ipv4, use_ipv6)
        return [*dict.fromkeys([*found, "127.0.0.1"])] if loopback else found

    aioice.ice.get_host_addresses = chosen


class _SpeechTrack(MediaStreamTrack):
    """The agent's voice; aiortc pulls it, and it paces itself against an absolute start."""

    kind = "audio"

    def __init__(self, clock: Clock, late: Callable[[], None]) -> None:
        super().__init__()
        self.source: SpeechSource | None = None
        self._grid = SendGrid(clock, late)
        self._encoder = SpeechEncoder()

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        slot = await self._grid.next_slot()
        return self._encoder.frame(self.source.pull() if self.source else None, slot)


class RtcTransport:
    """One peer. `answer` its offer, wait until `connected`, then talk."""

    def __init__(
        self,
        options: RtcOptions,
        clock: Clock = SYSTEM_CLOCK,
        late_frame: Callable[[], None] = lambda: None,
    ) -> None:
        servers = [
            RTCIceServer(server.url, server.username or None, server.credential or None)
            for server in options.ice_servers
        ]
        self._options = options
        self._clock = clock
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._track = _SpeechTrack(clock, late_frame)
        self._time_line = MicrophoneTimeLine()
        self._camera = NewestPicture()
        self._channel: RTCDataChannel | None = None
        self._expects_channel = False
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._reason: SessionError | None = None
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue(_MAX_MESSAGES + 1)
        self._mic: asyncio.Queue[AudioFrame | None] = asyncio.Queue(_MAX_MIC_FRAMES + 1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard_s = clock.now_s()
        self._closed = False
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("track", self._on_track)
        self._peer.on("connectionstatechange", self._on_state)

    # ---- signalling ---------------------------------------------------------------------------

    async def answer(self, offer: str) -> str:
        """The SDP answer with every candidate in it; `RequestError` when `offer` is not an offer.

        An offer without candidates is fine: the peer is found by its first connectivity check.
        """
        offer = checked_offer(offer)
        self._expects_channel = "m=application" in offer
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            self._peer.addTrack(self._track)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except _BAD_SDP as error:
            await self.close()
            raise RequestError(
                f"the SDP offer cannot be used: {error or type(error).__name__}",
                param="sdp",
                code="invalid_offer",
            ) from error
        self._start(self._watch())
        return self._peer.localDescription.sdp

    async def connected(self) -> None:
        """Return when sound and events flow; `TransportClosed` when that takes too long."""
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            self._end(TransportClosed("no connection: nothing came through from the peer in time"))
            raise TransportClosed("the peer did not connect in time") from error
        if self._reason:
            raise self._reason

    # ---- what a session uses ------------------------------------------------------------------

    async def microphone(self) -> AsyncIterator[AudioFrame]:
        """10 ms frames at 16 kHz on one time line; a slow reader loses the oldest beyond 2 s."""
        while (frame := await self._mic.get()) is not None:
            yield frame
        self._raise_reason()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Client events as they came."""
        while (message := await self._messages.get()) is not None:
            yield message
        self._raise_reason()

    def latest_picture(self, captured_at: int) -> VideoFrame | None:
        """The newest camera picture that was not handed out yet."""
        return self._camera.take(captured_at)

    def play(self, source: SpeechSource) -> None:
        """From now on send what `source` gives."""
        self._track.source = source

    def send(self, message: str) -> None:
        """Send one event; a peer that lets more than 1 MiB pile up is disconnected."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        if channel.bufferedAmount > _MAX_BUFFERED_BYTES:
            self._end(TransportClosed("the peer does not read its events"))
            return
        channel.send(message)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._end(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._track.stop()
        self._track.source = None
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._peer.close()
        except TimeoutError:
            log.warning("a peer connection did not close within %.0f s", _CLOSE_TIMEOUT_S)
        except _BAD_SDP as error:
            log.warning("a half-made peer connection did not close cleanly: %r", error)

    # ---- what aiortc tells --------------------------------------------------------------------

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != EVENTS_LABEL or self._channel is not None:
            return
        self._channel = channel
        channel.on("message", self._on_message)
        channel.on("close", lambda: self._end(None))
        self._ready.set()

    def _on_message(self, message: str | bytes) -> None:
        self._heard_s = self._clock.now_s()
        if self._messages.qsize() >= _MAX_MESSAGES:
            self._end(TransportClosed("the peer sends events faster than they can be read"))
        else:
            self._messages.put_nowait(message)

    def _on_track(self, track: MediaStreamTrack) -> None:
        # A second camera or a screen only takes turns with the first: the newest picture counts.
        read = self._read_microphone if track.kind == "audio" else self._read_camera
        self._start(read(track))

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._heard_s = self._clock.now_s()
            self._pull_if_nobody_listens()
            if not self._expects_channel:
                self._ready.set()
        elif state == "failed":
            self._end(TransportClosed("the connection to the peer broke"))
        elif state == "closed":
            self._end(None)

    def _pull_if_nobody_listens(self) -> None:
        """A peer that only sends still needs the agent's turns to pass in real time."""
        sending = any(
            transceiver.sender.track is self._track
            and transceiver.currentDirection in ("sendrecv", "sendonly")
            for transceiver in self._peer.getTransceivers()
        )
        if not sending:
            self._start(self._discard_speech())

    # ---- tasks --------------------------------------------------------------------------------

    async def _discard_speech(self) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                await self._track.recv()

    async def _read_microphone(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self._heard_s = self._clock.now_s()
                if isinstance(frame, av.AudioFrame):
                    for piece in self._time_line.push(frame):
                        self._keep_newest(piece)

    def _keep_newest(self, frame: AudioFrame) -> None:
        if self._mic.qsize() >= _MAX_MIC_FRAMES:
            self._mic.get_nowait()
        self._mic.put_nowait(frame)

    async def _read_camera(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self._heard_s = self._clock.now_s()
                if isinstance(frame, av.VideoFrame):
                    self._camera.put(frame)

    async def _watch(self) -> None:
        """Notice a peer that vanished: ICE itself needs half a minute for that."""
        await self._ready.wait()
        while not self._ended.is_set():
            await self._clock.sleep_until(self._clock.now_s() + _PROBE_EVERY_S)
            silent_s = self._clock.now_s() - self._heard_s
            if silent_s > self._options.watchdog_s:
                self._end(PeerTimeout(f"nothing was heard from the peer for {silent_s:.1f} s"))
            elif silent_s > _PROBE_EVERY_S:
                await self._probe()

    async def _probe(self) -> None:
        """Ask a silent peer (muted, on hold) for a sign of life by a STUN check.

        The same request as aioice's own consent check, which comes only every five seconds.
        """
        connection = self._peer.getTransceivers()[0].receiver.transport.transport._connection
        for pair in list(connection._nominated.values()):
            with contextlib.suppress(aioice.stun.TransactionError, ConnectionError):
                await pair.protocol.request(
                    connection.build_request(pair, nominate=False),
                    pair.remote_addr,
                    integrity_key=str(connection.remote_password).encode(),
                    retransmissions=0,
                )
                self._heard_s = self._clock.now_s()

    # ---- ending -------------------------------------------------------------------------------

    def _end(self, reason: SessionError | None) -> None:
        """End every iterator, for `reason` if it was not the peer's own wish. First call wins."""
        if self._ended.is_set():
            return
        self._reason = reason
        if reason is None and not self._ready.is_set():
            self._reason = TransportClosed("the connection ended before it stood")
        self._ended.set()
        self._ready.set()
        self._messages.put_nowait(None)
        if self._mic.full():
            self._mic.get_nowait()
        self._mic.put_nowait(None)

    def _raise_reason(self) -> None:
        if self._reason:
            raise self._reason

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A reader that fails must not leave a call that is deaf: the call ends."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a media task failed", exc_info=error)
            self._end(TransportClosed(f"reading from the peer failed: {error}"))
