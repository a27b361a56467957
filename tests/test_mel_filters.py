"""Slaney's filters against the bank that the feature extractors of transformers are made with."""

import numpy as np
import pytest

from agent.torch_parts.mel_filters import slaney_filters


@pytest.mark.parametrize(
    ("rate_hz", "window_samples", "bands", "highest_hz"),
    [(16_000, 400, 80, 8000.0), (16_000, 400, 128, 8000.0), (24_000, 1920, 80, 8000.0)],
)
def test_the_filters_are_the_usual_ones(
    rate_hz: int, window_samples: int, bands: int, highest_hz: float
) -> None:
    from transformers.audio_utils import mel_filter_bank

    lines = window_samples // 2 + 1
    theirs = mel_filter_bank(
        lines, bands, 0.0, highest_hz, rate_hz, norm="slaney", mel_scale="slaney"
    )
    ours = slaney_filters(rate_hz, window_samples, bands, highest_hz)
    assert np.array_equal(ours.numpy(), theirs.T.astype(np.float32))


def test_below_a_thousand_hertz_the_scale_is_linear() -> None:
    filters = slaney_filters(16_000, 1600, 8, 800.0).numpy()
    tops = filters.argmax(1)
    # Lines of 10 Hz, triangles about 89 Hz apart.
    assert (abs(tops - np.linspace(0, 80, 10)[1:-1]) <= 1).all()
    assert not filters[:, 81:].any()
