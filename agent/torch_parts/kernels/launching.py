"""How kernels are started, and compiled many at once before they are.

compile_together([call, another])  # what both start is built side by side, and not run
call()
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import get_ident
from typing import Any, TypeAlias

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""On the CPU, where nothing is compiled."""
_COMPILERS = 16
"""Threads that compile; most of their work leaves the interpreter free."""

_SHORT_BITS = 31
"""Whole numbers of more are 64 bits wide."""

_Grid: TypeAlias = tuple[int, ...]


def launch(kernel: Any, grid: _Grid, *arguments: Any, **meta: Any) -> None:
    """Start `kernel`, of Triton, on the current stream."""
    compiler = _compiling.get(get_ident())
    if compiler is None:
        kernel[grid](*arguments, **meta)
    else:
        compiler.add(kernel, grid, arguments, meta)


def compile_together(calls: Iterable[Callable[[], object]]) -> None:
    """Call each; the kernels that they start in this thread are compiled at once, and not run.

    So what the calls compute means nothing, nor may it be used as an index by what does run.
    Nothing is called in Triton's interpreter. Raises what a compiler raises.
    """
    if INTERPRETED:
        return
    with ThreadPoolExecutor(max_workers=_COMPILERS) as pool:
        compiler = _compiling[get_ident()] = _Compiler(pool)
        try:
            for call in calls:
                call()
        finally:
            del _compiling[get_ident()]
        for built in compiler.under_way.values():
            built.result()


class _Compiler:
    """What is started is not started, but compiled: once of a kind."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._device = torch.cuda.current_device()
        self.under_way: dict[object, Future[None]] = {}

    def add(
        self, kernel: Any, grid: _Grid, arguments: tuple[Any, ...], meta: dict[str, Any]
    ) -> None:
        """Begin to compile one more, if it is new."""
        kinds = tuple(map(kind_of, kernel.params, arguments))
        key = (id(kernel), kinds, tuple(sorted(meta.items())))
        if key not in self.under_way:
            self.under_way[key] = self._pool.submit(self._compile, kernel, grid, arguments, meta)

    def _compile(
        self, kernel: Any, grid: _Grid, arguments: tuple[Any, ...], meta: dict[str, Any]
    ) -> None:
        with torch.cuda.device(self._device):
            kernel.warmup(*arguments, grid=grid, **meta)


_compiling: dict[int, _Compiler] = {}
"""By the thread whose starts are compiled."""


def kind_of(parameter: Any, argument: Any) -> object:
    """What Triton compiles a kernel anew for, of what it is given for that parameter."""
    if parameter.is_constexpr:
        return argument
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if type(argument) is not int:
        return type(argument)
    is_wide = argument.bit_length() > _SHORT_BITS
    if parameter.do_not_specialize:
        return int, is_wide
    return int, is_wide, argument == 1, argument % 16 == 0
