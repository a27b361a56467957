"""Voices on the disk: ids and names, what is declared, damage, several at one folder."""

import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.errors import CapacityError, RequestError
from agent.vocoder.voice_store import StoredVoice, VoiceStore
from agent.voices_recording import Examined
from agent.voices_shelf import VoiceDetails, VoiceShelf, VoiceStorageError, checked_details
from tests.rig.voice_bench import CONSENT, spoken


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(tmp_path / "voices", tmp_path / "built_in")


def put(store: VoiceStore, name: str = "Anna", most: int = 64) -> StoredVoice:
    examined = Examined({"accepted": True, "findings": []}, spoken())
    return VoiceShelf(store, most).put(checked_details(name, CONSENT), examined)


@pytest.mark.parametrize(
    ("name", "voice_id"),
    [
        ("Zoë  Müller", "zoe-muller"),
        ("Bjørn", "bjorn"),
        ("Prepared", "prepared-2"),
        ("A/../b", "a-b"),
        ("x" * 80, "x" * 40),
    ],
)
def test_ids_come_of_names(store: VoiceStore, name: str, voice_id: str) -> None:
    assert put(store, name).id == voice_id


def test_names_of_any_script(store: VoiceStore) -> None:
    first = put(store, "安娜")
    assert first.id.startswith("voice-") and len(first.id) == 12 and first.name == "安娜"
    assert put(store, "Ольга").id != first.id
    again = put(store, "安娜")
    assert (again.id, again.name) == (f"{first.id}-2", "安娜 (2)")


@pytest.mark.parametrize(
    ("name", "consent", "language", "param"),
    [
        ("", CONSENT, "", "name"),
        ("a\x1b[2J", CONSENT, "", "name"),
        ("x" * 81, CONSENT, "", "name"),
        ("Anna", "yes", "", "consent"),
        ("Anna", " . ", "", "consent"),
        ("Anna", "... 1 2 3 !!! 。。。。", "", "consent"),
        ("Anna", CONSENT + "\x1b[2J", "", "consent"),
        ("Anna", CONSENT + "\udcff", "", "consent"),
        ("\udcff", CONSENT, "", "name"),
        ("\u2800", CONSENT, "", "name"),
        ("\u3164 \u3164", CONSENT, "", "name"),
        ("\u0301", CONSENT, "", "name"),
        ("a\u200b", CONSENT, "", "name"),
        ("a\u200d", CONSENT, "", "name"),
        ("\u200ca", CONSENT, "", "name"),
        ("\u202ea", CONSENT, "", "name"),
        ("Anna", CONSENT, "Klingon!", "language"),
    ],
)
def test_details_that_cannot_be_used(name: str, consent: str, language: str, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        checked_details(name, consent, language)
    assert raised.value.param == param


def test_names_are_composed_and_may_hold_what_joins_letters(store: VoiceStore) -> None:
    assert checked_details("Zoe\u0308", CONSENT).name == "Zo\u00eb"
    for name in ("می\u200cخواهم", "ක්\u200dරියා"):
        assert checked_details(name, CONSENT).name == name
    first = put(store, "Zo\u00eb")
    assert (first.name, put(store, "Zoe\u0308").name) == ("Zo\u00eb", "Zo\u00eb (2)")


def test_ids_that_mean_something_else_are_not_given_away(store: VoiceStore) -> None:
    examined = Examined({"accepted": True, "findings": []}, spoken())
    shelf = VoiceShelf(store, 64, frozenset({"alloy"}))
    added = shelf.put(checked_details("Alloy", CONSENT), examined)
    assert (added.id, added.name) == ("alloy-2", "Alloy")


def test_consent_may_be_declared_without_spaces() -> None:
    assert checked_details("安娜", "这是我本人的声音", "ZH").language == "zh"


@pytest.mark.parametrize(
    "facts",
    [
        "{",
        "[]",
        '{"created_at": "soon"}',
        '{"notes": 5}',
        '{"digest": "../../x"}',
        '{"duration_s": []}',
        "\x00",
    ],
)
def test_a_damaged_folder_is_passed_over_and_its_id_not_given_away(
    store: VoiceStore, facts: str
) -> None:
    folder = store.own / "anna"
    folder.mkdir(parents=True)
    (folder / "recording.wav").write_bytes(spoken())
    (folder / "voice.json").write_text(facts)
    assert store.voices() == ()
    assert put(store).id == "anna-2"
    assert (folder / "voice.json").read_text() == facts


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VoiceStorageError, match="cannot be kept in"):
        put(VoiceStore(tmp_path / "file" / "voices", tmp_path))


def test_a_voice_that_cannot_be_written_leaves_nothing(
    store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VoiceStorageError, match="No space left"):
        put(store)
    assert [path.name for path in store.own.iterdir()] == [".lock"] and store.voices() == ()


def test_what_cannot_be_written_down_leaves_nothing(store: VoiceStore) -> None:
    details = VoiceDetails("Anna", "This is \udcff mine.")
    with pytest.raises(UnicodeEncodeError):
        VoiceShelf(store, 64).put(details, Examined({"findings": []}, spoken()))
    assert [path.name for path in store.own.iterdir()] == [".lock"]


def test_a_lock_that_somebody_keeps_is_not_waited_for_for_ever(store: VoiceStore) -> None:
    put(store)
    descriptor = os.open(store.own / ".lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(CapacityError, match="somebody else"):
            VoiceShelf(store, 64, lock_s=0.05).remove("anna")
    finally:
        os.close(descriptor)
    VoiceShelf(store, 64).remove("anna")


def test_what_others_left_halfway_goes_whatever_its_age(store: VoiceStore) -> None:
    put(store)
    for name in (".new-fresh", ".gone-fresh"):
        (store.own / name / "voice").mkdir(parents=True)
    VoiceShelf(store, 64).sweep()
    assert sorted(path.name for path in store.own.iterdir()) == [".lock", "anna"]


def test_folders_are_made_their_owner_s_alone_and_become_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = os.umask(0)  # The most that a system may allow.
    try:
        store = VoiceStore(tmp_path / "a" / "b" / "voices", tmp_path / "built_in")
        put(store)
        for folder in (store.own, *store.own.parents[:2]):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
        assert not caplog.records
        store.own.chmod(0o755)
        put(store)
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.own.stat().st_mode) == 0o700
    assert "might read" in caplog.text


def test_several_at_one_folder_give_every_voice_its_own_id(store: VoiceStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda _: put(store).id, range(24)))
    assert sorted(added) == sorted(voice.id for voice in store.voices())
    assert len(set(added)) == 24


def test_no_more_than_may_be_are_kept_with_several_at_it(store: VoiceStore) -> None:
    def try_to(_: int) -> bool:
        try:
            put(store, most=5)
        except RequestError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(try_to, range(12))) == 5
    assert len(store.voices()) == 5
