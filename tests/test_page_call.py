"""A call from the page to a far end inside the browser: sound, picture, events, and its end."""

import pytest

from tests.web_page.browser import IN_ONE_LOOP, Look, open_page
from tests.web_page.node import ROOT
from tests.web_page.server import echo_models, real_models

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

HANG_UP = ("POST", "/v1/realtime/calls/rtc_test/hangup")
IS_HEARD = "window.farEnd.soundEnergy().then((energy) => energy > 0)"
# Chromium's made-up microphone beeps once a second: silence is two seconds without a beep. What is
# left then is the rounding of silence by the codec.
IS_SILENT = """window.farEnd.soundEnergy().then((energy) => {
  const grown = energy - (window.before ?? 0);
  window.before = energy;
  window.still = grown < 1e-6 ? (window.still ?? 0) + 1 : 0;
  return window.still > 40;
})"""
PICTURES_ARRIVE = "window.farEnd.pictures().then((count) => count > 1)"
MICROPHONES_CLOSED = """window.farEnd.streams.length > 0 &&
  window.farEnd.streams.every((each) => each.getTracks().every((t) => t.readyState === 'ended'))"""
REFUSE_FIRST_PLAY = """
const play = HTMLMediaElement.prototype.play;
window.refused = 0;
HTMLMediaElement.prototype.play = function () {
  if (this.id !== 'agent-audio' || window.refused++) return play.call(this);
  return Promise.reject(new DOMException('press first', 'NotAllowedError'));
};
"""


async def test_sound_flows_both_ways_and_hanging_up_frees_everything() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.until(IS_HEARD)
        audio = "document.getElementById('agent-audio')"
        await opened.until(
            f"!{audio}.paused && {audio}.srcObject.active && {audio}.currentTime > 0"
        )
        await opened.page.click("#call-button")
        await opened.state("ended")
        assert await opened.page.inner_text("#state .said") == "Call ended"
        assert await opened.page.evaluate(MICROPHONES_CLOSED)
        assert await opened.page.evaluate(f"{audio}.srcObject") is None
        assert await opened.page.evaluate("window.farEnd.near.connectionState") == "closed"
        assert await opened.requested() == [HANG_UP]


async def test_the_offer_goes_out_at_once_with_a_place_for_the_camera() -> None:
    async with open_page() as opened:
        await opened.call()
        (offer,) = await opened.page.evaluate("window.farEnd.offers")
        sections = offer.split("\r\nm=")
        assert [section.split(" ")[0] for section in sections[1:]] == [
            "audio",
            "video",
            "application",
        ]
        assert "a=sendrecv" in sections[1]
        assert "a=sendonly" in sections[2]
        assert "a=candidate" not in offer
        assert await opened.page.evaluate("window.farEnd.events.label") == "oai-events"


async def test_the_microphone_is_asked_for_with_echo_cancellation() -> None:
    spy = """const real = navigator.mediaDevices.getUserMedia;
    navigator.mediaDevices.getUserMedia = (wanted) => {
      window.wanted = wanted;
      return real(wanted);
    };"""
    async with open_page(Look(preamble=spy)) as opened:
        await opened.call()
        assert await opened.page.evaluate("window.wanted") == {
            "audio": {
                "echoCancellation": True,
                "noiseSuppression": True,
                "autoGainControl": True,
                "channelCount": 1,
            }
        }


async def test_muting_silences_the_far_end_and_unmuting_does_not() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.until(IS_HEARD)
        await opened.page.click("#mute")
        await opened.shows('#mute[aria-pressed="true"]')
        await opened.until(IS_SILENT)
        before = await opened.page.evaluate("window.farEnd.soundEnergy()")
        await opened.page.click("#mute")
        await opened.shows('#mute[aria-pressed="false"]')
        await opened.until(
            f"window.farEnd.soundEnergy().then((energy) => energy > {before} + 1e-4)"
        )


async def test_the_camera_comes_and_goes_without_another_offer() -> None:
    async with open_page() as opened:
        await opened.call()
        assert not await opened.page.is_visible("#self-view")
        await opened.page.click("#camera")
        await opened.shows("#self-view")
        await opened.until(PICTURES_ARRIVE)
        await opened.shows('#checks [data-check="picture"][data-verdict="ok"]')
        await opened.page.click("#camera")
        await opened.shows('#camera[aria-pressed="false"]')
        assert not await opened.page.is_visible("#self-view")
        assert (
            await opened.page.evaluate(
                "window.farEnd.streams.at(-1).getVideoTracks()[0].readyState"
            )
            == "ended"
        )
        assert len(await opened.page.evaluate("window.farEnd.offers")) == 1


