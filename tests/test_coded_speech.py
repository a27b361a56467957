"""The words that the rig says can be read back, whatever happens to them on the way."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from agent.types import FloatArray
from tests.rig.coded_speech import (
    INDICES,
    LEVEL_DBFS,
    SLOT_S,
    WORD_S,
    Account,
    CodedWord,
    account,
    decode,
    encode,
)
from tests.rig.voices import talk

RATE_HZ = 24_000
SAID = list(range(0, INDICES, 17))
WITHIN_S = 0.01
NO_FAULT = Account()


def _silence(seconds: float, rate_hz: int = RATE_HZ) -> FloatArray:
    return np.zeros(round(seconds * rate_hz), np.float32)


def _check_times(words: list[CodedWord], delay_s: float = 0.0) -> None:
    for word in words:
        began_s = SAID.index(word.index) * SLOT_S + delay_s
        assert word.start_s == pytest.approx(began_s, abs=WITHIN_S)
        assert word.end_s == pytest.approx(began_s + WORD_S, abs=WITHIN_S)


def _through_opus(samples: FloatArray, lost: frozenset[int] = frozenset()) -> FloatArray:
    """Encoded at 32 kbit/s and decoded at 48 kHz; lost packets of 20 ms are silent."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = RATE_HZ, "mono", "s16"
    encoder.bit_rate, encoder.options = 32_000, {"application": "voip"}
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    pieces: list[FloatArray] = []
    for at in range(0, len(samples) - 479, 480):
        pcm = np.rint(samples[at : at + 480] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, at, Fraction(1, RATE_HZ)
        for packet in encoder.encode(frame):
            for decoded in decoder.decode(packet):
                sound = decoded.to_ndarray().reshape(-1).astype(np.float32) / 32768
                pieces.append(sound * (len(pieces) not in lost))
    return np.concatenate(pieces)


def test_words_sound_as_loud_as_speech_and_stay_in_the_telephone_band() -> None:
    sound = encode(SAID)
    loud = sound.reshape(len(SAID), -1)[:, : round(WORD_S * RATE_HZ)]
    assert 10 * np.log10(np.mean(loud**2)) == pytest.approx(LEVEL_DBFS, abs=0.5)
    power = np.abs(np.fft.rfft(sound)) ** 2
    hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    assert power[(hz > 300) & (hz < 3400)].sum() > 0.999 * power.sum()


def test_every_index_is_read_back_with_its_time() -> None:
    said = list(range(INDICES))
    words = decode(encode(said), RATE_HZ)
    assert [word.index for word in words] == said
    assert all(word.whole for word in words)
    for word in words:
        assert word.start_s == pytest.approx(word.index * SLOT_S, abs=WITHIN_S)
        assert word.end_s == pytest.approx(word.index * SLOT_S + WORD_S, abs=WITHIN_S)


def test_an_index_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        encode([INDICES])


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
def test_any_rate_will_do(rate_hz: int) -> None:
    sound = encode(SAID)
    times = np.arange(int(len(sound) / RATE_HZ * rate_hz)) / rate_hz
    words = decode(np.interp(times, np.arange(len(sound)) / RATE_HZ, sound), rate_hz)
    assert account(words, SAID) == NO_FAULT
    _check_times(words)


def test_words_survive_the_codec() -> None:
    words = decode(_through_opus(encode(SAID)), 48_000)
    assert account(words, SAID) == NO_FAULT
    _check_times(words, delay_s=0.0065)


@pytest.mark.parametrize("snr_db", [20, 5])
def test_words_survive_noise(snr_db: int) -> None:
    sound = encode(SAID)
    noise = np.random.default_rng(1).normal(0, 10 ** ((LEVEL_DBFS - snr_db) / 20), len(sound))
    words = decode((sound + noise).astype(np.float32), RATE_HZ)
    assert account(words, SAID) == NO_FAULT
    _check_times(words)


@pytest.mark.parametrize("rt60_s", [0.2, 0.6])
def test_a_room_neither_moves_words_nor_repeats_them(rt60_s: float) -> None:
    length = int(rt60_s * RATE_HZ)
    tail = np.random.default_rng(2).normal(0, 1, length) * 10 ** (-3 * np.arange(length) / length)
    room = tail * 0.5 / np.sqrt(np.sum(tail**2))
    room[0] += 1.0
    words = decode(np.convolve(encode(SAID), room).astype(np.float32), RATE_HZ)
    assert account(words, SAID) == NO_FAULT
    _check_times(words)


def test_silence_noise_and_speech_hold_no_words() -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, 10 * 16_000).astype(np.float32)
    speech = [talk(20, 16_000, voice) for voice in ("en-us", "en-gb+f3", "de")]
    for sound in (_silence(1), _silence(0), noise, *speech):
        assert decode(sound, 16_000) == []


