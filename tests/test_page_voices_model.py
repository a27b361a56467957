"""A voice on the page of the real server: recorded, checked, kept, heard, spoken with, deleted."""

import asyncio
from pathlib import Path

import pytest

from agent.engines import VoiceSettings
from tests.rig.stored_voices import store_voice
from tests.rig.tiny_checkpoint import shared_checkpoint
from tests.rig.tiny_vocoder import write_token2wav
from tests.test_browser_call import Visit, script, visit
from tests.test_browser_model import serving
from tests.web_page.browser import PATIENCE_MS

pytestmark = pytest.mark.browser

SPOKEN = script(
    0.3,
    "The river runs along the old town, and in the evening the lights come on one after another. "
    "Do you remember how quiet it was when we walked there, and how far we could see?",
)
PLAYED = """(() => {
  window.played = [];
  window.sounds = [];
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    if (this.src) this.addEventListener('playing', () => window.played.push(this.duration));
    return play.call(this);
  };
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (when) {
    window.sounds.push(this.buffer.length);
    return start.call(this, when);
  };
})()"""


async def _option(visitor: Visit, selector: str) -> None:
    """Wait for an option of the picker, which is never visible by itself."""
    await visitor.page.wait_for_selector(
        f"#setting-voice option{selector}", state="attached", timeout=PATIENCE_MS
    )


async def _until(visitor: Visit, condition: str) -> None:
    """Wait until the JavaScript expression `condition` is true."""
    for _ in range(1000):
        if await visitor.page.evaluate(condition):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"never came true: {condition}")


async def _add(visitor: Visit) -> None:
    page = visitor.page
    await page.click("#voice-add")
    await page.click("#voice-record-button")
    left_s = "Number.parseInt(document.getElementById('voice-timer').textContent)"
    await _until(visitor, f"{left_s} <= 8")
    await page.click("#voice-record-button")
    await page.wait_for_selector('#voice-preview[data-filled="yes"]', timeout=PATIENCE_MS)
    await page.click("#voice-save")
    await page.wait_for_selector('#voice-save[data-next="save"]', timeout=PATIENCE_MS)
    await page.fill("#voice-name", "Robot")
    await page.check("#voice-consent")
    await page.click("#voice-save")
    await page.wait_for_selector("#voice-dialog", state="hidden", timeout=PATIENCE_MS)


async def test_a_voice_is_added_heard_read_with_and_deleted(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    (tmp_path / "ref_audio").mkdir()
    store_voice(tmp_path / "voices", "anna")
    voice = VoiceSettings("token2wav", write_token2wav(tmp_path / "voc"), tmp_path / "voices")
    checkpoint = shared_checkpoint(tmp_path_factory)
    async with serving(checkpoint, voice) as server, visit(server, SPOKEN, tmp_path) as visitor:
        page = visitor.page
        await page.evaluate(PLAYED)
        await page.click("#settings summary")
        await _option(visitor, "[value=anna]")
        await _add(visitor)
        await _option(visitor, "[value=robot]:not([disabled])")
        assert await page.input_value("#setting-voice") == "robot"
        kept = tmp_path / "voices" / "robot"
        assert "permission to clone" in (kept / "voice.json").read_text()
        await page.click("#voice-listen")
        await _until(visitor, "window.played.length === 1 && window.played[0] > 0")
        # The tiny model does not know when a text has been read.
        if await page.get_attribute("#voice-listen", "aria-pressed") == "true":
            await page.click("#voice-listen")
        await page.click("#tab-chat")
        await page.check("#read-aloud")
        await page.fill("#chat-form textarea", "Hello")
        await page.keyboard.press("Enter")
        await _until(visitor, "window.sounds.length > 0")
        await page.click("#tab-call")
        await page.click("#call-button")
        created = await visitor.event("session.created")
        assert created["session"]["audio"]["output"]["voice"] == "robot"
        await page.click("#call-button")
        await page.click("#voice-delete")
        await page.click("#voice-delete-dialog .danger")
        await page.wait_for_selector("option[value=robot]", state="detached")
        assert not kept.exists()
