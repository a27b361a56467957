"""Settings: one default each, three sources in order, and errors that say what to change."""

import tomllib
from pathlib import Path

import pytest

from agent.config import (
    Config,
    data_folder,
    effective_toml,
    load_config,
    markdown_table,
    settings_table,
)
from agent.errors import ConfigError
from agent.types import SessionSettings, TurnDetection


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def refusal(file: Path | None, environ: dict[str, str], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ, overrides)
    return str(caught.value)


# ---- defaults and order -----------------------------------------------------------------------


def test_nothing_given_is_the_default_of_everything() -> None:
    config = load_config(None, {"PATH": "/bin", "VOICE_AGENT_REQUIRE_ALL": "1"})
    assert config == Config()
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8006)
    assert config.calls.max_calls == 16
    assert config.server.cors_origins == ("*",)


def test_a_call_starts_with_the_defaults_of_its_own_type() -> None:
    assert Config().session_settings("echo") == SessionSettings(model="echo")


def test_configured_defaults_reach_a_call() -> None:
    config = load_config(None, {}, ["session.voice=anna", "turns.silence_duration_ms=800"])
    settings = config.session_settings("echo")
    assert settings.voice == "anna"
    assert settings.turn_detection == TurnDetection(silence_duration_ms=800)


def test_environment_beats_file_and_flags_beat_both(file: Path) -> None:
    file.write_text("[server]\nport = 1001\nhost = '10.0.0.1'\n[calls]\nmax_calls = 3\n")
    environ = {"VOICE_AGENT__SERVER__PORT": "1002", "VOICE_AGENT__SERVER__HOST": "10.0.0.2"}
    config = load_config(file, environ, ["server.port=1003"])
    assert (config.server.port, config.server.host) == (1003, "10.0.0.2")
    assert config.calls.max_calls == 3


def test_the_last_flag_wins() -> None:
    assert load_config(None, {}, ["calls.max_calls=2", "calls.max_calls=5"]).calls.max_calls == 5


# ---- text becomes the type of the setting -----------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("server.http_only=yes", True),
        ("server.http_only=0", False),
        ("calls.watchdog_s=2.5", 2.5),
        ("calls.watchdog_s=3", 3.0),
        ("session.instructions=Say a=b, always", "Say a=b, always"),
        ("session.instructions=", ""),
        ("rtc.addresses=127.0.0.1, ::1", ("127.0.0.1", "::1")),
        ('rtc.addresses=["192.0.2.1"]', ("192.0.2.1",)),
        ("rtc.addresses=", ()),
        ("server.cors_origins=https://example.org", ("https://example.org",)),
        (
            "rtc.ice_servers=stun:a.example:3478,turn:me:p@ss:word@b.example:3478",
            ("stun:a.example:3478", "turn:me:p@ss:word@b.example:3478"),
        ),
    ],
)
def test_text_is_parsed_by_the_type_of_the_setting(override: str, value: object) -> None:
    section, name = override.partition("=")[0].split(".")
    assert getattr(getattr(load_config(None, {}, [override]), section), name) == value


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ['port = "8006"', "port = true", "port = 8006.5", "port = [1]", "port = 65536", "port = -1"],
)
def test_a_file_is_held_to_the_exact_type_and_range(file: Path, line: str) -> None:
    file.write_text(f"[server]\n{line}\n")
    message = refusal(file, {})
    given = line.partition("= ")[2]
    assert message == f"server.port (file {file}): got {given}, allowed is integer: 0 to 65535"


@pytest.mark.parametrize("text", ["eighty", "", "1e3", "70000"])
def test_a_wrong_variable_is_named(text: str) -> None:
    message = refusal(None, {"VOICE_AGENT__SERVER__PORT": text})
    assert message == (
        f'server.port (environment variable VOICE_AGENT__SERVER__PORT): got "{text}", '
        "allowed is integer: 0 to 65535"
    ).replace('"70000"', "70000")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("server.http_only=maybe", "boolean"),
        ("calls.watchdog_s=nan", "number: 1 to 30"),
        ("calls.watchdog_s=0.5", "number: 1 to 30"),
        ("echo.canceller=aec4", 'text: "aec3" or "off"'),
        ("session.eagerness=1.01", "number: 0 to 1"),
        ("rtc.addresses=localhost", "list: IP addresses"),
        ("rtc.addresses=[1]", "list: IP addresses"),
        ("rtc.addresses=[", "list: IP addresses"),
        ("server.cors_origins=example.org", "list: "),
        ("server.cors_origins=https://example.org/page", "list: "),
        ("server.host=", "text: not empty"),
        ("session.language=x", "text: 2 to 64 characters"),
        ("session.voice=" + 257 * "x", "text: up to 256 characters"),
        ("calls.shutdown_s=8.1", "number: 0 to 8"),
    ],
)
def test_a_wrong_flag_is_named_with_what_is_allowed(override: str, allowed: str) -> None:
    key, _, text = override.partition("=")
    message = refusal(None, {}, override)
    assert message.startswith(f"{key} (command line): got ")
    assert f"allowed is {allowed}" in message
    assert text.strip("[") in message or text == "nan"


def test_every_wrong_setting_gets_its_line(file: Path) -> None:
    file.write_text("[server]\nport = -1\n[calls]\nmax_calls = 0\n")
    first, second = refusal(file, {}).splitlines()
    assert first.startswith("server.port")
    assert second.startswith("calls.max_calls")


