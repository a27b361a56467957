"""Calls in what the model writes: found in pieces as in one go, and never shown in part."""

import random

import pytest

from agent.duplex.answer_text import AnswerText
from agent.duplex.tokens import Token
from agent.duplex.tool_calls import (
    MAX_CALL_CHARS,
    MAX_CALLS,
    CallReader,
    WrittenCall,
    parse_call,
)
from tests.rig.tiny_mind import LetterCodec, letter_vocabulary

NAMES = ("weather", "ping")
OPEN, CLOSE = "<tool_call>", "</tool_call>"


def written(name: str = "weather", arguments: str = '{"city": "Bonn"}') -> str:
    return f'{OPEN}\n{{"name": "{name}", "arguments": {arguments}}}\n{CLOSE}'


def read(*pieces: str, most: int = MAX_CALLS, names: tuple[str, ...] = NAMES) -> tuple[str, list]:
    reader = CallReader(names, most=most)
    shown = "".join(reader.push(piece) for piece in pieces) + reader.finish()
    return shown, [(one.name, one.arguments, one.is_whole) for one in reader.take()]


CALL = ("weather", '{"city": "Bonn"}', True)
TEXTS = {
    "words alone": ("Hello < there\n", ("Hello < there\n", [])),
    "a call alone": (written(), ("", [CALL])),
    "words, a call": (f"Let me see.\n{written()}", ("Let me see.", [CALL])),
    "no line break": (f"Let me see. {written()}", ("Let me see. ", [CALL])),
    "two calls": (f"{written()}\n{written('ping', '{}')}\n", ("", [CALL, ("ping", "{}", True)])),
    "words behind": (f"{written()}\n\nDone: <b>", ("Done: <b>", [CALL])),
    "almost a tag": (
        "a\n<tool_cal> <tool\n</tool_call>",
        ("a\n<tool_cal> <tool\n</tool_call>", []),
    ),
    "a tag in a tag": (f"<<tool_call{written()}", ("<<tool_call", [CALL])),
    "nothing that there is": (f"a\n{written('other')}b", (f"a\n{written('other')}b", [])),
    "no JSON at all": (f"{OPEN}weather{CLOSE}", (f"{OPEN}weather{CLOSE}", [])),
    "broken arguments": (
        written(arguments='{"city": Bonn'),
        ("", [("weather", '{"city": Bonn', True)]),
    ),
    "arguments in a string": (
        written(arguments='"{\\"a\\": 1}"'),
        ("", [("weather", '{"a": 1}', True)]),
    ),
    "the name behind": (
        f'{OPEN}{{"arguments": {{"a": "é"}}, "name": "ping"}}{CLOSE}',
        ("", [("ping", '{"a": "é"}', True)]),
    ),
    "no arguments": (f'{OPEN}{{"name": "ping"}}{CLOSE}', ("", [("ping", "{}", True)])),
    "not closed": (written()[: -len(CLOSE)], ("", [CALL])),
    "cut short": (written()[:-18], ("", [("weather", '{"city": "Bo', False)])),
    "cut in the name": (f'a\n{OPEN}\n{{"name": "wea', (f'a\n{OPEN}\n{{"name": "wea', [])),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_way_to_cut_a_text_in_two_or_in_letters_reads_alike(name: str) -> None:
    text, expected = TEXTS[name]
    assert read(text) == expected
    assert read(*text) == expected
    for at in range(len(text) + 1):
        assert read(text[:at], text[at:]) == expected, at


def test_any_cuts_of_any_texts_read_alike() -> None:
    dice = random.Random(7)
    parts = [one for one, _ in TEXTS.values()]
    for _ in range(300):
        text = "".join(dice.choices(parts, k=dice.randrange(1, 4)))
        cuts = sorted(dice.choices(range(len(text) + 1), k=dice.randrange(1, 9)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(*pieces) == read(text), pieces


def test_no_part_of_a_tag_is_shown_before_it_is_sure_to_be_none() -> None:
    reader = CallReader(NAMES)
    for letter in "Yes.\n<tool_cal":
        reader.push(letter)
    assert reader.push("") == "" and not reader.inside
    assert reader.push("l>") == "" and reader.inside
    reader = CallReader(NAMES)
    shown = [reader.push(letter) for letter in "a\n<tool_calm"]
    assert shown == ["a", *[""] * 10, "\n<tool_calm"]


def test_numbers_and_sizes_are_bounded() -> None:
    many = written("ping", "{}") * (MAX_CALLS + 2)
    shown, calls = read(many)
    assert len(calls) == MAX_CALLS and shown == written("ping", "{}") * 2
    long = written(arguments='{"a": "' + "x" * MAX_CALL_CHARS + '"}')
    assert read(long + written()) == (long + written(), [])
    assert read(*long) == (long, [])
    for size in (MAX_CALL_CHARS, MAX_CALL_CHARS + 1):
        text = f"{OPEN}{'{}'.ljust(size)}{CLOSE}"
        assert read(text) == read(text[:-1], text[-1]) == read(text[: size + 15], text[size + 15 :])
    assert read(written() * 2, most=1)[1] == [CALL]
    nested = written(arguments='{"a":' + "[" * 20_000)
    assert read(nested)[1][0][0] == "weather"


@pytest.mark.parametrize("body", ["", "{}", "[]", '{"name": 3}', '{"name": "ping"} x', '"ping"'])
def test_what_is_no_call(body: str) -> None:
    assert parse_call(body, NAMES) is None


def test_a_call_gets_an_id_of_its_own_each_time_it_is_told() -> None:
    call = WrittenCall("ping", "{}")
    ids = {call.told().call_id for _ in range(3)}
    assert len(ids) == 3 and all(one.startswith("call_") for one in ids)


# ---- in an answer -------------------------------------------------------------------------------


def answered(text: str, *, stop: tuple[str, ...] = (), most: int = MAX_CALLS) -> AnswerText:
    """An answer whose calls are written with the model's own tokens; all others are letters."""
    shown = AnswerText(letter_vocabulary().text, stop=stop, calls=CallReader(NAMES, most=most))
    for token in LetterCodec().encode(text):
        if not shown.stopped:
            shown.push(token)
    shown.finish()
    return shown


def test_only_words_before_the_first_call_may_be_said() -> None:
    assert answered("Let me see.").settled_words == 11
    assert answered(f"Let me see.\n{written()}").settled_words == 11
    assert answered(f"{written()}Done.").settled_words == 0
    assert answered(f"Yes.{written('other')}").settled_words == 4
    assert answered(f"Yes.{written()}", stop=("es",)).settled_words == 1


def test_words_that_may_begin_a_call_wait_to_be_said() -> None:
    text = AnswerText(letter_vocabulary().text, calls=CallReader(NAMES))
    for letter in "a <tool":
        text.push(ord(letter))
    assert text.settled_words == 2 and not text.is_calling
    text.push(ord(" "))
    assert text.settled_words == 8
    text.push(Token.TOOL_CALL)
    assert text.is_calling and text.settled_words == 8


def test_where_one_call_is_all_the_answer_is_over_with_it() -> None:
    one, many = (answered(f"{written()}\nDone.", most=most) for most in (1, 2))
    assert one.stopped and not many.stopped
    assert (one.take()[0], many.take()[0]) == ("", "Done.")


def test_a_stop_string_within_a_call_ends_it_there() -> None:
    text = answered(written(), stop=("Bonn",))
    assert text.stopped and text.take()[0] == ""


def test_a_demanded_beginning_is_part_of_the_call() -> None:
    reader = CallReader(NAMES)
    text = AnswerText(letter_vocabulary().text, calls=reader)
    text.open_with(f'{OPEN}\n{{"name": "ping", "arguments":')
    assert text.is_calling
    for token in LetterCodec().encode(f' {{"a": 1}}}}\n{CLOSE}'):
        assert text.push(token)
    text.finish()
    assert reader.take() == [WrittenCall("ping", '{"a": 1}')] and text.take() == ("", "")
    assert text.settled_words == 0
