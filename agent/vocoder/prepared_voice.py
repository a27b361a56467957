"""A voice of token2wav with all computed that does not depend on what it says."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from agent.vocoder.batched.batches import MachineLike
from agent.vocoder.batched.turn import TurnState, VoicePlace
from agent.vocoder.flow import FlowState
from agent.vocoder.hift_stream import VocoderTail


@dataclass(frozen=True, slots=True, eq=False)
class PackedVoice:
    """A voice's memory in one piece each, as kernels read it; its `state` is views of them."""

    state: FlowState
    token_rows: Tensor  # [layers, P, 2, H · D]
    mel_rows: Tensor
    rows: Tensor  # [N · layers · 2, frames, 2, H · D]


class Machine(MachineLike, Protocol):
    """What makes the chunks of many streams at once: `agent.vocoder.batched.machine`."""

    def packed(self, state: FlowState) -> PackedVoice:
        """A voice's state, to be kept."""

    def place(self, voice: PackedVoice, name: str) -> VoicePlace:
        """Where it is; `Full`."""

    def flow_state(self, state: TurnState, voice: PackedVoice, place: VoicePlace) -> FlowState:
        """A turn's state as the flow itself goes on with it."""

    def tail(self, state: TurnState, name: str) -> VocoderTail:
        """And as HiFT does."""

    def nbytes_of(self, state: TurnState) -> int:
        """What a turn's state weighs."""


@dataclass(frozen=True, slots=True)
class BatchedVoice:
    """A voice as a machine knows it."""

    memory: PackedVoice
    place: VoicePlace


@dataclass(frozen=True, slots=True, eq=False)
class PreparedVoice:
    """A voice with all computed that does not depend on what it says; shared, never changed."""

    state: FlowState
    prompt_tokens: Tensor  # i64 [P]
    prompt_mel: Tensor  # f32 [2P, M]
    embedding: Tensor  # f32 [S]
    name: str
    batched: BatchedVoice | None = None
    """Where there is a machine, and it has room for the voice."""

    @property
    def nbytes(self) -> int:
        """What its memory of the flow takes."""
        return self.state.bytes_held
