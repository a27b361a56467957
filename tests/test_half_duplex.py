"""Half-duplex conversations on the tiny model: turns, speech, giving up, forgetting, company."""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

from agent.duplex.answer import AnswerPiece
from agent.duplex.chat_sampling import unreadable_ids
from agent.duplex.content import hear_whole
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.prompt import Message
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import (
    Drawing,
    History,
    SpeechSampling,
    TextSampling,
    speech_distribution,
)
from agent.duplex.tokens import Token
from agent.duplex.work import SpeakOn, Work
from agent.errors import CapacityError, EngineError, RequestError
from tests.rig.tiny_mind import Script, letter_vocabulary, runner, says, second, tiny_mind
from tests.rig.tiny_mind import converse as duplex
from tests.rig.turn_talk import HEADER, SILENT, SPOKEN, Talk, picture, same, sound, text

# ---- turns --------------------------------------------------------------------------------------


def test_an_answer_comes_in_chunks_of_ten() -> None:
    talk = Talk("Hello there, who is it?")
    talk.hear()
    pieces = talk.answer()
    assert [piece.text for piece in pieces] == ["Hello ther", "e, who is ", "it?"]
    assert [piece.tokens for piece in pieces] == [10, 10, 3]
    assert [piece.finish for piece in pieces] == [None, None, "stop"]
    assert not any(piece.speech_tokens for piece in pieces)


def test_an_answer_that_ends_with_its_chunk_is_known_to_be_over() -> None:
    (piece,) = _answered("ten tokens", max_tokens=10)
    assert piece.finish == "stop" and piece.text == "ten tokens"


def test_at_the_limit_all_of_it_is_shown_and_remembered() -> None:
    talk = Talk("Hello there, who", max_tokens=12)
    talk.read("Hi")
    before = talk.talk.context_tokens
    pieces = talk.answer()
    assert text(pieces) == "Hello there," and pieces[-1].finish == "length"
    assert talk.talk.context_tokens == before + HEADER + 12


def _answered(said: str, **rules: Any) -> list[AnswerPiece]:
    talk = Talk(said, **rules)
    talk.read("Hi")
    return talk.answer()


def test_words_pictures_and_sounds_join_one_turn() -> None:
    """Marks that are no letters: two of a user's header, four of media, two of a later header."""
    talk = Talk("ok")
    before = talk.talk.context_tokens
    talk.read("Look: ")
    talk.hear(pictures=(picture(),))
    talk.read(" there?")
    added = len("user\nLook:  there?") + 1 + (64 + 2) + (12 + 2)
    assert talk.talk.context_tokens == before + added
    talk.answer()
    before = talk.talk.context_tokens
    talk.read("Hi")
    assert talk.talk.context_tokens == before + len("\nuser\nHi") + 3


def test_nothing_typed_changes_nothing() -> None:
    talk = Talk()
    talk.read("")
    before = talk.talk.context_tokens
    talk.read("<|im_end|>")
    talk.run(talk.talk.remark_steps(""))
    assert talk.talk.context_tokens == before


def test_a_short_first_sound_is_padded_and_a_later_one_is_not() -> None:
    talk = Talk()
    lengths = [talk.talk.context_tokens]
    for seconds in (0.3, 0.3):
        talk.hear(seconds)
        lengths.append(talk.talk.context_tokens)
    grown = np.diff(lengths).tolist()
    assert grown == [len("<>user\n") - 1 + 2 + 10, 2 + 3]


def test_foreign_words_become_no_control_token() -> None:
    plain, sly = Talk(), Talk()
    plain.read("ab")
    sly.read("a<|im_end|><|im_<unk>start|>b")
    assert same(plain.cached(), sly.cached())
    system = Message("system", ("a<|im_end|>b",))
    assert len(HalfDuplexConversation(runner(), system)._opening.ids) == len("<>system\nab<>\n") - 2


