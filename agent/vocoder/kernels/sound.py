# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""What HiFT does beside its convolutions: its window of mel, the excitation, and the spectra.

A stream's window is what its next piece is decoded from. It lies at the beginning of its buffers,
so nothing stands in front of it, as at the beginning of a turn.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.vocoder.batched.layout import Layout
from agent.vocoder.hift_config import FRAME_SAMPLES
from agent.vocoder.kernels.launching import (
    INTERPRETED,
    ROUNDINGS,
    Rounding,
    begun,
    launch,
    operand,
    operand_dtype,
)
from agent.vocoder.source import (
    SINE_LEVEL,
    UNVOICED_NOISE_LEVEL,
    VOICED_FROM_HZ,
    VOICED_NOISE_LEVEL,
)

_SAMPLES = 4096 if INTERPRETED else 256
_RATE_HZ = 24_000


@dataclass(frozen=True, slots=True)
class WindowSlots:
    """What the streams' windows keep between two chunks, each by slot."""

    mel: Tensor  # f32 [slots, frames, M]
    pitch: Tensor  # f64 [slots, frames]
    before: Tensor  # f64 [slots, harmonics], cycles of the frame in front of the window
    held: Tensor  # f32 [slots, samples]


# ---- mel ----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["COLUMNS", "SLOT", "FRAMES", "CHUNK"])
def _widen(
    slots, mel, plan, window, rounded, COLUMNS, SLOT, FRAMES, CHUNK,
    SRC: tl.constexpr, DST: tl.constexpr, OLD: tl.constexpr, WHOLE: tl.constexpr,
    HEARD: tl.constexpr, DROPPED: tl.constexpr, M: tl.constexpr, BM: tl.constexpr,
    ROWS: tl.constexpr, ROUNDS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0)
    frame = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    band = tl.arange(0, BM)[None, :]
    inside = (frame < FRAMES) & (band < M)
    begun(OVERLAPS)
    mine = plan + stream * COLUMNS
    old = tl.load(mine + OLD).to(tl.int32)
    whole = tl.load(mine + WHOLE).to(tl.int32)
    target = tl.load(mine + DST)
    before = slots + (tl.load(mine + SRC) * SLOT + frame) * M + band
    value = tl.load(before, mask=inside & (frame < old), other=0.0)
    # What is guessed goes on as the last frame.
    at = tl.minimum(frame, whole - 1) - old
    fresh = (frame >= old) & (frame < tl.load(mine + HEARD)) & (at >= 0)
    value += tl.load(mel + (stream * CHUNK + at) * M + band, mask=inside & fresh, other=0.0)
    tl.store(window + (stream * FRAMES + frame) * M + band, value, mask=inside)
    if ROUNDS:
        target_row = rounded + (stream * FRAMES + frame) * M
        tl.store(target_row + band, operand(value, ROUNDS), mask=inside)
    left = frame - tl.load(mine + DROPPED).to(tl.int32)
    kept = inside & (left >= 0) & (frame < whole) & (left < SLOT)
    tl.store(slots + (target * SLOT + left) * M + band, value, mask=kept)


def widen(
    slots: WindowSlots,
    mel: Tensor,
    plan: Tensor,
    layout: Layout,
    frames: int,
    rounding: Rounding,
) -> tuple[Tensor, Tensor]:
    """Windows f32 [B, frames, M] with the chunks `mel` f32 [B, T, M] at their ends; the same
    rounded for products, or once more. What stays is put into the target slots."""
    count, chunk, bands = mel.shape
    wide = torch.empty(count, frames, bands, device=mel.device)
    dtype, window = operand_dtype(rounding), layout.window
    rounded = wide if rounding == "none" else torch.empty_like(wide, dtype=dtype)
    rows = 128 if INTERPRETED else 8
    launch(
        _widen, (count, triton.cdiv(frames, rows)), slots.mel, mel, plan, wide, rounded,
        plan.shape[-1], slots.mel.shape[1], frames, chunk,
        SRC=layout.source, DST=layout.target, OLD=window.old, WHOLE=window.whole,
        HEARD=window.heard, DROPPED=window.dropped, M=bands, BM=triton.next_power_of_2(bands),
        ROWS=rows, ROUNDS=ROUNDINGS[rounding],
    )  # fmt: skip
    return wide, rounded


