"""A second of speech of many conversations: 25 times the head, a draw, and the decoder."""

import torch
import torch.nn.functional as F

from agent.duplex.cuda.speech_lane_draw import Drawn, draw_speech
from agent.duplex.cuda.speech_lane_rows import SpeechRows
from agent.duplex.cuda.static_decoder import Rows, StaticDecoder
from agent.duplex.kv_cache import KvCache
from agent.duplex.speech_lm import UNIT_SPEECH_TOKENS, SpeechLm


class SpeechSteps:
    """From the state behind each row's condition to its tokens, without the host."""

    def __init__(self, lm: SpeechLm, cache: KvCache, decoder: StaticDecoder, most: int) -> None:
        """For at most so many rows."""
        device, dtype = cache.tensor.device, cache.tensor.dtype
        self._lm, self._cache, self._decoder = lm, cache, decoder
        self.rows = SpeechRows(most, lm.config.audio_eos, device)
        self.state = torch.zeros(most, lm.config.width, dtype=dtype, device=device)
        """At the last position that each row's conversation read."""
        row_ids = torch.arange(most, dtype=torch.int32, device=device)
        self._tiles = torch.stack([row_ids, torch.ones_like(row_ids)], 1)
        self._embeddings = torch.zeros_like(self.state)
        self._places = torch.zeros(2, most, dtype=torch.int32, device=device)

    @torch.no_grad()
    def run(self, count: int) -> None:
        """The first `count` rows; launches alone, to be recorded."""
        codes, head = self._lm.codes, self._lm.head
        slots, positions = self._places[:, :count]
        rows = Rows(slots, positions, self._tiles[:count])
        drawn = Drawn(self.rows.tokens.device, self._embeddings, slots, positions)
        state = self.state[:count]
        for step in range(UNIT_SPEECH_TOKENS):
            logits = F.linear(state, head)
            place = (step, self._cache.positions)
            draw_speech(logits, self.rows.sent.device, codes, drawn, place)
            state = self._decoder.forward(self._embeddings[:count], rows)
        self.state[:count].copy_(state)
