"""Opus by libopus: sound there and back, repair, concealment, and whatever a peer may send."""

import gc
import random
from functools import cache

import numpy as np
import pytest

from agent.errors import ConfigError, MediaError
from agent.transport import opus
from agent.transport.opus import OpusDecoder, OpusEncoder
from agent.types import FloatArray
from tests.rig.sound import alike
from tests.rig.voices import talk

SILENCE = np.zeros(480, np.float32)


@cache
def spoken(seconds: float, rate_hz: int) -> FloatArray:
    return talk(seconds, rate_hz)


def encoded(speech: FloatArray, expected_loss: float = 0.0) -> list[bytes]:
    encoder = OpusEncoder()
    encoder.expect_loss(expected_loss)
    cut = speech[: len(speech) // 480 * 480].reshape(-1, 480)
    return [encoder.encode(piece) for piece in cut]


def decoded(packets: list[bytes]) -> FloatArray:
    decoder = OpusDecoder()
    return np.concatenate([decoder.decode(packet) for packet in packets])


# ---- there and back ---------------------------------------------------------------------------


def test_speech_survives_at_the_bitrate_of_the_call() -> None:
    packets = encoded(spoken(6, 24_000))
    sound = decoded(packets)
    assert sound.dtype == np.float32 and sound.shape == (6 * 16_000,)
    assert alike(sound, spoken(6, 16_000)) > 0.95
    assert 25_000 < sum(map(len, packets)) * 8 / 6 < 40_000


def test_each_packet_says_how_much_it_holds() -> None:
    decoder = OpusDecoder()
    packet = encoded(spoken(0.02, 24_000))[0]
    assert decoder.samples_in(packet) == 320
    assert decoder.decode(packet).shape == (320,)


def test_what_was_decoded_stays_what_it_was() -> None:
    packets, decoder = encoded(spoken(0.1, 24_000)), OpusDecoder()
    first = decoder.decode(packets[0])
    copy = first.copy()
    decoder.decode(packets[1])
    assert np.array_equal(first, copy)


def test_only_20_ms_are_encoded() -> None:
    with pytest.raises(ValueError, match="20 ms"):
        OpusEncoder().encode(np.zeros(960, np.float32))


def test_broken_samples_do_not_break_the_encoder() -> None:
    encoder, speech = OpusEncoder(), spoken(1, 24_000).reshape(-1, 480)
    for broken in (np.nan, np.inf, 1e30):
        assert encoder.encode(np.full(480, broken, np.float32))
    sound = decoded([encoder.encode(piece) for piece in speech])
    assert np.isfinite(sound).all()
    assert alike(sound[4800:], spoken(1, 16_000)[4800:-1600]) > 0.9


# ---- loss -------------------------------------------------------------------------------------


def repair_error(expected_loss: float, repair: bool) -> float:
    """How far lost packets, one in five, are from what they were; 0 is exact, 1 is silence."""
    packets = encoded(spoken(6, 24_000), expected_loss)
    whole, decoder = decoded(packets), OpusDecoder()
    error = energy = 0.0
    for number in range(0, len(packets) - 5, 5):
        for packet in packets[number : number + 4]:
            decoder.decode(packet)
        following = packets[number + 5]
        lost = decoder.repair(following, 320) if repair else decoder.conceal(320)
        truth = whole[(number + 4) * 320 : (number + 5) * 320]
        error += float(np.sum((lost - truth) ** 2))
        energy += float(np.sum(truth**2))
    return error / energy


def test_a_lost_packet_comes_back_from_the_next_one() -> None:
    repaired = repair_error(0.1, True)
    assert repaired < 0.15
    assert repaired < 0.5 * repair_error(0.1, False)


def test_redundancy_is_only_spent_when_loss_is_expected() -> None:
    assert repair_error(0.0, True) == pytest.approx(repair_error(0.0, False), rel=0.05)


def test_the_expectation_may_change_during_the_call() -> None:
    encoder, has_redundancy = OpusEncoder(), opus.libopus().functions.opus_packet_has_lbrr
    speech = spoken(4, 24_000).reshape(-1, 480)
    share = []
    for expected_loss, part in ((0.0, speech[:66]), (0.1, speech[66:132]), (0.0, speech[132:])):
        encoder.expect_loss(expected_loss)
        packets = [encoder.encode(piece) for piece in part]
        share.append(np.mean([has_redundancy(packet, len(packet)) == 1 for packet in packets[5:]]))
    assert share[0] == 0.0 and share[1] > 0.7 and share[2] == 0.0


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.004, 0.3, 1.0, 7.0])
def test_any_expectation_is_taken(share: float) -> None:
    encoder = OpusEncoder()
    encoder.expect_loss(share)
    assert encoder.encode(spoken(0.02, 24_000))


