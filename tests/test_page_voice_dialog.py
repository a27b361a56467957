"""A voice is added on the page: recorded or chosen, checked, named, consented to, sent."""

import asyncio
import io
import wave
from typing import Any

import pytest
from playwright.async_api import FilePayload

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.server import able_models
from tests.web_page.voices import DRIVEN_MICROPHONE, ScriptedVoices, built_in, report, tone_wav

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

SPEAKING = able_models(text_to_speech=True, voices=["slt"])
OPEN = "document.getElementById('voice-dialog').open"
LIVE_TRACKS = """window.farEnd.streams.flatMap((each) => each.getTracks())
  .filter((track) => track.readyState === 'live').length"""
DROP = """(() => {
  const transfer = new DataTransfer();
  transfer.items.add(new File(['RIFF'], 'talk.wav', { type: 'audio/wav' }));
  const drop = new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.getElementById('voice-reading').dispatchEvent(drop);
})()"""
URLS = Look(
    preamble="""(() => {
  window.urls = new Set();
  const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
  URL.createObjectURL = (blob) => { const url = make(blob); window.urls.add(url); return url; };
  URL.revokeObjectURL = (url) => { window.urls.delete(url); revoke(url); };
})()"""
)


def _file(name: str = "me.wav", type_: str = "audio/wav") -> FilePayload:
    return FilePayload(name=name, mimeType=type_, buffer=tone_wav())


def _shelf(**fields: Any) -> ScriptedVoices:
    return ScriptedVoices(listed=built_in("Slt"), **fields)


async def _open_dialog(opened: OpenPage) -> None:
    await opened.page.click("#settings summary")
    await opened.page.click("#voice-add")


async def _record(opened: OpenPage) -> None:
    await opened.page.click("#voice-record-button")
    await opened.shows('#voice-record-button[data-state="recording"]')


async def _check(opened: OpenPage, verdict: str) -> None:
    await opened.page.click("#voice-save")
    await opened.shows(f'#voice-report[data-verdict="{verdict}"]')


async def test_a_recording_is_listened_to_checked_and_saved_and_its_voice_picked() -> None:
    async with open_page(URLS, models=SPEAKING, voices=_shelf()) as opened:
        page, voices = opened.page, opened.server.voices
        await _open_dialog(opened)
        assert await page.is_disabled("#voice-save"), "there is nothing to check"
        await _record(opened)
        left_s = "Number.parseInt(document.getElementById('voice-timer').textContent)"
        await opened.until(f"{left_s} <= 11")
        await page.click("#voice-record-button")
        await opened.shows('#voice-preview[data-filled="yes"]')
        assert await page.evaluate(LIVE_TRACKS) == 0, "the microphone is given back"
        await opened.until("document.getElementById('voice-preview').duration >= 4")
        assert (voices.checked, voices.added) == ([], []), "nothing is sent unasked"
        await _check(opened, "ok")
        name, data = voices.checked[0]["audio_sample"]
        assert name == "recording.wav"
        with wave.open(io.BytesIO(data)) as sound:
            assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
            assert 4 <= sound.getnframes() / sound.getframerate() < 15
            assert any(sound.readframes(sound.getnframes())), "the made-up microphone beeps"
        await page.fill("#voice-name", "  Anna ")
        await page.check("#voice-consent")
        await page.click("#voice-save")
        await opened.until("document.getElementById('setting-voice').value === 'anna'")
        (sent,) = voices.added
        assert sent["name"] == "Anna"
        assert sent["language"] == "en"
        assert "permission to clone this voice" in sent["consent"]
        assert sent["audio_sample"] == (name, data), "what was checked"
        assert not await page.evaluate(OPEN)
        await opened.until("window.urls.size === 0")
        assert await page.inner_text("#voice-note") == "“Anna” was added."
        assert '"voice":"anna"' in str(
            await page.evaluate("localStorage.getItem('voice-agent.settings')")
        )


