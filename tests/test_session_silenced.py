"""One call whose agent is silenced: who is told, and how much of a turn counts as heard."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from agent.commands import ForceListen, Interrupt, Pause
from agent.media.barge_in import BargeInDue, DuckDue
from agent.media.ledger import Ledger
from agent.types import SpeechStarted
from tests.rig.call_parts import MS, voice
from tests.rig.driven_call import DrivenCall
from tests.rig.realtime_order import AUDIO_CHAIN

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

CLEARED = "output_audio_buffer.cleared"
STOPPED = "output_audio_buffer.stopped"
TRUNCATED = "conversation.item.truncated"
RESUMED = "voice_agent.resumed"


@pytest.fixture
async def call() -> AsyncIterator[DrivenCall]:
    """A call under way; at its end the order of everything the client got is checked."""
    driven = DrivenCall()
    await driven.begin()
    yield driven
    await driven.leave()


# ---- barge-in ---------------------------------------------------------------------------------


async def test_a_barge_in_silences_the_agent_and_everyone_is_told_the_same_mark(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello you", voice(3000)))
    await call.play(500)
    ledger_says_ms = 500
    await call.hear(SpeechStarted(0), BargeInDue(0))
    assert [event["audio_end_ms"] for event in call.events(TRUNCATED)] == [ledger_says_ms]
    assert call.commands(Interrupt) == [Interrupt(1, ledger_says_ms)]
    kinds = call.kinds()
    at = kinds.index(CLEARED)
    assert kinds[at : at + 8] == [CLEARED, *AUDIO_CHAIN, TRUNCATED]
    rest = await call.play(200)
    assert not rest[10 * MS :].any()
    assert call.counted("barge_ins_total") == 1
    assert call.counted("ducks_total", verdict="flushed") == 0


async def test_sound_of_a_turn_that_was_interrupted_is_dropped_and_the_next_one_plays(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello ", voice(1000)))
    await call.play(200)
    await call.hear(BargeInDue(0))
    await call.play(20)
    await call.go_on(1, ("you", voice(1000, 1)))
    await call.end_turn(1, "interrupted")
    assert not (await call.play(200)).any()
    answer = voice(100, 2)
    await call.speak(2, ("Yes", answer))
    assert np.array_equal(await call.play(100), answer)
    assert call.kinds().count(CLEARED) == 1


async def test_a_barge_in_while_ducked_claims_what_was_heard_before_the_duck(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(300)
    await call.hear(DuckDue(0))
    await call.play(400)
    await call.hear(BargeInDue(0))
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 300
    assert call.commands(Interrupt) == [Interrupt(1, 300)]
    assert not (await call.play(200)).any()
    assert RESUMED not in call.kinds()
    assert call.counted("ducks_total", verdict="flushed") == 1


async def test_every_turn_behind_the_interrupted_one_is_given_up_unheard(call: DrivenCall) -> None:
    await call.speak(1, ("One", voice(1000)))
    await call.end_turn(1)
    await call.play(100)
    await call.speak(2, ("Two", voice(1000, 1)))
    await call.hear(BargeInDue(0))
    assert call.commands(Interrupt) == [Interrupt(1, 100), Interrupt(2, 0)]
    assert [event["audio_end_ms"] for event in call.events(TRUNCATED)] == [100, 0]


async def test_a_barge_in_over_silence_gives_nothing_up(call: DrivenCall) -> None:
    await call.hear(BargeInDue(0))
    assert CLEARED not in call.kinds()
    assert call.commands(Interrupt) == []


# ---- what the client says that it plays -------------------------------------------------------


async def played_with_reports(call: DrivenCall, stands_still: bool) -> tuple[int, Ledger]:
    """Two seconds of a turn, reported 100 ms late, the second one perhaps not heard at all.

    What was sent, and a ledger of the test's own that was told the same.
    """
    ledger = Ledger(call.clock)
    call.playout.tap_spans(ledger.sent)
    await call.speak(1, ("Hello you", voice(9000)))
    for tenth in range(20):
        await call.play(100)
        position_ms = min(call.peer.pulled_ms - 100, 900 if stands_still else 10**6)
        await call.report(position_ms)
        ledger.rendered(position_ms * MS, call.clock.now_s())
        assert call.events("error") == [], f"report {tenth}"
    return call.playout.played_ms(1), ledger


async def test_reports_that_advance_let_an_interruption_claim_all_that_was_sent(
    call: DrivenCall,
) -> None:
    sent_ms, ledger = await played_with_reports(call, stands_still=False)
    await call.hear(BargeInDue(0))
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == sent_ms == 2000
    assert ledger.final_ms(1, call.clock.now_s()) == sent_ms
    assert call.commands(Interrupt) == [Interrupt(1, sent_ms)]


async def test_reports_that_stand_still_make_the_claim_smaller_than_what_was_sent(
    call: DrivenCall,
) -> None:
    sent_ms, ledger = await played_with_reports(call, stands_still=True)
    claimed_ms = ledger.final_ms(1, call.clock.now_s())
    assert claimed_ms == pytest.approx(900, abs=30) and claimed_ms < sent_ms == 2000
    await call.hear(BargeInDue(0))
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == claimed_ms
    assert call.commands(Interrupt) == [Interrupt(1, claimed_ms)]


async def transcript(call: DrivenCall) -> str:
    """What the agent's newest item says when a client asks for it."""
    item_id = call.events("response.output_item.added")[-1]["item"]["id"]
    await call.client("conversation.item.retrieve", item_id=item_id)
    (part,) = call.events("conversation.item.retrieved")[-1]["item"]["content"]
    return str(part["transcript"])


