"""DECODE for many conversations at once, on the device: settings, keys and histories go there, and
nothing but the chosen tokens comes back.

    sampling = RowSampling(rows, model.banned)
    sampling.fill(0, sampler, drawing)  # on the host, row by row
    sampling.send()
    tokens = sampling.choose(logits)  # this may be recorded: it reads buffers that stay

The same steps as `TextSampler`, in its order and rounded as it rounds, so that the same logits and
keys give the same tokens.
"""

from typing import Protocol

import torch
from torch import Tensor

from agent.duplex.cuda.text_sampling_plain import PlainTextDraw
from agent.duplex.cuda.text_sampling_rows import MOST_REMEMBERED, MOST_TOP_K, TextRows
from agent.duplex.sampling import Drawing, TextSampler


class TextDraws(Protocol):
    """Draws text for the rows of a batch."""

    def tokens(self, logits: Tensor, rows: Tensor) -> Tensor:
        """One for each row of logits [B, V], i64 [B], as `rows` i32 [.., ROW] say."""


class RowSampling:
    """How the next token of each row is drawn; to be filled anew for each."""

    def __init__(self, rows: int, banned: Tensor) -> None:
        """For at most `rows` at once; `banned` i64 [n] as every sampler has it."""
        self._rows = TextRows(rows, banned.device)
        self._draw = _draws(rows, banned)

    @staticmethod
    def takes(sampler: object) -> bool:
        """Whether rows of this sampler can be drawn here."""
        if not isinstance(sampler, TextSampler) or sampler.own_bans:
            return False
        settings = sampler.settings
        known = settings.repetition_window <= MOST_REMEMBERED
        return known and (settings.greedy or 1 <= settings.top_k <= MOST_TOP_K)

    def fill(self, row: int, sampler: TextSampler, drawing: Drawing) -> None:
        """What `sampler` and `drawing` say of a row; two keys are drawn, as `choose` does."""
        self._rows.fill(row, sampler, drawing)

    def send(self) -> None:
        """Bring all rows to the device, on the current stream."""
        self._rows.send()

    @torch.no_grad()
    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row of `logits` [B, V], i64 [B]; B may be below `rows`.

        Launches alone; what it returns is written anew by the next call.
        """
        return self._draw.tokens(logits, self._rows.device)


def _draws(rows: int, banned: Tensor) -> TextDraws:
    if not banned.is_cuda:
        return PlainTextDraw(banned)
    from agent.duplex.cuda.text_sampling_kernels import TextDraw

    return TextDraw(rows, banned)
