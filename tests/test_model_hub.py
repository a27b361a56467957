"""Which engine answers and why; where a checkpoint is found; what a GPU has free."""

import dataclasses
import io
import sys
import types
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import ModelSection
from agent.errors import CheckpointError, ConfigError
from agent.model_hub import choose, gpus, sources
from agent.model_hub.gpus import Gpu, NoGpu
from agent.model_hub.hub import HubModel
from agent.model_hub.progress import DownloadLine, LoadingLine
from tests.rig.hub_server import COMMIT
from tests.rig.model_folders import GIB, H200, config_of, empty_caches, write_whole

BUSY = Gpu("H200", 12 * GIB, 24 * GIB)
NONE = NoGpu("no GPU that torch can use")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whole(tmp_path / "model")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_caches(tmp_path, monkeypatch)


def chosen(gpu: Gpu | NoGpu, *overrides: str) -> tuple[str, str]:
    choice = choose(config_of(*overrides), lambda _: gpu)
    return choice.name, choice.reason


def unasked(_: int) -> Gpu:
    raise AssertionError("no GPU need be asked")


# ---- the choice ---------------------------------------------------------------------------------


def test_auto_takes_the_model_where_it_and_a_gpu_are(folder: Path) -> None:
    name, reason = chosen(H200, f"model.source={folder}")
    assert name == "minicpm-o"
    assert reason == f"H200 has 139.0 of 141.0 GiB free, checkpoint {folder}"
    assert chosen(H200, "model.source=openbmb/MiniCPM-o-4_5")[0] == "minicpm-o"


def test_auto_says_what_is_missing(folder: Path) -> None:
    assert chosen(NONE, f"model.source={folder}") == ("echo", "no GPU that torch can use")
    no_model = choose(config_of(), unasked)
    assert (no_model.name, no_model.reason[:14]) == ("echo", "no checkpoint:")
    on_cpu = choose(config_of(f"model.source={folder}", "model.device=cpu"), unasked)
    assert on_cpu.name == "echo" and "too slow" in on_cpu.reason


def test_auto_says_how_much_room_is_missing() -> None:
    published = "model.source=openbmb/MiniCPM-o-4_5"
    name, reason = chosen(BUSY, published)
    assert name == "echo"
    lack = "H200 has 12.0 of 24.0 GiB free, and 4 slots of 8192 tokens take 25.8"
    assert reason == f"{lack}: set model.quantisation to int4, and model.slots to 1"
    roomy = dataclasses.replace(BUSY, free_bytes=21 * GIB)
    assert chosen(roomy, published)[1].endswith("take 25.8: set model.quantisation to int4")
    assert chosen(roomy, published, "model.quantisation=int4")[0] == "minicpm-o"
    captions = "vocoder.name=off"
    assert chosen(roomy, published, captions)[1].endswith("take 23.9: set model.slots to 1")
    assert chosen(roomy, published, captions, "model.slots=1")[0] == "minicpm-o"
    piecewise, roomier = "model.graphs=false", dataclasses.replace(BUSY, free_bytes=23 * GIB)
    assert chosen(roomier, published, piecewise)[1].endswith("take 26.4: set model.slots to 1")
    assert chosen(roomier, published, piecewise, "model.slots=1")[0] == "minicpm-o"
    assert chosen(roomy, published, "model.slots=2", "model.dtype=float32")[0] == "echo"
    small = ("model.quantisation=int4", "model.slots=1", "model.context_tokens=2048", piecewise)
    assert chosen(BUSY, published, *small)[0] == "minicpm-o"
    assert chosen(BUSY, published, *small[1:])[0] == "echo"


def test_the_configured_gpu_is_asked(folder: Path) -> None:
    asked: list[int] = []

    def look(number: int) -> Gpu:
        asked.append(number)
        return H200

    for device in ("auto", "cuda", "cuda:3"):
        choose(config_of(f"model.source={folder}", f"model.device={device}"), look)
    assert asked == [0, 0, 3]


def test_by_name_it_runs_on_the_cpu_and_warns(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, reason = chosen(NONE, f"model.source={folder}", "engine.name=minicpm-o")
    assert name == "minicpm-o"
    assert reason.endswith("it runs on the CPU: no GPU that torch can use")
    assert caplog.text.count("far too slowly for a call: no GPU that torch can use") == 1


def test_by_name_it_is_taken_without_room_and_says_so() -> None:
    name, reason = chosen(BUSY, "model.source=a/b", "engine.name=minicpm-o")
    assert name == "minicpm-o"
    assert reason.startswith("it was asked for, but H200 has 12.0 of 24.0 GiB free, and 4 slots")


def test_by_name_without_a_checkpoint_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"model\.source: .* --model openbmb/MiniCPM-o-4_5"):
        chosen(H200, "engine.name=minicpm-o")
    with pytest.raises(ConfigError, match=r"model\.device: cuda:1 cannot be used: no GPU"):
        chosen(NONE, "engine.name=minicpm-o", "model.source=a/b", "model.device=cuda:1")


def test_other_engines_need_none_of_it() -> None:
    assert choose(config_of("engine.name=echo"), unasked).name == "echo"
    with pytest.raises(ConfigError, match="there is no engine 'hal'"):
        choose(config_of("engine.name=hal"), unasked)


def test_a_configured_checkpoint_that_is_none_stops_auto_too(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="llama"):
        chosen(H200, f"model.source={folder}")


