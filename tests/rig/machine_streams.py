"""Streams of a machine and, beside each, the modules' own, chunk by chunk.

Its kernels run in Triton's interpreter: import `tests.rig.triton_on_cpu` first.
"""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.vocoder.batched.layout import Capacity
from agent.vocoder.batched.machine import Machine, Parts
from agent.vocoder.batched.turn import Chunk, TurnState, begun, planned
from agent.vocoder.flow import FlowSettings, Noise
from agent.vocoder.loading import HiftSound, hift_noise
from agent.vocoder.token2wav import PreparedVoice, StreamSettings, Token2wav
from tests.rig.tiny_cosyvoice2 import golden_prompt
from tests.rig.tiny_flow import tiny_flow
from tests.rig.unwritten import fill_stores

TOKENS = [(37 * number) % 6561 for number in range(200)]


class Alone:
    """A stream of the modules beside the machine's, chunk by chunk."""

    def __init__(self, vocoder: Token2wav, machine: Machine, tokens: int) -> None:
        self.vocoder = vocoder
        self.machine = machine
        self.voice: PreparedVoice = vocoder.voice(golden_prompt(tokens), "anna")
        assert self.voice.batched is not None
        self.state = self.voice.state
        self.turn: TurnState = begun(self.voice.batched.place, machine.rooms)
        self.at = tokens

    def chunk(self, count: int, *, final: bool = False) -> tuple[np.ndarray, Tensor]:
        """Its plan, and the mel [T, M] that the modules make."""
        assert self.voice.batched is not None
        said = tuple(TOKENS[self.at : self.at + count + (0 if final else 3)])
        self.at += count
        step = planned(
            self.turn,
            self.voice.batched.place,
            Chunk(said, count, final),
            self.machine.rules,
            self.machine.rooms,
        )
        self.turn = step.after
        flow = self.vocoder.flow
        mel, self.state = flow.chunk(
            self.state, torch.tensor(said), self.vocoder.noise, final=final
        )
        return step.numbers, mel[0].T

    def assert_remembers_alike(self) -> None:
        """All that is remembered, and in which order."""
        voice = self.voice.batched
        assert voice is not None
        ours = self.machine.flow_state(self.turn, voice.memory, voice.place)
        assert ours.held == self.state.held and ours.position == self.state.position
        assert ours.encoder.tokens == self.state.encoder.tokens
        for one, other in zip(_memory(ours), _memory(self.state), strict=True):
            assert one.shape == other.shape and torch.allclose(one, other, atol=2e-4)


def _memory(state: Any) -> list[Tensor]:
    encoder = state.encoder
    parts = [encoder.smooth_tail, encoder.up_tail]
    parts += itertools.chain.from_iterable((*encoder.token_layers, *encoder.mel_layers))
    for step in state.steps:
        parts += [torch.cat([*step.turn, *step.prompt], 2), step.first_tails, step.second_tails]
    return parts


def with_machine(memory: Any, hift: Any, hop: int, frames: int) -> tuple[Token2wav, Machine]:
    """A vocoder and its machine of two streams, with chunks and turns of at most so much."""
    flow = tiny_flow(FlowSettings(steps=1, estimator_memory=memory))
    sound = HiftSound(hift, hift, 1, "unity")
    vocoder = Token2wav(flow, sound, StreamSettings(), Noise.seeded(1), tiny_flow)
    parts = Parts(flow, Noise.seeded(1), hift, hift_noise(hift, 1))
    vocoder.machine = machine = Machine(parts, Capacity(hop, frames, 100), 2)
    fill_stores(machine._stores)
    return vocoder, machine
