"""The lanes of `agent.duplex.lanes` on a CUDA device: CUDA graphs over static caches.

What is computed is what the modules say, in the same precisions; `EagerLane` is the measure. Here
alone is Triton imported, and only when a lane is made: machines without it run eagerly.
"""

import importlib.util
from collections.abc import Iterator

from agent.duplex.lanes import Lane
from agent.duplex.model import DuplexModel
from agent.duplex.slots import Slots
from agent.duplex.work import LaneName


def has_triton() -> bool:
    """Whether the kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def cuda_lanes(model: DuplexModel, slots: Slots) -> Iterator[tuple[LaneName, Lane]]:
    """The model's lanes, one after the other as each is recorded: a few seconds in all.

    From then on the table of words is in the host's memory. To be made before anything runs on the
    device, over caches that stay where they are. ConfigError when a graph cannot be recorded.
    """
    from agent.duplex.cuda.audio_lane import AudioLane
    from agent.duplex.cuda.host_table import keep_on_host
    from agent.duplex.cuda.llm_lane import LlmLane
    from agent.duplex.cuda.speech_lane import SpeechLane
    from agent.duplex.cuda.vision_lane import VisionLane

    keep_on_host(model.llm.model.embed_tokens)
    yield "llm", LlmLane(model, slots)
    yield "audio", AudioLane(model, slots)
    if model.config.parts.speech:
        yield "speech", SpeechLane(model, slots)
    if model.config.parts.vision:
        yield "vision", VisionLane(model, slots)
