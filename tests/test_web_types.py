"""The page's modules are strictly typed, by their JSDoc."""

import subprocess
from pathlib import Path

from tests.rig.programs import require_program
from tests.web_page.node import ROOT, require_node_module

FAULT = """// @ts-check
import { Call } from './call.js';
new Call('http://localhost/').setMuted('yes');
"""


def _check(project: Path) -> subprocess.CompletedProcess[str]:
    node = require_program("node", apt="nodejs")
    tsc = require_node_module("typescript/bin/tsc")
    command = [node, str(tsc), "--noEmit", "--checkJs", "--strict", "-p", str(project)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_every_module_passes_the_strict_check() -> None:
    checked = _check(ROOT / "web")
    assert (checked.returncode, checked.stdout) == (0, "")


def test_a_wrong_argument_is_found(tmp_path: Path) -> None:
    for path in (ROOT / "web").glob("*.js*"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "fault.js").write_text(FAULT)
    checked = _check(tmp_path)
    assert checked.returncode != 0
    assert "fault.js" in checked.stdout
    assert "boolean" in checked.stdout


def test_every_module_asks_to_be_checked() -> None:
    modules = sorted((ROOT / "web").glob("*.js"))
    assert len(modules) >= 8
    assert [path.name for path in modules if not path.read_text().startswith("// @ts-check")] == []
