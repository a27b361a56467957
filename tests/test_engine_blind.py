"""An engine whose model was loaded without what sees: calls go on, and pictures are refused."""

from dataclasses import replace

import numpy as np
import pytest

from agent.chat_types import ChatMessage, ChatPicture, ChatRequest, ChatText, ChatVideo
from agent.duplex.config import ServiceParts
from agent.duplex.engine import DuplexEngine
from agent.errors import UnsupportedError
from agent.types import Abilities, Failed, UnitReport, VideoFrame
from tests.rig.scripted_call import SETTINGS, parts
from tests.rig.tiny_mind import LISTEN, Script, second

PIXELS = np.full((64, 64, 3), 90, np.uint8)


def _blind(*, vision: bool) -> DuplexEngine:
    made = parts(Script(LISTEN))
    mind = made.runner.model
    config = replace(mind.config, parts=ServiceParts(vision=vision))
    runner = replace(made.runner, model=replace(mind, config=config))
    return DuplexEngine(replace(made, runner=runner), Abilities(duplex=True, chat=True))


def _context(engine: DuplexEngine) -> int:
    """After a unit with a picture."""
    engine.open(1, SETTINGS)
    engine.push(1, second(0, (VideoFrame(PIXELS, 0),)))
    said = engine.work()
    while engine.idle_s() == 0:
        said += engine.work()
    assert not [event for _, event in said if isinstance(event, Failed)]
    (report,) = [event for _, event in said if isinstance(event, UnitReport)]
    return report.context_tokens


def test_a_call_with_a_camera_is_heard_and_not_seen() -> None:
    assert _context(_blind(vision=True)) - _context(_blind(vision=False)) > 60


@pytest.mark.parametrize("part", [ChatPicture(PIXELS), ChatVideo((PIXELS,), np.zeros(0))])
def test_a_chat_with_pictures_is_refused_and_says_which_setting(
    part: ChatPicture | ChatVideo,
) -> None:
    engine = _blind(vision=False)
    shown = ChatRequest((ChatMessage("user", (ChatText("What is it?"), part)),))
    with pytest.raises(UnsupportedError, match=r"model\.vision"):
        engine.chat(1, shown)
    engine.chat(2, ChatRequest((ChatMessage("user", (ChatText("Hi"),)),)))
    assert engine.load().slots_used == 1
