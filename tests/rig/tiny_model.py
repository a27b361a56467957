"""The tiny model of the golden files: real architecture, real keys, weights from a recipe.

Its weights go through the same loading as a checkpoint's, so the mapping of keys is proved with
them. `VOICE_AGENT_GOLDEN` names another folder of golden files; where `VOICE_AGENT_GOLDEN_REPORT`
names a file, `compare` writes {key: error} into it, beside what other tests wrote there.
"""

import fcntl
import functools
import importlib.util
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.duplex.audio_encoder import AudioEncoder, AudioProjection, Ears
from agent.duplex.config import Attention, DuplexConfig, parse_config
from agent.duplex.resampler import Resampler
from agent.duplex.vision import Eyes, VisionTower
from agent.torch_parts.checkpoint import Target, TensorHeader, load_parts, unfilled

FLOAT32 = Target(torch.device("cpu"), torch.float32)
_REPORT = "VOICE_AGENT_GOLDEN_REPORT"


# ---- the golden files ---------------------------------------------------------------------------


def golden_folder() -> Path:
    beside = Path(__file__).resolve().parent.parent / "golden"
    return Path(os.environ.get("VOICE_AGENT_GOLDEN", beside))


@functools.cache
def golden_json(name: str) -> Any:
    return json.loads((golden_folder() / name).read_text(encoding="utf-8"))


@functools.cache
def golden_tensors(name: str = "minicpm_o_45_tiny.safetensors") -> dict[str, Tensor]:
    return load_file(golden_folder() / name)


@functools.cache
def recipe() -> ModuleType:
    """The recipe beside the golden files in use: `tensor`, `audio`, `picture`, `logits`, …"""
    path = golden_folder() / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seed() -> int:
    return int(golden_json("tiny_config.json")["seed"])


def compare(key: str, ours: Tensor, golden: Tensor) -> float:
    """The error of one golden tensor: the largest difference over the largest golden value.

    Of integers, the share of golden ids that ours has not, both taken as sets. Reported.
    """
    assert ours.shape == golden.shape, f"{key}: {list(ours.shape)}, golden {list(golden.shape)}"
    if not golden.is_floating_point():
        theirs = set(golden.flatten().tolist())
        error = len(theirs - set(ours.flatten().tolist())) / len(theirs)
    else:
        difference = (ours.double() - golden.double()).abs().max()
        error = float(difference / golden.double().abs().max())
    report({key: error})
    return error


def report(errors: Mapping[str, float]) -> None:
    """Merge these errors into the report file, if one is wanted; safe among processes."""
    name = os.environ.get(_REPORT)
    if not name:
        return
    path = Path(name)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        merged = json.loads(path.read_text()) if path.is_file() else {}
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(json.dumps({**merged, **errors}, indent=1, sort_keys=True))
        fresh.replace(path)


# ---- the model ----------------------------------------------------------------------------------


def official_config() -> dict[str, Any]:
    """The tiny model's config.json in the layout of the official checkpoint."""
    tiny = golden_json("tiny_config.json")
    dims, speech = tiny["dims"], dict(tiny["tts"])
    vision, audio = dims["vision"], dims["audio"]
    root = {
        "model_type": "minicpmo",
        "architectures": ["MiniCPMO"],
        "version": "4.5",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "rope_scaling": None,
        "rope_theta": tiny["rope_theta"],
        "rms_norm_eps": tiny["rms_norm_eps"],
        "vocab_size": tiny["vocab_size"],
        "max_position_embeddings": 40960,
        "query_num": 64,
        "image_size": 448,
        "vision_batch_size": 16,
        "drop_vision_last_layer": False,
        "slice_config": {"max_slice_nums": 1, "model_type": "minicpmv", "patch_size": 14},
        "audio_pool_step": 5,
        "audio_chunk_length": 1.0,
        "stream_input": True,
    }
    complete: dict[str, Any] = (
        root
        | dims["llm"]
        | {
            "vision_config": vision
            | {"image_size": 980, "patch_size": 14, "model_type": "siglip_vision_model"},
            "audio_config": audio | {"model_type": "whisper", "activation_function": "gelu"},
            "tts_config": speech | dims["tts"] | {"model_type": "minicpmtts"},
        }
    )
    return complete


def tiny_config() -> DuplexConfig:
    return parse_config(official_config())


def parameters() -> dict[str, tuple[int, ...]]:
    """Every key of the tiny checkpoint with its shape."""
    listed = golden_json("tiny_config.json")["parameters"]
    return {key: tuple(shape) for key, shape in listed.items()}


class RecipeSource:
    """The recipe's weights, offered as a checkpoint's would be."""

    def __init__(self) -> None:
        self.headers = {
            key: TensorHeader(shape, "F32", Path("recipe")) for key, shape in parameters().items()
        }

    def read(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for key in keys:
            yield key, recipe().tensor(key, self.headers[key].shape, seed()).to(device)


def write_checkpoint(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 2,
    wanted: Callable[[str], bool] = lambda key: True,
) -> None:
    """The tiny model as an official checkpoint: config.json, safetensors shards and their index.

    `wanted` picks keys, since the tables of the vocabulary alone weigh hundreds of megabytes. The
    tokenizer's files are not made here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(official_config(), indent=1))
    keys = [key for key in parameters() if wanted(key)]
    places: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = keys[number * len(keys) // shards : (number + 1) * len(keys) // shards]
        tensors = {key: recipe().tensor(key, parameters()[key], seed()).to(dtype) for key in mine}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(mine, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tiny_eyes(attention: Attention = "sdpa", target: Target = FLOAT32) -> Eyes:
    config = tiny_config()
    with unfilled():
        tower = VisionTower(config.vision, attention)
        resampler = Resampler(config.resampler, attention)
    parts = {VisionTower.PREFIX: tower, Resampler.PREFIX: resampler}
    load_parts(RecipeSource(), parts, unused=_others("vpm.", "resampler."), target=target)
    return Eyes(tower, resampler)


def tiny_ears(attention: Attention = "sdpa", target: Target = FLOAT32) -> Ears:
    config = tiny_config()
    with unfilled():
        encoder = AudioEncoder(config.audio, attention)
        projection = AudioProjection(config.audio)
    parts = {AudioEncoder.PREFIX: encoder, AudioProjection.PREFIX: projection}
    load_parts(
        RecipeSource(), parts, unused=_others("apm.", "audio_projection_layer."), target=target
    )
    return Ears(encoder, projection)


def _others(*used: str) -> dict[str, str]:
    """All prefixes but these, as what a test of a part does not need."""
    prefixes = {f"{key.split('.')[0]}." for key in parameters()}
    return dict.fromkeys(prefixes - set(used), "another part's")