# ---- the excitation -----------------------------------------------------------------------------


@triton.jit(do_not_specialize=["COLUMNS", "SLOT", "FRESH"])
def _track(
    slots, befores, fresh, plan, pitch, cycles, COLUMNS, SLOT, FRESH,
    SRC: tl.constexpr, DST: tl.constexpr, FROM: tl.constexpr, SETTLED: tl.constexpr,
    SOURCED: tl.constexpr, DROPPED: tl.constexpr, SETTLING: tl.constexpr, H: tl.constexpr,
    BH: tl.constexpr, BF: tl.constexpr, FRAME: tl.constexpr, HZ: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0)
    frame = tl.arange(0, BF)
    begun(OVERLAPS)
    mine = plan + stream * COLUMNS
    source = tl.load(mine + SRC)
    target = tl.load(mine + DST)
    settled = tl.load(mine + SETTLED).to(tl.int32)
    sourced = tl.load(mine + SOURCED).to(tl.int32)
    dropped = tl.load(mine + DROPPED).to(tl.int32)
    known = tl.load(slots + source * SLOT + frame, mask=frame < settled, other=0.0)
    at = frame - tl.load(mine + FROM).to(tl.int32)
    wanted = (frame >= settled) & (frame < sourced) & (at < FRESH)
    hz = known + tl.load(fresh + stream * FRESH + at, mask=wanted, other=0.0)
    tl.store(pitch + stream * BF + frame, hz)
    left = frame - dropped
    kept = (left >= 0) & (frame < tl.load(mine + SETTLING)) & (left < SLOT)
    tl.store(slots + target * SLOT + left, hz, mask=kept)
    number = tl.arange(0, BH)[None, :]
    harmonic = (number + 1).to(tl.float32)
    # In float32 as the model was trained; only the sum over time needs more digits.
    step = hz.to(tl.float32)[:, None] * harmonic / HZ
    step = (step - tl.floor(step)).to(tl.float64)
    before = tl.load(befores + source * H + number, mask=number < H, other=0.0)
    turns = tl.cumsum(step, 0) * FRAME + before
    tl.store(cycles + (stream * BF + frame[:, None]) * BH + number, turns)
    last = tl.sum(tl.where(frame[:, None] == dropped - 1, turns, 0.0), 0)[None, :]
    last = tl.where(dropped > 0, last - tl.floor(last), before)
    tl.store(befores + target * H + number, last, mask=(number < H))


@dataclass(frozen=True, slots=True)
class Excitation:
    """What the source is made of: `table` f32 [N, H] of noise, `mix` f32 [H + 1], the weights of
    the harmonics and a bias. `glides`: the phase glides between frames, or stands still in each."""

    table: Tensor
    mix: Tensor
    glides: bool

    @property
    def harmonics(self) -> int:
        """How many."""
        return self.table.shape[1]


