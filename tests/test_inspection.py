"""A checkpoint is told from its files: what it is, whether it is whole, what it will take."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.duplex import inspection
from agent.duplex.config import parse_config
from agent.duplex.inspection import FULL_SIZE, identify
from agent.duplex.quant_sizes import projection_bytes
from agent.duplex.slots import TURN_TOKENS
from agent.errors import CheckpointError
from bench.random_model import FULL_SIZE as FULL_CONFIG
from tests.rig import tiny_model as tiny
from tests.rig.tiny_checkpoint import (
    INDEX,
    changed_json,
    copy_tokenizer,
    write_checkpoint,
    write_holes,
    write_shard,
)
from tests.rig.tiny_mind import tokenizer_folder

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint less its tokenizer."""
    write_checkpoint(tmp_path, weights="holes", tokenizer="none")
    return tmp_path


def refusal(look: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        look()
    return str(caught.value)


def weights_refusal(folder: Path, extra: Path | None = None) -> str:
    return refusal(lambda: inspection.inspect_weights(identify(folder), extra))


# ---- at no cost ---------------------------------------------------------------------------------


def test_a_whole_folder_is_identified(folder: Path) -> None:
    identity = identify(folder)
    assert identity.config == tiny.tiny_config()
    assert [file.name for file in identity.weight_files] == [SHARD.replace("2-", "1-", 1), SHARD]
    assert identity.size.weights == sum(file.stat().st_size for file in identity.weight_files)


def test_to_identify_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.duplex.inspection import identify\n"
        f"identify(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_slot_takes_is_what_the_caches_take(folder: Path) -> None:
    import torch

    from agent.duplex.slots import Slots, SlotSizes
    from agent.torch_parts.checkpoint import Target

    size = identify(folder).size
    target = Target(torch.device("meta"), torch.bfloat16)
    slots = Slots(tiny.tiny_config(), SlotSizes(3, 2000), target)
    llm, speech = slots.llm.tensor.nbytes, slots.speech.tensor.nbytes
    assert 3 * 2000 * size.context_token == llm
    audio = 2 * 2 * 1500 * 128 * 2  # layers, keys and values, positions, width, bytes
    assert 3 * size.slot == speech + 3 * audio
    assert inspection._TURN_TOKENS == TURN_TOKENS


def test_full_size_takes_what_was_measured() -> None:
    assert 21.8e9 < FULL_SIZE.memory_bytes(1, 8192) < 22.0e9
    assert FULL_SIZE.slots_in(FULL_SIZE.memory_bytes(3, 8192), 8192) == 3
    assert FULL_SIZE.slots_in(FULL_SIZE.memory_bytes(3, 8192) - 1, 8192) == 2
    assert FULL_SIZE.slots_in(12_000_000_000, 8192) < 1


def test_weights_of_fewer_bits_take_less(folder: Path) -> None:
    plain, small = FULL_SIZE, FULL_SIZE.quantised("int4")
    assert plain.quantised("none") == plain
    assert plain.weights - small.weights == pytest.approx(10.2e9, rel=0.01)
    assert plain.weights - plain.quantised("int8").weights == pytest.approx(6.95e9, rel=0.01)
    assert small.slots_in(12_000_000_000, 8192) == 1 > plain.slots_in(12_000_000_000, 8192)
    assert FULL_SIZE.projections == projection_bytes(parse_config(FULL_CONFIG).llm, "none")
    size = identify(folder).size
    assert size.quantised("int4").weights < size.weights
    with changed_json(folder / "config.json") as values:
        values["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    stored = identify(folder).size
    assert stored.quantised("int4") == stored


def test_a_voice_takes_its_share() -> None:
    silent, voiced = (one.memory_bytes(2, 8192) for one in (FULL_SIZE, FULL_SIZE.with_voice(4)))
    assert voiced - silent == 730_000_000 + 4 * 205_000_000 + 2 * 110_000_000


def test_with_graphs_it_takes_what_was_measured() -> None:
    """`vram_first_gb` and `loaded_gb` of `bench.engine`, of which those with 96 calls were taken
    while the table of words, 1.24 GB, was on the GPU."""
    size = FULL_SIZE.with_graphs().with_voice(1)
    assert size.memory_bytes(1, 8192) == pytest.approx(21.85e9, rel=0.02)
    assert size.quantised("int8").memory_bytes(1, 8192) == pytest.approx(15.45e9, rel=0.01)
    assert size.memory_bytes(48, 2048) == pytest.approx(54.64e9, rel=0.02)
    assert size.memory_bytes(96, 2048) == pytest.approx(87.1e9 - 1.24e9, rel=0.02)
    wide = FULL_SIZE.in_float32()
    assert wide.weights - wide.with_graphs().weights == 2 * FULL_SIZE.table - 600_000_000


# ---- something else -----------------------------------------------------------------------------


def test_a_llama_is_named(folder: Path) -> None:
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096}
    (folder / "config.json").write_text(json.dumps(llama))
    message = refusal(lambda: identify(folder))
    assert "a model of the type 'llama' (LlamaForCausalLM)" in message
    assert "expected a folder with the bfloat16 weights of MiniCPM-o 4.5" in message


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version": "2.6"}, "holds MiniCPM-o 2.6"),
        ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "quantised by awq to 3 bits"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by fp8;"),
        ({"hidden_size": None}, "config.json: hidden_size is None"),
    ],
)
def test_another_version_or_form_is_named(
    folder: Path, change: dict[str, object], found: str
) -> None:
    with changed_json(folder / "config.json") as values:
        values.update(change)
    assert found in refusal(lambda: identify(folder))


