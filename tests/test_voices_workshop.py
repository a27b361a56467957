"""The process that examines recordings and prepares voices, and how it is looked after."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.errors import CapacityError, EngineError, RequestError
from agent.media.recording import RecordingLimits
from agent.vocoder.voice_store import StoredVoice
from agent.voices_bench import BenchSettings, Child, Prepare, VocoderFiles, serve
from agent.voices_recording import examine
from agent.voices_workshop import Patience, Workshop
from tests.rig.attached import wav
from tests.rig.voice_bench import Benches, HeldBench, coded, spoken
from tests.rig.voices import talk

ROOT = Path(__file__).resolve().parent.parent
LIMITS = RecordingLimits()


def settings(folder: Path, vocoder: VocoderFiles | None = None) -> BenchSettings:
    return BenchSettings(folder / "own", folder / "built_in", LIMITS, vocoder, nice=1)


@asynccontextmanager
async def working(workshop: Workshop) -> AsyncIterator[Workshop]:
    try:
        yield workshop
    finally:
        await workshop.close()


def a_voice(folder: Path) -> StoredVoice:
    return StoredVoice("anna", "Anna", "0" * 64, folder / "recording.wav", built_in=False)


# ---- the real process ---------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left_behind")
async def test_the_process_is_polite_and_ended_whatever_it_is_at(tmp_path: Path) -> None:
    before = os.nice(0)
    workshop = Workshop(settings(tmp_path))
    async with working(workshop):
        examined = await workshop.examine(spoken())
        assert examined == examine(spoken(), LIMITS) and examined.accepted
        (process,) = [
            each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())
        ]
        assert process.nice() == min(19, before + 1)
        with pytest.raises(RequestError, match="this is text"):
            await workshop.examine(b"hello")
        waiting = asyncio.create_task(workshop.examine(wav(_minute())))
        await asyncio.sleep(0)
    with pytest.raises(EngineError):
        await waiting
    assert not process.is_running()
    with pytest.raises(EngineError, match="shutting down"):
        await workshop.examine(spoken())


def _minute() -> "np.ndarray[tuple[int], np.dtype[np.int16]]":
    return (talk(60, 48_000) * 32767).astype(np.int16)


def test_the_server_s_process_loads_no_torch() -> None:
    code = (
        "import sys, agent.api.voices, agent.voices as v; "
        "print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# ---- how it is looked after ---------------------------------------------------------------------


async def test_who_waits_for_a_recording_goes_first_and_not_too_many_wait(tmp_path: Path) -> None:
    bench = HeldBench(Prepare)
    patience = Patience(waiting=2)
    async with working(Workshop(settings(tmp_path), Benches(bench), patience)) as workshop:
        first = asyncio.create_task(workshop.prepare(a_voice(tmp_path), "key"))
        await asyncio.to_thread(bench.reached.wait, 10)
        second = asyncio.create_task(workshop.prepare(a_voice(tmp_path), "key"))
        checks = [asyncio.create_task(workshop.examine(b"hello")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(CapacityError) as raised:
            await workshop.examine(b"hello")
        assert raised.value.retry_after_s > 0
        checks[1].cancel()
        bench.go.set()
        assert "no vocoder" in await first and "no vocoder" in await second
        with pytest.raises(RequestError):
            await checks[0]
    assert bench.orders == ["Prepare", "Examine", "Prepare"]


def mute(end: Connection, given: BenchSettings) -> None:
    """A bench that hears and never answers."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            end.recv_bytes()


async def test_what_takes_too_long_is_ended_and_the_next_gets_a_new_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(end: Connection, given: BenchSettings) -> None:
        (mute if benches.started == 1 else serve)(end, given)

    benches = Benches(run)
    patience = Patience(examine_s=1.5)
    async with working(Workshop(settings(tmp_path), benches, patience)) as workshop:
        with pytest.raises(EngineError, match=r"longer than 1\.5 s"):
            await workshop.examine(spoken())
        with pytest.raises(RequestError, match="this is text"):
            await workshop.examine(b"hello")
    assert benches.started == 2 and "the process that prepares voices" in caplog.text


