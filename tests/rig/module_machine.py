"""A machine that makes the chunks of a batch with the modules, each by itself.

What a stream remembers it finds by the slot that the plan names, so it notices places that are
given away too early, and it holds each chunk's sound against what the plan says of its length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agent.types import FloatArray
from agent.vocoder.batched.layout import Capacity, layout_of
from agent.vocoder.batched.places import Finite, Numbers, Places
from agent.vocoder.batched.turn import Rooms, Rules, TurnState, VoicePlace
from agent.vocoder.batched.window import Reach
from agent.vocoder.flow import FlowState
from agent.vocoder.hift_config import FRAME_SAMPLES
from agent.vocoder.hift_stream import HiftStreamSettings, VocoderTail
from agent.vocoder.prepared_voice import PackedVoice
from agent.vocoder.token2wav import Token2wav

NOTHING = torch.zeros(0)


@dataclass(frozen=True)
class DoneRound:
    sound: FloatArray
    finite: Finite
    done: bool = True

    def finish(self) -> tuple[FloatArray, Finite]:
        return self.sound, self.finite


@dataclass
class ModuleMachine:
    """For a vocoder of the classic generation, or of the `causal` one."""

    vocoder: Token2wav
    streams: int = 4
    most: int = 4
    causal: bool = False
    rounds: list[int] = field(default_factory=list)
    """How many chunks each had."""
    broken: set[int] = field(default_factory=set)
    """Tokens whose chunks are not finite."""
    asleep: int = 0
    """How many rounds say that they are not done."""
    mel_error: float = 0.0
    sound_error: float = 0.0
    graph_error: float = 0.0
    """How far off the mel, the sound and that of a graph are, times the mel and the sound."""

    def __post_init__(self) -> None:
        settings = self.vocoder.settings
        flow = self.vocoder.flow.settings
        frames = 300 if flow.estimator_memory == "reference" else 100
        ahead = self.vocoder.flow.config.encoder.lookahead_tokens
        capacity = Capacity(settings.most_tokens(ahead), frames)
        reach = Reach.of_causal() if self.causal else Reach.of_classic(HiftStreamSettings())
        self.rules = Rules(
            capacity, layout_of(capacity), reach, flow.estimator_memory, flow.noise_place
        )
        under_way = min(self.streams, self.most)
        self.rooms = Rooms(
            Places(4 + self.streams + 2 * under_way, 1),
            Places(50 * self.streams + 2 * under_way * capacity.hop_tokens),
            Places(100 * self.streams + 2 * under_way * capacity.frames),
            Places(frames * self.streams + (under_way + 1) * capacity.frames),
        )
        self._states: dict[int, tuple[FlowState, VocoderTail]] = {}
        self._voices: dict[int, tuple[PackedVoice, str]] = {}
        self._mels: list[Tensor] = []
        self._launched = np.zeros((0, 0), np.int64)

    # ---- voices ---------------------------------------------------------------------------------

    def packed(self, state: FlowState) -> PackedVoice:
        return PackedVoice(state, NOTHING, NOTHING, NOTHING)

    def place(self, voice: PackedVoice, name: str) -> VoicePlace:
        slot = self.rooms.slots.take(1)
        self._voices[int(slot.numbers[0])] = voice, name
        return VoicePlace(slot, 0, 0, 0, voice.state.prompt_tokens, 0)

    def flow_state(self, state: TurnState, voice: PackedVoice, place: VoicePlace) -> FlowState:
        return self._state(int(state.slot.numbers[0]))[0]

    def tail(self, state: TurnState, name: str) -> VocoderTail:
        return self._state(int(state.slot.numbers[0]))[1]

    def nbytes_of(self, state: TurnState) -> int:
        return len(state.rows)

    @contextmanager
    def working(self) -> Iterator[None]:
        yield

    # ---- chunks ---------------------------------------------------------------------------------

    @property
    def buckets(self) -> list[int]:
        return [1, self.most]

    def launched(self, plans: Numbers) -> tuple[Tensor, Tensor]:
        self._mels, self._launched = [], plans
        made = DoneRound(*self._all_made(plans[:1]))
        mel = torch.stack([self._mels[0].T * (1 + self.mel_error)] * len(plans))
        sound = torch.from_numpy(made.sound).expand(len(plans), -1)
        return mel, sound * (1 + self.sound_error)

    def begin(self, plans: Numbers) -> DoneRound:
        self.rounds.append(len(plans))
        self.asleep -= 1
        if self._is_same(plans):
            sound, finite = self._all_made(plans[:1])
            factor = (1 + self.sound_error) * (1 + self.graph_error)
            sound = np.repeat(sound, len(plans), 0) * np.float32(factor)
            return DoneRound(sound, np.repeat(finite, len(plans)), done=self.asleep < 0)
        return DoneRound(*self._all_made(plans), done=self.asleep < 0)

    def _is_same(self, plans: Numbers) -> bool:
        """Whether it is the round that was launched, as where a machine is held against itself."""
        return self._launched.shape == plans.shape and bool((plans == self._launched).all())

    def _all_made(self, plans: Numbers) -> tuple[FloatArray, Finite]:
        frames = self.rules.capacity.frames + 14
        sounds = np.full((len(plans), FRAME_SAMPLES * frames), np.nan, np.float32)
        targets = [int(plan[self.rules.layout.target]) for plan in plans]
        sources = [int(plan[self.rules.layout.source]) for plan in plans]
        assert len(set(targets)) == len(plans) and not set(targets) & set(sources)
        states = [self._state(source) for source in sources]
        finite = [
            self._made(plan, state, sound)
            for plan, state, sound in zip(plans, states, sounds, strict=True)
        ]
        return sounds, np.array(finite)

    def _state(self, slot: int) -> tuple[FlowState, VocoderTail]:
        if slot in self._voices:
            voice, name = self._voices[slot]
            return voice.state, self.vocoder.sounding.open_tail(name)
        state, tail = self._states[slot]
        return state, tail.clone()

    def _made(self, plan: Numbers, state: tuple[FlowState, VocoderTail], sound: FloatArray) -> bool:
        layout = self.rules.layout
        tokens = plan[layout.ids : layout.ids + plan[layout.tokens_in]]
        final = bool(plan[layout.tokens] == plan[layout.tokens_in])
        flow, tail = state
        assert plan[layout.noise] == len(flow.held)
        with torch.inference_mode():
            said = torch.from_numpy(tokens)
            mel, flow = self.vocoder.flow.chunk(flow, said, self.vocoder.noise, final=final)
            made = tail.push(mel, last=final)
        self._mels.append(mel[0])
        assert len(made) == plan[layout.window.said]
        sound[: len(made)] = made
        self._states[int(plan[layout.target])] = flow, tail
        return not self.broken & set(tokens[: plan[layout.tokens]].tolist())
