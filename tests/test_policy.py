"""The rules of a unit and a turn, each by itself."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from agent.duplex.policy import (
    Floor,
    Order,
    Outcome,
    SpeakingRules,
    Spoken,
    UnitDecision,
    expected_length,
    first_unheard,
    heard_tokens,
    listen_bias,
)
from agent.duplex.tokens import Token, without_specials

FREE = SpeakingRules(forced_listen_units=0)
PARITY = SpeakingRules(forced_listen_units=0, parity=True)
A, B = 65, 66
LISTEN, SPEAK, ENDS, CHUNK_EOS = Token.LISTEN, Token.SPEAK, Token.TURN_EOS, Token.CHUNK_EOS


def text(ids: Sequence[int]) -> str:
    return "".join(map(chr, without_specials(ids)))


def unit(
    floor: Floor, drawn: Iterable[int], rules: SpeakingRules = FREE, order: Order = "free"
) -> tuple[Outcome, list[int], list[int]]:
    """A unit in which `drawn` comes out → outcome, tokens fed, and what was not drawn."""
    decision = UnitDecision(floor, rules, text, order)
    tokens, fed = list(drawn), list(decision.before)
    while not decision.over:
        token = decision.dictated
        if decision.take(tokens.pop(0) if token is None else token):
            fed.append(decision.last)
    return decision.close(), fed, tokens


def test_listening_is_a_unit_without_tokens() -> None:
    floor = Floor()
    outcome, fed, _ = unit(floor, [LISTEN])
    assert outcome.listened and outcome.terminator == LISTEN and fed == []
    assert outcome.turn == 0 and outcome.ends_turn is None and floor.turn == 0


def test_the_first_token_is_fed_but_neither_spoken_nor_written() -> None:
    outcome, fed, _ = unit(Floor(), [SPEAK, A, B, CHUNK_EOS])
    assert fed == [SPEAK, A, B] and outcome.said == (A, B)
    outcome, fed, _ = unit(Floor(), [A, B, CHUNK_EOS])
    assert fed == [A, B] and outcome.said == (B,)


def test_a_turn_spans_units_until_its_end_and_the_next_has_the_next_number() -> None:
    floor = Floor()
    outcomes = [
        unit(floor, tokens)[0]
        for tokens in ([SPEAK, A, CHUNK_EOS], [SPEAK, B, ENDS, CHUNK_EOS], [LISTEN])
    ]
    assert [(one.turn, one.begins_turn, one.ends_turn) for one in outcomes] == [
        (1, True, None),
        (1, False, "completed"),
        (0, False, None),
    ]
    assert unit(floor, [SPEAK, CHUNK_EOS])[0].turn == 2


def test_listen_in_the_middle_of_a_turn_becomes_tts_bos() -> None:
    floor = Floor()
    unit(floor, [SPEAK, A, CHUNK_EOS])
    outcome, fed, _ = unit(floor, [LISTEN, B, CHUNK_EOS])
    assert fed == [Token.TTS_BOS, B] and not outcome.listened
    outcome, fed, _ = unit(Floor(), [SPEAK, A, LISTEN, CHUNK_EOS])
    assert fed == [SPEAK, A, Token.TTS_BOS] and outcome.said == (A, Token.TTS_BOS)


@pytest.mark.parametrize("terminator", [CHUNK_EOS, Token.CHUNK_TTS_EOS])
def test_both_ends_of_a_chunk_end_the_unit(terminator: int) -> None:
    outcome, _, _ = unit(Floor(), [SPEAK, A, terminator])
    assert outcome.terminator == terminator and not outcome.listened


def test_a_unit_has_19_tokens_at_most_and_its_20th_is_not_drawn() -> None:
    outcome, fed, rest = unit(Floor(), [SPEAK, *[10] * 18, 999])
    assert len(fed) == 19 and len(outcome.said) == 18
    assert outcome.terminator == CHUNK_EOS and rest == [999]


def test_a_unit_ends_before_its_28th_character() -> None:
    words = [ord(c) for c in "abcdefghij"]
    rules = SpeakingRules(forced_listen_units=0, max_tokens=100)
    outcome, fed, _ = unit(Floor(), [SPEAK, *words, *words, *words], rules)
    assert len(outcome.said) == 27 and outcome.terminator == CHUNK_EOS
    assert text(fed) == "abcdefghijabcdefghijabcdefg"


def test_the_end_of_a_turn_counts_no_characters() -> None:
    rules = SpeakingRules(forced_listen_units=0, max_tokens=100, max_chars=4)
    outcome, _, _ = unit(Floor(), [SPEAK, A, A, A, ENDS, CHUNK_EOS], rules)
    assert outcome.ends_turn == "completed" and outcome.said == (A, A, A, ENDS)


def test_the_first_token_is_not_counted_in_characters() -> None:
    rules = SpeakingRules(forced_listen_units=0, max_chars=1)
    outcome, fed, _ = unit(Floor(), [A, B], rules)
    assert fed == [A] and outcome.terminator == CHUNK_EOS


def test_a_speaking_unit_may_say_nothing() -> None:
    floor = Floor()
    unit(floor, [SPEAK, A, CHUNK_EOS])
    outcome, _, _ = unit(floor, [SPEAK, CHUNK_EOS])
    assert not outcome.listened and outcome.said == () and outcome.turn == 1
    outcome, _, _ = unit(floor, [CHUNK_EOS])
    assert not outcome.listened and outcome.fed == () and outcome.turn == 1


def test_chunk_eos_alone_opens_no_turn() -> None:
    outcome, _, _ = unit(Floor(), [CHUNK_EOS])
    assert outcome.listened and outcome.turn == 0
    outcome, _, _ = unit(Floor(), [CHUNK_EOS], PARITY)
    assert not outcome.listened  # the reference speaks a second of nothing


def test_a_turn_that_ends_and_then_listens_is_still_spoken() -> None:
    floor = Floor()
    outcome, _, _ = unit(floor, [SPEAK, A, ENDS, LISTEN])
    assert not outcome.listened and outcome.said == (A, ENDS)
    assert outcome.ends_turn == "completed" and outcome.terminator == LISTEN
    assert not floor.speaking
    outcome, _, _ = unit(Floor(), [SPEAK, A, ENDS, LISTEN], PARITY)
    assert outcome.listened  # the reference never speaks it


def test_text_behind_the_end_of_a_turn_takes_the_end_back() -> None:
    floor = Floor()
    outcome, _, _ = unit(floor, [SPEAK, A, ENDS, B, CHUNK_EOS])
    assert outcome.ends_turn is None and floor.speaking and floor.turn == 1


def test_a_token_too_many_behind_the_end_of_a_turn_does_not_open_it_again() -> None:
    floor = Floor()
    rules = SpeakingRules(forced_listen_units=0, max_chars=2)
    outcome, _, _ = unit(floor, [SPEAK, A, ENDS, B], rules)
    assert outcome.ends_turn == "completed" and not floor.speaking


# ---- what is dictated ---------------------------------------------------------------------------


def test_the_first_units_listen() -> None:
    floor, rules = Floor(), SpeakingRules()
    assert all(unit(floor, [], rules)[0].listened for _ in range(3))
    assert not unit(floor, [SPEAK, A, CHUNK_EOS], rules)[0].listened


def test_forced_listening_ends_the_turn_and_drops_its_speech() -> None:
    floor = Floor()
    unit(floor, [SPEAK, A, CHUNK_EOS])
    outcome, fed, _ = unit(floor, [], order="listen")
    assert fed == [ENDS] and outcome.terminator == LISTEN and outcome.listened
    assert outcome.ends_turn == "interrupted" and outcome.turn == 1 and outcome.drops_speech
    assert not floor.speaking
    outcome, fed, _ = unit(floor, [], order="listen")
    assert fed == [] and outcome.ends_turn is None


def test_the_reference_keeps_the_speech_of_a_turn_given_up() -> None:
    floor = Floor()
    unit(floor, [SPEAK, A, CHUNK_EOS], PARITY)
    outcome, _, _ = unit(floor, [], PARITY, order="listen")
    assert outcome.listened and not outcome.drops_speech


def test_who_is_told_to_speak_speaks_even_at_first() -> None:
    outcome, fed, _ = unit(Floor(), [A, CHUNK_EOS], SpeakingRules(), order="speak")
    assert fed == [SPEAK, A] and outcome.begins_turn
    floor = Floor()
    unit(floor, [SPEAK, A, CHUNK_EOS])
    assert unit(floor, [A, CHUNK_EOS], order="speak")[1] == [A]  # it speaks already


def test_a_turn_is_ended_when_it_gets_too_long() -> None:
    floor, rules = Floor(), SpeakingRules(forced_listen_units=0, max_turn_units=2)
    for _ in range(2):
        assert unit(floor, [SPEAK, A, CHUNK_EOS], rules)[0].ends_turn is None
    outcome, fed, _ = unit(floor, [], rules)
    assert outcome.ends_turn == "max_tokens" and fed == [ENDS] and outcome.drops_speech


def test_a_turn_that_falls_silent_is_ended() -> None:
    floor, rules = Floor(), SpeakingRules(forced_listen_units=0, max_silent_units=2)
    unit(floor, [SPEAK, A, CHUNK_EOS], rules)
    unit(floor, [SPEAK, CHUNK_EOS], rules)
    unit(floor, [SPEAK, A, CHUNK_EOS], rules)
    for _ in range(2):
        assert unit(floor, [SPEAK, CHUNK_EOS], rules)[0].ends_turn is None
    assert unit(floor, [], rules)[0].ends_turn == "completed"


def test_listening_may_be_chosen_between_turns_alone() -> None:
    floor = Floor()
    assert UnitDecision(floor, FREE, text).may_listen
    unit(floor, [SPEAK, A, CHUNK_EOS])
    assert not UnitDecision(floor, FREE, text).may_listen


def test_eagerness_is_a_bias_that_grows_with_waiting() -> None:
    assert listen_bias(0.5) == 0
    assert listen_bias(0) == 4 > listen_bias(0.4) > 0 > listen_bias(1) == listen_bias(7) == -4


# ---- what was heard -----------------------------------------------------------------------------


def test_text_sounds_evenly_over_its_speech() -> None:
    spoken = Spoken((A, B, A, B, ENDS), start_ms=280, length_ms=1000)
    heard = [heard_tokens(spoken, ms) for ms in (0, 280, 529, 530, 1279, 1280, 9999)]
    assert heard == [0, 0, 0, 1, 3, 5, 5]


def test_the_first_unheard_unit_is_the_first_with_text_that_did_not_sound() -> None:
    units = [Spoken((A,), 280, 1000), Spoken((), 1280, 1000), Spoken((B, ENDS), 2280, 400)]
    assert first_unheard(units, 1000) == 0
    assert first_unheard(units, 1280) == 2
    assert first_unheard(units, 2680) is None
    assert first_unheard([Spoken((A,), 280, 0)], 280) is None
    assert first_unheard([Spoken((A,), 280, 0)], 279) == 0


def test_what_was_given_up_in_the_making_counts_as_long_as_it_would_have_become() -> None:
    said = Spoken((1, 2, 3, 4), 0, 800)
    begun = Spoken((5, 6, 7), 800, 0)
    *before, last = expected_length((said, begun))
    assert before == [said] and last == Spoken((5, 6, 7), 800, 600)
    assert [heard_tokens(last, ms) for ms in (800, 1000, 1399, 1400)] == [0, 1, 2, 3]
    # Without anything before it a word is taken to last 200 ms.
    assert expected_length((replace(begun, start_ms=0),))[0].length_ms == 600
    # What is longer already is not over either.
    (long,) = expected_length((Spoken((1,), 0, 1000),))
    assert long.length_ms == 1001
