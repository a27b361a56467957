"""Chance by seed and number: even, independent, and nobody's company in it."""

import pytest
import torch
from torch import Tensor

from agent.duplex.random_source import RandomSource, draw, mixed, uniform

torch.set_num_threads(1)
MANY = 1 << 16


def numbers(count: int, seed: int = 1) -> Tensor:
    """Of the first `count` draws, one for each of 256 indices: [count, 256]."""
    keys = torch.tensor(RandomSource(seed).keys(count))[:, None]
    return uniform(keys, torch.arange(256))


def test_numbers_are_even_over_indices_and_over_draws() -> None:
    for values in (uniform(RandomSource(3).key(), torch.arange(MANY)), numbers(MANY)[:, 7]):
        assert values.min() > 0 and values.max() < 1
        counts = torch.histc(values, 64, 0, 1)
        expected = MANY / 64
        # Chi-squared of 63 degrees of freedom: beyond 120 once in 50,000 times.
        assert ((counts - expected) ** 2 / expected).sum() < 120
        assert values.mean() == pytest.approx(0.5, abs=0.005)
        assert values.var() == pytest.approx(1 / 12, abs=0.002)


def test_neither_neighbours_nor_draws_nor_seeds_depend_on_each_other() -> None:
    one = numbers(512)
    others = {
        "next index": (one[:, :-1], one[:, 1:]),
        "next draw": (one[:-1], one[1:]),
        "next seed": (one, numbers(512, seed=2)),
        "far seed": (one, numbers(512, seed=1 + (1 << 32))),
        "turned around": (one[:256], one[:256].T),
    }
    for name, (ours, theirs) in others.items():
        pair = torch.stack([ours.flatten(), theirs.flatten()])
        limit = 5 / pair.shape[1] ** 0.5
        assert abs(float(pair.corrcoef()[0, 1])) < limit, name
        both = torch.histc((pair[0] * 8).floor() * 8 + (pair[1] * 8).floor(), 64, 0, 64)
        expected = pair.shape[1] / 64
        assert ((both - expected) ** 2 / expected).sum() < 130, name


def test_one_bit_of_a_key_changes_half_of_every_number() -> None:
    values = torch.arange(4096)
    for bit in range(32):
        changed = mixed(values) ^ mixed(values ^ 1 << bit)
        shares = torch.stack([(changed >> place & 1).float().mean() for place in range(32)])
        assert (shares - 0.5).abs().max() < 0.1


def test_a_key_is_told_by_seed_and_number_alone() -> None:
    source = RandomSource.of(1234)
    first = source.keys(3)
    other = source.copy()
    assert source.keys(2) == other.keys(2) and source.drawn == 5
    source.drawn = 0
    assert [source.key() for _ in range(3)] == first
    assert RandomSource.of(1234 + (1 << 64)).keys(3) == first
    assert all(0 <= key < 1 << 32 for key in first) and len(set(first)) == 3


def test_no_seed_is_another_one_every_time() -> None:
    assert RandomSource.of(None).seed != RandomSource.of(None).seed


def test_draws_aside_are_other_ones_and_do_not_count() -> None:
    source = RandomSource(5)
    aside = source.aside()
    assert set(aside.keys(50)).isdisjoint(source.keys(50)) and source.drawn == 50
    assert aside.aside().seed == source.seed


def test_a_place_is_drawn_as_often_as_its_weight_says() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    keys = RandomSource(8).keys(2000)
    drawn = torch.cat([draw(weights, key) for key in keys])
    shares = torch.bincount(drawn, minlength=4) / len(keys)
    assert (shares - weights / 8).abs().max() < 0.04 and shares[1] == 0


def test_a_draw_depends_on_names_and_not_on_their_order() -> None:
    weights, order = torch.rand(40), torch.randperm(40)
    for key in RandomSource(2).keys(20):
        assert order[draw(weights[order], key, order)] == draw(weights, key)
