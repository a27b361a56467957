"""Memory that was never written holds NaN: a number that comes of it is found."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    # Not where it runs: kernels would be there before it is known whether they are interpreted.
    from agent.vocoder.batched.stores import Stores


def fill_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made without a value, and keeps floating point numbers."""
    for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(place, name, _filled(getattr(place, name)))


def _filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*given: Any, **named: Any) -> Tensor:
        made = make(*given, **named)
        return made.fill_(math.nan) if made.is_floating_point() else made

    return filled


def fill_stores(stores: "Stores") -> None:
    """All places but slot 0, which places in a round that no stream has read and write."""
    encoder, estimator, window = stores.encoder, stores.estimator, stores.window
    for rows in (encoder.token_rows, encoder.mel_rows, estimator.rows):
        rows.fill_(math.nan)
    slots = [encoder.smooth_tails, encoder.up_tails]
    slots += [estimator.first_tails, estimator.second_tails, estimator.speakers]
    for store in (*slots, *(getattr(window, name) for name in window.__slots__)):
        store[1:] = math.nan
