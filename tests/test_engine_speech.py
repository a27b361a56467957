"""The engine on the tiny model, asked for sound outside of calls: whose work is next, who fails."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.chat_types import (
    ChatAudio,
    ChatDelta,
    ChatDone,
    ChatMessage,
    ChatRequest,
    ChatText,
    SpeechRequest,
)
from agent.duplex import answer_speech
from agent.duplex.engine import DuplexEngine
from agent.duplex.work import Work
from agent.errors import (
    CapacityError,
    RequestError,
    UnsupportedError,
    VocoderError,
)
from agent.types import Abilities, Failed, Listened
from tests.rig.answer_voice import TAIL_SAMPLES, Choir, TwoVoices, sung
from tests.rig.scripted_call import SETTINGS, parts
from tests.rig.tiny_mind import second

ABILITIES = Abilities(duplex=True, chat=True, text_to_speech=True)


@pytest.fixture(autouse=True)
def _short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model finds no end by itself."""
    monkeypatch.setattr(answer_speech, "_WORD_SPEECH_TOKENS", 4)


class Desk:
    def __init__(self, choir: Choir | None = None, slots: int = 3, **changes: object) -> None:
        self.choir = choir or Choir()
        changes = {"vocoder": self.choir, "voices": TwoVoices()} | changes
        self.parts = parts(slots=slots, **changes)
        self.engine = DuplexEngine(self.parts, ABILITIES)

    @property
    def free(self) -> int:
        return self.parts.runner.slots.free

    def work(self) -> list[tuple[int, Any]]:
        said = self.engine.work()
        while self.engine.idle_s() == 0:
            said += self.engine.work()
        return said


def ask(text: str = "Hi", **changes: Any) -> ChatRequest:
    message = ChatMessage("user", (ChatText(text),))
    return ChatRequest((message,), **({"max_tokens": 13, "seed": 1, "speaks": True} | changes))


def read(text: str = "Hello there, who?", **changes: Any) -> SpeechRequest:
    return SpeechRequest(text, **({"seed": 1} | changes))


def of(number: int, said: list[tuple[int, Any]]) -> list[Any]:
    return [event for to, event in said if to == number]


def heard(events: list[Any]) -> np.ndarray:
    return np.concatenate([one.samples for one in events if isinstance(one, ChatAudio)])


# ---- what is said -------------------------------------------------------------------------------


def test_a_chat_is_heard_behind_its_words_and_before_it_is_complete() -> None:
    desk = Desk()
    desk.engine.chat(1, ask())
    said = of(1, desk.work())
    kinds = "".join("t" if isinstance(one, ChatDelta) else "s" for one in said[:-1])
    assert kinds.startswith("ts") and kinds.count("t") == 2 and kinds.endswith("ss")
    done = said[-1]
    assert isinstance(done, ChatDone) and done.is_voiced and done.answer_tokens == 13
    assert done.speech_tokens == len(desk.choir.tokens) > 0
    assert np.array_equal(heard(said)[:-TAIL_SAMPLES], sung(desk.choir.tokens))
    assert [one.voice for one in desk.choir.streams] == ["the key of anna"]
    assert desk.free == 3


def test_a_chat_that_is_not_to_be_heard_is_silent() -> None:
    desk = Desk()
    desk.engine.chat(1, ask(speaks=False))
    said = of(1, desk.work())
    assert not any(isinstance(one, ChatAudio) for one in said) and not desk.choir.streams
    assert said[-1].speech_tokens == 0 and said[-1].is_voiced


def test_a_text_is_read_aloud_in_the_voice_that_is_asked_for() -> None:
    desk = Desk()
    desk.engine.chat(1, read(voice="ben"))
    said = of(1, desk.work())
    assert {type(one) for one in said[:-1]} == {ChatAudio}
    done = said[-1]
    assert done == ChatDone("stop", done.prompt_tokens, 17, len(desk.choir.tokens))
    assert done.prompt_tokens > 100
    assert [one.voice for one in desk.choir.streams] == ["the key of ben"]
    assert np.array_equal(heard(said)[:-TAIL_SAMPLES], sung(desk.choir.tokens))
    assert desk.free == 3


def test_two_that_are_heard_at_once_do_not_mix() -> None:
    alone = {}
    for number, request in ((1, ask(voice="anna")), (2, read(voice="ben"))):
        desk = Desk()
        desk.engine.chat(number, request)
        alone[number] = heard(of(number, desk.work()))
    both = Desk()
    both.engine.chat(1, ask(voice="anna"))
    both.engine.chat(2, read(voice="ben"))
    said = both.work()
    for number, sound in alone.items():
        assert np.array_equal(heard(of(number, said)), sound)
    order = [number for number, event in said if isinstance(event, ChatAudio)]
    assert order.index(2) < len(order) - order[::-1].index(1)  # they take turns
    assert both.free == 3


