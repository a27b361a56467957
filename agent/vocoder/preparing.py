"""From stored recordings to the form that a vocoder speaks with, once for each of both."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import CheckpointError, RequestError
from agent.types import SPEECH_RATE_HZ
from agent.vocoder.voice_store import StoredVoice, VoiceStore, digest_of, read_recording

if TYPE_CHECKING:
    # The server asks for keys, and does without torch.
    import torch

    from agent.vocoder.voice import Fit, VoicePreparation

_VERSION = 1
"""To be raised with everything that changes what comes of a recording."""
_LOOKED_AT_BYTES = 65_536
"""Of both ends of a file: enough to tell trained weights apart, without reading 500 MB."""
_MODELS = ("speech_tokenizer_v2_25hz.onnx", "speech_tokenizer_v2.onnx", "campplus.onnx")
"""`files.TOKENIZERS` and `files.SPEAKER`; a test holds them together."""
FITS: dict[str, "Fit"] = {"token2wav": "repeat", "cosyvoice2": "crop"}


def vocoder_key(folder: Path, fit: "Fit") -> str:
    """What prompts for a vocoder's folder are kept under: other models there, another key."""
    digest = hashlib.sha256(f"{_VERSION} {fit}".encode())
    for name in _MODELS:
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
    fit: "Fit",
    device: "torch.device | None" = None,
) -> dict[str, str]:
    """Prepare those that are not yet, on `device` → why some cannot be, by their ids.

    The models for it are loaded only where there is something to do, and freed in the end.
    CheckpointError when the folder has not got them, OSError when a result cannot be kept.
    """
    key = vocoder_key(folder, fit)
    missing = [voice for voice in voices if not _is_prepared(store, voice, key)]
    if not missing:
        return {}
    from agent.vocoder.voice import VoicePreparation

    refused = {}
    preparation = VoicePreparation.of_folder(folder, device=device)
    for voice in missing:
        try:
            prepare_voice(store, voice, key, preparation, fit)
        except (RequestError, CheckpointError) as error:
            refused[voice.id] = str(error)
    return refused


def prepare_voice(
    store: VoiceStore, voice: StoredVoice, key: str, preparation: "VoicePreparation", fit: "Fit"
) -> None:
    """Prepare one, if it is not yet.

    RequestError when its recording holds no voice, CheckpointError when it is damaged or is not the
    one that was added: kept under that one's hash it would give another voice away. OSError.
    """
    if _is_prepared(store, voice, key):
        return
    samples = read_recording(voice.recording)
    if digest_of(voice.recording.read_bytes()) != voice.digest:
        raise CheckpointError(f"{voice.recording}: is not the recording that was added")
    prompt = preparation.prepare(samples, SPEECH_RATE_HZ, fit)
    store.keep_prompt(voice.digest, key, prompt)


def _is_prepared(store: VoiceStore, voice: StoredVoice, key: str) -> bool:
    """Whether it can be spoken with; what is damaged is to be prepared anew."""
    try:
        return store.prompt(voice.digest, key) is not None
    except CheckpointError:
        return False
