"""Projections of a decoder over any number of rows, each in the way that was fastest for so many.

What flows through a decoder is the sum of `tokens` and, where a projection was not able to add to
them itself, `added`: the next norm adds it then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent.duplex.cuda.kernels import gate, norm
from agent.duplex.cuda.kernels_linear import Dotted, Extras, Multiplied, dot, multiply
from agent.duplex.quant_linear import QuantLinear
from agent.duplex.quant_linear import side_by_side as quantised_side_by_side
from agent.torch_parts.adjacent import follow_each_other

Way: TypeAlias = Multiplied | Dotted | None
"""None: torch's own."""

_SMALL = 1 << 22
"""Weights that the cache holds anyway: nothing is gained by reading them well."""
_WIDE = 1 << 16
"""Outputs of a head: so many that torch's own choice is a poor one."""


@dataclass(frozen=True, slots=True)
class Norm:
    """An RmsNorm."""

    weight: Tensor
    epsilon: float


@dataclass(slots=True)
class Flow:
    """What flows through the layers: [N, W], in any dtype, and what is still to be added to it, in
    the weights'."""

    tokens: Tensor
    added: Tensor | None = None

    def normed(self, how: Norm) -> Tensor:
        """The sum, normed, in the weight's dtype; `tokens` hold the sum afterwards."""
        added, self.added = self.added, None
        return norm(self.tokens, how.weight, how.epsilon, added)


class Projection(Protocol):
    """What takes vectors to other vectors; launches alone."""

    def of_normed(self, flow: Flow, how: Norm) -> Tensor:
        """The projection [N, M] of what flows, normed."""

    def onto(self, rows: Tensor, flow: Flow) -> None:
        """The projection of `rows` [N, K] joins what flows."""


@dataclass(frozen=True, slots=True)
class ByModules:
    """Modules side by side that know how, [N, K] → [N, M] each; their outputs too."""

    modules: Sequence[Callable[[Tensor], Tensor]]
    gates: bool = False

    def of_normed(self, flow: Flow, how: Norm) -> Tensor:
        """See `Projection`."""
        out = self._project(flow.normed(how))
        return gate(out) if self.gates else out

    def onto(self, rows: Tensor, flow: Flow) -> None:
        """See `Projection`."""
        flow.added = self._project(rows)

    def _project(self, rows: Tensor) -> Tensor:
        outs = [module(rows) for module in self.modules]
        return outs[0] if len(outs) == 1 else torch.cat(outs, -1)


@dataclass(frozen=True, slots=True)
class ByMatrix:
    """Weights [M, K]; where it gates, [2·M, K]: gates, and below them what is let through."""

    weight: Tensor
    gates: bool = False

    def of_normed(self, flow: Flow, how: Norm) -> Tensor:
        """See `Projection`."""
        way = way_of(self.weight, len(flow.tokens), gates=self.gates)
        if isinstance(way, Multiplied) and flow.added is None:
            extras = Extras(how.weight, how.epsilon, self.gates)
            return multiply(flow.tokens, self.weight, way, extras)
        rows = flow.normed(how)
        if isinstance(way, Multiplied):
            return multiply(rows, self.weight, way, Extras(gates=self.gates))
        if isinstance(way, Dotted):
            return dot(rows, self.weight, way, gates=self.gates)
        out = F.linear(rows, self.weight)
        return gate(out) if self.gates else out

    def onto(self, rows: Tensor, flow: Flow) -> None:
        """See `Projection`."""
        way = way_of(self.weight, len(rows))
        if isinstance(way, Multiplied):
            multiply(rows, self.weight, way, onto=flow.tokens)
        elif isinstance(way, Dotted):
            dot(rows, self.weight, way, onto=flow.tokens)
        else:
            flow.added = F.linear(rows, self.weight)

    def of(self, rows: Tensor) -> Tensor:
        """The projection [N, M] of `rows` [N, K]."""
        way = way_of(self.weight, len(rows))
        if isinstance(way, Multiplied):
            return multiply(rows, self.weight, way)
        if isinstance(way, Dotted):
            return dot(rows, self.weight, way)
        return F.linear(rows, self.weight)


def side_by_side(modules: Sequence[nn.Module], *, gates: bool = False) -> Projection:
    """Projections of the same rows as one. Weights, plain ones or quantised, are brought together,
    and the modules' own are views of them from then on; other modules are called."""
    quantised = [module for module in modules if isinstance(module, QuantLinear)]
    if len(quantised) == len(modules):
        return ByModules([quantised_side_by_side(quantised)], gates)
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) < len(modules) or any(linear.bias is not None for linear in linears):
        return ByModules(modules, gates)
    return ByMatrix(merged_weights(linears), gates)


def merged_weights(linears: Sequence[nn.Linear]) -> Tensor:
    """The weights [M, K] of `linears`, one below the other; theirs are views of it afterwards.

    Where they are already, nothing is copied.
    """
    weights = [linear.weight.detach() for linear in linears]
    if follow_each_other(weights):
        shape = (sum(map(len, weights)), weights[0].shape[1])
        return weights[0].as_strided(shape, (shape[1], 1))
    whole = torch.cat(weights)
    begin = 0
    for linear in linears:
        part = whole[begin : begin + linear.out_features]
        linear.weight = nn.Parameter(part, requires_grad=linear.weight.requires_grad)
        begin += linear.out_features
    return whole


# ---- which way ----------------------------------------------------------------------------------


def way_of(weight: Tensor, rows: int, *, gates: bool = False) -> Way:
    """How so many rows go through `weight` [M, K]: as measured at the LLM's sizes on an H200."""
    outputs, inputs = weight.shape
    fits = weight.is_cuda and weight.dtype == torch.bfloat16 and weight.numel() >= _SMALL
    if not fits or inputs % 2048:
        return None
    if outputs >= _WIDE:
        return _way_of_head(rows)
    if rows == 1:
        return _way_of_one(outputs, inputs)
    if rows <= 16:
        return Dotted(64, 128, 4, 4) if gates else Dotted(16, 256, 2, 5)
    if rows <= 64 and gates:
        return Dotted(128, 64, 4, 4)
    return None


def _way_of_head(rows: int) -> Way:
    if rows <= 16:
        return Dotted(64, 128, 4, 4)
    return Dotted(128, 128, 8, 3) if rows <= 128 else None


def _way_of_one(outputs: int, inputs: int) -> Way:
    if inputs > 8192:
        return Multiplied(4, 2048, 8, 2)
    if outputs > 4096 and outputs < 8192:
        return Multiplied(2, 2048, 8, 4)
    return Multiplied(4, 1024, 4, 4)