# ---- company ------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ask(), read()])
def test_a_call_s_unit_goes_between_two_pieces(request_: ChatRequest | SpeechRequest) -> None:
    desk = Desk()
    desk.engine.open(1, SETTINGS)
    desk.work()
    desk.engine.chat(7, request_)
    said: list[tuple[int, Any]] = []
    while not any(isinstance(one, ChatAudio) for one in of(7, said)):
        said += desk.engine.work()
    before = len(of(7, said))
    desk.engine.push(1, second(0))
    while Listened(0) not in of(1, said):
        said += desk.engine.work()
    assert len(of(7, said)) == before
    assert isinstance(of(7, desk.work())[-1], ChatDone)


def test_no_piece_of_a_reading_holds_two_works(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    desk.engine.chat(1, read())
    done: list[Work] = []
    reading = desk.engine._chats[1].chat
    steps = type(reading).advance

    def watched(self: Any) -> Any:
        inner = steps(self)
        while True:
            try:
                work = next(inner)
            except StopIteration as stop:
                return stop.value
            yield work
            done.append(work)

    monkeypatch.setattr(type(reading), "advance", watched)
    counts = [0]
    while desk.engine.idle_s() == 0:
        desk.engine.work()
        counts.append(len(done))
    assert max(np.diff(counts)) == 1 and counts[-1] > 6


# ---- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ask(), read()])
@pytest.mark.parametrize("pieces", [0, 1, 12])
def test_who_hangs_up_hears_no_more(request_: ChatRequest | SpeechRequest, pieces: int) -> None:
    desk = Desk()
    desk.engine.chat(1, request_)
    for _ in range(pieces):
        desk.engine.work()
    desk.engine.finish(1)
    desk.engine.finish(1)
    known = len(desk.choir.tokens)
    assert desk.work() == [] and desk.engine.idle_s() is None
    assert len(desk.choir.tokens) == known and desk.free == 3


def test_a_chat_whose_voice_fails_goes_on_in_text_and_says_so() -> None:
    whole, broken = Desk(), Desk(Choir(fails_at=1))
    for desk in (whole, broken):
        desk.engine.chat(1, ask())
    theirs, ours = of(1, whole.work()), of(1, broken.work())
    texts = [
        "".join(one.text for one in said if isinstance(one, ChatDelta)) for said in (theirs, ours)
    ]
    assert texts[0] == texts[1] != ""
    assert not ours[-1].is_voiced and ours[-1].answer_tokens == theirs[-1].answer_tokens
    assert sum(isinstance(one, ChatAudio) for one in ours) == 1
    assert broken.free == 3


def test_a_reading_whose_voice_fails_fails() -> None:
    desk = Desk(Choir(fails_at=1))
    desk.engine.chat(1, read())
    said = of(1, desk.work())
    assert isinstance(said[0], ChatAudio)
    assert isinstance(said[-1], Failed) and isinstance(said[-1].error, VocoderError)
    assert desk.free == 3


# ---- what cannot be -----------------------------------------------------------------------------


def test_without_a_vocoder_nothing_is_heard_and_that_is_said_at_once() -> None:
    desk = Desk(vocoder=None)
    for request, param in ((ask(), "modalities"), (read(), "model")):
        with pytest.raises(UnsupportedError, match="no vocoder") as told:
            desk.engine.chat(1, request)
        assert told.value.param == param
    assert desk.free == 3 and desk.work() == []


@pytest.mark.parametrize("request_", [ask(voice="carl"), read(voice="carl")])
def test_a_voice_that_there_is_not_is_refused(request_: ChatRequest | SpeechRequest) -> None:
    desk = Desk()
    with pytest.raises(RequestError, match="carl") as told:
        desk.engine.chat(1, request_)
    assert told.value.param == "voice" and desk.free == 3


def test_a_voice_whose_recording_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: TwoVoices, key: str) -> None:
        raise RequestError("the recording is gone", param="voice")

    monkeypatch.setattr(TwoVoices, "duplex", gone)
    desk = Desk()
    with pytest.raises(RequestError, match="is gone") as told:
        desk.engine.chat(1, read())
    assert told.value.param == "voice" and desk.free == 3


@pytest.mark.parametrize("request_", [read(""), read("x" * 5000)])
def test_a_text_that_cannot_be_read_is_refused(request_: SpeechRequest) -> None:
    desk = Desk()
    with pytest.raises(RequestError) as told:
        desk.engine.chat(1, request_)
    assert told.value.param == "input" and desk.free == 3


def test_a_reading_leaves_the_last_slot_to_a_call() -> None:
    desk = Desk(slots=2)
    desk.engine.chat(1, read())
    with pytest.raises(CapacityError):
        desk.engine.chat(2, read())
    desk.engine.open(3, replace(SETTINGS, voice="ben"))
