"""The whole model: its weights, shared by all conversations, and its vocabulary.

What a service does without (`DuplexConfig.parts`) keeps its place here, and refuses to be used:
nothing is loaded in the middle of a call, since that takes seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agent.duplex.audio_encoder import AudioEncoder, AudioProjection, Ears
from agent.duplex.config import DuplexConfig, Numerics, ServiceParts
from agent.duplex.llm import Llm
from agent.duplex.mel import offline_mel
from agent.duplex.pictures import Patches
from agent.duplex.quant import quantise_llm
from agent.duplex.resampler import Resampler
from agent.duplex.sampling import banned_ids
from agent.duplex.speech_lm import SpeechLm
from agent.duplex.tokens import Vocabulary
from agent.duplex.vision import Eyes, PatchBatch, VisionTower
from agent.errors import UnsupportedError
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
    """Every part that `config.parts` names, from one checkpoint; CheckpointError when it does not
    fit. What of it stays unread is not checked."""
    config = config.fitted_to(source.headers)
    eyes, ears, llm, speech = built = build_parts(config, numerics)
    quantise_llm(llm, numerics.quantisation, source.headers)
    unread = unread_prefixes(config.parts)
    parts = {prefix: part for prefix, part in by_prefix(*built).items() if prefix not in unread}
    unused = {**SpeechLm.UNUSED, **unread}
    load_parts(source, parts, unused=unused, target=target, on_progress=on_progress)
    banned = banned_ids(vocabulary.unspeakable, target.device)
    return DuplexModel(config, vocabulary, eyes, ears, llm, speech, target, banned)


def build_parts(
    config: DuplexConfig, numerics: Numerics = _AS_INTENDED
) -> tuple[Eyes, Ears, Llm, SpeechLm]:
    """Every part with its shapes, and no memory for its weights."""
    attention = numerics.attention
    open_eyes = Eyes if config.parts.vision else ClosedEyes
    voiced = SpeechLm if config.parts.speech else MuteSpeechLm
    with unfilled():
        eyes = open_eyes(
            VisionTower(config.vision, attention), Resampler(config.resampler, attention)
        )
        ears = Ears(AudioEncoder(config.audio, attention), AudioProjection(config.audio))
        return eyes, ears, Llm(config.llm, numerics), voiced(config.speech, numerics)


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


# ---- what a service does without ----------------------------------------------------------------


def unread_prefixes(parts: ServiceParts) -> Mapping[str, str]:
    """What keys begin with that are not read, and why."""
    unread: dict[str, str] = {}
    if not parts.vision:
        unread |= dict.fromkeys((VisionTower.PREFIX, Resampler.PREFIX), _BLIND)
    if not parts.speech:
        unread |= {SpeechLm.PREFIX: _MUTE}
    return unread


class ClosedEyes(Eyes):
    """In the place of what sees, without its weights."""

    def see(self, pieces: Sequence[Patches]) -> Tensor:
        """UnsupportedError."""
        raise UnsupportedError(_BLIND, param="picture")

    def see_batch(self, batch: PatchBatch) -> Tensor:
        """UnsupportedError."""
        raise UnsupportedError(_BLIND, param="picture")


class MuteSpeechLm(SpeechLm):
    """In the place of the speech LM, without its weights."""

    def condition(
        self, ids: Sequence[int], states: Sequence[Tensor], *, text_ended: bool = False
    ) -> Tensor:
        """UnsupportedError."""
        raise UnsupportedError(_MUTE)


_BLIND = "the model was started without what sees: set model.vision to true to show it pictures"
_MUTE = "the model was started without what speaks: it needs a vocoder, see vocoder.name"
