"""Who may import whom: the code is held to the layer table of the architecture."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = {
    # The first prefix that fits decides, so the exceptions of a folder stand before it.
    "agent.types": 0,
    "agent.commands": 0,
    "agent.chat_types": 0,
    "agent.errors": 0,
    "agent.clock": 0,
    # The package's own first line, before anything of it is there.
    "agent.torchaudio_import": -1,
    "agent.interfaces": 1,
    "agent.config": 1,
    "agent.settings": 1,
    "agent.auth_settings": 1,
    "agent.setting_kinds": 1,
    "agent.model_settings": 1,
    "agent.resources": 1,
    "agent.onnx_wire": 1,
    "agent.tools": 1,
    "agent.tool_settings": 1,
    "agent.media.audio": 1,
    "agent.media.files": 1,
    "agent.media.wire_sound": 1,
    "agent.torch_parts": 1,
    "agent.media": 2,
    "agent.duplex": 2,
    "agent.vocoder": 2,
    "agent.realtime": 2,
    "agent.telemetry": 2,
    "agent.voices": 3,
    "agent.voices_bench": 3,
    "agent.voices_recording": 3,
    "agent.voices_shelf": 3,
    "agent.voices_workshop": 3,
    "agent.engines": 3,
    "agent.attendants": 3,
    "agent.scheduler": 1,
    "agent.fleet.messages": 4,
    "agent.fleet.worker": 4,
    "agent.model_hub": 4,
    "agent.session": 5,
    "agent.call_parts": 5,
    "agent.event_speech": 5,
    "agent.speaking": 5,
    "agent.unit_pace": 5,
    "agent.watchers": 5,
    "agent.client_line": 5,
    "agent.loudspeaker": 5,
    "agent.engine_line": 5,
    "agent.early_try": 5,
    "agent.fleet": 5,
    "agent.transport": 6,
    "agent.tls": 6,
    "agent.api": 7,
    "agent.__main__": 8,
    "agent.bench_command": 8,
    "agent.chat_command": 8,
    "agent.chat_loop": 8,
    "agent.chat_sound": 8,
    "agent.chat_terminal": 8,
    "agent.voices_command": 8,
    "agent.keys": 2,
    "agent.keys_command": 8,
    "agent.doctor": 8,
}
PARTS = {
    "agent.chat_types": "types",
    "agent.types": "types",
    "agent.commands": "types",
    "agent.settings": "config",
    "agent.auth_settings": "config",
    "agent.setting_kinds": "config",
    "agent.model_settings": "config",
    "agent.tool_settings": "config",
    "agent.config": "config",
    "agent.__main__": "command line",
    "agent.bench_command": "command line",
    "agent.doctor": "command line",
    "agent.chat_command": "command line",
    "agent.chat_loop": "command line",
    "agent.chat_sound": "command line",
    "agent.chat_terminal": "command line",
    "agent.voices_command": "command line",
    "agent.keys_command": "command line",
    "agent.voices_bench": "voices",
    "agent.voices_recording": "voices",
    "agent.voices_shelf": "voices",
    "agent.voices_workshop": "voices",
    "agent.session": "session",
    "agent.call_parts": "session",
    "agent.event_speech": "session",
    "agent.speaking": "session",
    "agent.unit_pace": "session",
    "agent.watchers": "session",
    "agent.client_line": "session",
    "agent.loudspeaker": "session",
    "agent.engine_line": "session",
    "agent.early_try": "session",
}
"""Modules that are one part without sharing a folder."""

CONFIG = (
    "agent.config",
    "agent.settings",
    "agent.setting_kinds",
    "agent.model_settings",
    "agent.tool_settings",
)
ISLANDS = ("agent.media", "agent.duplex", "agent.vocoder", "agent.realtime", "agent.telemetry")
ENGINE_SIDE = (
    "agent.duplex",
    "agent.vocoder",
    "agent.torch_parts",
    "agent.engines",
    "agent.scheduler",
    "agent.fleet.messages",
    "agent.fleet.worker",
)
ENGINE_LIBRARIES = {
    "PIL",
    "numpy",
    "onnxruntime",
    "safetensors",
    "torch",
    "torchaudio",
    "transformers",
    "triton",
}
ONLY_IMPORTERS = {
    "aiortc": (
        "agent.transport.rtc",
        "agent.transport.aiortc_inside",
        "agent.transport.ice_inside",
        "agent.transport.short_ways",
        "agent.transport.video_inside",
        "agent.transport.voice_track",
    ),
    "aioice": ("agent.transport.aiortc_inside", "agent.transport.ice_inside"),
    "aiohttp": ("agent.api", "agent.transport.websocket"),
    "ray": ("agent.fleet.pool",),
}
NEVER = {"agent.session": {"aiortc", "aiohttp", "torch", "ray"}}


RELATIVE = "<relative>"
"""Stands for every import with dots, which the style forbids."""


# ---- reading the imports ----------------------------------------------------------------------


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, modules: Iterable[str]) -> list[str]:
    """What one syntax node imports; submodules are told from names by the list of modules."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, level=0, names=names) if module:
            dotted = [f"{module}.{alias.name}" for alias in names]
            return [name if name in modules else module for name in dotted]
        case ast.ImportFrom():
            return [RELATIVE]
        case ast.Call(
            func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]
        ):
            return [name]
    return []


