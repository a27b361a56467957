"""The tiny checkpoint as an engine whose decisions to listen and to speak are written.

`load` is what the engine's own process calls instead of the registry; all else is the real thing:
files from the disk, tokenizer, senses, cache, prompts, the worker.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from agent.duplex.engine import DuplexEngine
from agent.duplex.tokens import Token, Vocabulary
from agent.engines import EngineSettings, Progress
from agent.engines.minicpm_o import ABILITIES, load_parts

SENTENCE = "I hear you well."
LISTENED_UNITS = 2
"""Between two turns."""


def load(name: str, settings: EngineSettings, on_progress: Progress) -> DuplexEngine:
    """The engine of the checkpoint in `settings`, which listens and speaks as `decisions` say."""
    parts = load_parts(settings, on_progress)
    vocabulary = parts.runner.model.vocabulary
    return DuplexEngine(replace(parts, script=lambda: decisions(vocabulary)), ABILITIES)


def decisions(vocabulary: Vocabulary, turn_units: int = 1) -> Iterator[int]:
    """A turn again and again, and units between in which the model listens.

    Each of a turn's units says the sentence. In half duplex, where nobody decides to listen, each
    answer is that sentence.
    """
    words = vocabulary.encode(SENTENCE)
    said = [Token.SPEAK, *words]
    turn = [*said, Token.CHUNK_EOS] * (turn_units - 1) + [*said, Token.TURN_EOS, Token.CHUNK_EOS]
    yield from itertools.cycle([*[Token.LISTEN] * LISTENED_UNITS, *turn])
