"""DECODE for many conversations at once, on the device: settings, keys and histories go there, and
nothing but the chosen tokens comes back.

    sampling = RowSampling(rows, model.banned)
    sampling.fill(0, sampler, drawing)  # on the host, row by row
    sampling.send()
    tokens = sampling.choose(logits)  # this may be recorded: it reads buffers that stay

The same steps as `TextSampler`, in its order and rounded as it rounds, so that the same logits and
keys give the same tokens.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from agent.duplex.cuda.device_lane import Sent
from agent.duplex.random_source import exponential, uniform
from agent.duplex.sampling import MOST_TIED, Drawing, IntArray, TextSampler, TextSampling
from agent.duplex.tokens import VOCABULARY_SIZE, Token

MOST_REMEMBERED = 512
"""Ids of a history that a penalty may look back on."""
MOST_TOP_K = 128
"""Beyond, too little room would be left for ties."""

# What a row of the buffer holds: keys, settings as they are, settings as the bits of an f32, ids.
STOP_KEY, KEY, GREEDY, TOP_K, LISTEN_TOP_K, KNOB = range(6)
TEMPERATURE, TOP_P, REPETITION, LENGTH, LISTEN_SCALE, LISTEN_BIAS = range(6, 12)
HISTORY = 16
ROW = HISTORY + MOST_REMEMBERED

_KEY_MASK = 0xFFFFFFFF


class RowSampling:
    """How the next token of each row is drawn; to be filled anew for each."""

    def __init__(self, rows: int, banned: Tensor) -> None:
        """For at most `rows` at once; `banned` i64 [n] as every sampler has it."""
        self.rows = Sent(torch.zeros(rows, ROW, dtype=torch.int32, device=banned.device))
        self._host: IntArray = self.rows.host
        self._keys = self._host.view(np.uint32)
        self._banned = torch.zeros(VOCABULARY_SIZE, dtype=torch.bool, device=banned.device)
        self._banned[banned] = True
        # Rows that nobody fills are drawn along with the others.
        self._host[:, :HISTORY] = _packed(TextSampling(), may_listen=False)
        self.rows.send()

    @staticmethod
    def takes(sampler: object) -> bool:
        """Whether rows of this sampler can be drawn here."""
        if not isinstance(sampler, TextSampler):
            return False
        settings = sampler.settings
        known = settings.repetition_window <= MOST_REMEMBERED
        return known and (settings.greedy or 1 <= settings.top_k <= MOST_TOP_K)

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
        self.rows.send()

    @torch.no_grad()
    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row of `logits` [B, V], i64 [B]; B may be below `rows`."""
        return chosen(logits, self.rows.device[: len(logits)], self._banned)


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


# ---- in torch's operations ----------------------------------------------------------------------


def chosen(logits: Tensor, rows: Tensor, banned: Tensor) -> Tensor:
    """The tokens i64 [B] of logits [B, V] under `rows` i32 [B, ROW]; `banned` is bool [V]."""
    greedy = rows[:, GREEDY] != 0
    ids, likely = _distribution(logits, rows, banned)
    raced = likely.float() / exponential(_key(rows, KEY), ids)
    place = torch.where(greedy, 0, raced.argmax(-1))
    tokens = _knobbed(logits, rows, ids.gather(-1, place[:, None])[:, 0])
    return torch.where(_stops(logits, rows, greedy), int(Token.CHUNK_EOS), tokens)


def _key(rows: Tensor, which: int) -> Tensor:
    """i64 [B, 1]."""
    return rows[:, which : which + 1].long() & _KEY_MASK


def _setting(rows: Tensor, which: int) -> Tensor:
    """f32 [B, 1]."""
    return rows[:, which : which + 1].view(torch.float32)


def _stops(logits: Tensor, rows: Tensor, greedy: Tensor) -> Tensor:
    likely = logits.softmax(-1)
    share = likely[:, Token.CHUNK_EOS].float() / likely.float().sum(-1)
    key = _key(rows, STOP_KEY)
    drawn = uniform(key, torch.zeros_like(key))[:, 0] < share
    return torch.where(greedy, logits.argmax(-1) == Token.CHUNK_EOS, drawn)


def _penalised(logits: Tensor, rows: Tensor, banned: Tensor) -> Tensor:
    """Rounded to the logits' dtype after every step, as `TextSampler.penalised` is."""
    dtype = logits.dtype
    logits = logits.masked_fill(banned, float("-inf"))
    known = rows[:, HISTORY:].long()
    # The same id may come twice: what is written there is the same.
    less = (logits.gather(-1, known).float() / _setting(rows, REPETITION)).to(dtype)
    logits.scatter_(-1, known, less)
    ends = logits[:, Token.TURN_EOS, None].float()
    length = _setting(rows, LENGTH)
    logits[:, Token.TURN_EOS, None] = torch.where(ends > 0, ends / length, ends * length).to(dtype)
    knob = rows[:, KNOB : KNOB + 1].long()
    scaled = (logits.gather(-1, knob).float() * _setting(rows, LISTEN_SCALE)).to(dtype)
    logits.scatter_(-1, knob, scaled)
    listen = logits[:, Token.LISTEN, None].float() + _setting(rows, LISTEN_BIAS)
    logits[:, Token.LISTEN, None] = listen.to(dtype)
    return logits


def _distribution(logits: Tensor, rows: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
    """What is drawn from: ids i64 [B, n], likeliest first, and how likely each is."""
    dtype = logits.dtype
    logits = _penalised(logits, rows, banned)
    logits = (logits.float() / _setting(rows, TEMPERATURE)).to(dtype)
    found, ids = logits.topk(MOST_TIED)
    by_id = ids.argsort()
    values, order = found.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, by_id).gather(-1, order)
    least = values.gather(-1, rows[:, TOP_K : TOP_K + 1].long() - 1)
    values = values.masked_fill(values < least, float("-inf"))
    before = values.softmax(-1).float().cumsum(-1).to(dtype).roll(1, -1)
    before[:, 0] = 0
    top_p = _setting(rows, TOP_P).to(dtype)
    return ids, values.masked_fill(before > top_p, float("-inf")).softmax(-1)


def _knobbed(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    knob = rows[:, KNOB : KNOB + 1].long()
    rank = (logits > logits.gather(-1, knob)).sum(-1)
    return torch.where(rank < rows[:, LISTEN_TOP_K], knob[:, 0], tokens)