async def test_an_item_asked_for_while_it_plays_holds_the_words_heard_so_far(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(1000, 1)))
    await call.end_turn(1)
    await call.play(20)
    assert await transcript(call) == ""
    await call.play(780)
    assert await transcript(call) == "one"
    await call.play(480)
    assert await transcript(call) == "one two"
    await call.play(420)
    assert await transcript(call) == "one two three"
    await call.play(400)
    assert STOPPED in call.kinds()
    assert await transcript(call) == "one two three four"


async def test_the_clients_reports_decide_which_words_those_are(call: DrivenCall) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(1000, 1)))
    for _ in range(13):
        await call.play(100)
        await call.report(max(0, call.peer.pulled_ms - 600))
    assert await transcript(call) == "one"


async def test_a_turn_that_was_cut_off_keeps_the_words_before_the_cut(call: DrivenCall) -> None:
    await call.speak(1, ("one two ", voice(1000)), ("three four", voice(1000, 1)))
    await call.play(1200)
    await call.hear(BargeInDue(0))
    assert await transcript(call) == "one two"


# ---- the client silences it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "command"),
    [
        ("voice_agent.pause", {}, Pause()),
        ("voice_agent.listen", {"on": True}, ForceListen(True)),
    ],
)
async def test_the_clients_wish_for_silence_is_granted_though_the_engine_says_nothing(
    call: DrivenCall, kind: str, fields: dict[str, Any], command: object
) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.end_turn(1)
    await call.play(200)
    await call.client(kind, **fields)
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 200
    assert CLEARED in call.kinds()
    assert call.engine.told == [Interrupt(1, 200), command], "what was heard comes first"
    assert not (await call.play(100))[10 * MS :].any()


async def test_no_longer_having_to_listen_clears_nothing(call: DrivenCall) -> None:
    sound = voice(300)
    await call.speak(1, ("Hello", sound))
    await call.play(100)
    await call.client("voice_agent.listen", on=False)
    assert CLEARED not in call.kinds()
    assert np.array_equal(await call.play(200), sound[100 * MS :])


async def test_clear_cancels_what_is_generated_and_drops_what_is_queued(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(200)
    await call.client("output_audio_buffer.clear")
    assert call.events(TRUNCATED)[0]["audio_end_ms"] == 200
    assert call.commands(Interrupt)[-1] == Interrupt(1, 200)
    assert not (await call.play(100))[10 * MS :].any()


async def test_cancel_lets_what_is_queued_play_out_and_the_engine_is_told_so(
    call: DrivenCall,
) -> None:
    sound = voice(500)
    await call.speak(1, ("Hello", sound))
    await call.play(100)
    await call.client("response.cancel")
    await call.end_turn(1, "interrupted")
    assert np.array_equal(await call.play(400), sound[100 * MS :])
    await call.play(20)
    assert CLEARED not in call.kinds() and STOPPED in call.kinds()
    assert call.commands(Interrupt) == [Interrupt(1, 500)]


async def test_of_a_cancelled_turn_no_more_is_heard_than_the_engine_was_told(
    call: DrivenCall,
) -> None:
    await call.speak(1, ("Hello ", voice(500)))
    await call.play(100)
    await call.client("response.cancel")
    assert call.commands(Interrupt) == [Interrupt(1, 500)]
    await call.go_on(1, ("you", voice(500, 1)))  # it was on its way
    await call.end_turn(1, "interrupted")
    await call.play(400)
    assert not (await call.play(500)).any()


async def test_an_engine_that_gives_its_turn_up_silences_it(call: DrivenCall) -> None:
    await call.speak(1, ("Hello", voice(3000)))
    await call.play(200)
    await call.end_turn(1, "interrupted")
    assert CLEARED in call.kinds()
    assert not (await call.play(100))[10 * MS :].any()
