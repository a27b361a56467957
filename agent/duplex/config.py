"""The model's sizes, read from the checkpoint's own config.json: asserted, never made up.

Every size that the weights depend on must be in the file; what the architecture fixes (an
activation, an epsilon, a switch) is asserted where the file names it. The nested sections are
written by transformers, which leaves out whatever equals its class's own value: those few fields
say so below with `omitted=`, and the shapes of the weights check them once more.
Values and their sources: the model's public config and the sizes of its weights.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agent.duplex.quant_choice import Quantisation, check_stored
from agent.errors import CheckpointError

Attention: TypeAlias = Literal["sdpa", "eager"]
"""sdpa: torch's fused kernels. eager: scores in the model's dtype, their softmax in float32."""
RopePrecision: TypeAlias = Literal["float32", "bfloat16"]

HEAD_WIDTH_RESAMPLER = 128
"""The resampler has one head for each 128 of the LLM's width."""
_MOST = 1 << 24
"""No size of a language model comes near: what lies above is a broken file, not a large model."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """How the same weights are computed with; a choice of the user, not of the checkpoint.

    `rope_precision` rounds RoPE's inverse frequencies: the published demo casts them to bfloat16
    by accident, the model card's recipe keeps float32. `quantisation` keeps the LLM's projections
    in fewer bits than they are stored in.
    """

    attention: Attention = "sdpa"
    rope_precision: RopePrecision = "float32"
    quantisation: Quantisation = "none"


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What a service needs besides the LLM and the ears; the rest takes no memory. A choice of the
    user, too."""

    vision: bool = True
    speech: bool = True


# ---- the parts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """Qwen3: grouped-query attention with normed q and k, RoPE, SwiGLU, an untied head."""

    width: int
    ffn_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    max_positions: int
    rope_theta: float
    norm_eps: float


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """SigLIP's NaViT tower: pictures of any shape, positions read from a square table."""

    width: int
    ffn_width: int
    layers: int
    heads: int
    table_side: int
    """Rows and columns of the learned position table."""
    batch_pictures: int
    """How many pictures and slices pass the tower at once."""
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class ResamplerConfig:
    """One cross-attention that turns any number of patches into a fixed number of vectors."""

    width: int
    vision_width: int
    heads: int
    queries: int
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Whisper's encoder, and the step of the pooling behind it."""

    width: int
    ffn_width: int
    layers: int
    heads: int
    mel_bands: int
    positions: int
    """Conv frames (20 ms) that the position table reaches, and so the most that a cache holds."""
    pool_frames: int
    """Conv frames that one vector of the LLM stands for."""
    llm_width: int
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class SpeechConfig:
    """The speech LM: a small Llama from text tokens and hidden states to 25 Hz speech tokens."""

    width: int
    ffn_width: int
    layers: int
    heads: int
    kv_heads: int
    max_positions: int
    llm_width: int
    text_tokens: int
    audio_tokens: int
    """Speech codes and, as the last of them, the end of speech."""
    audio_bos: int
    text_eos: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def audio_eos(self) -> int:
        return self.audio_tokens - 1


@dataclass(frozen=True, slots=True)
class DuplexConfig:
    """Everything that building the modules needs. From a checkpoint's folder: `read_config`."""

    llm: LlmConfig
    vision: VisionConfig
    resampler: ResamplerConfig
    audio: AudioConfig
    speech: SpeechConfig
    may_drop_last_vision_layer: bool
    parts: ServiceParts = ServiceParts()

    def fitted_to(self, keys: Collection[str]) -> "DuplexConfig":
        """This config with as many vision layers as the checkpoint's keys have.

        The class that wrote the checkpoint can drop the tower's last layer, and drops it by
        default, so its switch is worth less than the keys: where they are, the layer is used.
        """
        last = f"vpm.encoder.layers.{self.vision.layers - 1}."
        if not self.may_drop_last_vision_layer or any(key.startswith(last) for key in keys):
            return self
        fewer = dataclasses.replace(self.vision, layers=self.vision.layers - 1)
        return dataclasses.replace(self, vision=fewer)


# ---- reading ------------------------------------------------------------------------------------


