"""From RTP packets to the microphone's time line: order, holes, stalls. No codec, no event loop.

The time line is the sender's: each stretch of RTP time is decoded, repaired or concealed exactly
once, so it neither shortens nor drifts, whatever the two clocks do. Nothing is held back for
smoothing: a packet that is next in order is given out at once. Three things are waited for:

* A hole: `Reordering` says how long, 0 to 60 ms, by what came out of the holes before. Then its
  last packet is repaired from the redundancy of the one that follows, the rest is concealed.
* A stall: a peer that falls silent is given a second in which its packets may still come. After
  that silence goes out in real time, a second late, and what comes for that time is dropped.
* A jump (another source, a reset clock): the second packet in a row beyond the bounds, or one that
  is next by its sequence number, makes the line go on from there.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from agent.errors import MediaError
from agent.interfaces import AudioDecoder
from agent.media.audio import falling_edge
from agent.media.reordering import Reordering
from agent.types import MIC_FRAME_SAMPLES, MIC_RATE_HZ, AudioFrame, FloatArray

_MAX_AHEAD = 64
"""Packets kept behind a hole; one more closes the hole at once, nothing is thrown away."""
_MAX_DROPOUT = 3000
"""A minute of packets: numbers that jump further belong to another source."""
_CONTIGUOUS_SAMPLES = MIC_RATE_HZ // 200
"""Timestamps of packets in sequence may be off by 5 ms (senders that read a clock) unheeded."""
_FILL_SAMPLES = MIC_RATE_HZ // 10
"""Silence for a stall goes out 100 ms at a time: ten timers a second."""
_MAX_FILL_SAMPLES = 3 * MIC_RATE_HZ
_LATE_RUN_S = 0.2
_CATCHING_UP = 1.5
"""A stored backlog comes at more than one and a half times the pace of live sound."""
_FULL_SAMPLES = MIC_RATE_HZ // 10
_FADE = np.concatenate((np.ones(_FULL_SAMPLES, np.float32), falling_edge(_FULL_SAMPLES)))
"""Concealment of what was lost: 100 ms as the decoder gives it, 100 ms of fading, then zeros."""


class RtpAudio(NamedTuple):
    """One packet: sequence number (16 bit), timestamp (32 bit) and payload as they came.

    A tuple, like `_Arrival`: one of each is made for every packet, and a frozen dataclass takes
    half as long again.
    """

    sequence: int
    timestamp: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class LineOptions:
    """`clock_rate_hz` of the RTP timestamps: 48000 for Opus, 8000 for G.711 and G.722.

    A hole waits `longest_wait_s` at most; after `stall_s` without sound silence is given out;
    timestamps further off than `jump_s` begin a new source.
    """

    clock_rate_hz: int = 48_000
    longest_wait_s: float = 0.06
    stall_s: float = 1.0
    jump_s: float = 3.0


@dataclass(slots=True)
class LineCounts:
    """What happened so far, in packets where no unit is named; `depth` is what waits now."""

    received: int = 0
    late: int = 0
    duplicate: int = 0
    malformed: int = 0
    lost: int = 0
    repaired: int = 0
    resynchronised: int = 0
    concealed_samples: int = 0
    silent_samples: int = 0
    depth: int = 0
    max_depth: int = 0
    wait_s: float = 0.0


class _Arrival(NamedTuple):
    """A packet on the unwrapped scales of the line."""

    sequence: int
    ticks: int
    payload: bytes
    samples: int


class MicrophoneLine:
    """RTP packets of one microphone in, 10 ms frames at 16 kHz out, `start` without a gap.

    Time comes with each call, in seconds of any monotonic clock. `advance` is to be called at
    `due_s`; calling it at any other time does no harm.
    """

    def __init__(self, decoder: AudioDecoder, options: LineOptions | None = None) -> None:
        self._decoder = decoder
        self._options = options or LineOptions()
        rate_hz = self._options.clock_rate_hz
        if rate_hz % MIC_RATE_HZ and MIC_RATE_HZ % rate_hz:
            raise ValueError(f"an RTP clock of {rate_hz} Hz does not divide {MIC_RATE_HZ} Hz")
        self._close_ticks = self._ticks(_CONTIGUOUS_SAMPLES)
        self._jump_ticks = int(self._options.jump_s * rate_hz)
        self._stall_samples = int(self._options.stall_s * MIC_RATE_HZ)
        self._reordering = Reordering(self._options.longest_wait_s)
        self._cutter = _Cutter()
        self._counts = LineCounts()
        self._ahead: dict[int, _Arrival] = {}
        self._stray: tuple[_Arrival, float] | None = None
        self._synchronised = False
        self._next_sequence = 0
        self._edge_ticks = 0  # RTP time of the first sample that was not given out yet
        self._anchor_s: float | None = None  # when sound was last given out
        self._filled_samples = 0  # silence given out since then
        self._faded_samples = 0  # concealed since the last sample that was received
        self._late_since: tuple[float, int] | None = None

    @property
    def counts(self) -> LineCounts:
        """A copy of the counters."""
        return replace(self._counts, depth=len(self._ahead), wait_s=self._reordering.wait_s)

    def begin(self, now_s: float) -> None:
        """Let time pass from here on, even if no packet ever comes."""
        if self._anchor_s is None:
            self._anchor_s = now_s

    def skip(self, now_s: float) -> None:
        """The time until now did not pass: nothing is missing of it."""
        self._anchor_s, self._filled_samples = now_s, 0

    def push(self, packet: RtpAudio, now_s: float) -> list[AudioFrame]:
        """Take a packet in whatever order; a malformed one counts as lost."""
        self._counts.received += 1
        sequence = self._next_sequence + _signed(packet.sequence - self._next_sequence, 16)
        ticks = self._edge_ticks + _signed(packet.timestamp - self._edge_ticks, 32)
        try:
            samples = self._decoder.samples_in(packet.payload)
        except MediaError:
            self._counts.malformed += 1
            return []
        arrival = _Arrival(sequence, ticks, packet.payload, samples)
        if sequence != self._next_sequence or abs(ticks - self._edge_ticks) > self._close_ticks:
            return self._take_odd(arrival, now_s)
        if not self._synchronised:
            return self._synchronise(arrival, now_s)
        if not self._ahead:
            return self._give(arrival, now_s)
        self._reordering.found(sequence, now_s)
        return self._give(arrival, now_s) + self._drain(now_s)

    def due_s(self) -> float | None:
        """When `advance` has something to do, unless a packet comes before; None before any."""
        if self._anchor_s is None:
            return None
        fill_s = (self._filled_samples + _FILL_SAMPLES) / MIC_RATE_HZ
        due_s = self._anchor_s + self._options.stall_s + fill_s
        return min(due_s, self._deadline_s()) if self._ahead else due_s

    def advance(self, now_s: float) -> list[AudioFrame]:
        """What became due by the passing of time alone."""
        return self._drain(now_s) + self._fill(now_s)

    def finish(self) -> list[AudioFrame]:
        """No packet comes any more: close every hole. A rest of less than 10 ms is dropped."""
        frames: list[AudioFrame] = []
        for sequence in sorted(self._ahead):
            frames += self._give(self._ahead.pop(sequence), self._anchor_s or 0.0)
        return frames

    # ---- where a packet belongs ---------------------------------------------------------------

    def _take_odd(self, arrival: _Arrival, now_s: float) -> list[AudioFrame]:
        """A packet that is not simply the next one."""
        if not self._synchronised:
            return self._synchronise(arrival, now_s)
        if self._jumps(arrival):
            return self._take_jump(arrival, now_s)
        if arrival.sequence < self._next_sequence:
            if self._reordering.found(arrival.sequence, now_s):
                self._counts.late += 1
            else:
                self._counts.duplicate += 1
            return self._follow_late(arrival, now_s) + self._drain(now_s)
        if arrival.sequence in self._ahead:
            self._counts.duplicate += 1
            return []
        self._keep(arrival, now_s)
        return self._drain(now_s)

    def _keep(self, arrival: _Arrival, now_s: float) -> None:
        newest = max(self._ahead, default=self._next_sequence - 1)
        if arrival.sequence > newest:
            self._reordering.miss(newest + 1, arrival.sequence, now_s)
        else:
            self._reordering.found(arrival.sequence, now_s)
        self._ahead[arrival.sequence] = arrival
        self._counts.max_depth = max(self._counts.max_depth, len(self._ahead))

    def _jumps(self, arrival: _Arrival) -> bool:
        """Whether it cannot belong to the stream so far."""
        ahead_ticks = arrival.ticks - self._edge_ticks
        behind_ticks = -ahead_ticks - self._ticks(self._filled_samples)
        if max(ahead_ticks, behind_ticks) > self._jump_ticks:
            return True
        dropout = arrival.sequence - self._next_sequence
        # An old number on a time that is still to come contradicts itself.
        return dropout > _MAX_DROPOUT or (dropout < 0 <= ahead_ticks)

    def _take_jump(self, arrival: _Arrival, now_s: float) -> list[AudioFrame]:
        """One stray packet must not move the line: two that belong together do."""
        if arrival.sequence == self._next_sequence:
            return self.finish() + self._resynchronise(arrival, now_s)
        stray, self._stray = self._stray, (arrival, now_s)
        if stray is None:
            return []
        first, first_s = stray
        steps = _signed(arrival.sequence - first.sequence, 16)
        ticks = _signed(arrival.ticks - first.ticks, 32)
        if not (0 < steps <= _MAX_AHEAD and 0 < ticks <= self._jump_ticks):
            self._counts.late += 1
            return []
        self._stray = None
        frames = self.finish() + self._resynchronise(first, first_s)
        second = arrival._replace(sequence=first.sequence + steps, ticks=first.ticks + ticks)
        self._keep(second, now_s)
        return frames + self._drain(now_s)

    def _follow_late(self, arrival: _Arrival, now_s: float) -> list[AudioFrame]:
        """Drop what came too late, unless everything does and at the pace of live sound.

        Then the sender's clock stood still (on hold) and its sound is new. A network that hands
        over what it had stored is faster than that, and reaches the present by itself.
        """
        if self._late_since is None:
            self._late_since = (now_s, arrival.ticks)
        late_s = now_s - self._late_since[0]
        sent_s = (arrival.ticks - self._late_since[1]) / self._options.clock_rate_hz
        if late_s < _LATE_RUN_S or not 0 < sent_s <= _CATCHING_UP * late_s:
            return []
        return self._resynchronise(arrival, now_s)

    def _resynchronise(self, arrival: _Arrival, now_s: float) -> list[AudioFrame]:
        self._counts.resynchronised += 1
        self._reordering.forget()
        return self._synchronise(arrival, now_s)

    def _synchronise(self, arrival: _Arrival, now_s: float) -> list[AudioFrame]:
        """The line goes on with this packet, after the time that really passed before it."""
        frames = self._cutter.push(self._concealed(self._passed_samples(arrival, now_s)))
        self._synchronised = True
        self._next_sequence = arrival.sequence
        self._edge_ticks = arrival.ticks
        return frames + self._give(arrival, now_s)

    def _passed_samples(self, arrival: _Arrival, now_s: float) -> int:
        if self._anchor_s is None:
            return 0
        passed = round((now_s - self._anchor_s) * MIC_RATE_HZ) - self._filled_samples
        return min(max(passed - arrival.samples, 0), self._stall_samples)

    # ---- what is given out --------------------------------------------------------------------

    def _drain(self, now_s: float) -> list[AudioFrame]:
        """Give out what is next in order, and what is behind holes that waited long enough."""
        frames: list[AudioFrame] = []
        while self._ahead:
            first = min(self._ahead)
            if first > self._next_sequence:
                if now_s < self._deadline_s() and len(self._ahead) <= _MAX_AHEAD:
                    break
                self._reordering.lose()
            frames += self._give(self._ahead.pop(first), now_s)
        return frames

    def _deadline_s(self) -> float:
        return self._reordering.deadline_s(self._next_sequence)

    def _give(self, arrival: _Arrival, now_s: float) -> list[AudioFrame]:
        """Give out a packet and whatever is missing before it."""
        lost = arrival.sequence - self._next_sequence
        self._next_sequence = arrival.sequence + 1
        gap = self._samples(arrival.ticks - self._edge_ticks)
        if not lost and abs(gap) < _CONTIGUOUS_SAMPLES:
            gap = 0
        if gap + arrival.samples <= 0:
            self._counts.late += 1
            return self._follow_late(arrival, now_s)
        self._counts.lost += lost
        pieces = self._bridge(gap, arrival, lost) if gap > 0 else []
        pieces.append(self._decoded(arrival)[max(0, -gap) :])
        self._edge_ticks += self._ticks(gap + arrival.samples)
        self._anchor_s = now_s
        self._filled_samples = 0
        self._late_since = None
        if self._stray:
            self._stray = None
            self._counts.late += 1
        return self._cutter.push(*pieces)

    def _decoded(self, arrival: _Arrival) -> FloatArray:
        try:
            sound = self._decoder.decode(arrival.payload)
        except MediaError:
            self._counts.malformed += 1
            return self._concealed(arrival.samples)
        self._faded_samples = 0
        return sound

    def _bridge(self, gap: int, arrival: _Arrival, lost: int) -> list[FloatArray]:
        """What fills `gap` samples before `arrival`."""
        if not lost:
            # The sender left the time out itself (discontinuous transmission): its decoder knows
            # how that sounds, unless the line has fallen silent already.
            if self._filled_samples:
                return [self._concealed(gap)]
            self._counts.concealed_samples += gap
            return [self._decoder.conceal(gap)]
        repaired = min(gap, arrival.samples)
        pieces = [self._concealed(gap - repaired)] if gap > repaired else []
        return [*pieces, self._repaired(arrival, repaired)]

    def _repaired(self, arrival: _Arrival, samples: int) -> FloatArray:
        try:
            sound = self._decoder.repair(arrival.payload, samples)
        except MediaError:
            return self._concealed(samples)
        self._counts.repaired += 1
        self._faded_samples = 0
        return sound

    def _concealed(self, samples: int) -> FloatArray:
        """The decoder's concealment, faded out over all holes since the last received sound."""
        sound = np.zeros(samples, np.float32)
        heard = min(samples, len(_FADE) - self._faded_samples)
        if heard > 0:
            fade = _FADE[self._faded_samples : self._faded_samples + heard]
            sound[:heard] = self._decoder.conceal(heard) * fade
            self._faded_samples += heard
        self._counts.concealed_samples += heard
        self._counts.silent_samples += samples - heard
        return sound

    def _fill(self, now_s: float) -> list[AudioFrame]:
        """Silence for a peer that fell silent, so that units go on."""
        if self._anchor_s is None:
            return []
        stalled_s = now_s - self._anchor_s - self._options.stall_s
        missing = round(stalled_s * MIC_RATE_HZ) - self._filled_samples
        if missing < _FILL_SAMPLES:
            return []
        missing = min(missing // MIC_FRAME_SAMPLES * MIC_FRAME_SAMPLES, _MAX_FILL_SAMPLES)
        self._filled_samples += missing
        self._edge_ticks += self._ticks(missing)
        return self._cutter.push(self._concealed(missing))

    def _samples(self, ticks: int) -> int:
        return ticks * MIC_RATE_HZ // self._options.clock_rate_hz

    def _ticks(self, samples: int) -> int:
        return samples * self._options.clock_rate_hz // MIC_RATE_HZ


class _Cutter:
    """Sound of any length into 10 ms frames; what is left over waits for the next."""

    def __init__(self) -> None:
        self._waiting = np.zeros(0, np.float32)
        self._start = 0

    def push(self, *pieces: FloatArray) -> list[AudioFrame]:
        """The frames that are complete."""
        sound = pieces[0]
        if len(pieces) > 1 or len(self._waiting):
            sound = np.concatenate((self._waiting, *pieces))
        whole = len(sound) - len(sound) % MIC_FRAME_SAMPLES
        frames = [
            AudioFrame(sound[at : at + MIC_FRAME_SAMPLES], MIC_RATE_HZ, self._start + at)
            for at in range(0, whole, MIC_FRAME_SAMPLES)
        ]
        self._start += whole
        self._waiting = sound[whole:]
        return frames


def _signed(difference: int, bits: int) -> int:
    """The shortest way round a counter of so many bits."""
    half = 1 << (bits - 1)
    return ((difference + half) & ((1 << bits) - 1)) - half
