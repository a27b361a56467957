"""Which vocoder gives the model its voice, and where the voices are that it speaks with."""

import logging
from pathlib import Path
from typing import Literal

from agent.config import Config, data_folder
from agent.duplex import inspection
from agent.engines import VoiceSettings
from agent.errors import CheckpointError

_LOG = logging.getLogger(__name__)
_COSYVOICE2_FILES = ("cosyvoice2.yaml", "cosyvoice.yaml")


def voices_folder(config: Config) -> Path:
    """Where the voices are kept that users add; not created here."""
    if config.voices.folder:
        return Path(config.voices.folder).expanduser().absolute()
    return data_folder(config).absolute() / "voices"


def voice_settings(config: Config, checkpoint: Path) -> VoiceSettings | None:
    """The voice of the model in `checkpoint`; None: it speaks in captions only.

    CheckpointError when a vocoder was asked for whose files are not there.
    """
    chosen = config.vocoder
    if chosen.name == "off":
        return None
    folder = vocoder_folder(config, checkpoint)
    missing = inspection.missing_vocoder_files(folder)
    if missing and chosen.name == "auto" and not chosen.folder:
        _LOG.warning("%s lacks %s: the agent has no voice", folder, ", ".join(missing))
        return None
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {', '.join(missing)} of a vocoder: download them, or set "
            "vocoder.folder, or vocoder.name=off for captions only"
        )
    return VoiceSettings(
        name=_kind(folder) if chosen.name == "auto" else chosen.name,
        folder=folder,
        voices=voices_folder(config),
        dtype=chosen.dtype,
        steps=chosen.steps,
        memory=chosen.memory,
        crossfade=chosen.crossfade,
        first_hop_tokens=chosen.first_hop_tokens,
        seed=chosen.seed,
        prepared_voices=chosen.prepared_voices,
        graphs=chosen.graphs,
    )


def will_speak(config: Config, checkpoint: Path | None) -> bool:
    """Whether the model is going to have a voice; None: it is still to be downloaded."""
    if config.vocoder.name == "off":
        return False
    if checkpoint is None:
        return True
    return not inspection.missing_vocoder_files(vocoder_folder(config, checkpoint))


def vocoder_folder(config: Config, checkpoint: Path) -> Path:
    """Where the vocoder's files are, or should be."""
    if config.vocoder.folder:
        return Path(config.vocoder.folder).expanduser().absolute()
    return checkpoint / inspection.VOCODER_FOLDER


def _kind(folder: Path) -> Literal["token2wav", "cosyvoice2"]:
    """Told apart by the file of settings that each comes with."""
    is_cosyvoice2 = any((folder / name).is_file() for name in _COSYVOICE2_FILES)
    return "cosyvoice2" if is_cosyvoice2 else "token2wav"
