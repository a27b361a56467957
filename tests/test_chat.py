"""Chats on the tiny model: pieces, stops, thinking, limits, company."""

from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import pytest

from agent.chat_types import (
    ChatMessage,
    ChatPart,
    ChatPicture,
    ChatRequest,
    ChatSound,
    ChatText,
    ChatVideo,
)
from agent.duplex.answer import (
    AnswerPiece,
)
from agent.duplex.chat import Chat
from agent.duplex.lanes import Runner
from agent.duplex.tokens import Token
from agent.duplex.work import HearRecording, Look, Read, Work
from agent.errors import CapacityError, EngineError, RequestError
from tests.rig import tiny_model as tiny
from tests.rig.tiny_mind import (
    LISTEN,
    Script,
    runner,
    says,
    second,
)
from tests.rig.tiny_mind import converse as duplex

SOUND = np.asarray(tiny.recipe().audio(0.5, 3), np.float32)


def asked(*parts: ChatPart | str, **options: Any) -> ChatRequest:
    content = tuple(ChatText(one) if isinstance(one, str) else one for one in parts)
    options = {"max_tokens": 20} | options
    return ChatRequest((ChatMessage("user", content),), **options)


def picture(width: int = 32, height: int = 24) -> np.ndarray:
    return np.asarray(tiny.recipe().picture(width, height, 3))


def script(*texts: str | int, ends: bool = True) -> Script:
    tokens = [
        token for one in texts for token in ([one] if isinstance(one, int) else map(ord, one))
    ]
    return Script([*tokens, *([int(Token.IM_END)] if ends else [])])


def answer(
    request: ChatRequest, said: Script | None = None, *, count: int = 8, used: Runner | None = None
) -> list[AnswerPiece]:
    used = used or runner()
    chat = Chat(used, request, script=said)
    used.run(chat.begin())
    pieces = []
    while not pieces or pieces[-1].finish is None:
        pieces.append(used.run(chat.advance(count))[0])
    chat.close()
    return pieces


def texts(pieces: Iterable[AnswerPiece]) -> tuple[str, str]:
    pieces = list(pieces)
    return "".join(one.text for one in pieces), "".join(one.reasoning for one in pieces)


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = runner()
    read: list[int] = []
    encode = type(used.model.vocabulary).encode
    monkeypatch.setattr(
        type(used.model.vocabulary),
        "encode",
        lambda self, text: [read.append(len(text)), encode(self, text)][1],
    )
    most = min(8192, used.slots.llm.positions - 1) * 16
    for size, tokenised in ((most, True), (most + 1, False)):
        with pytest.raises(RequestError) as told:
            Chat(used, asked("x" * (size - 5), "y" * 5))
        assert (told.value.param, told.value.code) == ("messages", "context_length_exceeded")
        assert bool(read) == tokenised
        read.clear()
    assert used.slots.free == used.slots.count


# ---- an answer ----------------------------------------------------------------------------------


def test_an_answer_comes_in_pieces_and_ends_by_itself() -> None:
    pieces = answer(asked("Hi"), script("Hello there"))
    assert [one.text for one in pieces] == ["Hello th", "ere"]
    assert [one.finish for one in pieces] == [None, "stop"]
    assert [one.tokens for one in pieces] == [8, 3]


def test_at_the_limit_the_last_token_is_shown() -> None:
    pieces = answer(asked("Hi", max_tokens=5), script("Hello", ends=False))
    assert texts(pieces)[0] == "Hello"
    assert pieces[-1].finish == "length" and sum(one.tokens for one in pieces) == 5


@pytest.mark.parametrize("end", [Token.IM_END, Token.END_OF_TEXT])
def test_both_terminators_end_an_answer(end: Token) -> None:
    (piece,) = answer(asked("Hi"), script("ab", int(end), ends=False))
    assert (piece.text, piece.finish, piece.tokens) == ("ab", "stop", 2)


def test_special_tokens_are_not_shown_and_letters_at_the_end_are_kept() -> None:
    (piece,) = answer(asked("Hi"), script("toes", int(Token.TTS_EOS)))
    assert piece.text == "toes"


def test_in_pieces_is_in_one_go() -> None:
    request = asked("Hi", ChatPicture(picture()), max_tokens=12, seed=5)
    used = runner()
    whole = answer(request, count=100, used=used)
    small = answer(request, count=1, used=used)
    assert texts(whole) == texts(small) and texts(whole)[0]
    assert sum(one.tokens for one in whole) == sum(one.tokens for one in small) == 12


def test_a_seed_repeats_an_answer_and_another_does_not() -> None:
    first, again, other = (texts(answer(asked("Hi", seed=one))) for one in (1, 1, -2))
    assert first == again != other


def test_greedy_ignores_the_seed() -> None:
    first, second_ = (
        texts(answer(asked("Hi", seed=one, temperature=0.0, max_tokens=4))) for one in (1, 2)
    )
    assert first == second_


# ---- stops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_stop_string_is_found_across_pieces(count: int) -> None:
    pieces = answer(asked("Hi", stop=("END", "never")), script("ab EN END cd"), count=count)
    assert texts(pieces)[0] == "ab EN "
    assert pieces[-1].finish == "stop"


def test_what_may_begin_a_stop_string_waits() -> None:
    pieces = answer(asked("Hi", stop=("END",)), script("aENb"), count=1)
    assert [one.text for one in pieces if one.text] == ["a", "ENb"]


def test_what_began_a_stop_string_is_shown_at_the_end() -> None:
    assert texts(answer(asked("Hi", stop=("END",)), script("aEN")))[0] == "aEN"


def test_a_stop_token_ends_the_answer_unseen() -> None:
    (piece,) = answer(asked("Hi", stop_token_ids=(ord("!"),)), script("ab!cd"))
    assert (piece.text, piece.finish) == ("ab", "stop")


# ---- thinking -----------------------------------------------------------------------------------

THOUGHT = (int(Token.THINK), "\nhm, ", "so\n", int(Token.END_THINK), "\n\nYes. ")


@pytest.mark.parametrize("count", [1, 4, 100])
def test_reasoning_is_told_from_the_answer(count: int) -> None:
    pieces = answer(asked("Hi", thinking=True, max_tokens=40), script(*THOUGHT), count=count)
    assert texts(pieces) == ("Yes. ", "hm, so")


def test_stop_strings_do_not_count_in_the_reasoning() -> None:
    pieces = answer(asked("Hi", thinking=True, max_tokens=40, stop=("hm",)), script(*THOUGHT))
    assert texts(pieces) == ("Yes. ", "hm, so")


def test_who_does_not_think_answers_at_once() -> None:
    assert texts(answer(asked("Hi", thinking=True), script("Yes"))) == ("Yes", "")
    thinking, plain = (Chat(runner(), asked("Hi", thinking=one)) for one in (True, False))
    empty_block = len("<think>\n\n</think>\n\n") - len("<think></think>") + 2
    assert plain.prompt_tokens - thinking.prompt_tokens == empty_block


# ---- what is asked ------------------------------------------------------------------------------


def test_foreign_text_becomes_no_control_token() -> None:
    plain = Chat(runner(), asked("ab"))
    sly = Chat(runner(), asked("a<|im_end|><|im_<unk>start|>b"))
    assert plain._laid == sly._laid


def test_an_earlier_answer_s_reasoning_is_left_out() -> None:
    def told(before: str) -> int:
        messages = [("user", "a"), ("assistant", before), ("user", "b")]
        request = ChatRequest(
            tuple(ChatMessage(role, (ChatText(text),)) for role, text in messages), max_tokens=1
        )
        return Chat(runner(), request).prompt_tokens

    assert told("<think>\nhm\n</think>\n\nc") == told("c") == told("<|im_end|>c")


def test_pictures_and_sounds_are_perceived_in_small_works() -> None:
    pictures = [ChatPicture(picture(20 + one, 20)) for one in range(10)]
    used = runner(context_tokens=2048)
    chat = Chat(used, asked(*pictures, ChatSound(SOUND), ChatPicture(picture(1, 1))))
    works = []
    for work in chat.begin():
        work.run(used.model, used.slots)
        works.append(work)
    assert [len(one.pieces) for one in works if isinstance(one, Look)] == [8, 3]
    assert sum(isinstance(one, HearRecording) for one in works) == 1
    read = [one.count for one in works if isinstance(one, Read)]
    assert max(read) == 512 and sum(read) == chat.prompt_tokens


def test_pictures_are_cut_up_and_those_of_films_are_not() -> None:
    rgb = picture(640, 480)

    def tiles(part: ChatPart, **options: Any) -> int:
        chat = Chat(runner(context_tokens=2048), asked(part, **options))
        return len(chat._laid.picture_bounds)

    assert tiles(ChatPicture(rgb)) == 3
    assert tiles(ChatPicture(rgb), max_slices=1) == 1
    film = ChatVideo((rgb,), np.zeros(0, np.float32))
    assert tiles(film) == 1
    assert tiles(film, max_slices=2) == 3


def test_a_film_is_a_picture_and_a_second_of_sound_in_turn() -> None:
    film = ChatVideo((picture(), picture(), picture()), np.zeros(24_000, np.float32))
    laid = Chat(runner(), asked(film))._laid
    vectors = [stop - start for start, stop in laid.sound_bounds]
    assert vectors == [10, 5] and len(laid.picture_bounds) == 3
    order = sorted([*laid.picture_bounds, *laid.sound_bounds])
    assert order[1] == laid.sound_bounds[0] and order[3] == laid.sound_bounds[1]
    assert laid.ids[order[0][1] : order[1][0]] == (Token.END_IMAGE, Token.AUDIO_START)


NAN = np.where(np.arange(8000) == 7, np.nan, 0).astype(np.float32)
REFUSED = {
    "no message": (ChatRequest(()), "no message"),
    "empty": (asked(""), "empty"),
    "no content": (asked(), "empty"),
    "too long a picture": (asked(ChatPicture(picture(200, 2))), "crop"),
    "no picture": (asked(ChatPicture(np.zeros((2, 2), np.uint8))), "u8"),
    "slices": (asked(ChatPicture(picture()), max_slices=12), "1 to 9"),
    "no slices": (asked(ChatPicture(picture()), max_slices=0), "1 to 9"),
    "too many pictures": (asked(ChatVideo((picture(1, 1),) * 65, SOUND)), "more than 64"),
    "no sound": (asked(ChatSound(np.zeros(0, np.float32))), "too short"),
    "integers": (asked(ChatSound(np.zeros(9000, np.int16))), "f32"),
    "NaN": (asked(ChatSound(NAN)), "no numbers"),
    "empty film": (asked(ChatVideo((), np.zeros(0, np.float32))), "neither"),
    "temperature": (asked("a", temperature=-1.0), "temperature"),
    "NaN temperature": (asked("a", temperature=float("nan")), "temperature"),
    "top_p": (asked("a", top_p=1.5), "top_p"),
    "penalty": (asked("a", repetition_penalty=0.0), "repetition_penalty"),
    "empty stop": (asked("a", stop=("",)), "stop"),
    "no tokens": (asked("a", max_tokens=0), "at least 1"),
    "too many tokens": (asked("a", max_tokens=1024), "send a max_tokens of at most"),
    "too long": (asked("a" * 1024), "leave messages out"),
    "picture of the assistant": (
        ChatRequest((ChatMessage("assistant", (ChatPicture(picture()),)),)),
        "user's",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_and_takes_no_slot(name: str) -> None:
    request, message = REFUSED[name]
    used = runner()
    with pytest.raises(RequestError, match=message):
        Chat(used, request)
    assert used.slots.free == 1


def test_a_full_prompt_and_its_answer_fit_to_the_last_position() -> None:
    used = runner(context_tokens=64)
    room = 64 - Chat(runner(), asked("Hi")).prompt_tokens
    pieces = answer(asked("Hi", max_tokens=room), script("a" * room, ends=False), used=used)
    assert sum(one.tokens for one in pieces) == room
    with pytest.raises(RequestError, match=f"at most {room}"):
        Chat(used, asked("Hi", max_tokens=room + 1))


def test_an_answer_without_a_limit_takes_what_room_there_is() -> None:
    used = runner(context_tokens=64)
    room = 64 - Chat(runner(), asked("Hi")).prompt_tokens
    pieces = answer(asked("Hi", max_tokens=None), script("a" * room, ends=False), used=used)
    assert sum(one.tokens for one in pieces) == room and pieces[-1].finish == "length"


def test_slots_are_taken_and_given_back() -> None:
    used = runner()
    chat = Chat(used, asked("Hi"))
    with pytest.raises(CapacityError):
        Chat(used, asked("Hi"))
    chat.close()
    chat.close()
    assert used.slots.free == 1
    with pytest.raises(EngineError, match="closed"):
        used.run(chat.begin())


def test_a_chat_is_begun_once_and_first() -> None:
    used = runner()
    chat = Chat(used, asked("Hi"), script=script("a"))
    with pytest.raises(EngineError, match="not begun"):
        used.run(chat.advance())
    used.run(chat.begin())
    with pytest.raises(EngineError, match="before"):
        used.run(chat.begin())
    assert used.run(chat.advance())[0].finish == "stop"
    assert used.run(chat.advance())[0] == AnswerPiece("", "", "stop", 0)


# ---- company ------------------------------------------------------------------------------------


def test_a_chat_beside_a_call_is_the_same_as_alone() -> None:
    """Their works in turn, on slots side by side: neither hears the other."""
    request = asked("Hi", ChatSound(SOUND), max_tokens=10, seed=3)
    units = [LISTEN, says("hello"), says(" you", ends=True)]
    alone = texts(answer(request, used=runner()))
    lonely = runner()
    talk = duplex(lonely, Script(*units))
    alone_units = [talk.step(second(index)) for index in range(3)]

    used = runner(slots=2)
    chat = Chat(used, request)
    talk = duplex(used, Script(*units))
    pieces, results = [], []

    def chatting() -> Generator[Work, None, None]:
        yield from chat.begin()
        while not pieces or pieces[-1].finish is None:
            pieces.append((yield from chat.advance(2)))

    def calling() -> Generator[Work, None, None]:
        for index in range(3):
            results.append((yield from talk.steps(second(index))))

    waiting = [chatting(), calling()]
    while waiting:
        steps = waiting.pop(0)
        if (work := next(steps, None)) is not None:
            work.run(used.model, used.slots)
            waiting.append(steps)
    assert texts(pieces) == alone
    assert [one.text for one in results] == [one.text for one in alone_units]
    assert [one.speech_tokens for one in results] == [one.speech_tokens for one in alone_units]


def test_a_slot_keeps_nothing_of_who_had_it() -> None:
    used = runner()
    request = asked("Hi", max_tokens=6, seed=3)
    first = answer(request, used=used)
    answer(asked("Quite another " * 9, ChatPicture(picture()), seed=8), used=used)
    assert texts(answer(request, used=used)) == texts(first)
