"""What the engine is built from, as the configuration says it."""

import json
from pathlib import Path

import pytest

from agent.config import load_config
from agent.duplex import inspection
from agent.engines import ModelSettings, VoiceSettings
from agent.errors import CheckpointError, ConfigError
from agent.model_hub import choose, engine_settings
from tests.rig.hub_server import COMMIT, hub_server
from tests.rig.made_tokenizer import made_tokenizer
from tests.rig.model_folders import H200, config_of, empty_caches, write_whole
from tests.rig.tiny_checkpoint import write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whole(tmp_path / "model")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_caches(tmp_path, monkeypatch)


def test_every_setting_reaches_the_engine(folder: Path) -> None:
    extra = folder / "extra.safetensors"
    write_shard(extra, {})
    given = {
        "device": "cuda:1",
        "dtype": "float32",
        "context_tokens": "2048",
        "attention": "eager",
        "rope_precision": "bfloat16",
        "window": "context",
        "parity": "true",
        "graphs": "false",
        "quantisation": "int4",
        "vision": "false",
        "slots": "3",
        "source": str(folder),
        "extra_weights": str(extra),
    }
    config = config_of(*(f"model.{key}={value}" for key, value in given.items()))
    settings = engine_settings(config, choose(config, lambda _: H200))
    assert settings.slots == 3
    assert settings.model == ModelSettings(
        folder,
        extra,
        "cuda:1",
        "float32",
        2048,
        "eager",
        "bfloat16",
        "context",
        True,
        False,
        "int4",
        False,
    )


def test_defaults_are_those_of_the_engine(folder: Path) -> None:
    config = config_of(f"model.source={folder}")
    assert engine_settings(config, choose(config, lambda _: H200)).model == ModelSettings(folder)


def put_vocoder(folder: Path, *, yaml: str = "flow.yaml") -> Path:
    """Files of the right names."""
    folder.mkdir(parents=True)
    for name in (*inspection.VOCODER_FILES, inspection.TOKENIZER_MODELS[0], yaml):
        (folder / name).write_bytes(b"PK")
    return folder


def test_a_model_without_a_vocoder_has_no_voice(folder: Path) -> None:
    config = config_of(f"model.source={folder}")
    assert engine_settings(config, choose(config, lambda _: H200)).voice is None
    put_vocoder(folder / "assets" / "token2wav")
    config = config_of(f"model.source={folder}", "vocoder.name=off")
    assert engine_settings(config, choose(config, lambda _: H200)).voice is None


def test_the_vocoder_beside_the_model_is_taken_and_gets_every_setting(folder: Path) -> None:
    beside = put_vocoder(folder / "assets" / "token2wav")
    given = {
        "dtype": "bfloat16",
        "steps": "5",
        "memory": "reference",
        "crossfade": "reference",
        "first_hop_tokens": "15",
        "seed": "7",
        "prepared_voices": "3",
        "graphs": "false",
    }
    config = config_of(
        f"model.source={folder}",
        f"voices.folder={folder}/mine",
        *(f"vocoder.{key}={value}" for key, value in given.items()),
    )
    settings = engine_settings(config, choose(config, lambda _: H200))
    assert settings.voice == VoiceSettings(
        "token2wav",
        beside,
        folder / "mine",
        "bfloat16",
        5,
        "reference",
        "reference",
        15,
        7,
        3,
        False,
    )


def test_vocoder_defaults_are_those_of_the_engine_and_voices_are_among_the_data(
    folder: Path,
) -> None:
    beside = put_vocoder(folder / "assets" / "token2wav")
    config = config_of(f"model.source={folder}", f"server.data_folder={folder}/data")
    settings = engine_settings(config, choose(config, lambda _: H200))
    assert settings.voice == VoiceSettings("token2wav", beside, folder / "data" / "voices")


def test_a_vocoder_elsewhere_is_known_by_its_files(folder: Path, tmp_path: Path) -> None:
    elsewhere = put_vocoder(tmp_path / "cosy", yaml="cosyvoice2.yaml")
    config = config_of(f"model.source={folder}", f"vocoder.folder={elsewhere}")
    voice = engine_settings(config, choose(config, lambda _: H200)).voice
    assert voice is not None
    assert (voice.name, voice.folder) == ("cosyvoice2", elsewhere)


@pytest.mark.parametrize("setting", ["vocoder.name=cosyvoice2", "vocoder.folder=/nowhere"])
def test_a_vocoder_that_was_asked_for_must_be_there(folder: Path, setting: str) -> None:
    config = config_of(f"model.source={folder}", setting)
    with pytest.raises(CheckpointError, match=r"lacks flow\.pt, hift\.pt, campplus\.onnx"):
        engine_settings(config, choose(config, lambda _: H200))


def test_the_echo_engine_gets_a_slot_for_each_call() -> None:
    settings = engine_settings(config_of("calls.max_calls=5"), choose(config_of()))
    assert (settings.slots, settings.model) == (5, None)


def test_missing_extra_weights_are_named(folder: Path) -> None:
    config = config_of(f"model.source={folder}", "model.extra_weights=/none.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.extra_weights: there is no file /none"):
        engine_settings(config, choose(config, lambda _: H200))


def test_an_id_is_downloaded_once(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = folder / "model.safetensors"
    header = b"{}"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    files = {name: (folder / name).read_bytes() for name in ("config.json", weights.name)}
    files |= made_tokenizer()
    config = config_of("model.source=me/tiny", f"model.folder={tmp_path / 'kept'}")
    with hub_server() as server:
        server.models["me/tiny"] = files
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        settings = engine_settings(config, choose(config, lambda _: H200))
    assert settings.model is not None and settings.model.folder.name == COMMIT
    assert "me/tiny: 0.00 of 0.00 GB" in capsys.readouterr().err
    # The hub is gone: what is here is enough.
    assert engine_settings(config, choose(config, lambda _: H200)) == settings


def test_a_config_of_a_model_is_printed_and_read_again(tmp_path: Path) -> None:
    from agent.config import effective_toml

    config = config_of("model.source=a/b", "model.device=cuda:1")
    file = tmp_path / "agent.toml"
    file.write_text(effective_toml(config))
    assert load_config(file, {}) == config
    with pytest.raises(ConfigError, match=json.dumps("gpu")):
        config_of("model.device=gpu")
