"""The hub as seen through huggingface_hub: what a model consists of, and the bytes of its files.

`HF_ENDPOINT` (a mirror), `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` hold as everywhere. Its errors
become ours here, each saying what to do.
"""

import errno
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from agent.errors import CheckpointError, ConfigError

# The base of all errors of whichever HTTP library this huggingface_hub uses.
_NetworkError: type[Exception] = importlib.import_module("huggingface_hub.errors").HTTPError
_utils: Any = importlib.import_module("huggingface_hub.utils")
_ANSWER_S = 30.0
_SHA256_LETTERS = 64


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model by its id `owner/name`; an empty revision is the hub's `main`."""

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.revision})" if self.revision else self.name


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model. `digest` is its SHA-256 where it is stored as a large file, else git's."""

    path: str
    size: int
    digest: str

    @property
    def is_large(self) -> bool:
        return len(self.digest) == _SHA256_LETTERS


@dataclass(frozen=True, slots=True)
class Listing:
    """What a model consists of at one commit."""

    model: HubModel
    commit: str
    files: tuple[HubFile, ...]


class Hub:
    """One hub, or a mirror of it; `endpoint` is for tests."""

    def __init__(self, endpoint: str | None = None, *, offline: bool | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT
        self.is_offline = constants.HF_HUB_OFFLINE if offline is None else offline

    def listing(self, model: HubModel) -> Listing:
        """The files of `model`; ConfigError when the hub cannot be asked or does not have it."""
        if self.is_offline:
            raise ConfigError(
                f"{model}: is not downloaded, and HF_HUB_OFFLINE forbids to do it: unset it, or "
                "name a folder as model.source"
            )
        api = huggingface_hub.HfApi(endpoint=self.endpoint)
        with self._told(model):
            info = api.model_info(
                model.name, revision=model.revision or None, files_metadata=True, timeout=_ANSWER_S
            )
        files = []
        for one in info.siblings or ():
            digest = one.lfs.sha256 if one.lfs is not None else one.blob_id
            if digest is None or one.size is None:
                raise ConfigError(
                    f"{model}: {self.endpoint} does not say how large its files are or what their "
                    "checksums should be; take another mirror"
                )
            files.append(HubFile(_inside(one.rfilename, model), one.size, _hexadecimal(digest)))
        return Listing(model, _hexadecimal(info.sha or ""), tuple(files))

    def fetch(self, listing: Listing, file: HubFile, into: BinaryIO, have: int) -> None:
        """Append the bytes of `file` from `have` on to `into`, going on after short breaks.

        ConfigError; what `into` raises goes through, if it is no OSError.
        """
        url = huggingface_hub.hf_hub_url(
            listing.model.name, file.path, revision=listing.commit, endpoint=self.endpoint
        )
        headers = _utils.build_hf_headers()
        # What is compressed on the way can be neither resumed nor measured.
        headers["Accept-Encoding"] = "identity"
        _utils.disable_progress_bars()
        with self._told(listing.model):
            http_get(url, into, resume_size=have, headers=headers, expected_size=file.size)

    @contextmanager
    def _told(self, model: HubModel) -> Iterator[None]:
        """Turns the library's errors into ours."""
        try:
            yield
        except GatedRepoError as error:
            raise ConfigError(
                f"{model}: its owner gives access on request: ask for it at "
                f"{self.endpoint}/{model.name}, then set HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise ConfigError(
                f"model.revision: {model.name} has no revision {model.revision or 'main'!r}"
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise ConfigError(
                f"model.source: {self.endpoint} has no model {model.name!r}: check the spelling; "
                "if it is private, set HF_TOKEN"
            ) from error
        except HfHubHTTPError as error:
            raise _refused(self.endpoint, model, error.response.status_code) from error
        except (OfflineModeIsEnabled, _NetworkError) as error:
            raise ConfigError(
                f"{model}: {self.endpoint} cannot be reached ({error}): check the network, set "
                "HF_ENDPOINT to a mirror, or name a folder as model.source; what is already "
                "downloaded is kept"
            ) from error
        except OSError as error:
            raise disk_error(model, error) from error


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def _refused(endpoint: str, model: HubModel, status: int) -> ConfigError:
    if status in (401, 403):
        return ConfigError(f"{model}: {endpoint} refuses access ({status}): check HF_TOKEN")
    return ConfigError(
        f"{model}: {endpoint} answered with status {status}: run it again later, or set "
        "HF_ENDPOINT to a mirror; what is already downloaded is kept"
    )


def disk_error(model: HubModel, error: OSError) -> ConfigError:
    """What to do when what came cannot be kept."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(
            f"{model}: the disk is full: make room and run it again, it goes on from there; or "
            "set model.folder"
        )
    if error.errno is not None:
        return ConfigError(
            f"{model}: cannot be written ({error.strerror}: {error.filename}): set model.folder"
        )
    # Without a number it is the library's own: fewer or more bytes came than were announced.
    return ConfigError(f"{model}: came damaged ({error}); run it again")


def _inside(path: str, model: HubModel) -> str:
    """A path that stays inside the model's folder, whatever the server says."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise CheckpointError(f"{model}: names a file outside its folder: {path!r}")
    return path


def _hexadecimal(digest: str) -> str:
    """Digests become file names here, so they are nothing else."""
    if len(digest) not in (40, _SHA256_LETTERS) or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f"the hub names {digest!r} as a checksum; take another mirror")
    return digest