@pytest.mark.parametrize(
    ("name", "found"),
    [("model-Q4_K_M.gguf", "GGUF files, for llama.cpp"), ("pytorch_model.bin", "pickled weights")],
)
def test_weights_in_another_form_are_named(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    assert found in refusal(lambda: identify(tmp_path))


def test_a_file_an_empty_folder_and_none_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert "is GGUF, for llama.cpp" in refusal(lambda: identify(file))
    (tmp_path / "empty").mkdir()
    assert "config.json: cannot be read" in refusal(lambda: identify(tmp_path / "empty"))
    assert "no such folder" in refusal(lambda: identify(tmp_path / "none"))
    (tmp_path / "empty" / "snapshots").mkdir()
    assert "one of the folders in its `snapshots`" in refusal(lambda: identify(tmp_path / "empty"))


# ---- not whole ----------------------------------------------------------------------------------


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert f"1 of 2 shards are missing, {SHARD}" in refusal(lambda: identify(folder))
    (folder / INDEX).unlink()
    assert "finish the download" in refusal(lambda: identify(folder))


def test_a_truncated_shard_and_a_git_lfs_pointer_are_named(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate((folder / SHARD).stat().st_size - 1)
    assert f"{SHARD}: is truncated" in weights_refusal(folder)
    (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    assert "git lfs pull" in weights_refusal(folder)


def test_keys_that_differ_are_named(folder: Path) -> None:
    shapes = dict(tiny.parameters())
    del shapes["vpm.post_layernorm.bias"]
    shapes["llm.model.norm.weight"] = (255,)
    shapes["llm.model.sorm.weight"] = (256,)
    write_holes(folder, tiny.official_config(), shapes)
    message = weights_refusal(folder)
    assert "missing" in message and "vpm.post_layernorm.bias" in message
    assert "unexpected" in message and "llm.model.sorm.weight" in message
    assert "llm.model.norm.weight [255] instead of [256]" in message


def test_quantised_keys_are_named_even_where_the_config_hides_them(folder: Path) -> None:
    shapes = dict(tiny.parameters()) | {"llm.model.layers.0.mlp.up_proj.weight_packed": (8, 8)}
    write_holes(folder, tiny.official_config(), shapes)
    assert "quantised weights such as llm.model.layers.0" in weights_refusal(folder)


# ---- whole --------------------------------------------------------------------------------------


def test_a_whole_checkpoint_is_counted(folder: Path) -> None:
    weights = inspection.inspect_weights(identify(folder))
    assert weights.tensors == len(tiny.parameters())
    assert weights.parameters == sum(map(math.prod, tiny.parameters().values()))
    assert weights.dtypes == {"BF16": weights.tensors}


def test_extra_weights_are_looked_at_too(folder: Path) -> None:
    extra = folder / "extra.safetensors"
    write_shard(extra, {"llm.model.norm.weight": (256,)}, "F32")
    assert inspection.inspect_weights(identify(folder), extra).dtypes["F32"] == 1
    write_shard(extra, {"llm.nonsense": (256,)})
    assert "llm.nonsense" in weights_refusal(folder, extra)


def test_the_tokenizer_is_looked_at(folder: Path) -> None:
    assert "tokenizer_config.json is missing" in refusal(
        lambda: inspection.inspect_tokenizer(folder)
    )
    copy_tokenizer(folder, tokenizer_folder())
    inspection.inspect_tokenizer(folder)
    with changed_json(folder / "tokenizer_config.json") as values:
        values["added_tokens_decoder"]["151705"]["content"] = "<|hear|>"
    assert "token 151705 is '<|hear|>', expected '<|listen|>'" in refusal(
        lambda: inspection.inspect_tokenizer(folder)
    )
    (folder / "vocab.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal(lambda: inspection.inspect_tokenizer(folder))


def test_files_of_the_voice_are_missed(folder: Path) -> None:
    voice = folder / "assets" / "token2wav"
    one_tokenizer = inspection.TOKENIZER_MODELS[0]
    assert inspection.missing_vocoder_files(voice) == (*inspection.VOCODER_FILES, one_tokenizer)
    voice.mkdir(parents=True)
    for name in (*inspection.VOCODER_FILES, inspection.TOKENIZER_MODELS[1]):
        (voice / name).write_bytes(b"PK")
    (voice / "flow.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert inspection.missing_vocoder_files(voice) == ("flow.pt",)
