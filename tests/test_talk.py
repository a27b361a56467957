"""A turn-based conversation: its history, what stops it, what makes room in it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from agent.chat_types import (
    ChatAudio,
    ChatDelta,
    ChatDone,
    ChatEvent,
    ChatMessage,
    ChatRequest,
    ChatText,
)
from agent.errors import AgentError, EngineError, RequestError, WorkerLost
from agent.media.files import MediaLimits
from agent.media.talk import MOST_TURNS, Note, Talk
from tests.rig.attached import RED, film, picture, tone, wav
from tests.rig.reading_engine import ReadingEngine, said
from tests.rig.speaking_engine import SpeakingEngine, sound_of

SYSTEM = ChatMessage("system", (ChatText("be kind"),))


class Listener:
    """What a talk shows."""

    def __init__(self) -> None:
        self.shown: list[ChatDelta | ChatAudio | Note] = []

    def __call__(self, piece: ChatDelta | ChatAudio | Note) -> None:
        self.shown.append(piece)

    def text(self, *, reasoning: bool = False) -> str:
        pieces = [piece for piece in self.shown if isinstance(piece, ChatDelta)]
        return "".join(piece.text for piece in pieces if piece.reasoning == reasoning)

    def notes(self) -> list[str]:
        return [piece.text for piece in self.shown if isinstance(piece, Note)]


class SmallEngine(ReadingEngine):
    """Takes only so many messages."""

    most = 3

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        if len(request.messages) > self.most or "long" in said(request):
            raise RequestError("the prompt is too long", code="context_length_exceeded")
        async for event in super().chat(request):
            yield event


def talk_with(engine: ReadingEngine, **usual: object) -> Talk:
    return Talk(engine, ChatRequest((), **usual), MediaLimits())  # type: ignore[arg-type]


async def answer(talk: Talk, line: str) -> Listener:
    heard = Listener()
    await talk.say(line, heard)
    return heard


async def failure(talk: Talk, line: str) -> str:
    with pytest.raises(AgentError) as caught:
        await talk.say(line, Listener())
    return str(caught.value)


async def test_each_question_comes_with_all_before_it() -> None:
    engine = ReadingEngine()
    talk = Talk(engine, ChatRequest((SYSTEM,)), MediaLimits())
    assert (await answer(talk, "one")).text() == "system: be kind\nuser: one"
    assert (await answer(talk, "two")).text().split("\n") == [
        "system: be kind",
        "user: one",
        "assistant: system: be kind",
        "user: one",
        "user: two",
    ]
    assert [message.role for message in engine.requests[-1].messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    talk.clear()
    assert (await answer(talk, "three")).text() == "system: be kind\nuser: three"


async def test_files_are_attached_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "my dog.png").write_bytes(picture(RED))
    (tmp_path / "a.wav").write_bytes(wav(tone(1.0)))
    (tmp_path / "b.mp4").write_bytes(film([RED, RED], tone(2.0)))
    talk = talk_with(ReadingEngine())
    line = f"compare '{tmp_path}/my dog.png' with {tmp_path}/a.wav and file://{tmp_path}/b.mp4"
    heard = await answer(talk, line)
    assert heard.text() == (
        "user: compare + [red 40x30] + with + [sound 1.0s 440Hz] + and + [video red,red with 2s]"
    )
    assert heard.notes() == [
        "attached my dog.png (picture)",
        "attached a.wav (sound)",
        "attached b.mp4 (video)",
    ]
    assert "[red 40x30]" in (await answer(talk, "and again?")).text()


async def test_a_file_that_cannot_be_taken_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("hello")
    engine = ReadingEngine()
    talk = talk_with(engine)
    await answer(talk, "one")
    assert "letter.jpg: this is text; supported are JPEG" in await failure(
        talk, f"see {tmp_path}/letter.jpg"
    )
    assert "there is no file" in await failure(talk, f"see {tmp_path}/absent.jpg")
    assert await failure(talk, "  ") == "there is nothing to say"
    assert len(engine.requests) == 1 and talk.turns == 1
    assert len((await answer(talk, "two")).text().split("\n")) == 3


async def test_the_oldest_turns_make_room() -> None:
    engine = SmallEngine()
    talk = talk_with(engine)
    await answer(talk, "one")
    await answer(talk, "two")
    heard = await answer(talk, "three")
    assert heard.notes() == ["left the oldest turn out, to make room"]
    assert "one" not in said(engine.requests[-1]).split("\n")[0]
    assert talk.turns == 2
    engine.most = 1
    assert (await answer(talk, "four")).notes() == ["left the 2 oldest turns out, to make room"]


async def test_a_question_that_never_fits_costs_no_history() -> None:
    talk = talk_with(SmallEngine())
    await answer(talk, "one")
    assert await failure(talk, "a long question") == "the prompt is too long"
    assert talk.turns == 1


async def test_another_refusal_is_not_answered_by_forgetting() -> None:
    engine = ReadingEngine()
    talk = talk_with(engine)
    await answer(talk, "one")
    engine.before = RequestError("no pictures here")
    assert await failure(talk, "two") == "no pictures here"
    assert len(engine.requests) == 2 and talk.turns == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [(WorkerLost("the engine's process died"), "process died"), (ValueError("x"), "failed: x")],
)
async def test_an_engine_that_fails_leaves_the_history(error: Exception, words: str) -> None:
    engine = ReadingEngine()
    talk = talk_with(engine)
    await answer(talk, "one")
    engine.failing = error
    with pytest.raises(EngineError, match=words):
        await talk.say("two is more", Listener())
    engine.failing = None
    assert talk.turns == 1
    assert "two" not in (await answer(talk, "three")).text()


async def test_a_stopped_answer_is_remembered_as_far_as_it_came() -> None:
    class Slow(ReadingEngine):
        async def _say(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
            yield ChatDelta("half an ")
            await self.held.wait()
            yield ChatDelta("answer")
            yield ChatDone("stop", 1, 1)

        held = asyncio.Event()

    engine = Slow()
    talk = talk_with(engine)
    heard = Listener()
    asking = asyncio.ensure_future(talk.say("one", heard))
    while not heard.shown:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert engine.running == 0 and engine.given_up == 1
    engine.held.set()
    await answer(talk, "two")
    assert said(engine.requests[-1]) == "user: one\nassistant: half an \nuser: two"


async def test_reasoning_is_shown_and_not_remembered() -> None:
    engine = ReadingEngine()
    talk = talk_with(engine, thinking=True)
    heard = await answer(talk, "one")
    assert heard.text(reasoning=True) == "Let me see."
    await answer(talk, "two")
    assert "Let me see" not in said(engine.requests[-1])


async def test_an_answer_that_was_cut_off_says_so() -> None:
    heard = await answer(talk_with(ReadingEngine(), max_tokens=2), "a b c")
    assert heard.text() == "user: a" and "cut off" in heard.notes()[0]


async def test_sound_comes_in_its_place_among_the_words_and_is_not_remembered() -> None:
    engine = SpeakingEngine()
    talk = talk_with(engine, speaks=True, voice="ben")
    heard = await answer(talk, "one two")
    words = ["user:", " one", " two\nspeaks=True\nvoice='ben'"]
    kinds = [type(piece) for piece in heard.shown]
    assert kinds == [ChatDelta, ChatAudio] * 3 and heard.text() == "".join(words)
    sounds = [piece.samples for piece in heard.shown if isinstance(piece, ChatAudio)]
    for word, sound in zip(words, sounds, strict=True):
        assert np.array_equal(sound, sound_of(word.strip()))
    engine.fails_after = 2
    heard = await answer(talk, "three")
    assert sum(isinstance(piece, ChatAudio) for piece in heard.shown) == 2
    assert heard.notes() == ["the voice failed on the way: the sound ends before the words"]
    parts = [part for message in engine.requests[-1].messages for part in message.content]
    assert all(isinstance(part, ChatText) for part in parts)


async def test_the_history_has_an_end() -> None:
    engine = ReadingEngine()
    talk = talk_with(engine, max_tokens=1)
    for number in range(MOST_TURNS + 5):
        await answer(talk, f"q{number}")
    assert talk.turns == MOST_TURNS
    await answer(talk, "last")
    assert said(engine.requests[-1]).startswith("user: q5\n")
