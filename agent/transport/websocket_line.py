"""The microphone's time line where sound comes inside of events: unbroken, whoever sends what when.

Clients append at the pace of speech, in pieces of 10 ms to a second; or a whole recording at once;
or only while a button is held. The engine lives second by second, so time must go on for it:

- What was appended is given at once, a recording at up to `BURST` times the pace of speech.
- When nothing has come for a while, longer than the pieces that came last take, silence flows at
  the pace of time. What little was missing by then is made up for; a recording that ran ahead of
  time is followed by silence all the same, so that whoever speaks in it is answered.
- A piece that is late by less than that is no hole: live sound stays whole.

At most `MAX_WAITING_S` wait; more is refused as a whole. A client of a socket gets there only by
one event that holds more: it is not read while plenty waits.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from agent.errors import RequestError
from agent.media.wire_sound import WholeSamples, WireDecoder, sample_bytes, wire_rate_hz
from agent.types import (
    MIC_FRAME_SAMPLES,
    MIC_RATE_HZ,
    UNIT_SAMPLES,
    AudioFrame,
    FloatArray,
    SoundFormat,
)

MAX_WAITING_S = 120
BURST = 8.0
GRACE_S = 0.2
"""Silence is this far behind the clock, so that the first late piece finds room."""
LEAST_PATIENCE_S = 0.3
MOST_PATIENCE_S = 1.2
"""Clients that send once a second are those with the longest pieces seen."""

_FRAME_MS = 10
_DECODED_MS = 200
_FRAME_S = 0.01
_WAKE_S = 0.02
_MAX_PLACES = 512


class BufferFull(RequestError):
    """More sound waits than the engine can be given in good time."""

    code = "input_audio_buffer_full"


class TimeLine:
    """Takes what a client appends, gives 10 ms frames at 16 kHz; positions count what it gives.

    `now_s` is the server's clock. Sound and silence join without a step in the resampler. What
    waits is decoded when its turn comes: a minute of it at once would keep other calls waiting.
    """

    def __init__(self, now_s: float) -> None:
        self._cutter = WholeSamples("audio/pcm")
        self._pieces: deque[_Piece] = deque()
        self._decoder = WireDecoder("audio/pcm")
        self._ready: deque[FloatArray] = deque()
        self._ready_samples = 0
        self._given = 0
        self._extent = _Extent()
        self._stands_s = now_s - GRACE_S  # when live sound that ends where `given` ends was said
        self._quiet_from_s = now_s
        self._budget = _Budget(now_s)
        self._client = _ClientClock()
        self._since: int | None = None
        self._end = 0
        self._complete_until = 0

    # ---- from the client ----------------------------------------------------------------------

    def push(self, data: bytes, coding: SoundFormat, now_s: float) -> None:
        """More sound; `BufferFull`, with nothing changed, when too much of it waits."""
        if coding != self._cutter.coding:
            self._cutter = WholeSamples(coding)
        samples, rate_hz = self._cutter.count(data), wire_rate_hz(coding)
        waiting_s = (self._extent.end - self._given) / MIC_RATE_HZ + samples / rate_hz
        if waiting_s > MAX_WAITING_S:
            self._cutter.lose(data)
            raise BufferFull(
                f"{waiting_s:.0f} s of sound would wait, of which {MAX_WAITING_S} s fit; this "
                "'input_audio_buffer.append' was dropped. Send sound no faster than "
                f"{BURST:.0f} times the pace of speech.",
                param="audio",
            )
        whole = self._cutter.push(data)
        if whole:
            self._take_in(_Piece(memoryview(whole), coding), now_s)

    def committed(self) -> int:
        """Where what was appended since the last time began, which ends at `end`.

        The unit that it ends in is completed at once, by silence: the user's turn is over.
        """
        since, self._since = self._since, None
        self._complete_until = -(-self._end // UNIT_SAMPLES) * UNIT_SAMPLES
        return self._end if since is None else since

    def drop(self) -> int:
        """Forget what was appended and not given yet; where the line goes on."""
        self._pieces.clear()
        self._ready.clear()
        self._ready_samples = 0
        self._cutter = WholeSamples(self._cutter.coding)
        self._decoder = WireDecoder(self._cutter.coding)
        self._extent = _Extent(self._given, self._cutter.coding)
        self._end = self._given
        self._client.skip_to(self._given)
        self._since = None
        return self._given

    @property
    def waiting_s(self) -> float:
        """How much was appended and not given yet."""
        return max(0, self._extent.end - self._given) / MIC_RATE_HZ

    @property
    def end(self) -> int:
        """Where what was appended last ends."""
        return self._end

    def client_at(self, position: int) -> int:
        """How much the client had appended by `position` (16 kHz): its own clock."""
        return self._client.at(position)

    # ---- to the engine ------------------------------------------------------------------------

    def take(self, now_s: float) -> list[AudioFrame]:
        """The frames that are due."""
        frames = []
        self._budget.refill(now_s)
        while self._has_sound() and self._budget.spend():
            frames.append(self._give())
        while not self._has_sound() and self._lacks_silence(now_s):
            self._extent.add(
                self._decoder.coding, _FRAME_MS * wire_rate_hz(self._decoder.coding) // 1000
            )
            self._keep(self._decoder.pause(_FRAME_MS))
            if self._ready_samples >= MIC_FRAME_SAMPLES:
                frames.append(self._give())
        return frames

    def due_s(self, now_s: float) -> float:
        """When `take` has more, unless something is appended before."""
        if self._has_sound():
            return now_s + _FRAME_S
        if self._given < self._complete_until:
            return now_s
        # However far ahead of time the line is by then, it is not when it has fallen quiet.
        stands_s = min(self._stands_s + GRACE_S, max(self._quiet_from_s, now_s))
        return max(self._quiet_from_s, stands_s + _WAKE_S)

    # ---- inside -------------------------------------------------------------------------------

    def _take_in(self, piece: "_Piece", now_s: float) -> None:
        begin = self._extent.end
        self._since = begin if self._since is None else self._since
        self._pieces.append(piece)
        self._extent.add(piece.coding, piece.samples)
        self._end = self._extent.end
        self._client.sounds(begin, self._end)
        # Live sound that ends now; one that was late before must not be made up for.
        self._stands_s = max(self._stands_s, now_s - piece.length_s - GRACE_S)
        patience_s = min(max(LEAST_PATIENCE_S, piece.length_s + GRACE_S), MOST_PATIENCE_S)
        self._quiet_from_s = now_s + patience_s

    def _has_sound(self) -> bool:
        """Whether a frame is there, decoded now if need be."""
        while self._ready_samples < MIC_FRAME_SAMPLES and self._pieces:
            piece = self._pieces.popleft()
            if piece.coding != self._decoder.coding:
                self._keep(self._decoder.finish())
                self._decoder = WireDecoder(piece.coding)
            first, rest = piece.split(_DECODED_MS)
            if rest.data:
                self._pieces.appendleft(rest)
            self._keep(self._decoder.push(first.data))
        return self._ready_samples >= MIC_FRAME_SAMPLES

    def _keep(self, samples: FloatArray) -> None:
        if len(samples):
            self._ready.append(samples)
            self._ready_samples += len(samples)

    def _lacks_silence(self, now_s: float) -> bool:
        """Whether time has gone on further than the line."""
        if self._given < self._complete_until:
            return True
        if now_s < self._quiet_from_s:
            return False
        behind_s = now_s - GRACE_S
        # Of what ran ahead of time nothing is left but its sound; of a server that stood still
        # no more is made up for than of a client.
        self._stands_s = max(min(self._stands_s, behind_s), behind_s - MOST_PATIENCE_S)
        return self._stands_s + _FRAME_S <= behind_s

    def _give(self) -> AudioFrame:
        samples = np.zeros(MIC_FRAME_SAMPLES, np.float32)
        filled = 0
        while filled < MIC_FRAME_SAMPLES:
            piece = self._ready.popleft()
            part = piece[: MIC_FRAME_SAMPLES - filled]
            samples[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(piece):
                self._ready.appendleft(piece[len(part) :])
        frame = AudioFrame(samples, MIC_RATE_HZ, self._given)
        self._ready_samples -= MIC_FRAME_SAMPLES
        self._given += MIC_FRAME_SAMPLES
        self._stands_s += _FRAME_S
        return frame


@dataclass(frozen=True, slots=True)
class _Piece:
    """Whole samples as they came."""

    data: memoryview
    coding: SoundFormat

    @property
    def samples(self) -> int:
        return len(self.data) // sample_bytes(self.coding)

    @property
    def length_s(self) -> float:
        return self.samples / wire_rate_hz(self.coding)

    def split(self, ms: int) -> tuple["_Piece", "_Piece"]:
        """Its first so many milliseconds, and the rest."""
        at = ms * wire_rate_hz(self.coding) // 1000 * sample_bytes(self.coding)
        return _Piece(self.data[:at], self.coding), _Piece(self.data[at:], self.coding)


class _Extent:
    """How far the line will reach once all is decoded that is on it, counted as decoders count."""

    def __init__(self, before: int = 0, coding: SoundFormat = "audio/pcm") -> None:
        self._before = before
        self._coding: SoundFormat = coding
        self._samples = 0

    @property
    def end(self) -> int:
        """In samples at 16 kHz."""
        return self._before + self._samples * MIC_RATE_HZ // wire_rate_hz(self._coding)

    def add(self, coding: SoundFormat, samples: int) -> None:
        """So much more, at the rate of its coding."""
        if coding != self._coding:
            self._before, self._coding, self._samples = self.end, coding, 0
        self._samples += samples


class _Budget:
    """How much sound may be given beyond the pace of speech: a second, and `BURST` times more."""

    def __init__(self, now_s: float) -> None:
        self._samples = float(MIC_RATE_HZ)
        self._at_s = now_s

    def refill(self, now_s: float) -> None:
        """What there is by now."""
        earned = (now_s - self._at_s) * BURST * MIC_RATE_HZ
        self._samples = min(float(MIC_RATE_HZ), self._samples + max(0.0, earned))
        self._at_s = now_s

    def spend(self) -> bool:
        """Whether one more frame may go."""
        if self._samples < MIC_FRAME_SAMPLES:
            return False
        self._samples -= MIC_FRAME_SAMPLES
        return True


@dataclass(frozen=True, slots=True)
class _Place:
    """From `line_at` on the client has appended `client_at`; more with the line where it sounds."""

    line_at: int
    client_at: int
    sounds: bool


class _ClientClock:
    """The line's positions in terms of what the client appended; the last changes only."""

    def __init__(self) -> None:
        self._places: deque[_Place] = deque([_Place(0, 0, False)], maxlen=_MAX_PLACES)
        self._line_end = self._appended = 0

    def sounds(self, begin: int, end: int) -> None:
        """The client's sound stands on the line from `begin` to `end`."""
        last = self._places[-1]
        if begin != self._line_end or not last.sounds:
            self._fall_silent(self._line_end)
            self._places.append(_Place(begin, self._appended, True))
        self._appended += end - begin
        self._line_end = end

    def skip_to(self, line_end: int) -> None:
        """What was to come behind `line_end` never comes, though the client sent it."""
        while len(self._places) > 1 and self._places[-1].line_at > line_end:
            self._places.pop()
        self._line_end = line_end
        self._places.append(_Place(line_end, self._appended, False))

    def at(self, position: int) -> int:
        """The client's clock when the line stood at `position`."""
        if position >= self._line_end:
            return self._appended
        place = next(
            (one for one in reversed(self._places) if one.line_at <= position), self._places[0]
        )
        return place.client_at + (max(0, position - place.line_at) if place.sounds else 0)

    def _fall_silent(self, line_at: int) -> None:
        if self._places[-1].sounds:
            self._places.append(_Place(line_at, self._appended, False))
