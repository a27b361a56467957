"""What a client asks of the engine by way of the session, and what becomes of a refusal."""

from collections.abc import AsyncIterator

import pytest

from agent.types import ClearInput, CommitInput
from tests.rig.call_parts import DrivenCall

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture
async def call() -> AsyncIterator[DrivenCall]:
    """A call under way; at its end the order of everything the client got is checked."""
    driven = DrivenCall()
    await driven.begin()
    yield driven
    await driven.leave()


async def test_a_commit_and_a_clear_say_where_the_microphone_stood(call: DrivenCall) -> None:
    by_hand = {"audio": {"input": {"turn_detection": None}}}
    await call.client("session.update", session=by_hand)
    await call.listen(1270)
    await call.client("input_audio_buffer.clear")
    await call.listen(500)
    await call.client("input_audio_buffer.commit")
    assert call.commands(ClearInput) == [ClearInput(1270 * 16)]
    assert [commit.at for commit in call.commands(CommitInput)] == [1770 * 16]
