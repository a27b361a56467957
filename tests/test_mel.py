"""The mel of recordings and of streams, against computing it anew from the whole buffer."""

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.duplex.mel import (
    BANDS,
    DUPLEX,
    TURN_BASED,
    MelLayout,
    StreamingMel,
    clean,
    frame_count,
    mel_filters,
    offline_mel,
)
from agent.types import UNIT_SAMPLES, FloatArray

LIMIT = 2e-6
"""Of float32 near 1.5, added up over the bands."""


def _noise(seconds: float, seed: int = 0, level: float = 0.1) -> FloatArray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * 16_000))
    return (level * noise).astype(np.float32)


def _whole_log_mel(buffer: Tensor) -> Tensor:
    """log-mel of a whole buffer with mirrored ends, the last frame dropped: the definition."""
    spectrum = torch.stft(
        buffer.double(),
        400,
        160,
        window=torch.hann_window(400).double(),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )[:, :-1]
    return (mel_filters().double() @ spectrum.abs() ** 2).clamp(min=1e-10).log10()


def _recomputed(samples: FloatArray, layout: MelLayout = DUPLEX) -> list[Tensor]:
    """Every chunk of a stream, each from its whole buffer computed anew."""
    stream = torch.from_numpy(np.pad(samples, (layout.silence_samples, 0)))
    chunks, dropped, taken = [], 0, layout.first_chunk_samples
    while taken <= len(stream):
        if taken - dropped >= 480_000:
            dropped += 160_000
        log = _whole_log_mel(stream[dropped:taken])
        floor = float(log.max()) - 8 if taken - dropped >= 80_000 else -10.0
        begin = max(100 * len(chunks) - layout.overlap_frames, 0) - dropped // 160
        stop = 100 * (len(chunks) + 1) + layout.overlap_frames - dropped // 160
        chunks.append(((log.clamp(min=floor) + 4) / 4).float()[:, begin:stop])
        taken += 16_000
    return chunks


def _same(ours: list[Tensor], theirs: list[Tensor], limit: float = LIMIT) -> bool:
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    return all(
        bool((one - two).abs().max() <= limit * two.abs().max())
        for one, two in zip(ours, theirs, strict=True)
    )


# ---- recordings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "samples", [1, 159, 160, 199, 200, 16_000, 48_123, 479_700, 479_999, 480_000]
)
def test_a_recording_is_that_of_30_s_padded_with_zeros(samples: int) -> None:
    sound = _noise(30, seed=samples)[:samples]
    sound[-120:] *= 30  # the loudest of all is where the sound meets the zeros
    log = _whole_log_mel(torch.from_numpy(np.pad(sound, (0, 480_000 - samples))))
    wanted = ((log.clamp(min=float(log.max()) - 8) + 4) / 4).float()
    assert log.shape == (BANDS, 3000)
    assert _same(offline_mel(sound), [wanted[:, : frame_count(samples)]])


def test_a_long_recording_is_cut_every_30_s() -> None:
    sound = _noise(61.5)
    sound[500_000:500_100] = 1  # raises the floor of its own piece alone
    pieces = offline_mel(sound)
    assert [piece.shape[1] for piece in pieces] == [3000, 3000, 150]
    alone = [offline_mel(sound[start : start + 480_000])[0] for start in (0, 480_000, 960_000)]
    assert _same(pieces, alone, 0)


def test_no_sound_has_no_mel() -> None:
    assert offline_mel(np.zeros(0, np.float32)) == []


def test_the_floor_is_eight_below_the_loudest() -> None:
    sound = np.concatenate([_noise(0.5, level=0.5), np.zeros(8000, np.float32)])
    (mel,) = offline_mel(sound)
    assert float(mel.max() - mel.min()) == pytest.approx(2)
    (unfloored,) = offline_mel(sound, floored=False)
    assert float(unfloored.min()) == pytest.approx(-1.5)


# ---- streams ------------------------------------------------------------------------------------


def _eventful(seconds: float) -> FloatArray:
    """Loud and faint stretches, with bursts where buffers will one day begin or end."""
    sound = _noise(seconds, seed=4)
    sound[9 * 16_000 :] *= 0.02
    rng = np.random.default_rng(5)
    for at in (15_360, 159_440, 160_000 - 560, 320_000 - 560 + 40, 480_000 - 560 + 200):
        sound[at : at + 30] += rng.standard_normal(len(sound[at : at + 30])).astype(np.float32)
    for second in (12, 27, 33, 41):
        end = 16_480 - 560 + 16_000 * second
        sound[end - 90 : end] += _noise(1, level=second / 4)[: len(sound[end - 90 : end])]
    return sound


@pytest.mark.parametrize("layout", [DUPLEX, TURN_BASED, MelLayout(0, 16_480, 2)])
def test_a_stream_equals_its_buffer_computed_anew(layout: MelLayout) -> None:
    sound = _eventful(44)
    assert _same(StreamingMel(layout).push(sound), _recomputed(sound, layout))


