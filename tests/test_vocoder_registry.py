"""Vocoders by name: whole folders loaded and spoken with, and voices kept prepared."""

import gc
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.errors import CheckpointError, ConfigError, RequestError
from agent.interfaces import Vocoder, VoiceKey
from agent.torch_parts.checkpoint import Target
from agent.vocoder.cosyvoice2 import ChunkSettings, Cosyvoice2, Cosyvoice2Voice
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.loading import Token2wavSettings
from agent.vocoder.registry import VocoderSettings, VoicedVocoder, load_vocoder, names
from agent.vocoder.token2wav import Lead, StreamSettings
from agent.vocoder.voice import SpeakerPrompt
from tests.rig.tiny_cosyvoice2 import CPU, Ears, flow_recipe, golden_prompt, tiny_flow
from tests.rig.tiny_hift import HiftRecipe, classic_recipe
from tests.rig.tiny_model import FLOAT32
from tests.rig.tiny_vocoder import write_token2wav

TOKENS = [(37 * index) % 6561 for index in range(60)]
YAML = """
# The settings file that upstream ships, of this size.
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.manual_seed [1986]
sample_rate: 24000
spk_embed_dim: 192
token_mel_ratio: 2
chunk_size: 25
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
    input_size: 64
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim> * 1
    output_type: 'mel'
    vocab_size: 6561
    only_mask_loss: True
    pre_lookahead_len: 3
    token_mel_ratio: !ref <token_mel_ratio>
    encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
        output_size: 64
        attention_heads: 4
        linear_units: 128
        num_blocks: 2
        dropout_rate: 0.1
        static_chunk_size: !ref <chunk_size>
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: 240
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                t_scheduler: 'cosine'
                inference_cfg_rate: 0.7
        estimator: !new:cosyvoice.flow.decoder.CausalConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: [32]
            dropout: 0.0
            attention_head_dim: 24
            n_blocks: 1
            num_mid_blocks: 2
            num_heads: 2
            act_fn: 'gelu'
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    upsample_rates: [8, 5, 3]
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
data_pipeline: [
    !ref <parquet_opener>,
    !ref <padding>,
]
"""


