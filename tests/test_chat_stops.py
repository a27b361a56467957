"""Stop strings in answers that are spoken: what is not shown is not said."""

import random
from collections.abc import Sequence

import pytest
import torch

from agent.duplex.answer import Taken
from agent.duplex.answer_speech import CHUNK_TOKENS, SpeechRules, WaitingWords
from agent.duplex.answer_text import AnswerText
from agent.duplex.tokens import Token
from tests.rig.answer_voice import BRIEF
from tests.rig.told_chat import Told, asked

THOUGHT = (int(Token.THINK), "hm, so", int(Token.END_THINK))


@pytest.mark.parametrize(
    ("said", "stop", "heard"),
    [
        ("ab END", "END", ["ab "]),
        ("0123456789 ab END", "END", ["0123456789", " ab "]),
        ("01234567ENDxx", "7ENDxx", ["0123456", ""]),
        ("0123456789ENDxx", "89END", ["01234567", ""]),
        ("ENDxx", "END", []),
    ],
)
def test_a_stop_string_is_not_spoken(said: str, stop: str, heard: list[str]) -> None:
    told = Told(said, request=asked("Hi", stop=(stop,)), rules=BRIEF)
    assert told.text == said[: said.index(stop)] and told.said == heard
    assert told.pieces[-1].finish == "stop"
    assert not told.calls or told.calls[-1].text_ended


def test_what_turned_out_to_begin_none_is_said_later_and_with_its_own_states() -> None:
    said = "01234567EN0123456789abcdefEND"
    told = Told(said, request=asked("Hi", stop=("7END",)), rules=BRIEF)
    plain = Told(said, rules=BRIEF)
    assert told.text == plain.text == said
    assert told.said == ["0123456", "7EN0123456", "789abcdefE", "ND"]
    states, others = ([one for call in x.calls for one in call.states] for x in (told, plain))
    assert all(map(torch.equal, states, others)) and len(states) == len(said)


@pytest.mark.parametrize("blanks", ["", "\n\n", "\n \n\n    "])
@pytest.mark.parametrize("said", ["YesEND", "0123456789 YesEND", "0123 EN YesEND"])
def test_behind_reasoning_the_last_words_before_a_stop_string_are_said(
    said: str, blanks: str
) -> None:
    request = asked("Hi", thinking=True, stop=("END",), max_tokens=60)
    told = Told(*THOUGHT, blanks + said, request=request, rules=BRIEF)
    assert told.text == "".join(told.said) == said.removesuffix("END")


def test_blanks_behind_reasoning_are_not_said() -> None:
    told = Told(*THOUGHT, "\n\nYes, sir", request=asked("Hi", thinking=True), rules=BRIEF)
    assert told.text == "".join(told.said) == "Yes, sir"


def test_whatever_the_answer_is_what_is_said_is_what_is_shown() -> None:
    chance = random.Random(4)
    for _ in range(12):
        said = "".join(chance.choices("ab", k=chance.randint(1, 24)))
        stop = "".join(chance.choices("ab", k=chance.randint(2, 12)))
        thought = THOUGHT if chance.random() < 0.5 else ()
        request = asked("Hi", thinking=True, stop=(stop,))
        told = Told(*thought, said, request=request, rules=BRIEF)
        assert "".join(told.said) == told.text == said.partition(stop)[0]


# ---- the words of an answer ---------------------------------------------------------------------

PIECES = ["Ye", "s7", "E", "N", "", "D", " x", "\xc3", "\xa9", "7"]


def _decoded(ids: Sequence[int]) -> str:
    return "".join(PIECES[one] for one in ids).encode("latin-1").decode(errors="replace")


def _settled(*ids: int, stop: str = "7END") -> list[int]:
    text = AnswerText(_decoded, stop=(stop,) if stop else ())
    counts = []
    for one in ids:
        text.push(one)
        counts.append(text.settled_words)
    text.finish()
    return [*counts, text.settled_words]


def test_a_word_is_settled_once_all_of_it_is_shown() -> None:
    assert _settled(0, 1, 0) == [1, 1, 3, 3]
    assert _settled(0, 1, 2, 3, 5) == [1] * 6, "of the second word the s alone is shown"
    assert _settled(0, 1, 2, 3) == [1, 1, 1, 1, 4], "what the end settles"
    assert _settled(0, 9, 2, 3, 9, 6) == [1, 1, 1, 1, 4, 6, 6]
    assert _settled(0, 4, 0) == [1, 1, 3, 3], "a word without letters, with the next"


def test_the_tokens_of_a_letter_are_settled_with_it() -> None:
    assert _settled(7, 8, 0) == [0, 2, 3, 3]
    assert _settled(0, 7, 8, stop="\xe9") == [1, 1, 1, 1]
    assert _settled(0, 7) == [1, 1, 1], "a letter that was never complete is not shown"


def test_without_stop_strings_every_word_is_settled_at_once() -> None:
    assert _settled(0, 7, 4, 1, stop="") == [1, 2, 3, 4, 4]


def _chunks(words: int, step: int, held: int) -> list[list[int]]:
    """What is said of so many words, the newest `held` of which are settled at the end alone."""
    waiting, said = WaitingWords(SpeechRules()), []
    for at in range(0, words, step):
        ids = list(range(at, min(words, at + step)))
        waiting.add(Taken(ids, [torch.tensor(one) for one in ids], [True] * len(ids)))
        is_over = at + step >= words
        settled = words if is_over else max(0, at + step - held)
        chunks = waiting.chunks(settled, text_ended=is_over)
        assert [one.text_ended for one in chunks if one.text_ended] == [True] * is_over
        assert not is_over or chunks[-1].text_ended
        for one in chunks:
            assert [int(state) for state in one.states] == one.said
        said += [list(one.said) for one in chunks]
    return said


@pytest.mark.parametrize("step", [1, 7, 10])
@pytest.mark.parametrize("held", [0, 3, 35])
def test_each_word_is_said_once_and_never_more_than_ten_at_once(step: int, held: int) -> None:
    said = _chunks(63, step, held)
    assert [one for part in said for one in part] == list(range(63))
    assert max(map(len, said)) <= CHUNK_TOKENS


def test_words_that_waited_leave_in_tens() -> None:
    assert [len(one) for one in _chunks(43, 10, 3)] == [7, 10, 10, 10, 6]
    assert [len(one) for one in _chunks(43, 10, 0)] == [10, 10, 10, 10, 3]