@pytest.mark.parametrize("samples", [1, 40, 100, 160, 320, 333, 960, 1920, 1921, 5000])
def test_repair_and_concealment_give_the_length_asked_for(samples: int) -> None:
    packets, decoder = encoded(spoken(0.4, 24_000), 0.1), OpusDecoder()
    for packet in packets[:10]:
        decoder.decode(packet)
    assert decoder.conceal(samples).shape == (samples,)
    assert decoder.repair(packets[15], samples).shape == (samples,)


def test_the_end_of_a_longer_hole_is_repaired() -> None:
    packets, whole = encoded(spoken(6, 24_000), 0.1), decoded(encoded(spoken(6, 24_000), 0.1))
    error = {True: 0.0, False: 0.0}
    for repair in error:
        decoder = OpusDecoder()
        for number in range(0, 290, 10):
            for packet in packets[number : number + 8]:
                decoder.decode(packet)
            hole = decoder.repair(packets[number + 10], 640) if repair else decoder.conceal(640)
            truth = whole[(number + 9) * 320 : (number + 10) * 320]
            error[repair] += float(np.sum((hole[-320:] - truth) ** 2))
    assert error[True] < 0.6 * error[False]


def test_concealment_goes_on_and_then_fades() -> None:
    decoder, speech = OpusDecoder(), spoken(2, 24_000).reshape(-1, 480)
    assert not np.any(decoder.conceal(320)), "before the first packet nothing can go on"
    loudest = int(np.argmax(np.sum(speech**2, axis=1)))
    for packet in encoded(speech[: loudest + 1].ravel()):
        last = decoder.decode(packet)
    hole = decoder.conceal(16_000)
    level = np.sqrt(np.mean(last**2))
    assert np.sqrt(np.mean(hole[:320] ** 2)) > 0.3 * level
    assert np.sqrt(np.mean(hole[8000:] ** 2)) < 0.05 * level


# ---- silence ----------------------------------------------------------------------------------


def test_silence_costs_nothing_once_its_packets_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, runs = OpusEncoder(), []
    encode = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda samples: runs.append(1) or encode(samples))
    for piece in spoken(1, 24_000).reshape(-1, 480):
        encoder.encode(piece)
    runs.clear()
    packets = [encoder.encode(SILENCE) for _ in range(500)]
    assert len(runs) < 60
    assert len(set(packets[60:])) == 1
    assert float(np.abs(decoded(packets)[6400:]).max()) < 1e-4
    encoder.expect_loss(0.2)
    encoder.encode(SILENCE)
    assert len(runs) < 62, "one more run tells what silence is now"


def test_speech_after_rested_silence_is_as_good_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = spoken(6, 24_000).reshape(-1, 480)
    parts = [speech[n : n + 25] for n in range(0, 300, 25)]
    pause, clean = np.zeros((60, 480), np.float32), decoded(encoded(speech.ravel(), 0.1))
    whole = np.concatenate([piece for part in parts for piece in (part, pause)]).ravel()

    def error() -> float:
        said = decoded(encoded(whole, 0.1)).reshape(len(parts), -1)[:, :8000]
        pairs = zip(said, clean.reshape(-1, 8000), strict=True)
        return 1.0 - float(np.mean([alike(heard, true) for heard, true in pairs]))

    rested = error()
    monkeypatch.setattr(opus, "_STEADY_PACKETS", 1 << 30)
    assert rested < error() + 0.02


