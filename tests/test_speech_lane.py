"""The parts of the speech lane, each on the CPU: what is read, how a token is drawn, a step of few
rows, and what the works are given. Whole seconds of speech: tests/gpu."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import tests.rig.triton_on_cpu  # noqa: F401  before any kernel
from agent.duplex.cuda.speech_lane_conditions import ConditionPass, condition_of
from agent.duplex.cuda.speech_lane_draw import Drawn, draw_speech
from agent.duplex.cuda.speech_lane_few import FewSteps, Shape, Shapes, is_for
from agent.duplex.cuda.speech_lane_program import SpeechProgram
from agent.duplex.cuda.speech_lane_rows import SpeechRows, SpeechWork
from agent.duplex.cuda.static_decoder import Rows
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.random_source import RandomSource, draw
from agent.duplex.sampling import SpeechSampling, speech_distribution
from agent.duplex.speech_lm import SpeechCall, SpeechLm
from agent.duplex.work import Look, Speak, SpeakOn
from agent.errors import ContextOverflow
from tests.rig.tiny_mind import runner, tiny_mind

CPU = torch.device("cpu")
PLAIN = SpeechSampling()


@pytest.fixture(scope="module")
def lm() -> SpeechLm:
    return tiny_mind().speech


def unit(*, length: int = 0, may_end: bool = False, said: int = 2, seed: int = 5) -> Speak:
    states = [torch.linspace(-1, 1, 256) * (one + 1) for one in range(said)]
    ids = list(range(60, 60 + said))
    return Speak(ids, states, KvStream(1, length), PLAIN, RandomSource(seed), may_end)


def answer(most: int = 100, before: Sequence[int] = (), state: Tensor | None = None) -> SpeakOn:
    call = SpeechCall([70], [torch.ones(256)], text_ended=True, most=most, before=before)
    call.state = state
    return SpeakOn(call, KvStream(0, 7), PLAIN, RandomSource(6))


# ---- what is read -------------------------------------------------------------------------------


class _Echo:
    """Stands for the decoder: a position's state is what was read there."""

    heads = SimpleNamespace(wide=4)

    def forward(self, tokens: Tensor, rows: Rows) -> Tensor:
        self.tokens, self.rows = tokens, rows
        return tokens * 2


def test_conditions_of_several_are_read_in_one_pass_as_each_would_be(lm: SpeechLm) -> None:
    works: list[SpeechWork] = [unit(length=9), answer(), unit(said=0), unit(said=6)]
    conditions = [one for row, work in enumerate(works) if (one := condition_of(row, work, lm))]
    state = torch.full((5, lm.config.width), -7.0)
    decoder = _Echo()
    reading = ConditionPass(lm, decoder, state, 16)  # type: ignore[arg-type]
    reading.fill(conditions)
    reading.run()
    expected = [
        lm.condition([60, 61], works[0].states),  # type: ignore[union-attr]
        lm.condition([70], [torch.ones(256)], text_ended=True),
        lm.condition([], []),
        lm.condition(list(range(60, 66)), works[3].states),  # type: ignore[union-attr]
    ]
    assert torch.allclose(decoder.tokens[:14], torch.cat(expected), atol=1e-6)
    for row, one in enumerate(expected):
        assert torch.allclose(state[row], one[-1] * 2)
    assert (state[4] == -7).all()
    slots, positions = decoder.rows.slots.tolist(), decoder.rows.positions.tolist()
    assert slots == [1] * 3 + [0] * 3 + [1] * 8 + [-1] * 2
    assert positions[:14] == [9, 10, 11, 7, 8, 9, 0, *range(7)]
    assert decoder.rows.tiles[:6].tolist() == [[0, 3], [3, 3], [6, 1], [7, 4], [11, 3], [0, 0]]


def test_what_was_read_before_is_not_read_again(lm: SpeechLm) -> None:
    assert condition_of(0, answer(state=torch.zeros(128)), lm) is None
    condition = condition_of(3, answer(), lm)
    assert condition is not None and list(condition.ids) == [70, 151_692, 151_687]


# ---- a draw -------------------------------------------------------------------------------------


