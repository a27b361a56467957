"""What the page does while nobody calls: nothing, as it may stand open all day."""

import pytest
from playwright.async_api import CDPSession

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

COUNTED = """(() => {
  window.ran = {};
  for (const timer of ['requestAnimationFrame', 'setInterval', 'setTimeout']) {
    const ask = window[timer];
    window.ran[timer] = 0;
    window[timer] = (work, ...rest) => ask((...given) => {
      window.ran[timer] += 1;
      work(...given);
    }, ...rest);
  }
})();"""
"""The page's timers, which are those of `page.clock` already, count how often they fire."""
LOOK = Look(reduced_motion=False, clock=True, preamble=COUNTED)

AT_REST = """(() => {
  for (const each of document.getAnimations()) each.finish();
  return document.getAnimations().length === 0;
})()"""
"""Ends what moves; what moves for ever cannot be ended, and throws."""
FLUSH = "document.body.offsetTop"
"""Does the style and the layout that are due: they are counted when they are done."""
PATIENCE_MINUTES = 100
MINUTE_MS = 60_000


async def _painted(chromium: CDPSession) -> dict[str, float]:
    told = await chromium.send("Performance.getMetrics")
    counts = {each["name"]: each["value"] for each in told["metrics"]}
    return {name: counts[name] for name in ("RecalcStyleCount", "LayoutCount")}


async def _work(opened: OpenPage, chromium: CDPSession, lasts_ms: int) -> dict[str, float]:
    """What the page does in so much time by its clock; only what is not 0."""
    before = {**await opened.page.evaluate("window.ran"), **await _painted(chromium)}
    await opened.page.clock.run_for(lasts_ms)
    await opened.page.evaluate(FLUSH)
    after = {**await opened.page.evaluate("window.ran"), **await _painted(chromium)}
    return {name: after[name] - was for name, was in before.items() if after[name] != was}


async def _falls_asleep(opened: OpenPage, chromium: CDPSession) -> None:
    """Wait for a minute without work; what was begun, such as a fetch, may end before."""
    await opened.until(AT_REST)
    work: dict[str, float] = {}
    for _ in range(PATIENCE_MINUTES):
        work = await _work(opened, chromium, MINUTE_MS)
        if not work and await opened.page.evaluate(AT_REST):
            return
    pytest.fail(f"in every minute, the page does {work}")


async def test_a_page_without_a_call_comes_to_rest_and_wakes_with_each_call() -> None:
    async with open_page(LOOK) as opened:
        page = opened.page
        chromium = await page.context.new_cdp_session(page)
        await chromium.send("Performance.enable")
        moving = await page.evaluate("document.getAnimations().map((each) => each.animationName)")
        assert "breathe" in moving, "it lives when somebody comes"
        await _falls_asleep(opened, chromium)
        for _ in range(2):
            await opened.call()
            second = await _work(opened, chromium, 1000)
            assert second["requestAnimationFrame"] >= 50, "the levels are shown"
            assert second["setInterval"] >= 1, "the time is shown"
            await page.click("#call-button")
            await opened.state("ended")
            await _falls_asleep(opened, chromium)


async def test_the_checks_say_the_last_word_though_the_clock_stands() -> None:
    heard = "{ type: 'input_audio_buffer.speech_started', item_id: 'u' }"
    async with open_page(Look(clock=True)) as opened:
        await opened.page.evaluate(f"import('./app.js').then((p) => p.applyServerEvent({heard}))")
        row = opened.page.locator('[data-check="hearing"] .value')
        assert await row.text_content() == "yes", "before any call"
        await opened.call()
        assert await row.text_content() == "say something"
        await opened.server_says({"type": "input_audio_buffer.speech_started", "item_id": "u"})
        await opened.shows('.stage[data-user="speaking"]')
        await opened.page.click("#call-button")
        await opened.state("ended")
        assert await row.text_content() == "yes"
