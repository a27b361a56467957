"""An answer on its way: prompts in pieces, tokens that count, letters, stops, and the sampler."""

from collections.abc import Generator
from typing import Any

import torch

from agent.duplex.answer import Answer, AnswerRules, TokenSource, read_in_pieces
from agent.duplex.answer_text import AnswerText, StopStrings
from agent.duplex.chat_sampling import AnswerSampler, AnswerSampling
from agent.duplex.kv_cache import KvStream
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import Drawing, History
from agent.duplex.tokens import Token
from agent.duplex.work import Choose, Read, Work
from tests.rig.tiny_mind import letter_vocabulary, runner, tiny_mind


def test_a_long_prompt_is_read_in_pieces_that_make_no_difference() -> None:
    mind = tiny_mind()
    embeddings = mind.llm.embed([ord("a") + one % 20 for one in range(30)])
    used = runner(slots=2)
    states = [
        used.run(read_in_pieces(embeddings, KvStream(slot), most))[0]
        for slot, most in ((0, 512), (1, 7))
    ]
    assert torch.allclose(*states, atol=1e-4)
    lengths = [work.count for work in _works(read_in_pieces(embeddings, KvStream(0), 7))]
    assert lengths == [7, 7, 7, 7, 2]


def _works(steps: Generator[Work, None, Any]) -> list[Any]:
    used, works = runner(), []
    for work in steps:
        work.run(used.model, used.slots)
        works.append(work)
    return works


def test_stop_strings_are_found_alike_in_any_pieces() -> None:
    text, strings = "xabcabdabcd", ("abcd", "bd", "cab")
    cuts = [[text], list(text), [text[:4], text[4:7], text[7:]]]
    found = []
    for pieces in cuts:
        stops = StopStrings(strings)
        found.append("".join(map(stops.push, pieces)) + stops.finish())
    assert found == ["xab"] * 3


def test_no_letter_is_cut_in_two() -> None:
    codec = {1: b"\xc3", 2: b"\xa9", 3: b"a"}
    text = AnswerText(lambda ids: b"".join(codec[one] for one in ids).decode(errors="replace"))
    shown = []
    for token in (3, 1, 2, 1):
        text.push(token)
        shown.append(text.take()[0])
    text.finish()
    assert [*shown, text.take()[0]] == ["a", "", "é", "", ""]


# ---- sampling -----------------------------------------------------------------------------------


def _drawing(*history: int) -> Drawing:
    return Drawing(History(100, [(one, 1) for one in history]), RandomSource(1))


def _sampler(**settings: Any) -> AnswerSampler:
    return AnswerSampler(AnswerSampling(**settings), [5], torch.device("cpu"))


def test_the_repetition_penalty_minds_the_sign() -> None:
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0, 1.0])
    weakened = _sampler(repetition_penalty=2.0).penalised(logits, _drawing(0, 1, 0))
    assert weakened.tolist() == [1, -4, 2, -2, 0, 1] and logits[0] == 2
    ends = _sampler(length_penalty=2.0).penalised(logits, _drawing())
    assert ends.tolist() == [2, -2, 2, -2, 0, 0.5]


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    logits = torch.tensor([3.0, 3.0, 2.0, 1.0, 0.0, -1.0])
    ids, likely = _sampler(top_k=3, top_p=1.0).distribution(logits, _drawing())
    assert set(ids[likely > 0].tolist()) == {0, 1, 2}
    ids, likely = _sampler(top_k=0, top_p=0.5, temperature=1.0).distribution(logits, _drawing())
    assert set(ids[likely > 0].tolist()) == {0, 1}
    ids, _ = _sampler(greedy=True).distribution(logits, _drawing(0))
    assert ids.tolist() == [1]


def _looked_back_on(text: str, chunk: int, looks_back: int) -> list[str]:
    """What counts for the penalty at each draw of an answer that says `text`."""
    used, said, seen = runner(), [*map(ord, text), int(Token.IM_END)], []
    drawing = _drawing()
    rules = AnswerRules(frozenset({int(Token.IM_END)}), 100, looks_back=looks_back)
    shown = AnswerText(letter_vocabulary().text)
    answer_ = Answer(KvStream(0), TokenSource(_sampler(), drawing), rules, shown)

    def steps() -> Generator[Work, None, None]:
        yield from answer_.begin(torch.zeros(256))
        while answer_.finish is None:
            yield from answer_.steps(chunk)

    for work in steps():
        work.run(used.model, used.slots)
        if isinstance(work, Choose | Read) and work.choice is not None:
            seen.append("".join(map(chr, work.choice.drawing.history.ids)))
            work.token = said.pop(0)
    return seen


def test_what_was_generated_counts_for_the_penalty_and_the_prompt_does_not() -> None:
    assert _looked_back_on("abc", 8, 0) == ["", "a", "ab", "abc"]


def test_of_earlier_chunks_only_the_newest_tokens_count() -> None:
    """A chunk's first token was drawn with the chunk before, so it counts as earlier."""
    assert _looked_back_on("abcdef", 3, 2) == ["", "a", "ab", "abc", "cd", "cde", "cdef"]
