"""Which files a typed line names."""

from pathlib import Path

import pytest

from agent.media.mentioned import Named, find_named


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.jpg", "my dog.jpg", "b's.wav", "notes", "my", "setup.py", "über.png"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def shown(line: str, folder: Path) -> list[str]:
    """Texts as they are, files as <name>, those that are missing as <!name>."""
    return [
        f"<{'' if part.is_there else '!'}{part.path.name}>" if isinstance(part, Named) else part
        for part in find_named(line.replace("FOLDER", str(folder)))
    ]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("describe FOLDER/a.jpg", ["describe", "<a.jpg>"]),
        ("describe FOLDER/a.jpg please", ["describe", "<a.jpg>", "please"]),
        ("what is in FOLDER/a.jpg?", ["what is in", "<a.jpg>"]),
        ("look (FOLDER/a.jpg), then say", ["look (", "<a.jpg>", "), then say"]),
        ("FOLDER/a.jpg", ["<a.jpg>"]),
        ("FOLDER/a.jpg FOLDER/über.png", ["<a.jpg>", "<über.png>"]),
        ("'FOLDER/my dog.jpg'", ["<my dog.jpg>"]),
        ("'FOLDER/my dog.jpg' 'FOLDER/a.jpg' both", ["<my dog.jpg>", "<a.jpg>", "both"]),
        ('see "FOLDER/my dog.jpg", ok', ["see", "<my dog.jpg>", ", ok"]),
        ("see FOLDER/my\\ dog.jpg ok", ["see", "<my dog.jpg>", "ok"]),
        ("see FOLDER/my dog.jpg ok", ["see", "<my dog.jpg>", "ok"]),
        ('"FOLDER/b\'s.wav" loud?', ["<b's.wav>", "loud?"]),
        ("FOLDER/b\\'s.wav loud?", ["<b's.wav>", "loud?"]),
        ("file://FOLDER/my%20dog.jpg now", ["<my dog.jpg>", "now"]),
        ("file://localhostFOLDER/a.jpg", ["<a.jpg>"]),
        ("@a.jpg and @'my dog.jpg'", ["<a.jpg>", "and", "<my dog.jpg>"]),
        ("@notes tell", ["<notes>", "tell"]),
        ("~/a.jpg ./a.jpg", ["<a.jpg>", "<a.jpg>"]),
        ("a.jpg", ["<a.jpg>"]),
        ("my notes say setup.py is old", ["my notes say setup.py is old"]),
        ("it's a dog's life", ["it's a dog's life"]),
        ("don't look at 'things' or \"words\"", ["don't look at 'things' or \"words\""]),
        ("an unclosed 'quote and \"another", ["an unclosed 'quote and \"another"]),
        ("FOLDER/absent.jpg please", ["<!absent.jpg>", "please"]),
        ("@absent.png", ["<!absent.png>"]),
        ("file:///absent%20too.mp4", ["<!absent too.mp4>"]),
        ("mail me @home or and/or /etc /help", ["mail me @home or and/or /etc /help"]),
        ("a picture like absent.jpg", ["a picture like absent.jpg"]),
        ("http://example.org/a.jpg", ["http://example.org/a.jpg"]),
        ("~nobody_here/a.jpg", ["~nobody_here/a.jpg"]),
        ("", []),
        ("   ", []),
        ("\\", ["\\"]),
        ("/" + "x" * 5000, ["/" + "x" * 5000]),
    ],
)
def test_files_in_a_line(folder: Path, line: str, parts: list[str]) -> None:
    expected = [part.replace("FOLDER", str(folder)) for part in parts]
    assert shown(line, folder) == expected


def test_nothing_of_a_line_without_files_is_lost(folder: Path) -> None:
    line = "  two  spaces, a\ttab: (brackets) and 50% \\ of @all; ok?  "
    assert find_named(line) == [line.strip()]