def _save(recipe: HiftRecipe, path: Path, prefix: str = "") -> None:
    torch.save({f"{prefix}{key}": one for key, one in recipe.read(recipe.shapes, CPU)}, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CosyVoice2 as it is published."""
    made = tmp_path_factory.mktemp("cosyvoice2")
    _save(flow_recipe(), made / "flow.pt")
    _save(classic_recipe(), made / "hift.pt", "generator.")
    (made / "cosyvoice2.yaml").write_text(YAML, encoding="utf-8")
    return made


PROMPTS = {"anna": golden_prompt(44), "bert": golden_prompt(50), "carl": golden_prompt(30)}


def _find(name: str) -> SpeakerPrompt:
    if name not in PROMPTS:
        raise RequestError(f"there is no voice {name!r}", param="voice")
    return PROMPTS[name]


SETTINGS = VocoderSettings(cosyvoice2=Cosyvoice2Settings(steps=2))


def test_a_folder_speaks_by_the_name_of_its_vocoder(folder: Path) -> None:
    vocoder: Vocoder = load_vocoder("cosyvoice2", folder, SETTINGS, FLOAT32, _find)
    stream = vocoder.open("anna")
    sound = np.concatenate([stream.push(TOKENS[:40]), stream.push(TOKENS[40:]), stream.finish()])
    assert len(sound) == 960 * len(TOKENS)
    assert 0.001 < float(np.abs(sound).max()) <= np.float32(0.99)
    assert vocoder.lag_ms == 0
    assert names() == ("token2wav", "cosyvoice2")


@pytest.mark.parametrize(("lead", "lag_ms"), [("dropped", 0), ("heard", 120), ("none", 0)])
def test_token2wav_s_lag_is_the_silence_that_it_starts_with(
    tmp_path: Path, lead: Lead, lag_ms: int
) -> None:
    chosen = Token2wavSettings(steps=1, stream=StreamSettings(lead=lead))
    folder, settings = write_token2wav(tmp_path), VocoderSettings(token2wav=chosen)
    vocoder: Vocoder = load_vocoder("token2wav", folder, settings, FLOAT32, _find)
    assert vocoder.lag_ms == lag_ms
    stream = vocoder.open("bert")
    samples = len(stream.push(TOKENS[:30])) + len(stream.finish())
    assert samples == 960 * 30 + 24 * lag_ms


def test_what_the_settings_say_reaches_the_vocoder(folder: Path) -> None:
    chosen = Cosyvoice2Settings(steps=2, seed=5, stream=ChunkSettings(first_hop_tokens=10))
    vocoder = load_cosyvoice2(folder, chosen, FLOAT32)
    usual = load_cosyvoice2(folder, Cosyvoice2Settings(steps=2), FLOAT32)
    prompt = golden_prompt(50)
    stream = vocoder.open(vocoder.voice(prompt, "anna"))
    assert len(stream.push(TOKENS[:13])) > 0
    assert vocoder.flow.config.unet.heads == 2
    one = vocoder.whole(vocoder.voice(prompt, "anna"), TOKENS)
    other = usual.whole(usual.voice(prompt, "anna"), TOKENS)
    assert not np.allclose(one, other, atol=1e-3)


def test_half_precision_is_taken_from_the_target(folder: Path) -> None:
    target = Target(CPU, torch.bfloat16)
    vocoder = load_cosyvoice2(folder, Cosyvoice2Settings(steps=2), target)
    assert vocoder.flow.dtype == torch.bfloat16
    voice = vocoder.voice(golden_prompt(50), "anna")
    assert np.isfinite(vocoder.open(voice).push(TOKENS)).all()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("num_heads: 2", "num_heads: 4", "num_heads"),
        ("attention_head_dim: 24", "attention_head_dim: 25", "heads of 25"),
        ("attention_head_dim: 24", "attention_head_dim: wide", "attention_head_dim"),
        ("inference_cfg_rate: 0.7", "inference_cfg_rate: 70", "inference_cfg_rate"),
        ("vocab_size: 6561", "vocab_size: 4096", "vocab_size"),
        ("decoder: !new", "decoding: !new", "flow.decoder"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_named(
    folder: Path, tmp_path: Path, old: str, new: str, fault: str
) -> None:
    for name in ("flow.pt", "hift.pt"):
        (tmp_path / name).symlink_to(folder / name)
    assert old in YAML
    (tmp_path / "cosyvoice2.yaml").write_text(YAML.replace(old, new), encoding="utf-8")
    with pytest.raises(CheckpointError, match=fault):
        load_cosyvoice2(tmp_path, Cosyvoice2Settings(), FLOAT32)


def test_the_guidance_comes_from_the_settings_file(folder: Path, tmp_path: Path) -> None:
    for name in ("flow.pt", "hift.pt"):
        (tmp_path / name).symlink_to(folder / name)
    changed = YAML.replace("inference_cfg_rate: 0.7", "inference_cfg_rate: 1.5")
    (tmp_path / "cosyvoice2.yaml").write_text(changed, encoding="utf-8")
    vocoder = load_cosyvoice2(tmp_path, Cosyvoice2Settings(), FLOAT32)
    assert vocoder.flow.config.guidance == 1.5


def test_a_wrong_name_or_folder_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token2wav, cosyvoice2"):
        load_vocoder("cosyvoice", folder, SETTINGS, FLOAT32, _find)
    with pytest.raises(CheckpointError, match=r"flow\.pt, hift\.pt"):
        load_vocoder("cosyvoice2", tmp_path, SETTINGS, FLOAT32, _find)
    with pytest.raises(CheckpointError, match=r"flow\.yaml"):
        load_vocoder("token2wav", folder, SETTINGS, FLOAT32, _find)


# ---- voices by name -----------------------------------------------------------------------------


class _Counting(Cosyvoice2):
    """Counts which voices it prepared."""

    def __init__(self) -> None:
        flow = tiny_flow(1)
        super().__init__(flow, Ears(), ChunkSettings(), lambda: flow)
        self.made: list[str] = []
        self.alive: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def voice(self, prompt: SpeakerPrompt, name: str) -> Cosyvoice2Voice:
        self.made.append(name)
        voice = super().voice(prompt, name)
        self.alive[name] = voice.mel
        return voice


def _voiced(find: Callable[[str], SpeakerPrompt] = _find) -> tuple[_Counting, Vocoder]:
    counting = _Counting()
    return counting, VoicedVocoder(counting, find, lag_ms=0)


class _HeldPrompt(VoiceKey):
    """A key that holds its prompt, as those of stored voices do."""

    prompt: SpeakerPrompt


def _held(name: str, tokens: int = 44) -> _HeldPrompt:
    key = _HeldPrompt(name)
    key.prompt = golden_prompt(tokens)
    return key


def test_a_voice_is_prepared_once_however_many_others_speak() -> None:
    counting, vocoder = _voiced()
    for name in ("anna", "anna", "bert", "anna", "carl", "anna", "bert"):
        vocoder.open(name)
    assert counting.made == ["anna", "bert", "carl"]


def test_five_calls_of_five_voices_prepare_each_once() -> None:
    counting, vocoder = _voiced(lambda key: key.prompt)  # type: ignore[attr-defined]
    keys = [_held(name, 30 + at) for at, name in enumerate("abcde")]
    for _ in range(3):
        for key in keys:
            vocoder.open(key)
    assert counting.made == list("abcde")


def test_a_prepared_voice_is_freed_with_its_key_but_streams_go_on() -> None:
    counting, vocoder = _voiced(lambda key: key.prompt)  # type: ignore[attr-defined]
    anna, bert = _held("anna"), _held("bert")
    vocoder.prepare(anna)
    stream = vocoder.open(bert)
    assert set(counting.alive) == {"anna", "bert"}
    del anna, bert
    gc.collect()
    assert set(counting.alive) == {"bert"}
    assert len(stream.push(TOKENS)) > 0
    del stream
    gc.collect()
    assert not counting.alive


def test_a_voice_that_changed_is_prepared_anew() -> None:
    prompts = {"anna": golden_prompt(44)}
    counting, vocoder = _voiced(prompts.__getitem__)
    before = vocoder.open("anna")
    prompts["anna"] = golden_prompt(50)
    after = vocoder.open("anna")
    assert counting.made == ["anna", "anna"]
    assert not np.array_equal(before.push(TOKENS), after.push(TOKENS))


def test_an_unknown_voice_is_told_to_who_asked() -> None:
    _, vocoder = _voiced()
    with pytest.raises(RequestError, match="dora"):
        vocoder.open("dora")
