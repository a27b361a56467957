"""Mel in pieces to sound in pieces: the last part of a vocoder's stream, in both generations.

    tail = open_tail(hift, noise)
    samples = tail.push(mel)              # f32 [n] on the network's device; n may be 0
    samples = tail.push(mel, last=True)   # what is left; the stream is over

Every stream holds back the last frames that it heard, for want of the future (`held_frames` of
them). The causal network then says the same as in one go. The classic one sees both ways, farther
than any stream can wait: `HiftStream` carries the phase and enough of the past that its sound is
the whole utterance's but for the last trace of a future that was not there yet.
`ReferenceHiftStream` is the public implementation's way, whose seams one hears; it is for comparing
with recordings.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from agent.errors import VocoderError
from agent.vocoder.causal_hift import HISTORY_FRAMES, RIGHT_FRAMES, CausalHift
from agent.vocoder.f0 import CAUSAL_LEFT_FRAMES, CONTEXT_FRAMES
from agent.vocoder.hift import REACH_FRAMES, Hift
from agent.vocoder.hift_config import F0_LOOK_RIGHT_FRAMES, FRAME_SAMPLES
from agent.vocoder.source import SourceNoise

Crossfade = Literal["reference", "unity"]

HELD_FRAMES = 8
"""What the reference's stream and the causal one hold back until more is there."""
HELD_SAMPLES = HELD_FRAMES * FRAME_SAMPLES


class VocoderTail(Protocol):
    """One turn's sound; states are never changed in place, so a clone shares them."""

    @property
    def held_frames(self) -> int:
        """How far the sound is behind the mel until the last of it."""
        ...

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        """Mel f32 [1, 80, T], T ≥ 0 → the sound [n] that it completes; all of it when `last`.

        Over a turn 480 samples a frame. `VocoderError` after the last.
        """
        ...

    def clone(self) -> "VocoderTail":
        """A stream that goes on from here by itself."""
        ...


# ---- the classic network ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HiftStreamSettings:
    """`context_frames` of the past are decoded again with each piece (14 make it exact).

    `held_frames` are what a piece keeps back until their future is there. While it is not, the last
    frame goes on for `guessed_frames`, which is nearer to what comes than nothing. Where the next
    piece takes over, it does so within `fade_samples`. A frame is decoded from 14 that follow it:
    so many leave an error of −46 dB at the worst of 234 seams, 13 one of −37, 8 one of −20 (random
    weights).
    """

    context_frames: int = REACH_FRAMES + 2
    held_frames: int = REACH_FRAMES
    guessed_frames: int = 4
    fade_samples: int = FRAME_SAMPLES // 4

    def __post_init__(self) -> None:
        fades = 0 <= self.fade_samples <= self.held_frames * FRAME_SAMPLES
        if self.context_frames < CONTEXT_FRAMES or not fades:
            raise ValueError(f"too little context or too long a fade: {self}")


@dataclass(frozen=True, slots=True)
class HeardWindow:
    """`mel` [1, 80, W] from frame `first` on; `f0` of those of its frames that more cannot change.

    `before` is the phase of the frame before it, `held` what was said of the frames from `emitted`.
    """

    mel: Tensor
    f0: Tensor
    held: Tensor
    first: int = 0
    emitted: int = 0
    before: Tensor | None = None
    over: bool = False

    @property
    def frames(self) -> int:
        return self.mel.shape[-1]

    @property
    def end(self) -> int:
        return self.first + self.frames


class HiftStream:
    """The classic network without its seams: phase, noise and past go on from piece to piece."""

    def __init__(
        self,
        hift: Hift,
        noise: SourceNoise,
        settings: HiftStreamSettings = HiftStreamSettings(),
        window: HeardWindow | None = None,
    ) -> None:
        """For one turn; with a `window` it goes on from there."""
        self._hift = hift
        self._noise = noise
        self._settings = settings
        nothing = torch.zeros(0, device=hift.device)
        self._window = window or HeardWindow(_no_mel(hift), nothing, nothing)

    @property
    def held_frames(self) -> int:
        return self._settings.held_frames

    def clone(self) -> "HiftStream":
        return HiftStream(self._hift, self._noise, self._settings, self._window)

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        window = _widened(self._window, mel)
        ready = window.end if last else window.end - self._settings.held_frames
        if ready <= window.emitted:
            self._window = replace(window, over=last)
            return torch.zeros(0, device=mel.device)
        heard = _extended(window.mel, 0 if last else self._settings.guessed_frames)
        f0 = self._pitch(window, heard)
        position = window.first * FRAME_SAMPLES
        noise = self._noise.at(position, FRAME_SAMPLES * len(f0))
        source = self._hift.m_source.gliding(f0, noise, window.before)
        sound = self._hift.decode(heard, source.wave[None])[0, : window.frames * FRAME_SAMPLES]
        sound = _blended(window.held, sound[(window.emitted - window.first) * FRAME_SAMPLES :])
        emitted = (ready - window.emitted) * FRAME_SAMPLES
        held = sound[emitted : emitted + self._settings.fade_samples]
        window = replace(window, f0=f0[: window.frames], held=held, emitted=ready, over=last)
        self._window = self._narrowed(window, source.cycles)
        return sound[:emitted]

    def _pitch(self, window: HeardWindow, heard: Tensor) -> Tensor:
        settled = len(window.f0)
        start = max(0, settled - CONTEXT_FRAMES)
        fresh = self._hift.f0(heard[..., start:])[0, settled - start :]
        return torch.cat([window.f0, fresh])

    def _narrowed(self, window: HeardWindow, cycles: Tensor) -> HeardWindow:
        """Without what nothing to come depends on, and without the pitch that may still change."""
        drop = max(0, window.emitted - self._settings.context_frames - window.first)
        settled = max(0, window.frames - CONTEXT_FRAMES)
        return replace(
            window,
            first=window.first + drop,
            mel=window.mel[..., drop:],
            f0=window.f0[drop:settled],
            before=cycles[drop - 1] % 1 if drop else window.before,
        )


