"""Whether a machine says what the modules say, on this very device; asked once, at load.

Graphs and kernels are other code than the modules, compiled for the card at hand. Where the two do
not agree the vocoder does without, which is slower and right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from agent.vocoder.batched.places import Numbers
from agent.vocoder.batched.turn import Chunk, begun, planned
from agent.vocoder.flow import Flow, FlowState, Noise
from agent.vocoder.hift_stream import VocoderTail
from agent.vocoder.prepared_voice import Machine, PreparedVoice

PROMPT_TOKENS = 30
"""Of the voice that is spoken with: a little more than the least."""
_FLOW_DB = {torch.float32: -60.0, torch.float16: -40.0, torch.bfloat16: -25.0}
"""How far below the mel what differs must be, by the precision of its products; who reads a wrong
row is far above that."""
_SOUND_DB = -30.0
"""The same of HiFT's sound of one mel, which the machine rounds to TF32's digits or float16's."""
_GRAPH_DB = -60.0
"""And of a graph, which starts the very kernels that were started one by one."""


class Launching(Machine, Protocol):
    """A machine whose kernels can be started one by one too."""

    @property
    def buckets(self) -> Sequence[int]:
        """Numbers of streams that have a graph."""

    def launched(self, plans: Numbers) -> tuple[Tensor, Tensor]:
        """The mel f32 [B, T, M] and the sound f32 [B, samples] of a round, without its graph."""


@dataclass(frozen=True, slots=True)
class Modules:
    """What it is held against."""

    flow: Flow
    noise: Noise
    tail: VocoderTail


@dataclass(frozen=True, slots=True)
class Proof:
    """The worst that was found, in decibels: mel and sound against the modules', graphs against
    their own kernels."""

    flow_db: float
    sound_db: float
    graph_db: float
    holds: bool

    def __str__(self) -> str:
        return f"mel {self.flow_db:.0f} dB, sound {self.sound_db:.0f}, graphs {self.graph_db:.0f}"


@torch.inference_mode()
def proof_of(machine: Launching, voice: PreparedVoice, modules: Modules) -> Proof:
    """Let a turn in that voice say a full chunk and a shorter one, as many streams at once."""
    assert voice.batched is not None, "the machine knows the voice"
    hop = machine.rules.capacity.hop_tokens
    turn = begun(voice.batched.place, machine.rooms)
    state, tail = voice.state, modules.tail
    found: list[tuple[float, float, float]] = []
    for start, count in ((0, hop), (hop, max(1, hop // 2))):
        tokens = tuple(_tokens(modules.flow, start, count + 3))
        chunk = Chunk(tokens, count, final=False)
        step = planned(turn, voice.batched.place, chunk, machine.rules, machine.rooms)
        mel, state = _chunk(modules, state, chunk)
        for bucket in machine.buckets:
            trial = tail.clone()
            plans = np.repeat(step.numbers[None], bucket, 0)
            found.append(_compared(machine, plans, (mel, step.samples), trial))
        turn, tail = step.after, trial
    flow_db, sound_db, graph_db = (max(one) for one in zip(*found, strict=True))
    is_near = flow_db <= _FLOW_DB[modules.flow.dtype] and sound_db <= _SOUND_DB
    return Proof(flow_db, sound_db, graph_db, is_near and graph_db <= _GRAPH_DB)


def _tokens(flow: Flow, start: int, count: int) -> list[int]:
    return [(37 * number) % flow.config.vocabulary for number in range(start, start + count)]


def _chunk(modules: Modules, state: FlowState, chunk: Chunk) -> tuple[Tensor, FlowState]:
    said = torch.tensor(chunk.tokens, device=modules.flow.device)
    mel, after = modules.flow.chunk(state, said, modules.noise, final=chunk.final)
    return mel[0].T, after


def _compared(
    machine: Launching, plans: Numbers, expected: tuple[Tensor, int], tail: VocoderTail
) -> tuple[float, float, float]:
    """Decibels of what differs, of the first and the last of the streams."""
    wanted, samples = expected
    with machine.working():
        mel, sound = machine.launched(plans)
        mel, sound = mel[:, : len(wanted)].cpu(), sound[:, :samples].cpu()
    recorded = torch.from_numpy(machine.begin(plans).finish()[0][:, :samples])
    said = _in_float32(tail, mel[-1].T[None].to(wanted.device)).cpu()
    both = mel[[0, -1]]
    return (
        _difference_db(both, wanted.cpu().expand_as(both)),
        _difference_db(sound[-1], said) if len(said) else -math.inf,
        _difference_db(recorded, sound) if samples else -math.inf,
    )


def _in_float32(tail: VocoderTail, mel: Tensor) -> Tensor:
    rounds = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return tail.push(mel)
    finally:
        torch.backends.cudnn.allow_tf32 = rounds


def _difference_db(ours: Tensor, theirs: Tensor) -> float:
    """What is no number differs without end."""
    if ours.shape != theirs.shape:
        return math.inf
    apart = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9))
    return math.inf if not math.isfinite(apart) else 20 * math.log10(apart + 1e-12)
