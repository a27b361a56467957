"""A reference voice in the form that the vocoders speak with.

`SpeakerPrompt` is plain data: made once per voice, kept on disk, shared by all calls.
"""

import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent.errors import CheckpointError
from agent.types import FloatArray
from agent.vocoder.mel import PROMPT_RATE_HZ, TOKENIZER_RATE_HZ
from agent.vocoder.resample import resample

TokenArray = npt.NDArray[np.int32]

MEL_FRAMES_PER_TOKEN = 2
_FIELDS = ("speech_tokens", "mel", "embedding")


@dataclass(frozen=True, slots=True, eq=False)
class SpeakerPrompt:
    """One voice: `speech_tokens` i32 [P], `mel` f32 [2P, 80] (24 kHz, natural logarithm), and
    `embedding` f32 [192] as the speaker model gives it, of any length.

    The arrays are copied and cannot be written to. ValueError when the shapes do not fit together,
    a token is negative, or a number is not finite.
    """

    speech_tokens: TokenArray
    mel: FloatArray
    embedding: FloatArray

    def __post_init__(self) -> None:
        self._set("speech_tokens", np.int32)
        self._set("mel", np.float32)
        self._set("embedding", np.float32)
        tokens, mel, embedding = self.speech_tokens, self.mel, self.embedding
        if (tokens.ndim, mel.ndim, embedding.ndim) != (1, 2, 1):
            raise ValueError("a voice has tokens [P], mel [2P, bands] and an embedding [width]")
        if not len(tokens) or len(mel) != MEL_FRAMES_PER_TOKEN * len(tokens):
            raise ValueError(f"{len(tokens)} speech tokens do not fit {len(mel)} mel frames")
        if tokens.min() < 0:
            raise ValueError("a speech token is negative")
        if not (np.isfinite(mel).all() and np.isfinite(embedding).all()):
            raise ValueError("a voice holds numbers that are not finite")

    def _set(self, name: str, dtype: npt.DTypeLike) -> None:
        value = np.array(getattr(self, name), dtype)
        value.setflags(write=False)
        object.__setattr__(self, name, value)

    def save(self, path: Path) -> None:
        """Write an .npz that only its owner may read: whole, or not at all. OSError."""
        packed = io.BytesIO()
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        np.savez(packed, allow_pickle=False, **arrays)
        # mkstemp makes the file 0600 from the start.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(packed.getbuffer())
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> "SpeakerPrompt":
        """What `save` wrote; CheckpointError when it is not that. Never runs what is inside."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(*(stored[name] for name in _FIELDS))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: is no voice, or a damaged one ({error})") from error


# ---- from a recording ---------------------------------------------------------------------------


def mono_16k(recording: Tensor, rate_hz: int) -> Tensor:
    """f32 [channels, T] → what the tokenizer and the speaker model hear: the first channel."""
    return resample(recording[0], rate_hz, TOKENIZER_RATE_HZ)


def mono_24k(recording: Tensor, rate_hz: int) -> Tensor:
    """f32 [channels, T] → what the flow continues: the mean of all channels."""
    return resample(recording.mean(0), rate_hz, PROMPT_RATE_HZ)


def fitted_mel(mel: Tensor, tokens: int) -> Tensor:
    """[F, bands] → [2 · tokens, bands]: the last frame repeated, or what is too much cut off."""
    missing = MEL_FRAMES_PER_TOKEN * tokens - len(mel)
    if missing <= 0:
        return mel[: len(mel) + missing]
    return torch.cat([mel, mel[-1:].expand(missing, -1)])
