"""The microphone's time line: every 20 ms exactly once, as early as it can be, for ever."""

import struct
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest

from agent.errors import MediaError
from agent.media.jitter import LineOptions, MicrophoneLine, RtpAudio
from agent.media.reordering import Reordering
from agent.transport.opus import OpusDecoder, OpusEncoder
from agent.types import AudioFrame, FloatArray
from tests.rig.sound import alike
from tests.rig.voices import talk

CONCEALED = -1000.0
REPAIRED = 500.0
SLOT_S = 0.02


class SlotDecoder:
    """Sound that says where it came from: packet n is n, repaired n is n + 500."""

    def samples_in(self, payload: bytes) -> int:
        if len(payload) != 6:
            raise MediaError("garbage")
        return int(struct.unpack("!IH", payload)[1]) * 16

    def decode(self, payload: bytes) -> FloatArray:
        number, ms = struct.unpack("!IH", payload)
        if number == 0xFFFFFFFF:
            raise MediaError("looks fine, is not")
        return np.full(ms * 16, number, np.float32)

    def repair(self, following: bytes, samples: int) -> FloatArray:
        number = struct.unpack("!IH", following)[0]
        return np.full(samples, number - 1 + REPAIRED, np.float32)

    def conceal(self, samples: int) -> FloatArray:
        return np.full(samples, CONCEALED, np.float32)


def packet(number: int, ms: int = 20, ticks: int | None = None) -> RtpAudio:
    """Packet `number`, both counters near their wrap; at `ticks` instead of its usual place."""
    at = number * ms * 48 if ticks is None else ticks
    payload = struct.pack("!IH", number, ms)
    return RtpAudio((65_530 + number) & 0xFFFF, (0xFFFFFFFF - 5000 + at) & 0xFFFFFFFF, payload)


