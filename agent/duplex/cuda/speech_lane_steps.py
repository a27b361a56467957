"""A second of speech of many conversations: 25 times the head, a draw, and the decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.duplex.cuda.speech_lane_draw import Drawn, draw_speech
from agent.duplex.cuda.speech_lane_few import FewSteps, is_for
from agent.duplex.cuda.speech_lane_rows import SLOT, START, SpeechRows
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
        self._few = FewSteps(lm, cache)

    @torch.no_grad()
    def run(self, count: int) -> None:
        """The first `count` rows; launches alone, to be recorded."""
        if is_for(self._lm, count):
            self._run_few(count)
        else:
            self._run_many(count)

    def _run_many(self, count: int) -> None:
        slots, positions = self._places[:, :count]
        rows = Rows(slots, positions, self._tiles[:count])
        state = self.state[:count]
        for step in range(UNIT_SPEECH_TOKENS):
            self._draw(F.linear(state, self._lm.head), step, 0)
            state = self._decoder.forward(self._embeddings[:count], rows)
        self.state[:count].copy_(state)

    def _run_few(self, count: int) -> None:
        """The last norm is part of the head, but for what the batch begins and ends with."""
        rows = self.rows.sent.device[:count]
        tokens = self._embeddings[:count]
        logits = self._few.logits(self.state[:count], norms=False)
        for step in range(UNIT_SPEECH_TOKENS):
            self._draw(logits, step, self._few.ahead)
            self._few.read(tokens, rows[:, SLOT], rows[:, START], step)
            if step + 1 < UNIT_SPEECH_TOKENS:
                logits = self._few.logits(tokens, norms=True)
        self.state[:count].copy_(self._lm.model.norm(tokens))

    def _draw(self, logits: Tensor, step: int, ahead: int) -> None:
        slots, positions = self._places[:, : len(logits)]
        drawn = Drawn(self.rows.tokens.device, self._embeddings, slots, positions)
        place = (step, self._cache.positions)
        draw_speech(logits, self.rows.sent.device, self._lm.codes, drawn, place, ahead)
