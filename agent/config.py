"""Configuration: one TOML file, then the environment, then the command line, each stronger.

The settings stand in `agent.settings` and are handed on here. What is unknown, of the wrong type
or out of range is a `ConfigError` that names the key, where it came from, what was given and what
is allowed. The environment variable of a setting is `VOICE_AGENT__SECTION__KEY`.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from agent.auth_settings import AuthSection
from agent.errors import ConfigError
from agent.model_settings import ModelSection
from agent.setting_kinds import Allowed
from agent.settings import (
    CallSettings,
    Config,
    EchoSettings,
    EngineChoice,
    LogSettings,
    PlayoutSettings,
    RtcSettings,
    ServerSettings,
    SessionDefaults,
    TurnDefaults,
)

__all__ = [
    "ENVIRONMENT_PREFIX",
    "AuthSection",
    "CallSettings",
    "Config",
    "EchoSettings",
    "EngineChoice",
    "LogSettings",
    "ModelSection",
    "PlayoutSettings",
    "RtcSettings",
    "ServerSettings",
    "SessionDefaults",
    "SettingRow",
    "TurnDefaults",
    "data_folder",
    "effective_toml",
    "load_config",
    "markdown_table",
    "settings_table",
]

ENVIRONMENT_PREFIX = "VOICE_AGENT__"


# ---- the table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as people read it: `key` is dotted, `default` is a TOML literal."""

    key: str
    type: str
    default: str
    range: str
    description: str
    secret: bool = False

    @property
    def allowed(self) -> str:
        """Type and range in one phrase."""
        return f"{self.type}: {self.range}" if self.range else self.type

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "__")


_TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "text", tuple: "list"}


def settings_table() -> list[SettingRow]:
    """Every setting in the order of the sections; `voice-agent config` and README show it."""
    return [
        _row(f"{section}.{name}", field)
        for section, model in _sections().items()
        for name, field in model.model_fields.items()
    ]


def markdown_table() -> str:
    """`settings_table` as a Markdown table, ending in a line feed."""
    lines = ["| Setting | Default | Allowed | What it does |", "|---|---|---|---|"]
    for row in settings_table():
        allowed = row.allowed.replace("|", "\\|")
        lines.append(f"| `{row.key}` | `{row.default}` | {allowed} | {row.description} |")
    return "\n".join(lines) + "\n"


def effective_toml(config: Config) -> str:
    """The merged settings as a TOML file, with secrets starred out."""
    parts = []
    for section, values in config.model_dump(mode="json").items():
        parts.append(f"[{section}]")
        for name, value in values.items():
            parts.append(f"{name} = {_literal(_less_secrets(section, name, value))}")
        parts.append("")
    return "\n".join(parts)


