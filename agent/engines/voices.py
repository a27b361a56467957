"""The voice of an engine: a vocoder, and the reference voices that it and the model speak with."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from agent.engines import VoiceSettings
from agent.errors import CheckpointError, ConfigError, RequestError, VocoderError
from agent.torch_parts.checkpoint import Target
from agent.types import MIC_RATE_HZ, SPEECH_RATE_HZ, FloatArray
from agent.vocoder.cosyvoice2 import ChunkSettings
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings
from agent.vocoder.loading import Token2wavSettings
from agent.vocoder.preparing import FITS, prepare_voices, vocoder_key
from agent.vocoder.registry import VocoderSettings, VoicedVocoder, load_vocoder
from agent.vocoder.resample import resample
from agent.vocoder.token2wav import LEAD_TOKENS, StreamSettings
from agent.vocoder.voice import SpeakerPrompt
from agent.vocoder.voice_store import StoredVoice, VoiceStore, read_recording

log = logging.getLogger(__name__)

_KNOWN = 64
"""Voices that were found and are remembered, so that a call keeps the one that it began with."""


class StoredVoices:
    """The voices of a store for one vocoder: only those that are prepared can be spoken with."""

    def __init__(self, store: VoiceStore, key: str) -> None:
        self._store = store
        self._key = key
        self._known: OrderedDict[str, tuple[StoredVoice, SpeakerPrompt]] = OrderedDict()

    def ids(self) -> tuple[str, ...]:
        """Of all that are prepared."""
        return tuple(voice.id for voice in self._prepared())

    def resolve(self, voice_id: str, language: str = "") -> str:
        """The key of the voice of that id; RequestError when there is none, or not yet.

        For "" that of the first one in `language`, or of the first.
        """
        voice = self._store.find(voice_id) if voice_id else self._first(language)
        if voice.digest not in self._known:
            prompt = self._store.prompt(voice.digest, self._key)
            if prompt is None:
                raise RequestError(
                    f"the voice '{voice.id}' is still being prepared; try again in a moment",
                    param="voice",
                    code="voice_not_ready",
                )
            self._known[voice.digest] = voice, prompt
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(voice.digest)
        return voice.digest

    def _first(self, language: str) -> StoredVoice:
        prepared = self._prepared()
        speaking = [voice for voice in prepared if _tongue(voice.language) == _tongue(language)]
        return next(iter(speaking or prepared), None) or self._store.find("")

    def _prepared(self) -> list[StoredVoice]:
        voices = self._store.voices()
        return [voice for voice in voices if self._store.is_prepared(voice.digest, self._key)]

    def samples(self, key: str) -> FloatArray:
        """A voice's recording f32 [T] at 16 kHz; CheckpointError when it is gone or damaged."""
        if key not in self._known:
            raise CheckpointError("the recording of a voice is not there any more")
        voice, _ = self._known[key]
        recording = torch.from_numpy(read_recording(voice.recording))
        low: FloatArray = resample(recording, SPEECH_RATE_HZ, MIC_RATE_HZ).numpy()
        return low

    def prompt(self, key: str) -> SpeakerPrompt:
        """What the vocoder speaks with; VocoderError when it is not known any more."""
        if key not in self._known:
            raise VocoderError("the voice is not there any more")
        return self._known[key][1]


def load_voice(
    settings: VoiceSettings, built_in: Path, device: torch.device
) -> tuple[VoicedVocoder[Any], StoredVoices]:
    """The vocoder, and its voices with all prepared that was not. CheckpointError, ConfigError."""
    store, fit = VoiceStore(settings.voices, built_in), FITS[settings.name]
    try:
        refused = prepare_voices(store, store.voices(), settings.folder, fit, device)
    except OSError as error:
        raise ConfigError(f"{settings.voices}: voices cannot be kept there: {error}") from error
    for voice_id, why in refused.items():
        log.warning("the voice %s cannot be spoken with: %s", voice_id, why)
    voices = StoredVoices(store, vocoder_key(settings.folder, fit))
    if not voices.ids():
        raise CheckpointError(f"{built_in} and {settings.voices} hold no voice to speak with")
    target = Target(device, _dtype(settings, device))
    chosen = _vocoder_settings(settings)
    return load_vocoder(settings.name, settings.folder, chosen, target, voices.prompt), voices


def _tongue(language: str) -> str:
    """`zh-TW` and `zh` are one."""
    return language.lower().replace("_", "-").split("-")[0]


def _dtype(settings: VoiceSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _vocoder_settings(settings: VoiceSettings) -> VocoderSettings:
    first = settings.first_hop_tokens
    # A call's second of tokens comes at once: all that can be said of it is said at once.
    hops = StreamSettings(first_hop_tokens=first + LEAD_TOKENS, eager=True)
    return VocoderSettings(
        token2wav=Token2wavSettings(
            steps=settings.steps,
            estimator_memory=settings.memory,
            crossfade=settings.crossfade,
            seed=settings.seed,
            stream=hops,
        ),
        cosyvoice2=Cosyvoice2Settings(
            steps=settings.steps,
            crossfade=settings.crossfade,
            seed=settings.seed,
            stream=ChunkSettings(first_hop_tokens=first),
        ),
        prepared_voices=settings.prepared_voices,
    )
