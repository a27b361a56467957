"""What a half-duplex conversation gives up, goes back to and forgets, on the tiny model."""

import numpy as np
import pytest

from agent.duplex.window import WindowSettings
from agent.errors import EngineError, RequestError
from tests.rig.tiny_mind import runner
from tests.rig.turn_talk import HEADER, SPOKEN, Talk, same, sound, text

# ---- giving up ----------------------------------------------------------------------------------


def test_what_was_not_heard_is_forgotten() -> None:
    """The cache is then that of a conversation in which only what was heard had been said."""
    talk = Talk("Hello there, who is it?", "ok", settings=SPOKEN)
    talk.read("Hi")
    at = talk.talk.context_tokens + HEADER
    first = talk.run(talk.talk.answer_steps())
    talk.run(talk.talk.answer_steps())
    heard_ms = 200 + 40 * len(first.speech_tokens) // 2
    assert talk.talk.stop(heard_ms) == 15
    assert talk.talk.context_tokens == at + 5 and not talk.talk.answering
    talk.read("No!")
    plain = Talk("Hello", settings=SPOKEN)
    plain.read("Hi")
    plain.answer()
    plain.read("No!")
    assert same(talk.cached(), plain.cached())


def test_all_was_heard_of_a_silent_answer() -> None:
    talk = Talk("Hello there, who is it?")
    talk.read("Hi")
    talk.run(talk.talk.answer_steps())
    before = talk.talk.context_tokens
    assert talk.talk.stop(0) == 0 and talk.talk.context_tokens == before
    assert not talk.talk.answering


def test_it_is_too_late_to_give_up_an_answer_behind_the_user_s_next_turn() -> None:
    talk = Talk("Hello", settings=SPOKEN)
    assert talk.talk.stop(0) == 0
    talk.read("Hi")
    assert talk.talk.stop(0) == 0
    talk.answer()
    talk.read("Hm")
    before = talk.talk.context_tokens
    assert talk.talk.stop(0) == 0 and talk.talk.context_tokens == before


def test_an_answer_that_was_only_tried_leaves_no_trace() -> None:
    talk, other = Talk(max_tokens=6), Talk(max_tokens=6)
    for one in (talk, other):
        one.hear(1.2)
    saved = talk.talk.save()
    talk.answer()
    talk.talk.restore(saved)
    for one in (talk, other):
        one.hear(0.5, seed=6)
    assert same(talk.cached(), other.cached())
    assert text(talk.answer()) == text(other.answer())


def test_nothing_is_saved_during_an_answer() -> None:
    talk = Talk("Hello there")
    talk.read("Hi")
    talk.run(talk.talk.answer_steps())
    with pytest.raises(EngineError, match="under way"):
        talk.talk.save()


def test_live_sound_is_gone_back_over() -> None:
    talk, other = Talk("ok"), Talk()
    for one in (talk, other):
        one.run(one.talk.hear_live_steps(sound(1.5)))
    saved = talk.talk.save()
    talk.answer()
    talk.run(talk.talk.hear_live_steps(sound(1.2, 9)))
    talk.talk.restore(saved)
    for one in (talk, other):
        one.run(one.talk.hear_live_steps(sound(0.9, 6), is_last=True))
    assert same(talk.cached(), other.cached())


def test_a_snapshot_too_old_is_refused() -> None:
    talk = Talk("Hello there", settings=SPOKEN)
    talk.read("Hi")
    talk.answer()
    saved = talk.talk.save()
    assert talk.talk.stop(0) == 11
    with pytest.raises(EngineError, match="too far"):
        talk.talk.restore(saved)


# ---- forgetting ---------------------------------------------------------------------------------


def test_the_oldest_rounds_are_forgotten_whole_and_the_system_stays() -> None:
    window = WindowSettings(mode="basic", high_tokens=200, low_tokens=120)
    talk = Talk(*["answer"] * 8, window=window)
    protected = talk.talk.context_tokens
    system = talk.cached()
    lengths = []
    for _ in range(8):
        talk.read("a question of mine")
        talk.answer()
        lengths.append(talk.talk.context_tokens)
    assert max(lengths) <= 200 and lengths[-1] < sum(np.diff(lengths).clip(0))
    round_ = lengths[2] - lengths[1]
    first_closing = len("<><>\n") - 2  # only a later question closes an answer before it
    assert {(one - protected + first_closing) % round_ for one in lengths[:3]} == {0}
    assert (lengths[-1] - protected) % round_ == 0
    assert same(talk.cached()[:, :, :, :protected], system)


def test_a_round_that_moved_is_given_up_at_the_right_place() -> None:
    window = WindowSettings(mode="basic", high_tokens=110, low_tokens=109)
    talk = Talk("answer", "other answer", settings=SPOKEN, window=window)
    talk.read("a question of mine")
    talk.answer()
    talk.read("another one of them")
    at = talk.talk.context_tokens
    talk.answer()
    moved = at + HEADER + 12 - talk.talk.context_tokens
    assert moved > 0
    assert talk.talk.stop(0) == 12
    assert talk.talk.context_tokens == at + HEADER - moved


def test_a_slot_without_room_forgets_or_refuses() -> None:
    talk = Talk(*["a"] * 4, used=runner(context_tokens=200), max_tokens=20)
    for _ in range(4):
        talk.read("b" * 60)
        talk.answer()
    before = talk.talk.context_tokens
    with pytest.raises(RequestError, match="fit"):
        talk.read("b" * 200)
    assert talk.talk.context_tokens == before
    talk.read("b" * 60)


def test_an_answer_is_no_longer_than_there_is_room() -> None:
    used = runner(context_tokens=100)
    talk = Talk("a" * 90, used=used, max_tokens=90)
    talk.read("Hi")
    room = 100 - talk.talk.context_tokens - HEADER
    pieces = talk.answer()
    assert text(pieces) == "a" * room and pieces[-1].finish == "length"
