"""Camera and microphone against the outputs of the public reference, in float32 on the CPU."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

from agent.duplex.audio_encoder import AudioCache, AudioStream, Ears
from agent.duplex.mel import TURN_BASED, StreamingMel, offline_mel
from agent.duplex.pictures import PATCH_PX, Patches, patch_picture, piece_grids
from agent.duplex.vision import Eyes
from agent.types import UNIT_SAMPLES, FloatArray
from tests.rig import tiny_model as tiny

LIMIT = 1e-5
PICTURES = sorted(
    key.removesuffix(".embeddings")
    for key in tiny.golden_tensors()
    if re.fullmatch(r"image\..*\.embeddings", key)
)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def eyes(request: pytest.FixtureRequest) -> Eyes:
    return tiny.tiny_eyes(request.param)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def ears(request: pytest.FixtureRequest) -> Ears:
    return tiny.tiny_ears(request.param)


def _pieces(key: str) -> list[Patches]:
    _, size, slices = key.split(".")
    width, height = map(int, size.split("x"))
    return patch_picture(tiny.recipe().picture(width, height, tiny.seed()), int(slices))


def test_golden_image_slicing() -> None:
    for case in tiny.golden_json("image_slicing.json"):
        ours = piece_grids(case["width"], case["height"], case["max_slice_nums"])
        assert [list(grid) for grid in ours] == case["patches_rows_cols"], case


@pytest.mark.parametrize("key", PICTURES)
def test_golden_image_pixels(key: str) -> None:
    thumbnail = _pieces(key)[0]
    ours = thumbnail.pixels.view(-1, 3, PATCH_PX, PATCH_PX).permute(1, 2, 0, 3)
    ours = ours.reshape(3, PATCH_PX, -1).half()
    name = f"{key}.pixels0"
    assert tiny.compare(name, ours, tiny.golden_tensors()[name]) == 0


@pytest.mark.parametrize("key", PICTURES)
def test_golden_image_embeddings(key: str, eyes: Eyes) -> None:
    name = f"{key}.embeddings"
    assert tiny.compare(name, eyes.see(_pieces(key)), tiny.golden_tensors()[name]) < LIMIT


def test_golden_voice(ears: Ears) -> None:
    golden = tiny.golden_tensors()
    (mel,) = offline_mel(tiny.recipe().audio(3.3, tiny.seed() + 100))
    assert tiny.compare("voice.mel", mel, golden["voice.mel"]) < LIMIT
    (vectors,) = ears.hear_recordings([mel])
    assert tiny.compare("voice.embeddings", vectors, golden["voice.embeddings"]) < LIMIT


def test_golden_stream(ears: Ears) -> None:
    golden = tiny.golden_tensors()
    samples = tiny.recipe().stream_audio(tiny.seed() + 200)
    mel, stream = StreamingMel(), AudioStream(slot=0)
    cache = AudioCache(ears.encoder.config, 1, torch.device("cpu"), torch.float32)
    errors = {}
    for unit in range(len(samples) // UNIT_SAMPLES):
        (frames,) = mel.push(samples[unit * UNIT_SAMPLES : (unit + 1) * UNIT_SAMPLES])
        vectors = ears.hear([frames], [stream], cache)[0]
        for name, ours in {"mel": frames, "embeddings": vectors}.items():
            key = f"stream.{unit:02d}.{name}"
            if key in golden:
                errors[key] = tiny.compare(key, ours, golden[key])
    assert errors.keys() == {key for key in golden if key.startswith("stream.")}
    assert max(errors.values()) < LIMIT, errors


# ---- turn-based sound, with the reference's mistakes where it makes them ------------------------


def _sounds(content: list[object]) -> list[FloatArray]:
    items = [item for item in content if isinstance(item, dict) and "audio" in item]
    return [tiny.recipe().audio(*item["audio"]) for item in items]


def _waveforms(case: dict[str, Any]) -> list[FloatArray]:
    """What the reference encodes: the sounds of one message as a single one, unless told not to."""
    joined = case["options"].get("merge_audio_from_same_content", True)
    messages = [_sounds(list(message["content"])) for message in case["messages"]]
    return [
        one
        for sounds in messages
        if sounds
        for one in ([np.concatenate(sounds)] if joined else sounds)
    ]


def test_golden_chat_sound(ears: Ears) -> None:
    """With padding seen, as the reference does where recordings of a batch differ in length."""
    golden = tiny.golden_tensors("chat_tiny.safetensors")
    errors = {}
    for case in tiny.golden_json("chat_cases.json")["cases"]:
        prefix = f"{case['name']}.audio_vectors."
        if not any(key.startswith(prefix) for key in golden):
            continue
        mels = [mel for sound in _waveforms(case) for mel in offline_mel(sound)]
        for index, vectors in enumerate(ears.hear_recordings(mels, see_padding=True)):
            kept = golden[f"{prefix}{index}"]
            errors[f"{prefix}{index}"] = tiny.compare(
                f"{prefix}{index}", vectors[-len(kept) :], kept
            )
    assert errors
    assert max(errors.values()) < LIMIT, errors


class _TurnBased:
    """One half-duplex session of the golden files, as far as its sound goes."""

    def __init__(self, ears: Ears, session: dict[str, Any], *, floored: bool) -> None:
        self._ears = ears
        self._overlap = session["constants"]["CNN_REDUNDANCY_MS"] // 10
        self._floored = floored
        self._cache = AudioCache(ears.encoder.config, 1, torch.device("cpu"), torch.float32)
        self._end_turn()

    def hear(self, step: dict[str, Any]) -> torch.Tensor | None:
        """The vectors of a step's sound, if it has one that the reference can encode."""
        if step.get("role") != "user":
            self._end_turn()
        sounds = [] if "generate" in step or "error" in step else _sounds(list(step["content"]))
        if not sounds:
            return None
        is_first, self._is_first = self._is_first, step["role"] != "user"
        if step["audio_path"] == "offline":
            missing = 16_560 - len(sounds[0]) if is_first and step["role"] == "user" else 0
            sound = np.pad(sounds[0], (max(missing, 0), 0))
            mels = offline_mel(sound, floored=self._floored)
            return self._ears.hear_recordings(mels, None)[0]
        mels = self._mel.push(sounds[0])
        if step["options"].get("is_last_chunk"):
            mels += self._mel.finish()
        heard = [self._ears.hear_untrimmed(mel, self._stream, self._cache) for mel in mels]
        return torch.cat(heard)

    def _end_turn(self) -> None:
        layout = dataclasses.replace(TURN_BASED, overlap_frames=self._overlap)
        self._mel, self._stream, self._is_first = StreamingMel(layout), AudioStream(0), True


def test_golden_half_duplex_sound(ears: Ears) -> None:
    """Without a floor in all sessions but the first: the reference forgot to put it back."""
    golden = tiny.golden_tensors("chat_tiny.safetensors")
    errors = {}
    for number, session in enumerate(tiny.golden_json("chat_cases.json")["half_duplex"]):
        turn_based = _TurnBased(ears, session, floored=number == 0)
        for index, step in enumerate(session["steps"]):
            key = f"half.{session['name']}.{index}.audio_vectors.0"
            vectors = turn_based.hear(step)
            if vectors is not None:
                errors[key] = tiny.compare(key, vectors, golden[key])
    wanted = {key for key in golden if key.startswith("half.") and ".audio_vectors." in key}
    assert errors.keys() == wanted
    assert max(errors.values()) < LIMIT, errors
