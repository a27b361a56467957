"""The speech LM: 25 tokens a second, a cache that goes on from call to call, its conditions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.random_source import RandomSource
from agent.duplex.sampling import SpeechSampling
from agent.duplex.speech_lm import SpeechLm, speak
from agent.errors import ContextOverflow
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import runner, tiny_mind

SAMPLING = SpeechSampling()
CLOSE = 1e-5


@pytest.fixture(scope="module")
def lm() -> SpeechLm:
    return tiny_mind().speech


@pytest.fixture
def cache() -> KvCache:
    return runner(slots=2).slots.speech


def said(lm: SpeechLm, count: int = 3) -> Tensor:
    states = [torch.linspace(-1, 1, lm.config.llm_width) * (n + 1) for n in range(count)]
    return lm.condition(list(range(60, 60 + count)), states)


def random(seed: int = 4) -> RandomSource:
    return RandomSource(seed)


class _Ending(SpeechLm):
    """Says that speech ends from the nth token on."""

    @classmethod
    def after(cls, lm: SpeechLm, tokens: int) -> "_Ending":
        ending = cls.__new__(cls)
        ending.__dict__.update(lm.__dict__)
        ending._asked, ending._tokens = 0, tokens  # type: ignore[attr-defined]
        return ending

    def logits(self, states: Tensor) -> Tensor:
        self._asked += 1  # type: ignore[has-type]
        out = super().logits(states)
        if self._asked > self._tokens:  # type: ignore[attr-defined]
            out[..., self.config.audio_eos] = 1e4
        return out


@pytest.mark.parametrize("may_end", [False, True])
def test_a_second_of_speech_is_25_tokens_and_all_of_them_are_cached(
    lm: SpeechLm, cache: KvCache, may_end: bool
) -> None:
    stream = KvStream(0)
    tokens = speak(
        _Ending.after(lm, 99), said(lm), (stream, cache), SAMPLING, random(), may_end=may_end
    )
    assert len(tokens) == 25 and stream.length == 4 + 25
    assert all(0 <= one < lm.config.audio_eos for one in tokens)


def test_the_end_of_speech_ends_the_call_and_is_not_returned(lm: SpeechLm, cache: KvCache) -> None:
    stream = KvStream(0)
    ending = _Ending.after(lm, 7)
    tokens = speak(ending, said(lm), (stream, cache), SAMPLING, random(), may_end=True)
    assert len(tokens) == 7 and stream.length == 4 + 7


def test_a_turn_that_goes_on_cannot_end(lm: SpeechLm, cache: KvCache) -> None:
    ending = _Ending.after(lm, 0)
    tokens = speak(ending, said(lm), (KvStream(0), cache), SAMPLING, random(), may_end=False)
    assert len(tokens) == 25 and lm.config.audio_eos not in tokens


def test_a_call_goes_on_from_the_last_one(lm: SpeechLm, cache: KvCache) -> None:
    stream, source = KvStream(0), random()
    first = speak(lm, said(lm), (stream, cache), SAMPLING, source, may_end=False)
    second = speak(lm, said(lm, 1), (stream, cache), SAMPLING, source, may_end=False)
    assert stream.length == 4 + 25 + 2 + 25
    whole = KvStream(1)
    codes = [lm.embed_codes(torch.tensor(tokens)) for tokens in (first, second)]
    lm.read(torch.cat([said(lm), codes[0], said(lm, 1), codes[1]]), whole, cache)
    ours, theirs = (cache.tensor[:, :, slot, :, :56] for slot in (0, 1))
    assert (ours - theirs).abs().max() <= CLOSE * theirs.abs().max()


def test_the_penalty_of_repetition_begins_anew_with_each_call(lm: SpeechLm, cache: KvCache) -> None:
    # One token is all that can be drawn, unless its own repetition forbids it.
    harsh = SpeechSampling(repetition_penalty=1e30, repetition_window=25)
    tokens = speak(lm, said(lm), (KvStream(0), cache), harsh, random(), may_end=False)
    assert len(set(tokens)) == 25


def test_a_condition_is_the_text_and_the_direction_of_its_meaning(lm: SpeechLm) -> None:
    state = torch.linspace(-1, 1, lm.config.llm_width)
    condition = lm.condition([70], [state])
    meant = F.normalize(lm.projector_semantic(state), dim=-1)
    assert condition.shape == (2, lm.config.width)
    assert torch.allclose(condition[0], lm.emb_text.weight[70] + meant, atol=1e-6)
    assert torch.equal(condition[1], lm.emb_text.weight[151_687])
    assert meant.norm() == pytest.approx(1, abs=1e-5)


def test_nothing_said_is_a_condition_of_its_own(lm: SpeechLm) -> None:
    assert torch.equal(lm.condition([], []), lm.emb_text.weight[[151_687]])


def test_the_end_of_text_is_marked_where_it_is_asked_for(lm: SpeechLm) -> None:
    condition = lm.condition([], [], text_ended=True)
    assert torch.equal(condition, lm.emb_text.weight[[151_692, 151_687]])


def test_the_head_is_folded_from_gain_and_direction(lm: SpeechLm) -> None:
    parts = []
    for number in (0, 1):
        key = f"tts.head_code.0.parametrizations.weight.original{number}"
        parts.append(tiny.recipe().tensor(key, tiny.parameters()[key], tiny.seed()))
    gain, direction = parts
    folded = gain * direction / direction.norm(dim=1, keepdim=True)
    assert torch.allclose(lm.head_code[0].weight, folded, rtol=1e-5, atol=1e-7)


def test_logits_are_float32_whatever_the_weights_are(lm: SpeechLm) -> None:
    assert lm.logits(torch.zeros(2, lm.config.width)).dtype == torch.float32


def test_a_turn_longer_than_its_slot_says_so(lm: SpeechLm, cache: KvCache) -> None:
    with pytest.raises(ContextOverflow):
        lm.read(torch.zeros(2, lm.config.width), KvStream(0, cache.positions - 1), cache)
