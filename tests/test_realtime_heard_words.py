"""Words cut where the sound was cut."""

import random
from itertools import pairwise

import pytest

from agent.realtime.heard_words import words_before

SENTENCE = [(0, "One two "), (1000, "three four"), (2000, " five.")]


@pytest.mark.parametrize(
    ("cut_ms", "words"),
    [
        (-5, ""),
        (0, ""),
        (374, ""),
        (375, "One"),
        (874, "One"),
        (875, "One two"),
        (1000, "One two"),
        (1499, "One two"),
        (1500, "One two three"),
        (1999, "One two three"),
        (2000, "One two three four"),
        (2999, "One two three four"),
        (3000, "One two three four five."),
        (10**9, "One two three four five."),
    ],
)
def test_a_piece_is_cut_at_the_last_word_that_sounded_in_full(cut_ms: int, words: str) -> None:
    assert words_before(SENTENCE, 3000, cut_ms) == words


def test_text_that_came_ahead_of_its_sound_is_not_heard() -> None:
    assert words_before([(0, "One "), (400, "two "), (400, "three")], 400, 400) == "One"
    assert words_before([(0, "One")], 0, 0) == ""
    assert words_before([], 0, 0) == words_before([], 500, 300) == ""


def test_pieces_that_came_together_share_their_sound() -> None:
    pieces = [(0, "One "), (0, "two "), (0, "thr"), (0, "ee")]
    assert words_before(pieces, 1000, 400) == "One"
    assert words_before(pieces, 1000, 600) == "One two"


def test_a_word_in_pieces_is_one_word() -> None:
    pieces = [(0, "An inter"), (500, "rup"), (700, "tion"), (1000, " ends")]
    assert words_before(pieces, 1500, 600) == "An"
    assert words_before(pieces, 1500, 1000) == "An interruption"


@pytest.mark.parametrize(
    ("text", "cut_ms", "words"),
    [
        ("今天天气很好。", 500, "今天天"),
        ("我用iPhone打电话", 500, "我用"),
        ("我用iPhone打电话", 800, "我用iPhone"),
        ("きょうはいい", 500, "きょう"),
        ("안녕하세요 여러분", 700, "안녕하세요"),
        # A vowel above its consonant stays with it.
        ("กินข้าว", 300, "กิ"),
        ("กินข้าว", 200, ""),
    ],
)
def test_where_words_are_not_spaced_characters_are_cut(text: str, cut_ms: int, words: str) -> None:
    assert words_before([(0, text)], 1000, cut_ms) == words


@pytest.mark.parametrize("seed", range(20))
def test_the_later_the_cut_the_more_was_heard(seed: int) -> None:
    dice = random.Random(seed)
    pieces, start_ms = [], 0
    for _ in range(dice.randrange(1, 12)):
        pieces.append((start_ms, dice.choice(["one ", " two", "th", "ree", "天气", "กิ", " ", "x"])))
        start_ms += dice.choice([0, 0, 130, 400])
    said = "".join(text for _, text in pieces)
    heard = [words_before(pieces, start_ms + 100, cut_ms) for cut_ms in range(0, start_ms + 101, 7)]
    for before, after in pairwise(heard):
        assert said.startswith(after)
        assert after.startswith(before)
    assert heard[0] == ""
    assert words_before(pieces, start_ms + 100, start_ms + 100) == said
