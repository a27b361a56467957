"""What is read of a text, and where it is cut."""

import re
from itertools import pairwise

import pytest

from agent.duplex.reading_text import cut, estimated_s, is_chinese, readable

READ = {
    "markdown": ("# Title\n\nHello **world** and _you_!", "Title. Hello world and you!"),
    "link": ("See [the docs](http://x.y/z?q=1) now.", "See the docs now."),
    "address": ("Visit https://www.example.com/a?b=1#c today", "Visit example.com today."),
    "list": ("- one\n* two\n1. three", "one. two. 1. three."),
    "quote": ("> he said\n> so", "he said. so."),
    "code": ("```python\nx = 1\n```\ncall `run` it", "x = 1. call run it."),
    "table": ("| a | b |\n|---|:-:|\n| 1 | 2 |", "a, b. 1, 2."),
    "html": ("it is <b>bold</b>, a < b", "it is bold, a < b."),
    "emoji": ("Hi 😀 there 👨‍👩‍👧 1️⃣ 🇩🇪!", "Hi there 1!"),
    "brackets": ("yes (or no) [maybe], ok?", "yes, or no, maybe, ok?"),
    "signs": ("R&D pays $10.50 to a@b #1", "R and D pays 10.50 dollars to a at b 1."),
    "slashes": ("and/or C:\\x at 12:30", "and or C x at 12 30."),
    "colon": ("Note: this", "Note, this."),
    "powers": ("x^2 `a`", "x 2 a."),
    "snake": ("call do_it_now", "call do it now."),
    "quotes": ('He said ("what?") and left.', 'He said, "what?", and left.'),
    "ends kept": ("Really?! Yes… 5%, it's 3.5 °C", "Really?! Yes… 5%, it's 3.5 °C."),
    "letters of all": ("e\u0301te\u0301 नमस्ते שלום", "été नमस्ते שלום."),
    "invisible": ("a\u200bb\ufeffc\x07d", "abcd."),
    "nothing": ("*** 😀 --- ()", ""),
    "blank": (" \n\t ", ""),
}
CHINESE = {
    "plain": ("# 标题\n你好，**世界**（好的）！", "标题。你好，世界，好的！"),
    "signs": ("A&B：价格$5【注】", "A和B，价格5美元，注。"),
    "quotes": ("他说：“好的。”", "他说，“好的。”"),
}


@pytest.mark.parametrize("name", READ)
def test_only_what_can_be_said_is_read(name: str) -> None:
    text, said = READ[name]
    assert readable(text, chinese=False) == said


@pytest.mark.parametrize("name", CHINESE)
def test_chinese_is_read_with_its_own_marks(name: str) -> None:
    text, said = CHINESE[name]
    assert readable(text, chinese=True) == said


def test_what_was_cleaned_stays_as_it_is() -> None:
    for text, _ in READ.values():
        once = readable(text, chinese=False)
        assert readable(once, chinese=False) == once


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("Hello there", False),
        ("你好", True),
        ("用Python写代码", True),
        ("What does 你好 mean?", False),
        ("今日はいい天気です", False),
        ("", False),
        ("12 34", False),
    ],
)
def test_chinese_is_told_from_the_rest(text: str, chinese: bool) -> None:
    assert is_chinese(text) == chinese


ENGLISH = "The first sentence is here. It is 3.5 times longer, with a clause: yes! Third? "
HAN = "今天天气很好，我们去公园散步吧。你觉得怎么样？好的！"


@pytest.mark.parametrize("text", [ENGLISH * 9, HAN * 9, "word " * 300, "字" * 500, "x" * 900])
@pytest.mark.parametrize("most_s", [30.0, 5.0, 1.0])
def test_nothing_is_lost_and_no_piece_is_too_long(text: str, most_s: float) -> None:
    pieces = cut(text, most_s)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)
    assert all(estimated_s(piece) <= most_s for piece in pieces)
    assert all(piece == piece.strip() != "" for piece in pieces)


def test_a_text_is_cut_behind_sentences_else_clauses_else_words() -> None:
    assert cut(ENGLISH, 30) == [ENGLISH.strip()]
    sentences = [
        "The first sentence is here.",
        "It is 3.5 times longer, with a clause: yes!",
        "Third?",
    ]
    assert cut(ENGLISH, estimated_s(sentences[1]) + 0.1) == sentences
    clauses = cut(ENGLISH, estimated_s("It is 3.5 times longer, ") + 0.1)
    assert "It is 3.5 times longer," in clauses and clauses[2].startswith("with a")
    assert all(word in ENGLISH.split() for piece in cut(ENGLISH, 1.2) for word in piece.split())
    assert cut(HAN, 3.6) == ["今天天气很好，", "我们去公园散步吧。", "你觉得怎么样？好的！"]


def test_a_single_letter_is_a_piece_however_long_it_takes() -> None:
    assert cut("字字", 0.01) == ["字", "字"]


def test_pieces_are_as_long_as_they_may_be() -> None:
    pieces = cut(ENGLISH * 20, 30.0)
    together = [estimated_s(f"{a} {b}") for a, b in pairwise(pieces)]
    assert len(pieces) > 3 and all(length > 25 for length in map(estimated_s, pieces[:-1]))
    assert all(length > 30 for length in together)
