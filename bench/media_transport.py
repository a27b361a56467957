"""Measurements of the transport alone, ours and the stock peer alike: sound through a real page."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agent.interfaces import SpeechSource
from agent.media.playout import Playout, PlayoutStarted
from agent.transport.rtc import RtcOptions, RtcTransport
from agent.types import SPEECH_RATE_HZ, AudioFrame, FloatArray, SpeechAudio, VideoFrame
from bench.media_marks import (
    MicrophoneLog,
    Passage,
    active_level_db,
    began_s,
    last_sound_s,
    spread_words,
    uplink_passages,
)
from bench.media_page import RATE_HZ, MeasuringPage, Recording, Rig
from bench.stock_peer import StockPeer
from tests.rig.coded_speech import decode, encode
from tests.rig.lossy_packets import Clean, LossyRelay, RandomLoss, Written, burst

ON_TIME_MS = 50.0
_SETTLE_S = 1.5
_TONE_HZ = 440.0
_EVENT_EVERY_S = 3.0
_PACKET_S = 0.02


class Peer(Protocol):
    """What a measurement needs of a peer; ours and the stock one have it."""

    async def answer(self, offer: str) -> str:
        """The SDP answer."""

    async def connected(self) -> None:
        """Return when sound can flow."""

    def microphone(self) -> AsyncIterator[AudioFrame]:
        """The user's sound."""

    def play(self, source: SpeechSource) -> None:
        """Send what `source` gives."""

    async def latest_picture(self, now_at: int) -> VideoFrame | None:
        """The newest picture."""

    async def close(self) -> None:
        """Hang up."""


MakePeer = Callable[[], Peer]


def own_peer() -> Peer:
    """Our transport with its default options."""
    return RtcTransport(RtcOptions())


def stock_peer() -> Peer:
    """aiortc as its examples use it."""
    return StockPeer()


class _Speech:
    """What the peer pulls: playout, and when each turn was first pulled."""

    def __init__(self) -> None:
        self.playout = Playout()
        self.pulled_s: dict[int, float] = {}

    def pull(self) -> FloatArray:
        samples = self.playout.pull()
        for event in self.playout.take_events():
            if isinstance(event, PlayoutStarted):
                self.pulled_s[event.turn] = time.time()
        return samples

    def push(self, turn: int, samples: FloatArray) -> None:
        """A whole turn at once."""
        self.playout.push(SpeechAudio(turn, 0, 0, samples, last=True))


@dataclass(slots=True)
class Line:
    """A connected call: the page at one end, a bare peer at the other."""

    page: MeasuringPage
    peer: Peer
    speech: _Speech
    log: MicrophoneLog = field(default_factory=MicrophoneLog)
    picture_ages_ms: list[float] = field(default_factory=list)

    async def listen(self) -> None:
        """Follow the microphone, and look at the camera with each frame, as a session does."""
        async for frame in self.peer.microphone():
            now_s = time.time()
            self.log.add(frame, now_s)
            picture = await self.peer.latest_picture(frame.start)
            if picture is not None:
                self.picture_ages_ms.append(picture_age_ms(picture, now_s))


@asynccontextmanager
async def line(
    rig: Rig, make_peer: MakePeer, *, relay: LossyRelay | None = None, camera: bool = False
) -> AsyncIterator[Line]:
    """A call that has settled."""
    peer = make_peer()
    try:
        async with rig.call(peer.answer, relay=relay, camera=camera) as page:
            await peer.connected()
            connected = Line(page, peer, _Speech())
            peer.play(connected.speech)
            listening = asyncio.ensure_future(connected.listen())
            try:
                await asyncio.sleep(_SETTLE_S)
                yield connected
            finally:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening
    finally:
        await peer.close()


# ---- latency, both ways --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds, one a word."""

    uplink_ms: list[float]
    downlink_ms: list[float]
    """From the moment the engine's sound was there."""
    sent_ms: list[float]
    """From the moment it was pulled for sending."""


