"""The voice of an engine: a vocoder, and the reference voices that it and the model speak with."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from agent.engines import VoiceSettings
from agent.errors import CheckpointError, ConfigError, RequestError, VocoderError
from agent.interfaces import VoiceKey
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
from agent.vocoder.voice_store import StoredVoice, VoiceStore, decode_recording, digest_of

log = logging.getLogger(__name__)

_RECENT = 4
"""Voices that are kept though no call speaks with them."""


class _LoadedVoice(VoiceKey):
    """A key with all that belongs to it: nothing is read again while somebody holds it."""

    __slots__ = ("id", "prompt", "recording")
    id: str
    """What it was called when it was loaded."""
    prompt: SpeakerPrompt
    recording: bytes
    """Of the file that the key is the digest of."""


class StoredVoices:
    """The voices of a store for one vocoder: only those that are prepared can be spoken with.

    In memory are those whose keys are held, and the `recent` last ones that were asked for. For one
    thread.
    """

    def __init__(self, store: VoiceStore, key: str, recent: int = _RECENT) -> None:
        self._store = store
        self._key = key
        self._most = recent
        self._recent: OrderedDict[str, _LoadedVoice] = OrderedDict()
        self._loaded: WeakValueDictionary[str, _LoadedVoice] = WeakValueDictionary()

    def ids(self) -> tuple[str, ...]:
        """Of all that are prepared."""
        self._drop_deleted()
        voices = self._store.voices()
        return tuple(
            voice.id for voice in voices if self._store.is_prepared(voice.digest, self._key)
        )

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        """The key of the voice of that id; RequestError when there is none that can be used.

        For "" that of the first sound one in `language`, or of the first.
        """
        self._drop_deleted()
        voice = self._found(self._store.find(voice_id)) if voice_id else self._first(language)
        self._recent[str(voice)] = voice
        self._recent.move_to_end(str(voice))
        while len(self._recent) > self._most:
            self._recent.popitem(last=False)
        return voice

    def samples(self, key: str) -> FloatArray:
        """A voice's recording f32 [T] at 16 kHz; CheckpointError when nobody holds the key."""
        voice = self._loaded.get(key)
        if voice is None:
            raise CheckpointError("the recording of a voice is not there any more")
        recording = torch.from_numpy(decode_recording(voice.recording))
        low: FloatArray = resample(recording, SPEECH_RATE_HZ, MIC_RATE_HZ).numpy()
        return low

    def prompt(self, key: str) -> SpeakerPrompt:
        """What the vocoder speaks with; VocoderError when nobody holds the key."""
        voice = self._loaded.get(key)
        if voice is None:
            raise VocoderError("the voice is not there any more")
        return voice.prompt

    def _first(self, language: str) -> _LoadedVoice:
        def is_foreign(voice: StoredVoice) -> bool:
            return _tongue(voice.language) != _tongue(language)

        refusals = []
        for voice in sorted(self._store.voices(), key=is_foreign):
            try:
                return self._found(voice)
            except RequestError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]
        # That there is none is the store's to say.
        return self._found(self._store.find(""))

    def _found(self, voice: StoredVoice) -> _LoadedVoice:
        loaded = self._loaded.get(voice.digest)
        if loaded is None:
            try:
                loaded = self._load(voice)
            except (CheckpointError, OSError) as error:
                log.warning("the voice %s cannot be used: %s", voice.id, error)
                raise _damaged(voice.id) from error
            self._loaded[voice.digest] = loaded
        loaded.id = voice.id
        return loaded

    def _load(self, voice: StoredVoice) -> _LoadedVoice:
        prompt = self._store.prompt(voice.digest, self._key)
        if prompt is None:
            raise RequestError(
                f"the voice '{voice.id}' is still being prepared; try again in a moment",
                param="voice",
                code="voice_not_ready",
            )
        recording = voice.recording.read_bytes()
        if digest_of(recording) != voice.digest:
            raise CheckpointError(f"{voice.recording}: is not the recording that was added")
        loaded = _LoadedVoice(voice.digest)
        loaded.prompt, loaded.recording = prompt, recording
        return loaded

    def _drop_deleted(self) -> None:
        """What was deleted is not to stay in memory; who speaks with it holds it still."""
        for digest, voice in list(self._recent.items()):
            if not self._store.holds(voice.id, digest):
                del self._recent[digest]


def _damaged(voice_id: str) -> RequestError:
    return RequestError(
        f"the voice '{voice_id}' cannot be used: what is stored of it is damaged",
        param="voice",
        code="voice_damaged",
    )


def load_voice(
    settings: VoiceSettings, built_in: Path, device: torch.device, turns: int = 1
) -> tuple[VoicedVocoder[Any], StoredVoices]:
    """The vocoder, with room for so many turns at once, and its voices with all prepared that was
    not. CheckpointError, ConfigError."""
    store, fit = VoiceStore(settings.voices, built_in), FITS[settings.name]
    try:
        refused = prepare_voices(store, store.voices(), settings.folder, fit, device)
    except OSError as error:
        raise ConfigError(f"{settings.voices}: voices cannot be kept there: {error}") from error
    for voice_id, why in refused.items():
        log.warning("the voice %s cannot be spoken with: %s", voice_id, why)
    voices = StoredVoices(store, vocoder_key(settings.folder, fit), settings.prepared_voices)
    if not voices.ids():
        raise CheckpointError(f"{built_in} and {settings.voices} hold no voice to speak with")
    target = Target(device, _dtype(settings, device))
    chosen = _vocoder_settings(settings, turns)
    return load_vocoder(settings.name, settings.folder, chosen, target, voices.prompt), voices


def _tongue(language: str) -> str:
    """`zh-TW` and `zh` are one."""
    return language.lower().replace("_", "-").split("-")[0]


def _dtype(settings: VoiceSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _vocoder_settings(settings: VoiceSettings, turns: int) -> VocoderSettings:
    first = settings.first_hop_tokens
    # A call's second of tokens comes at once: all that can be said of it is said at once.
    hops = StreamSettings(first_hop_tokens=first + LEAD_TOKENS, eager=True)
    return VocoderSettings(
        token2wav=Token2wavSettings(
            steps=settings.steps,
            estimator_memory=settings.memory,
            crossfade=settings.crossfade,
            seed=settings.seed,
            graphs=settings.graphs,
            # A slot's next turn may begin while the last one is let go of.
            streams=turns + 1,
            stream=hops,
        ),
        cosyvoice2=Cosyvoice2Settings(
            steps=settings.steps,
            crossfade=settings.crossfade,
            seed=settings.seed,
            graphs=settings.graphs,
            stream=ChunkSettings(first_hop_tokens=first),
        ),
    )
