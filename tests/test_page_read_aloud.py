"""Chat answers read aloud: asked for, played as they come without a gap, and silenced."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.test_page_chat import CHAT_END
from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.server import able_models
from tests.web_page.voices import ScriptedVoices, built_in

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

RATE_HZ = 24_000
SPEAKING = able_models(text_to_speech=True, voices=["slt", "kal"])
# Every piece that is handed to the loudspeaker: when it begins, in samples, and how long it is.
STARTED = """(() => {
  window.started = [];
  window.contexts = [];
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (when) {
    const { length, sampleRate } = this.buffer;
    const [first] = this.buffer.getChannelData(0);
    window.started.push({ at: when * sampleRate, length, sampleRate, first });
    if (!window.contexts.includes(this.context)) window.contexts.push(this.context);
    return start.call(this, when);
  };
})();"""
LOOK = Look(preamble=STARTED + CHAT_END)
QUIET = ".message:last-child .quiet"


def _sound(samples: int, level: int = 8192) -> str:
    return base64.b64encode(np.full(samples, level, "<i2").tobytes()).decode()


async def _open_chat(opened: OpenPage) -> None:
    await opened.until("document.querySelectorAll('#setting-voice option').length === 2")
    await opened.page.click("#tab-chat")


async def _ask(opened: OpenPage, text: str, count: int = 1) -> dict[str, Any]:
    await opened.page.fill("#chat-form textarea", text)
    await opened.page.keyboard.press("Enter")
    await opened.until(f"window.chatEnd.asked.length === {count}")
    asked: dict[str, Any] = await opened.page.evaluate("window.chatEnd.asked.at(-1)")
    return asked


async def _sounds(opened: OpenPage, *data: str) -> None:
    deltas = [{"audio": {"id": "audio_1", "data": each}} for each in data]
    await opened.page.evaluate("deltas => deltas.forEach(window.chatEnd.delta)", deltas)


def _shelf() -> ScriptedVoices:
    return ScriptedVoices(listed=built_in("Slt", "Kal"))


async def test_it_is_offered_where_the_engine_reads_texts_and_asked_for_only_when_wanted() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        await opened.page.click("#tab-chat")
        assert not await opened.page.is_visible("#read-aloud")
    async with open_page(LOOK, models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_chat(opened)
        assert "modalities" not in await _ask(opened, "Silently?")
        await page.evaluate("window.chatEnd.delta({ content: 'Yes.' }); window.chatEnd.finish()")
        await opened.shows('#chat-log[aria-busy="false"]')
        await page.click("#settings summary")
        await page.select_option("#setting-voice", "kal")
        await page.check("#read-aloud")
        asked = await _ask(opened, "Aloud?", count=2)
        assert asked["modalities"] == ["text", "audio"]
        assert asked["audio"] == {"voice": "kal", "format": "pcm16"}
        assert asked["stream"] is True
        await page.reload()
        assert await page.is_checked("#read-aloud"), "remembered"


async def test_the_pieces_follow_each_other_to_the_sample() -> None:
    async with open_page(LOOK, models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_chat(opened)
        await page.check("#read-aloud")
        await _ask(opened, "Aloud?")
        await page.evaluate("window.chatEnd.delta({ content: 'It is four.' })")
        await _sounds(opened, _sound(7_000), _sound(333, -8192), _sound(9_001))
        await opened.until("window.started.length === 3")
        first, second, third = await page.evaluate("window.started")
        assert [each["length"] for each in (first, second, third)] == [7_000, 333, 9_001]
        assert second["at"] - first["at"] == pytest.approx(7_000, abs=1e-3)
        assert third["at"] - second["at"] == pytest.approx(333, abs=1e-3)
        assert {each["sampleRate"] for each in (first, second, third)} == {RATE_HZ}
        assert [first["first"], second["first"]] == [0.25, -0.25]
        await page.evaluate("window.chatEnd.finish()")
        await opened.shows(".message .copy")
        assert await page.inner_text(".message:last-child .prose") == "It is four."
        await opened.until("window.contexts[0].state === 'closed'")
        assert not await page.is_visible(QUIET), "all of it was heard"


async def test_that_the_voice_failed_on_the_way_is_said() -> None:
    async with open_page(LOOK, models=SPEAKING, voices=_shelf()) as opened:
        await _open_chat(opened)
        await opened.page.check("#read-aloud")
        await _ask(opened, "Aloud?")
        await opened.page.evaluate("window.chatEnd.delta({ content: 'Well.' })")
        await opened.page.evaluate("window.chatEnd.delta({ voice_agent: { voiced: false } })")
        await opened.page.evaluate("window.chatEnd.finish()")
        await opened.shows(".message-note")
        assert "the rest is only written" in await opened.page.inner_text(".message-note")


async def test_stopping_the_answer_silences_it() -> None:
    async with open_page(LOOK, models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_chat(opened)
        await page.check("#read-aloud")
        await _ask(opened, "Aloud?")
        await page.evaluate("window.chatEnd.delta({ content: 'Well' })")
        await _sounds(opened, _sound(60 * RATE_HZ))
        await opened.until("window.started.length === 1")
        await page.click("#chat-stop")
        await opened.until("window.contexts[0].state === 'closed'")
        assert await page.evaluate("window.chatEnd.aborted") == 1


async def test_what_is_left_of_an_answer_can_be_silenced_and_ends_when_another_begins() -> None:
    async with open_page(LOOK, models=SPEAKING, voices=_shelf()) as opened:
        page = opened.page
        await _open_chat(opened)
        await page.check("#read-aloud")
        for count, silence in enumerate(("press", "ask", "switch", "call"), start=1):
            await _ask(opened, "Aloud?", count)
            await page.evaluate("window.chatEnd.delta({ content: 'Well.' })")
            await _sounds(opened, _sound(60 * RATE_HZ))
            await page.evaluate("window.chatEnd.finish()")
            await opened.shows(QUIET)
            context = f"window.contexts[{count - 1}].state"
            assert await page.evaluate(context) == "running"
            if silence == "press":
                await page.click(QUIET)
            elif silence == "switch":
                await page.uncheck("#read-aloud")
            elif silence == "call":
                await page.click("#tab-call")
                await page.click("#call-button")
            else:
                continue
            await opened.until(f"{context} === 'closed'")
            if silence == "switch":
                assert await page.evaluate("window.contexts[1].state") == "closed"
                await page.check("#read-aloud")