async def latencies(
    rig: Rig, make_peer: MakePeer, count: int, relay: LossyRelay | None = None
) -> Latencies:
    """Both ends say `count` words each, at odd moments, at the same time."""
    async with line(rig, make_peer, relay=relay) as call:
        await call.page.load(spread_words(count, seed=1)[0])
        await asyncio.sleep(_SETTLE_S)
        await call.page.record()
        pushing = asyncio.ensure_future(_push_words(call.speech, count))
        await call.page.speak()
        pushed_s = await pushing
        await asyncio.sleep(0.5)
        recording = await call.page.recorded()
    uplink = [passage.latency_ms for passage in uplink_passages(recording, call.log)]
    came_s = _first_heard_s(recording)
    down = [(at_s - pushed_s[index]) * 1000 for index, at_s in came_s.items()]
    sent = [(at_s - call.speech.pulled_s[index + 1]) * 1000 for index, at_s in came_s.items()]
    return Latencies(uplink, down, sent)


def _first_heard_s(recording: Recording) -> dict[int, float]:
    """When the page rendered the beginning of each word."""
    heard = decode(recording.played, RATE_HZ)
    return {word.index: recording.wall_s(began_s(word)) for word in reversed(heard)}


async def _push_words(speech: _Speech, count: int) -> list[float]:
    """Hand playout `count` words; when each was handed over (`time.time`)."""
    random = np.random.default_rng(2)
    pushed_s: list[float] = []
    for number in range(count):
        await asyncio.sleep(float(random.uniform(0.26, 0.3)))
        pushed_s.append(time.time())
        speech.push(number + 1, encode([number]))
    return pushed_s


# ---- loss ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossResult:
    """What a call under loss kept."""

    slots_kept: float
    """Share of the 20 ms slots of the user's time line that came, delivered or concealed."""
    drift_ms: float
    """How far the time line strayed at its worst."""
    played: FloatArray
    """What the page played of the agent's speech, at 48 kHz."""
    kbps: float
    """What came of it, encoded, repairs included."""


async def under_loss(
    rig: Rig,
    make_peer: MakePeer,
    relay: LossyRelay,
    share: float,
    speech: FloatArray,
    delay_ms: float = 0.0,
) -> LossResult:
    """User and agent speak at once, the agent `speech`, while packets are lost both ways, each
    of which takes `delay_ms`."""
    seconds = len(speech) / SPEECH_RATE_HZ
    for way in (relay.to_server, relay.to_client):
        way.follow(Clean(delay_ms))
    async with line(rig, make_peer, relay=relay) as call:
        await call.page.load(spread_words(int(seconds / 0.27), seed=3)[0])
        await asyncio.sleep(_SETTLE_S)
        relay.to_server.follow(RandomLoss(share, seed=11, delay_ms=delay_ms))
        relay.to_client.follow(RandomLoss(share, seed=12, delay_ms=delay_ms))
        await call.page.record()
        before, began_s = await call.page.received_bytes(), time.time()
        call.speech.push(1, speech)
        await call.page.speak()
        came, took_s = await call.page.received_bytes() - before, time.time() - began_s
        await asyncio.sleep(0.7)
        recording = await call.page.recorded()
        for way in (relay.to_server, relay.to_client):
            way.follow(Written())
    kbps = came * 8 / 1000 / took_s
    return _loss_result(uplink_passages(recording, call.log), recording, kbps)


def _loss_result(passages: list[Passage], recording: Recording, kbps: float) -> LossResult:
    if len(passages) < 2:
        return LossResult(0.0, float("nan"), recording.played, kbps)
    lags_s = np.array([passage.came_at_s - passage.said_at_s for passage in passages])
    said_s = passages[-1].said_at_s - passages[0].said_at_s
    came_s = passages[-1].came_at_s - passages[0].came_at_s
    kept = 1 - abs(came_s / said_s - 1)
    return LossResult(float(kept), float(np.ptp(lags_s) * 1000), recording.played, kbps)


