"""What becomes of a take in the dialog: it is not lost by a key, nor judged by another's report."""

import asyncio
import base64

import numpy as np
import pytest
from playwright.async_api import FilePayload

from tests.test_page_chat import CHAT_END
from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.server import able_models
from tests.web_page.voices import DRIVEN_MICROPHONE, ScriptedVoices, built_in, report, tone_wav

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

SPEAKING = able_models(text_to_speech=True, voices=["slt"])
OPEN = "document.getElementById('voice-dialog').open"
PRESSED = "document.getElementById('voice-listen').getAttribute('aria-pressed')"
PLAYING = """(() => {
  window.playing = new Set();
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    window.playing.add(this);
    return play.call(this);
  };
  window.contexts = [];
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (when) {
    window.contexts.push(this.context);
    return start.call(this, when);
  };
})();"""
PICK = """(name) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File(['RIFF'], name, { type: 'audio/wav' }));
  const picker = document.getElementById('voice-file-input');
  picker.files = transfer.files;
  picker.dispatchEvent(new Event('change'));
}"""
REFUSED = "this is a PDF; supported are WAV, MP3, FLAC, Ogg and many others"


def _file(name: str = "me.wav") -> FilePayload:
    return FilePayload(name=name, mimeType="audio/wav", buffer=tone_wav())


def _shelf() -> ScriptedVoices:
    return ScriptedVoices(listed=built_in("Slt"))


async def _open_dialog(opened: OpenPage) -> None:
    await opened.page.click("#settings summary")
    await opened.page.click("#voice-add")


