"""The echo engine and what is put into a call beside the voice: functions, words, files, limits."""

import json

import numpy as np
import pytest

from agent.commands import (
    AddAudio,
    AddPicture,
    AddText,
    AddToolResult,
    Command,
    CommitInput,
    DeleteItem,
    Interrupt,
    Respond,
    Retract,
)
from agent.engines.echo_items import MAX_ITEMS
from agent.engines.echo_tools import MAX_CALLS, typed_calls
from agent.errors import RequestError
from agent.types import (
    MIC_RATE_HZ,
    SPEECH_RATE_HZ,
    EngineEvent,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    Tool,
    ToolCalled,
    TurnEnded,
    TurnStarted,
    Unit,
    Usage,
    VideoFrame,
)
from tests.rig.scripted_call import picture_file
from tests.test_echo_engine import GREETING, Bench, caption, greeted, sound, tone

TOOLS = (Tool("weather", "Tells the weather."), Tool("light"))


def settings(**changes: object) -> SessionSettings:
    return SessionSettings("echo", **{"tools": TOOLS, **changes})  # type: ignore[arg-type]


def asked(bench: Bench, *commands: Command) -> list[EngineEvent]:
    """What comes of these commands, the last of which is to be an answer's."""
    for command in commands:
        bench.partner.control(command)
    return bench.run(4)


def calls(events: list[EngineEvent]) -> list[tuple[str, str]]:
    return [(one.name, one.arguments) for one in events if isinstance(one, ToolCalled)]


def typed(text: str) -> AddText:
    return AddText("item_1", "user", text)


def ended(events: list[EngineEvent]) -> TurnEnded:
    (end,) = [one for one in events if isinstance(one, TurnEnded)]
    return end


def spoken(bench: Bench, seconds: int = 1) -> None:
    """The user speaks for so long from now on, and a second of silence follows."""
    start = bench.unit * MIC_RATE_HZ
    bench.partner.push(SpeechStarted(start))
    for _ in range(seconds):
        bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(start + seconds * MIC_RATE_HZ))
    bench.hear(np.zeros(MIC_RATE_HZ, np.float32))


# ---- functions ----------------------------------------------------------------------------------


def test_a_typed_command_calls_the_function_in_a_turn_of_its_own() -> None:
    events = asked(greeted(settings()), typed('/weather {"city": "Paris"}'), Respond())
    assert [type(one) for one in events] == [TurnStarted, ToolCalled, TurnEnded]
    assert calls(events) == [("weather", '{"city": "Paris"}')]
    assert {one.turn for one in events if not isinstance(one, TextDelta)} == {2}
    assert ended(events).reason == "completed"


def test_instructions_call_as_well_and_an_id_is_never_given_twice() -> None:
    bench = greeted(settings())
    first = asked(bench, Respond(instructions="/light"))
    second = asked(bench, Respond(instructions="/light"))
    assert calls(first) == calls(second) == [("light", "{}")]
    ids = {one.call_id for one in (*first, *second) if isinstance(one, ToolCalled)}
    assert len(ids) == 2 and all(one.startswith("call_") for one in ids)


def test_the_result_is_said_with_the_name_of_the_function_that_it_is_of() -> None:
    bench = greeted(settings())
    (call,) = [
        one for one in asked(bench, typed("/light"), Respond()) if isinstance(one, ToolCalled)
    ]
    assert bench.run(1) == []
    events = asked(bench, AddToolResult(call.call_id, '{"on": true}'), Respond())
    assert caption(events) == 'light returned: {"on": true}'
    assert sound(events).size
    unknown = asked(bench, AddToolResult("call_other", "42"), Respond())
    assert caption(unknown) == "The function returned: 42"


def test_several_calls_in_one_turn() -> None:
    events = asked(greeted(settings()), typed('/weather {"a": [1, 2]}\n/light'), Respond())
    assert calls(events) == [("weather", '{"a": [1, 2]}'), ("light", "{}")]


@pytest.mark.parametrize("choice", ["required", "light"])
@pytest.mark.parametrize("by_voice", [True, False])
def test_where_a_call_is_demanded_every_answer_is_one_until_a_result_came(
    choice: str, by_voice: bool
) -> None:
    bench = greeted(settings(tool_choice=choice))
    name = {"required": "weather"}.get(choice, choice)
    if by_voice:
        spoken(bench)
    events = bench.run(4) if by_voice else asked(bench, Respond())
    assert calls(events) == [(name, "{}")] and not sound(events).size
    assert not calls(asked(bench, AddToolResult("call_1", "done"), Respond()))
    assert calls(asked(bench, Respond())) == [(name, "{}")]


