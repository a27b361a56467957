"""Sound inside of events: codes, rates, and pieces that are cut anywhere."""

from itertools import pairwise

import av
import numpy as np
import pytest

from agent.media.audio import from_pcm16, to_pcm16
from agent.media.wire_sound import (
    WholeSamples,
    WireDecoder,
    WireEncoder,
    sample_bytes,
    wire_rate_hz,
)
from agent.types import FloatArray, SoundFormat

CODINGS: tuple[SoundFormat, ...] = ("audio/pcm", "audio/pcmu", "audio/pcma")
IN: tuple[SoundFormat, ...] = (*CODINGS, "audio/pcm;rate=16000")
"""Of the user's sound."""
G711 = {"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}


def tones(rate_hz: int, ms: int) -> FloatArray:
    """What passes every rate of these alike."""
    at_s = np.arange(rate_hz * ms // 1000) / rate_hz
    parts = [0.2 * np.sin(2 * np.pi * hz * at_s + hz) for hz in (220.0, 770.0, 1900.0)]
    return np.sum(parts, axis=0).astype(np.float32)


def wire_bytes(samples: FloatArray, coding: SoundFormat) -> bytes:
    """`samples` at the wire's rate, by a codec that is not ours."""
    pcm = to_pcm16(samples)
    if coding not in G711:
        return pcm.tobytes()
    encoder = av.CodecContext.create(G711[coding], "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8000, "mono", "s16"  # type: ignore[assignment]
    frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in encoder.encode(frame))  # type: ignore[attr-defined]


def linear(data: bytes, coding: SoundFormat) -> FloatArray:
    """The samples of `data`, by a codec that is not ours."""
    if coding == "audio/pcm":
        return from_pcm16(data)
    decoder = av.CodecContext.create(G711[coding], "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"  # type: ignore[attr-defined,assignment]
    (frame,) = decoder.decode(av.Packet(data))  # type: ignore[attr-defined]
    return np.asarray(frame.to_ndarray()[0] / 32768.0, np.float32)


def cut(data: bytes, seed: int) -> list[bytes]:
    """In pieces of any size, odd ones and empty ones among them."""
    marks = np.sort(np.random.default_rng(seed).integers(0, len(data), 40))
    edges = [0, *map(int, marks), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


def level(error: FloatArray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(error.astype(np.float64) ** 2)) + 1e-12))


# ---- in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", IN)
def test_what_came_in_pieces_is_what_came_in_one_go(coding: SoundFormat) -> None:
    data = wire_bytes(tones(wire_rate_hz(coding), 700), coding)
    whole = WireDecoder(coding)
    at_once = np.concatenate((whole.push(data), whole.finish()))
    for seed in range(3):
        cutter, pieces = WholeSamples(coding), WireDecoder(coding)
        parts = [pieces.push(cutter.push(piece)) for piece in cut(data, seed)]
        assert np.array_equal(np.concatenate((*parts, pieces.finish())), at_once)
        assert pieces.end == whole.end == len(at_once) == 700 * 16


@pytest.mark.parametrize("coding", IN)
def test_it_comes_out_where_it_was_and_as_it_was(coding: SoundFormat) -> None:
    decoder = WireDecoder(coding)
    data = wire_bytes(tones(wire_rate_hz(coding), 700), coding)
    heard = np.concatenate((decoder.push(data), decoder.finish()))
    error = (heard - tones(16_000, 700))[200:-200]
    assert level(error) < (-40 if coding in G711 else -75)


@pytest.mark.parametrize("coding", IN)
def test_silence_between_joins_without_a_sample_more_or_less(coding: SoundFormat) -> None:
    rate_hz = wire_rate_hz(coding)
    sound = wire_bytes(tones(rate_hz, 100), coding)
    decoder = WireDecoder(coding)
    parts = [decoder.pause(500), decoder.push(sound)]
    parts += [decoder.pause(10) for _ in range(30)]
    parts += [decoder.push(sound), decoder.finish()]
    heard = np.concatenate(parts)
    assert decoder.end == len(heard) == 16 * (500 + 100 + 300 + 100)
    expected = np.zeros_like(heard)
    for begin in (16 * 500, 16 * 900):
        expected[begin : begin + 1600] = tones(16_000, 100)
    inside = np.r_[8200:9400, 14_600:15_800]
    assert level((heard - expected)[inside]) < -40
    assert not heard[: 16 * 490].any() and not heard[16 * 620 : 16 * 890].any()


def test_a_sample_may_be_cut_in_halves_and_the_rest_stays_in_step() -> None:
    data = wire_bytes(tones(24_000, 50), "audio/pcm")
    cutter = WholeSamples("audio/pcm")
    assert [cutter.count(data[:1]), cutter.count(data[:2])] == [0, 1]
    assert b"".join(cutter.push(bytes([byte])) for byte in data) == data


def test_sound_that_is_lost_leaves_no_half_sample_that_shifts_the_rest() -> None:
    data = wire_bytes(tones(24_000, 50), "audio/pcm")
    cutter = WholeSamples("audio/pcm")
    assert cutter.push(data[:11]) == data[:10]
    cutter.lose(data[11:602])
    assert cutter.push(data[602:]) == data[602:]
    cutter.lose(data[:601])
    rest = cutter.push(data[601:])
    assert (rest[:1], rest[1:]) == (b"\0", data[601:]), "half a sample, and all others in step"


# ---- out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
def test_a_turn_in_pieces_is_the_turn_in_one_go_and_as_long(coding: SoundFormat) -> None:
    turn = tones(24_000, 730)
    whole, pieces = WireEncoder(coding), WireEncoder(coding)
    at_once = whole.push(turn) + whole.finish()
    marks = np.sort(np.random.default_rng(5).integers(0, len(turn), 30))
    sent = b"".join(pieces.push(part) for part in np.split(turn, marks)) + pieces.finish()
    assert sent == at_once
    assert len(sent) == 730 * wire_rate_hz(coding) // 1000 * sample_bytes(coding)
    heard = linear(sent, coding)
    error = (heard - tones(wire_rate_hz(coding), 730))[100:-100]
    assert level(error) < (-90 if coding == "audio/pcm" else -40)


def test_pcm_is_the_turn_sample_for_sample_at_once() -> None:
    turn = tones(24_000, 40)
    encoder = WireEncoder("audio/pcm")
    assert encoder.push(turn[:7]) + encoder.push(turn[7:]) == to_pcm16(turn).tobytes()
    assert encoder.finish() == b""


@pytest.mark.parametrize("coding", ["audio/pcmu", "audio/pcma"])
def test_g711_is_coded_as_exactly_as_by_others(coding: SoundFormat) -> None:
    """Every byte means what it means to others; every level takes a byte at least as near."""
    decoder = WireDecoder(coding)
    meant = [decoder.push(bytes([byte]) * 80)[-1] for byte in range(256)]
    assert np.allclose(meant, linear(bytes(range(256)), coding), atol=1e-4)
    slow = np.repeat(np.linspace(-1, 1, 400).astype(np.float32), 240)  # 10 ms each: no ringing
    encoder = WireEncoder(coding)
    ours = linear(encoder.push(slow) + encoder.finish(), coding)[40::80]
    theirs = linear(wire_bytes(np.linspace(-1, 1, 400).astype(np.float32), coding), coding)
    exact = np.linspace(-1, 1, 400)
    assert np.all(np.abs(ours - exact) <= np.abs(theirs - exact) + 2e-4)


def test_silence_is_the_byte_that_telephones_take_for_silence() -> None:
    silence = np.zeros(480, np.float32)
    assert set(WireEncoder("audio/pcmu").push(silence)) == {0xFF}
    assert set(WireEncoder("audio/pcma").push(silence)) == {0xD5}
