"""Tiny vocoders on a GPU: the CPU's numbers, half precision that stays near, streams that share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.errors import ConfigError
from agent.torch_parts.checkpoint import Target
from agent.torch_parts.cuda_graph import GraphRecorder
from agent.types import FloatArray
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.voice import VoicePreparation
from tests.rig.tiny_model import recipe
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav
from tests.rig.vocoder_voices import TOKENS, voice_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KINDS = ("classic", "causal", "cosyvoice2")


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vocoders")
    return {
        "classic": write_token2wav(root / "classic", "classic"),
        "causal": write_token2wav(root / "causal", "causal"),
        "cosyvoice2": write_cosyvoice2(root / "cosyvoice2"),
    }


def loaded(folders: dict[str, Path], kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    target = Target(device, dtype)
    if kind == "cosyvoice2":
        return load_cosyvoice2(folders[kind], Cosyvoice2Settings(steps=4), target)
    settings = Token2wavSettings(steps=4, estimator_memory="prompt_plus_recent")
    return load_token2wav(folders[kind], settings, target)


def said(vocoder: Any, voice: Any, heard: list[torch.Tensor] | None = None) -> FloatArray:
    """The sound of the tokens, in pieces; `heard` gets the mel that it is made of."""
    stream = vocoder.open(voice)
    if heard is not None:
        push = stream._tail.push
        stream._tail.push = _listening(push, heard)
    pieces = [stream.push(TOKENS[at : at + 25]) for at in range(0, len(TOKENS), 25)]
    return np.concatenate([*pieces, stream.finish()])


def _listening(push: Callable[..., Any], heard: list[torch.Tensor]) -> Callable[..., Any]:
    def listened(mel: torch.Tensor, last: bool = False) -> Any:
        heard.append(mel.float().cpu())
        return push(mel, last=last)

    return listened


def mel_of(vocoder: Any, voice: Any) -> torch.Tensor:
    heard: list[torch.Tensor] = []
    said(vocoder, voice, heard)
    return torch.cat(heard, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_in_float32_says_what_the_cpu_says(folders: dict[str, Path], kind: str) -> None:
    mels, sounds = [], []
    for device in (CPU, GPU):
        vocoder = loaded(folders, kind, device, torch.float32)
        voice = voice_of(vocoder, folders, kind)
        mels.append(mel_of(vocoder, voice))
        sounds.append(said(vocoder, voice))
    assert float((mels[0] - mels[1]).norm() / mels[0].norm()) < 1e-4
    assert sounds[0].shape == sounds[1].shape == (960 * len(TOKENS),)
    assert float(np.linalg.norm(sounds[0] - sounds[1]) / np.linalg.norm(sounds[0])) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_finite_and_near(
    folders: dict[str, Path], kind: str, dtype: torch.dtype
) -> None:
    mels = []
    for precision in (torch.float32, dtype):
        vocoder = loaded(folders, kind, GPU, precision)
        voice = voice_of(vocoder, folders, kind)
        mels.append(mel_of(vocoder, voice))
        assert np.isfinite(said(vocoder, voice)).all()
    apart = float((mels[0] - mels[1]).abs().mean() / mels[0].abs().mean())
    assert 0 < apart < (0.005 if dtype == torch.float16 else 0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_share_the_weights_and_the_voice(folders: dict[str, Path], kind: str) -> None:
    vocoder = loaded(folders, kind, GPU, torch.float16)
    weights = sum(p.numel() * p.element_size() for p in _parameters(vocoder))
    voice = voice_of(vocoder, folders, kind)
    said(vocoder, voice)
    before = torch.cuda.memory_allocated()
    streams = [vocoder.open(voice) for _ in range(8)]
    assert torch.cuda.memory_allocated() - before < min(weights, 8 * voice.nbytes) / 2
    together = [stream.push(TOKENS[:40]) for stream in streams]
    alone = vocoder.open(voice).push(TOKENS[:40])
    assert all(np.array_equal(one, alone) for one in together)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.float16, 0.005)])
def test_the_graphs_of_cosyvoice2_say_what_its_modules_say(
    folders: dict[str, Path], dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Tensor] = []
    for graphs in (False, True):
        settings = Cosyvoice2Settings(steps=4, graphs=graphs)
        vocoder = load_cosyvoice2(folders["cosyvoice2"], settings, Target(GPU, dtype))
        voice = voice_of(vocoder, folders, "cosyvoice2")
        if graphs:
            # Nothing but the graphs can say it; only a turn's end is encoded by the modules.
            monkeypatch.setattr(vocoder.flow, "_integrated", None)
            encoder = vocoder.flow._weights.encoder
            monkeypatch.setattr(encoder, "step", _at_the_end(encoder.step))
        made.append(mel_of(vocoder, voice))
        assert torch.equal(mel_of(vocoder, voice), made[-1]), "they say it again"
    assert float((made[0] - made[1]).norm() / made[0].norm()) < most


def _at_the_end(step: Callable[..., Any]) -> Callable[..., Any]:
    def stepped(*given: Any, final: bool, **more: Any) -> Any:
        assert final
        return step(*given, final=final, **more)

    return stepped


def _parameters(vocoder: Any) -> list[torch.Tensor]:
    flow = vocoder.flow
    return list((flow if isinstance(flow, torch.nn.Module) else flow._weights).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_is_not_finite_is_computed_once_more_in_float32(
    folders: dict[str, Path], kind: str
) -> None:
    vocoder = loaded(folders, kind, GPU, torch.float16)
    exact = loaded(folders, kind, GPU, torch.float32)
    voice, exact_voice = (voice_of(one, folders, kind) for one in (vocoder, exact))
    asked: list[int] = []

    def again() -> Any:
        asked.append(1)
        return exact.flow

    vocoder._exact = again
    projection = dict(_named(vocoder))["encoder_proj.bias"]
    projection.data.fill_(torch.inf)
    sound = vocoder.open(voice).push(TOKENS[:28])
    assert len(asked) == 1
    expected = exact.open(exact_voice).push(TOKENS[:28])
    assert np.isfinite(sound).all() and sound.shape == expected.shape


def _named(vocoder: Any) -> list[tuple[str, torch.Tensor]]:
    flow = vocoder.flow
    return list((flow if isinstance(flow, torch.nn.Module) else flow._weights).named_parameters())


def test_a_voice_is_prepared_on_a_gpu_as_on_the_cpu(folders: dict[str, Path]) -> None:
    sound = recipe().audio(2.5, 9, 24_000)
    made = [
        VoicePreparation.of_folder(folders["classic"], device=device).prepare(sound, 24_000)
        for device in (CPU, GPU)
    ]
    assert np.array_equal(made[0].speech_tokens, made[1].speech_tokens)
    assert np.abs(made[0].mel - made[1].mel).max() < 1e-4
    assert np.abs(made[0].embedding - made[1].embedding).max() < 1e-4


def test_a_call_that_cannot_be_recorded_says_the_way_out() -> None:
    numbers = torch.ones(3, device=GPU)
    recorder = GraphRecorder(GPU, "set this to that")
    with recorder.recording(), pytest.raises(ConfigError, match="set this to that"):
        recorder.record(lambda: numbers.sum().item())
    recorder = GraphRecorder(GPU, "")
    with recorder.recording():
        graph = recorder.record(lambda: numbers + 1)
    numbers.fill_(4)
    graph.replay()
    assert graph.output.tolist() == [5, 5, 5]