def _extended(mel: Tensor, frames: int) -> Tensor:
    return torch.cat([mel, mel[..., -1:].expand(-1, -1, frames)], dim=-1)


def _widened(window: HeardWindow, mel: Tensor) -> HeardWindow:
    if window.over:
        raise _over()
    return replace(window, mel=torch.cat([window.mel, mel.float()], dim=-1))


def _blended(old: Tensor, new: Tensor) -> Tensor:
    """`new` [n] whose first samples come gradually out of `old` (shorter or as long), sum one."""
    samples = min(len(old), len(new))
    if samples == 0:
        return new
    place = (torch.arange(samples, device=new.device) + 0.5) / samples
    share = 0.5 - 0.5 * torch.cos(torch.pi * place)
    return torch.cat([old[:samples].lerp(new[:samples], share), new[samples:]])


def _no_mel(hift: Hift | CausalHift) -> Tensor:
    return torch.zeros(1, hift.config.mel_bands, 0, device=hift.device)


class ReferenceHiftStream:
    """The public implementation's way: eight frames decoded twice, their two versions faded.

    Its window sums to 1.08 and the phase starts anew with each piece, which one hears as a click.
    `lead_in` puts 160 ms of silence in front, as there, so that a piece's sound is as long as it.
    """

    def __init__(self, hift: Hift, noise: SourceNoise, *, lead_in: bool = False) -> None:
        self._hift = hift
        self._noise = noise
        self._lead_in = lead_in
        nothing = torch.zeros(0, device=hift.device)
        self._state = _Overlap(_no_mel(hift), nothing, nothing)

    @property
    def held_frames(self) -> int:
        return HELD_FRAMES

    def clone(self) -> "ReferenceHiftStream":
        other = ReferenceHiftStream(self._hift, self._noise, lead_in=self._lead_in)
        other._state = self._state
        return other

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        state = self._state
        if state.over:
            raise _over()
        heard = torch.cat([state.mel, mel.float()], dim=-1)
        if heard.shape[-1] < HELD_FRAMES and not last:
            self._state = replace(state, mel=heard)
            return heard.new_zeros(0)
        if mel.shape[-1] == 0:
            self._state = replace(state, over=last)
            return state.sound if last else heard.new_zeros(0)
        source = self._source(heard, state)
        sound = _weighted(state.sound, self._hift.decode(heard, source[None])[0])
        self._state = _Overlap(
            mel=heard[..., -HELD_FRAMES:],
            source=source[-HELD_SAMPLES:],
            sound=sound[-HELD_SAMPLES:],
            first=state.first + heard.shape[-1] - HELD_FRAMES,
            over=last,
        )
        silence = HELD_SAMPLES if self._lead_in and len(state.sound) == 0 else 0
        said = sound if last else sound[:-HELD_SAMPLES]
        return torch.cat([sound.new_zeros(silence), said])

    def own_source(self, mel: Tensor, position: int) -> Tensor:
        """The excitation [480 T] of a piece by itself."""
        f0 = self._hift.f0(mel)[0]
        noise = self._noise.at(position, FRAME_SAMPLES * len(f0))
        return self._hift.m_source.gliding_as_reference(f0, noise)

    def _source(self, mel: Tensor, state: "_Overlap") -> Tensor:
        """The same, but its head is what the previous piece ended with."""
        own = self.own_source(mel, state.first * FRAME_SAMPLES)
        return torch.cat([state.source, own[len(state.source) :]])


@dataclass(frozen=True, slots=True)
class _Overlap:
    """The last eight frames, from `first` on: mel [1, 80, 8], excitation and sound [3840].

    In the beginning there are fewer of them, and neither excitation nor sound.
    """

    mel: Tensor
    source: Tensor
    sound: Tensor
    first: int = 0
    over: bool = False