async def test_the_state_follows_what_is_played() -> None:
    async with open_page() as opened:
        await opened.call()
        for event, state in (
            ("started", "speaking"),
            ("stopped", "listening"),
            ("started", "speaking"),
            ("cleared", "listening"),
        ):
            await opened.server_says({"type": f"output_audio_buffer.{event}", "response_id": "r"})
            await opened.state(state)
        await opened.server_says({"type": "input_audio_buffer.speech_started", "item_id": "u"})
        await opened.shows('.stage[data-user="speaking"]')
        await opened.server_says({"type": "input_audio_buffer.speech_stopped", "item_id": "u"})
        await opened.shows('.stage[data-user=""]')
        assert await opened.page.get_attribute("#state", "aria-live") == "polite"


async def test_a_greeting_that_is_faster_than_the_connection_is_kept() -> None:
    say = "import('./app.js').then((page) => page.applyServerEvent({ type: '%s' }))"
    async with open_page() as opened:
        page = opened.page
        await page.evaluate("void (window.farEnd.gate = new Promise((r) => (window.open_it = r)))")
        await page.click("#call-button")
        await opened.until("window.farEnd.offers.length === 1")
        await page.evaluate(say % "output_audio_buffer.started")
        await page.evaluate("window.open_it()")
        await opened.shows('#checks [data-check="roundTrip"][data-verdict="ok"]')
        assert await page.get_attribute("#state", "data-state") == "speaking"


async def test_the_server_ends_the_call_by_closing() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.page.evaluate("window.farEnd.close()")
        await opened.state("ended")
        assert await opened.page.inner_text("#state .said") == "The server ended the call"
        assert await opened.page.inner_text("#call-button") == "Call again"
        assert opened.server.requests == [], "it need not be told"
        await opened.call()


async def test_a_call_given_up_while_it_is_answered_is_hung_up() -> None:
    async with open_page() as opened:
        page = opened.page
        await page.evaluate("void (window.farEnd.gate = new Promise((r) => (window.open_it = r)))")
        await page.click("#call-button")
        await opened.until("window.farEnd.offers.length === 1")
        assert await page.inner_text("#call-button") == "Cancel"
        await page.click("#call-button")
        await opened.state("ended")
        await page.evaluate("window.open_it()")
        assert await opened.requested() == [HANG_UP]
        assert await page.evaluate(MICROPHONES_CLOSED)


async def test_leaving_the_page_hangs_up() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.page.goto("about:blank")
        assert await opened.requested() == [HANG_UP]


async def test_a_microphone_that_the_system_took_is_opened_again() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.page.evaluate("window.farEnd.streams[0].getTracks()[0].stop()")
        await opened.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await opened.until("window.farEnd.streams.length === 2")
        before = await opened.page.evaluate("window.farEnd.soundEnergy()")
        await opened.until(f"window.farEnd.soundEnergy().then((energy) => energy > {before})")


async def test_another_microphone_mid_call_is_remembered_and_stays_muted() -> None:
    async with open_page() as opened:
        page = opened.page
        await opened.call()
        await page.click("#mute")
        await page.click("#devices summary")
        await opened.until("document.querySelectorAll('#microphone-select option').length > 1")
        await page.select_option("#microphone-select", index=1)
        await opened.until("window.farEnd.streams.length === 2")
        await opened.until("window.farEnd.near.getSenders()[0].track.readyState === 'live'")
        assert not await page.evaluate("window.farEnd.near.getSenders()[0].track.enabled")
        chosen = await page.input_value("#microphone-select")
        await page.reload()
        assert await page.evaluate("localStorage.getItem('voice-agent.audioinput')") == chosen
        await opened.until(f"document.getElementById('microphone-select').value === '{chosen}'")


async def test_sound_that_the_browser_holds_back_is_turned_on_by_a_press() -> None:
    async with open_page(Look(preamble=REFUSE_FIRST_PLAY)) as opened:
        await opened.call()
        await opened.shows("#sound-button")
        await opened.page.click("#sound-button")
        await opened.until("document.getElementById('sound-button').hidden")
        assert not await opened.page.evaluate("document.getElementById('agent-audio').paused")


async def test_the_language_is_set_where_the_engine_speaks_it() -> None:
    async with open_page() as opened:
        await opened.call()
        asked = {"type": "realtime", "voice_agent": {"language": "en"}}
        assert await opened.page.evaluate("window.farEnd.sessions") == [asked]


async def test_the_page_says_that_the_echo_engine_is_not_the_model() -> None:
    async with open_page(models=echo_models()) as opened:
        notice = await opened.page.inner_text("#echo-notice")
        assert "not the model" in notice
        assert "no GPU and no checkpoint here" in notice
        assert "How to get the model" in notice
        assert await opened.page.inner_text("#details-title") == "Connection and checks"
        readme = (ROOT / "README.md").read_text()
        assert "*Connection and checks*" in readme, "the page and the README use one name"
        assert await opened.page.get_attribute("#engine", "data-engine") == "echo"


async def test_the_page_says_nothing_of_echo_where_the_model_answers() -> None:
    async with open_page(models=real_models()) as opened:
        assert await opened.page.inner_text("#engine") == "minicpm-o"
        assert not await opened.page.is_visible("#echo-notice")
        assert await opened.page.inner_text("#details-title") == "Connection and checks"
