"""The process in which recordings are examined and voices prepared, out of the way of calls.

It is not the server: what FFmpeg, torch and onnxruntime do to it ends no call, its threads hold no
event loop up, and it is the last one to be given a core. What it says is JSON and bytes, so that
nothing of it runs in the server.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.errors import AgentError, CheckpointError, EngineError, RequestError
from agent.media.recording import RecordingLimits
from agent.vocoder.preparing import FITS, prepare_voice, vocoder_key
from agent.vocoder.voice_store import StoredVoice, VoiceStore
from agent.voices_recording import Examined, examine

if TYPE_CHECKING:
    from agent.vocoder.voice import VoicePreparation

_NICE = 10
"""So much less urgent than calls; a tenth of a core stays even when those take them all."""
_LEAVE_S = 2.0
_MOST_REPLY_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class VocoderFiles:
    """A vocoder that voices are prepared for: `token2wav` or `cosyvoice2`, and its folder."""

    name: str
    folder: Path

    def key(self) -> str:
        """What its forms of voices are kept under. Reads a little of its files."""
        return vocoder_key(self.folder, FITS[self.name])


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What the process is started with: the store's two folders, limits, a vocoder."""

    own: Path
    built_in: Path
    recordings: RecordingLimits
    vocoder: VocoderFiles | None = None
    nice: int = _NICE


@dataclass(frozen=True, slots=True)
class Examine:
    """The bytes of a file follow."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the vocoder's form of a voice, to be kept under `key`, if it is not there yet."""

    voice: StoredVoice
    key: str


Order: TypeAlias = Examine | Prepare
Said: TypeAlias = dict[str, Any]


class Bench:
    """Does the work, one order after the other; keeps the models once they are loaded."""

    def __init__(self, settings: BenchSettings) -> None:
        self._settings = settings
        self._store = VoiceStore(settings.own, settings.built_in)
        self._preparation: VoicePreparation | None = None

    def obey(self, order: Order, data: bytes) -> tuple[Said, bytes]:
        """What is to be said of an order, and the recording that came of it."""
        try:
            if isinstance(order, Prepare):
                self._prepare(order)
                return {}, b""
            examined = examine(data, self._settings.recordings)
            return {"report": examined.report}, examined.recording
        except AgentError as error:
            return {"error": str(error), "code": error.code}, b""
        except OSError as error:
            said = f"its form cannot be kept: {error.strerror}"
            return {"error": said, "code": None, "passing": True}, b""

    def _prepare(self, order: Prepare) -> None:
        vocoder = self._settings.vocoder
        if vocoder is None:
            raise CheckpointError("there is no vocoder to prepare voices for")
        if self._preparation is None:
            from agent.vocoder.voice import VoicePreparation

            self._preparation = VoicePreparation.of_folder(vocoder.folder)
        fit = FITS[vocoder.name]
        prepare_voice(self._store, order.voice, order.key, self._preparation, fit)


def serve(end: Connection, settings: BenchSettings) -> None:
    """Obey what comes over `end` until it closes."""
    bench = Bench(settings)
    try:
        while True:
            order: Order = end.recv()
            said, recording = bench.obey(order, end.recv_bytes())
            end.send_bytes(json.dumps(said).encode())
            end.send_bytes(recording)
    except (EOFError, OSError):
        return
    finally:
        end.close()


def run_process(end: Connection, settings: BenchSettings) -> None:
    """The whole life of the process."""
    # Ctrl-C goes to the whole group of a terminal; it is the server that ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(settings.nice)
    # torch reads it when it is loaded, which happens when it is needed.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    serve(end, settings)


# ---- the server's side ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Child:
    """The bench seen from the server: the link to it, and how it is ended."""

    link: Connection
    kill: Callable[[], object]
    """Ends it at once, from any thread; does not wait."""
    bury: Callable[[], str]
    """Waits until it is over, once the link is closed; how it ended."""

    def ask(self, order: Order, data: bytes, within_s: float) -> tuple[Said, bytes]:
        """What the bench says; waits for that. EngineError when it says nothing."""
        try:
            self.link.send(order)
            self.link.send_bytes(data)
            if not self.link.poll(within_s):
                raise EngineError(f"it took longer than {within_s:g} s")
            said: Said = json.loads(self.link.recv_bytes(_MOST_REPLY_BYTES))
            return said, self.link.recv_bytes(_MOST_REPLY_BYTES)
        except (EOFError, OSError, ValueError) as error:
            raise EngineError("the process that it ran in ended") from error


def start_process(settings: BenchSettings) -> Child:
    """A bench in a process started afresh, so that it shares nothing with the server. OSError."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    # Should the server end without a word, the interpreter ends its daemons.
    process = context.Process(
        target=run_process, args=(theirs, settings), name="voices", daemon=True
    )
    with theirs:
        process.start()

    def bury() -> str:
        process.join(_LEAVE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        return f"ended with exit status {process.exitcode}"

    return Child(ours, process.kill, bury)


def examined(said: Said, recording: bytes) -> Examined:
    """What `ask` brought for `Examine`; RequestError as `examine` raises it."""
    _expect_sound(said)
    return Examined(said["report"], recording)


def why_not(said: Said) -> str:
    """Why `Prepare` will always fail; empty when it did not. EngineError for what may pass."""
    why = str(said.get("error", ""))
    if said.get("passing"):
        raise EngineError(why)
    return why


def _expect_sound(said: Said) -> None:
    if "error" in said:
        raise RequestError(said["error"], param="audio_sample", code=said["code"])
