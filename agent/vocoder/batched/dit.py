"""The estimator and its solver as kernels: many streams, all steps, without a look at the host.

Precisions are those of `agent.vocoder.dit`: what goes into a product is in the flow's dtype, sums
and the residual stream are float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.vocoder.batched.layout import Capacity, Layout
from agent.vocoder.dit import ROWS, Dit, LayerWeights, TimeTable
from agent.vocoder.flow import Noise
from agent.vocoder.kernels.attention import Memory, attend
from agent.vocoder.kernels.product import After, Along, Weights, product
from agent.vocoder.kernels.rows import Ends, advance, norm

TAIL_FRAMES = 2
"""What a convolution sees of the frames before."""
_KERNEL = 3
_PLAIN_EPS = 1e-6
_AFFINE_EPS = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    qkv: Weights
    norms: Tensor  # f32 [4, D]
    out: Weights
    first: Weights
    norm: tuple[Tensor, Tensor]
    second: Weights
    wide: Weights
    narrow: Weights


@dataclass(frozen=True, slots=True, eq=False)
class DitStores:
    """What streams remember: keys and values by row, the ends of convolutions by slot."""

    rows: Tensor  # [N · layers · 2, rows, 2, H · D]
    first_tails: Tensor  # [slots, N, layers, 2, 2, W]
    second_tails: Tensor
    speakers: Tensor  # f32 [slots, W], what the speaker adds to every frame

    @classmethod
    def of(cls, dit: Dit, steps: int, rows: int, slots: int) -> "DitStores":
        """For so many rows and slots."""
        config, weight = dit.config, dit.in_proj.weight
        places = steps * config.layers * ROWS
        inner = config.heads * config.head_width
        tails = (slots, steps, config.layers, ROWS, TAIL_FRAMES, config.width)
        return cls(
            weight.new_zeros(places, rows, 2, inner),
            weight.new_zeros(tails),
            weight.new_zeros(tails),
            weight.new_zeros(slots, config.width, dtype=torch.float32),
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the solver looks, and how far it then goes."""

    table: TimeTable
    spans: tuple[float, ...]
    guidance: float