def drawn_tokens(works: list[SpeechWork], logits: Tensor, lm: SpeechLm, steps: int) -> Tensor:
    rows = SpeechRows(len(works), lm.config.audio_eos, CPU)
    rows.fill(works, [0] * len(works), len(works))
    rows.sent.send()
    places = torch.zeros(2, len(works), dtype=torch.int32)
    drawn = Drawn(rows.tokens.device, torch.zeros(len(works), lm.config.width), *places)
    for step in range(steps):
        draw_speech(logits, rows.sent.device, lm.codes, drawn, (step, 512))
        tokens = rows.tokens.device[:, step]
        assert torch.equal(drawn.embeddings, lm.codes[tokens.long()])
        assert places[0].tolist() == [work.stream.slot for work in works]
        assert places[1].tolist() == [work.stream.length + step for work in works]
    return rows.tokens.device[:, :steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_drawn_as_the_modules_draw_them(lm: SpeechLm, dtype: torch.dtype) -> None:
    narrow = replace(answer(before=[3, 3, 9]), sampling=SpeechSampling(top_p=0.85, top_k=25))
    first = replace(answer(), sampling=SpeechSampling(top_p=0.3, top_k=2), random=RandomSource(1))
    works = [unit(), unit(may_end=True, seed=8), narrow, first]
    torch.manual_seed(0)
    # Few are likely, so that they come again; of some, one is as likely as the next.
    logits = torch.randn(4, lm.config.audio_tokens)
    logits[:, :12] += 6
    logits[:, 20:30] = 5.5
    logits[0, lm.config.audio_eos] = 30
    logits = logits.to(dtype)
    tokens = drawn_tokens(works, logits, lm, 4)
    for row, work in enumerate(works):
        keys = replace(work.random, drawn=0).keys(4)
        known = [] if isinstance(work, Speak) else list(work.call.before)
        banned = lm.config.audio_eos if row == 0 else None
        for step, key in enumerate(keys):
            codes = torch.tensor(known, dtype=torch.long)
            weights = speech_distribution(logits[row].float(), codes, work.sampling, banned)
            known.append(int(draw(weights, key)))
            assert tokens[row, step] == known[-1], (row, step)


def test_a_position_behind_the_last_is_nobody_s(lm: SpeechLm) -> None:
    rows = SpeechRows(1, lm.config.audio_eos, CPU)
    rows.fill([unit(length=510)], [1], 1)
    rows.sent.send()
    places = torch.zeros(2, 1, dtype=torch.int32)
    drawn = Drawn(rows.tokens.device, torch.zeros(1, lm.config.width), *places)
    logits = torch.zeros(1, lm.config.audio_tokens)
    seen = []
    for step in range(2):
        draw_speech(logits, rows.sent.device, lm.codes, drawn, (step, 512))
        seen.append(places.flatten().tolist())
    assert seen == [[1, 511], [-1, 0]]


# ---- a step of few rows -------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "lengths"), [([2], [70]), ([1, 3, 0, -1], [0, 470, 9, 0])])
def test_a_step_of_few_rows_is_the_decoder_s(
    lm: SpeechLm, slots: list[int], lengths: list[int]
) -> None:
    torch.manual_seed(1)
    cache = KvCache(torch.randn_like(runner(slots=4).slots.speech.tensor))
    before = cache.tensor.clone()
    assert is_for(lm, len(slots)) and not is_for(lm, 5)
    shapes = Shapes(*(Shape(128, 4) for _ in range(4)), Shape(8192, 4))
    few = FewSteps(lm, cache, shapes)
    tokens = torch.randn(len(slots), lm.config.width)
    ours = tokens.clone()
    few.read(ours, torch.tensor(slots, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32))
    logits = few.logits(ours, norms=True)
    after = cache.tensor.clone()
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        if slot < 0:
            continue
        cache.tensor.copy_(before)
        state = lm.read(tokens[[row]], KvStream(slot, length), cache)
        assert (logits[row] - lm.logits(state)[0]).abs().max() <= 1e-5 * logits[row].abs().max()
        assert torch.allclose(after[:, :, slot], cache.tensor[:, :, slot], atol=1e-5)
    others = [slot for slot in range(4) if slot not in slots]
    assert torch.equal(after[:, :, others], before[:, :, others])
    assert torch.allclose(few.logits(lm.model.norm(ours), norms=False), logits, atol=1e-5)


# ---- what the works are given -------------------------------------------------------------------


def given(works: list[SpeechWork], tokens: list[list[int]], lm: SpeechLm) -> None:
    rows = SpeechRows(4, lm.config.audio_eos, CPU)
    conditions = [3] * len(works)
    rows.fill(works, conditions, 4)
    for row, line in enumerate(tokens):
        rows.tokens.host[row, : len(line)] = line
    rows.take(works, conditions)


def test_a_unit_ends_before_the_end_of_speech(lm: SpeechLm) -> None:
    whole, ended = unit(), unit(may_end=True, length=40)
    line = list(range(25))
    given([whole, ended], [line, [*line[:7], lm.config.audio_eos, *line[8:]]], lm)
    assert (whole.tokens, whole.stream.length, whole.random.drawn) == (line, 28, 25)
    assert (ended.tokens, ended.stream.length, ended.random.drawn) == (line[:7], 50, 25)


def test_an_answer_counts_the_draws_that_it_made(lm: SpeechLm) -> None:
    goes_on, ended, full = answer(), answer(), answer(most=4)
    eos, line = lm.config.audio_eos, list(range(25))
    given([goes_on, ended, full], [line, [1, 2, eos, *line[3:]], line], lm)
    assert (goes_on.call.ended, goes_on.random.drawn, goes_on.stream.length) == (False, 25, 35)
    assert (ended.call.ended, ended.random.drawn, ended.stream.length) == (True, 3, 12)
    assert ended.call.tokens == [1, 2] and full.call.tokens == [0, 1, 2, 3]
    assert (full.call.ended, full.random.drawn, full.stream.length) == (True, 4, 14)


def test_so_many_fit_into_a_batch(lm: SpeechLm) -> None:
    program = SpeechProgram(lm, runner(slots=2).slots.speech, (1, 4))
    assert program.count([unit()] * 3) == 3 and program.count([unit()] * 7) == 4
    assert program.count([unit(said=100)] * 4) == 2
    assert program.count([unit(said=300)]) == 0
    assert program.count([unit(), unit(length=511)]) == 1
    wide = replace(unit(), sampling=SpeechSampling(repetition_window=99))
    assert program.count([unit(), wide]) == 1 and program.count([Look([])]) == 0


def test_speech_without_room_is_told_its_own_conversation(lm: SpeechLm) -> None:
    program = SpeechProgram(lm, runner(slots=2).slots.speech, (4,))
    fits, full = unit(length=480), unit(length=500)
    program._works, program._lengths = [fits, full], [3, 3]
    failures = program.take()
    assert failures.keys() == {1} and isinstance(failures[1], ContextOverflow)
    assert (fits.stream.length, full.stream.length) == (508, 512)
