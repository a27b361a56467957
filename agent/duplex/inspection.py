"""What a checkpoint is, told from its files without loading it; nobody's code in it is run.

Two depths: `identify` reads JSON and file sizes alone, and costs nothing, so that a server refuses
a foreign folder before it starts a process for it. `inspect_weights` compares the header of every
shard with the model, by the code that loads it; that imports torch.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.duplex.config import DuplexConfig, read_config
from agent.duplex.quant_choice import BITS, Quantisation, check_stored
from agent.duplex.quant_sizes import projection_bytes
from agent.duplex.tokens import VOCABULARY_SIZE, WRITTEN
from agent.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from agent.torch_parts.checkpoint import TensorHeader

EXPECTED = "a folder with the bfloat16 weights of MiniCPM-o 4.5 (openbmb/MiniCPM-o-4_5)"
TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "merges.txt")
VOCODER_FOLDER = Path("assets") / "token2wav"
VOCODER_FILES = ("flow.pt", "hift.pt", "campplus.onnx")
TOKENIZER_MODELS = ("speech_tokenizer_v2_25hz.onnx", "speech_tokenizer_v2.onnx")
"""One model under two names."""
_LFS_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_UNREAD = (".g_idx", ".weight_packed", ".SCB", ".absmax")
"""What other ways of quantising than AutoAWQ's leave beside, or in the place of, a weight."""
_BFLOAT16_BYTES = 2
_TURN_TOKENS = 2048
"""Positions of the speech LM in a slot, as `Slots` has them."""
_WORK_BYTES = 1_650_000_000
"""What is set aside besides weights and caches: torch's own, the driver, and what
passes through the model."""
_GRAPH_BYTES = 600_000_000
"""What CUDA graphs and their buffers take: `bench.engine unit` measured 21.85 GB in all, with one
conversation of 8192 tokens and its voice, and with the table of words on the host; and 15.45 GB in
8 bits, where room for the rounding of weights is less well used."""

_VOCODER_BYTES = 730_000_000
_VOICE_BYTES = 205_000_000
_VOICE_STREAM_BYTES = 110_000_000
"""token2wav in half precision with its graphs, one voice that is kept ready, by `bench.vocoder`,
and the room for one turn, by what `Machine` sets aside."""


# ---- at no cost ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model takes, in bytes of bfloat16."""

    weights: int
    context_token: int
    """Each token of a slot's context."""
    slot: int
    """Each slot besides its context."""
    projections: int = 0
    """Of the weights those that can be kept in fewer bits."""
    table: int = 0
    """Of the weights those of the table of words."""

    def memory_bytes(self, slots: int, context_tokens: int) -> int:
        """What the model takes in all with so many slots of so many tokens, working."""
        each = self.slot + context_tokens * self.context_token
        return self.weights + slots * each + _WORK_BYTES

    def slots_in(self, memory_bytes: int, context_tokens: int) -> int:
        """How many slots fit; 0 or less when not even one does."""
        each = self.slot + context_tokens * self.context_token
        return (memory_bytes - self.weights - _WORK_BYTES) // each

    def with_voice(self, prepared_voices: int) -> "ModelSize":
        """The same model with a vocoder that keeps so many voices ready."""
        weights = self.weights + _VOCODER_BYTES + prepared_voices * _VOICE_BYTES
        return replace(self, weights=weights, slot=self.slot + _VOICE_STREAM_BYTES)

    def quantised(self, quantisation: Quantisation) -> "ModelSize":
        """The same model with its projections kept so."""
        kept = round(self.projections * BITS[quantisation] / BITS["none"])
        return replace(self, weights=self.weights - self.projections + kept, projections=kept)

    def with_graphs(self) -> "ModelSize":
        """The same model whose work is recorded as CUDA graphs, its table of words on the host."""
        return replace(self, weights=self.weights + _GRAPH_BYTES - self.table, table=0)

    def in_float32(self) -> "ModelSize":
        """The same model with twice the bytes a number."""
        return ModelSize(*(2 * one for one in astuple(self)))


