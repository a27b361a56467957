"""The model with random weights: every size real, every word without meaning.

For time and memory, which do not depend on what weights say. Decisions are written beforehand,
since random weights would decide at random.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.duplex.config import DuplexConfig, parse_config
from agent.duplex.model import DuplexModel, build_parts, by_prefix, load_model
from agent.duplex.tokens import Vocabulary
from agent.torch_parts.checkpoint import Target, TensorHeader, stored_shapes

_SEED = 4_5

FULL_SIZE: dict[str, Any] = {
    "model_type": "minicpmo",
    "version": "4.5",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151748,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "query_num": 64,
    "image_size": 448,
    "vision_batch_size": 16,
    "audio_pool_step": 5,
    "audio_chunk_length": 1.0,
    "stream_input": True,
    "drop_vision_last_layer": False,
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 980,
    },
    "audio_config": {
        "d_model": 1024,
        "encoder_ffn_dim": 4096,
        "encoder_layers": 24,
        "encoder_attention_heads": 16,
    },
    "tts_config": {},
}
"""config.json of the published checkpoint, as far as it is public."""


class RandomSource:
    """Weights of every key of the model, of a size that keeps what flows through it finite."""

    def __init__(self, config: DuplexConfig) -> None:
        shapes = stored_shapes(by_prefix(*build_parts(config)))
        self.headers = {
            key: TensorHeader(shape, "BF16", Path("random")) for key, shape in shapes.items()
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Drawn where they are needed, so nothing is copied."""
        generator = torch.Generator(device).manual_seed(_SEED)
        for key in keys:
            shape = self.headers[key].shape
            noise = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            yield key, _scaled(key, noise)


def _scaled(key: str, noise: Tensor) -> Tensor:
    """In place: holes between what stays would count as the model's memory."""
    if key.endswith("original0"):
        return noise.abs_().mul_(0.5).add_(0.5)
    if noise.ndim >= 2:
        return noise.mul_(0.5 if "emb" in key else math.prod(noise.shape[1:]) ** -0.5)
    return noise.mul_(0.1).add_(1) if key.endswith("weight") else noise.mul_(0.02)


class _Letters:
    """A letter a token: what is said has no meaning, only a length."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + one % 26) for one in ids)


def random_model(target: Target) -> DuplexModel:
    """The model at full size on `target`."""
    config = parse_config(FULL_SIZE)
    vocabulary = Vocabulary(_Letters(), unspeakable=(42, 43))
    return load_model(RandomSource(config), config, vocabulary, target=target)
