"""The turn-based conversation on the page: asked by text and files, answered piece by piece."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import FilePayload

from tests.web_page.browser import IN_ONE_LOOP, Look, OpenPage, open_page
from tests.web_page.server import able_models

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

CHAT_END = Path(__file__).parent.joinpath("web_page", "chat_end.js").read_text("utf-8")
LOOK = Look(preamble=CHAT_END)
FIELD = "#chat-form textarea"
NOTE = "#chat-form .composer-note"
FILES = "#chat-form input[type=file]"
ANSWER = '.message[data-role="agent"]'


async def _open_chat(opened: OpenPage) -> None:
    await opened.page.click("#tab-chat")
    await opened.shows("#chat-panel")


async def _ask(opened: OpenPage, text: str, count: int = 1) -> dict[str, Any]:
    """Ask, and wait for the request, the `count`-th of this page."""
    await opened.page.fill(FIELD, text)
    await opened.page.keyboard.press("Enter")
    await opened.until(f"window.chatEnd.asked.length === {count}")
    asked: dict[str, Any] = await opened.page.evaluate("window.chatEnd.asked.at(-1)")
    return asked


async def _say(opened: OpenPage, *deltas: dict[str, str], finish: str = "stop") -> None:
    await opened.page.evaluate("deltas => deltas.forEach(window.chatEnd.delta)", list(deltas))
    if finish:
        await opened.page.evaluate("reason => window.chatEnd.finish(reason)", finish)


def _file(name: str, type_: str) -> FilePayload:
    data = io.BytesIO()
    if type_.startswith("image/"):
        Image.new("RGB", (60, 40), "teal").save(data, "PNG")
    return FilePayload(name=name, mimeType=type_, buffer=data.getvalue() or b"not empty")


async def test_the_tab_is_there_where_the_engine_chats_and_keys_move_between_tabs() -> None:
    async with open_page(models=able_models(chat=False)) as opened:
        assert not await opened.page.is_visible("#tabs")
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await page.focus("#tab-call")
        await page.keyboard.press("ArrowRight")
        assert await page.evaluate("document.activeElement.id") == "tab-chat"
        assert await page.get_attribute("#tab-chat", "aria-selected") == "true"
        assert await page.get_attribute("#tab-call", "tabindex") == "-1"
        assert await page.is_visible("#chat-panel")
        assert not await page.is_visible("#call-panel")
        assert await page.is_visible("#settings")
        assert not await page.is_visible("#devices")
        await page.keyboard.press("Home")
        assert await page.is_visible("#call-panel")


async def test_an_answer_comes_piece_by_piece_with_its_reasoning_apart() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await page.click("#settings summary")
        await page.fill("#setting-instructions", "Be brief.")
        await _open_chat(opened)
        await page.check("#thinking")
        asked = await _ask(opened, "What is 2 + 2?")
        assert asked["stream"] is True
        assert asked["model"] == "minicpm-o"
        assert asked["enable_thinking"] is True
        assert asked["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 2?"},
        ]
        await _say(opened, {"reasoning_content": "Two and "}, {"reasoning": "two."}, finish="")
        await opened.shows(".reasoning")
        assert await page.text_content(".reasoning p") == "Two and two."
        assert not await page.is_visible(".reasoning p"), "closed until it is asked for"
        await opened.shows('#chat-log[aria-busy="true"]')
        await _say(opened, {"content": "It is "}, {"content": "four."})
        await opened.shows('#chat-log[aria-busy="false"]')
        assert await page.inner_text(f"{ANSWER} .prose") == "It is four."
        again = await _ask(opened, "Sure?", count=2)
        assert again["messages"][2:] == [
            {"role": "assistant", "content": "It is four."},
            {"role": "user", "content": "Sure?"},
        ], "the reasoning is not sent back"
        await _say(opened, {"content": "Yes"}, finish="length")
        await opened.shows(f"{ANSWER} .message-note")
        await page.reload()
        assert await page.locator(".message").count() == 0, "kept in this page alone"
        assert await page.is_checked("#thinking")


async def test_how_closely_pictures_are_looked_at_is_said_in_every_request() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        await _open_chat(opened)
        assert (await _ask(opened, "Rough?"))["max_slices"] == 1
        await _say(opened, {"content": "Yes"})
        await opened.shows('#chat-log[aria-busy="false"]')
        await opened.page.click("#settings summary")
        assert "In a chat, holds from the next message on" in await opened.page.inner_text(
            "#hd-note"
        )
        await opened.page.check("#setting-max_slices")
        assert (await _ask(opened, "Closely?", count=2))["max_slices"] == 9


async def test_what_the_model_writes_is_text_and_code_stands_in_a_box() -> None:
    text = "<img src=x onerror=alert(1)> **a**\nb\n\n```py\n<b>if</b> a:\n    b\n```\nThen `c`."
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        await _ask(opened, "<i>Go</i>")
        await _say(opened, *({"content": each} for each in text))
        await opened.shows(f'{ANSWER}[data-state=""]')
        blocks = f"[...document.querySelectorAll('{ANSWER} .prose > *')]"
        assert await page.evaluate(f"{blocks}.map((each) => [each.tagName, each.innerText])") == [
            ["P", "<img src=x onerror=alert(1)> **a**\nb"],
            ["PRE", "<b>if</b> a:\n    b"],
            ["P", "Then `c`."],
        ]
        assert await page.locator("#chat-log :is(img, i, b:not(.message > b))").count() == 0
        family = "getComputedStyle(document.querySelector('pre code')).fontFamily"
        assert "monospace" in await page.evaluate(family)


async def test_an_answer_is_stopped_and_what_was_said_stays() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        assert not await page.is_visible("#chat-stop")
        await _ask(opened, "Count.")
        assert not await page.is_visible("#chat-form .send")
        await _say(opened, {"content": "One, two"}, finish="")
        await opened.until("document.querySelector('.prose:last-of-type')?.textContent !== ''")
        await page.fill(FIELD, "next")
        await page.keyboard.press("Enter")
        assert await page.input_value(FIELD) == "next", "kept for when the answer is there"
        await page.click("#chat-stop")
        await opened.shows(f'{ANSWER}[data-state="stopped"]')
        assert await page.evaluate("window.chatEnd.aborted") == 1
        assert await page.inner_text(f"{ANSWER} .prose") == "One, two"
        asked = await _ask(opened, "Go on.", count=2)
        assert asked["messages"][1] == {"role": "assistant", "content": "One, two"}


async def test_pictures_recordings_and_films_go_along() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        files = [_file("a.png", "image/png"), _file("b.mp3", "audio/mpeg")]
        files += [_file("c.mp4", "video/mp4"), _file("d.png", "image/png")]
        await page.set_input_files(FILES, [*files, _file("e.pdf", "application/pdf")])
        await opened.until("document.querySelectorAll('.attachments li').length === 4")
        assert await page.inner_text(NOTE) == (
            "“e.pdf” cannot be attached: only pictures, sound and films can."
        )
        await page.click('[aria-label="Remove d.png"]')
        asked = await _ask(opened, "Compare them.")
        parts = asked["messages"][0]["content"]
        assert [part["type"] for part in parts] == ["image_url", "audio_url", "video_url", "text"]
        assert parts[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
        assert parts[1]["audio_url"]["url"].startswith("data:audio/mpeg;base64,")
        assert parts[2]["video_url"]["url"].startswith("data:video/mp4;base64,")
        assert parts[3]["text"] == "Compare them."
        assert await page.locator(".message-files img").count() == 1
        await _say(opened, {"content": "Done."})
        await opened.shows(f'{ANSWER}[data-state=""]')
        again = await _ask(opened, "And now?", count=2)
        assert again["messages"][0]["content"] == parts, "the model sees them again"


async def test_more_than_a_conversation_holds_is_refused_in_words() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        nine = [_file(f"{n}.png", "image/png") for n in range(9)]
        await page.set_input_files(FILES, nine)
        told = "At most 8 files at a time."
        await opened.until(f"document.querySelector('{NOTE}').textContent === '{told}'")
        for name in range(8):
            await page.click(f'[aria-label="Remove {name}.png"]')
        films = [_file(f"{n}.mp4", "video/mp4") for n in range(5)]
        await page.set_input_files(FILES, films)
        await opened.until("document.querySelectorAll('.attachments li').length === 5")
        await page.click("#chat-form .send")
        assert "at most 4 films" in await page.inner_text(NOTE)
        empty = FilePayload(name="f.wav", mimeType="audio/wav", buffer=b"")
        await page.set_input_files(FILES, [empty])
        await opened.until(f"document.querySelector('{NOTE}').textContent.includes('empty')")
        assert await page.evaluate("window.chatEnd.asked") == []


BUSY = [503, {"Retry-After": "7"}, {"error": {"message": "too many chats"}}]
KEYLESS = [401, {}, {"error": {"message": "Use Bearer auth."}}]
LARGE = [413, {}, {"error": {"message": "the body is too large"}}]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (f"refusal = {BUSY}", "too many chats The engine is busy: send it again in about 7"),
        (f"refusal = {KEYLESS}", "This server asks for a key. Ask whoever runs it for one"),
        (f"refusal = {LARGE}", "the body is too large Remove files"),
        ("broken = true", "The server cannot be reached."),
    ],
)
async def test_a_question_without_an_answer_is_explained_and_can_be_sent_again(
    fault: str, words: str
) -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        await page.evaluate(f"void (window.chatEnd.{fault})")
        await page.fill(FIELD, "Hello")
        await page.keyboard.press("Enter")
        await opened.shows(".message-problem")
        assert words in await page.inner_text(".message-problem")
        assert await page.is_disabled(FIELD)
        await page.click(".again")
        await opened.until("document.querySelectorAll('.message-problem').length === 1")
        await page.evaluate("Object.assign(window.chatEnd, { refusal: null, broken: false })")
        await page.click(".change")
        assert await page.input_value(FIELD) == "Hello"
        assert await page.locator(".message").count() == 0
        await page.evaluate("void (window.chatEnd.asked.length = 0)")
        asked = await _ask(opened, "Hello again")
        assert asked["messages"] == [{"role": "user", "content": "Hello again"}]


async def test_an_answer_that_breaks_off_is_no_answer() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        await _ask(opened, "Hello")
        await _say(opened, {"content": "Half of"}, finish="")
        await page.evaluate("window.chatEnd.cut()")
        await opened.shows(".message-problem")
        assert "broke off" in await page.inner_text(".message-problem")
        await page.click(".again")
        await opened.until("window.chatEnd.asked.length === 2")
        failed = {"error": {"message": "the engine stumbled"}}
        await page.evaluate("(failed) => window.chatEnd.event(failed)", failed)
        await opened.until(
            "document.querySelector('.message-problem')?.textContent.includes('stumbled')"
        )


async def test_a_call_and_a_chat_do_not_share_the_model_at_once() -> None:
    async with open_page(LOOK, models=able_models()) as opened:
        page = opened.page
        await opened.call()
        await _open_chat(opened)
        assert await page.is_disabled(FIELD)
        assert await page.inner_text(NOTE) == "Your call has the model: hang up to chat."
        await page.keyboard.press("h")
        assert await page.inner_text("#tab-call") == "Call (on)", "keys of the call rest"
        await page.click("#tab-call")
        await page.click("#call-button")
        await opened.state("ended")
        await page.click("#tab-chat")
        await _ask(opened, "Hello")


async def test_a_new_chat_forgets_and_an_answer_is_copied() -> None:
    clipboard = """Object.defineProperty(navigator, 'clipboard', { value: {
      writeText: async (text) => { window.copied = text; } } });"""
    async with open_page(Look(preamble=CHAT_END + clipboard), models=able_models()) as opened:
        page = opened.page
        await _open_chat(opened)
        assert not await page.is_visible("#chat-new")
        await _ask(opened, "Hello")
        await _say(opened, {"content": "Hi,\n\nyou."})
        await page.click(".copy")
        await opened.until("window.copied === 'Hi,\\n\\nyou.'")
        assert await page.inner_text(".copy") == "Copied"
        await _ask(opened, "More", count=2)
        await page.click("#chat-new")
        assert await page.locator(".message").count() == 0
        assert await page.evaluate("window.chatEnd.aborted") == 1
        asked = await _ask(opened, "Afresh", count=3)
        assert asked["messages"] == [{"role": "user", "content": "Afresh"}]
