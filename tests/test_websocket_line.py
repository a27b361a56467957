"""The time line of a microphone whose sound comes inside of events; time is driven by hand."""

from itertools import pairwise

import numpy as np
import pytest

from agent.media.audio import to_pcm16
from agent.media.wire_sound import WireDecoder, sample_bytes, wire_rate_hz
from agent.transport.websocket_line import (
    BURST,
    GRACE_S,
    LEAST_PATIENCE_S,
    MAX_WAITING_S,
    MOST_PATIENCE_S,
    BufferFull,
    TimeLine,
)
from agent.types import MIC_RATE_HZ, UNIT_SAMPLES, FloatArray, SoundFormat

LAG = int((GRACE_S + 0.05) * MIC_RATE_HZ)
"""So far silence may be behind the clock."""


class Line:
    """A `TimeLine` that is asked when it wants to be asked, and whose frames join."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.line = TimeLine(self.now_s)
        self.given: list[FloatArray] = []
        self.given_s: list[float] = []

    def wait(self, seconds: float) -> None:
        """So much later."""
        until_s = self.now_s + seconds
        self._take()
        idle = 0
        while (due_s := self.line.due_s(self.now_s)) <= until_s:
            self.now_s = max(self.now_s, due_s)
            idle = 0 if self._take() else idle + 1
            assert idle < 3, "asks to be asked, and has nothing"
        self.now_s = until_s

    def push(self, data: bytes, coding: SoundFormat = "audio/pcm") -> None:
        self.line.push(data, coding, self.now_s)
        self._take()

    def live(self, data: bytes, ms: int, late_ms: list[int]) -> None:
        """`data` in pieces of `ms`, each as late as the list says, over and over."""
        size = 48 * ms
        begin_s = self.now_s
        for number, begin in enumerate(range(0, len(data), size)):
            due_s = begin_s + (number + 1) * ms / 1000 + late_ms[number % len(late_ms)] / 1000
            self.wait(max(0.0, due_s - self.now_s))
            self.push(data[begin : begin + size])

    @property
    def sound(self) -> FloatArray:
        """All that was given."""
        return np.concatenate(self.given) if self.given else np.zeros(0, np.float32)

    def _take(self) -> int:
        frames = self.line.take(self.now_s)
        for frame in frames:
            assert frame.start == 160 * len(self.given) and len(frame.samples) == 160
            self.given.append(frame.samples)
            self.given_s.append(self.now_s)
        return len(frames)


def speech(ms: int, seed: int = 0) -> bytes:
    """PCM16 at 24 kHz, no two stretches of which are alike, and none of which is silent."""
    rng = np.random.default_rng(seed)
    smooth = np.convolve(rng.uniform(-1, 1, 24 * ms + 8), np.ones(9) / 9, "valid")
    return to_pcm16(smooth.astype(np.float32)).tobytes()


def heard(data: bytes, coding: SoundFormat = "audio/pcm") -> FloatArray:
    """`data` at 16 kHz, in one go."""
    decoder = WireDecoder(coding)
    return np.concatenate((decoder.push(data), decoder.finish()))


def place(line: Line, sound: FloatArray) -> int:
    """Where `sound` stands on the line, whole and without a hole; its edges may ring a little."""
    inner = sound[400:-400]
    given = line.sound
    found = np.flatnonzero(np.isclose(given[: len(given) - len(inner) + 1], inner[0], atol=1e-6))
    for at in found:
        if np.allclose(given[at : at + len(inner)], inner, atol=1e-5):
            return int(at) - 400
    raise AssertionError("the sound is not on the line in one piece")


# ---- silence ----------------------------------------------------------------------------------


def test_where_nobody_sends_time_goes_on_in_silence() -> None:
    line = Line()
    line.wait(10)
    assert not line.sound.any()
    assert 10 * MIC_RATE_HZ - LAG <= len(line.sound) <= 10 * MIC_RATE_HZ
    gaps = np.diff(line.given_s)
    assert gaps.max() < 0.05, "as it goes on, and not in bursts"


@pytest.mark.parametrize(
    ("ms", "late_ms"),
    [(10, [0]), (20, [0, 14, 3]), (20, [0] * 20 + [250]), (100, [0, 90, 30]), (1000, [0, 180, 60])],
)
def test_live_sound_has_no_silence_inside_whatever_its_pieces_and_however_late(
    ms: int, late_ms: list[int]
) -> None:
    line = Line()
    line.wait(3)
    data = speech(6000)
    line.live(data, ms, late_ms)
    line.wait(2)
    at = place(line, heard(data))
    assert at == pytest.approx(3 * MIC_RATE_HZ, abs=MIC_RATE_HZ + LAG)


def test_live_sound_is_given_as_soon_as_it_comes() -> None:
    line = Line()
    line.wait(1)
    line.live(speech(2000), 20, [0])
    assert line.line.end - len(line.sound) < 10 * 16 + 32 + 160, "but for what is no whole frame"


def test_whoever_falls_silent_is_followed_by_silence_soon_and_at_the_pace_of_time() -> None:
    line = Line()
    line.live(speech(2000), 20, [0])
    before = len(line.sound)
    line.wait(LEAST_PATIENCE_S - 0.01)
    assert len(line.sound) - before < 200
    line.wait(0.05)
    made_up = len(line.sound) - before
    assert 0 < made_up <= (LEAST_PATIENCE_S + 0.06) * MIC_RATE_HZ
    line.wait(4)
    assert len(line.sound) - before == pytest.approx(4.3 * MIC_RATE_HZ, abs=LAG)


def test_over_a_call_of_turns_the_line_keeps_time() -> None:
    """A button is held, and let go, again and again: silence stands where nothing was sent."""
    line = Line()
    for turn in range(8):
        line.live(speech(1500, turn), 20, [0, 10])
        line.wait(2.5)
    assert len(line.sound) == pytest.approx(8 * 4.0 * MIC_RATE_HZ, abs=8 * LAG)


def test_a_network_that_stalls_costs_no_more_silence_than_it_stalled_and_no_sound() -> None:
    line = Line()
    for stall in range(5):
        line.live(speech(2000, stall), 20, [0])
        line.wait(0.6)
        line.push(speech(600, 100 + stall))
    assert len(line.sound) <= (5 * 2.6 + 5 * 0.6) * MIC_RATE_HZ + LAG
    for stall in range(5):
        assert place(line, heard(speech(600, 100 + stall))) >= 0


def test_a_server_that_stood_still_does_not_make_up_for_it_in_silence() -> None:
    line = Line()
    line.wait(1)
    before = len(line.sound)
    line.now_s += 30
    line.wait(0.01)
    assert len(line.sound) - before <= (MOST_PATIENCE_S + 0.1) * MIC_RATE_HZ


# ---- recordings -------------------------------------------------------------------------------


def test_a_recording_at_once_is_given_faster_than_it_sounds_but_not_all_at_once() -> None:
    line = Line()
    line.wait(0.5)
    data, begin_s = speech(10_000), line.now_s
    line.push(data)
    line.wait(3)
    at = place(line, heard(data))
    sounding = [given for number, given in enumerate(line.given_s) if number * 160 >= at]
    for first, later in pairwise(sounding[:998:20]):
        assert later - first <= 0.21
    took_s = sounding[998] - begin_s
    assert 9 / BURST - 0.05 <= took_s <= 10 / BURST + 0.1


def test_behind_a_recording_silence_flows_although_it_ran_ahead_of_time() -> None:
    line = Line()
    line.push(speech(10_000))
    line.wait(MOST_PATIENCE_S + 0.4)
    silent = len(line.sound) - 10 * MIC_RATE_HZ
    assert silent > 0
    line.wait(2)
    assert len(line.sound) - 10 * MIC_RATE_HZ - silent == pytest.approx(2 * MIC_RATE_HZ, abs=500)
    assert not line.sound[10 * MIC_RATE_HZ + 100 :].any()


def test_too_much_is_refused_as_a_whole_and_nothing_else_is_lost() -> None:
    line = Line()
    first, second, third = speech(100_000, 1), speech(21_500, 2), speech(19_000, 3)
    line.push(first)
    with pytest.raises(BufferFull) as caught:
        line.push(second + b"\x01")
    assert caught.value.code == "input_audio_buffer_full"
    assert f"{MAX_WAITING_S} s fit" in str(caught.value)
    aligned = bytes(46)  # a millisecond, with the other half of what was refused
    line.push(b"\x02" + aligned + third)
    line.wait(20)
    assert place(line, heard(first + b"\x00\x02" + aligned + third)) == 0
    line.push(second)
    line.wait(8)
    assert place(line, heard(second)) > 119_000 * 16


def test_two_minutes_fit_and_a_longer_recording_goes_in_pieces() -> None:
    line = Line()
    line.push(speech(MAX_WAITING_S * 1000))  # of which a second is given at once
    with pytest.raises(BufferFull):
        line.push(speech(1100))
    line.wait(1)
    line.push(speech(1100))


# ---- turns of the client's own ----------------------------------------------------------------


def test_a_commit_names_exactly_what_was_appended_since_the_last_one() -> None:
    line = Line()
    for turn, wait_s in enumerate((2.0, 7.3, 0.0)):
        line.wait(wait_s)
        data = speech(1234, turn)
        line.live(data, 20, [0])
        end, since = line.line.end, line.line.committed()
        assert end - since == 1234 * 16
        line.wait(1)
        assert place(line, heard(data)) == pytest.approx(since, abs=1)


def test_a_pause_within_a_turn_stays_in_it() -> None:
    line = Line()
    line.push(speech(500))
    line.wait(3)
    line.push(speech(500))
    end = line.line.end
    assert end - line.line.committed() == pytest.approx(3.5 * MIC_RATE_HZ, abs=LAG)


def test_a_commit_completes_the_unit_at_once() -> None:
    line = Line()
    line.wait(1)
    line.live(speech(1300), 20, [0])
    line.line.committed()
    end, now_s = line.line.end, line.now_s
    line.wait(0.001)
    assert len(line.sound) == -(-end // UNIT_SAMPLES) * UNIT_SAMPLES
    line.wait(3)
    assert len(line.sound) <= (line.now_s - now_s + 1) * MIC_RATE_HZ + end


def test_a_commit_of_a_recording_completes_its_last_unit_when_it_is_through() -> None:
    line = Line()
    line.push(speech(5300))
    line.line.committed()
    line.wait(5 / BURST)
    assert len(line.sound) == 6 * UNIT_SAMPLES


def test_two_commits_in_a_row_find_nothing_in_between() -> None:
    line = Line()
    line.push(speech(300))
    line.line.committed()
    assert line.line.committed() == line.line.end


def test_what_is_dropped_is_never_heard_and_what_follows_is() -> None:
    line = Line()
    line.push(speech(20_000, 1))
    line.wait(0.5)
    goes_on = line.line.drop()
    assert goes_on == len(line.sound) == line.line.end < 6 * MIC_RATE_HZ
    data = speech(2000, 2)
    line.push(data)
    assert line.line.end - line.line.committed() == 2000 * 16
    line.wait(2)
    assert place(line, heard(data)) == goes_on


# ---- the client's clock -----------------------------------------------------------------------


def test_the_clients_clock_counts_what_it_sent_and_no_silence_between() -> None:
    line = Line()
    line.wait(5)
    begins = []
    for turn in range(3):
        begins.append(line.line.end if turn == 0 else 0)
        begin = len(line.sound)
        line.push(speech(1000, turn))
        line.wait(4)
        middle = begin + 8000
        assert line.line.client_at(middle) == pytest.approx(turn * 16_000 + 8000, abs=400)
        assert line.line.client_at(begin + 3 * 16_000) == (turn + 1) * 16_000
    assert line.line.client_at(0) == line.line.client_at(4 * 16_000) == 0


def test_the_clients_clock_counts_what_it_dropped() -> None:
    line = Line()
    line.push(speech(20_000))
    line.wait(0.5)
    goes_on = line.line.drop()
    line.push(speech(1000))
    assert line.line.client_at(goes_on + 8000) == 20 * 16_000 + 8000
    assert line.line.client_at(100) == 100


def test_the_clients_clock_forgets_what_is_long_past_and_grows_no_further() -> None:
    line = Line()
    for _ in range(700):
        line.push(speech(20))
        line.wait(0.5)
    assert line.line.client_at(len(line.sound)) == 700 * 320
    assert len(line.line._client._places) <= 512


# ---- codings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound_keeps_time_as_well(coding: SoundFormat) -> None:
    line = Line()
    line.wait(1)
    data = bytes(np.random.default_rng(7).integers(0, 256, 8 * 2000, np.uint8))
    for begin in range(0, len(data), 160):
        line.push(data[begin : begin + 160], coding)
        line.wait(0.02)
    line.wait(1)
    assert place(line, heard(data, coding)) == pytest.approx(MIC_RATE_HZ, abs=LAG)


def test_another_coding_may_follow_within_a_word() -> None:
    line = Line()
    codings: tuple[SoundFormat, ...] = ("audio/pcm", "audio/pcmu", "audio/pcm", "audio/pcma")
    for coding in codings:
        count = wire_rate_hz(coding) * 333 // 1000 * sample_bytes(coding)
        line.push(bytes(count), coding)
    end = line.line.end
    assert end == pytest.approx(4 * 333 * 16, abs=4)
    line.wait(5)
    assert len(line.sound) >= end
