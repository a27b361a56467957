"""The tiny model as a whole, and what tests put in the place of a tokenizer and of chance."""

import copy
import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.duplex.config import Numerics
from agent.duplex.conversation import Conversation
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.lanes import Runner
from agent.duplex.model import DuplexModel, load_model
from agent.duplex.pictures import Patches
from agent.duplex.policy import SpeakingRules
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.slots import Slots, SlotSizes
from agent.duplex.tokens import WRITTEN, Token, Vocabulary, load_vocabulary
from agent.duplex.vision import Eyes
from agent.types import UNIT_SAMPLES, FloatArray, Unit, VideoFrame
from tests.rig import tiny_model as tiny
from tests.rig.programs import require_all

# ---- words --------------------------------------------------------------------------------------


_SPECIAL = {written: int(token) for token, written in WRITTEN.items()}
_SPLIT = re.compile(f"({'|'.join(re.escape(one) for one in _SPECIAL)})")


class LetterCodec:
    """One token a letter, its code point; a stand-in for a tokenizer that needs no files."""

    def encode(self, text: str) -> list[int]:
        parts = [part for part in _SPLIT.split(text) if part]
        ids = [[_SPECIAL[part]] if part in _SPECIAL else _letters(part) for part in parts]
        return [one for part in ids for one in part]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(_TAGS[one] if one in _TAGS else chr(one) for one in ids)


_TAGS = {
    int(token): WRITTEN[token]
    for token in (
        Token.TOOL_CALL,
        Token.END_TOOL_CALL,
        Token.TOOL_RESPONSE,
        Token.END_TOOL_RESPONSE,
    )
}
"""Added tokens that count as text."""


def _letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def letter_vocabulary() -> Vocabulary:
    return Vocabulary(LetterCodec(), unspeakable=(ord("*"), ord("#")))


@functools.cache
def real_vocabulary() -> Vocabulary:
    """The checkpoint's own; skips the test where its files are not at hand.

    They are looked for in the folder that VOICE_AGENT_TOKENIZER names, among the golden files, and
    in a folder `shared` beside the checkout.
    """
    return load_vocabulary(tokenizer_folder())


def tokenizer_folder() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "golden"
    named = os.environ.get("VOICE_AGENT_TOKENIZER")
    folders = [Path(named)] if named else []
    folders += [tiny.golden_folder() / "tokenizer", beside / "tokenizer"]
    found = [folder for folder in folders if (folder / "tokenizer_config.json").is_file()]
    if found:
        return found[0]
    return require_all("needs the checkpoint's tokenizer; VOICE_AGENT_TOKENIZER names its folder")


# ---- the model ----------------------------------------------------------------------------------


def build_mind(
    numerics: Numerics | None = None, vocabulary: Vocabulary | None = None
) -> DuplexModel:
    return load_model(
        tiny.RecipeSource(),
        tiny.tiny_config(),
        vocabulary or letter_vocabulary(),
        target=tiny.FLOAT32,
        numerics=numerics or Numerics(),
    )


@functools.cache
def whole_mind() -> DuplexModel:
    """The tiny model in float32, shared by all tests; its weights are not to be touched.

    What it sees in a picture it remembers, since a picture costs a second.
    """
    torch.set_num_threads(1)
    mind = build_mind()
    return replace(mind, eyes=_Recalling(mind.eyes.tower, mind.eyes.resampler))


@functools.cache
def tiny_mind() -> DuplexModel:
    """The same, but it never says most words: to weigh all takes longer than all its layers."""
    mind = whole_mind()
    llm = copy.copy(mind.llm)
    llm._modules = llm._modules | {"lm_head": _FewWords(mind.llm.lm_head)}
    return replace(mind, llm=llm)


