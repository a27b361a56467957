"""Speech to tokens, 25 a second: the tokenizer that the vocoders' tokens come from.

Two convolutions halve the mel's 100 frames a second twice, blocks of attention with a memory of
31 tokens look over the whole recording, and eight numbers of each token are rounded to −1, 0 or 1:
3⁸ = 6561 tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import Target, TensorHeader, TensorSource, load_parts, unfilled

TokenArray: TypeAlias = npt.NDArray[np.int32]

TOKENS_PER_S = 25
DIGITS = 8
HEAD_WIDTH = 64
_MEMORY_TOKENS = 31
_ROTARY_BASE = 10_000.0

_WINDOW_FRAMES = 3000
"""The longest stretch that is looked at as one: 30 s."""
_STRIDE_FRAMES = 2600
_EDGE_TOKENS = 50
"""What each of two overlapping windows gives up where they meet."""

Rounding: TypeAlias = Literal["onnx", "reference"]
"""The published graph shrinks by 0.999 before it rounds; the reference's own code does not. They
differ where a value lies between 0.5 and 0.5005."""
_SHRINK = 0.9990000128746033


class Tokenizer(Protocol):
    """What turns `tokenizer_mel` into tokens."""

    def tokens(self, mel: Tensor) -> TokenArray:
        """[bands, F] → i32 [⌈⌈F/2⌉/2⌉]."""
        ...


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Sizes, all to be read from the shapes of the weights."""

    mel_bands: int = 128
    width: int = 1280
    mlp_width: int = 5120
    blocks: int = 6

    @classmethod
    def of(cls, headers: Mapping[str, TensorHeader], prefix: str = "") -> "TokenizerConfig":
        """The sizes of stored weights; CheckpointError when they are not of this kind."""
        found = [re.match(rf"{re.escape(prefix)}encoder\.blocks\.(\d+)\.", key) for key in headers]
        numbers = {int(match[1]) for match in found if match}
        try:
            width, mel_bands, _ = headers[f"{prefix}encoder.conv1.weight"].shape
            mlp_width = headers[f"{prefix}encoder.blocks.0.mlp.0.weight"].shape[0]
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"these are no weights of a speech tokenizer: {error}") from error
        return cls(mel_bands, width, mlp_width, len(numbers))

    def __post_init__(self) -> None:
        if self.width % HEAD_WIDTH or not self.blocks:
            raise CheckpointError(f"no speech tokenizer has {self.blocks} blocks of {self.width}")


class SpeechTokenizer(nn.Module):
    """The tokenizer in torch; its parameters bear the published names. float32."""

    def __init__(self, config: TokenizerConfig, rounding: Rounding = "onnx") -> None:
        super().__init__()
        self.encoder = _Encoder(config)
        self.quantizer = _Quantizer(config.width)
        self.rounding: Rounding = rounding

    @torch.inference_mode()
    def tokens(self, mel: Tensor) -> TokenArray:
        """[bands, F] → i32 [⌈⌈F/2⌉/2⌉]; more than 30 s in overlapping windows."""
        windows = _windows(mel.shape[1])
        found = []
        for number, start in enumerate(windows):
            piece = mel[:, start : start + _WINDOW_FRAMES]
            ids = rounded(self.project(self.hidden(piece)), self.rounding)
            if number > 0:
                ids = ids[_EDGE_TOKENS:]
            if number + 1 < len(windows):
                ids = ids[: len(ids) - _EDGE_TOKENS]
            found.append(ids)
        joined: TokenArray = torch.cat(found).cpu().numpy().astype(np.int32)
        return joined

    def hidden(self, mel: Tensor) -> Tensor:
        """[bands, F] of at most 30 s → [T, width]."""
        weight = self.encoder.conv1.weight
        hidden: Tensor = self.encoder(mel[None].to(weight.device, weight.dtype))
        return hidden[0]

    def project(self, hidden: Tensor) -> Tensor:
        """[T, width] → the numbers that are rounded, before the tanh [T, 8]."""
        projected: Tensor = self.quantizer._codebook.project_down(hidden)
        return projected


def load_speech_tokenizer(
    source: TensorSource,
    *,
    prefix: str = "",
    rounding: Rounding = "onnx",
    device: torch.device | None = None,
) -> SpeechTokenizer:
    """The tokenizer with these weights, its sizes those of their shapes; CheckpointError."""
    config = TokenizerConfig.of(source.headers, prefix)
    with unfilled():
        tokenizer = SpeechTokenizer(config, rounding)
    target = Target(device or torch.device("cpu"), torch.float32)
    load_parts(source, {prefix: tokenizer}, unused={}, target=target)
    return tokenizer


def token_count(frames: int) -> int:
    """How many tokens so many frames of `tokenizer_mel` become (up to 30 s)."""
    halved = (frames + 1) // 2
    return (halved + 1) // 2


def rounded(projected: Tensor, rounding: Rounding) -> Tensor:
    """[T, 8] before the tanh → i64 [T], the first number the lowest digit to the base of 3."""
    squashed = projected.float().tanh()
    if rounding == "onnx":
        digits = (squashed * _SHRINK).round() + 1
    else:
        digits = (squashed.clamp(-1 + 1e-6, 1 - 1e-6) + 1).round()
    places = 3 ** torch.arange(DIGITS, device=projected.device)
    return (digits.long() * places).sum(-1)


def _windows(frames: int) -> list[int]:
    """Where the windows start; the last may begin where the one before has already ended."""
    return [0] if frames <= _WINDOW_FRAMES else list(range(0, frames, _STRIDE_FRAMES))


# ---- the network --------------------------------------------------------------------------------


class _Encoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.mel_bands, config.width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))

    def forward(self, mel: Tensor) -> Tensor:
        """[B, bands, F] → [B, T, width]."""
        tokens = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        rotation = _rotation(tokens.shape[1], tokens.device)
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return tokens


class _Block(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.attn_ln = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = _MemoryAttention(config.width)
        self.mlp_ln = nn.LayerNorm(config.width, eps=1e-5)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width),
            nn.GELU(),
            nn.Linear(config.mlp_width, config.width),
        )

    def forward(self, tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        tokens = tokens + self.attn(self.attn_ln(tokens), rotation)
        mixed: Tensor = tokens + self.mlp(self.mlp_ln(tokens))
        return mixed


class _MemoryAttention(nn.Module):
    """Attention with rotary positions, and beside it a filter over the values of its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(
            width, width, _MEMORY_TOKENS, padding=_MEMORY_TOKENS // 2, groups=width, bias=False
        )

    def forward(self, tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        memory = self.fsmn_block(value.transpose(1, 2)).transpose(1, 2) + value
        mixed = F.scaled_dot_product_attention(
            _rotated(_heads(query), rotation), _rotated(_heads(key), rotation), _heads(value)
        )
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2)) + memory
        return attended


class _Quantizer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self._codebook = _Codebook(width)


class _Codebook(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_down = nn.Linear(width, DIGITS)


def _heads(tokens: Tensor) -> Tensor:
    """[B, T, width] → [B, heads, T, 64]."""
    return tokens.view(*tokens.shape[:2], -1, HEAD_WIDTH).transpose(1, 2)


def _rotation(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, the same for both halves: [T, 64] each."""
    exponents = torch.arange(0, HEAD_WIDTH, 2, device=device).float() / HEAD_WIDTH
    angles = torch.outer(torch.arange(length, device=device).float(), _ROTARY_BASE**-exponents)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def _rotated(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine
