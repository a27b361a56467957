"""HiFT in both generations against the outputs of the public reference, in float32 on the CPU."""

from collections.abc import Iterator
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from agent.vocoder.hift_config import FRAME_SAMPLES
from agent.vocoder.hift_stream import CausalHiftStream, ReferenceHiftStream
from agent.vocoder.source import SourceNoise
from tests.rig import tiny_hift
from tests.rig import tiny_model as tiny

GOLDEN = tiny.golden_tensors("vocoder_tiny.safetensors")
MORE = tiny.golden_tensors("vocoder_more.safetensors")
CAUSAL = tiny_hift.MORE["causal_hift"]
WAVE_LIMIT = 1e-5
F0_LIMIT = 5e-6
CAUSAL_WAVE_LIMIT = 1e-4
"""Absolute, as are the next; `compare` reports the errors relative to the largest value."""
CAUSAL_SOURCE_LIMIT = 1e-6
CAUSAL_F0_LIMIT = 1e-6


@pytest.fixture(autouse=True)
def _alone() -> None:
    torch.set_num_threads(1)


def _difference(key: str, ours: Tensor) -> float:
    """The absolute error of one of the causal generation's golden tensors; reported relatively."""
    tiny.compare(key, ours, MORE[key])
    return float((ours.double() - MORE[key].double()).abs().max())


def test_golden_vocoder_pitch_and_wave() -> None:
    hift, mel = tiny_hift.classic_hift(), GOLDEN["steady.chunk0.mel"][None]
    assert tiny.compare("hift.f0", hift.f0(mel)[0], GOLDEN["hift.f0"]) < F0_LIMIT
    wave = hift.decode(mel, GOLDEN["hift.source"][None])[0]
    assert tiny.compare("hift.wave", wave, GOLDEN["hift.wave"]) < WAVE_LIMIT


def test_golden_vocoder_source_rounded_as_in_the_reference() -> None:
    source, f0, noise = (
        tiny_hift.classic_hift().m_source,
        GOLDEN["source.f0"],
        GOLDEN["source.noise"],
    )
    golden = GOLDEN["source.wave"]
    assert tiny.compare("source.wave", source.gliding_as_reference(f0, noise), golden) < WAVE_LIMIT
    # What the streams use is the same but for the reference's rounding of a large phase.
    assert (source.gliding(f0, noise).wave - golden).abs().max() < 1e-3 * golden.abs().max()


_DRAWN_BEFORE = 111_835
"""Numbers that the golden file's second generator gave before these: its other synthetic inputs."""
_SOURCE_LEVEL = 0.05


def _own_sources() -> list[Tensor]:
    """Each call's excitation. They are no output of the source module but white noise, drawn one
    after the other by the generator of the file's seed and one: an input that can be drawn again.
    """
    generator = torch.Generator().manual_seed(tiny_hift.CLASSIC["seed"] + 1)
    torch.rand(_DRAWN_BEFORE, generator=generator)
    return [
        _SOURCE_LEVEL * torch.randn(frames * FRAME_SAMPLES, generator=generator)
        for frames in (50, 58, 58)
    ]


class _GivenSources(ReferenceHiftStream):
    """Takes each call's excitation from outside."""

    calls = 0

    def own_source(self, mel: Tensor, position: int) -> Tensor:
        source = _own_sources()[self.calls]
        key = f"hift_stream.call{self.calls}.own_source"
        assert tiny.compare(key, source, GOLDEN[key]) < WAVE_LIMIT
        self.calls += 1
        return source


def test_golden_vocoder_reference_stream() -> None:
    noise = SourceNoise(torch.zeros(1, 9))
    stream = _GivenSources(tiny_hift.classic_hift(), noise, lead_in=True)
    for call in range(3):
        said = stream.push(GOLDEN[f"steady.chunk{call}.mel"][None], last=call == 2)
        key = f"hift_stream.call{call}.wave"
        assert tiny.compare(key, said, GOLDEN[key]) < WAVE_LIMIT
    assert stream.calls == 3


def test_golden_vocoder_has_no_key_that_is_not_compared() -> None:
    """What is not compared are inputs, each used by a comparison; nothing is left out silently."""
    inputs = {
        *("prompt.tokens", "prompt.mel", "prompt.speaker", "tokens", "noise.first_600_frames"),
        *("hift.source", "source.f0", "source.noise"),
    }
    runs = tiny_hift.CLASSIC["runs"].items()
    chunks = {
        f"{name}.chunk{chunk['index']}.mel" for name, run in runs for chunk in run.get("chunks", ())
    }
    calls = {f"hift_stream.call{n}.{part}" for n in range(3) for part in ("own_source", "wave")}
    others = {"whole.mel", "hift.f0", "hift.wave", "source.wave"}
    assert GOLDEN.keys() == inputs | chunks | calls | others


# ---- the causal generation ----------------------------------------------------------------------


