"""The speech tokenizer out of its file, and voices made with it."""

import stat
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from agent.errors import CheckpointError, RequestError
from agent.torch_parts.checkpoint import stored_shapes, unfilled
from agent.types import FloatArray
from agent.vocoder.mel import speaker_bands, tokenizer_mel
from agent.vocoder.onnx_file import read_graph
from agent.vocoder.reference_audio import improve_recording
from agent.vocoder.resample import can_resample, resample
from agent.vocoder.speaker import SpeakerModel
from agent.vocoder.speech_tokenizer import SpeechTokenizer, TokenizerConfig, token_count
from agent.vocoder.tokenizer_file import OnnxTokenizer, open_speech_tokenizer
from agent.vocoder.voice import SpeakerPrompt, VoicePreparation
from tests.rig.tiny_model import recipe
from tests.rig.tiny_onnx import (
    tokenizer_weights,
    write_other_tokenizer,
    write_speaker,
    write_tokenizer,
)


def _sound(seconds: float = 4.0, rate_hz: int = 16_000) -> FloatArray:
    sound: FloatArray = recipe().audio(seconds, 21, rate_hz)
    return sound


def _mel(seconds: float = 4.0) -> torch.Tensor:
    return tokenizer_mel(torch.from_numpy(_sound(seconds)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With both ONNX files, the tokenizer's graph as published; not to be changed."""
    made = tmp_path_factory.mktemp("vocoder")
    write_tokenizer(made / "speech_tokenizer_v2_25hz.onnx")
    write_speaker(made / "campplus.onnx")
    return made


@pytest.fixture(scope="module")
def tokenizer_path(folder: Path) -> Path:
    return folder / "speech_tokenizer_v2_25hz.onnx"


# ---- the network --------------------------------------------------------------------------------


def test_the_full_size_has_the_published_weights() -> None:
    with unfilled():
        shapes = stored_shapes({"": SpeechTokenizer(TokenizerConfig())})
    assert len(shapes) == 102
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == pytest.approx(
        123.715e6, abs=600
    )


def test_the_norms_have_their_own_epsilons() -> None:
    with unfilled():
        tokenizer = SpeechTokenizer(TokenizerConfig(blocks=1))
    norms = {n: m.eps for n, m in tokenizer.named_modules() if isinstance(m, nn.LayerNorm)}
    assert norms == {"encoder.blocks.0.attn_ln": 1e-6, "encoder.blocks.0.mlp_ln": 1e-5}


@pytest.mark.parametrize(
    ("frames", "tokens"), [(301, 76), (302, 76), (303, 76), (304, 76), (305, 77), (1, 1)]
)
def test_four_frames_are_a_token(tokenizer_path: Path, frames: int, tokens: int) -> None:
    assert token_count(frames) == tokens
    tokenizer = open_speech_tokenizer(tokenizer_path)
    assert tokenizer.tokens(_mel()[:, :frames]).shape == (tokens,)


# ---- its file -----------------------------------------------------------------------------------


def test_weights_are_read_out_of_the_published_graph(tokenizer_path: Path) -> None:
    tokenizer = open_speech_tokenizer(tokenizer_path)
    assert isinstance(tokenizer, SpeechTokenizer)
    wanted = tokenizer_weights()
    ours = tokenizer.state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted)


def test_the_native_network_says_what_onnxruntime_says(tokenizer_path: Path) -> None:
    native, run = open_speech_tokenizer(tokenizer_path), OnnxTokenizer(tokenizer_path)
    for seconds in (1.0, 4.0, 4.31):
        tokens = native.tokens(_mel(seconds))
        assert len(set(tokens.tolist())) > 5
        np.testing.assert_array_equal(tokens, run.tokens(_mel(seconds)))


def test_an_unknown_graph_is_run_as_it_is(tmp_path: Path) -> None:
    write_other_tokenizer(tmp_path / "other.onnx")
    tokenizer = open_speech_tokenizer(tmp_path / "other.onnx")
    assert isinstance(tokenizer, OnnxTokenizer)
    mel = _mel()
    session = onnxruntime.InferenceSession(tmp_path / "other.onnx")
    feeds = {"feats": mel[None].numpy(), "feats_length": np.array([mel.shape[1]], np.int32)}
    tokens = tokenizer.tokens(mel)
    np.testing.assert_array_equal(tokens, session.run(None, feeds)[0][0])
    assert tokens.dtype == np.int32 and tokens.min() >= 0 and tokens.max() < 3**8


@pytest.mark.parametrize("module", ["mlp/mlp.2", "attn/key", "attn_ln"])
def test_a_weight_that_cannot_be_found_leaves_the_graph_to_onnxruntime(
    tmp_path: Path, tokenizer_path: Path, module: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokenizer.onnx"
    data = tokenizer_path.read_bytes()
    # Its path is what tells a weight, and nothing else depends on it.
    known = f"/blocks.1/{module}/".encode()
    assert known in data
    path.write_bytes(data.replace(known, known[:-2] + b"x/"))
    with caplog.at_level("INFO"):
        tokenizer = open_speech_tokenizer(path)
    assert isinstance(tokenizer, OnnxTokenizer)
    assert f"encoder.blocks.1.{module.replace('mlp/mlp', 'mlp').replace('/', '.')}" in caplog.text
    native = open_speech_tokenizer(tokenizer_path)
    np.testing.assert_array_equal(tokenizer.tokens(_mel()), native.tokens(_mel()))


def test_damaged_files_are_refused(tmp_path: Path, tokenizer_path: Path) -> None:
    data = tokenizer_path.read_bytes()
    cases = {"empty": b"", "text": b"version https://git-lfs\n" * 9, "noise": bytes(range(256)) * 9}
    cases |= {f"cut{at}": data[: len(data) * at // 7] for at in range(1, 7)}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            open_speech_tokenizer(tmp_path / name)
    with pytest.raises(CheckpointError, match="absent"):
        open_speech_tokenizer(tmp_path / "absent")


def test_a_speaker_model_is_no_tokenizer(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="takes a mel and its length"):
        open_speech_tokenizer(folder / "campplus.onnx")


def test_integers_in_a_graph_are_left_out(tokenizer_path: Path) -> None:
    graph = read_graph(tokenizer_path)
    assert {tensor.dtype for tensor in graph.tensors.values()} == {"F32"}
    assert graph.tensors["onnx::Conv_2216"].shape == (128, 128, 3)


# ---- the speaker --------------------------------------------------------------------------------


def test_the_speaker_model_hears_bands_without_their_mean(folder: Path) -> None:
    sound = torch.from_numpy(_sound())
    bands = speaker_bands(sound)
    session = onnxruntime.InferenceSession(folder / "campplus.onnx")
    wanted = session.run(None, {"input": (bands - bands.mean(0))[None].numpy()})[0][0]
    ours = SpeakerModel(folder / "campplus.onnx").embed(sound)
    assert ours.shape == (192,) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_a_tokenizer_is_no_speaker_model(tokenizer_path: Path, tmp_path: Path) -> None:
    sound = torch.from_numpy(_sound())
    for path in (tokenizer_path, tmp_path / "absent.onnx"):
        with pytest.raises(CheckpointError, match=path.name):
            SpeakerModel(path).embed(sound)


# ---- other rates --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_a_tone_keeps_its_pitch_and_place(rate_hz: int) -> None:
    for to_hz in (16_000, 24_000):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)
        ours = resample(torch.from_numpy(tone.astype(np.float32)), rate_hz, to_hz).numpy()
        wanted = np.sin(2 * np.pi * 440 * np.arange(to_hz) / to_hz)
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours[500:-500], wanted[500:-500], atol=2e-3)


def test_rates_without_a_common_part_are_refused() -> None:
    assert not can_resample(47_999, 24_000) and not can_resample(0, 24_000)
    with pytest.raises(ValueError, match="47999"):
        resample(torch.zeros(100), 47_999, 24_000)


# ---- voices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_a_recording_becomes_a_voice(folder: Path, rate_hz: int) -> None:
    sound = _sound(3.3, rate_hz)
    preparation = VoicePreparation.of_folder(folder)
    prompt = preparation.prepare(sound, rate_hz)
    low = resample(torch.from_numpy(sound), rate_hz, 16_000)
    tokens = open_speech_tokenizer(folder / "speech_tokenizer_v2_25hz.onnx")
    np.testing.assert_array_equal(prompt.speech_tokens, tokens.tokens(tokenizer_mel(low)))
    assert len(prompt.speech_tokens) == 83 and prompt.mel.shape == (166, 80)
    np.testing.assert_array_equal(prompt.mel[165], prompt.mel[164])
    cropped = preparation.prepare(sound, rate_hz, "crop")
    assert len(cropped.speech_tokens) == 82 and cropped.mel.shape == (164, 80)
    np.testing.assert_array_equal(cropped.mel, prompt.mel[:164])
    np.testing.assert_array_equal(cropped.embedding, prompt.embedding)


def test_a_long_recording_made_fit_is_short_enough(folder: Path) -> None:
    spoken = np.tile(np.pad(_sound(4.7, 44_100), (0, 20_000)), 5)
    clean = improve_recording(spoken, 44_100, speech=[(0.0, 25.0)])
    prompt = VoicePreparation.of_folder(folder).prepare(clean, 44_100)
    assert 300 < len(prompt.speech_tokens) <= 375
    assert len(prompt.mel) == 2 * len(prompt.speech_tokens)


def test_of_two_channels_the_first_is_tokenized_and_the_mean_continued(folder: Path) -> None:
    preparation = VoicePreparation.of_folder(folder)
    left, right = _sound(2.0), np.roll(_sound(2.0), 5000)
    both = preparation.prepare(np.stack([left, right]), 16_000)
    first = preparation.prepare(left, 16_000)
    mean = preparation.prepare((left + right) / 2, 16_000)
    np.testing.assert_array_equal(both.speech_tokens, first.speech_tokens)
    np.testing.assert_array_equal(both.embedding, first.embedding)
    np.testing.assert_allclose(both.mel, mean.mel, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "reason"),
    [
        (np.zeros(8000, np.float32), 16_000, "0.5 s"),
        (np.zeros(16 * 16_000, np.float32), 16_000, "16.0 s"),
        (np.full(32_000, np.nan, np.float32), 16_000, "no numbers"),
        (np.zeros(0, np.float32), 16_000, "0.0 s"),
        (np.zeros((0, 32_000), np.float32), 16_000, "can be used"),
        (np.zeros(32_000, np.float32), 47_999, "47999 Hz"),
    ],
)
def test_useless_recordings_are_refused(
    folder: Path, samples: FloatArray, rate_hz: int, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        VoicePreparation.of_folder(folder).prepare(samples, rate_hz)


def test_tokens_of_silence_are_no_voice(folder: Path) -> None:
    class Silence:
        def tokens(self, mel: torch.Tensor) -> np.ndarray:
            return np.full(token_count(mel.shape[1]), 4218, np.int32)

    preparation = VoicePreparation(Silence(), SpeakerModel(folder / "campplus.onnx"))
    with pytest.raises(RequestError, match="silent for 100%"):
        preparation.prepare(_sound(2.0), 16_000)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"speech_tokenizer_v2\.onnx and campplus\.onnx"):
        VoicePreparation.of_folder(tmp_path)


def test_a_voice_survives_the_disk(tmp_path: Path) -> None:
    prompt = SpeakerPrompt(np.arange(4, dtype=np.int32), np.ones((8, 80)), np.arange(192.0))
    path = tmp_path / "voice.npz"
    prompt.save(path)
    prompt.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["voice.npz"]
    read = SpeakerPrompt.load(path)
    for name in ("speech_tokens", "mel", "embedding"):
        np.testing.assert_array_equal(getattr(read, name), getattr(prompt, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(read, name)[0] = 0


def test_files_that_are_no_voice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "voice.npz"
    SpeakerPrompt(np.arange(4), np.ones((8, 80)), np.ones(192)).save(path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="voice"):
            SpeakerPrompt.load(path)
    np.savez(path, speech_tokens=np.array([{}], object), mel=np.ones(1), embedding=np.ones(1))
    with pytest.raises(CheckpointError, match="voice"):
        SpeakerPrompt.load(path)


@pytest.mark.parametrize(
    ("tokens", "mel", "embedding"),
    [
        (np.arange(3), np.ones((8, 80)), np.ones(192)),
        (np.arange(0), np.ones((0, 80)), np.ones(192)),
        (np.array([-1]), np.ones((2, 80)), np.ones(192)),
        (np.arange(1), np.full((2, 80), np.inf), np.ones(192)),
        (np.arange(1), np.ones((2, 80)), np.full(192, np.nan)),
        (np.arange(1), np.ones((2, 80)), np.ones((1, 192))),
    ],
)
def test_what_does_not_fit_together_is_no_voice(
    tokens: np.ndarray, mel: np.ndarray, embedding: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"voice|token"):
        SpeakerPrompt(tokens, mel, embedding)
