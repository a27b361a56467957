"""What a client may ask of a full-duplex call: other functions, one answer's own, recordings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.commands import (
    AddAudio,
    AddText,
    DeleteItem,
    Interrupt,
    Respond,
    Retract,
    UpdateSettings,
)
from agent.duplex.tokens import Token
from agent.duplex.tool_prompt import NO_TOOLS, tool_block
from agent.errors import RequestError
from agent.types import Listened, SpeechAudio, Tool
from tests.rig import tiny_model as tiny
from tests.rig.scripted_call import SETTINGS, Beeper
from tests.rig.tiny_mind import LISTEN, letter_vocabulary, says
from tests.test_duplex_tools_call import (
    ABLE,
    CALL,
    CHUNK,
    FORCED,
    TOOLS,
    WEATHER,
    begun,
    cached,
    calling,
    calls,
    ends,
    text_of,
    tokens,
    tried,
)

# ---- other functions, other answers -------------------------------------------------------------


def test_functions_stand_in_the_prompt_and_others_take_their_place() -> None:
    call = begun(LISTEN, calling(), LISTEN, LISTEN, settings=SETTINGS)
    before = call.context_tokens
    call.tell(UpdateSettings(ABLE))
    block = f"\n\n{tool_block(letter_vocabulary(), TOOLS)}"
    assert call.context_tokens == before + len(tokens(block))
    call.listen()
    assert calls(call.listen()) == [WEATHER]
    before = call.context_tokens
    call.tell(UpdateSettings(SETTINGS))
    assert call.context_tokens == before - len(tokens(block))
    huge = replace(ABLE, tools=(Tool("huge", "x" * 2000),))
    with pytest.raises(RequestError, match="system prompt"):
        call.tell(UpdateSettings(huge))
    with pytest.raises(RequestError, match="tool_choice"):
        call.tell(UpdateSettings(replace(ABLE, tool_choice="other")))


def test_one_answer_may_have_functions_of_its_own() -> None:
    call = begun(calling()[1:], calling()[:15], CHUNK, settings=SETTINGS, context_tokens=4096)
    before = call.context_tokens
    call.tell(Respond(tools=TOOLS))
    assert calls(call.listen()) == [WEATHER]
    block = tool_block(letter_vocabulary(), TOOLS)
    assert call.context_tokens > before + len(tokens(block))
    assert calls(call.listen()) == []
    with pytest.raises(RequestError, match="functions of one answer") as caught:
        call.tell(Respond("Hm.", tools=(Tool("huge", "x" * 2000),)))
    assert caught.value.param == "response.tools"
    assert call.call._input._typed.take_texts() == []
    other = begun(LISTEN)
    other.tell(Respond(tools=()))
    assert other.call._input._typed.take_texts() == [NO_TOOLS]
    with pytest.raises(RequestError, match="tool_choice"):
        other.tell(Respond(tool_choice="other"))


def test_one_answer_may_be_in_text_and_the_next_sounds_again() -> None:
    call = begun(says("ab", ends=True)[1:], LISTEN, says("c"), vocoder=Beeper())
    call.tell(Respond(output_modalities=("text",)))
    said = call.listen(2)
    assert text_of(said) == "ab" and not any(isinstance(one, SpeechAudio) for one in said)
    assert any(isinstance(one, SpeechAudio) for one in call.listen())


def test_a_limit_ends_the_turn_with_its_last_token() -> None:
    call = begun(says("abc"), LISTEN, says("abc"), LISTEN, vocoder=Beeper())
    call.tell(UpdateSettings(replace(ABLE, max_output_tokens=2)))
    call.script._tokens.remove(ord("c"))
    call.script._tokens.remove(int(Token.CHUNK_EOS))
    said = call.listen()
    assert text_of(said) == "ab" and ends(said) == [(1, "max_tokens")]
    assert [one.last for one in said if isinstance(one, SpeechAudio)] == [True]
    assert call.usages[-1].text_out == 2
    call.tell(UpdateSettings(ABLE))
    assert isinstance(call.listen()[0], Listened)
    assert text_of(call.listen()) == "abc"


def test_a_limit_may_be_of_one_answer_and_cuts_a_call_off() -> None:
    call = begun(calling()[1:31], says("abc"))
    call.tell(Respond(max_output_tokens=30))
    said = call.listen()
    assert calls(said) == [] and ends(said) == [(1, "max_tokens")]
    assert text_of(call.listen()) == "abc"


def test_a_limit_that_is_lowered_in_a_turn_ends_it_at_once() -> None:
    call = begun(says("abc"), LISTEN)
    call.listen()
    call.tell(UpdateSettings(replace(ABLE, max_output_tokens=1)))
    assert ends(call.listen()) == [(1, "max_tokens")]


# ---- recordings ---------------------------------------------------------------------------------


def recording(seconds: float, item_id: str = "item_1") -> AddAudio:
    return AddAudio(item_id, np.asarray(tiny.recipe().audio(seconds, 9), np.float32))


def test_a_recording_is_read_with_the_next_unit_and_sounds_like_a_voice_in_the_prompt() -> None:
    call = begun(LISTEN, LISTEN)
    sound = recording(2.0)
    call.tell(sound)
    call.listen()
    senses = call.call._talk._memory.records[-1].senses
    model = call.parts.runner.model
    marks = model.llm.embed([Token.AUDIO_START, Token.AUDIO_END])
    assert torch.equal(senses[11], marks[0]) and torch.equal(senses[-1], marks[1])
    assert len(senses) == 1 + 10 + 20 + 2
    assert torch.allclose(senses[12:-1], model.hear_voice(sound.samples), atol=1e-5)
    call.listen()
    assert len(call.call._talk._memory.records[-1].senses) == 11


def test_a_recording_comes_again_with_a_unit_that_is_taken_back() -> None:
    call, other = begun(LISTEN, LISTEN), begun(LISTEN)
    for one in (call, other):
        one.tell(recording(1.0))
    tried(call)
    call.tell(Retract(3))
    assert call.listen() == other.listen()
    assert torch.equal(cached(call), cached(other))


def test_recordings_are_bounded_and_can_be_deleted() -> None:
    call, other = begun(LISTEN, LISTEN), begun(LISTEN, LISTEN)
    call.tell(recording(1.0))
    call.tell(DeleteItem("item_1"))
    assert call.listen() == other.listen() and call.context_tokens == other.context_tokens
    with pytest.raises(RequestError, match="of recordings wait"):
        call.tell(AddAudio("a", np.zeros(31 * 16_000, np.float32)))
    for samples in (np.zeros(9, np.float32), np.full(16_000, np.inf, np.float32)):
        with pytest.raises(RequestError):
            call.tell(AddAudio("a", samples))
    call.tell(recording(10.0))
    with pytest.raises(RequestError, match="send less"):
        call.tell(AddText("b", "user", "x" * (call.call._talk.unit_room_tokens // 4 - 50)))


# ---- figures ------------------------------------------------------------------------------------


def test_what_turns_took_adds_up_to_what_the_context_holds() -> None:
    call = begun(says("ab"), says("c", ends=True), LISTEN, calling("d"), vocoder=Beeper())
    call.tell(recording(1.0))
    call.listen(2)
    first = call.usages[-1]
    fed = [len(one.outcome.fed) for one in call.call._talk._memory.records]
    assert first.audio_in == (FORCED + 2) * 10 + 10 and first.cached_in == 0
    assert first.text_in + first.audio_in + first.pictures_in == call.context_tokens - sum(fed)
    assert first.text_out == 3 and 25 < first.audio_out <= 50
    known = call.context_tokens
    call.listen(2)
    second = call.usages[-1]
    assert second.cached_in == known and second.audio_in == first.audio_in + 20
    assert second.text_out == 1 + len(tokens(CALL))
    assert second.text_in + second.audio_in <= call.context_tokens


def test_a_turn_that_is_interrupted_counts_what_was_made() -> None:
    call = begun(says("abcd"), vocoder=Beeper())
    call.listen()
    call.tell(Interrupt(1, 300))
    assert call.usages[-1].text_out == 4 and call.usages[-1].audio_out == 25
