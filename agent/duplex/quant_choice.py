"""Which weights of the LLM are kept in fewer bits, and what of that a checkpoint may hold.

Knows JSON alone, so that a folder can be refused before torch is there.

Of the published `openbmb/MiniCPM-o-4_5-awq` this is known: it is loaded by means of AutoAWQ, its
tags say `awq` and 4 bits, it is 8 GB large, and vision, hearing and speech are not quantised.
Neither its config.json nor the names of its tensors could be read here. What AutoAWQ writes is
assumed, and checked where it is read: a `quantization_config` as below; in the place of a quantised
`….weight` a `….qweight`, `….qzeros` and `….scales` (see `agent.duplex.quant_awq`); everything else
under its own name. Which projections are quantised is told by the names that are there, not by
`modules_to_not_convert`.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from agent.errors import CheckpointError

Quantisation: TypeAlias = Literal["none", "int8", "fp8", "int4"]
"""What the LLM's projections are kept in: as stored, or 8 or 4 bits a weight.

int8 and fp8 (e4m3): a scale for each output. int4: for each 128 inputs of an output a scale and a
zero point, 4.25 bits in all. Activations stay as they are.
"""
GROUP = 128
"""Inputs that share a scale and a zero point in 4 bits."""
BITS: Mapping[Quantisation, float] = {"none": 16, "int8": 8, "fp8": 8, "int4": 4 + 32 / GROUP}
"""That a weight takes; a little more where outputs have scales."""
PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
"""What is quantised of a layer: by module, its projections. Embedding and head never are."""
_METHODS = ("awq",)
_LAYOUTS = ("gemm",)


def check_stored(values: Mapping[str, Any], where: str) -> None:
    """CheckpointError when the `quantization_config` of a config.json is of a kind not read."""
    stored = values.get("quantization_config")
    if stored is None:
        return
    if not isinstance(stored, Mapping):
        raise _refused(where, "quantization_config is no section")
    method = str(stored.get("quant_method", "an unknown method")).lower()
    bits = stored.get("bits", stored.get("w_bit"))
    if method not in _METHODS:
        told = method if bits is None else f"{method} to {bits} bits"
        raise _refused(where, f"holds weights quantised by {told}")
    if bits != 4:
        raise _refused(where, f"holds weights quantised by awq to {bits} bits")
    layout = str(stored.get("version", "gemm")).lower()
    if layout not in _LAYOUTS:
        raise _refused(where, f"holds weights quantised by awq in the layout {layout!r}")
    group = stored.get("group_size", stored.get("q_group_size", GROUP))
    if group != -1 and (type(group) is not int or group < 1 or group % GROUP):
        raise _refused(where, f"holds weights quantised by awq in groups of {group}")


def _refused(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {found}; what can be read is bfloat16 (openbmb/MiniCPM-o-4_5, which "
        "model.quantisation makes smaller while it is loaded) and what AutoAWQ writes with 4 "
        f"bits, `gemm` and groups of {GROUP} (openbmb/MiniCPM-o-4_5-awq)"
    )
