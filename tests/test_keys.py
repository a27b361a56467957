"""Keys and their file: what is kept, what is refused, and that nobody else can read it."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.api.client_secrets import SECRET_PREFIX
from agent.api.key_ring import KeyRefused, KeyRing
from agent.api.rates import Rates
from agent.config import effective_toml, load_config
from agent.errors import ConfigError, QuotaError
from agent.keys import (
    MOST_KEYS,
    ApiKey,
    KeyFileError,
    add_key,
    given_key,
    matching,
    new_key,
    read_keys,
    remove_key,
    sha256_of,
)
from tests.rig.keyed_server import HandClock

FULL = ApiKey("a", sha256_of("va_a"), 3, 2, 60, ("anna", "ben"), 1_900_000_000, 1_800_000_000)


# ---- the key itself ---------------------------------------------------------------------------


def test_a_key_has_256_random_bits_and_is_no_client_secret() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("va_") and not key.startswith(SECRET_PREFIX)
        # Base64 has 6 bits in a character.
        assert len(key.removeprefix("va_")) * 6 >= 256
        assert key.isascii() and not set(key) & set(" ,;:\"'\\/=")


def test_every_hash_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [ApiKey(name, sha256_of(f"va_{name}")) for name in "abcd"]
    compared: list[str] = []

    def compare(one: str, other: str) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    for key, found in (("va_a", known[:1]), ("va_d", known[3:]), ("va_x", []), ("\ud800", [])):
        compared.clear()
        assert matching(key, known) == found
        assert compared == [each.sha256 for each in known]


# ---- the file ---------------------------------------------------------------------------------


def test_what_is_kept_comes_back_and_holds_no_key(tmp_path: Path) -> None:
    path, text = tmp_path / "deep" / "keys.jsonl", new_key()
    plain = ApiKey("b@host.example", sha256_of(text))
    add_key(path, FULL)
    add_key(path, plain)
    assert read_keys(path) == (FULL, plain)
    assert text not in path.read_text() and sha256_of(text) in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    remove_key(path, "a")
    assert read_keys(path) == (plain,)
    assert [each.name for each in path.parent.iterdir()] == ["keys.jsonl"], "no drafts stay"


def test_a_name_is_taken_once_and_a_link_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "keys.jsonl", tmp_path / "link"
    link.symlink_to(path)
    add_key(link, FULL)
    assert link.is_symlink() and read_keys(path) == (FULL,)
    with pytest.raises(KeyFileError, match="called a already"):
        add_key(path, FULL)
    with pytest.raises(KeyFileError, match="no key is called 'b'"):
        remove_key(path, "b")


def test_of_changes_at_a_time_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_key(path, ApiKey(f"k{n}", sha256_of(str(n)))), range(40)))
    assert {key.name for key in read_keys(path)} == {f"k{n}" for n in range(40)}


LINE = {"name": "a", "sha256": sha256_of("x")}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("va_secret", "is no JSON object"),
        ("[1]", "is no JSON object"),
        ("[" * 10_000, "is no JSON object"),
        ("\xff", "is no JSON object"),
        (json.dumps({"name": "a"}), "'sha256'"),
        (json.dumps(LINE | {"sha256": "va_secret"}), "'sha256'"),
        (json.dumps(LINE | {"name": "two words"}), "'name'"),
        (json.dumps(LINE | {"name": "x" * 65}), "'name'"),
        (json.dumps(LINE | {"key": "va_secret"}), "fields that are none of"),
        (json.dumps(LINE | {"max_calls": 0}), "'max_calls'"),
        (json.dumps(LINE | {"max_calls": True}), "'max_calls'"),
        (json.dumps(LINE | {"max_calls": "va_secret"}), "'max_calls'"),
        (json.dumps(LINE | {"max_chats": 1001}), "'max_chats'"),
        (json.dumps(LINE | {"requests_per_minute": 1.5}), "'requests_per_minute'"),
        (json.dumps(LINE | {"expires_at": -1}), "'expires_at'"),
        (json.dumps(LINE | {"voices": []}), "'voices'"),
        (json.dumps(LINE | {"voices": "anna"}), "'voices'"),
        (json.dumps(LINE | {"voices": [1]}), "'voices'"),
    ],
)
def test_a_wrong_line_is_named_and_not_repeated(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "keys.jsonl"
    path.write_text(f"{json.dumps(LINE | {'name': 'good'})}\n\n{line}\n", encoding="latin-1")
    with pytest.raises(KeyFileError) as refused:
        read_keys(path)
    assert "line 3" in str(refused.value) and said in str(refused.value)
    assert "secret" not in str(refused.value)
    with pytest.raises(KeyFileError):
        add_key(path, FULL)
    assert line in path.read_text(encoding="latin-1"), "nothing of a broken file is thrown away"


def test_a_file_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    lines = [json.dumps({"name": f"k{n}", "sha256": sha256_of(str(n))}) for n in range(MOST_KEYS)]
    path.write_text("\n".join(lines))
    assert len(read_keys(path)) == MOST_KEYS
    with pytest.raises(KeyFileError, match="more than 1000"):
        add_key(path, FULL)


# ---- the settings -----------------------------------------------------------------------------


def test_keys_of_the_settings_are_hashes_that_nothing_shows() -> None:
    good = f"web:{sha256_of('va_x')}"
    config = load_config(None, {"VOICE_AGENT__AUTH__KEYS": good}, [])
    assert [given_key(text) for text in config.auth.keys] == [ApiKey("web", sha256_of("va_x"))]
    assert sha256_of("va_x") not in effective_toml(config)
    assert 'keys = ["web:***"]' in effective_toml(config)
    for wrong in ("va_secret", "web:va_secret", f"two words:{sha256_of('x')}", good.upper()):
        with pytest.raises(ConfigError) as refused:
            load_config(None, {}, [f"auth.keys={wrong}"])
        assert wrong not in str(refused.value) and "keys add NAME --no-file" in str(refused.value)


def test_a_key_of_the_settings_and_one_of_the_file_cannot_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    add_key(path, FULL)
    settings = [f"auth.keys=a:{sha256_of('va_x')}", f"auth.keys_file={path}"]
    with pytest.raises(ConfigError, match="two keys are called a"):
        KeyRing.of(load_config(None, {}, settings))
    other = [f"auth.keys=b:{sha256_of('va_x')}", *settings[1:]]
    ring = KeyRing.of(load_config(None, {}, other), HandClock())
    assert ring.holder_of("va_x").name == "b" and ring.holder_of("va_a").name == "a"
    with pytest.raises(KeyRefused):
        ring.holder_of("va_b")


def test_a_file_that_others_can_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.jsonl"
    add_key(path, FULL)
    KeyRing((), path)
    assert caplog.text == ""
    path.chmod(0o644)
    KeyRing((), path)
    assert "open to others" in caplog.text


# ---- how often --------------------------------------------------------------------------------


def test_a_bucket_fills_again_and_holds_no_more_than_a_minute() -> None:
    clock = HandClock()
    rates = Rates(clock)
    for _ in range(3):
        for _ in range(6):
            rates.take("a", 6)
        with pytest.raises(QuotaError) as refused:
            rates.take("a", 6)
        assert refused.value.retry_after_s == pytest.approx(10)
        clock.passed_s += 3600
    rates.take("b", 1)


def test_buckets_are_bounded_and_the_oldest_goes_first() -> None:
    rates = Rates(HandClock(), most=3)
    for name in ("a", "b", "c", "a", "d"):
        rates.take(name, 2)
    assert len(rates) == 3
    with pytest.raises(QuotaError):
        rates.take("a", 2)
    rates.take("b", 1)
