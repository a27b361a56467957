"""Weights of 4 and 8 bits: how they are rounded, how they lie, and what they stand for.

All of it in torch, on the device of the weight, a few rows at a time: what is needed besides the
weight itself stays below a quarter of a gigabyte.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from agent.duplex.quant_choice import GROUP

_AT_ONCE = 1 << 22
"""Numbers that are rounded at a time; each takes some 50 bytes of work space."""
_CLIPS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75)
"""Shares of a group's range that are tried: what lies outside is cut off, the rest is finer."""
_BLOCK_WORDS = 32
"""Words of 8 codes in a block of 256: bits 4n to 4n + 3 of word w are the block's code 32n + w."""
_E4M3_MOST = 448.0


# ---- how four bits lie --------------------------------------------------------------------------


def pack_codes(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [M, K], K a multiple of 128 → words i32 [M, K / 8].

    In blocks of 256 codes, and where K is an odd multiple of 128, of 128.
    """
    height, width = codes.shape
    words = _block_words(width)
    nibbles = codes.to(torch.int32).reshape(height, -1, 8, words)
    packed = nibbles[:, :, 0].clone()
    for place in range(1, 8):
        packed |= nibbles[:, :, place] << (4 * place)
    return packed.reshape(height, width // 8)


def unpack_codes(packed: Tensor) -> Tensor:
    """Words [M, K / 8] → codes u8 [M, K]."""
    height, count = packed.shape
    words = packed.reshape(height, -1, 1, _block_words(8 * count))
    places = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    return (words >> places[None, None, :, None] & 15).to(torch.uint8).reshape(height, 8 * count)


def _block_words(width: int) -> int:
    return _BLOCK_WORDS if width % (8 * _BLOCK_WORDS) == 0 else _BLOCK_WORDS // 2


def join_steps(scales: Tensor, zeros: Tensor) -> Tensor:
    """Scales f16 and zero points 0 to 15, [G, M] each → steps i32 [G, M].

    The scale's bits below, the zero point above.
    """
    bits = scales.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    return bits | (zeros.to(torch.int32) << 16)


def split_steps(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Steps [G, M] → scales f16 and zero points i32."""
    return (steps & 0xFFFF).to(torch.int16).view(torch.float16), steps >> 16


# ---- rounding -----------------------------------------------------------------------------------


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] → words i32 [M, K / 8] and steps i32 [K / 128, M].

    Of each group the range is tried at several shares, and the one with the least error is taken.
    """
    packed, steps = zip(*_in_pieces(weight, _round_groups), strict=True)
    return torch.cat(packed), torch.cat(steps, 1)


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] → i8 [M, K] and scales f32 [1, M]."""
    codes, scales = zip(*_in_pieces(weight, _round_rows), strict=True)
    return torch.cat(codes), torch.cat(scales)[None]


def round_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] → e4m3 as bytes u8 [M, K] and scales f32 [1, M]."""
    codes, scales = zip(*_in_pieces(weight, _float_rows), strict=True)
    return torch.cat(codes), torch.cat(scales)[None]


def _in_pieces(
    weight: Tensor, do: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    for piece in torch.split(weight, max(1, _AT_ONCE // weight.shape[1])):
        yield do(piece.float())


def _round_groups(wide: Tensor) -> tuple[Tensor, Tensor]:
    groups = wide.reshape(len(wide), -1, GROUP)
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    high = groups.amax(-1, keepdim=True).clamp_(min=0)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for clip in _CLIPS:
        step = _half_precision((high - low) * (clip / 15))
        point = (-low * clip / step).round_().clamp_(0, 15)
        codes = (groups / step).add_(point).round_().clamp_(0, 15)
        error = codes.sub_(point).mul_(step).sub_(groups).square_().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, step, scale), torch.where(better, point, zero)
    codes = (groups / scale).add_(zero).round_().clamp_(0, 15)
    steps = join_steps(scale[..., 0].t().half(), zero[..., 0].t())
    return pack_codes(codes.reshape(wide.shape)), steps


def _half_precision(steps: Tensor) -> Tensor:
    """As they are kept: rounded to float16, and never 0."""
    return steps.clamp(2.0**-24, 65504.0).half().float()


def _round_rows(wide: Tensor) -> tuple[Tensor, Tensor]:
    scales = wide.abs().amax(-1).clamp_(min=1e-12) / 127
    codes = (wide / scales[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales


def _float_rows(wide: Tensor) -> tuple[Tensor, Tensor]:
    scales = wide.abs().amax(-1).clamp_(min=1e-12) / _E4M3_MOST
    codes = (wide / scales[:, None]).clamp_(-_E4M3_MOST, _E4M3_MOST)
    return codes.to(torch.float8_e4m3fn).view(torch.uint8), scales


# ---- what they stand for ------------------------------------------------------------------------


def widen_int4(packed: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Words [M, K / 8], steps [K / 128, M] → [M, K]: (code − zero point) · scale, rounded once."""
    scales, zeros = split_steps(steps)
    codes = unpack_codes(packed)
    groups = codes.float().reshape(len(codes), -1, GROUP) - zeros.t().float()[..., None]
    return (groups * scales.t().float()[..., None]).to(dtype).reshape(codes.shape)


def widen_int8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """i8 [M, K], scales [1, M] → [M, K], rounded once."""
    return (codes.float() * scales[0, :, None]).to(dtype)


def widen_fp8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 as bytes u8 [M, K], scales [1, M] → [M, K], rounded once."""
    return (codes.view(torch.float8_e4m3fn).float() * scales[0, :, None]).to(dtype)
