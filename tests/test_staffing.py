"""What the log says at start of functions that nobody will call."""

import logging

import pytest

from agent.api.staffing import note_tools
from agent.types import Abilities


@pytest.mark.parametrize(
    ("abilities", "is_told"),
    [(Abilities(tools=True), True), (Abilities(tools=True, side_tools=True), False)],
    ids=["echo", "model"],
)
def test_a_side_channel_that_the_engine_has_not_is_told(
    abilities: Abilities, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        note_tools([], abilities, "side")
        assert ("tools.channel" in caplog.text) == is_told
        caplog.clear()
        note_tools([], abilities, "native")
        assert caplog.text == ""