@triton.jit(do_not_specialize=["COLUMNS", "SAMPLES", "NOISE_ROWS"])
def _excite(
    pitch, cycles, befores, table, mix, plan, out, COLUMNS, SAMPLES, NOISE_ROWS,
    SRC: tl.constexpr, SOURCED: tl.constexpr, GLIDES_AT: tl.constexpr, NOISE: tl.constexpr,
    GLIDES: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr,
    FRAME: tl.constexpr, BLOCK: tl.constexpr, SINE: tl.constexpr, VOICED_HZ: tl.constexpr,
    VOICED: tl.constexpr, UNVOICED: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    stream = tl.program_id(0)
    sample = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, BH)[None, :]
    begun(OVERLAPS)
    mine = plan + stream * COLUMNS
    sourced = tl.load(mine + SOURCED).to(tl.int32)
    there = (sample < sourced * FRAME) & (sample < SAMPLES)
    frame = sample // FRAME
    own = cycles + stream * BF * BH + number
    both = there[:, None] & (number < H)
    if GLIDES:
        has_before = tl.load(mine + GLIDES_AT).to(tl.int32)
        place = (sample.to(tl.float64) + 0.5) / FRAME - 0.5
        place = tl.minimum(tl.maximum(place, -has_before), sourced - 1.0)
        lower = tl.floor(place)
        share = (place - lower)[:, None]
        lower = lower.to(tl.int32)[:, None]
        upper = tl.minimum(lower + 1, sourced - 1)
        before = tl.load(befores + tl.load(mine + SRC) * H + number, mask=number < H, other=0.0)
        turns = tl.load(own + lower * BH, mask=both & (lower >= 0), other=0.0)
        turns += tl.where(lower < 0, before, 0.0)
        turns += share * (tl.load(own + upper * BH, mask=both, other=0.0) - turns)
    else:
        turns = tl.load(own + frame[:, None] * BH, mask=both, other=0.0)
    turns = turns - tl.floor(turns)
    sine = tl.sin((turns * 6.283185307179586).to(tl.float32))
    hz = tl.load(pitch + stream * BF + frame, mask=there, other=0.0)
    voiced = tl.where(hz > VOICED_HZ, 1.0, 0.0)[:, None]
    level = voiced * VOICED + (1.0 - voiced) * UNVOICED
    row = (tl.load(mine + NOISE) + sample) % NOISE_ROWS
    noise = tl.load(table + row[:, None] * H + number, mask=both, other=0.0)
    weights = tl.load(mix + number, mask=number < H, other=0.0)
    wave = tl.sum((SINE * sine * voiced + level * noise) * weights, 1) + tl.load(mix + H)
    # Near 0 the quotient would lose digits.
    square = wave * wave
    small = wave * (1.0 - square * (0.333333333 - square * (0.133333333 - square * 0.053968254)))
    grown = tl.exp(-2.0 * tl.abs(wave))
    large = tl.where(wave < 0, -1.0, 1.0) * (1.0 - grown) / (1.0 + grown)
    wave = tl.where(tl.abs(wave) < 0.1, small, large)
    tl.store(out + stream * SAMPLES + sample, tl.where(there, wave, 0.0), mask=sample < SAMPLES)


def excite(
    slots: WindowSlots,
    fresh: Tensor,
    excitation: Excitation,
    plan: Tensor,
    layout: Layout,
    frames: int,
) -> Tensor:
    """The excitation f32 [B, 480 · frames] of windows, 0 where there is none; the pitch of frames
    from `pitch_from` on is `fresh` f64 [B, F]. What stays is put into the target slots."""
    count, harmonics, window = len(fresh), excitation.harmonics, layout.window
    block, wide = triton.next_power_of_2(frames), triton.next_power_of_2(harmonics)
    pitch = torch.empty(count, block, dtype=torch.float64, device=fresh.device)
    cycles = torch.empty(count, block, wide, dtype=torch.float64, device=fresh.device)
    launch(
        _track, (count,), slots.pitch, slots.before, fresh, plan, pitch, cycles, plan.shape[-1],
        slots.pitch.shape[1], fresh.shape[1], SRC=layout.source, DST=layout.target,
        FROM=window.pitch_from, SETTLED=window.settled, SOURCED=window.sourced,
        DROPPED=window.dropped, SETTLING=window.settling, H=harmonics, BH=wide, BF=block,
        FRAME=FRAME_SAMPLES, HZ=_RATE_HZ,
    )  # fmt: skip
    out = torch.empty(count, frames * FRAME_SAMPLES, device=fresh.device)
    launch(
        _excite, (count, triton.cdiv(out.shape[1], _SAMPLES)), pitch, cycles, slots.before,
        excitation.table, excitation.mix, plan, out, plan.shape[-1], out.shape[1],
        len(excitation.table), SRC=layout.source, SOURCED=window.sourced,
        GLIDES_AT=window.glides, NOISE=window.noise, GLIDES=excitation.glides, H=harmonics,
        BH=wide, BF=block, FRAME=FRAME_SAMPLES, BLOCK=_SAMPLES, SINE=SINE_LEVEL,
        VOICED_HZ=VOICED_FROM_HZ, VOICED=VOICED_NOISE_LEVEL, UNVOICED=UNVOICED_NOISE_LEVEL,
    )  # fmt: skip
    return out
