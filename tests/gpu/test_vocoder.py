"""Tiny vocoders on a GPU: the CPU's numbers, half precision that stays near, streams that share."""

import functools
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
from agent.vocoder.voice import SpeakerPrompt, VoicePreparation
from tests.rig.tiny_model import recipe
from tests.rig.tiny_vocoder import write_cosyvoice2, write_token2wav

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOKENS = [(37 * number) % 6561 for number in range(110)]
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


@functools.cache
def prompt(folder: Path, fit: Any) -> SpeakerPrompt:
    preparation = VoicePreparation.of_folder(folder)
    return preparation.prepare(recipe().audio(2.5, 9, 24_000), 24_000, fit)


def voice_of(vocoder: Any, folders: dict[str, Path], kind: str) -> Any:
    fit = "crop" if kind == "cosyvoice2" else "repeat"
    return vocoder.voice(prompt(folders[kind], fit), "anna")


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


# ---- CUDA graphs --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["classic", "causal"])
def recorded(folders: dict[str, Path], request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """A vocoder with graphs, the same without, and a voice of both."""
    target = Target(GPU, torch.float16)
    with_graphs, without = (
        load_token2wav(folders[request.param], Token2wavSettings(steps=4, graphs=graphs), target)
        for graphs in (True, False)
    )
    return with_graphs, without, voice_of(without, folders, request.param)


def replays_of(vocoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each step that a graph makes."""
    (graphs,) = vocoder.flow._graphs.values()
    count: list[int] = []
    step = graphs.step

    def counted(*arguments: Any) -> Any:
        count.append(1)
        return step(*arguments)

    monkeypatch.setattr(graphs, "step", counted)
    return count


def test_graphs_say_what_eager_says(
    recorded: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_graphs, without, voice = recorded
    count = replays_of(with_graphs, monkeypatch)
    assert not without.flow._graphs
    # 110 tokens: four full hops, of four steps each, and the rest eager.
    mel, expected = (mel_of(one, voice) for one in (with_graphs, without))
    assert len(count) == 4 * 4
    assert float((mel - expected).abs().max()) <= 2e-3 * float(expected.abs().max())
    sounds = [said(one, voice) for one in (with_graphs, without)]
    assert float(np.abs(sounds[0] - sounds[1]).max()) < 0.02 and np.abs(sounds[1]).max() > 0.05


def mels_of(stream: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """What each push of the stream gives, before HiFT, which does not repeat to the bit."""
    heard: list[torch.Tensor] = []
    stream._tail.push = _listening(type(stream._tail).push.__get__(stream._tail), heard)
    for text in texts:
        stream.push(text)
    return heard


def assert_near(mels: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(mels, expected, strict=True):
        assert float((one - other).abs().max()) <= 2e-3 * float(other.abs().max())


def test_streams_that_share_graphs_do_not_hear_each_other(
    recorded: tuple[Any, Any, Any], folders: dict[str, Path]
) -> None:
    vocoder, without, voice = recorded
    other = vocoder.voice(prompt(folders["classic"], "crop"), "other")
    texts = [[part[at : at + 25] for at in range(0, 100, 25)] for part in (TOKENS, TOKENS[::-1])]
    pairs = list(zip((voice, other), texts, strict=True))
    alone = [mels_of(without.open(one), said) for one, said in pairs]
    streams = [vocoder.open(one) for one, _ in pairs]
    for number in range(4):
        for stream, text, expected in zip(streams, texts, alone, strict=True):
            assert_near(mels_of(stream, [text[number]]), [expected[number]])
    apart = (alone[0][2] - alone[1][2]).abs().max()
    assert float(apart) > 0.05 * float(alone[0][2].abs().max())


def test_a_clone_goes_on_by_itself_with_graphs(recorded: tuple[Any, Any, Any]) -> None:
    vocoder, _, voice = recorded
    stream = vocoder.open(voice)
    stream.push(TOKENS[:50])
    clone = stream.clone()
    rest = [TOKENS[50:75], TOKENS[75:100]]
    expected = mels_of(stream, rest)
    vocoder.open(voice).push(TOKENS[::-1])
    assert_near(mels_of(clone, rest), expected)


def test_with_graphs_too_a_chunk_that_is_not_finite_is_computed_in_float32(
    recorded: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocoder, _, voice = recorded
    expected = vocoder.open(voice).push(TOKENS[:28])
    asked: list[Any] = []
    made = vocoder._exact

    def again() -> Any:
        asked.append(made())
        return asked[-1]

    monkeypatch.setattr(vocoder, "_exact", again)
    projection = dict(_named(vocoder))["encoder_proj.bias"]
    exact_flow, kept = made(), projection.clone()
    projection.data.fill_(torch.inf)
    sound = vocoder.open(voice).push(TOKENS[:28])
    projection.data.copy_(kept)
    assert asked == [exact_flow] and not exact_flow._graphs
    assert np.isfinite(sound).all() and sound.shape == expected.shape
    # And the graphs remember nothing of it.
    assert np.allclose(vocoder.open(voice).push(TOKENS[:28]), expected, atol=1e-4)


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
