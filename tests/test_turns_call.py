"""A half-duplex call on the tiny model: the detector ends the user's turn, the model answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from agent.commands import (
    AddPicture,
    AddText,
    ClearInput,
    CommitInput,
    DeleteItem,
    ForceListen,
    Interrupt,
    Respond,
)
from agent.duplex.tokens import Token
from agent.errors import RequestError, UnsupportedError
from agent.types import (
    UNIT_SAMPLES,
    EngineEvent,
    Listened,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    TurnDetection,
    TurnEnded,
    TurnStarted,
    VideoFrame,
)
from tests.rig.jobs import advanced
from tests.rig.scripted_call import SETTINGS, Beeper, Driven, picture_file

TURNS = replace(SETTINGS, mode="half_duplex")
END = int(Token.TTS_EOS)


def begun(*answers: str, **changes: object) -> Driven:
    """A call whose answers are written, a token a letter."""
    scripts = [[*map(ord, text), END] for text in answers]
    call = Driven(*scripts, **{"settings": TURNS, **changes})
    call.work()
    return call


def spoken(call: Driven, from_s: float = 0.2, to_s: float = 1.4) -> list[EngineEvent]:
    """The user speaks for so long; two units hold it."""
    start = call.heard * UNIT_SAMPLES
    call.call.push(SpeechStarted(start + int(from_s * UNIT_SAMPLES)))
    said = call.listen()
    call.call.push(SpeechEnded(start + int(to_s * UNIT_SAMPLES)))
    said += call.work()
    return said + call.listen()


def without_listening(said: Sequence[EngineEvent]) -> list[EngineEvent]:
    return [event for event in said if not isinstance(event, Listened)]


def text_of(said: Sequence[EngineEvent]) -> str:
    return "".join(event.text for event in said if isinstance(event, TextDelta))


def test_the_end_of_speech_is_answered_once_its_units_are_there() -> None:
    call = begun("hello there")
    start = 0
    call.call.push(SpeechStarted(start + 3000))
    assert call.listen() == [Listened(0)]
    call.call.push(SpeechEnded(20_000))
    assert call.work() == []  # the second that it ends in is still to come
    said = without_listening(call.listen())
    assert said[0] == TurnStarted(1) and said[-1] == TurnEnded(1, "completed")
    assert text_of(said) == "hello there"


def test_turns_go_on_in_one_conversation() -> None:
    call = begun("one", "two")
    spoken(call)
    once = call.context_tokens
    said = without_listening(spoken(call))
    assert said[0] == TurnStarted(2) and text_of(said) == "two"
    assert call.context_tokens > once


def test_a_user_who_only_pauses_is_heard_to_the_end() -> None:
    call, whole = begun("one"), begun("one")
    call.call.push(SpeechStarted(3000))
    call.listen()
    call.call.push(SpeechEnded(18_000))
    call.call.push(SpeechStarted(22_000))
    assert without_listening(call.listen()) == []
    call.call.push(SpeechEnded(40_000))
    assert text_of(call.listen()) == "one"
    whole.call.push(SpeechStarted(3000))
    whole.listen(2)
    whole.call.push(SpeechEnded(40_000))
    whole.listen()
    assert call.context_tokens == whole.context_tokens


def test_what_the_camera_saw_while_the_user_spoke_is_seen() -> None:
    frame = VideoFrame(np.full((28, 28, 3), 90, np.uint8), 0)
    blind, seeing = begun("one"), begun("one")
    spoken(blind)
    seeing.call.push(SpeechStarted(3000))
    seeing.listen(pictures=(frame,))
    seeing.call.push(SpeechEnded(22_400))
    seeing.listen(pictures=(frame, VideoFrame(np.zeros((10, 2000, 3), np.uint8), 0)))
    assert seeing.context_tokens == blind.context_tokens + 2 * 66


def test_an_answer_speaks_in_one_stream_of_sound() -> None:
    call = begun("hello there, you", vocoder=Beeper(), turn_tokens=64)
    sounds = [event for event in spoken(call) if isinstance(event, SpeechAudio)]
    assert len(sounds) >= 2 and [sound.last for sound in sounds][-1]
    assert sounds[1].start == len(sounds[0].samples)


def test_an_interrupted_answer_keeps_what_was_heard_and_the_next_turn_is_answered() -> None:
    call = begun("hello there", "two", vocoder=Beeper(), turn_tokens=64)
    spoken(call)
    before = call.context_tokens
    call.tell(Interrupt(1, 0))
    assert call.context_tokens < before
    assert text_of(spoken(call)) == "two"


def test_an_answer_that_is_interrupted_while_it_is_made_ends_there() -> None:
    call = begun("hello there")
    call.call.push(SpeechStarted(3000))
    call.listen()
    call.call.push(SpeechEnded(12_000))
    for _ in range(2):  # heard, begun
        job = call.call.next_job()
        assert job is not None
        while advanced(job, call.parts.runner):
            pass
    assert without_listening(call.line.take())[-1] == TurnStarted(1)
    assert call.tell(Interrupt(1, 0)) == [TurnEnded(1, "interrupted")]
    assert not call.call.has_work


def test_an_agent_that_is_to_listen_does_not_answer_until_it_may() -> None:
    call = begun("one")
    call.tell(ForceListen(True))
    assert without_listening(spoken(call)) == []
    said = call.tell(ForceListen(False))
    assert text_of(said) == "one"


@pytest.mark.parametrize("detection", [None, TurnDetection(create_response=False)])
def test_a_client_may_commit_and_ask_by_itself(detection: TurnDetection | None) -> None:
    call = begun("one", settings=replace(TURNS, turn_detection=detection))
    before = call.context_tokens
    if detection is None:
        call.listen(2)
        assert call.tell(CommitInput("a")) == []
    else:
        assert without_listening(spoken(call)) == []
    assert call.context_tokens > before
    assert text_of(call.tell(Respond())) == "one"


def test_an_agent_can_be_asked_to_greet() -> None:
    call = begun("hi")
    said = call.tell(Respond("greet the user"))
    assert said[0] == TurnStarted(1) and text_of(said) == "hi"


def test_typed_words_and_pictures_join_the_next_turn() -> None:
    plain, typed = begun("one"), begun("one")
    typed.tell(AddText("a", "user", "hello"))
    typed.tell(AddText("b", "user", "forget this"))
    typed.tell(DeleteItem("b"))
    typed.tell(AddPicture("c", picture_file(28, 28)))
    spoken(plain)
    spoken(typed)
    assert typed.context_tokens == plain.context_tokens + 5 + 66


def test_what_cannot_be_taken_is_refused_and_the_call_goes_on() -> None:
    call = begun("one")
    with pytest.raises(UnsupportedError):
        call.tell(AddText("a", "assistant", "x"))
    with pytest.raises(RequestError, match="send less"):
        call.tell(AddText("a", "user", "x" * 200))
    with pytest.raises(RequestError, match="crop"):
        call.tell(AddPicture("a", picture_file(2000, 10)))
    assert text_of(spoken(call)) == "one"


def test_broken_sound_is_heard_as_silence() -> None:
    broken, silent = begun("one"), begun("one")
    for call, value in ((broken, np.nan), (silent, 0.0)):
        call.call.push(SpeechStarted(3000))
        call.listen(audio=np.full(UNIT_SAMPLES, value, np.float32))
        call.call.push(SpeechEnded(12_000))
        assert text_of(call.work()) == "one"
    caches = [call.parts.runner.slots.llm.tensor for call in (broken, silent)]
    assert (caches[0] == caches[1]).all()


def test_the_prompt_follows_the_language() -> None:
    english = begun("x", settings=replace(TURNS, instructions=""))
    chinese = begun("x", settings=replace(TURNS, instructions="", language="zh"))
    assert english.context_tokens != chinese.context_tokens


def test_more_pictures_and_sound_than_fit_are_taken_as_far_as_they_fit() -> None:
    settings = replace(TURNS, max_slices=9)
    call = begun("one", "two", settings=settings)
    large = VideoFrame(np.full((1344, 1344, 3), 90, np.uint8), 0)
    call.call.push(SpeechStarted(3000))
    call.listen(8, pictures=(large,))
    call.call.push(SpeechEnded(8 * UNIT_SAMPLES - 3000))
    assert text_of(call.work()) == "one"
    assert text_of(spoken(call)) == "two"


def test_a_turn_that_is_never_answered_forgets_its_beginning_and_the_call_goes_on() -> None:
    silent = TurnDetection(create_response=False)
    call = begun("one", settings=replace(TURNS, turn_detection=silent))
    for _ in range(40):
        call.call.push(SpeechStarted(call.heard * UNIT_SAMPLES + 100))
        call.listen(3)
        call.call.push(SpeechEnded(call.heard * UNIT_SAMPLES - 100))
        call.work()
    assert call.context_tokens < 1024
    assert text_of(call.tell(Respond())) == "one"


def test_a_sound_too_short_to_be_speech_is_passed_over() -> None:
    call = begun("one")
    assert without_listening(spoken(call, 0.2, 0.25)) == []
    assert text_of(spoken(call)) == "one"


def test_many_commands_at_once_do_not_cost_the_prompt() -> None:
    call = Driven([ord("x"), END], settings=TURNS)
    for _ in range(40):
        call.call.control(ForceListen(True))
        call.call.control(ForceListen(False))
    call.work()
    assert call.context_tokens > 10


def test_a_committed_turn_ends_where_the_client_says() -> None:
    committed = replace(TURNS, turn_detection=None)
    early, late = begun("one", settings=committed), begun("one", settings=committed)
    for call, at in ((early, 16_000), (late, 40_000)):
        call.listen(3)
        call.tell(CommitInput("a", at))
    assert late.context_tokens > early.context_tokens
    cleared = begun("one", settings=committed)
    cleared.listen(3)
    cleared.tell(ClearInput(24_000))
    cleared.tell(CommitInput("a", 40_000))
    assert cleared.context_tokens == early.context_tokens


def test_a_deleted_item_takes_its_picture_along() -> None:
    plain, deleted = begun("one"), begun("one")
    deleted.tell(AddPicture("a", picture_file(28, 28)))
    deleted.tell(DeleteItem("a"))
    spoken(plain)
    spoken(deleted)
    assert plain.context_tokens == deleted.context_tokens
