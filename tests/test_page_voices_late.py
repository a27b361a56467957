"""What the page does when the server was quicker, slower or somebody else's than it thought."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from tests.test_page_voice_dialog import OPEN, _check, _file, _open_dialog
from tests.test_page_voices import NOTE, _noted, _open_settings
from tests.web_page.browser import IN_ONE_LOOP, open_page
from tests.web_page.server import able_models
from tests.web_page.voices import ScriptedVoices, built_in, voice

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

SPEAKING = able_models(text_to_speech=True, voices=["slt", "kal"])
WORDS = "document.getElementById('voice-progress-words').textContent"
OPTIONS = "[...document.querySelectorAll('#setting-voice option')].map((each) => each.value)"
TIMES_OUT = """(() => {
  const real = window.fetch;
  window.fetch = (url, ...more) =>
    String(url).endsWith('/v1/audio/speech')
      ? Promise.reject(new DOMException('signal timed out', 'TimeoutError'))
      : real(url, ...more);
})()"""


class Proxied(ScriptedVoices):
    """Behind something that answers with a page of its own."""

    async def _list(self) -> web.Response:
        return web.Response(text="<!doctype html><p>Sign in</p>", content_type="text/html")


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_save_that_was_given_up_too_late_is_told(is_stored: bool) -> None:
    shelf = ScriptedVoices(listed=built_in("Slt"))
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await _check(opened, "ok")
        await page.fill("#voice-name", "Anna")
        await page.check("#voice-consent")
        shelf.gate = asyncio.Event()
        await page.click("#voice-save")
        await opened.until(f"{WORDS} === 'Sent: the server stores it…'")
        others: list[dict[str, Any]] = [voice("Ben")]
        shelf.listed = [*shelf.listed, *others, *([voice("Anna")] if is_stored else [])]
        await page.click("#voice-cancel")
        await opened.until(f"{OPTIONS}.includes('ben')")
        said = "“Anna” was stored before you gave it up" if is_stored else ""
        problem = "document.getElementById('voice-problem').textContent"
        await opened.until(f"{problem}.startsWith({said!r})")
        assert bool(await page.evaluate(problem)) is is_stored
        assert bool(await page.evaluate(NOTE)) is is_stored
        assert await page.evaluate(OPEN) and "anna" not in shelf.deleted
        shelf.gate.set()


async def test_to_listen_to_a_voice_that_was_deleted_elsewhere_shows_what_there_is() -> None:
    shelf = ScriptedVoices(listed=[voice("Anna"), *built_in("Slt", "Kal")])
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        await _open_settings(opened)
        await opened.page.select_option("#setting-voice", "anna")
        shelf.listed = built_in("Slt", "Kal")
        shelf.refuse = (400, "There is no voice 'anna'; there are: slt, kal.")
        await opened.page.click("#voice-listen")
        await _noted(opened, "The voice “Anna” is gone: “Slt” speaks instead.")
        assert await opened.page.evaluate(OPTIONS) == ["slt", "kal"]
        shelf.refuse = (400, "there is nothing to say")
        await opened.page.click("#voice-listen")
        await _noted(opened, "There is nothing to say.")


async def test_a_server_that_is_slow_is_not_one_that_cannot_be_reached() -> None:
    shelf = ScriptedVoices(listed=built_in("Slt", "Kal"))
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        await _open_settings(opened)
        await opened.page.evaluate(TIMES_OUT)
        await opened.page.click("#voice-listen")
        await opened.until(f"{NOTE}.startsWith('The server takes too long to answer.')")


async def test_a_page_in_place_of_the_list_is_said() -> None:
    async with open_page(models=SPEAKING, voices=Proxied()) as opened:
        await opened.page.click("#settings summary")
        await opened.until(f"{NOTE}.includes('list of voices makes no sense')")
        assert await opened.page.evaluate(OPTIONS) == ["slt", "kal"], "those named at the start"
