"""Lets torchaudio be imported next to a torch without CUDA.

torchaudio 2.11 is built against CUDA alone: its extension needs `libc10_cuda.so`, so beside a
CPU-only torch `import torchaudio` dies, and every transformers model with it, because
`transformers.audio_utils` imports torchaudio wherever it is installed. What is written in Python
(resampling, mel, MFCC) works without the extension. So the import of `torchaudio._extension` may
fail here, and then says what it says itself where the extension was never built. There is no newer
torchaudio to wait for.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

_EXTENSION = "torchaudio._extension"


class _TolerantLoader(importlib.abc.Loader):
    """Runs the real module; without its libraries, marks what it offers as absent."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._real.exec_module(module)
        except (OSError, RuntimeError):
            vars(module).update(
                _IS_TORCHAUDIO_EXT_AVAILABLE=False,
                _IS_ALIGN_AVAILABLE=False,
                _check_cuda_version=_no_cuda_version,
                fail_if_no_align=_without_alignment,
            )


class _ExtensionFinder(importlib.abc.MetaPathFinder):
    """Answers for that one module only; costs a string comparison for every other."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _EXTENSION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _TolerantLoader(spec.loader)
        return spec


def install() -> None:
    """Put the finder in front of the others, once. Imports nothing."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtensionFinder())


def _no_cuda_version() -> None:
    return None


def _without_alignment(function: object) -> object:
    """Stands where torchaudio decorates functions that only the extension can run."""

    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise RuntimeError(f"{function} needs torchaudio's extension, which does not load here")

    return refuse