FULL_SIZE = ModelSize(
    18_743_575_332,
    147_456,
    61_440 * _TURN_TOKENS + 147_456_000,
    projections=13_891_534_848,
    table=1_243_119_616,
)
"""Of the published model: 9,371,787,666 parameters."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A folder that claims to be the model, and of which nothing says otherwise."""

    folder: Path
    config: DuplexConfig
    weight_files: tuple[Path, ...]
    size: ModelSize


def identify(folder: Path) -> Identity:
    """What `folder` holds, by config.json and the names of its weights.

    CheckpointError, which names what was found and what is expected, when that is no MiniCPM-o
    4.5 that can be run here, or when files of it are missing.
    """
    config = expect_model(folder)
    files = weight_files(folder)
    size = _size(config, files)
    if "quantization_config" not in _config_values(folder):
        size = replace(size, projections=projection_bytes(config.llm, "none"))
    return Identity(folder, config, files, size)


def expect_model(folder: Path) -> DuplexConfig:
    """The config, of a folder whose weights may still be missing; CheckpointError as above."""
    _refuse_other_forms(folder)
    _refuse_other_models(folder, _config_values(folder))
    return read_config(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file that the model needs is there, whatever is in them."""
    try:
        weight_files(folder)
    except CheckpointError:
        return False
    return all((folder / name).is_file() for name in ("config.json", *TOKENIZER_FILES))


def _refuse_other_forms(folder: Path) -> None:
    """Weights that come in a form which is not read here."""
    if folder.is_file():
        kind = "GGUF, for llama.cpp" if folder.suffix == ".gguf" else "a file"
        raise CheckpointError(f"{folder}: is {kind}; expected {EXPECTED}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; expected {EXPECTED}")
    if (folder / "snapshots").is_dir() and not (folder / "config.json").exists():
        raise CheckpointError(f"{folder}: name one of the folders in its `snapshots`")
    has_weights = (folder / _INDEX).exists() or any(folder.glob("*.safetensors"))
    for pattern, kind in (("*.gguf", "GGUF files, for llama.cpp"), ("*.bin", "pickled weights")):
        if not has_weights and any(folder.glob(pattern)):
            raise CheckpointError(f"{folder}: holds {kind}; expected {EXPECTED}")


def _config_values(folder: Path) -> Mapping[str, Any]:
    """The parsed config.json; what is wrong with the file itself, `read_config` says later."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _refuse_other_models(folder: Path, values: Mapping[str, Any]) -> None:
    family, version = values.get("model_type"), values.get("version")
    if family is not None and family != "minicpmo":
        classes = values.get("architectures")
        named = f" ({classes[0]})" if isinstance(classes, list) and classes else ""
        raise CheckpointError(
            f"{folder}: holds a model of the type {family!r}{named}; expected {EXPECTED}"
        )
    if version is not None and str(version) != "4.5":
        raise CheckpointError(f"{folder}: holds MiniCPM-o {version}; expected {EXPECTED}")
    check_stored(values, str(folder))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The shards that the index names, or the one file; CheckpointError when one is missing."""
    if not (folder / _INDEX).is_file():
        if (folder / _SINGLE).is_file():
            return (folder / _SINGLE,)
        raise CheckpointError(
            f"{folder}: holds config.json, but neither {_INDEX} nor {_SINGLE}; finish the download"
        )
    try:
        places = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / _INDEX}: is no index of shards ({error})") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing, {missing[0]} for one; "
            "finish the download"
        )
    return tuple(folder / name for name in names)


def _size(config: DuplexConfig, files: Sequence[Path]) -> ModelSize:
    llm, speech, audio = config.llm, config.speech, config.audio
    speech_token = 2 * speech.layers * speech.kv_heads * speech.head_width * _BFLOAT16_BYTES
    heard = 2 * audio.layers * audio.positions * audio.width * _BFLOAT16_BYTES
    return ModelSize(
        weights=sum(file.stat().st_size for file in files),
        context_token=2 * llm.layers * llm.kv_heads * llm.head_width * _BFLOAT16_BYTES,
        slot=speech_token * min(_TURN_TOKENS, speech.max_positions) + heard,
        table=llm.vocabulary * llm.width * _BFLOAT16_BYTES,
    )


# ---- the words and the voice --------------------------------------------------------------------


def inspect_tokenizer(folder: Path) -> None:
    """CheckpointError unless the tokenizer's files are there and have the tokens known here."""
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {missing[0]} is missing; the tokenizer belongs to the checkpoint"
        )
    settings = _tokenizer_json(folder / TOKENIZER_FILES[0])
    words = _tokenizer_json(folder / TOKENIZER_FILES[1])
    listed = settings.get("added_tokens_decoder")
    if not isinstance(listed, Mapping) or "bad_token_ids" not in settings:
        raise CheckpointError(f"{folder}: holds the tokenizer of another model")
    added = {int(index): token.get("content") for index, token in listed.items()}
    known = len(set(words.values()) | added.keys())
    if known != VOCABULARY_SIZE:
        raise CheckpointError(f"{folder}: {known} tokens, expected {VOCABULARY_SIZE}")
    for token, written in WRITTEN.items():
        if added.get(token) != written:
            raise CheckpointError(
                f"{folder}: token {token.value} is {added.get(token)!r}, expected {written!r}"
            )


