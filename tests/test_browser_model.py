"""Whole calls in a real Chromium against the tiny checkpoint, loaded from the disk, on the CPU."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser

from agent.api.loading import Started
from agent.api.realtime import CALLS
from agent.api.server import make_app
from agent.config import load_config
from agent.engines import Choice, EngineSettings, ModelSettings, VoiceSettings
from agent.fleet.pool import start_core
from agent.fleet.worker import Job
from agent.types import FloatArray
from tests.rig import scripted_engine
from tests.rig.server import Running
from tests.rig.stored_voices import store_voice
from tests.rig.tiny_checkpoint import shared_checkpoint
from tests.rig.tiny_vocoder import write_token2wav
from tests.test_browser_call import RECORD, Visit, spoken_to, visit, visit_in
from tests.web_page.browser import PATIENCE_MS

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

QUIET = np.zeros(48_000, np.float32)
ANSWER = "#chat-log [data-role=agent]"
SETTINGS = ["server.port=0", "rtc.addresses=127.0.0.1", "engine.name=echo"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_checkpoint(tmp_path_factory)


@asynccontextmanager
async def serving(checkpoint: Path, voice: VoiceSettings | None = None) -> AsyncIterator[Running]:
    """The real server, with the scripted engine of `checkpoint` in its process."""
    model = ModelSettings(checkpoint, device="cpu", context_tokens=2048)
    load = scripted_engine.load_voiced if voice else scripted_engine.load
    assets = voice.voices.parent if voice else checkpoint
    job = Job(load, "minicpm-o", EngineSettings(assets, 2, model, voice))
    started = Started(Choice("minicpm-o", "for a test"), await start_core(job), voice)
    folder = voice.voices if voice else checkpoint / "voices"
    app = make_app(load_config(None, {}, [*SETTINGS, f"voices.folder={folder}"]), started)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Running(app, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def captioned(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Running, Browser]]:
    """A server that answers in captions, and a browser that hears nothing: loaded once."""
    folder = tmp_path_factory.mktemp("quiet")
    async with serving(checkpoint) as server, spoken_to(QUIET, folder) as browser:
        yield server, browser


@pytest_asyncio.fixture(loop_scope="module")
async def visitor(captioned: tuple[Running, Browser]) -> AsyncIterator[Visit]:
    """One who has hung up in the end: the model's slots are free for the next."""
    server, browser = captioned
    async with visit_in(browser, server) as visitor:
        yield visitor
        if await visitor.page.get_attribute("#call-button", "data-live") == "true":
            await visitor.page.click("#call-button")
    for _ in range(200):
        if server.calls == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a call outlasts its page")


async def said(visitor: Visit, count: int = 1) -> None:
    """Wait until the agent has said its sentence so often, and all of it stands on the page."""
    for at in range(1, count + 1):
        done = await visitor.event("response.output_text.done", at)
        assert done["text"] == scripted_engine.SENTENCE
    shown = await visitor.page.inner_text("#captions")
    assert shown.count(scripted_engine.SENTENCE) >= count


async def of_kind(visitor: Visit, kind: str) -> list[dict[str, object]]:
    return [event for event in await visitor.events() if event["type"] == kind]


async def test_a_call_listens_speaks_in_captions_sees_and_can_be_paused(visitor: Visit) -> None:
    page = visitor.page
    prompt = page.locator("#setting-instructions")
    assert "You are in duplex mode" in str(await prompt.get_attribute("placeholder"))
    await page.click("#call-button")
    await said(visitor, 2)
    assert await page.is_visible("#captions-only")
    (created,) = await of_kind(visitor, "session.created")
    assert created["session"]["output_modalities"] == ["text"]
    # With the camera on, a unit takes the places of a picture more.
    await page.click("#camera")
    await _until_units_grow_by(visitor, 66)
    # A paused model says nothing; a resumed one goes on.
    await page.click("#pause")
    await visitor.state("paused")
    so_far = len(await of_kind(visitor, "response.output_text.done"))
    await page.click("#pause")
    await visitor.event("response.output_text.done", so_far + 1)
    await page.click("#call-button")
    await visitor.state("ended")
    assert await of_kind(visitor, "error") == []


async def _until_units_grow_by(visitor: Visit, tokens: int) -> None:
    for _ in range(200):
        units = await of_kind(visitor, "voice_agent.unit")
        sizes = [int(str(unit["context_tokens"])) for unit in units]
        if any(after - before >= tokens for before, after in itertools.pairwise(sizes)):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"no unit saw a picture: {sizes}")


async def test_what_is_typed_is_read_and_answered(visitor: Visit) -> None:
    page = visitor.page
    await page.click("#call-button")
    await visitor.event("voice_agent.unit")
    words = 60
    await page.fill("#typing textarea", "Can you hear me?" + " really" * words)
    await page.keyboard.press("Enter")
    # Each word takes at least a place in the unit that it is read with.
    await _until_units_grow_by(visitor, words)
    await said(visitor)
    assert "Can you hear me?" in await page.inner_text("#captions")
    assert await of_kind(visitor, "error") == []


