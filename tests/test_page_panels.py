"""Captions and checks: what the page makes of the server's events and of WebRTC's statistics."""

from typing import Any

import pytest

from tests.web_page.browser import IN_ONE_LOOP, open_page

pytestmark = [pytest.mark.browser, IN_ONE_LOOP]

LINES = """[...document.querySelectorAll('.line')].map((line) => [
  line.dataset.speaker, ...['p', 'small'].map((part) => line.querySelector(part).textContent)])"""
CHECKS = """async (facts) => {
  const { Preflight } = await import('./preflight.js');
  const preflight = new Preflight(0);
  for (const [name, value] of facts) preflight[name](value);
  return Object.fromEntries(preflight.rows().map((row) => [row.id, row]));
}"""
STATISTICS = """async (readings) => {
  const { StatisticsReader } = await import('./statistics.js');
  const reader = new StatisticsReader();
  return readings.map((reports) => reader.read(reports)).at(-1);
}"""


def _delta(item: str, delta: str) -> dict[str, Any]:
    return {"type": "response.output_audio_transcript.delta", "item_id": item, "delta": delta}


async def test_captions_say_who_said_what_and_what_was_cut_short() -> None:
    heard = "conversation.item.input_audio_transcription.completed"
    done = "response.output_audio_transcript.done"
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(
            _delta("a1", "Good mor"),
            _delta("a1", "ning to"),
            {"type": done, "item_id": "a1", "transcript": "Good morning to you."},
            {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
            {"type": heard, "item_id": "u1", "transcript": "Hello <b>there</b>."},
            {"type": "input_audio_buffer.speech_stopped", "item_id": "u1"},
            _delta("a2", "As I was"),
            {"type": "conversation.item.truncated", "item_id": "a2", "audio_end_ms": 640},
        )
        await opened.shows(".line[data-interrupted]")
        assert await opened.page.evaluate(LINES) == [
            ["agent", "Good morning to you.", ""],
            ["user", "Hello <b>there</b>.", ""],
            ["agent", "As I was", "interrupted after 0.6 s"],
        ]
        times = await opened.page.locator(".line time").all_inner_texts()
        assert all(time.startswith("0:0") for time in times)


async def test_speech_without_a_transcript_is_noted_until_one_comes() -> None:
    heard = "conversation.item.input_audio_transcription.completed"
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(
            {"type": "input_audio_buffer.speech_started", "item_id": "u1"},
            {"type": "input_audio_buffer.speech_stopped", "item_id": "u1"},
        )
        await opened.shows(".line[data-placeholder]")
        assert "spoke for" in (await opened.page.evaluate(LINES))[0][1]
        await opened.server_says({"type": heard, "item_id": "u1", "transcript": "Yes."})
        await opened.shows(".line:not([data-placeholder])")
        assert await opened.page.evaluate(LINES) == [["user", "Yes.", ""]]


def _said_in_one_call(*answers: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        _delta("a1", "One two three. "),
        _delta("a1", "Four five six seven eight nine ten eleven twelve thirteen fourteen."),
        {"type": "conversation.item.truncated", "item_id": "a1", "audio_end_ms": 900},
        *answers,
    ]


def _retrieved(item: str, transcript: str) -> dict[str, Any]:
    part = {"type": "output_audio", "transcript": transcript}
    return {"type": "conversation.item.retrieved", "item": {"id": item, "content": [part]}}


ASKED = "window.farEnd.received.filter((each) => each.type === 'conversation.item.retrieve')"


async def test_words_cut_off_before_they_were_heard_are_struck_out() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(*_said_in_one_call())
        await opened.until(f"{ASKED}.length === 1")
        (question,) = await opened.page.evaluate(ASKED)
        assert question["item_id"] == "a1"
        await opened.server_says(_retrieved("a1", "One two three. "))
        await opened.shows(".line s")
        text = "[...document.querySelector('.line p').childNodes].map((each) => each.textContent)"
        heard, rest = await opened.page.evaluate(text)
        assert heard == "One two three. "
        assert rest == "Four five six seven eight nine ten eleven twelve thirteen…"


async def test_what_counts_as_heard_is_what_the_server_says() -> None:
    said = "One two three."
    heard = {"a1": "", "a2": "Quite other words.", "a3": "One tw", "a4": said}
    shown = {"a1": "<s>One two three.</s>", "a3": "One tw<s>o three.</s>"}
    async with open_page() as opened:
        await opened.call()
        for item, words in heard.items():
            done = {"type": "response.output_audio_transcript.done", "item_id": item}
            cut = {"type": "conversation.item.truncated", "item_id": item, "audio_end_ms": 9}
            await opened.server_says(_delta(item, "One"), cut, _retrieved(item, words))
            await opened.server_says(done | {"transcript": said})
        # Asked for by nobody, of a line that was not interrupted: nothing to strike out.
        await opened.server_says(_delta("a5", said), _retrieved("a5", "One"), _delta("a6", "."))
        await opened.shows('[data-item-id="a6"]')
        for item, words in (heard | {"a5": said}).items():
            text = await opened.page.inner_html(f'[data-item-id="{item}"] p')
            assert text == shown.get(item, words), item


async def test_a_server_that_forgot_what_was_heard_is_not_complained_about() -> None:
    forgot = "{ type: 'error', error: { message: 'no such item', event_id: asked.event_id } }"
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(*_said_in_one_call())
        await opened.until(f"{ASKED}.length === 1")
        await opened.page.evaluate(f"{ASKED}.forEach((asked) => window.farEnd.send({forgot}))")
        await opened.server_says(_delta("a2", "later"))
        await opened.shows('[data-item-id="a2"]')
        assert not await opened.page.is_visible("#problem")


async def test_captions_follow_the_newest_line_but_not_under_a_readers_eyes() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(*(_delta(f"a{n}", f"line {n}") for n in range(520)))
        await opened.shows('[data-item-id="a519"]')
        page = opened.page
        assert await page.locator(".line").count() == 500
        assert await page.locator(".line p").first.inner_text() == "line 20"
        log = "document.getElementById('captions')"
        at_end = f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 2"
        assert await page.evaluate(at_end)
        await page.evaluate(f"{log}.scrollTop = 1000")
        await opened.until("document.getElementById('newest').hidden")
        await page.evaluate("new Promise(requestAnimationFrame)")
        await opened.server_says(_delta("a519", " goes on"))
        await opened.shows("#newest")
        assert not await page.evaluate(at_end), "the reader stays where they are"
        await page.click("#newest")
        assert await page.evaluate(at_end)
        assert not await page.is_visible("#newest")


async def test_a_screen_reader_hears_a_streamed_line_once_it_is_whole() -> None:
    done = {
        "type": "response.output_audio_transcript.done",
        "item_id": "a",
        "transcript": "Hi all.",
    }
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(_delta("a", "Hi"))
        await opened.shows('#captions[role="log"][aria-busy="true"]')
        await opened.server_says(done)
        await opened.shows('#captions[aria-busy="false"]')
        assert await opened.page.inner_text(".line p") == "Hi all."


async def test_the_checks_turn_green_in_a_good_call() -> None:
    async with open_page() as opened:
        await opened.call()
        await opened.server_says(
            {"type": "input_audio_buffer.speech_started", "item_id": "u"},
            {"type": "voice_agent.echo", "erle_db": 21.5, "delay_ms": 180.2},
            {"type": "voice_agent.latency", "turn": 1, "first_sound_ms": 300},
            {"type": "voice_agent.unit", "unit": 1, "stage_ms": {"llm": 80, "mel": 20}},
        )
        for check in (
            "microphone",
            "hearing",
            "echo",
            "firstSound",
            "engine",
            "loss",
            "roundTrip",
            "concealed",
        ):
            await opened.shows(f'#checks [data-check="{check}"][data-verdict="ok"]')
        value = '[data-check="{}"] .value'
        assert await opened.page.inner_text(value.format("engine")) == "100 ms"
        assert await opened.page.inner_text(value.format("echo")) == "22 dB, 180 ms delay"


async def test_each_check_says_what_to_do_when_it_is_not_well() -> None:
    bad = {
        "roundTripMs": 900,
        "lossPercent": 20,
        "concealedPercent": 3,
        "jitterBufferMs": 200,
        "picture": None,
    }
    facts = [
        ("statistics", bad),
        ("picture", "camera"),
        ("tick", 13_000),
        ("apply", {"type": "voice_agent.echo", "erle_db": 3}),
        ("apply", {"type": "output_audio_buffer.started"}),
        *[("apply", {"type": "input_audio_buffer.speech_started"})] * 3,
        ("apply", {"type": "voice_agent.latency", "first_sound_ms": 1500}),
        ("apply", {"type": "voice_agent.unit", "stage_ms": {"a": 1200}}),
    ]
    async with open_page() as opened:
        rows = await opened.page.evaluate(CHECKS, facts)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "microphone": "failing",
        "hearing": "ok",
        "picture": "failing",
        "echo": "warning",
        "firstSound": "warning",
        "roundTrip": "failing",
        "loss": "failing",
        "concealed": "warning",
        "jitterBuffer": "warning",
        "engine": "failing",
    }
    assert all(row["advice"] for row in rows.values() if row["verdict"] in ("warning", "failing"))


