"""Typing to the agent and showing it pictures, reading its answers, and giving it the floor."""

import base64
import io
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import FilePayload

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.server import able_models

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

CREATED = "window.farEnd.received.filter((event) => event.type === 'conversation.item.create')"
ASKED = "window.farEnd.received.filter((event) => event.type === 'response.create')"
FLOOR = """window.farEnd.received.filter((event) => event.type.startsWith('voice_agent.')
  && event.type !== 'voice_agent.playout').map(({ type, on }) => on ?? type.slice(12))"""
FIELD = "#typing textarea"
NOTE = "#typing .composer-note"


async def _created(opened: OpenPage, count: int) -> list[dict[str, Any]]:
    await opened.until(f"{CREATED}.length === {count}")
    created: list[dict[str, Any]] = await opened.page.evaluate(CREATED)
    return created


def _added(created: dict[str, Any]) -> dict[str, Any]:
    return {"type": "conversation.item.added", "item": created["item"]}


def noise(width: int, height: int, kind: str = "PNG") -> FilePayload:
    """A picture of noise, which no coder makes small, as a file."""
    image = Image.effect_noise((width, height), 90).convert("RGB")
    out = io.BytesIO()
    image.save(out, kind)
    name, type_ = f"scan.{kind.lower()}", f"image/{kind.lower()}"
    return FilePayload(name=name, mimeType=type_, buffer=out.getvalue())


async def test_typed_words_are_sent_shown_and_answered() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await opened.call()
        await page.click(FIELD)
        await page.keyboard.type("Good")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("morning <b>all</b>")
        await page.keyboard.press("Enter")
        (created,) = await _created(opened, 1)
        text = "Good\nmorning <b>all</b>"
        assert created["item"]["content"] == [{"type": "input_text", "text": text}]
        assert created["item"]["role"] == "user"
        assert await page.input_value(FIELD) == ""
        assert await page.locator(".line").count() == 0, "not before the server has it"
        assert await page.evaluate(ASKED) == []
        await opened.server_says(_added(created))
        await opened.shows('.line[data-speaker="user"]')
        assert await page.inner_text(".line p") == text
        await opened.until(f"{ASKED}.length === 1")
        assert await page.evaluate("document.activeElement.tagName") == "TEXTAREA"


async def test_an_answer_is_asked_for_again_once_the_agent_has_finished() -> None:
    async with open_page(models=able_models()) as opened:
        await opened.call()
        await opened.page.fill(FIELD, "And then?")
        await opened.page.click("#typing .send")
        (created,) = await _created(opened, 1)
        await opened.server_says(_added(created))
        await opened.until(f"{ASKED}.length === 1")
        (asked,) = await opened.page.evaluate(ASKED)
        error = {"code": "conversation_already_has_active_response", "message": "Wait."}
        await opened.server_says(
            {"type": "error", "error": error | {"event_id": asked["event_id"]}},
            {"type": "response.done"},
            {"type": "response.done"},
        )
        await opened.until(f"{ASKED}.length === 2")
        assert await opened.page.inner_text(NOTE) == ""
        assert not await opened.page.is_visible("#problem")


async def test_words_that_are_refused_come_back_with_the_reason() -> None:
    async with open_page(models=able_models()) as opened:
        await opened.call()
        await opened.page.fill(FIELD, "Hello")
        await opened.page.keyboard.press("Enter")
        (created,) = await _created(opened, 1)
        error = {"message": "not now", "event_id": created["event_id"]}
        await opened.server_says({"type": "error", "error": error})
        await opened.until(f"document.querySelector('{FIELD}').value === 'Hello'")
        assert await opened.page.inner_text(NOTE) == "Not sent: not now"
        assert not await opened.page.is_visible("#problem")
        assert await opened.page.evaluate(ASKED) == [], "there is nothing to answer"