# ---- what a peer may send ---------------------------------------------------------------------


def test_an_empty_payload_is_no_packet() -> None:
    decoder = OpusDecoder()
    for refuses in (
        decoder.samples_in,
        decoder.decode,
        lambda payload: decoder.repair(payload, 320),
    ):
        with pytest.raises(MediaError, match="no Opus packet"):
            refuses(b"")


def test_a_packet_of_one_byte_continues_the_silence() -> None:
    packets, decoder = encoded(spoken(0.4, 24_000)), OpusDecoder()
    for packet in packets:
        decoder.decode(packet)
    quiet = packets[-1][:1]
    assert decoder.samples_in(quiet) == 320
    assert decoder.decode(quiet).shape == (320,)
    assert decoder.repair(quiet, 320).shape == (320,)


def test_random_bytes_never_crash_nor_come_out_longer_than_said() -> None:
    dice, decoder, refused = random.Random(7), OpusDecoder(), 0
    good = encoded(spoken(0.5, 24_000), 0.1)
    for attempt in range(4000):
        payload = dice.randbytes(dice.choice([1, 2, 3, 10, 60, 300, 1400]))
        if attempt % 3 == 0:
            at = dice.randrange(60)
            whole = dice.choice(good)
            payload = whole[:at] + dice.randbytes(2) + whole[at + dice.randrange(3) :]
        try:
            said = decoder.samples_in(payload)
            assert 40 <= said <= 1920
            assert decoder.repair(payload, dice.choice([40, 320, 960])).dtype == np.float32
            sound = decoder.decode(payload)
            assert sound.shape == (said,)
            assert np.isfinite(sound).all()
        except MediaError:
            refused += 1
    assert 0 < refused < 4000
    assert decoder.decode(good[0]).shape == (320,)


def test_a_broken_packet_does_not_hurt_the_next_one() -> None:
    packets, decoder = encoded(spoken(2, 24_000)), OpusDecoder()
    sound = []
    for number, packet in enumerate(packets):
        if number % 10 == 5:
            with pytest.raises(MediaError):
                decoder.decode(b"\xff")
        sound.append(decoder.decode(packet))
    assert np.array_equal(np.concatenate(sound), decoded(packets))


# ---- the library ------------------------------------------------------------------------------


def test_the_library_that_pyav_brings_is_taken_first() -> None:
    library = opus.libopus()
    assert library.origin == "bundled"
    assert library.version.startswith("libopus ")


def test_a_library_that_is_missing_or_another_one_is_passed_over() -> None:
    path = opus.libopus().path
    unusable: list[tuple[str, opus.Origin]] = [("/nowhere/libopus.so", "bundled")]
    unusable.append(("libc.so.6", "bundled"))
    assert opus.load_libopus([*unusable, (path, "system")]).origin == "system"
    with pytest.raises(ConfigError, match="/nowhere/libopus"):
        opus.load_libopus(unusable)
    with pytest.raises(ConfigError, match="no libopus"):
        opus.load_libopus([])


@pytest.mark.parametrize("codec", [OpusDecoder, OpusEncoder])
def test_a_state_is_freed_once_by_close_or_with_its_object(
    codec: type[OpusDecoder] | type[OpusEncoder],
) -> None:
    closed = codec()
    closed.close()
    assert not closed._free.alive
    closed.close()
    dropped = codec()
    free = dropped._free
    del dropped
    gc.collect()
    assert not free.alive


def test_a_closed_codec_refuses_instead_of_crashing() -> None:
    decoder, encoder = OpusDecoder(), OpusEncoder()
    packet = encoder.encode(spoken(0.02, 24_000))
    decoder.close()
    encoder.close()
    for use in (
        lambda: decoder.decode(packet),
        lambda: decoder.conceal(320),
        lambda: decoder.repair(packet, 320),
        lambda: encoder.encode(spoken(0.02, 24_000)),
        lambda: encoder.expect_loss(0.5),
    ):
        with pytest.raises(MediaError, match="closed"):
            use()


def test_a_complexity_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="4010 = 11"):
        OpusEncoder(complexity=11)
