"""What the user said, written down by a chat: what is asked, which sound, and what is told."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.attendants.record import Utterance
from agent.attendants.staff import StaffRules
from agent.attendants.transcriber import transcript_request
from agent.chat_types import ChatDelta, ChatSound, ChatText
from agent.errors import CapacityError, EngineError
from agent.types import (
    MIC_RATE_HZ,
    SessionSettings,
    SpeechEnded,
    SpeechStarted,
    Transcription,
)
from tests.rig.attended_call import CHATTING, AttendedCall, calls_begun

pytestmark = pytest.mark.usefixtures("nothing_left_behind")
Begin = Callable[..., Awaitable[AttendedCall]]
WRITES = SessionSettings(model="echo", transcription=Transcription())
PREFIX = "conversation.item.input_audio_transcription"
ENGLISH = "Please listen to the audio snippet carefully and transcribe the content."


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    async with calls_begun(abilities=CHATTING, settings=WRITES) as begun:
        yield begun


def written(call: AttendedCall) -> list[tuple[str, str]]:
    """Item and text of all that was written, in order."""
    return [(event["item_id"], event["transcript"]) for event in call.events(f"{PREFIX}.completed")]


def failed(call: AttendedCall) -> list[str]:
    return [event["item_id"] for event in call.events(f"{PREFIX}.failed")]


def counted(call: AttendedCall, outcome: str) -> float:
    return call.counted("beside_total", work="transcript", outcome=outcome)


async def test_each_utterance_is_written_down_under_its_own_item(begin: Begin) -> None:
    call = await begin()
    ids = []
    for text in ("Hello.", " Are you there? "):
        ids.append(await call.utter())
        (*_, asked) = call.chats.asked
        words, sound = asked.request.messages[0].content
        assert isinstance(words, ChatText)
        assert isinstance(sound, ChatSound)
        assert words.text == ENGLISH + "\n"
        assert abs(len(sound.samples) - MIC_RATE_HZ) <= 160
        assert (asked.request.greedy, asked.request.max_tokens) == (True, 44)
        await asked.answer(ChatDelta(text[:3]), ChatDelta(text[3:]))
    assert written(call) == [(ids[0], "Hello."), (ids[1], "Are you there?")]
    assert (counted(call, "written"), failed(call)) == (2, [])
    await call.client("conversation.item.retrieve", item_id=ids[0])
    (told,) = call.events("conversation.item.retrieved")
    assert told["item"]["content"][0]["transcript"] == "Hello."


async def test_a_client_that_does_not_ask_costs_nothing(begin: Begin) -> None:
    call = await begin(settings=replace(WRITES, transcription=None))
    await call.utter()
    assert call.chats.asked == []
    await call.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
    await call.utter()
    assert len(call.chats.asked) == 1
    await call.update(audio={"input": {"transcription": None}})
    await call.utter()
    assert len(call.chats.asked) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"rules": StaffRules(transcribes=False)},
        {"rules": StaffRules(max_side_chats=0)},
        {"abilities": replace(CHATTING, chat=False)},
    ],
)
async def test_where_nobody_writes_the_client_is_told_so(
    begin: Begin, more: dict[str, Any]
) -> None:
    call = await begin(**more)
    item_id = await call.utter()
    assert (call.chats.asked, failed(call)) == ([], [item_id])


async def test_an_engine_that_writes_by_itself_is_left_to_it(begin: Begin) -> None:
    call = await begin(abilities=replace(CHATTING, transcription=True))
    await call.utter()
    assert (call.chats.asked, failed(call)) == ([], [])


async def test_what_the_client_commits_itself_begins_where_the_last_ended(begin: Begin) -> None:
    call = await begin()
    await call.update(audio={"input": {"turn_detection": None}})
    await call.listen(500, level=0.1)
    await call.client("input_audio_buffer.clear")
    await call.listen(300, level=0.1)
    await call.client("input_audio_buffer.commit")
    await call.listen(1000, level=0.1)
    await call.client("input_audio_buffer.commit")
    await call.listen(1000)
    first, *_ = call.chats.asked
    # The newest is written first, but the first one had begun.
    await first.say("one")
    second = call.chats.asked[1]
    lengths = [len(asked.request.messages[0].content[1].samples) for asked in (first, second)]
    assert lengths == [4_800, 16_000]


async def test_the_newest_is_written_first_and_what_waits_too_long_not_at_all(
    begin: Begin,
) -> None:
    call = await begin()
    ids = [await call.utter(300) for _ in range(6)]
    assert len(call.chats.asked) == 1, "one at a time"
    await call.chats.asked[0].say("0")
    assert failed(call) == [ids[1], ids[2]]
    for number in (1, 2, 3):
        await call.chats.asked[number].say(str(number))
    assert [item_id for item_id, _ in written(call)] == [ids[0], ids[5], ids[4], ids[3]]
    assert counted(call, "passed_over") == 2


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(CapacityError("no slot", retry_after_s=1), "full"), (EngineError("lost"), "failed")],
)
async def test_what_cannot_be_written_is_said_and_the_call_goes_on(
    begin: Begin, error: Exception, outcome: str
) -> None:
    call = await begin()
    call.chats.refuses = error
    item_id = await call.utter()
    assert (failed(call), counted(call, outcome)) == ([item_id], 1)
    assert "lost" not in str(call.events(f"{PREFIX}.failed"))
    call.chats.refuses = None
    await call.utter()
    await call.chats.asked[0].say("Still here.")
    assert written(call)[0][1] == "Still here."


async def test_an_utterance_waits_until_all_of_it_is_there(begin: Begin) -> None:
    call = await begin()
    await call.listen(800)
    await call.hear(SpeechStarted(1600))
    await call.listen(500)
    await call.hear(SpeechEnded(20_000))
    assert call.chats.asked == [], "its last 0.25 s are in a second that has not ended"
    await call.listen(700)
    assert len(call.chats.asked) == 1


async def test_what_is_longer_than_a_minute_is_written_from_there_on(begin: Begin) -> None:
    call = await begin()
    await call.hear(SpeechStarted(0))
    await call.listen(64_000, level=0.1)
    await call.hear(SpeechEnded(64 * MIC_RATE_HZ))
    await call.listen(1000)
    (asked,) = call.chats.asked
    assert len(asked.request.messages[0].content[1].samples) == 60 * MIC_RATE_HZ
    assert asked.request.max_tokens == 512
    await asked.say("and so on")
    assert written(call)[0][1] == "… and so on"


async def test_the_end_of_the_call_gives_it_up(begin: Begin) -> None:
    call = await begin()
    await call.utter()
    await call.leave()
    assert call.chats.asked[0].given_up


@pytest.mark.parametrize(
    ("wanted", "language", "words"),
    [
        (Transcription(), "en", ENGLISH),
        (Transcription(), "zh", "请仔细听这段音频片段，并将其内容逐字记录。"),
        (Transcription(language="en-GB"), "zh", ENGLISH),
        (Transcription(language="de"), "en", f"{ENGLISH} Its language is 'de'."),
        (Transcription(prompt="Ägir, Bö"), "en", f"{ENGLISH} It may hold these words: Ägir, Bö"),
    ],
)
def test_the_prompt_is_the_model_s_own_with_the_client_s_hints(
    wanted: Transcription, language: str, words: str
) -> None:
    utterance = Utterance("item_1", np.zeros(1600, np.float32), 0.0)
    (message,) = transcript_request(utterance, wanted, language).messages
    assert message.content[0] == ChatText(words + "\n")
