"""Measurements of the whole loop: the real session with an engine that recites, a page that
answers back, and a room in which the microphone hears the loudspeaker."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve

from agent.api.calls import Calls
from agent.api.server import SERVICES, build_app
from agent.config import load_config
from agent.types import SPEECH_RATE_HZ, FloatArray
from bench.media_engine import RecitingEngine
from bench.media_marks import (
    active_level_db,
    at_page_rate,
    first_silence_s,
    last_sound_s,
    rendered_ms,
)
from bench.media_page import RATE_HZ, MeasuringPage, Recording, Rig
from tests.rig.coded_speech import INDICES, decode, encode
from tests.rig.lossy_packets import LossyRelay
from tests.rig.voices import say, talk

AGENT_S = 60.0
_ECHO_DELAY_S = 0.06
_ECHO_GAIN_DB = -6.0
_RT60_S = 0.3
_NOISE_DBFS = -65.0
_FIRST_TURN_S = 3.5
"""The first turn goes on so long before anybody interrupts: no guard holds after 2 s of it."""
_AUDIBLE = 0.02
_PAUSE_S = 0.04
_WATCH_S = 2.0
PHRASES = (
    ("Wait a moment please, I have a question.", "en-us+f3"),
    ("No, that is not what I meant at all.", "en-gb"),
    ("Excuse me, can I say something?", "en-us+f2"),
    ("Hold on, what about the other train?", "en-gb+m3"),
    ("Actually I would rather go tomorrow.", "en-us+f4"),
    ("Sorry, could you stop for a moment?", "en-gb+f1"),
)


@asynccontextmanager
async def serving(engine: RecitingEngine) -> AsyncIterator[Calls]:
    """The server's calls with default settings, answered by `engine`."""
    config = load_config(None, {}, ["rtc.addresses=127.0.0.1", "engine.name=echo"])
    calls = Calls(dataclasses.replace(build_app(config)[SERVICES], engine=engine))
    try:
        yield calls
    finally:
        await calls.close()


@asynccontextmanager
async def conversation(
    rig: Rig, engine: RecitingEngine, relay: LossyRelay | None = None
) -> AsyncIterator[MeasuringPage]:
    """A page in a call with `engine`."""
    async with serving(engine) as calls:

        async def answer(offer: str) -> str:
            return (await calls.open(offer)).sdp

        async with rig.call(answer, relay=relay) as page:
            if await page.event("session.created", after_s=0) is None:
                raise RuntimeError("the call did not open")
            yield page


# ---- barge-in ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BargeIns:
    """Milliseconds from the user's first audible sample to silence in the page: to the first,
    which a duck is, and to the one that lasts."""

    latency_ms: list[float]
    ended_ms: list[float]
    missed: int
    """Interruptions that did not end the turn within two seconds."""
    unprovoked: int
    """Turns that had fallen silent before the user said anything; they were tried again."""
    erle_db: list[float]
    """What the server says of its echo reduction, once a second while the agent speaks."""


async def barge_ins(rig: Rig, user_over_echo_db: float, count: int) -> BargeIns:
    """The user interrupts `count` times, so much louder than the agent's echo at the microphone."""
    agent = _without_pauses(talk(AGENT_S, SPEECH_RATE_HZ))
    agent_db = active_level_db(agent)
    response = _room()
    echo = fftconvolve(at_page_rate(agent[: 10 * SPEECH_RATE_HZ]), response)
    echo_db = active_level_db(echo.astype(np.float32)) + _ECHO_GAIN_DB
    latency_ms: list[float] = []
    ended_ms: list[float] = []
    missed = unprovoked = 0
    async with conversation(rig, RecitingEngine(agent)) as page:
        noise = np.random.default_rng(6).normal(0, 10 ** (_NOISE_DBFS / 20), RATE_HZ)
        await page.open_room(
            delay_s=_ECHO_DELAY_S,
            gain=10 ** (_ECHO_GAIN_DB / 20),
            response=response,
            noise=noise.astype(np.float32),
        )
        while len(latency_ms) < count and unprovoked <= count:
            number = len(latency_ms) + unprovoked
            text, voice = PHRASES[number % len(PHRASES)]
            phrase = say(text, RATE_HZ, voice, echo_db + user_over_echo_db)
            first_ms, last_ms = silenced_after_ms(await _interrupt(page, phrase, number), agent_db)
            if first_ms < 0:
                unprovoked += 1
                continue
            missed += last_ms > _WATCH_S * 1000
            latency_ms.append(first_ms)
            ended_ms.append(last_ms)
        erle_db = [float(event["erle_db"]) for event in await page.events("voice_agent.echo")]
    return BargeIns(latency_ms, ended_ms, missed, unprovoked, erle_db)


