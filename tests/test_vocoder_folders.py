"""Whole vocoder folders: read, a voice prepared with their models, a turn spoken."""

from pathlib import Path

import numpy as np
import pytest

from agent.torch_parts.checkpoint import Target
from agent.types import FloatArray
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.registry import VocoderSettings, load_vocoder
from agent.vocoder.voice import SpeakerPrompt, VoicePreparation
from tests.rig.tiny_model import FLOAT32, recipe
from tests.rig.tiny_vocoder import (
    Generation,
    KeyStyle,
    TokenizerGraph,
    write_cosyvoice2,
    write_token2wav,
)

TOKENS = [(37 * number) % 6561 for number in range(60)]


def _spoken(folder: Path, target: Target = FLOAT32) -> tuple[SpeakerPrompt, FloatArray]:
    prompt = VoicePreparation.of_folder(folder).prepare(recipe().audio(2.0, 9, 24_000), 24_000)
    vocoder = load_token2wav(folder, Token2wavSettings(steps=2), target)
    stream = vocoder.open(vocoder.voice(prompt, "anna"))
    return prompt, np.concatenate([stream.push(TOKENS), stream.finish()])


@pytest.mark.parametrize("generation", ["classic", "causal"])
def test_a_folder_speaks_with_a_voice_of_its_own_models(
    tmp_path: Path, generation: Generation
) -> None:
    prompt, sound = _spoken(write_token2wav(tmp_path, generation))
    assert len(prompt.speech_tokens) == 50 and len(set(prompt.speech_tokens.tolist())) > 20
    assert len(sound) == 960 * len(TOKENS)
    assert np.isfinite(sound).all() and np.abs(sound).max() > 1e-3


def test_old_names_of_weights_and_an_unknown_tokenizer_change_nothing_else(tmp_path: Path) -> None:
    keys: KeyStyle = "weight_g"
    tokenizer: TokenizerGraph = "other"
    prompt, sound = _spoken(write_token2wav(tmp_path / "new"))
    same_prompt, same = _spoken(write_token2wav(tmp_path / "old", keys=keys))
    np.testing.assert_array_equal(sound, same)
    other, different = _spoken(write_token2wav(tmp_path / "other", tokenizer=tokenizer))
    np.testing.assert_array_equal(prompt.mel, other.mel)
    assert (prompt.speech_tokens != other.speech_tokens).any()
    assert len(different) == len(sound) and np.abs(different - sound).max() > 1e-3
    np.testing.assert_array_equal(prompt.speech_tokens, same_prompt.speech_tokens)


def test_a_folder_of_cosyvoice2_speaks_too(tmp_path: Path) -> None:
    write_cosyvoice2(tmp_path)
    preparation = VoicePreparation.of_folder(tmp_path)
    voices = {"anna": preparation.prepare(recipe().audio(2.0, 9, 24_000), 24_000, "crop")}
    vocoder = load_vocoder("cosyvoice2", tmp_path, VocoderSettings(), FLOAT32, voices.__getitem__)
    stream = vocoder.open("anna")
    sound = np.concatenate([stream.push(TOKENS), stream.finish()])
    assert len(sound) == 960 * len(TOKENS)
    assert np.isfinite(sound).all() and np.abs(sound).max() > 1e-3
