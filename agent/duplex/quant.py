"""The LLM with projections of 4 or 8 bits: chosen before its weights are read.

    llm = Llm(config, numerics)  # shapes alone
    quantise_llm(llm, "int4", source.headers)
    load_parts(source, {"llm.": llm}, …)  # each weight is rounded as soon as it is read

So a card that could never hold the weights in bfloat16 can load them: at any time one weight of
them is on the device, 0.1 GB at full size, and the work space of rounding it.
"""

from collections.abc import Iterator, Mapping

from torch import nn

from agent.duplex import quant_awq
from agent.duplex.llm import Llm
from agent.duplex.quant_choice import PROJECTIONS, Quantisation
from agent.duplex.quant_linear import QuantLinear
from agent.errors import ConfigError
from agent.torch_parts.checkpoint import TensorHeader, unfilled


def quantise_llm(llm: Llm, quantisation: Quantisation, stored: Mapping[str, TensorHeader]) -> None:
    """Put a `QuantLinear` in the place of each projection that is to be kept in fewer bits.

    To be called while `llm` has shapes alone. What `stored` holds as AutoAWQ wrote it stays in its
    4 bits. ConfigError for another choice then, CheckpointError for groups that are not read.
    """
    for key, module, name in _projections(llm):
        linear = getattr(module, name)
        zeros = stored.get(f"{key}.{quant_awq.QZEROS}")
        if zeros is None and quantisation == "none":
            continue
        kind, group = quantisation, 0
        if zeros is not None:
            if quantisation not in ("none", "int4"):
                raise ConfigError(
                    f"model.quantisation: {quantisation} cannot be made of a checkpoint that is "
                    "quantised to 4 bits; leave it at none, or take the bfloat16 checkpoint"
                )
            kind, group = "int4", quant_awq.group_of(key, zeros.shape, linear.in_features)
        with unfilled():
            made = QuantLinear(linear.in_features, linear.out_features, kind, awq_group=group)
        setattr(module, name, made)


def _projections(llm: Llm) -> Iterator[tuple[str, nn.Module, str]]:
    """Each projection: its key in a checkpoint, the module it is in, its name there."""
    for index, layer in enumerate(llm.model.layers):
        for part, names in PROJECTIONS.items():
            for name in names:
                key = f"{llm.PREFIX}model.layers.{index}.{part}.{name}"
                yield key, layer.get_submodule(part), name
