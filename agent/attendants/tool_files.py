"""The functions of this server, out of the Python files and modules that the settings name."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from agent.errors import ConfigError
from agent.tools import ServerTool, tool_of

MOST_TOOLS = 128


def load_tools(files: Sequence[str]) -> tuple[ServerTool, ...]:
    """Every function with `@tool` in `files`, in order; what was loaded before is not run again.

    `ConfigError` for a file that is not there, fails or offers nothing, and for two functions of
    one name.
    """
    found: dict[str, tuple[ServerTool, str]] = {}
    for file in files:
        module = _load(file)
        offered = _tools_in(module)
        if not offered:
            raise ConfigError(f"tools.files: {file} offers nothing; write @tool over a function")
        for one in offered:
            known, where = found.setdefault(one.name, (one, file))
            if known is not one:
                raise ConfigError(
                    f"tools.files: there are two functions {one.name!r}, in {where} and in {file}; "
                    "rename one, or give it a name by @tool(name=…)"
                )
    if len(found) > MOST_TOOLS:
        raise ConfigError(f"tools.files: {len(found)} functions; at most {MOST_TOOLS} are offered")
    return tuple(one for one, _ in found.values())


def _tools_in(module: ModuleType) -> list[ServerTool]:
    offered = (tool_of(value) for value in vars(module).values())
    return [one for one in offered if one is not None]


def _load(file: str) -> ModuleType:
    is_path = file.endswith(".py") or "/" in file
    try:
        return _run_file(Path(file).expanduser()) if is_path else importlib.import_module(file)
    except ConfigError as error:
        raise ConfigError(f"tools.files: {file}: {error}") from error
    except Exception as error:  # it is somebody else's code, and may raise anything
        raise ConfigError(
            f"tools.files: {file} cannot be loaded: {type(error).__name__}: {error}{_line(error)}"
        ) from error


def _run_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError("there is no such file")
    name = f"voice_agent_tools_{path.stem}_{sha256(bytes(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("it is no Python file; its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    if folder not in sys.path:
        # Behind all else: what lies beside it can be imported, and hides nothing.
        sys.path.append(folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line(error: Exception) -> str:
    """Where in that file it was, as far as that is known."""
    if isinstance(error, SyntaxError):
        return ""  # says so itself
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        if trace
        else ""
    )
