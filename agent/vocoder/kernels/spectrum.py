# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""HiFT's short spectra, of its excitation and to its sound, and what stands between its stages."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.vocoder.batched.layout import Layout
from agent.vocoder.hift_body import LIMIT
from agent.vocoder.hift_config import BINS, FRAME_SAMPLES, HOP_SAMPLES, WINDOW_SAMPLES
from agent.vocoder.kernels.launching import (
    INTERPRETED,
    ROUNDINGS,
    Rounding,
    begun,
    is_number,
    launch,
    operand,
    operand_dtype,
    snake,
)
from agent.vocoder.kernels.sound import WindowSlots

_FRAMES = 4096 if INTERPRETED else 64
_NUMBERS = 65_536 if INTERPRETED else 1024


@dataclass(frozen=True, slots=True)
class SpectrumTables:
    """Products that make a spectrum of 16 samples and samples of it, window included, f32."""

    forward: Tensor  # [16, 18]
    backward: Tensor  # [18, 16]
    squared: Tensor  # [16], the window's square


@triton.jit(do_not_specialize=["COLUMNS", "SAMPLES", "FRAMES"])
def _analyse(
    sound, forward, plan, out, COLUMNS, SAMPLES, FRAMES,
    SOURCED: tl.constexpr, FRAME: tl.constexpr, WINDOW: tl.constexpr, HOP: tl.constexpr,
    PARTS: tl.constexpr, BP: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, BP)[None, :]
    place = tl.arange(0, WINDOW)
    table = tl.load(forward + place[:, None] * PARTS + part, mask=part < PARTS, other=0.0)
    begun(OVERLAPS)
    length = tl.load(plan + stream * COLUMNS + SOURCED).to(tl.int32) * FRAME
    at = number[:, None] * HOP + place[None, :] - WINDOW // 2
    at = tl.where(at < 0, -at, at)
    at = tl.where(at >= length, 2 * (length - 1) - at, at)
    known = (number * HOP <= length)[:, None] & (at >= 0) & (at < length)
    values = tl.load(sound + stream * SAMPLES + at, mask=known, other=0.0)
    spectrum = tl.dot(values, table, input_precision="ieee")
    target = out + (stream * FRAMES + number[:, None]) * PARTS + part
    tl.store(target, operand(spectrum, ROUNDS), mask=(number < FRAMES)[:, None] & (part < PARTS))


