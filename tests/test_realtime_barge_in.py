"""What is told when the user talks over the agent, or its sound runs out."""

from collections.abc import Iterator

import pytest

from tests.rig.realtime_order import AUDIO_CHAIN, OPENING, USER_CHAIN
from tests.rig.realtime_watch import Watched, kinds

STARTED = "output_audio_buffer.started"
STOPPED = "output_audio_buffer.stopped"
CLEARED = "output_audio_buffer.cleared"
TRUNCATED = "conversation.item.truncated"
DELTA = "response.output_audio_transcript.delta"


@pytest.fixture
def call() -> Iterator[Watched]:
    """An open call; at the end the order of everything it said is checked."""
    watched = Watched()
    yield watched
    watched.finish()


def item_of(call: Watched) -> dict[str, object]:
    """The agent's newest item, as a client retrieves it."""
    item_id = call.last("response.output_item.added")["item"]["id"]
    (retrieved,) = call.send("conversation.item.retrieve", item_id=item_id)
    item: dict[str, object] = retrieved["item"]
    return item


# ---- barge-in ---------------------------------------------------------------------------------


def test_barge_in_in_mid_response_keeps_only_what_was_heard(call: Watched) -> None:
    call.speak(1, ("One ", 1000), ("two ", 1000), ("three", 1000))
    events = call.take(call.call.speech_started(32_000))
    events += call.take(call.call.playout_cleared(1, 1500, "turn_detected"))
    assert kinds(events) == [USER_CHAIN[0], CLEARED, *AUDIO_CHAIN, TRUNCATED]
    done = call.last("response.done")["response"]
    assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert done["output"][0]["status"] == "incomplete"
    assert done["output"][0]["content"][0]["transcript"] == "One"
    assert call.last(TRUNCATED)["audio_end_ms"] == 1500
    assert call.heard() == "One", "half of a word is no word"
    assert call.text(1, "four") == []
    assert call.sound(1, 500) == []
    assert call.end(1, "interrupted") == []
    assert call.take(call.call.playout_drained(1)) == []


def test_barge_in_after_response_done_only_truncates(call: Watched) -> None:
    call.spoken(1, ("One ", 1000), ("two", 1000))
    events = call.take(call.call.speech_started(32_000))
    events += call.take(call.call.playout_cleared(1, 900, "turn_detected"))
    assert kinds(events) == [USER_CHAIN[0], CLEARED, TRUNCATED]
    assert call.heard() == "One"
    assert item_of(call)["status"] == "incomplete"


def test_while_it_plays_an_item_tells_the_words_heard_so_far(call: Watched) -> None:
    call.spoken(1, ("One ", 1000), ("two ", 1000), ("three", 1000))
    assert call.heard() == "One two three", "nobody follows what is heard"
    for heard_ms, words in ((-5, ""), (0, ""), (1100, "One"), (1900, "One two"), (2500, "One two")):
        call.call.heard(1, heard_ms)
        assert call.heard() == words
    assert item_of(call)["status"] == "completed", "generated it is"
    call.take(call.call.playout_drained(1))
    assert call.heard() == "One two three"
    call.call.heard(1, 1100)
    assert call.heard() == "One two three", "late news of a turn that is over"


def test_what_is_told_at_the_end_of_generation_is_all_of_it(call: Watched) -> None:
    call.speak(1, ("One ", 1000), ("two", 1000))
    call.call.heard(1, 300)
    assert call.heard() == ""
    call.end(1)
    done = call.last("response.done")["response"]["output"][0]["content"]
    assert done == [{"type": "output_audio", "transcript": "One two"}]


def test_a_turn_that_waits_behind_another_was_not_heard_yet(call: Watched) -> None:
    call.spoken(1, ("One", 3000))
    call.start(2)
    call.text(2, "Two")
    call.sound(2, 1000)
    call.call.heard(1, 2000)
    assert call.heard() == ""
    call.take(call.call.playout_drained(1))
    call.take(call.call.playout_started(2))
    call.call.heard(2, 1000)
    assert call.heard() == "Two"


