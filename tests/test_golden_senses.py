"""Camera and microphone against the outputs of the public reference, in float32 on the CPU."""

import re

import pytest
import torch

from agent.duplex.audio_encoder import AudioCache, AudioStream, Ears
from agent.duplex.mel import StreamingMel, offline_mel
from agent.duplex.pictures import PATCH_PX, Patches, patch_picture, piece_grids
from agent.duplex.vision import Eyes
from agent.types import UNIT_SAMPLES
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
