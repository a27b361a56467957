"""A vocoder's folder: weights in every form they come in, settings as data, faults by name."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.errors import CheckpointError
from agent.vocoder.config import check_flow_yaml, flow_config
from agent.vocoder.files import find_token2wav, open_pt, plain_key, read_flow_config
from agent.vocoder.plain_yaml import Reference, parse_plain_yaml
from tests.rig.tiny_flow import RecipeFlow, facts, flow_yaml

# ---- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        ("generator.conv_pre.weight_g", "conv_pre.parametrizations.weight.original0"),
        ("ups.0.weight_v", "ups.0.parametrizations.weight.original1"),
        ("generator.source_downs.1.weight", "source_downs.1.weight"),
        (
            "conv_post.parametrizations.weight.original1",
            "conv_post.parametrizations.weight.original1",
        ),
    ],
)
def test_keys_are_brought_into_one_form(stored: str, plain: str) -> None:
    assert plain_key(stored) == plain


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_in_both_forms_of_the_file(tmp_path: Path, zipped: bool) -> None:
    stored = {"generator.a.weight_g": torch.ones(2, 1), "b": torch.zeros(3).half(), "epoch": 4}
    torch.save(stored, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    source = open_pt(tmp_path / "x.pt")
    assert source.shapes == {"a.parametrizations.weight.original0": (2, 1), "b": (3,)}
    assert source.headers["b"].dtype == "F16"
    read = dict(source.read(["b"], torch.device("cpu")))
    assert torch.equal(read["b"], torch.zeros(3).half())


class _Planted:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch planted",)


def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": _Planted()}, protocol=2))
    torch.save({"a": _Planted()}, tmp_path / "y.pt")
    for name in ("x.pt", "y.pt"):
        with pytest.raises(CheckpointError, match="holds no weights"):
            open_pt(tmp_path / name)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04 and then nothing", "holds no weights"),
        (b"no weights at all", "holds no weights"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_pt(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([torch.ones(1)], "no mapping"),
        ({"a": "text"}, "no tensor"),
        ({"a.weight_g": torch.ones(1), "generator.a.weight_g": torch.ones(1)}, "twice"),
    ],
)
def test_weights_in_another_shape_are_refused(tmp_path: Path, stored: Any, message: str) -> None:
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        open_pt(tmp_path / "x.pt")


def test_a_folder_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("")
    with pytest.raises(CheckpointError, match=r"lacks flow\.pt, hift\.pt"):
        find_token2wav(tmp_path)


def test_a_second_hift_is_for_whole_utterances(tmp_path: Path) -> None:
    for name in ("flow.yaml", "flow.pt", "hift.pt", "speech_tokenizer_v2.onnx"):
        (tmp_path / name).touch()
    files = find_token2wav(tmp_path)
    assert files.hift_whole == files.hift
    assert files.tokenizer.name == "speech_tokenizer_v2.onnx"
    (tmp_path / "hift_original.pt").touch()
    assert find_token2wav(tmp_path).hift_whole == tmp_path / "hift_original.pt"


# ---- flow.yaml ----------------------------------------------------------------------------------


def test_the_official_way_of_writing_is_read_as_data() -> None:
    document = parse_plain_yaml(flow_yaml())
    assert document["__set_seed"] == []
    flow = document["flow"]
    assert flow["vocab_size"] == facts()["dims"]["vocab"]
    assert flow["output_type"] == "mel"
    assert flow["encoder"]["dropout_rate"] == 0.1
    assert flow["encoder"]["input_layer"] == "linear"
    assert flow["encoder"]["normalize_before"] is True
    assert flow["encoder"]["up_scale_factors"] == [2]
    assert flow["decoder"]["estimator"]["hidden_size"] == facts()["dims"]["dit_hidden"]


def test_lists_comments_quotes_and_references() -> None:
    text = (
        "a: 'x # y'   # after\nb: [1,\n  2.5, null]\nc:\n  - !new:thing\n  - on#e\n"
        "d: !ref <a>\ne: !ref <b> * 2\nf:\n\ng: ~\nh:\n    i: .5\n    j: -3\n"
    )
    document = parse_plain_yaml(text)
    assert document == {
        "a": "x # y",
        "b": [1, 2.5, None],
        "c": [None, "on#e"],
        "d": "x # y",
        "e": "!ref <b> * 2",
        "f": None,
        "g": None,
        "h": {"i": 0.5, "j": -3},
    }
    assert isinstance(document["e"], Reference)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n  b: 2\n",
        "a: 1\na: 2\n",
        "just words\n",
        "a: &x 1\n",
        "a: |\n  text\n",
        "a: " + "x" * 3000,
        "".join(f"{' ' * depth}a:\n" for depth in range(60)),
        " " * 10 + "a: 1\nb: 2\n",
    ],
)
def test_what_is_not_that_part_of_yaml_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        parse_plain_yaml(text)


def test_a_size_that_contradicts_the_weights_is_named() -> None:
    config = flow_config(RecipeFlow().headers)
    with pytest.raises(CheckpointError, match=r"estimator\.num_heads is 3"):
        check_flow_yaml(config, parse_plain_yaml(flow_yaml(num_heads=3)))


def test_a_size_that_is_computed_from_others_is_left_to_the_weights() -> None:
    config = flow_config(RecipeFlow().headers)
    text = flow_yaml(depth="!ref <vocab> * 2")
    assert check_flow_yaml(config, parse_plain_yaml(text)) == config


def test_the_strength_of_the_guidance_is_read() -> None:
    config = flow_config(RecipeFlow().headers)
    text = flow_yaml().replace("cfg_rate: 0.7", "cfg_rate: 0.5")
    assert check_flow_yaml(config, parse_plain_yaml(text)).guidance == 0.5
    nested = "cfm_params: !new:omegaconf.DictConfig\n            content:\n                "
    text = flow_yaml().replace("inference_cfg_rate: 0.7", f"{nested}inference_cfg_rate: 0.4")
    assert check_flow_yaml(config, parse_plain_yaml(text)).guidance == 0.4
    for wrong in ("-1", "strong", ".inf", "true"):
        text = flow_yaml().replace("cfg_rate: 0.7", f"cfg_rate: {wrong}")
        with pytest.raises(CheckpointError, match="inference_cfg_rate"):
            check_flow_yaml(config, parse_plain_yaml(text))


def test_sizes_are_told_by_shapes(tmp_path: Path) -> None:
    recipe = RecipeFlow()
    torch.save(dict(recipe.read(recipe.headers, torch.device("cpu"))), tmp_path / "flow.pt")
    (tmp_path / "flow.yaml").write_text(flow_yaml())
    config = read_flow_config(open_pt(tmp_path / "flow.pt"), tmp_path / "flow.yaml")
    assert (config.encoder.token_layers, config.encoder.mel_layers) == (2, 1)
    assert (config.dit.layers, config.dit.heads, config.dit.head_width) == (2, 2, 16)
    assert (config.vocabulary, config.speaker_width, config.mel_bins) == (6561, 192, 80)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_flow_config(open_pt(tmp_path / "flow.pt"), tmp_path / "none.yaml")


def test_a_file_of_something_else_is_no_flow() -> None:
    with pytest.raises(CheckpointError, match="lacks"):
        flow_config({})
