"""The echo engine's words: each comes with the sound that says it."""

import numpy as np

from agent.commands import Interrupt
from agent.engines.echo_speech import timed_pieces
from agent.realtime.items import SpokenItem
from agent.realtime.limits import Limits
from agent.types import (
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnEnded,
)
from tests.test_echo_engine import Bench, caption, greeted, tone


def says_back() -> Bench:
    """The first moment of an answer of five words and 1125 ms."""
    bench = greeted()
    bench.partner.push(SpeechStarted(0))
    bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(MIC_RATE_HZ))
    bench.hear(np.zeros(MIC_RATE_HZ, np.float32))
    bench.events.clear()
    bench.run()
    return bench


def test_words_come_with_the_sound_that_says_them() -> None:
    bench = says_back()
    bench.run(3)
    samples, begun = 0, []
    for event in bench.events:
        if isinstance(event, TextDelta):
            begun.append((event.text, samples))
        elif isinstance(event, SpeechAudio):
            assert event.start == samples and event.samples.size
            samples += event.samples.size
    starts = [at * samples // 5 for at in range(5)]
    words = ["You", " spoke", " for", " 1.0", " s."]
    assert begun == list(zip(words, starts, strict=True))


def test_an_interrupted_answer_has_said_what_sounded_and_no_word_more() -> None:
    bench = says_back()
    item = SpokenItem("item", Limits(), shape="audio")
    for event in bench.events:
        if isinstance(event, TextDelta):
            item.say(event.text)
        elif isinstance(event, SpeechAudio):
            item.generated_ms = (event.start + event.samples.size) * 1000 // SPEECH_RATE_HZ
    assert 400 <= item.generated_ms <= 600
    for heard_ms in range(0, 400, 20):
        item.sounded_ms = heard_ms
        (part,) = item.content_so_far()["content"]  # type: ignore[misc]
        said = "You spoke for".split()[: heard_ms // 225]
        assert part["transcript"].split() == said, heard_ms  # type: ignore[index]
    bench.partner.control(Interrupt(2, 300))
    bench.run(3)
    (end,) = [event for event in bench.events if isinstance(event, TurnEnded)]
    assert end.reason == "interrupted"
    assert end.usage.text_out == len(caption(bench.events).split()) < 5


def test_words_too_short_to_be_cut_apart_come_together() -> None:
    pieces = timed_pieces("a b c d e f g h", SPEECH_RATE_HZ // 5)
    assert pieces == [(0, "a b c d"), (SPEECH_RATE_HZ // 10, " e f g h")]
    assert timed_pieces("a b", 1) == [(0, "a b")]
    assert timed_pieces("", 100) == []