async def test_the_chosen_microphone_is_asked_for_as_it_hears() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        await opened.page.evaluate("localStorage.setItem('voice-agent.audioinput', 'mic-2')")
        await _open_dialog(opened)
        await opened.page.click("#voice-record-button")
        await opened.shows('#voice-record-button[data-state="recording"]')
        (wanted,) = await opened.page.evaluate("window.farEnd.wanted")
        assert wanted["audio"] == {
            "echoCancellation": False,
            "noiseSuppression": False,
            "autoGainControl": False,
            "channelCount": 1,
            "deviceId": "mic-2",
        }
        level = "Number(document.getElementById('voice-meter').getAttribute('aria-valuenow'))"
        await opened.until(f"{level} > 10")
        await opened.page.keyboard.press("Escape")
        assert not await opened.page.evaluate(OPEN)
        await opened.until(f"{LIVE_TRACKS} === 0")


async def test_closing_while_the_browser_asks_gives_the_microphone_back() -> None:
    gate = """const lent = navigator.mediaDevices.getUserMedia;
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((go) => (window.allow = go));
        return lent(wanted);
      };"""
    look = Look(preamble=f"if (navigator.mediaDevices) {{ {gate} }}")
    async with open_page(look, models=SPEAKING, voices=_shelf()) as opened:
        await _open_dialog(opened)
        await opened.page.click("#voice-record-button")
        await opened.until("window.allow !== undefined")
        await opened.page.click("#voice-close")
        await opened.page.evaluate("window.allow()")
        await opened.until("window.farEnd.streams.length === 1")
        await opened.until(f"{LIVE_TRACKS} === 0")


async def test_a_recording_ends_by_itself_and_one_that_is_too_short_is_not_kept() -> None:
    look = Look(preamble=DRIVEN_MICROPHONE)
    async with open_page(look, models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        await _record(opened)
        await page.evaluate("window.hear(2.9)")
        await page.click("#voice-record-button")
        await opened.shows('#voice-take-note[data-tone="bad"]')
        assert "at least 3 s of speech are needed" in await page.inner_text("#voice-take-note")
        assert await page.is_disabled("#voice-save")
        await _record(opened)
        await page.evaluate("window.hear(14.9)")
        assert await page.inner_text("#voice-timer") == "1 s left"
        assert await page.evaluate(LIVE_TRACKS) == 1
        await page.evaluate("window.hear(0.2)")
        await opened.shows('#voice-preview[data-filled="yes"]')
        assert "Recorded 15.0 s" in await page.inner_text("#voice-take-note")
        assert await page.evaluate(LIVE_TRACKS) == 0


async def test_a_blocked_microphone_is_said() -> None:
    deny = """navigator.mediaDevices && (navigator.mediaDevices.getUserMedia = async () => {
      throw new DOMException('no', 'NotAllowedError'); })"""
    async with open_page(Look(preamble=deny), models=SPEAKING, voices=_shelf()) as opened:
        await _open_dialog(opened)
        await opened.page.click("#voice-record-button")
        await opened.shows('#voice-take-note[data-tone="bad"]')
        assert "microphone is blocked" in await opened.page.inner_text("#voice-take-note")
        assert await opened.page.inner_text("#voice-record-button") == "Record"


async def test_the_text_to_read_is_in_the_language_of_the_voice() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        await _open_dialog(opened)
        assert "river" in await opened.page.inner_text("#voice-reading")
        await opened.page.select_option("#voice-language", "zh")
        assert "河边" in await opened.page.inner_text("#voice-reading")
        assert await opened.page.get_attribute("#voice-reading", "lang") == "zh"
        await opened.page.select_option("#voice-language", "")
        assert "in your language" in await opened.page.inner_text("#voice-reading")


async def test_what_was_found_is_said_in_words_and_a_refused_recording_is_not_saved() -> None:
    found = report(
        ("noisy", "refused", "the speech is only 6 dB louder"),
        ("low_rate", "warning", "at 8000 Hz it lacks the upper half"),
        accepted=False,
    )
    async with open_page(URLS, models=SPEAKING, voices=_shelf(report=found)) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await _check(opened, "failing")
        rows = (
            "[...document.querySelectorAll('#voice-findings li')].map((each) => each.textContent)"
        )
        assert await page.evaluate(rows) == [
            "To be mended: The speech is only 6 dB louder. "
            "Choose a quieter room, and come closer to the microphone.",
            "Could be better: At 8000 Hz it lacks the upper half.",
        ]
        assert await page.is_disabled("#voice-save")
        opened.server.voices.report = report(("quiet", "warning", "it is very quiet"))
        await page.set_input_files("#voice-file-input", [_file("again.wav")])
        assert await page.get_attribute("#voice-report", "data-verdict") == ""
        await _check(opened, "warning")
        assert await page.inner_text("#voice-save") == "Save the voice"
        assert [each["audio_sample"][0] for each in opened.server.voices.checked] == [
            "me.wav",
            "again.wav",
        ]
        await page.click("#voice-cancel")
        await opened.until("window.urls.size === 0")
        assert opened.server.voices.added == []


async def test_without_a_name_or_consent_nothing_is_saved() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await _check(opened, "ok")
        await page.click("#voice-save")
        assert await page.inner_text("#voice-problem") == "Give the voice a name."
        assert await page.evaluate("document.activeElement.id") == "voice-name"
        await page.keyboard.type("Anna")
        await page.keyboard.press("Enter")
        assert "Without consent" in await page.inner_text("#voice-problem")
        assert await page.evaluate("document.activeElement.id") == "voice-consent"
        assert opened.server.voices.added == []
        await page.keyboard.press("Space")
        await page.click("#voice-save")
        await opened.until(f"!{OPEN}")
        assert len(opened.server.voices.added) == 1


async def test_an_upload_shows_how_far_it_is_and_can_be_given_up() -> None:
    shelf = _shelf(gate=asyncio.Event())
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await page.click("#voice-save")
        words = "document.getElementById('voice-progress-words').textContent"
        await opened.until(f"{words} === 'Sent: the server measures it…'")
        assert await page.is_visible("#voice-progress")
        assert await page.is_disabled("#voice-name")
        await page.click("#voice-cancel")
        await opened.until("!document.getElementById('voice-progress').offsetParent")
        assert await page.evaluate(OPEN), "only the sending was given up"
        assert await page.inner_text("#voice-problem") == ""
        shelf.gate.set()
        await _check(opened, "ok")


async def test_what_the_server_refuses_is_said_in_its_words() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file()])
        await _check(opened, "ok")
        await page.fill("#voice-name", "Anna")
        await page.check("#voice-consent")
        opened.server.voices.refuse = (400, "there are 64 voices already; delete one first")
        await page.click("#voice-save")
        await opened.until("document.getElementById('voice-problem').textContent !== ''")
        said = await page.inner_text("#voice-problem")
        assert said == "There are 64 voices already; delete one first."
        assert await page.evaluate(OPEN), "nothing of it is lost"
        opened.server.voices.refuse = None
        await page.click("#voice-save")
        await opened.until("document.getElementById('setting-voice').value === 'anna'")


