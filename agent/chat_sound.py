"""Spoken answers of `voice-agent chat`: each is a WAV, and is played where there is a player.

Nothing here knows of sound cards: one of the programs in `PLAYERS` plays the finished file.
"""

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.chat_types import ChatAudio
from agent.errors import AgentError
from agent.media.speech_file import WavFile
from agent.types import SPEECH_RATE_HZ

PLAYERS: tuple[tuple[str, ...], ...] = (
    ("paplay",),
    ("pw-play",),
    ("aplay", "--quiet"),
    ("afplay",),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
)
"""Programs that play a file, in the order in which they are looked for, with their options."""
_SPARE_S = 10.0
"""How much longer than the sound itself a player may take."""


class NotPlayed(AgentError):
    """The player did not play."""


@dataclass(frozen=True, slots=True)
class AnswerFiles:
    """How the files are called: `path` itself, or, of several, its name with a number behind it.

    A numbered file is never written over one that is there.
    """

    path: Path
    numbered: bool = True

    def after(self, number: int) -> tuple[int, Path]:
        """The number of the next answer, the last having had `number`, and its file."""
        if not self.numbered:
            return 1, self.path
        for following in itertools.count(number + 1):
            path = self.path.with_name(f"{self.path.stem}-{following}{self.path.suffix}")
            if not path.exists():
                return following, path
        raise AssertionError("numbers do not end")


class SpokenAnswers:
    """What the answers of one conversation sound like: `push(...)` and `end()` for each."""

    def __init__(self, files: AnswerFiles, plays: bool, tell: Callable[[str], None]) -> None:
        """`tell` is given a line about each file; `plays` asks for a player."""
        self._files = files
        self._tell = tell
        self._plays = plays
        self._number = 0
        self._file: WavFile | None = None

    def push(self, audio: ChatAudio) -> None:
        """The next sound of the answer. AgentError when it cannot be written."""
        if self._file is None:
            self._number, path = self._files.after(self._number)
            with _writing(path):
                self._file = WavFile(path)
        with _writing(self._file.path):
            self._file.push(audio.samples)

    def end(self, *, is_whole: bool) -> None:
        """The answer is over: tell of its file, and play it if it `is_whole`. Idempotent."""
        file, self._file = self._file, None
        if file is None:
            return
        with _writing(file.path):
            file.finish()
        length_s = file.samples / SPEECH_RATE_HZ
        self._tell(f"{file.path}: {length_s:.1f} s")
        if is_whole and self._plays:
            self._play(file.path, length_s)

    def _play(self, path: Path, length_s: float) -> None:
        try:
            play(path, length_s)
        except NotPlayed as error:
            # It will be no different with the next answer.
            self._plays = False
            self._tell(f"not played: {error}")


def play(path: Path, length_s: float) -> None:
    """Play a file that lasts `length_s`, to its end. `NotPlayed` when nothing here can."""
    found = next((player for player in PLAYERS if shutil.which(player[0])), None)
    if found is None:
        names = ", ".join(player[0] for player in PLAYERS)
        raise NotPlayed(f"there is no player here; looked for {names}")
    try:
        done = subprocess.run(
            [*found, str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=length_s + _SPARE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotPlayed(f"{found[0]} did not end in time, or did not start") from error
    said = done.stderr.decode(errors="replace").strip().splitlines()
    # ffplay without a sound card ends as if all were well, and is told to speak of errors alone.
    if done.returncode or (found[0] == "ffplay" and said):
        raise NotPlayed(f"{found[0]}: {said[-1] if said else f'exit status {done.returncode}'}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AgentError(f"{path}: cannot be written: {error.strerror or error}") from error
