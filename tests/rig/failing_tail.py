"""HiFT that fails in the midst of a turn."""

from torch import Tensor

from agent.vocoder.hift_stream import VocoderTail
from agent.vocoder.token2wav import Sounding


class FailingSound:
    """As `sound`, but each turn's piece number `at`, from 0, fails: not finite, or with `error`."""

    def __init__(self, sound: Sounding, at: int, error: RuntimeError | None = None) -> None:
        self._sound = sound
        self._at = at
        self._error = error

    def open_tail(self, name: str) -> "FailingTail":
        return FailingTail(self._sound.open_tail(name), self._at, self._error)

    def whole(self, mel: Tensor, name: str) -> Tensor:
        return self._sound.whole(mel, name)


class FailingTail:
    """One turn."""

    def __init__(self, tail: VocoderTail, left: int, error: RuntimeError | None) -> None:
        self._tail = tail
        self._left = left
        self._error = error

    def push(self, mel: Tensor, *, last: bool = False) -> Tensor:
        self._left -= 1
        sound = self._tail.push(mel, last=last)
        if self._left >= 0:
            return sound
        if self._error is not None:
            raise self._error
        return sound * float("nan")

    def clone(self) -> "FailingTail":
        return FailingTail(self._tail.clone(), self._left, self._error)
