"""Whole recordings from one rate to another, as the models' authors resampled theirs."""

from math import ceil, gcd

import torch
from torch import Tensor

_MOST_WEIGHTS = 1 << 24
"""The filter bank grows with the product of the two rates' parts that do not cancel."""
_ZERO_CROSSINGS = 6
_ROLL_OFF = 0.99


def can_resample(from_hz: int, to_hz: int) -> bool:
    """Whether the filters between these rates are of a reasonable size; all usual rates are."""
    if min(from_hz, to_hz) <= 0:
        return False
    common = gcd(from_hz, to_hz)
    phases, step = to_hz // common, from_hz // common
    return phases * (step + 2 * _half_width(step, phases)) <= _MOST_WEIGHTS


def resample(sound: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """f32 [..., T] → [..., ceil(T · to / from)], by a windowed sinc, without delay.

    Equal to torchaudio's `resample` with its defaults. ValueError where `can_resample` is false.
    """
    if from_hz == to_hz:
        return sound
    if not can_resample(from_hz, to_hz):
        raise ValueError(f"cannot resample {from_hz} Hz to {to_hz} Hz")
    common = gcd(from_hz, to_hz)
    step, phases = from_hz // common, to_hz // common
    width = _half_width(step, phases)
    padded = torch.nn.functional.pad(sound.reshape(-1, 1, sound.shape[-1]), (width, width + step))
    resampled = torch.nn.functional.conv1d(padded, _filters(step, phases)[:, None], stride=step)
    flat = resampled.transpose(1, 2).reshape(len(padded), -1)
    length = ceil(phases * sound.shape[-1] / step)
    return flat[:, :length].reshape(*sound.shape[:-1], length)


def _half_width(step: int, phases: int) -> int:
    return ceil(_ZERO_CROSSINGS * step / (min(step, phases) * _ROLL_OFF))


def _filters(step: int, phases: int) -> Tensor:
    """One filter for each phase of the new rate, f32 [phases, step + 2 · half width]."""
    base = min(step, phases) * _ROLL_OFF
    width = _half_width(step, phases)
    inputs = torch.arange(-width, width + step, dtype=torch.float64)[None] / step
    # The phase in float32, the rest in float64: the last bit of every weight depends on it.
    outputs = torch.arange(0, -phases, -1, dtype=torch.float32)[:, None] / phases
    time = ((outputs + inputs) * base).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = (time * torch.pi / _ZERO_CROSSINGS / 2).cos() ** 2
    time = time * torch.pi
    sinc = torch.where(time == 0, torch.ones_like(time), time.sin() / time)
    return (sinc * window * (base / step)).float()
