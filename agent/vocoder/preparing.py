"""From stored recordings to the form that a vocoder speaks with, once for each of both."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from agent.errors import RequestError
from agent.types import SPEECH_RATE_HZ
from agent.vocoder.files import SPEAKER, TOKENIZERS
from agent.vocoder.voice import Fit, VoicePreparation
from agent.vocoder.voice_store import StoredVoice, VoiceStore, read_recording

_VERSION = 1
"""To be raised with everything that changes what comes of a recording."""
_LOOKED_AT_BYTES = 65_536
"""Of both ends of a file: enough to tell trained weights apart, without reading 500 MB."""
FITS: dict[str, Fit] = {"token2wav": "repeat", "cosyvoice2": "crop"}


def vocoder_key(folder: Path, fit: Fit) -> str:
    """What prompts for a vocoder's folder are kept under: other models there, another key."""
    digest = hashlib.sha256(f"{_VERSION} {fit}".encode())
    for name in (*TOKENIZERS, SPEAKER):
        path = folder / name
        if path.is_file():
            size = path.stat().st_size
            digest.update(f" {name} {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_LOOKED_AT_BYTES))
                file.seek(max(0, size - _LOOKED_AT_BYTES))
                digest.update(file.read(_LOOKED_AT_BYTES))
    return digest.hexdigest()[:16]


def prepare_voices(
    store: VoiceStore,
    voices: Iterable[StoredVoice],
    folder: Path,
    fit: Fit,
    device: torch.device | None = None,
) -> dict[str, str]:
    """Prepare those that are not yet, on `device` → why some cannot be, by their ids.

    The models for it are loaded only where there is something to do, and freed in the end.
    CheckpointError when the folder has not got them or a recording is damaged, OSError when a
    result cannot be kept.
    """
    key = vocoder_key(folder, fit)
    missing = [voice for voice in voices if store.prompt(voice.digest, key) is None]
    if not missing:
        return {}
    refused = {}
    preparation = VoicePreparation.of_folder(folder, device=device)
    for voice in missing:
        try:
            prompt = preparation.prepare(read_recording(voice.recording), SPEECH_RATE_HZ, fit)
        except RequestError as error:
            refused[voice.id] = str(error)
        else:
            store.keep_prompt(voice.digest, key, prompt)
    return refused
