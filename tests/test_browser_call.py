"""Whole calls in a real Chromium: its microphone speaks, its camera shows, the server answers."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from playwright.async_api import Browser, Page, async_playwright

from agent.types import FloatArray
from tests.rig.realtime_schema import check_events, check_order
from tests.rig.server import Footprint, Running, running_server, settle
from tests.rig.sound import alike_in_pieces, loud_s, write_wav
from tests.rig.voices import say
from tests.web_page.browser import PATIENCE_MS
from tests.web_page.chromium import start_chromium

RATE_HZ = 48_000
SENTENCE = "The quick brown fox jumps over the lazy dog."
OTHER_SENTENCE = "Every good boy deserves fruit and a glass of milk."
EAVESDROP = """
window.heardEvents = [];
const create = RTCPeerConnection.prototype.createDataChannel;
RTCPeerConnection.prototype.createDataChannel = function (...given) {
  const channel = create.apply(this, given);
  channel.addEventListener('message', (event) => window.heardEvents.push(JSON.parse(event.data)));
  return channel;
};
"""
RECORD = """() => {
  const recorder = new MediaRecorder(document.querySelector('#agent-audio').srcObject,
    { audioBitsPerSecond: 128000 });
  window.pieces = [];
  recorder.ondataavailable = (event) => window.pieces.push(event.data);
  recorder.start(100);
  window.recorder = recorder;
}"""
RECORDED = """async () => {
  await new Promise((done) => { window.recorder.onstop = done; window.recorder.stop(); });
  const bytes = new Uint8Array(await new Blob(window.pieces).arrayBuffer());
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}"""


@dataclass(slots=True)
class Visit:
    """A person on the page."""

    page: Page
    server: Running

    async def state(self, state: str) -> None:
        await self.page.wait_for_selector(f'#state[data-state="{state}"]', timeout=PATIENCE_MS)

    async def start(self) -> None:
        await self.page.click("#call-button")
        await self.state("speaking")
        await self.page.evaluate(RECORD)

    async def event(self, kind: str, count: int = 1) -> dict[str, object]:
        """The `count`-th event of type `kind`, once it has come."""
        for _ in range(1000):
            found = [event for event in await self.events() if event["type"] == kind]
            if len(found) >= count:
                return found[count - 1]
            await asyncio.sleep(0.05)
        raise AssertionError(f"no {count}. {kind}")

    async def events(self) -> list[dict[str, object]]:
        events: list[dict[str, object]] = await self.page.evaluate("window.heardEvents")
        return events

    async def heard(self) -> FloatArray:
        """What the page played since `start`, mono at 48 kHz; ends the recording."""
        data = base64.b64decode(await self.page.evaluate(RECORDED))
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
        with av.open(io.BytesIO(data)) as container:
            pieces = [
                piece.to_ndarray()[0]
                for frame in container.decode(audio=0)
                for piece in resampler.resample(frame)
            ]
        return np.concatenate(pieces)


@asynccontextmanager
async def spoken_to(microphone: FloatArray, folder: Path) -> AsyncIterator[Browser]:
    """A Chromium into which `microphone` (48 kHz) is spoken, over and over."""
    recording = folder / "microphone.wav"
    write_wav(recording, microphone, RATE_HZ)
    async with async_playwright() as driver:
        browser = await start_chromium(driver, f"--use-file-for-fake-audio-capture={recording}")
        yield browser
        await browser.close()


@asynccontextmanager
async def visit_in(browser: Browser, server: Running) -> AsyncIterator[Visit]:
    """Open the page, of whose user `browser` knows nothing yet."""
    page = await browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.add_init_script(EAVESDROP)
    await page.goto(server.url)
    yield Visit(page, server)
    await page.close()
    assert faults == []


@asynccontextmanager
async def visit(server: Running, microphone: FloatArray, folder: Path) -> AsyncIterator[Visit]:
    """Open the page in a Chromium of its own."""
    async with spoken_to(microphone, folder) as browser, visit_in(browser, server) as visitor:
        yield visitor


def script(*parts: float | str) -> FloatArray:
    """Seconds of silence and texts, one after another."""
    pieces = [
        np.zeros(int(part * RATE_HZ), np.float32)
        if isinstance(part, float)
        else say(part, RATE_HZ, level_dbfs=-20)
        for part in parts
    ]
    return np.concatenate(pieces)


async def test_a_person_is_greeted_and_hears_the_own_sentence_with_captions(
    tmp_path: Path,
) -> None:
    async with running_server() as server:
        before = Footprint.now()
        async with visit(server, script(10.0, SENTENCE, 20.0), tmp_path) as person:
            await person.start()
            await person.page.click("#camera")
            await person.event("output_audio_buffer.stopped", count=2)
            await asyncio.sleep(0.3)  # the browser's jitter buffer still plays
            captions = await person.page.inner_text("#captions")
            assert "I am the echo engine" in captions
            assert "You spoke for" in captions
            assert "pixels, brightness" in captions, "the camera's pictures reach the engine"
            heard = await person.heard()
            likeness = alike_in_pieces(heard, say(SENTENCE, RATE_HZ), RATE_HZ)
            other = alike_in_pieces(heard, say(OTHER_SENTENCE, RATE_HZ), RATE_HZ)
            assert likeness > max(0.5, other + 0.2), (likeness, other)
            await person.page.click("#call-button")
            await person.state("ended")
            check_events(await person.events())
            check_order(await person.events())
        assert await settle(before) == before
        assert server.calls == 0


async def test_talking_over_the_answer_silences_it_in_the_page(tmp_path: Path) -> None:
    long = f"{SENTENCE} {SENTENCE} {SENTENCE}"
    length_s = len(say(long, RATE_HZ)) / RATE_HZ
    async with running_server() as server:
        microphone = script(10.0, long, 3.5, "Stop it please, stop it now.", 20.0)
        async with visit(server, microphone, tmp_path) as person:
            await person.start()
            await person.event("output_audio_buffer.cleared")
            truncated = await person.event("conversation.item.truncated")
            played_s = int(str(truncated["audio_end_ms"])) / 1000
            assert 0.2 < played_s < length_s - 1
            await person.event("output_audio_buffer.started", count=3)
            # Greeting and the answer's beginning; the answer to the interruption just starts.
            loud = loud_s(await person.heard(), RATE_HZ)
            assert loud < 4.7 + played_s + 1.0
            assert await person.page.query_selector("#captions [data-interrupted]")
            check_order(await person.events())


async def test_the_server_hangs_up_and_the_page_says_so(tmp_path: Path) -> None:
    async with running_server() as server:
        before = Footprint.now()
        async with visit(server, script(20.0), tmp_path) as person:
            await person.start()
            await server.end_calls()
            await person.state("ended")
        assert await settle(before) == before


async def test_a_browser_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    async with running_server(["calls.return_s=0"]) as server:
        before = Footprint.now()
        async with visit(server, script(20.0), tmp_path) as person:
            await person.start()
            assert server.calls == 1
        # The server notices after seconds, more of them where the machine is busy.
        for _ in range(800):
            if not server.calls:
                break
            await asyncio.sleep(0.05)
        assert server.calls == 0
        assert await settle(before) == before
