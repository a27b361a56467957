"""What passes by itself: preparation tried again; what others leave; what was given up."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.errors import EngineError
from agent.vocoder.voice_store import StoredVoice, VoiceStore
from agent.voices import (
    ListedVoice,
    VocoderFiles,
    VoiceLimits,
    Voices,
    VoiceUnwanted,
    checked_details,
)
from agent.voices_bench import Bench, BenchSettings, Prepare, why_not
from agent.voices_workshop import Workshop
from tests.rig.tiny_vocoder import write_token2wav
from tests.rig.voice_bench import CONSENT, Benches, spoken


class DrivenClock(Clock):
    """Stands still until it is told to go on; keeps what is waited for."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.waiting: dict[asyncio.Event, float] = {}

    def now_s(self) -> float:
        return self.at_s

    async def sleep_until(self, due_s: float) -> None:
        if due_s <= self.at_s:
            return await asyncio.sleep(0)
        event = asyncio.Event()
        self.waiting[event] = due_s
        try:
            await event.wait()
        finally:
            del self.waiting[event]

    def go_to(self, at_s: float) -> None:
        self.at_s = at_s
        for event, due_s in self.waiting.items():
            if due_s <= at_s:
                event.set()


class Moody(Workshop):
    """Fails with these words, one after the other; then does what it is told."""

    def __init__(self, settings: BenchSettings, *failures: str) -> None:
        super().__init__(settings, Benches())
        self.failures, self.tries = list(failures), 0

    async def prepare(self, voice: StoredVoice, key: str) -> str:
        self.tries += 1
        if self.failures:
            raise EngineError(self.failures.pop(0))
        return await super().prepare(voice, key)


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(tmp_path / "data" / "voices", tmp_path / "built_in")


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> VocoderFiles:
    return VocoderFiles("token2wav", write_token2wav(tmp_path_factory.mktemp("token2wav")))


@asynccontextmanager
async def moody(
    store: VoiceStore, vocoder: VocoderFiles | None, *failures: str
) -> AsyncIterator[tuple[Voices, Moody, DrivenClock]]:
    limits, clock = VoiceLimits(), DrivenClock()
    shop = Moody(
        BenchSettings(store.own, store.built_in, limits.of_recordings(), vocoder), *failures
    )
    voices = Voices(store, limits, vocoder, workshop=shop, clock=clock)
    await voices.start()
    try:
        yield voices, shop, clock
    finally:
        await voices.close()


async def add(voices: Voices) -> None:
    await voices.add(checked_details("Anna", CONSENT), spoken())


async def tried(shop: Moody, clock: DrivenClock, times: int) -> float:
    """Wait until so many tries were made, and the next one waits; when that is."""
    async with asyncio.timeout(60):
        while shop.tries < times or len(clock.waiting) < 2:
            await asyncio.sleep(0.005)
    return max(clock.waiting.values())


async def only(voices: Voices) -> ListedVoice:
    (found,) = await voices.listed()
    return found


# ---- tried again --------------------------------------------------------------------------------


async def test_what_may_pass_is_tried_again_after_a_while(
    store: VoiceStore, vocoder: VocoderFiles
) -> None:
    ended = f"the process ended; see {store.own}/anna and /var/log/some/file.log"
    async with moody(store, vocoder, ended) as (voices, shop, clock):
        await add(voices)
        assert await tried(shop, clock, 1) == 10.0
        found = await only(voices)
        assert found.status == "preparing"
        assert found.error == (
            "it could not be prepared: the process ended; see voices/anna and file.log"
        )
        clock.go_to(9.0)
        await asyncio.sleep(0.01)
        assert shop.tries == 1
        clock.go_to(10.0)
        async with asyncio.timeout(60):
            while (await only(voices)).status != "ready":
                await asyncio.sleep(0.01)
        assert shop.tries == 2 and (await only(voices)).error == ""


