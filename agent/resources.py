"""Where the files that travel with the code are: the page and the recordings.

A wheel carries them inside the package. In a checkout the originals win, because an editable
install leaves a stale copy behind.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def web_folder() -> Path:
    """The folder of `index.html`."""
    return _first_with("index.html", _PACKAGE.parent / "web", _PACKAGE / "_web")


def assets_folder() -> Path:
    """The folder that holds `ref_audio/`."""
    return _first_with("ref_audio", _PACKAGE.parent / "assets", _PACKAGE / "_assets")


def readme() -> Path:
    """The README, to which the page refers."""
    return _first_with("README.md", _PACKAGE.parent, _PACKAGE / "_web") / "README.md"


def _first_with(name: str, *folders: Path) -> Path:
    for folder in folders:
        if (folder / name).exists():
            return folder
    searched = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"{name} is in none of {searched}; reinstall the package")