class BatchedDit:
    """From what the encoder says [B, T, M] to mel f32 [B, T, M]."""

    def __init__(
        self, dit: Dit, schedule: Schedule, noise: Noise, capacity: Capacity, layout: Layout
    ) -> None:
        self.config = dit.config
        self._schedule = schedule
        self._noise = noise.values.T.contiguous()
        self._frames = capacity.frames
        self._layout = layout
        self._dtype = dit.in_proj.weight.dtype
        bins = dit.config.mel_bins
        weight, bias = dit.in_proj.weight, dit.in_proj.bias
        nothing = torch.zeros_like(bias)
        self._enter = Weights.linear(weight[:, :bins], nothing)
        self._condition = Weights.linear(weight[:, bins : 2 * bins], nothing)
        self._speaker = (weight[:, 2 * bins : 3 * bins], bias)
        self._leave = Weights.linear(dit.final_layer.linear.weight, dit.final_layer.linear.bias)
        self._layers = [_prepared(one) for one in dit.layer_weights]

    def speaker(self, speaker: Tensor) -> Tensor:
        """What a speaker [1, M] adds to every frame: f32 [W]."""
        return F.linear(speaker, *self._speaker)[0].float()

    def __call__(self, mu: Tensor, plan: Tensor, stores: DitStores) -> Tensor:
        """`mu` is [B, T' ≥ T, M]; what the chunk's streams remember then is put into the stores."""
        count, frames = len(mu), self._frames
        conditions = self._conditions(mu[:, :frames].contiguous(), plan, stores)
        at = plan[:, self._layout.noise, None] + torch.arange(frames, device=plan.device)
        mel = self._noise[at % len(self._noise)]
        rounded = mel.to(self._dtype, copy=True)
        velocity = mel.new_empty(count, ROWS, frames, self.config.mel_bins)
        spans = self._schedule.spans
        for step, span in enumerate(spans):
            states = self._entered(rounded, conditions)
            for layer in range(self.config.layers):
                self._pass(states, step, layer, plan, stores)
            vectors = self._schedule.table.last[step]
            narrow = states.new_empty(states.shape, dtype=self._dtype)
            norm(states, (vectors[1], vectors[0]), _PLAIN_EPS, narrow)
            product(narrow, self._leave, self._along(), After(out=velocity))
            advance(mel, velocity, rounded, span, self._schedule.guidance)
        return mel

    def _conditions(self, mu: Tensor, plan: Tensor, stores: DitStores) -> Tensor:
        """f32 [B, 2, T, W] as of `Dit.condition`; the speaker goes on with the stream."""
        source, target = plan[:, self._layout.source], plan[:, self._layout.target]
        speaker = stores.speakers[source]
        stores.speakers[target] = speaker
        known = mu.new_empty(*mu.shape[:2], self.config.width, dtype=torch.float32)
        product(mu, self._condition, self._along(), After(out=known))
        known += speaker[:, None]
        without = self._speaker[1].float().expand_as(known)
        return torch.stack([known, without], 1)

    def _entered(self, mel: Tensor, conditions: Tensor) -> Tensor:
        states = torch.empty_like(conditions)
        along = Along(self._frames, self._frames, share=ROWS)
        product(mel, self._enter, along, After(out=states, added=conditions))
        return states

    def _pass(self, states: Tensor, step: int, index: int, plan: Tensor, stores: DitStores) -> None:
        """Through one layer, in place."""
        layer, vectors = self._layers[index], self._schedule.table.layers[step][index]
        self._attended(states, step * self.config.layers + index, plan, stores)
        self._convolved(states, step * self.config.layers + index, plan, stores)
        narrow = states.new_empty(states.shape, dtype=self._dtype)
        norm(states, (vectors[4], vectors[3]), _PLAIN_EPS, narrow)
        wide = narrow.new_empty(*narrow.shape[:-1], self.config.ffn_width)
        product(narrow, layer.wide, self._along(), After(acted=wide, act="gelu"))
        after = After(out=states, added=states, gate=vectors[5])
        product(wide, layer.narrow, self._along(), after)

    def _attended(self, states: Tensor, place: int, plan: Tensor, stores: DitStores) -> None:
        step, index = divmod(place, self.config.layers)
        layer, vectors = self._layers[index], self._schedule.table.layers[step][index]
        config = self.config
        narrow = states.new_empty(states.shape, dtype=self._dtype)
        norm(states, (vectors[1], vectors[0]), _PLAIN_EPS, narrow)
        inner = config.heads * config.head_width
        mixed = narrow.new_empty(*narrow.shape[:-1], 3 * inner)
        product(narrow, layer.qkv, self._along(), After(out=mixed))
        seen = narrow.new_empty(*narrow.shape[:-1], inner)
        memory = Memory(
            stores.rows, self._layout.estimator_memory, plan, config.heads, config.head_width
        )
        attend(mixed, layer.norms, memory, place, seen)
        after = After(out=states, added=states, gate=vectors[2])
        product(seen, layer.out, self._along(), after)

    def _convolved(self, states: Tensor, place: int, plan: Tensor, stores: DitStores) -> None:
        step, index = divmod(place, self.config.layers)
        layer, vectors = self._layers[index], self._schedule.table.layers[step][index]
        frames, width = states.shape[-2:]
        along = Along(frames, frames + TAIL_FRAMES)
        padded = (*states.shape[:-2], frames + TAIL_FRAMES, width)
        first = states.new_empty(padded, dtype=self._dtype)
        ends = self._ends(stores.first_tails, place, plan)
        norm(states, (vectors[7], vectors[6]), _PLAIN_EPS, first, ends=ends)
        hidden = torch.empty_like(states)
        product(first, layer.first, along, After(out=hidden))
        second = torch.empty_like(first)
        ends = self._ends(stores.second_tails, place, plan)
        norm(hidden, layer.norm, _AFFINE_EPS, second, ends=ends, with_mish=True)
        product(second, layer.second, along, After(out=states, added=states, gate=vectors[8]))

    def _ends(self, tails: Tensor, place: int, plan: Tensor) -> Ends:
        each = tails[0, 0, 0].numel()
        layout = self._layout
        return Ends(
            tails, tails[0].numel(), place * each, TAIL_FRAMES, ROWS, plan, layout.source,
            layout.target, layout.frames,
        )  # fmt: skip

    def _along(self) -> Along:
        return Along(self._frames, self._frames)


def _prepared(layer: LayerWeights) -> _Layer:
    heads = torch.cat([layer.head_scale[:, 0], layer.head_shift[:, 0]]).float().contiguous()
    return _Layer(
        qkv=Weights.linear(*layer.qkv),
        norms=heads,
        out=Weights.linear(*layer.out),
        first=_taps(*layer.first),
        norm=(layer.norm[0].float(), layer.norm[1].float()),
        second=_taps(*layer.second),
        wide=Weights.linear(*layer.wide),
        narrow=Weights.linear(*layer.narrow),
    )


def _taps(weight: Tensor, bias: Tensor) -> Weights:
    """Of a convolution as a product [W, W · 3]."""
    turned = weight.view(len(weight), -1, _KERNEL).transpose(1, 2)
    return Weights.of_taps([turned], [bias])
