"""The audio encoder: streaming equals block by block, in any company, forgetting and restoring."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.duplex.audio_encoder import (
    AudioCache,
    AudioStream,
    Ears,
    conv_frames,
    vector_count,
)
from agent.duplex.mel import StreamingMel, frame_count, offline_mel
from agent.torch_parts.checkpoint import Target
from agent.types import FloatArray
from tests.rig import tiny_model as tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ears() -> Ears:
    return tiny.tiny_ears()


def _sound(seconds: float, seed: int) -> FloatArray:
    return tiny.recipe().audio(seconds, seed)  # type: ignore[no-any-return]


def _seconds(count: int, seed: int) -> list[Tensor]:
    return StreamingMel().push(_sound(count, seed))


def _cache(ears: Ears, slots: int = 1) -> AudioCache:
    return AudioCache(ears.encoder.config, slots, CPU, torch.float32)


def _alone(ears: Ears, mels: Sequence[Tensor]) -> list[Tensor]:
    stream, cache = AudioStream(0), _cache(ears)
    return [ears.hear([mel], [stream], cache)[0] for mel in mels]


def _close(ours: Tensor, theirs: Tensor, limit: float = 1e-5) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= limit * theirs.abs().max())


# ---- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "vectors"),
    [(0, 0), (160, 0), (1280, 0), (1281, 1), (16_000, 10), (48_123, 30), (480_000, 300)],
)
def test_vectors_of_a_recording(ears: Ears, samples: int, vectors: int) -> None:
    assert vector_count(frame_count(samples)) == vectors
    mels = offline_mel(_sound(30, 1)[:samples])
    assert sum(len(heard) for heard in ears.hear_recordings(mels)) == vectors


# ---- streams ------------------------------------------------------------------------------------


def test_a_stream_equals_its_recording_in_blocks_of_a_second(ears: Ears) -> None:
    mels = _seconds(5, 3)
    core = [mels[0][:, :100], *(mel[:, 2:102] for mel in mels[1:])]
    whole = torch.cat([*core, mels[-1][:, -2:]], 1)  # what the last convolution looks at
    (wanted,) = ears.hear_recordings([whole])
    streamed = torch.cat(_alone(ears, mels))
    assert _close(streamed, wanted[:50])
    (unblocked,) = ears.hear_recordings([whole], None)
    assert not _close(streamed, unblocked[:50], 1e-2)


@pytest.mark.parametrize("whole_cache", [False, True])
def test_sessions_of_any_age_share_a_call(ears: Ears, whole_cache: bool) -> None:
    ages = (0, 3, 1)
    mels = [_seconds(age + 4, seed) for seed, age in enumerate(ages)]
    wanted = [_alone(ears, session) for session in mels]
    cache = _cache(ears, 5)
    streams = [AudioStream(slot) for slot in (4, 0, 2)]
    for session, (age, stream) in enumerate(zip(ages, streams, strict=True)):
        for second in range(age):
            ears.hear([mels[session][second]], [stream], cache, whole_cache=whole_cache)
    for second in range(4):
        now = [mels[session][age + second] for session, age in enumerate(ages)]
        heard = ears.hear(now, streams, cache, whole_cache=whole_cache)
        for session, age in enumerate(ages):
            assert _close(heard[session], wanted[session][age + second]), (session, second)
    assert [stream.cached_frames for stream in streams] == [200, 350, 250]


def test_everything_is_forgotten_before_the_29th_second_would_not_fit(ears: Ears) -> None:
    mels = _seconds(60, 8)
    stream, cache = AudioStream(0), _cache(ears)
    cached = []
    for mel in mels:
        heard = ears.hear([mel], [stream], cache)[0]
        cached.append(stream.cached_frames)
    assert cached == [50 * (second % 29 + 1) for second in range(60)]
    assert stream.chunks == 60
    # After the second reset nothing older is heard; only the session's first second lacks a past.
    late, other = AudioStream(0, cached_frames=0, chunks=58), _cache(ears)
    again = [ears.hear([mel], [late], other)[0] for mel in mels[58:]]
    assert _close(again[-1], heard, 1e-6)


def test_a_new_session_hears_nothing_of_the_last_one_in_its_slot(ears: Ears) -> None:
    mels, cache = _seconds(3, 2), _cache(ears)
    former = AudioStream(0)
    for mel in _seconds(5, 50):
        ears.hear([mel], [former], cache)
    stream = AudioStream(0)
    heard = [ears.hear([mel], [stream], cache)[0] for mel in mels]
    assert all(_close(one, two) for one, two in zip(heard, _alone(ears, mels), strict=True))


@pytest.mark.parametrize("before", [2, 27, 28])
def test_a_restored_stream_goes_on_as_if_nothing_had_been_heard(ears: Ears, before: int) -> None:
    mels, others = _seconds(32, 6), _seconds(4, 60)
    stream, cache = AudioStream(0), _cache(ears)
    for mel in mels[:before]:
        ears.hear([mel], [stream], cache)
    snapshot = cache.snapshot(stream)
    for mel in others[1:]:  # crosses the reset in two of three cases
        ears.hear([mel], [stream], cache)
    cache.restore(stream, snapshot)
    assert (stream.cached_frames, stream.chunks) == (50 * before, before)
    heard = [ears.hear([mel], [stream], cache)[0] for mel in mels[before:]]
    wanted = _alone(ears, mels)[before:]
    assert all(_close(one, two) for one, two in zip(heard, wanted, strict=True))


def test_a_second_of_another_length_is_refused_and_changes_nothing(ears: Ears) -> None:
    stream, cache = AudioStream(0), _cache(ears)
    mel = _seconds(2, 1)[1]
    with pytest.raises(ValueError, match="has 102 mel frames, not 104"):
        ears.hear([mel], [stream], cache)
    assert stream == AudioStream(0)
    ears.hear([mel[:, :102]], [stream], cache)
    with pytest.raises(ValueError, match="has 104 mel frames, not 99"):
        ears.hear([mel[:, :99]], [stream], cache)
    assert stream.cached_frames == 50


def test_no_more_than_the_cache_holds(ears: Ears) -> None:
    with pytest.raises(ValueError, match="1550 conv frames do not fit into 1500"):
        _cache(ears).places([AudioStream(0, cached_frames=1500)], 50, whole=False)


def test_untrimmed_pieces_keep_every_conv_frame(ears: Ears) -> None:
    stream, cache = AudioStream(0), _cache(ears)
    (mel,) = offline_mel(_sound(1.33, 4))
    first = ears.hear_untrimmed(mel, stream, cache)
    assert (stream.cached_frames, len(first)) == (conv_frames(133), 13)
    (alone,) = ears.hear_recordings([mel], None)
    assert _close(first, alone)
    ears.hear_untrimmed(mel, stream, cache)
    assert stream.cached_frames == 134


# ---- recordings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block_frames", [50, None])
def test_recordings_come_out_the_same_in_any_company(ears: Ears, block_frames: int | None) -> None:
    mels = [offline_mel(_sound(length, 20))[0] for length in (2.01, 0.31, 3.3, 0.05, 1.0)]
    together = ears.hear_recordings(mels, block_frames)
    for mel, heard in zip(mels, together, strict=True):
        (alone,) = ears.hear_recordings([mel], block_frames)
        if len(alone):
            assert _close(heard, alone)
    assert [len(heard) for heard in together] == [20, 3, 33, 0, 10]
    assert ears.hear_recordings([]) == []


def test_padding_is_seen_only_where_the_reference_s_mistake_is_wanted(ears: Ears) -> None:
    mels = [offline_mel(_sound(length, 21))[0] for length in (0.6, 3)]
    proper = ears.hear_recordings(mels)
    mistaken = ears.hear_recordings(mels, see_padding=True)
    assert not _close(mistaken[0], proper[0], 1e-2)
    assert _close(mistaken[1], proper[1])


def test_a_recording_beyond_30_s_is_refused(ears: Ears) -> None:
    with pytest.raises(ValueError, match="at most 1500 conv frames"):
        ears.hear_recordings([torch.zeros(80, 3002)])


# ---- numerics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_stays_near_float32(ears: Ears, attention: str) -> None:
    half = tiny.tiny_ears(attention, Target(CPU, torch.bfloat16))  # type: ignore[arg-type]
    mels = _seconds(3, 5)
    cache = AudioCache(half.encoder.config, 1, CPU, torch.bfloat16)
    stream = AudioStream(0)
    heard = torch.cat([half.hear([mel], [stream], cache)[0] for mel in mels])
    assert heard.dtype == torch.bfloat16
    assert _close(heard.float(), torch.cat(_alone(ears, mels)), 0.05)


def test_silence_and_noise_give_numbers(ears: Ears) -> None:
    for samples in (np.zeros(48_000, np.float32), np.full(48_000, np.nan, np.float32)):
        heard = _alone(ears, StreamingMel().push(samples))
        assert all(bool(vectors.isfinite().all()) for vectors in heard)
