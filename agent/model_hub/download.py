"""Downloads a checkpoint: only the files it needs, resumed where it stopped, checked by checksum.

huggingface_hub itself resumes only within one process, and trusts what came over plain HTTP by its
length. Here every file grows under a name of its own, survives the end of the process, and counts
as downloaded when its checksum is the one that the hub announced.
"""

import errno
import fcntl
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from agent.duplex import inspection
from agent.engines import Progress
from agent.errors import CheckpointError, ConfigError
from agent.model_hub.cache import ModelCache
from agent.model_hub.hub import Hub, HubFile, HubModel, Listing, disk_error

_LOG = logging.getLogger(__name__)
_AT_ONCE = 4
"""Files that are fetched at a time: one connection alone seldom fills a line."""
_SPARE_BYTES = 500_000_000
"""What a download leaves free on the disk."""
_READ_BYTES = 1 << 22


def needed(listing: Listing) -> tuple[HubFile, ...]:
    """The files of `listing` that a running model reads: no code, no pictures, no other forms."""
    return tuple(file for file in listing.files if _is_needed(PurePosixPath(file.path)))


def _is_needed(path: PurePosixPath) -> bool:
    if path.parts[: len(inspection.VOCODER_FOLDER.parts)] == inspection.VOCODER_FOLDER.parts:
        return path.suffix not in (".py", ".pyc")
    at_root = len(path.parts) == 1
    return at_root and (path.suffix in (".safetensors", ".json") or path.name == "merges.txt")


def download(
    hub: Hub, model: HubModel, root: Path, on_progress: Progress = lambda done, total: None
) -> Path:
    """The folder of `model` under `root`, complete. Config and tokenizer come before the weights.

    ConfigError when the hub, the network or the disk forbid it, CheckpointError when the model is
    another than expected or what came is not what the hub announced.
    """
    listing = hub.listing(model)
    files = sorted(needed(listing), key=lambda file: (file.is_large, file.path))
    if not any(file.path.endswith(".safetensors") for file in files):
        raise CheckpointError(
            f"{model}: has no safetensors weights; expected {inspection.EXPECTED}"
        )
    cache = ModelCache(root, model)
    _expect_room(cache, files)
    job = _Job(hub, listing, cache, _Count(files, cache, on_progress))
    with _disk_errors(model):
        for file in files:
            if file.path == "config.json":
                job.bring(file)
                cache.place(listing.commit, file)
                inspection.expect_model(cache.snapshot(listing.commit))
        _bring_all(job, files)
        for file in files:
            cache.place(listing.commit, file)
        cache.remember(listing.commit)
    return cache.snapshot(listing.commit)


@contextmanager
def _disk_errors(model: HubModel) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_error(model, error) from error
        raise ConfigError(
            f"model.folder: {model} cannot be kept there ({error.strerror}: {error.filename})"
        ) from error
    except KeyboardInterrupt:
        _LOG.warning("the download of %s stopped; run it again, it goes on from there", model)
        raise


def missing_bytes(cache: ModelCache, files: Iterable[HubFile]) -> int:
    """How much of `files` is still to be downloaded."""
    once = {file.digest: file for file in files}.values()
    return sum(cache.missing_bytes(file) for file in once)


def _expect_room(cache: ModelCache, files: list[HubFile]) -> None:
    missing = missing_bytes(cache, files)
    free = cache.free_bytes()
    if missing and free < missing + _SPARE_BYTES:
        raise ConfigError(
            f"{cache.model}: {missing / 1e9:.1f} GB are to be downloaded, {cache.root} has "
            f"{free / 1e9:.1f} GB free: make room, or set model.folder"
        )


def _bring_all(job: "_Job", files: list[HubFile]) -> None:
    # Two files of the same content are one file here.
    once = {file.digest: file for file in files}.values()
    with ThreadPoolExecutor(_AT_ONCE, "download") as pool:
        waiting: list[Future[None]] = [pool.submit(job.bring, file) for file in once]
        try:
            done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
        finally:
            job.stop()  # nothing is left when all went well
            pool.shutdown(wait=True, cancel_futures=True)
    failures = [error for future in done if (error := future.exception()) is not None]
    for error in sorted(failures, key=lambda error: isinstance(error, _Stopped)):
        raise error


class _Stopped(Exception):
    """Another file failed, or the user has had enough."""


class _Count:
    """Adds up the bytes of all files."""

    def __init__(self, files: list[HubFile], cache: ModelCache, on_progress: Progress) -> None:
        self._total = sum(file.size for file in files)
        self._done = self._total - missing_bytes(cache, files)
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._on_progress(self._done, self._total)


class _Job:
    """One download: brings files here, from several threads."""

    def __init__(self, hub: Hub, listing: Listing, cache: ModelCache, count: _Count) -> None:
        self._hub = hub
        self._listing = listing
        self._cache = cache
        self._count = count
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def bring(self, file: HubFile) -> None:
        """Have the content of `file` in the cache, downloading what is missing of it."""
        blob, partial = self._cache.blob(file), self._cache.partial(file)
        if blob.is_file():
            return
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("a+b") as content:
            self._lock(content)
            self._complete(file, content)
            partial.replace(blob)

    def _lock(self, content: BinaryIO) -> None:
        try:
            fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self._listing.model}: another process is downloading it; wait until it is done"
            ) from error

    def _complete(self, file: HubFile, content: BinaryIO) -> None:
        if content.seek(0, 2) > file.size:
            content.truncate(0)
        growing = _Growing(content, file, self._add)
        self._hub.fetch(self._listing, file, cast(BinaryIO, growing), growing.tell())
        content.flush()
        if growing.digest() != file.digest:
            content.truncate(0)
            raise CheckpointError(
                f"{self._listing.model}: {file.path} came damaged: its checksum is not the one "
                f"that {self._hub.endpoint} announces; run it again, and take another mirror if "
                "it happens again"
            )

    def _add(self, count: int) -> None:
        if self._stopping.is_set():
            raise _Stopped
        self._count.add(count)


class _Growing:
    """A file that is being appended to, with its checksum: what the downloader writes into."""

    def __init__(self, content: BinaryIO, file: HubFile, on_bytes: Callable[[int], None]) -> None:
        self._content = content
        self._file = file
        self._on_bytes = on_bytes
        self._hash = self._fresh()
        content.seek(0)
        while piece := content.read(_READ_BYTES):
            self._hash.update(piece)

    def _fresh(self) -> "hashlib._Hash":
        if self._file.is_large:
            return hashlib.sha256()
        # Git's own: of a small file the hub announces nothing else.
        return hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, piece: bytes) -> int:
        self._content.write(piece)
        self._hash.update(piece)
        self._on_bytes(len(piece))
        return len(piece)

    def tell(self) -> int:
        return self._content.tell()

    def seek(self, position: int) -> int:
        """The downloader begins anew when a server cannot resume; it goes nowhere else."""
        if position != 0:
            raise ValueError("a download only grows or begins anew")
        self._on_bytes(-self._content.tell())
        return self._content.seek(0)

    def truncate(self) -> int:
        self._hash = self._fresh()
        return self._content.truncate()