async def test_what_is_too_long_for_the_connection_is_kept_and_said() -> None:
    narrow = "Object.defineProperty(window.farEnd.near.sctp, 'maxMessageSize', { value: 500 })"
    async with open_page(models=able_models()) as opened:
        await opened.call()
        await opened.page.evaluate(f"void {narrow}")
        await opened.page.fill(FIELD, "é" * 300)
        await opened.page.keyboard.press("Enter")
        assert "That is too long to send" in await opened.page.inner_text(NOTE)
        assert await opened.page.input_value(FIELD) == "é" * 300
        await opened.page.fill(FIELD, "é" * 30)
        await opened.page.keyboard.press("Enter")
        await _created(opened, 1)


async def test_pictures_are_scaled_to_fit_the_model_and_the_message() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await opened.call()
        files = [noise(1700, 850), noise(40, 30), noise(30, 40, "WEBP")]
        await page.set_input_files("#typing input[type=file]", files)
        await opened.until("document.querySelectorAll('#typing .attachments li').length === 3")
        await page.click('[aria-label="Remove scan.webp"]')
        await page.fill(FIELD, "What is this?")
        await page.keyboard.press("Enter")
        large, small, words = await _created(opened, 3)
        assert words["item"]["content"][0]["type"] == "input_text"
        sizes = []
        for created in (large, small):
            (part,) = created["item"]["content"]
            assert part["type"] == "input_image"
            kind, _, data = part["image_url"].partition(",")
            assert kind == "data:image/jpeg;base64"
            sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
        width, height = sizes[0]
        assert max(width, height) <= 1568
        assert abs(width - 2 * height) <= 1
        assert sizes[1] == (40, 30), "never enlarged"
        limit = await page.evaluate("window.farEnd.near.sctp.maxMessageSize")
        assert len(str(large)) < min(limit, 262_144)
        await opened.server_says(_added(large), _added(small))
        await opened.until("document.querySelectorAll('.line img').length === 2")
        assert await page.evaluate(ASKED) == [], "the words are still on their way"
        await opened.server_says(_added(words))
        await opened.until(f"{ASKED}.length === 1")


PASTE = """async (data) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], 'shot.png', { type: 'image/png' }));
  transfer.items.add(new File(['words'], 'notes.txt', { type: 'text/plain' }));
  const event = %s;
  document.querySelector('%s').dispatchEvent(event);
  return event.defaultPrevented;
}"""
PASTED = "new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true })"
DROPPED = "new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true })"


@pytest.mark.parametrize(("event", "target"), [(PASTED, FIELD), (DROPPED, "#captions")])
async def test_a_picture_is_pasted_or_dropped_and_other_files_are_refused(
    event: str, target: str
) -> None:
    data = base64.b64encode(noise(20, 10)["buffer"]).decode()
    async with open_page(models=able_models()) as opened:
        await opened.call()
        assert await opened.page.evaluate(PASTE % (event, target), data)
        await opened.shows("#typing .attachments img")
        note = await opened.page.inner_text(NOTE)
        assert note == "“notes.txt” cannot be attached: only pictures can."
        broken = FilePayload(name="odd.png", mimeType="image/png", buffer=b"no picture")
        await opened.page.set_input_files("#typing input[type=file]", [broken])
        await opened.until(f"document.querySelector('{NOTE}').textContent.includes('odd.png')")
        assert "cannot be opened as a picture" in await opened.page.inner_text(NOTE)


async def test_an_engine_that_takes_no_typed_text_says_so() -> None:
    async with open_page(models=able_models(typed_text=False, pictures=False)) as opened:
        await opened.call()
        assert await opened.page.is_disabled(FIELD)
        assert await opened.page.inner_text(NOTE) == (
            "This engine takes no typed text: speak to it."
        )
        assert not await opened.page.is_visible("#typing .attach")


