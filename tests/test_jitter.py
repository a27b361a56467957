"""The microphone's time line: every 20 ms exactly once, as early as it can be, for ever."""

import struct

import numpy as np
import pytest

from agent.media.jitter import RtpAudio
from agent.media.reordering import Reordering
from tests.rig.driven_line import CONCEALED, REPAIRED, SLOT_S, Driven, driven, packet

# ---- written patterns -------------------------------------------------------------------------


def test_packets_in_order_come_out_at_once() -> None:
    run = Driven()
    for number in range(200):
        run.push(packet(number), 1000.0 + number * SLOT_S)
        assert len(run.sound) == 2 * (number + 1)
    assert run.slots() == list(range(200))
    assert run.line.counts.received == 200
    assert run.line.counts.max_depth == 0


def test_one_lost_packet_is_repaired_when_the_next_one_comes() -> None:
    run = driven([0, 1, 2, 4, 5])
    assert run.slots() == [0, 1, 2, 3 + REPAIRED, 4, 5]
    assert run.given_s[6] == pytest.approx(1000.0 + 3 * SLOT_S), "no wait without reordering"
    counts = run.line.counts
    assert (counts.lost, counts.repaired, counts.concealed_samples) == (1, 1, 0)


def test_of_five_lost_packets_the_last_is_repaired_and_the_rest_concealed() -> None:
    run = driven([0, 1, 7, 8])
    assert run.slots() == [0, 1, *[CONCEALED] * 4, 6 + REPAIRED, 7, 8]
    assert run.line.counts.lost == 5
    assert run.line.counts.concealed_samples == 4 * 320


def test_a_long_hole_fades_to_silence() -> None:
    run = driven([0, *range(31, 33)])
    sound = np.concatenate(run.sound)[320 : 30 * 320]
    assert np.all(sound[:1600] == CONCEALED)
    assert np.all(np.diff(sound[1600:3200]) >= 0) and sound[3199] > -1.0
    assert not np.any(sound[3200:])
    assert run.slots()[30:] == [30 + REPAIRED, 31, 32]
    assert run.line.counts.silent_samples == 29 * 320 - 3200


def test_an_outage_that_ends_in_a_burst_loses_nothing_and_leaves_no_latency() -> None:
    run = Driven()
    for number in range(20):
        late_s = 0.1 if 5 <= number < 10 else 0.0
        run.push(packet(number), max(run.now_s, 1000.0 + number * SLOT_S + late_s))
    assert run.slots() == list(range(20))
    assert run.given_s[-1] == pytest.approx(1000.0 + 19 * SLOT_S)


def test_a_packet_behind_its_place_is_dropped_once_it_was_concealed() -> None:
    run = driven([0, 1, 3, 2, 4])
    assert run.slots() == [0, 1, 2 + REPAIRED, 3, 4]
    assert run.line.counts.late == 1


def test_after_reordering_was_seen_a_hole_waits_for_it() -> None:
    run = driven([0, 1, 3, 2, 4, 5, 7, 6, 8])
    assert run.slots() == [0, 1, 2 + REPAIRED, 3, 4, 5, 6, 7, 8]
    assert run.line.counts.late == 1
    assert run.line.counts.depth == 0
    assert run.line.counts.max_depth == 1


def test_a_wait_that_was_in_vain_ends_by_the_clock() -> None:
    run = driven([0, 1, 3, 2, 4, 5])
    wait_s = run.line.counts.wait_s
    assert wait_s == pytest.approx(0.02 * 1.25 + 0.002)
    run.push(packet(7), 1000.12)
    assert run.line.due_s() == pytest.approx(1000.12 + wait_s)
    assert len(run.sound) == 12
    run.until(1000.14)
    assert len(run.sound) == 12
    run.until(1000.15)
    assert run.slots()[6:] == [6 + REPAIRED, 7]


def test_duplicates_and_very_old_packets_change_nothing() -> None:
    run = driven([*range(300), 299, 299, 298, 10, 3, 300])
    assert run.slots() == list(range(301))
    assert run.line.counts.duplicate + run.line.counts.late == 5
    assert run.line.counts.resynchronised == 0


def test_a_first_packet_out_of_order_only_loses_the_one_before_it() -> None:
    run = driven([5, 4, 6, 7])
    assert run.slots() == [5, 6, 7]
    assert run.line.counts.resynchronised == 0


def test_both_counters_wrap() -> None:
    run = Driven()
    for number in range(66_000):
        frames = run.line.push(packet(number), 1000.0)
        assert frames[0].start == number * 320 and float(frames[0].samples[0]) == number
    assert run.line.counts.resynchronised == 0


@pytest.mark.parametrize("ms", [10, 20, 40, 60, 120])
def test_packets_of_any_length(ms: int) -> None:
    run = Driven()
    for number in (*range(10), *range(11, 20)):
        run.push(packet(number, ms))
    values = np.concatenate(run.sound).reshape(-1, ms * 16)
    assert [float(v[0]) for v in values] == [*range(10), 10 + REPAIRED, *range(11, 20)]