def _noise() -> SourceNoise:
    return SourceNoise(MORE["causal_hift.noise_table"])


def test_golden_vocoder_causal_pitch() -> None:
    hift, mel = tiny_hift.causal_hift(), MORE["causal_hift.mel"][None]
    assert _difference("causal_hift.f0_float64", hift.f0(mel)[0]) < CAUSAL_F0_LIMIT
    early = hift.f0(mel, final=False)[0]
    assert _difference("causal_hift.f0_not_final_float64", early) < CAUSAL_F0_LIMIT


def test_golden_vocoder_causal_decoder() -> None:
    hift, mel = tiny_hift.causal_hift(), MORE["causal_hift.mel"][None, :, :24]
    source = MORE["causal_hift.decode.source"][None]
    final = hift.decode(mel, source)[0]
    assert _difference("causal_hift.decode.final.wave", final) < CAUSAL_WAVE_LIMIT
    early = hift.decode(mel, source, final=False)[0]
    assert _difference("causal_hift.decode.not_final.wave", early) < CAUSAL_WAVE_LIMIT


def test_golden_vocoder_causal_whole() -> None:
    """The reference's one-pass sound has a phase in float32; what the streams say has not."""
    hift, mel, noise = tiny_hift.causal_hift(), MORE["causal_hift.mel"][None], _noise()
    golden = MORE["causal_hift.whole.wave"]
    rounded = hift.m_source.held_as_reference(hift.f0(mel)[0], noise.at(0, len(golden)))
    assert _difference("causal_hift.whole.source", rounded) < CAUSAL_SOURCE_LIMIT
    wave = hift.decode(mel, rounded[None])[0]
    assert _difference("causal_hift.whole.wave", wave) < CAUSAL_WAVE_LIMIT
    assert (hift.whole(mel, noise) - golden).abs().max() < CAUSAL_WAVE_LIMIT


def test_golden_vocoder_causal_whole_of_what_goes_on() -> None:
    hift, mel, noise = tiny_hift.causal_hift(), MORE["causal_hift.mel"][None], _noise()
    pitch = hift.f0(mel, final=False)[0]
    source = hift.m_source.held_as_reference(pitch, noise.at(0, FRAME_SAMPLES * len(pitch)))
    early = hift.decode(mel[..., : len(pitch)], source[None], final=False)[0]
    assert _difference("causal_hift.whole_not_final.wave", early) < CAUSAL_WAVE_LIMIT
    streamed = CausalHiftStream(hift, noise).push(mel)
    assert (streamed - early).abs().max() < CAUSAL_WAVE_LIMIT


def test_golden_vocoder_causal_source() -> None:
    hift, mel = tiny_hift.causal_hift(), MORE["causal_hift.mel"][None]
    standing = torch.zeros(9, dtype=torch.float64)
    samples = len(MORE["causal_hift.stream.source"])
    source = hift.m_source.held(hift.f0(mel)[0], _noise().at(0, samples), standing).wave
    assert _difference("causal_hift.stream.source", source) < CAUSAL_SOURCE_LIMIT


@pytest.mark.parametrize("block_frames", [16, 50])
def test_golden_vocoder_causal_stream(block_frames: int) -> None:
    stream = CausalHiftStream(tiny_hift.causal_hift(), _noise(), block_frames)
    for number, (said, call) in enumerate(_played(stream, CAUSAL["runs"]["stream"]["calls"])):
        assert len(said) == call["samples_out"]
        assert _difference(f"causal_hift.stream.call{number}.wave", said) < CAUSAL_WAVE_LIMIT
        phase = torch.tensor(call["phase_cycles"], dtype=torch.float64)
        assert torch.allclose(stream._state.phase, phase, atol=1e-6, rtol=0)
        assert stream._state.mel_from == call["mel_kept_from"]
        assert stream._state.source_from == call["source_kept_from"]


@pytest.mark.parametrize("run", sorted(CAUSAL["runs"].keys() - {"stream"}))
def test_golden_vocoder_causal_stream_in_other_pieces(run: str) -> None:
    stream = CausalHiftStream(tiny_hift.causal_hift(), _noise())
    played = list(_played(stream, CAUSAL["runs"][run]["calls"]))
    assert [len(said) for said, _ in played] == [call["samples_out"] for _, call in played]
    whole = torch.cat([MORE[f"causal_hift.stream.call{n}.wave"] for n in range(4)])
    assert (torch.cat([said for said, _ in played]) - whole).abs().max() < CAUSAL_WAVE_LIMIT


def _played(stream: CausalHiftStream, calls: list[dict]) -> Iterator[tuple[Tensor, dict]]:
    """Each call's sound while the stream stands where that call left it."""
    mel = MORE["causal_hift.mel"][None]
    ends = accumulate((call["frames"] for call in calls), initial=0)
    for call, (start, end) in zip(calls, pairwise(ends), strict=True):
        yield stream.push(mel[..., start:end], last=call["final"]), call
