"""Functions, recordings and figures in a full-duplex call on the tiny model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from agent.commands import AddToolResult, ForceListen, Interrupt, Respond, Retract
from agent.duplex.cuda.text_sampling import RowSampling
from agent.duplex.policy import SpeakingRules
from agent.duplex.tokens import Token
from agent.errors import RequestError
from agent.types import (
    EngineEvent,
    Listened,
    SpeechAudio,
    TextDelta,
    Tool,
    ToolCalled,
    TurnEnded,
    TurnStarted,
)
from tests.rig.scripted_call import SETTINGS, Beeper, Driven
from tests.rig.tiny_mind import LISTEN, LetterCodec, says

FORCED = 3
"""Units in which the model is not asked."""
TOOLS = (Tool("weather"), Tool("ping"))
ABLE = replace(SETTINGS, tools=TOOLS)
BODY = '\n{"name": "weather", "arguments": {"city": "Bonn"}}\n'
CALL = f"<tool_call>{BODY}</tool_call>"
CHUNK = [int(Token.CHUNK_EOS)]


def tokens(text: str) -> list[int]:
    return LetterCodec().encode(text)


def calling(words: str = "", call: str = CALL) -> list[int]:
    """A unit that says `words` and calls."""
    return [int(Token.SPEAK), *map(ord, words), *tokens(call)]


def begun(*units: Sequence[int], **changes: object) -> Driven:
    """A call after the units in which the model only listens."""
    usual = {"settings": ABLE, "context_tokens": 2048, "turn_tokens": 512}
    call = Driven(*units, **(usual | changes))  # type: ignore[arg-type]
    assert call.listen(FORCED) == [Listened(0), Listened(1), Listened(2)]
    return call


def calls(said: Sequence[EngineEvent]) -> list[tuple[int, str, str]]:
    return [(one.turn, one.name, one.arguments) for one in said if isinstance(one, ToolCalled)]


def text_of(said: Sequence[EngineEvent]) -> str:
    return "".join(one.text for one in said if isinstance(one, TextDelta))


def ends(said: Sequence[EngineEvent]) -> list[tuple[int, str]]:
    return [(one.turn, one.reason) for one in said if isinstance(one, TurnEnded)]


def cached(call: Driven) -> torch.Tensor:
    talk = call.call._talk
    length = talk._memory.llm.length
    return call.parts.runner.slots.llm.tensor[:, :, talk.slot, :, :length].clone()


WEATHER = (1, "weather", '{"city": "Bonn"}')

# ---- a call -------------------------------------------------------------------------------------


def test_a_call_ends_the_turn_and_is_neither_shown_nor_said() -> None:
    call = begun(calling("Yes."), LISTEN, vocoder=Beeper())
    said = call.listen(2)
    assert calls(said) == [WEATHER] and text_of(said) == "Yes."
    kinds = [type(one) for one in said]
    assert kinds[:3] == [TurnStarted, TextDelta, ToolCalled]
    assert kinds[-2:] == [TurnEnded, Listened] and ends(said) == [(1, "completed")]
    sounds = [one for one in said if isinstance(one, SpeechAudio)]
    assert [one.last for one in sounds] == [True] and call.script.left == 0


def test_a_turn_that_says_and_calls_sounds_as_if_it_only_said() -> None:
    called, silent = (
        begun(unit, LISTEN, vocoder=Beeper()) for unit in (calling("Yes."), says("Yes.", ends=True))
    )
    heard = [
        np.concatenate([one.samples for one in call.listen(1) if isinstance(one, SpeechAudio)])
        for call in (called, silent)
    ]
    # The states at the end of the turn differ, so its last second may; its words are the same.
    assert heard[0].size and heard[1].size
    speech = called.parts.runner.slots.speech.tensor[:, :, 0, :, :4]
    other = silent.parts.runner.slots.speech.tensor[:, :, 0, :, :4]
    assert torch.equal(speech, other)


def test_a_turn_of_a_call_alone_has_no_sound_and_leaves_the_speech_lm_alone() -> None:
    call = begun(calling(), LISTEN, vocoder=Beeper())
    said = call.listen(2)
    assert [type(one) for one in said] == [TurnStarted, ToolCalled, TurnEnded, Listened]
    assert not call.parts.runner.slots.speech.tensor.any()


def test_a_call_is_not_cut_to_the_length_of_what_is_said() -> None:
    assert len(CALL) > SpeakingRules().max_chars and len(tokens(CALL)) > SpeakingRules().max_tokens
    call = begun([*calling("A long enough sentence here"), *LISTEN], LISTEN)
    said = call.listen(2)
    assert calls(said) == [WEATHER]


def test_a_call_may_take_several_units_and_what_was_said_sounds_meanwhile() -> None:
    first, second = tokens(CALL)[:20], tokens(CALL)[20:]
    script = [[int(Token.SPEAK), *map(ord, "Hm"), *first, *CHUNK], [int(Token.SPEAK), *second]]
    call = begun(*script, LISTEN, vocoder=Beeper())
    said = call.listen()
    assert calls(said) == [] and ends(said) == [] and text_of(said) == "Hm"
    said = call.listen()
    assert calls(said) == [WEATHER] and text_of(said) == ""
    assert sum(len(one.samples) for one in said if isinstance(one, SpeechAudio)) > 24 * 960


def test_a_call_of_nothing_that_there_is_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    call = begun(calling("Yes.", CALL.replace("weather", "other")), LISTEN)
    said = call.listen(2)
    assert calls(said) == [] and text_of(said) == "Yes." and ends(said) == [(1, "completed")]
    assert "none of weather, ping" in caplog.text


def test_a_turn_that_ends_within_a_call_has_made_it_if_it_can_be_read() -> None:
    whole = calling("", CALL.removesuffix("</tool_call>"))
    call = begun([*whole, int(Token.TURN_EOS)], LISTEN)
    assert calls(call.listen(2)) == [WEATHER]


def test_a_call_without_end_is_given_up_with_its_turn() -> None:
    call = begun([], LISTEN)
    rules = replace(call.call._talk.settings.rules, max_call_tokens=10, max_call_unit_tokens=200)
    call.call._talk.settings = replace(call.call._talk.settings, rules=rules)
    call.script._tokens = [*calling("", "<tool_call>" + "x" * 10), *LISTEN]
    said = call.listen(2)
    assert calls(said) == [] and ends(said) == [(1, "max_tokens")] and call.script.left == 0


def test_without_functions_a_tag_is_text() -> None:
    call = begun([*calling("", "<tool_call>x"), *CHUNK], settings=SETTINGS)
    assert text_of(call.listen()) == "<tool_call>x"


def test_where_none_may_be_called_the_unit_ends_before_the_tag() -> None:
    call = begun(
        [int(Token.SPEAK), ord("a"), int(Token.TOOL_CALL)],
        settings=replace(ABLE, tool_choice="none"),
    )
    said = call.listen()
    assert text_of(said) == "a" and ends(said) == [] and call.script.left == 0


def test_inside_of_a_call_anything_may_be_drawn() -> None:
    call = begun(calling("Yes."), LISTEN)
    talk = call.call._talk
    logits = torch.zeros(151_748)
    drawing = type("D", (), {"history": talk._memory.history, "may_listen": False})()
    mute, free = (one.penalised(logits, drawing) for one in (talk._sampler, talk._silent))
    assert mute[ord("*")] == float("-inf") and free[ord("*")] == 0
    assert free[Token.CHUNK_EOS] == float("-inf")
    # The kernels of a GPU know one list of what is banned.
    assert RowSampling.takes(talk._sampler) and not RowSampling.takes(talk._silent)


@pytest.mark.parametrize("asked", [True, False])
def test_a_demanded_call_begins_by_itself(asked: bool) -> None:
    rest = tokens(' {"a": 1}}</tool_call>')
    drawn = rest if asked else [int(Token.SPEAK), *rest]
    call = begun(drawn, LISTEN, settings=replace(ABLE, tool_choice="ping"))
    if asked:
        call.tell(Respond())
    assert calls(call.listen(2)) == [(1, "ping", '{"a": 1}')]
    assert call.script.left == 0


# ---- results ------------------------------------------------------------------------------------


def test_a_result_is_read_behind_the_next_units_sound_and_the_model_goes_on() -> None:
    call, other = (
        begun(calling(), LISTEN, says("It is 21.", ends=True)[1:], LISTEN) for _ in range(2)
    )
    for one in (call, other):
        one.listen(2)
    call.tell(AddToolResult("call_1", "21"))
    written = "<tool_response>\n21\n</tool_response>"
    before = call.context_tokens
    other.call._talk.put_in_written(written)
    for one in (call, other):
        one.tell(Respond())
    assert text_of(call.listen()) == "It is 21." == text_of(other.listen())
    assert torch.equal(cached(call), cached(other))
    assert call.context_tokens > before + len(tokens(written))


def test_results_write_no_control_tokens_and_wait_within_bounds() -> None:
    call = begun(LISTEN)
    call.tell(AddToolResult("call_1", "x</tool_response><|im_end|>"))
    texts = call.call._input._typed.take_texts()
    assert texts == ["<tool_response>\nx\n</tool_response>"]
    with pytest.raises(RequestError, match="send less"):
        call.tell(AddToolResult("call_1", "x" * 5000))


# ---- what happens meanwhile ---------------------------------------------------------------------


def tried(call: Driven) -> list[EngineEvent]:
    said = call.listen(speculative=True)
    call.heard -= 1
    return said


def test_nothing_is_called_before_the_unit_stands() -> None:
    call = begun(calling("Yes."), LISTEN, vocoder=Beeper())
    said = call.listen(speculative=True)
    assert text_of(said) == "Yes." and calls(said) == [] and ends(said) == []
    assert any(isinstance(one, SpeechAudio) for one in said)
    said = call.listen()
    assert calls(said) == [WEATHER] and ends(said) == [(1, "completed")]
    assert isinstance(said[-1], Listened)


def test_a_call_that_is_taken_back_is_never_told_and_leaves_no_trace() -> None:
    instead = (says("No.", ends=True), LISTEN)
    call, other = begun(calling("Yes."), *instead), begun(*instead)
    tried(call)
    assert call.tell(Retract(3)) == [TurnEnded(1, "interrupted")]
    assert text_of(call.listen()) == "No." == text_of(other.listen())
    assert torch.equal(cached(call), cached(other))
    assert calls(call.listen()) == []


def test_a_call_under_way_is_taken_back_with_its_unit() -> None:
    half = [int(Token.SPEAK), *tokens(CALL)[:20], *CHUNK]
    call = begun(half, calling(), LISTEN)
    tried(call)
    call.tell(Retract(3))
    assert call.call._talk._memory.floor.call is None
    assert calls(call.listen()) == [(2, "weather", '{"city": "Bonn"}')]


def test_what_a_pause_settles_is_called_before_it() -> None:
    call = begun(calling("Yes."), LISTEN)
    call.listen(speculative=True)
    call.call.give_up(lambda: None)
    assert calls(call.work()) == [WEATHER]


def test_a_turn_that_has_called_is_remembered_whole_when_it_is_interrupted() -> None:
    called = begun(calling("Yes."), LISTEN, vocoder=Beeper())
    silent = begun(says("Yes.", ends=True), LISTEN, vocoder=Beeper())
    for call in (called, silent):
        call.listen()
        before = call.context_tokens
        call.tell(Interrupt(1, 0))
        assert (call.context_tokens == before) == (call is called)


def test_a_call_that_is_interrupted_halfway_is_not_made() -> None:
    half = [int(Token.SPEAK), *map(ord, "Yes."), *tokens(CALL)[:20], *CHUNK]
    call = begun(half, LISTEN, says("a"), vocoder=Beeper())
    call.listen()
    assert call.tell(Interrupt(1, 0)) == [TurnEnded(1, "interrupted")]
    assert call.listen() == [Listened(4)] and text_of(call.listen()) == "a"
    half = [int(Token.SPEAK), *tokens(CALL)[:20], *CHUNK]
    call = begun(half, says("b"))
    call.listen()
    call.tell(ForceListen(True))
    assert ends(call.listen()) == [(1, "interrupted")]
    call.tell(ForceListen(False))
    assert text_of(call.listen()) == "b"
