"""Axe finds nothing serious on the page: phone and desktop, light and dark, in every state."""

from dataclasses import replace
from typing import Any

import pytest
from playwright.async_api import FilePayload

from tests.test_page_chat import CHAT_END
from tests.test_page_text import noise
from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.node import require_node_module
from tests.web_page.server import able_models
from tests.web_page.voices import (
    DRIVEN_MICROPHONE,
    ScriptedVoices,
    built_in,
    report,
    tone_wav,
    voice,
)

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
both_sizes = pytest.mark.parametrize("size", list(SIZES))
FIND = """async (where) => {
  const { violations } = await axe.run(where, { resultTypes: ['violations'] });
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .flatMap(({ id, nodes }) =>
      nodes.map(({ target, failureSummary }) => `${id}: ${target} ${failureSummary}`));
}"""

SAID: list[dict[str, Any]] = [
    {"type": "output_audio_buffer.started", "response_id": "r1"},
    {"type": "response.output_audio_transcript.delta", "item_id": "a1", "delta": "Hello, it is"},
    {"type": "conversation.item.truncated", "item_id": "a1", "audio_end_ms": 700},
    {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
    {"type": "input_audio_buffer.speech_stopped", "item_id": "u1"},
    {
        "type": "conversation.item.retrieved",
        "item": {"id": "a1", "content": [{"type": "output_audio", "transcript": "Hello, "}]},
    },
    {"type": "voice_agent.echo", "erle_db": 4.0, "delay_ms": 120.0},
    {"type": "voice_agent.latency", "turn": 1, "first_sound_ms": 2500},
]
CODES = (
    "microphone-denied microphone-missing microphone-busy camera-denied camera-missing "
    "screen-denied screen-missing insecure-context server-gone no-slot connection-failed "
    "call-refused browser-too-old server-error"
).split()
SHOW_PROBLEM = """async (code) => {
  const { CallProblem } = await import('./problems.js');
  const { ProblemCard } = await import('./stage.js');
  window.card ??= new ProblemCard(() => undefined);
  window.card.show(new CallProblem(code, { detail: 'too many of them', retryAfterS: 7 }), false);
}"""


def _look(size: str) -> Look:
    # Without motion, so that no half-faded colour is measured.
    return Look(*SIZES[size], reduced_motion=True)


async def _findings(opened: OpenPage, where: str = "html") -> list[str]:
    """What is wrong with the page as it is now, or with its part `where`, in light or dark."""
    page = opened.page
    if not await page.evaluate("'axe' in window"):
        # Evaluated and not added as a <script>: the page's policy forbids that.
        await page.evaluate(require_node_module("axe-core/axe.min.js").read_text())
    # That which is on comes first: to paint all anew takes as long as to look.
    is_dark = await page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    found: list[str] = await page.evaluate(FIND, where)
    await page.emulate_media(color_scheme="light" if is_dark else "dark")
    return found + await page.evaluate(FIND, where)


@both_sizes
async def test_idle_and_connecting(size: str) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size)) as opened:
        assert await _findings(opened) == []
        await opened.page.click("#devices summary")
        assert await _findings(opened) == []
        await opened.page.evaluate("void (window.farEnd.gate = new Promise(() => 0))")
        await opened.page.click("#call-button")
        await opened.state("connecting")
        assert await _findings(opened) == []


@both_sizes
async def test_in_a_call_and_after_it(size: str) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size)) as opened:
        await opened.call()
        await opened.page.click("#camera")
        await opened.server_says(*SAID)
        await opened.shows('[data-check="firstSound"][data-verdict="failing"]')
        await opened.state("speaking")
        assert await _findings(opened) == []
        await opened.page.click("#screen")
        await opened.server_says({"type": "voice_agent.ducked", "turn": 1, "at_ms": 700})
        await opened.shows('#screen[aria-pressed="true"]')
        await opened.shows('.stage[data-ducked="on"]')
        assert await _findings(opened) == []
        await opened.page.click("#mute")
        await opened.shows('#mute[aria-pressed="true"]')
        assert await _findings(opened) == []
        await opened.page.click("#call-button")
        await opened.state("ended")
        assert await _findings(opened) == []


@both_sizes
async def test_each_problem(size: str) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size)) as opened:
        for code in CODES:
            await opened.page.evaluate(SHOW_PROBLEM, code)
            text = await opened.problem(code)
            assert len(text) > 40, "says what happened and what to do"
            # Around the card all is as it was.
            where = "html" if code == CODES[0] else "#problem"
            assert await _findings(opened, where) == [], code


async def _fill_the_call(opened: OpenPage) -> None:
    """Settings open, one of them refused and greyed out; words and a picture about to be sent."""
    page = opened.page
    await page.click("#settings summary")
    await opened.call()
    await page.select_option("#setting-mode", "half_duplex")
    updates = "window.farEnd.received.filter((event) => event.type === 'session.update')"
    await opened.until(f"{updates}.length === 1")
    (asked,) = await page.evaluate(updates)
    error = {"message": "not while it rains", "event_id": asked["event_id"]}
    await opened.server_says({"type": "error", "error": error}, *SAID)
    await page.set_input_files("#typing input[type=file]", [noise(90, 60)])
    await opened.shows("#typing .attachments img")
    await page.fill("#typing textarea", "What is this?")
    await opened.shows('[data-ack="refused"]')


