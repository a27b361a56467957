"""Settings of a call: chosen, remembered, sent, acknowledged, refused, or not offered at all."""

from dataclasses import asdict
from typing import Any

import pytest

from agent.engines.echo import ABILITIES
from tests.web_page.browser import IN_ONE_LOOP, OpenPage, open_page
from tests.web_page.server import able_models, echo_models

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

SET = """([id, value]) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event('input'));
  control.dispatchEvent(new Event('change'));
}"""
UPDATES = "window.farEnd.received.filter((event) => event.type === 'session.update')"


def _session(**extension: Any) -> dict[str, Any]:
    """The session object of a server on which nothing was changed but `extension`."""
    usual = {"language": "en", "eagerness": 0.5, "mode": "duplex", "max_slices": 1}
    return {
        "id": "sess_1",
        "instructions": extension.pop("instructions", ""),
        "voice_agent": usual | {"pictures_per_unit": 1} | extension,
    }


async def _open_settings(opened: OpenPage) -> None:
    await opened.page.click("#settings summary")


async def _asked(opened: OpenPage, count: int = 1) -> list[dict[str, Any]]:
    await opened.until(f"{UPDATES}.length === {count}")
    updates: list[dict[str, Any]] = await opened.page.evaluate(UPDATES)
    return updates


async def test_what_was_chosen_goes_with_the_offer_and_is_remembered() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await _open_settings(opened)
        await page.fill("#setting-instructions", "You are a guide.")
        await page.select_option("#setting-language", "zh")
        await page.evaluate(SET, ["setting-eagerness", "0.9"])
        await page.check("#setting-max_slices")
        await page.select_option("#setting-pictures_per_unit", "2")
        assert await page.inner_text("#eagerness-words") == "Jumps in early"
        await page.reload()
        await page.wait_for_selector('#engine[data-engine="minicpm-o"]')
        assert await page.get_attribute("#settings", "open") is not None, "remembered open"
        assert await page.input_value("#setting-instructions") == "You are a guide."
        assert await page.is_checked("#setting-max_slices")
        await opened.call()
        assert await page.evaluate("window.farEnd.sessions") == [
            {
                "type": "realtime",
                "instructions": "You are a guide.",
                "voice_agent": {
                    "language": "zh",
                    "eagerness": 0.9,
                    "max_slices": 9,
                    "pictures_per_unit": 2,
                },
            }
        ]


async def test_a_change_in_a_call_is_acknowledged_when_it_holds() -> None:
    async with open_page(models=able_models()) as opened:
        await _open_settings(opened)
        await opened.call()
        await opened.server_says({"type": "session.created", "session": _session()})
        await opened.page.select_option("#setting-mode", "half_duplex")
        (asked,) = await _asked(opened)
        assert asked["session"] == {
            "type": "realtime",
            "voice_agent": {"mode": "half_duplex"},
        }
        await opened.shows('[data-ack="waiting"]')
        await opened.server_says(
            {"type": "session.updated", "session": _session(mode="half_duplex")}
        )
        await opened.shows('.field:has(#setting-mode) [data-ack="ok"]')
        await opened.page.fill("#setting-instructions", "Be brief.")
        await opened.page.focus("#setting-language")
        assert (await _asked(opened, 2))[1]["session"] == {
            "type": "realtime",
            "instructions": "Be brief.",
        }


async def test_a_refused_change_is_said_beside_its_control_which_goes_back() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await _open_settings(opened)
        await opened.call()
        await opened.server_says({"type": "session.created", "session": _session(eagerness=0.25)})
        await opened.until("document.getElementById('setting-eagerness').value === '0.25'")
        await page.evaluate(SET, ["setting-eagerness", "0.7"])
        await page.select_option("#setting-mode", "half_duplex")
        first, _ = await _asked(opened, 2)
        error = {"message": "not while it rains", "event_id": first["event_id"]}
        await opened.server_says(
            {"type": "error", "error": error},
            {"type": "session.updated", "session": _session(mode="half_duplex", eagerness=0.25)},
        )
        await opened.shows('.field:has(#setting-mode) [data-ack="ok"]')
        refused = '.field:has(#setting-eagerness) [data-ack="refused"]'
        assert "not while it rains" in await page.inner_text(refused)
        assert await page.input_value("#setting-eagerness") == "0.25"
        assert await page.input_value("#setting-mode") == "half_duplex"
        assert not await page.is_visible("#problem"), "said once, where it belongs"
        await page.click("#call-button")
        await opened.state("ended")
        assert await page.evaluate("localStorage.getItem('voice-agent.settings')") == (
            '{"mode":"half_duplex"}'
        ), "what was refused is not tried again"


async def test_a_change_that_was_in_force_and_is_refused_then_goes_back() -> None:
    """The engine reads a prompt later than the server does."""
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await _open_settings(opened)
        await opened.call()
        await opened.server_says({"type": "session.created", "session": _session()})
        await page.fill("#setting-instructions", "Much too long.")
        await page.focus("#setting-language")
        await page.evaluate(SET, ["setting-eagerness", "0.7"])
        await page.select_option("#setting-mode", "half_duplex")
        long, _, _ = await _asked(opened, 3)
        held = {"instructions": "Much too long.", "eagerness": 0.7}
        error = {"message": "it does not fit", "event_id": long["event_id"]}
        await opened.server_says(
            {"type": "session.updated", "session": _session(instructions="Much too long.")},
            {"type": "session.updated", "session": _session(**held)},
            {"type": "error", "error": error},
            {"type": "session.updated", "session": _session(eagerness=0.7)},
        )
        refused = '.field:has(#setting-instructions) [data-ack="refused"]'
        await opened.shows(refused)
        assert await page.inner_text(refused) == "Not changed: it does not fit"
        assert await page.input_value("#setting-instructions") == ""
        assert await page.input_value("#setting-eagerness") == "0.7"
        mode = await page.get_attribute(".field:has(#setting-mode) [data-ack]", "data-ack")
        assert mode == "waiting", "that the prompt went back says nothing of the mode"
        assert await page.evaluate("localStorage.getItem('voice-agent.settings')") == (
            '{"eagerness":0.7,"mode":"half_duplex"}'
        )


