"""The LLM's lane: what any conversations read next, in one batch, as CUDA graphs.

Prefills and decode steps are rows alike. For each number of rows there is a graph of all layers,
and for each number of choices one of the head and the draw; the tokens are read back once.
"""

from collections.abc import Sequence

from agent.duplex.cuda.device_lane import DeviceLane
from agent.duplex.cuda.llm_lane_program import LlmProgram, takes
from agent.duplex.cuda.llm_lane_rows import LlmSizes
from agent.duplex.lanes import Batch, EagerLane
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import Work
from agent.torch_parts.cuda_graph import GraphRecorder

_WAY_OUT = "start the engine without CUDA graphs"


class LlmLane:
    """See `agent.duplex.lanes.Lane`. From now on the parameters of the model's LLM that are used
    together lie side by side."""

    def __init__(self, model: DuplexModel, slots: Slots, sizes: LlmSizes | None = None) -> None:
        """`sizes` are what graphs are made for; recorded here, which takes a few seconds."""
        self._eager = EagerLane(model, slots)
        self._lane = DeviceLane(model.target.device)
        sizes = sizes or LlmSizes.for_slots(slots.count)
        self._program = LlmProgram(model.llm, slots.llm, model.banned, sizes)
        self._program.record(GraphRecorder(model.target.device, _WAY_OUT))

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return max(1, self._program.count(works))

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`. Work of another kind than reads and choices is done eagerly."""
        known = [work for work in works if takes(work)]
        with self._lane.working():
            if len(known) < len(works):
                return self._lane.batch(self._eager.begin(works).finish)
            self._program.begin(known)
            return self._lane.batch(self._program.take)