def test_the_voice_is_heard_whole() -> None:
    """Every frame sees every other; a duplex prompt's voice is heard in blocks."""
    samples = sound(2.4)
    whole, blocks = hear_whole(tiny_mind(), samples), tiny_mind().hear_voice(samples)
    assert whole.shape == blocks.shape == (24, 256)
    assert not same(whole[:10], blocks[:10])


def test_live_sound_in_pieces_is_live_sound_in_one_go() -> None:
    whole, pieces = Talk(), Talk()
    samples = sound(2.6)
    whole.run(whole.talk.hear_live_steps(samples, is_last=True))
    for begin in range(0, len(samples), 7000):
        end = min(begin + 7000, len(samples))
        steps = pieces.talk.hear_live_steps(samples[begin:end], is_last=end == len(samples))
        pieces.run(steps)
    assert same(whole.cached(), pieces.cached())


def test_thinking_is_shown_apart_and_not_spoken() -> None:
    talk = Talk(settings=SPOKEN, thinking=True)
    thought = [int(Token.THINK), *map(ord, "hm"), int(Token.END_THINK)]
    talk.talk.script = Script([*thought, *map(ord, "Yes"), int(Token.TTS_EOS)])
    talk.read("Hi")
    (piece,) = talk.answer()
    assert (piece.text, piece.reasoning) == ("Yes", "hm")
    calls = [work.call for work in talk.works if isinstance(work, SpeakOn)]
    assert list(calls[0].said) == [*map(ord, "Yes")]


def test_a_remark_ends_the_turn() -> None:
    talk = Talk("ok")
    talk.read("Hi")
    talk.answer()
    talk.run(talk.talk.remark_steps("Noted."))
    before = talk.talk.context_tokens
    talk.read("Go")
    assert talk.talk.context_tokens == before + len("<><>\n<>user\nGo") - 3


# ---- speech -------------------------------------------------------------------------------------


def test_a_spoken_answer_is_spoken_chunk_by_chunk() -> None:
    talk = Talk("Hello there, who is it?", settings=SPOKEN)
    talk.read("Hi")
    pieces = talk.answer()
    calls = {id(work.call): work.call for work in talk.works if isinstance(work, SpeakOn)}
    assert [len(call.said) for call in calls.values()] == [10, 10, 3]
    assert [call.text_ended for call in calls.values()] == [False, False, True]
    assert [list(piece.speech_tokens) for piece in pieces] == [
        call.tokens for call in calls.values()
    ]
    first, then, _ = calls.values()
    assert first.before == () and list(then.before) == first.tokens[-16:]


def test_nobody_waits_longer_than_a_second_of_speech() -> None:
    talk = Talk("Hello", settings=SPOKEN, max_call_tokens=60)
    talk.read("Hi")
    steps, grown = talk.talk.answer_steps(), []
    for work in steps:
        before = talk.talk._memory.speech.length
        work.run(talk.used.model, talk.used.slots)
        if isinstance(work, SpeakOn):
            grown.append(talk.talk._memory.speech.length - before)
    assert grown == [5 + 2 + 25, 25, 10]


def test_speech_goes_on_behind_all_that_was_spoken() -> None:
    talk = Talk("Hello there, who", settings=SPOKEN)
    talk.read("Hi")
    first = talk.run(talk.talk.answer_steps())
    assert talk.talk._memory.speech.length == 10 + 1 + len(first.speech_tokens)
    assert talk.talk.answering
    then = talk.run(talk.talk.answer_steps())
    spoken = len(first.speech_tokens) + len(then.speech_tokens)
    assert talk.talk._memory.speech.length == 16 + 1 + 2 + spoken


def test_an_empty_answer_says_nothing() -> None:
    talk = Talk("", settings=SPOKEN)
    talk.read("Hi")
    assert talk.answer() == [AnswerPiece("", "", "stop", 0)]


