"""DECODE of many rows in torch's own operations, for devices that no kernels are made for."""

import torch
from torch import Tensor

from agent.duplex.cuda.text_sampling_rows import (
    GREEDY,
    HISTORY,
    KEY,
    KNOB,
    LENGTH,
    LISTEN_BIAS,
    LISTEN_SCALE,
    LISTEN_TOP_K,
    REPETITION,
    STOP_KEY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)
from agent.duplex.random_source import exponential, uniform
from agent.duplex.sampling import MOST_TIED
from agent.duplex.tokens import VOCABULARY_SIZE, Token

_KEY_MASK = 0xFFFFFFFF


class PlainTextDraw:
    """Holds what is never drawn, and nothing of any row."""

    def __init__(self, banned: Tensor) -> None:
        """`banned` i64 [n] is never drawn."""
        self._banned = torch.zeros(VOCABULARY_SIZE, dtype=torch.bool, device=banned.device)
        self._banned[banned] = True

    def tokens(self, logits: Tensor, rows: Tensor) -> Tensor:
        """One for each row of logits [B, V], i64 [B], as `rows` i32 [.., ROW] say."""
        return _chosen(logits, rows[: len(logits)], self._banned)


def _chosen(logits: Tensor, rows: Tensor, banned: Tensor) -> Tensor:
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
