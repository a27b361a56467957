"""Voices of tiny vocoders, and what they say."""

import functools
from pathlib import Path
from typing import Any

from agent.vocoder.voice import SpeakerPrompt, VoicePreparation
from tests.rig.tiny_model import recipe

TOKENS = [(37 * number) % 6561 for number in range(110)]


@functools.cache
def prompt(folder: Path, fit: Any) -> SpeakerPrompt:
    preparation = VoicePreparation.of_folder(folder)
    return preparation.prepare(recipe().audio(2.5, 9, 24_000), 24_000, fit)


def voice_of(vocoder: Any, folders: dict[str, Path], kind: str) -> Any:
    fit = "crop" if kind == "cosyvoice2" else "repeat"
    return vocoder.voice(prompt(folders[kind], fit), "anna")
