"""`voice-agent keys`: made, listed, removed, and what is said of it."""

import json
import os
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.config import load_config
from agent.keys import given_key, matching, read_keys

DAY_S = 86_400


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("VOICE_AGENT__")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own" / "keys.jsonl"


def run(file: Path, *line: str) -> int:
    return main(["keys", *line, "--file", str(file)])


def test_a_key_is_printed_once_and_kept_as_a_hash(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = "--max-calls 2 --max-chats 3 --requests-per-minute 90 --voices anna,ben --expires 30d"
    assert run(file, "add", "web", *limits.split()) == 0
    said = capsys.readouterr()
    text = said.out.strip()
    assert said.out == f"{text}\n" and text.startswith("va_") and text not in said.err
    (kept,) = read_keys(file)
    assert matching(text, [kept]) == [kept] and text not in file.read_text()
    assert (kept.name, kept.max_calls, kept.max_chats) == ("web", 2, 3)
    assert kept.requests_per_minute == 90
    assert kept.voices == ("anna", "ben")
    assert kept.created_at is not None and kept.expires_at == kept.created_at + 30 * DAY_S
    assert abs(kept.created_at - time.time()) < 60
    assert run(file, "list") == 0
    listed = capsys.readouterr().out
    assert "web" in listed and "anna,ben" in listed
    assert text not in listed and kept.sha256 not in listed


def test_a_voice_that_is_not_there_is_told_and_kept(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--set", f"voices.folder={tmp_path}"]
    assert run(file, "add", "all", *folder) == 0
    assert run(file, "add", "one", "--voices", "clara", *folder) == 0
    assert "no voice" not in capsys.readouterr().err
    assert run(file, "add", "web", "--voices", "nobody,mei", *folder) == 0
    said = capsys.readouterr()
    assert "there is no voice 'nobody' yet" in said.err and "clara, james, mei" in said.err
    assert said.err.count("no voice") == 1 and said.out.startswith("va_")
    assert read_keys(file)[-1].voices == ("nobody", "mei")


def test_a_key_that_is_removed_is_gone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "remove", "web") == 1
    assert run(file, "add", "web") == 0 and run(file, "add", "web") == 1
    assert "called web already" in capsys.readouterr().err
    assert run(file, "remove", "web") == 0 and read_keys(file) == ()
    assert run(file, "remove", "web") == 1
    assert run(file, "list") == 0
    assert "There is no key" in capsys.readouterr().err


def test_a_date_is_good_to_its_end_and_what_is_over_is_shown_so(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, "add", "long", "--expires", "2999-12-31") == 0
    (kept,) = read_keys(file)
    assert kept.expires_at is not None and kept.expires_at % DAY_S == 0
    line = json.loads(file.read_text()) | {"expires_at": 1_000_000_000}
    file.write_text(json.dumps(line))
    capsys.readouterr()
    assert run(file, "list") == 0
    assert "2001-09-09 01:46Z (over)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["two words"], "a key's name has"),
        (["web", "--max-calls", "0"], "--max-calls: got 0"),
        (["web", "--max-chats", "1001"], "--max-chats: got 1001"),
        (["web", "--requests-per-minute", "9999999"], "--requests-per-minute: got 9999999"),
        (["web", "--voices", ","], "--voices"),
        (["web", "--expires", "soon"], "--expires: 'soon'"),
        (["web", "--expires", "2001-01-01"], "--expires: 2001-01-01 is over"),
        (["web", "--expires", "9999-12-31"], "--expires"),
        (["web", "--no-file", "--max-calls", "3"], "--no-file"),
        (["web", "--no-file", "--max-chats", "3"], "--no-file"),
    ],
)
def test_what_is_wrong_is_one_line_and_no_key(
    file: Path, capsys: pytest.CaptureFixture[str], line: list[str], said: str
) -> None:
    assert run(file, "add", *line) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and len(captured.err.splitlines()) == 1
    assert not file.exists()


def test_a_key_for_the_settings_leaves_no_file(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, "add", "web", "--no-file") == 0
    said = capsys.readouterr()
    assert not file.exists()
    assignment = next(line for line in said.err.splitlines() if line.startswith("VOICE_AGENT__"))
    variable, _, value = assignment.partition("=")
    (kept,) = load_config(None, {variable: value}).auth.keys
    assert matching(said.out.strip(), [given_key(kept)]) == [given_key(kept)]
    assert main(["keys", "list", "--file", str(file), "--set", f"auth.keys={value}"]) == 0
    assert "settings" in capsys.readouterr().out


def test_without_a_file_named_it_lies_in_the_data_folder(tmp_path: Path) -> None:
    assert main(["keys", "add", "web", "--set", f"server.data_folder={tmp_path}"]) == 0
    assert len(read_keys(tmp_path / "keys.jsonl")) == 1