def test_one_answer_may_have_tools_and_a_choice_of_its_own() -> None:
    bench = greeted(settings(tools=()))
    assert calls(asked(bench, Respond(tools=TOOLS, tool_choice="light"))) == [("light", "{}")]
    assert calls(asked(bench, typed("/light"), Respond())) == []
    bench = greeted(settings())
    silent = asked(bench, typed("/light"), Respond(tool_choice="none"))
    assert calls(silent) == [] and caption(silent) == "You wrote: /light"


@pytest.mark.parametrize(
    "text",
    ["light", "/light now", "/unknown", '/light {"a": }', "/light {}x", "x /light", "/light [1]"],
)
def test_what_is_no_command_is_said_back(text: str) -> None:
    events = asked(greeted(settings()), typed(text), Respond())
    assert calls(events) == [] and caption(events) == f"You wrote: {text}"


def test_the_number_of_calls_in_a_text_is_bounded() -> None:
    assert len(typed_calls("/light\n" * MAX_CALLS, TOOLS)) == MAX_CALLS
    assert typed_calls("/light\n" * (MAX_CALLS + 1), TOOLS) == []
    assert typed_calls("/light {" + '"a":[' * 100_000, TOOLS) == []


def test_nothing_is_called_by_a_unit_that_is_only_tried() -> None:
    bench = greeted(settings(tool_choice="required"))
    bench.partner.push(SpeechStarted(0))
    bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(15_000))
    tried = Unit(1, tone(1.0), 4800, (), True)
    bench.partner.push(tried)
    assert calls(bench.run(2)) == []
    bench.partner.control(Retract(1))
    assert calls(bench.run(2)) == []
    bench.partner.push(tried)
    assert calls(bench.run(2)) == []
    bench.partner.push(Unit(2, tone(1.0), MIC_RATE_HZ, inserted_samples=11_200))
    assert calls(bench.run(2)) == [("weather", "{}")]


# ---- words and files ----------------------------------------------------------------------------


