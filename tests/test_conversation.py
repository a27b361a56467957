"""A duplex conversation on the tiny model: units, turns, company, what is dictated."""

from dataclasses import replace

import pytest
import torch

from agent.duplex.conversation_settings import UnitResult
from agent.duplex.policy import SpeakingRules
from agent.duplex.sampling import TextSampler, TextSampling
from agent.duplex.tokens import Token
from agent.duplex.work import Hear, Read, Speak, Together
from agent.errors import CapacityError, EngineError
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    cached,
    converse,
    free_settings,
    picture,
    runner,
    same,
    says,
    scripted,
    second,
    tiny_mind,
    told,
)

# ---- units --------------------------------------------------------------------------------------


def _say(monkeypatch: pytest.MonkeyPatch, *units: list[int]) -> None:
    """Draw these instead."""
    script = Script(*units)
    monkeypatch.setattr(TextSampler, "choose", lambda *_: [next(script)])


def test_a_unit_is_one_prefill_with_what_ended_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = runner()
    settings = free_settings(text=TextSampling(greedy=True))
    talk = converse(used, settings=settings)
    _say(monkeypatch, LISTEN, says("ab"))
    kinds = []
    for unit in (second(0), second(1, (picture(),))):
        reads = []
        steps = talk.steps(unit)
        for work in steps:
            work.run(used.model, used.slots)
            is_read = isinstance(work, Read)
            reads.append((type(work), work.count if is_read else 0))
        kinds.append(reads)
    assert kinds[0] == [(Hear, 0), (Read, 11)]
    speaking = [(Together, 0), (Read, 2 + 1 + 66 + 10), *[(Read, 1)] * 3, (Speak, 0)]
    assert kinds[1] == speaking


def test_a_result_tells_the_turn_its_text_and_its_speech() -> None:
    talk = scripted(runner(), LISTEN, says("ab"), says("c", ends=True), LISTEN)
    results = [talk.step(second(index)) for index in range(4)]
    assert [one.text for one in results] == ["", "ab", "c", ""]
    assert [one.outcome.turn for one in results] == [0, 1, 1, 0]
    assert [one.outcome.listened for one in results] == [True, False, False, True]
    assert [one.outcome.begins_turn for one in results] == [False, True, False, False]
    assert [one.outcome.ends_turn for one in results] == [None, None, "completed", None]
    assert [len(one.speech_tokens) for one in results][::3] == [0, 0]
    assert 0 < len(results[1].speech_tokens) <= 25
    assert [one.context_tokens for one in results] == [21, 21 + 16, 37 + 16, 53 + 13]
    assert {"audio", "prefill", "decode", "speech"} == {name for name, _ in results[1].stage_ms}
    assert (talk.turn, talk.speaking) == (1, False)


def test_a_going_turn_speaks_25_tokens_a_unit() -> None:
    talk = scripted(runner(), says("ab"), says("cd"), says(""))
    results = [talk.step(second(index)) for index in range(3)]
    assert [len(one.speech_tokens) for one in results[1:]] == [25, 25]


def test_text_only_needs_no_speech_lm() -> None:
    used = runner()
    talk = scripted(used, says("ab"), speaks=False)
    result = talk.step(second(0))
    assert result.text == "ab" and result.speech_tokens == ()
    assert not used.slots.speech.tensor.any()


def test_sampled_conversations_repeat_with_their_seed() -> None:
    rules = SpeakingRules(forced_listen_units=0, max_tokens=4)
    settings = free_settings(text=TextSampling(listen_bias=-50.0), rules=rules)
    runs = []
    for seed in (7, 7, 8):
        talk = converse(runner(), settings=replace(settings, seed=seed))
        runs.append([replace(talk.step(second(index)), stage_ms=()) for index in range(2)])
    assert runs[0] == runs[1] != runs[2]
    assert any(not one.outcome.listened for one in runs[0])


# ---- several on one set of weights --------------------------------------------------------------


def test_conversations_side_by_side_do_not_hear_each_other() -> None:
    scripts = [
        [LISTEN, says("ab"), says("c", ends=True)],
        [says("xyz"), says("uvw"), LISTEN],
        [LISTEN, LISTEN, LISTEN],
        [LISTEN, says("ab"), says("c", ends=True)],
    ]
    scripts[1][2] = says("", ends=True)
    starts = (0, 10, 20, 0)
    alone_on = runner()
    alone = told(alone_on, *scripts[0])
    used = runner(slots=4)
    talks = [scripted(used, *script) for script in scripts]
    results: list[list[UnitResult]] = [[] for _ in talks]
    for index in range(3):
        for talk, start, mine in zip(talks, starts, results, strict=True):
            mine.append(talk.step(second(start + index)))
    for talk in talks:
        talk.flush()
    assert torch.equal(cached(used, talks[0]), cached(used, talks[3]))
    assert same(cached(used, talks[0]), cached(alone_on, alone), 1e-5)
    assert [one.speech_tokens for one in results[0]] == [one.speech_tokens for one in results[3]]
    assert [one.speech_tokens for one in results[0]] != [one.speech_tokens for one in results[1]]


