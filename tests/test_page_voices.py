"""Which voice speaks: listed, chosen, remembered, sent, refused, heard and deleted on the page."""

from typing import Any

import pytest

from tests.web_page.browser import IN_ONE_LOOP, OpenPage, open_page
from tests.web_page.server import able_models, echo_models
from tests.web_page.voices import ScriptedVoices, built_in, tone_wav, voice

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

SPEAKING = able_models(text_to_speech=True, voices=["slt", "kal"])
UPDATES = "window.farEnd.received.filter((event) => event.type === 'session.update')"
NOTE = "document.getElementById('voice-note').textContent"
ACK = ".field:has(#setting-voice) [data-ack]"
GROUPS = """[...document.querySelectorAll('#setting-voice optgroup')]
  .map((each) => [each.label, each.textContent])"""
SPOKE = {"type": "output_audio_buffer.started", "response_id": "r1"}


def _shelf(*voices: dict[str, Any]) -> ScriptedVoices:
    """Two built-in voices, told after those that were added."""
    return ScriptedVoices(listed=[*voices, *built_in("Slt", "Kal")])


def _session(name: str) -> dict[str, Any]:
    return {"id": "sess_1", "audio": {"output": {"voice": name}}}


async def _open_settings(opened: OpenPage) -> None:
    await opened.page.click("#settings summary")
    await opened.until("document.querySelectorAll('#setting-voice option').length > 1")


async def _noted(opened: OpenPage, text: str) -> None:
    await opened.until(f"{NOTE} === {text!r}")


async def _begin_call(opened: OpenPage, name: str) -> None:
    await opened.call()
    await opened.server_says({"type": "session.created", "session": _session(name)})


async def test_without_voices_there_is_nothing_to_choose() -> None:
    async with open_page(models=echo_models()) as opened:
        await opened.page.click("#settings summary")
        assert await opened.page.is_visible("#setting-pictures_per_unit")
        assert await opened.page.inner_text("#settings-summary") == "pictures"
        assert not await opened.page.is_visible("#voice-field")
        assert opened.server.voices.asked == 0


async def test_built_in_voices_come_first_and_the_first_is_shown() -> None:
    async with open_page(models=SPEAKING, voices=_shelf(voice("Anna", language="zh"))) as opened:
        await _open_settings(opened)
        assert await opened.page.evaluate(GROUPS) == [
            ["Built in", "Slt · EnglishKal · English"],
            ["Added here", "Anna · 中文"],
        ]
        assert await opened.page.input_value("#setting-voice") == "slt"
        summary = await opened.page.inner_text("#settings-summary")
        assert summary == "voice, prompt, manners, pictures"
        await opened.call()
        (sent,) = await opened.page.evaluate("window.farEnd.sessions")
        assert "audio" not in sent, "nothing was chosen: the server decides"


async def test_a_chosen_voice_goes_with_the_offer_and_is_remembered() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        await _open_settings(opened)
        await opened.page.select_option("#setting-voice", "kal")
        await opened.page.reload()
        await opened.until("document.getElementById('setting-voice').value === 'kal'")
        await opened.call()
        (sent,) = await opened.page.evaluate("window.farEnd.sessions")
        assert sent["audio"] == {"output": {"voice": "kal"}}


async def test_a_voice_changes_in_a_call_until_the_agent_has_spoken() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_settings(opened)
        await _begin_call(opened, "kal")
        await opened.until("document.getElementById('setting-voice').value === 'kal'")
        await page.select_option("#setting-voice", "slt")
        await opened.until(f"{UPDATES}.length === 1")
        (asked,) = await page.evaluate(UPDATES)
        assert asked["session"] == {"type": "realtime", "audio": {"output": {"voice": "slt"}}}
        await opened.server_says({"type": "session.updated", "session": _session("slt")}, SPOKE)
        await opened.shows(f'{ACK}[data-ack="ok"]')
        await _noted(opened, "Another voice needs a new call.")
        await page.select_option("#setting-voice", "kal")
        await opened.shows(f'{ACK}[data-ack="later"]')
        await _noted(opened, "This call keeps “Slt”: another voice needs a new call.")
        assert len(await page.evaluate(UPDATES)) == 1, "what would be refused is not asked"
        await page.click("#call-button")
        await opened.state("ended")
        await _noted(opened, "")
        await page.click("#call-button")
        await opened.until("window.farEnd.sessions.length === 2")
        sent = await page.evaluate("window.farEnd.sessions[1].audio")
        assert sent == {"output": {"voice": "kal"}}, "in the next call it is"