async def test_escape_and_close_ask_before_a_take_is_thrown_away() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await page.fill("#voice-name", "Anna")
        # More often than a browser lets a dialog refuse.
        for _ in range(3):
            await page.keyboard.press("Escape")
            assert await page.is_visible("#voice-leave") and await page.evaluate(OPEN)
            assert await page.evaluate("document.activeElement.id") == "voice-leave-no"
            await page.keyboard.press("Escape")
            assert not await page.is_visible("#voice-leave") and await page.evaluate(OPEN)
        await page.click("#voice-close")
        await page.click("#voice-leave-no")
        assert await page.input_value("#voice-name") == "Anna", "nothing is lost"
        assert await page.is_enabled("#voice-save")
        await page.click("#voice-close")
        await page.click("#voice-leave-yes")
        assert not await page.evaluate(OPEN)
        await page.click("#voice-add")
        assert not await page.is_visible("#voice-leave") and await page.is_visible("#voice-cancel")
        await page.keyboard.press("Escape")
        assert not await page.evaluate(OPEN), "there is nothing to be lost"


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_the_question_fits_the_screen(width: int) -> None:
    async with open_page(Look(width, 700), models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await page.keyboard.press("Escape")
        fits = """(() => {
          const dialog = document.getElementById('voice-dialog').getBoundingClientRect();
          return ['words', 'no', 'yes'].every((part) => {
            const box = document.getElementById(`voice-leave-${part}`);
            const { left, right, bottom } = box.getBoundingClientRect();
            const whole = box.scrollWidth <= Math.ceil(right - left);
            return whole && left >= dialog.left && right <= dialog.right && bottom <= dialog.bottom;
          });
        })()"""
        assert await page.evaluate(fits)


async def test_the_answer_about_another_recording_is_ignored() -> None:
    shelf = _shelf()
    shelf.gate = asyncio.Event()
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await page.click("#voice-save")
        await opened.shows('#voice-dialog[data-busy="check"]')
        await page.evaluate(PICK, "other.wav")
        shelf.gate.set()
        await opened.until("document.getElementById('voice-dialog').dataset.busy === ''")
        assert "other.wav" in await page.inner_text("#voice-take-note")
        assert await page.get_attribute("#voice-report", "data-verdict") == ""
        assert await page.inner_text("#voice-save") == "Check the recording"


async def test_the_verdict_is_scrolled_into_view() -> None:
    shelf = _shelf()
    shelf.report = report(("quiet", "warning", "it is very quiet"))
    async with open_page(Look(390, 844), models=SPEAKING, voices=shelf) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await page.evaluate("document.getElementById('voice-body').scrollTop = 0")
        await page.click("#voice-save")
        await opened.shows('#voice-report[data-verdict="warning"]')
        inside = """(() => {
          const body = document.getElementById('voice-body').getBoundingClientRect();
          const verdict = document.getElementById('voice-report').getBoundingClientRect();
          return verdict.top >= body.top - 1 && verdict.bottom <= body.bottom + 1;
        })()"""
        await opened.until(inside)


async def test_a_refused_type_of_file_is_one_sentence_and_the_formats_are_folded_away() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        assert not await page.is_visible("#voice-files")
        await page.set_input_files("#voice-file-input", [_file()])
        opened.server.voices.refuse = (400, REFUSED)
        opened.server.voices.refusal_code = "unsupported_media"
        await page.click("#voice-save")
        await opened.shows("#voice-files")
        assert await page.inner_text("#voice-problem") == "This is a PDF, no recording."
        assert not await page.is_visible("#voice-files-words")
        await page.click("#voice-files summary")
        said = await page.inner_text("#voice-files-words")
        assert said == "WAV, MP3, FLAC, Ogg and many others."
        await page.set_input_files("#voice-file-input", [_file()])
        assert not await page.is_visible("#voice-files"), "it was about the other file"


async def test_the_dialog_silences_a_voice_s_sample() -> None:
    shelf = _shelf()
    shelf.sample = tone_wav(60)
    async with open_page(Look(preamble=PLAYING), models=SPEAKING, voices=shelf) as opened:
        page = opened.page
        await page.click("#settings summary")
        await page.click("#voice-listen")
        await opened.until("[...window.playing].some((each) => each.currentTime > 0)")
        assert await page.evaluate(PRESSED) == "true"
        await page.click("#voice-add")
        assert await page.evaluate("[...window.playing].every((each) => each.paused)")
        assert await page.evaluate(PRESSED) == "false"


async def test_the_dialog_and_a_recording_silence_what_is_read_aloud() -> None:
    look = Look(preamble=PLAYING + CHAT_END)
    async with open_page(look, models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await page.click("#tab-chat")
        await page.check("#read-aloud")
        await page.fill("#chat-form textarea", "Aloud?")
        await page.keyboard.press("Enter")
        await opened.until("window.chatEnd.asked.length === 1")
        data = base64.b64encode(np.full(60 * 24_000, 8192, "<i2").tobytes()).decode()
        delta = {"content": "Well.", "audio": {"id": "audio_1", "data": data}}
        await page.evaluate("delta => window.chatEnd.delta(delta)", delta)
        await opened.until("window.contexts.length === 1")
        await _open_dialog(opened)
        await opened.until("window.contexts[0].state === 'closed'")
        # What comes of the answer later is written, and not heard.
        await page.evaluate("delta => window.chatEnd.delta(delta)", delta)
        await page.evaluate("window.chatEnd.finish()")
        await opened.until("document.querySelectorAll('.message .copy').length > 0")
        assert await page.evaluate("window.contexts.length") == 1


async def test_a_take_of_three_seconds_is_long_enough() -> None:
    async with open_page(
        Look(preamble=DRIVEN_MICROPHONE), models=SPEAKING, voices=_shelf()
    ) as opened:
        page = opened.page
        await _open_dialog(opened)
        words = await page.inner_text("#voice-fields > .field-note >> nth=0")
        assert "5 to 15 seconds are best; at least 3 s of speech are needed" in words
        await page.click("#voice-record-button")
        await opened.shows('#voice-record-button[data-state="recording"]')
        await page.evaluate("window.hear(3)")
        await page.click("#voice-record-button")
        await opened.shows('#voice-preview[data-filled="yes"]')
        assert await page.is_enabled("#voice-save")
