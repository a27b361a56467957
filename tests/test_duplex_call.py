"""A full-duplex call on the tiny model: what a client may ask of it, and what comes of that."""

from dataclasses import replace

import pytest

from agent.commands import ForceListen, Interrupt, Respond, UpdateSettings
from agent.duplex.call_parts import conversation_settings
from agent.duplex.policy import listen_bias
from agent.duplex.tokens import Token
from agent.errors import RequestError, VocoderError
from agent.types import Listened, SpeechAudio, TextDelta, TurnDetection, TurnEnded, TurnStarted
from tests.rig.jobs import advanced
from tests.rig.scripted_call import SETTINGS, Beeper, Driven, begun, parts, picture
from tests.rig.tiny_mind import LISTEN, says, second

# ---- turns --------------------------------------------------------------------------------------


def test_a_turn_is_told_in_captions_where_no_vocoder_is_installed() -> None:
    call = begun(LISTEN, says("ab"), says("c", ends=True), LISTEN, says("d"))
    assert call.listen(5) == [
        Listened(3),
        TurnStarted(1),
        TextDelta(4, 1, "ab"),
        TextDelta(5, 1, "c"),
        TurnEnded(1, "completed"),
        Listened(6),
        TurnStarted(2),
        TextDelta(7, 2, "d"),
    ]
    assert not call.parts.runner.slots.speech.tensor.any()


def test_every_unit_is_reported_with_its_stages_and_the_context() -> None:
    call = begun(LISTEN)
    call.call.push(second(3))
    job = call.call.next_job()
    assert job is not None
    while advanced(job, call.parts.runner):
        pass
    report = call.line.take()[-1]
    assert report.unit == 3 and report.context_tokens == call.context_tokens
    assert {"audio", "prefill"} <= {name for name, _ in report.stage_ms}


def test_speech_tokens_become_one_stream_of_sound_a_turn() -> None:
    call = begun(says("ab"), says("c"), says("", ends=True), LISTEN, vocoder=Beeper())
    sounds = [event for event in call.listen(4) if isinstance(event, SpeechAudio)]
    assert {sound.turn for sound in sounds} == {1}
    assert [sound.last for sound in sounds] == [False] * (len(sounds) - 1) + [True]
    assert len(sounds) >= 3
    assert [sound.start for sound in sounds] == [
        sum(len(one.samples) for one in sounds[:index]) for index in range(len(sounds))
    ]
    assert len(sounds[1].samples) == 25 * 960


def test_a_client_that_wants_text_gets_no_sound() -> None:
    settings = replace(SETTINGS, output_modalities=("text",))
    call = begun(says("ab"), vocoder=Beeper(), settings=settings)
    assert call.listen() == [TurnStarted(1), TextDelta(3, 1, "ab")]


def test_a_vocoder_that_fails_costs_the_turn_its_sound_and_nothing_else() -> None:
    class Broken(Beeper):
        def open(self, voice: str) -> "Broken":
            return self

        def push(self, tokens: object) -> object:
            raise VocoderError("out of tune")

    call = begun(says("ab"), says("c", ends=True), vocoder=Broken())
    assert call.listen(2) == [
        TurnStarted(1),
        TextDelta(3, 1, "ab"),
        TextDelta(4, 1, "c"),
        TurnEnded(1, "completed"),
    ]


# ---- interruptions ------------------------------------------------------------------------------


def test_an_interruption_forgets_what_was_not_heard_and_the_next_turn_gets_the_next_number() -> (
    None
):
    call = begun(says("ab"), says("cd"), LISTEN, says("e"), vocoder=Beeper())
    call.listen(2)
    told = call.context_tokens
    assert call.tell(Interrupt(1, 0)) == [TurnEnded(1, "interrupted")]
    assert call.context_tokens < told
    assert call.listen()[0] == Listened(5)
    assert call.listen()[:2] == [TurnStarted(2), TextDelta(6, 2, "e")]


def test_captions_are_heard_as_they_are_shown() -> None:
    call = begun(says("ab"), says("cd"), LISTEN)
    call.listen(2)
    told = call.context_tokens
    assert call.tell(Interrupt(1, 0)) == [TurnEnded(1, "interrupted")]
    assert call.context_tokens == told + 1  # the end of the turn


def test_an_interruption_of_a_turn_that_is_over_says_nothing() -> None:
    call = begun(says("ab", ends=True), LISTEN)
    call.listen(2)
    assert call.tell(Interrupt(1, 10_000)) == []
    assert call.tell(Interrupt(7, 0)) == []


