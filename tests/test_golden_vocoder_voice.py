"""The front end of a reference voice against the outputs of the public reference."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.torch_parts.checkpoint import TensorHeader
from agent.types import FloatArray
from agent.vocoder.mel import prompt_mel, speaker_bands, tokenizer_mel
from agent.vocoder.speech_tokenizer import (
    SpeechTokenizer,
    load_speech_tokenizer,
    rounded,
    token_count,
)
from agent.vocoder.voice import fitted_mel, mono_16k, mono_24k
from tests.rig import tiny_model as tiny

FILE = "vocoder_more.safetensors"
MORE = tiny.golden_json("vocoder_more.json")
CASES = sorted(MORE["prompt"])
PREFIX = "s3."
PARAMETERS = MORE["s3"]["parameters"]

# Largest differences, absolute: what another order of float32 sums may cost, and no more.
WAVE_LIMIT = 1e-6
TOKENIZER_MEL_LIMIT = 1e-4
BANDS_LIMIT = 1e-3
MEL_LIMIT = 1e-4
PROJECTION_LIMIT = 1e-4


def _golden(key: str) -> Tensor:
    return tiny.golden_tensors(FILE)[key]


def _close(key: str, ours: Tensor, limit: float) -> None:
    """Within the absolute limit; the relative error goes to the report."""
    tiny.compare(key, ours, _golden(key))
    assert float((ours.double() - _golden(key).double()).abs().max()) <= limit, key


def _same(key: str, ours: Tensor) -> None:
    assert tiny.compare(key, ours, _golden(key)) == 0
    assert torch.equal(ours.long(), _golden(key).long()), key


def _recording(case: str) -> FloatArray:
    """What the reference was given: [channels, T]."""
    seed, rate_hz = int(MORE["seed"]), int(MORE["prompt"][case]["rate_hz"])
    audio = tiny.recipe().audio
    if case.startswith("odd"):
        return np.stack([audio(3.3371, seed + 302, rate_hz)])
    left = audio(4.7, seed + 300, rate_hz)
    if case.startswith("mono"):
        return np.stack([left])
    return np.stack([left, 0.5 * audio(4.7, seed + 301, rate_hz)]).astype(np.float32)


def _waves(case: str) -> tuple[Tensor, Tensor]:
    rate_hz = int(MORE["prompt"][case]["rate_hz"])
    recording = torch.from_numpy(_recording(case))
    return mono_16k(recording, rate_hz), mono_24k(recording, rate_hz)


class _Weights:
    """The recipe's tokenizer, offered as a checkpoint would be."""

    def __init__(self) -> None:
        self.headers = {
            key: TensorHeader(tuple(shape), "F32", Path("recipe"))
            for key, shape in PARAMETERS.items()
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for key in keys:
            yield key, tiny.recipe().tensor(key, self.headers[key].shape, int(MORE["seed"]))


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    return load_speech_tokenizer(_Weights(), prefix=PREFIX, rounding="reference")


@pytest.mark.parametrize("case", CASES)
def test_golden_vocoder_prompt_waves(case: str) -> None:
    counts: dict[str, Any] = MORE["prompt"][case]
    low, high = _waves(case)
    assert (len(low), len(high)) == (counts["samples_16k"], counts["samples_24k"])
    for name, wave in (("wave16k", low), ("wave24k", high)):
        _close(f"prompt.{case}.{name}.first4000", wave[:4000], WAVE_LIMIT)
        _close(f"prompt.{case}.{name}.last400", wave[-400:], WAVE_LIMIT)


@pytest.mark.parametrize("case", CASES)
def test_golden_vocoder_tokenizer_mel(case: str) -> None:
    mel = tokenizer_mel(_waves(case)[0])
    assert mel.shape[1] == MORE["prompt"][case]["s3mel_frames"]
    _close(f"prompt.{case}.s3mel.first60", mel[:, :60], TOKENIZER_MEL_LIMIT)
    _close(f"prompt.{case}.s3mel.last10", mel[:, -10:], TOKENIZER_MEL_LIMIT)
    if f"s3.{case}.full_mel" in tiny.golden_tensors(FILE):
        _close(f"s3.{case}.full_mel", mel, TOKENIZER_MEL_LIMIT)


@pytest.mark.parametrize("case", CASES)
def test_golden_vocoder_speaker_bands(case: str) -> None:
    bands = speaker_bands(_waves(case)[0])
    mean = bands.mean(0)
    assert len(bands) == MORE["prompt"][case]["fbank_frames"]
    _close(f"prompt.{case}.fbank.mean", mean, BANDS_LIMIT)
    _close(f"prompt.{case}.fbank.first60", (bands - mean)[:60], BANDS_LIMIT)


@pytest.mark.parametrize("case", CASES)
def test_golden_vocoder_prompt_mel(case: str) -> None:
    counts = MORE["prompt"][case]
    mel = prompt_mel(_waves(case)[1])
    assert len(mel) == counts["mel_frames"]
    _close(f"prompt.{case}.mel.first60", mel[:60].T, MEL_LIMIT)
    _close(f"prompt.{case}.mel.last10", mel[-10:].T, MEL_LIMIT)
    fitted = fitted_mel(mel, counts["tokens"])
    assert len(fitted) == 2 * counts["tokens"] == len(mel) + counts["mel_pad_frames"]
    _close(f"prompt.{case}.mel_fitted.last10", fitted[-10:].T, MEL_LIMIT)


@pytest.mark.parametrize("case", CASES)
def test_golden_vocoder_speech_tokens(case: str, tokenizer: SpeechTokenizer) -> None:
    mel = tokenizer_mel(_waves(case)[0])
    with torch.inference_mode():
        hidden = tokenizer.hidden(mel)
        projected = tokenizer.project(hidden)
    assert len(projected) == token_count(mel.shape[1]) == MORE["prompt"][case]["tokens"]
    _close(f"s3.{case}.pre_tanh", projected, PROJECTION_LIMIT)
    _close(f"s3.{case}.tanh", projected.tanh(), PROJECTION_LIMIT)
    if f"s3.{case}.hidden.first8" in tiny.golden_tensors(FILE):
        _close(f"s3.{case}.hidden.first8", hidden[:8], PROJECTION_LIMIT)
    doubtful = MORE["s3"]["cases"][case]["tokens_closer_than_1e_4"]
    for name, rounding in (("tokens", "reference"), ("tokens_onnx_rule", "onnx")):
        ours = rounded(projected, rounding)
        ours[doubtful] = _golden(f"s3.{case}.{name}")[doubtful]
        _same(f"s3.{case}.{name}", ours)


def test_golden_vocoder_speech_tokens_of_windows(tokenizer: SpeechTokenizer) -> None:
    sound = torch.from_numpy(tiny.recipe().audio(33.0, int(MORE["seed"]) + 310, 16000))
    ours = torch.from_numpy(tokenizer.tokens(tokenizer_mel(sound))).long()
    _same("s3.long_33s.tokens", ours)


def test_golden_vocoder_rounding() -> None:
    projected = _golden("s3.fsq.pre_tanh")
    ours = {rounding: rounded(projected, rounding) for rounding in ("onnx", "reference")}
    _same("s3.fsq.tokens", ours["reference"])
    _same("s3.fsq.tokens_onnx_rule", ours["onnx"])
    differing = (ours["onnx"] != ours["reference"]).nonzero().flatten().tolist()
    assert differing == MORE["s3"]["fsq_rules_differ_at_rows"]


def test_golden_vocoder_keys_are_all_compared() -> None:
    """Every key of this part stands under a name that the tests above go through."""
    keys = {key for key in tiny.golden_tensors(FILE) if key.startswith(("prompt.", "s3."))}
    of_prompts = {
        f"prompt.{case}.{name}"
        for case in CASES
        for name in (
            "wave16k.first4000 wave16k.last400 wave24k.first4000 wave24k.last400 s3mel.first60 "
            "s3mel.last10 fbank.first60 fbank.mean mel.first60 mel.last10 mel_fitted.last10"
        ).split()
    }
    names = ("pre_tanh", "tanh", "tokens", "tokens_onnx_rule", "full_mel", "hidden.first8")
    of_tokens = {f"s3.{case}.{name}" for case in CASES for name in names}
    single = {"s3.long_33s.tokens"} | {
        f"s3.fsq.{name}" for name in ("pre_tanh", "tokens", "tokens_onnx_rule")
    }  # of which the first is an input
    assert of_prompts <= keys
    assert keys <= of_prompts | of_tokens | single
