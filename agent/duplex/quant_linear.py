"""A linear layer whose weight is kept in 4 or 8 bits, in place of an `nn.Linear` without bias.

    layer = QuantLinear(4096, 12288, "int4")  # no weight yet
    layer.pack({"weight": weight})
    out = layer(tokens)

On a GPU in bfloat16 the weight is widened inside the product, by kernels; anywhere else, or in
another dtype, the widened weight is made for each call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex import quant_awq, quant_formats
from agent.duplex.quant_choice import GROUP, Quantisation
from agent.errors import ConfigError
from agent.torch_parts.layout import Stored

_KERNEL_CAPABILITY = (8, 0)
"""Cards whose matrix unit takes bfloat16."""


@dataclass(frozen=True, slots=True)
class _Format:
    codes: torch.dtype
    codes_a_number: int
    """How many weights are in one number of `codes`."""
    steps: torch.dtype
    inputs_a_step: int | None
    """How many inputs share a step; None: all."""
    make: Callable[[Tensor], tuple[Tensor, Tensor]]
    widen: Callable[[Tensor, Tensor, torch.dtype], Tensor]


_FORMATS: Mapping[Quantisation, _Format] = {
    "int4": _Format(
        torch.int32, 8, torch.int32, GROUP, quant_formats.round_int4, quant_formats.widen_int4
    ),
    "int8": _Format(
        torch.int8, 1, torch.float32, None, quant_formats.round_int8, quant_formats.widen_int8
    ),
    "fp8": _Format(
        torch.uint8, 1, torch.float32, None, quant_formats.round_fp8, quant_formats.widen_fp8
    ),
}


class QuantLinear(nn.Module):
    """[..., K] → [..., M] by `codes` and `steps`, which `agent.duplex.quant_formats` describes."""

    codes: Tensor
    steps: Tensor

    def __init__(
        self, in_features: int, out_features: int, kind: Quantisation, *, awq_group: int = 0
    ) -> None:
        """`awq_group` is the group of what AutoAWQ stored; 0: a plain weight is stored.

        ConfigError when so many inputs do not divide into groups.
        """
        super().__init__()
        made = _FORMATS[kind]
        shared = made.inputs_a_step or in_features
        if in_features % shared:
            raise ConfigError(f"{kind}: {in_features} inputs are no multiple of {shared}")
        self.in_features, self.out_features = in_features, out_features
        self.kind: Quantisation = kind
        self._format = made
        self._awq_group = awq_group
        codes = torch.empty(out_features, in_features // made.codes_a_number, dtype=made.codes)
        self._hold(codes, torch.empty(in_features // shared, out_features, dtype=made.steps))

    def _hold(self, codes: Tensor, steps: Tensor) -> None:
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)
        self._has_kernels = codes.is_cuda and _kernels_take(codes)

    def stored(self) -> Mapping[str, Stored]:
        """See `Packs`."""
        if not self._awq_group:
            return {"weight": Stored((self.out_features, self.in_features))}
        return quant_awq.stored(self.in_features, self.out_features, self._awq_group)

    def pack(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Packs`."""
        if self._awq_group:
            self._hold(*quant_awq.repack(tensors))
        else:
            self._hold(*self._format.make(tensors["weight"]))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., K] → [..., M], in the dtype of the tokens. On a GPU: launches alone."""
        if self._has_kernels and tokens.dtype == torch.bfloat16:
            from agent.torch_parts.kernels.quant import product

            rows = tokens.reshape(-1, self.in_features).contiguous()
            return product(rows, self.codes, self.steps).view(*tokens.shape[:-1], -1)
        return F.linear(tokens, self.widened(tokens.dtype))

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight [M, K] that the codes stand for."""
        return self._format.widen(self.codes, self.steps, dtype)

    def extra_repr(self) -> str:
        """For printing the model."""
        return f"{self.in_features} → {self.out_features}, {self.kind}"


def side_by_side(linears: Sequence[QuantLinear]) -> QuantLinear:
    """Several of one kind and the same inputs as one, their outputs side by side.

    Their own codes and steps are views of its from then on: nothing is kept twice.
    """
    first = linears[0]
    outputs = sum(one.out_features for one in linears)
    with torch.device("meta"):
        whole = QuantLinear(first.in_features, outputs, first.kind)
    whole._hold(
        torch.cat([one.codes for one in linears]), torch.cat([one.steps for one in linears], 1)
    )
    begin = 0
    for one in linears:
        end = begin + one.out_features
        one._hold(whole.codes[begin:end], whole.steps[:, begin:end])
        begin = end
    return whole


def _kernels_take(codes: Tensor) -> bool:
    if torch.cuda.get_device_capability(codes.device) < _KERNEL_CAPABILITY:
        return False
    from agent.torch_parts.kernels.quant_plans import fits

    return fits(codes)