async def recoveries_s(
    rig: Rig, make_peer: MakePeer, relay: LossyRelay, rounds: int
) -> list[float]:
    """After one lost packet, and after 100 ms of them: seconds until words come on time again.

    The time between two losses, 3 s, stands for never.
    """
    lost_s: list[float] = []
    patterns = [Written(frozenset({0})), burst(0, 5)] * rounds
    async with line(rig, make_peer, relay=relay) as call:
        await call.page.load(
            spread_words(int((len(patterns) * _EVENT_EVERY_S + 1) / 0.27), seed=4)[0]
        )
        await asyncio.sleep(_SETTLE_S)
        await call.page.record()
        await call.page.speak(wait=False)
        await asyncio.sleep(0.5)
        for pattern in patterns:
            relay.to_server.follow(pattern)
            lost_s.append(time.time())
            await asyncio.sleep(_EVENT_EVERY_S)
        recording = await call.page.recorded()
    passages = uplink_passages(recording, call.log)
    return [recovery_s(passages, at_s, _EVENT_EVERY_S) for at_s in lost_s]


def recovery_s(passages: list[Passage], lost_s: float, window_s: float) -> float:
    """From the loss until words come on time again; 0 if none was late, `window_s` if none is.

    On time again is the first of three words whose median is: one that a busy machine held up
    says nothing about the jitter buffer.
    """
    after = [
        passage for passage in passages if -_PACKET_S <= passage.said_s - lost_s < window_s - 0.3
    ]
    for place in range(len(after) - 2):
        median_ms = sorted(passage.latency_ms for passage in after[place : place + 3])[1]
        if after[place].latency_ms <= ON_TIME_MS and median_ms <= ON_TIME_MS:
            return max(0.0, after[place].said_s - lost_s) if place else 0.0
    return window_s


# ---- flush ---------------------------------------------------------------------------------------


async def flushes_ms(rig: Rig, make_peer: MakePeer, count: int) -> list[float]:
    """From `flush` to the last sound that the page renders."""
    random = np.random.default_rng(5)
    seconds = np.arange(3 * SPEECH_RATE_HZ) / SPEECH_RATE_HZ
    tone = (0.2 * np.sin(2 * np.pi * _TONE_HZ * seconds)).astype(np.float32)
    results = []
    async with line(rig, make_peer) as call:
        for number in range(count):
            await call.page.record()
            call.speech.push(number + 1, tone)
            await asyncio.sleep(float(random.uniform(0.5, 0.6)))
            call.speech.playout.flush()
            flushed_s = time.time()
            await asyncio.sleep(0.6)
            recording = await call.page.recorded()
            end_s = last_sound_s(recording.played, RATE_HZ, reference_db=active_level_db(tone))
            results.append((recording.wall_s(end_s) - flushed_s) * 1000)
    return results


# ---- camera --------------------------------------------------------------------------------------

_CODE_COLUMNS, _CODE_ROWS = 6, 4


async def picture_ages_ms(rig: Rig, make_peer: MakePeer, seconds: float) -> list[float]:
    """From drawing a picture in the page until the engine could have it, two pictures a second."""
    async with line(rig, make_peer, camera=True) as call:
        await asyncio.sleep(2.0)
        del call.picture_ages_ms[:]
        await asyncio.sleep(seconds)
        return list(call.picture_ages_ms)


def picture_age_ms(picture: VideoFrame, now_s: float) -> float:
    """How long ago the time was, modulo 4.6 h, that the picture shows in black and white fields."""
    height, width = picture.rgb.shape[:2]
    rows = ((np.arange(_CODE_ROWS) + 0.5) * height / _CODE_ROWS).astype(int)
    columns = ((np.arange(_CODE_COLUMNS) + 0.5) * width / _CODE_COLUMNS).astype(int)
    white = picture.rgb[np.ix_(rows, columns)].mean(axis=2).ravel() > 128
    drawn_ms = int(np.sum(white.astype(np.int64) << np.arange(white.size)))
    return float((now_s * 1000 - drawn_ms) % (1 << white.size))
