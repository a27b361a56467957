"""A call in which nobody says anything for long, from the microphone to the engine."""

import pytest

from agent.commands import Respond
from tests.rig.call_parts import voice
from tests.rig.driven_call import DrivenCall

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

TRIGGERED = "input_audio_buffer.timeout_triggered"


async def test_after_a_long_silence_the_agent_is_asked_to_go_on() -> None:
    call = DrivenCall()
    await call.begin()
    detection = {"type": "server_vad", "idle_timeout_ms": 1000}
    await call.client("session.update", session={"audio": {"input": {"turn_detection": detection}}})
    await call.speak(1, ("Hello", voice(200)))
    await call.end_turn(1)
    await call.listen(100)
    await call.play(400)
    await call.listen(950)
    assert call.events(TRIGGERED) == []
    await call.listen(100)
    (triggered,) = call.events(TRIGGERED)
    assert triggered["audio_end_ms"] - triggered["audio_start_ms"] == pytest.approx(1000, abs=20)
    assert call.commands(Respond) == [Respond()]
    await call.leave()
