"""What the page's tests need from npm."""

import os
from pathlib import Path

from tests.rig.programs import require_all

ROOT = Path(__file__).resolve().parents[2]


def require_node_module(path: str) -> Path:
    """The file `path` of an installed npm package.

    Looked for under $NODE_MODULES, `node_modules` and `tests/node/node_modules`. Without it the
    test is skipped, saying what to install; with VOICE_AGENT_REQUIRE_ALL=1 it fails.
    """
    folders = [ROOT / "node_modules", ROOT / "tests" / "node" / "node_modules"]
    if named := os.environ.get("NODE_MODULES"):
        folders.insert(0, Path(named))
    found = next((folder / path for folder in folders if (folder / path).exists()), None)
    if found is None:
        package = path.split("/", maxsplit=1)[0]
        require_all(f"needs {package}: npm install --prefix tests/node")
    return found