async def test_the_waits_grow_and_end(store: VoiceStore, vocoder: VocoderFiles) -> None:
    async with moody(store, vocoder, *["the process ended"] * 9) as (voices, shop, clock):
        await add(voices)
        waits = []
        for times in range(1, 5):
            due_s = await tried(shop, clock, times)
            waits.append(due_s - clock.at_s)
            clock.go_to(due_s)
        assert waits == [10.0, 60.0, 300.0, 1200.0]
        async with asyncio.timeout(60):
            while (await only(voices)).status != "failed":
                await asyncio.sleep(0.01)
        assert shop.tries == 5
        # Who adds it again wants it tried again.
        shop.failures.clear()
        await add(voices)
        async with asyncio.timeout(60):
            while {each.status for each in await voices.listed()} != {"ready"}:
                await asyncio.sleep(0.01)


def test_a_full_disk_passes_and_a_damaged_recording_does_not() -> None:
    with pytest.raises(EngineError, match="No space"):
        why_not({"error": "No space left", "code": None, "passing": True})
    assert why_not({"error": "is no recording", "code": None}) == "is no recording"
    assert why_not({}) == ""


def test_the_bench_tells_what_passes(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Bench, order: Prepare) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Bench, "_prepare", full)
    bench = Bench(BenchSettings(store.own, store.built_in, VoiceLimits().of_recordings()))
    voice = StoredVoice("anna", "Anna", "0" * 64, store.own / "anna", built_in=False)
    said, _ = bench.obey(Prepare(voice, "key"), b"")
    with pytest.raises(EngineError, match="No space left on device"):
        why_not(said)


# ---- given up, left behind ----------------------------------------------------------------------


@pytest.mark.parametrize("answers", [[False], [True, False]])
async def test_a_voice_that_nobody_waits_for_is_not_kept(
    store: VoiceStore, answers: list[bool]
) -> None:
    async with moody(store, None) as (voices, _, _):
        left = iter(answers)
        with pytest.raises(VoiceUnwanted):
            await voices.add(checked_details("Anna", CONSENT), spoken(), lambda: next(left))
        assert next(left, None) is None
        assert await voices.listed() == ()
    assert [path.name for path in store.own.glob("*")] in ([], [".lock"])


async def test_a_folder_that_is_locked_keeps_one_thread_at_a_time(store: VoiceStore) -> None:
    async with moody(store, None) as (voices, _, _):
        await add(voices)
        inside, most, go = 0, 0, threading.Event()

        def waits(voice_id: str) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            go.wait(10)
            inside -= 1

        voices._shelf.remove = waits  # type: ignore[method-assign,assignment]
        removals = [asyncio.create_task(voices.remove("anna")) for _ in range(40)]
        async with asyncio.timeout(60):
            while not inside:
                await asyncio.sleep(0.005)
            assert [each.voice.id for each in await voices.listed()] == ["anna"]
            go.set()
            await asyncio.gather(*removals)
        assert most == 1


async def test_what_a_program_left_when_it_was_ended_goes_while_the_server_runs(
    store: VoiceStore,
) -> None:
    async with moody(store, None) as (voices, _, clock):
        await add(voices)
        async with asyncio.timeout(60):
            while not clock.waiting:
                await asyncio.sleep(0.005)
            clock.go_to(5.0)
            while min(clock.waiting.values(), default=0.0) <= 5.0:
                await asyncio.sleep(0.005)
            gone = store.own / ".gone-half" / "voice"
            gone.mkdir(parents=True)
            (gone / "recording.wav").write_bytes(spoken())
            clock.go_to(10.0)
            while gone.parent.exists():
                await asyncio.sleep(0.005)
        assert [each.voice.id for each in await voices.listed()] == ["anna"]


def test_a_length_that_json_does_not_know_breaks_no_list() -> None:
    for odd in (math.nan, math.inf):
        voice = StoredVoice("anna", "Anna", "0" * 64, Path("x"), built_in=False, duration_s=odd)
        assert ListedVoice(voice, "ready").as_json()["duration_s"] == 0.0