def analyse(
    sound: Tensor, tables: SpectrumTables, plan: Tensor, layout: Layout, rounding: Rounding
) -> Tensor:
    """The spectra [B, L / 4 + 1, 18] of the plan's frames of `sound` f32 [B, L], to be multiplied;
    the rest is of no use."""
    count, length = sound.shape
    frames = length // HOP_SAMPLES + 1
    dtype = operand_dtype(rounding)
    out = torch.empty(count, frames, 2 * BINS, dtype=dtype, device=sound.device)
    launch(
        _analyse, (count, triton.cdiv(frames, _FRAMES)), sound, tables.forward, plan, out,
        plan.shape[-1], length, frames, SOURCED=layout.window.sourced, FRAME=FRAME_SAMPLES,
        WINDOW=WINDOW_SAMPLES, HOP=HOP_SAMPLES, PARTS=2 * BINS, BP=32, BLOCK=_FRAMES,
        ROUNDS=ROUNDINGS[rounding],
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["FRAMES_IN", "FRAMES", "LEAD", "STREAMS"])
def _join(
    hidden, source, alphas, out, acted, FRAMES_IN, FRAMES, LEAD, STREAMS,
    C: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = number < FRAMES * C
    frame = number // C - LEAD
    channel = number % C
    # In front of the first frame stands the second, mirrored.
    frame = tl.where(frame < 0, -frame, frame)
    begun(OVERLAPS)
    value = tl.load(hidden + (stream * FRAMES_IN + frame) * C + channel, mask=inside, other=0.0)
    value += tl.load(source + stream * FRAMES * C + number, mask=inside, other=0.0)
    tl.store(out + stream * FRAMES * C + number, value, mask=inside)
    for one in tl.static_range(COUNT):
        rate = tl.load(alphas + one * C + channel, mask=inside, other=1.0)
        at = (one * STREAMS + stream) * FRAMES * C + number
        tl.store(acted + at, operand(snake(value, rate), ROUNDS), mask=inside)


def join(
    hidden: Tensor, source: Tensor, alphas: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    """`hidden` f32 [B, L, C] plus `source` [B, L', C], f32 [B, L', C], and Snake of it by each of
    `alphas` [n, C], [n, B, L', C] to be multiplied. Where L' is one more, one is mirrored in
    front."""
    streams, frames_in, channels = hidden.shape
    frames, count = source.shape[1], len(alphas)
    out = torch.empty_like(source)
    acted = out.new_empty(count, *out.shape, dtype=operand_dtype(rounding))
    launch(
        _join, (streams, triton.cdiv(frames * channels, _NUMBERS)), hidden, source, alphas, out,
        acted, frames_in, frames, frames - frames_in, streams, C=channels, COUNT=count,
        BLOCK=_NUMBERS, ROUNDS=ROUNDINGS[rounding],
    )  # fmt: skip
    return out, acted


@triton.jit(do_not_specialize=["rows", "slope"])
def _mean(
    blocks, out, rows, slope, C: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    size = rows * C
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    begun(OVERLAPS)
    value = tl.load(blocks + at, mask=inside, other=0.0)
    for one in tl.static_range(1, COUNT):
        value += tl.load(blocks + one * size + at, mask=inside, other=0.0)
    value = value / COUNT
    value = tl.where(value < 0, value * slope, value)
    tl.store(out + at, operand(value, ROUNDS), mask=inside)


def mean(blocks: Tensor, slope: float, rounding: Rounding) -> Tensor:
    """The mean of f32 [n, B, L, C] over n, what is negative times `slope`, to be multiplied."""
    out = torch.empty_like(blocks[0], dtype=operand_dtype(rounding))
    channels = out.shape[-1]
    launch(
        _mean, (triton.cdiv(out.numel(), _NUMBERS),), blocks, out, out.numel() // channels, slope,
        C=channels, COUNT=len(blocks), BLOCK=_NUMBERS, ROUNDS=ROUNDINGS[rounding],
    )  # fmt: skip
    return out


# ---- sound --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])
def _frames(
    drawn, backward, out, rows, BINS: tl.constexpr, BB: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bin_ = tl.arange(0, BB)
    real = bin_ < BINS
    place = tl.arange(0, WINDOW)[None, :]
    upper = tl.load(backward + bin_[:, None] * WINDOW + place, mask=real[:, None], other=0.0)
    lower = tl.load(
        backward + (BINS + bin_)[:, None] * WINDOW + place, mask=real[:, None], other=0.0
    )
    begun(OVERLAPS)
    mine = drawn + row[:, None] * 2 * BINS + bin_[None, :]
    inside = (row < rows)[:, None] & real[None, :]
    level = tl.load(mine, mask=inside, other=0.0)
    level = tl.where(is_number(level), tl.minimum(tl.exp(tl.minimum(level, 10.0)), 100.0), level)
    angle = tl.sin(tl.load(mine + BINS, mask=inside, other=0.0))
    wave = tl.dot(level * tl.cos(angle), upper, input_precision="ieee")
    wave = tl.dot(level * tl.sin(angle), lower, wave, input_precision="ieee")
    tl.store(out + row[:, None] * WINDOW + place, wave, mask=(row < rows)[:, None])


@triton.jit(do_not_specialize=["COLUMNS", "FRAMES", "SAMPLES", "HELD_SLOT"])
def _overlap(
    frames, squared, held, plan, out, COLUMNS, FRAMES, SAMPLES, HELD_SLOT,
    SRC: tl.constexpr, DST: tl.constexpr, SHAPED: tl.constexpr, FROM: tl.constexpr,
    SAID: tl.constexpr, FADED: tl.constexpr, HELD: tl.constexpr, FRAME: tl.constexpr,
    WINDOW: tl.constexpr, HOP: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0)
    sample = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begun(OVERLAPS)
    mine = plan + stream * COLUMNS
    said = tl.load(mine + SAID).to(tl.int32)
    kept = tl.load(mine + HELD).to(tl.int32)
    wanted = sample < said + kept
    place = sample + tl.load(mine + FROM).to(tl.int32) + WINDOW // 2
    last = tl.load(mine + SHAPED).to(tl.int32) * (FRAME // HOP)
    value = tl.zeros((BLOCK,), dtype=tl.float32)
    weight = tl.zeros((BLOCK,), dtype=tl.float32)
    steps: tl.constexpr = WINDOW // HOP
    for back in tl.static_range(steps):
        frame = place // HOP - back
        there = wanted & (frame >= 0) & (frame <= last)
        within = place - frame * HOP
        value += tl.load(
            frames + (stream * FRAMES + frame) * WINDOW + within, mask=there, other=0.0
        )
        weight += tl.load(squared + within, mask=there, other=0.0)
    value = value / tl.where(wanted, weight, 1.0)
    # NaN is to stay one.
    value = tl.where(value > LIMIT, LIMIT, tl.where(value < -LIMIT, -LIMIT, value))
    faded = tl.load(mine + FADED).to(tl.int32)
    source = tl.load(mine + SRC) * HELD_SLOT
    old = tl.load(held + source + sample, mask=sample < faded, other=0.0)
    share = 0.5 - 0.5 * tl.cos(3.14159265358979 * ((sample + 0.5) / tl.maximum(faded, 1)))
    value = tl.where(sample < faded, old + share * (value - old), value)
    tl.store(out + stream * SAMPLES + sample, value, mask=(sample < said) & (sample < SAMPLES))
    target = tl.load(mine + DST)
    left = sample - said
    keeps = (left >= 0) & (left < kept)
    tl.store(held + target * HELD_SLOT + left, value, mask=keeps)


def sound(
    drawn: Tensor,
    tables: SpectrumTables,
    slots: WindowSlots,
    plan: Tensor,
    layout: Layout,
    samples: int,
) -> Tensor:
    """What windows whose spectra are drawn [B, F, 18] have to say: f32 [B, samples], of which the
    plan's number counts. It is faded in out of what was held, and the next chunk's is held."""
    streams, frames, _ = drawn.shape
    waves = torch.empty(streams, frames, WINDOW_SAMPLES, device=drawn.device)
    rows = streams * frames
    launch(
        _frames, (triton.cdiv(rows, _FRAMES),), drawn, tables.backward, waves, rows, BINS=BINS,
        BB=16, WINDOW=WINDOW_SAMPLES, BLOCK=_FRAMES,
    )  # fmt: skip
    out, window = torch.empty(streams, samples, device=drawn.device), layout.window
    reach = samples + slots.held.shape[1]
    launch(
        _overlap, (streams, triton.cdiv(reach, _NUMBERS)), waves, tables.squared, slots.held, plan,
        out, plan.shape[-1], frames, samples, slots.held.shape[1], SRC=layout.source,
        DST=layout.target, SHAPED=window.shaped, FROM=window.said_from, SAID=window.said,
        FADED=window.faded, HELD=window.held, FRAME=FRAME_SAMPLES, WINDOW=WINDOW_SAMPLES,
        HOP=HOP_SAMPLES, LIMIT=LIMIT, BLOCK=_NUMBERS,
    )  # fmt: skip
    return out
