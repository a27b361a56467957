"""The README says what is so: its table, commands, flags, settings and paths are checked."""

import re
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.config import markdown_table, settings_table
from bench.quant_table import quant_table
from bench.table import table

ROOT = Path(__file__).resolve().parent.parent
MARKER = "<!-- config table -->"
FIGURES = "<!-- figures -->"
QUANTISATION = "<!-- quantisation -->"
COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/voice-agent serve",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest",
)
FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|wav|js|html|css|png|svg|json)")


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def code(readme: str) -> list[str]:
    """Everything that stands as code: the lines of blocks, and what is between backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", readme, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", prose)


def _flags(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags in the help of one command."""
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0, f"there is no command {command}"
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


def test_the_table_of_settings_is_the_generated_one(readme: str) -> None:
    assert readme.count(MARKER) == 2
    table = readme.split(MARKER)[1].strip()
    assert table == markdown_table().strip(), "paste what `voice-agent config` prints"


def test_the_figures_are_those_of_the_kept_runs(readme: str) -> None:
    runs = sorted((ROOT / "bench" / "results").glob("*.jsonl"))
    assert runs, "keep what the benchmarks print with --json in bench/results"
    assert readme.count(FIGURES) == 2
    shown = readme.split(FIGURES)[1].strip()
    assert shown == table(runs).strip(), "paste what `python -m bench.table` prints"


def test_what_fewer_bits_bring_is_that_of_the_kept_runs(readme: str) -> None:
    runs = sorted((ROOT / "bench" / "results").glob("h200-*.jsonl"))
    assert readme.count(QUANTISATION) == 2
    shown = readme.split(QUANTISATION)[1].strip()
    assert shown == quant_table(runs), "paste what `python -m bench.quant_table` prints"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_of_the_two_commands_is_a_line_to_paste(readme: str, command: str) -> None:
    assert command in readme.splitlines()


def test_every_command_and_its_flags_exist(
    code: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mentioned = [
        (found["command"], found["rest"])
        for text in code
        for found in re.finditer(
            r"\bvoice-agent (?P<command>(voices |keys )?[a-z]+)(?P<rest>[^&|;]*)", text
        )
    ]
    assert {command for command, _ in mentioned} >= {"serve", "doctor", "config"}
    for command, rest in mentioned:
        known = _flags(command, capsys)
        assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= known, f"{command}{rest}"


def test_every_flag_that_stands_alone_is_one_of_ours(
    code: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = ("serve", "doctor", "chat", "bench", "config")
    known = set().union(*(_flags(command, capsys) for command in commands))
    assert {text.split()[0] for text in code if text.startswith("--")} <= known


def test_every_setting_that_is_mentioned_exists(code: list[str]) -> None:
    keys = {row.key for row in settings_table()}
    # `session.` is also how the protocol's own fields begin.
    sections = {key.partition(".")[0] for key in keys} - {"session"}
    pattern = re.compile(rf"(?<![\w./])((?:{'|'.join(sections)})\.[a-z_]+)(?=[=`\s]|$)")
    mentioned = {found for text in code for found in pattern.findall(text)}
    assert mentioned <= keys
    variables = {row.variable for row in settings_table()}
    named = {found for text in code for found in re.findall(r"VOICE_AGENT__[A-Z_]+", text)}
    assert named <= variables | {"VOICE_AGENT__SECTION__KEY"}


def test_every_path_that_is_mentioned_exists(readme: str, code: list[str]) -> None:
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()} - {".venv"}
    mentioned = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", readme))
    for text in code:
        token = text.strip()
        in_folder = "/" in token and token.split("/")[0] in folders
        if re.fullmatch(r"[\w./-]+", token) and (in_folder or FILE.fullmatch(token)):
            mentioned.add(token)
    assert mentioned, "a README that names no file is not read by this test"
    assert [path for path in sorted(mentioned) if not (ROOT / path).exists()] == []
