"""The benchmark of early units: people who pause, and what a wait is."""

from dataclasses import replace

import numpy as np
import pytest

from agent.config import Config
from agent.media.early_unit import EarlyUnitRules
from agent.media.vad import SileroModel
from agent.types import FloatArray
from bench.unit_wait import _unlike_db
from bench.unit_wait_call import Measured, WaitCall
from bench.unit_wait_talk import Talker


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return SileroModel()


def measured(model: SileroModel, *, early: bool, is_hasty: bool = False) -> Measured:
    settings = replace(Config().session_settings("bench"), early_units=early)
    talker = Talker(3, 0)
    call = WaitCall(talker, model, settings, EarlyUnitRules(), is_hasty=is_hasty)
    return call.run(talker.utterances(3))


def test_early_units_shorten_the_wait_and_cost_units(model: SileroModel) -> None:
    early, late = (measured(model, early=on) for on in (True, False))
    assert len(early.waits_ms) == len(late.waits_ms) == 3
    assert max(early.waits_ms) < 500 and all(0 < wait <= 1000 for wait in late.waits_ms)
    assert np.mean(early.waits_ms) < np.mean(late.waits_ms)
    for one in (early, late):
        # 60 ms are computed, 180 held, 280 silent; steps are of 20 ms.
        gaps = np.subtract(one.answers_ms, one.waits_ms)
        assert (gaps >= 520).all() and (gaps <= 580).all()
    assert late.tries == late.retracted == 0
    assert early.tries > early.retracted and len(early.guesses) > 0
    assert early.pauses == late.pauses


def test_the_same_numbers_say_the_same(model: SileroModel) -> None:
    first, second = (list(Talker(5, 1).utterances(2)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.pauses == other.pauses
    for begin, end in first[0].pauses:
        assert 0 < begin < end < first[0].voiced_samples


def test_silence_is_like_silence_and_not_like_none() -> None:
    def hiss(seed: int) -> FloatArray:
        white = np.random.default_rng(seed).standard_normal(8000)
        return np.asarray(0.01 * white, np.float32)

    assert _unlike_db(hiss(1), hiss(2)) < 2
    assert _unlike_db(np.zeros(8000, np.float32), hiss(2)) > 10
