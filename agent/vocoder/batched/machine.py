"""token2wav's chunks for many streams as CUDA graphs: what a round of a batch is made of.

machine = Machine(parts, settings)
machine.record(recorder)             # at load: a graph for each number of streams
round_ = machine.begin(plans)        # numbers [B, columns]; does not wait
sound, is_finite = round_.finish()   # waits: f32 [B, samples] and bool [B]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from agent.torch_parts.cuda_graph import Recorded, Recorder
from agent.torch_parts.kernels.launching import compile_together
from agent.types import FloatArray
from agent.vocoder.batched.dit import BatchedDit, DitStores, Schedule
from agent.vocoder.batched.encoder import BatchedEncoder, EncoderStores
from agent.vocoder.batched.hift import BatchedHift
from agent.vocoder.batched.layout import WINDOW_FRAMES, Capacity, layout_of
from agent.vocoder.batched.places import Finite, Full, Numbers, Places
from agent.vocoder.batched.stores import Stores, flow_state, packed, start_slot, tail
from agent.vocoder.batched.turn import Rooms, Rules, TurnState, VoicePlace
from agent.vocoder.causal_hift import CausalHift
from agent.vocoder.config import FRAMES_PER_TOKEN
from agent.vocoder.flow import RECENT_FRAMES, RECENT_TOKENS, Flow, FlowState, Noise
from agent.vocoder.hift import Hift
from agent.vocoder.hift_stream import VocoderTail
from agent.vocoder.prepared_voice import PackedVoice
from agent.vocoder.source import SourceNoise

MOST_STREAMS = 32
"""How many go together."""
_VOICES = 32
"""Voices that can be spoken with at once; those beyond are spoken with eager."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the machine is made of."""

    flow: Flow
    noise: Noise
    hift: Hift | CausalHift
    hift_noise: SourceNoise


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def buckets(streams: int) -> list[int]:
    """Numbers of streams that have a graph, of which the last is enough for so many."""
    most = min(streams, MOST_STREAMS)
    return [1 << power for power in range(max(0, most - 1).bit_length() + 1)]


@dataclass(frozen=True, slots=True, eq=False)
class Staging:
    """What goes to the device and comes back, in memory of the host's that it reads by itself."""

    plan: Tensor
    sound: Tensor
    finite: Tensor
    event: "torch.cuda.Event | None"

    @classmethod
    @torch.inference_mode(False)
    def of(cls, plan: Tensor, samples: int) -> "Staging":
        """For such a plan on the device, and so many samples of each of its streams.

        Written again and again, in inference mode (where the machine is tried) and outside of it.
        """
        count, on_gpu = len(plan), plan.is_cuda
        event = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        return cls(
            torch.zeros(plan.shape, dtype=torch.long, pin_memory=on_gpu),
            torch.zeros(count, samples, pin_memory=on_gpu),
            torch.zeros(count, dtype=torch.bool, pin_memory=on_gpu),
            event,
        )

    def mark(self) -> None:
        """All that is to come back has been asked for."""
        if self.event is not None:
            self.event.record()

    @property
    def done(self) -> bool:
        """Whether it has come."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Until it has."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Chunks of so many streams that were begun together."""

    _staging: Staging
    _count: int
    _free: list[Staging]

    @property
    def done(self) -> bool:
        """Whether `finish` would not wait."""
        return self._staging.done

    def finish(self) -> tuple[FloatArray, Finite]:
        """The sound of each f32 [B, samples], and whether what it is made of is finite; once.

        Both lie where a round that is begun later writes.
        """
        self._staging.wait()
        self._free.append(self._staging)
        staging, count = self._staging, self._count
        return staging.sound.numpy()[:count], staging.finite.numpy()[:count]


class Machine:
    """Room for `streams` turns, and the graphs of their chunks."""

    @torch.inference_mode(False)
    def __init__(self, parts: Parts, capacity: Capacity, streams: int) -> None:
        flow, hift = parts.flow, parts.hift
        self._parts = parts
        self._layout = layout_of(capacity)
        self.buckets = buckets(streams)
        """Numbers of streams that have a graph."""
        schedule = Schedule(flow.table, tuple(flow.spans), flow.config.guidance)
        self._encoder = BatchedEncoder(flow, capacity, self._layout)
        self._estimator = BatchedDit(flow.estimator, schedule, parts.noise, capacity, self._layout)
        self._hift = BatchedHift(hift, parts.hift_noise, capacity, self._layout)
        settings = flow.settings
        self.rules = Rules(
            capacity,
            self._layout,
            self._hift.reach,
            settings.estimator_memory,
            settings.noise_place,
        )
        self.rooms = self._rooms(capacity, streams)
        self._stores = self._make_stores()
        self._plan = torch.zeros(
            self.buckets[-1], self._layout.columns, dtype=torch.long, device=flow.device
        )
        self._calls: dict[int, Recorded[tuple[Tensor, Tensor]]] = {}
        self._stagings: list[Staging] = []
        on_gpu = flow.device.type == "cuda"
        self._stream = _new_stream(flow.device) if on_gpu else None

    @property
    def most(self) -> int:
        """Streams of a round."""
        return self.buckets[-1]

    @property
    def nbytes(self) -> int:
        """What all streams' memory weighs."""
        return self._stores.nbytes

    def _rooms(self, capacity: Capacity, streams: int) -> Rooms:
        # Each stream's own, and what those of two rounds leave before the old is given back.
        under_way = min(streams, self.buckets[-1])
        slots = _VOICES + streams + 2 * under_way
        token_rows = streams * RECENT_TOKENS + 2 * under_way * capacity.hop_tokens
        mel_rows = streams * RECENT_FRAMES + 2 * under_way * capacity.frames
        rows = streams * capacity.turn_frames + (under_way + 1) * capacity.frames
        # Slot 0 and no row are those of places in a round that no stream has.
        return Rooms(Places(slots, 1), Places(token_rows), Places(mel_rows), Places(rows))

    def _make_stores(self) -> Stores:
        flow, rooms = self._parts.flow, self.rooms
        slots = rooms.slots.count + 1
        return Stores(
            EncoderStores.of(flow.encoder, rooms.token_rows.count, rooms.mel_rows.count, slots),
            DitStores.of(flow.estimator, flow.settings.steps, rooms.estimator_rows.count, slots),
            self._hift.slots(slots, WINDOW_FRAMES),
        )

    def nbytes_of(self, state: TurnState) -> int:
        """What a turn's state weighs, its slot included."""
        stores, rooms = self._stores, self.rooms
        return (
            stores.encoder.token_rows.nbytes // rooms.token_rows.count * len(state.token_rows)
            + stores.encoder.mel_rows.nbytes // rooms.mel_rows.count * len(state.mel_rows)
            + stores.estimator.rows.nbytes // rooms.estimator_rows.count * len(state.rows)
            + stores.slot_nbytes
        )

    # ---- graphs ---------------------------------------------------------------------------------

    def record(self, recorder: Recorder) -> None:
        """Record a graph for each bucket. ConfigError when that does not work."""
        plans = [self._plan[:count] for count in reversed(self.buckets)]
        with torch.inference_mode(False), torch.no_grad(), recorder.recording():
            compile_together(partial(self.chunks, plan) for plan in plans)
            for plan in plans:
                self.chunks(plan)  # once as usual, so that kernels are loaded
            # Graphs have memory of their own, and cannot take what that left.
            torch.cuda.empty_cache()
            for plan in plans:
                self._calls[len(plan)] = recorder.record(partial(self.chunks, plan))

    def chunks(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """The next chunk of each stream of a plan i64 [B, columns]: its sound f32 [B, samples], of
        which the plan's number counts, and whether what it is made of is finite, bool [B]."""
        mel, sound = self._made(plan)
        frame = torch.arange(mel.shape[1], device=mel.device)
        there = (frame < plan[:, self._layout.frames, None])[..., None]
        finite = mel.masked_fill(~there, 0).isfinite().flatten(1).all(1)
        return sound, finite

    def launched(self, plans: Numbers) -> tuple[Tensor, Tensor]:
        """The mel f32 [B, T, M] and the sound f32 [B, samples] of a round, without its graph."""
        return self._made(torch.from_numpy(plans).to(self._plan.device))

    def stages(self, count: int) -> dict[str, Callable[[], Tensor]]:
        """The parts of a round of so many streams by name, each to be measured by itself."""
        plan, stores = self._plan[:count], self._stores
        mu = self._encoder(plan, stores.encoder)
        mel = self._estimator(mu, plan, stores.estimator)
        return {
            "encoder": lambda: self._encoder(plan, stores.encoder),
            "solver": lambda: self._estimator(mu, plan, stores.estimator),
            "hift": lambda: self._hift(mel, plan, stores.window),
        }

    def _made(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        mu = self._encoder(plan, self._stores.encoder)
        mel = self._estimator(mu, plan, self._stores.estimator)
        return mel, self._hift(mel, plan, self._stores.window)

    def begin(self, plans: Numbers) -> "Round":
        """Begin a round of so many streams."""
        count = len(plans)
        bucket = next(one for one in self.buckets if one >= count)
        staging = self._stagings.pop() if self._stagings else self._new_staging()
        staged = staging.plan.numpy()
        staged[:count], staged[count:bucket] = plans, 0
        with self.working():
            self._plan[:bucket].copy_(staging.plan[:bucket], non_blocking=True)
            call = self._calls[bucket]
            call.replay()
            for ours, theirs in zip((staging.sound, staging.finite), call.output, strict=True):
                ours[:count].copy_(theirs[:count], non_blocking=True)
            staging.mark()
        return Round(staging, count, self._stagings)

    @contextmanager
    def working(self) -> Iterator[None]:
        """What is started inside goes to the machine's own stream, behind what the caller did."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._stream.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                yield

    def _new_staging(self) -> Staging:
        return Staging.of(self._plan, self._hift.samples)

    # ---- voices and turns -----------------------------------------------------------------------

    def packed(self, state: FlowState) -> PackedVoice:
        """A voice's state in pieces that kernels can read."""
        config = self._parts.flow.encoder.config
        return packed(state, (config.heads, config.head_width))

    def place(self, voice: PackedVoice, name: str) -> VoicePlace:
        """Where a voice is, to be spoken with; `Full` when there are too many, or it is too long.

        It must live as long as the place is used.
        """
        if voice.state.prompt_tokens > self.rules.capacity.prompt_tokens:
            raise Full
        slot, stores = self.rooms.slots.take(1), self._stores
        with self.working():
            start_slot(stores, int(slot.numbers[0]), voice, self._estimator, FRAMES_PER_TOKEN)
        memories = (
            (voice.token_rows, stores.encoder.token_rows),
            (voice.mel_rows, stores.encoder.mel_rows),
            (voice.rows, stores.estimator.rows),
        )
        tokens, mels, rows = (
            (mine.data_ptr() - store.data_ptr()) // store.element_size() for mine, store in memories
        )
        start = self._parts.hift_noise.of_voice(name).start
        return VoicePlace(slot, tokens, mels, rows, voice.state.prompt_tokens, start)

    def flow_state(self, state: TurnState, voice: PackedVoice, place: VoicePlace) -> FlowState:
        """A turn's state as the flow itself goes on with it."""
        with self.working():
            return flow_state(state, voice, place, self._stores)

    def tail(self, state: TurnState, name: str) -> VocoderTail:
        """And its window, as HiFT's stream does."""
        noise = self._parts.hift_noise.of_voice(name)
        with self.working():
            return tail(state, self._parts.hift, noise, self._stores.window)
