"""Functions out of files and modules, and what is wrong with those that cannot be loaded."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.attendants.tool_files import load_tools
from agent.errors import ConfigError

Write = Callable[[str, str], str]
HEAD = "from agent.tools import tool\n"
SHOP = HEAD + "@tool\ndef opening_hours(day: str) -> str:\n    return 'nine'\n"


@pytest.fixture(autouse=True)
def imports_forgotten() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return written


def names(*files: str) -> list[str]:
    return [one.name for one in load_tools(files)]


def refusal(*files: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_tools(files)
    return str(caught.value)


def test_a_file_s_functions_come_in_order_and_what_lies_beside_it_can_be_imported(
    write: Write,
) -> None:
    write("shelves.py", HEAD + "@tool\ndef stock(item: str) -> int:\n    return 3\n")
    shop = write("shop.py", "from shelves import stock\n" + SHOP + "def closes() -> None: ...\n")
    assert names(shop) == ["stock", "opening_hours"]


def test_a_module_is_named_as_it_is_imported(write: Write, tmp_path: Path) -> None:
    write("front_desk.py", SHOP)
    sys.path.append(str(tmp_path))
    assert names("front_desk") == ["opening_hours"]


def test_a_file_runs_once_however_often_it_is_named(write: Write, tmp_path: Path) -> None:
    counting = f"with open({str(tmp_path / 'runs')!r}, 'a') as runs: runs.write('x')\n"
    shop = write("shop.py", SHOP + counting)
    assert names(shop, shop) == ["opening_hours"]
    assert names(shop) == ["opening_hours"]
    assert (tmp_path / "runs").read_text() == "x"


def test_files_of_one_name_in_two_folders_are_two(write: Write, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = write("shop.py", SHOP)
    other = write("other/shop.py", SHOP.replace("opening_hours", "closing_hours"))
    assert names(one, other) == ["opening_hours", "closing_hours"]


def test_two_functions_of_one_name_are_refused_with_both_places(write: Write) -> None:
    one, other = write("one.py", SHOP), write("other.py", SHOP)
    told = refusal(one, other)
    assert "two functions 'opening_hours'" in told
    assert one in told
    assert other in told


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "offers nothing; write @tool over a function"),
        (HEAD + "@tool\ndef hours(day) -> str: ...\n", "parameter 'day' has no type"),
        ("import no_such_library_here\n", "ModuleNotFoundError: No module named"),
        ("\n\nx = 1 / 0\n", r"ZeroDivisionError: division by zero \(shop.py, line 3\)"),
        ("def hours(:\n", r"SyntaxError: .*shop.py, line 1"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_reason(
    write: Write, text: str, fault: str
) -> None:
    shop = write("shop.py", text)
    told = refusal(shop)
    assert told.startswith(f"tools.files: {shop}")
    assert re.search(fault, told), told


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(str(tmp_path / "none.py"))
    assert "there is no such file" in refusal(str(tmp_path))
    assert "ModuleNotFoundError" in refusal("no_such_module_here")


def test_too_many_functions_are_refused(write: Write) -> None:
    many = "".join(f"@tool\ndef f{n}() -> None: ...\n" for n in range(129))
    assert "129 functions; at most 128" in refusal(write("many.py", HEAD + many))


def test_the_example_can_be_served() -> None:
    example = Path(__file__).resolve().parent.parent / "examples" / "shop_tools.py"
    offered = load_tools([str(example)])
    assert [one.name for one in offered] == ["opening_hours", "stock", "leave_note"]
    assert all(one.definition.description for one in offered)