async def test_a_refusal_because_the_agent_spoke_keeps_the_choice_for_the_next_call() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        await _open_settings(opened)
        await _begin_call(opened, "slt")
        await opened.page.select_option("#setting-voice", "kal")
        await opened.until(f"{UPDATES}.length === 1")
        (asked,) = await opened.page.evaluate(UPDATES)
        error = {"code": "cannot_update_voice", "message": "too late"}
        error["event_id"] = asked["event_id"]
        await opened.server_says({"type": "error", "error": error})
        await opened.shows(f'{ACK}[data-ack="later"]')
        await _noted(opened, "This call keeps “Slt”: another voice needs a new call.")
        assert await opened.page.input_value("#setting-voice") == "kal"


async def test_a_voice_that_has_vanished_falls_back_to_the_first() -> None:
    async with open_page(models=SPEAKING, voices=_shelf(voice("Anna"))) as opened:
        page = opened.page
        await _open_settings(opened)
        await page.select_option("#setting-voice", "anna")
        opened.server.voices.listed = built_in("Slt", "Kal")
        # Twice: the far end begins its session without a voice.
        await _begin_call(opened, "slt")
        await opened.until(f"{UPDATES}.length === 2")
        error = {"code": "invalid_value", "message": "no such voice"}
        for asked in await page.evaluate(UPDATES):
            refused = error | {"event_id": asked["event_id"]}
            await opened.server_says({"type": "error", "error": refused})
        await _noted(opened, "The voice “Anna” is gone: “Slt” speaks instead.")
        assert await page.input_value("#setting-voice") == "slt"
        assert await page.evaluate("localStorage.getItem('voice-agent.settings')") == "{}"


async def test_a_remembered_voice_that_is_gone_is_said() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        kept = "localStorage.setItem('voice-agent.settings', JSON.stringify({ voice: 'anna' }))"
        await opened.page.evaluate(kept)
        await opened.page.reload()
        await _open_settings(opened)
        await _noted(opened, "The voice “anna” is gone: “Slt” speaks instead.")
        await opened.call()
        assert "audio" not in (await opened.page.evaluate("window.farEnd.sessions"))[0]


async def test_a_voice_being_prepared_is_asked_for_until_it_is_ready_and_then_sent() -> None:
    shelf = _shelf(voice("Anna", status="preparing"))
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        page = opened.page
        kept = "localStorage.setItem('voice-agent.settings', JSON.stringify({ voice: 'anna' }))"
        await page.evaluate(kept)
        await page.reload()
        await _open_settings(opened)
        assert await page.evaluate("document.querySelector('option[value=anna]').disabled")
        await _noted(opened, "“Anna” is being prepared. Until it is ready, “Slt” speaks.")
        assert await page.is_disabled("#voice-listen")
        await _begin_call(opened, "slt")
        assert "audio" not in (await page.evaluate("window.farEnd.sessions"))[0]
        shelf.listed = [voice("Anna"), *built_in("Slt", "Kal")]
        await opened.until(f"{UPDATES}.length === 1")
        (asked,) = await page.evaluate(UPDATES)
        assert asked["session"]["audio"] == {"output": {"voice": "anna"}}
        assert not await page.evaluate("document.querySelector('option[value=anna]').disabled")


async def test_a_voice_that_failed_says_why_and_is_not_sent() -> None:
    failed = voice("Anna", status="failed", error="no speech could be found in it")
    async with open_page(models=SPEAKING, voices=_shelf(failed)) as opened:
        await _open_settings(opened)
        await opened.page.select_option("#setting-voice", "anna")
        said = (
            "“Anna” could not be prepared: No speech could be found in it. Meanwhile, “Slt” speaks."
        )
        await _noted(opened, said)
        assert await opened.page.is_enabled("#voice-delete")
        await opened.call()
        assert "audio" not in (await opened.page.evaluate("window.farEnd.sessions"))[0]


async def test_where_the_list_cannot_be_had_the_ids_of_the_engine_do() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        await opened.page.route("**/v1/audio/voices", lambda route: route.fulfill(status=500))
        await opened.page.reload()
        await _open_settings(opened)
        options = (
            "[...document.querySelectorAll('#setting-voice option')].map((each) => each.value)"
        )
        assert await opened.page.evaluate(options) == ["slt", "kal"]
        assert "could not be asked for" in await opened.page.inner_text("#voice-note")