class _FewWords(nn.Linear):
    """The head for the first and the special tokens; all others are out of the question."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__(1, 1, bias=False)
        self.weight = whole.weight
        size = len(whole.weight)
        self._said = torch.cat([torch.arange(_FEW), torch.arange(_FIRST_SPECIAL, size)])
        self._few = whole.weight[self._said].detach()

    def forward(self, states: Tensor) -> Tensor:
        logits = states.new_full((*states.shape[:-1], len(self.weight)), -1e4)
        logits[..., self._said] = functional.linear(states, self._few)
        return logits


_FEW = 8_192
_FIRST_SPECIAL = 151_643


class _Recalling(Eyes):
    """Looks at every picture once."""

    def see(self, pieces: Sequence[Patches]) -> Tensor:
        return torch.cat([self._recall(piece) for piece in pieces])

    def _recall(self, piece: Patches) -> Tensor:
        key = hash(piece.pixels.numpy().tobytes())
        if key not in _SEEN:
            _SEEN[key] = Eyes.see(self, [piece])
        return _SEEN[key]


_SEEN: dict[int, Tensor] = {}


def runner(
    model: DuplexModel | None = None, *, slots: int = 1, context_tokens: int = 1024
) -> Runner:
    model = model or tiny_mind()
    sizes = SlotSizes(slots=slots, context_tokens=context_tokens, turn_tokens=512)
    return Runner(model, Slots(model.config, sizes, model.target))


# ---- conversations ------------------------------------------------------------------------------


class Script(Iterator[int]):
    """Gives tokens as they are written; the end of the list is an error."""

    def __init__(self, *units: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self.add(*units)

    def __next__(self) -> int:
        return self._tokens.pop(0)

    def add(self, *units: Iterable[int]) -> None:
        self._tokens += [token for unit in units for token in unit]

    @property
    def left(self) -> int:
        return len(self._tokens)


LISTEN: list[int] = [Token.LISTEN]


def says(text: str, *, ends: bool = False, terminator: int = Token.CHUNK_EOS) -> list[int]:
    """A script for a unit that says `text`, a token a letter."""
    return [Token.SPEAK, *_letters(text), *([Token.TURN_EOS] if ends else []), terminator]


def free_settings(**changes: object) -> ConversationSettings:
    """Nothing is forced and chance repeats itself."""
    settings = {"rules": SpeakingRules(forced_listen_units=0), "seed": 1} | changes
    return ConversationSettings(**settings)  # type: ignore[arg-type]


def converse(
    used: Runner, script: Script | None = None, settings: ConversationSettings | None = None
) -> Conversation:
    """A conversation after a short prompt, nothing forced."""
    prompt = DuplexPrompt((Token.IM_START, 115, Token.AUDIO_START), (Token.AUDIO_END, Token.IM_END))
    target = used.model.target
    voice = torch.linspace(-1, 1, 3 * 256).view(3, 256).to(target.device, target.dtype)
    return Conversation(used, prompt, voice, settings or free_settings(), script)


def scripted(used: Runner, *units: list[int], **settings: object) -> Conversation:
    return converse(used, Script(*units), free_settings(**settings))


def second(index: int, pictures: tuple[VideoFrame, ...] = ()) -> Unit:
    """Unit `index` of a stream that is the same for every test."""
    start = index * UNIT_SAMPLES
    return Unit(index, _sound()[start : start + UNIT_SAMPLES], UNIT_SAMPLES, pictures)


@functools.cache
def _sound() -> FloatArray:
    sound: FloatArray = tiny.recipe().audio(64.0, tiny.seed())
    return sound


def cached(used: Runner, talk: Conversation) -> Tensor:
    """All that the LLM has cached of a conversation: [layers, 2, kv heads, length, D]."""
    return used.slots.llm.tensor[:, :, talk.slot, :, : talk.context_tokens].clone()


def told(used: Runner, *units: list[int], first: int = 0, **settings: object) -> Conversation:
    """A conversation in which this was said, unit by unit, every position read."""
    talk = scripted(used, *units, **settings)
    for index in range(len(units)):
        talk.step(second(first + index))
    talk.flush()
    return talk


def picture(width: int = 64, height: int = 48) -> VideoFrame:
    return VideoFrame(tiny.recipe().picture(width, height, 3), 0)


def same(ours: Tensor, theirs: Tensor, close: float = 1e-4) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= close * theirs.abs().max())
