"""The microphone's time line on random networks, and with real speech through real Opus."""

import random
import struct
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest

from agent.media.jitter import MicrophoneLine, RtpAudio
from agent.transport.opus import OpusDecoder, OpusEncoder
from agent.types import AudioFrame, FloatArray
from tests.rig.driven_line import CONCEALED, REPAIRED, SLOT_S, Driven, packet
from tests.rig.sound import alike
from tests.rig.voices import talk

# ---- any network ------------------------------------------------------------------------------


def arrivals(
    seed: int, loss: float, jitter_s: float, overtake: bool, copies: float
) -> list[tuple[float, int]]:
    """When packets come, of 700: [(seconds, number)]; the first and the last do come."""
    chance = np.random.default_rng(seed)
    came: list[tuple[float, int]] = []
    last_s = 0.0
    for number in range(700):
        if 0 < number < 699 and chance.random() < loss:
            continue
        at_s = 1000.0 + number * SLOT_S + 0.03 + float(chance.random()) * jitter_s
        last_s = at_s = at_s if overtake else max(at_s, last_s)
        if 0 < number < 699:
            came.append((at_s, number))
            if chance.random() < copies:
                came.append((at_s + float(chance.random()) * 0.1, number))
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


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_time_goes_on_and_nothing_piles_up(seed: int) -> None:
    dice, run = random.Random(seed), Driven()
    sequence, timestamp, now_s = dice.randrange(1 << 16), dice.randrange(1 << 32), 1000.0
    for number in range(400):
        sequence, timestamp = sequence + 1, timestamp + 960
        match dice.randrange(50):
            case 0:
                sequence += dice.randrange(-70, 70)
                timestamp += 960 * dice.randrange(-70, 70)
            case 1:
                sequence = dice.randrange(1 << 16)
            case 2:
                timestamp = dice.randrange(1 << 32)
            case 3:
                timestamp += dice.randrange(-2000, 2000)
        payload = struct.pack("!IH", number, dice.choice([10, 20, 20, 60, 120]))
        payload = dice.choice([b"", b"???"]) if dice.random() < 0.02 else payload
        now_s += dice.choice([0.0, 0.01, 0.02, 0.02, 0.02, 0.03, 5.0 if number % 90 == 7 else 0.02])
        before = len(run.sound)
        run.push(RtpAudio(sequence & 0xFFFF, timestamp & 0xFFFFFFFF, payload), now_s)
        assert len(run.sound) - before < 1000
        assert run.line.counts.depth <= 65
        due_s = run.line.due_s()
        assert due_s is None or due_s <= now_s + (0.06 if run.line.counts.depth else 1.1) + 1e-9
    run.until(now_s + 2.0)
    assert len(run.sound) * 0.01 > 0.9 * (now_s - 1000.0)


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
