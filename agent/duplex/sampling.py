"""How a token is drawn from logits: the reference's steps, in its order and in the logits' dtype.

Text (`TextSampler`, "DECODE"): a stop check on the raw logits; what is forbidden; three penalties;
temperature, top-k with all ties, top-p; a draw. The odd steps are the reference's own and are kept,
since the model's settings were tuned with them: each is named where it stands. Speech
(`speech_distribution`): repetition penalty and temperature, nothing else.

Randomness comes from each conversation's own source, so nobody's company changes what it says.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.duplex.random_source import RandomSource, draw, uniform
from agent.duplex.tokens import Token

IntArray: TypeAlias = NDArray[np.int32]
MOST_TIED = 256
"""Logits that are looked at behind the largest: ties with the k-th beyond so many are lost."""


@dataclass(frozen=True, slots=True)
class TextSampling:
    """How text is drawn. The defaults are the public demo's.

    `listen_bias` is added to the logit of `<|listen|>` where the model may choose to listen: above
    0 it waits, below 0 it jumps in. `listen_scale` and `listen_top_k` (0: off) are the reference's
    own knobs; it turns them on `<|im_end|>` by mistake, which `parity` does too.
    """

    greedy: bool = False
    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.8
    repetition_penalty: float = 1.05
    repetition_window: int = 512
    length_penalty: float = 1.1
    listen_bias: float = 0.0
    listen_scale: float = 1.0
    listen_top_k: int = 0
    parity: bool = False


@dataclass(frozen=True, slots=True)
class SpeechSampling:
    """How speech tokens are drawn; `repetition_window` counts tokens of the same call.

    `top_p` and `top_k` narrow the choice in turn-based answers, but for a turn's first token; in a
    duplex call both are off (1 and 0).
    """

    temperature: float = 0.8
    repetition_penalty: float = 1.05
    repetition_window: int = 16
    top_p: float = 1.0
    top_k: int = 0


def likeliest(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The ids that are left of logits [V], likeliest first, and how likely each is; top_k 0: all.

    First the `top_k` largest with all that tie with the last of them, then of these as many as it
    takes to make up more than `top_p`. Of equal ones the lower id comes first, on every device.
    """
    whole = logits.shape[-1]
    wide = min(whole, max(MOST_TIED, top_k)) if top_k else whole
    values, ids = _ranked(logits, wide)
    if top_k:
        values = values.masked_fill(values < values[min(top_k, wide) - 1], -torch.inf)
    # Summed in float32 and rounded then: a sum in bfloat16 is another one in every order.
    before = values.softmax(-1).float().cumsum(-1).to(values.dtype).roll(1)
    before[0] = 0
    values = values.masked_fill(before > top_p, -torch.inf)
    return ids, values.softmax(-1)