async def _fill_the_chat(opened: OpenPage) -> None:
    """A question with files, its answer with reasoning and code, and one that failed."""
    page = opened.page
    await page.click("#tab-chat")
    sound = FilePayload(name="a rather long name.wav", mimeType="audio/wav", buffer=b"RIFF")
    for text in ("Hello", "And now?"):
        await page.set_input_files("#chat-form input[type=file]", [noise(90, 60), sound])
        await opened.until("document.querySelectorAll('#chat-form .attachments li').length === 2")
        await page.fill("#chat-form textarea", text)
        if text == "Hello":
            await page.keyboard.press("Enter")
            await opened.until("window.chatEnd.stream !== null")
            await page.evaluate("window.chatEnd.delta({ reasoning_content: 'Well.' })")
            await page.evaluate("window.chatEnd.delta({ content: 'So:\\n```\\na = 1\\n```' })")
            await page.click(".reasoning summary")
    await page.evaluate("window.chatEnd.event({ error: { message: 'it stumbled' } })")
    await opened.shows(".message-problem")


@both_sizes
async def test_settings_and_typing_in_a_call(size: str) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size), models=able_models(speech=False)) as opened:
        await _fill_the_call(opened)
        assert await _findings(opened) == []
        await opened.server_says({"type": "voice_agent.state", "state": "paused", "turn": 1})
        await opened.state("paused")
        await opened.page.click("#listen")
        assert await _findings(opened) == []


@both_sizes
async def test_a_chat(size: str) -> None:
    require_node_module("axe-core/axe.min.js")
    look = replace(_look(size), preamble=CHAT_END)
    async with open_page(look, models=able_models()) as opened:
        await opened.page.click("#tab-chat")
        assert await _findings(opened) == []
        await _fill_the_chat(opened)
        assert await _findings(opened) == []


def _voices() -> ScriptedVoices:
    failed = voice("Cleo", status="failed", error="it is silent")
    found = report(("noisy", "refused", "it is noisy"), ("quiet", "warning", "it is very quiet"))
    return ScriptedVoices(listed=[*built_in("Slt"), failed], report=found | {"accepted": False})


SPEAKING = able_models(text_to_speech=True, voices=["slt"])


async def _fill_the_voice(opened: OpenPage) -> None:
    """A voice that failed is chosen; the recording of another was refused."""
    page = opened.page
    await opened.until("document.querySelectorAll('#setting-voice option').length === 2")
    await page.click("#settings summary")
    await page.select_option("#setting-voice", "cleo")
    await page.click("#voice-add")
    sound = FilePayload(name="me.wav", mimeType="audio/wav", buffer=tone_wav())
    await page.set_input_files("#voice-file-input", [sound])
    await page.click("#voice-save")
    await opened.shows('#voice-report[data-verdict="failing"]')


@both_sizes
async def test_voices(size: str) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size), models=SPEAKING, voices=_voices()) as opened:
        page = opened.page
        await _fill_the_voice(opened)
        assert await _findings(opened) == []
        await page.click('label:has(input[value="record"])')
        await page.click("#voice-record-button")
        await opened.shows('#voice-record-button[data-state="recording"]')
        assert await _findings(opened) == []
        await page.keyboard.press("Escape")
        assert await _findings(opened) == []
        await page.click("#voice-delete")
        assert await _findings(opened) == []
        await page.keyboard.press("Escape")
        await page.click("#tab-chat")
        await opened.shows("#read-aloud")
        assert await _findings(opened) == []


async def test_a_bad_page_is_found() -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page() as opened:
        await opened.page.evaluate("document.querySelector('#call-button .label').remove()")
        assert any("button-name" in finding for finding in await _findings(opened))


@both_sizes
async def test_everything_fits_the_width_and_is_big_enough_to_touch(size: str) -> None:
    async with open_page(_look(size)) as opened:
        await opened.call()
        await opened.server_says(*SAID)
        await opened.page.click("#devices summary")
        await opened.shows(".line[data-placeholder]")
        await _expect_room_for_fingers(opened)


async def _expect_room_for_fingers(opened: OpenPage) -> None:
    page = opened.page
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    small = await page.evaluate(
        """[...document.querySelectorAll(
          'button, select, summary, textarea, label.check, input[type=range]')]
        .filter((each) => each.offsetParent && each.offsetHeight < 44)
        .map((each) => each.id || each.textContent)"""
    )
    assert small == []


@both_sizes
async def test_so_does_what_is_typed_set_and_chatted(size: str) -> None:
    look = replace(_look(size), preamble=CHAT_END)
    async with open_page(look, models=able_models()) as opened:
        await _fill_the_call(opened)
        await _expect_room_for_fingers(opened)
        await opened.page.click("#call-button")
        await opened.state("ended")
        await _fill_the_chat(opened)
        await _expect_room_for_fingers(opened)