def read_imports(root: Path) -> dict[str, set[str]]:
    """Module → what it imports anywhere in its text, for every file of root/agent."""
    files = {_module_name(path, root): path for path in sorted((root / "agent").rglob("*.py"))}
    return {
        module: {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in _imported(node, files)
        }
        for module, path in files.items()
    }


# ---- the rules --------------------------------------------------------------------------------


def _within(module: str, prefixes: Iterable[str]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def _layer(module: str) -> int | None:
    if module == "agent":
        return 0
    return next((layer for prefix, layer in LAYERS.items() if _within(module, [prefix])), None)


def _part(module: str) -> str:
    return PARTS.get(module, module.split(".")[1] if "." in module else module)


def _layer_fault(module: str, imported: str) -> str | None:
    mine, theirs = _layer(module), _layer(imported)
    if mine is None or theirs is None:
        return "is in no layer" if mine is None else f"imports {imported}, which is in no layer"
    if _part(module) == _part(imported):
        return None
    if theirs >= mine:
        return f"(layer {mine}) imports {imported} (layer {theirs})"
    if _within(imported, CONFIG) and _within(module, (*ISLANDS, *ENGINE_SIDE)):
        return f"imports {imported}: settings reach it as plain data"
    return None


def _library_fault(module: str, library: str) -> str | None:
    if library == RELATIVE:
        return "imports by a relative name"
    importers = ONLY_IMPORTERS.get(library)
    if importers is not None and not _within(module, importers):
        return f"imports {library}, which only {' and '.join(importers)} may"
    if library in NEVER.get(module, ()):
        return f"imports {library}"
    is_standard = library in sys.stdlib_module_names
    if _within(module, ENGINE_SIDE) and not is_standard and library not in ENGINE_LIBRARIES:
        return f"imports {library}, which the engine's side does without"
    return None


def faults(imports: Mapping[str, set[str]]) -> list[str]:
    """Every breach of the table, in words."""
    found = []
    for module, names in imports.items():
        for name in sorted(names):
            is_ours = _within(name, ["agent"])
            fault = (
                _layer_fault(module, name)
                if is_ours
                else _library_fault(module, name.split(".")[0])
            )
            if fault:
                found.append(f"{module} {fault}")
    ours = {module: names & imports.keys() for module, names in imports.items()}
    try:
        graphlib.TopologicalSorter(ours).prepare()
    except graphlib.CycleError as error:
        found.append(f"cycle: {' → '.join(error.args[1])}")
    return found


# ---- tests ------------------------------------------------------------------------------------


def test_every_import_obeys_the_layer_table() -> None:
    imports = read_imports(ROOT)
    assert {"agent.types", "agent.config", "agent.__main__"} <= imports.keys()
    assert faults(imports) == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("types.py", "from agent.config import Config", "agent.types (layer 0) imports"),
        ("media/x.py", "from agent.realtime import y", "agent.media.x (layer 2) imports"),
        ("realtime/x.py", "def f():\n    import agent.config", "settings reach it as plain data"),
        ("engines/x.py", "import agent.settings", "settings reach it as plain data"),
        ("engines/x.py", "import av", "imports av, which the engine's side does without"),
        ("session.py", "import torch.nn", "agent.session imports torch"),
        ("transport/tracks.py", "from aiortc import x", "aiortc, which only agent.transport.rtc"),
        ("session.py", "from aiohttp import web", "aiohttp, which only agent.api and"),
        ("duplex/x.py", "from agent.vocoder import y", "agent.duplex.x (layer 2) imports"),
        ("api/x.py", "import importlib\nimportlib.import_module('agent.doctor')", "(layer 8)"),
        ("media/x.py", "from . import y", "agent.media.x imports by a relative name"),
        ("oddity.py", "import agent.types", "agent.oddity is in no layer"),
        ("media/x.py", "import agent.media.y", "cycle: "),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, file: str, line: str, fault: str) -> None:
    for name in ("types.py", "session.py", "config.py", "settings.py", "doctor.py"):
        _write(tmp_path / "agent" / name, "")
    _write(tmp_path / "agent/media/y.py", "import agent.media.x")
    _write(tmp_path / "agent" / file, line)
    assert any(fault in found for found in faults(read_imports(tmp_path))), fault


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _run_without(blocked: Iterable[str], code: str) -> str:
    block = f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n"
    result = subprocess.run(
        [sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_engines_import_where_the_server_s_libraries_are_missing() -> None:
    blocked = {"av", "aiortc", "aioice", "pydantic", "aiohttp", "silero_vad", "cryptography"}
    assert "echo" in _run_without(blocked, "from agent import engines; print(engines.names())")


def test_a_session_comes_without_torch_and_without_any_transport() -> None:
    code = "import agent.session; print(sorted({'torch', 'aiortc', 'aiohttp'} & set(sys.modules)))"
    assert _run_without((), code).strip() == "[]"