def test_unknown_and_wrong_settings_of_all_sources_are_named_together(file: Path) -> None:
    file.write_text("[server]\nprot = 1\nport = -1\n[zebra]\nx = 1\n[calls]\nmax_callz = 1\n")
    environ = {"VOICE_AGENT__SERVER__HTTP_ONLY": "maybe", "VOICE_AGENT__CALLS__WATCHDOGS": "1"}
    lines = refusal(file, environ, "session.voice", "echo.canceler=off").splitlines()
    named = [line.partition(" (")[0] for line in lines]
    assert sorted(named) == [
        "calls.max_callz",
        "calls.watchdogs",
        "echo.canceler",
        "server.http_only",
        "server.port",
        "server.prot",
        "session.voice",
        "zebra",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1\n", "server.prot (file {}): no such setting; did you mean server."),
        ("[zebra]\nport = 1\n", "zebra (file {}): no such setting; "),
        ("port = 1\n", "port (file {}): no such setting; "),
        ("server = 1\n", "server (file {}): is a section, write [server]"),
        ("[server\n", "{}: not valid TOML: "),
    ],
)
def test_a_file_with_unknown_or_broken_parts_is_refused(
    file: Path, text: str, message: str
) -> None:
    file.write_text(text)
    assert refusal(file, {}).startswith(message.format(file))


def test_a_missing_file_is_refused(file: Path) -> None:
    assert refusal(file, {}) == f"{file}: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "variable",
    ["VOICE_AGENT__SERVER__PROT", "VOICE_AGENT__SERVER", "VOICE_AGENT__server__port"],
)
def test_an_unknown_variable_is_refused(variable: str) -> None:
    message = refusal(None, {variable: "1"})
    assert f"(environment variable {variable}): no such setting" in message


def test_a_flag_without_a_value_or_a_setting_is_refused() -> None:
    assert "write it as section.key=value" in refusal(None, {}, "server.port")
    assert "did you mean server.port?" in refusal(None, {}, "srver.port=1")


# ---- secrets ----------------------------------------------------------------------------------

ICE = "turn:me:hush@turn.example:3478"


@pytest.mark.parametrize("wrong", ["turn:me@x", "turn:host:1", "stun:u:p@x", "http://x", "stun:"])
def test_a_refused_ice_server_is_not_repeated(wrong: str) -> None:
    message = refusal(None, {}, f"rtc.ice_servers={ICE},{wrong}")
    assert message.startswith("rtc.ice_servers (command line): got (not shown), allowed is list: ")
    assert "hush" not in message


def test_effective_settings_read_back_the_same_less_secrets(file: Path) -> None:
    config = load_config(None, {}, [f"rtc.ice_servers={ICE}", 'session.instructions=Say "é\\"'])
    text = effective_toml(config)
    assert "hush" not in text
    assert tomllib.loads(text)["rtc"]["ice_servers"] == ["turn:me:***@turn.example:3478"]
    file.write_text(text, encoding="utf-8")
    again = load_config(file, {}, [f"rtc.ice_servers={ICE}"])
    assert again == config


# ---- the table --------------------------------------------------------------------------------


def test_the_table_holds_every_setting_with_its_default_and_a_description() -> None:
    rows = settings_table()
    settings = {
        f"{section}.{name}" for section, values in Config().model_dump().items() for name in values
    }
    assert {row.key for row in rows} == settings
    assert len(rows) == len(settings)
    for row in rows:
        section, name = row.key.split(".")
        assert tomllib.loads(f"x = {row.default}")["x"] == Config().model_dump(mode="json")[
            section
        ].get(name)
        assert row.description.endswith(".")


def test_every_default_may_also_be_given_as_text() -> None:
    given = {row.variable: row.default for row in settings_table() if row.type != "text"}
    assert load_config(None, given) == Config()


def test_the_markdown_table_has_four_columns_and_a_row_for_each_setting() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(settings_table())
    assert all(line.count(" | ") == 3 for line in lines[2:])
    assert "| `server.port` | `8006` | integer: 0 to 65535 | " in markdown_table()


@pytest.mark.parametrize(
    ("override", "environ", "folder"),
    [
        ("server.data_folder=/srv/voice", {"XDG_DATA_HOME": "/x"}, "/srv/voice"),
        ("server.data_folder=", {"XDG_DATA_HOME": "/x"}, "/x/voice-agent"),
        ("server.data_folder=", {}, "~/.local/share/voice-agent"),
        ("server.data_folder=~/voice", {}, "~/voice"),
    ],
)
def test_the_data_folder(override: str, environ: dict[str, str], folder: str) -> None:
    config = load_config(None, {}, [override])
    assert data_folder(config, environ) == Path(folder).expanduser()


TURNS = {"kind", "threshold", "prefix_padding_ms", "silence_duration_ms"}
"""What `session_settings` hands on of [turns]."""


def test_every_setting_is_read_by_somebody() -> None:
    folder = Path(__file__).resolve().parent.parent / "agent"
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in folder.rglob("*.py")
        if path.name not in ("settings.py", "config.py")
    )
    handed_on = "session_settings(" in text  # reads the sections [session] and [turns]
    for row in settings_table():
        section, _, name = row.key.partition(".")
        is_read = handed_on if section == "session" or name in TURNS else f".{name}" in text
        assert is_read, f"{row.key} is never read"
