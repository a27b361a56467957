"""What was heard, against a simulated listener whose truth is known."""

import pytest

from agent.media.ledger import MAX_SPANS, REPORT_LEAD_S, SILENT_AFTER_S, ReportClock
from agent.media.playout import SentSpan
from tests.rig.ledger_line import MS, Line


def test_nothing_sent_is_nothing_heard() -> None:
    line = Line()
    assert (line.heard(), line.final()) == (0, 0)
    line.report(100)
    line.run(100)
    assert (line.heard(), line.final()) == (0, 0)


def test_what_sounds_lags_what_was_sent_and_all_that_was_sent_will_sound() -> None:
    line = Line()
    line.speak(1, 5000)
    line.follow(2000, lag_ms=120)
    assert line.heard() == pytest.approx(1880, abs=1)
    assert line.final() == 2000
    line.clock.time_s += 0.06
    assert line.heard() == pytest.approx(1940, abs=1), "the client plays on between reports"
    line.clock.time_s += 0.5
    assert line.heard() == line.final() == 2000


def test_the_lead_of_the_reported_timestamp_is_taken_off() -> None:
    line = Line()
    line.speak(1, 5000)
    line.run(1000)
    line.ledger.rendered(500 * MS, line.clock.time_s)
    assert line.heard() == pytest.approx(500 - REPORT_LEAD_S * 1000, abs=1)


def test_turns_are_told_apart_and_silence_between_them_counts_for_none() -> None:
    line = Line()
    line.speak(1, 300)
    line.follow(1000, lag_ms=100)
    line.speak(2, 1000)
    line.follow(400, lag_ms=100)
    assert (line.heard(1), line.final(1)) == (300, 300)
    assert (line.heard(2), line.final(2)) == (pytest.approx(300, abs=1), 400)
    assert (line.heard(3), line.final(3)) == (0, 0)


def test_a_ducked_turn_stands_still_and_goes_on() -> None:
    line = Line()
    line.speak(1, 3000)
    line.follow(1000, lag_ms=100)
    line.playout.duck()
    line.follow(500, lag_ms=100)
    assert line.heard() == line.final() == line.playout.played_ms(1) == 1000
    line.playout.resume()
    line.follow(500, lag_ms=100)
    assert (line.heard(), line.final()) == (pytest.approx(1400, abs=1), 1500)


def test_a_broken_way_to_the_client_claims_only_what_came_through() -> None:
    line = Line()
    line.speak(1, 9000)
    line.follow(2000, lag_ms=120)
    stuck_at = 2000 - 120 + round(REPORT_LEAD_S * 1000)
    line.stand_still(800, stuck_at * MS)
    assert line.heard() == line.final() == stuck_at
    line.follow(1000, lag_ms=120)
    assert line.final() == 3800, "sound came through again: all that was sent counts"


def test_an_interruption_after_the_downlink_broke_claims_nothing_that_never_came() -> None:
    """What our page sends: the last position at the time of each report, by its own clock."""
    line, clock = Line(), ReportClock()
    line.speak(1, 9000)

    def report(position: int) -> None:
        now_s = line.clock.time_s
        line.ledger.rendered(position, clock.server_s(now_s * 1000 - 7_000, now_s + 0.02, 0.04))

    for _ in range(20):
        line.run(100)
        report(line.pulled - 100 * MS)
    for _ in range(12):
        line.run(100)
        report(1900 * MS)
    assert line.playout.played_ms(1) == 3200
    assert line.heard() == line.final() == 1900


def test_a_gap_in_the_middle_of_a_turn_is_no_outage() -> None:
    """While the engine is late the sender sends silence, and the position goes on."""
    line = Line()
    line.speak(1, 1000, last=False)
    line.follow(3000, lag_ms=120)
    assert (line.heard(), line.final()) == (1000, 1000)
    line.speak(1, 2000)
    line.run(60)
    assert line.final() == 1060
    for _ in range(10):
        line.follow(100, lag_ms=120)
        assert line.final() == line.playout.played_ms(1)
    assert line.heard() == pytest.approx(1940, abs=1)


