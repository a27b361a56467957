"""The page reports how far the agent's speech was played, and shows when it is held back."""

import itertools
from typing import Any

import pytest
from playwright.async_api import Page

from tests.web_page.browser import IN_ONE_LOOP, Look, open_page

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

REPORTS = "window.farEnd.received.filter((each) => each.type === 'voice_agent.playout')"
STARTED = {"type": "output_audio_buffer.started", "response_id": "r"}
DUCKED = {"type": "voice_agent.ducked", "turn": 1, "at_ms": 800}
RESUMED = {"type": "voice_agent.resumed", "turn": 1, "at_ms": 800}
POSITION = """async ([source, nowMs, originMs]) => {
  const { positionOf } = await import('./playout.js');
  return positionOf(source ?? undefined, nowMs, originMs);
}"""
# `step` is how far the position moves between two looks at it.
REPORTER = """async () => {
  const { PlayoutReports } = await import('./playout.js');
  window.sent = [];
  window.step = 4800;
  let rtpTimestamp = 0;
  window.reports = new PlayoutReports(
    () => ({ rtpTimestamp: (rtpTimestamp += window.step), timestamp: window.heard_ms ?? 0 }),
    (report) => window.sent.push(report));
}"""
OLD_BROWSER = """
const read = RTCRtpReceiver.prototype.getSynchronizationSources;
RTCRtpReceiver.prototype.getSynchronizationSources = function () {
  window.looks = (window.looks ?? 0) + 1;
  return read.call(this).map(({ timestamp, source }) => ({ timestamp, source }));
};
"""
NOW = """(() => {
  const receiver = window.farEnd.near.getReceivers().find((each) => each.track.kind === 'audio');
  const [source] = receiver.getSynchronizationSources();
  return { rtp: source.rtpTimestamp, nowMs: performance.now() };
})()"""


async def _reporter(page: Page) -> None:
    """`window.reports`, on a clock that stands still until it is wound forward."""
    await page.clock.pause_at((await page.evaluate("Date.now()") + 60_000) / 1000)
    await page.evaluate(REPORTER)


async def test_while_the_agent_speaks_its_position_is_reported_over_and_over() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.until(
            "window.farEnd.near.getReceivers()[0].getSynchronizationSources().length"
        )
        assert await opened.page.evaluate(REPORTS) == [], "the agent is silent"
        # The browser's jitter buffer alone decides how long sound waits.
        targets = "window.farEnd.near.getReceivers().map((each) => each.jitterBufferTarget)"
        assert set(await opened.page.evaluate(targets)) == {None}
        await opened.server_says(STARTED)
        await opened.until(f"{REPORTS}.length >= 20")
        now = await opened.page.evaluate(NOW)
        reports: list[dict[str, Any]] = await opened.page.evaluate(REPORTS)
    # On a busy machine no sound may come out for a while: the position stands still, as of later.
    for earlier, later in itertools.pairwise(reports):
        assert later["rtp_timestamp"] >= earlier["rtp_timestamp"]
    first, last = reports[0], reports[-1]
    assert last["rtp_timestamp"] > first["rtp_timestamp"] and last["at_ms"] > first["at_ms"]
    # Positions come in packets of 20 ms, and such a machine's jitter buffer bends time.
    sound_ms = (last["rtp_timestamp"] - first["rtp_timestamp"]) / 48
    assert sound_ms == pytest.approx(last["at_ms"] - first["at_ms"], abs=700)
    assert set(last) == {"type", "rtp_timestamp", "at_ms"}
    since_ms = (now["rtp"] - last["rtp_timestamp"]) / 48
    assert now["nowMs"] - last["at_ms"] == pytest.approx(since_ms, abs=700)


async def test_reports_end_with_the_speech_and_its_tail() -> None:
    async with open_page(Look(clock=True)) as opened:
        page = opened.page

        async def sent_after(ms: int, act: str) -> int:
            await page.evaluate(f"window.sent = []; {act}")
            await page.clock.run_for(ms)
            return int(await page.evaluate("window.sent.length"))

        await _reporter(page)
        assert await sent_after(1_000, "window.reports.speaking(true)") == 10
        assert await sent_after(900, "window.reports.speaking(false)") >= 8
        assert await sent_after(5_000, "") <= 1
        both = "window.reports.speaking(false); window.reports.speaking(true)"
        assert await sent_after(3_000, f"window.reports.speaking(true); {both}") == 30
        assert await sent_after(3_000, "window.reports.finish()") == 0


async def test_a_position_that_stands_still_is_told_as_of_now() -> None:
    """Only so does the server see that nothing comes through any more."""
    async with open_page(Look(clock=True)) as opened:
        page = opened.page
        await _reporter(page)
        last_packet = "window.step = 0; window.heard_ms = performance.now() - 7;"
        await page.evaluate("window.reports.speaking(true)")
        await page.clock.run_for(500)
        await page.evaluate(f"window.sent = []; {last_packet} window.began_ms = performance.now()")
        await page.clock.run_for(3_000)
        stuck = await page.evaluate("window.sent")
        began_ms = await page.evaluate("window.began_ms")
    assert len(stuck) == 30
    assert {report["rtp_timestamp"] for report in stuck} == {5 * 4800}
    since_ms = [report["at_ms"] - began_ms for report in stuck]
    assert since_ms == pytest.approx([100 * (index + 1) for index in range(30)], abs=1)


