"""HiFT's window of a stream, counted: what of it a chunk needs, says and leaves behind.

It is what `agent.vocoder.hift_stream` does for both generations, without the mel: how many frames
are where follows from how many came.
"""

from dataclasses import dataclass
from typing import NamedTuple

from agent.vocoder.batched.layout import WINDOW_FRAMES
from agent.vocoder.causal_hift import HISTORY_FRAMES, RIGHT_FRAMES
from agent.vocoder.f0 import CAUSAL_LEFT_FRAMES, CONTEXT_FRAMES
from agent.vocoder.hift_config import F0_LOOK_RIGHT_FRAMES, FRAME_SAMPLES, LOOK_RIGHT_FRAMES
from agent.vocoder.hift_stream import HiftStreamSettings
from agent.vocoder.source import NOISE_SAMPLES


class WindowState(NamedTuple):
    """`frames` of mel from `first` on, of which `settled` have their pitch; `emitted` are said.

    `held` samples of what follows those were made before.
    """

    first: int = 0
    frames: int = 0
    settled: int = 0
    emitted: int = 0
    held: int = 0


class WindowChunk(NamedTuple):
    """The numbers of `agent.vocoder.batched.layout.WindowColumns`, in their order."""

    old: int
    whole: int
    heard: int
    pitch_from: int
    settled: int
    sourced: int
    dropped: int
    settling: int
    glides: int
    noise: int
    shaped: int
    said_from: int
    said: int
    faded: int
    held: int


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a generation's sound and pitch depend on what is around."""

    context: int
    """What stays in front of what is not said yet."""
    held: int
    """What is held back of that whose pitch is known, while more is to come."""
    guessed: int
    pitch_left: int
    pitch_unknown: int
    """How many of the last frames have no pitch yet, …"""
    pitch_unsettled: int
    """… or one that changes with what follows."""
    unshaped: int
    """How many of the last frames with a pitch are no sound yet."""
    fade_samples: int

    @classmethod
    def of_classic(cls, settings: HiftStreamSettings) -> "Reach":
        """The generation that sees both ways."""
        return cls(
            context=settings.context_frames,
            held=settings.held_frames,
            guessed=settings.guessed_frames,
            pitch_left=CONTEXT_FRAMES,
            pitch_unknown=0,
            pitch_unsettled=CONTEXT_FRAMES,
            unshaped=0,
            fade_samples=settings.fade_samples,
        )

    @classmethod
    def of_causal(cls) -> "Reach":
        """The generation whose sound is final after eight frames."""
        return cls(
            context=HISTORY_FRAMES,
            held=RIGHT_FRAMES,
            guessed=0,
            pitch_left=CAUSAL_LEFT_FRAMES,
            pitch_unknown=F0_LOOK_RIGHT_FRAMES,
            pitch_unsettled=0,
            unshaped=LOOK_RIGHT_FRAMES,
            fade_samples=0,
        )

    @property
    def window_frames(self) -> int:
        """What stays between two chunks, at most."""
        return self.context + self.held + self.pitch_unknown

    def __post_init__(self) -> None:
        if self.window_frames > WINDOW_FRAMES:
            raise ValueError(f"a window of {self.window_frames} frames is too long: {self}")


def widened(
    state: WindowState, count: int, reach: Reach, noise_start: int, *, last: bool
) -> tuple[WindowChunk, WindowState]:
    """What a chunk of `count` frames does to a window, and what that leaves.

    `noise_start` is the row of the noise that the turn began with.
    """
    whole = state.frames + count
    sourced = whole if last else max(state.settled, whole - reach.pitch_unknown)
    ready = state.first + (sourced if last else sourced - reach.held)
    heard = whole if last else whole + reach.guessed
    says = ready > state.emitted
    emitted = ready if says else state.emitted
    # Without anything to say the classic generation leaves the pitch for later.
    is_settling = says or reach.pitch_unknown > 0
    settling = max(0, sourced - reach.pitch_unsettled) if is_settling else state.settled
    dropped = max(0, emitted - reach.context - state.first)
    held = reach.fade_samples if says and not last else 0
    chunk = WindowChunk(
        old=state.frames,
        whole=whole,
        heard=heard,
        pitch_from=max(0, state.settled - reach.pitch_left),
        settled=state.settled,
        sourced=sourced + heard - whole,
        dropped=dropped,
        settling=settling,
        glides=int(state.first > 0),
        noise=(noise_start + FRAME_SAMPLES * state.first) % NOISE_SAMPLES,
        shaped=sourced + heard - whole - (0 if last else reach.unshaped),
        said_from=FRAME_SAMPLES * (state.emitted - state.first),
        said=FRAME_SAMPLES * (emitted - state.emitted),
        faded=state.held if says else 0,
        held=held,
    )
    after = WindowState(
        first=state.first + dropped,
        frames=whole - dropped,
        settled=max(0, settling - dropped),
        emitted=emitted,
        held=held,
    )
    return chunk, after
