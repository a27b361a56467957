"""What one call is told by an engine elsewhere: in order, bounded, and never after its end."""

import numpy as np
import pytest

from agent.errors import EngineError, WorkerLost
from agent.fleet.exchange import EventLine
from agent.types import Listened, SpeechAudio


async def test_a_call_that_takes_nothing_ends_and_spares_the_others() -> None:
    line = EventLine()
    second = SpeechAudio(1, 0, 0, np.zeros(24000, np.float32))
    for _ in range(1200):
        line.put(second)
    taken = line.events()
    assert await anext(taken) is second
    line.put(second)
    line.put(second)  # one too many
    line.put(second)
    with pytest.raises(EngineError, match="does not take"):
        assert len([event async for event in taken]) == 1200


async def test_a_line_that_ended_gives_what_it_holds_and_takes_nothing() -> None:
    line = EventLine()
    line.put(Listened(1))
    line.end(WorkerLost("gone"))
    line.end()
    line.put(Listened(2))
    events = line.events()
    assert await anext(events) == Listened(1)
    with pytest.raises(WorkerLost):
        await anext(events)
