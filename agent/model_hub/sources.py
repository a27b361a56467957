"""Where a checkpoint is: what `model.source` names, or what an earlier download has left."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from agent.config import ModelSection
from agent.duplex import inspection
from agent.errors import CheckpointError, ConfigError
from agent.model_hub.cache import ModelCache
from agent.model_hub.hub import HubModel, hub_cache

PUBLISHED = "openbmb/MiniCPM-o-4_5"
"""The id of the model on Hugging Face."""
_ON_MODELSCOPE = "OpenBMB/MiniCPM-o-4_5"
Source: TypeAlias = Path | HubModel
"""A folder on this disk, or a model that is to be downloaded."""
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w.][\w./-]*", re.ASCII)


def locate(model: ModelSection, environ: Mapping[str, str] = os.environ) -> Source | None:
    """What is configured, or a whole download of the published model; None: there is neither.

    A download that is complete is taken as it is, without asking the hub for a newer one.
    CheckpointError when a folder is named that is not there.
    """
    if not model.source:
        return next(_kept(downloads(model), environ), None)
    folder = Path(model.source).expanduser()
    if folder.exists():
        return folder.absolute()
    if not _ID.fullmatch(model.source) or model.source[0] in ".~":
        raise CheckpointError(
            f"model.source: {model.source} is not there; name a folder, or an id such as "
            f"{PUBLISHED}"
        )
    if model.revision and not _REVISION.fullmatch(model.revision):
        raise ConfigError(f"model.revision: {model.revision!r} is no branch, tag or commit")
    wanted = HubModel(model.source, model.revision)
    return ModelCache(downloads(model), wanted).whole_snapshot() or wanted


def downloads(model: ModelSection) -> Path:
    """The folder that downloads are kept in."""
    return Path(model.folder).expanduser().absolute() if model.folder else hub_cache()


def _kept(root: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """Whole downloads of the published model, by huggingface_hub, by us or by modelscope."""
    for folder in (root, hub_cache()):
        snapshot = ModelCache(folder, HubModel(PUBLISHED)).whole_snapshot()
        if snapshot is not None:
            yield snapshot
    home = Path(environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    # Its releases differed: with and without `hub`, with and without `models`.
    for between in ("hub/models", "models", "hub", ""):
        for name in (PUBLISHED, _ON_MODELSCOPE):
            if inspection.is_whole(home / between / name):
                yield home / between / name
