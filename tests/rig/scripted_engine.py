"""The tiny checkpoint as an engine whose decisions to listen and to speak are written.

`load` is what the engine's own process calls instead of the registry; all else is the real thing:
files from the disk, tokenizer, senses, cache, prompts, the worker.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from agent.duplex.engine import DuplexEngine
from agent.duplex.tokens import Token, Vocabulary
from agent.engines import EngineSettings, Progress
from agent.engines.minicpm_o import ABILITIES, abilities, load_parts
from agent.interfaces import Vocoder, VocoderStream
from agent.types import FloatArray

SENTENCE = "I hear you well."
LISTENED_UNITS = 2
"""Between two turns."""


def load(name: str, settings: EngineSettings, on_progress: Progress) -> DuplexEngine:
    """The engine of the checkpoint in `settings`, which listens and speaks as `decisions` say."""
    parts = load_parts(settings, on_progress)
    vocabulary = parts.runner.model.vocabulary
    return DuplexEngine(replace(parts, script=lambda: decisions(vocabulary)), ABILITIES)


SOUND = "said"
"""The folder beside the voices that gets the sound of each turn: f32 at 24 kHz."""
VOICED_UNITS = 3
"""Of a turn that is heard."""


def load_voiced(name: str, settings: EngineSettings, on_progress: Progress) -> DuplexEngine:
    """The same with the voice in `settings`, in longer turns whose sound is written down."""
    parts = load_parts(settings, on_progress)
    assert parts.vocoder is not None and settings.voice is not None
    vocabulary = parts.runner.model.vocabulary
    folder = settings.voice.voices.parent / SOUND
    folder.mkdir(exist_ok=True)
    heard = replace(
        parts,
        vocoder=_Overheard(parts.vocoder, folder),
        script=lambda: decisions(vocabulary, VOICED_UNITS),
    )
    return DuplexEngine(heard, abilities(heard))


class _Overheard:
    """A vocoder whose turns are written down."""

    def __init__(self, vocoder: Vocoder, folder: Path) -> None:
        self._vocoder = vocoder
        self._folder = folder
        self._turns = itertools.count(1)
        self.lag_ms = vocoder.lag_ms

    def prepare(self, voice: str) -> None:
        self._vocoder.prepare(voice)

    def open(self, voice: str) -> VocoderStream:
        path = self._folder / f"{next(self._turns)}.f32"
        return _OverheardTurn(self._vocoder.open(voice), path)


class _OverheardTurn:
    def __init__(self, stream: VocoderStream, path: Path) -> None:
        self._stream = stream
        self._path = path

    def push(self, tokens: Sequence[int]) -> FloatArray:
        return self._noted(self._stream.push(tokens))

    def finish(self) -> FloatArray:
        return self._noted(self._stream.finish())

    def _noted(self, samples: FloatArray) -> FloatArray:
        with self._path.open("ab") as file:
            file.write(samples.tobytes())
        return samples


def decisions(vocabulary: Vocabulary, turn_units: int = 1) -> Iterator[int]:
    """A turn again and again, and units between in which the model listens.

    Each of a turn's units says the sentence. In half duplex, where nobody decides to listen, each
    answer is that sentence.
    """
    words = vocabulary.encode(SENTENCE)
    said = [Token.SPEAK, *words]
    turn = [*said, Token.CHUNK_EOS] * (turn_units - 1) + [*said, Token.TURN_EOS, Token.CHUNK_EOS]
    yield from itertools.cycle([*[Token.LISTEN] * LISTENED_UNITS, *turn])
