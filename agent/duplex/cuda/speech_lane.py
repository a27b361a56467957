"""The speech LM's lane: a second of speech for many conversations at once, as two CUDA graphs.

One reads what every conversation begins with, the other draws 25 tokens for each, fed back on the
device. The host reads nothing before the last token is there.
"""

from collections.abc import Sequence

from agent.duplex.cuda.device_lane import DeviceLane
from agent.duplex.cuda.speech_lane_program import SIZES, SpeechProgram
from agent.duplex.lanes import Batch, EagerLane
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import Speak, SpeakOn, Work
from agent.torch_parts.cuda_graph import GraphRecorder

_WAY_OUT = "start the engine without CUDA graphs"


class SpeechLane:
    """See `agent.duplex.lanes.Lane`. From now on the parameters of the model's speech LM that are
    used together lie side by side."""

    def __init__(self, model: DuplexModel, slots: Slots, sizes: Sequence[int] = SIZES) -> None:
        """`sizes` are how many conversations the graphs are made for; recorded here, which takes
        a second for each."""
        self._eager = EagerLane(model, slots)
        self._lane = DeviceLane(model.target.device)
        self._program = SpeechProgram(model.speech, slots.speech, sizes)
        self._program.record(GraphRecorder(model.target.device, _WAY_OUT))

    def count(self, works: Sequence[Work]) -> int:
        """See `Lane`."""
        return max(1, self._program.count(works))

    def begin(self, works: Sequence[Work]) -> Batch:
        """See `Lane`. What the graphs were not made for is done eagerly, and waited for."""
        if self._program.count(works) < len(works):
            return self._eager.begin(works)
        spoken = [work for work in works if isinstance(work, Speak | SpeakOn)]
        with self._lane.working():
            self._program.begin(spoken)
            return self._lane.batch(self._program.take)