async def test_packets_that_stop_coming_leave_reports_that_stand_still() -> None:
    """What a browser tells of its position when the way to it is broken."""
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(STARTED)
        await opened.until(f"{REPORTS}.length > 2")
        await opened.page.evaluate("window.farEnd.pc.getSenders()[0].replaceTrack(null)")
        standing = f"""(() => {{
          const last = {REPORTS}.at(-1).rtp_timestamp;
          return {REPORTS}.filter((each) => each.rtp_timestamp === last).length >= 8;
        }})()"""
        await opened.until(standing)
        reports = await opened.page.evaluate(REPORTS)
    last = [each for each in reports if each["rtp_timestamp"] == reports[-1]["rtp_timestamp"]]
    for earlier, later in itertools.pairwise(last):
        assert later["at_ms"] > earlier["at_ms"]
    assert last[-1]["at_ms"] - last[0]["at_ms"] > 500


async def test_times_are_told_on_the_pages_own_scale() -> None:
    scales = {
        "since 1970, as the standard has it": (1_700_000_002_990, 2_990),
        "since the page began": (2_985.5, 2_985.5),
        "long ago, but not too long": (77, 77),
        "another clock": (1_690_000_000_000, 3_000),
        "a clock that runs ahead": (1_700_000_003_500, 3_000),
    }
    async with open_page() as opened:
        for scale, (timestamp, at_ms) in scales.items():
            source = {"rtpTimestamp": 960, "timestamp": timestamp}
            told = await opened.page.evaluate(POSITION, [source, 3_000, 1_700_000_000_000])
            assert told == {"rtp_timestamp": 960, "at_ms": at_ms}, scale


async def test_a_browser_that_knows_no_positions_reports_none() -> None:
    async with open_page(Look(preamble=OLD_BROWSER)) as opened:
        await opened.call()
        await opened.server_says(STARTED)
        await opened.state("speaking")
        await opened.until("window.looks > 20")
        assert await opened.page.evaluate(REPORTS) == []
        assert await opened.page.evaluate(POSITION, [None, 3_000, 0]) is None


async def test_nothing_is_reported_before_the_session_exists_or_after_the_call() -> None:
    say = "import('./app.js').then((page) => page.applyServerEvent({ type: '%s' }))"
    spy = """window.ticking = new Set();
    const [start, stop] = [window.setInterval, window.clearInterval];
    window.setInterval = (work, ms) => {
      const timer = start(work, ms);
      if (ms === 100) window.ticking.add(timer);
      return timer;
    };
    window.clearInterval = (timer) => { window.ticking.delete(timer); stop(timer); };"""
    async with open_page(Look(preamble=spy)) as opened:
        page = opened.page
        await page.evaluate("void (window.farEnd.gate = new Promise((r) => (window.open_it = r)))")
        await page.click("#call-button")
        await opened.until("window.farEnd.offers.length === 1")
        await page.evaluate(say % "output_audio_buffer.started")
        await opened.state("speaking")
        assert await page.evaluate("window.ticking.size") == 0, "no session yet"
        await page.evaluate("window.open_it()")
        await opened.until(f"{REPORTS}.length > 2")
        assert await page.evaluate("window.ticking.size") == 1
        await page.click("#call-button")
        await opened.state("ended")
        assert await page.evaluate("window.ticking.size") == 0


async def test_an_agent_that_holds_its_breath_is_seen_but_nothing_moves() -> None:
    places = """[...document.querySelectorAll('#state, #hint, .controls, #mic-meter')]
      .map((each) => JSON.stringify(each.getBoundingClientRect()))"""
    seen = """[...document.querySelectorAll('#state span')]
      .filter((each) => getComputedStyle(each).opacity === '1').map((each) => each.textContent)"""
    async with open_page(Look(reduced_motion=True)) as opened:
        page = opened.page
        await opened.call()
        await opened.server_says(STARTED)
        await opened.state("speaking")
        assert await page.evaluate(seen) == ["Agent is speaking"]
        before = await page.evaluate(places)
        await opened.server_says(DUCKED)
        await opened.shows('.stage[data-ducked="on"]')
        assert await page.evaluate(seen) == ["Agent pauses for you"]
        assert await page.evaluate(places) == before
        assert await page.get_attribute("#state", "data-state") == "speaking"
        assert await page.get_attribute("#state .pauses", "aria-hidden") == "true"
        await opened.server_says(RESUMED)
        await opened.shows('.stage[data-ducked=""]')
        assert await page.evaluate(seen) == ["Agent is speaking"]


async def test_a_held_breath_ends_with_the_speech() -> None:
    async with open_page() as opened:
        await opened.call()
        for end in ("cleared", "stopped"):
            await opened.server_says(STARTED, DUCKED)
            await opened.shows('.stage[data-ducked="on"]')
            await opened.server_says({"type": f"output_audio_buffer.{end}", "response_id": "r"})
            await opened.shows('.stage[data-ducked=""][data-state="listening"]')
        await opened.server_says(DUCKED, STARTED)
        await opened.state("speaking")
        assert await opened.page.get_attribute(".stage", "data-ducked") == ""
