"""The command line: `voice-agent serve`, `bench`, `doctor`, `chat`, `voices`, `keys`, `config`.

Exit status: 0 when all went well, 1 when something failed while running, 2 for a wrong setting or
a wrong command line. What is costly to import is imported by the command that needs it.
"""

import argparse
import errno
import importlib
import importlib.util
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent import __version__
from agent.errors import AgentError, ConfigError

if TYPE_CHECKING:
    from agent.config import Config

EXIT_FAILED = 1
EXIT_USAGE = 2

_ADDRESS_ERRORS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default); the exit status comes back."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except ConfigError as error:
        return _complain(str(error), EXIT_USAGE)
    except AgentError as error:
        return _complain(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_FAILED


# ---- commands ---------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    _start_logging(config.logging.level)
    serve: Callable[[Config], int] = importlib.import_module("agent.api.server").serve
    try:
        return serve(config)
    except socket.gaierror as error:
        message = f"server.host: {config.server.host!r} is no address here: {error.strerror}"
        return _complain(message, EXIT_FAILED)
    except OSError as error:
        if error.errno not in _ADDRESS_ERRORS:
            raise
        return _complain(_address_complaint(config, error.errno), EXIT_FAILED)


def _address_complaint(config: "Config", number: int) -> str:
    address = f"{config.server.host} port {config.server.port}"
    if number == errno.EADDRINUSE:
        return f"{address} is taken: stop what uses it, or choose another with --port"
    return f"cannot listen on {address}: {os.strerror(number)}"


def _doctor(arguments: argparse.Namespace) -> int:
    doctor = importlib.import_module("agent.doctor")
    checks = doctor.examine(_config(arguments))
    sys.stdout.write(doctor.as_json(checks) if arguments.json else doctor.as_text(checks))
    code: int = doctor.exit_code(checks)
    return code


def _print_config(arguments: argparse.Namespace) -> int:
    from agent.config import effective_toml, markdown_table

    config = _config(arguments)
    sys.stdout.write(effective_toml(config) if arguments.effective else markdown_table())
    return 0


# ---- from arguments to settings ---------------------------------------------------------------

_FLAGS = {
    "engine": "engine.name",
    "host": "server.host",
    "port": "server.port",
    "log_level": "logging.level",
    "model": "model.source",
}
"""Flags of the commands and the settings that they stand for; they win over --set."""
_SWITCHES = {"http": "server.http_only=true", "no_auth": "auth.required=false"}


def _config(arguments: argparse.Namespace) -> "Config":
    from agent.config import load_config

    overrides = list(arguments.set)
    for flag, key in _FLAGS.items():
        value = getattr(arguments, flag, None)
        if value is not None:
            overrides.append(f"{key}={value}")
    if files := getattr(arguments, "tools", None):
        overrides.append(f"tools.files={json.dumps(files)}")
    for flag, override in _SWITCHES.items():
        if getattr(arguments, flag, False):
            overrides.append(override)
    return load_config(arguments.config, os.environ, overrides)


def _start_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if level != "debug":
        # A line for every pair of addresses that is tried, for every request of a download.
        for chatty in ("aioice", "httpx", "httpx2"):
            logging.getLogger(chatty).setLevel(logging.WARNING)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"voice-agent: {message}\n")
    return code


# ---- the grammar ------------------------------------------------------------------------------


class _CommandParser(argparse.ArgumentParser):
    """Ends its help with where the settings stand: some hundred lines would hide the flags."""

    sections: tuple[str, ...] = ()
    """Those whose settings the command goes by; none: any."""

    def format_help(self) -> str:
        lines = ["Every setting, with its default and range: `voice-agent config`."]
        if self.sections:
            named = ", ".join(f"[{section}]" for section in self.sections)
            lines.append(f"Those of {named} count here.")
        return f"{super().format_help()}\n{' '.join(lines)}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voice-agent",
        description="A real-time voice agent that speaks OpenAI Realtime.",
        epilog="Every setting also comes from a TOML file (--config), from the environment "
        "(VOICE_AGENT__SECTION__KEY) and from --set; `voice-agent config` lists them.",
    )
    parser.add_argument("--version", action="version", version=f"voice-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_CommandParser)
    _add_serve(commands)
    doctor = commands.add_parser("doctor", help="try out everything that a call needs")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    _add_model(doctor)
    _add_settings(doctor)
    doctor.set_defaults(command=_doctor)
    _add_chat(commands)
    _add_voices(commands)
    importlib.import_module("agent.keys_command").add_to(commands, _add_settings)
    _add_bench(commands)
    config = commands.add_parser("config", help="list every setting as a Markdown table")
    config.add_argument(
        "--effective", action="store_true", help="print what is in force as TOML, less secrets"
    )
    _add_settings(config)
    config.set_defaults(command=_print_config)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    serve = commands.add_parser("serve", help="take calls")
    serve.add_argument("--engine", metavar="NAME", help="what answers (engine.name)")
    _add_model(serve)
    serve.add_argument("--host", help="address to listen on (server.host)")
    serve.add_argument("--port", help="TCP port (server.port)")
    serve.add_argument(
        "--tools",
        action="append",
        metavar="FILE",
        help="Python file or module with functions (@tool); may be repeated (tools.files)",
    )
    serve.add_argument("--http", action="store_true", help="never use TLS (server.http_only)")
    serve.add_argument(
        "--no-auth",
        action="store_true",
        help="without any API key, serve whoever reaches it (auth.required)",
    )
    serve.add_argument("--log-level", metavar="LEVEL", help="least serious line (logging.level)")
    _add_settings(serve)
    serve.set_defaults(command=_serve)


def _add_chat(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    if importlib.util.find_spec("agent.chat_command") is not None:
        importlib.import_module("agent.chat_command").add_to(commands, _add_settings)


def _add_voices(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    if importlib.util.find_spec("agent.voices_command") is not None:
        importlib.import_module("agent.voices_command").add_to(commands, _add_settings)


def _add_bench(commands: "argparse._SubParsersAction[_CommandParser]") -> None:
    importlib.import_module("agent.bench_command").add_to(commands, _add_settings)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="the checkpoint: a folder or owner/name (model.source)",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="set one setting; may be repeated, the last one wins",
    )


if __name__ == "__main__":
    sys.exit(main())