class Driven:
    """A line with its timers served, that checks every frame and notes when it came out."""

    def __init__(self, options: LineOptions | None = None) -> None:
        self.line = MicrophoneLine(SlotDecoder(), options)
        self.now_s = 1000.0
        self.sound: list[FloatArray] = []
        self.given_s: list[float] = []

    def until(self, now_s: float) -> None:
        """Let time pass."""
        while (due_s := self.line.due_s()) is not None and due_s <= now_s:
            self.now_s = max(self.now_s, due_s)
            self._note(self.line.advance(self.now_s))
            assert (later_s := self.line.due_s()) is None or later_s > due_s
        self.now_s = now_s

    def push(self, item: RtpAudio, now_s: float | None = None) -> None:
        self.until(self.now_s if now_s is None else now_s)
        self._note(self.line.push(item, self.now_s))

    def finish(self) -> None:
        self._note(self.line.finish())

    def slots(self) -> list[float]:
        """What each 20 ms is, by its last sample (a fade begins at its own value)."""
        whole = np.concatenate(self.sound)
        return [float(value) for value in whole[319 : len(whole) // 320 * 320 : 320]]

    def _note(self, frames: Iterable[AudioFrame]) -> None:
        for frame in frames:
            assert frame.start == 160 * len(self.sound), "the time line has no gap"
            assert frame.samples.shape == (160,) and frame.rate_hz == 16_000
            self.sound.append(frame.samples)
            self.given_s.append(self.now_s)


def driven(numbers: Iterable[int], options: LineOptions | None = None) -> Driven:
    """Packets in the order given, 20 ms after one another."""
    run = Driven(options)
    for place, number in enumerate(numbers):
        run.push(packet(number), 1000.0 + place * SLOT_S)
    return run


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
    run, random = Driven(), np.random.default_rng(1)
    for number in range(500):
        run.push(packet(number, 20, number * 960 + int(random.integers(-90, 90))))
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
    packet_s = 0.06 * (1 + ppm * 1e-6)
    for number in range(60_000):  # an hour
        now_s = 1000.0 + number * packet_s
        due_s = run.line.due_s()
        assert due_s is None or due_s > now_s + 0.9
        frames += len(run.line.push(packet(number, 60), now_s))
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


# ---- any network ------------------------------------------------------------------------------


def arrivals(
    seed: int, loss: float, jitter_s: float, overtake: bool, copies: float
) -> list[tuple[float, int]]:
    """When packets come, of 700: [(seconds, number)]; the first and the last do come."""
    random = np.random.default_rng(seed)
    came: list[tuple[float, int]] = []
    last_s = 0.0
    for number in range(700):
        if 0 < number < 699 and random.random() < loss:
            continue
        at_s = 1000.0 + number * SLOT_S + 0.03 + float(random.random()) * jitter_s
        last_s = at_s = at_s if overtake else max(at_s, last_s)
        if 0 < number < 699:
            came.append((at_s, number))
            if random.random() < copies:
                came.append((at_s + float(random.random()) * 0.1, number))
    return [(1000.0, 0), *sorted(came), (1000.0 + 700 * SLOT_S + 0.2, 699)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overtake", [False, True])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.3])
def test_on_any_network_each_slot_is_given_out_once_and_in_time(
    seed: int, overtake: bool, loss: float
) -> None:
    came = arrivals(seed, loss, 0.07, overtake, 0.05)
    run = Driven()
    for at_s, number in came:
        run.push(packet(number), at_s)
    run.finish()
    slots = run.slots()
    assert len(slots) == 700
    first_s: dict[int, float] = {}
    for at_s, number in came:
        first_s.setdefault(number, at_s)
    kept = 0
    for number, value in enumerate(slots):
        assert value in (number, number + REPAIRED) or CONCEALED <= value <= 0.0
        kept += value == number
    for number, at_s in first_s.items():
        given_s = run.given_s[2 * number]
        # Given out by a later packet already, or at most the longest wait after it came.
        assert given_s <= at_s + 0.06 + 1e-9
        if loss == 0.0 and not overtake:
            assert given_s == at_s
    assert kept >= (0.9 if overtake else 1.0) * len(first_s)


@pytest.mark.parametrize("seed", range(4))
def test_a_link_that_only_loses_never_waits(seed: int) -> None:
    run = Driven()
    for at_s, number in arrivals(seed, 0.1, 0.03, False, 0.0):
        run.push(packet(number), at_s)
        assert run.line.counts.depth == 0
        assert run.slots()[-1] == number


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


# ---- with real sound --------------------------------------------------------------------------


class Unrepaired(OpusDecoder):
    """The same without redundancy."""

    def repair(self, following: bytes, samples: int) -> FloatArray:
        return self.conceal(samples)


@cache
def spoken(seconds: float, rate_hz: int) -> FloatArray:
    return talk(seconds, rate_hz)


@cache
def opus_packets(seconds: float, loss: float) -> list[RtpAudio]:
    encoder = OpusEncoder()
    encoder.expect_loss(loss)
    cut = spoken(seconds, 24_000).reshape(-1, 480)
    return [RtpAudio(n, n * 960, encoder.encode(piece)) for n, piece in enumerate(cut)]


def heard(line: MicrophoneLine, packets: Iterable[RtpAudio]) -> FloatArray:
    frames: list[AudioFrame] = []
    for item in packets:
        frames += line.push(item, item.timestamp / 48_000)
    return np.concatenate([frame.samples for frame in frames + line.finish()])


def test_without_loss_the_sound_is_that_of_decoding_in_one_go() -> None:
    packets = opus_packets(8, 0.0)
    decoder = OpusDecoder()
    whole = np.concatenate([decoder.decode(item.payload) for item in packets])
    assert np.array_equal(heard(MicrophoneLine(OpusDecoder()), packets), whole)


@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_lost_speech_is_repaired_better_than_it_is_concealed(loss: float) -> None:
    packets = opus_packets(8, loss)
    clean = heard(MicrophoneLine(OpusDecoder()), packets)
    lost = np.random.default_rng(5).random(len(packets)) < loss
    lost[0] = lost[-1] = False
    left = [item for item in packets if not lost[item.sequence]]
    repaired = heard(MicrophoneLine(OpusDecoder()), left)
    concealed = heard(MicrophoneLine(Unrepaired()), left)
    assert len(repaired) == len(clean)
    error, plain_error = (float(np.sum((sound - clean) ** 2)) for sound in (repaired, concealed))
    assert error < 0.6 * plain_error
    said = spoken(8, 16_000)
    assert alike(repaired, said) > alike(concealed, said)
    assert alike(repaired, said) > 1.0 - 2.0 * loss