def silenced_after_ms(recording: Recording, agent_db: float) -> tuple[float, float]:
    """From the user's first audible sample to the agent's first silence, and to its last sound.

    The agent speaks at `agent_db` and pauses for `_PAUSE_S` at most: what lasts longer is a duck
    or the end. Below zero when it had fallen silent before.
    """
    audible = np.flatnonzero(np.abs(recording.said) > _AUDIBLE * np.abs(recording.said).max())
    onset_s = int(audible[0]) / RATE_HZ if len(audible) else 0.0
    first_s = first_silence_s(
        recording.played,
        RATE_HZ,
        reference_db=agent_db,
        after_s=onset_s,
        longer_than_s=2 * _PAUSE_S,
    )
    last_s = last_sound_s(recording.played, RATE_HZ, reference_db=agent_db)
    return (first_s - onset_s) * 1000, (last_s - onset_s) * 1000


async def _interrupt(page: MeasuringPage, phrase: FloatArray, number: int) -> Recording:
    """Have the agent speak, interrupt it, and wait until it would have fallen silent."""
    random = np.random.default_rng(100 + number)
    await page.load(phrase)
    asked_s = time.time()
    await page.send({"type": "response.create"})
    if await page.event("output_audio_buffer.started", after_s=asked_s) is None:
        raise RuntimeError("the agent did not begin to speak")
    await asyncio.sleep(_FIRST_TURN_S if number == 0 else 0)
    await page.record()
    await asyncio.sleep(float(random.uniform(1.2, 1.6)))
    spoken_s = time.time()
    await page.speak()
    cleared = await page.event("output_audio_buffer.cleared", after_s=spoken_s, timeout_s=_WATCH_S)
    await asyncio.sleep(0.4)
    recording = await page.recorded()
    if cleared is None:
        await page.send({"type": "response.cancel"})
        await page.send({"type": "output_audio_buffer.clear"})
        await asyncio.sleep(0.5)
    return recording


def _without_pauses(speech: FloatArray) -> FloatArray:
    """Without pauses beyond `_PAUSE_S`: silence must come from an interruption alone."""
    step = SPEECH_RATE_HZ // 100
    frames = speech[: len(speech) // step * step].reshape(-1, step)
    quiet = np.mean(frames**2, axis=1) < np.mean(speech**2) * 10 ** (-25 / 10)
    kept, run = [], 0
    for frame, is_quiet in zip(frames, quiet, strict=True):
        run = run + 1 if is_quiet else 0
        if run <= _PAUSE_S * 100:
            kept.append(frame)
    return np.concatenate(kept)


def _room() -> FloatArray:
    """A room of unit energy at 48 kHz: a direct sound and, as strong, a tail of noise that falls
    by 60 dB in `_RT60_S`."""
    length = int(_RT60_S * RATE_HZ)
    tail = np.random.default_rng(7).normal(0, 1, length) * 10 ** (-3 * np.arange(length) / length)
    response = tail / np.sqrt(np.sum(tail**2))
    response[0] = 1.0
    return np.asarray(response / np.sqrt(np.sum(response**2)), np.float32)


async def heard_errors_ms(rig: Rig, count: int, relay: LossyRelay | None = None) -> list[float]:
    """How far what is claimed to have been heard is from what the page rendered.

    The end of a whole word cannot be told from anywhere in the pause of 50 ms after it; a claim
    in that pause is right.
    """
    said = [number % INDICES for number in range(INDICES)]
    user = say(PHRASES[0][0], RATE_HZ, PHRASES[0][1], -20.0)
    errors: list[float] = []
    async with conversation(rig, RecitingEngine(encode(said)), relay) as page:
        for number in range(count):
            began_s = time.time()
            recording = await _interrupt(page, user, number)
            truncated = await page.event("conversation.item.truncated", after_s=began_s)
            if truncated is None:
                errors.append(float("inf"))
                continue
            words = decode(recording.played, RATE_HZ)
            errors.append(error_ms(float(truncated["audio_end_ms"]), rendered_ms(words, said)))
    return errors


def error_ms(claimed_ms: float, rendered: tuple[float, float]) -> float:
    """How far outside `rendered` the claim is."""
    return max(0.0, rendered[0] - claimed_ms, claimed_ms - rendered[1])