def read_config(folder: Path) -> DuplexConfig:
    """The config of the checkpoint in `folder`; CheckpointError names what is missing or odd."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); is this the folder of the checkpoint?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return parse_config(values, str(path))


def parse_config(values: Mapping[str, Any], where: str = "config.json") -> DuplexConfig:
    """The same from the file's parsed content; `where` names the file in messages."""
    root = _Section(values, where)
    root.expect("model_type", "minicpmo")
    root.expect_if_named("version", "4.5", 4.5)
    for part in ("init_vision", "init_audio", "init_tts"):
        root.expect_if_named(part, True)
    check_stored(values, where)
    llm = _llm(root)
    vision = _vision(root, root.section("vision_config"))
    return DuplexConfig(
        llm=llm,
        vision=vision,
        resampler=_resampler(root, llm.width, vision.width),
        audio=_audio(root, root.section("audio_config"), llm.width),
        speech=_speech(root.section("tts_config"), llm.width),
        may_drop_last_vision_layer=root.switch("drop_vision_last_layer", omitted=True),
    )


def _llm(root: "_Section") -> LlmConfig:
    # A window would mask what lies more than its length back; the model is trained without one.
    root.expect("sliding_window", None)
    root.expect("tie_word_embeddings", False)
    root.expect_if_named("use_sliding_window", False)
    root.expect_if_named("attention_bias", False)
    root.expect_if_named("hidden_act", "silu")
    root.expect_if_named("rope_scaling", None)
    heads, kv_heads = root.count("num_attention_heads"), root.count("num_key_value_heads")
    root.check(heads % kv_heads == 0, f"{heads} heads are not a multiple of {kv_heads} kv heads")
    return LlmConfig(
        width=root.count("hidden_size"),
        ffn_width=root.count("intermediate_size"),
        layers=root.count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_width=root.count("head_dim", omitted=128),
        vocabulary=root.count("vocab_size"),
        max_positions=root.count("max_position_embeddings"),
        rope_theta=_rope_theta(root),
        norm_eps=root.number("rms_norm_eps"),
    )


def _rope_theta(root: "_Section") -> float:
    """Newer transformers write it into a section of its own."""
    if not root.names("rope_parameters"):
        return root.number("rope_theta")
    section = root.section("rope_parameters")
    section.expect_if_named("rope_type", "default")
    return section.number("rope_theta")


def _vision(root: "_Section", section: "_Section") -> VisionConfig:
    section.expect_if_named("hidden_act", "gelu_pytorch_tanh")
    section.expect_if_named("layer_norm_eps", 1e-6)
    section.expect_if_named("num_channels", 3)
    section.expect("patch_size", 14)
    slices = root.section("slice_config", may_miss=True)
    slices.expect_if_named("scale_resolution", 448)
    slices.expect_if_named("patch_size", 14)
    root.expect("image_size", 448)
    side_px = section.count("image_size")
    section.check(side_px % 14 == 0, f"image_size {side_px} is not a multiple of 14")
    return VisionConfig(
        width=section.count("hidden_size"),
        ffn_width=section.count("intermediate_size"),
        layers=section.count("num_hidden_layers"),
        heads=section.heads("num_attention_heads", "hidden_size"),
        table_side=side_px // 14,
        batch_pictures=root.count("vision_batch_size"),
    )


def _resampler(root: "_Section", width: int, vision_width: int) -> ResamplerConfig:
    root.check(
        width % HEAD_WIDTH_RESAMPLER == 0,
        f"hidden_size {width} is not a multiple of {HEAD_WIDTH_RESAMPLER}",
    )
    return ResamplerConfig(
        width=width,
        vision_width=vision_width,
        heads=width // HEAD_WIDTH_RESAMPLER,
        queries=root.count("query_num"),
    )


def _audio(root: "_Section", section: "_Section", llm_width: int) -> AudioConfig:
    section.expect_if_named("activation_function", "gelu")
    section.expect_if_named("scale_embedding", False)
    root.expect("audio_chunk_length", 1.0, 1)
    root.expect_if_named("stream_input", True)
    return AudioConfig(
        width=section.count("d_model"),
        ffn_width=section.count("encoder_ffn_dim"),
        layers=section.count("encoder_layers"),
        heads=section.heads("encoder_attention_heads", "d_model"),
        mel_bands=section.count("num_mel_bins", omitted=80),
        positions=section.count("max_source_positions", omitted=1500),
        pool_frames=root.count("audio_pool_step"),
        llm_width=llm_width,
    )