async def test_the_same_weights_answer_in_the_chat_tab_between_two_calls(visitor: Visit) -> None:
    page = visitor.page
    await page.click("#call-button")
    await said(visitor)
    await page.click("#call-button")
    await visitor.state("ended")
    await page.click("#tab-chat")
    await page.fill("#chat-form textarea", "Say something.")
    await page.keyboard.press("Enter")
    # With random weights an answer may go on for long.
    answer = page.locator(f"{ANSWER} .prose")
    while len(text := (await answer.all_inner_texts() or [""])[-1].strip()) < 20:
        await asyncio.sleep(0.1)
    # By the keyboard: a busy page may draw too seldom for a mouse to find what holds still.
    await page.focus("#chat-stop")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(f"{ANSWER}[data-state=stopped]", timeout=PATIENCE_MS)
    assert (await answer.last.inner_text()).strip().startswith(text)
    await page.click("#tab-call")
    before = len(await of_kind(visitor, "response.output_text.done"))
    await page.click("#call-button")
    again = await visitor.event("response.output_text.done", before + 1)
    assert again["text"] == scripted_engine.SENTENCE


# ---- heard, not read -----------------------------------------------------------------------------

RATE_HZ = 48_000
GAP_MS = 20
SILENT = 0.01
"""The tiny vocoder hums and hisses at 0.1 without a break."""


async def test_a_call_is_heard_in_order_and_without_a_gap_inside_a_turn(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "ref_audio").mkdir()
    store_voice(tmp_path / "voices", "anna")
    voice = VoiceSettings("token2wav", write_token2wav(tmp_path / "voc"), tmp_path / "voices")
    async with serving(checkpoint, voice) as server, visit(server, QUIET, tmp_path) as visitor:
        await visitor.start()
        said, sound = await heard_whole(visitor, tmp_path / scripted_engine.SOUND)
        assert not await visitor.page.is_visible("#captions-only")
        assert await of_kind(visitor, "error") == []
        (created,) = await of_kind(visitor, "session.created")
        assert created["session"]["output_modalities"] == ["audio"]
    assert len(said) / 24_000 >= scripted_engine.VOICED_UNITS - 1
    assert is_whole(sound, said), (len(sound), len(said), longest_silence_ms(sound))
    places = [place_of(piece, sound) for piece in np.split(said[: len(said) // 6 * 6], 6)]
    assert places == sorted(places), places


async def heard_whole(visitor: Visit, folder: Path) -> tuple[FloatArray, FloatArray]:
    """A turn that was generated in time: as it was said, and as the page played it.

    Another one where that is not whole: a machine that does other things may not play in time.
    """
    turn = 1
    for _ in range(4):
        turn = await turn_in_time(visitor, turn + 1)
        await asyncio.sleep(0.5)
        sound = turns_in(await visitor.heard())[-1]
        said = np.fromfile(folder / f"{turn}.f32", np.float32)
        if is_whole(sound, said):
            break
        await visitor.page.evaluate(RECORD)
    return said, sound


def is_whole(sound: FloatArray, said: FloatArray) -> bool:
    is_as_long = abs(len(sound) / RATE_HZ - len(said) / 24_000) < 0.15
    return is_as_long and longest_silence_ms(sound) <= GAP_MS


async def turn_in_time(visitor: Visit, first: int) -> int:
    """Wait for a turn that the engine generated in time: on a busy machine it may not always.

    Not turn 1, from which the call learns how long units take.
    """
    (live,) = visitor.server.app[CALLS]._live.values()
    playout = live.session._playout
    await visitor.event("output_audio_buffer.stopped", first - 1)
    for turn in range(first, first + 9):
        before = playout.underruns
        await visitor.event("output_audio_buffer.stopped", turn)
        if playout.underruns == before:
            return turn
    raise AssertionError("every turn had a gap before it was sent")


def turns_in(heard: FloatArray) -> list[FloatArray]:
    """The stretches of sound between silences of half a second."""
    loud = np.flatnonzero(np.abs(heard) > SILENT)
    breaks = np.flatnonzero(np.diff(loud) > RATE_HZ // 2)
    starts, ends = loud[[0, *(breaks + 1)]], loud[[*breaks, -1]]
    return [heard[start : end + 1] for start, end in zip(starts, ends, strict=True)]


def longest_silence_ms(sound: FloatArray) -> float:
    loud = np.flatnonzero(np.abs(sound) > SILENT)
    return float(np.diff(loud).max()) * 1000 / RATE_HZ


def place_of(piece: FloatArray, turn: FloatArray) -> int:
    """Where in `turn` (48 kHz) the piece (24 kHz) is, by its loudest match."""
    low = turn[::2]
    products = np.correlate(low, piece, "valid") if len(low) >= len(piece) else np.zeros(1)
    return int(np.argmax(products))
