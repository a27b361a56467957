"""Reference voices of a server: added, prepared, listed, removed; what is kept and what is not."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from agent.clock import Clock
from agent.errors import CheckpointError, RequestError
from agent.types import SPEECH_RATE_HZ
from agent.vocoder import files, preparing
from agent.vocoder.preparing import prepare_voice
from agent.vocoder.voice import SpeakerPrompt, VoicePreparation
from agent.vocoder.voice_store import VoiceStore, digest_of, read_recording
from agent.voices import (
    Added,
    ListedVoice,
    VocoderFiles,
    VoiceLimits,
    VoiceNotFound,
    Voices,
    checked_details,
)
from agent.voices_bench import BenchSettings, Child, Prepare
from agent.voices_workshop import Workshop
from tests.rig.attached import tone, wav
from tests.rig.tiny_vocoder import write_token2wav
from tests.rig.voice_bench import CONSENT, Benches, HeldBench, spoken

Start = Callable[[BenchSettings], Child]


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> VocoderFiles:
    return VocoderFiles("token2wav", write_token2wav(tmp_path_factory.mktemp("token2wav")))


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(tmp_path / "data" / "voices", tmp_path / "built_in")


@asynccontextmanager
async def running(
    store: VoiceStore,
    vocoder: VocoderFiles | None = None,
    limits: VoiceLimits = VoiceLimits(),  # noqa: B008
    start: Start | None = None,
) -> AsyncIterator[Voices]:
    settings = BenchSettings(store.own, store.built_in, limits.of_recordings(), vocoder)
    workshop = Workshop(settings, start or Benches())
    voices = Voices(store, limits, vocoder, workshop=workshop)
    await voices.start()
    try:
        yield voices
    finally:
        await voices.close()


async def add(voices: Voices, name: str = "Anna", voice: str = "en-us") -> Added:
    return await voices.add(checked_details(name, CONSENT), spoken(voice))


async def settled(voices: Voices) -> dict[str, ListedVoice]:
    """All voices by their ids, once none is being prepared."""
    while True:
        found = {each.voice.id: each for each in await voices.listed()}
        if all(each.status != "preparing" for each in found.values()):
            return found
        await asyncio.sleep(0.01)


def prompts(store: VoiceStore) -> set[str]:
    return {path.name for path in (store.own / "prepared").glob("*.npz")}


def same(one: SpeakerPrompt, other: SpeakerPrompt) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("speech_tokens", "mel", "embedding")
    )


# ---- adding -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left_behind")
async def test_a_voice_is_added_prepared_and_can_be_picked(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    async with running(store, vocoder) as voices:
        added = await add(voices)
        assert added.listed.voice.id == "anna" and added.examined.accepted
        assert (await settled(voices))["anna"].status == "ready"
        assert voices.ready_ids() == ("anna",)
    voice = store.find("anna")
    assert voice.consent == CONSENT and voice.created_at > 1_700_000_000
    assert voice.digest == digest_of(voice.recording.read_bytes())
    samples = read_recording(voice.recording)
    assert 4.0 < len(samples) / SPEECH_RATE_HZ == pytest.approx(voice.duration_s, abs=0.01)
    prompt = store.prompt(voice.digest, vocoder.key())
    expected = VoicePreparation.of_folder(vocoder.folder).prepare(samples, SPEECH_RATE_HZ)
    assert prompt is not None and same(prompt, expected)


async def test_all_that_is_kept_is_its_owner_s_alone(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    before = os.umask(0)  # The most that a system may allow.
    try:
        async with running(store, vocoder) as voices:
            await add(voices)
            await settled(voices)
    finally:
        os.umask(before)
    kept = [store.own, *store.own.rglob("*")]
    assert {"recording.wav", "voice.json", "prepared", "anna"} <= {path.name for path in kept}
    for path in kept:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


async def test_two_voices_never_share_a_form(store: VoiceStore, vocoder: VocoderFiles) -> None:
    async with running(store, vocoder) as voices:
        await asyncio.gather(add(voices, "Anna"), add(voices, "Ben", "de"))
        assert set(await settled(voices)) == {"anna", "ben"}
    anna, ben = store.find("anna"), store.find("ben")
    assert anna.digest != ben.digest and len(prompts(store)) == 2
    preparation = VoicePreparation.of_folder(vocoder.folder)
    for voice in (anna, ben):
        own = store.prompt(voice.digest, vocoder.key())
        samples = read_recording(voice.recording)
        assert own is not None and same(own, preparation.prepare(samples, SPEECH_RATE_HZ))


def test_a_recording_that_is_not_the_voice_s_own_is_not_prepared(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    """Or one voice would speak as another: forms are kept under the hash that a voice states."""
    preparation = VoicePreparation.of_folder(vocoder.folder)
    recording = store.own / "anna" / "recording.wav"
    recording.parent.mkdir(parents=True)
    recording.write_bytes(spoken("de"))
    (recording.parent / "voice.json").write_text(json.dumps({"digest": digest_of(b"another")}))
    voice = store.find("anna")
    with pytest.raises(CheckpointError, match="not the recording that was added"):
        prepare_voice(store, voice, vocoder.key(), preparation, "repeat")
    assert not prompts(store)


async def test_names_that_are_taken_get_a_number_also_at_the_same_time(
    store: VoiceStore,
) -> None:
    async with running(store) as voices:
        async with running(store) as other:
            added = await asyncio.gather(*(add(each) for each in (voices, other, voices)))
        found = {each.voice.id: each.voice.name for each in await voices.listed()}
    assert {each.listed.voice.id for each in added} == set(found)
    assert found == {"anna": "Anna", "anna-2": "Anna (2)", "anna-3": "Anna (3)"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wav(tone(6)), "No speech could be found in it."),
        (wav(np.zeros(96_000, np.int16)), "It is silent."),
        (spoken()[: 44 + 2 * 24_000], "the file is incomplete"),
        (b"RIFF", "this is text; supported are WAV"),
    ],
)
async def test_a_recording_that_cannot_be_used_leaves_nothing(
    store: VoiceStore, data: bytes, words: str
) -> None:
    async with running(store) as voices:
        with pytest.raises(RequestError, match=words) as raised:
            await voices.add(checked_details("Anna", CONSENT), data)
        assert raised.value.param == "audio_sample"
        assert await voices.listed() == ()
    assert [path.name for path in store.own.rglob("*")] in ([], [".lock"])


async def test_limits(store: VoiceStore) -> None:
    limits = VoiceLimits(voices=1, file_bytes=len(spoken()), recording_s=5)
    async with running(store, limits=limits) as voices:
        with pytest.raises(RequestError, match=r"at most [\d,]+ are allowed"):
            await voices.check(spoken(rate_hz=48_000))
        with pytest.raises(RequestError, match="longer than the 5 s"):
            await voices.check(wav(np.zeros(6 * 8000, np.int16), 8000))
        await add(voices)
        with pytest.raises(RequestError, match=r"voices\.max_voices") as raised:
            await add(voices, "Ben")
        assert raised.value.code == "too_many_voices"
        await voices.remove("anna")
        await add(voices, "Ben")


# ---- preparing ----------------------------------------------------------------------------------


async def test_what_is_prepared_is_not_prepared_again(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    async with running(store, vocoder) as voices:
        await add(voices)
        await settled(voices)
    path = next((store.own / "prepared").glob("*.npz"))
    before = path.stat().st_ino, path.stat().st_mtime_ns
    benches = Benches()
    async with running(store, vocoder, start=benches) as voices:
        assert voices.ready_ids() == ("anna",)
        assert (await settled(voices))["anna"].voice.consent == CONSENT
        assert benches.started == 0
        # The same sound under another name has its form already, too.
        added = await add(voices, "Anna's twin")
        assert added.listed.status == "ready"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before and len(prompts(store)) == 1


async def test_what_was_added_elsewhere_is_prepared_at_the_start(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    async with running(store) as voices:
        added = await add(voices)
        assert added.listed.status == "stored" and voices.ready_ids() == ()
    async with running(store, vocoder) as voices:
        assert (await settled(voices))["anna"].status == "ready"


async def test_a_damaged_form_is_made_anew(store: VoiceStore, vocoder: VocoderFiles) -> None:
    async with running(store, vocoder) as voices:
        voice = (await add(voices)).listed.voice
        await settled(voices)
    path = store.prompt_path(voice.digest, vocoder.key())
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert preparing.prepare_voices(store, (voice,), vocoder.folder, "repeat") == {}
    prompt = store.prompt(voice.digest, vocoder.key())
    assert prompt is not None and len(path.read_bytes()) == len(whole)


async def test_a_voice_that_cannot_be_prepared_says_why_and_holds_up_no_other(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    async with running(store) as voices:
        first = (await add(voices, "Anna")).listed.voice
        await add(voices, "Ben", "de")
    first.recording.write_bytes(b"no recording")
    async with running(store, vocoder) as voices:
        found = await settled(voices)
        assert found["anna"].status == "failed" and "cannot be read" in found["anna"].error
        assert voices.ready_ids() == ("ben",)


async def test_a_folder_without_the_models_fails_all_with_its_name(
    store: VoiceStore, tmp_path: Path
) -> None:
    async with running(store, VocoderFiles("token2wav", tmp_path / "nowhere")) as voices:
        await add(voices)
        failed = (await settled(voices))["anna"]
    assert failed.status == "failed" and "lacks" in failed.error and "campplus" in failed.error


def test_the_models_that_a_key_looks_at_are_those_that_prepare() -> None:
    assert {*files.TOKENIZERS, files.SPEAKER} == set(preparing._MODELS)


# ---- removing -----------------------------------------------------------------------------------


async def test_removing_leaves_nothing_but_what_others_share(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    async with running(store, vocoder) as voices:
        await add(voices, "Anna")
        await add(voices, "Twin")
        await settled(voices)
        await voices.remove("anna")
        assert voices.ready_ids() == ("twin",) and len(prompts(store)) == 1
        await voices.remove("twin")
        assert voices.ready_ids() == ()
        with pytest.raises(VoiceNotFound):
            await voices.remove("twin")
        for odd in ("", "prepared", "..", "../voices", ".lock"):
            with pytest.raises(VoiceNotFound):
                await voices.remove(odd)
    assert sorted(path.name for path in store.own.rglob("*")) == [".lock", "prepared"]


async def test_a_voice_of_the_program_cannot_be_removed_and_keeps_its_id(
    store: VoiceStore,
) -> None:
    store.built_in.mkdir()
    (store.built_in / "anna.wav").write_bytes(spoken())
    (store.built_in / "anna.json").write_text('{"name": "Anna"}')
    async with running(store) as voices:
        with pytest.raises(RequestError, match="comes with the program") as raised:
            await voices.remove("anna")
        assert raised.value.code == "voice_is_built_in"
        assert (await add(voices)).listed.voice.id == "anna-2"
        assert [each.voice.id for each in await voices.listed()] == ["anna", "anna-2"]


async def test_a_voice_removed_while_it_is_prepared_leaves_no_form(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    held = HeldBench(Prepare)
    async with running(store, vocoder, start=Benches(held)) as voices:
        await add(voices)
        await asyncio.to_thread(held.reached.wait, 10)
        # Read it may have been already: put back what the bench is about to read.
        voice = store.find("anna")
        recording = voice.recording.read_bytes()
        await voices.remove("anna")
        voice.recording.parent.mkdir()
        voice.recording.write_bytes(recording)
        assert await voices.listed() == ()
        held.go.set()
        await asyncio.wait_for(_added_after(voices), 60)
        assert len(prompts(store)) == 1 and voices.ready_ids() == ("ben",)


async def _added_after(voices: Voices) -> None:
    await add(voices, "Ben", "de")
    while (await settled(voices))["ben"].status != "ready":
        await asyncio.sleep(0.01)


# ---- what others leave --------------------------------------------------------------------------


async def test_what_was_left_halfway_is_swept(store: VoiceStore, vocoder: VocoderFiles) -> None:
    async with running(store, vocoder) as voices:
        await add(voices)
        await settled(voices)
    (kept,) = prompts(store)
    orphan = store.own / "prepared" / ("0" * 32 + "-0123456789abcdef.npz")
    orphan.write_bytes(b"")
    for name in (".new-old", ".gone-old", ".new-fresh"):
        (store.own / name).mkdir()
    async with running(store, vocoder) as voices:
        assert voices.ready_ids() == ("anna",)
    assert prompts(store) == {kept}
    assert sorted(path.name for path in store.own.glob(".*")) == [".lock"]


async def test_a_voice_that_another_program_adds_is_seen(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    clock = DrivenClock()
    limits = VoiceLimits()
    settings = BenchSettings(store.own, store.built_in, limits.of_recordings(), vocoder)
    workshop = Workshop(settings, Benches())
    voices = Voices(store, limits, vocoder, workshop=workshop, clock=clock)
    await voices.start()
    async with running(store) as other:
        await add(other)
    assert voices.ready_ids() == ()
    while voices.ready_ids() != ("anna",):
        clock.go.set()
        await asyncio.sleep(0.01)
    await voices.close()


class DrivenClock(Clock):
    """Lets time pass when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def sleep_until(self, due_s: float) -> None:
        await self.go.wait()
        self.go.clear()
