"""Forgetting as work: what lies behind it in the cache moves, in order with what others read."""

from dataclasses import dataclass

from torch import Tensor

from agent.duplex.kv_cache import KvStream
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import LaneName


@dataclass(slots=True)
class Move:
    """What the LLM has cached from `start` on goes to position `to`; the stream's length follows.

    `frequencies` as in `KvCache.move`.
    """

    stream: KvStream
    start: int
    to: int
    frequencies: Tensor
    stage = "move"
    lane: LaneName = "llm"

    def run(self, model: DuplexModel, slots: Slots) -> None:
        """Do it."""
        slots.llm.move(self.stream, self.start, self.to, self.frequencies)
