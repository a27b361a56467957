"""How far a download or the loading is, for people: one line that moves on a terminal, a few plain
ones else."""

from typing import TextIO

from agent.clock import SYSTEM_CLOCK, Clock

_MOVING_S = 0.2
_PLAIN_S = 30.0


class LoadingLine:
    """To be called with how much is done and how much there is in all; shows the share."""

    def __init__(self, name: str, stream: TextIO, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name = name
        self._stream = stream
        self._clock = clock
        self._begun: tuple[float, int] | None = None
        self._due_s = 0.0
        self._moves = stream.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Show it, where it is time to."""
        now_s = self._clock.now_s()
        begun_s, begun = self._begun = self._begun or (now_s, done)
        if done < total and now_s < self._due_s:
            return
        self._due_s = now_s + (_MOVING_S if self._moves else _PLAIN_S)
        text = f"{self._name}: {self.shown(done, total)}"
        elapsed_s = now_s - begun_s
        if elapsed_s > 1 and done > begun:
            rate = (done - begun) / elapsed_s
            text += self.shown_rate(rate)
            if done < total:
                text += f", {_duration((total - done) / rate)} left"
        if self._moves:
            self._stream.write(f"\r{text}\x1b[K" + ("\n" if done >= total else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def shown(self, done: int, total: int) -> str:
        """How far it is."""
        return f"{done * 100 // max(1, total)} %"

    def shown_rate(self, rate: float) -> str:
        """How much is done in a second, where that tells anything."""
        return ""


class DownloadLine(LoadingLine):
    """The same of bytes."""

    def shown(self, done: int, total: int) -> str:
        """See `LoadingLine`."""
        return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"

    def shown_rate(self, rate: float) -> str:
        """See `LoadingLine`."""
        return f", {rate / 1e6:.1f} MB/s"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
