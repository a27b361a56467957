"""Each thing that can go wrong is said in plain words, and the page stays usable."""

from typing import Any

import pytest

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]


def _refuse(kind: str, error: str) -> str:
    return f"""
    const given = navigator.mediaDevices.getUserMedia;
    navigator.mediaDevices.getUserMedia = (wanted) => wanted.{kind} && !window.allowed
      ? Promise.reject(new DOMException('', '{error}')) : given(wanted);
    """


NO_DEVICES = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"
NO_WEBRTC = "delete window.RTCPeerConnection; window.RTCPeerConnection = undefined;"


@pytest.mark.parametrize(
    ("code", "preamble", "words"),
    [
        ("microphone-denied", _refuse("audio", "NotAllowedError"), "Allow the microphone"),
        ("microphone-missing", _refuse("audio", "NotFoundError"), "Plug one in"),
        ("microphone-busy", _refuse("audio", "NotReadableError"), "Another program"),
        ("insecure-context", NO_DEVICES, "https://"),
        ("browser-too-old", NO_WEBRTC, "WebRTC"),
    ],
)
async def test_what_this_device_lacks_is_said(code: str, preamble: str, words: str) -> None:
    async with open_page(Look(preamble=preamble)) as opened:
        await opened.page.click("#call-button")
        assert words in await opened.problem(code)
        await opened.state("problem")
        assert opened.server.requests == [], "no place was taken at the server"


@pytest.mark.parametrize(
    ("error", "code"), [("NotAllowedError", "camera-denied"), ("NotFoundError", "camera-missing")]
)
async def test_a_call_goes_on_without_a_camera(error: str, code: str) -> None:
    async with open_page(Look(preamble=_refuse("video", error))) as opened:
        await opened.call()
        await opened.page.click("#camera")
        assert "goes on without" in await opened.problem(code)
        assert await opened.page.get_attribute("#state", "data-state") == "listening"
        await opened.page.click("#problem-action")
        assert not await opened.page.is_visible("#problem")
        await opened.page.evaluate("window.allowed = true")
        await opened.page.click("#camera")
        await opened.shows("#self-view")


async def _call_scripted(opened: OpenPage) -> None:
    await opened.page.evaluate("window.farEnd.enabled = false")
    await opened.page.click("#call-button")


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": None, "param": None}}


async def test_no_slot_says_when_to_come_back_and_then_lets_you() -> None:
    full = (503, {"Retry-After": "12"}, _error("full"))
    async with open_page(Look(clock=True), answer=full) as opened:
        page = opened.page
        await _call_scripted(opened)
        said = await opened.problem("no-slot")
        assert "Try again in 12 seconds." in said
        assert "free in" not in said, "the server may not know when"
        assert await page.is_disabled("#problem-action")
        assert "12 s" in await page.inner_text("#problem-action")
        await page.clock.run_for(13_000)
        assert await page.inner_text("#problem-action") == "Try again"
        await page.evaluate("window.farEnd.enabled = true")
        await page.click("#problem-action")
        await opened.state("listening")
        assert not await page.is_visible("#problem")


@pytest.mark.parametrize("message", ["the engine is starting again", "the engine is down"])
async def test_an_agent_that_is_not_there_yet_is_not_a_full_server(message: str) -> None:
    starting = (503, {"Retry-After": "7"}, _error(message))
    async with open_page(answer=starting) as opened:
        await _call_scripted(opened)
        said = await opened.problem("agent-starting")
        assert "Try again in 7 seconds." in said
        assert "place" not in said
        assert await opened.page.is_disabled("#problem-action")


async def test_a_call_that_lost_its_agent_is_over_and_can_be_redialled_in_a_moment() -> None:
    async with open_page(Look(clock=True)) as opened:
        page = opened.page
        await opened.call()
        lost = {"message": "the engine's process ended", "code": "worker_lost"}
        await opened.server_says({"type": "error", "error": lost})
        said = await opened.problem("agent-restarted")
        assert "had to restart" in said
        assert "goes on" not in said
        await page.evaluate("window.farEnd.close()")
        await opened.state("problem")
        assert await page.is_disabled("#problem-action")
        await page.clock.run_for(11_000)
        assert await page.inner_text("#problem-action") == "Call again"
        await page.click("#problem-action")
        await opened.state("listening")


async def test_a_refusal_is_told_in_the_servers_words() -> None:
    async with open_page(answer=(403, {}, _error("That voice is not for you."))) as opened:
        await _call_scripted(opened)
        assert "That voice is not for you." in await opened.problem("call-refused")
        assert await opened.page.evaluate(
            "window.farEnd.streams.every((each) => each.getTracks()[0].readyState === 'ended')"
        )


