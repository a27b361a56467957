"""Engines: what answers. One file and one line of the table below for each.

Nothing in here needs the server, the browser side or the settings file: an engine is given plain
data, so it also runs in a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.engines.echo import EchoEngine
from agent.engines.greeting import load_greeting
from agent.errors import ConfigError
from agent.interfaces import Engine


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is built from: the folder of recordings, and how many conversations."""

    assets: Path
    slots: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that was picked, and why, in words for the user."""

    name: str
    reason: str


def _echo(settings: EngineSettings) -> Engine:
    greeting = load_greeting(settings.assets / "ref_audio" / "echo_greeting.wav")
    return EchoEngine(greeting, settings.slots)


_ENGINES: dict[str, Callable[[EngineSettings], Engine]] = {"echo": _echo}


def names() -> tuple[str, ...]:
    """What `--engine` takes besides `auto`."""
    return tuple(_ENGINES)


def choose(name: str) -> Choice:
    """Resolve `auto`; `ConfigError` for an engine that does not exist."""
    if name == "auto":
        return Choice("echo", "it needs no GPU and no weights, and no other engine is built in yet")
    if name not in _ENGINES:
        known = ", ".join(("auto", *_ENGINES))
        raise ConfigError(f"engine.name: there is no engine {name!r}; choose one of {known}")
    return Choice(name, "it was asked for")


def create(name: str, settings: EngineSettings) -> Engine:
    """Build engine `name`, which `choose` returned."""
    return _ENGINES[name](settings)