def _weighted(old: Tensor, new: Tensor) -> Tensor:
    """The halves of a symmetric Hamming window over both, as the reference has it."""
    samples = len(old)
    if samples == 0:
        return new
    window = torch.hamming_window(2 * samples, periodic=False, device=new.device)
    head = new[:samples] * window[:samples] + old * window[samples:]
    return torch.cat([head, new[samples:]])


# ---- the causal network -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BoundedWindow:
    """`mel` [1, 80, W] from frame `mel_from` on, `source` [480 V] from frame `source_from` on.

    Counted in frames: `sourced` have their excitation, `emitted` are said. `phase` f64 [harmonics]
    is that of the last sourced frame, in cycles.
    """

    mel: Tensor
    source: Tensor
    phase: Tensor
    mel_from: int = 0
    source_from: int = 0
    sourced: int = 0
    emitted: int = 0
    over: bool = False


class CausalHiftStream:
    """The causal network with a bounded past; says what it would say in one go.

    `block_frames` are decoded at once; the network's memory is that of 36 frames more.
    """

    def __init__(
        self,
        hift: CausalHift,
        noise: SourceNoise,
        block_frames: int = 50,
        window: BoundedWindow | None = None,
    ) -> None:
        """For one turn; with a `window` it goes on from there."""
        self._hift = hift
        self._noise = noise
        self._block_frames = block_frames
        device = hift.device
        phase = torch.zeros(hift.config.harmonics, dtype=torch.float64, device=device)
        nothing = torch.zeros(0, device=device)
        self._state = window or BoundedWindow(_no_mel(hift), nothing, phase)

    @property
    def held_frames(self) -> int:
        return F0_LOOK_RIGHT_FRAMES + RIGHT_FRAMES

    def clone(self) -> "CausalHiftStream":
        return CausalHiftStream(self._hift, self._noise, self._block_frames, self._state)

    def push(self, mel: Tensor, last: bool = False) -> Tensor:
        if self._state.over:
            raise _over()
        blocks = torch.split(mel.float(), self._block_frames, dim=-1)
        said = [self._push(block, last and block is blocks[-1]) for block in blocks]
        return torch.cat(said)

    def _push(self, mel: Tensor, last: bool) -> Tensor:
        state = replace(self._state, mel=torch.cat([self._state.mel, mel], dim=-1), over=last)
        state = self._excited(state, last)
        ready = state.sourced - (0 if last else RIGHT_FRAMES)
        said = mel.new_zeros(0)
        if ready > state.emitted:
            said = self._decoded(state, last)
            state = replace(state, emitted=ready)
        self._state = _forgotten(state)
        return said

    def _excited(self, state: BoundedWindow, last: bool) -> BoundedWindow:
        """With the excitation of all frames whose pitch can be told."""
        known = state.mel_from + state.mel.shape[-1] - (0 if last else F0_LOOK_RIGHT_FRAMES)
        if known <= state.sourced:
            return state
        start = max(state.mel_from, state.sourced - CAUSAL_LEFT_FRAMES)
        pitch = self._hift.f0(state.mel[..., start - state.mel_from :], final=last)[0]
        f0 = pitch[state.sourced - start :]
        noise = self._noise.at(state.sourced * FRAME_SAMPLES, len(f0) * FRAME_SAMPLES)
        fresh = self._hift.m_source.held(f0, noise, state.phase)
        source = torch.cat([state.source, fresh.wave])
        return replace(state, source=source, phase=fresh.cycles[-1] % 1, sourced=known)

    def _decoded(self, state: BoundedWindow, last: bool) -> Tensor:
        start = max(0, state.emitted - HISTORY_FRAMES)
        mel = state.mel[..., start - state.mel_from : state.sourced - state.mel_from]
        source = state.source[(start - state.source_from) * FRAME_SAMPLES :]
        sound = self._hift.decode(mel, source[None], final=last)[0]
        return sound[(state.emitted - start) * FRAME_SAMPLES :]


def _forgotten(state: BoundedWindow) -> BoundedWindow:
    """Without the mel and the excitation that nothing to come depends on."""
    history = state.emitted - HISTORY_FRAMES
    mel_from = max(state.mel_from, min(history, state.sourced - CAUSAL_LEFT_FRAMES))
    source_from = max(state.source_from, history)
    return replace(
        state,
        mel=state.mel[..., mel_from - state.mel_from :],
        source=state.source[(source_from - state.source_from) * FRAME_SAMPLES :],
        mel_from=mel_from,
        source_from=source_from,
    )


def _over() -> VocoderError:
    return VocoderError("the stream is over: its last mel was pushed")


def open_tail(
    hift: Hift | CausalHift,
    noise: SourceNoise,
    crossfade: Crossfade = "unity",
    settings: HiftStreamSettings = HiftStreamSettings(),
) -> VocoderTail:
    """A stream for one turn. The causal network has no seams: both settings are for the classic."""
    if isinstance(hift, CausalHift):
        return CausalHiftStream(hift, noise)
    if crossfade == "reference":
        return ReferenceHiftStream(hift, noise)
    return HiftStream(hift, noise, settings)