async def test_little_echo_is_no_fault_unless_the_agent_seems_to_hear_itself() -> None:
    quiet = ("apply", {"type": "voice_agent.echo", "erle_db": 3})
    speech = ("apply", {"type": "input_audio_buffer.speech_started"})
    playing = ("apply", {"type": "output_audio_buffer.started"})
    stopped = ("apply", {"type": "output_audio_buffer.stopped"})
    async with open_page() as opened:
        in_turns = await opened.page.evaluate(CHECKS, [quiet, playing, stopped, *[speech] * 5])
        at_once = await opened.page.evaluate(CHECKS, [quiet, playing, *[speech] * 3])
    assert in_turns["echo"]["verdict"] == "ok"
    assert at_once["echo"]["verdict"] == "warning"


async def test_a_server_that_never_hears_a_loud_microphone_is_found_out() -> None:
    async with open_page() as opened:
        loud: list[tuple[str, Any]] = [("microphoneLevel", -20), ("tick", 13_000)]
        rows = await opened.page.evaluate(CHECKS, loud)
        assert (rows["microphone"]["verdict"], rows["hearing"]["verdict"]) == ("ok", "failing")
        heard = [*loud, ("apply", {"type": "input_audio_buffer.speech_started"})]
        rows = await opened.page.evaluate(CHECKS, heard)
        assert rows["hearing"]["verdict"] == "ok"


