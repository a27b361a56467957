"""What the page's tests need from npm."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def require_node_module(path: str) -> Path:
    """The file `path` of an installed npm package.

    Looked for under $NODE_MODULES, `node_modules` and `tests/node/node_modules`. Without it the
    test is skipped, saying what to install; with VOICE_AGENT_REQUIRE_ALL=1 it fails.
    """
    folders = [ROOT / "node_modules", ROOT / "tests" / "node" / "node_modules"]
    if named := os.environ.get("NODE_MODULES"):
        folders.insert(0, Path(named))
    for folder in folders:
        if (folder / path).exists():
            return folder / path
    reason = f"needs {path.split('/')[0]}: npm install --prefix tests/node"
    if os.environ.get("VOICE_AGENT_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
