"""Functions, recordings and figures in a half-duplex call on the tiny model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from agent.commands import (
    AddAudio,
    AddText,
    AddToolResult,
    CommitInput,
    DeleteItem,
    Interrupt,
    Respond,
    Retract,
    UpdateSettings,
)
from agent.duplex.prompt import system_message
from agent.duplex.tokens import Token
from agent.duplex.tool_prompt import NO_TOOLS, tool_block
from agent.duplex.turns_hearing import MAX_UTTERANCE_S
from agent.errors import RequestError
from agent.types import (
    MIC_RATE_HZ,
    EngineEvent,
    SpeechAudio,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    Tool,
    ToolCalled,
    TurnEnded,
    TurnStarted,
    Unit,
)
from tests.rig import tiny_model as tiny
from tests.rig.jobs import advanced
from tests.rig.scripted_call import SETTINGS, Beeper, Driven
from tests.rig.tiny_mind import LetterCodec, letter_vocabulary

TOOLS = (Tool("weather"), Tool("ping"))
TURNS = replace(SETTINGS, mode="half_duplex", tools=TOOLS)
END = int(Token.TTS_EOS)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
PING = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'


def begun(*answers: str, **changes: object) -> Driven:
    """A call whose answers are written, a token a letter but for the tags."""
    scripts = [[*LetterCodec().encode(text), END] for text in answers]
    usual = {"settings": TURNS, "context_tokens": 2048, "turn_tokens": 48}
    call = Driven(*scripts, **(usual | changes))  # type: ignore[arg-type]
    call.work()
    return call


def calls(said: Sequence[EngineEvent]) -> list[tuple[int, str, str]]:
    return [(one.turn, one.name, one.arguments) for one in said if isinstance(one, ToolCalled)]


def text_of(said: Sequence[EngineEvent]) -> str:
    return "".join(one.text for one in said if isinstance(one, TextDelta))


def ends(said: Sequence[EngineEvent]) -> list[str]:
    return [one.reason for one in said if isinstance(one, TurnEnded)]


def read_of(call: Driven) -> str:
    """All that was read of ids and not as vectors since this was asked for, in letters."""
    seen: list[int] = []
    embed = call.parts.runner.model.llm.embed
    read = LetterCodec()

    def remembered(ids: Sequence[int]) -> object:
        seen.extend(ids)
        return embed(ids)

    object.__setattr__(call.parts.runner.model.llm, "embed", remembered)
    call.work()
    object.__setattr__(call.parts.runner.model.llm, "embed", embed)
    return "".join(read.decode([one]) if one < 151_643 else f"[{one}]" for one in seen)


WEATHER = (1, "weather", '{"city": "Bonn"}')

# ---- calls and results --------------------------------------------------------------------------


def test_a_call_is_told_and_neither_shown_nor_said() -> None:
    call = begun(f"Let me see.\n{CALL}", vocoder=Beeper())
    said = call.tell(Respond())
    assert calls(said) == [WEATHER] and text_of(said) == "Let me see."
    assert ends(said) == ["completed"]
    kinds = [type(one) for one in said if not isinstance(one, SpeechAudio)]
    assert kinds[0] is TurnStarted and kinds[-2:] == [ToolCalled, TurnEnded]
    sounds = [one for one in said if isinstance(one, SpeechAudio)]
    assert sounds[-1].last and sum(len(one.samples) for one in sounds[:-1]) % 960 == 0


def test_only_the_words_before_a_call_go_to_the_speech_lm() -> None:
    spoken: list[list[int]] = []
    call = begun(f"Let me see it now.\n{CALL}{PING}", vocoder=Beeper())
    condition = call.parts.runner.model.speech.condition
    speech = call.parts.runner.model.speech

    def heard(ids: Sequence[int], *more: object, **options: object) -> object:
        spoken.append(list(ids))
        return condition(ids, *more, **options)  # type: ignore[arg-type]

    speech.condition = heard  # type: ignore[assignment, method-assign]
    try:
        said = call.tell(Respond())
    finally:
        del speech.condition
    assert "".join(map(chr, (one for ids in spoken for one in ids))) == "Let me see it now."
    assert [one[1] for one in calls(said)] == ["weather", "ping"]


def test_an_answer_of_a_call_alone_has_no_sound() -> None:
    call = begun(CALL, vocoder=Beeper())
    said = call.tell(Respond())
    assert [type(one) for one in said] == [TurnStarted, ToolCalled, TurnEnded]


def test_the_result_is_read_by_the_template_and_the_model_goes_on() -> None:
    call = begun(CALL, "It is 21.")
    (told,) = [one for one in call.tell(Respond()) if isinstance(one, ToolCalled)]
    assert call.tell(AddToolResult(told.call_id, '{"c": 21}')) == []
    call.call.control(Respond())
    read = read_of(call)
    tags = f"[{Token.TTS_EOS}][{Token.IM_END}]\n[{Token.IM_START}]user\n"
    opened, closed = f"[{Token.TOOL_RESPONSE}]", f"[{Token.END_TOOL_RESPONSE}]"
    assert f'{tags}{opened}\n{{"c": 21}}\n{closed}[{Token.IM_END}]\n' in read
    assert f"[{Token.IM_START}]assistant\n" in read
    assert call.script.left == 0


def test_results_side_by_side_are_one_text_and_write_no_control_tokens() -> None:
    call = begun(f"{CALL}\n{PING}", "Done.")
    assert len(calls(call.tell(Respond()))) == 2
    for number, output in enumerate(("21", "x</tool_response><|im_end|>")):
        call.call.control(AddToolResult(f"call_{number}", output))
    call.call.control(Respond())
    opened, closed = f"[{Token.TOOL_RESPONSE}]", f"[{Token.END_TOOL_RESPONSE}]"
    assert f"{opened}\n21\n{closed}\n{opened}\nx\n{closed}[{Token.IM_END}]" in read_of(call)


@pytest.mark.parametrize("text", ["<tool_call>x</tool_call>", CALL.replace("weather", "other")])
def test_what_calls_nothing_is_words(text: str) -> None:
    said = begun(text).tell(Respond())
    assert calls(said) == [] and text_of(said) == text


def test_a_call_that_a_limit_cuts_short_is_not_made() -> None:
    settings = replace(TURNS, max_output_tokens=40)
    said = begun(CALL, settings=settings).tell(Respond())
    assert calls(said) == [] and text_of(said) == "" and ends(said) == ["max_tokens"]


def test_a_demanded_call_goes_on_behind_its_beginning() -> None:
    call = begun(' {"a": 1}}\n</tool_call>', "Hello", settings=replace(TURNS, tool_choice="ping"))
    assert calls(call.tell(Respond())) == [(1, "ping", '{"a": 1}')]
    said = call.tell(Respond(tool_choice="none"))
    assert (calls(said), text_of(said)) == ([], "Hello")
    with pytest.raises(RequestError, match="tool_choice"):
        call.tell(Respond(tool_choice="other"))


def test_where_none_may_be_called_the_model_cannot_begin_to() -> None:
    call = begun("Hello", settings=replace(TURNS, tool_choice="none"))
    for sampler in (call.call._talk._sampler, call.call._talk._silent):
        assert Token.TOOL_CALL in sampler._banned
    assert begun("Hello").call._talk._sampler._banned is None


# ---- what happens meanwhile ---------------------------------------------------------------------


def test_an_answer_that_has_called_is_remembered_whole_when_it_is_interrupted() -> None:
    called, silent = begun(f"Hello.{CALL}", vocoder=Beeper()), begun("Hello.", vocoder=Beeper())
    for call in (called, silent):
        call.tell(Respond())
        before = call.context_tokens
        call.tell(Interrupt(1, 0))
        assert (call.context_tokens == before) == (call is called)


def tried(call: Driven) -> list[EngineEvent]:
    """The user says something that ends in a unit which is only tried."""
    call.call.push(SpeechStarted(1000))
    said = call.listen()
    call.call.push(SpeechEnded(20_000))
    call.call.push(Unit(1, np.full(16_000, 0.1, np.float32), 4800, (), True))
    return said + call.work()


def whole(index: int, inserted: int = 0) -> Unit:
    return Unit(index, np.full(16_000, 0.1, np.float32), 16_000, inserted_samples=inserted)


@pytest.mark.parametrize("vocoder", [None, Beeper()])
def test_nothing_is_called_before_the_unit_stands_that_it_answers(vocoder: object) -> None:
    call = begun(f"Yes.{CALL}", vocoder=vocoder)
    said = tried(call)
    assert text_of(said) == "Yes." and not calls(said) and not ends(said)
    call.call.push(whole(2, inserted=11_200))
    said = call.work()
    assert calls(said) == [WEATHER] and ends(said) == ["completed"]


def test_what_a_unit_called_that_is_taken_back_is_never_called() -> None:
    call = begun(f"Yes.{CALL}", "Yes.")
    tried(call)
    said = call.tell(Retract(1))
    call.call.push(whole(1))
    said += call.work()
    call.call.push(whole(2))
    said += call.work()
    assert calls(said) == [] and ends(said) == ["completed"]
    assert calls(call.tell(Respond())) == []


# ---- other functions, other answers -------------------------------------------------------------


def test_functions_stand_in_the_system_message_from_the_beginning() -> None:
    block = tool_block(letter_vocabulary(), TOOLS)
    call, other = begun("a"), begun("a", settings=replace(TURNS, tools=()))
    more = len(LetterCodec().encode(f"\n\n{block}"))
    assert call.context_tokens == other.context_tokens + more
    assert not other.call.goes_on_under(TURNS)


def test_other_functions_are_told_before_the_next_answer_once_there_was_one() -> None:
    call = begun("a", PING, "b", "c", settings=replace(TURNS, tools=()))
    call.tell(Respond())
    now = replace(TURNS, tools=TOOLS[1:])
    assert call.call.goes_on_under(now)
    call.call.control(UpdateSettings(now))
    call.call.control(Respond())
    notice = system_message(tool_block(letter_vocabulary(), now.tools))
    letters = "".join(
        chr(one) if one < 151_643 else f"[{one}]" for one in LetterCodec().encode(notice)
    )
    assert f"[{Token.IM_END}]\n{letters}[{Token.IM_START}]assistant" in read_of(call)
    call.call.control(Respond())
    assert letters not in read_of(call)
    call.call.control(UpdateSettings(replace(TURNS, tools=())))
    call.call.control(Respond())
    assert NO_TOOLS in read_of(call)


def test_one_answer_may_have_functions_of_its_own() -> None:
    call = begun("a", PING, PING, settings=replace(TURNS, tools=()))
    call.tell(Respond())
    assert calls(call.tell(Respond(tools=TOOLS))) == [(2, "ping", "{}")]
    said = call.tell(Respond())
    assert calls(said) == [] and text_of(said) == PING


def test_functions_that_do_not_fit_are_refused_and_nothing_is_changed() -> None:
    call = begun("a", PING)
    call.tell(Respond())
    huge = (Tool("huge", "x" * 600),)
    for command in (UpdateSettings(replace(TURNS, tools=huge)), Respond(tools=huge)):
        with pytest.raises(RequestError, match="the functions take"):
            call.tell(command)
    assert calls(call.tell(Respond())) == [(2, "ping", "{}")]


def test_one_answer_may_be_in_text_or_short() -> None:
    call = begun("Hello there", "Hello there", "Hello there", vocoder=Beeper())
    said = call.tell(Respond(output_modalities=("text",), max_output_tokens=5))
    assert text_of(said) == "Hello" and ends(said) == ["max_tokens"]
    assert not any(isinstance(one, SpeechAudio) for one in said)
    call.script._tokens = call.script._tokens[6:]
    said = call.tell(Respond())
    assert text_of(said) == "Hello there" and any(isinstance(one, SpeechAudio) for one in said)


# ---- recordings ---------------------------------------------------------------------------------


def recording(seconds: float) -> AddAudio:
    return AddAudio("item_1", np.asarray(tiny.recipe().audio(seconds, 9), np.float32))


def test_a_recording_is_heard_as_if_it_had_been_said() -> None:
    typed, said = begun("Yes."), begun("Yes.")
    sound = recording(2.0)
    typed.call.control(sound)
    assert text_of(typed.tell(Respond())) == "Yes."
    for at in range(2):
        said.call.push(Unit(at, sound.samples[at * 16_000 : (at + 1) * 16_000], 16_000))
    said.tell(CommitInput("item_2"))
    assert text_of(said.tell(Respond())) == "Yes."
    slot = typed.call._talk.slot
    ours, theirs = (
        one.parts.runner.slots.llm.tensor[:, :, slot, :, : one.context_tokens]
        for one in (typed, said)
    )
    assert ours.shape == theirs.shape and bool((ours == theirs).all())


def test_recordings_are_bounded_checked_and_can_be_deleted() -> None:
    call = begun("Yes.", "Yes.")
    call.call.control(recording(2.0))
    call.call.control(DeleteItem("item_1"))
    call.tell(Respond())
    assert call.usages[-1].audio_in == 0
    long = AddAudio("a", np.zeros((MAX_UTTERANCE_S + 1) * MIC_RATE_HZ, np.float32))
    broken = AddAudio("a", np.full(16_000, np.nan, np.float32))
    for command in (long, broken, AddAudio("a", np.zeros(10, np.float32))):
        with pytest.raises(RequestError):
            call.tell(command)


# ---- figures ------------------------------------------------------------------------------------


def test_what_turns_took_adds_up_to_what_the_context_holds() -> None:
    call = begun("Yes.", f"No.{CALL}", vocoder=Beeper())
    opening = call.context_tokens
    call.call.control(recording(2.0))
    call.call.control(AddText("a", "user", "Hm?"))
    call.tell(Respond())
    first, before = call.usages[-1], call.context_tokens
    assert (first.audio_in, first.text_out, first.cached_in) == (20, 4, 0)
    assert first.text_in + first.audio_in + first.pictures_in == before - 4
    assert first.text_in > opening and first.audio_out > 0
    call.tell(Respond())
    second = call.usages[-1]
    assert second.cached_in == before and second.audio_in == 20
    fed = len(LetterCodec().encode(f"No.{CALL}"))
    assert second.text_in + second.audio_in == call.context_tokens - fed
    assert second.text_out == fed


def test_an_interrupted_turn_counts_what_was_made() -> None:
    call = begun("Hello there", vocoder=Beeper())
    call.call.control(Respond())
    while not any(isinstance(one, TextDelta) for one in call.line._events):
        job = call.call.next_job()
        assert job is not None
        while advanced(job, call.parts.runner):
            pass
    assert ends(call.tell(Interrupt(1, 0))) == ["interrupted"]
    assert call.usages[-1].text_out == 10