async def test_an_engine_without_a_voice_is_read_and_nothing_claims_to_sound() -> None:
    async with open_page(models=able_models(speech=False)) as opened:
        page = opened.page
        assert "captions only" in await page.inner_text("#captions-only")
        await opened.call()
        delta = {"type": "response.output_text.delta", "item_id": "a1"}
        await opened.server_says(
            delta | {"delta": "<img src=x onerror=alert(1)> Hel"},
            delta | {"delta": "lo"},
            {"type": "voice_agent.state", "state": "speaking", "turn": 1},
        )
        await opened.state("speaking")
        assert await page.inner_text("#state .said") == "Agent is writing"
        assert await page.inner_text(".line p") == "<img src=x onerror=alert(1)> Hello"
        first_sound = '[data-check="firstSound"] .value'
        assert "captions only" in str(await page.text_content(first_sound))
        sent = "window.farEnd.received.filter((event) => event.type === 'voice_agent.playout')"
        done = {"type": "response.output_text.done", "item_id": "a1", "text": "Hello."}
        over = {"type": "voice_agent.state", "state": "listening", "turn": 1}
        await opened.server_says(done, {"type": "response.done"}, over)
        await opened.state("listening")
        assert await page.inner_text(".line p") == "Hello."
        assert await page.evaluate(sent) == [], "nothing was played, so nothing is reported"


async def test_what_the_model_answers_out_of_band_is_not_shown() -> None:
    """A sideband asked for it: the agent says nothing of it."""
    async with open_page(models=able_models()) as opened:
        await opened.call()
        beside, said = ({"response_id": f"resp_{n}", "item_id": f"item_{n}"} for n in (1, 2))
        asked, answered = (
            {"response": {"id": f"resp_{n}", "conversation_id": conversation}}
            for n, conversation in ((1, None), (2, "conv_1"))
        )
        await opened.server_says(
            {"type": "response.created", **asked},
            {"type": "response.output_text.delta", "delta": "In a", **beside},
            {"type": "response.created", **answered},
            {"type": "response.output_text.delta", "delta": "Hello", **said},
            {"type": "response.output_text.done", "text": "In a good mood", **beside},
            {"type": "response.done", **asked},
        )
        assert await opened.page.inner_text("#captions p") == "Hello"
        assert await opened.page.locator("#captions .line").count() == 1


async def test_an_agent_that_falls_silent_is_not_said_to_write() -> None:
    """Its sound ends a moment before the server tells the new state."""
    async with open_page(models=able_models()) as opened:
        await opened.call()
        await opened.server_says(
            {"type": "output_audio_buffer.started", "response_id": "r"},
            {"type": "voice_agent.state", "state": "speaking", "turn": 1},
        )
        await opened.state("speaking")
        assert await opened.page.inner_text("#state .said") == "Agent is speaking"
        await opened.server_says({"type": "output_audio_buffer.stopped", "response_id": "r"})
        await opened.state("listening")


async def test_what_the_engine_refused_leaves_the_captions_and_returns_to_the_field() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await opened.call()
        await page.fill(FIELD, "Look at this.")
        await page.keyboard.press("Enter")
        sent = "window.farEnd.received.find((e) => e.type === 'conversation.item.create')"
        await opened.until(f"{sent} !== undefined")
        event = await page.evaluate(sent)
        await opened.server_says(
            {"type": "conversation.item.added", "item": event["item"]},
        )
        await opened.shows(".line p")
        error = {"message": "no room for it", "event_id": event["event_id"]}
        await opened.server_says(
            {"type": "error", "error": error},
            {"type": "conversation.item.deleted", "item_id": event["item"]["id"]},
        )
        await opened.until("document.querySelectorAll('.line').length === 0")
        assert await page.input_value(FIELD) == "Look at this."
        assert await page.inner_text(NOTE) == "Not sent: no room for it"


