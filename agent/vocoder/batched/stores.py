"""What streams and voices remember on the device, and the same as the modules hold it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agent.vocoder.batched.dit import BatchedDit, DitStores
from agent.vocoder.batched.encoder import EncoderStores
from agent.vocoder.batched.places import Numbers
from agent.vocoder.batched.turn import TurnState, VoicePlace, runs_of
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.conformer import EncoderState
from agent.vocoder.conformer import Memory as Layer
from agent.vocoder.dit import ROWS, DitMemory
from agent.vocoder.flow import FlowState
from agent.vocoder.hift import Hift
from agent.vocoder.hift_config import FRAME_SAMPLES
from agent.vocoder.hift_stream import (
    BoundedWindow,
    CausalHiftStream,
    HeardWindow,
    HiftStream,
    VocoderTail,
)
from agent.vocoder.kernels.sound import WindowSlots
from agent.vocoder.prepared_voice import PackedVoice
from agent.vocoder.segments import Segment, in_one_piece, nbytes_of
from agent.vocoder.source import SourceNoise


@dataclass(frozen=True, slots=True)
class Stores:
    """Of all parts."""

    encoder: EncoderStores
    estimator: DitStores
    window: WindowSlots

    @property
    def nbytes(self) -> int:
        """What they weigh."""
        parts = (self.encoder, self.estimator, self.window)
        return nbytes_of(getattr(part, name) for part in parts for name in part.__slots__)

    @property
    def slot_nbytes(self) -> int:
        """What one of all slots' places weighs."""
        encoder, estimator, window = self.encoder, self.estimator, self.window
        by_slot = [encoder.smooth_tails, encoder.up_tails]
        by_slot += [estimator.first_tails, estimator.second_tails, estimator.speakers]
        by_slot += [getattr(window, name) for name in window.__slots__]
        return nbytes_of(one[0] for one in by_slot)


def packed(state: FlowState, heads: tuple[int, int]) -> PackedVoice:
    """Of a voice's state; `heads` are those of the encoder, and how wide they are."""
    token_rows = _packed_layers(state.encoder.token_layers)
    mel_rows = _packed_layers(state.encoder.mel_layers)
    # A voice is 0.2 GB: nothing of it is copied that lies together already. Of each step there is
    # one piece, as `Flow.setup` leaves it.
    segments = in_one_piece([prompt for (prompt,) in (step.prompt for step in state.steps)])
    encoder = replace(
        state.encoder,
        token_layers=_layers(token_rows, heads),
        mel_layers=_layers(mel_rows, heads),
    )
    steps = tuple(
        replace(step, prompt=(segment,))
        for step, segment in zip(state.steps, segments, strict=True)
    )
    frames = segments.shape[3]
    rows = segments.view(-1, frames, 2, segments.shape[-1] // 2)
    return PackedVoice(replace(state, encoder=encoder, steps=steps), token_rows, mel_rows, rows)


def _packed_layers(layers: Sequence[Layer]) -> Tensor:
    """[1, H, t, D] of keys and values by layer → [layers, t, 2, H · D]."""
    rows = [torch.stack([one[0].transpose(0, 1).flatten(1) for one in pair], 1) for pair in layers]
    return torch.stack(rows)


def _layers(rows: Tensor, heads: tuple[int, int]) -> tuple[Layer, ...]:
    """The other way."""
    split = rows.view(*rows.shape[:3], *heads).permute(0, 2, 3, 1, 4)  # [layers, 2, H, t, D]
    return tuple((one[0][None], one[1][None]) for one in split)


def start_slot(
    stores: Stores, slot: int, voice: PackedVoice, estimator: BatchedDit, frames: int
) -> None:
    """Put into a slot what a turn in that voice begins with."""
    state = voice.state
    for name in ("first_tails", "second_tails"):
        tails = torch.stack([getattr(step, name) for step in state.steps])
        getattr(stores.estimator, name)[slot].copy_(tails)
    stores.estimator.speakers[slot].copy_(estimator.speaker(state.speaker))
    stores.encoder.smooth_tails[slot].copy_(state.encoder.smooth_tail[0].T)
    # Of each pair of frames, which are one token twice.
    stores.encoder.up_tails[slot].copy_(state.encoder.up_tail[0, :, ::frames].T)
    stores.window.before[slot].zero_()


def flow_state(
    state: TurnState, voice: PackedVoice, place: VoicePlace, stores: Stores
) -> FlowState:
    """A turn's state as the flow itself goes on with it."""
    slot, encoder, estimator = int(state.slot.numbers[0]), stores.encoder, stores.estimator
    tails = encoder.up_tails[slot].repeat_interleave(FRAMES_PER_TOKEN, 0).T[None]
    heads = _heads(voice.state.encoder)
    token_rows = _with_turn(voice.token_rows, encoder.token_rows, state.token_rows.numbers)
    mel_rows = _with_turn(voice.mel_rows, encoder.mel_rows, state.mel_rows.numbers)
    memory = EncoderState(
        encoder.smooth_tails[slot].T[None].clone(),
        tails,
        _layers(token_rows, heads),
        _layers(mel_rows, heads),
    )
    steps = len(voice.state.steps)
    kept = [slice(first, first + count) for first, count in runs_of(state.prompt)]
    turn = _chosen(estimator.rows, state.rows.numbers).flatten(-2)
    turn = turn.view(steps, len(turn) // (steps * ROWS), ROWS, *turn.shape[1:])
    memories = []
    for number, of_voice in enumerate(voice.state.steps):
        (prompt,) = of_voice.prompt
        parts: tuple[Segment, ...] = tuple(prompt[:, :, one] for one in kept)
        first, second = estimator.first_tails[slot, number], estimator.second_tails[slot, number]
        memories.append(DitMemory(parts, (turn[number].clone(),), first.clone(), second.clone()))
    held = (*state.held.tolist(), *state.prompt.tolist())
    return FlowState(
        memory, tuple(memories), voice.state.speaker, place.prompt_tokens, state.position, held
    )


def tail(
    state: TurnState, hift: Hift | CausalHift, noise: SourceNoise, slots: WindowSlots
) -> VocoderTail:
    """A turn's window of HiFT as its stream goes on with it."""
    slot, window = int(state.slot.numbers[0]), state.window
    mel = slots.mel[slot, : window.frames].T[None].clone()
    pitch = slots.pitch[slot, : window.settled].clone()
    before = slots.before[slot].clone()
    if isinstance(hift, CausalHift):
        rows = noise.at(FRAME_SAMPLES * window.first, FRAME_SAMPLES * window.settled)
        source = hift.m_source.held(pitch, rows, before)
        phase = source.cycles[-1] % 1 if window.settled else before
        sourced = window.first + window.settled
        bounded = BoundedWindow(
            mel, source.wave, phase, window.first, window.first, sourced, window.emitted
        )
        return CausalHiftStream(hift, noise, window=bounded)
    held = slots.held[slot, : window.held].clone()
    before_first = before if window.first else None
    heard = HeardWindow(mel, pitch.float(), held, window.first, window.emitted, before_first)
    return HiftStream(hift, noise, window=heard)


def _heads(state: EncoderState) -> tuple[int, int]:
    shape = state.token_layers[0][0].shape
    return shape[1], shape[3]


def _with_turn(voice: Tensor, store: Tensor, rows: Numbers) -> Tensor:
    return torch.cat([voice, _chosen(store, rows)], 1)


def _chosen(store: Tensor, rows: Numbers) -> Tensor:
    """Rows of a store [places, rows, 2, C], of every place."""
    return store[:, torch.from_numpy(rows).to(store.device)]
