"""A half-duplex conversation on the tiny model, and what is said in it."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.duplex.answer import AnswerPiece
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.half_duplex_rules import HalfDuplexRules
from agent.duplex.lanes import Runner
from agent.duplex.prompt import Message, SoundSpan
from agent.duplex.tokens import Token
from agent.duplex.work import Work
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import Script, runner

LIMITS: dict[str, Any] = {"max_tokens": 40, "max_call_tokens": 30}
"""The tiny model finds no end by itself."""
SYSTEM = Message("system", ("Hear", SoundSpan(3), "this"))
VOICE = torch.linspace(-1, 1, 3 * 256).view(3, 256)
SILENT = ConversationSettings(speaks=False, seed=1)
SPOKEN = ConversationSettings(speaks=True, seed=1, speech_lag_ms=200)
HEADER = len("\nassistant\n\n\n\n\n") + 5
"""Letters of what an answer begins with, and five control tokens."""


def sound(seconds: float = 1.2, seed: int = 4) -> np.ndarray:
    return np.asarray(tiny.recipe().audio(seconds, seed), np.float32)


def picture() -> np.ndarray:
    return np.asarray(tiny.recipe().picture(32, 24, 3))


class Talk:
    """A conversation and the runner that does its work."""

    def __init__(
        self,
        *said: str,
        settings: ConversationSettings = SILENT,
        used: Runner | None = None,
        **rules: Any,
    ) -> None:
        self.used = used or runner()
        self.talk = HalfDuplexConversation(
            self.used, SYSTEM, VOICE, settings, HalfDuplexRules(**LIMITS | rules)
        )
        self.works: list[Work] = []
        if said:
            self.talk.script = script(*said)
        self.run(self.talk.open_steps())

    def run(self, steps: Generator[Work, None, Any]) -> Any:
        while True:
            try:
                work = next(steps)
            except StopIteration as stop:
                return stop.value
            work.run(self.used.model, self.used.slots)
            self.works.append(work)

    def read(self, text: str) -> None:
        self.run(self.talk.read_text(text))

    def hear(self, seconds: float = 1.2, seed: int = 4, pictures: tuple = ()) -> None:
        self.run(self.talk.hear_steps(sound(seconds, seed), pictures))

    def answer(self) -> list[AnswerPiece]:
        pieces: list[AnswerPiece] = []
        while not pieces or pieces[-1].finish is None:
            pieces.append(self.run(self.talk.answer_steps()))
        return pieces

    def cached(self) -> Tensor:
        tensor = self.used.slots.llm.tensor
        return tensor[:, :, self.talk.slot, :, : self.talk.context_tokens].clone()


def script(*said: str) -> Script:
    """An answer each, a token a letter."""
    return Script(*[[*map(ord, one), int(Token.TTS_EOS)] for one in said])


def text(pieces: list[AnswerPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def same(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())
