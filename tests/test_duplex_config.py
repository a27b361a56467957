"""The model's config: what must be in the file, what must not, and the sizes that follow."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from agent.duplex.audio_encoder import AudioEncoder, AudioProjection
from agent.duplex.config import DuplexConfig, parse_config, read_config
from agent.duplex.resampler import Resampler
from agent.duplex.vision import VisionTower
from agent.errors import CheckpointError
from agent.torch_parts.checkpoint import unfilled
from tests.rig import tiny_model as tiny

OFFICIAL = {
    "model_type": "minicpmo",
    "version": "4.5",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 151748,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "query_num": 64,
    "image_size": 448,
    "vision_batch_size": 16,
    "drop_vision_last_layer": False,
    "audio_pool_step": 5,
    "audio_chunk_length": 1.0,
    # The nested sections as transformers writes them: without what their classes say anyway.
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "audio_config": {
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "encoder_layers": 24,
    },
    "tts_config": {"model_type": "minicpmtts", "llm_dim": 4096},
}


def _changed(field: str, value: object) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(OFFICIAL)
    *sections, last = field.split(".")
    section = changed
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return changed


def _without(field: str) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(OFFICIAL)
    *sections, last = field.split(".")
    section = changed
    for name in sections:
        section = section[name]
    del section[last]
    return changed


def test_the_sizes_of_the_official_model() -> None:
    config = parse_config(OFFICIAL)
    assert (config.llm.head_width, config.llm.rope_theta) == (128, 1e6)
    assert config.vision.table_side == 70
    assert (config.resampler.heads, config.resampler.width) == (32, 4096)
    assert (config.audio.mel_bands, config.audio.positions) == (80, 1500)
    assert (config.speech.layers, config.speech.head_width) == (20, 64)
    assert (config.speech.audio_bos, config.speech.text_eos) == (151687, 151692)
    assert config.speech.audio_eos == 6561


def test_modules_of_official_size_have_the_official_number_of_parameters() -> None:
    config = parse_config(OFFICIAL)
    with unfilled():
        parts = [
            VisionTower(config.vision),
            Resampler(config.resampler),
            AudioEncoder(config.audio),
            AudioProjection(config.audio),
        ]
    counted = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    # Keys of the audio encoder have no bias; here they have one of zeros, in one with the others'.
    counted[2] -= config.audio.layers * config.audio.width
    assert counted == [417_792_240, 88_907_776, 307_216_384, 20_979_712]


def test_the_tiny_model_differs_in_sizes_alone() -> None:
    config = tiny.tiny_config()
    assert config.llm.width == 256
    assert config.resampler.heads == 2
    assert config.speech.audio_eos == 6561


@pytest.mark.parametrize(
    "field",
    [
        *(name for name in OFFICIAL if name not in {"version", "drop_vision_last_layer"}),
        *(f"vision_config.{name}" for name in OFFICIAL["vision_config"] if name != "model_type"),
        *(f"audio_config.{name}" for name in OFFICIAL["audio_config"]),
    ],
)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} is missing"):
        parse_config(_without(field))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "qwen3"),
        ("version", "2.6"),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("tie_word_embeddings", True),
        ("attention_bias", True),
        ("rope_scaling", {"type": "yarn"}),
        ("hidden_act", "gelu"),
        ("hidden_size", 0),
        ("hidden_size", "4096"),
        ("hidden_size", 4096.0),
        ("num_hidden_layers", True),
        ("vocab_size", 10**12),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", "1e6"),
        ("image_size", 224),
        ("audio_chunk_length", 2.0),
        ("stream_input", False),
        ("drop_vision_last_layer", "no"),
        ("init_tts", False),
        ("vision_config", []),
        ("vision_config.patch_size", 16),
        ("vision_config.hidden_act", "gelu"),
        ("slice_config.scale_resolution", 336),
        ("audio_config.activation_function", "relu"),
        ("tts_config.llm_dim", 2560),
        ("tts_config.num_vq", 4),
        ("tts_config.condition_type", "text"),
        ("tts_config.normalize_projected_hidden", False),
        ("tts_config.attention_type", "sliding_window"),
        ("tts_config.projector_type", "default"),
        ("tts_config.interleaved", True),
    ],
)
def test_an_unexpected_value_is_named(field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=field.replace(".", r"\.")):
        parse_config(_changed(field, value))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_key_value_heads", 5, "32 heads are not a multiple of 5"),
        ("hidden_size", 4000, "not a multiple of 128"),
        ("vision_config.num_attention_heads", 7, "does not divide into 7 heads"),
        ("vision_config.image_size", 981, "not a multiple of 14"),
        ("audio_config.encoder_attention_heads", 3, "does not divide into 3 heads"),
        ("tts_config.num_attention_heads", 5, "does not divide into 5 heads"),
        ("tts_config.num_key_value_heads", 5, "not a multiple of 5"),
    ],
)
def test_sizes_that_do_not_go_together(field: str, value: int, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        parse_config(_changed(field, value))


def test_rope_theta_may_stand_in_a_section_of_its_own() -> None:
    moved = _without("rope_theta") | {
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}
    }
    assert parse_config(moved).llm.rope_theta == 5e5
    moved["rope_parameters"]["rope_type"] = "yarn"
    with pytest.raises(CheckpointError, match=r"rope_parameters\.rope_type"):
        parse_config(moved)


@pytest.mark.parametrize("drop", [True, False, None])
def test_the_last_vision_layer_is_kept_where_the_checkpoint_has_it(drop: bool | None) -> None:
    values = _changed("drop_vision_last_layer", drop)
    if drop is None:
        del values["drop_vision_last_layer"]
    config = parse_config(values)

    def layers(having: int) -> int:
        keys = [f"vpm.encoder.layers.{layer}.mlp.fc1.bias" for layer in range(having)]
        return config.fitted_to(keys).vision.layers

    assert layers(having=27) == 27
    # Not to be dropped: stays wanted, so that loading names its keys.
    assert layers(having=26) == (27 if drop is False else 26)


def test_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="is this the folder of the checkpoint"):
        read_config(tmp_path)
    for text in ("{", "", "\ud800", "[" * 100_000):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(CheckpointError, match="is not JSON"):
            read_config(tmp_path)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        read_config(tmp_path)
    path.write_text(json.dumps(OFFICIAL))
    assert isinstance(read_config(tmp_path), DuplexConfig)
    path.write_text(json.dumps(_without("hidden_size")))
    with pytest.raises(CheckpointError, match=str(path)):
        read_config(tmp_path)