def test_typed_words_are_said_back_as_long_as_they_take() -> None:
    bench = greeted()
    assert asked(bench, typed("Hi.")) == []
    events = asked(bench, Respond())
    assert caption(events) == "You wrote: Hi."
    assert sound(events).size == min(GREETING.samples.size, 3 * SPEECH_RATE_HZ * 2 // 5)
    assert caption(asked(bench, Respond())) == "Hello."


def test_only_the_users_words_are_said_back() -> None:
    told = [AddText("a", "system", "Be brief."), AddText("b", "assistant", "Yes?")]
    assert caption(asked(greeted(), *told, Respond())) == "Hello."


def test_a_recording_is_said_back_as_it_sounds() -> None:
    events = asked(greeted(), AddAudio("item_1", tone(2.0)), Respond())
    said = sound(events)
    assert caption(events) == "You sent a recording of 2.0 s."
    assert said.size == pytest.approx(2 * SPEECH_RATE_HZ, rel=0.01)
    power = np.abs(np.fft.rfft(said))
    assert power.argmax() * SPEECH_RATE_HZ / said.size == pytest.approx(440, abs=5)


def test_a_long_recording_comes_back_as_its_last_15_s_and_broken_samples_as_silence() -> None:
    samples = np.concatenate((np.full(MIC_RATE_HZ, 0.5, np.float32), tone(15.0)))
    samples[-8000:] = np.nan
    bench = greeted()
    bench.partner.control(AddAudio("item_1", samples))
    bench.partner.control(Respond())
    events = bench.run(20)
    assert caption(events) == "You sent a recording of 16.0 s. Here are the last 15."
    assert sound(events).size == pytest.approx(15 * SPEECH_RATE_HZ, rel=0.01)
    assert np.isfinite(sound(events)).all() and float(np.abs(sound(events)).max()) < 0.35


def test_a_picture_is_answered_by_its_size_with_the_words_beside_it() -> None:
    file = picture_file(64, 48)
    events = asked(greeted(), AddPicture("a", file), typed("What is this?"), Respond())
    assert caption(events) == "You sent a picture of 64×48 pixels. You wrote: What is this?"


@pytest.mark.parametrize("file", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_or_sound_is_refused_and_changes_nothing(file: bytes) -> None:
    bench = greeted()
    with pytest.raises(RequestError) as caught:
        bench.partner.control(AddPicture("a", file))
    assert caught.value.param == "item.content"
    with pytest.raises(RequestError, match="empty"):
        bench.partner.control(AddAudio("a", np.zeros(0, np.float32)))
    assert caption(asked(bench, Respond())) == "Hello."


def test_what_was_typed_is_answered_with_what_is_said_next() -> None:
    bench = greeted()
    bench.partner.control(typed("Listen:"))
    spoken(bench)
    events = bench.run(4)
    assert caption(events) == "You wrote: Listen: You spoke for 1.0 s."
    assert sound(events).size == pytest.approx(1.125 * SPEECH_RATE_HZ, rel=0.01)


def test_a_commit_is_answered_with_what_was_typed_before_it() -> None:
    bench = greeted(SessionSettings("echo", turn_detection=None))
    bench.hear(tone(1.0))
    said = asked(bench, typed("And this:"), CommitInput("item_2", MIC_RATE_HZ), Respond())
    assert caption(said).startswith("You wrote: And this: You spoke for")
    assert sound(said).size == pytest.approx(SPEECH_RATE_HZ, rel=0.01)


def test_what_was_typed_comes_again_with_an_utterance_that_was_cut_short() -> None:
    bench = greeted()
    bench.partner.control(typed("Listen:"))
    bench.partner.push(SpeechStarted(0))
    bench.hear(tone(1.0))
    bench.partner.push(SpeechEnded(15_000))
    bench.partner.push(Unit(1, tone(1.0), 4800, (), True))
    assert caption(bench.run()).startswith("You wrote: Listen:")
    bench.partner.control(Retract(1))
    assert ended(bench.run(1)).reason == "interrupted"
    bench.hear(tone(1.0))
    assert caption(bench.run(4)).startswith("You wrote: Listen: You spoke")


def test_deleted_items_are_not_answered_and_of_many_the_newest_are() -> None:
    bench = greeted()
    assert caption(asked(bench, typed("Hi."), DeleteItem("item_1"), Respond())) == "Hello."
    many = [AddText(str(number), "user", str(number)) for number in range(MAX_ITEMS + 2)]
    first = caption(asked(bench, *many, Respond()))
    assert first.startswith("You wrote: 2 You wrote: 3") and first.endswith(f"{MAX_ITEMS + 1}")


# ---- limits and figures -------------------------------------------------------------------------


def test_a_limit_cuts_words_and_as_much_of_the_sound() -> None:
    events = asked(greeted(), typed("one two three four"), Respond(max_output_tokens=3))
    assert caption(events) == "You wrote: one"
    assert ended(events).reason == "max_tokens" and ended(events).usage.text_out == 3
    whole = asked(greeted(), typed("one two three four"), Respond())
    assert sound(events).size == sound(whole).size // 2
    assert abs(float(sound(events)[-1])) < 1e-6, "it fades"


def test_the_sessions_limit_holds_for_the_greeting_and_a_call_that_is_longer_is_not_made() -> None:
    bench = Bench(settings(max_output_tokens=1))
    assert ended(bench.run(2)).reason == "completed"
    events = asked(bench, typed('/weather {"a": 1}'), Respond())
    assert calls(events) == [] and ended(events).reason == "max_tokens"
    assert calls(asked(bench, typed("/light"), Respond(max_output_tokens=2))) == [("light", "{}")]


def test_text_only_answers_come_in_pieces_for_one_answer_or_all() -> None:
    bench = greeted()
    text = " ".join(["word"] * 100)
    events = asked(bench, typed(text), Respond(output_modalities=("text",)))
    pieces = [one.text for one in events if isinstance(one, TextDelta)]
    assert 8 < len(pieces) <= 32 and "".join(pieces) == f"You wrote: {text}"
    assert not sound(events).size and isinstance(events[-1], TurnEnded)
    assert sound(asked(bench, typed("Hi."), Respond())).size


def test_what_a_turn_took_is_counted_by_the_stated_rule() -> None:
    bench = greeted(settings())
    frame = VideoFrame(np.zeros((4, 4, 3), np.uint8), 0)
    bench.hear(tone(1.0), frame)
    bench.hear(tone(1.0))
    put_in = [AddText("a", "system", "Be brief."), typed("Hi there."), AddAudio("b", tone(0.5))]
    events = asked(bench, *put_in, Respond(instructions="As a pirate."))
    words = len(caption(events).split())
    assert ended(events).usage == Usage(
        text_in=7, audio_in=25, pictures_in=1, text_out=words, audio_out=sound(events).size // 1200
    )
    called = asked(bench, typed(json.dumps({"a": 1})), typed('/light {"a": 1}'), Respond())
    assert ended(called).usage == Usage(text_in=5, text_out=3)


def test_an_interrupted_turn_counts_the_sound_that_was_made_and_a_tried_second_once() -> None:
    bench = Bench()
    bench.partner.push(Unit(0, tone(1.0), 4800, (), True))
    bench.hear(tone(1.0))
    made = sound(bench.run()).size
    bench.partner.control(Interrupt(1, 200))
    usage = ended(bench.run()).usage
    assert (usage.audio_in, usage.audio_out) == (10, made // 1200)