def _sound(second: int, lost: int, received: int, concealed: int = 9_000) -> dict[str, Any]:
    return {
        "type": "inbound-rtp",
        "kind": "audio",
        "packetsLost": lost,
        "packetsReceived": received,
        "totalSamplesReceived": 48_000 * second,
        "concealedSamples": concealed,
        "jitterBufferDelay": 0.04 * 48_000 * second,
        "jitterBufferEmittedCount": 48_000 * second,
    }


async def test_loss_and_gaps_are_of_the_last_ten_seconds_alone() -> None:
    calm = [[_sound(n, lost=500, received=50 * n)] for n in range(1, 12)]
    rough = [*calm, [_sound(12, lost=550, received=550, concealed=33_000)]]
    async with open_page() as opened:
        quiet = await opened.page.evaluate(STATISTICS, calm)
        assert quiet["lossPercent"] == 0
        assert quiet["concealedPercent"] == 0
        assert quiet["jitterBufferMs"] == pytest.approx(40)
        noisy = await opened.page.evaluate(STATISTICS, rough)
        assert noisy["lossPercent"] == pytest.approx(10, abs=1)
        assert noisy["concealedPercent"] == pytest.approx(5)


async def test_where_there_is_no_voice_nothing_is_said_of_its_sound() -> None:
    silent = """async (captionsOnly) => {
      const { Preflight } = await import('./preflight.js');
      const preflight = new Preflight(0, captionsOnly);
      preflight.statistics({ jitterBufferMs: 900, concealedPercent: 60, roundTripMs: 900 });
      const bad = preflight.rows().filter((row) => row.verdict === 'failing');
      return [preflight.alarm(), bad.map((row) => row.id)];
    }"""
    async with open_page() as opened:
        alarm, bad = await opened.page.evaluate(silent, False)
        assert alarm and bad == ["roundTrip", "concealed", "jitterBuffer"]
        assert await opened.page.evaluate(silent, True) == ["", ["roundTrip"]]


async def test_sound_that_is_held_back_for_long_is_said_at_once() -> None:
    hint = """async (jitterBufferMs) => {
      const { Preflight } = await import('./preflight.js');
      const preflight = new Preflight(0);
      preflight.statistics({ jitterBufferMs });
      return preflight.alarm();
    }"""
    async with open_page() as opened:
        assert await opened.page.evaluate(hint, 290) == ""
        assert "0.6 s late" in await opened.page.evaluate(hint, 560)
        await opened.page.evaluate(
            """import('./statistics.js').then(({ StatisticsReader }) => {
              StatisticsReader.prototype.read = () => ({ jitterBufferMs: 560 });
            })"""
        )
        await opened.call()
        await opened.until("document.getElementById('hint').textContent.includes('0.6 s late')")


async def test_the_round_trip_is_the_receivers_own_where_it_reports_one() -> None:
    pair = {"type": "candidate-pair", "nominated": True, "currentRoundTripTime": 0.02}
    remote = {"type": "remote-inbound-rtp", "roundTripTime": 0.05}
    async with open_page() as opened:
        assert (await opened.page.evaluate(STATISTICS, [[pair]]))["roundTripMs"] == 20
        assert (await opened.page.evaluate(STATISTICS, [[pair, remote]]))["roundTripMs"] == 50


async def test_the_camera_rate_is_counted_between_readings() -> None:
    def sent(frames: int, at_ms: int) -> list[dict[str, Any]]:
        size = {"frameWidth": 640, "frameHeight": 480, "framesSent": frames, "timestamp": at_ms}
        return [{"type": "outbound-rtp", "kind": "video"} | size]

    async with open_page() as opened:
        read = await opened.page.evaluate(STATISTICS, [sent(10, 1000), sent(14, 3000)])
        assert read["picture"] == {"width": 640, "height": 480, "perSecond": 2}
