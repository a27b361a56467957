"""A conversation's stretch of the LLM's cache: its prompt, its units, and what is forgotten.

[prefix][reference voice][previous][suffix][unit][unit]…, as the window's bookkeeping says. All that
changes it other than by reading the next unit is here, as work for whoever runs it.
"""

import logging
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from agent.duplex.kv_cache import KvStream
from agent.duplex.memory import Memory, keep_llm, retold
from agent.duplex.model import DuplexModel
from agent.duplex.moving import Move
from agent.duplex.prompt import DuplexPrompt
from agent.duplex.slots import Slots
from agent.duplex.window import PREVIOUS_MARKER, Cut, Window, WindowSettings
from agent.duplex.work import Read, Work
from agent.errors import ContextOverflow, RequestError

log = logging.getLogger(__name__)


class Context:
    """The layout that `memory` describes, made true in the cache."""

    def __init__(
        self, model: DuplexModel, slots: Slots, memory: Memory, *, exact_moves: bool
    ) -> None:
        """`exact_moves`: keys are moved by exact frequencies whatever the model computes with."""
        self._model = model
        self._slots = slots
        self.memory = memory
        self.exact_moves = exact_moves

    def embed(self, ids: Sequence[int]) -> Tensor:
        """[T, W] of `ids`."""
        return self._model.llm.embed(ids)

    def flush(self) -> Generator[Work, None, None]:
        """Feed what would go with the next unit."""
        memory = self.memory
        if memory.tail:
            yield Read(memory.llm, memory.tail)
            memory.tail = ()

    # ---- the prompt -----------------------------------------------------------------------------

    def write_prompt(
        self, prompt: DuplexPrompt, voice: Tensor | None
    ) -> Generator[Work, None, None]:
        """Fill the positions that the window's bookkeeping has reserved for the prompt."""
        voices = [] if voice is None else [voice]
        behind = self.embed([*self.memory.window.previous, *prompt.suffix])
        read = torch.cat([self.embed(prompt.prefix), *voices, behind])
        yield Read(KvStream(self.memory.llm.slot), vectors=read)

    def replace_prompt(
        self, prompt: DuplexPrompt, voice: Tensor | None, window: Window
    ) -> Generator[Work, None, None]:
        """Put another prompt, laid out as in `window`, before the units."""
        memory = self.memory
        new = window.continuing(memory.window)
        yield from self.obey(memory.window.cut_to(self._slots.llm.positions - new.protected))
        yield from self.flush()
        new = window.continuing(memory.window)
        yield self._move(memory.window.protected, new.protected)
        memory.window = new
        yield from self.write_prompt(prompt, voice)

    # ---- forgetting -----------------------------------------------------------------------------

    def make_room(self, count: int) -> Generator[Work, None, None]:
        """Forget what the slot has no room for beside `count` more, whatever the window's rule.

        ContextOverflow, before anything is changed, where the rule is to forget nothing.
        """
        window, positions = self.memory.window, self._slots.llm.positions
        if self.memory.floor.speaking and window.length > positions - count:
            log.warning("the context is full: its oldest seconds are forgotten within a turn")
            # As much as was put off, so that the rest of the turn finds room.
            yield from self.obey(window.cut())
        yield from self.obey(window.cut_to(positions - count))
        if window.length > positions - count:
            raise ContextOverflow(
                f"{window.length} positions are taken and {count} more do not fit into {positions}"
            )

    def forget(self) -> Generator[Work, None, None]:
        """Keep to the window's rule, but not while what goes may have to come back, nor while the
        agent's turn goes on: that is said in sight of the same past to its end."""
        memory = self.memory
        if memory.is_uncut and memory.way_back is None and not memory.floor.speaking:
            memory.is_uncut = False
            yield from self.obey(memory.window.cut())

    def obey(self, cut: Cut | None) -> Generator[Work, None, None]:
        """Forget units: whole ones, so the last is closed first."""
        if cut is None:
            return
        yield from self.flush()
        memory = self.memory
        yield self._move(cut.start, cut.to)
        if cut.rewrite is not None:
            yield Read(KvStream(memory.llm.slot, cut.at), cut.rewrite)
        memory.records = memory.records[-len(memory.window.units) :]

    def _move(self, start: int, to: int) -> Move:
        keep_llm(self.memory, self._slots)
        rotary = self._model.llm.model.rotary
        frequencies = rotary.exact_frequencies if self.exact_moves else rotary.frequencies
        return Move(self.memory.llm, start, to, frequencies)

    # ---- an interruption ------------------------------------------------------------------------

    def retell(self, turn: int, heard_ms: int) -> Generator[Work, None, int]:
        """Feed the units again that hold what was not heard of `turn` → how many they were."""
        memory = self.memory
        told = retold(memory.records, turn, heard_ms)
        if not told:
            return 0
        kept = memory.records[: len(memory.records) - len(told)]
        gone = memory.records[len(kept) :]
        keep_llm(memory, self._slots)
        memory.llm.length = memory.window.length - sum(one.span.length for one in gone)
        memory.tail = told[-1].ids[-2:]
        memory.records = (*kept, *told)
        memory.window.replace_newest([one.span for one in told])
        parts = [part for one in told for part in (one.senses, self.embed(one.ids))]
        yield Read(memory.llm, vectors=torch.cat(parts)[:-2])
        return len(told)


def lay_out_window(
    model: DuplexModel,
    slots: Slots,
    settings: WindowSettings,
    prompt: DuplexPrompt,
    voice: Tensor | None,
) -> Window:
    """The layout of a conversation that begins; RequestError when its prompt is too long."""
    length = len(prompt.prefix) + (0 if voice is None else len(voice))
    if length + len(prompt.suffix) > slots.llm.positions // 2:
        raise RequestError(
            f"the system prompt takes {length} of {slots.llm.positions} tokens; at most half of "
            "them may be used for it",
            param="instructions",
        )
    marker = model.vocabulary.encode(PREVIOUS_MARKER)
    return Window(settings, length, prompt.suffix, marker)