def test_an_interruption_goes_before_units_that_wait() -> None:
    call = begun(says("ab"), LISTEN, vocoder=Beeper())
    call.listen()
    call.call.push(second(4))
    call.call.control(Interrupt(1, 0))
    assert call.work() == [TurnEnded(1, "interrupted"), Listened(4)]


# ---- orders -------------------------------------------------------------------------------------


def test_an_agent_that_is_to_listen_ends_its_turn_and_takes_no_other() -> None:
    call = begun(says("ab"), says("c"))
    call.listen()
    call.tell(ForceListen(True))
    assert call.listen(2) == [Listened(4), TurnEnded(1, "interrupted"), Listened(5)]
    call.tell(Respond())
    assert call.listen() == [Listened(6)]
    call.tell(ForceListen(False))
    call.script._tokens = [ord("z"), Token.CHUNK_EOS]
    assert call.listen() == [TurnStarted(2), TextDelta(7, 2, "z")]


def test_an_agent_that_is_asked_speaks_at_once_even_in_its_first_units() -> None:
    call = Driven([ord("h"), ord("i"), Token.TURN_EOS, Token.CHUNK_EOS])
    call.tell(Respond())
    said = call.listen()
    assert said == [TurnStarted(1), TextDelta(0, 1, "hi"), TurnEnded(1, "completed")]
    assert isinstance(said[0], TurnStarted) and said[0].asked


def test_words_of_a_request_to_speak_are_read_first() -> None:
    plain, told = (Driven([ord("h"), Token.CHUNK_EOS]) for _ in range(2))
    plain.tell(Respond())
    told.tell(Respond("greet"))
    plain.listen()
    told.listen()
    assert told.context_tokens == plain.context_tokens + len("greet")


@pytest.mark.parametrize("detection", [None, TurnDetection(create_response=False)])
def test_an_agent_that_is_not_to_answer_by_itself_waits_to_be_asked(
    detection: TurnDetection | None,
) -> None:
    settings = replace(SETTINGS, turn_detection=detection)
    call = begun([ord("a"), Token.CHUNK_EOS], says("b", ends=True), settings=settings)
    assert call.listen(2) == [Listened(3), Listened(4)]
    call.tell(Respond())
    said = call.listen(3)
    assert said[:2] == [TurnStarted(1), TextDelta(5, 1, "a")]
    assert said[2:] == [TextDelta(6, 1, "b"), TurnEnded(1, "completed"), Listened(7)]


def test_eagerness_moves_the_models_own_choice_to_listen() -> None:
    made = parts()
    for eagerness in (0.0, 0.5, 1.0):
        settings = conversation_settings(made, replace(SETTINGS, eagerness=eagerness))
        assert settings.text.listen_bias == listen_bias(eagerness)
    semantic = TurnDetection(kind="semantic_vad", eagerness="high")
    eager = conversation_settings(made, replace(SETTINGS, turn_detection=semantic))
    assert eager.text.listen_bias == listen_bias(0.75)


# ---- settings -----------------------------------------------------------------------------------


def test_new_instructions_take_the_place_of_the_old_ones_and_the_units_stay() -> None:
    call = begun(LISTEN)
    before = call.context_tokens
    call.tell(UpdateSettings(replace(SETTINGS, instructions="abcdef")))
    assert call.context_tokens == before + 4
    assert call.listen() == [Listened(3)]


def test_instructions_that_do_not_fit_are_refused_and_the_old_ones_hold() -> None:
    call = begun(LISTEN)
    before = call.context_tokens
    with pytest.raises(RequestError, match="at most half"):
        call.tell(UpdateSettings(replace(SETTINGS, instructions="x" * 600)))
    assert call.work() == [] and call.context_tokens == before
    with pytest.raises(RequestError, match="at most half"):
        Driven(settings=replace(SETTINGS, instructions="x" * 600))


def test_the_prompt_follows_the_language_and_the_camera_unless_it_was_given() -> None:
    spoken = replace(SETTINGS, instructions="")
    english = begun(LISTEN, settings=spoken)
    chinese = begun(LISTEN, settings=replace(spoken, language="zh"))
    assert english.context_tokens - chinese.context_tokens > 100
    before = english.context_tokens
    english.listen(pictures=(picture(),))
    assert english.context_tokens < before
    given = begun(LISTEN)
    before = given.context_tokens
    given.listen(pictures=(picture(),))
    assert given.context_tokens == before + 13 + 66
