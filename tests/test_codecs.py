"""Which codec a call gets, Opus without libopus, and the codecs of telephones."""

import logging
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest

from agent.errors import ConfigError, MediaError
from agent.interfaces import AudioDecoder
from agent.media.jitter import LineOptions, MicrophoneLine, RtpAudio
from agent.transport import codecs, opus
from agent.transport.codecs import PyavDecoder, PyavOpusEncoder, audio_decoder, speech_encoder
from agent.types import FloatArray
from tests.rig.sound import alike
from tests.rig.voices import talk

NARROW = ["audio/PCMU", "audio/PCMA", "audio/G722"]
AV_NAMES = {"audio/PCMU": "pcm_mulaw", "audio/PCMA": "pcm_alaw", "audio/G722": "g722"}


@cache
def spoken(rate_hz: int) -> FloatArray:
    return talk(4, rate_hz)


@pytest.fixture
def no_libopus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which no libopus loads."""

    def missing() -> opus.Libopus:
        raise ConfigError("no libopus: none here")

    codecs.codec_source.cache_clear()
    monkeypatch.setattr(opus, "libopus", missing)
    yield
    codecs.codec_source.cache_clear()


def narrow_packets(mime_type: str) -> list[bytes]:
    """20 ms each, as a telephone would send them."""
    name = AV_NAMES[mime_type]
    rate_hz = 16_000 if name == "g722" else 8_000
    codec = av.CodecContext.create(name, "w")
    codec.sample_rate, codec.layout, codec.format = rate_hz, "mono", "s16"
    codec.time_base = Fraction(1, rate_hz)
    pcm = (spoken(rate_hz) * 32767).astype(np.int16)
    packets = []
    for at in range(0, len(pcm), rate_hz // 50):
        frame = av.AudioFrame.from_ndarray(
            pcm[None, at : at + rate_hz // 50], format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = rate_hz, at
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets


def opus_packets() -> list[bytes]:
    encoder = opus.OpusEncoder()
    return [encoder.encode(piece) for piece in spoken(24_000).reshape(-1, 480)]


def decoded(decoder: AudioDecoder, packets: list[bytes]) -> FloatArray:
    return np.concatenate([decoder.decode(packet) for packet in packets])


# ---- the choice -------------------------------------------------------------------------------


def test_libopus_is_taken_where_it_loads() -> None:
    assert codecs.codec_source().kind == "bundled"
    assert isinstance(audio_decoder("audio/opus", 48_000), opus.OpusDecoder)
    assert isinstance(speech_encoder(), opus.OpusEncoder)


@pytest.mark.usefixtures("no_libopus")
def test_without_libopus_pyav_works_and_is_announced_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(audio_decoder("audio/opus", 48_000), PyavDecoder)
        assert isinstance(speech_encoder(), PyavOpusEncoder)
    assert codecs.codec_source().kind == "pyav"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "none here" in caplog.text


@pytest.mark.parametrize("mime_type", ["audio/speex", "video/VP8", "", "audio/opus/2"])
def test_an_unknown_codec_is_named(mime_type: str) -> None:
    with pytest.raises(ConfigError, match=f"{mime_type} with a clock of 48000"):
        audio_decoder(mime_type, 48_000)


@pytest.mark.parametrize(
    ("mime_type", "clock_rate_hz"), [("audio/opus", 8000), *[(name, 48_000) for name in NARROW]]
)
def test_a_codec_with_another_clock_is_refused(mime_type: str, clock_rate_hz: int) -> None:
    with pytest.raises(ConfigError, match=str(clock_rate_hz)):
        audio_decoder(mime_type, clock_rate_hz)


def test_a_codec_that_pyav_lacks_is_a_fault_of_the_installation() -> None:
    with pytest.raises(ConfigError, match="none of nothing, such"):
        PyavDecoder(("nothing", "such"), 8000, codecs.narrow_samples)


# ---- Opus by PyAV -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["libopus", "opus"])
def test_opus_by_pyav_sounds_like_opus_by_libopus(name: str) -> None:
    packets = opus_packets()
    sound = decoded(PyavDecoder((name,), 48_000, codecs.opus_samples), packets)
    assert sound.shape == (320 * len(packets),) and sound.dtype == np.float32
    assert alike(sound[3200:], decoded(opus.OpusDecoder(), packets)[3200:-3200]) > 0.98


def test_speech_encoded_by_pyav_is_understood() -> None:
    encoder = PyavOpusEncoder()
    encoder.expect_loss(0.5)
    packets = [encoder.encode(piece) for piece in spoken(24_000).reshape(-1, 480)]
    assert alike(decoded(opus.OpusDecoder(), packets), spoken(16_000)) > 0.95
    assert sum(map(len, packets)) * 8 / 4 < 40_000
    repaired = opus.libopus().functions.opus_packet_has_lbrr
    assert sum(repaired(packet, len(packet)) for packet in packets) > 0.5 * len(packets)
    with pytest.raises(ValueError, match="480"):
        encoder.encode(np.zeros(160, np.float32))


def test_the_length_is_read_off_a_packet_as_libopus_does() -> None:
    dice, library = random.Random(3), opus.libopus().functions
    for first in range(256):
        payload = bytes([first]) + dice.randbytes(dice.randrange(4))
        said = library.opus_packet_get_nb_samples(payload, len(payload), 16_000)
        if said > 0:
            assert codecs.opus_samples(payload) == said
        else:
            with pytest.raises(MediaError):
                codecs.opus_samples(payload)
    with pytest.raises(MediaError, match="empty"):
        codecs.opus_samples(b"")


def test_random_bytes_are_refused_or_decoded_to_the_length_they_claim() -> None:
    dice, refused = random.Random(11), 0
    decoder = PyavDecoder(("libopus",), 48_000, codecs.opus_samples)
    for _ in range(600):
        payload = dice.randbytes(dice.choice([0, 1, 2, 20, 200]))
        try:
            sound = decoder.decode(payload)
        except MediaError:
            refused += 1
        else:
            assert sound.shape == (decoder.samples_in(payload),)
            assert np.isfinite(sound).all()
    assert 0 < refused < 600


def test_packets_of_half_milliseconds_keep_their_length() -> None:
    decoder = PyavDecoder(("libopus",), 48_000, codecs.opus_samples)
    celt_of_2_5_ms = bytes([28 << 3, 0xFF, 0xFE])
    assert [len(decoder.decode(celt_of_2_5_ms)) for _ in range(9)] == [40] * 9


# ---- telephones -------------------------------------------------------------------------------


@pytest.mark.parametrize("mime_type", NARROW)
def test_a_telephone_is_heard(mime_type: str) -> None:
    decoder, packets = audio_decoder(mime_type, 8000), narrow_packets(mime_type)
    assert {decoder.samples_in(packet) for packet in packets} == {320}
    sound = decoded(decoder, packets)
    assert sound.shape == (4 * 16_000,)
    assert alike(sound, spoken(16_000)) > 0.9


@pytest.mark.parametrize("mime_type", NARROW)
def test_a_telephone_with_lost_packets_stays_on_the_time_line(mime_type: str) -> None:
    line = MicrophoneLine(audio_decoder(mime_type, 8000), LineOptions(clock_rate_hz=8000))
    frames = []
    for number, payload in enumerate(narrow_packets(mime_type)):
        if number % 10 != 7:
            frames += line.push(RtpAudio(number, number * 160, payload), number * 0.02)
    assert [frame.start for frame in frames] == [160 * n for n in range(400)]
    sound = np.concatenate([frame.samples for frame in frames])
    assert alike(sound, spoken(16_000)) > 0.85


@pytest.mark.parametrize("mime_type", NARROW)
def test_concealment_goes_on_without_a_click_and_fades(mime_type: str) -> None:
    decoder, packets = audio_decoder(mime_type, 8000), narrow_packets(mime_type)
    loudest = int(np.argmax(np.sum(spoken(16_000).reshape(-1, 320) ** 2, axis=1)))
    before = decoded(decoder, packets[: loudest + 1])
    held = np.concatenate(
        [decoder.conceal(160), decoder.repair(packets[0], 400), decoder.conceal(800)]
    )
    assert held.shape == (1360,)
    assert abs(float(held[0] - before[-1])) < 0.05
    assert np.sqrt(np.mean(held[:320] ** 2)) > 0.3 * np.sqrt(np.mean(before[-320:] ** 2))
    assert not np.any(held[960:])
    in_one_go = audio_decoder(mime_type, 8000)
    decoded(in_one_go, packets[: loudest + 1])
    assert np.array_equal(held, in_one_go.conceal(1360))


@pytest.mark.parametrize("payload", [b"", bytes(961)])
def test_a_telephone_packet_has_a_length_that_can_be(payload: bytes) -> None:
    decoder = audio_decoder("audio/PCMU", 8000)
    for refuses in (decoder.samples_in, decoder.decode, lambda data: decoder.repair(data, 160)):
        with pytest.raises(MediaError, match="bytes"):
            refuses(payload)
