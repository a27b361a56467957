"""The estimator in recorded pieces, on the CPU: "recorded" calls that are simply called again.

So what goes in is read, what comes out is written, and nothing else is new, as with CUDA graphs.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.vocoder import dit_graphs
from agent.vocoder.dit_graphs import DitGraphs, record_graphs
from agent.vocoder.flow import Flow, FlowSettings, FlowState
from tests.rig.tiny_flow import golden_noise, golden_prompt, tiny_flow

HOP = 25
NOISE = golden_noise()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output if isinstance(output, tuple) else [getattr(output, n) for n in output.__slots__]
    return [tensor for part in parts for tensor in _tensors(part)]


class CalledAgain:
    """Writes what the call gives now to where it was given first."""

    def __init__(self, call: Callable[[], Any], log: list[str]) -> None:
        self.output = call()
        self._call = call
        self._log = log

    def replay(self) -> None:
        self._log.append("replayed")
        for old, new in zip(_tensors(self.output), _tensors(self._call()), strict=True):
            old.copy_(new)


class Recorder:
    def __init__(self) -> None:
        self.log: list[str] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        yield

    def record(self, call: Callable[[], Any]) -> CalledAgain:
        return CalledAgain(call, self.log)


class Pair:
    """The same flow without and with graphs of full hops."""

    def __init__(self, settings: FlowSettings = FlowSettings(steps=3)) -> None:  # noqa: B008
        self.eager = tiny_flow(settings)
        self.recorder = Recorder()
        self.recorded = self.eager.in_float32()
        self.recorded._graphs = record_graphs(self.recorded.estimator, [2 * HOP], self.recorder)

    def both(self, chunks: int, start: int = 0) -> tuple[list[Tensor], list[Tensor]]:
        """The mel of so many chunks of each."""
        with torch.inference_mode():
            eager, recorded = (_chunks(one, chunks, start) for one in (self.eager, self.recorded))
        return eager[0], recorded[0]


def _tokens(count: int, start: int = 0) -> Tensor:
    return (37 * torch.arange(start, start + count)) % 6561


def _voice(flow: Flow, tokens: int = 40) -> FlowState:
    return flow.setup(*golden_prompt(tokens), NOISE)


def _chunks(
    flow: Flow, count: int, start: int = 0, state: FlowState | None = None
) -> tuple[list[Tensor], FlowState]:
    mels, state = [], state or _voice(flow)
    for number in range(count):
        said = _tokens(HOP + 3, start + number * HOP)
        mel, state = flow.chunk(state, said, NOISE, final=False)
        mels.append(mel)
    return mels, state


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


@pytest.mark.parametrize("memory", ["prompt_plus_recent", "reference"])
def test_recorded_chunks_are_the_eager_ones_until_the_past_is_cut(memory: Any) -> None:
    pair = Pair(FlowSettings(steps=2, estimator_memory=memory))
    for eager, recorded in zip(*pair.both(6), strict=True):
        assert torch.equal(eager, recorded)
    layers = pair.eager.config.dit.layers
    assert len(pair.recorder.log) == 6 * 2 * (layers + 1)


def test_streams_that_take_turns_do_not_hear_each_other(pair: Pair) -> None:
    alone = [pair.both(3, start)[0] for start in (0, 500)]
    with torch.inference_mode():
        states = [_voice(pair.recorded), _voice(pair.recorded)]
        for number in range(3):
            for at, start in enumerate((0, 500)):
                (mel,), states[at] = _chunks(pair.recorded, 1, start + number * HOP, states[at])
                assert torch.equal(mel, alone[at][number])


@torch.inference_mode()
def test_a_state_goes_on_twice_from_where_it_was(pair: Pair) -> None:
    _, state = _chunks(pair.recorded, 2)
    before = [tensor.clone() for tensor in state._tensors()]
    first, _ = _chunks(pair.recorded, 2, 50, state)
    _chunks(pair.recorded, 2, 900, state)
    again, _ = _chunks(pair.recorded, 2, 50, state)
    assert all(torch.equal(*both) for both in zip(first, again, strict=True))
    assert all(torch.equal(*both) for both in zip(before, state._tensors(), strict=True))


@torch.inference_mode()
def test_what_was_not_finite_once_leaves_nothing_behind(pair: Pair) -> None:
    expected, _ = _chunks(pair.eager, 2)
    voice = _voice(pair.recorded)
    broken = FlowState(voice.encoder, voice.steps, voice.speaker * torch.nan, *_rest(voice))
    (mel,), _ = _chunks(pair.recorded, 1, 0, broken)
    assert not mel.isfinite().any()
    mels, _ = _chunks(pair.recorded, 2)
    assert all(torch.equal(*both) for both in zip(mels, expected, strict=True))


def _rest(state: FlowState) -> tuple[int, int, tuple[int, ...]]:
    return state.prompt_tokens, state.position, state.held


@torch.inference_mode()
def test_other_lengths_and_the_voice_itself_stay_eager(pair: Pair) -> None:
    pair.recorder.log.clear()
    state = pair.recorded.setup(*golden_prompt(HOP), NOISE)  # 50 frames, but no stream
    pair.recorded.whole(_tokens(10), *golden_prompt(15), NOISE)
    pair.recorded.chunk(state, _tokens(12 + 3), NOISE, final=False)
    assert not pair.recorder.log
    mel, _ = pair.recorded.chunk(state, _tokens(HOP), NOISE, final=True)
    assert pair.recorder.log and mel.shape[2] == 2 * HOP


@torch.inference_mode()
def test_a_voice_too_long_for_the_room_is_spoken_with_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dit_graphs, "_MOST_FRAMES", 80 + 50 + 50)
    pair = Pair()
    mels, expected = (_chunks(flow, 4)[0] for flow in (pair.recorded, pair.eager))
    assert all(torch.equal(*both) for both in zip(mels, expected, strict=True))
    # Two chunks fit beside the voice's 80 frames, and what comes after them does not.
    assert len(pair.recorder.log) == 2 * 3 * (pair.eager.config.dit.layers + 1)


def test_one_room_serves_every_length() -> None:
    flow = tiny_flow()
    graphs = record_graphs(flow.estimator, [50, 24, 50], Recorder())
    assert list(graphs) == [24, 50]
    assert all(isinstance(one, DitGraphs) for one in graphs.values())
    assert graphs[24]._room is graphs[50]._room


def test_another_precision_and_the_cpu_have_no_graphs(pair: Pair) -> None:
    assert pair.recorded._graphs and not pair.recorded.in_float32()._graphs
    half = pair.recorded.in_float32()
    half._graphs = {50: pair.recorded._graphs[50]}
    assert not half.narrow(torch.bfloat16)._graphs
    half.prepare_graphs([50])
    assert not half._graphs


@torch.inference_mode()
def test_attention_that_plans_every_new_length_is_not_asked_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def listening(*arguments: Any, **named: Any) -> Tensor:
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listening)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    for flow in (pair.eager, pair.recorded):
        _chunks(flow, 1)
    pair.eager.whole(_tokens(10), *golden_prompt(15), NOISE)
    assert asked and not any(asked)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
