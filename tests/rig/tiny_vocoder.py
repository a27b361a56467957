"""Tiny vocoders as folders on the disk, laid out as the published ones.

    write_token2wav(tmp_path, "causal")  # or "classic": five files
    write_cosyvoice2(tmp_path)

Weights are the golden files' recipe, so what a folder says can be held against them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from agent.torch_parts.checkpoint import TensorSource
from tests.rig.tiny_cosyvoice2 import HEAD_WIDTH, flow_recipe
from tests.rig.tiny_cosyvoice2 import facts as cosyvoice2_facts
from tests.rig.tiny_flow import RecipeFlow
from tests.rig.tiny_flow import facts as token2wav_facts
from tests.rig.tiny_hift import causal_recipe, classic_recipe
from tests.rig.tiny_onnx import write_other_tokenizer, write_speaker, write_tokenizer

Generation = Literal["classic", "causal"]
TokenizerGraph = Literal["published", "other"]
KeyStyle = Literal["parametrizations", "weight_g"]
"""How torch names a normed weight's gain and direction: since 2.0, and before."""

_OLD_NAMES = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}
_TOKENIZERS: dict[TokenizerGraph, Callable[[Path], None]] = {
    "published": write_tokenizer,
    "other": write_other_tokenizer,
}


def write_token2wav(
    folder: Path,
    generation: Generation = "classic",
    *,
    tokenizer: TokenizerGraph = "published",
    keys: KeyStyle = "parametrizations",
) -> Path:
    """token2wav with 2+1 conformer layers and a DiT of two blocks; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flow.yaml").write_text(flow_yaml())
    torch.save(weights_of(RecipeFlow()), folder / "flow.pt")
    classic = hift_weights(classic_recipe(), keys)
    if generation == "classic":
        torch.save(classic, folder / "hift.pt")
    else:
        torch.save(hift_weights(causal_recipe(), keys), folder / "hift.pt")
        torch.save(classic, folder / "hift_original.pt")
        (folder / "config.yaml").write_text(_CAUSAL_CONFIG)
    write_speaker(folder / "campplus.onnx")
    _TOKENIZERS[tokenizer](folder / "speech_tokenizer_v2_25hz.onnx")
    return folder


def write_cosyvoice2(folder: Path, *, tokenizer: TokenizerGraph = "published") -> Path:
    """CosyVoice2 with a UNet of one level; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cosyvoice2.yaml").write_text(cosyvoice2_yaml())
    torch.save(weights_of(flow_recipe()), folder / "flow.pt")
    torch.save(hift_weights(classic_recipe(), "weight_g"), folder / "hift.pt")
    write_speaker(folder / "campplus.onnx")
    _TOKENIZERS[tokenizer](folder / "speech_tokenizer_v2.onnx")
    return folder


def weights_of(source: TensorSource) -> dict[str, Tensor]:
    return dict(source.read(source.headers, torch.device("cpu")))


def hift_weights(source: TensorSource, keys: KeyStyle) -> dict[str, Tensor]:
    """HiFT's weights as training leaves them, below `generator.`."""
    names: Mapping[str, str] = _OLD_NAMES if keys == "weight_g" else {}
    weights = {}
    for key, tensor in weights_of(source).items():
        for new, old in names.items():
            if key.endswith(new):
                key = key.removesuffix(new) + old  # noqa: PLW2901
        weights[f"generator.{key}"] = tensor
    return weights


def flow_yaml() -> str:
    """flow.yaml with the published tags and names, and the tiny sizes."""
    dims = token2wav_facts()["dims"]
    return f"""\
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
  input_size: {dims["input_size"]}
  output_size: {dims["mel"]}
  spk_embed_dim: {dims["spk"]}
  output_type: "mel"
  vocab_size: {dims["vocab"]}
  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
    input_size: {dims["input_size"]}
    output_size: {dims["input_size"]}
    input_layer: 'linear'
    pre_lookahead_len: 3
    num_blocks: {dims["num_blocks"]}
    num_up_blocks: {dims["num_up_blocks"]}
    up_stride: 2
    up_scale_factor: 2
    attention_heads: {dims["heads"]}
    pos_enc_layer_type: 'rel_pos_espnet'
    selfattention_layer_type: 'rel_selfattn'
    key_bias: true
    linear_units: {dims["linear_units"]}
    dropout_rate: 0.1
    positional_dropout_rate: 0.1
    attention_dropout_rate: 0.1
    normalize_before: True
  decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
    inference_cfg_rate: 0.7
    estimator: !new:cosyvoice2.flow.decoder_dit.DiT
      in_channels: {4 * dims["mel"]}
      out_channels: {dims["mel"]}
      mlp_ratio: 4.0
      depth: {dims["dit_depth"]}
      num_heads: {dims["dit_heads"]}
      head_dim: {dims["dit_head_dim"]}
      hidden_size: {dims["dit_hidden"]}
"""


def cosyvoice2_yaml() -> str:
    """The part of cosyvoice2.yaml that describes the flow, with the tiny sizes."""
    dims = cosyvoice2_facts()["dims"]
    return f"""\
__set_seed1: !apply:random.seed [1986]
sample_rate: 24000
llm_input_size: 896
spk_embed_dim: 192
token_frame_rate: 25
token_mel_ratio: 2
chunk_size: {dims["token_block"]}
num_decoding_left_chunks: -1
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
  input_size: {dims["input"]}
  output_size: 80
  spk_embed_dim: !ref <spk_embed_dim>
  output_type: 'mel'
  vocab_size: 6561
  input_frame_rate: !ref <token_frame_rate>
  only_mask_loss: True
  token_mel_ratio: !ref <token_mel_ratio>
  pre_lookahead_len: 3
  encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
    output_size: {dims["input"]}
    attention_heads: {dims["heads"]}
    linear_units: {dims["linear_units"]}
    num_blocks: {dims["token_layers"]}
    dropout_rate: 0.1
    normalize_before: True
    input_layer: 'linear'
    pos_enc_layer_type: 'rel_pos_espnet'
    selfattention_layer_type: 'rel_selfattn'
    input_size: {dims["input"]}
    use_cnn_module: False
    macaron_style: False
    static_chunk_size: !ref <chunk_size>
  decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
    in_channels: 240
    n_spks: 1
    spk_emb_dim: 80
    cfm_params:
      sigma_min: 1e-06
      solver: 'euler'
      t_scheduler: 'cosine'
      training_cfg_rate: 0.2
      inference_cfg_rate: {dims["cfg_rate"]}
      reg_loss_type: 'l1'
    estimator: !new:cosyvoice.flow.decoder.CausalConditionalDecoder
      in_channels: 320
      out_channels: 80
      channels: {dims["unet_channels"]}
      dropout: 0.0
      attention_head_dim: {HEAD_WIDTH}
      n_blocks: {dims["unet_transformer_blocks"]}
      num_mid_blocks: {dims["unet_mid_blocks"]}
      num_heads: {dims["unet_heads"]}
      act_fn: 'gelu'
      static_chunk_size: {dims["mel_block"]}
"""


_CAUSAL_CONFIG = """\
sample_rate: 24000
hift:
  causal: true
"""