def test_a_barge_in_keeps_what_the_ledger_says_whatever_was_heard_before(call: Watched) -> None:
    call.spoken(1, ("One ", 1000), ("two ", 1000), ("three", 1000))
    call.call.heard(1, 1100)
    call.take(call.call.playout_cleared(1, 2100, "turn_detected"))
    assert call.last(TRUNCATED)["audio_end_ms"] == 2100
    assert call.heard() == "One two"


def test_the_cut_lies_within_what_was_generated(call: Watched) -> None:
    call.speak(1, ("One", 700))
    call.take(call.call.playout_cleared(1, 5000, "turn_detected"))
    assert call.last(TRUNCATED)["audio_end_ms"] == 700


def test_nothing_heard_means_no_words(call: Watched) -> None:
    call.speak(1, ("One", 700))
    call.take(call.call.playout_cleared(1, 0, "turn_detected"))
    assert call.heard() == ""


def test_clearing_twice_or_after_the_end_says_nothing(call: Watched) -> None:
    call.spoken(1, ("One", 700))
    call.take(call.call.playout_drained(1))
    assert call.take(call.call.playout_cleared(1, 700, "turn_detected")) == []
    assert call.take(call.call.playout_cleared(9, 0, "turn_detected")) == []
    assert call.heard() == "One"


def test_barge_in_drops_the_turn_queued_behind_too(call: Watched) -> None:
    call.spoken(1, ("One", 1000))
    call.start(2)
    call.text(2, "Two")
    call.sound(2, 500)
    call.end(2)
    cleared = call.take(call.call.playout_cleared(1, 400, "turn_detected"))
    expected = [CLEARED, TRUNCATED, CLEARED, *AUDIO_CHAIN, TRUNCATED]
    assert kinds(cleared) == expected
    assert call.heard() == ""
    assert kinds(call.start(3)) == OPENING[:1]


def test_a_turn_whose_sound_was_dropped_while_it_grew_ends_cancelled(call: Watched) -> None:
    call.spoken(1, ("One", 1000))
    call.start(2)
    call.sound(2, 500)
    call.take(call.call.playout_cleared(1, 400, "turn_detected"))
    assert kinds(call.end(2)) == AUDIO_CHAIN
    assert call.last("response.done")["response"]["status"] == "cancelled"


def test_an_engine_that_stops_by_itself_cancels_its_response(call: Watched) -> None:
    call.speak(1, ("One", 700))
    assert kinds(call.end(1, "interrupted")) == AUDIO_CHAIN
    cleared = call.take(call.call.playout_cleared(1, 300, "turn_detected"))
    assert kinds(cleared) == [CLEARED, TRUNCATED]


def test_a_new_turn_gives_up_the_one_still_open(call: Watched) -> None:
    call.speak(1, ("One", 700))
    assert kinds(call.start(2)) == [*AUDIO_CHAIN, *OPENING[:1]]
    assert call.events[-1]["response"]["status"] == "in_progress"
    assert call.start(2) == []
    assert call.start(1) == []


def test_the_next_response_may_grow_while_the_last_one_plays(call: Watched) -> None:
    call.spoken(1, ("One", 3000))
    call.start(2)
    call.sound(2, 100)
    call.take(call.call.playout_drained(1))
    stopped = call.last(STOPPED)["response_id"]
    assert stopped != call.last("response.created")["response"]["id"]
    call.take(call.call.playout_started(2))
    assert call.last(STARTED)["response_id"] == call.last("response.created")["response"]["id"]


def test_an_underrun_is_no_end(call: Watched) -> None:
    call.speak(1, ("One", 300))
    assert call.take(call.call.playout_drained(1)) == []
    call.sound(1, 300)
    assert call.take(call.call.playout_started(1)) == []
    call.end(1)
    assert kinds(call.take(call.call.playout_drained(1))) == [STOPPED]


def test_sound_that_ran_out_before_the_turn_ended_stops_with_it(call: Watched) -> None:
    call.speak(1, ("One", 300))
    call.take(call.call.playout_drained(1))
    assert kinds(call.end(1)) == [*AUDIO_CHAIN, STOPPED]
