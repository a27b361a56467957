"""How the tokens of a turn-based answer are drawn: the usual steps, in float32.

Unlike DECODE of a duplex call (`TextSampler`): no stop check, and a repetition penalty that minds
the sign, over what was generated alone. The prompt is not penalised.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.chat_types import ChatRequest
from agent.duplex.model import DuplexModel
from agent.duplex.random_source import draw
from agent.duplex.sampling import Drawing, likeliest
from agent.duplex.tokens import Token, Vocabulary
from agent.errors import RequestError

_COLDEST = 1e-3
"""Below this temperature the likeliest token is taken: no float holds the others' shares."""
_UNREADABLE = ":#@*()[]&/$"
"""Punctuation that nobody can read aloud, where it stands alone."""


@dataclass(frozen=True, slots=True)
class AnswerSampling:
    """How an answer is drawn. The defaults are those of the reference's chat, without its beams.

    `length_penalty` makes the ends of the answer unlikelier, whatever the sign of their logits.
    """

    greedy: bool = False
    temperature: float = 0.7
    top_k: int = 100
    top_p: float = 0.8
    repetition_penalty: float = 1.02
    length_penalty: float = 1.0


class AnswerSampler:
    """Logits of answers to their next tokens. Holds nothing of any of them."""

    def __init__(
        self,
        settings: AnswerSampling,
        ends: Iterable[int],
        device: torch.device,
        banned: Tensor | None = None,
    ) -> None:
        """`ends` are what ends an answer; `banned` i64 [n] is never drawn."""
        self.settings = settings
        self._ends = torch.tensor(sorted(ends), dtype=torch.long).to(device)
        self._banned = banned

    @torch.no_grad()
    def choose(self, logits: Tensor, drawings: Sequence[Drawing]) -> list[int]:
        """The next token of each row of `logits` [B, V]; one read from the device.

        Whoever takes a token enters it in its history.
        """
        chosen = []
        for row, drawing in zip(logits, drawings, strict=True):
            key = drawing.random.key()
            ids, likely = self.distribution(row, drawing)
            choice = likely.argmax(-1, keepdim=True)
            if not self.settings.greedy:
                choice = draw(likely, key, ids)
            chosen.append(ids[choice])
        tokens: list[int] = torch.cat(chosen).tolist()
        return tokens

    def distribution(self, logits: Tensor, drawing: Drawing) -> tuple[Tensor, Tensor]:
        """What is drawn from, logits [V]: ids, likeliest first, and how likely each is, f32."""
        settings = self.settings
        logits = self.penalised(logits, drawing)
        if settings.greedy:
            best = logits.argmax(-1, keepdim=True)
            return best, torch.ones_like(best, dtype=logits.dtype)
        return likeliest(logits / settings.temperature, settings.top_k, settings.top_p)

    def penalised(self, logits: Tensor, drawing: Drawing) -> Tensor:
        """Logits [V] as they are before the temperature: f32, and not `logits` itself."""
        settings = self.settings
        logits = logits.to(torch.float32, copy=True)
        if self._banned is not None:
            logits[self._banned] = float("-inf")
        seen = drawing.history.ids
        if seen and settings.repetition_penalty != 1:
            known = torch.tensor(sorted(set(seen)), dtype=torch.long).to(logits.device)
            logits[known] = _weakened(logits[known], settings.repetition_penalty)
        if settings.length_penalty != 1:
            logits[self._ends] = _weakened(logits[self._ends], settings.length_penalty)
        return logits


def _weakened(logits: Tensor, penalty: float) -> Tensor:
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def unreadable_ids(vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """What is not said while the answer is spoken: i64 [n]."""
    marks = [ids[0] for one in _UNREADABLE if len(ids := vocabulary.encode(one)) == 1]
    return torch.tensor([*vocabulary.unspeakable, *marks, int(Token.UNKNOWN)]).to(device)


def banned_in_answers(model: DuplexModel, *, mute: bool, bans_calls: bool) -> Tensor | None:
    """What an answer is never drawn from: i64 [n]; None: nothing.

    `mute`: what cannot be read aloud. `bans_calls`: what begins a call of a function.
    """
    device = model.target.device
    calls = [torch.tensor([int(Token.TOOL_CALL)]).to(device)] * bans_calls
    unreadable = [unreadable_ids(model.vocabulary, device)] * mute
    return torch.cat([*unreadable, *calls]) if mute or bans_calls else None


def requested_sampling(request: ChatRequest) -> AnswerSampling:
    """As the request says, with the model's own defaults for what it leaves open. RequestError."""
    usual = AnswerSampling()
    temperature = _checked("temperature", request.temperature, usual.temperature, most=100)
    top_p = _checked("top_p", request.top_p, usual.top_p, most=1)
    penalty = _checked("repetition_penalty", request.repetition_penalty, usual.repetition_penalty)
    if penalty == 0:
        raise RequestError("repetition_penalty must be above 0", param="repetition_penalty")
    return AnswerSampling(
        greedy=request.greedy or temperature < _COLDEST,
        temperature=temperature,
        top_k=usual.top_k if request.top_k is None else max(0, request.top_k),
        top_p=top_p,
        repetition_penalty=penalty,
    )


def _checked(name: str, wanted: float | None, usual: float, most: float = math.inf) -> float:
    if wanted is None:
        return usual
    if not 0 <= wanted <= most or not math.isfinite(wanted):
        upto = "" if most == math.inf else f" and at most {most:g}"
        raise RequestError(f"{name} must be at least 0{upto}, not {wanted}", param=name)
    return wanted
