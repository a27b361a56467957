"""The language model (Qwen3): vectors of text, pictures and sound in, states and logits out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agent.duplex.config import LlmConfig, Numerics
from agent.duplex.decoder import Decoder
from agent.duplex.kv_cache import KvCache, KvStream


class Llm(nn.Module):
    """Embedding table, decoder and an untied head."""

    PREFIX = "llm."

    def __init__(self, config: LlmConfig, numerics: Numerics) -> None:
        super().__init__()
        self.model = _Backbone(config, numerics)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.config = config

    def embed(self, ids: Sequence[int]) -> Tensor:
        """[T, W] of `ids`."""
        device = self.model.embed_tokens.weight.device
        out: Tensor = self.model.embed_tokens(torch.tensor(ids, dtype=torch.long).to(device))
        return out

    @torch.no_grad()
    def read(
        self,
        embeddings: Tensor,
        streams: Sequence[KvStream],
        cache: KvCache,
        *,
        whole_cache: bool = False,
    ) -> Tensor:
        """The next T positions of B streams [B, T, W] → their states after the last norm.

        Each stream grows by T. ContextOverflow, before anything is written, if one does not fit.
        """
        places = cache.places(streams, embeddings.shape[1], whole=whole_cache)
        states: Tensor = self.model(embeddings, cache, places)
        for stream in streams:
            stream.length += embeddings.shape[1]
        return states

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """[..., W] → [..., vocabulary], in the weights' dtype. Ask for the rows that are needed."""
        out: Tensor = self.lm_head(states)
        return out


class _Backbone(Decoder):
    """The decoder and, under the same key of the checkpoint, the embedding table."""

    def __init__(self, config: LlmConfig, numerics: Numerics) -> None:
        super().__init__(config, numerics, normed_heads=True, wide_residual=True)
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