def data_folder(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the server keeps what it makes; not created here."""
    if config.server.data_folder:
        return Path(config.server.data_folder).expanduser()
    base = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "voice-agent"


def _sections() -> dict[str, type[BaseModel]]:
    return {name: type(field.default) for name, field in Config.model_fields.items()}


def _row(key: str, field: FieldInfo) -> SettingRow:
    notes = [note for note in field.metadata if isinstance(note, Allowed)]
    return SettingRow(
        key=key,
        type=_TYPE_NAMES[_plain_type(field)],
        default=_literal(field.default),
        range=notes[0].words if notes else _range(field),
        description=field.description or "",
        secret=any(note.hide is not None for note in notes),
    )


def _plain_type(field: FieldInfo) -> type:
    origin = get_origin(field.annotation)
    if origin is Literal:
        return str
    plain = origin or field.annotation
    assert isinstance(plain, type)
    return plain


def _range(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return " or ".join(json.dumps(choice) for choice in get_args(field.annotation))
    low = [note.ge for note in field.metadata if isinstance(note, Ge)]
    high = [note.le for note in field.metadata if isinstance(note, Le)]
    if low and high:
        return f"{low[0]} to {high[0]}"
    return _length(field)


def _length(field: FieldInfo) -> str:
    least = next((note.min_length for note in field.metadata if isinstance(note, MinLen)), 0)
    most = next((note.max_length for note in field.metadata if isinstance(note, MaxLen)), None)
    if most is None:
        return "not empty" if least else ""
    return f"{least} to {most} characters" if least else f"up to {most} characters"


def _literal(value: object) -> str:
    """A TOML literal; JSON's text, numbers, booleans and arrays all are."""
    return json.dumps(value, ensure_ascii=False)


def _less_secrets(section: str, name: str, value: object) -> object:
    field = _sections()[section].model_fields[name]
    for note in field.metadata:
        if isinstance(note, Allowed) and note.hide is not None:
            return (
                [note.hide(x) for x in value] if isinstance(value, list) else note.hide(str(value))
            )
    return value


# ---- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class _Read:
    """What the sources give, the stronger later, and a line for each thing that is wrong."""

    rows: Mapping[str, SettingRow]
    given: dict[str, _Given] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def take(self, row: SettingRow, text: str, origin: str) -> None:
        """A setting given as text, which is parsed by its type."""
        try:
            self.given[row.key] = _Given(_value(row.type, text), origin)
        except (ValueError, KeyError):
            self.wrong.append(_refusal(row, _Given(text, origin)))


def load_config(
    file: Path | None, environ: Mapping[str, str], overrides: Sequence[str] = ()
) -> Config:
    """Merge `file` (TOML), `environ` and `overrides` ("section.key=value"), weakest first.

    Raises ConfigError; when several settings are wrong, its message has a line for each.
    """
    read = _Read({row.key: row for row in settings_table()})
    if file is not None:
        _read_file(file, read)
    _read_environ(environ, read)
    _read_overrides(overrides, read)
    tree: dict[str, dict[str, object]] = {}
    for key, entry in read.given.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = entry.value
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        keys = dict.fromkeys(".".join(map(str, item["loc"][:2])) for item in error.errors())
        read.wrong.extend(_refusal(read.rows[key], read.given[key]) for key in keys)
        # The library's own text would repeat the values, passwords included.
        raise ConfigError("\n".join(read.wrong)) from None
    if read.wrong:
        raise ConfigError("\n".join(read.wrong))
    return config


def _read_file(file: Path, read: _Read) -> None:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    origin = f"file {file}"
    for section, values in content.items():
        if section not in _sections():
            read.wrong.append(_unknown(section, origin, list(_sections())))
        elif not isinstance(values, dict):
            read.wrong.append(f"{section} ({origin}): is a section, write [{section}]")
        else:
            for name, value in values.items():
                key = f"{section}.{name}"
                if key in read.rows:
                    read.given[key] = _Given(value, origin)
                else:
                    read.wrong.append(_unknown(key, origin, list(read.rows)))


def _read_environ(environ: Mapping[str, str], read: _Read) -> None:
    by_variable = {row.variable: row for row in read.rows.values()}
    for variable in sorted(environ):
        if not variable.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        row = by_variable.get(variable)
        origin = f"environment variable {variable}"
        if row is None:
            key = variable[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
            read.wrong.append(_unknown(key, origin, list(read.rows)))
        else:
            read.take(row, environ[variable], origin)


def _read_overrides(overrides: Sequence[str], read: _Read) -> None:
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals:
            read.wrong.append(f"{key} (command line): write it as section.key=value")
        elif key not in read.rows:
            read.wrong.append(_unknown(key, "command line", list(read.rows)))
        else:
            read.take(read.rows[key], text, "command line")


_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def _value(type_name: str, text: str) -> Any:
    """Text as the leaf's own type; ranges are checked with everything else, later."""
    match type_name:
        case "boolean":
            return _BOOLEANS[text.strip().lower()]
        case "integer":
            return int(text)
        case "number":
            return float(text)
        case "list" if text.lstrip().startswith("["):
            return json.loads(text)
        case "list":
            return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _refusal(row: SettingRow, given: _Given) -> str:
    value = "(not shown)" if row.secret else _shown(given.value)
    return f"{row.key} ({given.origin}): got {value}, allowed is {row.allowed}"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _unknown(key: str, origin: str, known: Sequence[str]) -> str:
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "`voice-agent config` lists the settings"
    return f"{key} ({origin}): no such setting; {hint}"