def _speech(section: "_Section", llm_width: int) -> SpeechConfig:
    section.expect_if_named("condition_type", "hidden_text_merge")
    section.expect_if_named("normalize_projected_hidden", True)
    section.expect_if_named("projector_type", "mlp")
    section.expect_if_named("backbone_model", "llama")
    section.expect_if_named("attention_type", "full_attention")
    section.expect_if_named("interleaved", False)
    section.expect_if_named("num_vq", 1)
    section.expect_if_named("llm_dim", llm_width)
    heads = section.count("num_attention_heads", omitted=12)
    width = section.count("hidden_size", omitted=768)
    section.check(width % heads == 0, f"hidden_size {width} does not divide into {heads} heads")
    kv_heads = section.count("num_key_value_heads", omitted=12)
    section.check(heads % kv_heads == 0, f"{heads} heads are not a multiple of {kv_heads} kv heads")
    return SpeechConfig(
        width=width,
        ffn_width=section.count("intermediate_size", omitted=3072),
        layers=section.count("num_hidden_layers", omitted=20),
        heads=heads,
        kv_heads=kv_heads,
        max_positions=section.count("max_position_embeddings", omitted=4096),
        llm_width=llm_width,
        text_tokens=section.count("num_text_tokens", omitted=152064),
        audio_tokens=section.count("num_audio_tokens", omitted=6562),
        audio_bos=section.count("audio_bos_token_id", omitted=151687),
        text_eos=section.count("text_eos_token_id", omitted=151692),
    )


class _Section:
    """One object of the JSON file; every fault is told with the file and the dotted field."""

    def __init__(self, values: Mapping[str, Any], where: str, path: str = "") -> None:
        self._values = values
        self._where = where
        self._path = path

    def names(self, field: str) -> bool:
        return field in self._values

    def section(self, field: str, *, may_miss: bool = False) -> "_Section":
        value = {} if may_miss and field not in self._values else self._get(field)
        if not isinstance(value, Mapping):
            raise self._fault(f"{self._dotted(field)} is {value!r}, expected a section")
        return _Section(value, self._where, f"{self._path}{field}.")

    def count(self, field: str, *, omitted: int | None = None) -> int:
        """A whole number above 0; `omitted` is what the writing class leaves out."""
        if omitted is not None and field not in self._values:
            return omitted
        value = self._get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
            raise self._fault(
                f"{self._dotted(field)} is {value!r}, expected a whole number above 0"
            )
        return value

    def number(self, field: str) -> float:
        value = self._get(field)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise self._fault(f"{self._dotted(field)} is {value!r}, expected a number above 0")
        return float(value)

    def heads(self, field: str, width_field: str) -> int:
        """A number of heads that the width divides into."""
        heads, width = self.count(field), self.count(width_field)
        self.check(width % heads == 0, f"{width_field} {width} does not divide into {heads} heads")
        return heads

    def switch(self, field: str, *, omitted: bool) -> bool:
        value = self._values.get(field, omitted)
        if not isinstance(value, bool):
            raise self._fault(f"{self._dotted(field)} is {value!r}, expected true or false")
        return value

    def expect(self, field: str, *allowed: object) -> None:
        """The field is there and holds one of the values that this implementation is made for."""
        value = self._get(field)
        if not any(type(value) is type(one) and value == one for one in allowed):
            one = json.dumps(allowed[0])
            raise self._fault(f"{self._dotted(field)} is {json.dumps(value)}, expected {one}")

    def expect_if_named(self, field: str, *allowed: object) -> None:
        if field in self._values:
            self.expect(field, *allowed)

    def check(self, holds: bool, fault: str) -> None:
        if not holds:
            raise self._fault(f"{self._path}{fault}" if self._path else fault)

    def _get(self, field: str) -> Any:
        if field not in self._values:
            raise self._fault(f"{self._dotted(field)} is missing")
        return self._values[field]

    def _dotted(self, field: str) -> str:
        return f"{self._path}{field}"

    def _fault(self, fault: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: {fault}; this is not the MiniCPM-o 4.5 expected here"
        )