async def test_a_refusal_of_an_old_choice_leaves_the_new_one() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await _open_settings(opened)
        await opened.call()
        await opened.server_says({"type": "session.created", "session": _session()})
        await page.evaluate(SET, ["setting-eagerness", "0.7"])
        await page.evaluate(SET, ["setting-eagerness", "0.9"])
        old, _ = await _asked(opened, 2)
        error = {"message": "no", "event_id": old["event_id"]}
        await opened.server_says(
            {"type": "session.updated", "session": _session(eagerness=0.7)},
            {"type": "session.updated", "session": _session(eagerness=0.9)},
            {"type": "error", "error": error},
            {"type": "session.updated", "session": _session(eagerness=0.9)},
        )
        await opened.shows('.field:has(#setting-eagerness) [data-ack="ok"]')
        assert await page.input_value("#setting-eagerness") == "0.9"


async def test_what_was_chosen_while_the_call_was_being_answered_is_sent_then() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await _open_settings(opened)
        await page.evaluate("void (window.farEnd.gate = new Promise((r) => (window.open_it = r)))")
        await page.click("#call-button")
        await opened.until("window.farEnd.sessions.length === 1")
        await page.select_option("#setting-mode", "half_duplex")
        await page.evaluate("window.open_it()")
        # The far end begins its session without a mode of its own.
        (asked,) = await _asked(opened)
        assert asked["session"]["voice_agent"] == {"mode": "half_duplex"}


async def test_the_echo_engine_is_asked_for_nothing_that_it_cannot_understand() -> None:
    able = asdict(ABILITIES)
    del able["default_instructions"]
    async with open_page(models=able_models(**able)) as opened:
        page = opened.page
        await _open_settings(opened)
        for name in ("instructions", "language", "voice", "eagerness", "mode", "max_slices"):
            assert not await page.is_visible(f"#setting-{name}"), name
        assert await page.is_visible("#setting-pictures_per_unit"), "it counts the pictures"
        assert await page.inner_text("#settings-summary") == "pictures"
        assert "prompt" not in await page.inner_text("#settings")


async def test_an_engine_that_has_nothing_to_set_has_no_settings() -> None:
    none = dict.fromkeys(("chat", "typed_text", "camera", "pictures", "duplex"), False)
    async with open_page(models=able_models(**none, languages=[])) as opened:
        assert not await opened.page.is_visible("#settings")


async def test_an_engine_without_chats_follows_the_prompt_that_it_has() -> None:
    models = able_models(chat=False, languages=[], duplex=False)
    for model in models["data"]:
        model["voice_agent"]["default_instructions"] = {"en": "Help."}
    async with open_page(models=models) as opened:
        page = opened.page
        await _open_settings(opened)
        assert await page.get_attribute("#setting-instructions", "placeholder") == "Help."
        assert await page.is_visible("#setting-eagerness")
        assert not await page.is_visible("#setting-mode"), "it always takes turns"


async def test_a_choice_that_this_engine_cannot_follow_is_kept_but_not_sent() -> None:
    async with open_page(models=echo_models()) as opened:
        kept = '{"instructions":"Be brief.","language":"zh","mode":"half_duplex","eagerness":7}'
        await opened.page.evaluate(
            "(kept) => localStorage.setItem('voice-agent.settings', kept)", kept
        )
        await opened.page.reload()
        await opened.page.wait_for_selector('#engine[data-engine="echo"]')
        await opened.call()
        assert await opened.page.evaluate("window.farEnd.sessions") == [
            {"type": "realtime", "voice_agent": {"language": "en"}}
        ]


async def test_the_prompt_is_counted_and_cannot_grow_beyond_the_limit() -> None:
    models = able_models()
    for model in models["data"]:
        model["voice_agent"]["default_instructions"] = {"en": "Help.", "zh": "帮助。"}
    async with open_page(models=models) as opened:
        page = opened.page
        await _open_settings(opened)
        assert await page.get_attribute("#setting-instructions", "placeholder") == "Help."
        await page.select_option("#setting-language", "zh")
        assert await page.get_attribute("#setting-instructions", "placeholder") == "帮助。"
        await page.fill("#setting-instructions", "x" * 19_999)
        assert await page.inner_text("#instructions-count") == "19,999 of 20,000 characters"
        await page.keyboard.type("yz")
        assert "no more fits in" in await page.inner_text("#instructions-count")
        assert (await page.input_value("#setting-instructions")).endswith("xxy")


async def test_back_to_the_defaults_forgets_every_choice() -> None:
    async with open_page(models=able_models()) as opened:
        page = opened.page
        await _open_settings(opened)
        assert await page.is_disabled("#settings-reset"), "there is nothing to go back from"
        await page.fill("#setting-instructions", "Be brief.")
        await page.check("#setting-max_slices")
        await page.click("#settings-reset")
        assert await page.input_value("#setting-instructions") == ""
        assert not await page.is_checked("#setting-max_slices")
        assert await page.evaluate("localStorage.getItem('voice-agent.settings')") == "{}"
        await opened.call()
        assert await page.evaluate("window.farEnd.sessions") == [
            {"type": "realtime", "voice_agent": {"language": "en"}}
        ]
