"""How tokens are drawn: every step of the reference's, its oddities included, each by itself."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.duplex.random_source import RandomSource, draw
from agent.duplex.sampling import (
    Drawing,
    History,
    SpeechSampling,
    TextSampler,
    TextSampling,
    banned_ids,
    speech_distribution,
)
from agent.duplex.tokens import VOCABULARY_SIZE, Token

BANNED = 9
CPU = torch.device("cpu")
torch.set_num_threads(1)
PLAIN = TextSampling(
    temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, length_penalty=1.0
)


def logits(values: dict[int, float], rest: float = -30.0) -> Tensor:
    out = torch.full((VOCABULARY_SIZE,), rest)
    for one, value in values.items():
        out[one] = value
    return out


def sampler(settings: TextSampling = PLAIN) -> TextSampler:
    return TextSampler(settings, banned_ids([BANNED], CPU))


def drawing(*said: int, seed: int = 0, may_listen: bool = False) -> Drawing:
    history = History(512, [(one, 1) for one in said])
    return Drawing(history, RandomSource(seed), may_listen)


def likely(
    settings: TextSampling, values: Tensor, using: Drawing | None = None
) -> dict[int, float]:
    ids, weights = sampler(settings).distribution(values, using or drawing())
    kept = weights > 1e-9
    return dict(zip(ids[kept].tolist(), weights[kept].tolist(), strict=True))


# ---- the stop check -----------------------------------------------------------------------------


def test_the_stop_check_is_on_the_raw_logits_and_comes_before_everything() -> None:
    values = logits({Token.CHUNK_EOS: 20.0, 100: 10.0})
    assert sampler().choose(values[None], [drawing()]) == [Token.CHUNK_EOS]
    hot = replace(PLAIN, temperature=100.0)  # as certain as before: it knows no temperature
    assert sampler(hot).choose(values[None], [drawing()]) == [Token.CHUNK_EOS]


def test_chunk_eos_comes_from_the_stop_check_as_often_as_it_is_likely_and_never_otherwise() -> None:
    values = logits({Token.CHUNK_EOS: 0.0, 100: 0.0, 101: 0.0, 102: 0.0})[None]
    using = drawing(seed=3)
    few = sampler(replace(PLAIN, top_k=3))
    drawn = [few.choose(values, [using])[0] for _ in range(150)]
    share = drawn.count(Token.CHUNK_EOS) / len(drawn)
    assert share == pytest.approx(0.25, abs=0.1)
    assert Token.CHUNK_EOS not in likely(PLAIN, values[0])


def test_greedily_the_unit_stops_where_its_end_is_the_largest() -> None:
    greedy = sampler(replace(PLAIN, greedy=True))
    assert greedy.choose(logits({Token.CHUNK_EOS: 2.0, 100: 1.0})[None], [drawing()]) == [
        Token.CHUNK_EOS
    ]
    assert greedy.choose(logits({Token.CHUNK_EOS: 1.0, 100: 2.0})[None], [drawing()]) == [100]


# ---- what is forbidden, and the penalties -------------------------------------------------------


def test_what_cannot_be_said_is_never_drawn() -> None:
    values = logits({Token.TTS_PAD: 9.0, Token.CHUNK_EOS: 9.0, BANNED: 9.0, 100: 0.0})
    assert likely(PLAIN, values).keys() == {100}


def test_repetition_makes_a_negative_logit_likelier() -> None:
    settings = replace(PLAIN, repetition_penalty=2.0)
    after = sampler(settings).penalised(logits({5: 4.0, 6: -4.0, 7: 1.0}), drawing(5, 6, 6))
    assert (after[5], after[6], after[7]) == (2.0, -2.0, 1.0)  # once, however often it came


def test_a_reward_for_repetition_multiplies() -> None:
    settings = replace(PLAIN, repetition_penalty=0.5)
    assert sampler(settings).penalised(logits({5: 4.0}), drawing(5))[5] == 8.0


def test_repetition_looks_back_over_its_window_only() -> None:
    settings = replace(PLAIN, repetition_penalty=2.0, repetition_window=2)
    after = sampler(settings).penalised(logits({5: 4.0, 6: 4.0, 7: 4.0}), drawing(5, 6, 7))
    assert (after[5], after[6], after[7]) == (4.0, 2.0, 2.0)


def test_an_end_of_turn_is_made_unlikelier_whatever_its_sign() -> None:
    settings = replace(PLAIN, length_penalty=2.0)
    for before, after in ((3.0, 1.5), (-3.0, -6.0)):
        values = sampler(settings).penalised(logits({Token.TURN_EOS: before}), drawing())
        assert values[Token.TURN_EOS] == after


def test_penalties_are_rounded_to_the_logits_dtype() -> None:
    values = logits({5: 11.3125}).bfloat16()
    after = sampler(replace(PLAIN, repetition_penalty=1.05)).penalised(values, drawing(5))
    assert after.dtype == torch.bfloat16
    assert after[5] == torch.tensor(11.3125 / 1.05).bfloat16()  # 1.05 itself is not rounded
    assert values[5] == 11.3125  # what was given is left alone


def test_the_listen_bias_is_on_listen_and_only_where_it_may_be_chosen() -> None:
    settings = replace(PLAIN, listen_bias=2.5)
    values = logits({Token.LISTEN: 1.0, Token.IM_END: 1.0})
    after = sampler(settings).penalised(values, drawing(may_listen=True))
    assert (after[Token.LISTEN], after[Token.IM_END]) == (3.5, 1.0)
    assert sampler(settings).penalised(values, drawing())[Token.LISTEN] == 1.0


@pytest.mark.parametrize(("parity", "token"), [(False, Token.LISTEN), (True, Token.IM_END)])
def test_the_reference_turns_its_listen_knobs_on_im_end(parity: bool, token: int) -> None:
    values = logits({Token.LISTEN: 1.0, Token.IM_END: 1.0, 5: 8.0})
    scaled = sampler(replace(PLAIN, listen_scale=3.0, parity=parity))
    after = scaled.penalised(values, drawing())
    assert {Token.LISTEN: after[Token.LISTEN], Token.IM_END: after[Token.IM_END]} == {
        token: 3.0,
        ({Token.LISTEN, Token.IM_END} - {token}).pop(): 1.0,
    }
    ranked = sampler(replace(PLAIN, listen_top_k=3, parity=parity))
    assert ranked.choose(values[None], [drawing()]) == [token]
    assert sampler(replace(PLAIN, listen_top_k=1)).choose(values[None], [drawing()]) == [5]


# ---- temperature, top-k, top-p ------------------------------------------------------------------


def test_temperature_comes_before_the_cuts() -> None:
    values = logits({1: 1.4, 2: 0.7}, rest=-1e9)
    shares = likely(replace(PLAIN, temperature=0.7), values)
    assert shares[1] / shares[2] == pytest.approx(torch.e, rel=1e-5)


def test_top_k_keeps_all_that_tie_with_the_kth() -> None:
    values = logits({1: 3.0, 2: 2.0, 3: 2.0, 4: 2.0, 5: 1.0})
    assert likely(replace(PLAIN, top_k=2), values).keys() == {1, 2, 3, 4}


def test_top_p_drops_what_comes_when_enough_is_there() -> None:
    values = logits({1: 0.5, 2: 0.3, 3: 0.15, 4: 0.05}).clone()
    values[[1, 2, 3, 4]] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    # The one that reaches the mark stays: what lies before it is not yet beyond.
    assert likely(replace(PLAIN, top_p=0.7), values).keys() == {1, 2}
    assert likely(replace(PLAIN, top_p=0.85), values).keys() == {1, 2, 3}
    assert likely(replace(PLAIN, top_p=0.0), values).keys() == {1}


def test_draws_follow_the_distribution() -> None:
    values = logits({1: 0.0, 2: 1.0}, rest=-1e9)[None]
    using = drawing(seed=5)
    few = sampler(replace(PLAIN, top_k=2))
    drawn = [few.choose(values, [using])[0] for _ in range(150)]
    assert drawn.count(2) / 150 == pytest.approx(torch.e / (1 + torch.e), abs=0.1)


def test_nobody_s_company_changes_what_is_drawn() -> None:
    torch.manual_seed(0)
    values = torch.randn(4, VOCABULARY_SIZE)
    settings = TextSampling()
    alone = [
        sampler(settings).choose(values[[row]], [drawing(row, seed=row)])[0] for row in range(4)
    ]
    together = sampler(settings).choose(values, [drawing(row, seed=row) for row in range(4)])
    assert together == alone


# ---- history ------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_can_forget_a_turn() -> None:
    history = History(3)
    for one, turn in ((1, 0), (2, 1), (3, 1), (4, 2)):
        history.append(one, turn)
    assert history.ids == [2, 3, 4]
    other = history.copy()
    other.forget(1)
    assert other.ids == [4] and history.ids == [2, 3, 4]


# ---- speech -------------------------------------------------------------------------------------


def test_speech_tokens_are_penalised_by_how_often_they_came_and_by_sign() -> None:
    raw = torch.tensor([0.8, -0.8, 0.8, 0.0])
    codes = torch.tensor([0, 0, 1])
    shares = speech_distribution(raw, codes, SpeechSampling(repetition_penalty=2.0), None).log()
    shares = shares - shares[3]
    assert torch.allclose(shares, torch.tensor([0.25, -2.0, 1.0, 0.0]), atol=1e-6)


def test_speech_repetition_looks_back_16_tokens() -> None:
    raw = torch.tensor([0.8, 0.8])
    codes = torch.tensor([0] + [1] * 16)
    shares = speech_distribution(raw, codes, SpeechSampling(), None)
    strength = 1.05**16
    assert (shares[1] / shares[0]).log() == pytest.approx(1 / strength - 1, abs=1e-5)


def test_the_end_of_speech_can_be_banned() -> None:
    raw = torch.zeros(4)
    none = torch.empty(0, dtype=torch.long)
    assert speech_distribution(raw, none, SpeechSampling(), 3)[3] == 0
    assert speech_distribution(raw, none, SpeechSampling(), None)[3] == 0.25


def test_a_draw_repeats_with_its_seed() -> None:
    weights = torch.rand(50)
    drawn = [int(draw(weights, RandomSource(seed).key())) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