@pytest.mark.parametrize("width", [360, 1440])
async def test_and_so_do_voices(width: int) -> None:
    async with open_page(Look(width, 740), models=SPEAKING, voices=_voices()) as opened:
        await _fill_the_voice(opened)
        await _expect_room_for_fingers(opened)
        body = "const body = document.getElementById('voice-body');"
        wide = f"(() => {{ {body} return body.scrollWidth - body.clientWidth; }})()"
        assert await opened.page.evaluate(wide) <= 0
        await opened.page.keyboard.press("Escape")
        await _expect_room_for_fingers(opened)
        await opened.page.click("#voice-leave-yes")
        await opened.page.click("#voice-delete")
        await _expect_room_for_fingers(opened)


async def test_nothing_moves_in_the_dialog_while_a_voice_is_recorded() -> None:
    still = ["#voice-close", "#voice-save", "#voice-cancel", "#voice-record-button"]
    look = Look(1280, 800, preamble=DRIVEN_MICROPHONE)
    async with open_page(look, models=SPEAKING, voices=_voices()) as opened:
        page = opened.page
        await page.click("#settings summary")
        await page.click("#voice-add")
        still += ["#voice-timer", "#voice-report", "#voice-name"]
        before = await page.evaluate(PLACES, still)
        await page.click("#voice-record-button")
        await opened.shows('#voice-record-button[data-state="recording"]')
        await page.evaluate("window.hear(6)")
        assert await page.inner_text("#voice-timer") == "9 s left"
        assert await page.evaluate(PLACES, still) == before
        await page.click("#voice-record-button")
        await opened.shows('#voice-preview[data-filled="yes"]')
        after = await page.evaluate(PLACES, still)
        assert after == before


PLACES = """(names) => Object.fromEntries(names.map((name) => {
  const { x, y, width, height } = document.querySelector(name).getBoundingClientRect();
  return [name, [x, y + scrollY, width, height].map(Math.round)];
}))"""


@both_sizes
async def test_nothing_moves_when_files_and_notes_come(size: str) -> None:
    look = replace(_look(size), preamble=CHAT_END)
    still = ["#call-button", "#pause", "#captions-title", "#details", "#devices", "#typing .send"]
    async with open_page(look, models=able_models()) as opened:
        page = opened.page
        await opened.call()
        before = await page.evaluate(PLACES, still)
        await page.set_input_files("#typing input[type=file]", [noise(90, 60)])
        await opened.shows("#typing .attachments img")
        await page.fill("#typing textarea", "one\ntwo\nthree")
        await opened.server_says({"type": "voice_agent.state", "state": "paused", "turn": 1})
        await opened.state("paused")
        assert await page.evaluate(PLACES, still) == before
        await page.click("#call-button")
        await opened.state("ended")
        await page.click("#tab-chat")
        still = ["#chat-panel", "#chat-form .send", "#settings", "#thinking"]
        before = await page.evaluate(PLACES, still)
        await _fill_the_chat(opened)
        await page.evaluate("scrollTo(0, 0)")
        after = await page.evaluate(PLACES, still)
        assert {name: after[name] for name in ("#chat-panel", "#settings")} == {
            name: before[name] for name in ("#chat-panel", "#settings")
        }


async def test_the_keyboard_goes_through_the_chat_in_the_order_of_reading() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await page.click("#tab-chat")
        await page.fill("#chat-form textarea", "Hello")
        await page.focus("#tab-chat")
        order = []
        for _ in range(5):
            await page.keyboard.press("Tab")
            order.append(
                await page.evaluate(
                    "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
                )
            )
        assert order == ["thinking", "chat-log", "Attach files", "Message to the model", "Send"]


async def test_a_call_can_be_made_and_ended_with_the_keyboard_alone() -> None:
    async with open_page() as opened:
        page = opened.page
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "call-button"
        await page.keyboard.press("Enter")
        await opened.state("listening")
        assert await page.evaluate("document.activeElement.id") == "call-button"
        await page.keyboard.press("m")
        await opened.shows('#mute[aria-pressed="true"]')
        await page.keyboard.press("v")
        await opened.shows('#camera[aria-pressed="true"]')
        await page.keyboard.press("s")
        await opened.shows('#screen[aria-pressed="true"]')
        await page.keyboard.press("s")
        await opened.shows('#screen[aria-pressed="false"]')
        await page.keyboard.press("h")
        await opened.state("ended")


async def test_single_keys_can_be_switched_off() -> None:
    async with open_page() as opened:
        await opened.page.click("#devices summary")
        await opened.page.uncheck("#shortcuts")
        await opened.call()
        await opened.page.keyboard.press("h")
        await opened.page.keyboard.press("m")
        assert await opened.page.get_attribute("#mute", "aria-pressed") == "false"
        assert await opened.page.get_attribute("#state", "data-state") == "listening"
        await opened.page.reload()
        assert not await opened.page.is_checked("#shortcuts"), "remembered"
