"""What the kernels that draw text read of each conversation: settings, keys, history."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from agent.duplex.cuda.device_lane import Sent
from agent.duplex.sampling import Drawing, IntArray, TextSampler, TextSampling
from agent.duplex.tokens import Token

MOST_REMEMBERED = 512
"""Ids of a history that a penalty may look back on."""
MOST_TOP_K = 128
"""Beyond, too little room would be left for ties."""

# What a row of the buffer holds: keys, settings as they are, settings as the bits of an f32, ids.
STOP_KEY, KEY, GREEDY, TOP_K, LISTEN_TOP_K, KNOB = range(6)
TEMPERATURE, TOP_P, REPETITION, LENGTH, LISTEN_SCALE, LISTEN_BIAS = range(6, 12)
HISTORY = 16
ROW = HISTORY + MOST_REMEMBERED


class TextRows:
    """The rows of a batch, on the host and on the device: i32 [rows, ROW]."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._sent = Sent(torch.zeros(rows, ROW, dtype=torch.int32, device=device))
        self._host: IntArray = self._sent.host
        self._keys = self._host.view(np.uint32)
        # Rows that nobody fills are drawn along with the others.
        self._host[:, :HISTORY] = _packed(TextSampling(), may_listen=False)
        self.send()

    @property
    def device(self) -> Tensor:
        """As the kernels read it."""
        return self._sent.device

    def fill(self, row: int, sampler: TextSampler, drawing: Drawing) -> None:
        """What `sampler` and `drawing` say of a row; two keys are drawn, as `choose` does."""
        settings = sampler.settings
        host = self._host[row]
        host[:HISTORY] = _packed(settings, may_listen=drawing.may_listen)
        self._keys[row, :GREEDY] = drawing.random.keys(2)
        seen = drawing.history.newest(settings.repetition_window)
        end = HISTORY + len(seen)
        host[HISTORY:end] = seen
        # Forbidden, so no penalty changes it.
        host[end:] = Token.CHUNK_EOS

    def send(self) -> None:
        """Bring all rows to the device, on the current stream."""
        self._sent.send()


@lru_cache(maxsize=256)
def _packed(settings: TextSampling, *, may_listen: bool) -> IntArray:
    """The settings' part of a row, keys left 0."""
    row = np.zeros(HISTORY, np.int32)
    knob = Token.IM_END if settings.parity else Token.LISTEN
    # Greedily the largest is taken: nothing may make it tie with another.
    top_k = 1 if settings.greedy else settings.top_k
    row[GREEDY:TEMPERATURE] = settings.greedy, top_k, settings.listen_top_k, knob
    row[TEMPERATURE : LISTEN_BIAS + 1] = np.array(
        [
            1.0 if settings.greedy else settings.temperature,
            settings.top_p,
            settings.repetition_penalty,
            settings.length_penalty,
            settings.listen_scale,
            settings.listen_bias if may_listen else 0.0,
        ],
        np.float32,
    ).view(np.int32)
    return row