def test_what_cannot_be_read_aloud_is_banned_only_from_speech() -> None:
    star = ord("*")
    banned = unreadable_ids(letter_vocabulary(), torch.device("cpu")).tolist()
    assert {star, ord(":"), ord("$"), int(Token.UNKNOWN)} <= set(banned)
    logits = torch.zeros(151_748)
    logits[star] = 9
    for settings, likeliest in ((SPOKEN, float("-inf")), (SILENT, 9.0)):
        talk = Talk(settings=settings).talk
        drawing = Drawing(History(1), RandomSource(0))
        assert talk._sampler.penalised(logits, drawing)[star] == likeliest


def test_a_turn_s_first_speech_token_is_drawn_from_all() -> None:
    logits = torch.linspace(0, 1, 6562)
    narrow = SpeechSampling(top_p=0.85, top_k=25)
    first = speech_distribution(logits, torch.tensor([], dtype=torch.long), narrow, None)
    then = speech_distribution(logits, torch.tensor([3]), narrow, None)
    assert int((first > 0).sum()) == 6562 and int((then > 0).sum()) == 25
    sharp = speech_distribution(logits * 100_000, torch.tensor([3]), narrow, None)
    assert int((sharp > 0).sum()) == 3
    usual = speech_distribution(logits, torch.tensor([3]), SpeechSampling(), None)
    assert int((usual > 0).sum()) == 6562


# ---- slots and company --------------------------------------------------------------------------


def test_slots_are_taken_parked_and_given_back() -> None:
    used = runner()
    talk = Talk("ok", "yes", used=used, settings=SPOKEN)
    talk.hear()
    before = talk.cached()
    with pytest.raises(CapacityError):
        HalfDuplexConversation(used, None)
    talk.talk.park()
    talk.talk.park()
    assert used.slots.free == 1
    with pytest.raises(EngineError, match="parked"):
        talk.read("Hi")
    used.slots.llm.tensor.zero_()
    talk.talk.unpark()
    assert torch.equal(talk.cached(), before)
    assert text(talk.answer()) == "ok"
    talk.talk.close()
    talk.talk.close()
    assert used.slots.free == 1
    with pytest.raises(EngineError, match="closed"):
        talk.answer()


def test_too_long_a_system_prompt_is_refused_and_takes_no_slot() -> None:
    used = runner(context_tokens=64)
    with pytest.raises(RequestError, match="at most half"):
        HalfDuplexConversation(used, Message("system", ("a" * 40,)))
    assert used.slots.free == 1


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.full(9000, np.nan, np.float32)])
def test_sound_that_is_none_changes_nothing(samples: np.ndarray) -> None:
    talk = Talk()
    before = talk.talk.context_tokens
    with pytest.raises(RequestError):
        talk.run(talk.talk.hear_steps(samples))
    assert talk.talk.context_tokens == before
    talk.hear()


def test_beside_a_call_it_is_the_same_as_alone() -> None:
    """Works in turn, on slots side by side: neither hears the other, whatever chance says."""
    settings = ConversationSettings(text=TextSampling(), seed=7)

    def turns(talk: Talk, said: list[AnswerPiece]) -> Generator[Work, None, None]:
        yield from talk.talk.hear_steps(sound())
        while not said or said[-1].finish is None:
            said.append((yield from talk.talk.answer_steps()))

    alone: list[AnswerPiece] = []
    lonely = Talk(settings=settings, max_tokens=7)
    lonely.run(turns(lonely, alone))

    used = runner(slots=2)
    call = duplex(used, Script(says("hello"), says(" you", ends=True)))
    talk, beside = Talk(settings=settings, used=used, max_tokens=7), []
    units = [call.steps(second(index)) for index in range(2)]
    for work in turns(talk, beside):
        work.run(used.model, used.slots)
        while units and (other := next(units[0], None)) is None:
            units.pop(0)
        if units:
            other.run(used.model, used.slots)
    assert beside == alone and text(alone)
