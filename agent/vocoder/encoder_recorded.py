"""A block of CosyVoice2's encoder as one CUDA graph, over memory of a fixed size.

Some hundreds of kernels, each of which takes a host longer to start than a GPU to run. What is
remembered ends where the block begins, so that each key is as far away as it is; nobody looks at
what is missing before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from agent.torch_parts.cuda_graph import Recorded, Recorder
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.conformer import Encoder, EncoderState, Memory

MOST_BLOCKS = 4
"""More at once, as of a voice that is prepared, are sooner made together than one by one."""
_Made: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What comes out [1, frames, W], the two tails, and of each layer of tokens and of frames the new
keys and values [layers · 2, 1, H, n, D]."""


class RecordedEncoder:
    """The blocks of one encoder on one device; for one thread, and one stream of the device."""

    def __init__(
        self, encoder: Encoder, tokens: int, recorder: Recorder, capacities: Sequence[int]
    ) -> None:
        """A block has so many `tokens`; `capacities` are frames that may be remembered, for each of
        which a graph is recorded. ConfigError when that does not work."""
        self._tokens = tokens
        self._ahead = encoder.config.lookahead_tokens
        with torch.inference_mode(False), torch.no_grad(), recorder.recording():
            # The largest first: the others find its tables, and room in its memory.
            inputs = [_Inputs.of(encoder, tokens, one) for one in sorted(capacities)[::-1]]
            self._graphs = [_recorded(one, encoder, recorder) for one in inputs][::-1]

    def takes(self, tokens: Tensor, state: EncoderState, *, final: bool) -> bool:
        """Whether these are blocks and their lookahead, behind what there is room for."""
        blocks, rest = divmod(tokens.shape[1] - self._ahead, self._tokens)
        remembered = state.frames + (blocks - 1) * FRAMES_PER_TOKEN * self._tokens
        are_blocks = not final and rest == 0 and 0 < blocks <= MOST_BLOCKS
        return are_blocks and remembered <= self._graphs[-1].inputs.capacity

    def step(self, tokens: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """What `Encoder.step` says of blocks that are not the last."""
        made = []
        for begin in range(0, tokens.shape[1] - self._ahead, self._tokens):
            block = tokens[:, begin : begin + self._tokens + self._ahead]
            out, state = self._step_block(block, state)
            made.append(out)
        return torch.cat(made, 1), state

    def _step_block(self, tokens: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        graph = next(one for one in self._graphs if one.inputs.capacity >= state.frames)
        graph.inputs.fill(tokens, state)
        graph.recorded.replay()
        out, smooth, up, new_tokens, new_frames = (one.clone() for one in graph.recorded.output)
        after = EncoderState(
            smooth,
            up,
            _longer(state.token_layers, new_tokens),
            _longer(state.mel_layers, new_frames),
        )
        return out, after


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """What is remembered of all layers of one rate, and who of a block looks at what."""

    past: Tensor  # [layers · 2, 1, H, capacity, D]: keys and values of each layer in turn
    seen: Tensor  # bool [n, capacity + n]

    @classmethod
    def of(cls, layers: int, like: Memory, capacity: int, count: int) -> "_Side":
        batch, heads, _, width = like[0].shape
        past = like[0].new_zeros(2 * layers, batch, heads, capacity, width)
        seen = torch.ones(count, capacity + count, dtype=torch.bool, device=past.device)
        return cls(past, seen)

    @property
    def capacity(self) -> int:
        return self.past.shape[3]

    @property
    def memories(self) -> tuple[Memory, ...]:
        """As the encoder is given them."""
        return tuple((one[0], one[1]) for one in _in_pairs(self.past))

    def fill(self, memories: Sequence[Memory]) -> None:
        missing = self.capacity - memories[0][0].shape[2]
        # Zero, since none times infinity is no number.
        self.past[:, :, :, :missing] = 0
        self.past[:, :, :, missing:] = torch.stack([one for pair in memories for one in pair])
        self.seen[:, :missing], self.seen[:, missing:] = False, True

    def new(self, memories: Sequence[Memory]) -> Tensor:
        """What came behind the past: [layers · 2, 1, H, n, D]."""
        return torch.stack([one[:, :, self.capacity :] for pair in memories for one in pair])


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """What a graph reads."""

    tokens: Tensor  # [1, block + lookahead, W], embedded
    smooth_tail: Tensor
    up_tail: Tensor
    of_tokens: _Side
    of_frames: _Side

    @classmethod
    def of(cls, encoder: Encoder, tokens: int, capacity: int) -> "_Inputs":
        start, config = encoder.start(), encoder.config
        like = start.token_layers[0]
        embedded = like[0].new_zeros(1, tokens + config.lookahead_tokens, config.width)
        remembered, frames = capacity // FRAMES_PER_TOKEN, FRAMES_PER_TOKEN * tokens
        of_tokens = _Side.of(config.token_layers, like, remembered, tokens)
        of_frames = _Side.of(config.mel_layers, like, FRAMES_PER_TOKEN * remembered, frames)
        return cls(embedded, start.smooth_tail, start.up_tail, of_tokens, of_frames)

    @property
    def capacity(self) -> int:
        """Frames that may be remembered."""
        return self.of_frames.capacity

    def fill(self, tokens: Tensor, state: EncoderState) -> None:
        """Bring it here."""
        self.tokens.copy_(tokens)
        self.smooth_tail.copy_(state.smooth_tail)
        self.up_tail.copy_(state.up_tail)
        self.of_tokens.fill(state.token_layers)
        self.of_frames.fill(state.mel_layers)


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    inputs: _Inputs
    recorded: Recorded[_Made]
    tables: Sequence[Tensor]
    """Which it reads: the encoder makes them anew where what is said at once is longer."""


def _recorded(inputs: _Inputs, encoder: Encoder, recorder: Recorder) -> _Graph:
    step = partial(_stepped, inputs, encoder)
    step()  # once as usual, so that libraries and tables are there
    return _Graph(inputs, recorder.record(step), encoder.tables)


def _stepped(inputs: _Inputs, encoder: Encoder) -> _Made:
    of_tokens, of_frames = inputs.of_tokens, inputs.of_frames
    memories = (of_tokens.memories, of_frames.memories)
    state = EncoderState(inputs.smooth_tail, inputs.up_tail, *memories)
    seen = (of_tokens.seen, of_frames.seen)
    out, after = encoder.step(inputs.tokens, state, final=False, seen=seen)
    new = (of_tokens.new(after.token_layers), of_frames.new(after.mel_layers))
    return out, after.smooth_tail, after.up_tail, *new


def _longer(memories: Sequence[Memory], new: Tensor) -> tuple[Memory, ...]:
    """Each memory with what is new at its end."""
    return tuple(
        (torch.cat([key, keys], 2), torch.cat([value, values], 2))
        for (key, value), (keys, values) in zip(memories, _in_pairs(new), strict=True)
    )


def _in_pairs(both: Tensor) -> Tensor:
    """[layers · 2, …] → [layers, 2, …]: keys and values of each layer."""
    return both.view(-1, 2, *both.shape[1:])
