"""Axe finds nothing serious on the page: phone and desktop, light and dark, in every state."""

from typing import Any, Literal

import pytest

from tests.web_page.browser import Look, OpenPage, open_page
from tests.web_page.node import require_node_module

pytestmark = pytest.mark.browser

SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
Scheme = Literal["light", "dark"]
both_sizes = pytest.mark.parametrize("size", list(SIZES))
both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"])

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


def _look(size: str, scheme: Scheme) -> Look:
    # Without motion, so that no half-faded colour is measured.
    return Look(*SIZES[size], scheme=scheme, reduced_motion=True)


async def _findings(opened: OpenPage) -> list[str]:
    page = opened.page
    if not await page.evaluate("'axe' in window"):
        # Evaluated and not added as a <script>: the page's policy forbids that.
        await page.evaluate(require_node_module("axe-core/axe.min.js").read_text())
    found = await page.evaluate("axe.run()")
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@both_sizes
@both_schemes
async def test_idle_and_connecting(size: str, scheme: Scheme) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size, scheme)) as opened:
        assert await _findings(opened) == []
        await opened.page.click("#devices summary")
        assert await _findings(opened) == []
        await opened.page.evaluate("void (window.farEnd.gate = new Promise(() => 0))")
        await opened.page.click("#call-button")
        await opened.state("connecting")
        assert await _findings(opened) == []


@both_sizes
@both_schemes
async def test_in_a_call_and_after_it(size: str, scheme: Scheme) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size, scheme)) as opened:
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
@both_schemes
async def test_each_problem(size: str, scheme: Scheme) -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page(_look(size, scheme)) as opened:
        for code in CODES:
            await opened.page.evaluate(SHOW_PROBLEM, code)
            text = await opened.problem(code)
            assert len(text) > 40, "says what happened and what to do"
            assert await _findings(opened) == [], code


async def test_a_bad_page_is_found() -> None:
    require_node_module("axe-core/axe.min.js")
    async with open_page() as opened:
        await opened.page.evaluate("document.querySelector('#call-button .label').remove()")
        assert any("button-name" in finding for finding in await _findings(opened))


@both_sizes
async def test_everything_fits_the_width_and_is_big_enough_to_touch(size: str) -> None:
    async with open_page(_look(size, "light")) as opened:
        await opened.call()
        await opened.server_says(*SAID)
        await opened.page.click("#devices summary")
        await opened.shows(".line[data-placeholder]")
        page = opened.page
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        small = await page.evaluate(
            """[...document.querySelectorAll('button, select, summary, label.check')]
            .filter((each) => each.offsetParent && each.offsetHeight < 44)
            .map((each) => each.id || each.textContent)"""
        )
        assert small == []


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
