"""What the speech LM reads before it speaks, for many conversations in one pass.

The positions of all conditions follow each other, whoever's they are. A pass has a fixed number of
them, so that it can be recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agent.duplex.cuda.device_lane import Sent
from agent.duplex.cuda.speech_lane_rows import SpeechWork
from agent.duplex.cuda.static_decoder import Rows, StaticDecoder, tiles_of
from agent.duplex.sampling import IntArray
from agent.duplex.speech_lm import SpeechLm
from agent.duplex.work import Speak

_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Condition:
    """What one conversation reads, and the row of the batch that speaks behind it."""

    row: int
    slot: int
    start: int
    ids: Sequence[int]
    states: Sequence[Tensor]
    """The LLM's, [its width] each, of the first ids."""


def condition_of(row: int, work: SpeechWork, lm: SpeechLm) -> Condition | None:
    """What `work` begins with; None where it goes on behind what was read before."""
    call = work if isinstance(work, Speak) else work.call
    text_ended = not isinstance(work, Speak) and work.call.text_ended
    if not isinstance(work, Speak) and work.call.state is not None:
        return None
    ends = [lm.config.text_eos] * text_ended + [lm.config.audio_bos]
    stream = work.stream
    return Condition(row, stream.slot, stream.length, [*call.said, *ends], call.states)


class ConditionPass:
    """One pass of at most `count` positions: its buffers, and what is started over them."""

    def __init__(self, lm: SpeechLm, decoder: StaticDecoder, state: Tensor, count: int) -> None:
        """`state` [rows, W] receives the state at the end of each condition."""
        self.count = count
        self._lm, self._decoder, self._state = lm, decoder, state
        tiles = min(count, len(state) + count // decoder.heads.wide)
        sizes = [count, count, count, count, len(state), 2 * tiles]
        self._sent = Sent(torch.zeros(sum(sizes), dtype=torch.int32, device=state.device))
        host: list[IntArray] = np.split(self._sent.host, np.cumsum(sizes)[:-1])
        self._host, self._host_tiles = host[:-1], host[-1].reshape(tiles, 2)
        *device, tiled = torch.split(self._sent.device, sizes)
        self._ids, self._sources, slots, positions, self._ends = device
        self._rows = Rows(slots, positions, tiled.view(tiles, 2))
        width = lm.config.llm_width
        self._meant = torch.zeros(count, width, dtype=state.dtype, device=state.device)
        self.fill([])

    def fill(self, conditions: Sequence[Condition]) -> None:
        """What is read next, sent on the current stream."""
        ids, sources, slots, positions, ends = self._host
        ids[:] = 0
        for each in (sources, slots, ends):
            each[:] = _NOTHING
        self._host_tiles[:] = 0
        at, states = 0, list[Tensor]()
        for one in conditions:
            here = slice(at, at + len(one.ids))
            ids[here], slots[here] = one.ids, one.slot
            positions[here] = np.arange(one.start, one.start + len(one.ids))
            sources[at : at + len(one.states)] = np.arange(len(one.states)) + len(states)
            states += one.states
            at = here.stop
            ends[one.row] = at - 1
        tiles = tiles_of([len(one.ids) for one in conditions], self._decoder.heads.wide)
        self._host_tiles[: len(tiles)] = np.reshape(tiles, (-1, 2))
        if states:
            torch.stack(states, out=self._meant[: len(states)])
        self._sent.send()

    @torch.no_grad()
    def run(self) -> None:
        """Read it; launches alone, to be recorded."""
        directions = F.normalize(self._lm.projector_semantic(self._meant), p=2, dim=-1, eps=1e-12)
        meant = directions[self._sources.clamp(min=0)]
        words: Tensor = self._lm.emb_text(self._ids)
        tokens = torch.where(self._sources[:, None] >= 0, words + meant, words)
        states = self._decoder.forward(tokens, self._rows)
        ended = states[self._ends.clamp(min=0)]
        self._state.copy_(torch.where(self._ends[:, None] >= 0, ended, self._state))
