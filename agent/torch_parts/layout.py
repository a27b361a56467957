"""Which tensors of a checkpoint a module wants, and the way of each into it.

A module wants what its state dict names, but for two cases: a parameter that is made from stored
ones (`Fold`), and a module inside that keeps its weights in a form of its own (`Packs`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from agent.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Stored:
    """What a stored tensor must be."""

    shape: tuple[int, ...]
    integers: bool = False
    """Whether it holds words of bits rather than floating-point numbers."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A parameter that is not stored as such but made from stored ones, once, while loading.

    `sources` maps the stored names (below the part's prefix) to their shapes; `make` gets them in
    this order, already on the target's device and in its dtype, and returns what the parameter is.
    """

    sources: Mapping[str, tuple[int, ...]]
    make: Callable[..., Tensor]


@runtime_checkable
class Folds(Protocol):
    """A part some of whose parameters are folded."""

    def folds(self) -> Mapping[str, Fold]:
        """The parameter's own name → how it is made."""
        ...


def fold_weight_norm(gain_key: str, direction_key: str, shape: tuple[int, int]) -> Fold:
    """A weight-normed linear layer [out, in] made plain: each row its direction times its gain.

    In the dtype of the weights: from bfloat16 the product rounds as it does where the norm is
    applied at run time, which a float32 formula rounded afterwards does not.
    """
    rows = shape[0]
    return Fold(
        {gain_key: (rows, 1), direction_key: shape},
        lambda gain, direction: torch._weight_norm(direction, gain, 0),
    )


@runtime_checkable
class Packs(Protocol):
    """A module anywhere in a part that makes its weights itself from stored tensors.

    It is given them as soon as all of its own are read, so no more than one such module's are in
    memory as they were stored.
    """

    def stored(self) -> Mapping[str, Stored]:
        """The stored tensors, by their names below the module."""
        ...

    def pack(self, tensors: Mapping[str, Tensor]) -> None:
        """All of them in the dtype that they are stored in, on the target's device."""
        ...


class Layout:
    """The stored keys of one part, and the way of each into its module."""

    def __init__(self, prefix: str, module: nn.Module) -> None:
        self._prefix = prefix
        self._module = module
        folds = module.folds() if isinstance(module, Folds) else {}
        self._folds = {f"{prefix}{name}": fold for name, fold in folds.items()}
        self._fold_of = {
            f"{prefix}{stored}": target
            for target, fold in self._folds.items()
            for stored in fold.sources
        }
        self._packs = {
            f"{prefix}{name}.": inner
            for name, inner in module.named_modules()
            if isinstance(inner, Packs)
        }
        self._waiting: dict[str, Tensor] = {}
        self.stored = self._stored()

    def _stored(self) -> dict[str, Stored]:
        own = {f"{self._prefix}{n}": Stored(tuple(p.shape)) for n, p in _state(self._module)}
        wanted = {key: value for key, value in own.items() if self._is_plain(key)}
        for fold in self._folds.values():
            wanted |= {f"{self._prefix}{n}": Stored(shape) for n, shape in fold.sources.items()}
        for place, module in self._packs.items():
            wanted |= {f"{place}{name}": value for name, value in module.stored().items()}
        return wanted

    def _is_plain(self, key: str) -> bool:
        return key not in self._folds and _owner(key) not in self._packs

    def take(self, key: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """One stored tensor: set in `dtype`, or kept until what is made of it has all its own."""
        if _owner(key) in self._packs:
            self._pack(key, tensor)
        elif key in self._fold_of:
            self._fold(key, tensor.to(dtype))
        else:
            self._set(key, tensor.to(dtype))

    def _pack(self, key: str, tensor: Tensor) -> None:
        self._waiting[key] = tensor
        place = _owner(key)
        module = self._packs[place]
        if all(f"{place}{name}" in self._waiting for name in module.stored()):
            module.pack({name: self._waiting.pop(f"{place}{name}") for name in module.stored()})

    def _fold(self, key: str, tensor: Tensor) -> None:
        self._waiting[key] = tensor
        folded = self._fold_of[key]
        fold = self._folds[folded]
        keys = [f"{self._prefix}{name}" for name in fold.sources]
        if all(one in self._waiting for one in keys):
            self._set(folded, fold.make(*(self._waiting.pop(one) for one in keys)))

    def _set(self, key: str, tensor: Tensor) -> None:
        name = key.removeprefix(self._prefix)
        owner = self._module.get_submodule(name.rpartition(".")[0])
        expected = self._module.get_parameter(name).shape
        if tensor.shape != expected:
            raise CheckpointError(f"{key} is {list(tensor.shape)}, expected {list(expected)}")
        leaf = name.rpartition(".")[2]
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())


def _owner(key: str) -> str:
    """The key of the module that a tensor is in, with the dot behind it."""
    return key[: key.rfind(".") + 1]
