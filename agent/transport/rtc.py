"""WebRTC: one aiortc peer connection behind the seam `Transport`.

Sound does not take aiortc's way: packets of the microphone go to `media.jitter` as they come, and
the agent's voice is encoded here. What that takes of aiortc's inside stands in `aiortc_inside`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine

import av
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRemoteInboundRtpStreamStats,
    RTCSessionDescription,
)
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import PeerTimeout, RequestError, SessionError, TransportClosed
from agent.interfaces import AudioDecoder, SpeechEncoder, SpeechSource
from agent.media.jitter import LineCounts, LineOptions, MicrophoneLine
from agent.transport import aiortc_inside
from agent.transport.beat import shared_beat
from agent.transport.codecs import audio_decoder, speech_encoder
from agent.transport.event_channel import EventChannel
from agent.transport.ice_inside import ask_briefly, ways_of
from agent.transport.microphone import Microphone
from agent.transport.offer import (
    asking_for_repair,
    audio_codec,
    checked_offer,
    has_channel,
    red_format,
    with_refused,
)
from agent.transport.options import IceServer, RtcOptions
from agent.transport.opus import OpusDecoder, OpusEncoder
from agent.transport.peer_bounds import bound_peer
from agent.transport.peer_ice import Agreed, NotConnected, PeerIce
from agent.transport.pictures import DecodablePictures, NewestPicture, PictureOrder
from agent.transport.presence import Presence
from agent.transport.repair import RedFormat
from agent.transport.short_ways import ShortWayOut, speak_through
from agent.transport.tracks import WIRE_RATE_HZ, SentPositions
from agent.transport.video_inside import take_video
from agent.transport.voice_track import VoiceTrack
from agent.types import AudioFrame, LinkQuality, VideoFrame

log = logging.getLogger(__name__)

__all__ = ["IceServer", "RtcOptions", "RtcTransport"]

_OLD_CODECS_RATE_HZ = 8_000
"""G.711, and G.722 by an old mistake in its standard."""
_PROBE_EVERY_S = 0.5
_LEAST_LOSS = 0.05
"""Some redundancy inside of Opus always, where packets cannot be said twice: the first lost packet
comes before the first report of one."""
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


class RtcTransport:
    """One peer. `answer` its offer, wait until `connected`, then talk."""

    def __init__(
        self,
        options: RtcOptions,
        clock: Clock = SYSTEM_CLOCK,
        late_frame: Callable[[], None] = lambda: None,
        packets: Callable[[LineCounts], None] = lambda counts: None,
    ) -> None:
        """`late_frame` is told of each frame that left late, `packets` of the microphone's
        packets so far, twice a second and at the end."""
        servers = [
            RTCIceServer(server.url, server.username or None, server.credential or None)
            for server in options.ice_servers
        ]
        self._options = options
        self._clock = clock
        self._packets = packets
        self._presence = Presence(options, clock)
        self._hear = self._presence.hear
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._track = VoiceTrack(clock, late_frame)
        self._microphone = Microphone(clock, self._hear, self._on_media_failure, shared_beat())
        self._encoder: SpeechEncoder | None = None
        self._decoder: AudioDecoder | None = None
        self._way_out: ShortWayOut | None = None
        self._says_twice = False
        self._clock_rate_hz = WIRE_RATE_HZ
        self._camera = NewestPicture(clock)
        self._link = LinkQuality()
        self._expects_channel = False
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._reason: SessionError | None = None
        self._events = EventChannel(self._hear, self._end, clock)
        self._ice: PeerIce | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._track.on("ended", self._on_voice_lost)
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("track", self._on_track)
        self._peer.on("connectionstatechange", self._on_state)

    # ---- signalling ---------------------------------------------------------------------------

    async def answer(self, offer: str) -> str:
        """The SDP answer with every candidate in it; `RequestError` when `offer` is not an offer.

        An offer without candidates is fine: the peer is found by its first connectivity check.
        """
        original, offer = offer, checked_offer(offer)
        self._expects_channel = has_channel(offer)
        codec = audio_codec(offer)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            self._track.sender = self._peer.addTrack(self._track)
            bound_peer(self._peer)
            for transport, _ in ways_of(self._peer):
                ask_briefly(transport._connection)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
            red = red_format(original)
            answer = asking_for_repair(self._peer.localDescription.sdp, red)
            agreed = Agreed(original, with_refused(answer, original))
            limit_s = self._options.connect_timeout_s
            self._ice = PeerIce(self._peer, agreed, self._clock, limit_s, self._start)
            await self._ice.begin()
        except _BAD_SDP as error:
            await self.close()
            raise RequestError(
                f"the SDP offer cannot be used: {error or type(error).__name__}",
                param="sdp",
                code="invalid_offer",
            ) from error
        self._choose_codec(codec, red)
        self._start(self._watch())
        return agreed.answer

    @property
    def stands(self) -> bool:
        """Whether sound and events flow."""
        return self._ready.is_set() and not self._ended.is_set()

    @property
    def away_s(self) -> float:
        """How long the peer has been away; 0 while it is there."""
        return self._presence.away_s if self.stands else 0.0

    @property
    def ice_tag(self) -> str:
        """Which generation of ICE the answer was for; "" before."""
        return self._ice.tag if self._ice else ""

    def signalled(self) -> PeerIce:
        """For what the peer says of its ICE by another way: whoever does is there."""
        if self._ice is None:
            raise NotConnected("no offer was answered yet")
        self._hear()
        return self._ice

    def _choose_codec(self, name: str, red: RedFormat | None) -> None:
        clock_rate_hz = WIRE_RATE_HZ if name == "opus" else _OLD_CODECS_RATE_HZ
        self._clock_rate_hz = clock_rate_hz
        self._track.sent = SentPositions(clock_rate_hz)
        decoder = self._decoder = audio_decoder(f"audio/{name}", clock_rate_hz)
        self._microphone.listen(MicrophoneLine(decoder, LineOptions(clock_rate_hz)))
        if name == "opus":
            self._encoder = speech_encoder()
            self._says_twice = red is not None
            self._encoder.expect_loss(0.0 if red else _LEAST_LOSS)
            self._track.encoder = self._encoder
            if self._track.sender is not None:
                self._way_out = speak_through(self._track.sender, self._track, red)

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
        async for frame in self._microphone.frames():
            yield frame
        self._raise_reason()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Client events as they came."""
        async for message in self._events.messages():
            yield message
        self._raise_reason()

    async def latest_picture(self, now_at: int) -> VideoFrame | None:
        """The newest camera picture that was not handed out yet."""
        if self._camera.is_large:
            # A shared screen takes 10 ms to become RGB, in which no call would send.
            return await asyncio.to_thread(self._camera.take, now_at)
        return self._camera.take(now_at)

    def play(self, source: SpeechSource) -> None:
        """From now on send what `source` gives."""
        self._track.source = source

    def speech_position(self, rtp_timestamp: int) -> int | None:
        """Which sample of what was played an RTP timestamp stands for."""
        return self._track.sent.position(rtp_timestamp)

    def link(self) -> LinkQuality:
        """By the peer's last receiver report."""
        return self._link

    def send(self, message: str) -> None:
        """Send one event; a peer that lets more than 1 MiB pile up is disconnected."""
        self._events.send(message)

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
            self._free_codecs()
        except TimeoutError:
            log.warning("a peer connection did not close within %.0f s", _CLOSE_TIMEOUT_S)
        except _BAD_SDP as error:
            log.warning("a half-made peer connection did not close cleanly: %r", error)

    def _free_codecs(self) -> None:
        """Now, and not when the collector comes by: their memory is not Python's."""
        for codec in (self._decoder, self._encoder):
            if isinstance(codec, OpusDecoder | OpusEncoder):
                codec.close()

    # ---- what aiortc tells --------------------------------------------------------------------

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._events.use(channel):
            self._ready.set()

    def _on_track(self, track: MediaStreamTrack) -> None:
        receiver = next(
            each.receiver for each in self._peer.getTransceivers() if each.receiver.track is track
        )
        if track.kind == "audio":
            aiortc_inside.take_audio(receiver, self._microphone.push, self._on_media_failure)
        else:
            # A second camera or a screen only takes turns with the first: the newest counts.
            order = DecodablePictures(PictureOrder(self._clock))
            order.undecoded = take_video(receiver, order, self._on_media_failure)
            self._start(self._read_camera(track))

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._hear()
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

    def _on_media_failure(self, error: Exception) -> None:
        if not self._ended.is_set():
            log.error("a packet could not be taken in", exc_info=error)
            self._end(TransportClosed(f"reading from the peer failed: {error}"))

    def _on_voice_lost(self) -> None:
        """aiortc writes down why a track raised, drops it, and says nothing."""
        self._end(TransportClosed("the agent's voice can no longer be sent"))

    # ---- tasks --------------------------------------------------------------------------------

    async def _discard_speech(self) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                await self._track.recv()

    async def _read_camera(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self._hear()
                if isinstance(frame, av.VideoFrame):
                    self._camera.put(frame)

    async def _watch(self) -> None:
        """Notice a peer that vanished: ICE itself needs half a minute for that.

        It may come back by another way. Until then the engine hears nothing, and has nothing to do.
        """
        await self._ready.wait()
        self._microphone.begin()
        while not self._ended.is_set():
            await self._clock.sleep_until(self._clock.now_s() + _PROBE_EVERY_S)
            self._packets(self._microphone.counts)
            silent_s = self._presence.silent_s
            if self._presence.is_lost:
                self._end(PeerTimeout(f"nothing was heard from the peer for {silent_s:.1f} s"))
            elif silent_s > _PROBE_EVERY_S and await aiortc_inside.is_there(self._peer):
                self._hear()
            if self._presence.away_s:
                self._microphone.rest()
            else:
                self._microphone.go_on()
            await self._read_reports()

    async def _read_reports(self) -> None:
        """What the peer says of our packets sets how much redundancy they carry."""
        if self._track.sender is None:
            return
        for report in (await self._track.sender.getStats()).values():
            if isinstance(report, RTCRemoteInboundRtpStreamStats):
                loss = self._way_out.loss if self._way_out else report.fractionLost / 256
                jitter_ms = report.jitter * 1000 / self._clock_rate_hz
                self._link = LinkQuality((report.roundTripTime or 0.0) * 1000, jitter_ms, loss)
        # Said twice, Opus needs no redundancy of its own: it would only make the rest coarser.
        if self._encoder and not self._says_twice:
            self._encoder.expect_loss(max(self._link.loss, _LEAST_LOSS))

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
        self._events.finish()
        self._microphone.end()
        self._packets(self._microphone.counts)

    def _raise_reason(self) -> None:
        if self._reason:
            raise self._reason

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A reader that fails must not leave a call that is deaf: the call ends."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a media task failed", exc_info=error)
            self._end(TransportClosed(f"reading from the peer failed: {error}"))
