"""How the towers' attention is loaded: three projections of the checkpoint as one product."""

import pytest
import torch

from agent.duplex.audio_encoder import AudioEncoder
from agent.duplex.vision import VisionTower
from agent.torch_parts.checkpoint import stored_shapes
from tests.rig import tiny_model as tiny


def stored(key: str) -> torch.Tensor:
    return tiny.recipe().tensor(key, tiny.parameters()[key], tiny.seed())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("prefix", "path"), [("apm.", "layers"), ("vpm.", "encoder.layers")])
def test_query_key_and_value_are_one_product_in_this_order(prefix: str, path: str) -> None:
    part = tiny.tiny_ears().encoder if prefix == "apm." else tiny.tiny_eyes().tower
    name = f"{path}.1.self_attn"
    merged = part.get_submodule(f"{name}.merged")
    weights = [stored(f"{prefix}{name}.{one}_proj.weight") for one in "qkv"]
    assert torch.equal(merged.weight, torch.cat(weights))
    zero = torch.zeros(len(weights[0]))
    biased = "qv" if prefix == "apm." else "qkv"  # Whisper's keys have none
    biases = [stored(f"{prefix}{name}.{one}_proj.bias") if one in biased else zero for one in "qkv"]
    assert torch.equal(merged.bias, torch.cat(biases))


def test_a_checkpoint_holds_them_apart() -> None:
    config = tiny.tiny_config()
    parts = {"apm.": AudioEncoder(config.audio), "vpm.": VisionTower(config.vision)}
    keys = {key for key in tiny.parameters() if key.startswith(tuple(parts))}
    assert set(stored_shapes(parts)) == keys
    assert not any("merged" in key for key in keys)
