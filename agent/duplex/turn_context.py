"""A half-duplex conversation's stretch of the LLM's cache: [system][round][round]…

All that changes it is here, as work for whoever runs it. A round is never cut in two, and the
newest is never forgotten.
"""

from collections.abc import Generator

from torch import Tensor

from agent.duplex.answer import read_in_pieces
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.turn_memory import TurnMemory
from agent.duplex.window import Cut
from agent.duplex.work import Work
from agent.errors import RequestError


class TurnContext:
    """The layout that `memory` describes, made true in the cache."""

    def __init__(
        self, model: DuplexModel, slots: Slots, memory: TurnMemory, *, exact_moves: bool
    ) -> None:
        """`exact_moves`: keys are moved by exact frequencies whatever the model computes with."""
        self._model = model
        self._slots = slots
        self.memory = memory
        self.exact_moves = exact_moves

    def room(self, *, opens: bool = False) -> int:
        """How many positions the newest round may still grow by, all others forgotten; or a new
        one, where it `opens`."""
        window, positions = self.memory.window, self._slots.llm.positions
        if window.settings.mode == "off":
            return positions - self.memory.llm.length
        newest = window.units[-1].length if window.units and not opens else 0
        return positions - window.protected - newest

    def make_room(self, count: int, *, opens: bool = False) -> None:
        """Forget what the slot has no room for beside `count` more.

        RequestError, before anything is changed, where forgetting would not do.
        """
        most = self.room(opens=opens)
        if count > most:
            raise RequestError(
                f"the turn takes {count} tokens more, and {most} fit; end it, send shorter sounds "
                "(10 tokens a second) or fewer pictures (66 tokens a tile)",
                param="audio",
                code="context_length_exceeded",
            )
        if opens:
            self.memory.open_turn()
        self._obey(self.memory.window.cut_to(self._slots.llm.positions - count))

    def read(self, embeddings: Tensor) -> Generator[Work, None, Tensor]:
        """The newest round's next positions [T, W] → the state at the last of them."""
        state = yield from read_in_pieces(embeddings, self.memory.llm)
        self.memory.settle()
        return state

    def forget(self) -> None:
        """Forget by the window's rule, where it is time to."""
        self._obey(self.memory.window.cut())

    def _obey(self, cut: Cut | None) -> None:
        if cut is None:
            return
        memory, rotary = self.memory, self._model.llm.model.rotary
        frequencies = rotary.exact_frequencies if self.exact_moves else rotary.frequencies
        self._slots.llm.move(memory.llm, cut.start, cut.to, frequencies)
        memory.answer_at -= cut.start - cut.to
        memory.rewrites += 1