async def test_a_call_without_the_key_that_it_needs_can_be_tried_again() -> None:
    async with open_page(answer=(401, {}, _error("Use Bearer auth."))) as opened:
        await _call_scripted(opened)
        said = await opened.problem("key-needed")
        assert "Ask whoever runs this server for a key" in said
        assert "Bearer" not in said, "what is for programs is nothing for a visitor"
        assert await opened.page.inner_text("#problem-action") == "Call again"


async def test_a_server_that_is_gone_can_be_called_again() -> None:
    async with open_page() as opened:
        await opened.page.evaluate("window.farEnd.broken = true")
        await opened.page.click("#call-button")
        assert "server is running" in await opened.problem("server-gone")
        await opened.page.evaluate("window.farEnd.broken = false")
        await opened.page.click("#problem-action")
        await opened.state("listening")


async def test_a_blocked_network_is_named_after_ten_seconds() -> None:
    async with open_page(Look(clock=True)) as opened:
        await opened.page.evaluate("window.farEnd.silent = true")
        await opened.page.click("#call-button")
        await opened.until("window.farEnd.near?.signalingState === 'stable'")
        await opened.until("window.farEnd.near.remoteDescription !== null")
        await opened.page.clock.run_for(9_000)
        assert await opened.page.get_attribute("#state", "data-state") == "connecting"
        await opened.page.clock.run_for(2_000)
        assert "UDP" in await opened.problem("connection-failed")


async def test_a_broken_connection_has_five_seconds_to_come_back() -> None:
    async with open_page(Look(clock=True)) as opened:
        page = opened.page
        await opened.call()
        await page.evaluate("window.farEnd.pretend('disconnected')")
        await page.clock.run_for(4_000)
        assert "waiting for it" in await page.inner_text("#hint")
        assert await page.inner_text("#state .said") == "Reconnecting…"
        await page.evaluate("window.farEnd.pretend('connected')")
        await page.clock.run_for(6_000)
        assert await page.get_attribute("#state", "data-state") == "listening"
        await page.evaluate("window.farEnd.pretend('disconnected')")
        await page.clock.run_for(6_000)
        await opened.problem("server-gone")
        assert await page.inner_text("#problem-action") == "Call again"


LOOKS = """(() => {
  const [core, ring] = ['.core', '.turning'].map((part) =>
    getComputedStyle(document.querySelector(`#orb ${part}`)));
  return [core.animationName, core.backgroundImage, Number(ring.opacity)];
})()"""


async def test_an_agent_that_broke_off_in_its_speech_is_not_said_to_speak() -> None:
    said = {"type": "response.output_audio_transcript.delta", "item_id": "a", "delta": "As I was"}
    async with open_page(Look(reduced_motion=False)) as opened:
        page = opened.page
        await opened.call()
        await opened.server_says({"type": "output_audio_buffer.started", "response_id": "r"}, said)
        await opened.shows("text=Agent is speaking")
        speaking = await page.evaluate(LOOKS)
        assert speaking[0] == "breathe"
        await page.evaluate("window.farEnd.pretend('disconnected')")
        await opened.shows("text=Reconnecting…")
        assert "waiting for it" in await page.inner_text("#hint"), "both at once"
        core, colours, ring = await page.evaluate(LOOKS)
        assert (core, ring) == ("none", 1), "the orb turns as it does while it connects"
        assert colours != speaking[1]
        await page.evaluate("window.farEnd.pretend('connected')")
        await opened.shows("text=Agent is speaking")


async def test_a_call_that_does_not_come_about_leaves_the_last_ones_captions() -> None:
    said = {"type": "response.output_audio_transcript.delta", "item_id": "a", "delta": "As I was"}
    async with open_page() as opened:
        page = opened.page
        await opened.call()
        await opened.server_says(said)
        await opened.shows('[data-item-id="a"]')
        await page.evaluate("window.farEnd.pretend('failed')")
        await opened.problem("server-gone")
        await page.evaluate("window.farEnd.broken = true")
        await page.click("#problem-action")
        await opened.problem("server-gone")
        assert await page.inner_text(".line p") == "As I was"
        await page.evaluate("window.farEnd.broken = false")
        await page.click("#problem-action")
        await opened.state("listening")
        assert await page.locator(".line").count() == 0, "another call has its own"


async def test_an_error_of_the_server_does_not_end_the_call() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.server_says({"type": "error", "error": {"message": "No such voice."}})
        assert "No such voice." in await opened.problem("server-error")
        assert await opened.page.get_attribute("#state", "data-state") == "listening"
        await opened.page.click("#problem-action")
        assert await opened.page.get_attribute("#state", "data-state") == "listening"


async def test_an_error_that_ends_the_call_does_not_say_that_it_goes_on() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.server_says({"type": "error", "error": {"message": "Out of memory."}})
        assert "The call goes on." in await opened.problem("server-error")
        await opened.page.evaluate("window.farEnd.close()")
        await opened.state("ended")
        said = await opened.problem("server-error")
        assert "Out of memory." in said
        assert "goes on" not in said
        await opened.page.click("#problem-action")
        await opened.state("listening")