def _tokenizer_json(path: Path) -> Mapping[str, Any]:
    try:
        content = path.read_bytes()
        values = {} if content.startswith(_LFS_POINTER) else json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download it again") from error
    if not isinstance(values, dict) or not values:
        raise CheckpointError(f"{path}: is not the file itself; run `git lfs pull`")
    return values


def missing_vocoder_files(folder: Path) -> tuple[str, ...]:
    """What of a vocoder is not in its `folder`, or only as a Git LFS pointer."""
    missing = [name for name in VOCODER_FILES if not _is_content(folder / name)]
    if not any(_is_content(folder / name) for name in TOKENIZER_MODELS):
        missing.append(TOKENIZER_MODELS[0])
    return tuple(missing)


def _is_content(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not file.read(len(_LFS_POINTER)).startswith(_LFS_POINTER)
    except OSError:
        return False


# ---- by every header ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of all shards say."""

    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    """How many tensors are stored in each dtype."""


def inspect_weights(identity: Identity, extra: Path | None = None) -> Weights:
    """Compare every key and shape with the model; imports torch, reads no weights.

    CheckpointError names shards that are truncated or Git LFS pointers, and keys that are missing,
    unexpected or of another shape.
    """
    from agent.torch_parts.checkpoint import open_checkpoint

    headers = open_checkpoint(identity.folder, extra).headers
    packed = [key for key in headers if key.endswith(_UNREAD)]
    if packed:
        raise CheckpointError(
            f"{identity.folder}: holds quantised weights such as {packed[0]}; expected {EXPECTED}"
        )
    _compare(headers, identity.config)
    return Weights(
        tensors=len(headers),
        parameters=sum(math.prod(header.shape) for header in headers.values()),
        dtypes=Counter(header.dtype for header in headers.values()),
    )


class _AllFits(Exception):
    """The loader wants to read: so every header is as it expects."""


@dataclass(frozen=True, slots=True)
class _HeadersAlone:
    """A source of weights that has none."""

    headers: Mapping[str, "TensorHeader"]

    def read(
        self, keys: Collection[str], device: "torch.device"
    ) -> Iterator[tuple[str, "torch.Tensor"]]:
        raise _AllFits


class _NoWords:
    """Stands for the tokenizer, which the loader hands on and does not use."""

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


def _compare(headers: Mapping[str, "TensorHeader"], config: DuplexConfig) -> None:
    # By the loader itself, so that what is said here and what loading says cannot differ.
    from agent.duplex.model import load_model
    from agent.duplex.tokens import Vocabulary
    from agent.torch_parts.checkpoint import Target

    try:
        load_model(_HeadersAlone(headers), config, Vocabulary(_NoWords(), ()), target=Target())
    except _AllFits:
        return
    raise AssertionError("the loader read nothing")