def _ranked(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of logits [V] and their ids, equal ones by id."""
    if count == len(logits):
        values, ids = logits.sort(descending=True, stable=True)
        return values, ids
    found, ids = logits.topk(count)
    by_id = ids.argsort()
    values, order = found[by_id].sort(descending=True, stable=True)
    return values, ids[by_id][order]


# ---- text ---------------------------------------------------------------------------------------


class History:
    """The ids drawn so far that a repetition penalty looks back on, and the turn of each.

    At most `window` of them, the oldest leave first. It spans units and turns, holds control
    tokens, and a token that was drawn but rejected; not the `<|chunk_eos|>` of the stop check, nor
    what was dictated.
    """

    def __init__(self, window: int, entries: Iterable[tuple[int, int]] = ()) -> None:
        self._window = max(1, window)
        newest = list(entries)[-self._window :]
        # Twice the window, so that the newest lie side by side and seldom have to be moved.
        self._kept = np.zeros((2, 2 * self._window), np.int32)
        self._kept[:, : len(newest)] = np.array(newest, np.int32).reshape(-1, 2).T
        self._begin, self._end = 0, len(newest)

    @property
    def ids(self) -> list[int]:
        """Oldest first."""
        ids: list[int] = self._entries[0].tolist()
        return ids

    def newest(self, count: int) -> IntArray:
        """The newest `count` ids at most, oldest first; to be read at once."""
        return self._kept[0, max(self._begin, self._end - count) : self._end]

    def append(self, one: int, turn: int) -> None:
        if self._end == self._kept.shape[1]:
            self._keep(self._entries)
        self._kept[:, self._end] = one, turn
        self._end += 1
        self._begin = max(self._begin, self._end - self._window)

    def forget(self, turn: int) -> None:
        """Leave out what was drawn in `turn`."""
        self._keep(self._entries[:, self._entries[1] != turn])

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` at once, whatever the window holds."""
        self._begin = max(self._begin, self._end - count)

    def copy(self) -> "History":
        other = copy(self)
        other._kept = self._kept.copy()
        return other

    @property
    def _entries(self) -> IntArray:
        return self._kept[:, self._begin : self._end]

    def _keep(self, entries: IntArray) -> None:
        count = entries.shape[1]
        self._kept[:, :count] = entries.copy()
        self._begin, self._end = 0, count


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one conversation brings to the choice of its next token."""

    history: History
    random: RandomSource
    may_listen: bool = False
    """Whether `<|listen|>` would be obeyed; only there is it biased."""


def banned_ids(unspeakable: Sequence[int], device: torch.device) -> Tensor:
    """What DECODE never draws: i64 [n]. A unit's end is found by the stop check alone."""
    return torch.tensor([Token.CHUNK_EOS, Token.TTS_PAD, *unspeakable]).to(device)


class TextSampler:
    """DECODE: logits of conversations to their next tokens. Holds nothing of any of them.

    `banned` is made by `banned_ids`, once for all samplers but those with `own_bans`.
    """

    def __init__(self, settings: TextSampling, banned: Tensor, *, own_bans: bool = False) -> None:
        self.settings = settings
        self.own_bans = own_bans
        self._banned = banned
        self._listen_knob = Token.IM_END if settings.parity else Token.LISTEN

    @torch.no_grad()
    def choose(self, logits: Tensor, drawings: Sequence[Drawing]) -> list[int]:
        """The next token of each row of `logits` [B, V]; one read from the device.

        Every token but the stop check's `<|chunk_eos|>` is to be entered in its history, by
        whoever knows the turn.
        """
        stops, weights, ids = [], [], []
        for row, drawing in zip(logits, drawings, strict=True):
            stop_key, key = drawing.random.keys(2)
            stops.append(self._stops(row, stop_key))
            candidates, likely = self.distribution(row, drawing)
            choice = likely.argmax(-1, keepdim=True)
            if not self.settings.greedy:
                choice = draw(likely, key, candidates)
            weights.append(choice)
            ids.append(self._knobbed(row, candidates[choice]))
        stop = torch.full_like(ids[0], Token.CHUNK_EOS)
        chosen: list[int] = torch.cat(
            [torch.where(stopped, stop, one) for stopped, one in zip(stops, ids, strict=True)]
        ).tolist()
        return chosen

    def _stops(self, logits: Tensor, key: int) -> Tensor:
        """Step 1, on untouched logits at temperature 1: does the unit end here?"""
        if self.settings.greedy:
            return logits.argmax(-1, keepdim=True) == Token.CHUNK_EOS
        likely = logits.softmax(-1)
        share = likely[Token.CHUNK_EOS].float() / likely.float().sum()
        return uniform(key, torch.zeros(1, dtype=torch.long, device=logits.device)) < share

    def distribution(self, logits: Tensor, drawing: Drawing) -> tuple[Tensor, Tensor]:
        """What is drawn from when the stop check did not stop: ids, likeliest first, and how
        likely each is, in the dtype of `logits` [V]."""
        return self._likeliest(self.penalised(logits, drawing))

    def penalised(self, logits: Tensor, drawing: Drawing) -> Tensor:
        """Steps 2 to 5: logits [V] as they are before the temperature."""
        settings = self.settings
        logits = logits.clone()
        logits[self._banned] = float("-inf")
        seen = drawing.history.newest(settings.repetition_window).tolist()
        if seen and settings.repetition_penalty != 1:
            known = torch.tensor(sorted(set(seen)), dtype=torch.long).to(logits.device)
            # Divided whatever the sign: a negative logit grows likelier by being repeated.
            logits[known] /= settings.repetition_penalty
        # An end of turn is made unlikelier, whatever the sign of its logit.
        ends = logits[Token.TURN_EOS]
        logits[Token.TURN_EOS] = torch.where(
            ends > 0, ends / settings.length_penalty, ends * settings.length_penalty
        )
        if settings.listen_scale != 1:
            logits[self._listen_knob] *= settings.listen_scale
        if settings.listen_bias and drawing.may_listen:
            logits[Token.LISTEN] += settings.listen_bias
        return logits

    def _likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Step 6 but for the draw: the ids that are left, likeliest first."""
        settings = self.settings
        if settings.greedy:
            best = logits.argmax(-1, keepdim=True)
            return best, torch.ones_like(best, dtype=logits.dtype)
        return likeliest(logits / settings.temperature, settings.top_k, settings.top_p)

    def _knobbed(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """The reference's `listen_top_k`: taken at once where it is among the largest so many."""
        if not self.settings.listen_top_k:
            return chosen
        rank = (logits > logits[self._listen_knob]).sum()
        knob = torch.full_like(chosen, self._listen_knob)
        return torch.where(rank < self.settings.listen_top_k, knob, chosen)


# ---- speech -------------------------------------------------------------------------------------


def speech_distribution(
    logits: Tensor, codes: Tensor, sampling: SpeechSampling, banned: int | None
) -> Tensor:
    """What the next speech token is drawn from: f32 [audio tokens].

    `codes` i64 [n] are those of this call so far; `banned` may not be drawn: the end of speech in
    a turn that goes on.
    """
    logits = logits.float() / sampling.temperature
    recent = codes[-sampling.repetition_window :]
    counts = torch.zeros_like(logits).scatter_add_(0, recent, torch.ones_like(recent).float())
    strength = sampling.repetition_penalty**counts
    logits = torch.where(logits < 0, logits * strength, logits / strength)
    if banned is not None:
        logits[banned] = float("-inf")
    if len(codes):
        logits = _narrowed(logits, sampling)
    return logits.softmax(-1)


FEWEST_SPEECH_TOKENS = 3
"""So many speech tokens stay to be drawn from, however unlikely."""


def _narrowed(logits: Tensor, sampling: SpeechSampling) -> Tensor:
    """Logits [V] without the unlikely ones: top-p first, then top-k."""
    if sampling.top_p < 1:
        # Stable: of equal ones the lower id comes first, on every device.
        values, ids = logits.sort(descending=True, stable=True)
        likely = values.softmax(-1)
        before = likely.cumsum(-1) - likely
        before[:FEWEST_SPEECH_TOKENS] = -1
        dropped = torch.zeros_like(logits, dtype=torch.bool)
        logits = logits.masked_fill(
            dropped.scatter(0, ids, before >= sampling.top_p), float("-inf")
        )
    if sampling.top_k:
        least = logits.topk(max(sampling.top_k, FEWEST_SPEECH_TOKENS)).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits
