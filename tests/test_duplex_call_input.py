"""What a full-duplex call on the tiny model takes in: words, pictures, sound; and takes back."""

from dataclasses import replace

import numpy as np
import pytest

from agent.commands import (
    AddPicture,
    AddText,
    ClearInput,
    CommitInput,
    DeleteItem,
    ForceListen,
    Respond,
    Retract,
)
from agent.duplex.call import MAX_UNITS_BEHIND
from agent.duplex.conversation import MAX_PUT_IN_TOKENS
from agent.errors import RequestError, UnsupportedError
from agent.types import UNIT_SAMPLES, Listened, TextDelta, TurnEnded, TurnStarted
from tests.rig.scripted_call import SETTINGS, begun, picture, picture_file
from tests.rig.tiny_mind import LISTEN, says, second

# ---- what is typed or shown ---------------------------------------------------------------------


def test_typed_words_are_read_with_the_next_unit() -> None:
    call = begun(LISTEN, LISTEN)
    before = call.context_tokens
    call.tell(AddText("a", "user", "hello"))
    call.listen()
    assert call.context_tokens == before + 13 + 5
    call.listen()
    assert call.context_tokens == before + 13 + 5 + 13


def test_a_deleted_item_is_not_read_any_more() -> None:
    call = begun(LISTEN)
    before = call.context_tokens
    call.tell(AddText("a", "user", "hello"))
    call.tell(DeleteItem("a"))
    call.tell(DeleteItem("unknown"))
    call.listen()
    assert call.context_tokens == before + 13


def test_more_words_than_a_unit_takes_are_refused_and_the_others_stay() -> None:
    call = begun(LISTEN)
    before = call.context_tokens
    call.tell(AddText("a", "user", "hello"))
    most = call.call._talk.unit_room_tokens // 4
    assert most < MAX_PUT_IN_TOKENS
    with pytest.raises(RequestError, match=f"more than {most} tokens"):
        call.tell(AddText("b", "user", "x" * (most - 4)))
    call.listen()
    assert call.context_tokens == before + 13 + 5


def test_what_the_model_cannot_be_told_is_refused() -> None:
    call = begun(LISTEN)
    with pytest.raises(UnsupportedError):
        call.tell(AddText("a", "assistant", "I said"))
    assert call.listen() == [Listened(3)]


def test_a_picture_is_seen_with_the_next_unit_and_an_impossible_one_is_refused() -> None:
    call = begun(LISTEN)
    before = call.context_tokens
    call.tell(AddPicture("a", picture_file(1, 1)))
    for file, words in (
        (picture_file(2000, 10), "crop"),
        (picture_file(20_000, 20_000), "at most 25 million pixels"),
        (picture_file(40, 40)[:-30], "damaged"),
        (b"no picture", "none of JPEG"),
    ):
        with pytest.raises(RequestError, match=words):
            call.tell(AddPicture("b", file))
    call.listen()
    assert call.context_tokens == before + 13 + 66


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "audio",
    [
        np.full(UNIT_SAMPLES, np.nan, np.float32),
        np.full(UNIT_SAMPLES, np.inf, np.float32),
        np.zeros(4800, np.float32),
        np.zeros(0, np.float32),
        np.zeros(20_000, np.float32),
    ],
    ids=["nan", "inf", "0.3 s", "empty", "too long"],
)
def test_a_unit_of_broken_sound_is_heard_as_far_as_it_is_sound(audio: np.ndarray) -> None:
    call, silent = begun(LISTEN, LISTEN), begun(LISTEN, LISTEN)
    assert call.listen(audio=audio) == [Listened(3)]
    silent.listen(audio=np.zeros(UNIT_SAMPLES, np.float32))
    assert call.listen() == silent.listen() == [Listened(4)]
    caches = [one.parts.runner.slots.llm.tensor for one in (call, silent)]
    assert caches[0].isfinite().all() and (caches[0] == caches[1]).all()


def test_pictures_that_cannot_be_seen_are_left_out_and_the_newest_of_too_many_stay() -> None:
    call = begun(LISTEN, LISTEN, context_tokens=2048)
    before = call.context_tokens
    call.listen(pictures=(picture(3000, 20), picture()))
    assert call.context_tokens == before + 13 + 66
    call.listen(pictures=(picture(),) * 11)
    assert call.context_tokens == before + 2 * 13 + 9 * 66


def test_no_more_tiles_are_seen_in_a_second_than_fit_beside_what_was_said() -> None:
    settings = replace(SETTINGS, max_slices=9)
    call = begun(LISTEN, LISTEN, LISTEN, settings=settings)
    large = picture(1344, 1344)  # ten tiles of 66 tokens
    before = call.context_tokens
    assert call.listen(pictures=(large, picture(), large)) == [Listened(3)]
    assert call.context_tokens == before + 13
    with pytest.raises(RequestError, match="takes 10 tiles and only 5 fit"):
        call.tell(AddPicture("a", picture_file(1344, 1344)))
    call.listen(pictures=(large, picture()))
    assert call.context_tokens == before + 2 * 13 + 66


def test_a_model_that_is_behind_leaves_out_the_oldest_units() -> None:
    call = begun(*[LISTEN] * MAX_UNITS_BEHIND)
    for index in range(3, 3 + MAX_UNITS_BEHIND + 2):
        call.call.push(second(index))
    assert call.work() == [Listened(5 + one) for one in range(MAX_UNITS_BEHIND)]


# ---- units that are only tried ------------------------------------------------------------------


def test_a_unit_that_was_only_tried_can_be_taken_back() -> None:
    call, other = begun(says("ab"), LISTEN), begun(LISTEN)
    assert call.listen(speculative=True)[0] == TurnStarted(1)
    assert call.tell(Retract(3)) == [TurnEnded(1, "interrupted")]
    call.call.push(second(3))
    assert call.work() == other.listen() == [Listened(3)]
    assert call.context_tokens == other.context_tokens
    assert call.tell(Retract(3)) == []
    call.script.add(says("c"))
    call.heard = 4
    assert call.listen() == [TurnStarted(2), TextDelta(4, 2, "c")]


def test_two_full_seconds_fit_one_after_the_other() -> None:
    call = begun(LISTEN, LISTEN, LISTEN, context_tokens=1072)
    room = call.call._talk.unit_room_tokens
    for _ in range(3):
        call.tell(AddText("a", "user", "x" * (room // 4)))
        assert len(call.listen(pictures=(picture(),) * 8)) == 1


def test_a_deleted_item_takes_its_picture_along() -> None:
    call = begun(LISTEN)
    before = call.context_tokens
    call.tell(AddPicture("a", picture_file(28, 28)))
    call.tell(DeleteItem("a"))
    call.listen()
    assert call.context_tokens == before + 13


def test_an_agent_that_is_to_listen_forgets_that_it_was_asked() -> None:
    call = begun(LISTEN)
    call.tell(Respond())
    call.tell(ForceListen(True))
    call.tell(ForceListen(False))
    assert call.listen() == [Listened(3)]


def test_a_duplex_call_has_heard_what_is_committed_or_cleared() -> None:
    call = begun(LISTEN)
    assert call.tell(CommitInput("a", 3)) == call.tell(ClearInput(9)) == []
    assert call.listen() == [Listened(3)]
