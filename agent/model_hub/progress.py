"""How far a download is, for people: one line that moves on a terminal, a few plain ones else."""

from typing import TextIO

from agent.clock import SYSTEM_CLOCK, Clock

_MOVING_S = 0.2
_PLAIN_S = 30.0


class DownloadLine:
    """To be called with the bytes that are there and all of them; says nothing when all are."""

    def __init__(self, name: str, stream: TextIO, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name = name
        self._stream = stream
        self._clock = clock
        self._begun: tuple[float, int] | None = None
        self._due_s = 0.0
        self._moves = stream.isatty()

    def __call__(self, done: int, total: int) -> None:
        now_s = self._clock.now_s()
        begun_s, begun_bytes = self._begun = self._begun or (now_s, done)
        if done < total and now_s < self._due_s:
            return
        self._due_s = now_s + (_MOVING_S if self._moves else _PLAIN_S)
        text = f"{self._name}: {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        elapsed_s = now_s - begun_s
        if elapsed_s > 1 and done > begun_bytes:
            rate = (done - begun_bytes) / elapsed_s
            text += f", {rate / 1e6:.1f} MB/s"
            if done < total:
                text += f", {_duration((total - done) / rate)} left"
        if self._moves:
            self._stream.write(f"\r{text}\x1b[K" + ("\n" if done >= total else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
