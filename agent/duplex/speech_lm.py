"""The speech LM: what was said, as text tokens with their hidden states, to 25 Hz speech tokens.

A turn is spoken in calls, one a unit. Each continues the turn's cache: condition, speech tokens,
next condition, and so on. There is no speaker in it; whose voice it is comes with the vocoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.config import Numerics, SpeechConfig
from agent.duplex.decoder import Decoder
from agent.duplex.kv_cache import KvCache, KvStream
from agent.duplex.random_source import RandomSource, draw
from agent.duplex.sampling import SpeechSampling, speech_distribution
from agent.torch_parts.checkpoint import Fold, fold_weight_norm

UNIT_SPEECH_TOKENS = 25
"""Speech tokens of a second: what a unit of a going turn always yields."""
SPEECH_TOKEN_MS = 40


class SpeechLm(nn.Module):
    """Text embeddings, a projector for hidden states, a small Llama, a weight-normed head."""

    PREFIX = "tts."
    UNUSED: Mapping[str, str] = {
        "tts.model.embed_tokens.": "the decoder's class has it; nothing looks anything up in it",
        "tts.projector_spk.": "the voice comes with the vocoder",
    }

    def __init__(self, config: SpeechConfig, numerics: Numerics) -> None:
        super().__init__()
        self.emb_text = nn.Embedding(config.text_tokens, config.width)
        self.projector_semantic = _Projector(config)
        self.emb_code = nn.ModuleList([nn.Embedding(config.audio_tokens, config.width)])
        self.model = Decoder(config, numerics, normed_heads=False)
        self.head_code = nn.ModuleList([nn.Linear(config.width, config.audio_tokens, bias=False)])
        self.config = config

    def folds(self) -> Mapping[str, Fold]:
        """The head is stored as gain and direction, and folded once."""
        norm = "head_code.0.parametrizations.weight.original"
        shape = (self.config.audio_tokens, self.config.width)
        return {"head_code.0.weight": fold_weight_norm(f"{norm}0", f"{norm}1", shape)}

    @property
    def codes(self) -> Tensor:
        """What each speech token is as input: [audio tokens, W]."""
        table: Tensor = self.emb_code[0].get_parameter("weight").detach()
        return table

    @property
    def head(self) -> Tensor:
        """[audio tokens, W]."""
        weight: Tensor = self.head_code[0].get_parameter("weight").detach()
        return weight

    @torch.no_grad()
    def condition(
        self, ids: Sequence[int], states: Sequence[Tensor], *, text_ended: bool = False
    ) -> Tensor:
        """What a call begins with: [n (+ 1) + 1, W].

        `states` [LLM width] each are the LLM's, after its last norm, where the token of `ids` was
        its input. `text_ended` adds the mark that no text follows: never in a duplex call.
        """
        ends = [self.config.text_eos] * text_ended + [self.config.audio_bos]
        vectors: Tensor = self.emb_text(self._ids([*ids, *ends]))
        if states:
            meant = self.projector_semantic(torch.stack(list(states)))
            vectors[: len(ids)] += F.normalize(meant, p=2, dim=-1, eps=1e-12)
        return vectors

    @torch.no_grad()
    def read(self, embeddings: Tensor, stream: KvStream, cache: KvCache) -> Tensor:
        """The next T positions [T, W] of a turn → their states [T, W]; the turn grows by T."""
        places = cache.places([stream], len(embeddings))
        states: Tensor = self.model(embeddings[None], cache, places)
        stream.length += len(embeddings)
        return states[0]

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """[..., W] → f32 [..., audio tokens]."""
        out: Tensor = self.head_code[0](states)
        return out.float()

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Speech tokens i64 [n] as input: [n, W]."""
        out: Tensor = self.emb_code[0](codes)
        return out

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long).to(self.emb_text.weight.device)


class _Projector(nn.Module):
    """Hidden states of the LLM to the width of the speech LM."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.llm_width, config.width)
        self.linear2 = nn.Linear(config.width, config.width)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.linear2(F.relu(self.linear1(states)))
        return out


# ---- one call -----------------------------------------------------------------------------------


@torch.no_grad()
def speak(
    lm: SpeechLm,
    condition: Tensor,
    turn: tuple[KvStream, KvCache],
    sampling: SpeechSampling,
    random: RandomSource,
    *,
    may_end: bool,
) -> list[int]:
    """The speech tokens of one unit: 25 in a going turn, fewer only where the speech `may_end`.

    Afterwards the turn's cache holds the condition and every token returned. The reference samples
    a 26th token and throws it away; here it is not sampled. Without `may_end` nothing is read from
    the device before the last token is there. As many draws are made as there are tokens in a
    second, whether or not the speech ends before.
    """
    stream, cache = turn
    keys = random.keys(UNIT_SPEECH_TOKENS)
    state = lm.read(condition, stream, cache)[-1]
    codes = torch.empty(0, dtype=torch.long, device=condition.device)
    while len(codes) < UNIT_SPEECH_TOKENS:
        banned = None if may_end else lm.config.audio_eos
        weights = speech_distribution(lm.logits(state), codes, sampling, banned)
        code = draw(weights, keys[len(codes)])
        if may_end and int(code) == lm.config.audio_eos:
            break
        codes = torch.cat([codes, code])
        state = lm.read(lm.embed_codes(code), stream, cache)[-1]
    spoken: list[int] = codes.tolist()
    return spoken


# ---- a call of a turn-based answer --------------------------------------------------------------


@dataclass(slots=True)
class SpeechCall:
    """A chunk of an answer on its way to speech; `speak_on` goes on with it until it has ended."""

    said: Sequence[int]
    states: Sequence[Tensor]
    text_ended: bool
    most: int
    """A call that finds no end by itself ends with so many tokens."""
    before: Sequence[int] = ()
    """The turn's newest speech tokens from earlier calls, as far as a penalty looks back."""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    state: Tensor | None = None
    """At the last position that was read; None before the first."""


@torch.no_grad()
def speak_on(
    lm: SpeechLm,
    call: SpeechCall,
    turn: tuple[KvStream, KvCache],
    sampling: SpeechSampling,
    random: RandomSource,
) -> None:
    """The next second of a call's speech tokens; unlike in a duplex unit it says when it ends.

    Every token that is kept is read, so the turn's next call goes on behind it.
    """
    stream, cache = turn
    if call.state is None:
        condition = lm.condition(call.said, call.states, text_ended=call.text_ended)
        call.state = lm.read(condition, stream, cache)[-1]
    known = [*call.before, *call.tokens][-max(1, sampling.repetition_window) :]
    codes = torch.tensor(known, dtype=torch.long).to(call.state.device)
    for _ in range(UNIT_SPEECH_TOKENS):
        weights = speech_distribution(lm.logits(call.state), codes, sampling, None)
        code = draw(weights, random.key())
        if int(code) == lm.config.audio_eos:
            call.ended = True
            return
        codes = torch.cat([codes, code])
        call.tokens.append(int(code))
        call.state = lm.read(lm.embed_codes(code), stream, cache)[-1]
        if len(call.tokens) >= call.most:
            call.ended = True
            return
