"""The whole model: its weights, shared by all conversations, and its vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.duplex.audio_encoder import AudioEncoder, AudioProjection, Ears
from agent.duplex.config import DuplexConfig, Numerics
from agent.duplex.llm import Llm
from agent.duplex.mel import offline_mel
from agent.duplex.quant import quantise_llm
from agent.duplex.resampler import Resampler
from agent.duplex.sampling import banned_ids
from agent.duplex.speech_lm import SpeechLm
from agent.duplex.tokens import Vocabulary
from agent.duplex.vision import Eyes, VisionTower
from agent.torch_parts.checkpoint import Target, TensorSource, load_parts, unfilled
from agent.types import FloatArray

_AS_INTENDED = Numerics()


@dataclass(frozen=True, slots=True)
class DuplexModel:
    """Weights and vocabulary. Immutable; of a conversation there is nothing in here."""

    config: DuplexConfig
    vocabulary: Vocabulary
    eyes: Eyes
    ears: Ears
    llm: Llm
    speech: SpeechLm
    target: Target
    banned: Tensor
    """What is never drawn as text: i64 [n]."""

    def hear_voice(self, samples: FloatArray) -> Tensor:
        """A reference voice f32 [T] at 16 kHz as vectors [n, W]; computed once for all calls."""
        heard = self.ears.hear_recordings(offline_mel(samples))
        return torch.cat(heard) if heard else self.llm.embed([])


def load_model(
    source: TensorSource,
    config: DuplexConfig,
    vocabulary: Vocabulary,
    *,
    target: Target,
    numerics: Numerics = _AS_INTENDED,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DuplexModel:
    """Every part of the model from one checkpoint; CheckpointError when it does not fit."""
    config = config.fitted_to(source.headers)
    eyes, ears, llm, speech = built = build_parts(config, numerics)
    quantise_llm(llm, numerics.quantisation, source.headers)
    parts = by_prefix(*built)
    load_parts(source, parts, unused=SpeechLm.UNUSED, target=target, on_progress=on_progress)
    banned = banned_ids(vocabulary.unspeakable, target.device)
    return DuplexModel(config, vocabulary, eyes, ears, llm, speech, target, banned)


def build_parts(
    config: DuplexConfig, numerics: Numerics = _AS_INTENDED
) -> tuple[Eyes, Ears, Llm, SpeechLm]:
    """Every part with its shapes, and no memory for its weights."""
    attention = numerics.attention
    with unfilled():
        eyes = Eyes(VisionTower(config.vision, attention), Resampler(config.resampler, attention))
        ears = Ears(AudioEncoder(config.audio, attention), AudioProjection(config.audio))
        return eyes, ears, Llm(config.llm, numerics), SpeechLm(config.speech, numerics)


def by_prefix(eyes: Eyes, ears: Ears, llm: Llm, speech: SpeechLm) -> dict[str, nn.Module]:
    """The modules by what their keys in a checkpoint begin with."""
    return {
        VisionTower.PREFIX: eyes.tower,
        Resampler.PREFIX: eyes.resampler,
        AudioEncoder.PREFIX: ears.encoder,
        AudioProjection.PREFIX: ears.projection,
        Llm.PREFIX: llm,
        SpeechLm.PREFIX: speech,
    }