@pytest.mark.parametrize("start", [1000, 2000])
def test_where_a_buffer_begins_its_mirror_image_counts(start: int) -> None:
    """After a drop the loudest frame may be one that sees the mirrored start, and no other does."""
    sound = _noise(42, level=1e-4)
    at = start * 160 - DUPLEX.silence_samples
    # Even about the first sample of the buffer: its mirror image doubles it, the past cancels it.
    pulse = np.sin(np.arange(1, 150) * 0.9).astype(np.float32)
    sound[at + 1 : at + 150] = pulse
    sound[at - 149 : at] = -pulse[::-1]
    assert _same(StreamingMel().push(sound), _recomputed(sound))


@pytest.mark.parametrize("seed", range(4))
def test_in_pieces_as_in_one_go(seed: int) -> None:
    sound = _eventful(33)
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(sound), (4, 40, 300, 33)[seed]))
    stream, pieces = StreamingMel(), []
    for piece in np.split(sound, cuts):
        pieces += stream.push(piece)
    assert _same(pieces, StreamingMel().push(sound), 0)


def test_seconds_of_a_session_come_one_by_one() -> None:
    stream = StreamingMel()
    sound = _noise(6)
    frames = [
        [mel.shape[1] for mel in stream.push(sound[unit * 16_000 :][:UNIT_SAMPLES])]
        for unit in range(6)
    ]
    assert frames == [[102], [104], [104], [104], [104], [104]]


def test_a_session_hears_35_ms_of_silence_first_and_lags_by_5_ms() -> None:
    sound = np.zeros(32_000, np.float32)
    sound[0] = 1
    sound[15_920] = 1  # first sample that belongs to the second chunk
    first, second = StreamingMel().push(sound)
    loud = [frame for frame in range(102) if float(first[:, frame].max()) > -1.5]
    assert loud == [3, 4]  # windows of 25 ms around sample 560 of the stream
    assert float(second[:, -100:].max()) > float(second[:, -1].max())
    early = StreamingMel().push(np.concatenate([sound[:15_920], np.zeros(80, np.float32)]))
    assert torch.equal(early[0], first)


def test_core_frames_are_those_of_a_recording() -> None:
    sound = _noise(4.5)
    padded = np.pad(sound, (560, 0))
    chunks = StreamingMel().push(sound)
    core = torch.cat([chunks[0][:, :100], *(chunk[:, 2:102] for chunk in chunks[1:])], 1)
    (whole,) = offline_mel(padded, floored=False)
    # Before the first sample both see zeros: the stream's mirror image is of its silence.
    assert _same([core], [whole[:, : core.shape[1]]])


def test_finish_gives_the_rest_of_a_turn() -> None:
    sound = _noise(2.3, seed=9)
    stream = StreamingMel(TURN_BASED)
    assert len(stream.push(sound)) == 2
    (rest,) = stream.finish()
    log = _whole_log_mel(torch.from_numpy(np.pad(sound, (560, 0))))
    assert rest.shape[1] == log.shape[1] - 200
    assert _same([rest], [((log + 4) / 4).float()[:, 200:]])
    assert stream.finish() == []


@pytest.mark.parametrize("samples", [0, 1, 100, 200, 201, 250, 900])
def test_finish_of_hardly_anything(samples: int) -> None:
    stream = StreamingMel(MelLayout(0, 16_560, 0))
    stream.push(_noise(1)[:samples])
    frames = [mel.shape[1] for mel in stream.finish()]
    assert frames == ([samples // 160] if samples > 200 else [])


def test_a_clone_goes_its_own_way() -> None:
    sound, other = _eventful(36), _noise(36, seed=77)
    stream = StreamingMel()
    stream.push(sound[:470_000])
    clone = stream.clone()
    disturbed = stream.push(other[:100_000])
    continued = clone.push(sound[470_000:])
    whole = StreamingMel().push(sound)
    assert _same(continued, whole[-len(continued) :], 0)
    assert not torch.equal(disturbed[0], continued[0])


def test_what_a_stream_keeps_stays_small() -> None:
    stream = StreamingMel()
    most = 0
    for _ in range(10):
        stream.push(_noise(10))
        kept = [value for value in vars(stream).values() if isinstance(value, Tensor | np.ndarray)]
        most = max(most, sum(len(value) for value in kept))
    assert most < 2 * 16_000


# ---- bad sound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sound_that_is_no_number_is_silence(bad: float) -> None:
    sound = _noise(8)
    silenced = sound.copy()
    sound[70_000:70_050] = bad
    silenced[70_000:70_050] = 0
    assert _same(StreamingMel().push(sound), StreamingMel().push(silenced), 0)
    assert _same(offline_mel(sound), offline_mel(silenced), 0)


def test_sound_beyond_all_scales_stays_a_number() -> None:
    sound = _noise(8)
    sound[90_000] = 3e38
    assert all(bool(mel.isfinite().all()) for mel in StreamingMel().push(sound))
    assert float(np.abs(clean(sound)).max()) == 32_768


def test_samples_of_unknown_scale_or_shape_are_a_mistake_of_the_caller() -> None:
    for wrong in (np.zeros(160, np.int16), np.zeros((2, 160), np.float32)):
        with pytest.raises(ValueError, match="sound is f32"):
            StreamingMel().push(wrong)  # type: ignore[arg-type]
    assert clean(np.zeros(3, np.float64)).dtype == np.float32


def test_the_filters_are_whisper_s() -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    assert np.array_equal(mel_filters().numpy(), theirs.T.astype(np.float32))