PLAYED = """(() => {
  window.played = [];
  window.revoked = [];
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () {
    if (this.src) window.played.push(this.src);
    return play.call(this);
  };
  const revoke = URL.revokeObjectURL;
  URL.revokeObjectURL = (url) => { window.revoked.push(url); revoke.call(URL, url); };
})()"""
PRESSED = "document.getElementById('voice-listen').getAttribute('aria-pressed')"


async def test_listen_plays_what_the_server_reads_in_that_voice() -> None:
    async with open_page(models=SPEAKING, voices=_shelf(voice("Anna", language="zh"))) as opened:
        page = opened.page
        await page.evaluate(PLAYED)
        await _open_settings(opened)
        await page.select_option("#setting-voice", "anna")
        await page.click("#voice-listen")
        await opened.until("window.played.length === 1 && window.revoked.length === 1")
        assert await page.evaluate("window.revoked[0] === window.played[0]")
        assert await page.evaluate(PRESSED) == "false", "it ended by itself"
        assert opened.server.voices.spoken == [
            {
                "model": "minicpm-o",
                "voice": "anna",
                "input": "你好，这就是我的声音。你想聊点什么呢？",
                "language": "zh",
                "response_format": "mp3",
            }
        ]
        opened.server.voices.refuse = (503, "the engine is busy")
        await page.click("#voice-listen")
        await _noted(opened, "The engine is busy. Try again in a few seconds.")
        assert await page.evaluate(PRESSED) == "false"
        await opened.call()
        assert await page.is_disabled("#voice-listen"), "the call has the model"


async def test_a_second_press_ends_the_sample() -> None:
    shelf = _shelf()
    shelf.sample = tone_wav(60)
    async with open_page(models=SPEAKING, voices=shelf) as opened:
        await opened.page.evaluate(PLAYED)
        await _open_settings(opened)
        await opened.page.click("#voice-listen")
        await opened.until("window.played.length === 1")
        assert await opened.page.evaluate(PRESSED) == "true"
        await opened.page.click("#voice-listen")
        await opened.until(f"{PRESSED} === 'false' && window.revoked.length === 1")


async def test_without_speech_of_texts_there_is_nothing_to_hear_or_to_add() -> None:
    models = able_models(voices=["slt", "kal"])
    async with open_page(models=models, voices=_shelf()) as opened:
        await _open_settings(opened)
        assert await opened.page.is_visible("#setting-voice")
        for button in ("#voice-listen", "#voice-add", "#voice-delete"):
            assert not await opened.page.is_visible(button)


async def test_added_voices_are_deleted_after_a_question_and_built_in_ones_stay() -> None:
    async with open_page(models=SPEAKING, voices=_shelf(voice("Anna"))) as opened:
        page = opened.page
        await _open_settings(opened)
        assert await page.is_disabled("#voice-delete"), "Slt is built in"
        for why in ("title", "aria-description"):
            said = await page.get_attribute("#voice-delete", why)
            assert said is not None and said.startswith("Built-in voices cannot be deleted")
        await page.select_option("#setting-voice", "anna")
        assert await page.get_attribute("#voice-delete", "title") == ""
        await page.click("#voice-delete")
        assert "“Anna”" in await page.inner_text("#voice-delete-title")
        await page.keyboard.press("Escape")
        await page.click("#voice-delete")
        await page.keyboard.press("Enter")
        assert not await page.is_visible("#voice-delete-dialog"), "Enter means: keep it"
        assert opened.server.voices.deleted == []
        await page.click("#voice-delete")
        await page.click("#voice-delete-dialog button.danger")
        await _noted(opened, "“Anna” was deleted.")
        assert opened.server.voices.deleted == ["anna"]
        assert await page.input_value("#setting-voice") == "slt"
        assert await page.evaluate("document.querySelector('option[value=anna]')") is None


async def test_back_to_the_defaults_means_the_first_voice() -> None:
    async with open_page(models=SPEAKING, voices=_shelf()) as opened:
        await _open_settings(opened)
        await opened.page.select_option("#setting-voice", "kal")
        await _begin_call(opened, "kal")
        await opened.page.click("#settings-reset")
        await opened.until(f"{UPDATES}.some((each) => each.session.audio?.output.voice === 'slt')")