def test_a_word_lost_in_the_middle_of_speech_is_missed() -> None:
    sound = encode([1, 2, 3, 4])
    sound[round(2 * SLOT_S * RATE_HZ) : round(3 * SLOT_S * RATE_HZ)] = 0
    assert account(decode(sound, RATE_HZ), [1, 2, 3, 4]) == Account(lost=[2])


def test_lost_packets_damage_the_word_that_they_carried() -> None:
    sound = encode([1, 2, 3, 4])
    lost = frozenset(range(15, 18))  # 300–360 ms: word 2 sounds from 250 to 450 ms
    words = decode(_through_opus(sound, lost), 48_000)
    assert account(words, [1, 2, 3, 4]) == Account(damaged=[1], interrupted=[1])
    before, after = (word for word in words if word.index == 2)
    assert before.end_s == pytest.approx(0.3, abs=WITHIN_S)
    assert after.start_s == pytest.approx(0.36, abs=WITHIN_S)
    assert before.to_s == pytest.approx(0.05, abs=WITHIN_S)
    assert after.from_s == pytest.approx(0.11, abs=WITHIN_S)


@pytest.mark.parametrize("cut_ms", [50, 100, 150])
def test_an_interrupted_word_that_goes_on_is_whole_in_two_pieces(cut_ms: int) -> None:
    sound = encode([7, 8, 9])
    cut = round((SLOT_S + cut_ms / 1000) * RATE_HZ)
    words = decode(np.concatenate((sound[:cut], _silence(0.7), sound[cut:])), RATE_HZ)
    assert account(words, [7, 8, 9]) == Account(interrupted=[1])
    first, second = (word for word in words if word.index == 8)
    assert first.end_s - first.start_s == pytest.approx(cut_ms / 1000, abs=WITHIN_S)
    assert second.start_s - first.end_s == pytest.approx(0.7, abs=2 * WITHIN_S)
    assert first.to_s == pytest.approx(second.from_s, abs=WITHIN_S)


def test_a_piece_that_is_said_again_is_found() -> None:
    sound = encode([7, 8, 9])
    cut, back = (round((SLOT_S + at_s) * RATE_HZ) for at_s in (0.12, 0.06))
    words = decode(np.concatenate((sound[:cut], _silence(0.3), sound[back:])), RATE_HZ)
    assert account(words, [7, 8, 9]) == Account(repeated=[1], interrupted=[1])


def test_a_word_said_twice_is_found() -> None:
    words = decode(np.concatenate((encode([1, 2]), encode([2, 3]))), RATE_HZ)
    assert account(words, [1, 2, 3]) == Account(repeated=[1], interrupted=[1])


def test_speech_that_was_cut_off_loses_its_rest() -> None:
    sound = encode([1, 2, 3, 4, 5])[: round((2 * SLOT_S + 0.14) * RATE_HZ)]
    words = decode(sound, RATE_HZ)
    assert account(words, [1, 2, 3, 4, 5]) == Account(lost=[3, 4], damaged=[2])
    assert words[-1].end_s == pytest.approx(2 * SLOT_S + 0.14, abs=WITHIN_S)


def test_indices_may_come_round_again() -> None:
    said = [number % INDICES for number in range(INDICES + 40)]
    sound = encode(said)
    gone = 290
    sound[round(gone * SLOT_S * RATE_HZ) : round((gone + 1) * SLOT_S * RATE_HZ)] = 0
    assert account(decode(sound, RATE_HZ), said) == Account(lost=[gone])


def test_words_do_not_depend_on_where_the_recording_began() -> None:
    sound = encode([10, 20, 30])
    for offset in (0, 1, 57, 119):
        words = decode(np.concatenate((np.zeros(offset, np.float32), sound)), RATE_HZ)
        steps = [later.start_s - word.start_s for word, later in itertools.pairwise(words)]
        assert [word.index for word in words] == [10, 20, 30]
        assert words[0].start_s == pytest.approx(offset / RATE_HZ, abs=WITHIN_S)
        assert steps == pytest.approx([SLOT_S, SLOT_S], abs=WITHIN_S)
