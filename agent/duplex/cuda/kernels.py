# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917
"""Small kernels of a decoder's layer: embedding, norms, heads to their places, the gate.

They round where the modules of `agent.duplex.decoder` round, so that both say the same in bfloat16:
every product and sum that torch would write out is rounded to the weights' dtype. What the layers
add to is rounded to its own, which may be float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from agent.duplex.cuda.kernels_linear import begin_early, gated, starts_early, wait_for_last
from agent.torch_parts.kernels.launching import launch


@triton.jit
def _embed(ids, table, given, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    one = tl.load(ids + row).to(tl.int64)
    known = tl.load(table + one * width + column, mask=inside & (one >= 0))
    brought = tl.load(given + row * width + column, mask=inside & (one < 0))
    value = tl.where(one >= 0, known, brought).to(out.dtype.element_ty)
    tl.store(out + row * width + column, value, mask=inside)


def embed(ids: Tensor, table: Tensor, given: Tensor) -> Tensor:
    """Rows f32 [N, W]: of `table` [V, W] where `ids` i32 [N] name one, of `given` [>= N, W] where
    the id is below 0."""
    out = torch.empty(len(ids), table.shape[1], dtype=torch.float32, device=table.device)
    block = 1024
    grid = (len(ids), triton.cdiv(table.shape[1], block))
    launch(_embed, grid, ids, table, given, out, table.shape[1], BLOCK=block)
    return out


@triton.jit
def _keep(states, rows, kept, width, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    begin_early(EARLY)
    wait_for_last(EARLY)
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place).to(tl.int64)
    if row >= 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        state = tl.load(states + row * width + column, mask=inside)
        tl.store(kept + place * width + column, state, mask=inside)


def keep(states: Tensor, rows: Tensor, kept: Tensor) -> None:
    """Copy row `rows[i]` of `states` [N, W] to row i of `kept` [>= n, W]; `rows` is i32 [n], and
    where it is below 0 what was there stays."""
    width = states.shape[1]
    grid = (len(rows), triton.cdiv(width, 1024))
    early = starts_early(states.device)
    launch(_keep, grid, states, rows, kept, width, BLOCK=1024, EARLY=early, launch_pdl=early)


@triton.jit
def normed(wide, weight, mean_of, epsilon, dtype: tl.constexpr):
    """f32 [.., D] scaled to a mean square of 1, rounded, weighted, rounded: f32 again."""
    mean = tl.sum(wide * wide, 1, keep_dims=True) / mean_of
    scaled = (wide * tl.rsqrt(mean + epsilon)).to(dtype).to(tl.float32)
    return (scaled * weight.to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def _norm(
    tokens,
    added,
    weight,
    out,
    width,
    epsilon,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    begin_early(EARLY)
    wait_for_last(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < width
    place = row * width + column
    value = tl.load(tokens + place, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    if ADDS:
        more = tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
        value = (wide + more).to(value.dtype)
        wide = value.to(tl.float32)
        tl.store(tokens + place, value, mask=inside)
    weights = tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + place, normed(wide, weights, width, epsilon, weights.dtype), mask=inside)


def norm(tokens: Tensor, weight: Tensor, epsilon: float, added: Tensor | None = None) -> Tensor:
    """RmsNorm of `tokens` [N, W], in the dtype of `weight`; with `added` [N, W], of their sum,
    which `tokens` then hold, rounded to their own dtype."""
    out = torch.empty_like(tokens, dtype=weight.dtype)
    width = tokens.shape[1]
    block = triton.next_power_of_2(width)
    more = tokens if added is None else added
    warps = max(1, min(16, block // 512))
    early = starts_early(tokens.device)
    launch(
        _norm, (len(tokens),),
        tokens, more, weight, out, width, epsilon, added is not None, block, early,
        num_warps=warps, launch_pdl=early,
    )  # fmt: skip
    return out


@triton.jit
def _gate(merged, out, width, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    begin_early(EARLY)
    wait_for_last(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(merged + row * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(merged + row * 2 * width + width + column, mask=inside, other=0.0)
    tl.store(out + row * width + column, gated(gate, up), mask=inside)


def gate(merged: Tensor) -> Tensor:
    """SiLU of the first half of [N, 2·F] times the second: [N, F]."""
    rows, width = len(merged), merged.shape[1] // 2
    out = torch.empty(rows, width, dtype=merged.dtype, device=merged.device)
    block = 1024
    early = starts_early(merged.device)
    grid = (rows, triton.cdiv(width, block))
    launch(_gate, grid, merged, out, width, BLOCK=block, EARLY=early, launch_pdl=early)
    return out
