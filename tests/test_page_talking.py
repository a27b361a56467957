"""The page on the real server, with an engine that says what it was told: nothing in between is
played."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from agent.api.loading import Started
from agent.api.server import make_app
from agent.config import load_config
from agent.engines import Choice
from tests.rig.sound import write_wav
from tests.rig.talking_engine import TalkingEngine
from tests.test_page_text import DROPPED, PASTE, noise
from tests.web_page.browser import PATIENCE_MS
from tests.web_page.chromium import start_chromium

pytestmark = pytest.mark.browser


@asynccontextmanager
async def _page(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    """The page of a server whose engine talks; its microphone is silent."""
    settings = ["server.port=0", "rtc.addresses=127.0.0.1", "engine.name=echo"]
    started = Started(Choice("talking", "it was asked for"), TalkingEngine(slots=2))
    runner = web.AppRunner(make_app(load_config(None, {}, settings), started), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    silence = tmp_path_factory.mktemp("microphone") / "silence.wav"
    write_wav(silence, np.zeros(48_000, np.float32), 48_000)
    try:
        async with async_playwright() as driver:
            spoken = f"--use-file-for-fake-audio-capture={silence}"
            browser = await start_chromium(driver, spoken)
            page = await browser.new_page()
            faults: list[str] = []
            page.on("pageerror", lambda error: faults.append(str(error)))
            await page.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            await page.wait_for_selector('#engine[data-engine="talking"]')
            yield page
            await browser.close()
            assert faults == []
    finally:
        await runner.cleanup()


async def _said(page: Page, words: str) -> None:
    """Wait until the agent has said `words`."""
    line = page.locator('.line[data-speaker="agent"]', has_text=words)
    await line.first.wait_for(timeout=PATIENCE_MS)


async def _state(page: Page, state: str) -> None:
    await page.wait_for_selector(f'#state[data-state="{state}"]', timeout=PATIENCE_MS)


async def test_what_is_typed_set_paused_and_held_reaches_the_engine(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with _page(tmp_path_factory) as page:
        assert "captions only" in await page.inner_text("#captions-only")
        await page.click("#settings summary")
        await page.fill("#setting-instructions", "Be brief.")
        await page.click("#call-button")
        await _said(page, "Hello, I answer in captions. I follow: Be brief.")
        await page.fill("#typing textarea", "How are you?")
        await page.keyboard.press("Enter")
        await _said(page, "You typed: How are you?")
        typed = page.locator('.line[data-speaker="user"] p')
        assert await typed.all_inner_texts() == ["How are you?"]
        await page.select_option("#setting-mode", "half_duplex")
        await _said(page, "Changed: mode half_duplex.")
        await page.wait_for_selector('.field:has(#setting-mode) [data-ack="ok"]')
        await page.click("#pause")
        await _state(page, "paused")
        await page.click("#pause")
        await _said(page, "I am back.")
        await _state(page, "listening")
        await page.click("#listen")
        await page.click("#listen")
        await _said(page, "I only listened.")
        await page.select_option("#setting-language", "zh")
        await _said(page, "Changed: language zh.")
        await page.click("#call-button")
        await _state(page, "ended")
        await page.click("#call-button")
        await _said(page, "你好，我用字幕回答。")
        assert not await page.is_visible("#problem")


async def test_a_chat_with_a_picture_is_answered_and_its_reasoning_shown(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with _page(tmp_path_factory) as page:
        await page.click("#tab-chat")
        await page.check("#thinking")
        picture = base64.b64encode(noise(20, 10)["buffer"]).decode()
        await page.evaluate(PASTE % (DROPPED, "#chat-log"), picture)
        await page.wait_for_selector("#chat-form .attachments img")
        await page.fill("#chat-form textarea", "What is this?")
        await page.keyboard.press("Enter")
        answer = page.locator('.message[data-role="agent"][data-state=""]')
        await answer.wait_for(timeout=PATIENCE_MS)
        said = await answer.locator(".prose").inner_text()
        assert said == "user: 1 picture(s), 0 recording(s), 0 film(s); the words: What is this?"
        thought = await answer.locator(".reasoning p").text_content()
        assert thought == "First I count what there is."
        await page.fill("#chat-form textarea", "And now?")
        await page.keyboard.press("Enter")
        await page.locator(".message", has_text="user/assistant/user: 1 picture(s)").wait_for()