def test_the_packet_length_may_change() -> None:
    run, at_ms = Driven(), 0
    for number, ms in enumerate([20, 60, 10, 20, 40, 20]):
        if number != 3:
            run.push(packet(number, ms, at_ms * 48))
        at_ms += ms
    sound = np.concatenate(run.sound)
    assert len(sound) == at_ms * 16
    assert np.all(sound[90 * 16 : 110 * 16] == 3 + REPAIRED)


def test_shorter_packets_than_a_frame_wait_for_it() -> None:
    run = Driven()
    for number in range(40):
        run.push(packet(number, 5))
    assert len(run.sound) == 20


def test_a_pause_of_the_sender_itself_is_concealed_not_lost() -> None:
    run = Driven()
    run.push(packet(0, 20, 0))
    run.push(packet(1, 20, 48 * 420), 1000.42)
    run.push(packet(2, 20, 48 * 440), 1000.44)
    assert run.slots() == [0, *[CONCEALED] * 20, 1, 2]
    assert run.line.counts.lost == 0


def test_timestamps_read_from_a_clock_are_not_spliced_sample_by_sample() -> None:
    run, chance = Driven(), np.random.default_rng(1)
    for number in range(500):
        run.push(packet(number, 20, number * 960 + int(chance.integers(-90, 90))))
    assert run.slots() == list(range(500))
    assert run.line.counts.concealed_samples == 0


def test_the_depth_is_bounded() -> None:
    run = driven([0, 1, 3, 2])
    for number in range(5, 75):
        run.push(packet(number))
    assert run.line.counts.max_depth <= 65
    assert run.slots()[-1] == 74
    assert run.line.counts.depth == 0


def test_finish_gives_what_waits_behind_a_hole() -> None:
    run = driven([0, 1, 3, 2, 4, 6, 8])
    assert run.line.counts.depth > 0
    run.finish()
    assert run.slots() == [0, 1, 2 + REPAIRED, 3, 4, 5 + REPAIRED, 6, 7 + REPAIRED, 8]


def test_malformed_packets_count_as_lost() -> None:
    run = Driven()
    for number in range(5):
        good = packet(number)
        run.push(good if number != 2 else RtpAudio(good.sequence, good.timestamp, b"?"))
    assert run.slots() == [0, 1, 2 + REPAIRED, 3, 4]
    broken = packet(5)
    payload = struct.pack("!IH", 0xFFFFFFFF, 20)
    run.push(RtpAudio(broken.sequence, broken.timestamp, payload))
    run.push(packet(6))
    assert run.slots()[5:] == [CONCEALED, 6]
    assert run.line.counts.malformed == 2


# ---- stalls -----------------------------------------------------------------------------------


def test_a_peer_that_falls_silent_is_replaced_by_silence_in_real_time() -> None:
    run = driven(range(50))
    run.until(run.now_s + 1.0)
    assert len(run.sound) == 100, "its packets may still come"
    for second in range(1, 6):
        run.until(1000.0 + 49 * SLOT_S + 1.0 + second)
        assert len(run.sound) == 100 + 100 * second
    assert not np.any(np.concatenate(run.sound)[50 * 320 + 3200 :])


def test_after_a_hold_the_line_goes_on_where_the_peer_is() -> None:
    run = driven(range(50))
    run.until(1010.0)
    run.push(packet(50, 20, 48 * 10_000), 1010.0)
    assert len(run.sound) * 160 == 16_000 * 10 + 320
    assert run.slots()[-1] == 50
    assert not np.any(np.concatenate(run.sound)[50 * 320 + 3200 : -320]), "silence stays silence"
    run.push(packet(51, 20, 48 * 10_020), 1010.02)
    assert run.slots()[-1] == 51
    assert run.line.counts.resynchronised == 0


def test_what_comes_for_time_that_was_given_out_as_silence_is_dropped() -> None:
    run = driven(range(50))
    run.until(1003.0)
    filled = len(run.sound) // 2
    for number in range(50, 151):
        run.push(packet(number), 1003.0)
    assert run.line.counts.late == filled - 50
    assert run.slots()[filled:] == list(range(filled, 151))
    assert run.line.counts.resynchronised == 0


def test_a_backlog_that_comes_faster_than_live_reaches_the_present() -> None:
    run = driven(range(50))
    run.until(1005.0)
    for number in range(50, 400):
        run.push(packet(number), 1005.0 + (number - 50) * SLOT_S / 3)
    assert run.line.counts.resynchronised == 0
    assert run.slots()[-1] == 399
    assert len(run.sound) == 800


def test_of_a_packet_that_comes_half_too_late_the_other_half_is_given_out() -> None:
    run = Driven()
    for number in range(20):
        run.push(packet(number, 60), 1000.0 + number * 0.06)
    run.until(1002.26)
    assert len(run.sound) == 130, "100 ms of silence"
    run.push(packet(20, 60))
    assert len(run.sound) == 130
    run.push(packet(21, 60))
    assert [float(samples[0]) for samples in run.sound[130:]] == [21.0, 21.0]
    assert run.line.counts.late == 1