def test_an_odd_folder_in_a_cache_stops_nobody_who_did_not_ask_for_it(caches: Path) -> None:
    kept = caches / "modelscope" / "models" / "openbmb" / "MiniCPM-o-4_5"
    write_whole(kept)
    assert chosen(H200)[0] == "minicpm-o"
    (kept / "config.json").write_text('{"model_type": "llama"}')
    name, reason = chosen(H200)
    assert name == "echo" and "llama" in reason
    with pytest.raises(CheckpointError, match="llama"):
        chosen(H200, "engine.name=minicpm-o")


# ---- where it is found --------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["{}", "{}/", "../model"])
def test_a_folder_is_taken_however_it_is_written(
    folder: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "here").mkdir()
    monkeypatch.chdir(folder.parent / "here")
    found = sources.locate(ModelSection(source=written.format(folder)))
    assert isinstance(found, Path) and found.is_absolute() and found.samefile(folder)


def test_the_home_folder_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert sources.locate(ModelSection(source="~/model")) == folder


@pytest.mark.parametrize("source", ["/none", "./none", "~/none", "none", "a/b/c", "a b/c"])
def test_what_is_neither_there_nor_an_id_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.source: .* is not there; name a folder"):
        sources.locate(ModelSection(source=source))


def test_an_id_and_its_revision_are_told() -> None:
    model = ModelSection(source="openbmb/MiniCPM-o-4_5", revision="v1.0")
    assert sources.locate(model) == HubModel("openbmb/MiniCPM-o-4_5", "v1.0")
    with pytest.raises(ConfigError, match=r"model\.revision"):
        sources.locate(ModelSection(source="a/b", revision="../../x"))


@pytest.mark.parametrize(
    "place",
    [
        "modelscope/hub/models/openbmb/MiniCPM-o-4_5",
        "modelscope/models/OpenBMB/MiniCPM-o-4_5",
        "modelscope/hub/openbmb/MiniCPM-o-4_5",
        f"hub/models--openbmb--MiniCPM-o-4_5/snapshots/{COMMIT}",
    ],
)
def test_an_earlier_download_is_found_if_it_is_whole(caches: Path, place: str) -> None:
    assert sources.locate(ModelSection()) is None
    write_whole(caches / place)
    references = caches / "hub" / "models--openbmb--MiniCPM-o-4_5" / "refs"
    references.mkdir(parents=True, exist_ok=True)
    (references / "main").write_text(COMMIT)
    assert sources.locate(ModelSection()) == caches / place
    (caches / place / "vocab.json").unlink()
    assert sources.locate(ModelSection()) is None


# ---- the GPU ------------------------------------------------------------------------------------


def test_torch_is_asked_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(number: int) -> tuple[int, int]:
        if number:
            raise RuntimeError("CUDA error: out of memory")
        return 5, 7

    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        mem_get_info=memory,
        get_device_properties=lambda _: types.SimpleNamespace(name="T4"),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert gpus.look_here(0) == Gpu("T4", 5, 7)
    assert gpus.look_here(1) == NoGpu("the GPU does not answer: CUDA error: out of memory")
    assert gpus.look_here(2) == NoGpu("there is no cuda:2, of 2 GPUs")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert isinstance(gpus.look_here(0), NoGpu)


def test_another_process_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVERS", (str(tmp_path / "driver"),))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpus.look(0) == NONE  # without asking torch, of which there is none here
    (tmp_path / "driver").touch()
    torch = tmp_path / "torch.py"
    torch.write_text(
        "print('a word of welcome')\n"
        "class cuda:\n"
        "    is_available = staticmethod(lambda: True)\n"
        "    device_count = staticmethod(lambda: 1)\n"
        "    mem_get_info = staticmethod(lambda number: (5, 7))\n"
        "    @staticmethod\n"
        "    def get_device_properties(number):\n"
        "        class it: name = 'T4'\n"
        "        return it\n"
    )
    assert gpus.look(0) == Gpu("T4", 5, 7)
    torch.write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
    assert gpus.look(0) == NONE
    torch.write_text("raise SystemError('broken build')\n")
    assert gpus.look(0) == NoGpu("torch could not be asked for a GPU: SystemError: broken build")


# ---- progress -----------------------------------------------------------------------------------


class Driven(Clock):
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_plain_line_now_and_then() -> None:
    clock, stream = Driven(), io.StringIO()
    line = DownloadLine("m", stream, clock)
    for second in range(0, 61):
        clock.time_s = 100.0 + second
        line(second * 10**8, 6 * 10**9)
    assert stream.getvalue().splitlines() == [
        "m: 0.00 of 6.00 GB",
        "m: 3.00 of 6.00 GB, 100.0 MB/s, 30 s left",
        "m: 6.00 of 6.00 GB, 100.0 MB/s",
    ]


def test_loading_is_shown_as_the_share_that_is_done() -> None:
    clock, stream = Driven(), io.StringIO()
    line = LoadingLine("m", stream, clock)
    for done in (0, 500, 1000):
        line(done, 1000)
        clock.time_s += 30.0
    assert stream.getvalue().splitlines() == ["m: 0 %", "m: 50 %, 30 s left", "m: 100 %"]


def test_a_terminal_gets_one_line_that_moves() -> None:
    clock, stream = Driven(), Terminal()
    line = DownloadLine("m", stream, clock)
    line(10**9, 20 * 10**9)
    clock.time_s += 0.1
    line(11 * 10**8, 20 * 10**9)
    clock.time_s += 9.9
    line(2 * 10**9, 20 * 10**9)
    line(20 * 10**9, 20 * 10**9)
    moves = stream.getvalue().split("\r")[1:]
    assert [move.partition(":")[2].removesuffix("\x1b[K").strip() for move in moves[:2]] == [
        "1.00 of 20.00 GB",
        "2.00 of 20.00 GB, 100.0 MB/s, 3 min left",
    ]
    assert len(moves) == 3 and moves[2].endswith("\n")
