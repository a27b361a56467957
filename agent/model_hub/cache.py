"""The folder of downloads, laid out as Hugging Face documents its cache, so that both share it.

models--owner--name/blobs/<digest>            the content, once
                   /snapshots/<commit>/<path> links to it
                   /refs/<revision>           the commit of a branch or tag
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from agent.duplex import inspection
from agent.model_hub.hub import HubFile, HubModel

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ModelCache:
    """What of one model is kept under `root`."""

    root: Path
    model: HubModel

    @property
    def folder(self) -> Path:
        return self.root / f"models--{self.model.name.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.digest

    def partial(self, file: HubFile) -> Path:
        """Where a file grows until it is whole and its checksum is right."""
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def missing_bytes(self, file: HubFile) -> int:
        """How much of `file` is still to be downloaded."""
        if self.blob(file).is_file():
            return 0
        partial = self.partial(file)
        have = partial.stat().st_size if partial.is_file() else 0
        return max(0, file.size - have)

    def place(self, commit: str, file: HubFile) -> None:
        """Give the content of `file`, which is there, its name in the snapshot."""
        name = self.snapshot(commit) / file.path
        name.parent.mkdir(parents=True, exist_ok=True)
        fresh = name.with_name(f".{name.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(self.blob(file), name.parent))
        fresh.replace(name)

    def remember(self, commit: str) -> None:
        """This commit is what the model's revision means here from now on."""
        if self.model.revision == commit:
            return
        revision = self.folder / "refs" / (self.model.revision or "main")
        revision.parent.mkdir(parents=True, exist_ok=True)
        revision.write_text(commit, encoding="utf-8")

    def whole_snapshot(self) -> Path | None:
        """The folder of a complete download of this revision, if there is one."""
        revision = self.model.revision or "main"
        commit = revision
        if not _COMMIT.fullmatch(revision):
            reference = self.folder / "refs" / revision
            if not reference.is_file():
                return None
            commit = reference.read_text(encoding="utf-8").strip()
        snapshot = self.snapshot(commit)
        return snapshot if inspection.is_whole(snapshot) else None

    def free_bytes(self) -> int:
        """How much the disk still takes."""
        return shutil.disk_usage(self._existing()).free

    def _existing(self) -> Path:
        folder = self.folder
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return folder