def test_a_slot_is_one_conversation_s_until_it_closes() -> None:
    used = runner()
    first = told(used, LISTEN, says("ab"))
    with pytest.raises(CapacityError):
        converse(used)
    first.close()
    first.close()
    with pytest.raises(EngineError, match="closed"):
        first.step(second(0))
    second_talk = told(used, LISTEN, says("ab"))
    fresh = runner()
    assert same(cached(used, second_talk), cached(fresh, told(fresh, LISTEN, says("ab"))), 1e-6)


def test_a_parked_conversation_goes_on_in_any_slot() -> None:
    used = runner(slots=2)
    script = [LISTEN, says("ab"), says("cd"), says("e", ends=True)]
    stays = scripted(runner(), *script)
    moves = scripted(used, *script)
    expected = [stays.step(second(index)) for index in range(4)]
    results = [moves.step(second(index)) for index in range(2)]
    moves.park()
    moves.park()
    assert used.slots.free == 2
    with pytest.raises(EngineError, match="parked"):
        moves.step(second(2))
    told(used, LISTEN, LISTEN)  # takes the slot that was left
    moves.unpark()
    moves.unpark()
    assert moves.slot == 1
    results += [moves.step(second(index)) for index in (2, 3)]
    assert [one.speech_tokens for one in results] == [one.speech_tokens for one in expected]


# ---- what is dictated ---------------------------------------------------------------------------


def test_forced_listening_ends_the_turn_in_text_and_in_speech() -> None:
    used = runner()
    talk = scripted(used, says("ab"), says("cd"))
    talk.step(second(0))
    result = talk.step(second(1), order="listen")
    assert result.outcome.ends_turn == "interrupted" and result.outcome.listened
    assert result.speech_tokens == () and not talk.speaking
    begun = []
    for work in talk.steps(second(2)):
        if isinstance(work, Speak):
            begun.append((work.stream.length, work.may_end))
        work.run(used.model, used.slots)
    assert begun == [(0, True)] and talk.turn == 2


def test_forced_listening_reads_like_the_end_of_a_turn() -> None:
    used, fresh = runner(), runner()
    talk = scripted(used, says("ab"))
    talk.step(second(0))
    talk.step(second(1), order="listen")
    talk.flush()
    other = told(fresh, says("ab"), [Token.TURN_EOS, Token.LISTEN])
    assert same(cached(used, talk), cached(fresh, other), 1e-5)


def test_the_reference_goes_on_with_the_speech_of_a_turn_given_up() -> None:
    rules = SpeakingRules(forced_listen_units=0, parity=True)
    lengths = []
    for used_rules in (rules, replace(rules, parity=False)):
        used = runner()
        talk = scripted(used, says("ab"), says("cd"), rules=used_rules)
        talk.step(second(0))
        talk.step(second(1), order="listen")
        before = used.slots.speech.tensor[:, :, 0, :, 0].clone()
        talk.step(second(2))
        lengths.append(torch.equal(before, used.slots.speech.tensor[:, :, 0, :, 0]))
    assert lengths == [True, False]


def test_who_is_told_to_speak_does() -> None:
    talk = scripted(runner(), [ord("a"), Token.TURN_EOS, Token.CHUNK_EOS])
    result = talk.step(second(0), order="speak")
    assert result.text == "a" and result.outcome.fed[0] == Token.SPEAK


def test_a_turn_that_ends_and_listens_is_spoken_and_over() -> None:
    used = runner()
    talk = scripted(used, says("ab", ends=True, terminator=Token.LISTEN), LISTEN)
    result = talk.step(second(0))
    assert result.speech_tokens and result.text == "ab"
    assert result.outcome.ends_turn == "completed"
    assert talk.step(second(1)).outcome.listened


def test_the_text_of_the_reference_may_be_cut_in_a_letter() -> None:
    class Halves:
        """Two tokens make one letter."""

        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def decode(self, ids: list[int]) -> str:
            return (
                "".join(map(chr, ids))
                .replace("<>", "é")
                .replace("<", "\ufffd")
                .replace(">", "\ufffd")
            )

    from agent.duplex.tokens import Vocabulary

    model = replace(tiny_mind(), vocabulary=Vocabulary(Halves(), ()))
    texts = []
    for parity in (False, True):
        units = [says("a<"), says(">b"), says("<", ends=True)]
        talk = scripted(runner(model), *units, parity=parity, speaks=False)
        texts.append([talk.step(second(index)).text for index in range(3)])
    assert texts == [["a", "éb", "\ufffd"], ["a\ufffd", "\ufffdb", "\ufffd"]]