def test_a_sender_whose_clock_stood_still_is_heard_again() -> None:
    run = driven(range(50))
    for number in range(50, 150):
        run.push(packet(number), 1010.0 + (number - 50) * SLOT_S)
    assert run.line.counts.resynchronised == 1
    assert run.slots()[-80:] == list(range(70, 150))
    # The line is where the wall clock is.
    assert abs(len(run.sound) * 0.01 - (run.now_s + SLOT_S - 1000.0)) < 0.05


def test_time_passes_before_the_first_packet_once_begun() -> None:
    run = Driven()
    run.until(1005.0)
    assert run.line.due_s() is None
    run.line.begin(1005.0)
    run.until(1008.0)
    assert len(run.sound) == 200
    run.push(packet(0))
    assert run.slots()[-1] == 0
    assert len(run.sound) == 300


@pytest.mark.parametrize("ppm", [-300, 300])
def test_drifting_clocks_neither_fill_nor_drop_nor_delay(ppm: int) -> None:
    run, frames = Driven(), 0
    packet_s = 0.12 * (1 + ppm * 1e-6)
    for number in range(30_000):  # an hour
        now_s = 1000.0 + number * packet_s
        due_s = run.line.due_s()
        assert due_s is None or due_s > now_s + 0.9
        frames += len(run.line.push(packet(number, 120), now_s))
    counts = run.line.counts
    assert frames == 360_000
    assert (counts.concealed_samples, counts.silent_samples, counts.late) == (0, 0, 0)


# ---- jumps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", [48_000 * 5, -48_000 * 5, 1 << 31, 12_345_678])
@pytest.mark.parametrize("dropout", [0, 1, 20_000, 40_000])
def test_another_source_goes_on_where_the_line_is(ticks: int, dropout: int) -> None:
    run = driven(range(100))
    for number in range(100, 150):
        item = packet(number)
        timestamp = (item.timestamp + ticks) & 0xFFFFFFFF
        sequence = (item.sequence + dropout) & 0xFFFF
        run.push(RtpAudio(sequence, timestamp, item.payload), 1000.0 + number * SLOT_S)
    assert run.slots() == list(range(150))
    assert run.line.counts.resynchronised == 1


@pytest.mark.parametrize("dropout", [-50, 10_000])
def test_other_sequence_numbers_alone_lose_nothing(dropout: int) -> None:
    run = driven(range(100))
    for number in range(100, 150):
        item = packet(number)
        sequence = (item.sequence + dropout) & 0xFFFF
        run.push(RtpAudio(sequence, item.timestamp, item.payload), 1000.0 + number * SLOT_S)
    assert run.slots() == list(range(150))
    assert (run.line.counts.resynchronised, run.line.counts.lost) == (1, 0)


def test_one_stray_packet_does_not_move_the_line() -> None:
    run = driven(range(100))
    run.push(RtpAudio(12_345, 999_999_999, packet(7).payload))
    run.push(packet(100), 1002.0)
    run.push(packet(101), 1002.02)
    assert run.slots() == list(range(102))
    assert (run.line.counts.resynchronised, run.line.counts.late) == (0, 1)


def test_a_silence_of_hours_is_not_made_up_for_in_one_go() -> None:
    run = driven(range(50))
    frames = run.line.push(packet(50, 20, 48_000 * 36_000), 37_000.0)
    assert len(frames) <= 110
    assert len(run.line.advance(99_000.0)) <= 300


# ---- how long a hole waits --------------------------------------------------------------------


def test_among_losses_reordering_is_still_waited_for() -> None:
    run, order = Driven(), [0]
    for at in range(1, 601, 6):  # one lost, two swapped, two in order
        order += [at + 1, at + 3, at + 2, at + 4, at + 5]
    for place, number in enumerate(order):
        run.push(packet(number), 1000.0 + place * SLOT_S)
    assert run.line.counts.late == 1, "the first one taught it"
    assert run.line.counts.lost <= 102
    for place, number in enumerate(range(602, 700, 2)):
        run.push(packet(number), 1100.0 + place * 2 * SLOT_S)
    assert run.line.counts.wait_s == 0.0


def test_what_is_remembered_as_missing_is_bounded() -> None:
    reordering = Reordering(0.06)
    for first in range(0, 100_000, 1000):
        reordering.miss(first, first + 900, 1.0)
    assert not reordering.found(99_000, 1.01)
    assert not reordering.found(98_899, 1.01)
    assert reordering.found(99_899, 1.01)
    reordering.forget()
    assert not reordering.found(99_898, 1.01)


def test_waiting_is_unlearned_when_the_link_only_loses() -> None:
    reordering = Reordering(0.06)
    for number in range(8):
        reordering.miss(number, number + 1, 1.0)
        assert reordering.found(number, 1.04)
    assert reordering.wait_s == pytest.approx(0.052)
    for number in range(8, 23):
        reordering.miss(number, number + 1, 2.0)
        reordering.lose()
    assert reordering.wait_s == 0.0


def test_what_comes_later_than_any_wait_teaches_no_waiting() -> None:
    reordering = Reordering(0.06)
    reordering.miss(1, 2, 1.0)
    assert reordering.found(1, 1.2)
    assert reordering.wait_s == 0.0
    assert not reordering.found(1, 1.2), "a second copy was not missing"