@pytest.mark.parametrize("silence_ms", [600, 1600, 4000, 60_000])
@pytest.mark.parametrize("sent_ms", [340, 760, 1400])
def test_a_turn_after_a_silence_without_reports_counts_at_once(
    silence_ms: int, sent_ms: int
) -> None:
    line = Line()
    line.speak(1, 1000)
    line.follow(2000, lag_ms=120)
    line.run(silence_ms)
    line.speak(2, 9000)
    line.run(sent_ms)
    assert line.final(2) == sent_ms
    assert line.heard(2) == pytest.approx(sent_ms - 120, abs=1)
    assert line.final(1) == 1000


def test_a_page_that_never_reports_again_heard_nothing_of_the_new_turn() -> None:
    line = Line()
    line.speak(1, 1000)
    line.follow(2000, lag_ms=120)
    line.run(4000)
    line.speak(2, 9000)
    line.run(round(SILENT_AFTER_S * 1000) + 100)
    assert (line.heard(2), line.final(2)) == (0, 0)
    line.follow(100, lag_ms=120)
    assert line.final(2) == line.playout.played_ms(2)


def test_an_outage_in_an_earlier_turn_says_nothing_of_the_next() -> None:
    line = Line()
    line.speak(1, 2000)
    line.follow(1000, lag_ms=120)
    line.stand_still(2000, 900 * MS)
    assert line.final(1) == 900
    line.run(4000)
    line.speak(2, 9000)
    line.run(340)
    assert line.final(2) == 340
    line.follow(300, lag_ms=120)
    assert line.final(2) == 640


def test_an_outage_that_began_in_the_silence_is_seen_by_the_first_report() -> None:
    line = Line()
    line.speak(1, 1000)
    line.follow(2000, lag_ms=120)
    line.run(4000)
    line.speak(2, 9000)
    line.stand_still(100, 1900 * MS)
    assert (line.heard(2), line.final(2)) == (0, 0)
    assert line.final(1) == 1000


def test_a_hitch_of_two_reports_is_no_outage() -> None:
    line = Line()
    line.speak(1, 9000)
    line.follow(2000, lag_ms=120)
    stuck_at = 2000 - 120
    for _ in range(2):
        line.run(100)
        line.ledger.rendered(stuck_at * MS, line.clock.time_s)
    assert line.final() == 2200


def test_reports_that_stop_claim_what_was_under_way_by_then() -> None:
    line = Line()
    line.speak(1, 9000)
    line.follow(2000, lag_ms=120)
    line.run(round(SILENT_AFTER_S * 1000) - 20)
    assert line.final() > 3000, "a report may be held up"
    line.run(100)
    assert line.heard() == line.final() == pytest.approx(2000 + REPORT_LEAD_S * 1000, abs=1)


def test_late_news_of_an_outage_does_not_end_it() -> None:
    line = Line()
    line.speak(1, 9000)
    line.follow(2000, lag_ms=120)
    for _ in range(8):
        line.run(100)
        line.ledger.rendered(1900 * MS, line.clock.time_s)
    line.ledger.rendered(1900 * MS, line.clock.time_s - 0.75)
    assert line.final() == 1900


def test_thirty_seconds_are_remembered_and_what_is_older_was_heard() -> None:
    line = Line()
    line.speak(1, 2000)
    line.speak(2, 60_000)
    line.run(2000)
    stuck = 1000 * MS
    for _ in range(400):
        line.run(100)
        line.ledger.rendered(stuck, line.clock.time_s)
    kept_ms = MAX_SPANS * 20
    assert line.final(1) == 2000
    assert line.final(2) == 40_000 - kept_ms


def test_turns_without_end_are_not_remembered_for_ever() -> None:
    line = Line()
    for turn in range(1, 3 * MAX_SPANS, 1):
        line.ledger.sent(SentSpan(turn * 480, turn, 0, 480))
    assert line.final(1) == 0
    assert line.final(3 * MAX_SPANS - 1) == 20
