"""The command line: exit status, one clear line for each mistake, and a help that is quick."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import __version__
from agent.__main__ import main
from agent.config import Config, markdown_table
from agent.errors import CapacityError

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "agent"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("VOICE_AGENT__")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What `serve` was called with."""
    calls: list[Config] = []

    def serve(config: Config) -> int:
        calls.append(config)
        return 0

    monkeypatch.setattr("agent.api.server.serve", serve)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    return calls


# ---- help -------------------------------------------------------------------------------------


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom agent.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'aiortc', 'aiohttp', 'av', 'onnxruntime', 'numpy', 'pydantic'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for command in ("serve", "doctor", "config"):
        assert command in result.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"voice-agent {__version__}\n"


@pytest.mark.parametrize(
    "command", ["serve", "doctor", "chat", "bench", "config", "keys", "keys add", "voices say"]
)
def test_a_help_is_short_and_says_where_the_settings_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 45
    assert "--config FILE" in text or command == "keys"
    assert "`voice-agent config`" in text.splitlines()[-1]


@pytest.mark.parametrize("line", [[], ["sing"], ["serve", "--loud"]])
def test_a_wrong_command_line_is_exit_2(line: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2


# ---- settings ---------------------------------------------------------------------------------


def test_flags_of_serve_stand_for_settings(
    served: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[calls]\nmax_calls = 2\n[server]\nport = 1\n[logging]\nlevel = 'error'\n")
    monkeypatch.setenv("VOICE_AGENT__CALLS__WATCHDOG_S", "7")
    line = "serve --engine echo --model a/b --host 127.0.0.2 --port 8100 --http --log-level warning"
    assert main([*line.split(), "--config", str(file), "--set", "session.voice=a"]) == 0
    config = served[0]
    assert (config.engine.name, config.model.source) == ("echo", "a/b")
    assert (config.server.host, config.server.port) == ("127.0.0.2", 8100)
    assert config.server.http_only is True
    assert config.logging.level == "warning"
    assert (config.calls.max_calls, config.calls.watchdog_s) == (2, 7.0)
    assert config.session.voice == "a"


def test_serve_without_flags_leaves_everything_at_its_default(served: list[Config]) -> None:
    assert main(["serve"]) == 0
    assert served == [Config()]


@pytest.mark.parametrize("command", ["serve", "doctor", "config"])
def test_a_wrong_setting_is_one_line_and_exit_2(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--set", "server.port=99999"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "voice-agent: server.port (command line): got 99999, allowed is integer: 0 to 65535\n"
    )


def test_errors_of_our_own_are_exit_1_and_an_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Config]
) -> None:
    def full(_: Config) -> int:
        raise CapacityError("no room", retry_after_s=1)

    def interrupted(_: Config) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.api.server.serve", full)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "voice-agent: no room\n"
    monkeypatch.setattr("agent.api.server.serve", interrupted)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == ""


# ---- config and doctor ------------------------------------------------------------------------


def test_config_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    assert capsys.readouterr().out == markdown_table()


def test_config_effective_prints_what_is_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--effective", "--set", "server.port=4242"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["server"]["port"] == 4242


def test_doctor_prints_text_or_json_and_fails_with_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.doctor.check_torch", list)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["doctor", "--set", f"server.port={port}"]) == 1
    assert re.search(r"^failure +port +", capsys.readouterr().out, re.MULTILINE)
    assert main(["doctor", "--json", "--set", "server.port=0"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


# ---- the real server --------------------------------------------------------------------------


@contextmanager
def started(*flags: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, "serve", "--engine", "echo", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_it_is_answers_and_stops_cleanly(stop: signal.Signals) -> None:
    with started("--port", "0") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", first)
        assert found, first
        with urllib.request.urlopen(f"{found[0]}/healthz", timeout=60) as answer:
            assert json.load(answer)["engine"] == "echo"
        process.send_signal(stop)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in errors


def test_a_taken_port_is_one_line_and_exit_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started("--port", str(port)) as process:
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert str(port) in errors
    assert "--port" in errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "x"), "cannot listen on 127.0.0.1 port 8006: Permission"),
        (socket.gaierror(-2, "Name or service not known"), "server.host: '127.0.0.1' is no addr"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    served: list[Config],
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    line: str,
) -> None:
    def refuse(_: Config) -> int:
        raise error

    monkeypatch.setattr("agent.api.server.serve", refuse)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.startswith(f"voice-agent: {line}")


def test_other_errors_of_the_system_are_not_taken_for_a_wrong_address(
    monkeypatch: pytest.MonkeyPatch, served: list[Config]
) -> None:
    def refuse(_: Config) -> int:
        raise FileNotFoundError(errno.ENOENT, "a bug")

    monkeypatch.setattr("agent.api.server.serve", refuse)
    with pytest.raises(FileNotFoundError):
        main(["serve"])
