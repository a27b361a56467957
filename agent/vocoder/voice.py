"""A reference voice in the form that the vocoders speak with, and how a recording becomes one.

    preparation = VoicePreparation.of_folder(folder)  # of the vocoder's files
    prompt = preparation.prepare(samples, rate_hz)
    prompt.save(path)

`SpeakerPrompt` is plain data: made once per voice, kept on disk, shared by all calls. What a
recording must be like, and how it is made fit, is `reference_audio`'s matter.
"""

import io
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent.errors import CheckpointError, RequestError
from agent.types import FloatArray
from agent.vocoder.config import SILENCE_TOKEN
from agent.vocoder.files import SPEAKER, TOKENIZERS
from agent.vocoder.mel import (
    PROMPT_RATE_HZ,
    TOKENIZER_RATE_HZ,
    prompt_mel,
    tokenizer_mel,
)
from agent.vocoder.resample import can_resample, resample
from agent.vocoder.speaker import SpeakerModel
from agent.vocoder.speech_tokenizer import TOKENS_PER_S, Rounding, TokenArray, Tokenizer
from agent.vocoder.tokenizer_file import open_speech_tokenizer

MEL_FRAMES_PER_TOKEN = 2
FEWEST_TOKENS = TOKENS_PER_S
MOST_TOKENS = 15 * TOKENS_PER_S
"""Longer prompts make every call dearer, and the reference's caches overflow soon after."""
SILENCE_TOKENS = (SILENCE_TOKEN, 4299)
MOST_SILENCE = 0.7
"""Share of tokens of silence above which there is no voice in a recording."""

Fit: TypeAlias = Literal["repeat", "crop"]
"""What makes tokens and mel equally long: token2wav repeats the mel's last frame (or cuts the mel),
CosyVoice2 cuts the longer of the two."""

_FIELDS = ("speech_tokens", "mel", "embedding")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
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
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return cls(*(stored[name] for name in _FIELDS))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: is no voice, or a damaged one ({error})") from error


# ---- from a recording ---------------------------------------------------------------------------


class VoicePreparation:
    """Makes voices of recordings. Its models are some 0.5 GB at full size: drop it to free them."""

    def __init__(self, tokenizer: Tokenizer, speaker: SpeakerModel) -> None:
        self._tokenizer = tokenizer
        self._speaker = speaker

    @classmethod
    def of_folder(
        cls, folder: Path, *, rounding: Rounding = "onnx", device: torch.device | None = None
    ) -> "VoicePreparation":
        """With the two ONNX files of a vocoder's folder, the tokenizer on `device`.

        CheckpointError when one of them is missing or not what its name says.
        """
        names = [name for name in TOKENIZERS if (folder / name).is_file()]
        missing = [] if names else [" or ".join(TOKENIZERS)]
        if not (folder / SPEAKER).is_file():
            missing.append(SPEAKER)
        if missing:
            raise CheckpointError(f"{folder}: lacks {' and '.join(missing)} to make voices with")
        tokenizer = open_speech_tokenizer(folder / names[0], rounding=rounding, device=device)
        return cls(tokenizer, SpeakerModel(folder / SPEAKER))

    def prepare(self, samples: FloatArray, rate_hz: int, fit: Fit = "repeat") -> SpeakerPrompt:
        """A recording f32 [T] or [channels, T], −1..1, as a voice.

        Taken as it is: the tokenizer and the speaker model hear its first channel, the flow the
        mean of all, as in the reference. RequestError when it is too short, too long, of a rate
        that cannot be used, silent, or holds what is no number.
        """
        recording = _checked(samples, rate_hz)
        with torch.inference_mode():
            low, high = mono_16k(recording, rate_hz), mono_24k(recording, rate_hz)
            tokens = self._tokenizer.tokens(tokenizer_mel(low))
            mel = prompt_mel(high)
            if fit == "crop":
                tokens = tokens[: len(mel) // MEL_FRAMES_PER_TOKEN]
            mel = fitted_mel(mel, len(tokens))
            embedding = self._speaker.embed(low)
        _check_voice(tokens, mel, embedding)
        return SpeakerPrompt(tokens, mel.numpy(), embedding)


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


def is_usable_rate(rate_hz: int) -> bool:
    """Whether recordings of this rate can be prepared; all usual rates can."""
    return can_resample(rate_hz, TOKENIZER_RATE_HZ) and can_resample(rate_hz, PROMPT_RATE_HZ)


def _checked(samples: FloatArray, rate_hz: int) -> Tensor:
    """The recording as [channels, T]; RequestError when nothing can be made of it."""
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"a recording is f32 [channels, T], not {list(samples.shape)}")
    if not is_usable_rate(rate_hz):
        raise RequestError(
            f"a reference recording of {rate_hz} Hz cannot be used; save it at 24 kHz"
        )
    recording = torch.from_numpy(np.atleast_2d(np.array(samples, np.float32)))
    seconds = recording.shape[1] / rate_hz
    shortest_s, longest_s = FEWEST_TOKENS / TOKENS_PER_S, MOST_TOKENS / TOKENS_PER_S
    if not len(recording) or not shortest_s <= seconds <= longest_s:
        raise RequestError(
            f"the reference recording has {seconds:.1f} s; "
            f"{shortest_s:.0f} to {longest_s:.0f} s can be used"
        )
    if not torch.isfinite(recording).all():
        raise RequestError("the reference recording holds samples that are no numbers")
    return recording


def _check_voice(tokens: TokenArray, mel: Tensor, embedding: FloatArray) -> None:
    silence = float(np.isin(tokens, SILENCE_TOKENS).mean()) if len(tokens) else 1.0
    if silence > MOST_SILENCE:
        raise RequestError(f"the reference recording is silent for {silence:.0%} of its length")
    finite = bool(torch.isfinite(mel).all()) and bool(np.isfinite(embedding).all())
    if not finite or not np.linalg.norm(embedding) > 0:
        raise RequestError("no voice could be found in the reference recording")