async def test_a_file_can_be_dropped_and_what_is_no_sound_is_not_taken() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_dialog(opened)
        await page.set_input_files("#voice-file-input", [_file("cv.pdf", "application/pdf")])
        assert "no recording" in await page.inner_text("#voice-take-note")
        assert await page.is_disabled("#voice-save")
        await page.click('label:has(input[value="record"])')
        await page.evaluate(DROP)
        assert await page.is_checked('input[value="file"]')
        assert "talk.wav" in await page.inner_text("#voice-take-note")
        assert await page.is_enabled("#voice-save")


async def test_in_a_call_only_a_file_can_be_used_and_keys_mean_nothing() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await opened.call()
        await _open_dialog(opened)
        assert await page.is_disabled("#voice-record-button")
        assert "Hang up to record" in await page.inner_text("#voice-take-note")
        await page.focus("#voice-cancel")
        await page.keyboard.press("m")
        assert await page.get_attribute("#mute", "aria-pressed") == "false"
        await page.evaluate("window.farEnd.close()")
        await opened.until("!document.getElementById('voice-record-button').disabled")


async def test_the_dialog_is_worked_with_the_keyboard_alone() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await page.click("#settings summary")
        await page.focus("#voice-add")
        await page.keyboard.press("Enter")
        order = []
        for _ in range(4):
            await page.keyboard.press("Tab")
            order.append(
                await page.evaluate("document.activeElement.id || document.activeElement.name")
            )
        assert order == ["voice-source", "voice-language", "voice-record-button", "voice-name"]
        await page.keyboard.press("Escape")
        assert await page.evaluate("document.activeElement.id") == "voice-add"