@pytest.mark.usefixtures("nothing_left_behind")
async def test_a_process_that_somebody_ended_is_replaced(tmp_path: Path) -> None:
    benches = Benches()
    async with working(Workshop(settings(tmp_path), benches)) as workshop:
        await workshop.examine(spoken())
        assert workshop._child is not None
        workshop._child.kill()
        workshop._child.bury()
        assert (await workshop.examine(spoken())).accepted
    assert benches.started == 2


async def test_without_work_the_process_ends_and_work_starts_another(tmp_path: Path) -> None:
    benches = Benches()
    workshop = Workshop(settings(tmp_path), benches, Patience(idle_s=0.0))
    async with working(workshop):
        for number in (1, 2):
            await workshop.examine(spoken())
            while workshop._child is not None:
                await asyncio.sleep(0.01)
            assert benches.started == number


async def test_no_process_to_be_had_is_said(tmp_path: Path) -> None:
    def none_left(given: BenchSettings) -> Child:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async with working(Workshop(settings(tmp_path), none_left)) as workshop:
        with pytest.raises(EngineError, match="temporarily unavailable"):
            await workshop.examine(spoken())
        with pytest.raises(EngineError, match="temporarily"):
            await workshop.prepare(a_voice(tmp_path), "key")


# ---- what it finds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"),
    [
        ("mp3", "mp3", 44_100),
        ("ogg", "libopus", 48_000),
        ("mp4", "aac", 44_100),
        ("webm", "libopus", 48_000),
        ("flac", "flac", 22_050),
    ],
)
def test_recordings_of_any_format_at_their_own_rate(
    container: str, codec: str, rate_hz: int
) -> None:
    examined = examine(coded(container, codec, rate_hz), LIMITS)
    assert examined.accepted and examined.report["rate_hz"] == rate_hz
    assert examined.report["channels"] == 1 and 4.0 < examined.duration_s < 4.5
    assert abs(examined.report["level_dbfs"] + 23) < 1.5


def test_what_is_around_the_speech_is_told_from_it() -> None:
    """Music has a level and a pitch, so it is the detector that cuts it off."""
    rate_hz = 24_000
    speech = np.frombuffer(spoken()[44:], np.int16)
    at_s = np.arange(3 * rate_hz) / rate_hz
    pitches_hz = (220, 277, 330, 440, 554, 660)
    chord = sum(np.sin(2 * np.pi * pitch_hz * at_s) for pitch_hz in pitches_hz)
    music = (700 * chord).astype(np.int16)
    alone = examine(wav(speech, rate_hz), LIMITS)
    framed = examine(wav(np.concatenate((music, speech, music)), rate_hz), LIMITS)
    assert framed.accepted and framed.report["duration_s"] == pytest.approx(10.2, abs=0.1)
    assert framed.report["speech_s"] == pytest.approx(alone.report["speech_s"], abs=0.6)
    refused = examine(wav(np.tile(music, 2), rate_hz), LIMITS)
    codes = {each["code"]: each["severity"] for each in refused.report["findings"]}
    assert codes == {"no_speech": "refused"}
    assert refused.recording == b"" and refused.refusal == "No speech could be found in it."


def test_what_is_long_is_cut_and_noted_and_the_whole_length_told() -> None:
    examined = examine(wav(_minute()[: 30 * 48_000], 48_000), RecordingLimits(kept_s=20.0))
    assert examined.report["duration_s"] == 30.0 and 9.0 < examined.duration_s <= 15.0
    (note,) = examined.notes
    assert re.fullmatch(r"Only the 1\d\.\d s from 0:0\d on are used\.", note)


def test_two_channels_are_noted() -> None:
    speech = np.frombuffer(spoken()[44:], np.int16)
    examined = examine(wav(np.stack((speech, speech // 40), 1), 24_000), LIMITS)
    assert examined.notes == ("It has 2 channels; only number 1 is used.",)