async def test_hd_pictures_are_taken_larger_at_once() -> None:
    spy = """const real = navigator.mediaDevices.getUserMedia;
    window.widths = [];
    navigator.mediaDevices.getUserMedia = (wanted) => {
      if (wanted.video) window.widths.push(wanted.video.width.ideal);
      return real(wanted);
    };"""
    async with open_page(Look(preamble=spy), models=able_models()) as opened:
        await opened.page.click("#settings summary")
        await opened.call()
        await opened.page.click("#camera")
        await opened.shows("#self-view")
        await opened.page.check("#setting-max_slices")
        await opened.until("String(window.widths) === '640,1280'")
        await opened.shows('#camera[aria-pressed="true"]')


async def test_a_file_that_is_dropped_beside_a_field_does_not_replace_the_page() -> None:
    data = base64.b64encode(noise(20, 10)["buffer"]).decode()
    async with open_page(models=able_models()) as opened:
        await opened.call()
        assert await opened.page.evaluate(PASTE % (DROPPED, "#orb"), data)
        assert await opened.page.locator(".attachments li").count() == 0


async def test_pausing_waits_for_the_server_and_is_plain_to_see() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        assert not await page.is_visible("#pause")
        await opened.call()
        await page.click("#pause")
        await opened.until(f"String({FLOOR}) === 'pause'")
        assert await page.get_attribute("#state", "data-state") == "listening"
        await opened.server_says({"type": "voice_agent.state", "state": "paused", "turn": 1})
        await opened.state("paused")
        assert await page.inner_text("#state .said") == "Paused"
        assert "hears nothing until you resume" in await page.inner_text("#hint")
        assert await page.inner_text("#pause") == "Resume"
        assert await page.get_attribute("#pause", "aria-pressed") == "true"
        # The tail of a turn does not end the pause.
        await opened.server_says({"type": "output_audio_buffer.stopped"})
        await page.click("#call-button", trial=True)
        assert await page.get_attribute("#state", "data-state") == "paused"
        await page.keyboard.press("p")
        await opened.until(f"String({FLOOR}) === 'pause,resume'")
        await opened.server_says({"type": "voice_agent.state", "state": "listening", "turn": 1})
        await opened.state("listening")
        assert await page.inner_text("#pause") == "Pause"


async def test_listening_lasts_while_it_is_held_or_from_one_short_press_to_the_next() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await opened.call()
        await page.hover("#listen")
        await page.mouse.down()
        await opened.shows('.stage[data-listen="only"]')
        await page.evaluate("new Promise((done) => setTimeout(done, 450))")
        await page.mouse.up()
        await opened.until(f"String({FLOOR}) === 'true,false'")
        await page.click("#listen")
        assert await page.get_attribute("#listen", "aria-pressed") == "true"
        await page.click("#listen")
        assert await page.get_attribute("#listen", "aria-pressed") == "false"
        await page.focus("#listen")
        await page.keyboard.press("Enter")
        assert await page.get_attribute("#listen", "aria-pressed") == "true"
        await page.click("#call-button")
        await opened.state("ended")
        assert not await page.is_visible("#listen")
        await opened.call()
        assert await page.get_attribute("#listen", "aria-pressed") == "false"


async def test_the_space_bar_listens_unless_something_else_has_the_keyboard() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await opened.call()
        # The button that was clicked still has the focus: nobody means to hang up.
        await page.keyboard.down(" ")
        await page.keyboard.down(" ")
        await opened.shows('.stage[data-listen="only"]')
        await page.keyboard.up(" ")
        await opened.until(f"String({FLOOR}) === 'true,false'")
        assert await page.get_attribute("#state", "data-state") == "listening"
        await page.fill(FIELD, "a")
        await page.keyboard.press(" ")
        assert await page.input_value(FIELD) == "a "
        await page.focus("#call-button")
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "camera"
        await page.keyboard.press(" ")
        await opened.shows('#camera[aria-pressed="true"]')
        assert len(await page.evaluate(FLOOR)) == 2
